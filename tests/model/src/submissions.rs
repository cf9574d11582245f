//! A resource manager as far as the protocol meets it: what is created, what begins, what is remembered.

use jobgate_shared::domain::{Ending, Observation};
use jobgate_worker::{
    core::Fault,
    engine::{Sighting, SubmitMode},
};

/// How a manager submits. The last five are known not to work, and a search must find out why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Kind {
    /// Creates inert, every time under an id of its own.
    TwoPhase,
    /// Creates inert under a name of ours: a create finds what is there already.
    TwoPhaseByName,
    /// Begins at once; refuses a second submission of a name, as long as it remembers.
    UniqueName,
    /// Creates nothing that could run; a start sends it to a fence, where one of each attempt passes, if no cancel came first.
    Fenced,
    /// Begins at once, and knows nothing of names.
    AtMostOnce,
    /// Begins at once, while the worker believes that it creates inert: nothing but the lease keeps it single.
    LeaseOnly,
    /// As that, but each create looks first for what is there already.
    LookupFirst,
    /// The first submission to reach the fence passes it, recorded or not.
    FenceForTheFirst,
    /// A cancel tells what is on its way to the fence to turn back, and does not wait for it there.
    FenceLeftOpen,
    /// Creates inert under a name of ours, which is the id, and can be created again once it is forgotten.
    IdsReturn,
}

impl Kind {
    /// Those that keep every promise.
    pub const SOUND: [Self; 5] =
        [Self::TwoPhase, Self::TwoPhaseByName, Self::UniqueName, Self::Fenced, Self::AtMostOnce];

    /// What the worker is told of it.
    pub fn mode(self) -> SubmitMode {
        match self {
            Self::TwoPhase | Self::TwoPhaseByName | Self::LeaseOnly | Self::LookupFirst | Self::IdsReturn => {
                SubmitMode::TwoPhase
            }
            Self::UniqueName => SubmitMode::UniqueName,
            Self::Fenced | Self::FenceForTheFirst | Self::FenceLeftOpen => SubmitMode::Fenced,
            Self::AtMostOnce => SubmitMode::AtMostOnce,
        }
    }

    /// What is created begins without a start.
    pub fn begins_at_create(self) -> bool {
        match self {
            Self::TwoPhase | Self::TwoPhaseByName | Self::Fenced | Self::FenceLeftOpen | Self::IdsReturn => {
                false
            }
            Self::UniqueName
            | Self::AtMostOnce
            | Self::LeaseOnly
            | Self::LookupFirst
            | Self::FenceForTheFirst => true,
        }
    }
}

/// What the manager calls a submission.
pub type Id = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Inert,
    /// Started, and not at the fence yet.
    BeforeTheFence,
    Runs,
    Ended(Ending),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Held {
    id: Id,
    attempt: u32,
    stage: Stage,
}

/// What a call set going.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Began {
    /// The submission.
    pub id: Id,
    /// Its attempt.
    pub attempt: u32,
}

/// The manager.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Manager {
    kind: Kind,
    held: Vec<Held>,
    /// Attempts whose name, or start token, is not to be had any more.
    used: Vec<u32>,
    /// Submissions that were told to turn back before the fence, and have not heard.
    called_back: Vec<Id>,
    /// Submissions it has forgotten by itself.
    lost: Vec<Id>,
    /// How each submission ended, remembered by the model when the manager has forgotten it.
    ends: Vec<(Id, Ending)>,
    made: Id,
}

/// Ids that are names stand apart from those that are counted.
const NAMED: Id = 1000;

impl Manager {
    pub(crate) fn new(kind: Kind) -> Self {
        let (held, used, called_back, lost, ends) = Default::default();
        Self { kind, held, used, called_back, lost, ends, made: 0 }
    }

    fn names_are_ids(&self) -> bool {
        matches!(self.kind, Kind::UniqueName | Kind::IdsReturn)
    }

