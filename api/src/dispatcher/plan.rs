//! Which waiting jobs are hinted, when, and in which messages.
//!
//! Sans-IO: [`Plan::step`] takes an [`Input`] and says which [`Effect`]s to perform; it does no I/O, reads no clock and is
//! deterministic. One round: look at what each cluster has outstanding, ask the broker where hints ran out, fetch as
//! many due jobs as there is room for, publish them, rest.
//!
//! *Room.* A cluster may have so many jobs hinted as its window says, never more than the limit. The window begins small,
//! doubles when half of it is empty while jobs wait, and halves while hints run out unclaimed in a queue that holds them:
//! what is hinted is beyond the reach of priority, so a slow cluster should have little of it. Where an operator limits how many
//! jobs are in flight, no more are hinted than may be claimed.
//!
//! *Hinting again.* That a row's hint ran out says nothing about the message, which a long queue may still hold. It is
//! lost for certain when all messages in the queue, each as full as can be, could not hold the jobs whose hints ran out:
//! those are published again at once. The queue that holds them after that proves the opposite, so a merely long queue is
//! never doubled, and a purged one is filled again one `hint_ttl` and one look after the purge. A hint lost from
//! within a queue that never runs low is published again after [`PATIENCE`].

mod queue;

use jobgate_shared::{
    domain::{ClusterName, JobId},
    store::{Due, Hinted},
    wire::MAX_HINT,
};
use queue::{Queue, messages};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Jobs a cluster has hinted at most before it has shown to be quick.
pub const FIRST_WINDOW: u64 = 200;
/// Jobs fetched in one statement: a bound on its time, and on how far several dispatchers can overshoot together.
pub const MAX_FETCH: u64 = 2_000;
/// How long after its end a hint that may still be in the queue is published again all the same.
pub const PATIENCE: Duration = Duration::from_mins(10);
/// Between two looks of a dispatcher that has nothing to do.
pub const IDLE: Duration = Duration::from_secs(1);
/// Between two looks that found something to do.
const BUSY: Duration = Duration::from_millis(20);
/// A look that took a while is followed by a rest at least this many times as long.
const LOOKS_COST: u32 = 4;
/// Between two looks, when acceptance asks for one; doubled up to [`CHANGED_GAP`] while they find nothing to do.
const WANTED_GAP: Duration = Duration::from_millis(10);
/// Between two looks, when something changed somewhere.
const CHANGED_GAP: Duration = Duration::from_millis(200);
/// For how long an answer of the broker, or the operators' settings, are as good as new.
const FRESH: Duration = Duration::from_secs(1);
const SETTINGS_FRESH: Duration = Duration::from_secs(5);
/// A window this long without a waiting job is forgotten.
const FORGET_AFTER: Duration = Duration::from_mins(1);
/// Where a broker does not tell, a hint is taken for lost this many lifetimes after its end.
const UNTOLD_LIFETIMES: u32 = 6;

/// What an operator sets.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Jobs of one cluster hinted at once, at most.
    pub outstanding: u64,
    /// How long a hint is given to be claimed.
    pub hint_ttl: Duration,
}

/// Why to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The rest is over.
    Rested,
    /// Acceptance left jobs behind, or its room runs low.
    Wanted,
    /// The store holds changes; some may have made jobs due.
    Changed,
    /// A cluster was paused, resumed or limited.
    Settings,
}

/// What a look saw.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Look {
    /// What each cluster with due jobs has hinted.
    pub hinted: Vec<Hinted>,
    /// What operators set, when it was asked for.
    pub set: Option<Set>,
    /// Clusters of which acceptance had used up half its room, or was refused some, since the last look.
    pub ran_low: BTreeSet<ClusterName>,
}

