//! Cleans up after crashes: inert submissions no row records are discarded, ended ones nobody forgot have the rest of
//! their logs shipped and are forgotten. What may go is the store's word, never this process's memory.

use super::{Served, Worker, drive::answered, lease::Lease, perform::count_call, ship};
use crate::engine::EngineResult;
use jobgate_shared::{
    domain::{JobId, Submission, SubmissionTag},
    failpoint,
    logs::LogStream,
    supervise::Tasks,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The first sweep comes soon: this worker may be the successor of one that crashed.
const FIRST: Duration = Duration::from_secs(5);

/// Sweeps every cluster soon and then now and again while the lease holds.
pub(super) fn spawn(tasks: &Tasks, worker: &Arc<Worker>, lease: &Arc<Lease>) {
    let (worker, lease) = (worker.clone(), lease.clone());
    tasks.supervise("sweep", move || run(worker.clone(), lease.clone()));
}

async fn run(worker: Arc<Worker>, lease: Arc<Lease>) -> anyhow::Result<()> {
    let mut wait = FIRST.min(worker.timing.sweep);
    while lease.over().run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        wait = worker.timing.sweep;
        for place in 0..worker.clusters.len() {
            let swept = lease.over().run_until_cancelled(sweep(&worker, place, &lease)).await;
            let Some(swept) = swept else { break };
            if let Err(error) = swept {
                let cluster = &worker.clusters[place].name;
                tracing::warn!(%cluster, error = format!("{error:#}"), "leftovers not swept; trying again later");
            }
        }
    }
    Ok(())
}

async fn sweep(worker: &Worker, place: usize, lease: &Lease) -> anyhow::Result<()> {
    let (served, older_than) = (&worker.clusters[place], worker.timing.sweep_older_than);
    served.pace.turn().await;
    let inert = counted(served, "inert", served.engine.inert(older_than)).await?;
    for (tag, submission) in leftovers(worker, inert).await? {
        served.pace.turn().await;
        if !lease.holds() {
            return Ok(());
        }
        failpoint::pass("sweep.found");
        counted(served, "discard", served.engine.discard(tag, Some(&submission))).await?;
        failpoint::pass("sweep.discarded");
        metrics::counter!("jobgate_leftovers_swept_total", "cluster" => served.name.to_string()).increment(1);
        tracing::info!(job = %tag.job, attempt = tag.attempt, cluster = %served.name, "swept a submission no row records");
    }
    served.pace.turn().await;
    let ended = counted(served, "ended", served.engine.ended(older_than)).await?;
    for (tag, submission) in leftovers(worker, ended).await? {
        if !lease.holds() {
            return Ok(());
        }
        finish(worker, served, tag, &submission).await?;
    }
    Ok(())
}

async fn counted<T>(
    served: &Served,
    name: &'static str,
    call: impl Future<Output = EngineResult<T>>,
) -> EngineResult<T> {
    let began = Instant::now();
    let answer = served.pace.pays(call).await;
    count_call(&served.name, name, began.elapsed(), answered(&answer).is_ok());
    answer
}

/// Those nobody will act on any more, as the rows tell.
async fn leftovers(
    worker: &Worker,
    found: Vec<(SubmissionTag, Submission)>,
) -> anyhow::Result<Vec<(SubmissionTag, Submission)>> {
    if found.is_empty() {
        return Ok(found);
    }
    let asked: Vec<(JobId, u32, String)> =
        found.iter().map(|(tag, submission)| (tag.job, tag.attempt, submission.id.clone())).collect();
    let over = worker.leases.leftovers(&asked).await?;
    Ok(over.into_iter().filter_map(|index| found.get(index).cloned()).collect())
}

/// Ships what is left of an ended attempt's logs and lets the engine forget it.
async fn finish(
    worker: &Worker,
    served: &Served,
    tag: SubmissionTag,
    submission: &Submission,
) -> anyhow::Result<()> {
    let (engine, mut done) = (served.engine.as_ref(), true);
    if engine.capabilities().logs {
        for stream in LogStream::ALL {
            // It has ended, so this comes to an end.
            done &= ship::ship_stream(worker, engine, tag, submission, stream, None, u32::MAX).await?.done;
        }
    }
    if done {
        failpoint::pass("sweep.shipped");
        served.pace.turn().await;
        counted(served, "forget", engine.forget(tag, submission)).await?;
    }
    Ok(())
}
