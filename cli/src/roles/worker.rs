//! `jobgate worker`: claims jobs of the configured clusters, submits and watches them.

use super::{
    clusters,
    doors::{self, Doors},
    listening, metrics,
    probe::DoorsProbe,
    signals::shut_down_on_signal,
};
use crate::{config::Config, data_dir::DataDir, exit::Exit};
use jobgate_api::http::ops::Ops;
use jobgate_shared::{clock, reporting::Reporting, supervise::Tasks};
use jobgate_worker::{Worker, telemetry};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Where its health is asked for, unless an address is configured.
const OPS_PORT: u16 = 7071;

/// Begins to work; `tasks` end it.
pub(super) fn start(
    config: &Config,
    data_dir: &DataDir,
    doors: &Doors,
    reporting: Option<Reporting>,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let clock = clock::system();
    let worker = Worker {
        leases: doors.leases.clone(),
        broker: doors.broker.clone(),
        clusters: clusters::open(config, data_dir, &clock)?,
        clock,
        logs: Arc::new(doors.logs.clone()),
        timing: config.worker.timing(),
        reporting,
        host: host(config),
    };
    let shutdown = tasks.shutdown().clone();
    tasks.supervise("worker", move || {
        let (worker, shutdown) = (worker.clone(), shutdown.clone());
        async move {
            worker.run(shutdown).await;
            Ok(())
        }
    });
    Ok(())
}

/// What jobs report with, if address and key are configured.
fn reporting(config: &Config) -> anyhow::Result<Option<Reporting>> {
    let (url, key) = (config.reports.url.clone(), config.reports.key()?);
    if url.is_some() != key.is_some() {
        tracing::warn!("jobs cannot report on themselves: of reports.url and reports.key one is missing");
    }
    Ok(url.zip(key).map(|(url, key)| Reporting { url, key }))
}

/// What operators see as the place this process runs at.
pub(super) fn host(config: &Config) -> String {
    let own = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    config.worker.host.clone().unwrap_or_else(own)
}

/// Runs the role until it is told to stop.
pub(crate) async fn run(config: &Config) -> anyhow::Result<Exit> {
    let shutdown = CancellationToken::new();
    // The listener answers while the worker drains.
    let (tasks, listening_tasks) = (Tasks::new(shutdown.clone()), Tasks::default());
    shut_down_on_signal(shutdown.clone())?;
    let metrics = metrics::install(&listening_tasks, &[telemetry::METRICS])?;
    // Begins before the database is there, so that whoever asks hears what is waited for.
    let probe = DoorsProbe::default();
    let ops = Ops::new(Arc::new(probe.clone()), move || metrics.render());
    let bound = listening::serve_ops(&config.telemetry, OPS_PORT, ops, &listening_tasks)?;
    let Some(doors) = doors::distributed(config, "worker", &shutdown).await? else { return Ok(Exit::Done) };
    probe.open(&doors);
    let started = DataDir::make(&config.data_dir).and_then(|data_dir| {
        let reporting = reporting(config)?;
        start(config, &data_dir, &doors, reporting, &tasks)
    });
    if let Err(error) = started {
        // A connection to the broker panics when the runtime ends before it does.
        doors.close().await;
        return Err(error);
    }
    tracing::info!(ops = %bound, "jobgate worker works; its health is at http://{bound}/readyz");
    tasks.wait().await;
    doors.close().await;
    listening_tasks.stop().await;
    Ok(Exit::Done)
}
