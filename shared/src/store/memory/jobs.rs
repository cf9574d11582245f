//! What the API and its dispatcher may do.

use super::{Batch, Entry, MemoryStore, Rows, State, job_change};
use crate::domain::{
    ClusterName, Command, HistoryEntry, Job, JobId, JobState, Life, NewJob, Report, TokenId, WorkerId,
};
use crate::domain::{SUSPECT_AFTER, derive_history};
use crate::store::kernel::{Decided, Told, decide};
use crate::store::page::Filling;
use crate::store::{
    Applied, Changes, ClusterSetting, Commanded, Depth, Due, FeedCursor, Filter, Hinted, Inserted, JobChange,
    Oldest, Page, PageRequest, Patch, Removed, Reported, Scope, Store, StoreResult, Stranded, StrandedJob,
    Token, Vanished, Worker,
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How long a dead worker that holds nothing is still shown.
const MOURNED_FOR: Duration = Duration::from_hours(1);

impl State {
    fn find(&self, scope: &Scope, job: JobId) -> Option<&Entry> {
        self.jobs.get(&job).filter(|entry| scope.covers(&entry.job.project))
    }

    /// What stands already where `job` wants to be.
    fn existing(&self, job: &NewJob) -> Option<Inserted> {
        let same_key = job.idempotency.as_ref().and_then(|key| {
            let holder = self.jobs.get(self.keys.get(&(job.project.clone(), key.key.clone()))?)?;
            let same_body = holder.key.as_ref().is_some_and(|held| held.body == key.body);
            Some(if same_body {
                Inserted::Existing(Box::new(holder.job.clone()))
            } else {
                Inserted::KeyReused
            })
        });
        same_key.or_else(|| Some(Inserted::Existing(Box::new(self.jobs.get(&job.id)?.job.clone()))))
    }

    fn hint(&mut self, job: JobId, until: DateTime<Utc>) {
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.hinted_until = Some(until);
        }
    }

    fn forget(&mut self, job: JobId) {
        if let Some(Entry { job, key: Some(key), .. }) = self.jobs.remove(&job) {
            self.keys.remove(&(job.project, key.key));
        }
    }

    /// Waiting jobs whose time has come.
    fn waiting(&self, now: DateTime<Utc>) -> impl Iterator<Item = &Entry> {
        let due = move |entry: &&Entry| {
            entry.job.life.state == JobState::Initialized && entry.job.life.due_at <= now
        };
        self.jobs.values().filter(due)
    }

    fn mourned(&self, worker: &Worker, now: DateTime<Utc>) -> bool {
        worker.expires_at > now - MOURNED_FOR || self.holds_jobs(worker.id)
    }
}

fn is_suspect(life: &Life) -> bool {
    life.submission.is_none() && life.fruitless_claims >= SUSPECT_AFTER
}

