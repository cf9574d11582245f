//! `/v1/jobs`: posting, listing, reading, changing and removing jobs.

use super::{
    Api,
    document::JobDocument,
    extract::{Caller, JobPath, Params, RawJson, Reading, Submitting, accepts},
    filter::{self, FilterParams},
    json,
    limits::{DEFAULT_PAGE, MAX_JOB, MAX_OUTPUTS, MAX_PAGE, MAX_WAIT},
    logs::log_store_away,
    problem::{Answer, Kind, Problem},
    request::{self, JobRequest, Label, Posting},
};
use crate::accept::{Accepted, Full};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use jobgate_shared::{
    domain::{Document, HistoryEntry, IdempotencyKey, Job, JobId},
    logs::ALL_SHIPPED_AFTER,
    store::{PageRequest, Patch, Removed, Scope},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Header by which a producer names a submission of its own.
pub(super) const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
/// Longest key.
const MAX_KEY: usize = 200;

/// A page of jobs.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct JobPage {
    /// The jobs, newest first.
    items: Vec<JobDocument>,
    /// Where the next page begins; null on the last. A page can be short, even empty, and still have a next one.
    next_cursor: Option<String>,
}

/// Posts a job.
///
/// It is stored, durably, before the answer. Sent again under the same `Idempotency-Key` with the same body, it is
/// answered with the same job.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", operation_id = "post_job",
    params(
        ("Idempotency-Key" = Option<String>, Header, pattern = "^[!-~]{1,200}$",
            description = "Your own name for this submission; 1 to 200 visible ASCII characters"),
    ),
    request_body = JobRequest,
    responses(
        (status = 201, description = "Stored", body = JobDocument, headers(("Location" = String, description = "Path of the job"))),
        (status = 200, description = "Stored before, under the same key", body = JobDocument),
        (status = 422, description = "The key stands for another body"),
    ))]
pub(super) async fn post(
    State(api): State<Arc<Api>>,
    caller: Caller<Submitting>,
    params: Params,
    headers: HeaderMap,
    RawJson(body): RawJson<MAX_JOB>,
) -> Answer<Response> {
    accepts(&headers, "application/json")?;
    params.end()?;
    let key = idempotency_key(&headers)?.map(|key| IdempotencyKey { key, body: digest(&body) });
    let project = caller.home();
    let now = api.clock.now();
    let by = &caller.principal.by;
    let posting = Posting { clusters: &*api.clusters, project: &project, by, now };
    let job = json::read::<JobRequest>(&body)?.check(&posting, key)?;
    let bytes = body.len() + job.parsed_weight();
    let accepted = api.acceptor.accept(vec![job], bytes).await.map_err(overloaded)?.pop();
    match accepted.unwrap_or(Accepted::Away) {
        Accepted::Created(job) => {
            let location = format!("/v1/jobs/{}", job.id);
            // An id has nothing a header could not hold.
            let location = HeaderValue::try_from(location).unwrap_or(HeaderValue::from_static("/v1/jobs"));
            let headers = [(header::LOCATION, location)];
            Ok((StatusCode::CREATED, headers, Json(JobDocument::from(*job))).into_response())
        }
        Accepted::Existing(job) => Ok(Json(JobDocument::from(*job)).into_response()),
        other @ (Accepted::KeyReused | Accepted::Refused | Accepted::Away) => Err(not_accepted(&other)),
    }
}

pub(super) fn overloaded(full: Full) -> Problem {
    Problem::new(Kind::Overloaded, full.to_string())
}

/// The problem of a job that was not stored.
pub(super) fn not_accepted(accepted: &Accepted) -> Problem {
    match accepted {
        Accepted::KeyReused => {
            Problem::new(Kind::KeyReused, "use a new key for a new body").at(IDEMPOTENCY_KEY)
        }
        Accepted::Refused => Problem::new(Kind::Internal, "the store will not take this job"),
        Accepted::Away | Accepted::Created(_) | Accepted::Existing(_) => Problem::new(
            Kind::StoreAway,
            "the store cannot be reached; post again, under an Idempotency-Key to be safe",
        ),
    }
}

