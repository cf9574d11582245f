//! What this worker may use of limits that hold for all workers of a cluster together: an equal part.
//!
//! The part is known from how many workers serve the cluster by the store, asked again with every heartbeat's interval. A
//! newcomer waits before it takes its own until those who are there have heard of it, so that the parts never add up to
//! more than the whole.

use super::{Served, Worker, drive::Message};
use jobgate_shared::{domain::ClusterName, store::StoreResult, supervise::Tasks};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;

impl Served {
    fn is_shared(&self) -> bool {
        self.pace.is_limited() || self.max_submits_per_second.is_some()
    }
}

/// Tells the loop and the calls what part is this worker's, while the lease holds.
pub(super) fn spawn(tasks: &Tasks, worker: &Arc<Worker>, inbox: &mpsc::Sender<Message>) {
    // An identity before this one may have known another part, and is not counted any more.
    worker.clusters.iter().for_each(|served| served.pace.share(0));
    if !worker.clusters.iter().any(Served::is_shared) {
        return;
    }
    let (worker, inbox, over) = (worker.clone(), inbox.clone(), tasks.shutdown().clone());
    tasks.supervise("share", move || {
        let (worker, inbox, over) = (worker.clone(), inbox.clone(), over.clone());
        async move {
            over.run_until_cancelled(follow(&worker, &inbox)).await;
            Ok(())
        }
    });
}

async fn follow(worker: &Worker, inbox: &mpsc::Sender<Message>) {
    let mut new_here = true;
    loop {
        let next = match look(worker).await {
            // Others take part already, and hear of this one within the interval of their own looks.
            Ok(seen) if new_here && seen.iter().any(|(.., workers)| *workers > 1) => {
                worker.timing.heartbeat + worker.timing.heartbeat / 2
            }
            Ok(seen) => {
                for (cluster, served, workers) in seen {
                    served.pace.share(workers);
                    if inbox.send(Message::Share { cluster, workers }).await.is_err() {
                        return;
                    }
                }
                worker.timing.heartbeat
            }
            Err(error) => {
                tracing::debug!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "cannot look for who else serves a cluster; looking again"
                );
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        new_here = false;
        tokio::time::sleep(next).await;
    }
}

/// How many workers serve each of the clusters whose limits are shared.
async fn look(worker: &Worker) -> StoreResult<Vec<(u16, &Served, u32)>> {
    let shared: Vec<(u16, &Served)> =
        (0..).zip(&worker.clusters).filter(|(_, served)| served.is_shared()).collect();
    let names: Vec<ClusterName> = shared.iter().map(|(_, served)| served.name.clone()).collect();
    let serving = worker.leases.serving(&names).await?;
    // It serves the cluster itself, whatever a store just restored may say.
    let seen = shared.into_iter().zip(serving);
    Ok(seen.map(|((cluster, served), workers)| (cluster, served, workers.max(1))).collect())
}
