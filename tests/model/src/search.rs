//! The searches: which manager under how many of which faults, and what came of it.

use crate::{Faults, Flaw, Protocol, coverage::Seen, promises::Promise, submissions::Kind, world::World};
use stateright::{Checker as _, HasDiscoveries, Model as _};
use std::{fmt, num::NonZero, thread};

/// What a search found.
#[derive(Debug)]
pub struct Report {
    /// Different states.
    pub states: usize,
    /// Steps taken between them.
    pub steps: usize,
    /// Steps of the longest way that was needed to reach one.
    pub depth: usize,
    /// Promises that were broken, and how.
    pub broken: Vec<Broken>,
}

/// A way on which a promise breaks.
#[derive(Debug)]
pub struct Broken {
    /// The promise's name.
    pub promise: &'static str,
    /// What did not come to rest by itself from there.
    pub why: Option<&'static str>,
    /// The steps, first to last.
    pub way: Vec<String>,
    /// Where they lead.
    pub end: World,
}

impl Protocol {
    /// Visits every state there is, or until a promise is broken: any, or the one that what is searched is known to break.
    pub fn search(self, known: Option<Promise>) -> Report {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let enough =
            known.map_or(HasDiscoveries::AnyFailures, |known| HasDiscoveries::AllOf([known.name()].into()));
        let checker = self.checker().threads(threads).finish_when(enough).spawn_bfs().join();
        let found = checker.discoveries().into_iter().map(|(promise, path)| {
            let end = path.last_state().clone();
            let why = end.settle(checker.model()).err();
            Broken { promise, why, way: path.into_actions().iter().map(|a| format!("{a:?}")).collect(), end }
        });
        let broken = found.collect();
        let (states, steps) = (checker.unique_state_count(), checker.state_count());
        Report { states, steps, depth: checker.max_depth(), broken }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { manager, flaw, faults, max_attempts, logs, coverage: _ } = self;
        write!(f, "{manager:?}")?;
        if *flaw != Flaw::None {
            write!(f, " {flaw:?}")?;
        }
        let Faults { crashes, expiries, losses, ticks, cancels, retries, drains, forgets } = *faults;
        let counts = [crashes, expiries, losses, ticks, cancels, retries, drains, forgets];
        let names = ["crash", "expiry", "loss", "tick", "cancel", "retry", "drain", "forget"];
        for (count, name) in counts.into_iter().zip(names).filter(|(count, _)| *count > 0) {
            write!(f, " {name}×{count}")?;
        }
        if *max_attempts > 1 {
            write!(f, " {max_attempts} attempts")?;
        }
        if *logs { write!(f, " logs") } else { Ok(()) }
    }
}

const fn faults(counts: [u8; 7]) -> Faults {
    let [crashes, expiries, losses, ticks, cancels, retries, drains] = counts;
    Faults { crashes, expiries, losses, ticks, cancels, retries, drains, forgets: 0 }
}

// crashes, expiries, losses, ticks, cancels, retries, drains
/// Mixes of faults that together reach every step; half a minute on two cores in all.
const MIXES: [[u8; 7]; 6] = [
    [0, 1, 0, 0, 1, 0, 0],
    [0, 0, 1, 1, 0, 0, 0],
    [0, 0, 1, 0, 1, 0, 0],
    [0, 1, 0, 0, 0, 1, 0],
    [1, 0, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 1, 0, 1],
];

/// More of each, for some minutes. The largest of them, [`LARGEST`], not for a fence: its own steps come on top of those of
/// what is two-phase, which is four minutes already.
const DEEPER: [[u8; 7]; 7] = [
    [1, 1, 0, 0, 1, 0, 0],
    LARGEST,
    [0, 1, 0, 0, 1, 1, 0],
    [0, 0, 1, 0, 1, 0, 1],
    [1, 0, 1, 0, 0, 0, 0],
    [1, 0, 0, 0, 1, 1, 1],
    [2, 0, 0, 0, 1, 0, 0],
];

/// Among the deeper mixes.
const LARGEST: [u8; 7] = [0, 0, 1, 2, 1, 0, 0];

/// The searches of every sound manager, with what all of them have seen.
pub fn sound(deep: bool, seen: &Seen) -> Vec<Protocol> {
    let mixes = MIXES.iter().chain(DEEPER.iter().filter(|_| deep));
    let plain = mixes.flat_map(|mix| {
        let kinds = Kind::SOUND.into_iter().filter(|kind| *mix != LARGEST || *kind != Kind::Fenced);
        kinds.map(|kind| Protocol::new(kind, faults(*mix)))
    });
    // What is forgotten can be created again under its name, which only an id that is not the name survives.
    let forgets = [Kind::TwoPhase, Kind::TwoPhaseByName, Kind::Fenced, Kind::AtMostOnce]
        .map(|kind| Protocol::new(kind, Faults { forgets: 1, ..faults([0, 1, 0, 0, 0, 0, 0]) }));
    let logs = [[0, 0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1, 0]]
        .into_iter()
        .flat_map(|mix| Kind::SOUND.map(|kind| Protocol { logs: true, ..Protocol::new(kind, faults(mix)) }));
    let attempts = [Kind::TwoPhaseByName, Kind::AtMostOnce]
        .map(|kind| Protocol { max_attempts: 2, ..Protocol::new(kind, faults([1, 0, 0, 0, 1, 0, 0])) });
    plain
        .chain(forgets)
        .chain(logs)
        .chain(attempts)
        .map(|protocol| Protocol { coverage: seen.of(protocol.manager), ..protocol })
        .collect()
}

/// The searches of what is known not to work, each with the promise that it must find broken.
pub fn unsound() -> Vec<(Protocol, Promise)> {
    let crash = faults([1, 0, 0, 0, 0, 0, 0]);
    let expiry = faults([0, 1, 0, 0, 0, 0, 0]);
    let late = faults([0, 0, 1, 1, 0, 0, 0]);
    let cancel = faults([0, 1, 0, 0, 1, 0, 0]);
    let flawed = |flaw, kind, faults| Protocol { flaw, ..Protocol::new(kind, faults) };
    vec![
        (Protocol::new(Kind::LeaseOnly, expiry), Promise::BeginsOnce),
        (Protocol::new(Kind::LookupFirst, expiry), Promise::BeginsOnce),
        (Protocol::new(Kind::LeaseOnly, cancel), Promise::NothingBeginsCanceled),
        (Protocol::new(Kind::FenceForTheFirst, crash), Promise::EndsAreTrue),
        (Protocol::new(Kind::FenceLeftOpen, faults([0, 0, 0, 0, 1, 0, 0])), Promise::NothingBeginsCanceled),
        (Protocol::new(Kind::IdsReturn, late), Promise::BeginsOnce),
        (Protocol::new(Kind::UniqueName, Faults { forgets: 1, ..expiry }), Promise::BeginsOnce),
        (flawed(Flaw::RecordOverwrites, Kind::TwoPhase, expiry), Promise::BeginsOnce),
        (flawed(Flaw::RecordOfAnyClaim, Kind::TwoPhase, cancel), Promise::EverythingSettles),
        (
            flawed(Flaw::NothingIsHeld, Kind::TwoPhase, faults([0, 0, 1, 0, 0, 0, 0])),
            Promise::EverythingSettles,
        ),
        (flawed(Flaw::EndOverwrites, Kind::TwoPhaseByName, expiry), Promise::EndsStand),
    ]
}

impl Report {
    /// How it was broken, if it was.
    pub fn found(&self, promise: Promise) -> Option<&Broken> {
        self.broken.iter().find(|broken| broken.promise == promise.name())
    }
}
