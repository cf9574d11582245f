//! The store port: the rows that are queue, lock and outbox in one.
//!
//! Three faces of one adapter, so that each role sees only what it may do: [`Store`] for the API and its dispatcher,
//! [`Leases`] for workers, [`Apply`] for whoever tells what happened. Every change of a job goes through
//! [`crate::domain::transition`]: adapters read rows, ask it, and write back guarded by the row's version.
//!
//! Contract, held by the conformance suite and, call by call, by random operations on each adapter and the reference
//! model:
//! * A returned `Ok` is durable. An error of kind [`StoreError::Away`] leaves the outcome unknown; every call here can be
//!   made again with the same arguments and then tells what holds.
//! * Outcomes (a duplicate, a refusal, an absence) are values; batches answer one outcome per item, in order.
//! * Time that two processes must agree on is the store's own.

mod floors;
mod kernel;
pub mod memory;
mod page;
pub mod postgres;
pub mod sqlite;

pub use self::{floors::StoreFloors, page::PAGE_BYTES};
use crate::domain::{
    ClusterName, Command, HistoryEntry, Job, JobId, JobState, NewJob, Project, Reach, Refusal, Report,
    ReportRefusal, SelfReport, StatusEvent, Submission, TokenId, WorkerId,
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::{fmt::Debug, time::Duration};

/// Why the store gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or went away amid the call: try again, the outcome is unknown.
    #[error("the store is away")]
    Away(#[source] anyhow::Error),
    /// It will never do this: trying again changes nothing.
    #[error("the store refused to {operation}")]
    Refused {
        /// What was asked of it.
        operation: &'static str,
        /// What it said.
        #[source]
        source: anyhow::Error,
    },
}

impl StoreError {
    /// Trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Away(_))
    }
}

/// The answer of a store.
pub type StoreResult<T> = Result<T, StoreError>;

/// Which jobs a caller can see. A foreign job is as absent as one that never was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One project's.
    Project(Project),
    /// Everybody's: operators, and the gateway itself.
    All,
}

impl Scope {
    /// A job of `project` is in it.
    pub fn covers(&self, project: &Project) -> bool {
        match self {
            Self::Project(own) => own == project,
            Self::All => true,
        }
    }

    /// A token is in it; one that opens every project only in [`Scope::All`].
    pub fn covers_token(&self, token: &Token) -> bool {
        match self {
            Self::Project(own) => token.project.as_ref() == Some(own),
            Self::All => true,
        }
    }
}

/// What became of one accepted job.
#[derive(Debug, Clone, PartialEq)]
pub enum Inserted {
    /// It is stored.
    Created(Box<Job>),
    /// Its idempotency key (or its id, after an unknown commit) was there already, with the same body: this job.
    Existing(Box<Job>),
    /// Its idempotency key stands for another body.
    KeyReused,
}

/// Which jobs a listing or a bulk command means. Empty means no restriction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Filter {
    /// In one of these states.
    pub states: Vec<JobState>,
    /// With every one of these labels.
    pub labels: Vec<String>,
    /// Of this cluster.
    pub cluster: Option<ClusterName>,
    /// Of exactly this name.
    pub name: Option<String>,
    /// Accepted at or after this time.
    pub created_after: Option<DateTime<Utc>>,
    /// Accepted before this time.
    pub created_before: Option<DateTime<Utc>>,
}

impl Filter {
    /// It means this job.
    pub fn matches(&self, job: &Job) -> bool {
        (self.states.is_empty() || self.states.contains(&job.life.state))
            && self.labels.iter().all(|label| job.labels.contains(label))
            && self.cluster.as_ref().is_none_or(|cluster| *cluster == job.cluster)
            && self.name.as_ref().is_none_or(|name| *name == job.name)
            && self.created_after.is_none_or(|from| from <= job.created_at)
            && self.created_before.is_none_or(|to| job.created_at < to)
    }
}

