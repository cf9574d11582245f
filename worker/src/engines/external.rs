//! The engine that is none: a service outside claims a cluster's jobs over HTTP, runs them and tells how they stand.
//!
//! What stands here is what the cluster declares to users: what the service's maker says it does, and no more. The claims are the API's; no worker serves such a cluster.

use super::{EngineContext, EngineSettings, Options, ServedBy};
use crate::engine::{Capabilities, Engine, ExitCodes, MemoryLimits, SubmitMode, TimeLimits};
use jobgate_shared::domain::{JobSpec, SpecError};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

/// How often a claimant renews a lease of the usual length, which is when it hears of cancels.
const RENEWED_EVERY: Duration = Duration::from_secs(20);

/// Settings of a cluster that is served from outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExternalConfig {
    /// How the service keeps an attempt from starting twice, as its maker says. Two-phase: it starts a job only once its
    /// submission id is recorded.
    pub mode: SubmitMode,
    /// What the service tells of commands that fail: `none`, `codes` or `codes_and_signals`. Default: `none`.
    pub exit_codes: ExitCodes,
    /// Whether the service holds a job to the memory it asks for, and tells: `none`, `enforced` or `told`. Default: `none`.
    pub memory_limits: MemoryLimits,
    /// The service tells a command that is canceled to end before it kills it. Default: false.
    pub warns_on_cancel: bool,
}

impl Default for ExternalConfig {
    fn default() -> Self {
        Self {
            mode: SubmitMode::TwoPhase,
            exit_codes: ExitCodes::None,
            memory_limits: MemoryLimits::None,
            warns_on_cancel: false,
        }
    }
}

impl EngineSettings for ExternalConfig {
    fn check(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mode: self.mode,
            reach: None,
            commands: true,
            exit_codes: self.exit_codes,
            memory_limits: self.memory_limits,
            time_limits: TimeLimits::ByEngine,
            warns_on_cancel: self.warns_on_cancel,
            logs: false,
            poll_interval: RENEWED_EVERY,
        }
    }

    fn is_bound_to_its_host(&self) -> bool {
        false
    }

    fn served_by(&self) -> ServedBy {
        ServedBy::Claimants
    }

    /// The whole spec is handed over; what it may ask is between its author and the service.
    fn validate(&self, _: &JobSpec) -> Result<(), SpecError> {
        Ok(())
    }

    fn options(&self) -> Options {
        None
    }

    fn open(&self, _: &EngineContext) -> anyhow::Result<Arc<dyn Engine>> {
        anyhow::bail!("it is served from outside; no worker opens it")
    }
}
