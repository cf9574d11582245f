//! What must hold in every state, and where every state leads once faults stop.

use crate::{Protocol, submissions::Kind, world::World};
use jobgate_shared::domain::{Ending, JobState};

/// One promise of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    /// No attempt begins twice.
    BeginsOnce,
    /// No attempt begins after its row said CANCELED.
    NothingBeginsCanceled,
    /// A row that says how the job ended says so ever after, unless a user has it tried again.
    EndsStand,
    /// Within an attempt a row goes forward, unless its owner hands back what it has not submitted.
    RowsGoForward,
    /// Once a cancel is in the row of a claimed job, nothing is recorded of it.
    NothingIsRecordedCanceled,
    /// The manager is not told to forget what a row may ask for yet.
    TheNeededIsKept,
    /// Where the manager creates inert, only what is recorded begins.
    OnlyTheRecordedBegins,
    /// Nothing runs of an attempt whose row says CANCELED.
    CanceledDoesNotRun,
    /// A row that says how an attempt ended says what the manager knows.
    EndsAreTrue,
    /// Once faults stop, the job ends, every worker lets go of it, and nothing is left at the manager.
    EverythingSettles,
}

impl Promise {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::BeginsOnce,
        Self::NothingBeginsCanceled,
        Self::EndsStand,
        Self::RowsGoForward,
        Self::NothingIsRecordedCanceled,
        Self::TheNeededIsKept,
        Self::OnlyTheRecordedBegins,
        Self::CanceledDoesNotRun,
        Self::EndsAreTrue,
        Self::EverythingSettles,
    ];

    /// As reported.
    pub fn name(self) -> &'static str {
        match self {
            Self::BeginsOnce => "an attempt begins once",
            Self::NothingBeginsCanceled => "nothing begins after CANCELED",
            Self::EndsStand => "an ended job stays ended",
            Self::RowsGoForward => "a row goes forward",
            Self::NothingIsRecordedCanceled => "nothing is recorded after a cancel",
            Self::TheNeededIsKept => "what a row needs is kept",
            Self::OnlyTheRecordedBegins => "only the recorded begins",
            Self::CanceledDoesNotRun => "canceled does not run",
            Self::EndsAreTrue => "ends are true",
            Self::EverythingSettles => "everything settles",
        }
    }

    pub(crate) fn check(self) -> fn(&Protocol, &World) -> bool {
        match self {
            // Noticed amid the steps: each has a check of its own, so that a search finds each that it can.
            Self::BeginsOnce => |_, world| !world.broken.contains(&Self::BeginsOnce),
            Self::NothingBeginsCanceled => |_, world| !world.broken.contains(&Self::NothingBeginsCanceled),
            Self::EndsStand => |_, world| !world.broken.contains(&Self::EndsStand),
            Self::RowsGoForward => |_, world| !world.broken.contains(&Self::RowsGoForward),
            Self::NothingIsRecordedCanceled => {
                |_, world| !world.broken.contains(&Self::NothingIsRecordedCanceled)
            }
            Self::TheNeededIsKept => |_, world| !world.broken.contains(&Self::TheNeededIsKept),
            Self::OnlyTheRecordedBegins => only_the_recorded_begins,
            Self::CanceledDoesNotRun => canceled_does_not_run,
            Self::EndsAreTrue => |protocol, world| ends_are_true(protocol, world),
            Self::EverythingSettles => |protocol, world| {
                // What somebody waits for arrives anyway, and leads to a state that rests.
                !world.rests()
                    || world
                        .settle(protocol)
                        .is_ok_and(|end| end.broken == world.broken && ends_are_true(protocol, &end))
            },
        }
    }
}

fn only_the_recorded_begins(protocol: &Protocol, world: &World) -> bool {
    let recorded = world.recorded();
    protocol.manager.begins_at_create()
        || world.begun.iter().all(|began| world.row.attempt > began.attempt || recorded == Some(began.id))
}

fn canceled_does_not_run(_: &Protocol, world: &World) -> bool {
    world.row.state != JobState::Canceled
        || world.manager.running().iter().all(|running| running.attempt != world.row.attempt)
}

fn ends_are_true(protocol: &Protocol, world: &World) -> bool {
    let ended = world.recorded().and_then(|id| world.manager.ended(id));
    // What ran is what the row speaks of.
    let ran = || world.begun.iter().filter(|began| began.attempt == world.row.attempt);
    // It ended, and the manager forgot it by itself: nobody can tell how, and a start that is late may be refused as unknown.
    let forgotten = ended.is_some() && world.recorded().is_some_and(|id| world.manager.has_lost(id));
    let its_own = || ran().all(|began| world.recorded() == Some(began.id));
    match world.row.state {
        JobState::Finished => ended == Some(Ending::Finished) && its_own(),
        // Ended so, or refused before it was recorded.
        JobState::Failed => {
            (ended == Some(Ending::Failed) || world.recorded().is_none() || forgotten) && its_own()
        }
        JobState::Canceled => match world.recorded() {
            Some(_) => ended == Some(Ending::Canceled),
            None => ran().all(|began| world.manager.ended(began.id).is_some()),
        },
        JobState::Lost => protocol.manager == Kind::AtMostOnce || forgotten,
        JobState::TimedOut => false,
        JobState::Held
        | JobState::Initialized
        | JobState::Claimed
        | JobState::Pending
        | JobState::Running => true,
    }
}
