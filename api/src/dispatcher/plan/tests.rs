//! The plan alone, step by step, and against a small world of rows, a queue and workers.

use super::*;
use jobgate_shared::domain::JobId;
use proptest::prelude::*;
use std::collections::VecDeque;
use uuid::Uuid;

const TTL: Duration = Duration::from_secs(5);
const MAX: u64 = MAX_HINT as u64;

fn cluster() -> ClusterName {
    "local".parse().unwrap()
}

fn job(n: u128) -> JobId {
    JobId(Uuid::from_u128(n))
}

fn due(n: u128) -> Due {
    Due { job: job(n), suspect: false, again: false, waited: Duration::ZERO }
}

fn plan(outstanding: u64) -> Plan {
    let mut plan = Plan::new(Limits { outstanding, hint_ttl: TTL });
    let mut effects = Vec::new();
    plan.step(Duration::ZERO, Input::Broker(true), &mut effects);
    assert_eq!(effects, [Effect::Look { settings: true }]);
    plan
}

fn step(plan: &mut Plan, at_millis: u64, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    plan.step(Duration::from_millis(at_millis), input, &mut effects);
    effects
}

fn seen(outstanding: u64, expired: u64) -> Input {
    let hinted = vec![Hinted { cluster: cluster(), outstanding, expired, room: None }];
    Input::Looked(Some(Look { hinted, set: Some(Set::default()), ran_low: BTreeSet::new() }))
}

fn fetch(limit: u32, again_after: Duration) -> Effect {
    Effect::Fetch { cluster: cluster(), limit, hint_for: TTL, again_after }
}

fn rest(effects: &[Effect]) -> Rest {
    let Some(Effect::Rest(rest)) = effects.last() else { panic!("{effects:?}") };
    *rest
}

#[test]
fn a_quick_cluster_is_given_twice_as_much_each_time_up_to_the_limit() {
    let (mut plan, mut limits, mut at) = (plan(1_000), Vec::new(), 0);
    for _ in 0..5 {
        let effects = step(&mut plan, at, seen(0, 0));
        let [Effect::Fetch { limit, .. }] = effects[..] else { panic!("{effects:?}") };
        limits.push(limit);
        let jobs: Vec<Due> = (0..u128::from(limit)).map(due).collect();
        step(&mut plan, at, Input::Fetched(cluster(), Some(jobs)));
        let effects = step(&mut plan, at, Input::Published(cluster(), Vec::new()));
        assert_eq!(rest(&effects), Rest::For(BUSY));
        at += 20;
        assert_eq!(step(&mut plan, at, Input::Wake(Wake::Rested)), [Effect::Look { settings: false }]);
    }
    assert_eq!(limits, [200, 400, 800, 1_000, 1_000]);
}

#[test]
fn looking_is_never_most_of_what_the_store_does() {
    for (took, rest_for) in [(2, BUSY), (10, Duration::from_millis(40)), (500, CHANGED_GAP)] {
        let mut plan = plan(1_000);
        step(&mut plan, took, seen(0, 0));
        step(&mut plan, took, Input::Fetched(cluster(), Some((0..200).map(due).collect())));
        let effects = step(&mut plan, took, Input::Published(cluster(), Vec::new()));
        assert_eq!(rest(&effects), Rest::For(rest_for), "{took} ms");
    }
}

#[test]
fn a_full_window_is_left_alone_until_a_quarter_of_it_is_empty() {
    let mut plan = plan(100);
    assert_eq!(step(&mut plan, 0, seen(76, 0)).len(), 2, "room and rest only");
    step(&mut plan, 1_000, Input::Wake(Wake::Rested));
    assert_eq!(step(&mut plan, 1_000, seen(75, 0)), [fetch(25, PATIENCE)]);
}

#[test]
fn hints_that_ran_out_are_published_again_only_when_the_queue_cannot_hold_them() {
    for (messages, again_after) in [
        (Some(0), Some(Duration::ZERO)),
        (Some(1), None),
        (Some(50), None),
        // Such a broker does not tell; after so long most hints are lost indeed.
        (None, None),
    ] {
        let mut plan = plan(200);
        assert_eq!(step(&mut plan, 0, seen(0, MAX)), [Effect::AskWaiting(cluster())]);
        let effects = step(&mut plan, 1, Input::Waiting(cluster(), messages));
        match again_after {
            Some(again_after) => assert_eq!(effects, [fetch(200, again_after)]),
            None => assert_eq!(rest(&effects), Rest::For(BUSY), "{messages:?}"),
        }
    }
    let mut plan = plan(200);
    step(&mut plan, 0, seen(0, 100));
    assert_eq!(step(&mut plan, 1, Input::Waiting(cluster(), None)), [fetch(100, TTL * UNTOLD_LIFETIMES)]);
}

