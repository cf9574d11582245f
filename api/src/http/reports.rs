//! `POST /v1/jobs/{id}/reports`: what a running job tells of itself.
//!
//! Opened by the token the attempt finds in its environment, or by anybody who may act on the job. What a report does to
//! the job, and why one is refused, is decided in the domain.

use super::{
    Api,
    extract::{JobPath, Params, RawJson, Reporter, accepts},
    jobs::{check_room, one},
    json,
    limits::MAX_JOB,
    problem::{Answer, Kind, Problem},
    request::{self, Label},
};
use axum::{Json, extract::State, http::HeaderMap};
use jobgate_shared::{
    domain::{Document, Job, JobId, Report, ReportRefusal, SelfReport, SubmissionTag},
    store::{Reported, Scope},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::openapi::{Object, Schema, Type, schema::SchemaType};

/// Longest stage, in characters.
const MAX_STAGE: usize = 100;
/// Longest message, in characters.
const MAX_MESSAGE: usize = 500;
/// Greatest number of a report: what every reader of JSON keeps exactly.
const MAX_SEQ: u64 = (1 << 53) - 1;

/// What a running job tells of itself; what is absent or null stays as it is.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"seq": 7, "progress": 40, "stage": "sorting", "message": "row 480 of 1200"}))]
pub(super) struct ReportRequest {
    /// The attempt it is about: the token's, or the one under way.
    #[schema(minimum = 1)]
    attempt: Option<u32>,
    /// Orders the reports of an attempt: any number that rises, such as a count or the time. A late report replaces
    /// nothing; one without a number is taken for the newest when it arrives.
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    seq: Option<u64>,
    /// Percent done; within an attempt it only rises.
    #[schema(minimum = 0, maximum = 100)]
    progress: Option<i64>,
    /// What it is busy with, in a word or two of its own; an empty one takes the last one back.
    #[schema(max_length = 100, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    stage: Option<String>,
    /// A line for people; an empty one takes the last one back.
    #[schema(max_length = 500, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    message: Option<String>,
    /// Added to the labels.
    #[schema(max_items = 64, value_type = Option<Vec<Label>>)]
    labels: Option<Vec<String>>,
    #[schema(schema_with = outputs)]
    outputs: Option<Document>,
}

/// The schema of outputs: a report removes none, so none is null.
fn outputs() -> Object {
    let kinds = [Type::String, Type::Number, Type::Boolean, Type::Object, Type::Array];
    let value = Object::builder().schema_type(SchemaType::from_iter(kinds));
    Object::builder()
        .description(Some("Merged into the outputs, key by key."))
        .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
        .additional_properties(Some(Schema::Object(value.build())))
        .build()
}

impl ReportRequest {
    fn check(self) -> Answer<Report> {
        let Self { attempt, seq, progress, stage, message, labels, outputs } = self;
        if seq.is_some_and(|seq| seq > MAX_SEQ) {
            return Err(Problem::invalid("seq", format!("must be 0 to {MAX_SEQ}")));
        }
        let progress = progress.map(request::check_progress).transpose()?;
        for (field, text, longest) in [("stage", &stage, MAX_STAGE), ("message", &message, MAX_MESSAGE)] {
            text.as_ref().map_or(Ok(()), |text| request::check_text(field, text, longest))?;
        }
        let (labels, outputs) = (labels.unwrap_or_default(), outputs.unwrap_or_default());
        request::check_labels(&labels)?;
        request::check_document("outputs", &outputs)?;
        if let Some((key, _)) = outputs.iter().find(|(_, value)| value.is_null()) {
            // It could not be told from one that was never there when an older report comes late.
            return Err(Problem::invalid(format!("outputs.{key}"), "a report removes no output"));
        }
        Ok(Report { attempt, seq, progress, stage, message, labels, outputs })
    }
}

/// How an attempt stands by its own words.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ReportDocument {
    /// The job.
    job: JobId,
    /// The attempt under way.
    attempt: u32,
    /// Percent done.
    #[schema(maximum = 100)]
    progress: Option<u8>,
    /// What it is busy with.
    stage: Option<String>,
    /// What it says to people.
    message: Option<String>,
    /// Somebody asked for its end: a job that hears so may end early and in order.
    cancel_requested: bool,
}

