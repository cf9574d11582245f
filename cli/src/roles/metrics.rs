//! The metrics of this process, rendered for Prometheus by whichever listener it has.

use anyhow::Context as _;
use jobgate_shared::supervise::Tasks;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::time::Duration;

/// Upper bounds of every histogram in seconds: from a claim to a slow manager.
const SECONDS: [f64; 14] =
    [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0, 300.0];
/// How often histograms are folded together, so that what nobody scrapes does not grow.
const UPKEEP: Duration = Duration::from_secs(5);

/// Counts from now on, for the whole process. Called once.
pub(super) fn install(tasks: &Tasks) -> anyhow::Result<PrometheusHandle> {
    let builder =
        PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS);
    let handle = builder
        .context("histogram bounds")?
        .install_recorder()
        .context("cannot install the metrics recorder")?;
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
