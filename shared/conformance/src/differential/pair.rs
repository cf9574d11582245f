//! The model and an adapter at the same moment of the same clock, and what exists in them so far.

use crate::store::Stage;
use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use jobgate_shared::clock::{Clock as _, ManualClock};
use jobgate_shared::domain::{Job, JobId, JobState, NewJob, StatusEvent, TokenId, WorkerId};
use jobgate_shared::store::{
    Changes, FeedCursor, Filter, FullStore, JobChange, PageRequest, Scope, Store as _, StoreResult,
    memory::MemoryStore,
};
use proptest::prelude::*;
use std::{
    collections::HashSet,
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};
use uuid::{Builder, Uuid};

/// More than a sequence can make of anything.
pub(super) const ALL: u32 = 10_000;
/// How long an adapter may keep a change from its feed, because an earlier transaction has not ended.
const FEED_BOUND: Duration = Duration::from_secs(20);
/// Equal lines shown around those that differ.
const CONTEXT: usize = 4;

/// Which job a call is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pick {
    /// One in a state that this call is made for, if there is any.
    Likely(u8),
    /// One of those ever posted, whatever became of it.
    Any(u8),
    /// One that never was.
    Unknown,
}

impl Pick {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            12 => any::<u8>().prop_map(Self::Likely),
            4 => any::<u8>().prop_map(Self::Any),
            1 => Just(Self::Unknown),
        ]
    }

    /// Some jobs, now and then one of them twice.
    pub(super) fn some() -> impl Strategy<Value = Vec<Self>> {
        proptest::collection::vec(Self::any(), 0..7)
    }
}

/// How far what a caller believes (an attempt, an epoch) is from what holds.
pub(super) fn shift() -> impl Strategy<Value = i32> {
    prop_oneof![20 => Just(0), 1 => Just(-1), 1 => Just(1)]
}

/// The two stores.
pub(super) struct Pair<'s> {
    stage: &'s dyn Stage,
    adapter: Arc<dyn FullStore>,
    pub(super) model: MemoryStore,
    clock: Arc<ManualClock>,
    made: u32,
    /// Everything ever posted, accepted or not.
    pub(super) posted: Vec<NewJob>,
    /// What of it was accepted.
    pub(super) accepted: HashSet<JobId>,
    pub(super) workers: Vec<WorkerId>,
    pub(super) tokens: Vec<TokenId>,
    /// Every event ever told.
    pub(super) told: Vec<StatusEvent>,
    /// The cursor before the first change and after each one, as the model and as the adapter number it.
    feed: Vec<(FeedCursor, FeedCursor)>,
    /// What the feed told.
    pub(super) changes: Vec<JobChange>,
}

impl<'s> Pair<'s> {
    pub(super) async fn of(stage: &'s dyn Stage) -> Result<Self> {
        let adapter = stage.store();
        let clock = Arc::new(ManualClock::at(adapter.now().await?));
        let model = MemoryStore::new(clock.clone());
        let feed = vec![(model.feed_end().await?, adapter.feed_end().await?)];
        Ok(Self {
            stage,
            adapter,
            model,
            clock,
            made: 0,
            posted: Vec::new(),
            accepted: HashSet::new(),
            workers: Vec::new(),
            tokens: Vec::new(),
            told: Vec::new(),
            feed,
            changes: Vec::new(),
        })
    }

    /// Makes the call on both; what both answer.
    pub(super) async fn both<T: PartialEq + Debug>(
        &self,
        call: impl AsyncFn(&dyn FullStore) -> StoreResult<T>,
    ) -> Result<T> {
        let expected = call(&self.model).await.context("the model")?;
        let found = call(&*self.adapter).await.context("the adapter")?;
        same(&expected, &found)?;
        Ok(expected)
    }

