//! A store in use: what the cases do again and again.

use super::Stage;
use anyhow::{Context as _, Result, bail, ensure};
use chrono::{DateTime, Utc};
use jobgate_shared::domain::{
    ClusterName, Command, Document, Ending, IdempotencyKey, Job, JobId, JobSpec, JobState, Life, NewJob,
    Observation, Project, Reach, RetryPolicy, StatusEvent, Submission, WorkerId,
};
use jobgate_shared::store::{
    Applied, Claimed, Commanded, Depth, FeedCursor, Filter, FullStore, Inserted, JobChange, PageRequest,
    Recorded, Scope, ToHandBack, ToRecord, Worker, WorkerCluster,
};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// A lease or a hint that no case outlives.
pub(super) const LONG: Duration = Duration::from_hours(1);
/// How long a change may take to show in the feed.
const BOUND: Duration = Duration::from_secs(20);

pub(super) fn cluster(name: &str) -> ClusterName {
    // The names cases use are fixed and good.
    ClusterName::try_from(name.to_owned()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

pub(super) fn project(name: &str) -> Project {
    Project::try_from(name.to_owned()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A plain job for the cluster `local`.
pub(super) fn new_job() -> NewJob {
    NewJob {
        id: JobId::generate(),
        project: Project::default_project(),
        name: "sum".into(),
        cluster: cluster("local"),
        spec: JobSpec { command: vec!["true".into()], ..JobSpec::default() },
        labels: Vec::new(),
        priority: 0,
        inputs: Document::new(),
        max_attempts: 1,
        retry: RetryPolicy::default(),
        run_at: None,
        hold: false,
        created_by: "token:t".into(),
        idempotency: None,
    }
}

/// A job whose standard input has so many bytes.
pub(super) fn heavy_by_its_text(bytes: usize) -> NewJob {
    let stdin = Some("x".repeat(bytes));
    let spec = JobSpec { command: vec!["wc".into()], stdin, ..JobSpec::default() };
    NewJob { spec, ..new_job() }
}

/// A job of more than a third of a page, of which next to nothing is text.
pub(super) fn heavy_when_parsed() -> NewJob {
    let inputs = Document::from_iter([("objects".to_owned(), json!(vec![json!({"": 0}); 8_000]))]);
    NewJob { inputs, ..new_job() }
}

pub(super) fn key(key: &str, body: u8) -> IdempotencyKey {
    IdempotencyKey { key: key.into(), body: [body; 32] }
}

pub(super) fn submission(id: impl Into<String>) -> Submission {
    Submission { id: id.into(), detail: serde_json::Value::Null, reach: None }
}

pub(super) fn to_record(job: &Job, id: &str) -> ToRecord {
    let Life { attempt, epoch, .. } = job.life;
    ToRecord { job: job.id, attempt, epoch, submission: submission(id) }
}

pub(super) fn to_hand_back(job: &Job, pause: Duration) -> ToHandBack {
    ToHandBack { job: job.id, epoch: job.life.epoch, why: "no room".into(), pause }
}

/// What a worker serves that serves every cluster of the cases, bound to `reach` or not.
pub(super) fn serves(reach: Option<&str>) -> Vec<WorkerCluster> {
    let serves = |name| WorkerCluster {
        name: cluster(name),
        reach: reach.map(|reach| Reach(reach.to_owned())),
        parked: None,
    };
    ["local", "slurm-a"].map(serves).into()
}

pub(super) fn waits(reason: Option<&str>) -> Observation {
    Observation::Pending { reason: reason.map(str::to_owned) }
}

pub(super) fn runs() -> Observation {
    Observation::Running { since: None, reason: None }
}

pub(super) fn ended(ending: Ending) -> Observation {
    let exit_code = (ending == Ending::Failed).then_some(3);
    Observation::Ended { ending, exit_code, reason: None, began: None, at: None }
}

/// The job of an outcome that must be a new one.
pub(super) fn created(outcome: Inserted) -> Result<Job> {
    match outcome {
        Inserted::Created(job) => Ok(*job),
        Inserted::Existing(_) | Inserted::KeyReused => bail!("not created: {outcome:?}"),
    }
}

/// The job of an outcome that must be one from before.
pub(super) fn existing(outcome: Inserted) -> Result<Job> {
    match outcome {
        Inserted::Existing(job) => Ok(*job),
        Inserted::Created(_) | Inserted::KeyReused => bail!("not found: {outcome:?}"),
    }
}

pub(super) fn granted(outcome: Claimed) -> Result<Job> {
    match outcome {
        Claimed::Granted(job) => Ok(*job),
        Claimed::Refused(_) | Claimed::Absent => bail!("not granted: {outcome:?}"),
    }
}

/// The store of a case.
pub(super) struct Site<'a> {
    pub(super) store: Arc<dyn FullStore>,
    stage: &'a dyn Stage,
}

impl<'a> Site<'a> {
    pub(super) fn new(stage: &'a dyn Stage) -> Self {
        Self { store: stage.store(), stage }
    }

    pub(super) async fn pass(&self, by: Duration) {
        self.stage.pass(by).await;
    }

    pub(super) async fn now(&self) -> Result<DateTime<Utc>> {
        Ok(self.store.now().await?)
    }

    pub(super) async fn accept(&self, new: NewJob) -> Result<Job> {
        let outcome = self.store.insert(&[new], None).await?.pop().context("no outcome")?;
        created(outcome)
    }

    pub(super) async fn accept_all(&self, new: &[NewJob]) -> Result<Vec<Job>> {
        self.store.insert(new, None).await?.into_iter().map(created).collect()
    }

    pub(super) async fn accept_many(&self, count: usize) -> Result<Vec<JobId>> {
        let new: Vec<NewJob> = (0..count).map(|_| new_job()).collect();
        Ok(self.accept_all(&new).await?.into_iter().map(|job| job.id).collect())
    }

    pub(super) async fn get(&self, job: JobId) -> Result<Job> {
        self.store.get(&Scope::All, job).await?.with_context(|| format!("{job} is absent"))
    }

    pub(super) async fn register(&self, clusters: Vec<WorkerCluster>, ttl: Duration) -> Result<WorkerId> {
        let id = WorkerId::generate();
        let now = self.now().await?;
        let worker = Worker {
            id,
            host: "here".into(),
            clusters,
            registered_at: now,
            expires_at: now,
            alive: false,
            draining: false,
            jobs: 0,
        };
        self.store.register(&worker, ttl).await?;
        Ok(id)
    }

    /// A worker that serves every cluster and lives on.
    pub(super) async fn worker(&self) -> Result<WorkerId> {
        self.register(serves(None), LONG).await
    }

    pub(super) async fn claim(&self, worker: WorkerId, jobs: &[JobId]) -> Result<Vec<Claimed>> {
        let claimed = self.store.claim(worker, &serves(None), jobs).await?;
        ensure!(claimed.len() == jobs.len(), "{} outcomes for {} jobs", claimed.len(), jobs.len());
        Ok(claimed)
    }

    pub(super) async fn claim_alone(&self, worker: WorkerId, job: JobId) -> Result<Claimed> {
        Ok(self.store.claim_alone(worker, &serves(None), job).await?)
    }

    /// Claims one job that must be granted.
    pub(super) async fn take(&self, worker: WorkerId, job: JobId) -> Result<Job> {
        granted(self.claim(worker, &[job]).await?.pop().context("no outcome")?)
    }

    /// A job in the hands of `worker`.
    pub(super) async fn claimed(&self, worker: WorkerId, new: NewJob) -> Result<Job> {
        let job = self.accept(new).await?;
        self.take(worker, job.id).await
    }

    pub(super) async fn record(&self, job: &Job, id: &str) -> Result<Recorded> {
        self.store.record(&[to_record(job, id)]).await?.pop().context("no outcome")
    }

    /// A job whose submission is called as the job is.
    pub(super) async fn pending(&self, worker: WorkerId, new: NewJob) -> Result<Job> {
        let job = self.claimed(worker, new).await?;
        let recorded = self.record(&job, &job.id.to_string()).await?;
        ensure!(recorded == Recorded::Won, "{recorded:?}");
        self.get(job.id).await
    }

    /// What the job's owner tells of it.
    pub(super) fn event(job: &Job, seq: u32, observation: Observation, at: DateTime<Utc>) -> StatusEvent {
        StatusEvent {
            job: job.id,
            attempt: job.life.attempt,
            epoch: job.life.epoch,
            seq,
            by: job.life.owner.unwrap_or(WorkerId::NOBODY),
            submission: job.life.submission.as_ref().map(|s| s.id.clone()),
            observation,
            at,
        }
    }

    pub(super) async fn tell(&self, job: &Job, seq: u32, observation: Observation) -> Result<Applied> {
        let event = Self::event(job, seq, observation, self.now().await?);
        self.store.apply(&[event]).await?.pop().context("no outcome")
    }

    pub(super) async fn running(&self, worker: WorkerId, new: NewJob) -> Result<Job> {
        let job = self.pending(worker, new).await?;
        let applied = self.tell(&job, 1, runs()).await?;
        ensure!(applied == Applied::Advanced, "{applied:?}");
        self.get(job.id).await
    }

    /// A job that ran and ended so.
    pub(super) async fn ended(&self, worker: WorkerId, new: NewJob, ending: Ending) -> Result<Job> {
        let job = self.running(worker, new).await?;
        let applied = self.tell(&job, 2, ended(ending)).await?;
        ensure!(applied == Applied::Advanced, "{applied:?}");
        self.get(job.id).await
    }

    /// A job of any state.
    pub(super) async fn in_state(&self, worker: WorkerId, state: JobState) -> Result<Job> {
        let job = match state {
            JobState::Held => self.accept(NewJob { hold: true, ..new_job() }).await?,
            JobState::Initialized => self.accept(new_job()).await?,
            JobState::Claimed => self.claimed(worker, new_job()).await?,
            JobState::Pending => self.pending(worker, new_job()).await?,
            JobState::Running => self.running(worker, new_job()).await?,
            JobState::Finished => self.ended(worker, new_job(), Ending::Finished).await?,
            JobState::Failed => self.ended(worker, new_job(), Ending::Failed).await?,
            JobState::Canceled => self.ended(worker, new_job(), Ending::Canceled).await?,
            JobState::TimedOut => self.ended(worker, new_job(), Ending::TimedOut).await?,
            JobState::Lost => self.ended(worker, new_job(), Ending::Lost).await?,
        };
        ensure!(job.life.state == state, "{} instead of {state}", job.life.state);
        Ok(job)
    }

    pub(super) async fn command(&self, command: Command, job: JobId) -> Result<Commanded> {
        let outcome = self.store.command(&Scope::All, &[job], command, "token:c").await?;
        outcome.into_iter().next().context("no outcome")
    }

    /// Every job, newest first.
    pub(super) async fn all(&self, scope: &Scope, filter: &Filter, limit: u32) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        let mut after = None;
        loop {
            let page = self.store.list(scope, filter, PageRequest { after, limit }).await?;
            ensure!(page.jobs.len() <= limit as usize, "{} jobs on a page of {limit}", page.jobs.len());
            jobs.extend(page.jobs);
            match page.next {
                None => return Ok(jobs),
                Some(next) if after.is_some_and(|after| next >= after) => {
                    bail!("the cursor went back to {next}")
                }
                next => after = next,
            }
        }
    }

    /// Depths are what counting every job gives, before and after folding.
    pub(super) async fn recount(&self) -> Result<()> {
        let mut counts = BTreeMap::new();
        for job in self.all(&Scope::All, &Filter::default(), 200).await? {
            let place = (job.project, job.cluster, job.priority, job.life.state);
            *counts.entry(place).or_default() += 1;
        }
        let depth =
            |((project, cluster, priority, state), jobs)| Depth { project, cluster, priority, state, jobs };
        let counted: Vec<Depth> = counts.into_iter().map(depth).collect();
        for _ in 0..2 {
            let mut depths = self.store.depths().await?;
            depths.sort();
            ensure!(depths == counted, "depths {depths:#?}\nbut counted {counted:#?}");
            self.store.compact_counts().await?;
        }
        Ok(())
    }

    /// The next `count` changes after `after`, read in pages of `limit`, as soon as the feed shows them.
    pub(super) async fn changes(
        &self,
        mut after: FeedCursor,
        count: usize,
        limit: u32,
    ) -> Result<Vec<(FeedCursor, JobChange)>> {
        let mut read = Vec::new();
        let reading = async {
            while read.len() < count {
                let changes = self.store.changes(after, limit).await?;
                ensure!(!changes.gap, "a gap after {after:?}");
                ensure!(changes.items.len() <= limit as usize, "more than {limit} changes");
                match changes.items.last() {
                    Some((last, _)) => after = *last,
                    // What is committed shows once everything that began before it has ended too.
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
                read.extend(changes.items);
            }
            Ok(())
        };
        let in_time = tokio::time::timeout(BOUND, reading).await;
        match in_time {
            Ok(done) => done.map(|()| read),
            Err(_) => bail!("{count} changes do not show within {BOUND:?}"),
        }
    }
}
