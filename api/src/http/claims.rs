//! `/v1/clusters/{name}/claims`: how a service outside claims a cluster's jobs and tells how they stand.

use super::{
    Api,
    document::JobDocument,
    extract::{Caller, Params, RawJson, Segments, Working, accepts, duration},
    json,
    limits::{DEFAULT_CLAIM, LEASE, MAX_CLAIM, MAX_PAGE, MAX_SMALL, MAX_WAIT, USUAL_LEASE},
    problem::{Answer, Kind, Problem},
    request::check_text,
};
use crate::{
    claims::{Report, Told},
    clusters::{ClusterInfo, ServedBy},
    feed::{Heard, Listener},
};
use axum::{
    Json,
    extract::{FromRequestParts, State},
    http::{HeaderMap, StatusCode, request::Parts},
};
use chrono::{DateTime, Datelike as _, Utc};
use jobgate_shared::{
    domain::{ClusterName, Ending, Job, JobId, JobState, Observation, SubmissionTag, WorkerId},
    failpoint,
    reporting::Reporting,
    store::{Heartbeat, Pulse, ToHandBack},
    wire::Nudge,
};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Longest name of a host, and of a submission.
const MAX_NAME: usize = 200;
/// Longest reason.
const MAX_REASON: usize = 2_000;
/// Most jobs a renewal can ask about.
const MAX_UNSETTLED: usize = 10_000;
/// Longest pause after a hand-back.
const MAX_PAUSE: Duration = Duration::from_hours(1);
/// Between two looks of a claim that waits, at least and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Why a job that was given up is, when nothing is said.
const GIVEN_UP: &str = "handed back by its claimant";

/// Its jobs are claimed over HTTP.
pub(super) fn is_outside(info: &ClusterInfo) -> bool {
    info.served_by == ServedBy::Claimants
}

/// Whoever may work for the cluster that the path names first.
pub(super) struct Outside {
    caller: Caller<Working>,
    cluster: ClusterName,
}

impl FromRequestParts<Arc<Api>> for Outside {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Answer<Self> {
        let caller = Caller::<Working>::from_request_parts(parts, api).await?;
        let segments = Segments::from_request_parts(parts, api).await?;
        let name = segments.at(0);
        if !caller.principal.works_for(name) {
            return Err(Problem::new(Kind::Forbidden, "a token that works for this cluster is needed"));
        }
        let known = api.clusters.clusters().iter().find(|info| info.name.as_str() == name);
        let info = known.ok_or_else(|| Problem::new(Kind::NotFound, "no such cluster is configured"))?;
        if !is_outside(info) {
            return Err(Problem::new(Kind::NotFound, "workers serve this cluster; it gives no claims"));
        }
        Ok(Self { caller, cluster: info.name.clone() })
    }
}

/// A claim. An empty object is one, too.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"max": 10, "wait": "30s", "lease": "60s", "host": "runner-1"}))]
pub(super) struct ClaimRequest {
    /// Who claims: as an earlier answer said. A new identity when absent.
    claimant: Option<WorkerId>,
    /// Most jobs to take on; 0 only registers.
    #[schema(minimum = 0, maximum = 100, default = 10)]
    max: Option<u32>,
    /// Wait so long for a job, such as `30s`; at most 60 s and half the lease.
    #[schema(pattern = "^[0-9]{1,5}(ms|s|m)?$")]
    wait: Option<String>,
    /// How long the lease runs from now; 5 s to 1 h.
    #[schema(
        default = "60s",
        pattern = "^([5-9]|[1-9][0-9]|[1-9][0-9]{2}|[12][0-9]{3}|3[0-5][0-9]{2}|3600)s?$"
    )]
    lease: Option<String>,
    /// Where the claimant runs, for people; heeded with a new identity.
    #[schema(max_length = 200, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    host: Option<String>,
}

