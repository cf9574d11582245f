//! Which workers are taken for dead.

use chrono::{DateTime, Utc};
use jobgate_shared::{domain::WorkerId, store::Worker};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What reads of the workers have shown so far.
#[derive(Debug, Clone)]
pub(super) struct Deaths {
    lease: Duration,
    sole: bool,
    /// Since when every read has been answered.
    healthy_since: Option<Duration>,
    last_read: Option<Duration>,
    /// When the leases of the living end: one that ends earlier than that was ended on purpose.
    leases: BTreeMap<WorkerId, DateTime<Utc>>,
    /// Expired, and since when we see that.
    expired: BTreeMap<WorkerId, Duration>,
    taken: BTreeSet<WorkerId>,
}

impl Deaths {
    pub(super) fn new(lease: Duration, sole: bool) -> Self {
        Self {
            lease,
            sole,
            healthy_since: None,
            last_read: None,
            leases: BTreeMap::new(),
            expired: BTreeMap::new(),
            taken: BTreeSet::new(),
        }
    }

    /// A read was not answered: what expired meanwhile may only have been unable to renew.
    pub(super) fn unhealthy(&mut self) {
        self.healthy_since = None;
        self.last_read = None;
        self.expired.clear();
        // A store that went down may have forgotten its last renewals, which would look like an end on purpose.
        self.leases.clear();
    }

    /// Takes a read; answers how many workers are newly taken for dead whose leases ran out while we watched.
    pub(super) fn read(&mut self, now: Duration, workers: &[Worker]) -> u64 {
        // Not having read is no better than not having been answered.
        if self.last_read.is_some_and(|at| now > at + self.lease / 2) {
            self.unhealthy();
        }
        let began = *self.healthy_since.get_or_insert(now);
        self.last_read = Some(now);

        let dead: BTreeMap<WorkerId, DateTime<Utc>> =
            workers.iter().filter(|w| !w.alive).map(|w| (w.id, w.expires_at)).collect();
        self.taken.retain(|id| dead.contains_key(id));
        self.expired.retain(|id, _| dead.contains_key(id));
        for (id, ended) in &dead {
            let on_purpose = self.leases.get(id).is_some_and(|lease| ended < lease);
            if self.sole || on_purpose {
                self.taken.insert(*id);
            } else if !self.taken.contains(id) {
                self.expired.entry(*id).or_insert(now);
            }
        }
        // Only what was here at the first look is another process's.
        self.sole = false;

        let alive = workers.iter().filter(|w| w.alive);
        let outage = self.expired.len() > alive.clone().count();
        let patience = if outage { self.lease } else { Duration::ZERO };
        let ripe = |since: Duration| now >= since.max(began + self.lease) + patience;
        let ripe: Vec<WorkerId> =
            self.expired.iter().filter(|(_, since)| ripe(**since)).map(|(id, _)| *id).collect();
        let watched = ripe.iter().filter(|id| self.leases.contains_key(id)).count() as u64;
        self.expired.retain(|id, _| !ripe.contains(id));
        self.taken.extend(ripe);

        let known = std::mem::take(&mut self.leases);
        let waiting = known.into_iter().filter(|(id, _)| self.expired.contains_key(id));
        self.leases = alive.map(|w| (w.id, w.expires_at)).chain(waiting).collect();
        watched
    }

    /// Who is taken for dead now.
    pub(super) fn taken(&self) -> &BTreeSet<WorkerId> {
        &self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const LEASE: Duration = Duration::from_secs(10);
    const TICK: Duration = Duration::from_millis(500);

    fn id(n: u128) -> WorkerId {
        WorkerId(Uuid::from_u128(n + 1))
    }

    fn at(now: Duration) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + now
    }

    /// A worker whose lease ends at `ends`, as read at `now`.
    fn worker(n: u128, ends: Duration, now: Duration) -> Worker {
        Worker {
            id: id(n),
            host: String::new(),
            clusters: Vec::new(),
            registered_at: at(Duration::ZERO),
            expires_at: at(ends),
            alive: ends > now,
            draining: false,
            jobs: 0,
        }
    }

    /// Reads every half second from `from` on; answers when `n` was taken for dead.
    fn taken_at(deaths: &mut Deaths, n: u128, from: Duration, ends: &[Duration]) -> Option<Duration> {
        let mut now = from;
        while now < from + 10 * LEASE {
            let workers: Vec<Worker> = ends.iter().zip(0..).map(|(ends, n)| worker(n, *ends, now)).collect();
            deaths.read(now, &workers);
            if deaths.taken().contains(&id(n)) {
                return Some(now);
            }
            now += TICK;
        }
        None
    }

