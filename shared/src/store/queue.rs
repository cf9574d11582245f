//! How jobs stand in line, and what is hinted of them.

use crate::domain::{ClusterName, JobId, JobState, Project, Reach, WorkerId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How many jobs stand in one place. Read from appended deltas, never by counting rows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Depth {
    /// Whose.
    pub project: Project,
    /// The cluster.
    pub cluster: ClusterName,
    /// The priority.
    pub priority: i16,
    /// The state.
    pub state: JobState,
    /// How many.
    pub jobs: u64,
}

/// How long the oldest due job of a queue has waited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oldest {
    /// The cluster.
    pub cluster: ClusterName,
    /// The priority.
    pub priority: i16,
    /// Since when its oldest job is due.
    pub due_since: DateTime<Utc>,
}

/// The hints of a cluster's due waiting jobs. Few jobs carry one (the dispatcher sees to that), so counting them stays
/// cheap whatever waits unhinted behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hinted {
    /// The cluster.
    pub cluster: ClusterName,
    /// Jobs whose hint is still good.
    pub outstanding: u64,
    /// Jobs whose hint ran out and that nobody has claimed.
    pub expired: u64,
    /// How many of its jobs may be claimed now, where an operator limits how many are in flight.
    pub room: Option<u32>,
}

/// A due job to hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The job.
    pub job: JobId,
    /// It may be what kills workers: hint it alone.
    pub suspect: bool,
    /// It was hinted before, and that hint ran out.
    pub again: bool,
    /// How long it has been due, by the store's clock.
    pub waited: Duration,
}

/// A stranded job to hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrandedJob {
    /// The job.
    pub job: JobId,
    /// It may be what kills workers: hint it alone.
    pub suspect: bool,
}

/// Jobs somebody had and nobody has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranded {
    /// Their cluster.
    pub cluster: ClusterName,
    /// Where they can be adopted, when not everywhere.
    pub reach: Option<Reach>,
    /// Who had them; [`WorkerId::NOBODY`] when handed back.
    pub owner: WorkerId,
    /// The jobs, with whether each must be claimed alone.
    pub jobs: Vec<StrandedJob>,
}

/// A stranded job nobody can adopt: no worker acts where its submission lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vanished {
    /// The job.
    pub job: JobId,
    /// Since when nobody can reach it.
    pub since: DateTime<Utc>,
}