/// A job in a claimant's hands.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ClaimedJob {
    /// The job.
    #[serde(flatten)]
    job: JobDocument,
    /// Under which claim it is held; reports name it, beside the attempt.
    epoch: u32,
    /// The attempt's name, the same however often it is claimed: for what the service begins.
    tag: String,
    /// Who has it; null: it was handed back, and the next claim gets it.
    claimant: Option<WorkerId>,
    /// What the job may report on itself with; null where jobs of this gateway cannot.
    report: Option<ReportAccess>,
}

/// What a job reports on itself with: to be put into its environment, and nowhere else.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ReportAccess {
    /// The address of the API, as jobs reach it: `JOBGATE_URL`.
    url: String,
    /// Opens the reports of this attempt while it runs, and nothing else: `JOBGATE_TOKEN`.
    token: String,
}

impl ClaimedJob {
    fn of(api: &Api, job: Job) -> Self {
        let tag = SubmissionTag { job: job.id, attempt: job.life.attempt };
        let access = |with: &Reporting| ReportAccess { url: with.url.clone(), token: with.key.token(tag) };
        let report = api.reporting.as_ref().map(access);
        let (epoch, claimant) = (job.life.epoch, job.life.holder());
        Self { epoch, tag: tag.to_string(), claimant, report, job: job.into() }
    }
}

/// What was claimed.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Claimed {
    /// Who claimed it; to be named in everything that follows.
    claimant: WorkerId,
    /// The lease runs at least until then; whoever renews it late has lost everything.
    lease_expires_at: DateTime<Utc>,
    /// The jobs: first those a claimant before left, at whatever state they are, then new ones.
    jobs: Vec<ClaimedJob>,
}

/// Claims jobs of a cluster, under an identity with a lease.
///
/// Nothing may be begun that has no recorded submission: create it, report it as PENDING, and begin once that is answered
/// with 200 and no `stale`.
#[utoipa::path(post, path = "/v1/clusters/{name}/claims", tag = "claims", operation_id = "claim_jobs",
    params(("name" = String, Path, description = "The cluster")),
    request_body = ClaimRequest,
    responses(
        (status = 200, description = "What was claimed, which may be nothing", body = Claimed),
        (status = 409, description = "The claimant's lease has ended: claim without one"),
    ))]
pub(super) async fn claim(
    State(api): State<Arc<Api>>,
    outside: Outside,
    params: Params,
    headers: HeaderMap,
    RawJson(body): RawJson<MAX_SMALL>,
) -> Answer<Json<Claimed>> {
    accepts(&headers, "application/json")?;
    params.end()?;
    let ClaimRequest { claimant, max, wait, lease, host } = json::read(&body)?;
    let max = max.unwrap_or(DEFAULT_CLAIM);
    if max > MAX_CLAIM {
        return Err(Problem::invalid("max", format!("must be 0 to {MAX_CLAIM}")));
    }
    let lease = lease_of(lease.as_deref())?;
    let wait = wait.map(|text| duration("wait", &text)).transpose()?.unwrap_or_default();
    if let Some(host) = &host {
        check_text("host", host, MAX_NAME)?;
    }
    let cluster = &outside.cluster;
    let (claimant, lease_expires_at) = match claimant {
        None => {
            let host = host.unwrap_or_else(|| outside.caller.principal.by.clone());
            let (claimant, expires_at) = api.claims.register(cluster, host, lease).await?;
            let by = &outside.caller.principal.by;
            tracing::info!(worker = %claimant, %cluster, by, "claimant {claimant} registered");
            (claimant, expires_at)
        }
        Some(claimant) => {
            let pulse = Pulse { ttl: lease, ..Pulse::default() };
            match api.claims.renew(cluster, claimant, pulse).await? {
                (Heartbeat::Expired, _) => return Err(lease_ended()),
                (Heartbeat::Renewed { .. }, expires_at) => (claimant, expires_at),
            }
        }
    };
    let jobs = if max == 0 {
        Vec::new()
    } else {
        take(&api, cluster, claimant, max, wait.min(MAX_WAIT).min(lease / 2)).await?
    };
    if !jobs.is_empty() {
        failpoint::pass("claimant.claimed");
        api.feed.poke();
    }
    let jobs = jobs.into_iter().map(|job| ClaimedJob::of(&api, job)).collect();
    Ok(Json(Claimed { claimant, lease_expires_at, jobs }))
}

