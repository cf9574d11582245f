//! Housekeeping over the reference store, in paused time.

use super::*;
use crate::{
    stage::{Stage, cluster},
    testing::ScriptedStore,
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use jobgate_shared::{
    domain::{Command, JobId},
    logs::LogStream,
    store::{Commanded, FeedCursor, Scope},
};
use std::sync::atomic::Ordering;

async fn cancel(stage: &Stage, jobs: &[JobId]) {
    let done = stage.store.command(&Scope::All, jobs, Command::Cancel, "token:test").await.unwrap();
    assert!(done.iter().all(|one| matches!(one, Commanded::Done { .. })));
}

async fn kept(stage: &Stage, jobs: &[JobId]) -> usize {
    let mut kept = 0;
    for job in jobs {
        kept += usize::from(stage.store.get(&Scope::All, *job).await.unwrap().is_some());
    }
    kept
}

async fn notes(logs: &LogStore) -> usize {
    let ever = DateTime::<Utc>::MAX_UTC;
    logs.dooms(ever).try_collect::<Vec<Doom>>().await.unwrap().len()
}

fn house(store: Arc<dyn Store>, stage: &Stage, logs: &LogStore, config: Config) -> Arc<Housekeeping> {
    Arc::new(Housekeeping { store, logs: logs.clone(), clock: stage.clock.clone(), config })
}

fn keep_house(stage: &Stage, logs: &LogStore, config: Config) {
    let (store, clock) = (stage.store.clone(), stage.clock.clone());
    run(&stage.tasks, Housekeeping { store, logs: logs.clone(), clock, config });
}

#[tokio::test(start_paused = true)]
async fn ended_jobs_and_their_logs_go_when_their_time_has_come_and_others_stay() {
    let stage = Stage::new();
    let folder = tempfile::tempdir().unwrap();
    let logs = LogStore::directory(folder.path()).unwrap();
    let (ended, waiting) = (stage.post("local", 1_200).await, stage.post("local", 1).await);
    cancel(&stage, &ended).await;
    let printed = |job| logs.resume(job, 1, LogStream::Stdout);
    for job in [ended[0], waiting[0]] {
        logs.append(job, 1, LogStream::Stdout, 0, Bytes::from_static(b"hello")).await.unwrap();
    }
    let keep = Duration::from_mins(10);
    let measure_every = Period::new(Duration::from_mins(1));
    keep_house(&stage, &logs, Config { keep_ended: Period::new(keep), measure_every, ..Config::default() });
    tokio::time::sleep(Duration::from_mins(9)).await;
    assert_eq!(kept(&stage, &ended).await, 1_200);
    assert_eq!(printed(ended[0]).await.unwrap(), 5);
    tokio::time::sleep(Duration::from_mins(3)).await;
    assert_eq!((kept(&stage, &ended).await, kept(&stage, &waiting).await), (0, 1));
    assert_eq!((printed(ended[0]).await.unwrap(), printed(waiting[0]).await.unwrap()), (0, 5));
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_remover_that_died_left_goes_and_a_job_that_was_tried_again_keeps_its_logs() {
    let stage = Stage::new();
    let folder = tempfile::tempdir().unwrap();
    let logs = LogStore::directory(folder.path()).unwrap();
    let jobs = stage.post("local", 3).await;
    cancel(&stage, &jobs).await;
    for job in &jobs {
        logs.append(*job, 1, LogStream::Stdout, 0, Bytes::from_static(b"hello")).await.unwrap();
    }
    logs.doom(&jobs, stage.clock.now()).await.unwrap();
    // Somebody was faster; then the remover died.
    stage.store.command(&Scope::All, &jobs[2..], Command::Retry, "token:test").await.unwrap();
    for job in &jobs[..2] {
        stage.store.remove(&Scope::All, *job).await.unwrap();
    }
    keep_house(&stage, &logs, Config::default());
    let mut printed = Vec::new();
    for wait in [Duration::from_mins(50), Duration::from_mins(25)] {
        tokio::time::sleep(wait).await;
        for job in &jobs {
            printed.push(logs.resume(*job, 1, LogStream::Stdout).await.unwrap());
        }
    }
    assert_eq!(printed, [5, 5, 5, 0, 0, 5]);
    assert_eq!(notes(&logs).await, 0);
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_removed_in_good_order_leaves_no_note_once_nobody_ships_more_of_it() {
    let (keep, slightly_longer) = (Duration::from_hours(24), Duration::from_hours(25));
    let measure_every = Period::new(Duration::from_hours(1));
    for (keep, left) in [(keep, 0), (Duration::from_mins(1), 1)] {
        let stage = Stage::new();
        let logs = LogStore::in_memory();
        let ended = stage.post("local", 3).await;
        cancel(&stage, &ended).await;
        let config = Config { keep_ended: Period::new(keep), measure_every, ..Config::default() };
        let house = house(stage.store.clone(), &stage, &logs, config);
        tokio::time::advance(slightly_longer).await;
        house.retire().await.unwrap();
        assert_eq!((kept(&stage, &ended).await, notes(&logs).await), (0, left), "kept for {keep:?}");
        stage.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn all_that_is_old_of_the_feed_goes_however_much_there_is() {
    let stage = Stage::new();
    for _ in 0..2_500 {
        stage.post("local", 1).await;
    }
    let keep = Duration::from_mins(10);
    tokio::time::advance(keep * 2).await;
    let young = stage.post("local", 1).await;
    let config = Config { keep_ended: Period::new(keep), ..Config::default() };
    house(stage.store.clone(), &stage, &LogStore::in_memory(), config).retire().await.unwrap();
    let kept = stage.store.changes(FeedCursor::default(), 10).await.unwrap();
    assert_eq!(kept.items.iter().map(|(_, change)| change.job).collect::<Vec<_>>(), young);
    assert!(kept.gap, "the feed begins where it began");
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn two_processes_see_to_many_notes_with_one_question_each_and_rests_and_share_the_work() {
    const NOTED: usize = 150;
    let stage = Stage::new();
    let store = ScriptedStore::new();
    let logs = LogStore::in_memory();
    for _ in 0..NOTED {
        let gone: Vec<JobId> = (0..50).map(|_| JobId::generate()).collect();
        logs.append(gone[49], 1, LogStream::Stdout, 0, Bytes::from_static(b"hello")).await.unwrap();
        logs.doom(&gone, stage.clock.now()).await.unwrap();
    }
    tokio::time::advance(SWEEP_AFTER + SHORTEST_REST).await;
    let began = Instant::now();
    let house = || house(store.clone(), &stage, &logs, Config::default());
    let (one, other) = tokio::join!(house().sweep(), house().sweep());
    one.and(other).unwrap();
    assert_eq!(notes(&logs).await, 0);
    let asked = u32::try_from(store.calls.load(Ordering::SeqCst)).unwrap();
    let noted = u32::try_from(NOTED).unwrap();
    assert!((noted..noted * 3 / 2).contains(&asked), "{asked} questions about {noted} notes");
    assert!(began.elapsed() >= SHORTEST_REST * (noted / 2), "rested for {:?} only", began.elapsed());
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn counts_are_folded_and_claims_forgotten_until_nothing_is_left_with_rests_between() {
    let stage = Stage::new();
    let store = ScriptedStore::new();
    store.uncompacted.store(3, Ordering::SeqCst);
    let began = Instant::now();
    house(store.clone(), &stage, &LogStore::in_memory(), Config::default()).compact().await.unwrap();
    assert_eq!(store.calls.load(Ordering::SeqCst), 4);
    assert!(began.elapsed() >= SHORTEST_REST * 3, "rested for {:?} only", began.elapsed());
    stage.end().await;
}

#[test]
fn a_gauge_of_a_queue_that_is_gone_is_shown_as_zero_once() {
    let labels = |priority, state| (cluster("local"), priority, state);
    let told = std::cell::RefCell::new(Vec::new());
    let mut shown = BTreeMap::new();
    let mut turn = |values: &[(Labels, u64)]| {
        show(&mut shown, values.iter().cloned().collect(), |labels, jobs| {
            let text: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            told.borrow_mut().push((text.join(","), jobs));
        });
        told.take()
    };
    let running = labels(0, JobState::Running);
    let first = turn(&[(running.clone(), 3), (labels(5, JobState::Held), 1)]);
    let named = |text: &str, jobs| (text.to_owned(), jobs);
    assert_eq!(
        first,
        [named("cluster=local,priority=0,state=RUNNING", 3), named("cluster=local,priority=5,state=HELD", 1)]
    );
    let second = turn(&[(running.clone(), 4)]);
    assert_eq!(
        second,
        [named("cluster=local,priority=5,state=HELD", 0), named("cluster=local,priority=0,state=RUNNING", 4)]
    );
    assert_eq!(turn(&[(running, 4)]).len(), 1);
}

#[test]
fn depths_are_summed_over_projects() {
    let depth = |project: &str, jobs| Depth {
        project: project.parse().unwrap(),
        cluster: cluster("local"),
        priority: 0,
        state: JobState::Running,
        jobs,
    };
    let summed = sums(vec![depth("a", 2), depth("b", 3)]);
    assert_eq!(summed.into_values().collect::<Vec<_>>(), [5]);
}

#[test]
fn a_setting_that_cannot_be_is_refused_when_it_is_read() {
    let read = |text: &str| serde_json::from_str::<Config>(text).map_err(|e| e.to_string());
    assert_eq!(read("{}").unwrap(), Config::default());
    assert!(read(r#"{"keep_ended":"1s"}"#).unwrap_err().contains("within 1m to"));
    assert!(read(r#"{"keep":1}"#).unwrap_err().contains("unknown field"));
}
