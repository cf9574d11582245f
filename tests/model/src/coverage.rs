//! Which steps of the code a search has taken.
//!
//! The names are those of the code's own inputs, effects and facts, matched without a wildcard: a new one does not compile
//! until it has a name here, and a search that never takes it fails.

use jobgate_shared::{
    domain::{JobState, Observation},
    store::Recorded,
};
use jobgate_worker::{
    core::{Fault, Input},
    engine::Sighting,
};
use std::sync::atomic::{AtomicU64, Ordering};

/// Everything that can be seen.
pub const STEPS: [&str; 35] = [
    "granted fresh",
    "granted by adoption",
    "granted unheard",
    "held",
    "created",
    "create unanswered",
    "create refused",
    "recorded: won",
    "recorded: lost",
    "record unanswered",
    "started",
    "start unanswered",
    "start refused",
    "cancel taken",
    "cancel unanswered",
    "discarded",
    "discard unanswered",
    "sighted running",
    "sighted ended",
    "sighted inert",
    "sighted absent",
    "manager answered",
    "cancel requested",
    "settled",
    "lost to an adopter",
    "logs shipped",
    "drain",
    "tick",
    "hand back",
    "forget",
    "swept",
    "late landing",
    "lease over",
    "retried",
    "event dropped",
];

/// A set of steps, shared by the threads of a search.
#[derive(Debug, Default)]
pub struct Coverage(AtomicU64);

impl Coverage {
    /// A step was taken.
    pub(crate) fn saw(&self, step: &'static str) {
        match STEPS.iter().position(|known| *known == step) {
            Some(place) => self.0.fetch_or(1 << place, Ordering::Relaxed),
            None => unreachable!("`{step}` is not among the steps"),
        };
    }

    /// Steps never taken.
    pub fn missing(&self) -> Vec<&'static str> {
        let seen = self.0.load(Ordering::Relaxed);
        STEPS
            .iter()
            .enumerate()
            .filter(|(place, _)| seen & (1 << place) == 0)
            .map(|(_, step)| *step)
            .collect()
    }

    /// Adds what another search has seen.
    pub fn add(&self, other: &Self) {
        self.0.fetch_or(other.0.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// What an input of the core is called.
pub(crate) fn of_input(input: &Input) -> &'static str {
    fn answered<T>(answer: &Result<T, Fault>, names: [&'static str; 3]) -> &'static str {
        match answer {
            Ok(_) => names[0],
            Err(Fault::Away(_) | Fault::NotNow(_)) => names[1],
            Err(Fault::Refused(_)) => names[2],
        }
    }
    match input {
        Input::Granted(job) if job.life.state == JobState::Claimed && job.life.fruitless_claims == 1 => {
            "granted fresh"
        }
        Input::Granted(_) => "granted by adoption",
        Input::Created(_, answer) => answered(answer, ["created", "create unanswered", "create refused"]),
        Input::Recorded(_, None) => "record unanswered",
        Input::Recorded(_, Some(Recorded::Won)) => "recorded: won",
        Input::Recorded(_, Some(Recorded::Lost { .. })) => "recorded: lost",
        Input::Started(_, answer) => answered(answer, ["started", "start unanswered", "start refused"]),
        // A worker makes no difference between a refusal of these and no answer.
        Input::CancelTaken(_, Ok(())) => "cancel taken",
        Input::CancelTaken(_, Err(_)) => "cancel unanswered",
        Input::Discarded(_, Ok(())) => "discarded",
        Input::Discarded(_, Err(_)) => "discard unanswered",
        Input::Sighted(_, Sighting::Seen(Observation::Ended { .. })) => "sighted ended",
        Input::Sighted(_, Sighting::Seen(Observation::Running { .. } | Observation::Pending { .. })) => {
            "sighted running"
        }
        Input::Sighted(_, Sighting::Inert) => "sighted inert",
        Input::Sighted(_, Sighting::Absent | Sighting::Gone { .. } | Sighting::Unseen) => "sighted absent",
        Input::Answered(..) => "manager answered",
        Input::CancelRequested(_) => "cancel requested",
        Input::Settled(_) => "settled",
        Input::Lost(_) => "lost to an adopter",
        Input::LogsShipped(_) => "logs shipped",
        Input::Held(_) => "held",
        Input::Drain => "drain",
        Input::Tick => "tick",
    }
}