#[test]
fn a_purged_queue_is_filled_again_to_the_last_hint_though_it_fills_meanwhile() {
    let mut plan = plan(10_000);
    assert_eq!(step(&mut plan, 0, seen(0, 5_000)), [Effect::AskWaiting(cluster())]);
    let mut left = 5_000_u64;
    let mut effects = step(&mut plan, 0, Input::Waiting(cluster(), Some(0)));
    let mut again = Vec::new();
    while left > 0 {
        let [Effect::Fetch { limit, again_after, .. }] = effects[..] else { panic!("{effects:?}") };
        assert_eq!(again_after, Duration::ZERO);
        let fetched = left.min(u64::from(limit));
        again.push(fetched);
        left -= fetched;
        let jobs = (0..u128::from(fetched)).map(|n| Due { again: true, ..due(n) }).collect();
        step(&mut plan, 0, Input::Fetched(cluster(), Some(jobs)));
        let effects_then = step(&mut plan, 0, Input::Published(cluster(), Vec::new()));
        if left == 0 {
            break;
        }
        assert_eq!(rest(&effects_then), Rest::For(Duration::ZERO));
        step(&mut plan, 0, Input::Wake(Wake::Rested));
        effects = step(&mut plan, 0, seen(5_000 - left, left));
    }
    assert_eq!(again, [2_000, 2_000, 1_000]);
}

#[test]
fn a_slow_cluster_is_given_less_so_that_priority_decides_sooner() {
    let mut plan = plan(10_000);
    let mut at = 0;
    // Quick at first.
    for _ in 0..6 {
        let effects = step(&mut plan, at, seen(0, 0));
        let [Effect::Fetch { limit, .. }] = effects[..] else { panic!("{effects:?}") };
        let jobs: Vec<Due> = (0..u128::from(limit)).map(due).collect();
        step(&mut plan, at, Input::Fetched(cluster(), Some(jobs)));
        step(&mut plan, at, Input::Published(cluster(), Vec::new()));
        at += 20;
        step(&mut plan, at, Input::Wake(Wake::Rested));
    }
    let window = |plan: &Plan| plan.queues[&cluster()].window;
    let quick = window(&plan);
    // Then what is hinted is not claimed, and is still there.
    for _ in 0..40 {
        if step(&mut plan, at, seen(0, 2_000)) == [Effect::AskWaiting(cluster())] {
            step(&mut plan, at, Input::Waiting(cluster(), Some(10)));
        }
        at += 1_000;
        step(&mut plan, at, Input::Wake(Wake::Rested));
    }
    assert!(quick > 5_000, "{quick}");
    assert_eq!(window(&plan), FIRST_WINDOW);
}

#[test]
fn an_idle_dispatcher_looks_once_a_second() {
    let (mut plan, mut now, mut looks) = (plan(100), Duration::ZERO, 0);
    while now < Duration::from_mins(1) {
        let nothing = Input::Looked(Some(Look::default()));
        let mut effects = Vec::new();
        plan.step(now, nothing, &mut effects);
        let Rest::For(rest) = rest(&effects) else { panic!("{effects:?}") };
        now += rest;
        plan.step(now, Input::Wake(Wake::Rested), &mut effects);
        looks += 1;
    }
    assert!(looks <= 66, "{looks}");
}

