//! The feed: every committed change, once, in an order that never changes.

use super::{
    Stage,
    site::{Site, new_job, to_record},
};
use anyhow::{Context as _, Result, ensure};
use chrono::TimeDelta;
use futures::future::try_join_all;
use jobgate_shared::domain::{Ending, HistoryEntry, JobId, JobState};
use jobgate_shared::store::{FeedCursor, JobChange, Scope};
use std::collections::BTreeMap;

const START: FeedCursor = FeedCursor { batch: 0, index: 0 };

fn assert_in_order(told: &[(FeedCursor, JobChange)]) -> Result<()> {
    let mut chain: BTreeMap<JobId, JobState> = BTreeMap::new();
    let mut last = START;
    for (cursor, change) in told {
        ensure!(*cursor > last, "{cursor:?} after {last:?}");
        last = *cursor;
        let before = chain.insert(change.job, change.entry.to);
        ensure!(change.entry.from == before, "{change:?} after {before:?}");
    }
    Ok(())
}

/// What the feed told of a plain life is what its history tells.
pub async fn the_feed_tells_every_change_once_and_in_order(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    assert_eq!(site.store.changes(START, 10).await?.items, []);
    let worker = site.worker().await?;
    let mut jobs = Vec::new();
    for ending in [Ending::Finished, Ending::Failed] {
        jobs.push(site.ended(worker, new_job(), ending).await?);
    }
    let told = site.changes(START, 10, 100).await?;
    assert_eq!(told.len(), 10);
    assert_in_order(&told)?;
    for job in jobs {
        let of_job: Vec<HistoryEntry> =
            told.iter().filter(|(_, c)| c.job == job.id).map(|(_, c)| c.entry.clone()).collect();
        let history = site.store.history(&Scope::All, job.id).await?.context("no history")?;
        assert_eq!(of_job, history);
        ensure!(told.iter().all(|(_, c)| c.project == job.project), "a foreign project");
    }
    let end = told.last().map(|(cursor, _)| *cursor).context("nothing told")?;
    assert_eq!(site.store.changes(end, 10).await?.items, []);
    ensure!(site.store.feed_end().await? >= end, "the end is behind what was told");
    Ok(())
}

/// Whatever was read last, and in pages of any size.
pub async fn the_feed_can_be_resumed_at_any_cursor(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let jobs = site.accept_many(7).await?;
    site.claim(worker, &jobs).await?;
    let whole = site.changes(START, 14, 100).await?;
    assert_in_order(&whole)?;
    for limit in [1, 3, 7, 14] {
        assert_eq!(site.changes(START, 14, limit).await?, whole);
    }
    for (read, (cursor, _)) in whole.iter().enumerate() {
        let rest = site.changes(*cursor, 13 - read, 4).await?;
        assert_eq!(rest, whole[read + 1..]);
    }
    Ok(())
}

/// Commits of many writers, in whatever order they end: a follower sees each change, and each job's in order.
pub async fn a_reader_that_follows_busy_writers_misses_nothing(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let writers = (0..4).map(|_| async {
        let worker = site.worker().await?;
        for _ in 0..5 {
            let jobs = site.accept_many(4).await?;
            let claimed = site.claim(worker, &jobs).await?;
            let mut records = Vec::new();
            for outcome in claimed {
                records.push(to_record(&super::site::granted(outcome)?, "a"));
            }
            site.store.record(&records).await?;
        }
        anyhow::Ok(())
    });
    let (written, told) = tokio::join!(try_join_all(writers), site.changes(START, 240, 9));
    written?;
    let told = told?;
    assert_eq!(told.len(), 240);
    assert_in_order(&told)
}

/// Whoever slept longer than the feed is kept learns that it missed something.
pub async fn a_cursor_older_than_what_is_kept_shows_a_gap(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    site.accept_many(3).await?;
    let old = site.changes(START, 3, 10).await?;
    let soon = site.now().await? + TimeDelta::hours(1);
    ensure!(!site.store.changes(START, 10).await?.gap, "a gap before anything was forgotten");
    ensure!(!site.store.retire_feed(soon).await?, "more is left of a few batches");
    let before = site.store.changes(old[0].0, 10).await?;
    assert_eq!((before.items.len(), before.gap), (0, true));
    ensure!(site.store.changes(START, 10).await?.gap, "the start is kept");
    ensure!(!site.store.changes(old[2].0, 10).await?.gap, "nothing after the last was forgotten");
    ensure!(site.store.feed_end().await? >= old[2].0, "the end went back");
    let new = site.accept_many(2).await?;
    let told = site.changes(old[2].0, 2, 10).await?;
    assert_eq!(told.iter().map(|(_, change)| change.job).collect::<Vec<_>>(), new);
    Ok(())
}

/// Whoever has a cursor of another feed, from before the store was restored or made anew, learns that nothing follows it.
pub async fn a_cursor_from_beyond_the_last_batch_shows_a_gap(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    ensure!(!site.store.changes(START, 10).await?.gap, "a gap in an empty feed");
    site.accept_many(2).await?;
    site.changes(START, 2, 10).await?;
    let beyond = site.store.changes(FeedCursor { batch: 1 << 62, index: 1 }, 10).await?;
    assert_eq!((beyond.items.len(), beyond.gap), (0, true));
    let end = site.store.feed_end().await?;
    ensure!(!site.store.changes(end, 10).await?.gap, "a gap at the end");
    Ok(())
}
