//! Histories of whole lives, as they are derived.

use super::*;
use crate::domain::every_fact::{steps, walk};
use crate::domain::samples::{OTHER, OWNER, at, submission};
use crate::domain::{
    Change, ClusterName, Command, Document, Ending, Fact, JobId, JobSpec, Observation, Outcome, Project,
    RetryPolicy, Standing, StatusEvent, transition,
};
use proptest::prelude::*;
use std::time::Duration;
use uuid::Uuid;

fn job(life: Life) -> Job {
    Job {
        id: JobId(Uuid::from_u128(9)),
        project: Project::default_project(),
        name: "sum".into(),
        cluster: "local".parse::<ClusterName>().unwrap(),
        spec: JobSpec::default(),
        labels: Vec::new(),
        priority: 0,
        inputs: Document::new(),
        outputs: Document::new(),
        report: None,
        max_attempts: 2,
        retry: RetryPolicy::default(),
        created_by: "token:t".into(),
        created_at: at(0),
        run_at: None,
        life,
    }
}

/// A job told facts, a second apart.
struct Told {
    life: Life,
    second: i64,
    deviations: Vec<Deviation>,
}

impl Told {
    fn new(hold: bool) -> Self {
        Self { life: Life::begin(hold, at(0)), second: 0, deviations: Vec::new() }
    }

    fn tell(&mut self, fact: &Fact<'_>) {
        self.second += 1;
        let outcome = transition(&self.life, 2, &RetryPolicy::default(), fact, at(self.second));
        let Outcome::Advanced { life, change } = outcome else { panic!("{fact:?}: {outcome:?}") };
        self.life = *life;
        self.deviations.extend(change.deviation());
    }

    fn claim(&mut self, worker: WorkerId) {
        let standing =
            Standing { claimer_alive: true, owner_alive: false, cluster_paused: false, room: None };
        let here = submission("").reach;
        self.tell(&Fact::Claim { worker, reach: here.as_ref(), alone: true, standing });
    }

    fn record(&mut self, id: &str) {
        self.tell(&Fact::Record {
            attempt: self.life.attempt,
            epoch: self.life.epoch,
            submission: &submission(id),
        });
    }

    fn hand_back(&mut self) {
        let (worker, epoch) = (self.life.owner.unwrap(), self.life.epoch);
        self.tell(&Fact::HandBack { worker, epoch, why: "no room", pause: Duration::ZERO });
    }

    fn see(&mut self, observation: Observation) {
        let event = StatusEvent {
            job: JobId(Uuid::from_u128(9)),
            attempt: self.life.attempt,
            epoch: self.life.epoch,
            seq: u32::try_from(self.second).unwrap(),
            by: self.life.owner.unwrap(),
            submission: self.life.submission.as_ref().map(|s| s.id.clone()),
            observation,
            at: at(self.second + 1),
        };
        self.tell(&Fact::Event(&event));
    }

    fn runs(&mut self) {
        self.see(Observation::Running { since: None, reason: None });
    }

    fn ends(&mut self, ending: Ending) {
        self.see(Observation::Ended { ending, exit_code: None, reason: None, began: None, at: None });
    }

    fn command(&mut self, command: Command) {
        self.tell(&Fact::Command { command, by: "token:t" });
    }

    /// Each entry as `second state/attempt by`.
    fn history(&self) -> Vec<String> {
        let told = |by: &str| match by {
            _ if by == format!("worker:{OWNER}") => "owner".to_owned(),
            _ if by == format!("worker:{OTHER}") => "other".to_owned(),
            _ => by.to_owned(),
        };
        let entries = derive_history(&job(self.life.clone()), &self.deviations);
        let line = |e: &HistoryEntry| {
            let by = e.by.as_deref().map_or("?".to_owned(), told);
            format!("{} {}/{} {by}", (e.at - at(0)).num_seconds(), e.to, e.attempt)
        };
        entries.iter().map(line).collect()
    }
}

#[test]
fn the_happy_path_is_told_by_the_times_of_the_row_alone() {
    let mut told = Told::new(false);
    told.claim(OWNER);
    told.record("a");
    told.runs();
    told.ends(Ending::Finished);
    assert!(told.deviations.is_empty());
    assert_eq!(
        told.history(),
        [
            "0 INITIALIZED/1 token:t",
            "1 CLAIMED/1 owner",
            "2 PENDING/1 owner",
            "3 RUNNING/1 owner",
            "4 FINISHED/1 owner"
        ]
    );
}

