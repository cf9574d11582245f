//! The Slurm engine against a real Slurm, with and without accounts, and the command engine with its preset for Slurm: `make
//! test-slurm`. Not part of `make test`, whose machines need no Slurm; it fails where there is none.

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
use jobgate_tests::services::{Accounting, Slurm};
use jobgate_worker::engines::conformance::{self, Case, Rig, SetUp};
use libtest_mimic::{Arguments, Trial};
use rig::SlurmRig;
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
    let mut trials = Vec::new();
    let mut clusters = Vec::new();
    for (accounting, name) in [(Accounting::None, "slurm"), (Accounting::Slurmdbd, "slurm_with_slurmdbd")] {
        // Started by the first case that needs it, and ended when all are done.
        let cluster = Arc::new(rig::Cluster::new(accounting));
        for case in conformance::cases(&SlurmRig::declares(Some("/")), &SET_UP) {
            let cluster = cluster.clone();
            trials.push(of_case(name, case, move || SlurmRig::new(&cluster.slurm(), accounting)));
        }
        for case in conformance::cases(&SlurmRig::declares(None), &SET_UP) {
            let cluster = cluster.clone();
            let rig = move || SlurmRig::new(&cluster.slurm(), accounting).without_logs();
            trials.push(of_case(&format!("{name}_without_logs"), case, rig));
        }
        for case in conformance::cases(&CommandRig::declares(), &SET_UP) {
            let cluster = cluster.clone();
            trials.push(of_case(&format!("commands_of_{name}"), case, move || {
                CommandRig::new(&cluster.slurm())
            }));
        }
        clusters.push(cluster);
    }
    for (name, test) in hardship::TESTS {
        trials.push(trial(format!("slurm::{name}"), || block_on(test())));
    }
    let done = libtest_mimic::run(&arguments, trials);
    drop(clusters);
    done.exit_code()
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

/// A cluster of a test's own.
async fn own(accounting: Accounting, min_job_age: Duration) -> Slurm {
    Slurm::start(accounting, min_job_age).await.expect("a Slurm")
}
