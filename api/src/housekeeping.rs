//! What keeps a gateway small and its operators informed: retention, the folding of counts, gauges.
//!
//! Nothing here is in anybody's way: every batch is followed by a rest several times as long as it took, and nothing a
//! job needs depends on it. Any number of processes may do it at once.

use futures::TryStreamExt as _;
use jobgate_shared::{
    clock::Clock,
    domain::{ClusterName, JobId, JobState},
    logs::{ALL_SHIPPED_AFTER, Doom, LogError, LogStore},
    random,
    retry::Delays,
    settings::{Number, Period},
    store::{Depth, Oldest, Store},
    supervise::Tasks,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashSet},
    future::Future,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often counts are folded.
const COMPACT_EVERY: Duration = Duration::from_secs(10);
/// A batch is followed by a rest so many times as long: retention takes a fifth of one connection at most.
const REST: u32 = 4;
/// How often is looked for logs that are to go.
const SWEEP_EVERY: Duration = Duration::from_mins(10);
/// How old the note of them must be: whoever made it has removed the rows by then, or never will, and no worker ships what
/// it still had of them.
const SWEEP_AFTER: Duration = Duration::from_hours(1);
/// Notes of them that are known at once.
const NOTES: usize = 100;
/// Between two batches, at least.
const SHORTEST_REST: Duration = Duration::from_millis(50);

/// What operators set of housekeeping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long an ended job is kept, with its logs and its idempotency key.
    pub keep_ended: Period<60_000, 315_360_000_000>,
    /// How often ended jobs are looked for.
    pub retire_every: Period<1_000, 86_400_000>,
    /// Jobs removed in one transaction.
    pub retire_batch: Number<1, 10_000>,
    /// How often queue depths are measured.
    pub measure_every: Period<1_000, 3_600_000>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keep_ended: Period::new(Duration::from_hours(30 * 24)),
            retire_every: Period::new(Duration::from_mins(1)),
            retire_batch: Number::new(500),
            measure_every: Period::new(Duration::from_secs(5)),
        }
    }
}

/// What housekeeping works with.
#[derive(Debug)]
pub struct Housekeeping {
    /// The rows.
    pub store: Arc<dyn Store>,
    /// The logs of the jobs.
    pub logs: LogStore,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What operators set.
    pub config: Config,
}

/// Keeps house until the tasks are shut down.
pub fn run(tasks: &Tasks, parts: Housekeeping) {
    let parts = Arc::new(parts);
    let (house, shutdown) = (parts.clone(), tasks.shutdown().clone());
    tasks.supervise("retention", move || {
        let house = house.clone();
        every(*house.config.retire_every, shutdown.clone(), move || house.clone().retire())
    });
    let (house, shutdown) = (parts.clone(), tasks.shutdown().clone());
    tasks.supervise("counts", move || {
        let house = house.clone();
        every(COMPACT_EVERY, shutdown.clone(), move || house.clone().compact())
    });
    let (house, shutdown) = (parts.clone(), tasks.shutdown().clone());
    tasks.supervise("leftover logs", move || {
        let house = house.clone();
        every(SWEEP_EVERY, shutdown.clone(), move || house.clone().sweep())
    });
    let shutdown = tasks.shutdown().clone();
    tasks.supervise("gauges", move || measure(parts.clone(), shutdown.clone()));
}

/// Does a chore at once and then so often; one that failed is done again after a growing delay.
async fn every<F>(
    interval: Duration,
    shutdown: CancellationToken,
    mut chore: impl FnMut() -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut delays = Delays::network();
    loop {
        let rest = match shutdown.run_until_cancelled(chore()).await {
            None => return Ok(()),
            Some(Ok(())) => {
                delays.reset();
                interval
            }
            Some(Err(error)) => {
                tracing::warn!(error = format!("{error:#}"), "a chore was not done; it is tried again");
                delays.next_delay()
            }
        };
        if shutdown.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
            return Ok(());
        }
    }
}

impl Housekeeping {
    /// Removes what ended long enough ago and then what is as old of the feed, batch by batch.
    async fn retire(self: Arc<Self>) -> anyhow::Result<()> {
        let before = self.store.now().await? - *self.config.keep_ended;
        let limit = self.config.retire_batch.get();
        loop {
            let began = self.clock.monotonic();
            let jobs = self.store.retirable(before, limit).await?;
            // First the note, then the rows, then the logs: somebody may try a job again at any moment, which then keeps
            // its logs, and whenever this process dies nothing stays for ever.
            let note = self.logs.doom(&jobs, self.clock.now()).await?;
            let removed = self.store.retire(&jobs, before).await?;
            metrics::counter!("jobgate_retired_jobs_total").increment(removed);
            let limit_reached = jobs.len() >= limit as usize;
            let gone = if removed == jobs.len() as u64 { jobs } else { self.gone(jobs).await? };
            // Of a job that ended lately more may come; the note stays for that.
            let note = note.filter(|_| *self.config.keep_ended >= ALL_SHIPPED_AFTER);
            told_if_left(self.remove_logs(&gone, note).await);
            if !limit_reached {
                break;
            }
            self.rest(began).await;
        }
        loop {
            let began = self.clock.monotonic();
            if !self.store.retire_feed(before).await? {
                return Ok(());
            }
            self.rest(began).await;
        }
    }

