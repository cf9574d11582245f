//! The engines and their list: a new engine is one file here, with its `mod` and its line in the list.
//!
//! What an engine's file must hold are its settings ([`EngineSettings`]) and the [`Engine`] they open.

mod beneath;
pub mod command;
pub mod conformance;
pub mod external;
pub mod local;
pub mod noop;
mod settings;
pub mod slurm;

pub use settings::{EngineSettings, Options, ServedBy, Takes};

use crate::engine::Engine;
use jobgate_shared::{clock::Clock, domain::ClusterName};
use serde::{Deserialize, Serialize};
use std::{ops::Deref, path::PathBuf, sync::Arc, time::Duration};

/// Makes [`EngineConfig`] of the engines' names, as configuration and metrics spell them, and their settings.
macro_rules! engines {
    ($($name:literal => $variant:ident($settings:ty),)*) => {
        /// The resource manager behind one cluster, and its settings.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "engine")]
        pub enum EngineConfig {
            $(#[doc = concat!("`engine = \"", $name, "\"`.")] #[serde(rename = $name)] $variant(Box<$settings>),)*
        }

        impl EngineConfig {
            /// The name of the engine.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)* }
            }
        }

        impl Deref for EngineConfig {
            type Target = dyn EngineSettings;
            fn deref(&self) -> &Self::Target {
                match self { $(Self::$variant(settings) => &**settings,)* }
            }
        }

        $(impl From<$settings> for EngineConfig {
            fn from(settings: $settings) -> Self {
                Self::$variant(Box::new(settings))
            }
        })*
    };
}

engines! {
    "local" => Local(local::LocalConfig),
    "noop" => Noop(noop::NoopConfig),
    "slurm" => Slurm(slurm::SlurmConfig),
    "command" => Command(command::CommandConfig),
    "external" => External(external::ExternalConfig),
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

/// Builds the engine; an error names the setting that is wrong or what could not be opened.
pub fn build(config: &EngineConfig, context: &EngineContext) -> anyhow::Result<Arc<dyn Engine>> {
    config.check()?;
    config.open(context)
}

#[cfg(test)]
mod tests {
    use super::{settings::FIELDS, *};
    use crate::engine::{Capabilities, SubmitMode};
    use std::collections::BTreeMap;

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
        assert_eq!(config.served_by(), ServedBy::Claimants);
        assert!(config.validate(&spec).is_ok());
        assert!(build(&config, &context).is_err());
    }
}
