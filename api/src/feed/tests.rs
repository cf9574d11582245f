//! The feed over the reference store.

use super::*;
use crate::testing::ScriptedStore;
use jobgate_shared::{
    clock::system,
    domain::{Command, Document, JobSpec, JobState, NewJob, Project, RetryPolicy},
    store::{Scope, StoreError},
};
use std::sync::atomic::Ordering;
use tokio::time::Instant;

fn feed() -> (Arc<ScriptedStore>, Tasks, Arc<Feed>) {
    let (store, tasks) = (ScriptedStore::new(), Tasks::default());
    let feed = Feed::new(store.clone(), tasks.clone());
    (store, tasks, feed)
}

async fn post(store: &ScriptedStore) -> JobId {
    let job = NewJob {
        id: JobId::generate(),
        project: Project::default_project(),
        name: "a job".to_owned(),
        cluster: "local".parse().unwrap(),
        spec: JobSpec { command: vec!["true".to_owned()], ..JobSpec::default() },
        labels: Vec::new(),
        priority: 0,
        inputs: Document::new(),
        max_attempts: 1,
        retry: RetryPolicy::default(),
        run_at: None,
        hold: false,
        created_by: "token:test".to_owned(),
        idempotency: None,
    };
    store.inner.insert(std::slice::from_ref(&job), None).await.unwrap();
    job.id
}