/// What operators set on clusters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Set {
    /// Of these nothing fresh is claimed.
    pub paused: BTreeSet<ClusterName>,
    /// Of these no more than so many are in flight. What may be claimed is known from a look that names them, so their
    /// jobs are hinted after one, and by nobody else.
    pub limited: BTreeSet<ClusterName>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// It may be time to look.
    Wake(Wake),
    /// The look; `None` when the store is away.
    Looked(Option<Look>),
    /// Messages waiting in a cluster's queue, if the broker tells.
    Waiting(ClusterName, Option<u64>),
    /// The jobs fetched, marked hinted; `None` when the store is away.
    Fetched(ClusterName, Option<Vec<Due>>),
    /// The hints of a cluster are out, except for these jobs.
    Published(ClusterName, Vec<JobId>),
    /// The store forgot those hints, or it will by itself.
    Unhinted,
    /// The broker takes messages, or takes none.
    Broker(bool),
    /// How many workers take new work, by cluster.
    Workers(BTreeMap<ClusterName, u32>),
}

/// Something to do; every one but the last two is answered by an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Look at the store, and at the operators' settings if asked to.
    Look {
        /// Ask for the settings too.
        settings: bool,
    },
    /// Ask the broker for the length of a queue.
    AskWaiting(ClusterName),
    /// Fetch due jobs.
    Fetch {
        /// Whose.
        cluster: ClusterName,
        /// At most so many.
        limit: u32,
        /// How long they are given to be claimed.
        hint_for: Duration,
        /// How long ago an earlier hint must have run out.
        again_after: Duration,
    },
    /// Publish these messages, in order.
    Publish(ClusterName, Vec<Vec<Due>>),
    /// Forget that these were hinted.
    Unhint(Vec<JobId>),
    /// Tell acceptance how many hints it may publish itself.
    Room {
        /// By cluster.
        clusters: BTreeMap<ClusterName, u64>,
        /// For a cluster not named.
        unseen: u64,
    },
    /// The round is over: wake me.
    Rest(Rest),
}

/// For how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// So long.
    For(Duration),
    /// Something is away: longer and longer, until a round goes well.
    Retry,
}

/// A round under way.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    /// Effects not yet answered.
    open: usize,
    /// Something was fetched.
    progress: bool,
    /// There is more where that came from.
    more: bool,
    /// Something was away.
    trouble: bool,
}

/// The deciding half of the dispatcher's way out.
#[derive(Debug, Clone)]
pub struct Plan {
    limits: Limits,
    broker: bool,
    queues: BTreeMap<ClusterName, Queue>,
    set: Set,
    workers: BTreeMap<ClusterName, u32>,
    round: Option<Round>,
    /// What came in while a round was under way.
    woken: Option<Wake>,
    looked: Option<Duration>,
    /// How long the last look took to be answered.
    look_took: Duration,
    settings: Option<Duration>,
    quiet: Duration,
    wanted_gap: Duration,
    /// The last round met something that was away.
    troubled: bool,
}

