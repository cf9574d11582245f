//! `POST …/cancel|hold|release|retry`: commands for one job, or for all a filter means.
//!
//! A command is recorded before it is answered. Whoever holds the job is tapped on the shoulder; its heartbeat would
//! tell it anyway.

use super::{
    Api,
    document::JobDocument,
    extract::{Caller, Canceling, JobPath, Params, Submitting, accepts},
    filter::{self, FilterParams},
    limits::{BULK_COMMAND, MAX_PAGE},
    problem::{Answer, Kind, Problem},
};
use axum::{Json, extract::State, http::HeaderMap};
use jobgate_shared::{
    domain::{Command, JobId, JobState, Refusal, WorkerId},
    failpoint,
    store::{Commanded, Filter, PageRequest},
    wire::Nudge,
};
use serde::Serialize;
use std::{collections::BTreeSet, sync::Arc};
use tokio::time::Instant;

/// Jobs commanded in one call of the store.
const PAGE: u32 = 500;
/// Most refusals told one by one.
const MAX_REFUSALS: usize = 100;

/// What a command for many jobs takes beside a filter.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "what the document says of parameters; they are taken one by one")]
struct BulkParams {
    /// Needed when there is no filter.
    all: Option<bool>,
    /// `next_cursor` of the answer before, with the same filter.
    cursor: Option<String>,
}

/// What became of a command for many jobs.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub(super) struct BulkOutcome {
    /// Jobs the filter meant.
    matched: u64,
    /// Jobs it was carried out for, or held for already.
    done: u64,
    /// Jobs that refused.
    refused: u64,
    /// The first hundred that refused, and why.
    refusals: Vec<RefusedJob>,
    /// There is more to do: send the same again with this `cursor`.
    next_cursor: Option<String>,
}

/// A job that refused a command.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct RefusedJob {
    /// The job.
    id: JobId,
    /// Why.
    reason: String,
}

/// Ends a job, or keeps it from beginning.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", tag = "commands", operation_id = "cancel_job",
    params(("id" = Uuid, Path, description = "The job")),
    responses((status = 200, description = "Recorded", body = JobDocument), (status = 409, description = "It has ended")))]
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    caller: Caller<Canceling>,
    JobPath(id): JobPath,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<JobDocument>> {
    command(&api, &caller, id, params, &headers, Command::Cancel).await
}

/// Keeps a waiting job from beginning until it is released.
#[utoipa::path(post, path = "/v1/jobs/{id}/hold", tag = "commands", operation_id = "hold_job",
    params(("id" = Uuid, Path, description = "The job")),
    responses((status = 200, description = "Held", body = JobDocument), (status = 409, description = "It does not wait")))]
pub(super) async fn hold(
    State(api): State<Arc<Api>>,
    caller: Caller<Submitting>,
    JobPath(id): JobPath,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<JobDocument>> {
    command(&api, &caller, id, params, &headers, Command::Hold).await
}

/// Lets a held job wait for a worker again.
#[utoipa::path(post, path = "/v1/jobs/{id}/release", tag = "commands", operation_id = "release_job",
    params(("id" = Uuid, Path, description = "The job")),
    responses((status = 200, description = "Released", body = JobDocument), (status = 409, description = "It is not held")))]
pub(super) async fn release(
    State(api): State<Arc<Api>>,
    caller: Caller<Submitting>,
    JobPath(id): JobPath,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<JobDocument>> {
    command(&api, &caller, id, params, &headers, Command::Release).await
}

/// Runs an ended job once more.
#[utoipa::path(post, path = "/v1/jobs/{id}/retry", tag = "commands", operation_id = "retry_job",
    params(("id" = Uuid, Path, description = "The job")),
    responses((status = 200, description = "It waits again", body = JobDocument), (status = 409, description = "It has not failed")))]
pub(super) async fn retry(
    State(api): State<Arc<Api>>,
    caller: Caller<Submitting>,
    JobPath(id): JobPath,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<JobDocument>> {
    command(&api, &caller, id, params, &headers, Command::Retry).await
}

async fn command<N>(
    api: &Arc<Api>,
    caller: &Caller<N>,
    id: JobId,
    params: Params,
    headers: &HeaderMap,
    command: Command,
) -> Answer<Json<JobDocument>> {
    accepts(headers, "application/json")?;
    params.end()?;
    failpoint::pass("command.taken");
    let told = api.store.command(&caller.scope(), &[id], command, &caller.principal.by).await?.pop();
    match told.unwrap_or(Commanded::Absent) {
        Commanded::Done { job, owner } => {
            followed_up(api, command, owner.into_iter().collect());
            Ok(Json((*job).into()))
        }
        Commanded::Refused(refusal) => Err(Problem::new(Kind::StateConflict, words(refusal))),
        Commanded::Absent => Err(Problem::no_such_job()),
    }
}

/// Cancels every job a filter means; of any state that has not ended, unless states are named.
#[utoipa::path(post, path = "/v1/jobs/cancel", tag = "commands", operation_id = "cancel_jobs",
    params(FilterParams, BulkParams),
    responses((status = 200, description = "What became of it", body = BulkOutcome)))]
pub(super) async fn cancel_many(
    State(api): State<Arc<Api>>,
    caller: Caller<Canceling>,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<BulkOutcome>> {
    bulk(&api, &caller, params, &headers, Command::Cancel).await
}

/// Holds every waiting job a filter means.
#[utoipa::path(post, path = "/v1/jobs/hold", tag = "commands", operation_id = "hold_jobs",
    params(FilterParams, BulkParams),
    responses((status = 200, description = "What became of it", body = BulkOutcome)))]
