//! `jobgate recorder`: writes down what workers tell.

use super::{
    doors::{self, Doors},
    listening, metrics,
    probe::DoorsProbe,
    signals::shut_down_on_signal,
};
use crate::{config::Config, exit::Exit};
use jobgate_api::{
    http::ops::Ops,
    recorder::{self, Recorder},
    telemetry,
};
use jobgate_shared::{clock, supervise::Tasks};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Where its health is asked for, unless an address is configured; a worker on the same host has the port before it.
const OPS_PORT: u16 = 7072;

/// Begins to record; `tasks` end it.
pub(super) fn start(config: &Config, doors: &Doors, tasks: &Tasks) {
    let parts = Recorder {
        store: doors.apply.clone(),
        broker: doors.broker.clone(),
        clock: clock::system(),
        config: config.recorder.clone(),
    };
    recorder::run(tasks, parts);
}

/// Runs the role until it is told to stop.
pub(crate) async fn run(config: &Config) -> anyhow::Result<Exit> {
    let shutdown = CancellationToken::new();
    let (tasks, listening_tasks) = (Tasks::new(shutdown.clone()), Tasks::default());
    shut_down_on_signal(shutdown.clone())?;
    let metrics = metrics::install(&listening_tasks, &[telemetry::RECORDER])?;
    // Begins before the database is there, so that whoever asks hears what is waited for.
    let probe = DoorsProbe::default();
    let ops = Ops::new(Arc::new(probe.clone()), move || metrics.render());
    let bound = listening::serve_ops(&config.telemetry, OPS_PORT, ops, &listening_tasks)?;
    let Some(doors) = doors::distributed(config, "recorder", &shutdown).await? else { return Ok(Exit::Done) };
    probe.open(&doors);
    start(config, &doors, &tasks);
    tracing::info!(ops = %bound, "jobgate recorder records; its health is at http://{bound}/readyz");
    tasks.wait().await;
    doors.close().await;
    listening_tasks.stop().await;
    Ok(Exit::Done)
}
