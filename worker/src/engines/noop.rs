//! The engine that runs nothing, for measuring and testing what stands around it.
//!
//! Submissions live in this process's memory and end by themselves after a configured time. In [`SubmitMode::TwoPhase`] a
//! submission begins when started; in the other modes `create` submits and it begins at once, as it would with a resource
//! manager that cannot create inert, and `start` does nothing. Every create makes another id, except that one under a tag
//! whose submission is still known finds that one, where the mode promises so.
//!
//! Another process knows nothing of a submission made here; it answers as configured: that it ended well, which lets
//! adopted jobs end, or that it is absent.

use super::refuse_unknown_options;
use crate::engine::{
    Capabilities, Engine, EngineError, EngineResult, LogChunk, Sighting, Stream, SubmitMode, TimeLimits,
    ToCreate,
};
use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use jobgate_shared::{
    clock::Clock,
    domain::{Ending, JobSpec, Observation, SpecError, Submission, SubmissionTag},
    settings::{self, Period},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    /// What to say of a submission made by another process: `finished` or `absent`. Default: `finished`.
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
            unknown: Unknown::Finished,
            poll_interval: Period::new(Duration::from_millis(20)),
        }
    }
}

impl NoopConfig {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!((0.0..=1.0).contains(&self.failure_ratio), "failure_ratio must be 0 to 1");
        Ok(())
    }
}

/// Accepts every spec without engine options: nothing of it is used but the time limit.
pub(super) fn validate(spec: &JobSpec) -> Result<(), SpecError> {
    refuse_unknown_options(spec, &[])
}

/// The engine.
#[derive(Debug)]
pub struct NoopEngine {
    config: NoopConfig,
    clock: Arc<dyn Clock>,
    ledger: Option<File>,
    /// Sets the ids made here apart from those of any other process.
    origin: u32,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    serial: u64,
    tags: HashMap<SubmissionTag, Vec<Attempt>>,
    /// Names that may not be used any more ([`SubmitMode::UniqueName`]).
    tombstones: std::collections::HashSet<SubmissionTag>,
}

#[derive(Debug)]
struct Attempt {
    id: String,
    created: Instant,
    created_at: DateTime<Utc>,
    time_limit: Option<Duration>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Inert,
    Begun { since: Instant, wall: DateTime<Utc> },
    Ended(Observation),
}

impl NoopEngine {
    /// An engine that has made nothing yet.
    pub fn new(config: NoopConfig, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let open = |path: &PathBuf| {
            let file = OpenOptions::new().append(true).create(true).open(path);
            file.with_context(|| format!("ledger {}", path.display()))
        };
        let ledger = config.ledger.as_ref().map(open).transpose()?;
        Ok(Self { config, clock, ledger, origin: rand::random(), held: Mutex::default() })
    }

