//! The engine that is none: a service outside claims a cluster's jobs over HTTP, runs them and tells how they stand.
//!
//! What stands here is what the cluster declares to users. The claims are the API's; no worker serves such a cluster.

use crate::engine::{Capabilities, SubmitMode, TimeLimits};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How often a claimant renews a lease of the usual length, which is when it hears of cancels.
const RENEWED_EVERY: Duration = Duration::from_secs(20);

/// Settings of a cluster that is served from outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExternalConfig {
    /// How the service keeps an attempt from starting twice, as its maker says. Two-phase: it starts a job only once its
    /// submission id is recorded.
    pub mode: SubmitMode,
}

impl Default for ExternalConfig {
    fn default() -> Self {
        Self { mode: SubmitMode::TwoPhase }
    }
}

impl ExternalConfig {
    pub(super) fn capabilities(&self) -> Capabilities {
        Capabilities {
            mode: self.mode,
            reach: None,
            time_limits: TimeLimits::ByEngine,
            logs: false,
            poll_interval: RENEWED_EVERY,
        }
    }
}