/// Newest first; `after` is the last job of the page before. Job ids are time-ordered, so the id is the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    /// Continue below this job.
    pub after: Option<JobId>,
    /// At most so many.
    pub limit: u32,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// The jobs, newest first.
    pub jobs: Vec<Job>,
    /// Where the next page begins; absent on the last. A page can be short, even empty, and still have a next one: it ends
    /// with the job that brings it to [`PAGE_BYTES`], and an adapter may stop looking after a bounded number of rows.
    pub next: Option<JobId>,
}

/// What became of one command.
#[derive(Debug, Clone, PartialEq)]
pub enum Commanded {
    /// Carried out, or it held already; `owner` has it and should be nudged.
    Done {
        /// The job now.
        job: Box<Job>,
        /// The worker that has it, if one does.
        owner: Option<WorkerId>,
    },
    /// The row says no.
    Refused(Refusal),
    /// No such job in scope.
    Absent,
}

/// What `PATCH` may change; absent means unchanged.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Patch {
    /// Replaces the labels.
    pub labels: Option<Vec<String>>,
    /// Replaces the priority; orders the job anew while it waits.
    pub priority: Option<i16>,
    /// Percent done of the attempt under way, or the last one; unlike a report's it may fall.
    pub progress: Option<u8>,
    /// Merged into the outputs, key by key; `null` removes one.
    pub outputs: Option<crate::domain::Document>,
}

impl Patch {
    /// Changes `job`. None of this is part of its life.
    pub fn apply(&self, job: &mut Job) {
        if let Some(labels) = &self.labels {
            job.labels.clone_from(labels);
        }
        job.priority = self.priority.unwrap_or(job.priority);
        if self.progress.is_some() {
            let told = job.current_report().cloned();
            let told = told.unwrap_or_else(|| SelfReport::of(job.life.attempt));
            job.report = Some(SelfReport { progress: self.progress, ..told });
        }
        for (key, value) in self.outputs.iter().flatten() {
            if value.is_null() {
                job.outputs.remove(key);
            } else {
                job.outputs.insert(key.clone(), value.clone());
            }
        }
    }
}

/// What became of a report.
#[derive(Debug, Clone, PartialEq)]
pub enum Reported {
    /// It is taken down: the job now.
    Taken(Box<Job>),
    /// The row says no.
    Refused(ReportRefusal),
    /// No such job in scope.
    Absent,
}

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It is gone, with its history and its key.
    Removed,
    /// It has not ended.
    NotEnded,
    /// No such job in scope.
    Absent,
}

/// How many jobs stand in one place. Read from appended deltas, never by counting rows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Depth {
    /// Whose.
    pub project: Project,
    /// The cluster.
    pub cluster: ClusterName,
    /// The priority.
    pub priority: i16,
    /// The state.
    pub state: JobState,
    /// How many.
    pub jobs: u64,
}

/// How long the oldest due job of a queue has waited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oldest {
    /// The cluster.
    pub cluster: ClusterName,
    /// The priority.
    pub priority: i16,
    /// Since when its oldest job is due.
    pub due_since: DateTime<Utc>,
}

/// One committed change, as the feed tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobChange {
    /// The job.
    pub job: JobId,
    /// Whose it is.
    pub project: Project,
    /// The change.
    #[serde(flatten)]
    pub entry: HistoryEntry,
}

/// Where a reader of the feed stands: after this much of it. Ordered; opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct FeedCursor {
    /// The batch.
    pub batch: i64,
    /// How many of its changes were read.
    pub index: u32,
}

/// A stretch of the feed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Each with the cursor that stands after it.
    pub items: Vec<(FeedCursor, JobChange)>,
    /// The cursor asked for is older than what is kept: some changes are missing before `items`.
    pub gap: bool,
}

