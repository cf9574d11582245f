//! The configured clusters, as the API sees them (what may be posted) and as a worker does (what it serves).

use crate::{
    config::{ClusterSection, Config},
    data_dir::DataDir,
};
use anyhow::Context as _;
use jobgate_api::clusters::{ClusterInfo, SpecValidator};
use jobgate_shared::{
    clock::Clock,
    domain::{ClusterName, JobSpec, SpecError},
};
use jobgate_worker::{
    Served,
    engines::{self, EngineConfig, EngineContext, Validator, local::RunnerCommand},
    regulator::RegulatorConfig,
};
use serde_json::json;
use std::{collections::BTreeMap, fmt, num::NonZeroU32, sync::Arc, thread};

/// Jobs one worker holds of a manager on other hosts, unless configured: the manager has a queue of its own.
const FAR_JOBS: NonZeroU32 = NonZeroU32::new(10_000).expect("not zero");

/// What the API has to know of the configured clusters.
pub(super) struct Clusters {
    infos: Vec<ClusterInfo>,
    validators: BTreeMap<ClusterName, Validator>,
    default: Option<ClusterName>,
}

impl fmt::Debug for Clusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clusters")
            .field("infos", &self.infos)
            .field("default", &self.default)
            .finish_non_exhaustive()
    }
}

impl Clusters {
    /// The clusters of a configuration; nothing is opened.
    pub(super) fn new(config: &Config) -> Self {
        let sections = config.clusters();
        let info = |(name, section): (&ClusterName, &ClusterSection)| ClusterInfo {
            name: name.clone(),
            engine: section.engine.kind().to_owned(),
            mode: json!(section.engine.mode()).as_str().unwrap_or_default().to_owned(),
            capabilities: json!({}),
        };
        let validator = |(name, section): (&ClusterName, &ClusterSection)| {
            (name.clone(), engines::validator(&section.engine))
        };
        Self {
            infos: sections.iter().map(info).collect(),
            validators: sections.iter().map(validator).collect(),
            default: config.default_cluster(),
        }
    }
}

impl SpecValidator for Clusters {
    fn clusters(&self) -> &[ClusterInfo] {
        &self.infos
    }

    fn default_cluster(&self) -> Option<&ClusterName> {
        self.default.as_ref()
    }

    fn validate(&self, cluster: &ClusterName, spec: &JobSpec) -> Result<(), SpecError> {
        match self.validators.get(cluster) {
            Some(validate) => validate(spec),
            None => Err(SpecError::new("cluster", format!("there is no cluster {cluster}"))),
        }
    }
}

/// Opens every configured cluster, for a worker.
pub(super) fn open(
    config: &Config,
    data_dir: &DataDir,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Vec<Served>> {
    let mut served = Vec::new();
    for (name, section) in config.clusters() {
        let context = EngineContext {
            cluster: name.clone(),
            clock: clock.clone(),
            data_dir: data_dir.path().to_owned(),
            runner: runner(),
            call_timeout: *config.worker.lease / 3,
        };
        let engine = engines::build(&section.engine, &context)
            .with_context(|| format!("cannot open clusters.{name}"))?;
        let regulator = section.regulator.clone().unwrap_or_else(|| usual_regulator(&section.engine));
        served.push(Served {
            name,
            engine,
            regulator,
            max_calls: section.max_calls.get() as usize,
            lost_after: *section.lost_after,
        });
    }
    Ok(served)
}

/// The first argument that makes this binary a runner of one local job. Not a command people would see.
pub(crate) const LOCAL_RUNNER: &str = "local-runner";

/// How this binary is started as a runner: whatever file it was started from, even after an upgrade replaced it.
fn runner() -> RunnerCommand {
    RunnerCommand { program: "/proc/self/exe".into(), args: vec![LOCAL_RUNNER.into()] }
}

/// A job of this host takes a processor of it; any other manager decides for itself what runs when.
fn usual_regulator(engine: &EngineConfig) -> RegulatorConfig {
    let max_in_flight = match engine {
        EngineConfig::Local(_) => {
            let processors =
                thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
            NonZeroU32::new(processors).unwrap_or(NonZeroU32::MIN)
        }
        EngineConfig::Noop(_) => FAR_JOBS,
    };
    RegulatorConfig::Fixed { max_in_flight }
}
