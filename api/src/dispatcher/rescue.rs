//! Who is dead, and who adopts what they left.
//!
//! Sans-IO: [`Rescue::step`] takes an [`Input`] and says which [`Effect`]s to perform; it does no I/O, reads no clock and
//! is deterministic. One round: read the workers, fetch jobs of those taken for dead, send each job's hint to a worker
//! that can act where the job is, tell the jobs nobody can act on, rest.
//!
//! An expired lease is taken for a death only after a whole lease of healthy reads of our own: while the store was away
//! nobody could renew. When more than half of the workers expire at once, that is more likely an outage than so many
//! deaths, and they get one lease more.
//!
//! Stranded jobs are hinted to workers' own queues, never to the cluster's: there they would wait behind fresh jobs that
//! a full worker does not take, while adopting needs no room.

mod deaths;

use super::plan::Rest;
use chrono::{DateTime, Utc};
use deaths::Deaths;
use jobgate_shared::{
    domain::{ClusterName, JobId, Reach, WorkerId},
    store::{Stranded, StrandedJob, Vanished, Worker},
    wire::MAX_HINT,
};
use std::{collections::BTreeMap, time::Duration};

/// Jobs fetched in one statement.
pub const MAX_FETCH: u32 = 1_000;
/// Between two reads of the workers.
pub const TICK: Duration = Duration::from_millis(500);
/// How often a job nobody can act on is looked at again.
const TELL_EVERY: Duration = Duration::from_mins(1);
/// For how long a reach must have been seen vanished, before anything on it may be lost: a fleet that starts anew
/// after a long time needs a while to come up.
const SEEN_VANISHED: Duration = Duration::from_mins(10);

/// What the rescuer goes by.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// How long a worker's lease runs.
    pub lease: Duration,
    /// How long a hint is given to be claimed.
    pub hint_for: Duration,
    /// Whoever was dead when this process began is dead: no other process can open the store.
    pub sole: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The rest is over.
    Rested,
    /// The workers at this wall time; `None` when the store is away.
    Workers(Option<Vec<Worker>>, DateTime<Utc>),
    /// Jobs of the dead, marked hinted; `None` when the store is away.
    Fetched(Option<Vec<Stranded>>),
    /// The hints are out, except for these jobs.
    Published(Vec<JobId>),
    /// The jobs were told, or will be another time.
    Told,
    /// The store forgot those hints, or it will by itself.
    Unhinted,
    /// The broker takes messages, or takes none.
    Broker(bool),
}

/// A hint to one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToWorker {
    /// Who.
    pub worker: WorkerId,
    /// Whose jobs, for the metrics.
    pub cluster: ClusterName,
    /// Which.
    pub jobs: Vec<JobId>,
}

/// Something to do; every one but the last three is answered by an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read the workers.
    ReadWorkers,
    /// Fetch stranded jobs of these (and of nobody).
    Fetch {
        /// Whose.
        dead: Vec<WorkerId>,
        /// At most so many.
        limit: u32,
        /// How long they are given to be adopted.
        hint_for: Duration,
    },
    /// Publish these hints.
    Publish(Vec<ToWorker>),
    /// Tell jobs that nobody can act on them; `may_lose` when it is long enough ago that we first saw that.
    Tell {
        /// Which.
        jobs: Vec<Vanished>,
        /// The store may give up those vanished for too long.
        may_lose: bool,
    },
    /// Forget that these were hinted.
    Unhint(Vec<JobId>),
    /// How many workers take new work, by cluster.
    Serving(BTreeMap<ClusterName, u32>),
    /// So many workers are newly taken for dead.
    Deaths(u64),
    /// The round is over: wake me.
    Rest(Rest),
}

/// Where a job can be adopted.
type Place = (ClusterName, Option<Reach>);

/// Jobs nobody can adopt for now.
#[derive(Debug, Clone)]
struct Gone {
    /// Since when there is no worker, by the store's clock as far as it is known.
    since: DateTime<Utc>,
    /// Since when we see that.
    seen: Duration,
    /// When each job was told last.
    told: BTreeMap<JobId, Duration>,
}

/// A round under way.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    open: usize,
    more: bool,
    trouble: bool,
}

/// The deciding half of the rescuer.
#[derive(Debug, Clone)]
pub struct Rescue {
    rules: Rules,
    broker: bool,
    deaths: Deaths,
    workers: Vec<Worker>,
    wall: DateTime<Utc>,
    gone: BTreeMap<Place, Gone>,
    /// When the jobs of the dead nobody can help are looked at next.
    ask_hopeless: Option<Duration>,
    /// The fetch under way is for those too.
    asked_hopeless: bool,
    /// Where the next share begins, so that the first worker is not always the one with the most.
    turn: usize,
    round: Option<Round>,
}