impl Plan {
    /// Knows nothing yet; does nothing before it is told that the broker takes messages.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            broker: false,
            queues: BTreeMap::new(),
            set: Set::default(),
            workers: BTreeMap::new(),
            round: None,
            woken: None,
            looked: None,
            look_took: Duration::ZERO,
            settings: None,
            quiet: BUSY,
            wanted_gap: WANTED_GAP,
            troubled: false,
        }
    }

    /// Takes one input, at a time counted from any fixed moment, and appends what to do about it.
    pub fn step(&mut self, now: Duration, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Wake(wake) => self.wake(now, wake, effects),
            Input::Looked(Some(look)) => self.looked(now, look, effects),
            Input::Looked(None) => self.answered(|round| round.trouble = true),
            Input::Waiting(cluster, messages) => self.waiting(now, &cluster, messages, effects),
            Input::Fetched(cluster, Some(due)) => self.fetched(&cluster, due, effects),
            Input::Fetched(_, None) => self.answered(|round| round.trouble = true),
            Input::Published(cluster, failed) => self.published(&cluster, failed, effects),
            Input::Unhinted => self.answered(|_| ()),
            Input::Broker(takes) => self.broker(now, takes, effects),
            Input::Workers(workers) => self.workers = workers,
        }
        if self.round.is_some_and(|round| round.open == 0) {
            self.finish(now, effects);
        }
    }

    fn broker(&mut self, now: Duration, takes: bool, effects: &mut Vec<Effect>) {
        let came = takes && !self.broker;
        self.broker = takes;
        self.troubled &= !came;
        if !takes {
            effects.push(Effect::Room { clusters: BTreeMap::new(), unseen: 0 });
        } else if came && self.round.is_none() {
            self.look(now, effects);
        }
    }

    fn wake(&mut self, now: Duration, wake: Wake, effects: &mut Vec<Effect>) {
        if wake == Wake::Settings {
            self.settings = None;
        }
        // Whatever is away is asked again when the rest for that is over, not before.
        if !self.broker || self.troubled && wake != Wake::Rested {
            return;
        }
        if self.round.is_some() {
            let before = self.woken.filter(|before| self.gap(*before) <= self.gap(wake));
            self.woken = before.or(Some(wake));
            return;
        }
        match self.looked.map(|at| (at + self.gap(wake)).saturating_sub(now)) {
            Some(left) if !left.is_zero() => effects.push(Effect::Rest(Rest::For(left))),
            Some(_) | None => self.look(now, effects),
        }
    }

    fn look(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let settings = self.settings.is_none_or(|at| now >= at + SETTINGS_FRESH);
        self.looked = Some(now);
        self.round = Some(Round { open: 1, ..Round::default() });
        effects.push(Effect::Look { settings });
    }

    fn looked(&mut self, now: Duration, look: Look, effects: &mut Vec<Effect>) {
        self.look_took = self.looked.map_or(Duration::ZERO, |at| now.saturating_sub(at));
        if let Some(set) = look.set {
            self.set = set;
            self.settings = Some(now);
        }
        self.queues.retain(|_, queue| now < queue.seen + FORGET_AFTER);
        let first = FIRST_WINDOW.min(self.limits.outstanding);
        for cluster in &look.ran_low {
            self.queues.entry(cluster.clone()).or_insert_with(|| Queue::new(first, now)).seen = now;
        }
        for (cluster, queue) in &mut self.queues {
            if !look.hinted.iter().any(|hinted| hinted.cluster == *cluster) {
                queue.nothing_due();
                if self.set.limited.contains(cluster) {
                    queue.left = 0;
                } else if look.ran_low.contains(cluster) {
                    queue.grow(self.limits);
                    queue.left = queue.window;
                    self.wanted_gap = WANTED_GAP;
                }
            }
        }
        for Hinted { cluster, outstanding, expired, room } in look.hinted {
            let queue = self.queues.entry(cluster.clone()).or_insert_with(|| Queue::new(first, now));
            queue.see(now, outstanding, expired, room);
            if look.ran_low.contains(&cluster) && queue.is_quick() && room.is_none() {
                // Acceptance was faster than the looks, and the workers than both.
                queue.pressed = true;
                self.wanted_gap = WANTED_GAP;
            }
            if self.set.paused.contains(&cluster) {
                queue.left = 0;
            } else if queue.must_ask(now) {
                self.expect();
                effects.push(Effect::AskWaiting(cluster));
            } else {
                self.fetch(now, &cluster, effects);
            }
        }
        self.answered(|_| ());
    }

    fn waiting(
        &mut self,
        now: Duration,
        cluster: &ClusterName,
        messages: Option<u64>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(queue) = self.queues.get_mut(cluster) {
            queue.asked = Some(now);
            queue.told = messages.is_some();
            if messages.is_some_and(|m| m.saturating_mul(MAX_HINT as u64) < queue.expired) {
                queue.lost = queue.expired;
            }
            self.fetch(now, cluster, effects);
        }
        self.answered(|_| ());
    }

    fn fetch(&mut self, now: Duration, cluster: &ClusterName, effects: &mut Vec<Effect>) {
        let limits = self.limits;
        let Some(queue) = self.queues.get_mut(cluster) else { return };
        queue.resize(now, limits);
        queue.limit = queue.room(limits.outstanding).min(MAX_FETCH);
        if queue.limit > 0 {
            let again_after = queue.again_after(limits.hint_ttl);
            let limit = u32::try_from(queue.limit).unwrap_or(u32::MAX);
            self.expect();
            let cluster = cluster.clone();
            effects.push(Effect::Fetch { cluster, limit, hint_for: limits.hint_ttl, again_after });
        }
    }

    fn fetched(&mut self, cluster: &ClusterName, due: Vec<Due>, effects: &mut Vec<Effect>) {
        let fetched = due.len() as u64;
        let mut more = false;
        if let Some(queue) = self.queues.get_mut(cluster) {
            let again = due.iter().filter(|d| d.again).count() as u64;
            queue.lost = queue.lost.saturating_sub(again);
            let all = fetched >= queue.limit;
            // A window does not grow because there was no room to claim.
            queue.pressed = all && queue.claimable.is_none();
            queue.left = queue.left.saturating_sub(fetched);
            if all {
                // Others wait: who goes next is decided by priority, so acceptance may not pass them.
                queue.left = 0;
                more = queue.limit == MAX_FETCH || queue.lost > 0;
            } else {
                queue.lost = 0;
            }
        }
        self.answered(|round| {
            round.progress |= fetched > 0;
            round.more |= more;
        });
        if fetched > 0 {
            self.expect();
            let workers = self.workers.get(cluster).copied().unwrap_or(1);
            effects.push(Effect::Publish(cluster.clone(), messages(due, workers)));
        }
    }

    fn published(&mut self, cluster: &ClusterName, failed: Vec<JobId>, effects: &mut Vec<Effect>) {
        if failed.is_empty() {
            return self.answered(|_| ());
        }
        if let Some(queue) = self.queues.get_mut(cluster) {
            queue.left = 0;
        }
        self.expect();
        effects.push(Effect::Unhint(failed));
        self.answered(|round| round.trouble = true);
    }

    fn expect(&mut self) {
        if let Some(round) = &mut self.round {
            round.open += 1;
        }
    }

    fn answered(&mut self, note: impl FnOnce(&mut Round)) {
        if let Some(round) = &mut self.round {
            round.open = round.open.saturating_sub(1);
            note(round);
        }
    }

    fn gap(&self, wake: Wake) -> Duration {
        match wake {
            Wake::Rested | Wake::Settings => Duration::ZERO,
            Wake::Wanted => self.wanted_gap,
            Wake::Changed => CHANGED_GAP,
        }
    }

    fn finish(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let Some(round) = self.round.take() else { return };
        let woken = self.woken.take();
        self.troubled = round.trouble;
        if round.trouble {
            self.queues.values_mut().for_each(|queue| queue.lost = 0);
        }
        if !self.broker {
            // Its coming back begins the next round.
            return;
        }
        if !round.trouble {
            let unseen = FIRST_WINDOW.min(self.limits.outstanding);
            let mut clusters: BTreeMap<_, _> =
                self.queues.iter().map(|(cluster, queue)| (cluster.clone(), queue.left)).collect();
            clusters.extend(self.set.paused.iter().map(|cluster| (cluster.clone(), 0)));
            for cluster in &self.set.limited {
                clusters.entry(cluster.clone()).or_insert(0);
            }
            effects.push(Effect::Room { clusters, unseen });
        }
        if round.progress {
            (self.quiet, self.wanted_gap) = (BUSY, WANTED_GAP);
        }
        // A long queue is looked at again soon, but not so often that looking is what the store is busy with.
        let pace = (self.look_took * LOOKS_COST).min(CHANGED_GAP);
        let rest = if round.trouble {
            Rest::Retry
        } else if round.more {
            Rest::For(pace)
        } else {
            let woken = woken.map(|wake| (self.looked.unwrap_or(now) + self.gap(wake)).saturating_sub(now));
            let rest = woken.unwrap_or(self.quiet).min(self.quiet).max(pace);
            if !round.progress {
                self.quiet = (self.quiet * 2).min(IDLE);
                self.wanted_gap = (self.wanted_gap * 2).min(CHANGED_GAP);
            }
            Rest::For(rest)
        };
        effects.push(Effect::Rest(rest));
    }
}

#[cfg(test)]
mod tests;
