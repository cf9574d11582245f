//! The configured clusters, as the API sees them (what may be posted) and as a worker does (what it serves).

use crate::{
    config::{ClusterSection, Config},
    data_dir::DataDir,
};
use anyhow::Context as _;
use jobgate_api::clusters::{self as shown, ClusterInfo, SpecValidator};
use jobgate_shared::{
    clock::Clock,
    domain::{ClusterName, JobSpec, SpecError},
};
use jobgate_worker::{
    Served,
    engine::{ExitCodes, MemoryLimits, SubmitMode, TimeLimits},
    engines::{self, EngineConfig, EngineContext, ServedBy, Takes, local::RunnerCommand},
    pace::Pace,
    regulator::RegulatorConfig,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// What the API has to know of the configured clusters.
#[derive(Debug)]
pub(super) struct Clusters {
    infos: Vec<ClusterInfo>,
    engines: BTreeMap<ClusterName, EngineConfig>,
    default: Option<ClusterName>,
}

impl Clusters {
    /// The clusters of a configuration; nothing is opened.
    pub(super) fn new(config: &Config) -> Self {
        let engine = |(name, section): (ClusterName, ClusterSection)| (name, section.engine);
        let engines: BTreeMap<_, _> = config.clusters().into_iter().map(engine).collect();
        let infos = engines.iter().map(|(name, engine)| info(name, engine)).collect();
        Self { infos, engines, default: config.default_cluster() }
    }
}

/// What users see of a cluster.
fn info(name: &ClusterName, engine: &EngineConfig) -> ClusterInfo {
    let declared = engine.capabilities();
    let mode = match declared.mode {
        SubmitMode::TwoPhase => shown::SubmitMode::TwoPhase,
        SubmitMode::UniqueName => shown::SubmitMode::UniqueName,
        SubmitMode::Fenced => shown::SubmitMode::Fenced,
        SubmitMode::AtMostOnce => shown::SubmitMode::AtMostOnce,
    };
    let reach =
        if engine.is_bound_to_its_host() { shown::ReachKind::Host } else { shown::ReachKind::Everywhere };
    let capabilities = shown::Capabilities {
        reach,
        commands: declared.commands,
        exit_codes: match declared.exit_codes {
            ExitCodes::None => shown::ExitCodes::None,
            ExitCodes::Codes => shown::ExitCodes::Codes,
            ExitCodes::CodesAndSignals => shown::ExitCodes::CodesAndSignals,
        },
        memory_limits: match declared.memory_limits {
            MemoryLimits::None => shown::MemoryLimits::None,
            MemoryLimits::Enforced => shown::MemoryLimits::Enforced,
            MemoryLimits::Told => shown::MemoryLimits::Told,
        },
        time_limits: match declared.time_limits {
            TimeLimits::ByEngine => shown::TimeLimits::ByEngine,
            TimeLimits::ByWatcher => shown::TimeLimits::ByWatcher,
        },
        warns_on_cancel: declared.warns_on_cancel,
        logs: declared.logs,
        poll_interval_seconds: declared.poll_interval.as_secs_f64(),
    };
    let served_by = match engine.served_by() {
        ServedBy::Workers { .. } => shown::ServedBy::Workers,
        ServedBy::Claimants => shown::ServedBy::Claimants,
    };
    let Takes { fields, options } = engine.takes();
    let takes = shown::Takes { fields, options };
    ClusterInfo { name: name.clone(), engine: engine.kind().to_owned(), served_by, mode, capabilities, takes }
}

/// The clusters no worker serves and nobody is to be hinted of.
pub(super) fn outside(config: &Config) -> BTreeSet<ClusterName> {
    let clusters = config.clusters().into_iter();
    let outside = clusters.filter(|(_, section)| section.engine.served_by() == ServedBy::Claimants);
    outside.map(|(name, _)| name).collect()
}

impl SpecValidator for Clusters {
    fn clusters(&self) -> &[ClusterInfo] {
        &self.infos
    }

    fn default_cluster(&self) -> Option<&ClusterName> {
        self.default.as_ref()
    }

    fn validate(&self, cluster: &ClusterName, spec: &JobSpec) -> Result<(), SpecError> {
        match self.engines.get(cluster) {
            Some(engine) => engine.validate(spec),
            None => Err(SpecError::new("cluster", format!("there is no cluster {cluster}"))),
        }
    }
}

/// When a look at a manager is given up, unless calls may take longer than that.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens every configured cluster that workers serve.
pub(super) fn open(
    config: &Config,
    data_dir: &DataDir,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Vec<Served>> {
    let mut served = Vec::new();
    for (name, section) in config.clusters() {
        let ServedBy::Workers { jobs: max_in_flight } = section.engine.served_by() else { continue };
        let context = EngineContext {
            cluster: name.clone(),
            clock: clock.clone(),
            data_dir: data_dir.path().to_owned(),
            runner: runner(),
            call_timeout: *config.worker.lease / 3,
            look_timeout: LOOK_TIMEOUT.max(*config.worker.lease / 3),
        };
        let engine = engines::build(&section.engine, &context)
            .with_context(|| format!("cannot open clusters.{name}"))?;
        let regulator = section.regulator.clone().unwrap_or(RegulatorConfig::Fixed { max_in_flight });
        served.push(Served {
            name,
            engine,
            regulator,
            max_calls: section.max_calls.get() as usize,
            pace: section.max_calls_per_second.map(Pace::per_second).unwrap_or_default(),
            max_submits_per_second: section.max_submits_per_second,
            lost_after: *section.lost_after,
            slow_after: *section.slow_after,
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn clusters_tell_what_their_engines_declare_and_nothing_is_opened_for_it() {
        let text = "[clusters.far]\nengine = 'noop'\nmode = 'at_most_once'\npoll_interval = '2s'\n\
                    [clusters.local]\nengine = 'local'\nspool_dir = '/no/such/place'\n";
        let config: Config = toml::from_str(text).unwrap();
        let told = serde_json::to_value(Clusters::new(&config).clusters()).unwrap();
        let far = json!({"reach": "everywhere", "commands": false, "exit_codes": "none", "memory_limits": "none",
            "time_limits": "by_engine", "warns_on_cancel": false, "logs": false, "poll_interval_seconds": 2.0});
        let local = json!({"reach": "host", "commands": true, "exit_codes": "codes_and_signals",
            "memory_limits": "enforced", "time_limits": "by_engine", "warns_on_cancel": true, "logs": true,
            "poll_interval_seconds": 0.2});
        let of_a_process = [
            "env",
            "working_dir",
            "stdin",
            "script",
            "time_limit_seconds",
            "resources.cpus",
            "resources.memory_mib",
        ];
        let everything = [
            "env",
            "working_dir",
            "stdin",
            "script",
            "image",
            "time_limit_seconds",
            "resources.cpus",
            "resources.memory_mib",
            "resources.gpus",
            "resources.nodes",
        ];
        let expected = json!([
            {"name": "far", "engine": "noop", "served_by": "workers", "mode": "at_most_once", "capabilities": far,
                "takes": {"fields": everything, "options": {}}},
            {"name": "local", "engine": "local", "served_by": "workers", "mode": "two_phase", "capabilities": local,
                "takes": {"fields": of_a_process, "options": {}}},
        ]);
        assert_eq!(told, expected);
    }

    #[test]
    fn a_cluster_that_is_served_from_outside_is_shown_and_not_opened() {
        let place = tempfile::tempdir().unwrap();
        let data_dir = DataDir::make(place.path()).unwrap();
        let text = "[clusters.far]\nengine = 'external'\n[clusters.near]\nengine = 'noop'\n";
        let config: Config = toml::from_str(text).unwrap();
        let told = serde_json::to_value(Clusters::new(&config).clusters()).unwrap();
        assert_eq!((&told[0]["served_by"], &told[0]["mode"]), (&json!("claimants"), &json!("two_phase")));
        assert_eq!(outside(&config), [ClusterName::try_from("far".to_owned()).unwrap()].into());
        let opened = open(&config, &data_dir, &jobgate_shared::clock::system()).unwrap();
        assert_eq!(opened.iter().map(|served| served.name.as_str()).collect::<Vec<_>>(), ["near"]);
    }
}