impl Rescue {
    /// Knows nobody yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            broker: false,
            deaths: Deaths::new(rules.lease, rules.sole),
            workers: Vec::new(),
            wall: DateTime::UNIX_EPOCH,
            gone: BTreeMap::new(),
            ask_hopeless: None,
            asked_hopeless: false,
            turn: 0,
            round: None,
        }
    }

    /// Takes one input, at a time counted from any fixed moment, and appends what to do about it.
    pub fn step(&mut self, now: Duration, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Rested => self.begin(effects),
            Input::Workers(Some(workers), wall) => {
                self.wall = wall;
                self.read(now, workers, effects);
            }
            Input::Workers(None, _) => {
                self.deaths.unhealthy();
                self.answered(|round| round.trouble = true);
            }
            Input::Fetched(Some(groups)) => self.fetched(now, groups, effects),
            Input::Fetched(None) => self.answered(|round| round.trouble = true),
            Input::Published(failed) => {
                if !failed.is_empty() {
                    self.push(effects, Effect::Unhint(failed));
                }
                self.answered(|_| ());
            }
            Input::Told | Input::Unhinted => self.answered(|_| ()),
            Input::Broker(takes) => self.broker = takes,
        }
        if self.round.is_some_and(|round| round.open == 0) {
            self.finish(effects);
        }
    }

    fn begin(&mut self, effects: &mut Vec<Effect>) {
        if self.round.is_none() {
            self.round = Some(Round::default());
            self.push(effects, Effect::ReadWorkers);
        }
    }

    fn read(&mut self, now: Duration, workers: Vec<Worker>, effects: &mut Vec<Effect>) {
        let newly_dead = self.deaths.read(now, &workers);
        if newly_dead > 0 {
            effects.push(Effect::Deaths(newly_dead));
        }
        self.workers = workers;
        effects.push(Effect::Serving(self.serving()));
        self.welcome(effects);
        self.ask_hopeless.get_or_insert(now + TELL_EVERY);
        if self.broker {
            self.fetch(now, effects);
        }
        self.answered(|_| ());
    }

    fn serving(&self) -> BTreeMap<ClusterName, u32> {
        let mut serving = BTreeMap::new();
        for worker in self.workers.iter().filter(|w| takes(w)) {
            for cluster in &worker.clusters {
                *serving.entry(cluster.name.clone()).or_default() += 1;
            }
        }
        serving
    }

    /// Jobs that waited for somebody who is there again are to be hinted now, not when their mark runs out.
    fn welcome(&mut self, effects: &mut Vec<Effect>) {
        let back: Vec<Place> =
            self.gone.keys().filter(|place| !adopters(&self.workers, place).is_empty()).cloned().collect();
        let waited: Vec<JobId> = back
            .iter()
            .filter_map(|place| self.gone.remove(place))
            .flat_map(|gone| gone.told.into_keys())
            .collect();
        if !waited.is_empty() {
            self.push(effects, Effect::Unhint(waited));
        }
    }

    fn fetch(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let taken = self.deaths.taken();
        let dead: Vec<&Worker> = self.workers.iter().filter(|w| taken.contains(&w.id)).collect();
        let mut ask: Vec<WorkerId> = dead.iter().filter(|w| self.can_be_helped(w)).map(|w| w.id).collect();
        // Marking jobs over and over that nobody can take would be work for nothing.
        self.asked_hopeless = self.ask_hopeless.is_some_and(|at| now >= at);
        if self.asked_hopeless {
            ask = dead.iter().map(|w| w.id).collect();
            self.ask_hopeless = Some(now + TELL_EVERY);
            self.forget(now);
        } else if !self.workers.iter().any(takes) {
            return;
        }
        let hint_for = self.rules.hint_for;
        self.push(effects, Effect::Fetch { dead: ask, limit: MAX_FETCH, hint_for });
    }

    fn can_be_helped(&self, dead: &Worker) -> bool {
        let holds = |cluster: &jobgate_shared::store::WorkerCluster| {
            // What it had recorded lives in its reach; what it had only claimed, anywhere.
            let recorded = (cluster.name.clone(), cluster.reach.clone());
            let claimed = (cluster.name.clone(), None);
            [recorded, claimed].iter().any(|place| !adopters(&self.workers, place).is_empty())
        };
        dead.clusters.iter().any(holds)
    }

    fn fetched(&mut self, now: Duration, groups: Vec<Stranded>, effects: &mut Vec<Effect>) {
        let jobs: usize = groups.iter().map(|group| group.jobs.len()).sum();
        let mut hints = Vec::new();
        for Stranded { cluster, reach, owner: _, jobs } in groups {
            let place = (cluster, reach);
            let adopters = adopters(&self.workers, &place);
            if adopters.is_empty() {
                self.nobody_for(now, place, &jobs, effects);
            } else {
                let hints_here = share(&place.0, &jobs, &adopters, self.turn);
                self.turn = self.turn.wrapping_add(hints_here.len());
                hints.extend(hints_here);
            }
        }
        if !hints.is_empty() {
            self.push(effects, Effect::Publish(hints));
        }
        let more = jobs >= MAX_FETCH as usize;
        if more && self.asked_hopeless {
            self.ask_hopeless = Some(now);
        }
        self.answered(|round| round.more = more);
    }

    fn nobody_for(&mut self, now: Duration, place: Place, jobs: &[StrandedJob], effects: &mut Vec<Effect>) {
        let since = self.left_at(&place);
        // Without a reach any worker of the cluster would do; and one that drains is still there.
        let vanished = place.1.is_some() && !self.workers.iter().any(|w| w.alive && serves(w, &place));
        let gone = self.gone.entry(place).or_insert_with(|| Gone { since, seen: now, told: BTreeMap::new() });
        let due = |told: Option<&Duration>| told.is_none_or(|at| now >= *at + TELL_EVERY);
        let tell: Vec<JobId> = jobs.iter().map(|j| j.job).filter(|job| due(gone.told.get(job))).collect();
        gone.told.extend(tell.iter().map(|job| (*job, now)));
        if vanished && !tell.is_empty() {
            let jobs = tell.into_iter().map(|job| Vanished { job, since: gone.since }).collect();
            let may_lose = now >= gone.seen + SEEN_VANISHED;
            self.push(effects, Effect::Tell { jobs, may_lose });
        }
    }

    /// Forgets jobs that have not been fetched for long: they were adopted, or have ended.
    fn forget(&mut self, now: Duration) {
        for gone in self.gone.values_mut() {
            gone.told.retain(|_, at| now < *at + 3 * TELL_EVERY);
        }
        self.gone.retain(|_, gone| !gone.told.is_empty());
    }

    /// When the last worker of a place left it: the end of its lease, or now, when there is no trace of any.
    fn left_at(&self, place: &Place) -> DateTime<Utc> {
        let was_there = |worker: &&Worker| !worker.alive && serves(worker, place);
        self.workers.iter().filter(was_there).map(|w| w.expires_at).max().unwrap_or(self.wall)
    }

    fn push(&mut self, effects: &mut Vec<Effect>, effect: Effect) {
        if let Some(round) = &mut self.round {
            round.open += 1;
        }
        effects.push(effect);
    }

    fn answered(&mut self, note: impl FnOnce(&mut Round)) {
        if let Some(round) = &mut self.round {
            round.open = round.open.saturating_sub(1);
            note(round);
        }
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        let Some(round) = self.round.take() else { return };
        let rest = match (round.trouble, round.more) {
            (true, _) => Rest::Retry,
            (false, true) => Rest::For(Duration::ZERO),
            (false, false) => Rest::For(TICK),
        };
        effects.push(Effect::Rest(rest));
    }
}

