//! The engines that need nothing but this host, against the conformance suite; and what only the local engine has to bear.
//!
//! This binary is its own runner and its own second worker: started with `local-runner` or `worker` it is that, otherwise it
//! runs the tests.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "tests, which clippy does not know as such without libtest's harness"
)]

mod hardship;
mod house;
mod lies;
mod rig;

use jobgate_worker::{
    engine::SubmitMode,
    engines::{
        conformance::{self, Rig as _, SetUp},
        local::local_runner_main,
    },
};
use libtest_mimic::{Arguments, Trial};
use std::{process::ExitCode, sync::Arc};

/// Every way of submitting there is.
const MODES: [SubmitMode; 4] =
    [SubmitMode::TwoPhase, SubmitMode::UniqueName, SubmitMode::Fenced, SubmitMode::AtMostOnce];

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|mode| mode.to_str()) {
        Some("local-runner") => return local_runner_main(args),
        Some("worker") => return rig::worker_main(args),
        Some(_) | None => {}
    }
    let mut trials = Vec::new();
    let declared = rig::LocalRig::new().engine().capabilities();
    for case in conformance::cases(&declared, &[SetUp::Memory]) {
        trials.push(trial(format!("local::{}", case.name), || {
            block_on((case.run)(Arc::new(rig::LocalRig::new())));
        }));
    }
    for mode in MODES {
        let declared = rig::NoopRig::in_memory(mode).engine().capabilities();
        for case in conformance::cases(&declared, &[]) {
            trials.push(trial(format!("noop::{mode:?}::{}", case.name), move || {
                block_on((case.run)(Arc::new(rig::NoopRig::in_memory(mode))));
            }));
            trials.push(trial(format!("noop_over_a_state::{mode:?}::{}", case.name), move || {
                block_on((case.run)(Arc::new(rig::NoopRig::over_a_state(mode))));
            }));
        }
    }
    for (name, test) in lies::TESTS {
        trials.push(trial(format!("lies::{name}"), test));
    }
    for (name, test) in house::TESTS.iter().chain(hardship::TESTS) {
        trials.push(trial(format!("local::{name}"), || block_on(test())));
    }
    trials.push(hardship::cgroup_trial());
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
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
