//! What is written into an attempt's directory, as values: by a worker before the start, by the runner after it.
//!
//! Workers and runners of different versions meet here: a field may be added with a default, none may change its meaning.

use super::{
    config::{DEFAULT_PATH, LocalConfig},
    process::ProcessMark,
};
use crate::engine::ToCreate;
use jobgate_shared::domain::identity_env;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// All a runner needs to know, so that it reads no configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunSpec {
    pub(super) command: Vec<String>,
    /// The whole environment of the job.
    pub(super) env: BTreeMap<String, String>,
    /// Absent: a fresh directory of the attempt's own.
    pub(super) working_dir: Option<PathBuf>,
    pub(super) stdin: Option<String>,
    pub(super) script: Option<String>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) cpus: Option<u32>,
    pub(super) time_limit: Option<Duration>,
    /// Bytes kept of each output stream.
    pub(super) log_limit: u64,
    pub(super) kill_grace: Duration,
    pub(super) umask: u32,
    /// The delegated cgroup below which the job gets one of its own.
    pub(super) cgroup: Option<PathBuf>,
}

impl RunSpec {
    /// What to run for `job`. Its own variables beat the configured ones, and what tells a job who it is beats both.
    pub(super) fn of(config: &LocalConfig, job: &ToCreate) -> Self {
        let mut env = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
        env.extend(config.env.clone());
        env.extend(job.spec.env.clone());
        env.extend(identity_env(job.tag.job, job.tag.attempt, &job.project, &job.name));
        let default_dir = || config.working_dir.clone();
        Self {
            command: job.spec.command.clone(),
            env,
            working_dir: job.spec.working_dir.clone().map(Into::into).or_else(default_dir),
            stdin: job.spec.stdin.clone(),
            script: job.spec.script.clone(),
            memory_bytes: job.spec.resources.memory_mib.map(|mib| mib << 20),
            cpus: job.spec.resources.cpus,
            time_limit: job.spec.time_limit_seconds.map(Duration::from_secs),
            log_limit: config.log_limit,
            kill_grace: *config.kill_grace,
            umask: config.umask,
            cgroup: config.cgroup.clone(),
        }
    }
}

/// Who runs it, written once the start token is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunnerRecord {
    pub(super) runner: ProcessMark,
}

/// Why the job's command never ran, written by the second stage in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engines) struct Failure {
    pub(in crate::engines) exit_code: i32,
    pub(in crate::engines) reason: String,
}
