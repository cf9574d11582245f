//! The Slurm engine against real Slurms, with and without accounts, and the command engine with its preset for Slurm: `make
//! test-slurm`. Not part of `make test`, whose machines need no Slurm; it fails where there is none, and says so where there is
//! no second, newer one.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests, which clippy does not know as such without libtest's harness"
)]

mod commands;
mod hardship;
mod rig;
mod siege;

use commands::CommandRig;
use jobgate_tests::{
    environment,
    services::{Accounting, Release, Slurm},
};
use jobgate_worker::engines::conformance::{self, Case, Rig, SetUp};
use libtest_mimic::{Arguments, Trial};
use rig::{Cluster, SlurmRig};
use std::{env, process::ExitCode, sync::Arc, time::Duration};

const SET_UP: [SetUp; 3] = [SetUp::Manager, SetUp::Queue, SetUp::Memory];

fn main() -> ExitCode {
    match env::args().nth(1).as_deref() {
        Some("siege") => {
            let jobs = env::args().nth(2).and_then(|jobs| jobs.parse().ok()).unwrap_or(2_000);
            return told(block_on(siege::run(jobs)));
        }
        Some("calls") => return told(block_on(siege::calls())),
        Some(_) | None => {}
    }
    let arguments = Arguments::from_args();
    let (mut trials, mut clusters) = (Vec::new(), Vec::new());
    let installed = Tried { release: Release::Installed, api: None };
    for (accounting, name) in [(Accounting::None, "slurm"), (Accounting::Slurmdbd, "slurm_with_slurmdbd")] {
        let cluster = Arc::new(Cluster::new(installed.release.clone(), accounting));
        trials.extend(conformance_of(name, &installed, &cluster));
        trials.extend(conformance_without_logs(name, &installed, &cluster));
        trials.extend(conformance_of_commands(&format!("commands_of_{name}"), &cluster));
        clusters.push(cluster);
    }
    trials.extend(hardships("slurm", &installed, |_| true));
    if let Some(root) = environment::slurm_24_11() {
        let release = Release::Within(root);
        // A cluster each: a listing tells 18 KB of every job it remembers.
        for (name, api, accounting) in [
            ("slurm_24_11_v0_0_40", "v0.0.40", Accounting::None),
            ("slurm_24_11_v0_0_41", "v0.0.41", Accounting::Slurmdbd),
            ("slurm_24_11_v0_0_42", "v0.0.42", Accounting::Slurmdbd),
        ] {
            let cluster = Arc::new(Cluster::new(release.clone(), accounting));
            let tried = Tried { release: release.clone(), api: Some(api) };
            trials.extend(conformance_of(name, &tried, &cluster));
            // What differs by Slurm and not by the version of its API is tried with the newest.
            if api == "v0.0.42" {
                trials.extend(conformance_without_logs(name, &tried, &cluster));
            }
            trials.extend(hardships(name, &tried, |by_api| by_api || api == "v0.0.42"));
            clusters.push(cluster);
        }
        let cluster = Arc::new(Cluster::new(release, Accounting::Slurmdbd));
        trials.extend(conformance_of_commands("commands_of_slurm_24_11", &cluster));
        clusters.push(cluster);
    } else {
        eprintln!("Slurm 24.11 (API v0.0.40, v0.0.41, v0.0.42) NOT checked: `make test-slurm` says why");
    }
    let done = libtest_mimic::run(&arguments, trials);
    drop(clusters);
    done.exit_code()
}

/// A Slurm, and the version of its API that is spoken to it: the best one by default.
#[derive(Clone, Debug)]
pub(crate) struct Tried {
    pub(crate) release: Release,
    pub(crate) api: Option<&'static str>,
}

impl Tried {
    /// A cluster of a test's own.
    pub(crate) async fn own(&self, accounting: Accounting, min_job_age: Duration) -> Slurm {
        Slurm::start(self.release.clone(), accounting, min_job_age).await.expect("a Slurm")
    }
}

/// The conformance suite, on a cluster that is started by the first case that needs it, and ended when all are done.
fn conformance_of(name: &str, tried: &Tried, cluster: &Arc<Cluster>) -> Vec<Trial> {
    let case = |case: &'static Case| {
        let (cluster, tried) = (cluster.clone(), tried.clone());
        of_case(name, case, move || SlurmRig::new(&tried, &cluster.slurm(), cluster.accounting))
    };
    conformance::cases(&SlurmRig::declares(Some("/")), &SET_UP).map(case).collect()
}

/// The same where nothing is left of a job but what Slurm remembers.
fn conformance_without_logs(name: &str, tried: &Tried, cluster: &Arc<Cluster>) -> Vec<Trial> {
    let case = |case: &'static Case| {
        let (cluster, tried) = (cluster.clone(), tried.clone());
        let rig = move || SlurmRig::new(&tried, &cluster.slurm(), cluster.accounting).without_logs();
        of_case(&format!("{name}_without_logs"), case, rig)
    };
    conformance::cases(&SlurmRig::declares(None), &SET_UP).map(case).collect()
}

fn conformance_of_commands(name: &str, cluster: &Arc<Cluster>) -> Vec<Trial> {
    let case = |case: &'static Case| {
        let cluster = cluster.clone();
        of_case(name, case, move || CommandRig::new(&cluster.slurm()))
    };
    conformance::cases(&CommandRig::declares(), &SET_UP).map(case).collect()
}

/// Shown as ignored where the host keeps Slurm from limiting memory.
fn of_case<R: Rig + 'static>(
    kind: &str,
    case: &'static Case,
    rig: impl FnOnce() -> R + Send + 'static,
) -> Trial {
    let test = trial(format!("{kind}::{}", case.name), || block_on((case.run)(Arc::new(rig()))));
    test.with_ignored_flag(case.needs == Some(SetUp::Memory) && !Slurm::limits_memory())
}

/// `wanted`: of those that hang on the version of the API (`true`), and of the others.
fn hardships(name: &str, tried: &Tried, wanted: impl Fn(bool) -> bool) -> Vec<Trial> {
    let chosen = hardship::TESTS.iter().filter(|test| wanted(test.by_api));
    let one = |test: &'static hardship::Test| {
        let tried = tried.clone();
        trial(format!("{name}::{}", test.name), move || block_on((test.run)(tried)))
    };
    chosen.map(one).collect()
}

fn told(outcome: anyhow::Result<()>) -> ExitCode {
    if let Err(error) = outcome {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn trial(name: String, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, || {
        test();
        Ok(())
    })
}

fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test)
}
