//! What workers and recorders tell the rows, and what they are answered.

use crate::domain::{ClusterName, Job, JobId, Refusal, Submission};
use std::time::Duration;

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
