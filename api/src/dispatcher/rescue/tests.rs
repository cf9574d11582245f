//! The rescuer step by step.

use super::*;
use jobgate_shared::store::WorkerCluster;
use uuid::Uuid;

const LEASE: Duration = Duration::from_secs(10);
const HOUR: u64 = 3_600;

fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

fn id(n: u128) -> WorkerId {
    WorkerId(Uuid::from_u128(n))
}

fn job(n: u128) -> JobId {
    JobId(Uuid::from_u128(n))
}

fn at(seconds: u64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn worker(n: u128, name: &str, reach: Option<&str>) -> Worker {
    let reach = reach.map(|r| Reach(r.to_owned()));
    Worker {
        id: id(n),
        host: String::new(),
        clusters: vec![WorkerCluster { name: cluster(name), reach, parked: None }],
        registered_at: at(0),
        expires_at: at(HOUR),
        alive: true,
        draining: false,
        jobs: 0,
    }
}

fn dead(n: u128, name: &str, reach: Option<&str>) -> Worker {
    Worker { alive: false, expires_at: at(5), ..worker(n, name, reach) }
}

fn group(name: &str, reach: Option<&str>, owner: u128, jobs: &[u128]) -> Stranded {
    Stranded {
        cluster: cluster(name),
        reach: reach.map(|r| Reach(r.to_owned())),
        owner: id(owner),
        jobs: jobs.iter().map(|n| StrandedJob { job: job(*n), suspect: false }).collect(),
    }
}

/// A rescuer that trusts what it reads first, the broker up.
fn rescue() -> Rescue {
    let mut rescue = Rescue::new(Rules { lease: LEASE, hint_for: LEASE, sole: true });
    rescue.step(Duration::ZERO, Input::Broker(true), &mut Vec::new());
    rescue
}

fn step(rescue: &mut Rescue, seconds: u64, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    rescue.step(Duration::from_secs(seconds), input, &mut effects);
    effects
}

/// One read; what follows the news about who serves what.
fn read(rescue: &mut Rescue, seconds: u64, workers: &[Worker]) -> Vec<Effect> {
    assert_eq!(step(rescue, seconds, Input::Rested), [Effect::ReadWorkers]);
    let mut effects = step(rescue, seconds, Input::Workers(Some(workers.to_vec()), at(seconds)));
    effects.retain(|effect| !matches!(effect, Effect::Serving(_)));
    effects
}

fn fetch(dead: &[u128]) -> Effect {
    Effect::Fetch { dead: dead.iter().map(|n| id(*n)).collect(), limit: MAX_FETCH, hint_for: LEASE }
}

fn hint(n: u128, name: &str, jobs: &[u128]) -> ToWorker {
    ToWorker { worker: id(n), cluster: cluster(name), jobs: jobs.iter().map(|n| job(*n)).collect() }
}

#[test]
fn jobs_of_the_dead_are_dealt_to_workers_that_can_act_where_they_are() {
    let mut rescue = rescue();
    let workers = [
        dead(1, "slurm", None),
        dead(2, "local", Some("host-a")),
        worker(3, "slurm", None),
        worker(4, "slurm", None),
        worker(5, "local", Some("host-a")),
        worker(6, "local", Some("host-b")),
        Worker { draining: true, ..worker(7, "slurm", None) },
    ];
    assert_eq!(read(&mut rescue, 0, &workers), [fetch(&[1, 2])]);
    let groups = vec![
        group("slurm", None, 1, &[10, 11, 12]),
        group("local", Some("host-a"), 2, &[20]),
        // Claimed, and nowhere yet: any host will do.
        group("local", None, 2, &[30, 31]),
    ];
    let effects = step(&mut rescue, 0, Input::Fetched(Some(groups)));
    let [Effect::Publish(hints)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(
        *hints,
        [
            hint(3, "slurm", &[10, 11]),
            hint(4, "slurm", &[12]),
            hint(5, "local", &[20]),
            hint(6, "local", &[30]),
            hint(5, "local", &[31]),
        ]
    );
    assert_eq!(step(&mut rescue, 0, Input::Published(Vec::new())), [Effect::Rest(Rest::For(TICK))]);
}

#[test]
fn a_suspect_is_hinted_alone_and_a_parked_worker_only_if_no_other_is_there() {
    let mut rescue = rescue();
    let mut parked = worker(2, "slurm", None);
    parked.clusters[0].parked = Some("the manager is away".to_owned());
    let mut groups = vec![group("slurm", None, 1, &[10, 11, 12])];
    groups[0].jobs[1].suspect = true;
    for (workers, by) in [(vec![parked.clone()], 2), (vec![parked.clone(), worker(3, "slurm", None)], 3)] {
        let workers: Vec<Worker> = [dead(1, "slurm", None)].into_iter().chain(workers).collect();
        read(&mut rescue, 0, &workers);
        let effects = step(&mut rescue, 0, Input::Fetched(Some(groups.clone())));
        let hints = vec![hint(by, "slurm", &[10, 12]), hint(by, "slurm", &[11])];
        assert_eq!(effects, [Effect::Publish(hints)]);
        step(&mut rescue, 0, Input::Published(Vec::new()));
    }
}

#[test]
fn what_was_not_taken_is_forgotten_so_that_it_is_hinted_again() {
    let mut rescue = rescue();
    read(&mut rescue, 0, &[dead(1, "slurm", None), worker(2, "slurm", None)]);
    step(&mut rescue, 0, Input::Fetched(Some(vec![group("slurm", None, 1, &[10])])));
    assert_eq!(step(&mut rescue, 0, Input::Published(vec![job(10)])), [Effect::Unhint(vec![job(10)])]);
    assert_eq!(step(&mut rescue, 0, Input::Unhinted), [Effect::Rest(Rest::For(TICK))]);
}

#[test]
fn a_full_fetch_is_followed_by_another_at_once() {
    let mut rescue = rescue();
    read(&mut rescue, 0, &[dead(1, "slurm", None), worker(2, "slurm", None)]);
    let jobs: Vec<u128> = (0..u128::from(MAX_FETCH)).collect();
    step(&mut rescue, 0, Input::Fetched(Some(vec![group("slurm", None, 1, &jobs)])));
    let rest = step(&mut rescue, 0, Input::Published(Vec::new()));
    assert_eq!(rest, [Effect::Rest(Rest::For(Duration::ZERO))]);
}

#[test]
fn nothing_is_fetched_while_the_broker_takes_nothing_or_nobody_could_adopt() {
    let mut rescue = rescue();
    let workers = [dead(1, "slurm", None), worker(2, "slurm", None)];
    step(&mut rescue, 0, Input::Broker(false));
    assert_eq!(read(&mut rescue, 0, &workers), [Effect::Rest(Rest::For(TICK))]);
    step(&mut rescue, 0, Input::Broker(true));
    assert_eq!(read(&mut rescue, 1, &workers[..1]), [Effect::Rest(Rest::For(TICK))]);
    // The other clusters' workers cannot help; what nobody owns may still be theirs.
    let other = [dead(1, "slurm", None), worker(2, "local", None)];
    assert_eq!(read(&mut rescue, 2, &other), [fetch(&[])]);
}

#[test]
fn a_store_that_is_away_is_asked_again_later_and_trusted_later() {
    let mut rescue = Rescue::new(Rules { lease: LEASE, hint_for: LEASE, sole: false });
    step(&mut rescue, 0, Input::Broker(true));
    let workers = [dead(1, "slurm", None), worker(2, "slurm", None)];
    for second in 0..10 {
        assert_eq!(read(&mut rescue, second, &workers), [fetch(&[])], "{second}");
        step(&mut rescue, second, Input::Fetched(Some(Vec::new())));
    }
    step(&mut rescue, 10, Input::Rested);
    assert_eq!(step(&mut rescue, 10, Input::Workers(None, at(10))), [Effect::Rest(Rest::Retry)]);
    for second in 11..21 {
        assert_eq!(read(&mut rescue, second, &workers), [fetch(&[])], "{second}");
        step(&mut rescue, second, Input::Fetched(Some(Vec::new())));
    }
    assert_eq!(read(&mut rescue, 21, &workers), [fetch(&[1])]);
}

#[test]
fn a_job_nobody_can_reach_is_told_once_a_minute_and_may_be_lost_after_ten() {
    let mut rescue = rescue();
    let workers = [dead(1, "local", Some("host-a")), worker(2, "local", Some("host-b"))];
    let there = || Input::Fetched(Some(vec![group("local", Some("host-a"), 1, &[10])]));
    let mut told = Vec::new();
    for second in (0..900).step_by(4) {
        let fetched = read(&mut rescue, second, &workers);
        assert_eq!(fetched, [fetch(&[1])], "what it had only claimed can be adopted by the other host");
        // The mark keeps it from being fetched more often.
        let effects = if second % 12 == 0 { step(&mut rescue, second, there()) } else { Vec::new() };
        match &effects[..] {
            [Effect::Tell { jobs, may_lose }] => {
                assert_eq!(jobs[..], [Vanished { job: job(10), since: at(5) }]);
                told.push((second, *may_lose));
                step(&mut rescue, second, Input::Told);
            }
            [] => drop(step(&mut rescue, second, Input::Fetched(Some(Vec::new())))),
            [Effect::Rest(_)] => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told.len(), 15, "{told:?}");
    assert!(told.iter().all(|(second, may_lose)| *may_lose == (*second >= 600)), "{told:?}");
}

#[test]
fn jobs_whose_host_is_back_are_hinted_at_once() {
    let mut rescue = rescue();
    let gone = [dead(1, "local", Some("host-a")), worker(2, "local", Some("host-b"))];
    read(&mut rescue, 0, &gone);
    step(&mut rescue, 0, Input::Fetched(Some(vec![group("local", Some("host-a"), 1, &[10, 11])])));
    step(&mut rescue, 0, Input::Told);
    let back: Vec<Worker> = gone.iter().cloned().chain([worker(3, "local", Some("host-a"))]).collect();
    assert_eq!(read(&mut rescue, 1, &back), [Effect::Unhint(vec![job(10), job(11)]), fetch(&[1])]);
}

#[test]
fn a_host_whose_worker_drains_has_not_vanished() {
    let mut rescue = rescue();
    let draining = Worker { draining: true, ..worker(2, "local", Some("host-a")) };
    read(&mut rescue, 0, &[dead(1, "local", Some("host-a")), draining, worker(3, "local", Some("host-b"))]);
    let group = group("local", Some("host-a"), 1, &[10]);
    assert_eq!(step(&mut rescue, 0, Input::Fetched(Some(vec![group]))), [Effect::Rest(Rest::For(TICK))]);
}

#[test]
fn jobs_of_the_hopeless_are_looked_at_once_a_minute_all_of_them() {
    let mut rescue = rescue();
    let workers = [dead(1, "local", Some("host-a"))];
    for second in 0..60 {
        assert_eq!(read(&mut rescue, second, &workers), [Effect::Rest(Rest::For(TICK))], "{second}");
    }
    let jobs: Vec<u128> = (0..u128::from(MAX_FETCH)).collect();
    assert_eq!(read(&mut rescue, 60, &workers), [fetch(&[1])]);
    step(&mut rescue, 60, Input::Fetched(Some(vec![group("local", Some("host-a"), 1, &jobs)])));
    assert_eq!(step(&mut rescue, 60, Input::Told), [Effect::Rest(Rest::For(Duration::ZERO))]);
    assert_eq!(read(&mut rescue, 60, &workers), [fetch(&[1])]);
    step(&mut rescue, 60, Input::Fetched(Some(Vec::new())));
    assert_eq!(read(&mut rescue, 61, &workers), [Effect::Rest(Rest::For(TICK))]);
}
