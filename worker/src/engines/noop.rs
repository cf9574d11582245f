//! The engine that runs nothing, for measuring and testing what stands around it.
//!
//! Submissions end by themselves after a configured time. Where the mode keeps them from beginning unrecorded
//! ([`SubmitMode::TwoPhase`], [`SubmitMode::Fenced`]) they begin when started; in the other modes they begin by being created,
//! as with a resource manager that can do no better, and `start` does nothing. Every create makes another id, except that one
//! under a tag whose submission is still known finds that one, where the mode promises so.
//!
//! They live in this process's memory, and of one made elsewhere it is said what is configured: that it ended well, which
//! lets adopted jobs end, or that it is absent. With `state` they live in a file, and whoever has it open is the same
//! manager, which outlives every worker.

mod memory;

use super::{EngineContext, EngineSettings, Options, ServedBy, settings::refuse_unknown_options};
use crate::engine::{
    Capabilities, Engine, EngineError, EngineResult, ExitCodes, LogChunk, MemoryLimits, Sighting, Stream,
    SubmitMode, TimeLimits, ToCreate,
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use jobgate_shared::{
    clock::Clock,
    domain::{Ending, JobSpec, Observation, SpecError, Submission, SubmissionTag},
    settings::{self, Period},
};
use memory::{Attempt, Event, Memory, Phase, What};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Settings of the engine that runs nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NoopConfig {
    /// How long a job seems to run, such as `250ms`. Default: `0s`, it ends at the first look.
    #[serde(with = "settings::duration")]
    pub run_for: Duration,
    /// The share of attempts that end with exit code 1, from 0 to 1; which ones depends on job id and attempt alone.
    /// Default: 0.
    pub failure_ratio: f64,
    /// The way of submitting to imitate: `two_phase`, `unique_name`, `fenced` or `at_most_once`. Default: `two_phase`.
    pub mode: SubmitMode,
    /// A file that gets one line whenever an attempt begins: `<tag> <submission id> <created> <begun>`, the times in
    /// microseconds since 1970. Default: none.
    pub ledger: Option<PathBuf>,
    /// A file workers share, on one host, in which submissions outlive them. It is a ledger as well: between lines that
    /// start with a word it has those a ledger has. It grows for ever. Default: none.
    pub state: Option<PathBuf>,
    /// What to say of a submission made by another process, without `state`: `finished` or `absent`. Default: `finished`.
    pub unknown: Unknown,
    /// How often a worker looks, `1ms` to `1h`. Default: `20ms`.
    pub poll_interval: Period<1, 3_600_000>,
}

/// What to say of a submission nobody here made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// That it ended well.
    Finished,
    /// That it is not known.
    Absent,
}

impl Default for NoopConfig {
    fn default() -> Self {
        Self {
            run_for: Duration::ZERO,
            failure_ratio: 0.0,
            mode: SubmitMode::TwoPhase,
            ledger: None,
            state: None,
            unknown: Unknown::Finished,
            poll_interval: Period::new(Duration::from_millis(20)),
        }
    }
}

impl EngineSettings for NoopConfig {
    fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!((0.0..=1.0).contains(&self.failure_ratio), "failure_ratio must be 0 to 1");
        anyhow::ensure!(self.ledger.is_none() || self.state.is_none(), "state is a ledger: name one of them");
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mode: self.mode,
            reach: None,
            commands: false,
            exit_codes: ExitCodes::None,
            memory_limits: MemoryLimits::None,
            time_limits: TimeLimits::ByEngine,
            warns_on_cancel: false,
            logs: false,
            poll_interval: *self.poll_interval,
        }
    }

    fn is_bound_to_its_host(&self) -> bool {
        false
    }

    fn served_by(&self) -> ServedBy {
        ServedBy::FAR
    }

    /// Accepts every spec without engine options: nothing of it is used but the time limit.
    fn validate(&self, spec: &JobSpec) -> Result<(), SpecError> {
        refuse_unknown_options(spec, &[])
    }

    fn options(&self) -> Options {
        Some(BTreeMap::new())
    }

    fn open(&self, context: &EngineContext) -> anyhow::Result<Arc<dyn Engine>> {
        Ok(Arc::new(NoopEngine::new(self.clone(), context.clock.clone(), context.call_timeout)?))
    }
}