    /// What a lookup by name finds.
    pub(crate) fn look_up(&self, attempt: u32) -> Option<Id> {
        self.held.iter().find(|held| held.attempt == attempt).map(|held| held.id)
    }

    /// Creates; `None` is a refusal. `found` is what the caller's lookup had found before it sent this.
    pub(crate) fn create(&mut self, attempt: u32, found: Option<Id>) -> (Option<Id>, Option<Began>) {
        let known = self.look_up(attempt);
        let finds = matches!(self.kind, Kind::UniqueName | Kind::TwoPhaseByName | Kind::IdsReturn);
        let used = self.used.contains(&attempt);
        if used && self.kind == Kind::UniqueName {
            return (None, None);
        }
        if let Some(id) = known.filter(|_| finds).or(found) {
            return (Some(id), None);
        }
        self.made += 1;
        let id = if self.names_are_ids() { NAMED + attempt } else { self.made };
        let stage = match self.kind {
            Kind::TwoPhase | Kind::TwoPhaseByName | Kind::Fenced | Kind::FenceLeftOpen | Kind::IdsReturn => {
                Stage::Inert
            }
            Kind::FenceForTheFirst if used => Stage::Ended(Ending::Failed),
            Kind::UniqueName
            | Kind::AtMostOnce
            | Kind::LeaseOnly
            | Kind::LookupFirst
            | Kind::FenceForTheFirst => Stage::Runs,
        };
        if self.kind == Kind::FenceForTheFirst {
            self.used.push(attempt);
        }
        if let Stage::Ended(ending) = stage {
            self.ends.push((id, ending));
        }
        self.held.push(Held { id, attempt, stage });
        (Some(id), (stage == Stage::Runs).then_some(Began { id, attempt }))
    }

    /// Starts, or refuses: of what is no more, an engine may say either.
    pub(crate) fn start(&mut self, id: Id) -> Result<Option<Began>, Fault> {
        let Some(held) = self.held.iter_mut().find(|held| held.id == id) else {
            return match self.kind {
                Kind::TwoPhaseByName => Err(Fault::Refused("unknown".to_owned())),
                Kind::TwoPhase
                | Kind::UniqueName
                | Kind::Fenced
                | Kind::AtMostOnce
                | Kind::LeaseOnly
                | Kind::LookupFirst
                | Kind::FenceForTheFirst
                | Kind::FenceLeftOpen
                | Kind::IdsReturn => Ok(None),
            };
        };
        if held.stage != Stage::Inert {
            return Ok(None);
        }
        if matches!(self.kind, Kind::Fenced | Kind::FenceLeftOpen) {
            held.stage = Stage::BeforeTheFence;
            return Ok(None);
        }
        held.stage = Stage::Runs;
        Ok(Some(Began { id, attempt: held.attempt }))
    }

    /// Submissions that will come to the fence.
    pub(crate) fn at_the_fence(&self) -> Vec<Id> {
        let before = self.held.iter().filter(|held| held.stage == Stage::BeforeTheFence).map(|held| held.id);
        before.chain(self.called_back.iter().copied()).collect()
    }

    /// One comes to the fence: it takes its attempt's token and begins, or finds it taken and ends.
    pub(crate) fn pass(&mut self, id: Id) -> Option<Began> {
        self.called_back.retain(|back| *back != id);
        let held = self.held.iter_mut().find(|held| held.id == id)?;
        let attempt = held.attempt;
        if self.used.contains(&attempt) {
            self.end(id, Ending::Failed);
            return None;
        }
        self.used.push(attempt);
        if held.stage == Stage::BeforeTheFence {
            held.stage = Stage::Runs;
        }
        Some(Began { id, attempt })
    }

    /// Ends one, begun or not: what has not begun never will.
    pub(crate) fn cancel(&mut self, id: Id) {
        let stage = self.held.iter().find(|held| held.id == id).map(|held| (held.stage, held.attempt));
        match (self.kind, stage) {
            (Kind::Fenced, Some((Stage::Inert | Stage::BeforeTheFence, attempt))) => self.used.push(attempt),
            (Kind::FenceLeftOpen, Some((Stage::BeforeTheFence, _))) => self.called_back.push(id),
            _ => {}
        }
        self.end(id, Ending::Canceled);
    }