impl From<Job> for ReportDocument {
    fn from(job: Job) -> Self {
        let told = job.current_report().cloned();
        let told = told.unwrap_or_else(|| SelfReport::of(job.life.attempt));
        let SelfReport { attempt, progress, stage, message, .. } = told;
        Self { job: job.id, attempt, progress, stage, message, cancel_requested: job.life.cancel_requested }
    }
}

/// Takes down what a running job tells of itself.
///
/// For the job itself, by the token in its environment (`JOBGATE_TOKEN`), which opens this and nothing else, and for
/// whoever may act on the job. It never changes the job's state or priority. Sent again it changes nothing.
#[utoipa::path(post, path = "/v1/jobs/{id}/reports", tag = "jobs", operation_id = "post_report",
    params(("id" = Uuid, Path, description = "The job")),
    request_body = ReportRequest,
    responses(
        (status = 200, description = "How the attempt stands by its own words", body = ReportDocument),
        (status = 409, description = "The attempt has not begun, is over, or is not the one under way"),
    ))]
pub(super) async fn post(
    State(api): State<Arc<Api>>,
    reporter: Reporter,
    JobPath(id): JobPath,
    params: Params,
    headers: HeaderMap,
    RawJson(body): RawJson<MAX_JOB>,
) -> Answer<Json<ReportDocument>> {
    accepts(&headers, "application/json")?;
    params.end()?;
    let mut report = json::read::<ReportRequest>(&body)?.check()?;
    let scope = match reporter {
        Reporter::Caller(caller) => caller.scope(),
        Reporter::Attempt(tag) => {
            report.attempt = Some(own_attempt(tag, id, report.attempt)?);
            Scope::All
        }
    };
    if !report.labels.is_empty() || !report.outputs.is_empty() {
        let Job { mut labels, outputs, .. } = one(&api, &scope, id).await?;
        let more: Vec<String> =
            report.labels.iter().filter(|label| !labels.contains(label)).cloned().collect();
        labels.extend(more);
        request::check_labels(&labels)?;
        check_room(&outputs, &report.outputs)?;
    }
    match api.store.report(&scope, id, &report).await? {
        Reported::Taken(job) => Ok(Json((*job).into())),
        Reported::Refused(refusal) => Err(refused(refusal, report.attempt)),
        Reported::Absent => Err(Problem::no_such_job()),
    }
}

/// The attempt a job's own token speaks for, if it is used for nothing else.
fn own_attempt(token: SubmissionTag, job: JobId, told: Option<u32>) -> Answer<u32> {
    if token.job != job {
        return Err(Problem::new(Kind::Forbidden, "this is another job's own token"));
    }
    if told.is_some_and(|told| told != token.attempt) {
        let detail = format!("the token is of attempt {}", token.attempt);
        return Err(Problem::new(Kind::Forbidden, detail).at("attempt"));
    }
    Ok(token.attempt)
}

fn refused(refusal: ReportRefusal, told: Option<u32>) -> Problem {
    let detail = match (refusal, told) {
        (ReportRefusal::OtherAttempt { current }, Some(told)) if told < current => {
            format!("attempt {told} is over; the job is at attempt {current}")
        }
        (ReportRefusal::OtherAttempt { current }, Some(_) | None) => {
            format!("the job is at attempt {current}")
        }
        (ReportRefusal::NotBegun, _) => "the attempt has not begun".to_owned(),
        (ReportRefusal::Ended, _) => "the job has ended".to_owned(),
    };
    Problem::new(Kind::StateConflict, detail)
}
