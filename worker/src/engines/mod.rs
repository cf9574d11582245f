//! The engines and their registry: a new engine is one file here, one variant of [`EngineConfig`] and its arms.
//!
//! What is configured is checked before anything is built; what a job may ask of an engine is checked by [`validator`],
//! which needs the configuration only and so works in the API process, too.

mod beneath;
pub mod command;
pub mod conformance;
pub mod external;
pub mod local;
pub mod noop;
pub mod slurm;

use crate::engine::{Capabilities, Engine, SubmitMode, TimeLimits};
use jobgate_shared::{
    clock::Clock,
    domain::{ClusterName, JobSpec, SpecError},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

/// The resource manager behind one cluster, and its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "engine", rename_all = "snake_case")]
pub enum EngineConfig {
    /// Runs jobs as processes of the worker's own host.
    Local(local::LocalConfig),
    /// Runs nothing: jobs that end by themselves, for measuring and testing what stands around them.
    Noop(noop::NoopConfig),
    /// Submits to a Slurm cluster through slurmrestd.
    Slurm(Box<slurm::SlurmConfig>),
    /// Drives any scheduler by its command line.
    Command(Box<command::CommandConfig>),
    /// No engine: a service outside claims the jobs over HTTP, and no worker serves the cluster.
    External(external::ExternalConfig),
}

/// What the process gives to every engine it builds.
#[derive(Debug, Clone)]
pub struct EngineContext {
    /// The cluster the engine stands behind.
    pub cluster: ClusterName,
    /// The process's source of time.
    pub clock: Arc<dyn Clock>,
    /// Where an engine keeps files when its settings name no place.
    pub data_dir: PathBuf,
    /// How to start a process that cares for one local job.
    pub runner: local::RunnerCommand,
    /// When a call to a resource manager is given up: a third of the worker's lease at most.
    pub call_timeout: Duration,
    /// When a look is given up, which does nothing and so may outlast the lease: a long listing takes its time.
    pub look_timeout: Duration,
}

/// What a job of a cluster may ask for, beside a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takes {
    /// Fields of its spec.
    pub fields: Vec<&'static str>,
    /// Options of `spec.engine`, each with the values it takes where they are few; any at all where this is absent.
    pub options: Option<BTreeMap<String, Option<Vec<String>>>>,
}

/// Asks for something in a spec.
type Ask = fn(&mut JobSpec);

/// The fields of a spec not every engine takes, each with the least that shows.
const FIELDS: &[(&str, Ask)] = &[
    ("env", |spec| drop(spec.env.insert("A".to_owned(), "a".to_owned()))),
    ("working_dir", |spec| spec.working_dir = Some("/".to_owned())),
    ("stdin", |spec| spec.stdin = Some("a".to_owned())),
    ("script", |spec| spec.script = Some("a".to_owned())),
    ("image", |spec| spec.image = Some("a".to_owned())),
    ("time_limit_seconds", |spec| spec.time_limit_seconds = Some(1)),
    ("resources.cpus", |spec| spec.resources.cpus = Some(1)),
    ("resources.memory_mib", |spec| spec.resources.memory_mib = Some(1)),
    ("resources.gpus", |spec| spec.resources.gpus = Some(1)),
    // One is where any job runs.
    ("resources.nodes", |spec| spec.resources.nodes = Some(2)),
];

/// Checks a spec against what one engine can do; asks nobody.
pub type Validator = Arc<dyn Fn(&JobSpec) -> Result<(), SpecError> + Send + Sync>;