#[async_trait]
impl Store for MemoryStore {
    async fn ping(&self) -> StoreResult<()> {
        Ok(())
    }

    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        Ok(self.look().1)
    }

    async fn insert(&self, jobs: &[NewJob], hinted: Option<Duration>) -> StoreResult<Vec<Inserted>> {
        let (mut state, now) = self.look();
        let mut outcomes = Vec::new();
        let mut told = Vec::new();
        for new in jobs {
            if let Some(existing) = state.existing(new) {
                outcomes.push(existing);
                continue;
            }
            let job = new.accepted(now);
            let hintable = job.life.state == JobState::Initialized && job.life.due_at <= now;
            let hinted_until = hinted.filter(|_| hintable).map(|hint| now + hint);
            if let Some(key) = &new.idempotency {
                state.keys.insert((new.project.clone(), key.key.clone()), new.id);
            }
            told.push(job_change(&job, job.acceptance(job.life.state)));
            outcomes.push(Inserted::Created(Box::new(job.clone())));
            let key = new.idempotency.clone();
            state.jobs.insert(new.id, Entry { job, key, version: 0, hinted_until, deviations: Vec::new() });
        }
        told.sort_by_key(|change| change.job);
        state.feed.append(now, told);
        Ok(outcomes)
    }

    async fn get(&self, scope: &Scope, job: JobId) -> StoreResult<Option<Job>> {
        Ok(self.look().0.find(scope, job).map(|entry| entry.job.clone()))
    }

    async fn present(&self, jobs: &[JobId]) -> StoreResult<Vec<JobId>> {
        let (state, _) = self.look();
        let asked: BTreeSet<JobId> = jobs.iter().copied().collect();
        Ok(asked.into_iter().filter(|job| state.jobs.contains_key(job)).collect())
    }

    async fn list(&self, scope: &Scope, filter: &Filter, page: PageRequest) -> StoreResult<Page> {
        let (state, _) = self.look();
        let newest_first = state.jobs.values().rev().map(|entry| &entry.job);
        let mut meant = newest_first.filter(|job| {
            page.after.is_none_or(|after| job.id < after) && scope.covers(&job.project) && filter.matches(job)
        });
        let mut filling = Filling::new(page.limit);
        let more = meant.any(|job| !filling.take(job.clone()));
        Ok(filling.page(more))
    }

    async fn history(&self, scope: &Scope, job: JobId) -> StoreResult<Option<Vec<HistoryEntry>>> {
        let (state, _) = self.look();
        Ok(state.find(scope, job).map(|entry| derive_history(&entry.job, &entry.deviations)))
    }

    async fn command(
        &self,
        scope: &Scope,
        jobs: &[JobId],
        command: Command,
        by: &str,
    ) -> StoreResult<Vec<Commanded>> {
        let facts: Vec<_> = jobs.iter().map(|job| (*job, Told::Command { scope, command, by })).collect();
        let decided = decide(&mut Rows { store: self, claimer: None }, &facts).await?;
        let (state, _) = self.look();
        let commanded = jobs.iter().zip(decided).map(|(job, answer)| match answer {
            Decided::Advanced(life) | Decided::Duplicate(life) => match state.jobs.get(job) {
                Some(entry) => {
                    let owner = life.holder();
                    let job = Box::new(Job { life: *life, ..entry.job.clone() });
                    Commanded::Done { job, owner }
                }
                None => Commanded::Absent,
            },
            Decided::Refused(refusal) => Commanded::Refused(refusal),
            Decided::Stale | Decided::Absent => Commanded::Absent,
        });
        Ok(commanded.collect())
    }

    async fn patch(&self, scope: &Scope, job: JobId, patch: &Patch) -> StoreResult<Option<Job>> {
        let (mut state, _) = self.look();
        let Some(entry) = state.jobs.get_mut(&job).filter(|entry| scope.covers(&entry.job.project)) else {
            return Ok(None);
        };
        patch.apply(&mut entry.job);
        Ok(Some(entry.job.clone()))
    }

    async fn report(&self, scope: &Scope, job: JobId, report: &Report) -> StoreResult<Reported> {
        let (mut state, _) = self.look();
        let Some(entry) = state.jobs.get_mut(&job).filter(|entry| scope.covers(&entry.job.project)) else {
            return Ok(Reported::Absent);
        };
        Ok(match report.apply(&mut entry.job) {
            Ok(()) => Reported::Taken(Box::new(entry.job.clone())),
            Err(refusal) => Reported::Refused(refusal),
        })
    }

    async fn remove(&self, scope: &Scope, job: JobId) -> StoreResult<Removed> {
        let (mut state, _) = self.look();
        match state.find(scope, job).map(|entry| entry.job.life.state.is_terminal()) {
            None => Ok(Removed::Absent),
            Some(false) => Ok(Removed::NotEnded),
            Some(true) => {
                state.forget(job);
                Ok(Removed::Removed)
            }
        }
    }

    async fn retirable(&self, before: DateTime<Utc>, limit: u32) -> StoreResult<Vec<JobId>> {
        let (state, _) = self.look();
        let mut ended: Vec<_> = state.jobs.values().filter_map(|entry| entry.ended_before(before)).collect();
        ended.sort_unstable();
        Ok(ended.into_iter().take(limit as usize).map(|(_, job)| job).collect())
    }

    async fn retire(&self, jobs: &[JobId], before: DateTime<Utc>) -> StoreResult<u64> {
        let (mut state, _) = self.look();
        // One that is named twice goes once.
        let jobs: BTreeSet<JobId> = jobs.iter().copied().collect();
        let known = jobs.iter().filter_map(|job| state.jobs.get(job));
        let ended: Vec<_> = known.filter_map(|entry| entry.ended_before(before)).collect();
        for (_, job) in &ended {
            state.forget(*job);
        }
        Ok(ended.len() as u64)
    }

    async fn retire_feed(&self, before: DateTime<Utc>) -> StoreResult<bool> {
        Ok(self.look().0.feed.forget_before(before))
    }

    async fn depths(&self) -> StoreResult<Vec<Depth>> {
        let (state, _) = self.look();
        let mut counts = BTreeMap::new();
        for Entry { job, .. } in state.jobs.values() {
            let place = (job.project.clone(), job.cluster.clone(), job.priority, job.life.state);
            *counts.entry(place).or_default() += 1;
        }
        let depth =
            |((project, cluster, priority, state), jobs)| Depth { project, cluster, priority, state, jobs };
        Ok(counts.into_iter().map(depth).collect())
    }

    async fn oldest(&self) -> StoreResult<Vec<Oldest>> {
        let (state, now) = self.look();
        let mut queues: BTreeMap<(ClusterName, i16), DateTime<Utc>> = BTreeMap::new();
        for Entry { job, .. } in state.waiting(now) {
            let since = queues.entry((job.cluster.clone(), job.priority)).or_insert(job.life.due_at);
            *since = (*since).min(job.life.due_at);
        }
        let oldest = |((cluster, priority), due_since)| Oldest { cluster, priority, due_since };
        Ok(queues.into_iter().map(oldest).collect())
    }

    async fn compact_counts(&self) -> StoreResult<bool> {
        Ok(false)
    }

    async fn changes(&self, after: FeedCursor, limit: u32) -> StoreResult<Changes> {
        let (state, _) = self.look();
        let told = state.feed.batches.range(after.batch..).flat_map(|(number, Batch { changes, .. })| {
            let at = |index| FeedCursor { batch: *number, index };
            (1u32..).zip(changes).map(move |(index, change)| (at(index), change.clone()))
        });
        let unread = told.filter(|(cursor, _): &(FeedCursor, JobChange)| *cursor > after);
        let items = unread.take(limit as usize).collect();
        let gap = after < state.feed.forgotten || after.batch > state.feed.end.batch;
        Ok(Changes { items, gap })
    }

    async fn feed_end(&self) -> StoreResult<FeedCursor> {
        Ok(self.look().0.feed.end)
    }

    async fn outstanding(&self) -> StoreResult<Vec<Hinted>> {
        let (state, now) = self.look();
        let mut hints: BTreeMap<ClusterName, Hinted> = BTreeMap::new();
        for entry in state.waiting(now) {
            let cluster = &entry.job.cluster;
            let room = state.room(cluster);
            let none = || Hinted { cluster: cluster.clone(), outstanding: 0, expired: 0, room };
            let count = hints.entry(cluster.clone()).or_insert_with(none);
            count.outstanding += u64::from(entry.hint_outstanding(now));
            count.expired += u64::from(entry.hinted_until.is_some_and(|until| until <= now));
        }
        Ok(hints.into_values().collect())
    }

    async fn due(
        &self,
        cluster: &ClusterName,
        limit: u32,
        hint_for: Duration,
        again_after: Duration,
    ) -> StoreResult<Vec<Due>> {
        let (mut state, now) = self.look();
        let open = |entry: &&Entry| entry.hinted_until.is_none_or(|until| until + again_after <= now);
        let mut queue: Vec<&Entry> =
            state.waiting(now).filter(|entry| entry.job.cluster == *cluster).filter(open).collect();
        queue.sort_by_key(|Entry { job, .. }| (-job.priority, job.life.due_at, job.id));
        let due = |entry: &Entry| Due {
            job: entry.job.id,
            suspect: is_suspect(&entry.job.life),
            again: entry.hinted_until.is_some(),
            waited: (now - entry.job.life.due_at).to_std().unwrap_or_default(),
        };
        let hinted: Vec<Due> = queue.into_iter().take(limit as usize).map(due).collect();
        for Due { job, .. } in &hinted {
            state.hint(*job, now + hint_for);
        }
        Ok(hinted)
    }

    async fn unhint(&self, jobs: &[JobId]) -> StoreResult<()> {
        let (mut state, _) = self.look();
        for job in jobs {
            if let Some(entry) = state.jobs.get_mut(job) {
                entry.hinted_until = None;
            }
        }
        Ok(())
    }

    async fn stranded(
        &self,
        dead: &[WorkerId],
        limit: u32,
        hint_for: Duration,
    ) -> StoreResult<Vec<Stranded>> {
        let (mut state, now) = self.look();
        let mut groups: BTreeMap<_, Vec<StrandedJob>> = BTreeMap::new();
        let stranded = state.jobs.values().filter(|entry| {
            let owner = entry.job.life.owner.unwrap_or(WorkerId::NOBODY);
            entry.job.life.state.is_owned()
                && (owner == WorkerId::NOBODY || dead.contains(&owner))
                && !entry.hint_outstanding(now)
        });
        for Entry { job, .. } in stranded.take(limit as usize) {
            let reach = job.life.submission.as_ref().and_then(|s| s.reach.clone());
            let owner = job.life.owner.unwrap_or(WorkerId::NOBODY);
            groups
                .entry((job.cluster.clone(), reach, owner))
                .or_default()
                .push(StrandedJob { job: job.id, suspect: is_suspect(&job.life) });
        }
        for StrandedJob { job, .. } in groups.values().flatten() {
            state.hint(*job, now + hint_for);
        }
        let over: Vec<WorkerId> = dead
            .iter()
            .filter_map(|id| state.workers.get(id))
            .filter(|worker| !state.mourned(worker, now))
            .map(|worker| worker.id)
            .collect();
        state.workers.retain(|id, _| !over.contains(id));
        let group = |((cluster, reach, owner), jobs)| Stranded { cluster, reach, owner, jobs };
        Ok(groups.into_iter().map(group).collect())
    }

    async fn vanished(&self, jobs: &[Vanished], lost_after: Option<Duration>) -> StoreResult<Vec<Applied>> {
        let facts: Vec<_> = jobs.iter().map(|gone| (gone.job, Told::Vanished(gone, lost_after))).collect();
        let decided = decide(&mut Rows { store: self, claimer: None }, &facts).await?;
        Ok(decided.iter().map(Decided::applied).collect())
    }

    async fn workers(&self) -> StoreResult<Vec<Worker>> {
        let (state, now) = self.look();
        let shown = state.workers.values().filter(|worker| state.mourned(worker, now));
        Ok(shown.map(|worker| Worker { alive: worker.expires_at > now, ..worker.clone() }).collect())
    }

    async fn expire_all_leases(&self) -> StoreResult<()> {
        let (mut state, now) = self.look();
        for worker in state.workers.values_mut() {
            worker.expires_at = worker.expires_at.min(now);
        }
        Ok(())
    }

    async fn cluster_settings(&self) -> StoreResult<Vec<ClusterSetting>> {
        Ok(self.look().0.clusters.values().cloned().collect())
    }

    async fn set_paused(&self, cluster: &ClusterName, paused: bool, by: &str) -> StoreResult<()> {
        let (mut state, at) = self.look();
        let setting = state.setting(cluster, by, at);
        (setting.paused, setting.by, setting.at) = (paused, by.to_owned(), at);
        Ok(())
    }

    async fn limit(&self, cluster: &ClusterName, max_in_flight: Option<u32>, by: &str) -> StoreResult<()> {
        let (mut state, at) = self.look();
        state.setting(cluster, by, at).max_in_flight = max_in_flight;
        Ok(())
    }

    async fn create_token(&self, token: &Token) -> StoreResult<()> {
        self.look().0.tokens.entry(token.id).or_insert_with(|| token.clone());
        Ok(())
    }

    async fn tokens(&self, scope: &Scope) -> StoreResult<Vec<Token>> {
        let (state, _) = self.look();
        let seen = state.tokens.values().filter(|token| scope.covers_token(token));
        let mut tokens: Vec<Token> = seen.cloned().collect();
        tokens.sort_by_key(|token| std::cmp::Reverse((token.created_at, token.id)));
        Ok(tokens)
    }

    async fn token(&self, id: TokenId) -> StoreResult<Option<Token>> {
        Ok(self.look().0.tokens.get(&id).cloned())
    }

    async fn revoke_token(&self, scope: &Scope, id: TokenId) -> StoreResult<bool> {
        let (mut state, _) = self.look();
        let seen = state.tokens.get(&id).is_some_and(|token| scope.covers_token(token));
        Ok(seen && state.tokens.remove(&id).is_some())
    }
}