/// Acts where `place` is; a job that lives nowhere yet can be acted on anywhere its cluster is served.
fn serves(worker: &Worker, (cluster, reach): &Place) -> bool {
    worker.clusters.iter().any(|c| c.name == *cluster && (reach.is_none() || c.reach == *reach))
}

/// It is there and takes new work.
fn takes(worker: &Worker) -> bool {
    worker.alive && !worker.draining
}

/// Who can adopt jobs of a place; those whose manager answers, if there are any.
fn adopters(workers: &[Worker], place: &Place) -> Vec<WorkerId> {
    let there: Vec<&Worker> = workers.iter().filter(|w| takes(w) && serves(w, place)).collect();
    let answers = |worker: &&&Worker| worker.clusters.iter().any(|c| c.name == place.0 && c.parked.is_none());
    let well: Vec<WorkerId> = there.iter().filter(answers).map(|w| w.id).collect();
    if well.is_empty() { there.iter().map(|w| w.id).collect() } else { well }
}

/// Deals jobs out evenly, beginning with the `turn`th worker; suspects alone.
fn share(cluster: &ClusterName, jobs: &[StrandedJob], adopters: &[WorkerId], turn: usize) -> Vec<ToWorker> {
    let (suspects, others): (Vec<StrandedJob>, Vec<StrandedJob>) =
        jobs.iter().copied().partition(|job| job.suspect);
    let size = others.len().div_ceil(adopters.len().max(1)).clamp(1, MAX_HINT);
    let alone = suspects.iter().map(|suspect| vec![suspect.job]);
    let together = others.chunks(size).map(|chunk| chunk.iter().map(|job| job.job).collect());
    let workers = adopters.iter().cycle().skip(turn % adopters.len().max(1));
    let hint = |(jobs, worker): (Vec<JobId>, &WorkerId)| ToWorker {
        worker: *worker,
        cluster: cluster.clone(),
        jobs,
    };
    together.chain(alone).zip(workers).map(hint).collect()
}

#[cfg(test)]
mod tests;