impl EngineConfig {
    /// The name of the engine, as configuration and metrics spell it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Local(_) => "local",
            Self::Noop(_) => "noop",
            Self::Slurm(_) => "slurm",
            Self::Command(_) => "command",
            Self::External(_) => "external",
        }
    }

    /// What the engine can do, without opening it: all but the name of its reach, which only the opened one knows.
    pub fn capabilities(&self) -> Capabilities {
        match self {
            Self::Local(config) => Capabilities {
                mode: SubmitMode::TwoPhase,
                reach: None,
                time_limits: TimeLimits::ByEngine,
                logs: true,
                poll_interval: *config.poll_interval,
            },
            Self::Noop(config) => Capabilities {
                mode: config.mode,
                reach: None,
                time_limits: TimeLimits::ByEngine,
                logs: false,
                poll_interval: *config.poll_interval,
            },
            Self::Slurm(config) => slurm::capabilities(config),
            Self::Command(config) => Capabilities {
                mode: config.mode(),
                reach: None,
                time_limits: TimeLimits::ByEngine,
                logs: true,
                poll_interval: config.poll_interval(),
            },
            Self::External(config) => config.capabilities(),
        }
    }

    /// It acts only where it submitted: once opened, it names a reach.
    pub fn is_bound_to_its_host(&self) -> bool {
        match self {
            Self::Local(_) => true,
            Self::Noop(_) | Self::Slurm(_) | Self::Command(_) | Self::External(_) => false,
        }
    }

    /// A service outside works off the cluster's jobs; there is nothing for a worker to open.
    pub fn is_served_outside(&self) -> bool {
        match self {
            Self::External(_) => true,
            Self::Local(_) | Self::Noop(_) | Self::Slurm(_) | Self::Command(_) => false,
        }
    }

    /// What a job may ask for. Told by the very check that refuses the rest.
    pub fn takes(&self) -> Takes {
        let validate = validator(self);
        let is_taken = |ask: &Ask| {
            let mut spec = JobSpec { command: vec!["true".to_owned()], ..JobSpec::default() };
            ask(&mut spec);
            validate(&spec).is_ok()
        };
        let fields = FIELDS.iter().filter(|(_, ask)| is_taken(ask)).map(|(name, _)| *name).collect();
        let options = match self {
            Self::Local(_) | Self::Noop(_) => Some(BTreeMap::new()),
            Self::Slurm(config) => Some(slurm::options(config)),
            Self::Command(config) => Some(config.options().map(|name| (name.to_owned(), None)).collect()),
            Self::External(_) => None,
        };
        Takes { fields, options }
    }

    /// Checks the settings; an error names the one that is wrong.
    pub fn check(&self) -> anyhow::Result<()> {
        match self {
            Self::Local(config) => config.check(),
            Self::Noop(config) => config.check(),
            Self::Slurm(config) => config.check(),
            Self::Command(config) => config.check(),
            Self::External(_) => Ok(()),
        }
    }
}

/// Builds the engine; an error names the setting that is wrong or what could not be opened.
pub fn build(config: &EngineConfig, context: &EngineContext) -> anyhow::Result<Arc<dyn Engine>> {
    config.check()?;
    match config {
        EngineConfig::Local(config) => {
            Ok(Arc::new(local::LocalEngine::open(config.clone(), context.clone())?))
        }
        EngineConfig::Noop(config) => {
            let (clock, patience) = (context.clock.clone(), context.call_timeout);
            Ok(Arc::new(noop::NoopEngine::new(config.clone(), clock, patience)?))
        }
        EngineConfig::Slurm(config) => Ok(Arc::new(slurm::SlurmEngine::new((**config).clone(), context)?)),
        EngineConfig::Command(config) => {
            Ok(Arc::new(command::CommandEngine::open((**config).clone(), context.clone())?))
        }
        EngineConfig::External(_) => anyhow::bail!("it is served from outside; no worker opens it"),
    }
}

/// The engine's check of a spec, without the engine.
pub fn validator(config: &EngineConfig) -> Validator {
    match config.clone() {
        EngineConfig::Local(config) => Arc::new(move |spec| local::validate(&config, spec)),
        EngineConfig::Noop(_) => Arc::new(noop::validate),
        EngineConfig::Slurm(config) => Arc::new(move |spec| slurm::validate(&config, spec)),
        EngineConfig::Command(config) => Arc::new(move |spec| command::validate(&config, spec)),
        // The whole spec is handed over; what it may ask is between its author and the service.
        EngineConfig::External(_) => Arc::new(|_| Ok(())),
    }
}

