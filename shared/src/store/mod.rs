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

mod fleet;
mod floors;
mod jobs;
mod kernel;
pub mod memory;
mod page;
pub mod postgres;
mod queue;
pub mod sqlite;
mod steps;

pub use self::{
    fleet::{ClusterSetting, Role, Scope, Token, Worker, WorkerCluster},
    floors::StoreFloors,
    jobs::{
        Changes, Commanded, FeedCursor, Filter, Inserted, JobChange, Page, PageRequest, Patch, Removed,
        Reported,
    },
    page::PAGE_BYTES,
    queue::{Depth, Due, Hinted, Oldest, Stranded, StrandedJob, Vanished},
    steps::{Applied, Claimed, Heartbeat, Pulse, Recorded, ToHandBack, ToRecord},
};
use crate::domain::{
    ClusterName, Command, HistoryEntry, Job, JobId, NewJob, Report, StatusEvent, TokenId, WorkerId,
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use std::{fmt::Debug, time::Duration};

/// Most feed batches one call of [`Store::retire_feed`] removes.
const MAX_RETIRED_BATCHES: u32 = 1_000;

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
    /// in the order of their ids and beginning after `after`; none behind the one that brings them to [`PAGE_BYTES`]. For
    /// workers that keep no list of their own.
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

    /// Removes those of these jobs that (still) ended before `before`, with their history and keys; answers how many, each
    /// counted once however often it is named.
    async fn retire(&self, jobs: &[JobId], before: DateTime<Utc>) -> StoreResult<u64>;

    /// Removes feed batches told before `before`, the oldest first and a bounded number of them. True: more may be left.
    async fn retire_feed(&self, before: DateTime<Utc>) -> StoreResult<bool>;

    /// Counts by project, cluster, priority and state; zeroes left out.
    async fn depths(&self) -> StoreResult<Vec<Depth>>;

    /// The oldest due job of each queue.
    async fn oldest(&self) -> StoreResult<Vec<Oldest>>;

    /// Folds appended count deltas together and forgets a bounded number of claims that are over; cheap, and safe from many
    /// processes. True: more claims are to be looked at now.
    async fn compact_counts(&self) -> StoreResult<bool>;

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