/// What can be taken, as soon as that is something or the time is up.
async fn take(
    api: &Arc<Api>,
    cluster: &ClusterName,
    claimant: WorkerId,
    max: u32,
    wait: Duration,
) -> Answer<Vec<Job>> {
    let deadline = Instant::now() + wait;
    // Before the first look, so that what comes after it is heard.
    let mut news = if wait.is_zero() { None } else { Some(api.feed.listen(None).await?) };
    loop {
        let jobs = api.claims.take(cluster, claimant, max).await?.ok_or_else(lease_ended)?;
        let Some(news) = &mut news else { return Ok(jobs) };
        if !jobs.is_empty() || Instant::now() >= deadline {
            return Ok(jobs);
        }
        let (least, most) = LOOK;
        let looked = Instant::now();
        tokio::select! {
            () = may_give_more(news) => tokio::time::sleep_until(looked + least).await,
            // What becomes due by the clock is told by nobody.
            () = tokio::time::sleep_until(deadline.min(looked + most)) => {}
            () = api.tasks.shutdown().cancelled() => return Ok(jobs),
        }
    }
}

/// Completes when some job, of whatever cluster, waits anew, or has ended and left its place to another.
async fn may_give_more(news: &mut Listener) {
    loop {
        match news.next().await {
            Ok(Heard::Change(_, change))
                if change.entry.to == JobState::Initialized || change.entry.to.is_terminal() =>
            {
                return;
            }
            Ok(Heard::Gap(_)) => return,
            Ok(Heard::Change(..)) => {}
            // The next look tells of an outage.
            Err(_) => std::future::pending().await,
        }
    }
}

fn lease_ended() -> Problem {
    Problem::new(Kind::LeaseEnded, "this claimant has no lease; claim without naming one")
}

fn lease_of(text: Option<&str>) -> Answer<Duration> {
    let lease = text.map(|text| duration("lease", text)).transpose()?.unwrap_or(USUAL_LEASE);
    if LEASE.contains(&lease) { Ok(lease) } else { Err(Problem::invalid("lease", "must be 5s to 1h")) }
}

/// A renewal.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"claimant": "0196f0a0-0000-7000-8000-000000000000", "lease": "60s"}))]
pub(super) struct Renewal {
    /// Whose lease.
    claimant: WorkerId,
    /// How long it runs from now; 5 s to 1 h.
    #[schema(
        default = "60s",
        pattern = "^([5-9]|[1-9][0-9]|[1-9][0-9]{2}|[12][0-9]{3}|3[0-5][0-9]{2}|3600)s?$"
    )]
    lease: Option<String>,
    /// It takes nothing on any more, for people to see.
    #[serde(default)]
    draining: bool,
    /// What is wrong with what runs the jobs; their reason, while they wait.
    #[schema(max_length = 2000, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    parked: Option<String>,
    /// Jobs it wants to hear of, whether they are over.
    #[serde(default)]
    #[schema(max_items = 10_000)]
    unsettled: Vec<Unsettled>,
}

/// A job as a claimant remembers it.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Unsettled {
    /// The job.
    job: JobId,
    /// Its attempt.
    attempt: u32,
    /// The claim.
    epoch: u32,
}

/// A lease that runs on, and what is new.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Renewed {
    /// Whose.
    claimant: WorkerId,
    /// It runs at least until then.
    lease_expires_at: DateTime<Utc>,
    /// Jobs somebody wants cancelled; told again until they have ended.
    cancel: Vec<JobId>,
    /// Of `unsettled`: the attempt is over.
    settled: Vec<JobId>,
    /// Of `unsettled`: the attempt goes on in other hands; leave what runs alone.
    lost: Vec<JobId>,
}

