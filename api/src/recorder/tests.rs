//! The recorder over the reference store and the broker in memory, in paused time.

use super::*;
use crate::stage::Stage;
use async_trait::async_trait;
use jobgate_shared::{
    clock::Clock as _,
    domain::{Ending, JobId, JobState, Observation},
    store::{Scope, Store as _, StoreResult, Worker, memory::MemoryStore},
};
use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::Semaphore;

/// The reference store, applying only when it may, and not everything.
#[derive(Debug)]
struct Applying {
    inner: Arc<MemoryStore>,
    /// One permit for each apply.
    turns: Semaphore,
    away: AtomicBool,
    unbearable: Mutex<Vec<JobId>>,
    /// How many events each apply was given.
    sizes: Mutex<Vec<usize>>,
}

#[async_trait]
impl Apply for Applying {
    async fn apply(&self, events: &[StatusEvent]) -> StoreResult<Vec<Applied>> {
        self.turns.acquire().await.unwrap().forget();
        self.sizes.lock().unwrap().push(events.len());
        if self.away.load(Ordering::SeqCst) {
            return Err(StoreError::Away(anyhow::anyhow!("gone")));
        }
        if events.iter().any(|e| self.unbearable.lock().unwrap().contains(&e.job)) {
            let source = anyhow::anyhow!("it does not fit the column");
            return Err(StoreError::Refused { operation: "apply events", source });
        }
        self.inner.apply(events).await
    }
}

/// Plenty of turns.
const FREE: usize = 1_000_000;

fn record(stage: &Stage, turns: usize) -> Arc<Applying> {
    let store = Arc::new(Applying {
        inner: stage.store.clone(),
        turns: Semaphore::new(turns),
        away: AtomicBool::new(false),
        unbearable: Mutex::default(),
        sizes: Mutex::default(),
    });
    let (broker, clock) = (stage.broker.clone(), stage.clock.clone());
    run(&stage.tasks, Recorder { store: store.clone(), broker, clock, config: Config::default() });
    store
}

fn event(stage: &Stage, worker: &Worker, job: JobId, seq: u32, observation: Observation) -> StatusEvent {
    StatusEvent {
        job,
        attempt: 1,
        epoch: 1,
        seq,
        by: worker.id,
        submission: Some(job.to_string()),
        observation,
        at: stage.clock.now(),
    }
}

fn running() -> Observation {
    Observation::Running { since: None, reason: None }
}

fn finished() -> Observation {
    Observation::Ended { ending: Ending::Finished, exit_code: Some(0), reason: None, began: None, at: None }
}

async fn state(stage: &Stage, job: JobId) -> JobState {
    stage.store.get(&Scope::All, job).await.unwrap().unwrap().life.state
}

/// Waits until every message is out of the broker, settled or in hand, and the hands are idle.
async fn settle_down() {
    tokio::time::sleep(Duration::from_mins(1)).await;
}

async fn submitted(stage: &Stage, jobs: usize) -> (Worker, Vec<JobId>) {
    let (worker, _) = stage.worker("local", None).await;
    let posted = stage.post("local", jobs).await;
    stage.claim(&worker, &posted).await;
    (worker, posted)
}

