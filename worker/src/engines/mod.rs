//! The engines and their registry: a new engine is one file here, one variant of [`EngineConfig`] and its arms.
//!
//! What is configured is checked before anything is built; what a job may ask of an engine is checked by [`validator`],
//! which needs the configuration only and so works in the API process, too.

pub mod conformance;
pub mod local;
pub mod noop;

use crate::engine::{Capabilities, Engine, SubmitMode, TimeLimits};
use jobgate_shared::{
    clock::Clock,
    domain::{ClusterName, JobSpec, SpecError},
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// The resource manager behind one cluster, and its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "engine", rename_all = "snake_case")]
pub enum EngineConfig {
    /// Runs jobs as processes of the worker's own host.
    Local(local::LocalConfig),
    /// Runs nothing: jobs that end by themselves, for measuring and testing what stands around them.
    Noop(noop::NoopConfig),
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
}

/// Checks a spec against what one engine can do; asks nobody.
pub type Validator = Arc<dyn Fn(&JobSpec) -> Result<(), SpecError> + Send + Sync>;

impl EngineConfig {
    /// The name of the engine, as configuration and metrics spell it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Local(_) => "local",
            Self::Noop(_) => "noop",
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
        }
    }

    /// It acts only where it submitted: once opened, it names a reach.
    pub fn is_bound_to_its_host(&self) -> bool {
        match self {
            Self::Local(_) => true,
            Self::Noop(_) => false,
        }
    }

    /// Checks the settings; an error names the one that is wrong.
    pub fn check(&self) -> anyhow::Result<()> {
        match self {
            Self::Local(config) => config.check(),
            Self::Noop(config) => config.check(),
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
    }
}

/// The engine's check of a spec, without the engine.
pub fn validator(config: &EngineConfig) -> Validator {
    match config.clone() {
        EngineConfig::Local(config) => Arc::new(move |spec| local::validate(&config, spec)),
        EngineConfig::Noop(_) => Arc::new(noop::validate),
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
        let place = tempfile::tempdir().unwrap();
        let context = EngineContext {
            cluster: "c".parse().unwrap(),
            clock: jobgate_shared::clock::system(),
            data_dir: place.path().to_owned(),
            runner: local::RunnerCommand { program: "/bin/false".into(), args: Vec::new() },
            call_timeout: Duration::from_secs(1),
        };
        for text in [
            r#"{"engine":"local"}"#,
            r#"{"engine":"local","poll_interval":"1s"}"#,
            r#"{"engine":"noop"}"#,
            r#"{"engine":"noop","mode":"fenced","poll_interval":"3s"}"#,
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
}