/// The engine.
#[derive(Debug)]
pub struct NoopEngine {
    config: NoopConfig,
    clock: Arc<dyn Clock>,
    memory: Memory,
    /// Sets the ids made here apart from those of any other process.
    origin: u32,
    serial: AtomicU64,
}

impl NoopEngine {
    /// An engine that has made nothing yet; what stands in a shared state counts as made by it. `patience`: how long
    /// another process may keep that state to itself.
    pub fn new(config: NoopConfig, clock: Arc<dyn Clock>, patience: Duration) -> anyhow::Result<Self> {
        let memory = match &config.state {
            Some(state) => Memory::shared(state, clock.clone(), patience)?,
            None => Memory::of_process(config.ledger.as_deref(), clock.clone())?,
        };
        Ok(Self { config, clock, memory, origin: rand::random(), serial: AtomicU64::new(1) })
    }

    fn begun(&self, created: DateTime<Utc>) -> What {
        What::Begun { created, at: self.clock.now() }
    }

    fn submission(id: &str) -> Submission {
        Submission { id: id.to_owned(), detail: serde_json::Value::Null, reach: None }
    }

    fn look(&self, tag: SubmissionTag, attempt: &Attempt) -> Sighting {
        match &attempt.phase {
            Phase::Inert => Sighting::Inert,
            Phase::Ended(end) => Sighting::Seen(end.clone()),
            Phase::Begun { since, wall } => Sighting::Seen(self.observe(tag, attempt, *since, *wall)),
        }
    }

    fn observe(
        &self,
        tag: SubmissionTag,
        attempt: &Attempt,
        since: Instant,
        wall: DateTime<Utc>,
    ) -> Observation {
        let limit = attempt.time_limit.filter(|limit| *limit < self.config.run_for);
        let length = limit.unwrap_or(self.config.run_for);
        if self.clock.monotonic() < since + length {
            return Observation::Running { since: Some(wall), reason: None };
        }
        let (ending, exit_code, reason) = if limit.is_some() {
            (Ending::TimedOut, None, Some("ran longer than its time limit".to_owned()))
        } else if fails(tag, self.config.failure_ratio) {
            (Ending::Failed, Some(1), Some("exit code 1".to_owned()))
        } else {
            (Ending::Finished, Some(0), None)
        };
        Observation::Ended { ending, exit_code, reason, began: Some(wall), at: Some(wall + length) }
    }

    /// How a cancel ends what has begun. If it finished first, the finish stands.
    fn end_by_cancel(
        &self,
        tag: SubmissionTag,
        attempt: &Attempt,
        since: Instant,
        wall: DateTime<Utc>,
    ) -> Observation {
        match self.observe(tag, attempt, since, wall) {
            ended @ Observation::Ended { .. } => ended,
            Observation::Pending { .. } | Observation::Running { .. } => Observation::Ended {
                ending: Ending::Canceled,
                exit_code: None,
                reason: Some("canceled".to_owned()),
                began: Some(wall),
                at: Some(self.clock.now()),
            },
        }
    }
}