async fn change(listener: &mut Listener) -> (FeedCursor, JobId, JobState) {
    match listener.next().await.unwrap() {
        Heard::Change(cursor, change) => (cursor, change.job, change.entry.to),
        Heard::Gap(_) => panic!("a gap"),
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_while_nobody_listens() {
    let (store, _tasks, feed) = feed();
    post(&store).await;
    feed.poke();
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(store.calls.load(Ordering::SeqCst), 0);
    drop(feed.listen(None).await.unwrap());
    tokio::time::sleep(Duration::from_mins(1)).await;
    let calls = store.calls.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(store.calls.load(Ordering::SeqCst), calls, "and none after the last has left");
}

#[tokio::test(start_paused = true)]
async fn a_listener_hears_what_was_committed_after_it_came_poked_or_not() {
    let (store, _tasks, feed) = feed();
    post(&store).await;
    let mut listener = feed.listen(None).await.unwrap();
    let first = post(&store).await;
    let began = Instant::now();
    assert_eq!(change(&mut listener).await.1, first);
    assert!(began.elapsed() <= FALLBACK + 2 * REST);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let second = post(&store).await;
    feed.poke();
    let began = Instant::now();
    assert_eq!(change(&mut listener).await.1, second);
    assert!(began.elapsed() <= REST, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_comes_back_hears_everything_it_missed_once() {
    let (store, _tasks, feed) = feed();
    let mut listener = feed.listen(None).await.unwrap();
    post(&store).await;
    let (at, _, _) = change(&mut listener).await;
    drop(listener);
    let mut missed = Vec::new();
    for _ in 0..READ + 20 {
        missed.push(post(&store).await);
    }
    let mut listener = feed.listen(Some(at)).await.unwrap();
    let live = post(&store).await;
    missed.push(live);
    for expected in missed {
        assert_eq!(change(&mut listener).await.1, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_lags_reads_for_itself_and_misses_nothing() {
    let (store, _tasks, feed) = feed();
    let mut slow = feed.listen(None).await.unwrap();
    let mut quick = feed.listen(None).await.unwrap();
    let mut posted = Vec::new();
    for _ in 0..3 * KEPT {
        posted.push(post(&store).await);
        feed.poke();
        assert_eq!(change(&mut quick).await.1, *posted.last().unwrap());
    }
    for expected in posted {
        assert_eq!(change(&mut slow).await.1, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_stands_after_what_it_heard_however_much_was_read_for_it() {
    let (store, _tasks, feed) = feed();
    let mut listener = feed.listen(None).await.unwrap();
    for _ in 0..2 {
        post(&store).await;
    }
    for _ in 0..2 {
        let (cursor, ..) = change(&mut listener).await;
        assert_eq!(listener.at(), cursor);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_longer_kept_is_told_as_a_gap() {
    let (store, _tasks, feed) = feed();
    let old = store.inner.feed_end().await.unwrap();
    let job = post(&store).await;
    store.inner.command(&Scope::All, &[job], Command::Cancel, "token:test").await.unwrap();
    let tomorrow = jobgate_shared::clock::Clock::now(&*system()) + chrono::TimeDelta::days(1);
    store.inner.retire_feed(tomorrow).await.unwrap();
    let mut listener = feed.listen(Some(old)).await.unwrap();
    let after = post(&store).await;
    assert!(matches!(listener.next().await.unwrap(), Heard::Gap(_)));
    assert_eq!(change(&mut listener).await.1, after);
}

/// Of a feed that had told more: its store was restored since, or made anew.
const BEYOND: FeedCursor = FeedCursor { batch: 1_000_000_000, index: 1 };

#[tokio::test(start_paused = true)]
async fn a_cursor_of_another_feed_is_told_as_a_gap_and_what_comes_after_it_is_heard() {
    let (store, _tasks, feed) = feed();
    post(&store).await;
    let mut listener = feed.listen(Some(BEYOND)).await.unwrap();
    let heard = tokio::time::timeout(Duration::from_mins(1), listener.next()).await.unwrap();
    assert_eq!(heard.unwrap(), Heard::Gap(BEYOND));
    assert_eq!(listener.at(), store.inner.feed_end().await.unwrap());
    let after = post(&store).await;
    let heard = tokio::time::timeout(Duration::from_mins(1), change(&mut listener)).await.unwrap();
    assert_eq!(heard.1, after);
}

#[tokio::test(start_paused = true)]
async fn who_lives_through_a_restore_of_the_store_is_told_of_one_gap_and_goes_on_at_the_new_end() {
    let (store, _tasks, feed) = feed();
    post(&store).await;
    let mut listener = feed.listen(None).await.unwrap();
    // As if poller and listener had read a longer feed before.
    listener.at = BEYOND;
    let (end, _) = feed.read(Some(BEYOND)).await.unwrap();
    assert_eq!(end, store.inner.feed_end().await.unwrap());
    let heard = tokio::time::timeout(Duration::from_mins(1), listener.next()).await.unwrap();
    assert_eq!(heard.unwrap(), Heard::Gap(BEYOND));
    let after = post(&store).await;
    let heard = tokio::time::timeout(Duration::from_mins(1), change(&mut listener)).await.unwrap();
    assert_eq!(heard.1, after);
}

#[tokio::test(start_paused = true)]
async fn an_outage_delays_a_listener_and_loses_nothing() {
    let (store, _tasks, feed) = feed();
    let mut listener = feed.listen(None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.away.store(true, Ordering::SeqCst);
    let job = post(&store).await;
    let waited = tokio::time::timeout(Duration::from_mins(1), listener.next()).await;
    assert!(matches!(waited, Err(_) | Ok(Err(StoreError::Away(_)))));
    store.away.store(false, Ordering::SeqCst);
    assert_eq!(change(&mut listener).await.1, job);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_job_is_woken_by_its_change_and_not_by_others() {
    let (store, _tasks, feed) = feed();
    let (job, other) = (post(&store).await, post(&store).await);
    let watch = feed.watch(job);
    // The poller's first look wakes everybody, for what happened before it.
    watch.changed().await;
    let changed = watch.changed();
    store.inner.command(&Scope::All, &[other], Command::Hold, "token:test").await.unwrap();
    assert!(tokio::time::timeout(Duration::from_mins(1), changed).await.is_err());
    let changed = watch.changed();
    store.inner.command(&Scope::All, &[job], Command::Hold, "token:test").await.unwrap();
    tokio::time::timeout(FALLBACK + 2 * REST, changed).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_poller_ends_with_the_process_tasks() {
    let (_store, tasks, feed) = feed();
    let _listener = feed.listen(None).await.unwrap();
    tasks.stop().await;
}
