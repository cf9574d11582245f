//! What must hold after any sequence: everything visible is the same in both stores, and fits together.

use super::{
    dispatching::{oldest, outstanding, stranded, workers},
    keeping::depths,
    operating::cluster_settings,
    pair::{ALL, Pair, same},
    producing::{CLUSTERS, name},
};
use anyhow::{Context as _, Result, ensure};
use jobgate_shared::domain::{ClusterName, HistoryEntry, Job, JobId, JobState, Phase};
use jobgate_shared::store::{Depth, Filter, FullStore, PageRequest, Scope, StoreResult};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Longer than any hint, back-off or `run_at` that is drawn.
const LONG: Duration = Duration::from_hours(12);

/// Compares and checks everything; uses the stores up.
pub(super) async fn audit(pair: &mut Pair<'_>) -> Result<()> {
    let jobs = pair.both(async |store| listed(store, 3).await).await.context("every job")?;
    for new in &pair.posted {
        pair.both(async |store| store.get(&Scope::All, new.id).await).await.context("a job")?;
        pair.both(async |store| store.history(&Scope::All, new.id).await).await.context("a history")?;
    }
    for job in &jobs {
        let history = pair.both(async |store| store.history(&Scope::All, job.id).await).await?;
        leads_to(job, &history.context("no history")?)?;
    }
    counts_are_right(pair, &jobs).await.context("depths")?;
    pair.both(async |store| store.compact_counts().await).await?;
    counts_are_right(pair, &jobs).await.context("depths once folded")?;
    pair.feed_end().await.context("the end of the feed")?;
    feed_is_unbroken(pair, &jobs).context("the feed")?;
    outstanding(pair).await.context("hints")?;
    oldest(pair).await.context("the oldest")?;
    workers(pair).await.context("workers")?;
    cluster_settings(pair).await.context("cluster settings")?;
    pair.both(async |store| store.tokens(&Scope::All).await).await.context("tokens")?;
    let soon = pair.at(36_000);
    pair.both(async |store| store.retirable(soon, ALL).await).await.context("retirable jobs")?;
    every_job_is_found(pair, &jobs).await
}

/// Every job, newest first, in pages.
async fn listed(store: &dyn FullStore, limit: u32) -> StoreResult<Vec<Job>> {
    let (mut jobs, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(&Scope::All, &Filter::default(), PageRequest { after, limit }).await?;
        jobs.extend(page.jobs);
        after = page.next;
        if after.is_none() {
            return Ok(jobs);
        }
    }
}

/// Each entry leaves the state the one before it reached; the last one reaches the job's; within an attempt nothing goes
/// back, except to wait again; and an end is left for another attempt only.
fn leads_to(job: &Job, history: &[HistoryEntry]) -> Result<()> {
    let mut before: Option<&HistoryEntry> = None;
    for entry in history {
        ensure!(entry.from == before.map(|before| before.to), "a broken chain: {history:#?}");
        if let Some(before) = before {
            ensure!(entry.attempt >= before.attempt, "an attempt went back: {history:#?}");
            let (was, is) = (before.to.phase(), entry.to.phase());
            let forward = was <= is || (is == Phase::Waiting && was != Phase::Ended);
            ensure!(forward || entry.attempt > before.attempt, "a state went back: {history:#?}");
        }
        before = Some(entry);
    }
    let last = before.map(|entry| (entry.to, entry.attempt));
    ensure!(
        last == Some((job.life.state, job.life.attempt)),
        "{job:#?}\nis not where this leads: {history:#?}"
    );
    Ok(())
}

/// Depths are what counting the jobs gives.
async fn counts_are_right(pair: &Pair<'_>, jobs: &[Job]) -> Result<()> {
    let mut counts = BTreeMap::new();
    for job in jobs {
        let place = (job.project.clone(), job.cluster.clone(), job.priority, job.life.state);
        *counts.entry(place).or_default() += 1;
    }
    let depth =
        |((project, cluster, priority, state), jobs)| Depth { project, cluster, priority, state, jobs };
    let counted: Vec<Depth> = counts.into_iter().map(depth).collect();
    same(&counted, &depths(pair).await?)
}

/// What the feed told of a job is a chain from its acceptance to where it stands.
fn feed_is_unbroken(pair: &Pair<'_>, jobs: &[Job]) -> Result<()> {
    let mut reached: BTreeMap<JobId, JobState> = BTreeMap::new();
    for change in &pair.changes {
        let before = reached.insert(change.job, change.entry.to);
        ensure!(change.entry.from == before, "{change:#?}\nafter {before:?}");
    }
    for job in jobs {
        let told = reached.get(&job.id);
        ensure!(told == Some(&job.life.state), "the feed left {} at {told:?}: {job:#?}", job.id);
    }
    Ok(())
}

/// In time, every job that waits is given as due, and every job that somebody had as stranded once all leases have ended.
async fn every_job_is_found(pair: &mut Pair<'_>, jobs: &[Job]) -> Result<()> {
    pair.pass(LONG).await?;
    let mut due = BTreeSet::new();
    for cluster in CLUSTERS {
        let cluster: ClusterName = name(cluster);
        let call = async |store: &dyn FullStore| store.due(&cluster, ALL, LONG, Duration::ZERO).await;
        due.extend(pair.both(call).await.context("due jobs")?.into_iter().map(|due| due.job));
    }
    let standing = |is: &dyn Fn(JobState) -> bool| -> BTreeSet<JobId> {
        jobs.iter().filter(|job| is(job.life.state)).map(|job| job.id).collect()
    };
    same(&standing(&|state| state == JobState::Initialized), &due).context("waiting jobs that are due")?;
    pair.both(async |store| store.expire_all_leases().await).await?;
    let dead = pair.workers.clone();
    let call = async |store: &dyn FullStore| stranded(store, &dead, ALL, LONG).await;
    let (groups, _) = pair.both(call).await.context("stranded jobs")?;
    let found = groups.into_values().flatten().map(|(job, _)| job).collect();
    same(&standing(&JobState::is_owned), &found).context("jobs of the dead that are stranded")?;
    workers(pair).await.context("workers once all are dead")
}
