//! What a gateway answers, as far as tables show it.
//!
//! Read with tolerance: a field a newer gateway adds is ignored, one an older gateway lacks is empty. Scripts that want
//! everything ask for JSON and get the answer as it came.

use chrono::{DateTime, Utc};
use jobgate_shared::domain::JobState;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// A job.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct JobDoc {
    /// Its identity.
    pub(crate) id: String,
    /// Where it stands; a name a newer gateway made up stays a name.
    pub(crate) state: String,
    /// For people.
    #[serde(default)]
    pub(crate) name: String,
    /// Whose it is.
    #[serde(default)]
    pub(crate) project: String,
    /// Where it runs.
    #[serde(default)]
    pub(crate) cluster: String,
    /// Why it stands there.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// Which attempt.
    #[serde(default)]
    pub(crate) attempt: u32,
    /// Of how many.
    #[serde(default)]
    pub(crate) max_attempts: u32,
    /// −100 to 100.
    #[serde(default)]
    pub(crate) priority: i16,
    /// Words to find it by.
    #[serde(default)]
    pub(crate) labels: Vec<String>,
    /// Percent done.
    #[serde(default)]
    pub(crate) progress: Option<f64>,
    /// What it is busy with.
    #[serde(default)]
    pub(crate) stage: Option<String>,
    /// What it says.
    #[serde(default)]
    pub(crate) message: Option<String>,
    /// What it ended with.
    #[serde(default)]
    pub(crate) exit_code: Option<i32>,
    /// What the resource manager calls it.
    #[serde(default)]
    pub(crate) submission_id: Option<String>,
    /// A cancel is on its way.
    #[serde(default)]
    pub(crate) cancel_requested: bool,
    /// Who posted it.
    #[serde(default)]
    pub(crate) created_by: String,
    /// When it was accepted.
    #[serde(default)]
    pub(crate) created_at: Option<DateTime<Utc>>,
    /// When it is to begin at the earliest.
    #[serde(default)]
    pub(crate) run_at: Option<DateTime<Utc>>,
    /// When it began to run.
    #[serde(default)]
    pub(crate) started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(default)]
    pub(crate) finished_at: Option<DateTime<Utc>>,
    /// What it runs.
    #[serde(default)]
    pub(crate) spec: Value,
    /// What was handed in.
    #[serde(default)]
    pub(crate) inputs: Value,
    /// What it handed out.
    #[serde(default)]
    pub(crate) outputs: Value,
}

impl JobDoc {
    /// The state, if this build knows it.
    pub(crate) fn known_state(&self) -> Option<JobState> {
        self.state.parse().ok()
    }

    /// It has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.known_state().is_some_and(JobState::is_terminal)
    }
}

/// A page of jobs.
#[derive(Debug, Deserialize)]
pub(crate) struct PageDoc {
    /// The jobs, as they came.
    pub(crate) items: Vec<Value>,
    /// Where the next page begins.
    #[serde(default)]
    pub(crate) next_cursor: Option<String>,
}

/// One change of a job.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct HistoryDoc {
    /// When.
    pub(crate) at: DateTime<Utc>,
    /// Of which attempt.
    #[serde(default)]
    pub(crate) attempt: u32,
    /// The state left.
    #[serde(default)]
    pub(crate) from: Option<String>,
    /// The state reached.
    pub(crate) to: String,
    /// Why.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// By whom.
    #[serde(default)]
    pub(crate) by: Option<String>,
}

/// The queue of one cluster.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct QueueDoc {
    /// The cluster.
    pub(crate) cluster: String,
    /// An operator stopped fresh jobs.
    #[serde(default)]
    pub(crate) paused: bool,
    /// Workers that serve it.
    #[serde(default)]
    pub(crate) workers: u64,
    /// How many jobs stand where.
    #[serde(default)]
    pub(crate) depths: Vec<DepthDoc>,
    /// The longest wait at each priority, if the token may know.
    #[serde(default)]
    pub(crate) oldest: Option<Vec<OldestDoc>>,
}

