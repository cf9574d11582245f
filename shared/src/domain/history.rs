//! How a job came to stand where it stands.
//!
//! The happy path is derived from the times of the row; only a deviation (a hold, a cancel, an adoption, a bad end, a
//! retry) is stored. That is what keeps a job's whole life inside a few hundred bytes of write-ahead log.

use super::{Job, JobState, Life};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// One change of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HistoryEntry {
    /// When.
    pub at: DateTime<Utc>,
    /// The attempt it belongs to.
    pub attempt: u32,
    /// The state left; absent for the first.
    pub from: Option<JobState>,
    /// The state reached.
    pub to: JobState,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who caused it: `token:…`, `worker:…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The happy path of an attempt, as far as it had come when the row forgot it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptTimes {
    /// Which attempt.
    pub attempt: u32,
    /// When a worker took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_at: Option<DateTime<Utc>>,
    /// When its submission was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitted_at: Option<DateTime<Utc>>,
    /// When it began to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<DateTime<Utc>>,
}

impl From<&Life> for AttemptTimes {
    fn from(life: &Life) -> Self {
        Self {
            attempt: life.attempt,
            claimed_at: life.claimed_at,
            submitted_at: life.submitted_at,
            started_at: life.started_at,
        }
    }
}

/// A stored change: anything but a step of the happy path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deviation {
    /// The change as history shows it.
    #[serde(flatten)]
    pub entry: HistoryEntry,
    /// The happy-path times the attempt had reached, when this change erases them from the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<AttemptTimes>,
}

/// The whole history of `job`, oldest first: its stored deviations and what its times tell.
pub fn derive_history(job: &Job, deviations: &[Deviation]) -> Vec<HistoryEntry> {
    let first = if starts_held(deviations, &job.life) { JobState::Held } else { JobState::Initialized };
    let mut entries = vec![job.acceptance(first)];
    let worker = job.life.owner.map(|w| format!("worker:{w}"));
    for deviation in deviations {
        if let Some(times) = &deviation.times {
            entries.extend(steps(times, None));
        }
        entries.push(deviation.entry.clone());
    }
    entries.extend(steps(&AttemptTimes::from(&job.life), worker.as_deref()));
    if let (JobState::Finished, Some(at)) = (job.life.state, job.life.finished_at) {
        let (attempt, reason) = (job.life.attempt, job.life.reason.clone());
        entries.push(HistoryEntry { at, attempt, from: None, to: JobState::Finished, reason, by: worker });
    }
    // Stable: entries of one instant keep the order they were derived in, except that an end comes last.
    entries.sort_by_key(|e| (e.attempt, e.to.is_terminal(), e.at));
    link(&mut entries);
    entries
}

fn starts_held(deviations: &[Deviation], life: &Life) -> bool {
    match deviations.first() {
        Some(first) => first.entry.from == Some(JobState::Held),
        None => life.state == JobState::Held,
    }
}

fn steps(times: &AttemptTimes, by: Option<&str>) -> Vec<HistoryEntry> {
    let reached = [
        (times.claimed_at, JobState::Claimed),
        (times.submitted_at, JobState::Pending),
        (times.started_at, JobState::Running),
    ];
    let entry = |(at, to): (Option<DateTime<Utc>>, JobState)| {
        let by = by.map(str::to_owned);
        at.map(|at| HistoryEntry { at, attempt: times.attempt, from: None, to, reason: None, by })
    };
    reached.into_iter().filter_map(entry).collect()
}

/// Fills in the state each derived step left: the one the entry before it reached.
fn link(entries: &mut [HistoryEntry]) {
    let mut before = None;
    for entry in entries {
        if entry.from.is_none() {
            entry.from = before;
        }
        before = Some(entry.to);
    }
}