    const FOREVER: Duration = Duration::from_hours(1);

    #[test]
    fn after_a_lease_of_healthy_reads_an_expiry_is_a_death_at_once() {
        let mut deaths = Deaths::new(LEASE, false);
        let ends = [Duration::from_secs(25), FOREVER, FOREVER];
        assert_eq!(taken_at(&mut deaths, 0, Duration::ZERO, &ends), Some(Duration::from_secs(25)));
    }

    #[test]
    fn what_had_expired_at_the_first_read_is_given_a_lease() {
        let mut deaths = Deaths::new(LEASE, false);
        let ends = [Duration::ZERO, FOREVER];
        assert_eq!(taken_at(&mut deaths, 0, Duration::ZERO, &ends), Some(LEASE));
        let mut sole = Deaths::new(LEASE, true);
        assert_eq!(taken_at(&mut sole, 0, Duration::ZERO, &ends), Some(Duration::ZERO));
    }

    #[test]
    fn a_read_that_fails_or_does_not_happen_begins_the_lease_anew() {
        let ends = [Duration::from_secs(30), FOREVER];
        for failed in [true, false] {
            let mut deaths = Deaths::new(LEASE, false);
            assert_eq!(taken_at(&mut deaths, 1, Duration::ZERO, &ends[1..]), None);
            let from = Duration::from_secs(200);
            if failed {
                deaths.unhealthy();
            }
            assert_eq!(taken_at(&mut deaths, 0, from, &ends), Some(from + LEASE));
        }
    }

    #[test]
    fn when_more_than_half_expire_at_once_they_are_given_one_lease_more() {
        let end = Duration::from_secs(30);
        for (dead, alive, patience) in
            [(1, 0, LEASE), (2, 1, LEASE), (1, 1, Duration::ZERO), (2, 3, Duration::ZERO)]
        {
            let ends: Vec<Duration> = [end].repeat(dead).into_iter().chain([FOREVER].repeat(alive)).collect();
            let mut deaths = Deaths::new(LEASE, false);
            let taken = taken_at(&mut deaths, 0, Duration::ZERO, &ends);
            assert_eq!(taken, Some(end + patience), "{dead} dead, {alive} alive");
        }
    }

    #[test]
    fn a_lease_ended_on_purpose_is_believed_at_once() {
        let mut deaths = Deaths::new(LEASE, false);
        let second = Duration::from_secs(1);
        assert_eq!(deaths.read(Duration::ZERO, &[worker(0, LEASE, Duration::ZERO)]), 0);
        assert_eq!(deaths.read(second, &[worker(0, second, second)]), 0, "an end, not an expiry");
        assert!(deaths.taken().contains(&id(0)));
    }

    #[test]
    fn expiries_are_counted_when_they_were_watched() {
        let mut deaths = Deaths::new(LEASE, false);
        let (mut counted, mut now) = (0, Duration::ZERO);
        while now < 6 * LEASE {
            let workers =
                [worker(0, 2 * LEASE, now), worker(1, Duration::ZERO, now), worker(2, FOREVER, now)];
            counted += deaths.read(now, &workers);
            now += TICK;
        }
        assert_eq!((counted, deaths.taken().len()), (1, 2));
    }

    proptest! {
        /// Whatever reads fail or are left out, nobody is taken for dead who was not seen expired, in one unbroken run
        /// of reads at least a lease long.
        #[test]
        fn nobody_is_taken_for_dead_before_a_lease_of_healthy_reads(
            ends in proptest::collection::vec(0..60_u64, 1..6),
            steps in proptest::collection::vec((1..4_000_u64, any::<bool>()), 1..200),
        ) {
            let mut deaths = Deaths::new(LEASE, false);
            let (mut now, mut run_began, mut last) = (Duration::ZERO, None, None::<Duration>);
            for (millis, fails) in steps {
                now += Duration::from_millis(millis);
                if fails && millis % 7 == 0 {
                    deaths.unhealthy();
                    (run_began, last) = (None, None);
                    continue;
                }
                if last.is_some_and(|last| now > last + LEASE / 2) {
                    run_began = None;
                }
                let began = *run_began.get_or_insert(now);
                last = Some(now);
                let before = deaths.taken().clone();
                let workers: Vec<Worker> =
                    ends.iter().zip(0..).map(|(e, n)| worker(n, Duration::from_secs(*e), now)).collect();
                deaths.read(now, &workers);
                for new in deaths.taken().difference(&before) {
                    let worker = workers.iter().find(|w| w.id == *new);
                    prop_assert!(worker.is_some_and(|w| !w.alive));
                    prop_assert!(now >= began + LEASE);
                }
            }
        }
    }
}
