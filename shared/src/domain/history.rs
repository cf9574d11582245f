//! How a job came to stand where it stands.
//!
//! The happy path is derived from the times of the row; only a deviation (a hold, a cancel, an adoption, a bad end, a
//! retry) is stored. That is what keeps a job's whole life inside a few hundred bytes of write-ahead log.

use super::{Job, JobState, Life, Phase, WorkerId};
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

/// The happy path of an attempt, as far as it had come when the row forgot it, or forgot who had taken it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptTimes {
    /// Which attempt.
    pub attempt: u32,
    /// Who had it; nobody, once handed back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
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
            worker: life.owner.filter(|owner| *owner != WorkerId::NOBODY),
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
    /// The happy path as far as the attempt had come, when this change erases it from the row or gives the job to
    /// somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<AttemptTimes>,
}

/// The whole history of `job`, oldest first: its stored deviations, in the order they were stored, and what its times
/// tell. Times of several clocks meet here, so what comes before what follows from the states, not from the times.
pub fn derive_history(job: &Job, deviations: &[Deviation]) -> Vec<HistoryEntry> {
    let first = if starts_held(deviations, &job.life) { JobState::Held } else { JobState::Initialized };
    let mut history = Derivation { entries: vec![job.acceptance(first)], told: Phase::Waiting };
    let now = AttemptTimes::from(&job.life);
    for (index, deviation) in deviations.iter().enumerate() {
        // Whatever of the happy path came before this change is told by the next change that kept it, or by the row.
        let times = deviations[index..].iter().find_map(|d| d.times.as_ref()).unwrap_or(&now);
        let left = deviation.entry.from.map_or(Phase::Waiting, JobState::phase);
        let waits_again = deviation.entry.to.phase() == Phase::Waiting;
        let reached = match left {
            // Nobody had it, or all is told.
            Phase::Waiting | Phase::Ended => Phase::Waiting,
            // Before an end, a hand-back or a retry came all there was of this claim.
            Phase::Claimed | Phase::Pending | Phase::Running
                if waits_again || deviation.entry.to.is_terminal() =>
            {
                Phase::Ended
            }
            Phase::Claimed | Phase::Pending | Phase::Running => left,
        };
        history.tell_steps(times, reached);
        history.entries.push(deviation.entry.clone());
        if waits_again {
            history.told = Phase::Waiting;
        }
    }
    history.tell_steps(&now, Phase::Ended);
    if let (JobState::Finished, Some(at)) = (job.life.state, job.life.finished_at) {
        let (attempt, reason, by) = (job.life.attempt, job.life.reason.clone(), now.told_by());
        history.entries.push(HistoryEntry { at, attempt, from: None, to: JobState::Finished, reason, by });
    }
    link(&mut history.entries);
    history.entries
}

fn starts_held(deviations: &[Deviation], life: &Life) -> bool {
    match deviations.first() {
        Some(first) => first.entry.from == Some(JobState::Held),
        None => life.state == JobState::Held,
    }
}

/// A history being put together.
struct Derivation {
    entries: Vec<HistoryEntry>,
    /// How far the happy path of the claim at hand is told.
    told: Phase,
}

impl Derivation {
    /// Tells the steps not yet told, up to `reached`.
    fn tell_steps(&mut self, times: &AttemptTimes, reached: Phase) {
        let steps = [
            (times.claimed_at, JobState::Claimed),
            (times.submitted_at, JobState::Pending),
            (times.started_at, JobState::Running),
        ];
        for (at, to) in steps {
            let Some(at) = at.filter(|_| self.told < to.phase() && to.phase() <= reached) else { continue };
            self.told = to.phase();
            let (attempt, by) = (times.attempt, times.told_by());
            self.entries.push(HistoryEntry { at, attempt, from: None, to, reason: None, by });
        }
    }
}

impl AttemptTimes {
    fn told_by(&self) -> Option<String> {
        self.worker.map(|worker| format!("worker:{worker}"))
    }
}

/// Every entry left the state the one before it reached.
fn link(entries: &mut [HistoryEntry]) {
    let mut before = None;
    for entry in entries {
        entry.from = before;
        before = Some(entry.to);
    }
}

#[cfg(test)]
mod tests;
