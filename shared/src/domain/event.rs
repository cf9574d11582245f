//! What is told about an attempt: observations of a resource manager, carried by status events.

use super::{JobId, JobState, Reach, WorkerId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// What the resource manager calls an attempt, as recorded write-once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Submission {
    /// The manager's own id, opaque to us; events quote it.
    pub id: String,
    /// What the engine needs beside the id to find it again (a submit time, a uid); opaque outside the engine.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub detail: serde_json::Value,
    /// Where it can be acted on, when not everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<Reach>,
}

/// How an attempt ended.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Ending {
    /// Exit code 0.
    Finished,
    /// Another exit code, a signal, or never could be started.
    Failed,
    /// Ended because a cancel was asked for.
    Canceled,
    /// Ended because its time was up.
    TimedOut,
    /// Positively without a trace at the resource manager.
    Lost,
}

impl Ending {
    /// The terminal state it leads to when no attempt is left.
    pub fn state(self) -> JobState {
        match self {
            Self::Finished => JobState::Finished,
            Self::Failed => JobState::Failed,
            Self::Canceled => JobState::Canceled,
            Self::TimedOut => JobState::TimedOut,
            Self::Lost => JobState::Lost,
        }
    }
}

/// What a resource manager shows of one submission.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "seen", rename_all = "snake_case")]
pub enum Observation {
    /// It has the submission and has not begun it.
    Pending {
        /// Why it waits, in the manager's words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// It runs.
    Running {
        /// Since when, if the manager tells.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<DateTime<Utc>>,
        /// Anything worth showing beside the state (a requeue, a phase).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// It is over.
    Ended {
        /// How.
        ending: Ending,
        /// The exit code, where there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// Why, in words for people: "exit code 3", "killed by signal 9", "out of memory".
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Since when it had run, if the manager tells.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        began: Option<DateTime<Utc>>,
        /// When it ended, if the manager tells.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<DateTime<Utc>>,
    },
}

/// Counts the events of one watcher about one attempt.
pub type Seq = u32;

/// A fact about an attempt, told by whoever watches it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StatusEvent {
    /// The job.
    pub job: JobId,
    /// The attempt it is about.
    pub attempt: u32,
    /// The epoch of the claim under which it was seen.
    pub epoch: u32,
    /// Its place among the events of that epoch.
    pub seq: Seq,
    /// Who saw it.
    pub by: WorkerId,
    /// The submission it is about; absent only when none was ever recorded (the create was refused).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submission: Option<String>,
    /// What was seen.
    pub observation: Observation,
    /// When, by the watcher's clock: data, never a lease.
    pub at: DateTime<Utc>,
}