/// Renews a claimant's lease, and tells it what is to be cancelled.
#[utoipa::path(post, path = "/v1/clusters/{name}/claims/renew", tag = "claims", operation_id = "renew_claims",
    params(("name" = String, Path, description = "The cluster")),
    request_body = Renewal,
    responses(
        (status = 200, description = "The lease runs on", body = Renewed),
        (status = 409, description = "It had ended: claim without naming a claimant, and go on from what is answered"),
    ))]
pub(super) async fn renew(
    State(api): State<Arc<Api>>,
    Outside { cluster, .. }: Outside,
    params: Params,
    headers: HeaderMap,
    RawJson(body): RawJson<{ 8 * MAX_SMALL }>,
) -> Answer<Json<Renewed>> {
    accepts(&headers, "application/json")?;
    params.end()?;
    let Renewal { claimant, lease, draining, parked, unsettled } = json::read(&body)?;
    if let Some(reason) = &parked {
        check_text("parked", reason, MAX_REASON)?;
    }
    if unsettled.len() > MAX_UNSETTLED {
        return Err(Problem::invalid("unsettled", format!("must hold at most {MAX_UNSETTLED}")));
    }
    let pulse = Pulse {
        ttl: lease_of(lease.as_deref())?,
        jobs: 0,
        draining,
        parked: parked.map(|reason| (cluster.clone(), reason)).into_iter().collect(),
        unsettled: unsettled.into_iter().map(|one| (one.job, one.attempt, one.epoch)).collect(),
    };
    match api.claims.renew(&cluster, claimant, pulse).await? {
        (Heartbeat::Expired, _) => Err(lease_ended()),
        (Heartbeat::Renewed { cancel, settled, lost }, lease_expires_at) => {
            Ok(Json(Renewed { claimant, lease_expires_at, cancel, settled, lost }))
        }
    }
}

/// Jobs in claimants' hands.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ClaimPage {
    /// In the order of their ids.
    items: Vec<ClaimedJob>,
    /// Where the next page begins; null on the last. A page can be short and still have a next one.
    next_cursor: Option<String>,
}

/// Tells every job of the cluster that was claimed and has not ended, whoever has it.
///
/// What a service reads after a restart that it remembers nothing of.
#[utoipa::path(get, path = "/v1/clusters/{name}/claims", tag = "claims", operation_id = "list_claims",
    params(
        ("name" = String, Path, description = "The cluster"),
        ("claimant" = Option<Uuid>, Query, description = "Only this claimant's"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Most jobs of the page; 1000 when absent"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page", body = ClaimPage)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Outside { cluster, .. }: Outside,
    mut params: Params,
    headers: HeaderMap,
) -> Answer<Json<ClaimPage>> {
    accepts(&headers, "application/json")?;
    let claimant = params.parse("claimant", "a claimant's id")?;
    let limit = params.parse("limit", &format!("1 to {MAX_PAGE}"))?.unwrap_or(MAX_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::invalid("limit", format!("must be 1 to {MAX_PAGE}")));
    }
    let foreign = || Problem::new(Kind::InvalidCursor, "this is no cursor of this listing").at("cursor");
    let after = params.one("cursor")?.map(|text| text.parse::<JobId>().map_err(|_| foreign())).transpose()?;
    params.end()?;
    let jobs = api.claims.unsettled(&cluster, claimant, after, limit).await?;
    // A page of heavy jobs is shorter than was asked for, so any page but an empty one may have a next.
    let next_cursor = jobs.last().map(|job| job.id.to_string());
    let items = jobs.into_iter().map(|job| ClaimedJob::of(&api, job)).collect();
    Ok(Json(ClaimPage { items, next_cursor }))
}

/// How a job stands, as its claimant sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum ReportedState {
    /// It is submitted and waits to run.
    Pending,
    /// It runs.
    Running,
    /// It ended well.
    Finished,
    /// It ended badly, or could not be begun.
    Failed,
    /// It was killed before it ended, or will never begin.
    Canceled,
    /// It was ended because its time was up.
    TimedOut,
    /// Nobody can say how it ended.
    Lost,
}

/// A report.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"claimant": "0196f0a0-0000-7000-8000-000000000000", "attempt": 1, "epoch": 1,
    "state": "PENDING", "submission_id": "run-77"}))]