#[tokio::test(start_paused = true)]
async fn what_was_told_is_in_the_row_and_everybody_is_tapped_on_the_shoulder() {
    let stage = Stage::new();
    let (worker, jobs) = submitted(&stage, 1).await;
    let mut nudges = stage.broker.nudges();
    record(&stage, FREE);
    stage.broker.publish_events(vec![event(&stage, &worker, jobs[0], 1, running())]).await.unwrap();
    assert_eq!(nudges.next().await.unwrap().body, Nudge::Changed);
    assert_eq!(state(&stage, jobs[0]).await, JobState::Running);
    assert_eq!(stage.broker.events_behind().await, Some(0));
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_a_batch_commits_is_the_next_batch() {
    let stage = Stage::new();
    let (worker, jobs) = submitted(&stage, 100).await;
    let store = record(&stage, 0);
    let tell = async |n: usize, seq| {
        let events = vec![event(&stage, &worker, jobs[n], seq, running())];
        stage.broker.publish_events(events).await.unwrap();
    };
    tell(0, 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    for n in 1..100 {
        tell(n, 1).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.turns.add_permits(FREE);
    settle_down().await;
    assert_eq!(*store.sizes.lock().unwrap(), [1, 64, 35], "at most so many messages at once");
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_away_events_are_kept_and_then_recorded() {
    let stage = Stage::new();
    let (worker, jobs) = submitted(&stage, 3).await;
    let store = record(&stage, FREE);
    store.away.store(true, Ordering::SeqCst);
    for job in &jobs {
        stage.broker.publish_events(vec![event(&stage, &worker, *job, 1, finished())]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_mins(10)).await;
    let tries = store.sizes.lock().unwrap().len();
    assert!(tries < 150, "{tries} tries in ten minutes");
    assert_eq!(state(&stage, jobs[0]).await, JobState::Pending);
    store.away.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(20)).await;
    for job in jobs {
        assert_eq!(state(&stage, job).await, JobState::Finished);
    }
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_in_hand_at_a_shutdown_comes_again_to_another_recorder() {
    let stage = Stage::new();
    let (worker, jobs) = submitted(&stage, 1).await;
    let store = record(&stage, FREE);
    store.away.store(true, Ordering::SeqCst);
    stage.broker.publish_events(vec![event(&stage, &worker, jobs[0], 1, finished())]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    stage.tasks.stop().await;
    let next = Stage { tasks: Tasks::default(), ..stage };
    record(&next, FREE);
    settle_down().await;
    assert_eq!(state(&next, jobs[0]).await, JobState::Finished);
    next.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_poisonous_event_goes_to_the_dead_letters_with_the_reason_and_stops_nobody() {
    let stage = Stage::new();
    let (worker, jobs) = submitted(&stage, 20).await;
    let store = record(&stage, 0);
    store.unbearable.lock().unwrap().push(jobs[7]);
    for two in jobs.chunks(2) {
        let events = two.iter().map(|job| event(&stage, &worker, *job, 1, finished())).collect();
        stage.broker.publish_events(events).await.unwrap();
    }
    store.turns.add_permits(FREE);
    settle_down().await;
    for job in &jobs {
        let expected = if *job == jobs[7] { JobState::Pending } else { JobState::Finished };
        assert_eq!(state(&stage, *job).await, expected);
    }
    let dead = stage.broker.dead_letters();
    assert_eq!(dead.len(), 1);
    assert!(dead[0].why.contains("it does not fit the column"), "{}", dead[0].why);
    assert!(String::from_utf8_lossy(&dead[0].body).contains(&jobs[7].to_string()));
    assert_eq!(stage.broker.events_behind().await, Some(0));
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn many_changes_are_few_nudges() {
    let stage = Stage::new();
    let (worker, jobs) = submitted(&stage, 500).await;
    record(&stage, FREE);
    let mut nudges = stage.broker.nudges();
    let began = tokio::time::Instant::now();
    for job in &jobs {
        stage.broker.publish_events(vec![event(&stage, &worker, *job, 1, finished())]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    let took = began.elapsed().as_millis();
    settle_down().await;
    let mut heard = 0;
    while nudges.next().now_or_never().is_some() {
        heard += 1;
    }
    assert!(heard > 20 && heard <= took / 50 + 2, "{heard} in {took} ms");
    stage.end().await;
}

#[test]
fn a_setting_that_cannot_be_is_refused_when_it_is_read() {
    let read = |text: &str| serde_json::from_str::<Config>(text).map_err(|e| e.to_string());
    assert_eq!(read("{}").unwrap(), Config::default());
    assert!(read(r#"{"parallel":17}"#).unwrap_err().contains("within 1 to 16"));
    assert!(read(r#"{"batch":1}"#).unwrap_err().contains("unknown field"));
}
