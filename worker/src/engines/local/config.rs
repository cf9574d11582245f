//! Settings of the local engine, and what a job may ask of it. Checking a spec needs nothing but these settings.

use super::LocalEngine;
use crate::{
    engine::{Capabilities, Engine, ExitCodes, MemoryLimits, SubmitMode, TimeLimits},
    engines::{EngineContext, EngineSettings, Options, ServedBy, settings::refuse_unknown_options},
};
use jobgate_shared::{
    domain::{JobSpec, SpecError},
    settings::{self, Period},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, num::NonZeroU32, path::PathBuf, sync::Arc, thread, time::Duration};

/// Settings of the engine that runs jobs as processes of the worker's own host and user.
///
/// Jobs of one worker are not shielded from each other, nor the worker from them: they run as the same user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalConfig {
    /// The directory that holds what runs: one directory per attempt, with its output. Made with mode 0700; it must stand
    /// on a filesystem of this host alone and survive a restart. Every worker that names the same directory can act on the
    /// same jobs. Default: `spool/<cluster>` in the data directory.
    pub spool_dir: Option<PathBuf>,
    /// The directory a job runs in when its spec names none. Default: a fresh one per attempt, removed with it.
    pub working_dir: Option<PathBuf>,
    /// Environment of every job, below what its own spec sets. Nothing else of the worker's environment reaches a job.
    /// Default: only `PATH`, `/usr/local/bin:/usr/bin:/bin`, which also stands when this sets others.
    pub env: BTreeMap<String, String>,
    /// The most processors one job may ask for. Default: as many as this process may use.
    pub max_cpus: Option<u32>,
    /// The most memory one job may ask for, in MiB. Default: as much as this machine has.
    pub max_memory_mib: Option<u64>,
    /// What is kept of each output stream, such as `64 MiB`; the rest is dropped and counted in a last line. Default:
    /// `10 MiB`.
    #[serde(with = "settings::bytes")]
    pub log_limit: u64,
    /// How long a job that is canceled or out of time has between SIGTERM and SIGKILL, `0s` to `1h`. Default: `10s`.
    pub kill_grace: Period<0, 3_600_000>,
    /// How often a worker looks at its jobs, `10ms` to `1m`; an end is noticed sooner where the kernel tells of it.
    /// Default: `200ms`.
    pub poll_interval: Period<10, 60_000>,
    /// The mode bits files made by jobs do not get; TOML writes octal as `0o022`. Default: `0o022`.
    pub umask: u32,
    /// A directory of the cgroup v2 tree that is delegated to this worker. Every job then gets a group of its own below it:
    /// `memory_mib` limits the whole job, nothing of a job survives its end, and an end for want of memory says so. Default:
    /// none, `memory_mib` limits each process of a job (`RLIMIT_DATA`).
    pub cgroup: Option<PathBuf>,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            spool_dir: None,
            working_dir: None,
            env: BTreeMap::new(),
            max_cpus: None,
            max_memory_mib: None,
            log_limit: 10 << 20,
            kill_grace: Period::new(Duration::from_secs(10)),
            poll_interval: Period::new(Duration::from_millis(200)),
            umask: 0o022,
            cgroup: None,
        }
    }
}

/// Where commands are looked for when nobody says.
pub(in crate::engines) const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What `execve` takes for arguments and environment in all, with room left for what the kernel adds: a quarter of the
/// usual stack limit of 8 MiB.
pub(in crate::engines) const MAX_EXEC_BYTES: usize = (2 << 20) - (64 << 10);

impl LocalConfig {
    /// What a job gets of processors and memory at most.
    pub(super) fn most_cpus(&self) -> u32 {
        self.max_cpus.unwrap_or_else(processors_here)
    }

    fn most_memory_mib(&self) -> u64 {
        self.max_memory_mib.unwrap_or_else(|| {
            let info = rustix::system::sysinfo();
            info.totalram.saturating_mul(u64::from(info.mem_unit)) >> 20
        })
    }
}

