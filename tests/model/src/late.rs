//! Whether something still on its way can do anything.
//!
//! A search drops what never can, or it would not end. That is for the product to say, not for the model: a rule of the row
//! that is broken must not be hidden by a model that keeps it. So the one transition function is asked, of the row as it is
//! and of every row it may become.

use crate::{
    Flaw, Protocol,
    submissions::Id,
    world::{NOW, digest, submission},
};
use jobgate_shared::{
    domain::{
        Ending, Fact, JobState, Life, Observation, Outcome, RetryPolicy, StatusEvent, Submission, WorkerId,
        transition,
    },
    store::{ToHandBack, ToRecord},
};
use std::{cell::RefCell, collections::HashMap};

/// What the row answers, by the product alone unless the protocol leaves a rule out.
pub(crate) fn decide(protocol: &Protocol, row: &Life, fact: &Fact<'_>) -> Outcome {
    let policy = RetryPolicy { backoff_seconds: 0, max_backoff_seconds: 0, retry_on: vec![Ending::Failed] };
    let ask = |row: &Life, fact: &Fact<'_>| transition(row, protocol.max_attempts, &policy, fact, NOW);
    match (protocol.flaw, fact) {
        (Flaw::RecordOverwrites, Fact::Record { attempt, submission, .. }) if !row.state.is_terminal() => {
            let bare = Life { submission: None, state: JobState::Claimed, ..row.clone() };
            ask(&bare, &Fact::Record { attempt: *attempt, epoch: row.epoch, submission })
        }
        (Flaw::RecordOfAnyClaim, Fact::Record { attempt, submission, .. }) => {
            ask(row, &Fact::Record { attempt: *attempt, epoch: row.epoch, submission })
        }
        (Flaw::EndOverwrites, Fact::Event(StatusEvent { observation: Observation::Ended { .. }, .. }))
            if row.state.is_terminal() =>
        {
            ask(&Life { state: JobState::Running, ..row.clone() }, fact)
        }
        (
            Flaw::None
            | Flaw::RecordOverwrites
            | Flaw::RecordOfAnyClaim
            | Flaw::EndOverwrites
            | Flaw::NothingIsHeld,
            _,
        ) => ask(row, fact),
    }
}

/// What arrives late, or twice.
#[derive(Debug, Clone, Copy, Hash)]
pub(crate) enum Told<'a> {
    /// A worker asks to record.
    Record(&'a ToRecord),
    /// A worker hands back.
    HandBack(WorkerId, &'a ToHandBack),
    /// A watcher tells what it saw.
    Event(&'a StatusEvent),
}

thread_local! {
    /// What was asked already; the same few rows and facts come again and again.
    static KNOWN: RefCell<HashMap<u64, bool>> = RefCell::default();
}

impl Told<'_> {
    /// As the row is told it.
    pub(crate) fn fact(&self) -> Fact<'_> {
        match *self {
            Told::Record(ToRecord { attempt, epoch, submission, .. }) => {
                Fact::Record { attempt: *attempt, epoch: *epoch, submission }
            }
            Told::HandBack(worker, ToHandBack { epoch, why, pause, .. }) => {
                Fact::HandBack { worker, epoch: *epoch, why, pause: *pause }
            }
            Told::Event(event) => Fact::Event(event),
        }
    }

    /// Told now, or at any later time, it moves the row.
    pub(crate) fn may_act(&self, protocol: &Protocol, row: &Life) -> bool {
        let key = digest(&(protocol.flaw, protocol.max_attempts, row, self));
        if let Some(known) = KNOWN.with_borrow(|known| known.get(&key).copied()) {
            return known;
        }
        let fact = self.fact();
        let moves = |row: &Life| matches!(decide(protocol, row, &fact), Outcome::Advanced { .. });
        let acts = moves(row) || self.futures(row).iter().any(moves);
        KNOWN.with_borrow_mut(|known| known.insert(key, acts));
        acts
    }

    /// Rows this one may become: later in its attempt, in the same hands or in the teller's, canceled or not, with what is
    /// told or something else recorded, ended; and the same of the attempt after it.
    fn futures(&self, row: &Life) -> Vec<Life> {
        let next = Life { attempt: row.attempt + 1, epoch: row.epoch, ..Life::begin(false, NOW) };
        let mut all = Vec::new();
        if !row.state.is_terminal() {
            self.rows_of(row, &mut all);
        }
        self.rows_of(&next, &mut all);
        all
    }

    /// Rows of the same attempt.
    fn rows_of(&self, row: &Life, all: &mut Vec<Life>) {
        const ENDS: [JobState; 5] =
            [JobState::Finished, JobState::Failed, JobState::Canceled, JobState::TimedOut, JobState::Lost];
        let (teller, told) = match *self {
            Told::Record(item) => (None, Some(item.submission.clone())),
            Told::HandBack(worker, _) => (Some(worker), None),
            Told::Event(event) => {
                let named = |id: &String| Submission { id: id.clone(), ..submission(Id::MAX) };
                (Some(event.by), event.submission.as_ref().map(named))
            }
        };
        let recorded = match &row.submission {
            Some(recorded) => vec![Some(recorded.clone())],
            None => vec![None, told, Some(submission(Id::MAX))],
        };
        for (epoch, owner) in [(row.epoch, row.owner), (row.epoch + 1, teller.or(row.owner))] {
            for submission in &recorded {
                let open: &[JobState] = match submission {
                    None => &[JobState::Initialized, JobState::Claimed],
                    Some(_) => &[JobState::Pending, JobState::Running],
                };
                for state in open.iter().chain(&ENDS) {
                    for cancel_requested in [row.cancel_requested, true] {
                        let submission = submission.clone();
                        let life = Life { state: *state, epoch, owner, submission, ..row.clone() };
                        all.push(Life { cancel_requested, ..life });
                    }
                }
            }
        }
    }
}