/// The hints of a cluster's due waiting jobs. Few jobs carry one (the dispatcher sees to that), so counting them stays
/// cheap whatever waits unhinted behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hinted {
    /// The cluster.
    pub cluster: ClusterName,
    /// Jobs whose hint is still good.
    pub outstanding: u64,
    /// Jobs whose hint ran out and that nobody has claimed.
    pub expired: u64,
    /// How many of its jobs may be claimed now, where an operator limits how many are in flight.
    pub room: Option<u32>,
}

/// A due job to hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The job.
    pub job: JobId,
    /// It may be what kills workers: hint it alone.
    pub suspect: bool,
    /// It was hinted before, and that hint ran out.
    pub again: bool,
    /// How long it has been due, by the store's clock.
    pub waited: Duration,
}

/// A stranded job to hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrandedJob {
    /// The job.
    pub job: JobId,
    /// It may be what kills workers: hint it alone.
    pub suspect: bool,
}

/// Jobs somebody had and nobody has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranded {
    /// Their cluster.
    pub cluster: ClusterName,
    /// Where they can be adopted, when not everywhere.
    pub reach: Option<Reach>,
    /// Who had them; [`WorkerId::NOBODY`] when handed back.
    pub owner: WorkerId,
    /// The jobs, with whether each must be claimed alone.
    pub jobs: Vec<StrandedJob>,
}

/// A stranded job nobody can adopt: no worker acts where its submission lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vanished {
    /// The job.
    pub job: JobId,
    /// Since when nobody can reach it.
    pub since: DateTime<Utc>,
}

/// A worker as registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Worker {
    /// Its identity: one process.
    pub id: WorkerId,
    /// Where it runs, for people.
    pub host: String,
    /// What it serves, and where it can act when not everywhere.
    pub clusters: Vec<WorkerCluster>,
    /// When it registered.
    pub registered_at: DateTime<Utc>,
    /// When its lease ends unless renewed.
    pub expires_at: DateTime<Utc>,
    /// Its lease has not ended, by the store's clock.
    pub alive: bool,
    /// It takes no new work.
    pub draining: bool,
    /// Jobs it holds that have not ended, as it last told.
    pub jobs: u32,
}

/// A cluster as one worker serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WorkerCluster {
    /// The cluster.
    pub name: ClusterName,
    /// Where the worker's engine can act, when not everywhere.
    #[schema(value_type = Option<String>)]
    pub reach: Option<Reach>,
    /// What is wrong with the resource manager, as this worker sees it; its jobs wait for that reason.
    pub parked: Option<String>,
}

/// What an operator set on a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSetting {
    /// The cluster.
    pub cluster: ClusterName,
    /// No fresh job of it is claimed.
    pub paused: bool,
    /// Who paused or resumed it last; who limited it, when nobody did.
    pub by: String,
    /// When.
    pub at: DateTime<Utc>,
    /// Most jobs of it in flight at once, whatever the number of workers; no limit when absent.
    pub max_in_flight: Option<u32>,
}

/// What a token's holder may do; each includes those before it, except that `Cancel` includes `Read` only, and `Work`
/// nothing and is included in nothing but `Admin` of every project.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// See jobs.
    Read,
    /// See and post jobs, and act on them.
    Submit,
    /// See and cancel jobs.
    Cancel,
    /// Everything in the project, and tokens; in project `*`, everything.
    Admin,
    /// Claim and drive the jobs of the token's cluster, whose ever they are.
    Work,
}

/// A token as stored: never the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its public half.
    pub id: TokenId,
    /// For people.
    pub name: String,
    /// The project it opens; every project when absent.
    pub project: Option<Project>,
    /// The one cluster it works for, when that is what it allows.
    #[serde(default)]
    pub cluster: Option<ClusterName>,
    /// What it allows.
    pub roles: Vec<Role>,
    /// SHA-256 of the secret half.
    pub secret_sha256: [u8; 32],
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: DateTime<Utc>,
    /// Not valid from this time on.
    pub expires_at: Option<DateTime<Utc>>,
}

