//! What every part of a run shares: the plan, the dice, the time, what was seen, and the trace.

use crate::{
    dice::Dice,
    plan::{Fault, Link, Outcome, Plan},
};
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use jobgate_shared::{clock::Clock, supervise::Tasks};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// How often what was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) faults: BTreeMap<Fault, u32>,
    pub(crate) outcomes: BTreeMap<Outcome, u32>,
}

/// What becomes of a call on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fate {
    /// It arrives, and so does its answer.
    Through { there: Duration, back: Duration },
    /// It never arrives.
    LostThere { wait: Duration },
    /// It arrives, and its answer does not.
    LostBack { there: Duration, wait: Duration },
    /// It arrives long after its sender has given it up.
    Late { by: Duration, wait: Duration },
}

/// One run's world.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) began: Instant,
    dice: Mutex<Dice>,
    seen: Mutex<Seen>,
    wrongs: Mutex<Vec<String>>,
    trace: Option<Mutex<Vec<String>>>,
    /// No fault strikes any more.
    calm: AtomicBool,
    store_away: AtomicBool,
    /// What is on its way although nobody waits for it.
    flying: AtomicUsize,
    /// Carries that, and plays the clients.
    pub(crate) outside: Tasks,
}

pub(crate) fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn new(plan: Plan, traced: bool) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            dice: Mutex::new(Dice::new(plan.seed.rotate_left(32))),
            seen: Mutex::default(),
            wrongs: Mutex::default(),
            trace: traced.then(Mutex::default),
            calm: AtomicBool::new(false),
            store_away: AtomicBool::new(false),
            flying: AtomicUsize::new(0),
            outside: Tasks::default(),
            plan,
        })
    }

    /// Since the run began.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn dice(&self) -> MutexGuard<'_, Dice> {
        lock(&self.dice)
    }

    /// A line of the trace, if anybody reads it.
    pub(crate) fn say(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let line = format!("{:>7} {}", self.now().as_millis(), line());
            lock(trace).push(line);
        }
    }

    /// Something that must never be.
    pub(crate) fn wrong(&self, what: impl FnOnce() -> String) {
        let mut wrongs = lock(&self.wrongs);
        if wrongs.len() < 20 {
            let what = format!("{:>7} {}", self.now().as_millis(), what());
            self.say(|| format!("WRONG {what}"));
            wrongs.push(what);
        }
    }

    pub(crate) fn wrongs(&self) -> Vec<String> {
        lock(&self.wrongs).clone()
    }

    pub(crate) fn taken_trace(&self) -> Vec<String> {
        self.trace.as_ref().map(|trace| std::mem::take(&mut *lock(trace))).unwrap_or_default()
    }

    pub(crate) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    pub(crate) fn struck(&self, fault: Fault) {
        *lock(&self.seen).faults.entry(fault).or_default() += 1;
    }

    pub(crate) fn came(&self, outcome: Outcome) {
        *lock(&self.seen).outcomes.entry(outcome).or_default() += 1;
    }

    /// Whether this fault strikes here and now.
    pub(crate) fn strikes(&self, fault: Fault) -> bool {
        if self.is_calm() || !self.plan.has(fault) {
            return false;
        }
        let struck = self.dice().chance(self.plan.rate(fault));
        if struck {
            self.struck(fault);
        }
        struck
    }

    /// From now on nothing goes wrong.
    pub(crate) fn calm_down(&self) {
        self.calm.store(true, Ordering::SeqCst);
        self.store_away.store(false, Ordering::SeqCst);
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::SeqCst)
    }

    pub(crate) fn set_store_away(&self, away: bool) {
        self.store_away.store(away, Ordering::SeqCst);
    }

    /// What becomes of a call over this link, which may be cut.
    pub(crate) fn fate(&self, link: Link, cut: bool) -> Fate {
        if self.is_calm() {
            return Fate::Through { there: Duration::ZERO, back: Duration::ZERO };
        }
        let [lost, unanswered, late] = match link {
            Link::Store => [Fault::StoreCallLost, Fault::UnknownCommit, Fault::LateCommit].map(Some),
            Link::Broker => [Some(Fault::PublishLost), Some(Fault::ConfirmLost), None],
            Link::Manager => [Fault::ManagerCallLost, Fault::ManagerReplyLost, Fault::LateSubmit].map(Some),
        };
        let strikes = |fault: Option<Fault>| fault.is_some_and(|fault| self.strikes(fault));
        let struck = [strikes(lost), strikes(unanswered), strikes(late)];
        let mut dice = self.dice();
        let (there, back) = (transit(&mut dice), transit(&mut dice));
        // A manager that does not answer costs as much patience as a worker has.
        let wait = match link {
            Link::Store | Link::Broker => dice.millis(0, 1_500),
            Link::Manager => dice.millis(0, 2_000),
        };
        if cut || link == Link::Store && self.store_away.load(Ordering::SeqCst) {
            // What was on its way when the line went down may have arrived.
            return if dice.chance(100) { Fate::LostBack { there, wait } } else { Fate::LostThere { wait } };
        }
        let latest = match link {
            Link::Store | Link::Broker => self.plan.late_commit,
            Link::Manager => self.plan.latest,
        };
        let latest = u64::try_from(latest.as_millis()).unwrap_or(u64::MAX);
        match struck {
            [true, _, _] => Fate::LostThere { wait },
            [_, true, _] => Fate::LostBack { there, wait },
            [_, _, true] => Fate::Late { by: dice.millis(0, latest), wait },
            [false, false, false] => Fate::Through { there, back },
        }
    }

    /// Lets something happen later, whoever is still there then.
    pub(crate) fn later(self: &Arc<Self>, by: Duration, what: BoxFuture<'static, ()>) {
        let world = self.clone();
        self.flying.fetch_add(1, Ordering::SeqCst);
        self.outside.spawn("later", async move {
            tokio::time::sleep(by).await;
            what.await;
            world.flying.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// Something is still on its way.
    pub(crate) fn is_flying(&self) -> bool {
        self.flying.load(Ordering::SeqCst) > 0
    }
}

/// How long a message takes: half of them none that can be seen.
fn transit(dice: &mut Dice) -> Duration {
    Duration::from_millis(dice.below(8).saturating_sub(4))
}

/// Wall time that follows the run's time, right or wrong by a constant.
#[derive(Debug)]
pub(crate) struct RunClock {
    began: Instant,
    skew: chrono::TimeDelta,
}

impl RunClock {
    pub(crate) fn new(world: &World, skew: chrono::TimeDelta) -> Arc<Self> {
        Arc::new(Self { began: world.began, skew })
    }
}

impl Clock for RunClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + Duration::from_hours(24 * 365 * 57) + self.began.elapsed() + self.skew
    }
}
