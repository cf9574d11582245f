//! What the API has to know of clusters and cannot: their engines live in the worker. Whoever composes the process
//! injects it.

use jobgate_shared::domain::{ClusterName, JobSpec, SpecError};
use serde::Serialize;
use std::fmt::Debug;

/// A configured cluster, as users see it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ClusterInfo {
    /// Its name.
    pub name: ClusterName,
    /// The engine that speaks to its resource manager, such as `local`.
    pub engine: String,
    /// How that engine keeps an attempt from starting twice, such as `two_phase`.
    pub mode: String,
    /// What else it can do; whatever the engine tells.
    #[schema(value_type = Object)]
    pub capabilities: serde_json::Value,
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
