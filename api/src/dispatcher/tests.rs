//! The loops over the reference store and the broker in memory, in paused time.

use super::*;
use crate::stage::{LEASE, Stage, cluster, new_job};
use jobgate_shared::{
    broker::{BrokerHealth, Route, Subscription},
    clock::Clock as _,
    domain::{JobId, JobState},
    store::{Claimed, Leases as _, Scope, Store as _, ToHandBack, Worker},
    wire::{Hint, Nudge},
};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

fn dispatch(stage: &Stage, config: Config) -> Arc<HintBudget> {
    dispatch_but(stage, config, BTreeSet::new())
}

/// Dispatches where `outside` are served by others.
fn dispatch_but(stage: &Stage, config: Config, outside: BTreeSet<ClusterName>) -> Arc<HintBudget> {
    let budget = Arc::new(HintBudget::new());
    let parts = Dispatcher {
        store: stage.store.clone(),
        broker: stage.broker.clone(),
        clock: stage.clock.clone(),
        budget: budget.clone(),
        config,
        lease: LEASE,
        sole: false,
        outside,
    };
    run(&stage.tasks, parts);
    budget
}

fn listen(stage: &Stage, route: Route) -> Subscription<Hint> {
    stage.broker.hints(&[route], 1_000)
}

/// Takes hints until `jobs` of them have come, and answers them in order.
async fn take(hints: &mut Subscription<Hint>, jobs: usize) -> Vec<JobId> {
    let mut taken = Vec::new();
    while taken.len() < jobs {
        let (hint, settle) = hints.next().await.unwrap().split();
        taken.extend(hint.jobs);
        settle.ack().await;
    }
    taken
}

async fn silent_for(hints: &mut Subscription<Hint>, time: Duration) {
    let heard = tokio::time::timeout(time, hints.next()).await;
    assert!(heard.is_err(), "{heard:?}");
}

fn set(jobs: impl IntoIterator<Item = JobId>) -> BTreeSet<JobId> {
    jobs.into_iter().collect()
}

