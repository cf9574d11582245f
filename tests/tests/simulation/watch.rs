//! What is checked the moment it commits: every change of a row against the state diagram, and what a cancel promises.

use crate::{cluster::Manager, plan::Outcome, world::World};
use jobgate_shared::{
    domain::{JobId, JobState, SubmissionTag},
    store::{FeedCursor, JobChange},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

/// One job, as the changes told so far make it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) state: JobState,
    pub(crate) attempt: u32,
    /// A cancel was committed and has not been carried out.
    cancel: bool,
}

/// What was seen of the rows so far.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// How far the feed was read.
    pub(crate) read: FeedCursor,
    pub(crate) jobs: BTreeMap<JobId, Known>,
    /// When each attempt was called over, and how.
    pub(crate) ends: BTreeMap<SubmissionTag, (Duration, JobState)>,
    recorded: BTreeMap<SubmissionTag, String>,
}

/// The steps of the state diagram, as ARCHITECTURE.md draws it (a test of the domain keeps that picture true).
fn legal() -> &'static BTreeSet<(String, String)> {
    static LEGAL: OnceLock<BTreeSet<(String, String)>> = OnceLock::new();
    LEGAL.get_or_init(|| {
        let drawn = include_str!("../../../ARCHITECTURE.md").split("<!-- states -->").nth(1).unwrap_or("");
        let steps = drawn.lines().filter_map(|line| line.split_once(" : ")?.0.trim().split_once(" --> "));
        let steps: BTreeSet<_> = steps.map(|(from, to)| (from.to_owned(), to.to_owned())).collect();
        assert!(steps.len() > 20, "the state diagram is not where it was");
        steps
    })
}

/// This step is in the state diagram.
pub(crate) fn is_legal(from: Option<JobState>, to: JobState) -> bool {
    let from = from.map_or("[*]", JobState::as_str);
    legal().contains(&(from.to_owned(), to.as_str().to_owned()))
}

impl Watch {
    /// What is recorded for an attempt.
    pub(crate) fn recorded(&self, tag: SubmissionTag) -> Option<&str> {
        self.recorded.get(&tag).map(String::as_str)
    }

    /// A record won.
    pub(crate) fn records(&mut self, world: &World, tag: SubmissionTag, id: &str) {
        let first = self.recorded.entry(tag).or_insert_with(|| id.to_owned());
        if first != id {
            world.wrong(|| format!("{tag} is recorded twice: {first}, then {id}"));
        }
    }

    /// A change committed.
    pub(crate) fn see(&mut self, world: &World, managers: &[Arc<Manager>], change: &JobChange) {
        let (job, entry) = (change.job, &change.entry);
        world.say(|| {
            let from = entry.from.map_or("nothing", JobState::as_str);
            let reason = entry.reason.as_deref().unwrap_or("");
            format!("{job}/{}: {from} -> {} {reason}", entry.attempt, entry.to)
        });
        let before = self.jobs.get(&job).copied();
        if before.map(|known| known.state) != entry.from {
            world.wrong(|| format!("{job} was {before:?} and leaves {:?}", entry.from));
        }
        let sideways = entry.from == Some(entry.to) && !entry.to.is_terminal();
        if !sideways && !is_legal(entry.from, entry.to) {
            world.wrong(|| format!("{job} goes from {:?} to {}", entry.from, entry.to));
        }
        let attempt = before.map_or(1, |known| known.attempt);
        let next = entry.to == JobState::Initialized
            && entry.attempt == attempt + 1
            && !matches!(entry.from, Some(JobState::Held | JobState::Initialized));
        if entry.attempt != attempt && !next {
            world.wrong(|| format!("{job} goes from attempt {attempt} to {}", entry.attempt));
        }
        let by_hand = entry.reason.as_deref() == Some("retried by hand");
        let mut cancel = before.is_some_and(|known| known.cancel);
        if cancel && entry.to.phase() == jobgate_shared::domain::Phase::Waiting && !by_hand {
            world.wrong(|| format!("{job} waits again although a cancel was committed"));
        }
        if cancel && (entry.from, entry.to) == (Some(JobState::Claimed), JobState::Pending) {
            world.wrong(|| format!("{job} is recorded although a cancel was committed"));
        }
        cancel |= entry.reason.as_deref() == Some("cancel requested");
        self.count(world, change, cancel);
        if next && !by_hand {
            self.ends.insert(SubmissionTag { job, attempt }, (world.now(), JobState::Initialized));
        }
        if entry.to.is_terminal() {
            cancel = false;
            let tag = SubmissionTag { job, attempt };
            self.ends.insert(tag, (world.now(), entry.to));
            if entry.to == JobState::Canceled && managers.iter().any(|manager| manager.runs(tag)) {
                world.wrong(|| format!("{tag} is called CANCELED while it runs, or will"));
            }
        }
        self.jobs.insert(job, Known { state: entry.to, attempt: entry.attempt, cancel });
    }

    fn count(&self, world: &World, change: &JobChange, cancel: bool) {
        let entry = &change.entry;
        let reason = entry.reason.as_deref().unwrap_or("");
        let before = self.jobs.get(&change.job).map(|known| known.attempt);
        let outcome = match (entry.from, entry.to) {
            (_, JobState::Lost) => Outcome::Lost,
            (_, JobState::TimedOut) => Outcome::TimedOut,
            (Some(JobState::Held | JobState::Initialized), JobState::Canceled) => Outcome::CanceledWaiting,
            (Some(JobState::Claimed), JobState::Canceled) => Outcome::CanceledClaimed,
            (_, JobState::Canceled) => Outcome::CanceledSubmitted,
            (_, JobState::Failed) if reason.starts_with("given up") => Outcome::GivenUp,
            (_, JobState::Finished | JobState::Failed) if cancel => Outcome::FinishBeatCancel,
            (Some(JobState::Claimed), JobState::Initialized) if before == Some(entry.attempt) => {
                Outcome::HandedBack
            }
            (Some(from), JobState::Initialized) if from.is_terminal() => Outcome::RetriedByHand,
            (Some(from), JobState::Initialized) if from.is_owned() => Outcome::RetriedByPolicy,
            (Some(from), to) if from == to && reason == "adopted" => Outcome::Adopted,
            (Some(from), to) if from == to && reason == "its worker stopped" => Outcome::HandedOver,
            (
                _,
                JobState::Held
                | JobState::Initialized
                | JobState::Claimed
                | JobState::Pending
                | JobState::Running
                | JobState::Finished
                | JobState::Failed,
            ) => return,
        };
        world.came(outcome);
    }
}