/// At a steady rate acceptance publishes the hints itself; how far it may go between two looks follows the rate.
#[test]
fn acceptance_that_is_faster_than_the_looks_is_given_more_room() {
    let room = |effects: &[Effect]| {
        let [.., Effect::Room { clusters, .. }, Effect::Rest(_)] = effects else { panic!("{effects:?}") };
        clusters.get(&cluster()).copied()
    };
    let ran_low = |hinted: &[Hinted]| {
        let look = Look { hinted: hinted.to_vec(), ran_low: [cluster()].into(), ..Look::default() };
        Input::Looked(Some(look))
    };
    let few = Hinted { cluster: cluster(), outstanding: 10, expired: 0, room: None };
    let mut plan = plan(1_000);
    step(&mut plan, 0, seen(10, 0));
    assert_eq!(room(&step(&mut plan, 0, Input::Fetched(cluster(), Some(Vec::new())))), Some(190));
    step(&mut plan, 1_000, Input::Wake(Wake::Rested));
    step(&mut plan, 1_000, ran_low(std::slice::from_ref(&few)));
    assert_eq!(room(&step(&mut plan, 1_000, Input::Fetched(cluster(), Some(Vec::new())))), Some(390));
    step(&mut plan, 2_000, Input::Wake(Wake::Rested));
    assert_eq!(
        room(&step(&mut plan, 2_000, ran_low(&[]))),
        Some(800),
        "everything hinted is claimed already"
    );
    step(&mut plan, 3_000, Input::Wake(Wake::Rested));
    let full = Hinted { outstanding: 790, ..few };
    step(&mut plan, 3_000, ran_low(&[full]));
    assert_eq!(plan.queues[&cluster()].window, 800, "workers are not faster than this");
}

#[test]
fn acceptance_that_finds_no_room_does_not_make_the_dispatcher_spin() {
    let (mut plan, mut now, mut looks) = (plan(100), Duration::ZERO, 0);
    while now < Duration::from_secs(10) {
        let mut effects = Vec::new();
        plan.step(now, seen(100, 0), &mut effects);
        looks += 1;
        loop {
            now += Duration::from_millis(1);
            let mut effects = Vec::new();
            plan.step(now, Input::Wake(Wake::Wanted), &mut effects);
            if matches!(effects[..], [Effect::Look { .. }]) {
                break;
            }
        }
    }
    assert!(looks < 60, "{looks}");
}

#[test]
fn what_acceptance_may_publish_is_what_waiting_jobs_leave() {
    let room = |effects: &[Effect]| {
        let [.., Effect::Room { clusters, unseen }, Effect::Rest(_)] = effects else { panic!("{effects:?}") };
        (clusters.get(&cluster()).copied(), *unseen)
    };
    let mut plan = plan(1_000);
    assert_eq!(step(&mut plan, 0, seen(50, 0)), [fetch(150, PATIENCE)]);
    step(&mut plan, 0, Input::Fetched(cluster(), Some((0..10).map(due).collect())));
    let effects = step(&mut plan, 0, Input::Published(cluster(), Vec::new()));
    assert_eq!(room(&effects), (Some(140), 200));
    // A backlog: nobody passes it.
    step(&mut plan, 1_000, Input::Wake(Wake::Rested));
    assert_eq!(step(&mut plan, 1_000, seen(50, 0)), [fetch(150, PATIENCE)]);
    step(&mut plan, 1_000, Input::Fetched(cluster(), Some((0..150).map(due).collect())));
    let effects = step(&mut plan, 1_000, Input::Published(cluster(), Vec::new()));
    assert_eq!(room(&effects), (Some(0), 200));
}

#[test]
fn a_paused_cluster_is_neither_hinted_nor_left_to_acceptance() {
    let mut plan = plan(100);
    let hinted = vec![Hinted { cluster: cluster(), outstanding: 0, expired: 5, room: None }];
    let set = Some(Set { paused: [cluster()].into(), ..Set::default() });
    let effects = step(&mut plan, 0, Input::Looked(Some(Look { hinted, set, ran_low: BTreeSet::new() })));
    let none = BTreeMap::from([(cluster(), 0)]);
    assert_eq!(effects, [Effect::Room { clusters: none, unseen: 100 }, Effect::Rest(Rest::For(BUSY))]);
    // Resumed: the settings are asked for at once, and what was refused meanwhile is hinted again.
    assert_eq!(step(&mut plan, 5, Input::Wake(Wake::Settings)), [Effect::Look { settings: true }]);
    assert_eq!(step(&mut plan, 5, seen(0, 5)), [Effect::AskWaiting(cluster())]);
    assert_eq!(step(&mut plan, 5, Input::Waiting(cluster(), Some(0))), [fetch(100, Duration::ZERO)]);
}