#[test]
fn a_retry_keeps_the_attempt_it_follows() {
    let mut told = Told::new(false);
    told.claim(OWNER);
    told.record("a");
    told.runs();
    told.ends(Ending::Failed);
    told.second += 10;
    told.claim(OTHER);
    told.record("b");
    told.runs();
    told.ends(Ending::Failed);
    told.command(Command::Retry);
    assert_eq!(
        told.history(),
        [
            "0 INITIALIZED/1 token:t",
            "1 CLAIMED/1 owner",
            "2 PENDING/1 owner",
            "3 RUNNING/1 owner",
            "4 INITIALIZED/2 owner",
            "15 CLAIMED/2 other",
            "16 PENDING/2 other",
            "17 RUNNING/2 other",
            "18 FAILED/2 other",
            "19 INITIALIZED/3 token:t",
        ]
    );
}

#[test]
fn a_hand_back_keeps_the_claim_it_gives_up() {
    let mut told = Told::new(false);
    told.claim(OWNER);
    told.hand_back();
    told.claim(OTHER);
    told.record("a");
    assert_eq!(
        told.history(),
        [
            "0 INITIALIZED/1 token:t",
            "1 CLAIMED/1 owner",
            "2 INITIALIZED/1 owner",
            "3 CLAIMED/1 other",
            "4 PENDING/1 other",
        ]
    );
}

#[test]
fn an_adoption_leaves_the_steps_before_it_to_who_took_them() {
    let mut told = Told::new(false);
    told.claim(OWNER);
    told.record("a");
    told.claim(OTHER);
    told.runs();
    told.hand_back();
    told.claim(OWNER);
    told.ends(Ending::Finished);
    assert_eq!(
        told.history(),
        [
            "0 INITIALIZED/1 token:t",
            "1 CLAIMED/1 owner",
            "2 PENDING/1 owner",
            "3 PENDING/1 other",
            "4 RUNNING/1 other",
            "5 RUNNING/1 other",
            "6 RUNNING/1 owner",
            "7 FINISHED/1 owner",
        ]
    );
}

#[test]
fn a_job_accepted_held_begins_so_and_one_held_later_does_not() {
    let mut told = Told::new(true);
    told.command(Command::Release);
    assert_eq!(told.history(), ["0 HELD/1 token:t", "1 INITIALIZED/1 token:t"]);
    let mut told = Told::new(false);
    told.command(Command::Hold);
    told.command(Command::Release);
    told.claim(OWNER);
    assert_eq!(
        told.history(),
        ["0 INITIALIZED/1 token:t", "1 HELD/1 token:t", "2 INITIALIZED/1 token:t", "3 CLAIMED/1 owner"]
    );
}

#[test]
fn a_run_told_only_by_its_end_is_in_the_history() {
    let mut told = Told::new(false);
    told.claim(OWNER);
    told.record("a");
    told.second = 9;
    let began = Some(at(5));
    told.see(Observation::Ended {
        ending: Ending::Failed,
        exit_code: Some(1),
        reason: None,
        began,
        at: None,
    });
    assert_eq!(
        told.history(),
        [
            "0 INITIALIZED/1 token:t",
            "1 CLAIMED/1 owner",
            "2 PENDING/1 owner",
            "5 RUNNING/1 owner",
            "10 INITIALIZED/2 owner",
        ]
    );
}

#[test]
fn a_slow_clock_of_a_watcher_does_not_reorder_a_life() {
    let mut told = Told::new(false);
    told.claim(OWNER);
    told.record("a");
    told.command(Command::Cancel);
    told.see(Observation::Running { since: Some(at(-500)), reason: None });
    told.ends(Ending::Canceled);
    let states: Vec<_> =
        told.history().iter().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(states, ["INITIALIZED/1", "CLAIMED/1", "PENDING/1", "PENDING/1", "RUNNING/1", "CANCELED/1"]);
}

proptest! {
    /// What subscribers were told as it happened and what history derives afterwards are the same story.
    #[test]
    fn history_tells_what_the_feed_told(steps in steps(), hold: bool) {
        let mut deviations = Vec::new();
        let mut told = vec![job(Life::begin(hold, at(0))).acceptance(Life::begin(hold, at(0)).state)];
        let life = walk(steps, hold, |before, _, outcome| {
            if let Outcome::Advanced { change, .. } = outcome {
                let Change { entry, deviates, .. } = change;
                deviations.extend(change.deviation());
                if *deviates || before.state != entry.to {
                    told.push(entry.clone());
                }
            }
        });
        // Who told of a happy step and who has the job can be two workers; the story has room for one.
        let strip = |entries: &[HistoryEntry]| -> Vec<_> {
            let happy = |e: &HistoryEntry| matches!(e.to, JobState::Running | JobState::Finished) || e.by.is_none();
            let line = |e: &HistoryEntry| {
                let by = e.by.clone().filter(|_| !happy(e));
                (e.at, e.attempt, e.from, e.to, by)
            };
            entries.iter().map(line).collect()
        };
        let derived = derive_history(&job(life), &deviations);
        prop_assert_eq!(strip(&derived), strip(&told));
    }
}