/// The producer's key, if it sends one.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Answer<Option<String>> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let visible = value
        .to_str()
        .ok()
        .filter(|key| (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()));
    let key = visible.ok_or_else(|| {
        Problem::invalid(IDEMPOTENCY_KEY, format!("must be 1 to {MAX_KEY} visible ASCII characters"))
    })?;
    Ok(Some(key.to_owned()))
}

/// What a key is held against: the body as sent, without the white space around it.
pub(super) fn digest(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body.trim_ascii()).into()
}

/// Lists jobs, newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", operation_id = "list_jobs",
    params(
        FilterParams,
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Most jobs of the page; 100 when absent"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before, with the same filter"),
    ),
    responses((status = 200, description = "A page", body = JobPage)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller<Reading>,
    mut params: Params,
    headers: HeaderMap,
) -> Answer<Json<JobPage>> {
    accepts(&headers, "application/json")?;
    let scope = caller.scope();
    let filter = filter::take_filter(&mut params)?;
    let after = filter::take_cursor(&mut params, &scope, &filter)?;
    let limit = params.parse("limit", &format!("1 to {MAX_PAGE}"))?.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::invalid("limit", format!("must be 1 to {MAX_PAGE}")));
    }
    params.end()?;
    let mut page = api.store.list(&scope, &filter, PageRequest { after, limit }).await?;
    api.lookout.explain(&mut page.jobs).await;
    Ok(Json(JobPage {
        items: page.jobs.into_iter().map(JobDocument::from).collect(),
        next_cursor: page.next.map(|last| filter::cursor(last, &scope, &filter)),
    }))
}

/// Reads a job; with `wait`, once it has ended or the time is up.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "get_job",
    params(
        ("id" = Uuid, Path, description = "The job"),
        ("wait" = Option<String>, Query, pattern = "^[0-9]{1,5}(ms|s|m)?$",
            description = "Wait so long for its end, such as `30s`; at most 60 s"),
    ),
    responses((status = 200, description = "The job", body = JobDocument)))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller<Reading>,
    JobPath(id): JobPath,
    mut params: Params,
    headers: HeaderMap,
) -> Answer<Json<JobDocument>> {
    accepts(&headers, "application/json")?;
    let wait = params.duration("wait")?.map(|wait| wait.min(MAX_WAIT));
    params.end()?;
    let mut job = match wait {
        None => one(&api, &caller.scope(), id).await?,
        Some(wait) => wait_for_end(&api, &caller.scope(), id, wait).await?,
    };
    api.lookout.explain(std::slice::from_mut(&mut job)).await;
    Ok(Json(job.into()))
}

/// One job in scope.
pub(super) async fn one(api: &Api, scope: &Scope, id: JobId) -> Answer<Job> {
    api.store.get(scope, id).await?.ok_or_else(Problem::no_such_job)
}

async fn wait_for_end(api: &Arc<Api>, scope: &Scope, id: JobId, wait: Duration) -> Answer<Job> {
    let deadline = Instant::now() + wait;
    let watch = api.feed.watch(id);
    loop {
        // Before the read, so that a change between the two is not missed.
        let changed = watch.changed();
        let job = one(api, scope, id).await?;
        if job.life.state.is_terminal() {
            return Ok(job);
        }
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until(deadline) => return Ok(job),
            () = api.tasks.shutdown().cancelled() => return Ok(job),
        }
    }
}

/// How a job came to stand where it stands.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct History {
    /// Every change of state, oldest first.
    items: Vec<HistoryEntry>,
}

/// Tells how a job came to stand where it stands.
#[utoipa::path(get, path = "/v1/jobs/{id}/history", tag = "jobs", operation_id = "get_history",
    params(("id" = Uuid, Path, description = "The job")),
    responses((status = 200, description = "Its history", body = History)))]
