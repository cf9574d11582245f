//! How busy this machine is, looked at only where a regulator wants to know.

use super::{Worker, drive::Message};
use crate::regulator::{Load, RegulatorConfig};
use jobgate_shared::supervise::Tasks;
use std::time::Duration;
use sysinfo::System;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Between two looks; processor use is the share in between.
const EVERY: Duration = Duration::from_secs(1);

/// Tells the loop how busy the machine is, if any regulator asks.
pub(super) fn spawn(tasks: &Tasks, worker: &Worker, inbox: &mpsc::Sender<Message>) {
    if !worker.clusters.iter().any(|c| matches!(c.regulator, RegulatorConfig::Load { .. })) {
        return;
    }
    let (inbox, over) = (inbox.clone(), tasks.shutdown().clone());
    tasks.supervise("load", move || follow(inbox.clone(), over.clone()));
}

async fn follow(inbox: mpsc::Sender<Message>, over: CancellationToken) -> anyhow::Result<()> {
    let mut system = match System::new() {
        Ok(system) => system,
        Err(error) => {
            tracing::error!(%error, "this machine's load cannot be read; a `load` regulator keeps only its cap");
            over.cancelled().await;
            return Ok(());
        }
    };
    system.refresh_cpu_usage();
    while over.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        system.refresh_cpu_usage();
        system.refresh_memory();
        #[allow(clippy::cast_precision_loss, reason = "a share of a machine's memory needs no exact bytes")]
        let memory = system.used_memory() as f64 / system.total_memory().max(1) as f64;
        let load = Load { cpu: f64::from(system.global_cpu_usage()) / 100.0, memory };
        if inbox.send(Message::Load(load)).await.is_err() {
            break;
        }
    }
    Ok(())
}
