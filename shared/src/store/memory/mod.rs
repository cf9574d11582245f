//! The reference model: the store's contract in plain maps under one lock.
//!
//! Test machinery. It is meant to be obviously right, not fast: counts are recounted, queues are scanned and sorted. The
//! other adapters must agree with it, operation by operation. Nothing survives the process.

mod jobs;
mod leases;

use super::kernel::{Ledger, Move, Purpose, Row, fresh_claims};
use super::{ClusterSetting, FeedCursor, JobChange, MAX_RETIRED_BATCHES, StoreResult, Token, Worker};
use crate::clock::Clock;
use crate::domain::{
    ClusterName, Deviation, HistoryEntry, IdempotencyKey, Job, JobId, Project, Standing, TokenId, WorkerId,
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A store that lives and dies with the process.
#[derive(Debug)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    jobs: BTreeMap<JobId, Entry>,
    /// Whose keys stand for which job; the body is with the job.
    keys: BTreeMap<(Project, String), JobId>,
    workers: BTreeMap<WorkerId, Worker>,
    clusters: BTreeMap<ClusterName, ClusterSetting>,
    tokens: BTreeMap<TokenId, Token>,
    feed: Feed,
}

#[derive(Debug)]
struct Entry {
    job: Job,
    key: Option<IdempotencyKey>,
    /// Rises with every move.
    version: i64,
    hinted_until: Option<DateTime<Utc>>,
    deviations: Vec<Deviation>,
}

impl Entry {
    fn hint_outstanding(&self, now: DateTime<Utc>) -> bool {
        self.hinted_until.is_some_and(|until| until > now)
    }

    fn ended_before(&self, before: DateTime<Utc>) -> Option<(DateTime<Utc>, JobId)> {
        let at = self.job.life.finished_at?;
        (self.job.life.state.is_terminal() && at < before).then_some((at, self.job.id))
    }
}

/// What was committed, in order; one batch for each commit.
#[derive(Debug, Default)]
struct Feed {
    batches: BTreeMap<i64, Batch>,
    /// After the last change ever told.
    end: FeedCursor,
    /// After the last change no longer kept.
    forgotten: FeedCursor,
}

#[derive(Debug)]
struct Batch {
    at: DateTime<Utc>,
    changes: Vec<JobChange>,
}

impl Feed {
    fn append(&mut self, at: DateTime<Utc>, changes: Vec<JobChange>) {
        let Ok(index) = u32::try_from(changes.len()) else { return };
        if index > 0 {
            self.end = FeedCursor { batch: self.end.batch + 1, index };
            self.batches.insert(self.end.batch, Batch { at, changes });
        }
    }

    /// True: more may be left.
    fn forget_before(&mut self, before: DateTime<Utc>) -> bool {
        for _ in 0..MAX_RETIRED_BATCHES {
            let oldest = self.batches.first_entry().filter(|batch| batch.get().at < before);
            let Some(oldest) = oldest else { return false };
            let (batch, forgotten) = oldest.remove_entry();
            let index = u32::try_from(forgotten.changes.len()).unwrap_or(u32::MAX);
            self.forgotten = FeedCursor { batch, index };
        }
        true
    }
}

impl State {
    fn alive(&self, worker: WorkerId, now: DateTime<Utc>) -> bool {
        self.workers.get(&worker).is_some_and(|w| w.expires_at > now)
    }

    fn holds_jobs(&self, worker: WorkerId) -> bool {
        self.jobs.values().any(|e| e.job.life.state.is_owned() && e.job.life.owner == Some(worker))
    }

    fn standing(&self, claimer: Option<WorkerId>, job: &Job, now: DateTime<Utc>) -> Standing {
        Standing {
            claimer_alive: claimer.is_some_and(|worker| self.alive(worker, now)),
            owner_alive: job.life.owner.is_some_and(|owner| self.alive(owner, now)),
            cluster_paused: self.clusters.get(&job.cluster).is_some_and(|setting| setting.paused),
            room: self.room(&job.cluster),
        }
    }

    /// What is set on `cluster`; set first by `by`, if nobody did.
    fn setting(&mut self, cluster: &ClusterName, by: &str, at: DateTime<Utc>) -> &mut ClusterSetting {
        self.clusters.entry(cluster.clone()).or_insert_with(|| ClusterSetting {
            cluster: cluster.clone(),
            paused: false,
            by: by.to_owned(),
            at,
            max_in_flight: None,
        })
    }

    /// How many more jobs of `cluster` may be in flight, if that is limited.
    fn room(&self, cluster: &ClusterName) -> Option<u32> {
        let most = self.clusters.get(cluster)?.max_in_flight?;
        let in_flight = |entry: &&Entry| entry.job.cluster == *cluster && entry.job.life.state.is_owned();
        let taken = self.jobs.values().filter(in_flight).count();
        Some(most.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX)))
    }
}

impl MemoryStore {
    /// An empty store that lives by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    /// The state and the time it is looked at, taken under the lock so that time never runs backwards between two looks.
    fn look(&self) -> (MutexGuard<'_, State>, DateTime<Utc>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        (state, now)
    }
}

/// The rows as the kernel sees them, on behalf of `claimer` when it is a claim.
#[derive(Debug)]
struct Rows<'a> {
    store: &'a MemoryStore,
    claimer: Option<WorkerId>,
}

#[async_trait]
impl Ledger for Rows<'_> {
    async fn load(&mut self, jobs: &[JobId], _: Purpose) -> StoreResult<(DateTime<Utc>, Vec<Row>)> {
        let (state, now) = self.store.look();
        let row = |entry: &Entry| Row {
            job: entry.job.id,
            project: entry.job.project.clone(),
            cluster: entry.job.cluster.clone(),
            priority: entry.job.priority,
            max_attempts: entry.job.max_attempts,
            retry: entry.job.retry.clone(),
            life: entry.job.life.clone(),
            version: entry.version,
            standing: state.standing(self.claimer, &entry.job, now),
        };
        Ok((now, jobs.iter().filter_map(|id| state.jobs.get(id)).map(row).collect()))
    }

    async fn save(&mut self, moves: &[Move]) -> StoreResult<HashSet<JobId>> {
        let (mut state, now) = self.store.look();
        let full =
            |(cluster, fresh): (&ClusterName, u32)| state.room(cluster).is_some_and(|room| room < fresh);
        if fresh_claims(moves).into_iter().any(full) {
            return Ok(HashSet::new());
        }
        let mut saved = HashSet::new();
        let mut told = Vec::new();
        for moved in moves {
            let Some(entry) = state.jobs.get_mut(&moved.before.job) else { continue };
            if entry.version != moved.before.version {
                continue;
            }
            entry.job.life = moved.after.clone();
            entry.version += 1;
            entry.hinted_until = entry.hinted_until.filter(|_| moved.keeps_hint());
            entry.deviations.extend(moved.changes.iter().filter_map(crate::domain::Change::deviation));
            told.extend(moved.changes.iter().map(|change| job_change(&entry.job, change.entry.clone())));
            saved.insert(entry.job.id);
        }
        state.feed.append(now, told);
        Ok(saved)
    }
}

fn job_change(job: &Job, entry: HistoryEntry) -> JobChange {
    JobChange { job: job.id, project: job.project.clone(), entry }
}