    /// A submission ends; an end stands.
    pub(crate) fn end(&mut self, id: Id, ending: Ending) {
        for held in self.held.iter_mut().filter(|held| held.id == id) {
            if !matches!(held.stage, Stage::Ended(_)) {
                held.stage = Stage::Ended(ending);
                self.ends.push((id, ending));
            }
        }
    }

    /// Makes sure that what it names never runs (on).
    pub(crate) fn discard(&mut self, attempt: u32, id: Option<Id>) {
        let named = |held: &Held| held.attempt == attempt && id.is_none_or(|id| id == held.id);
        // Removed, it finds no fence to pass.
        self.held.retain(|held| !(named(held) && matches!(held.stage, Stage::Inert | Stage::BeforeTheFence)));
        if matches!(self.kind, Kind::UniqueName | Kind::AtMostOnce) {
            let running: Vec<Id> = self
                .held
                .iter()
                .filter(|held| named(held) && held.stage == Stage::Runs)
                .map(|held| held.id)
                .collect();
            for id in running {
                self.end(id, Ending::Canceled);
            }
        }
        if self.kind == Kind::UniqueName && self.look_up(attempt).is_none() && !self.used.contains(&attempt) {
            self.used.push(attempt);
        }
    }

    /// Looks at one.
    pub(crate) fn look(&self, id: Id) -> Sighting {
        match self.held.iter().find(|held| held.id == id).map(|held| held.stage) {
            None => Sighting::Absent,
            Some(Stage::Inert | Stage::BeforeTheFence) => Sighting::Inert,
            Some(Stage::Runs) => Sighting::Seen(Observation::Running { since: None, reason: None }),
            Some(Stage::Ended(ending)) => Sighting::Seen(Observation::Ended {
                ending,
                exit_code: None,
                reason: None,
                began: None,
                at: None,
            }),
        }
    }

    /// Submissions that were created and have not begun.
    pub(crate) fn inert(&self) -> Vec<(u32, Id)> {
        let inert =
            self.held.iter().filter(|held| matches!(held.stage, Stage::Inert | Stage::BeforeTheFence));
        inert.map(|held| (held.attempt, held.id)).collect()
    }

    /// It has not ended, or its name may be used again.
    pub(crate) fn may_end(&self, id: Id) -> bool {
        self.names_are_ids()
            || self.held.iter().any(|held| held.id == id && !matches!(held.stage, Stage::Ended(_)))
    }

    /// Submissions that run.
    pub(crate) fn running(&self) -> Vec<Began> {
        let running = self.held.iter().filter(|held| held.stage == Stage::Runs);
        running.map(|held| Began { id: held.id, attempt: held.attempt }).collect()
    }

    /// What has ended need not be remembered.
    pub(crate) fn forget(&mut self, id: Id) {
        // A name that is forgotten could be used again.
        if self.kind != Kind::UniqueName {
            self.held.retain(|held| !(held.id == id && matches!(held.stage, Stage::Ended(_))));
        }
    }

    /// Submissions it knows to have ended.
    pub(crate) fn known_ends(&self) -> Vec<Id> {
        let ended = self.held.iter().filter(|held| matches!(held.stage, Stage::Ended(_)));
        ended.map(|held| held.id).collect()
    }

    /// Forgets by itself what has ended, its name with it.
    pub(crate) fn lose(&mut self, id: Id) {
        self.held.retain(|held| held.id != id);
        self.lost.push(id);
    }

    /// It has forgotten this one by itself.
    pub(crate) fn has_lost(&self, id: Id) -> bool {
        self.lost.contains(&id)
    }

    /// How it ended, if it has.
    pub fn ended(&self, id: Id) -> Option<Ending> {
        self.ends.iter().find(|(ended, _)| *ended == id).map(|(_, ending)| *ending)
    }
}