#[test]
fn no_more_is_hinted_than_may_be_claimed() {
    let limited = || Some(Set { limited: [cluster()].into(), ..Set::default() });
    let with = |outstanding, expired, room| {
        let hinted = vec![Hinted { cluster: cluster(), outstanding, expired, room: Some(room) }];
        Input::Looked(Some(Look { hinted, set: limited(), ran_low: [cluster()].into() }))
    };
    let nothing = || Input::Looked(Some(Look { set: limited(), ..Look::default() }));
    let left = |effects: &[Effect]| {
        let [.., Effect::Room { clusters, .. }, Effect::Rest(_)] = effects else { panic!("{effects:?}") };
        clusters.get(&cluster()).copied()
    };
    let wake = |plan: &mut Plan, at| step(plan, at, Input::Wake(Wake::Rested));
    let mut plan = plan(1_000);
    // Nothing waits, and nothing ever did: what may be claimed is not known, so acceptance leaves the next job to a look.
    assert_eq!(left(&step(&mut plan, 0, nothing())), Some(0));
    wake(&mut plan, 1_000);
    assert_eq!(step(&mut plan, 1_000, with(1, 0, 4)), [fetch(3, PATIENCE)]);
    let effects = step(&mut plan, 1_000, Input::Fetched(cluster(), Some(vec![due(1)])));
    assert!(matches!(effects[..], [Effect::Publish(..)]), "{effects:?}");
    assert_eq!(left(&step(&mut plan, 1_000, Input::Published(cluster(), Vec::new()))), Some(2));
    // Full, however much is posted: that is no sign of quick workers.
    for at in 2..30 {
        wake(&mut plan, at * 1_000);
        assert_eq!(left(&step(&mut plan, at * 1_000, with(0, 0, 0))), Some(0));
    }
    assert_eq!(plan.queues[&cluster()].window, FIRST_WINDOW);
    wake(&mut plan, 31_000);
    assert_eq!(left(&step(&mut plan, 31_000, nothing())), Some(0));
    // What was refused for want of room is hinted again as soon as there is some.
    wake(&mut plan, 32_000);
    assert_eq!(step(&mut plan, 32_000, with(0, 200, 1)), [Effect::AskWaiting(cluster())]);
    assert_eq!(step(&mut plan, 32_000, Input::Waiting(cluster(), Some(0))), [fetch(1, Duration::ZERO)]);
    step(&mut plan, 32_000, Input::Fetched(cluster(), Some(Vec::new())));
    // A cluster forgotten is limited still.
    wake(&mut plan, 200_000);
    assert_eq!(left(&step(&mut plan, 200_000, nothing())), Some(0));
}

#[test]
fn nothing_is_asked_or_fetched_while_the_broker_takes_no_messages() {
    let mut plan = plan(100);
    step(&mut plan, 0, seen(0, 0));
    step(&mut plan, 0, Input::Fetched(cluster(), Some(vec![due(1), due(2)])));
    let closed = Effect::Room { clusters: BTreeMap::new(), unseen: 0 };
    assert_eq!(step(&mut plan, 1, Input::Broker(false)), [closed]);
    let failed = vec![job(1), job(2)];
    assert_eq!(step(&mut plan, 2, Input::Published(cluster(), failed.clone())), [Effect::Unhint(failed)]);
    assert_eq!(step(&mut plan, 3, Input::Unhinted), []);
    for (at, wake) in [Wake::Rested, Wake::Wanted, Wake::Changed, Wake::Settings].into_iter().enumerate() {
        assert_eq!(step(&mut plan, 5_000 + at as u64, Input::Wake(wake)), []);
    }
    assert_eq!(step(&mut plan, 9_000, Input::Broker(true)), [Effect::Look { settings: true }]);
}

#[test]
fn a_store_that_is_away_is_left_in_peace_until_the_rest_is_over() {
    let mut plan = plan(100);
    assert_eq!(step(&mut plan, 0, Input::Looked(None)), [Effect::Rest(Rest::Retry)]);
    for wake in [Wake::Wanted, Wake::Changed, Wake::Settings] {
        assert_eq!(step(&mut plan, 100, Input::Wake(wake)), []);
    }
    assert_eq!(step(&mut plan, 200, Input::Wake(Wake::Rested)), [Effect::Look { settings: true }]);
}

#[test]
fn messages_are_spread_over_the_workers_and_suspects_go_alone() {
    let sizes = |jobs: usize, workers| -> Vec<usize> {
        messages((0..jobs as u128).map(due).collect(), workers).iter().map(Vec::len).collect()
    };
    assert_eq!(sizes(1, 4), [1]);
    assert_eq!(sizes(10, 2), [3, 3, 3, 1]);
    assert_eq!(sizes(400, 0), [200, 200]);
    assert_eq!(sizes(2_000, 2), [200; 10]);
    let mut jobs: Vec<Due> = (0..5).map(due).collect();
    jobs[1].suspect = true;
    let sent: Vec<Vec<u128>> =
        messages(jobs, 1).iter().map(|m| m.iter().map(|d| d.job.0.as_u128()).collect()).collect();
    assert_eq!(sent, [vec![0, 2], vec![1], vec![3, 4]]);
}