/// What became of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Applied {
    /// It moved the job.
    Advanced,
    /// The row already agreed.
    Duplicate,
    /// It is about something that is over.
    Stale,
    /// No such job.
    Unknown,
}

/// What became of one claimed id.
#[derive(Debug, Clone, PartialEq)]
pub enum Claimed {
    /// It is the worker's now: fresh, or adopted with whatever is recorded.
    Granted(Box<Job>),
    /// The row says no.
    Refused(Refusal),
    /// No such job.
    Absent,
}

/// What became of one record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Recorded {
    /// The row holds this id.
    Won,
    /// The row holds another, or will take none. `current` is what it holds now, if the job still exists.
    Lost {
        /// The job now, to go on from.
        current: Option<Box<Job>>,
    },
}

/// A created submission to record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ToRecord {
    /// The job.
    pub job: JobId,
    /// The attempt it was created for.
    pub attempt: u32,
    /// The epoch of the claim it was created under.
    pub epoch: u32,
    /// What the resource manager calls it.
    pub submission: Submission,
}

/// A job to give up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ToHandBack {
    /// The job.
    pub job: JobId,
    /// The epoch of the claim it is given up under.
    pub epoch: u32,
    /// Why, for people.
    pub why: String,
    /// How long nobody should claim it again.
    pub pause: Duration,
}

/// What a worker tells with each heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pulse {
    /// How long the lease shall run from now.
    pub ttl: Duration,
    /// Jobs it holds that have not ended.
    pub jobs: u32,
    /// It takes no new work.
    pub draining: bool,
    /// What is wrong with which cluster, as it sees it.
    pub parked: Vec<(ClusterName, String)>,
    /// Ends it has published and not yet seen agreed: (job, attempt, epoch).
    pub unsettled: Vec<(JobId, u32, u32)>,
}

/// What a heartbeat answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heartbeat {
    /// The lease runs on.
    Renewed {
        /// Jobs of this worker somebody wants cancelled.
        cancel: Vec<JobId>,
        /// Of `unsettled`: the attempt is over in the row too (terminal, a later attempt, or no such job).
        settled: Vec<JobId>,
        /// Of `unsettled`: the attempt goes on in somebody else's hands (another epoch); what is kept for it must stay.
        lost: Vec<JobId>,
    },
    /// The lease had ended: register anew, under a new identity.
    Expired,
}

/// Telling the rows what happened.
#[async_trait]
pub trait Apply: Send + Sync + Debug {
    /// Applies events in order; one outcome each.
    async fn apply(&self, events: &[StatusEvent]) -> StoreResult<Vec<Applied>>;
}

/// What workers may do.
#[async_trait]
pub trait Leases: Apply {
    /// Makes a worker known, with a lease of `ttl` from now; the times and liveness in `worker` are ignored, what it tells
    /// of its clusters is not. A known identity stays as it is: this is a replay.
    async fn register(&self, worker: &Worker, ttl: Duration) -> StoreResult<()>;

    /// Renews the lease and tells news. On its own connection: it never waits behind work.
    async fn heartbeat(&self, worker: WorkerId, pulse: &Pulse) -> StoreResult<Heartbeat>;

    /// Claims many jobs in one statement; `clusters` tells where the worker serves which. One outcome per id. A job of a
    /// cluster not named is refused as out of reach, every job to a worker whose lease has ended, and what may kill workers
    /// as suspect.
    async fn claim(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        jobs: &[JobId],
    ) -> StoreResult<Vec<Claimed>>;

    /// Claims a job that may kill workers, for a worker that holds no other such job unsubmitted.
    async fn claim_alone(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        job: JobId,
    ) -> StoreResult<Claimed>;

    /// The jobs that this worker has by their rows, however it came by them: a claim whose commit was taken for lost may
    /// land at any time, and then nobody else will do anything about its jobs while the worker lives.
    async fn held(&self, worker: WorkerId) -> StoreResult<Vec<JobId>>;

