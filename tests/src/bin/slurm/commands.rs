//! The command engine with its preset for Slurm: its commands, and so its jobs, are of the account these tests run as.

use crate::rig::folder;
use jobgate_tests::services::Slurm;
use jobgate_worker::{
    engine::{Capabilities, Engine, ToCreate},
    engines::{
        EngineConfig, build,
        conformance::{self, Rig, Trouble},
    },
};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;

/// One case's folder and how the cluster is found.
pub(crate) struct CommandRig {
    folder: TempDir,
    conf: PathBuf,
    /// What stands before every command.
    prefix: Vec<String>,
    ends_strays: bool,
}

impl CommandRig {
    pub(crate) fn new(slurm: &Slurm) -> Self {
        let folder = folder();
        fs::create_dir(folder.path().join("attempts")).expect("a folder");
        Self { folder, conf: slurm.conf(), prefix: slurm.prefix(), ends_strays: slurm.ends_strays() }
    }
}

impl CommandRig {
    /// What the engines of such a rig declare.
    pub(crate) fn declares() -> Capabilities {
        let config = json!({"engine": "command", "preset": "slurm", "shared_dir": "/"});
        serde_json::from_value::<EngineConfig>(config).expect("a configuration").capabilities()
    }

    fn engine_behind(&self, trouble: &[String]) -> Arc<dyn Engine> {
        let prefix = [trouble, &self.prefix].concat();
        let config: EngineConfig = serde_json::from_value(json!({
            "engine": "command", "preset": "slurm", "shared_dir": self.folder.path().join("attempts"),
            "env": {"PATH": "/usr/sbin:/usr/bin:/bin", "SLURM_CONF": self.conf}, "prefix": prefix,
            "exit_settles": "500ms", "poll_interval": "500ms", "kill_grace": "1s",
            "options": {"begin": {"argv": ["--begin={value}"], "pattern": "now[+][0-9]+[a-z]+"}},
        }))
        .expect("a configuration");
        let context = conformance::context("slurm", Path::new("/nonexistent"), Duration::from_secs(30));
        build(&config, &context).expect("an engine")
    }
}

impl Rig for CommandRig {
    fn engine(&self) -> Arc<dyn Engine> {
        self.engine_behind(&[])
    }

    fn troubled(&self, trouble: Trouble) -> Arc<dyn Engine> {
        self.engine_behind(&trouble.prefix("squeue*|sacct*|scontrol*show*"))
    }

    fn has_to_wait(&self, job: &mut ToCreate) {
        job.spec.engine.insert("begin".into(), "now+1hour".into());
    }

    fn shared_dir(&self) -> &Path {
        self.folder.path()
    }

    fn ends_strays(&self) -> bool {
        self.ends_strays
    }

    fn patience(&self) -> Duration {
        Duration::from_mins(5)
    }
}
