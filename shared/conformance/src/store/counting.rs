//! Counts: read from deltas, equal to counting.

use super::{
    Stage,
    site::{Site, cluster, ended, granted, new_job, project, runs, to_hand_back, to_record},
};
use anyhow::{Result, ensure};
use futures::future::try_join_all;
use jobgate_shared::domain::{Command, Ending, Job, NewJob};
use jobgate_shared::store::{Oldest, Patch, Scope};
use std::time::Duration;

/// One worker's share: jobs of several queues through every turn a life can take.
async fn bustle(site: &Site<'_>, n: usize) -> Result<()> {
    let worker = site.worker().await?;
    let new: Vec<NewJob> = (0..30)
        .map(|i| NewJob {
            project: project(if (n + i).is_multiple_of(2) { "a" } else { "b" }),
            cluster: cluster(if i % 3 == 0 { "slurm-a" } else { "local" }),
            priority: i16::try_from(i % 4).unwrap_or_default() - 1,
            max_attempts: 2,
            hold: i % 10 == 9,
            ..new_job()
        })
        .collect();
    let jobs = site.accept_all(&new).await?;
    for job in jobs.iter().step_by(5) {
        site.store.patch(&Scope::All, job.id, &Patch { priority: Some(50), ..Patch::default() }).await?;
    }
    let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
    let claimed = site.claim(worker, &ids).await?;
    let taken: Vec<Job> = claimed.into_iter().filter_map(|outcome| granted(outcome).ok()).collect();
    let (back, kept) = taken.split_at(6);
    let items: Vec<_> = back.iter().map(|job| to_hand_back(job, Duration::ZERO)).collect();
    site.store.hand_back(worker, &items).await?;
    let records: Vec<_> = kept.iter().map(|job| to_record(job, "a")).collect();
    site.store.record(&records).await?;
    let at = site.now().await?;
    let mut events = Vec::new();
    for (i, job) in kept.iter().enumerate() {
        let mut job = job.clone();
        job.life.submission = Some(super::site::submission("a"));
        events.push(Site::event(&job, 1, runs(), at));
        let ending = [Ending::Finished, Ending::Failed, Ending::Lost, Ending::Canceled][i % 4];
        if i % 5 != 0 {
            events.push(Site::event(&job, 2, ended(ending), at));
        }
    }
    site.store.apply(&events).await?;
    site.store.compact_counts().await?;
    for (job, command) in ids.iter().zip(Command::ALL.iter().cycle()) {
        site.command(*command, *job).await?;
    }
    for job in &ids[..4] {
        site.store.remove(&Scope::All, *job).await?;
    }
    Ok(())
}

/// From many hands at once, with folding under way.
pub async fn depths_equal_a_recount_after_a_busy_run(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    assert_eq!(site.store.depths().await?, []);
    let folding = async {
        for _ in 0..20 {
            site.store.compact_counts().await?;
        }
        Ok(())
    };
    let (bustled, folded) = tokio::join!(try_join_all((0..4).map(|n| bustle(&site, n))), folding);
    folded.and(bustled.map(drop))?;
    ensure!(!site.store.depths().await?.is_empty(), "no depths");
    site.recount().await
}

/// Hinted or not, as long as it waits.
pub async fn the_oldest_due_job_of_each_queue_is_known(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let urgent = NewJob { priority: 9, ..new_job() };
    let first = site.accept(urgent.clone()).await?;
    let second = site.accept(NewJob { id: jobgate_shared::domain::JobId::generate(), ..urgent }).await?;
    let plain = site.accept(new_job()).await?;
    let slurm = site.accept(NewJob { cluster: cluster("slurm-a"), ..new_job() }).await?;
    let oldest = |cluster: &str, priority, job: &Job| Oldest {
        cluster: super::site::cluster(cluster),
        priority,
        due_since: job.life.due_at,
    };
    let sorted = async || {
        let mut all = site.store.oldest().await?;
        all.sort_by_key(|o| (o.cluster.clone(), o.priority));
        anyhow::Ok(all)
    };
    let expected =
        |urgent: &Job| [oldest("local", 0, &plain), oldest("local", 9, urgent), oldest("slurm-a", 0, &slurm)];
    assert_eq!(sorted().await?, expected(&first));
    site.store.due(&cluster("local"), 1, Duration::from_hours(1), Duration::ZERO).await?;
    assert_eq!(sorted().await?, expected(&first));
    site.take(worker, first.id).await?;
    assert_eq!(sorted().await?, expected(&second));
    site.take(worker, second.id).await?;
    assert_eq!(sorted().await?, [oldest("local", 0, &plain), oldest("slurm-a", 0, &slurm)]);
    Ok(())
}