/// Rows, one queue of messages, and workers that take from it: everything the plan acts on.
#[derive(Debug, Default)]
struct World {
    now: Duration,
    /// Waiting jobs, and when their hint runs out.
    rows: BTreeMap<u128, Option<Duration>>,
    queue: VecDeque<Vec<u128>>,
    next_job: u128,
    published: u64,
    most_outstanding: u64,
    most_queued: usize,
    store_away: bool,
    broker_away: bool,
}

impl World {
    fn outstanding(&self) -> u64 {
        self.rows.values().filter(|hint| hint.is_some_and(|until| until > self.now)).count() as u64
    }

    /// Performs an effect and answers it.
    fn perform(&mut self, effect: Effect, until: &mut Option<Duration>) -> Option<Input> {
        match effect {
            Effect::Look { settings } => {
                *until = None;
                if self.store_away {
                    return Some(Input::Looked(None));
                }
                let hints = self.rows.values().flatten().count() as u64;
                let outstanding = self.outstanding();
                let one =
                    Hinted { cluster: cluster(), outstanding, expired: hints - outstanding, room: None };
                let hinted = if self.rows.is_empty() { Vec::new() } else { vec![one] };
                let set = settings.then(Set::default);
                Some(Input::Looked(Some(Look { hinted, set, ran_low: BTreeSet::new() })))
            }
            Effect::AskWaiting(cluster) => {
                Some(Input::Waiting(cluster, (!self.broker_away).then_some(self.queue.len() as u64)))
            }
            Effect::Fetch { cluster, limit, hint_for, again_after } => {
                if self.store_away {
                    return Some(Input::Fetched(cluster, None));
                }
                let now = self.now;
                let open =
                    self.rows.iter_mut().filter(|(_, hint)| hint.is_none_or(|h| h + again_after <= now));
                let mut fetched = Vec::new();
                for (n, hint) in open.take(limit as usize) {
                    fetched.push(Due { again: hint.is_some(), ..due(*n) });
                    *hint = Some(now + hint_for);
                }
                self.most_outstanding = self.most_outstanding.max(self.outstanding());
                Some(Input::Fetched(cluster, Some(fetched)))
            }
            Effect::Publish(cluster, messages) => {
                let mut failed = Vec::new();
                for message in messages {
                    if self.broker_away {
                        failed.extend(message.iter().map(|d| d.job));
                    } else {
                        self.published += message.len() as u64;
                        self.queue.push_back(message.iter().map(|d| d.job.0.as_u128()).collect());
                    }
                }
                self.most_queued = self.most_queued.max(self.queue.iter().map(Vec::len).sum());
                Some(Input::Published(cluster, failed))
            }
            Effect::Unhint(jobs) => {
                for job in jobs {
                    if let Some(hint) = self.rows.get_mut(&job.0.as_u128()) {
                        *hint = None;
                    }
                }
                Some(Input::Unhinted)
            }
            Effect::Room { .. } => None,
            Effect::Rest(rest) => {
                let rest = match rest {
                    Rest::For(rest) => rest,
                    Rest::Retry => Duration::from_secs(1),
                };
                *until = Some(until.map_or(self.now + rest, |before| before.min(self.now + rest)));
                None
            }
        }
    }

    /// Lets `by` pass; the dispatcher does all it does meanwhile, workers claim `per_step` jobs before each of its rounds.
    fn pass(&mut self, plan: &mut Plan, until: &mut Option<Duration>, by: Duration, per_step: usize) {
        let end = self.now + by;
        while let Some(at) = until.filter(|at| *at <= end) {
            self.now = at.max(self.now);
            *until = None;
            self.claim(per_step);
            self.tell(plan, until, Input::Wake(Wake::Rested));
        }
        self.now = end;
    }