    /// Those of these jobs that have no row any more.
    async fn gone(&self, mut jobs: Vec<JobId>) -> anyhow::Result<Vec<JobId>> {
        let present: HashSet<JobId> = self.store.present(&jobs).await?.into_iter().collect();
        jobs.retain(|job| !present.contains(job));
        Ok(jobs)
    }

    /// Removes the logs of these jobs, and then the note of them.
    async fn remove_logs(&self, gone: &[JobId], note: Option<Doom>) -> Result<(), LogError> {
        self.logs.remove(gone).await?;
        match note {
            Some(note) => self.logs.strike_out(note).await,
            None => Ok(()),
        }
    }

    /// Removes the logs of jobs that were removed and left some: their remover died, or a worker shipped more afterwards.
    async fn sweep(self: Arc<Self>) -> anyhow::Result<()> {
        let mut found = self.logs.dooms(self.clock.now() - SWEEP_AFTER).try_chunks(NOTES);
        while let Some(mut notes) = found.try_next().await.map_err(|stopped| stopped.1)? {
            // Every process in an order of its own, so that they do not do the same at the same time.
            notes.sort_by_cached_key(|_| random::share().to_bits());
            for note in notes {
                let began = self.clock.monotonic();
                let removed = match self.logs.doomed(&note).await {
                    // Another has seen to it.
                    Ok(None) => continue,
                    Ok(Some(jobs)) => self.remove_logs(&self.gone(jobs).await?, Some(note)).await,
                    Err(error) => Err(error),
                };
                // One that cannot be seen to keeps no other from it.
                told_if_left(removed);
                self.rest(began).await;
            }
        }
        Ok(())
    }

    /// Gives way to others after a batch that began then.
    async fn rest(&self, began: Instant) {
        let took = self.clock.monotonic() - began;
        tokio::time::sleep((took * REST).max(SHORTEST_REST)).await;
    }

    /// Folds counts and forgets claims that are over. These come as fast as jobs do, so all of them go.
    async fn compact(self: Arc<Self>) -> anyhow::Result<()> {
        loop {
            let began = self.clock.monotonic();
            if !self.store.compact_counts().await? {
                return Ok(());
            }
            self.rest(began).await;
        }
    }
}

fn told_if_left(removed: Result<(), LogError>) {
    if let Err(error) = removed {
        let error = format!("{:#}", anyhow::Error::new(error));
        tracing::warn!(error, "some logs of removed jobs are left; they are removed later");
    }
}

/// A queue's labels.
type Labels = (ClusterName, i16, JobState);

/// What the gauges show; what is no longer there is shown as zero once.
#[derive(Debug, Default)]
struct Gauges {
    depths: BTreeMap<Labels, u64>,
    ages: BTreeMap<Labels, Duration>,
}

async fn measure(house: Arc<Housekeeping>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let gauges = Arc::new(tokio::sync::Mutex::new(Gauges::default()));
    every(*house.config.measure_every, shutdown, move || {
        let (house, gauges) = (house.clone(), gauges.clone());
        async move {
            let depths = house.store.depths().await?;
            let oldest = house.store.oldest().await?;
            let now = house.store.now().await?;
            let age = |one: &Oldest| (now - one.due_since).to_std().unwrap_or_default();
            // What is due and waits for a worker stands in this state, and in no other.
            let labels = |one: &Oldest| (one.cluster.clone(), one.priority, JobState::Initialized);
            let ages = oldest.iter().map(|one| (labels(one), age(one)));
            let mut gauges = gauges.lock().await;
            show(&mut gauges.depths, sums(depths), |labels, jobs| {
                metrics::gauge!("jobgate_jobs", labels)
                    .set(f64::from(u32::try_from(jobs).unwrap_or(u32::MAX)));
            });
            show(&mut gauges.ages, ages.collect(), |labels, age| {
                metrics::gauge!("jobgate_oldest_due_seconds", labels).set(age.as_secs_f64());
            });
            Ok(())
        }
    })
    .await
}

/// Depths over all projects.
fn sums(depths: Vec<Depth>) -> BTreeMap<Labels, u64> {
    let mut sums = BTreeMap::new();
    for Depth { project: _, cluster, priority, state, jobs } in depths {
        *sums.entry((cluster, priority, state)).or_default() += jobs;
    }
    sums
}

/// Shows the new values, and zero for every old one that is gone.
fn show<T: Copy + Default>(
    shown: &mut BTreeMap<Labels, T>,
    values: BTreeMap<Labels, T>,
    set: impl Fn(&[(&'static str, String)], T),
) {
    let old = std::mem::replace(shown, values);
    let gone =
        old.into_keys().filter(|labels| !shown.contains_key(labels)).map(|labels| (labels, T::default()));
    let gone: Vec<(Labels, T)> = gone.collect();
    let standing = shown.iter().map(|(labels, value)| (labels.clone(), *value));
    for ((cluster, priority, state), value) in gone.into_iter().chain(standing) {
        let (cluster, priority) = (cluster.to_string(), priority.to_string());
        set(&[("cluster", cluster), ("priority", priority), ("state", state.to_string())], value);
    }
}

#[cfg(test)]
mod tests;
