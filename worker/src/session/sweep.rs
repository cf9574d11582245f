//! Removes inert submissions no row records: what a crash between create and record leaves behind.

use super::{Worker, lease::Lease};
use jobgate_shared::{domain::JobId, supervise::Tasks};
use std::sync::Arc;

/// Sweeps every cluster now and then while the lease holds.
pub(super) fn spawn(tasks: &Tasks, worker: &Arc<Worker>, lease: &Arc<Lease>) {
    let (worker, lease) = (worker.clone(), lease.clone());
    tasks.spawn("sweep", async move {
        loop {
            tokio::select! {
                () = lease.over().cancelled() => return,
                () = tokio::time::sleep(worker.timing.sweep) => {}
            }
            for place in 0..worker.clusters.len() {
                if let Err(error) = sweep(&worker, place, &lease).await {
                    tracing::warn!(cluster = %worker.clusters[place].name, error = format!("{error:#}"), "leftovers not swept; trying again later");
                }
            }
        }
    });
}

async fn sweep(worker: &Worker, place: usize, lease: &Lease) -> anyhow::Result<()> {
    let served = &worker.clusters[place];
    let found = served.engine.inert(worker.timing.sweep_older_than).await?;
    if found.is_empty() {
        return Ok(());
    }
    let asked: Vec<(JobId, u32, String)> =
        found.iter().map(|(tag, submission)| (tag.job, tag.attempt, submission.id.clone())).collect();
    for index in worker.leases.leftovers(&asked).await? {
        let Some((tag, submission)) = found.get(index).filter(|_| lease.holds()) else { continue };
        served.engine.discard(*tag, Some(submission)).await?;
        metrics::counter!("jobgate_leftovers_swept_total", "cluster" => served.name.to_string()).increment(1);
        tracing::info!(job = %tag.job, attempt = tag.attempt, cluster = %served.name, "swept a submission no row records");
    }
    Ok(())
}