#[tokio::test(start_paused = true)]
async fn jobs_left_to_the_dispatcher_are_hinted_within_a_second_and_at_once_when_it_is_woken() {
    let stage = Stage::new();
    let budget = dispatch(&stage, Config::default());
    let mut hints = listen(&stage, Route::Cluster(cluster("local")));
    silent_for(&mut hints, Duration::from_mins(1)).await;

    let posted = stage.post("local", 10).await;
    let began = Instant::now();
    assert_eq!(set(take(&mut hints, 10).await), set(posted));
    assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());

    silent_for(&mut hints, Duration::from_secs(3)).await;
    let posted = stage.post("local", 3).await;
    budget.wake();
    let began = Instant::now();
    assert_eq!(set(take(&mut hints, 3).await), set(posted));
    assert!(began.elapsed() <= Duration::from_millis(250), "{:?}", began.elapsed());
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_most_urgent_jobs_are_hinted_first_and_a_delayed_one_when_it_is_due() {
    let stage = Stage::new();
    let mut jobs: Vec<_> = (0..3).map(|_| new_job("local")).collect();
    jobs[1].priority = 50;
    jobs[2].run_at = Some(stage.clock.now() + Duration::from_secs(20));
    stage.store.insert(&jobs, None).await.unwrap();
    let began = Instant::now();
    dispatch(&stage, Config::default());
    let mut hints = listen(&stage, Route::Cluster(cluster("local")));
    let taken = take(&mut hints, 2).await;
    assert_eq!(taken, [jobs[1].id, jobs[0].id]);
    let (worker, _) = stage.worker("local", None).await;
    stage.claim(&worker, &taken).await;
    assert_eq!(take(&mut hints, 1).await, [jobs[2].id]);
    assert!((20..=21).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn no_more_is_hinted_than_the_limit_while_nobody_claims() {
    let stage = Stage::new();
    let posted = stage.post("local", 500).await;
    let config = Config { hints_outstanding: Number::new(100), ..Config::default() };
    dispatch(&stage, config);
    let mut hints = listen(&stage, Route::Cluster(cluster("local")));
    let (worker, _) = stage.worker("local", None).await;
    let mut seen = BTreeSet::new();
    while seen.len() < 500 {
        let (hint, settle) = hints.next().await.unwrap().split();
        let outstanding = stage.store.outstanding().await.unwrap();
        assert!(outstanding.iter().all(|one| one.outstanding + one.expired <= 100), "{outstanding:?}");
        stage.claim(&worker, &hint.jobs).await;
        settle.ack().await;
        assert!(hint.jobs.iter().all(|job| seen.insert(*job)), "hinted twice");
    }
    assert_eq!(seen, set(posted));
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_purged_queue_is_dispatched_again_within_ten_seconds_once() {
    let stage = Stage::new();
    let posted = stage.post("local", 3_000).await;
    dispatch(&stage, Config::default());
    // A window is hinted, more of it as jobs are claimed: let enough be claimed that the window is wide.
    let mut hints = listen(&stage, Route::Cluster(cluster("local")));
    let (worker, _) = stage.worker("local", None).await;
    let mut left = set(posted);
    while left.len() > 1_000 {
        for job in take(&mut hints, 1).await {
            stage.claim(&worker, &[job]).await;
            left.remove(&job);
        }
    }
    // Everything taken from here on is acknowledged and not claimed: lost.
    let lost = take(&mut hints, left.len()).await;
    assert_eq!(set(lost), left);
    let began = Instant::now();
    assert_eq!(set(take(&mut hints, left.len()).await), left);
    assert!(began.elapsed() <= Duration::from_secs(10), "{:?}", began.elapsed());
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_queue_is_not_doubled_however_long_nobody_takes_from_it() {
    let stage = Stage::new();
    stage.post("local", 500).await;
    dispatch(&stage, Config::default());
    tokio::time::sleep(Duration::from_mins(30)).await;
    assert!(stage.broker.inner.hints_waiting(&cluster("local")).await.is_some_and(|n| n > 0));
    let mut hints = listen(&stage, Route::Cluster(cluster("local")));
    let taken = take(&mut hints, 200).await;
    assert_eq!((taken.len(), set(taken).len()), (200, 200), "the first window, each job of it once");
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_takes_nothing_is_left_in_peace_and_given_everything_when_it_is_back() {
    for away in [BrokerHealth::Down, BrokerHealth::Blocked] {
        let stage = Stage::new();
        dispatch(&stage, Config::default());
        let mut hints = listen(&stage, Route::Cluster(cluster("local")));
        stage.broker.set(away);
        let posted = stage.post("local", 150).await;
        tokio::time::sleep(Duration::from_mins(5)).await;
        assert_eq!(stage.broker.offered.load(Ordering::SeqCst), 0, "{away:?}");
        stage.broker.set(BrokerHealth::Up);
        let began = Instant::now();
        assert_eq!(set(take(&mut hints, 150).await), set(posted));
        assert!(began.elapsed() <= Duration::from_millis(100), "{:?}", began.elapsed());
        stage.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn acceptance_is_granted_room_only_while_the_broker_takes_messages() {
    let stage = Stage::new();
    let budget = dispatch(&stage, Config::default());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(budget.try_take(&cluster("local"), 5), 5);
    stage.broker.set(BrokerHealth::Blocked);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(budget.try_take(&cluster("local"), 5), 0);
    stage.end().await;
    assert_eq!(budget.try_take(&cluster("local"), 5), 0, "nobody looks any more");
}

#[tokio::test(start_paused = true)]
async fn two_dispatchers_hint_every_job_once() {
    let stage = Stage::new();
    let posted = stage.post("local", 1_000).await;
    dispatch(&stage, Config::default());
    dispatch(&stage, Config::default());
    let mut hints = listen(&stage, Route::Cluster(cluster("local")));
    let (worker, _) = stage.worker("local", None).await;
    let mut seen = BTreeSet::new();
    while seen.len() < posted.len() {
        for job in take(&mut hints, 1).await {
            stage.claim(&worker, &[job]).await;
            assert!(seen.insert(job), "hinted twice");
        }
    }
    silent_for(&mut hints, Duration::from_secs(30)).await;
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_cluster_is_not_hinted_until_it_is_resumed() {
    let stage = Stage::new();
    let local = cluster("local");
    stage.store.set_paused(&local, true, "token:test").await.unwrap();
    let posted = stage.post("local", 5).await;
    dispatch(&stage, Config::default());
    let mut hints = listen(&stage, Route::Cluster(local.clone()));
    silent_for(&mut hints, Duration::from_mins(1)).await;
    stage.store.set_paused(&local, false, "token:test").await.unwrap();
    stage.broker.nudge(Nudge::Settings).await.unwrap();
    let began = Instant::now();
    assert_eq!(set(take(&mut hints, 5).await), set(posted));
    assert!(began.elapsed() <= Duration::from_millis(100), "{:?}", began.elapsed());
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_limited_cluster_is_hinted_of_as_many_jobs_as_may_be_claimed() {
    let stage = Stage::new();
    let local = cluster("local");
    stage.store.limit(&local, Some(2), "token:test").await.unwrap();
    stage.post("local", 5).await;
    dispatch(&stage, Config::default());
    let mut hints = listen(&stage, Route::Cluster(local.clone()));
    let first = take(&mut hints, 2).await;
    let (worker, _) = stage.worker("local", None).await;
    stage.claim(&worker, &first).await;
    silent_for(&mut hints, Duration::from_mins(1)).await;
    // One more may be taken: it is hinted at once, and no other.
    stage.store.limit(&local, Some(3), "token:test").await.unwrap();
    stage.broker.nudge(Nudge::Settings).await.unwrap();
    let began = Instant::now();
    let next = take(&mut hints, 1).await;
    assert!(began.elapsed() <= Duration::from_millis(100), "{:?}", began.elapsed());
    stage.claim(&worker, &next).await;
    silent_for(&mut hints, Duration::from_mins(1)).await;
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_is_hinted_of_a_cluster_that_is_served_from_outside() {
    let stage = Stage::new();
    let budget = dispatch_but(&stage, Config::default(), [cluster("far")].into());
    let mut far = listen(&stage, Route::Cluster(cluster("far")));
    let mut local = listen(&stage, Route::Cluster(cluster("local")));
    stage.post("far", 300).await;
    let posted = stage.post("local", 5).await;
    assert_eq!(set(take(&mut local, 5).await), set(posted));
    for _ in 0..5 {
        // Acceptance may ask, and asks to be looked after.
        assert_eq!(budget.try_take(&cluster("far"), 5), 0);
        budget.wake();
        silent_for(&mut far, Duration::from_secs(20)).await;
    }
    let due = stage.store.due(&cluster("far"), 1_000, Duration::ZERO, Duration::ZERO).await.unwrap();
    assert!(due.len() == 300 && due.iter().all(|due| !due.again), "none was marked");
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_claimants_left_is_hinted_to_nobody_and_what_workers_left_still_is() {
    let stage = Stage::new();
    dispatch_but(&stage, Config::default(), [cluster("far")].into());
    let (claimant, kill_claimant) = stage.worker("far", None).await;
    let (other, _) = stage.worker("far", None).await;
    let (victim, kill) = stage.worker("local", None).await;
    let (heir, _) = stage.worker("local", None).await;
    let far = stage.post("far", 3).await;
    stage.claim(&claimant, &far).await;
    let given_up = ToHandBack { job: far[0], epoch: 1, why: "tired".to_owned(), pause: Duration::ZERO };
    stage.store.hand_back(claimant.id, &[given_up]).await.unwrap();
    let posted = stage.post("local", 2).await;
    stage.claim(&victim, &posted).await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    kill_claimant.notify_one();
    kill.notify_one();
    let mut others = listen(&stage, Route::Worker(other.id));
    let (took, taken) = handed_over(&stage, &heir, 2).await;
    assert_eq!(set(taken), set(posted));
    assert!(took <= LEASE + Duration::from_secs(2), "{took:?}");
    silent_for(&mut others, Duration::from_mins(5)).await;
    let adopted = stage.store.claim(other.id, &other.clusters, &far).await.unwrap();
    assert!(adopted.iter().all(|one| matches!(one, Claimed::Granted(_))));
    stage.end().await;
}

/// Answers how long after a worker's death its jobs were hinted to `other`, and by which messages.
async fn handed_over(stage: &Stage, other: &Worker, jobs: usize) -> (Duration, Vec<JobId>) {
    let mut own = listen(stage, Route::Worker(other.id));
    let began = Instant::now();
    let taken = take(&mut own, jobs).await;
    (began.elapsed(), taken)
}

#[tokio::test(start_paused = true)]
async fn the_jobs_of_a_killed_worker_are_handed_on_within_a_lease_and_two_seconds() {
    let stage = Stage::new();
    dispatch(&stage, Config::default());
    let (victim, kill) = stage.worker("slurm", None).await;
    let (heir, _) = stage.worker("slurm", None).await;
    let posted = stage.post("slurm", 300).await;
    stage.claim(&victim, &posted).await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    kill.notify_one();
    let (took, taken) = handed_over(&stage, &heir, 300).await;
    assert_eq!(set(taken.clone()), set(posted.clone()));
    assert!(took <= LEASE + Duration::from_secs(2), "{took:?}");
    // The heir adopts them, and that is the end of it.
    let adopted = stage.store.claim(heir.id, &heir.clusters, &taken).await.unwrap();
    assert!(adopted.iter().all(|one| matches!(one, Claimed::Granted(job) if job.life.epoch == 2)));
    let mut own = listen(&stage, Route::Worker(heir.id));
    silent_for(&mut own, Duration::from_mins(1)).await;
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_drained_worker_gave_up_is_handed_on_at_once() {
    let stage = Stage::new();
    dispatch(&stage, Config::default());
    let (leaver, _) = stage.worker("slurm", None).await;
    let (heir, _) = stage.worker("slurm", None).await;
    let posted = stage.post("slurm", 2).await;
    stage.claim(&leaver, &posted).await;
    let give_up =
        |job: &JobId| ToHandBack { job: *job, epoch: 1, why: "draining".to_owned(), pause: Duration::ZERO };
    let handed: Vec<_> = posted.iter().map(give_up).collect();
    stage.store.hand_back(leaver.id, &handed).await.unwrap();
    let (took, taken) = handed_over(&stage, &heir, 2).await;
    assert_eq!(set(taken), set(posted));
    assert!(took <= Duration::from_secs(1), "{took:?}");
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_host_is_gone_waits_for_it_and_is_lost_in_the_end() {
    let stage = Stage::new();
    let config = Config { lost_after: Period::new(Duration::from_mins(20)), ..Config::default() };
    dispatch(&stage, config);
    let (gone, kill) = stage.worker("local", Some("host-a")).await;
    let (other, _) = stage.worker("local", Some("host-b")).await;
    let mut others = listen(&stage, Route::Worker(other.id));
    let posted = stage.post("local", 2).await;
    stage.claim(&gone, &posted).await;
    kill.notify_one();
    silent_for(&mut others, Duration::from_mins(15)).await;
    let life = async |job: JobId| stage.store.get(&Scope::All, job).await.unwrap().unwrap().life;
    let waiting = life(posted[0]).await;
    assert_eq!(waiting.state, JobState::Pending);
    assert_eq!(waiting.reason.as_deref(), Some("waits for a worker on host-a"));
    // The host comes back with another worker: it is asked to adopt within seconds, and one of them it does.
    let (back, kill) = stage.worker("local", Some("host-a")).await;
    let (took, taken) = handed_over(&stage, &back, 2).await;
    assert_eq!(set(taken), set(posted.clone()));
    assert!(took <= Duration::from_secs(2), "{took:?}");
    let adopted = stage.store.claim(back.id, &back.clusters, &posted[..1]).await.unwrap();
    assert!(matches!(adopted[..], [Claimed::Granted(_)]));
    kill.notify_one();
    silent_for(&mut others, Duration::from_mins(19)).await;
    assert_eq!(life(posted[0]).await.state, JobState::Pending);
    silent_for(&mut others, Duration::from_mins(4)).await;
    for job in posted {
        assert_eq!(life(job).await.state, JobState::Lost);
    }
    stage.end().await;
}

#[test]
fn a_setting_that_cannot_be_is_refused_when_it_is_read() {
    let read = |text: &str| serde_json::from_str::<Config>(text).map_err(|e| e.to_string());
    assert_eq!(read("{}").unwrap(), Config::default());
    assert!(read(r#"{"hints_outstanding":0}"#).unwrap_err().contains("within 1 to 1000000"));
    assert!(read(r#"{"hint_ttl":"10ms"}"#).unwrap_err().contains("within 1s to 5m"));
    assert!(read(r#"{"hints":1}"#).unwrap_err().contains("unknown field"));
}
