//! The engine port: one resource manager, as the worker sees it.
//!
//! An engine performs; it decides nothing about jobs. It is asked to create a submission that does not run yet, to start
//! one that is recorded, to look at many, to cancel, and to remove what nobody recorded. What it sees of a submission is
//! an [`Observation`], never one of our states.
//!
//! Contract, held by the engine conformance suite:
//! * `create` under one tag, once or many times, from one process or many, runs nothing (where [`SubmitMode`] can say so).
//! * An id is never given twice: what is created under a tag after its last submission was forgotten has another id. (The
//!   model shows why: a create may arrive that late, and whoever still watches the id would start it again.)
//! * `start` is idempotent, from any process inside the reach; started and already ended count as started.
//! * `discard` makes sure that what it names never runs: what is inert goes, and what was started stays untouched. Where a
//!   submission begins by being created, it is ended: nobody recorded it, and a cancel is answered on this word.
//! * An error of kind [`EngineError::Away`] leaves the outcome unknown, and the same call can be made again.
//! * No call that does something takes longer than a third of the lease, and no look (`poll`, `inert`, `ended`, `read_log`)
//!   for ever: the engine cuts it off itself and answers `Away`.

use async_trait::async_trait;
use bytes::Bytes;
pub use jobgate_shared::logs::LogStream as Stream;

use jobgate_shared::domain::{JobSpec, Observation, Project, Reach, SpecError, Submission, SubmissionTag};
use serde::{Deserialize, Serialize};
use std::{fmt::Debug, time::Duration};

/// How an engine keeps one attempt from starting twice. The docs print the promise of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubmitMode {
    /// Create inert, record, start the recorded one only: exactly once, CANCELED means never.
    TwoPhase,
    /// The manager refuses a second submission of one name, and a tombstone keeps a canceled name from use: the same
    /// promise, as long as it remembers names.
    UniqueName,
    /// What is submitted waits at a fence of our own that a start opens, once, for the recorded submission: the same promise,
    /// at the price of losers that hold resources until they are discarded.
    Fenced,
    /// Neither is possible: never twice, but an attempt whose submit went unanswered is `LOST`.
    AtMostOnce,
}

/// Who ends a job whose time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeLimits {
    /// The resource manager, or the engine's own runner.
    ByEngine,
    /// Nobody but the watcher: it cancels and reports `TIMED_OUT`.
    ByWatcher,
}

/// What is told of a command that failed by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitCodes {
    /// That it failed, and never a code.
    None,
    /// Its code. A signal reads as a shell puts it, as an exit with 128 and its number.
    Codes,
    /// Its code; or the signal that ended it, and then no code.
    CodesAndSignals,
}

/// What becomes of a job that wants more memory than it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryLimits {
    /// Nothing: nobody holds it to that. An engine that runs commands on a worker's behalf refuses to be asked.
    None,
    /// It does not get it, and ends as its command then ends.
    Enforced,
    /// It does not get it, and an end for want of memory says so in its reason.
    Told,
}

/// What an engine can do. The conformance suite holds each declaration both ways: what is declared is done, and what is not
/// declared is not done by chance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Capabilities {
    /// How it submits.
    pub mode: SubmitMode,
    /// Where it can act, when not everywhere.
    pub reach: Option<Reach>,
    /// It runs the commands of specs. Where it does not, what is declared of them is about none.
    pub commands: bool,
    /// What is told of commands that fail.
    pub exit_codes: ExitCodes,
    /// Whether a job is held to the memory it asks for.
    pub memory_limits: MemoryLimits,
    /// Who enforces time limits.
    pub time_limits: TimeLimits,
    /// A running command that is canceled gets a SIGTERM and time to heed it, before it is killed.
    pub warns_on_cancel: bool,
    /// Standard output and error can be read; where they cannot, `read_log` answers `Refused`.
    pub logs: bool,
    /// How often a poll is worth making while jobs run.
    pub poll_interval: Duration,
}

/// Why an engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The manager is away, slow or overloaded. The outcome is unknown; ask again.
    #[error("the resource manager is away")]
    Away(#[source] anyhow::Error),
    /// The manager will never take this job; the text says why, to the job's owner.
    #[error("{0}")]
    Refused(String),
    /// The manager answers, did not do it, and may another time: a limit is reached that others' ends lift. The text says
    /// which, to the job's owner. Of a create: nothing was created.
    #[error("{0}")]
    NotNow(String),
}

/// The answer of an engine.
pub type EngineResult<T> = Result<T, EngineError>;

/// An attempt to create: what it is and what it is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ToCreate {
    /// What the manager shall know it by.
    pub tag: SubmissionTag,
    /// Whose it is.
    pub project: Project,
    /// The job's name.
    pub name: String,
    /// What to run.
    pub spec: JobSpec,
}

/// What a poll saw of one submission.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Sighting {
    /// The manager has it.
    Seen(Observation),
    /// Created and never started: start it (again).
    Inert,
    /// The manager answered, and does not know it. Not an end: it may know it again at the next poll.
    Absent,
    /// The look did not reach this one, though it reached others: nothing follows from it.
    Unseen,
    /// The engine has positive evidence that it is gone without an end (its host restarted, its runner was killed).
    Gone {
        /// The evidence, for people.
        evidence: String,
    },
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// What stands from the offset asked for; empty when nothing new does.
    pub bytes: Bytes,
    /// The job has ended and nothing will follow these bytes.
    pub last: bool,
}

/// The port.
#[async_trait]
pub trait Engine: Send + Sync + Debug {
    /// What it can do; does not change while it lives.
    fn capabilities(&self) -> Capabilities;

    /// Checks a spec when it is posted; runs in the API too, so it asks nobody.
    fn validate(&self, spec: &JobSpec) -> Result<(), SpecError>;

    /// Creates a submission that does not run, under its tag.
    async fn create(&self, job: &ToCreate) -> EngineResult<Submission>;

    /// Starts a recorded submission.
    async fn start(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()>;

    /// Looks at many submissions in one go; one sighting each, in order.
    async fn poll(&self, submissions: &[(SubmissionTag, Submission)]) -> EngineResult<Vec<Sighting>>;

    /// Returns when something may have ended since it was called, so that a poll ahead of the interval is worth making. A
    /// hint: it may come late, twice or not at all, and never comes from an engine that cannot tell.
    async fn stirred(&self) {
        std::future::pending::<()>().await;
    }

    /// Ends a recorded submission, begun or not; returns when the manager took the order, a poll tells when it is carried
    /// out. One that never began must never begin.
    async fn cancel(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()>;

    /// Makes sure an unrecorded attempt never runs: removes what was created under the tag (this submission only, when
    /// given) and leaves a tombstone where the mode needs one.
    async fn discard(&self, tag: SubmissionTag, submission: Option<&Submission>) -> EngineResult<()>;

    /// Inert submissions of ours the manager has had for at least `older_than`, for the sweep to judge.
    async fn inert(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>>;

    /// Submissions of ours that ended at least `older_than` ago and were never forgotten: their worker died between their
    /// end and the last of their logs. Engines that keep nothing have none.
    async fn ended(&self, _older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        Ok(Vec::new())
    }

    /// Up to `limit` bytes of a stream, from `offset`. Of a forgotten submission, and of any where there are no logs: `Refused`.
    async fn read_log(
        &self,
        tag: SubmissionTag,
        submission: &Submission,
        stream: Stream,
        offset: u64,
        limit: usize,
    ) -> EngineResult<LogChunk>;

    /// The row agrees that it ended and its logs are shipped: what is kept for it may go.
    async fn forget(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()>;
}
