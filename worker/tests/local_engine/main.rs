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
mod rig;

use jobgate_worker::engines::{
    conformance::{self, Needs},
    local::local_runner_main,
};
use libtest_mimic::{Arguments, Trial};
use std::{process::ExitCode, sync::Arc};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|mode| mode.to_str()) {
        Some("local-runner") => return local_runner_main(args),
        Some("worker") => return rig::worker_main(args),
        Some(_) | None => {}
    }
    let mut trials = Vec::new();
    for case in conformance::cases(&[Needs::TwoPhase, Needs::Commands]) {
        trials.push(trial(format!("local::{}", case.name), || {
            block_on((case.run)(Arc::new(rig::LocalRig::new())));
        }));
    }
    for case in conformance::cases(&[Needs::TwoPhase]) {
        trials.push(trial(format!("noop::{}", case.name), || {
            block_on((case.run)(Arc::new(rig::NoopRig::in_memory())));
        }));
        trials.push(trial(format!("noop_over_a_state::{}", case.name), || {
            block_on((case.run)(Arc::new(rig::NoopRig::over_a_state())));
        }));
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
