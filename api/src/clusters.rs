//! What the API has to know of clusters and cannot: their engines live in the worker. Whoever composes the process
//! injects it.

use jobgate_shared::domain::{ClusterName, JobSpec, SpecError};
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Debug};

/// A configured cluster, as users see it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ClusterInfo {
    /// Its name.
    pub name: ClusterName,
    /// The engine that speaks to its resource manager, such as `local`.
    pub engine: String,
    /// Who works off its jobs.
    pub served_by: ServedBy,
    /// How that engine keeps an attempt from starting twice.
    pub mode: SubmitMode,
    /// What else it can do.
    pub capabilities: Capabilities,
    /// What a job may ask for there; whatever else it asks for is refused when it is posted.
    pub takes: Takes,
}

/// What a job of a cluster may ask for, beside a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Takes {
    /// Fields of its `spec`.
    #[schema(value_type = Vec<String>)]
    pub fields: Vec<&'static str>,
    /// The options of `spec.engine`, each with the values it takes, or null where those are not few; null where any
    /// option is taken.
    pub options: Option<BTreeMap<String, Option<Vec<String>>>>,
}

/// Who works off a cluster's jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServedBy {
    /// Workers of the gateway, through an engine.
    Workers,
    /// Services outside, which claim them over HTTP.
    Claimants,
}

/// How an engine keeps an attempt from starting twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SubmitMode {
    /// It creates submissions that do not run and starts the recorded one: exactly once.
    TwoPhase,
    /// Its manager takes each name once: exactly once, as long as it remembers names.
    UniqueName,
    /// Jobs take a token before they begin: exactly once, at the price of a started loser.
    Fenced,
    /// Never twice, but an attempt whose submission went unanswered is `LOST`.
    AtMostOnce,
}

/// What an engine can do, as its settings declare it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Capabilities {
    /// Where a job that was submitted can be watched and canceled.
    pub reach: ReachKind,
    /// It runs the command of a job; where it does not, what is said here of commands is about none.
    pub commands: bool,
    /// What is told of a command that failed by itself.
    pub exit_codes: ExitCodes,
    /// What becomes of a job that wants more than its `resources.memory_mib`.
    pub memory_limits: MemoryLimits,
    /// Who ends a job whose `time_limit_seconds` are over.
    pub time_limits: TimeLimits,
    /// A running command that is canceled gets a SIGTERM and time to heed it, before it is killed.
    pub warns_on_cancel: bool,
    /// What its jobs print can be read.
    pub logs: bool,
    /// How often a worker looks at its jobs, at least.
    pub poll_interval_seconds: f64,
}

/// Where an engine can act on what it submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReachKind {
    /// On the host that submitted it: its jobs wait for a worker there.
    Host,
    /// On every host that has a worker of the cluster.
    Everywhere,
}

/// What is told of a command that failed by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExitCodes {
    /// That it failed, and never a code.
    None,
    /// Its code; a signal reads as an exit with 128 and its number.
    Codes,
    /// Its code; or the signal that ended it, in the reason, and then no code.
    CodesAndSignals,
}

/// What becomes of a job that wants more memory than it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemoryLimits {
    /// Nothing: nobody holds it to that.
    None,
    /// It does not get it, and ends as its command then ends.
    Enforced,
    /// It does not get it, and an end for want of memory says so in its reason.
    Told,
}

/// Who ends a job whose time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimeLimits {
    /// The resource manager, or a runner beside the job.
    ByEngine,
    /// The worker that watches it.
    ByWatcher,
}

/// The configured clusters and what their engines take.
pub trait SpecValidator: Send + Sync + Debug {
    /// Every configured cluster.
    fn clusters(&self) -> &[ClusterInfo];

    /// The cluster of a job that names none.
    fn default_cluster(&self) -> Option<&ClusterName>;

    /// Checks a spec that passed [`JobSpec::check`] as the engine of `cluster` does; asks nobody. An unknown cluster is
    /// an error of the field `cluster`.
    fn validate(&self, cluster: &ClusterName, spec: &JobSpec) -> Result<(), SpecError>;
}