    /// A panic elsewhere leaves nothing half done in here.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attempt begins: its line is in the ledger before anyone can see that it has.
    fn begin(&self, tag: SubmissionTag, id: &str, created: DateTime<Utc>) -> EngineResult<Phase> {
        let wall = self.clock.now();
        if let Some(mut ledger) = self.ledger.as_ref() {
            let (created, begun) = (created.timestamp_micros(), wall.timestamp_micros());
            let line = format!("{tag} {id} {created} {begun}\n");
            ledger.write_all(line.as_bytes()).context("ledger").map_err(EngineError::Away)?;
        }
        Ok(Phase::Begun { since: self.clock.monotonic(), wall })
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

fn ended_without_running(ending: Ending, exit_code: Option<i32>, reason: &str, at: DateTime<Utc>) -> Phase {
    let reason = Some(reason.to_owned());
    Phase::Ended(Observation::Ended { ending, exit_code, reason, began: None, at: Some(at) })
}

#[async_trait]
impl Engine for NoopEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mode: self.config.mode,
            reach: None,
            time_limits: TimeLimits::ByEngine,
            logs: false,
            poll_interval: *self.config.poll_interval,
        }
    }

    fn validate(&self, spec: &JobSpec) -> Result<(), SpecError> {
        validate(spec)
    }

    async fn create(&self, job: &ToCreate) -> EngineResult<Submission> {
        let mut held = self.held();
        let unique = match self.config.mode {
            SubmitMode::TwoPhase | SubmitMode::UniqueName => true,
            SubmitMode::Fenced | SubmitMode::AtMostOnce => false,
        };
        if held.tombstones.contains(&job.tag) {
            return Err(EngineError::Refused("the name is not to be used any more".to_owned()));
        }
        let before = held.tags.get(&job.tag).and_then(|attempts| attempts.last());
        if let Some(attempt) = before.filter(|_| unique) {
            return Ok(Self::submission(&attempt.id));
        }
        let fenced_off = before.is_some();
        held.serial += 1;
        let created_at = self.clock.now();
        let id = format!("noop-{:08x}-{}", self.origin, held.serial);
        let phase = match (self.config.mode, fenced_off) {
            (SubmitMode::TwoPhase, _) => Phase::Inert,
            (SubmitMode::Fenced, true) => {
                let why = "another submission of this attempt has its start token";
                ended_without_running(Ending::Failed, Some(125), why, self.clock.now())
            }
            (SubmitMode::UniqueName | SubmitMode::AtMostOnce | SubmitMode::Fenced, _) => {
                self.begin(job.tag, &id, created_at)?
            }
        };
        let submission = Self::submission(&id);
        let time_limit = job.spec.time_limit_seconds.map(Duration::from_secs);
        let attempt = Attempt { id, created: self.clock.monotonic(), created_at, time_limit, phase };
        held.tags.entry(job.tag).or_default().push(attempt);
        Ok(submission)
    }

    async fn start(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let mut held = self.held();
        if let Some(attempt) = held.find(tag, submission)
            && matches!(attempt.phase, Phase::Inert)
        {
            attempt.phase = self.begin(tag, &attempt.id, attempt.created_at)?;
        }
        Ok(())
    }

    async fn poll(&self, submissions: &[(SubmissionTag, Submission)]) -> EngineResult<Vec<Sighting>> {
        let mut held = self.held();
        let look = |(tag, submission): &(SubmissionTag, Submission)| match held.find(*tag, submission) {
            Some(attempt) => self.look(*tag, attempt),
            None => match self.config.unknown {
                Unknown::Absent => Sighting::Absent,
                Unknown::Finished => {
                    let (ending, exit_code) = (Ending::Finished, Some(0));
                    let reason = Some("made by another process; said to have ended well".to_owned());
                    let end = Observation::Ended { ending, exit_code, reason, began: None, at: None };
                    Sighting::Seen(end)
                }
            },
        };
        Ok(submissions.iter().map(look).collect())
    }

    async fn cancel(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let mut held = self.held();
        let Some(attempt) = held.find(tag, submission) else { return Ok(()) };
        match attempt.phase {
            Phase::Inert => {
                let why = "canceled before it began";
                attempt.phase = ended_without_running(Ending::Canceled, None, why, self.clock.now());
            }
            Phase::Begun { since, wall } => {
                // If it finished first, the finish stands.
                attempt.phase = Phase::Ended(match self.observe(tag, attempt, since, wall) {
                    ended @ Observation::Ended { .. } => ended,
                    Observation::Pending { .. } | Observation::Running { .. } => Observation::Ended {
                        ending: Ending::Canceled,
                        exit_code: None,
                        reason: Some("canceled".to_owned()),
                        began: Some(wall),
                        at: Some(self.clock.now()),
                    },
                });
            }
            Phase::Ended(_) => {}
        }
        Ok(())
    }

    async fn discard(&self, tag: SubmissionTag, submission: Option<&Submission>) -> EngineResult<()> {
        let mut held = self.held();
        if let Some(attempts) = held.tags.get_mut(&tag) {
            let named = |attempt: &Attempt| submission.is_none_or(|submission| submission.id == attempt.id);
            attempts.retain(|attempt| !(named(attempt) && matches!(attempt.phase, Phase::Inert)));
            if attempts.is_empty() {
                held.tags.remove(&tag);
            }
        }
        if self.config.mode == SubmitMode::UniqueName && !held.tags.contains_key(&tag) {
            held.tombstones.insert(tag);
        }
        Ok(())
    }

    async fn inert(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        let now = self.clock.monotonic();
        let held = self.held();
        let all = held.tags.iter().flat_map(|(tag, attempts)| attempts.iter().map(|a| (*tag, a)));
        let inert = all.filter(|(_, attempt)| {
            matches!(attempt.phase, Phase::Inert) && now.duration_since(attempt.created) >= older_than
        });
        Ok(inert.map(|(tag, attempt)| (tag, Self::submission(&attempt.id))).collect())
    }

    async fn read_log(
        &self,
        tag: SubmissionTag,
        submission: &Submission,
        _stream: Stream,
        _offset: u64,
        _limit: usize,
    ) -> EngineResult<LogChunk> {
        let mut held = self.held();
        let Some(attempt) = held.find(tag, submission) else {
            return Err(EngineError::Refused("it is not known any more".to_owned()));
        };
        let last = match self.look(tag, attempt) {
            Sighting::Seen(Observation::Ended { .. }) => true,
            Sighting::Seen(Observation::Pending { .. } | Observation::Running { .. })
            | Sighting::Inert
            | Sighting::Absent
            | Sighting::Gone { .. } => false,
        };
        Ok(LogChunk { bytes: Bytes::new(), last })
    }

    async fn forget(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let mut held = self.held();
        if let Some(attempts) = held.tags.get_mut(&tag) {
            attempts.retain(|attempt| attempt.id != submission.id);
            if attempts.is_empty() {
                held.tags.remove(&tag);
            }
        }
        Ok(())
    }
}

impl Held {
    fn find(&mut self, tag: SubmissionTag, submission: &Submission) -> Option<&mut Attempt> {
        self.tags.get_mut(&tag)?.iter_mut().find(|attempt| attempt.id == submission.id)
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
        NoopEngine::new(config, clock::system()).unwrap()
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
}