pub(super) struct ClaimReport {
    /// Who reports.
    claimant: WorkerId,
    /// Of which attempt.
    attempt: u32,
    /// Under which claim.
    epoch: u32,
    /// Its place among the reports of this claim, from 1; the next one when absent.
    seq: Option<u32>,
    /// How it stands.
    state: ReportedState,
    /// What the service calls the attempt: recorded by the first report that names it, once and for all.
    #[schema(min_length = 1, max_length = 200, pattern = "^[!-~]+$")]
    submission_id: Option<String>,
    /// Of an end: the exit code.
    exit_code: Option<i32>,
    /// Why it stands there, for people.
    #[schema(max_length = 2000, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    reason: Option<String>,
    /// When it came to stand there; now when absent.
    at: Option<DateTime<Utc>>,
}

impl ClaimReport {
    fn check(self, now: DateTime<Utc>) -> Answer<Report> {
        let named =
            |id: &String| (1..=MAX_NAME).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
        if self.submission_id.as_ref().is_some_and(|id| !named(id)) {
            let must = format!("must be 1 to {MAX_NAME} visible ASCII characters");
            return Err(Problem::invalid("submission_id", must));
        }
        if let Some(reason) = &self.reason {
            check_text("reason", reason, MAX_REASON)?;
        }
        if self.at.is_some_and(|at| at.year() < 2000) {
            return Err(Problem::invalid("at", "is long ago"));
        }
        // Clocks differ; nothing has happened that is still to come.
        let at = self.at.map(|at| at.min(now));
        let at = at.and_then(|at| DateTime::from_timestamp_micros(at.timestamp_micros()));
        let (reason, exit_code) = (self.reason, self.exit_code);
        let ended =
            |ending| Observation::Ended { ending, exit_code, reason: reason.clone(), began: None, at };
        let observation = match self.state {
            ReportedState::Pending => Observation::Pending { reason },
            ReportedState::Running => Observation::Running { since: at, reason },
            ReportedState::Finished => ended(Ending::Finished),
            ReportedState::Failed => ended(Ending::Failed),
            ReportedState::Canceled => ended(Ending::Canceled),
            ReportedState::TimedOut => ended(Ending::TimedOut),
            ReportedState::Lost => ended(Ending::Lost),
        };
        Ok(Report {
            claimant: self.claimant,
            attempt: self.attempt,
            epoch: self.epoch,
            seq: self.seq,
            submission: self.submission_id,
            observation,
            at: at.unwrap_or(now),
        })
    }
}

/// What a report did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ReportOutcome {
    /// It moved the job.
    Advanced,
    /// The job stood there already; a report told again.
    Duplicate,
    /// It is about something that is over, and was dropped.
    Stale,
}

/// What became of a report. Whatever the outcome, it need not be sent again.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Reported {
    /// What it did.
    outcome: ReportOutcome,
    /// The job now.
    job: ClaimedJob,
}

/// Tells how a claimed job stands.
///
/// The first report that names a `submission_id` records it. A report told again or too late is answered with 200 and
/// changes nothing.
#[utoipa::path(patch, path = "/v1/clusters/{name}/claims/{id}", tag = "claims", operation_id = "report_claim",
    params(("name" = String, Path, description = "The cluster"), ("id" = Uuid, Path, description = "The job")),
    request_body = ClaimReport,
    responses(
        (status = 200, description = "It was heard", body = Reported),
        (status = 409, description = "The claim is somebody else's, or another submission counts: begin nothing, tell nothing more"),
    ))]