/// Whether this attempt is one of the share that fails: the same answer in every process.
fn fails(tag: SubmissionTag, ratio: f64) -> bool {
    // The low half of an id is random; the attempt is mixed in so that a retry is another throw (splitmix64).
    let mut bits =
        tag.job.0.as_u64_pair().1.wrapping_add(u64::from(tag.attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    let share = f64::from(u32::try_from(bits >> 32).unwrap_or(u32::MAX)) / (f64::from(u32::MAX) + 1.0);
    share < ratio
}

fn ended_without_running(ending: Ending, exit_code: Option<i32>, reason: &str, at: DateTime<Utc>) -> What {
    let reason = Some(reason.to_owned());
    What::Ended(Observation::Ended { ending, exit_code, reason, began: None, at: Some(at) })
}

#[async_trait]
impl Engine for NoopEngine {
    fn capabilities(&self) -> Capabilities {
        self.config.capabilities()
    }

    fn validate(&self, spec: &JobSpec) -> Result<(), SpecError> {
        self.config.validate(spec)
    }

    async fn create(&self, job: &ToCreate) -> EngineResult<Submission> {
        let mut memory = self.memory.lock().await?;
        let unique = match self.config.mode {
            SubmitMode::TwoPhase | SubmitMode::UniqueName => true,
            SubmitMode::Fenced | SubmitMode::AtMostOnce => false,
        };
        let tag = job.tag;
        if memory.is_buried(tag) {
            return Err(EngineError::Refused("the name is not to be used any more".to_owned()));
        }
        if let Some(attempt) = memory.under(tag).last().filter(|_| unique) {
            return Ok(Self::submission(&attempt.id));
        }
        let at = self.clock.now();
        let id = format!("noop-{:08x}-{}", self.origin, self.serial.fetch_add(1, Ordering::Relaxed));
        let time_limit = job.spec.time_limit_seconds.map(Duration::from_secs);
        let next = match self.config.mode {
            SubmitMode::TwoPhase | SubmitMode::Fenced => None,
            SubmitMode::UniqueName | SubmitMode::AtMostOnce => Some(self.begun(at)),
        };
        let happened = std::iter::once(What::Created { at, time_limit }).chain(next);
        memory.tell(happened.map(|what| Event { tag, id: id.clone(), what }).collect())?;
        Ok(Self::submission(&id))
    }

    async fn start(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let mut memory = self.memory.lock().await?;
        if let Some(attempt) = memory.find(tag, submission)
            && matches!(attempt.phase, Phase::Inert)
        {
            // What was at the fence first has the token, whatever became of it.
            let taken = memory.under(tag).iter().any(Attempt::began);
            let what = if taken && self.config.mode == SubmitMode::Fenced {
                let why = "another submission of this attempt has its start token";
                ended_without_running(Ending::Failed, Some(125), why, self.clock.now())
            } else {
                self.begun(attempt.created_at)
            };
            let id = attempt.id.clone();
            memory.tell(vec![Event { tag, id, what }])?;
        }
        Ok(())
    }

    async fn poll(&self, submissions: &[(SubmissionTag, Submission)]) -> EngineResult<Vec<Sighting>> {
        let memory = self.memory.lock().await?;
        let look = |(tag, submission): &(SubmissionTag, Submission)| match memory.find(*tag, submission) {
            Some(attempt) => self.look(*tag, attempt),
            None => match self.config.unknown {
                Unknown::Finished if self.config.state.is_none() => {
                    let (ending, exit_code) = (Ending::Finished, Some(0));
                    let reason = Some("made by another process; said to have ended well".to_owned());
                    let end = Observation::Ended { ending, exit_code, reason, began: None, at: None };
                    Sighting::Seen(end)
                }
                Unknown::Finished | Unknown::Absent => Sighting::Absent,
            },
        };
        Ok(submissions.iter().map(look).collect())
    }

    async fn cancel(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let mut memory = self.memory.lock().await?;
        let Some(attempt) = memory.find(tag, submission) else { return Ok(()) };
        let what = match attempt.phase {
            Phase::Inert => {
                let why = "canceled before it began";
                ended_without_running(Ending::Canceled, None, why, self.clock.now())
            }
            Phase::Begun { since, wall } => What::Ended(self.end_by_cancel(tag, attempt, since, wall)),
            Phase::Ended(_) => return Ok(()),
        };
        let id = attempt.id.clone();
        memory.tell(vec![Event { tag, id, what }])
    }

    async fn discard(&self, tag: SubmissionTag, submission: Option<&Submission>) -> EngineResult<()> {
        let mut memory = self.memory.lock().await?;
        let (mut events, mut left) = (Vec::new(), false);
        for attempt in memory.under(tag) {
            let named = submission.is_none_or(|submission| submission.id == attempt.id);
            let what = match (&attempt.phase, self.config.mode) {
                (Phase::Inert, _) if named => Some(What::Removed),
                // It began without anybody recording it, and the promise is that it does not run.
                (Phase::Begun { since, wall }, SubmitMode::UniqueName | SubmitMode::AtMostOnce) if named => {
                    Some(What::Ended(self.end_by_cancel(tag, attempt, *since, *wall)))
                }
                (Phase::Inert | Phase::Begun { .. } | Phase::Ended(_), _) => None,
            };
            left |= what != Some(What::Removed);
            events.extend(what.map(|what| Event { tag, id: attempt.id.clone(), what }));
        }
        if self.config.mode == SubmitMode::UniqueName && !left {
            events.push(Event { tag, id: "-".to_owned(), what: What::Buried });
        }
        memory.tell(events)
    }

    async fn inert(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        let now = self.clock.monotonic();
        let memory = self.memory.lock().await?;
        let inert = memory.all().filter(|(_, attempt)| {
            matches!(attempt.phase, Phase::Inert) && now.duration_since(attempt.created) >= older_than
        });
        Ok(inert.map(|(tag, attempt)| (tag, Self::submission(&attempt.id))).collect())
    }

    async fn read_log(
        &self,
        _: SubmissionTag,
        _: &Submission,
        _: Stream,
        _: u64,
        _: usize,
    ) -> EngineResult<LogChunk> {
        Err(EngineError::Refused("nothing runs here, and nothing is printed".to_owned()))
    }

    async fn forget(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let mut memory = self.memory.lock().await?;
        let Some(attempt) = memory.find(tag, submission) else { return Ok(()) };
        let id = attempt.id.clone();
        memory.tell(vec![Event { tag, id, what: What::Removed }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobgate_shared::{
        clock,
        domain::{JobId, Project},
    };

    fn engine(config: NoopConfig) -> NoopEngine {
        NoopEngine::new(config, clock::system(), Duration::from_secs(1)).unwrap()
    }

    fn job() -> ToCreate {
        let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
        let spec = JobSpec { command: vec!["true".into()], ..JobSpec::default() };
        ToCreate { tag, project: Project::default_project(), name: "test".into(), spec }
    }

    fn ending(sighting: &Sighting) -> Option<Ending> {
        match sighting {
            Sighting::Seen(Observation::Ended { ending, .. }) => Some(*ending),
            Sighting::Seen(Observation::Pending { .. } | Observation::Running { .. })
            | Sighting::Inert
            | Sighting::Absent
            | Sighting::Unseen
            | Sighting::Gone { .. } => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_ends_when_its_time_has_passed_or_its_limit_has() {
        let engine = engine(NoopConfig { run_for: Duration::from_secs(5), ..NoopConfig::default() });
        let (plain, mut limited) = (job(), job());
        limited.spec.time_limit_seconds = Some(2);
        let mut all = Vec::new();
        for job in [&plain, &limited] {
            let submission = engine.create(job).await.unwrap();
            engine.start(job.tag, &submission).await.unwrap();
            all.push((job.tag, submission));
        }
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(engine.poll(&all).await.unwrap().iter().map(ending).collect::<Vec<_>>());
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        let (none, timed_out, finished) = (None, Some(Ending::TimedOut), Some(Ending::Finished));
        assert_eq!(seen, [[none, none], [none, timed_out], [none, timed_out], [finished, timed_out]]);
    }

    #[test]
    fn the_configured_share_of_attempts_fails_and_always_the_same_ones() {
        let tags: Vec<_> =
            (0..20_000).map(|_| SubmissionTag { job: JobId::generate(), attempt: 1 }).collect();
        let failed = tags.iter().filter(|tag| fails(**tag, 0.25)).count();
        assert!((4_600..5_400).contains(&failed), "{failed} of 20000");
        assert!(tags.iter().all(|tag| !fails(*tag, 0.0) && fails(*tag, 1.0)));
        let retried =
            tags.iter().filter(|tag| fails(**tag, 0.25)).map(|t| SubmissionTag { attempt: 2, ..*t });
        let again = retried.filter(|tag| fails(*tag, 0.25)).count();
        assert!((again * 3..again * 5).contains(&failed), "{again} of {failed} fail at the second throw");
    }

    #[tokio::test]
    async fn a_start_fence_lets_one_of_two_submissions_run_and_at_most_once_none_to_spare() {
        for (mode, runs) in
            [(SubmitMode::Fenced, 1), (SubmitMode::UniqueName, 2), (SubmitMode::AtMostOnce, 2)]
        {
            let engine = engine(NoopConfig { mode, ..NoopConfig::default() });
            let job = job();
            let both = [engine.create(&job).await.unwrap(), engine.create(&job).await.unwrap()];
            assert_eq!(both[0] == both[1], mode == SubmitMode::UniqueName, "{mode:?}");
            for submission in &both {
                engine.start(job.tag, submission).await.unwrap();
            }
            let sightings = engine.poll(&both.map(|submission| (job.tag, submission))).await.unwrap();
            let well = sightings.iter().filter(|s| ending(s) == Some(Ending::Finished)).count();
            assert_eq!(well, runs, "{mode:?}");
        }
    }

    #[tokio::test]
    async fn another_processs_submission_is_answered_as_configured() {
        let job = job();
        let submission = engine(NoopConfig::default()).create(&job).await.unwrap();
        for (unknown, said) in [(Unknown::Finished, Some(Ending::Finished)), (Unknown::Absent, None)] {
            let other = engine(NoopConfig { unknown, ..NoopConfig::default() });
            let sightings = other.poll(&[(job.tag, submission.clone())]).await.unwrap();
            assert_eq!(ending(&sightings[0]), said, "{sightings:?}");
        }
    }

    #[tokio::test]
    async fn with_a_shared_state_every_process_is_the_same_manager_in_every_mode() {
        for mode in [SubmitMode::TwoPhase, SubmitMode::UniqueName, SubmitMode::Fenced, SubmitMode::AtMostOnce]
        {
            let dir = tempfile::tempdir().unwrap();
            let state = Some(dir.path().join("state"));
            let another = || engine(NoopConfig { mode, state: state.clone(), ..NoopConfig::default() });
            let (one, other, job) = (another(), another(), job());
            let first = one.create(&job).await.unwrap();
            other.start(job.tag, &first).await.unwrap();
            let second = other.create(&job).await.unwrap();
            let named = matches!(mode, SubmitMode::TwoPhase | SubmitMode::UniqueName);
            assert_eq!(first == second, named, "{mode:?}");
            let begun = match mode {
                SubmitMode::AtMostOnce => 2,
                SubmitMode::TwoPhase | SubmitMode::UniqueName | SubmitMode::Fenced => 1,
            };
            let text = std::fs::read_to_string(state.as_ref().unwrap()).unwrap();
            let line = format!("{} ", job.tag);
            assert_eq!(text.lines().filter(|found| found.starts_with(&line)).count(), begun, "{text}");
            // One that was not there while it happened.
            let later = another();
            let seen = later.poll(&[(job.tag, first.clone())]).await.unwrap();
            assert_eq!(ending(&seen[0]), Some(Ending::Finished), "{mode:?}");
            later.forget(job.tag, &first).await.unwrap();
            assert_eq!(one.poll(&[(job.tag, first)]).await.unwrap(), [Sighting::Absent], "{mode:?}");
        }
    }

    #[tokio::test]
    async fn what_began_by_being_created_is_ended_by_a_discard() {
        let run_for = Duration::from_hours(1);
        for mode in [SubmitMode::UniqueName, SubmitMode::AtMostOnce] {
            let (engine, job) = (engine(NoopConfig { run_for, mode, ..NoopConfig::default() }), job());
            let submission = engine.create(&job).await.unwrap();
            engine.discard(job.tag, None).await.unwrap();
            let seen = engine.poll(&[(job.tag, submission)]).await.unwrap();
            assert_eq!(ending(&seen[0]), Some(Ending::Canceled), "{mode:?}");
        }
    }

    #[tokio::test]
    async fn a_name_that_was_discarded_stays_unusable_for_every_process() {
        let dir = tempfile::tempdir().unwrap();
        let state = Some(dir.path().join("state"));
        let another = || {
            let mode = SubmitMode::UniqueName;
            engine(NoopConfig { mode, state: state.clone(), ..NoopConfig::default() })
        };
        let job = job();
        another().discard(job.tag, None).await.unwrap();
        assert!(matches!(another().create(&job).await, Err(EngineError::Refused(_))));
    }
}