impl EngineSettings for LocalConfig {
    fn check(&self) -> anyhow::Result<()> {
        for (name, path) in
            [("spool_dir", &self.spool_dir), ("working_dir", &self.working_dir), ("cgroup", &self.cgroup)]
        {
            let absolute = path.as_ref().is_none_or(|path| path.is_absolute());
            anyhow::ensure!(absolute, "{name} must be an absolute path");
        }
        anyhow::ensure!(self.umask <= 0o777, "umask must be 0 to 0o777");
        let as_spec = JobSpec { command: vec!["env".into()], env: self.env.clone(), ..JobSpec::default() };
        as_spec.check().map_err(|fault| anyhow::anyhow!("env: {fault}"))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mode: SubmitMode::TwoPhase,
            reach: None,
            commands: true,
            exit_codes: ExitCodes::CodesAndSignals,
            memory_limits: if self.cgroup.is_some() { MemoryLimits::Told } else { MemoryLimits::Enforced },
            time_limits: TimeLimits::ByEngine,
            warns_on_cancel: !self.kill_grace.is_zero(),
            logs: true,
            poll_interval: *self.poll_interval,
        }
    }

    fn is_bound_to_its_host(&self) -> bool {
        true
    }

    /// A job takes a processor of this host.
    fn served_by(&self) -> ServedBy {
        ServedBy::Workers { jobs: NonZeroU32::new(processors_here()).unwrap_or(NonZeroU32::MIN) }
    }

    /// Refuses what this engine cannot give.
    fn validate(&self, spec: &JobSpec) -> Result<(), SpecError> {
        let wants = spec.resources;
        if spec.image.is_some() {
            return Err(SpecError::new(
                "spec.image",
                "this cluster runs plain processes, no container images",
            ));
        }
        if wants.gpus.is_some() {
            return Err(SpecError::new("spec.resources.gpus", "this cluster hands out no accelerators"));
        }
        if wants.nodes.is_some_and(|nodes| nodes > 1) {
            return Err(SpecError::new("spec.resources.nodes", "this cluster is one host"));
        }
        if wants.cpus.is_some_and(|cpus| cpus > self.most_cpus()) {
            let most = self.most_cpus();
            return Err(SpecError::new(
                "spec.resources.cpus",
                format!("this cluster gives a job {most} at most"),
            ));
        }
        if wants.memory_mib.is_some_and(|memory| memory > self.most_memory_mib()) {
            let most = self.most_memory_mib();
            let message = format!("this cluster gives a job {most} MiB at most");
            return Err(SpecError::new("spec.resources.memory_mib", message));
        }
        // Each string costs its bytes, a NUL and a pointer.
        let arguments: usize = spec.command.iter().map(|argument| argument.len() + 9).sum();
        let variables: usize = spec.env.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
        if arguments + variables > MAX_EXEC_BYTES {
            let message = format!("arguments and environment together are more than {MAX_EXEC_BYTES} bytes");
            return Err(SpecError::new("spec.command", message));
        }
        refuse_unknown_options(spec, &[])
    }

    fn options(&self) -> Options {
        Some(BTreeMap::new())
    }

    fn open(&self, context: &EngineContext) -> anyhow::Result<Arc<dyn Engine>> {
        Ok(Arc::new(LocalEngine::open(self.clone(), context.clone())?))
    }
}

fn processors_here() -> u32 {
    thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(change: impl FnOnce(&mut JobSpec)) -> Option<String> {
        let config = LocalConfig { max_cpus: Some(4), max_memory_mib: Some(1024), ..LocalConfig::default() };
        let mut spec = JobSpec { command: vec!["true".into()], ..JobSpec::default() };
        change(&mut spec);
        config.validate(&spec).err().map(|fault| fault.field)
    }

    #[test]
    fn what_cannot_be_is_refused_by_field() {
        assert_eq!(fault(|_| {}), None);
        assert_eq!(fault(|s| s.image = Some("alpine".into())).as_deref(), Some("spec.image"));
        assert_eq!(fault(|s| s.resources.gpus = Some(1)).as_deref(), Some("spec.resources.gpus"));
        assert_eq!(fault(|s| s.resources.nodes = Some(1)), None);
        assert_eq!(fault(|s| s.resources.nodes = Some(2)).as_deref(), Some("spec.resources.nodes"));
        assert_eq!(fault(|s| s.resources.cpus = Some(4)), None);
        assert_eq!(fault(|s| s.resources.cpus = Some(5)).as_deref(), Some("spec.resources.cpus"));
        assert_eq!(fault(|s| s.resources.memory_mib = Some(1024)), None);
        assert_eq!(
            fault(|s| s.resources.memory_mib = Some(1025)).as_deref(),
            Some("spec.resources.memory_mib")
        );
        let option = |s: &mut JobSpec| drop(s.engine.insert("niceness".into(), 3.into()));
        assert_eq!(fault(option).as_deref(), Some("spec.engine.niceness"));
        let large = |s: &mut JobSpec| s.command.extend((0..21).map(|_| "x".repeat(100_000)));
        assert_eq!(fault(large).as_deref(), Some("spec.command"));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let fault = |config: LocalConfig| config.check().unwrap_err().to_string();
        let relative = Some(PathBuf::from("spool"));
        assert!(fault(LocalConfig { spool_dir: relative, ..LocalConfig::default() }).contains("spool_dir"));
        assert!(fault(LocalConfig { umask: 0o1000, ..LocalConfig::default() }).contains("umask"));
        let env = BTreeMap::from([("A B".to_owned(), String::new())]);
        assert!(fault(LocalConfig { env, ..LocalConfig::default() }).contains("env: spec.env.A B"));
    }
}