    /// How many workers whose lease has not ended serve each of these clusters.
    async fn serving(&self, clusters: &[ClusterName]) -> StoreResult<Vec<u32>>;

    /// Up to `limit` jobs of `cluster` that one of these workers has by its row ([`WorkerId::NOBODY`]: handed back), whole,
    /// in the order of their ids and beginning after `after`. For workers that keep no list of their own.
    async fn in_hands(
        &self,
        cluster: &ClusterName,
        owners: &[WorkerId],
        after: Option<JobId>,
        limit: u32,
    ) -> StoreResult<Vec<Job>>;

    /// Records created submissions, write-once. One outcome per item.
    async fn record(&self, items: &[ToRecord]) -> StoreResult<Vec<Recorded>>;

    /// Gives jobs up in good order; what is no longer this worker's is left alone.
    async fn hand_back(&self, worker: WorkerId, items: &[ToHandBack]) -> StoreResult<()>;

    /// Ends the lease at once; what the worker still holds can be adopted without waiting.
    async fn deregister(&self, worker: WorkerId) -> StoreResult<()>;

    /// Which of these inert submissions (job, attempt, submission id) nobody will ever start, by index: the row is absent,
    /// has ended, is at a later attempt, or records another id for this attempt. While the attempt is the row's and
    /// nothing is recorded, it counts as live whatever the state: somebody may be about to record it.
    async fn leftovers(&self, found: &[(JobId, u32, String)]) -> StoreResult<Vec<usize>>;
}

/// What the API and its dispatcher may do.
#[async_trait]
pub trait Store: Apply {
    /// It answers.
    async fn ping(&self) -> StoreResult<()>;

    /// Its clock.
    async fn now(&self) -> StoreResult<DateTime<Utc>>;

    /// Stores jobs, all or none; one outcome each. An id is used for one job ever, so a replay is of a job that is still
    /// there, or never was. `hinted` is how long the first hint, which the caller is about to publish for those due now,
    /// keeps the dispatcher from another; `None` leaves the jobs to the dispatcher.
    async fn insert(&self, jobs: &[NewJob], hinted: Option<Duration>) -> StoreResult<Vec<Inserted>>;

    /// One job.
    async fn get(&self, scope: &Scope, job: JobId) -> StoreResult<Option<Job>>;

    /// Those of these jobs that there are, each once, in the order of ids.
    async fn present(&self, jobs: &[JobId]) -> StoreResult<Vec<JobId>>;

    /// A page of jobs, newest first.
    async fn list(&self, scope: &Scope, filter: &Filter, page: PageRequest) -> StoreResult<Page>;

    /// How a job came to stand where it stands, oldest first.
    async fn history(&self, scope: &Scope, job: JobId) -> StoreResult<Option<Vec<HistoryEntry>>>;

    /// Carries out a command on many jobs; one outcome each.
    async fn command(
        &self,
        scope: &Scope,
        jobs: &[JobId],
        command: Command,
        by: &str,
    ) -> StoreResult<Vec<Commanded>>;

    /// Changes what may be changed by hand.
    async fn patch(&self, scope: &Scope, job: JobId, patch: &Patch) -> StoreResult<Option<Job>>;

    /// Takes down what a running job tells of itself, by the rule of [`Report::apply`]; told again it changes nothing.
    async fn report(&self, scope: &Scope, job: JobId, report: &Report) -> StoreResult<Reported>;

    /// Removes an ended job.
    async fn remove(&self, scope: &Scope, job: JobId) -> StoreResult<Removed>;

    /// Up to `limit` jobs that ended before `before`, those that ended first first. Whoever removes them writes down
    /// beforehand that their logs are to go: a log without a job would stay for ever.
    async fn retirable(&self, before: DateTime<Utc>, limit: u32) -> StoreResult<Vec<JobId>>;

    /// Removes those of these jobs that (still) ended before `before`, with their history and keys, and a bounded number
    /// of feed batches as old; answers how many jobs, each counted once however often it is named.
    async fn retire(&self, jobs: &[JobId], before: DateTime<Utc>) -> StoreResult<u64>;

