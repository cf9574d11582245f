//! The submission protocol under every interleaving.
//!
//! One job, two worker processes, a store's row, a resource manager and a wire on which requests arrive late, twice told
//! or never answered. What decides is the product's own: the workers are [`jobgate_worker::core::Core`], the row moves by
//! [`jobgate_shared::domain::transition()`] alone. The model supplies what stands around them, and every fault it may show.
//!
//! * [`world`]: one state of all of it, and each thing that can happen to it, under the protocol's own names.
//! * [`submissions`]: what a resource manager holds, in each submit mode, and the broken ones.
//! * [`promises`]: what must hold in every state, and that every state settles once faults stop.
//! * `late`: whether something that is still on its way can do anything, as the product says.
//! * [`coverage`]: which steps of the code a search has taken, so that no promise holds for want of trying.
//! * [`search`]: the searches there are, and what each found.

pub mod coverage;
mod late;
pub mod promises;
pub mod search;
pub mod submissions;
pub mod world;

use coverage::Coverage;
use promises::Promise;
use stateright::{Model, Property};
use std::sync::Arc;
use submissions::Kind;
use world::{Action, World};

/// How many of each fault one run may show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Faults {
    /// Worker processes that die at once; another takes the place of each.
    pub crashes: u8,
    /// Leases that end while their worker lives on as a zombie.
    pub expiries: u8,
    /// Answers that do not come, polls that see nothing, events that get lost.
    pub losses: u8,
    /// Times a worker's next timer rings.
    pub ticks: u8,
    /// Cancels asked for by a user.
    pub cancels: u8,
    /// Retries by hand of what has ended.
    pub retries: u8,
    /// Workers told to stop in good order.
    pub drains: u8,
    /// Ended submissions that the manager forgets by itself.
    pub forgets: u8,
}

/// A rule of the store that is left out, to see that it is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flaw {
    /// None: the store as it is.
    None,
    /// A record replaces whatever was recorded before.
    RecordOverwrites,
    /// A record counts under whatever claim it was created.
    RecordOfAnyClaim,
    /// An end that was told moves a job that has ended already.
    EndOverwrites,
    /// No worker has anything, as far as the store knows.
    NothingIsHeld,
}

/// What is searched.
#[derive(Debug, Clone)]
pub struct Protocol {
    /// The resource manager.
    pub manager: Kind,
    /// The rule left out.
    pub flaw: Flaw,
    /// The faults allowed.
    pub faults: Faults,
    /// Attempts the job has.
    pub max_attempts: u32,
    /// The engine has logs, which are shipped.
    pub logs: bool,
    /// What the search has seen.
    pub coverage: Arc<Coverage>,
}

impl Protocol {
    /// A correct store before `manager`.
    pub fn new(manager: Kind, faults: Faults) -> Self {
        let coverage = Arc::default();
        Self { manager, flaw: Flaw::None, faults, max_attempts: 1, logs: false, coverage }
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        world.actions(self, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.take(self, action);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        Promise::ALL.iter().map(|promise| Property::always(promise.name(), promise.check())).collect()
    }
}