    pub(super) async fn pass(&self, by: Duration) -> Result<()> {
        self.stage.pass(by).await;
        self.clock.advance(by);
        self.both(async |store| store.now().await).await.map(drop)
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// So many seconds from now.
    pub(super) fn at(&self, seconds: i64) -> DateTime<Utc> {
        self.now() + TimeDelta::seconds(seconds)
    }

    /// An id that never was. It tells the time, as every one does; among those of one millisecond `tie` is the order,
    /// because several processes make them.
    pub(super) fn new_id(&mut self, tie: u8) -> Uuid {
        self.made += 1;
        let [a, b, c, d] = self.made.to_be_bytes();
        let millis = u64::try_from(self.now().timestamp_millis()).unwrap_or_default();
        Builder::from_unix_timestamp_millis(millis, &[0, tie, 0, 0, 0, 0, a, b, c, d]).into_uuid()
    }

    pub(super) async fn job(&self, pick: Pick, likely: &[JobState]) -> Result<JobId> {
        let unknown = JobId(Uuid::from_u128(7));
        let nth = |jobs: &[JobId], n: u8| jobs.get(usize::from(n) % jobs.len().max(1)).copied();
        let posted: Vec<JobId> = self.posted.iter().map(|new| new.id).collect();
        let picked = match pick {
            Pick::Likely(n) => {
                let filter = Filter { states: likely.to_vec(), ..Filter::default() };
                let page = PageRequest { after: None, limit: ALL };
                let listed = self.model.list(&Scope::All, &filter, page).await?;
                let fit: Vec<JobId> = listed.jobs.into_iter().map(|job| job.id).collect();
                nth(&fit, n).or_else(|| nth(&posted, n))
            }
            Pick::Any(n) => nth(&posted, n),
            Pick::Unknown => None,
        };
        Ok(picked.unwrap_or(unknown))
    }

    pub(super) async fn jobs(&self, picks: &[Pick], likely: &[JobState]) -> Result<Vec<JobId>> {
        let mut jobs = Vec::with_capacity(picks.len());
        for pick in picks {
            jobs.push(self.job(*pick, likely).await?);
        }
        Ok(jobs)
    }

    /// The job as the model has it.
    pub(super) async fn find(&self, job: JobId) -> Result<Option<Job>> {
        Ok(self.model.get(&Scope::All, job).await?)
    }

    /// Mostly one whose lease runs on, if there is any; sometimes one of any; now and then one that never was.
    pub(super) async fn worker(&self, nth: u8) -> Result<WorkerId> {
        let known = self.model.workers().await?;
        let alive: Vec<WorkerId> =
            known.iter().filter(|worker| worker.alive).map(|worker| worker.id).collect();
        let among = if alive.is_empty() || nth >= 200 { &self.workers } else { &alive };
        let picked = among.get(usize::from(nth) % among.len().max(1)).filter(|_| nth < 250);
        Ok(picked.copied().unwrap_or(WorkerId(Uuid::from_u128(8))))
    }

    /// Reads both feeds to their ends.
    pub(super) async fn follow(&mut self) -> Result<()> {
        let (in_model, in_adapter) = self.end();
        let expected = self.model.changes(in_model, ALL).await?;
        let began = Instant::now();
        let found = loop {
            let found = self.adapter.changes(in_adapter, ALL).await.context("the adapter")?;
            if found.items.len() >= expected.items.len() || began.elapsed() > FEED_BOUND {
                break found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        same(&told(&expected), &told(&found)).context("the feed")?;
        let cursors = expected.items.iter().map(|(cursor, _)| *cursor);
        self.feed.extend(cursors.zip(found.items.iter().map(|(cursor, _)| *cursor)));
        self.changes.extend(expected.items.into_iter().map(|(_, change)| change));
        Ok(())
    }

    /// Where both feeds were read to.
    fn end(&self) -> (FeedCursor, FeedCursor) {
        self.feed.last().copied().unwrap_or_default()
    }

    /// What both tell after the `nth` cursor ever told, up to `limit` changes.
    pub(super) async fn read_again(&mut self, nth: u8, limit: u32) -> Result<()> {
        self.follow().await?;
        let (in_model, in_adapter) = self.feed[usize::from(nth) % self.feed.len()];
        let expected = self.model.changes(in_model, limit).await?;
        let found = self.adapter.changes(in_adapter, limit).await.context("the adapter")?;
        same(&told(&expected), &told(&found))?;
        for ((in_model, _), (in_adapter, _)) in expected.items.iter().zip(&found.items) {
            let known = self.feed.contains(&(*in_model, *in_adapter));
            ensure!(known, "a cursor changed: {in_adapter:?} is now where {in_model:?} is in the model");
        }
        Ok(())
    }

    pub(super) async fn feed_end(&mut self) -> Result<()> {
        self.follow().await?;
        let ends = (self.model.feed_end().await?, self.adapter.feed_end().await?);
        same(&self.end(), &ends)
    }
}

/// A stretch of the feed without the numbers of its batches, which are each adapter's own.
fn told(changes: &Changes) -> (Vec<(u32, &JobChange)>, bool) {
    (changes.items.iter().map(|(cursor, change)| (cursor.index, change)).collect(), changes.gap)
}

/// The two are equal; the error shows where they are not.
pub(super) fn same<T: PartialEq + Debug>(expected: &T, found: &T) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let (expected, found) = (format!("{expected:#?}"), format!("{found:#?}"));
    let (wanted, given): (Vec<_>, Vec<_>) = (expected.lines().collect(), found.lines().collect());
    let equal = |a: &str, b: &str| a == b;
    let before = wanted.iter().zip(&given).take_while(|(a, b)| equal(a, b)).count();
    let rest = wanted.len().min(given.len()) - before;
    let pairs = wanted.iter().rev().zip(given.iter().rev());
    let after = pairs.take(rest).take_while(|(a, b)| equal(a, b)).count();
    let differing = |lines: &[&str]| {
        let (from, to) = (before.saturating_sub(CONTEXT), (lines.len() - after + CONTEXT).min(lines.len()));
        lines[from..to].join("\n")
    };
    anyhow::bail!("the model says\n{}\nthe adapter says\n{}", differing(&wanted), differing(&given))
}