pub(super) async fn report(
    State(api): State<Arc<Api>>,
    Outside { cluster, .. }: Outside,
    segments: Segments,
    params: Params,
    headers: HeaderMap,
    RawJson(body): RawJson<MAX_SMALL>,
) -> Answer<Json<Reported>> {
    accepts(&headers, "application/json")?;
    params.end()?;
    let id = segments.at(1).parse().map_err(|_| Problem::no_such_job())?;
    let report = json::read::<ClaimReport>(&body)?.check(api.clock.now())?;
    let told = api.claims.report(&cluster, id, &report).await?;
    count(&cluster, &told);
    let (outcome, job) = match told {
        Told::Advanced(job) => {
            api.feed.poke();
            api.nudge(vec![Nudge::Changed]);
            (ReportOutcome::Advanced, job)
        }
        Told::Duplicate(job) => (ReportOutcome::Duplicate, job),
        Told::Stale(job) => (ReportOutcome::Stale, job),
        Told::Unnamed => {
            let must = "must be given: nothing is recorded of this attempt yet";
            return Err(Problem::invalid("submission_id", must));
        }
        Told::NotTheirs => {
            return Err(Problem::new(
                Kind::ClaimLost,
                "this job is not, or no longer, held under this claim",
            ));
        }
        Told::Beaten { recorded, canceled } => {
            let detail = match (&recorded, canceled) {
                (Some(_), _) => "another submission is recorded for this attempt; remove yours",
                (None, true) => "a cancel came first; remove what you made and report CANCELED",
                (None, false) => "the attempt is over with nothing recorded; remove what you made",
            };
            return Err(Problem::new(Kind::ClaimLost, detail).because_of(recorded));
        }
        Told::Absent => return Err(Problem::no_such_job()),
    };
    Ok(Json(Reported { outcome, job: ClaimedJob::of(&api, *job) }))
}

fn count(cluster: &ClusterName, told: &Told) {
    let outcome = match told {
        Told::Advanced(_) => "advanced",
        Told::Duplicate(_) => "duplicate",
        Told::Stale(_) => "stale",
        Told::Unnamed | Told::NotTheirs | Told::Beaten { .. } | Told::Absent => "refused",
    };
    let labels = [("cluster", cluster.to_string()), ("outcome", outcome.to_owned())];
    metrics::counter!("jobgate_claim_reports_total", &labels).increment(1);
}

/// Gives a claim up: what is not submitted waits again, what is goes to the next who claims.
///
/// What the claimant does not hold any more stays as it is, so it can be said twice.
#[utoipa::path(delete, path = "/v1/clusters/{name}/claims/{id}", tag = "claims", operation_id = "give_up_claim",
    params(
        ("name" = String, Path, description = "The cluster"),
        ("id" = Uuid, Path, description = "The job"),
        ("claimant" = Uuid, Query, description = "Who gives it up"),
        ("epoch" = u32, Query, minimum = 1, description = "Under which claim"),
        ("reason" = Option<String>, Query, max_length = 2000, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$",
            description = "Why, for people"),
        ("pause" = Option<String>, Query, pattern = "^([0-9]{1,3}|[12][0-9]{3}|3[0-5][0-9]{2}|3600)s?$", description = "Nobody shall claim it for so long, such as `30s`; at most 1 h"),
    ),
    responses((status = 204, description = "The claimant does not hold it")))]
pub(super) async fn give_up(
    State(api): State<Arc<Api>>,
    Outside { cluster, .. }: Outside,
    segments: Segments,
    mut params: Params,
) -> Answer<StatusCode> {
    let job = segments.at(1).parse().map_err(|_| Problem::no_such_job())?;
    let missing = |field| move || Problem::invalid(field, "must be given");
    let claimant = params.parse("claimant", "a claimant's id")?.ok_or_else(missing("claimant"))?;
    let epoch = params.parse("epoch", "a number")?.ok_or_else(missing("epoch"))?;
    let why = params.one("reason")?.unwrap_or_else(|| GIVEN_UP.to_owned());
    check_text("reason", &why, MAX_REASON)?;
    let pause = params.duration("pause")?.unwrap_or_default();
    if pause > MAX_PAUSE {
        return Err(Problem::invalid("pause", "must be at most 1h"));
    }
    params.end()?;
    if !api.claims.give_up(&cluster, claimant, ToHandBack { job, epoch, why, pause }).await? {
        return Err(Problem::no_such_job());
    }
    api.feed.poke();
    api.nudge(vec![Nudge::Changed]);
    Ok(StatusCode::NO_CONTENT)
}