    /// Counts by project, cluster, priority and state; zeroes left out.
    async fn depths(&self) -> StoreResult<Vec<Depth>>;

    /// The oldest due job of each queue.
    async fn oldest(&self) -> StoreResult<Vec<Oldest>>;

    /// Folds appended count deltas together; cheap, and safe from many processes.
    async fn compact_counts(&self) -> StoreResult<()>;

    /// The feed after `after`, in commit order; what one commit did, job by job in the order of ids.
    async fn changes(&self, after: FeedCursor, limit: u32) -> StoreResult<Changes>;

    /// The end of the feed now.
    async fn feed_end(&self) -> StoreResult<FeedCursor>;

    /// Every cluster with due waiting jobs, and how many of those carry a hint.
    async fn outstanding(&self) -> StoreResult<Vec<Hinted>>;

    /// Up to `limit` due jobs of a cluster that were never hinted, or whose hint ran out at least `again_after` ago, most
    /// urgent first (priority, then since when it is due, then id); marks them hinted for `hint_for`. A hint is forgotten
    /// with the wait or the claim it was for, and with a claim that is refused for want of room.
    async fn due(
        &self,
        cluster: &ClusterName,
        limit: u32,
        hint_for: Duration,
        again_after: Duration,
    ) -> StoreResult<Vec<Due>>;

    /// Forgets that these waiting or stranded jobs were hinted (the broker did not take the hint, or nobody could).
    async fn unhint(&self, jobs: &[JobId]) -> StoreResult<()>;

    /// Up to `limit` jobs of these dead workers (and of nobody) not hinted within `hint_for`, any of them; marks them, and
    /// no others, hinted. Cleans up after workers that hold nothing any more.
    async fn stranded(&self, dead: &[WorkerId], limit: u32, hint_for: Duration)
    -> StoreResult<Vec<Stranded>>;

    /// Tells stranded jobs that nobody can reach them: the reason they wait for, and their end as `LOST` once that has
    /// lasted `lost_after`, if given. A job adopted in the meantime is left alone. One outcome each.
    async fn vanished(&self, jobs: &[Vanished], lost_after: Option<Duration>) -> StoreResult<Vec<Applied>>;

    /// Every worker whose lease has not ended, and dead ones that still hold jobs or died within the hour.
    async fn workers(&self) -> StoreResult<Vec<Worker>>;

    /// Ends every lease now: for whoever holds the only door to the store.
    async fn expire_all_leases(&self) -> StoreResult<()>;

    /// What operators set.
    async fn cluster_settings(&self) -> StoreResult<Vec<ClusterSetting>>;

    /// Pauses or resumes a cluster.
    async fn set_paused(&self, cluster: &ClusterName, paused: bool, by: &str) -> StoreResult<()>;

    /// Limits how many jobs of a cluster are claimed and not over at once, over all workers; `None` lifts the limit. Held by
    /// every claim decided from now on; adoption is not refused by it, and what is in flight beyond it stays.
    async fn limit(&self, cluster: &ClusterName, max_in_flight: Option<u32>, by: &str) -> StoreResult<()>;

    /// Stores a token; a known id is a replay and stays as it is.
    async fn create_token(&self, token: &Token) -> StoreResult<()>;

    /// Tokens, newest first; of one project, or all.
    async fn tokens(&self, scope: &Scope) -> StoreResult<Vec<Token>>;

    /// One token by its public half.
    async fn token(&self, id: TokenId) -> StoreResult<Option<Token>>;

    /// Removes a token; false when there is none in scope.
    async fn revoke_token(&self, scope: &Scope, id: TokenId) -> StoreResult<bool>;
}

/// Every face of one adapter: for a process that plays all roles.
pub trait FullStore: Store + Leases {}

impl<T: Store + Leases> FullStore for T {}
