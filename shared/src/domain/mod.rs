//! The domain: what a job is, which states it goes through, and the one function that moves it.
//!
//! Pure values and functions. Nothing here does I/O, reads a clock or knows a table, a queue or a resource manager.

#[cfg(test)]
mod diagram;
mod event;
#[cfg(test)]
mod every_fact;
mod history;
mod ids;
mod job;
mod object;
mod report;
#[cfg(test)]
mod samples;
mod spec;
mod state;
mod transition;
mod weight;

pub use event::{Ending, Observation, Seq, StatusEvent, Submission};
pub use history::{AttemptTimes, Deviation, HistoryEntry, derive_history};
pub use ids::{ClusterName, JobId, NameError, Project, Reach, SubmissionTag, TokenId, WorkerId};
pub use job::{Agreement, Document, IdempotencyKey, Job, Life, NewJob, RetryPolicy, identity_env};
pub use object::object;
pub use report::{Report, ReportRefusal, SelfReport};
pub use spec::{JobSpec, Resources, SpecError};
pub use state::{JobState, Phase};
pub use transition::{
    Change, Command, Fact, Outcome, POISON_LIMIT, Refusal, SUSPECT_AFTER, Standing, transition,
};
pub use weight::parsed_weight;