pub(super) async fn history(
    State(api): State<Arc<Api>>,
    caller: Caller<Reading>,
    JobPath(id): JobPath,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<History>> {
    accepts(&headers, "application/json")?;
    params.end()?;
    let items = api.store.history(&caller.scope(), id).await?.ok_or_else(Problem::no_such_job)?;
    Ok(Json(History { items }))
}

/// What can be changed of a job by hand; what is absent or null stays as it is.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"progress": 40, "outputs": {"rows": 1200}}))]
pub(super) struct JobPatch {
    /// Replaces the labels.
    #[schema(max_items = 64, value_type = Option<Vec<Label>>)]
    labels: Option<Vec<String>>,
    /// Replaces the priority.
    #[schema(minimum = -100, maximum = 100)]
    priority: Option<i64>,
    /// Percent done of the attempt.
    #[schema(minimum = 0, maximum = 100)]
    progress: Option<i64>,
    /// Merged into the outputs, key by key; `null` removes one.
    #[schema(value_type = Option<Object>)]
    outputs: Option<Document>,
}

/// Changes labels, priority, progress or outputs.
#[utoipa::path(patch, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "patch_job",
    params(("id" = Uuid, Path, description = "The job")),
    request_body = JobPatch,
    responses((status = 200, description = "The job now", body = JobDocument)))]
pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    caller: Caller<Submitting>,
    JobPath(id): JobPath,
    params: Params,
    headers: HeaderMap,
    RawJson(body): RawJson<MAX_JOB>,
) -> Answer<Json<JobDocument>> {
    accepts(&headers, "application/json")?;
    params.end()?;
    let JobPatch { labels, priority, progress, outputs } = json::read(&body)?;
    if let Some(labels) = &labels {
        request::check_labels(labels)?;
    }
    let priority = priority.map(request::check_priority).transpose()?;
    let progress = progress.map(request::check_progress).transpose()?;
    if let Some(outputs) = &outputs {
        request::check_document("outputs", outputs)?;
        check_room(&one(&api, &caller.scope(), id).await?.outputs, outputs)?;
    }
    let patch = Patch { labels, priority, progress, outputs };
    let job = api.store.patch(&caller.scope(), id, &patch).await?.ok_or_else(Problem::no_such_job)?;
    Ok(Json(job.into()))
}

/// What is handed out stays within bounds, whatever requests it came by.
pub(super) fn check_room(outputs: &Document, more: &Document) -> Answer<()> {
    let mut merged = outputs.clone();
    merged.extend(more.clone());
    if size(&merged) > MAX_OUTPUTS {
        return Err(Problem::invalid("outputs", format!("would be larger than {MAX_OUTPUTS} bytes")));
    }
    request::check_document("outputs", &merged)
}

fn size(document: &Document) -> usize {
    serde_json::to_vec(document).map_or(0, |bytes| bytes.len())
}

/// Removes a job that has ended, with its history and its logs.
#[utoipa::path(delete, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "delete_job",
    params(("id" = Uuid, Path, description = "The job")),
    responses(
        (status = 204, description = "Removed"),
        (status = 409, description = "It has not ended"),
    ))]
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller<Submitting>,
    JobPath(id): JobPath,
    params: Params,
) -> Answer<StatusCode> {
    params.end()?;
    let not_ended = || Problem::new(Kind::StateConflict, "it has not ended; cancel it first");
    let life = one(&api, &caller.scope(), id).await?.life;
    if !life.state.is_terminal() {
        return Err(not_ended());
    }
    // Noted first, so that a crash leaves no log for ever; gone last, so that a job tried again meanwhile keeps its own.
    let now = api.clock.now();
    let note = api.logs.doom(&[id], now).await.map_err(log_store_away)?;
    let gone = match api.store.remove(&caller.scope(), id).await? {
        // It was there just now: another removed it, or this call did, and asked again when the answer was lost.
        Removed::Removed | Removed::Absent => true,
        Removed::NotEnded => false,
    };
    // Of a job that ended lately more may come; the note stays for that.
    let all_shipped = life.finished_at.is_some_and(|at| at + ALL_SHIPPED_AFTER <= now);
    let cleaned = async {
        if gone {
            api.logs.remove(&[id]).await?;
        }
        match note {
            Some(note) if !gone || all_shipped => api.logs.strike_out(note).await,
            Some(_) | None => Ok(()),
        }
    };
    if let Err(error) = cleaned.await {
        let error = format!("{:#}", anyhow::Error::new(error));
        tracing::warn!(error, job = %id, "what job {id} leaves in the log store is removed later");
    }
    if gone { Ok(StatusCode::NO_CONTENT) } else { Err(not_ended()) }
}
