//! What this worker has by the rows, compared with what it knows: a claim that was taken for lost may commit after all, and
//! while this worker lives nobody else looks after its jobs.

use super::{Worker, claim::Claimer, drive::Message};
use crate::core::Input;
use jobgate_shared::{
    domain::{JobId, WorkerId},
    failpoint,
    supervise::Tasks,
};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Most jobs claimed again at once.
const MAX_CLAIM: usize = 1000;

/// Looks once a lease, so that two looks in a row are further apart than any answer to a claim is waited for.
pub(super) fn spawn(tasks: &Tasks, worker: &Arc<Worker>, id: WorkerId, inbox: &mpsc::Sender<Message>) {
    let (worker, inbox, over) = (worker.clone(), inbox.clone(), tasks.shutdown().clone());
    tasks.supervise("held", move || look(worker.clone(), id, inbox.clone(), over.clone()));
}

async fn look(
    worker: Arc<Worker>,
    id: WorkerId,
    inbox: mpsc::Sender<Message>,
    over: CancellationToken,
) -> anyhow::Result<()> {
    let between = worker.timing.lease;
    while over.run_until_cancelled(tokio::time::sleep(between)).await.is_some() {
        match worker.leases.held(id).await {
            Ok(jobs) => {
                if inbox.send(Message::Inputs(vec![Input::Held(jobs)])).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                tracing::debug!(worker = %id, error = format!("{:#}", anyhow::Error::new(error)), "cannot look for claims unheard of; looking again later");
            }
        }
    }
    Ok(())
}

/// Claims again what the core did not know of, as much at once as waits.
pub(super) async fn claim_again(
    id: WorkerId,
    mut unheard: mpsc::UnboundedReceiver<JobId>,
    inbox: mpsc::Sender<Message>,
    claimer: Claimer,
) {
    let mut batch = Vec::new();
    while unheard.recv_many(&mut batch, MAX_CLAIM).await > 0 {
        metrics::counter!("jobgate_claims_unheard_total").increment(batch.len() as u64);
        tracing::warn!(worker = %id, jobs = batch.len(), "jobs are this worker's that no answer to a claim told it of; claiming them again");
        failpoint::pass("unheard.found");
        let Some(jobs) = claimer.claim(&batch, None).await else { return };
        failpoint::pass("unheard.claimed");
        if inbox.send(Message::Adopted(jobs)).await.is_err() {
            return;
        }
        batch.clear();
    }
}