/// Refuses any option of `spec.engine` that is not `known`.
fn refuse_unknown_options(spec: &JobSpec, known: &[&str]) -> Result<(), SpecError> {
    match spec.engine.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let field = format!("spec.engine.{}", key.escape_debug());
            Err(SpecError::new(field, "is no option of this cluster's engine"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_declared_of_an_engine_is_what_the_opened_one_says() {
        // An error says that there is one already.
        rustls::crypto::ring::default_provider().install_default().ok();
        let place = tempfile::tempdir().unwrap();
        let context = conformance::context("c", place.path(), Duration::from_secs(1));
        let shared =
            format!(r#"{{"engine":"command","preset":"slurm","shared_dir":"{}"}}"#, place.path().display());
        for text in [
            &shared,
            r#"{"engine":"local"}"#,
            r#"{"engine":"local","poll_interval":"1s"}"#,
            r#"{"engine":"noop"}"#,
            r#"{"engine":"noop","mode":"fenced","poll_interval":"3s"}"#,
            r#"{"engine":"slurm","user":"jane","log_dir":"/shared/{user}","poll_interval":"5s"}"#,
        ] {
            let config: EngineConfig = serde_json::from_str(text).unwrap();
            let opened = build(&config, &context).unwrap().capabilities();
            assert_eq!(config.is_bound_to_its_host(), opened.reach.is_some(), "{text}");
            assert_eq!(config.capabilities(), Capabilities { reach: None, ..opened }, "{text}");
        }
    }

    #[test]
    fn an_unknown_setting_is_refused_by_name() {
        let read = |text: &str| serde_json::from_str::<EngineConfig>(text);
        assert!(read(r#"{"engine":"noop","run_for":"1s"}"#).is_ok());
        let error = read(r#"{"engine":"noop","runfor":"1s"}"#).unwrap_err().to_string();
        assert!(error.contains("runfor"), "{error}");
        let error = read(r#"{"engine":"nope"}"#).unwrap_err().to_string();
        assert!(error.contains("nope"), "{error}");
    }

    #[test]
    fn an_engine_tells_what_a_job_may_ask_it_for() {
        let takes = |text: &str| serde_json::from_str::<EngineConfig>(text).unwrap().takes();
        let local = takes(r#"{"engine":"local"}"#);
        assert!(local.fields.contains(&"script") && local.fields.contains(&"resources.cpus"), "{local:?}");
        assert!(!local.fields.contains(&"image") && !local.fields.contains(&"resources.nodes"), "{local:?}");
        assert_eq!(local.options, Some(BTreeMap::new()));
        let slurm = takes(
            r#"{"engine":"slurm","user":"u","max_nodes":4,"options":{"partition":["p","q"],"qos":["*"]}}"#,
        );
        let values = Some(vec!["p".to_owned(), "q".to_owned()]);
        assert_eq!(slurm.options, Some([("partition".into(), values), ("qos".into(), None)].into()));
        assert!(slurm.fields.contains(&"resources.nodes"), "{slurm:?}");
        assert!(!slurm.fields.contains(&"resources.gpus"), "{slurm:?}");
        let command = takes(
            r#"{"engine":"command","preset":"slurm","shared_dir":"/x","options":{"queue":{"argv":["-q","{value}"]}}}"#,
        );
        assert!(command.options.unwrap().contains_key("queue"));
        let external = takes(r#"{"engine":"external"}"#);
        assert_eq!((external.fields.len(), external.options), (FIELDS.len(), None));
    }

    #[test]
    fn a_cluster_that_is_served_from_outside_takes_any_spec_and_is_opened_by_nobody() {
        let place = tempfile::tempdir().unwrap();
        let context = conformance::context("c", place.path(), Duration::from_secs(1));
        let config: EngineConfig = serde_json::from_str(r#"{"engine":"external"}"#).unwrap();
        assert_eq!(config.capabilities().mode, SubmitMode::TwoPhase);
        let spec = serde_json::from_str(r#"{"command":["x"],"image":"y","engine":{"queue":"z"}}"#).unwrap();
        assert!(config.is_served_outside() && validator(&config)(&spec).is_ok());
        assert!(build(&config, &context).is_err());
    }
}
