//! The states we hold a job in. What a resource manager reports is another type ([`super::Observation`]).

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Where a job stands.
///
/// `HELD ⇄ INITIALIZED → CLAIMED → PENDING → RUNNING → FINISHED | FAILED | CANCELED | TIMED_OUT | LOST`
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobState {
    /// Waits until somebody releases it.
    Held,
    /// Waits for a worker, for its time to run, or for its next attempt.
    Initialized,
    /// A worker has it; no submission is recorded.
    Claimed,
    /// The resource manager has it and has not begun it.
    Pending,
    /// It runs.
    Running,
    /// It ended well.
    Finished,
    /// It ended badly, or could not be submitted.
    Failed,
    /// It will not run any more, because somebody said so.
    Canceled,
    /// It was ended because its time was up.
    TimedOut,
    /// Its resource manager has positively no trace of it; what it did is unknown.
    Lost,
}

/// The coarse order of states within one attempt; a later phase is never left for an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// In our hands only.
    Waiting,
    /// In a worker's hands.
    Claimed,
    /// In the resource manager's hands, not begun.
    Pending,
    /// Begun.
    Running,
    /// Over.
    Ended,
}

impl JobState {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 10] = [
        Self::Held,
        Self::Initialized,
        Self::Claimed,
        Self::Pending,
        Self::Running,
        Self::Finished,
        Self::Failed,
        Self::Canceled,
        Self::TimedOut,
        Self::Lost,
    ];

    /// The name users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "HELD",
            Self::Initialized => "INITIALIZED",
            Self::Claimed => "CLAIMED",
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Canceled => "CANCELED",
            Self::TimedOut => "TIMED_OUT",
            Self::Lost => "LOST",
        }
    }

    /// The number stores hold instead of the name; fixed for ever.
    pub fn code(self) -> i16 {
        match self {
            Self::Held => 0,
            Self::Initialized => 1,
            Self::Claimed => 2,
            Self::Pending => 3,
            Self::Running => 4,
            Self::Finished => 5,
            Self::Failed => 6,
            Self::Canceled => 7,
            Self::TimedOut => 8,
            Self::Lost => 9,
        }
    }

    /// The state a stored number means.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.code() == code)
    }

    /// The phase this state belongs to.
    pub fn phase(self) -> Phase {
        match self {
            Self::Held | Self::Initialized => Phase::Waiting,
            Self::Claimed => Phase::Claimed,
            Self::Pending => Phase::Pending,
            Self::Running => Phase::Running,
            Self::Finished | Self::Failed | Self::Canceled | Self::TimedOut | Self::Lost => Phase::Ended,
        }
    }

    /// No attempt is left; nothing but a manual retry leaves it.
    pub fn is_terminal(self) -> bool {
        self.phase() == Phase::Ended
    }

    /// Some worker has it, or had it and died.
    pub fn is_owned(self) -> bool {
        matches!(self.phase(), Phase::Claimed | Phase::Pending | Phase::Running)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|state| state.as_str() == s).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_reads_back_from_its_name_and_its_code() {
        for state in JobState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
            assert_eq!(JobState::from_code(state.code()), Some(state));
        }
        assert_eq!(JobState::from_code(10), None);
    }
}
