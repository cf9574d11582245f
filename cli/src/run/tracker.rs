//! Where every job of a run stands, as far as it has been heard. Pure: told answers and events, it counts.
//!
//! Answers and events come over different connections and overtake each other; what is later in a life wins.

use crate::client::JobDoc;
use jobgate_shared::domain::{JobState, Phase};
use std::collections::HashMap;

/// What is known of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) name: String,
    pub(super) state: JobState,
    pub(super) attempt: u32,
    pub(super) reason: Option<String>,
}

/// How many jobs stand where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) waiting: u64,
    pub(super) running: u64,
    pub(super) finished: u64,
    /// Ended in any other way.
    pub(super) unwell: u64,
}

/// The jobs of one run.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    jobs: HashMap<String, Standing>,
    /// Heard of before the answer that says it is ours.
    early: HashMap<String, (JobState, u32, Option<String>)>,
    /// Every job of ours is known: events about others need not be kept.
    settled: bool,
    counts: Counts,
}

impl Counts {
    fn of(&mut self, state: JobState) -> &mut u64 {
        match state {
            JobState::Finished => &mut self.finished,
            JobState::Failed | JobState::Canceled | JobState::TimedOut | JobState::Lost => &mut self.unwell,
            JobState::Running => &mut self.running,
            JobState::Held | JobState::Initialized | JobState::Claimed | JobState::Pending => {
                &mut self.waiting
            }
        }
    }

    /// Jobs that have ended.
    pub(super) fn ended(self) -> u64 {
        self.finished + self.unwell
    }

    /// All jobs.
    pub(super) fn all(self) -> u64 {
        self.ended() + self.waiting + self.running
    }
}

/// Orders what is heard about one job.
fn place_in_life(attempt: u32, state: JobState) -> (u32, Phase) {
    (attempt, state.phase())
}

impl Tracker {
    /// A job of this run, as the gateway answered. Returns where it stands if it has ended.
    pub(super) fn answered(&mut self, job: &JobDoc) -> Option<&Standing> {
        let state = job.known_state()?;
        if !self.jobs.contains_key(&job.id) {
            let standing =
                Standing { name: job.name.clone(), state, attempt: job.attempt, reason: job.reason.clone() };
            *self.counts.of(state) += 1;
            self.jobs.insert(job.id.clone(), standing);
            if let Some((state, attempt, reason)) = self.early.remove(&job.id) {
                self.heard(&job.id, state, attempt, reason);
            }
            let known = &self.jobs[&job.id];
            return known.state.is_terminal().then_some(known);
        }
        self.heard(&job.id, state, job.attempt, job.reason.clone())
    }

    /// An event about any job. Returns where it stands if that made it end.
    pub(super) fn heard(
        &mut self,
        id: &str,
        state: JobState,
        attempt: u32,
        reason: Option<String>,
    ) -> Option<&Standing> {
        let Some(known) = self.jobs.get_mut(id) else {
            if !self.settled {
                self.early.insert(id.to_owned(), (state, attempt, reason));
            }
            return None;
        };
        let (old, new) = (place_in_life(known.attempt, known.state), place_in_life(attempt, state));
        // Held and released are the one way back, within the first phase.
        if new < old || (new == old && known.state == state) {
            return None;
        }
        *self.counts.of(known.state) -= 1;
        *self.counts.of(state) += 1;
        let ended = state.is_terminal() && !known.state.is_terminal();
        (known.state, known.attempt, known.reason) = (state, attempt, reason);
        ended.then_some(&*known)
    }

    /// Every answer has been told; what is heard of other jobs from now on is forgotten.
    pub(super) fn settle(&mut self) {
        self.settled = true;
        self.early = HashMap::new();
    }

    /// Where the jobs stand.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Ids of the jobs that have not ended, as far as is known.
    pub(super) fn unended(&self) -> Vec<String> {
        self.jobs.iter().filter(|(_, job)| !job.state.is_terminal()).map(|(id, _)| id.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: &str, state: &str, attempt: u32) -> JobDoc {
        serde_json::from_value(serde_json::json!({"id": id, "state": state, "attempt": attempt, "name": id}))
            .unwrap()
    }

    #[test]
    fn an_event_that_overtakes_the_answer_counts() {
        let mut tracker = Tracker::default();
        assert!(tracker.heard("a", JobState::Finished, 1, None).is_none(), "not known to be ours");
        assert!(tracker.answered(&answer("a", "INITIALIZED", 1)).is_some(), "it had ended already");
        assert_eq!(tracker.counts(), Counts { finished: 1, ..Counts::default() });
    }

    #[test]
    fn what_is_later_in_a_life_wins_and_an_end_is_told_once() {
        let mut tracker = Tracker::default();
        assert!(tracker.answered(&answer("a", "INITIALIZED", 1)).is_none());
        assert!(tracker.heard("a", JobState::Running, 1, None).is_none());
        tracker.heard("a", JobState::Claimed, 1, None);
        assert_eq!(tracker.counts(), Counts { running: 1, ..Counts::default() });
        // A retry begins the next attempt from the front.
        tracker.heard("a", JobState::Initialized, 2, Some("exit code 1".into()));
        assert_eq!(tracker.counts(), Counts { waiting: 1, ..Counts::default() });
        assert_eq!(tracker.unended(), ["a"]);
        let ended = tracker.heard("a", JobState::Failed, 2, Some("exit code 2".into())).cloned();
        assert_eq!(ended.unwrap().reason.as_deref(), Some("exit code 2"));
        assert!(tracker.heard("a", JobState::Failed, 2, None).is_none());
        assert!(tracker.answered(&answer("a", "RUNNING", 2)).is_none());
        assert_eq!(tracker.counts(), Counts { unwell: 1, ..Counts::default() });
        assert!(tracker.unended().is_empty());
    }

    #[test]
    fn others_jobs_are_not_counted() {
        let mut tracker = Tracker::default();
        tracker.heard("other", JobState::Running, 1, None);
        assert_eq!(tracker.counts().all(), 0);
    }
}
