//! Who takes part: workers, clusters, and whoever holds a token.

use crate::domain::{ClusterName, Project, Reach, TokenId, WorkerId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// A worker as registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Worker {
    /// Its identity: one process.
    pub id: WorkerId,
    /// Where it runs, for people.
    pub host: String,
    /// What it serves, and where it can act when not everywhere.
    pub clusters: Vec<WorkerCluster>,
    /// When it registered.
    pub registered_at: DateTime<Utc>,
    /// When its lease ends unless renewed.
    pub expires_at: DateTime<Utc>,
    /// Its lease has not ended, by the store's clock.
    pub alive: bool,
    /// It takes no new work.
    pub draining: bool,
    /// Jobs it holds that have not ended, as it last told.
    pub jobs: u32,
}

/// A cluster as one worker serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WorkerCluster {
    /// The cluster.
    pub name: ClusterName,
    /// Where the worker's engine can act, when not everywhere.
    #[schema(value_type = Option<String>)]
    pub reach: Option<Reach>,
    /// What is wrong with the resource manager, as this worker sees it; its jobs wait for that reason.
    pub parked: Option<String>,
}

/// What an operator set on a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSetting {
    /// The cluster.
    pub cluster: ClusterName,
    /// No fresh job of it is claimed.
    pub paused: bool,
    /// Who paused or resumed it last; who limited it, when nobody did.
    pub by: String,
    /// When.
    pub at: DateTime<Utc>,
    /// Most jobs of it in flight at once, whatever the number of workers; no limit when absent.
    pub max_in_flight: Option<u32>,
}

/// What a token's holder may do; each includes those before it, except that `Cancel` includes `Read` only, and `Work`
/// nothing and is included in nothing but `Admin` of every project.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// See jobs.
    Read,
    /// See and post jobs, and act on them.
    Submit,
    /// See and cancel jobs.
    Cancel,
    /// Everything in the project, and tokens; in project `*`, everything.
    Admin,
    /// Claim and drive the jobs of the token's cluster, whose ever they are.
    Work,
}

/// A token as stored: never the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its public half.
    pub id: TokenId,
    /// For people.
    pub name: String,
    /// The project it opens; every project when absent.
    pub project: Option<Project>,
    /// The one cluster it works for, when that is what it allows.
    #[serde(default)]
    pub cluster: Option<ClusterName>,
    /// What it allows.
    pub roles: Vec<Role>,
    /// SHA-256 of the secret half.
    pub secret_sha256: [u8; 32],
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: DateTime<Utc>,
    /// Not valid from this time on.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Which jobs a caller can see. A foreign job is as absent as one that never was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One project's.
    Project(Project),
    /// Everybody's: operators, and the gateway itself.
    All,
}

impl Scope {
    /// A job of `project` is in it.
    pub fn covers(&self, project: &Project) -> bool {
        match self {
            Self::Project(own) => own == project,
            Self::All => true,
        }
    }

    /// A token is in it; one that opens every project only in [`Scope::All`].
    pub fn covers_token(&self, token: &Token) -> bool {
        match self {
            Self::Project(own) => token.project.as_ref() == Some(own),
            Self::All => true,
        }
    }
}