/// Jobs of one priority in one state.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct DepthDoc {
    /// The priority.
    pub(crate) priority: i16,
    /// The state.
    pub(crate) state: String,
    /// How many.
    pub(crate) jobs: u64,
}

impl DepthDoc {
    /// The state is one of these.
    pub(crate) fn is_in(&self, states: &[JobState]) -> bool {
        states.iter().any(|state| state.as_str() == self.state)
    }
}

/// The wait of the oldest due job of one priority.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct OldestDoc {
    /// The priority.
    pub(crate) priority: i16,
    /// How long it has waited.
    #[serde(default)]
    age_seconds: f64,
}

impl OldestDoc {
    /// How long it has waited.
    pub(crate) fn age(&self) -> Duration {
        Duration::try_from_secs_f64(self.age_seconds).unwrap_or_default()
    }
}

/// A cluster, and how it stands.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct ClusterDoc {
    /// Its name.
    pub(crate) name: String,
    /// What speaks to its resource manager.
    #[serde(default)]
    pub(crate) engine: String,
    /// How that keeps an attempt from starting twice.
    #[serde(default)]
    pub(crate) mode: String,
    /// Jobs that name no cluster go here.
    #[serde(default)]
    pub(crate) is_default: bool,
    /// An operator stopped fresh jobs.
    #[serde(default)]
    paused: bool,
    /// Who did.
    #[serde(default)]
    paused_by: Option<String>,
    /// Most jobs in flight at once.
    #[serde(default)]
    max_in_flight: Option<u32>,
    /// Workers that serve it.
    #[serde(default)]
    pub(crate) workers: Vec<String>,
    /// What is wrong with its manager, as workers see it.
    #[serde(default)]
    parked: Vec<ParkedDoc>,
}

/// What one worker sees wrong.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct ParkedDoc {
    #[serde(default)]
    reason: String,
}

impl ClusterDoc {
    /// How it stands, in words.
    pub(crate) fn state(&self) -> String {
        let paused =
            self.paused.then(|| format!("paused by {}", self.paused_by.as_deref().unwrap_or("somebody")));
        let mut reasons: Vec<&str> = self.parked.iter().map(|parked| parked.reason.as_str()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        let parked = reasons.into_iter().map(|reason| format!("parked: {reason}"));
        let limited = self.max_in_flight.map(|jobs| format!("at most {jobs} in flight"));
        let all: Vec<String> = paused.into_iter().chain(limited).chain(parked).collect();
        if all.is_empty() { "open".to_owned() } else { all.join("; ") }
    }
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct WorkerDoc {
    /// Its identity.
    pub(crate) id: String,
    /// Where it runs.
    #[serde(default)]
    pub(crate) host: String,
    /// Its lease has not ended.
    #[serde(default)]
    pub(crate) alive: bool,
    /// It takes no new work.
    #[serde(default)]
    pub(crate) draining: bool,
    /// Jobs it holds.
    #[serde(default)]
    pub(crate) jobs: u32,
    /// When it registered.
    #[serde(default)]
    pub(crate) registered_at: Option<DateTime<Utc>>,
    /// What it serves.
    #[serde(default)]
    pub(crate) clusters: Vec<ServedDoc>,
}

/// A cluster as one worker serves it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct ServedDoc {
    /// The cluster.
    pub(crate) name: String,
    /// What is wrong with its manager.
    #[serde(default)]
    pub(crate) parked: Option<String>,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct TokenDoc {
    /// Its public half.
    pub(crate) id: String,
    /// For people.
    #[serde(default)]
    pub(crate) name: String,
    /// The project it opens.
    #[serde(default)]
    pub(crate) project: String,
    /// The cluster it works for.
    #[serde(default)]
    pub(crate) cluster: Option<String>,
    /// What it allows.
    #[serde(default)]
    pub(crate) roles: Vec<String>,
    /// Who made it.
    #[serde(default)]
    pub(crate) created_by: String,
    /// When.
    #[serde(default)]
    pub(crate) created_at: Option<DateTime<Utc>>,
    /// When it ends.
    #[serde(default)]
    pub(crate) expires_at: Option<DateTime<Utc>>,
}
