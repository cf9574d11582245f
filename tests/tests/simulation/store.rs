//! The store of a run: the reference model, every change of which is checked as it commits, behind each process's door.

use crate::{
    cluster::Manager,
    plan::{Flaw, Link, Outcome},
    process::Process,
    watch::Watch,
    world::{World, lock},
};
use anyhow::anyhow;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use jobgate_shared::{
    domain::{
        ClusterName, Command, Ending, HistoryEntry, Job, JobId, JobState, NewJob, Observation, Refusal,
        Report, StatusEvent, SubmissionTag, TokenId, WorkerId,
    },
    store::{
        Applied, Apply, Changes, Claimed, ClusterSetting, Commanded, Depth, Due, FeedCursor, Filter,
        Heartbeat, Hinted, Inserted, Leases, Oldest, Page, PageRequest, Patch, Pulse, Recorded, Removed,
        Reported, Scope, Store, StoreError, StoreResult, Stranded, ToHandBack, ToRecord, Token, Vanished,
        Worker, WorkerCluster, memory::MemoryStore,
    },
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

/// The rows, and what has been seen of them.
#[derive(Debug)]
pub(crate) struct Rows {
    world: Arc<World>,
    pub(crate) inner: MemoryStore,
    managers: Vec<Arc<Manager>>,
    watch: Mutex<Watch>,
    /// Ends a flawed store has replaced.
    replaced: Mutex<BTreeMap<JobId, JobState>>,
}

impl Rows {
    pub(crate) fn new(world: &Arc<World>, inner: MemoryStore, managers: Vec<Arc<Manager>>) -> Arc<Self> {
        let (world, watch, replaced) = (world.clone(), Mutex::default(), Mutex::default());
        Arc::new(Self { world, inner, managers, watch, replaced })
    }

    pub(crate) fn watch<T>(&self, look: impl FnOnce(&Watch) -> T) -> T {
        look(&lock(&self.watch))
    }

    /// The model answers at once, whatever it is asked.
    fn at_once<T>(answer: impl Future<Output = StoreResult<T>>) -> T {
        let answer = answer.now_or_never().expect("the reference model waits for nothing");
        answer.expect("the reference model is never away")
    }

    /// A row as it is now.
    pub(crate) fn row(&self, job: JobId) -> Option<Job> {
        let mut row = Self::at_once(self.inner.get(&Scope::All, job))?;
        if let Some(state) = lock(&self.replaced).get(&job) {
            row.life.state = *state;
        }
        Some(row)
    }

    /// How a row came to be as it is.
    pub(crate) fn history(&self, job: JobId) -> Vec<HistoryEntry> {
        Self::at_once(self.inner.history(&Scope::All, job)).unwrap_or_default()
    }

    /// What an operator set on this cluster.
    pub(crate) fn setting(&self, cluster: &ClusterName) -> Option<ClusterSetting> {
        let settings = Self::at_once(self.inner.cluster_settings());
        settings.into_iter().find(|setting| setting.cluster == *cluster)
    }

    /// How many jobs of each limited cluster are in flight, with the limit.
    fn limited(&self) -> BTreeMap<ClusterName, (u64, u64)> {
        let mut limited = BTreeMap::new();
        for setting in Self::at_once(self.inner.cluster_settings()) {
            limited.extend(setting.max_in_flight.map(|limit| (setting.cluster, (0, u64::from(limit)))));
        }
        if !limited.is_empty() {
            for depth in Self::at_once(self.inner.depths()) {
                if depth.state.is_owned()
                    && let Some((jobs, _)) = limited.get_mut(&depth.cluster)
                {
                    *jobs += depth.jobs;
                }
            }
        }
        limited
    }

    /// No claim takes more than there was room for.
    fn check_limits(&self, before: &BTreeMap<ClusterName, (u64, u64)>) {
        for (cluster, (jobs, limit)) in self.limited() {
            let were = before.get(&cluster).map_or(0, |(jobs, _)| *jobs);
            if jobs > were && jobs > limit {
                self.world.wrong(|| format!("{jobs} jobs of {cluster} are in flight, {limit} may be"));
            }
        }
    }

    /// How many jobs are in which state, by the store's own count.
    pub(crate) fn depths(&self) -> BTreeMap<JobState, u64> {
        let mut counts = BTreeMap::new();
        for depth in Self::at_once(self.inner.depths()) {
            *counts.entry(depth.state).or_default() += depth.jobs;
        }
        counts
    }

    /// Looks at what has been committed since the last look.
    fn committed(&self) {
        let mut watch = lock(&self.watch);
        let news = Self::at_once(self.inner.changes(watch.read, 10_000));
        for (cursor, change) in news.items {
            watch.read = cursor;
            if self.world.plan.flaw == Flaw::EndsAreNotTold && change.entry.to == JobState::Finished {
                continue;
            }
            watch.see(&self.world, &self.managers, &change);
        }
    }

    /// What is started must be the recorded one.
    pub(crate) fn check_recorded(&self, tag: SubmissionTag, id: &str) {
        let recorded = self.watch(|watch| watch.recorded(tag).map(ToOwned::to_owned));
        if recorded.as_deref() != Some(id) {
            self.world.wrong(|| format!("{id} of {tag} is started, recorded is {recorded:?}"));
        }
    }

    /// What is forgotten must be over in the row, or never have been recorded.
    pub(crate) fn check_over(&self, tag: SubmissionTag, id: &str) {
        let Some(life) = self.row(tag.job).map(|job| job.life) else { return };
        let goes_on = life.attempt == tag.attempt && !life.state.is_terminal();
        if goes_on && life.submission.is_some_and(|recorded| recorded.id == id) {
            self.world.wrong(|| format!("{id} of {tag} is forgotten while the row is {}", life.state));
        }
    }

    async fn claim(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        jobs: &[JobId],
    ) -> StoreResult<Vec<Claimed>> {
        let before = self.limited();
        let mut claimed = self.inner.claim(worker, clusters, jobs).await?;
        self.check_limits(&before);
        self.committed();
        for (job, answer) in jobs.iter().zip(&mut claimed) {
            if self.world.plan.flaw == Flaw::ClaimsIgnoreOwners
                && *answer == Claimed::Refused(Refusal::Owned)
                && let Some(row) = self.row(*job)
            {
                *answer = Claimed::Granted(Box::new(row));
            }
            self.says(worker, *job, answer);
        }
        Ok(claimed)
    }

    async fn claim_alone(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        job: JobId,
    ) -> StoreResult<Claimed> {
        let before = self.limited();
        let claimed = self.inner.claim_alone(worker, clusters, job).await?;
        self.check_limits(&before);
        self.committed();
        self.says(worker, job, &claimed);
        Ok(claimed)
    }

    fn says(&self, worker: WorkerId, job: JobId, answer: &Claimed) {
        self.world.say(|| {
            let answer = match answer {
                Claimed::Granted(job) => format!("granted, {} epoch {}", job.life.state, job.life.epoch),
                Claimed::Refused(refusal) => format!("refused, {refusal:?}"),
                Claimed::Absent => "absent".to_owned(),
            };
            format!("claim of {job} by {worker}: {answer}")
        });
    }

    async fn record(&self, items: &[ToRecord]) -> StoreResult<Vec<Recorded>> {
        let mut recorded = self.inner.record(items).await?;
        self.committed();
        for (item, answer) in items.iter().zip(&mut recorded) {
            let tag = SubmissionTag { job: item.job, attempt: item.attempt };
            if self.world.plan.flaw == Flaw::EveryRecordWins {
                *answer = Recorded::Won;
            }
            let won = *answer == Recorded::Won;
            self.world.say(|| format!("record of {} for {tag}: won {won}", item.submission.id));
            if won {
                lock(&self.watch).records(&self.world, tag, &item.submission.id);
            } else {
                self.world.came(Outcome::RecordLost);
            }
        }
        Ok(recorded)
    }

    async fn apply(&self, events: &[StatusEvent]) -> StoreResult<Vec<Applied>> {
        let applied = self.inner.apply(events).await?;
        self.committed();
        for (event, applied) in events.iter().zip(&applied) {
            let StatusEvent { job, attempt, epoch, seq, .. } = event;
            self.world.say(|| {
                format!("event {attempt}/{epoch}/{seq} of {job}: {:?} is {applied:?}", event.observation)
            });
            if *applied != Applied::Stale {
                continue;
            }
            self.world.came(Outcome::StaleEvent);
            if self.world.plan.flaw == Flaw::EventsReplaceEnds
                && let Some(row) = self.row(*job).filter(|row| row.life.state.is_terminal())
                && row.life.attempt == *attempt
            {
                let state = match event.observation {
                    Observation::Pending { .. } => JobState::Pending,
                    Observation::Running { .. } => JobState::Running,
                    Observation::Ended { .. } => continue,
                };
                lock(&self.replaced).insert(*job, state);
            }
        }
        Ok(applied)
    }

    async fn heartbeat(&self, worker: WorkerId, pulse: &Pulse) -> StoreResult<Heartbeat> {
        let answer = self.inner.heartbeat(worker, pulse).await?;
        if answer == Heartbeat::Expired {
            self.world.say(|| format!("the lease of {worker} is over"));
            self.world.came(Outcome::LeaseOver);
        }
        Ok(answer)
    }

    async fn held(&self, worker: WorkerId) -> StoreResult<Vec<JobId>> {
        if self.world.plan.flaw == Flaw::NothingIsHeld {
            return Ok(Vec::new());
        }
        self.inner.held(worker).await
    }

    async fn in_hands(
        &self,
        cluster: &ClusterName,
        owners: &[WorkerId],
        after: Option<JobId>,
        limit: u32,
    ) -> StoreResult<Vec<Job>> {
        self.inner.in_hands(cluster, owners, after, limit).await
    }

    async fn leftovers(&self, found: &[(JobId, u32, String)]) -> StoreResult<Vec<usize>> {
        let left = self.inner.leftovers(found).await?;
        for index in &left {
            let (job, attempt, id) = &found[*index];
            let tag = SubmissionTag { job: *job, attempt: *attempt };
            // What ended and was not forgotten is asked about, too.
            if self.watch(|watch| watch.recorded(tag).is_none_or(|recorded| recorded != id)) {
                self.world.came(Outcome::Swept);
            }
        }
        Ok(left)
    }

    async fn command(
        &self,
        scope: &Scope,
        jobs: &[JobId],
        command: Command,
        by: &str,
    ) -> StoreResult<Vec<Commanded>> {
        let commanded = self.inner.command(scope, jobs, command, by).await?;
        self.committed();
        for (job, answer) in jobs.iter().zip(&commanded) {
            self.world.say(|| {
                let answer = match answer {
                    Commanded::Done { job, .. } => format!("done, {}", job.life.state),
                    Commanded::Refused(refusal) => format!("refused, {refusal:?}"),
                    Commanded::Absent => "absent".to_owned(),
                };
                format!("{command:?} of {job}: {answer}")
            });
            if self.world.plan.flaw == Flaw::CancelsAtOnce
                && command == Command::Cancel
                && let Commanded::Done { job, .. } = answer
                && job.life.state == JobState::Claimed
            {
                let (ending, exit_code) = (Ending::Canceled, None);
                let observation =
                    Observation::Ended { ending, exit_code, reason: None, began: None, at: None };
                let event = StatusEvent {
                    job: job.id,
                    attempt: job.life.attempt,
                    epoch: job.life.epoch,
                    seq: 0,
                    by: WorkerId::NOBODY,
                    submission: None,
                    observation,
                    at: job.created_at,
                };
                self.inner.apply(&[event]).await?;
                self.committed();
            }
        }
        Ok(commanded)
    }

    async fn stranded(
        &self,
        dead: &[WorkerId],
        limit: u32,
        hint_for: Duration,
    ) -> StoreResult<Vec<Stranded>> {
        let stranded = self.inner.stranded(dead, limit, hint_for).await?;
        if !stranded.is_empty() {
            self.world.say(|| format!("{} groups are stranded", stranded.len()));
            self.world.came(Outcome::Rescued);
        }
        Ok(stranded)
    }
}

fn away() -> StoreError {
    StoreError::Away(anyhow!("no answer"))
}

/// A process's door to the rows.
#[derive(Debug)]
pub(crate) struct StoreDoor {
    pub(crate) process: Arc<Process>,
    pub(crate) rows: Arc<Rows>,
    /// It is the recorder's.
    pub(crate) records: bool,
}

/// Every call is carried there and back; what is `checked` goes by [`Rows`], everything else straight to the model.
macro_rules! carried {
    ($port:ident:
        checked { $($known:ident($($a:ident: $a_kind:ty = $a_pass:expr),*) -> $known_told:ty;)* }
        plain { $($call:ident($($b:ident: $b_kind:ty = $b_pass:expr),*) -> $told:ty;)* }
    ) => {
        #[async_trait]
        impl $port for StoreDoor {
            $(async fn $known(&self, $($a: $a_kind),*) -> StoreResult<$known_told> {
                let rows = self.rows.clone();
                $(let $a = $a.to_owned();)*
                let call = async move { rows.$known($($a_pass),*).await };
                self.process.carry(Link::Store, call.boxed()).await.unwrap_or_else(|| Err(away()))
            })*
            $(async fn $call(&self, $($b: $b_kind),*) -> StoreResult<$told> {
                let rows = self.rows.clone();
                $(let $b = $b.to_owned();)*
                let call = async move {
                    let answer = rows.inner.$call($($b_pass),*).await;
                    rows.committed();
                    answer
                };
                self.process.carry(Link::Store, call.boxed()).await.unwrap_or_else(|| Err(away()))
            })*
        }
    };
}

#[async_trait]
impl Apply for StoreDoor {
    async fn apply(&self, events: &[StatusEvent]) -> StoreResult<Vec<Applied>> {
        if !self.records {
            self.process.world.came(Outcome::AppliedDirectly);
        }
        let (rows, events) = (self.rows.clone(), events.to_vec());
        let call = async move { rows.apply(&events).await };
        self.process.carry(Link::Store, call.boxed()).await.unwrap_or_else(|| Err(away()))
    }
}

carried! { Leases:
    checked {
        claim(worker: WorkerId = worker, clusters: &[WorkerCluster] = &clusters, jobs: &[JobId] = &jobs) -> Vec<Claimed>;
        claim_alone(worker: WorkerId = worker, clusters: &[WorkerCluster] = &clusters, job: JobId = job) -> Claimed;
        held(worker: WorkerId = worker) -> Vec<JobId>;
        in_hands(
            cluster: &ClusterName = &cluster,
            owners: &[WorkerId] = &owners,
            after: Option<JobId> = after,
            limit: u32 = limit
        ) -> Vec<Job>;
        heartbeat(worker: WorkerId = worker, pulse: &Pulse = &pulse) -> Heartbeat;
        record(items: &[ToRecord] = &items) -> Vec<Recorded>;
        leftovers(found: &[(JobId, u32, String)] = &found) -> Vec<usize>;
    }
    plain {
        register(worker: &Worker = &worker, ttl: Duration = ttl) -> ();
        hand_back(worker: WorkerId = worker, items: &[ToHandBack] = &items) -> ();
        deregister(worker: WorkerId = worker) -> ();
        serving(clusters: &[ClusterName] = &clusters) -> Vec<u32>;
    }
}

carried! { Store:
    checked {
        command(scope: &Scope = &scope, jobs: &[JobId] = &jobs, command: Command = command, by: &str = &by) -> Vec<Commanded>;
        stranded(dead: &[WorkerId] = &dead, limit: u32 = limit, hint_for: Duration = hint_for) -> Vec<Stranded>;
    }
    plain {
        ping() -> ();
        now() -> DateTime<Utc>;
        insert(jobs: &[NewJob] = &jobs, hinted: Option<Duration> = hinted) -> Vec<Inserted>;
        get(scope: &Scope = &scope, job: JobId = job) -> Option<Job>;
        present(jobs: &[JobId] = &jobs) -> Vec<JobId>;
        list(scope: &Scope = &scope, filter: &Filter = &filter, page: PageRequest = page) -> Page;
        history(scope: &Scope = &scope, job: JobId = job) -> Option<Vec<HistoryEntry>>;
        patch(scope: &Scope = &scope, job: JobId = job, patch: &Patch = &patch) -> Option<Job>;
        report(scope: &Scope = &scope, job: JobId = job, report: &Report = &report) -> Reported;
        remove(scope: &Scope = &scope, job: JobId = job) -> Removed;
        retirable(before: DateTime<Utc> = before, limit: u32 = limit) -> Vec<JobId>;
        retire(jobs: &[JobId] = &jobs, before: DateTime<Utc> = before) -> u64;
        retire_feed(before: DateTime<Utc> = before) -> bool;
        depths() -> Vec<Depth>;
        oldest() -> Vec<Oldest>;
        compact_counts() -> bool;
        changes(after: FeedCursor = after, limit: u32 = limit) -> Changes;
        feed_end() -> FeedCursor;
        outstanding() -> Vec<Hinted>;
        due(cluster: &ClusterName = &cluster, limit: u32 = limit, hint_for: Duration = hint_for, again_after: Duration = again_after) -> Vec<Due>;
        unhint(jobs: &[JobId] = &jobs) -> ();
        vanished(jobs: &[Vanished] = &jobs, lost_after: Option<Duration> = lost_after) -> Vec<Applied>;
        workers() -> Vec<Worker>;
        expire_all_leases() -> ();
        cluster_settings() -> Vec<ClusterSetting>;
        set_paused(cluster: &ClusterName = &cluster, paused: bool = paused, by: &str = &by) -> ();
        limit(cluster: &ClusterName = &cluster, max_in_flight: Option<u32> = max_in_flight, by: &str = &by) -> ();
        create_token(token: &Token = &token) -> ();
        tokens(scope: &Scope = &scope) -> Vec<Token>;
        token(id: TokenId = id) -> Option<Token>;
        revoke_token(scope: &Scope = &scope, id: TokenId = id) -> bool;
    }
}
