//! `[worker]` and `[clusters.<name>]`: the times a worker lives by, and which resource managers there are.

use super::Conflict;
use jobgate_shared::settings::{Number, Period};
use jobgate_worker::{
    Timing,
    engines::{EngineConfig, local::LocalConfig},
    regulator::RegulatorConfig,
};
use serde::{Deserialize, Serialize};
use std::{num::NonZeroU32, time::Duration};

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// `[worker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WorkerSection {
    /// What operators see as the place it runs at; the host's name when absent.
    pub(crate) host: Option<String>,
    /// How long its claims are believed without a heartbeat: a dead worker's jobs wait so long.
    pub(crate) lease: Period<{ 2 * SECOND }, HOUR>,
    /// Between two heartbeats; at most a third of the lease.
    pub(crate) heartbeat: Period<100, { 20 * MINUTE }>,
    /// How long a worker that is told to stop waits for answers of resource managers.
    pub(crate) drain: Period<0, HOUR>,
    /// Between two looks at logs that grow.
    pub(crate) ship_logs: Period<50, MINUTE>,
    /// Between two sweeps of submissions nobody recorded.
    pub(crate) sweep: Period<SECOND, DAY>,
    /// How old such a submission must be to be looked at.
    pub(crate) sweep_older_than: Period<{ 10 * SECOND }, { 7 * DAY }>,
    /// How long the broker may be away before what happened is written to the store directly.
    pub(crate) broker_patience: Period<SECOND, HOUR>,
}

impl Default for WorkerSection {
    fn default() -> Self {
        Self {
            host: None,
            lease: Period::new(Duration::from_secs(10)),
            heartbeat: Period::new(Duration::from_secs(3)),
            drain: Period::new(Duration::from_secs(10)),
            ship_logs: Period::new(Duration::from_millis(500)),
            sweep: Period::new(Duration::from_mins(5)),
            sweep_older_than: Period::new(Duration::from_mins(10)),
            broker_patience: Period::new(Duration::from_secs(30)),
        }
    }
}

impl WorkerSection {
    /// The times, as the worker takes them.
    pub(crate) fn timing(&self) -> Timing {
        Timing {
            lease: *self.lease,
            heartbeat: *self.heartbeat,
            drain: *self.drain,
            ship: *self.ship_logs,
            sweep: *self.sweep,
            sweep_older_than: *self.sweep_older_than,
            broker_patience: *self.broker_patience,
        }
    }

    pub(super) fn check(&self) -> Result<(), Conflict> {
        // Two lost heartbeats must not cost the lease.
        if *self.heartbeat * 3 > *self.lease {
            let message = "must be at most a third of worker.lease".to_owned();
            return Err(Conflict { key: "worker.heartbeat".to_owned(), message });
        }
        Ok(())
    }
}

/// `[clusters.<name>]`: a resource manager under the name users know it by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterSection {
    /// Most creates and starts of one worker that may be out at once.
    #[serde(default = "max_calls")]
    pub(crate) max_calls: Number<1, 1024>,
    /// Most calls of all workers together to the manager in any second.
    #[serde(default)]
    pub(crate) max_calls_per_second: Option<NonZeroU32>,
    /// Most jobs all workers together take on in a second.
    #[serde(default)]
    pub(crate) max_submits_per_second: Option<NonZeroU32>,
    /// How long the manager must keep not knowing a submission before the job is LOST.
    #[serde(default = "lost_after")]
    pub(crate) lost_after: Period<SECOND, { 30 * DAY }>,
    /// An answer of the manager that takes longer counts as trouble, as none does.
    #[serde(default = "slow_after")]
    pub(crate) slow_after: Period<1, HOUR>,
    /// How much one worker takes on.
    #[serde(default)]
    pub(crate) regulator: Option<RegulatorConfig>,
    /// Which manager, and its own settings.
    #[serde(flatten)]
    pub(crate) engine: EngineConfig,
}

impl ClusterSection {
    /// This host, everything as usual.
    pub(super) fn here() -> Self {
        Self {
            max_calls: max_calls(),
            max_calls_per_second: None,
            max_submits_per_second: None,
            lost_after: lost_after(),
            slow_after: slow_after(),
            regulator: None,
            engine: LocalConfig::default().into(),
        }
    }
}

fn max_calls() -> Number<1, 1024> {
    Number::new(16)
}

fn slow_after() -> Period<1, HOUR> {
    Period::new(Duration::from_secs(10))
}

fn lost_after() -> Period<SECOND, { 30 * DAY }> {
    Period::new(Duration::from_mins(2))
}