    fn tell(&mut self, plan: &mut Plan, until: &mut Option<Duration>, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut effects = Vec::new();
            plan.step(self.now, input, &mut effects);
            inputs.extend(effects.into_iter().filter_map(|effect| self.perform(effect, until)));
        }
    }

    fn claim(&mut self, mut room: usize) {
        while room > 0 {
            let Some(message) = self.queue.front_mut() else { return };
            let taken = message.len().min(room);
            for n in message.drain(..taken) {
                // A doubled hint takes no room: the claim says no.
                room -= usize::from(self.rows.remove(&n).is_some());
            }
            if message.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    fn post(&mut self, jobs: u128) {
        for _ in 0..jobs {
            self.rows.insert(self.next_job, None);
            self.next_job += 1;
        }
    }
}

#[derive(Debug, Clone)]
enum Happening {
    Post(u16),
    Claim(u16),
    Pass(u16),
    Purge,
    LoseOne,
    StoreAway(bool),
    BrokerAway(bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (1..500_u16).prop_map(Happening::Post),
        4 => (1..500_u16).prop_map(Happening::Claim),
        4 => (1..15_000_u16).prop_map(Happening::Pass),
        1 => Just(Happening::Purge),
        1 => Just(Happening::LoseOne),
        1 => any::<bool>().prop_map(Happening::StoreAway),
        1 => any::<bool>().prop_map(Happening::BrokerAway),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_limit_holds_and_every_job_is_hinted_in_the_end(
        limit in 1..1_000_u64,
        happenings in proptest::collection::vec(happening(), 1..40),
    ) {
        let (mut world, mut until) = (World::default(), None);
        let mut plan = Plan::new(Limits { outstanding: limit, hint_ttl: TTL });
        world.tell(&mut plan, &mut until, Input::Broker(true));
        for happening in happenings {
            match happening {
                Happening::Post(jobs) => world.post(jobs.into()),
                Happening::Claim(jobs) => world.claim(jobs.into()),
                Happening::Pass(millis) => {
                    world.pass(&mut plan, &mut until, Duration::from_millis(millis.into()), 0);
                }
                Happening::Purge => world.queue.clear(),
                Happening::LoseOne => drop(world.queue.pop_back()),
                Happening::StoreAway(away) => world.store_away = away,
                Happening::BrokerAway(away) if away != world.broker_away => {
                    world.broker_away = away;
                    world.tell(&mut plan, &mut until, Input::Broker(!away));
                }
                Happening::BrokerAway(_) => {}
            }
            prop_assert!(world.most_outstanding <= limit, "{} of {limit}", world.most_outstanding);
        }
        world.store_away = false;
        if std::mem::take(&mut world.broker_away) {
            world.tell(&mut plan, &mut until, Input::Broker(true));
        }
        // Every job is hinted in the end, and soon: 300 a look is slow, and yet all are gone.
        world.pass(&mut plan, &mut until, Duration::from_mins(5), 300);
        prop_assert!(world.rows.is_empty(), "{} rows are left", world.rows.len());
        prop_assert!(world.most_outstanding <= limit);
    }

    #[test]
    fn a_purged_queue_is_filled_again_within_ten_seconds(
        limit in 1..3_000_u64,
        jobs in 1..4_000_u128,
        before_millis in 0..60_000_u64,
    ) {
        let (mut world, mut until) = (World::default(), None);
        let mut plan = Plan::new(Limits { outstanding: limit, hint_ttl: TTL });
        world.post(jobs);
        world.tell(&mut plan, &mut until, Input::Broker(true));
        world.pass(&mut plan, &mut until, Duration::from_millis(before_millis), 0);
        let queued: usize = world.queue.iter().map(Vec::len).sum();
        world.queue.clear();
        world.pass(&mut plan, &mut until, Duration::from_secs(10), 0);
        let again: usize = world.queue.iter().map(Vec::len).sum();
        prop_assert!(again >= queued, "{again} of {queued}");
    }

    #[test]
    fn a_merely_long_queue_is_never_doubled(
        limit in 1..1_000_u64,
        jobs in 1..2_000_u128,
        workers in 0..8_u32,
        claimed_per_look in 0..20_usize,
    ) {
        let (mut world, mut until) = (World::default(), None);
        let mut plan = Plan::new(Limits { outstanding: limit, hint_ttl: TTL });
        world.post(jobs);
        world.tell(&mut plan, &mut until, Input::Workers(BTreeMap::from([(cluster(), workers)])));
        world.tell(&mut plan, &mut until, Input::Broker(true));
        world.pass(&mut plan, &mut until, PATIENCE, claimed_per_look);
        prop_assert!(u128::from(world.published) <= jobs, "{} hints of {jobs} jobs", world.published);
    }
}