pub(super) async fn hold_many(
    State(api): State<Arc<Api>>,
    caller: Caller<Submitting>,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<BulkOutcome>> {
    bulk(&api, &caller, params, &headers, Command::Hold).await
}

/// Releases every held job a filter means.
#[utoipa::path(post, path = "/v1/jobs/release", tag = "commands", operation_id = "release_jobs",
    params(FilterParams, BulkParams),
    responses((status = 200, description = "What became of it", body = BulkOutcome)))]
pub(super) async fn release_many(
    State(api): State<Arc<Api>>,
    caller: Caller<Submitting>,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<BulkOutcome>> {
    bulk(&api, &caller, params, &headers, Command::Release).await
}

/// Retries every job a filter means that ended other than well.
#[utoipa::path(post, path = "/v1/jobs/retry", tag = "commands", operation_id = "retry_jobs",
    params(FilterParams, BulkParams),
    responses((status = 200, description = "What became of it", body = BulkOutcome)))]
pub(super) async fn retry_many(
    State(api): State<Arc<Api>>,
    caller: Caller<Submitting>,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<BulkOutcome>> {
    bulk(&api, &caller, params, &headers, Command::Retry).await
}

async fn bulk<N>(
    api: &Arc<Api>,
    caller: &Caller<N>,
    mut params: Params,
    headers: &HeaderMap,
    command: Command,
) -> Answer<Json<BulkOutcome>> {
    accepts(headers, "application/json")?;
    let scope = caller.scope();
    let mut filter = filter::take_filter(&mut params)?;
    if !params.flag("all")? && filter == Filter::default() {
        return Err(Problem::invalid("all", "name a filter, or say all=true to mean every job"));
    }
    if filter.states.is_empty() {
        filter.states = meant_by(command);
    }
    let mut after = filter::take_cursor(&mut params, &scope, &filter)?;
    params.end()?;
    let began = Instant::now();
    let mut outcome = BulkOutcome::default();
    let mut owners = BTreeSet::new();
    loop {
        let request = PageRequest { after, limit: PAGE.min(MAX_PAGE) };
        let page = api.store.list(&scope, &filter, request).await?;
        let ids: Vec<JobId> = page.jobs.iter().map(|job| job.id).collect();
        if !ids.is_empty() {
            let told = api.store.command(&scope, &ids, command, &caller.principal.by).await?;
            outcome.count(&ids, told, &mut owners);
            failpoint::pass("bulk.paged");
        }
        after = page.next;
        let Some(last) = after else { break };
        if began.elapsed() > BULK_COMMAND {
            outcome.next_cursor = Some(filter::cursor(last, &scope, &filter));
            break;
        }
    }
    followed_up(api, command, owners);
    Ok(Json(outcome))
}

impl BulkOutcome {
    fn count(&mut self, ids: &[JobId], told: Vec<Commanded>, owners: &mut BTreeSet<WorkerId>) {
        for (id, told) in ids.iter().zip(told) {
            match told {
                Commanded::Done { owner, .. } => {
                    self.matched += 1;
                    self.done += 1;
                    owners.extend(owner);
                }
                Commanded::Refused(refusal) => {
                    self.matched += 1;
                    self.refused += 1;
                    if self.refusals.len() < MAX_REFUSALS {
                        self.refusals.push(RefusedJob { id: *id, reason: words(refusal).to_owned() });
                    }
                }
                // Removed between the page and the command: the filter does not mean it any more.
                Commanded::Absent => {}
            }
        }
    }
}

/// The states in which a command does something.
fn meant_by(command: Command) -> Vec<JobState> {
    match command {
        Command::Cancel => JobState::ALL.into_iter().filter(|state| !state.is_terminal()).collect(),
        Command::Hold => vec![JobState::Initialized],
        Command::Release => vec![JobState::Held],
        Command::Retry => {
            let ended = JobState::ALL.into_iter().filter(|state| state.is_terminal());
            ended.filter(|state| *state != JobState::Finished).collect()
        }
    }
}

/// Lets those know who have something to do now.
fn followed_up(api: &Arc<Api>, command: Command, owners: BTreeSet<WorkerId>) {
    failpoint::pass(match command {
        Command::Cancel => "cancel.recorded",
        Command::Hold => "hold.recorded",
        Command::Release => "release.recorded",
        Command::Retry => "retry.recorded",
    });
    api.feed.poke();
    match command {
        Command::Cancel if owners.is_empty() => {}
        Command::Cancel => {
            let nudges = owners.into_iter().map(|worker| Nudge::Cancel { worker }).collect();
            api.nudge(nudges);
        }
        Command::Release | Command::Retry => api.budget.wake(),
        Command::Hold => {}
    }
}

fn words(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Ended => "it has ended",
        Refusal::NotEnded => "it has not ended",
        Refusal::FinishedWell => "it finished well; post it anew to run it again",
        Refusal::Begun => "a worker has it already; only a waiting job can be held or released",
        Refusal::Held => "it is held",
        Refusal::NotDue => "its time has not come",
        Refusal::Paused => "its cluster is paused",
        Refusal::Full => "as many jobs of its cluster are in flight as may be",
        Refusal::Owned => "a worker has it",
        Refusal::OutOfReach => "it is out of reach",
        Refusal::Suspect => "it must be claimed alone",
        Refusal::AlreadyRecorded => "a submission is recorded for it",
        Refusal::CancelRequested => "a cancel was asked for",
        Refusal::NoLease => "the worker has no lease",
    }
}
