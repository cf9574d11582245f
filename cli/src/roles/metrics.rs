//! The metrics of this process, rendered for Prometheus by whichever listener it has.

use anyhow::Context as _;
use jobgate_shared::{
    supervise::Tasks,
    telemetry::{self, Metric},
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::time::Duration;

/// Upper bounds of every histogram in seconds: from a claim to a slow manager.
const SECONDS: [f64; 14] =
    [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0, 300.0];
/// The same of histograms that count: rows of a commit, writes of a transaction.
const COUNTS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
/// How often histograms are folded together, so that what nobody scrapes does not grow.
const UPKEEP: Duration = Duration::from_secs(5);

/// Counts from now on, for the whole process, which measures what is in `tables` beside what every role does. Called
/// once, before anything is counted.
pub(super) fn install(tasks: &Tasks, tables: &[&[Metric]]) -> anyhow::Result<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new();
    for (suffix, bounds) in [("_seconds", &SECONDS[..]), ("_rows", &COUNTS), ("_writes", &COUNTS)] {
        let matcher = Matcher::Suffix(suffix.to_owned());
        builder = builder.set_buckets_for_metric(matcher, bounds).context("histogram bounds")?;
    }
    let handle = builder.install_recorder().context("cannot install the metrics recorder")?;
    telemetry::describe(&[telemetry::METRICS]);
    telemetry::describe(tables);
    let (kept, shutdown) = (handle.clone(), tasks.shutdown().clone());
    tasks.supervise("metrics upkeep", move || {
        let (kept, shutdown) = (kept.clone(), shutdown.clone());
        async move {
            while shutdown.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
                kept.run_upkeep();
            }
            Ok(())
        }
    });
    Ok(handle)
}
