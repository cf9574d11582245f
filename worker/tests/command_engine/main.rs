//! The command engine against the conformance suite, over a scripted scheduler; and what only such an engine has to bear.
//!
//! This binary is its own scheduler: started with `scheduler` it is one command of it, otherwise it runs the tests.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    reason = "tests, which clippy does not know as such without libtest's harness"
)]

mod counts;
mod hardship;
mod rig;
mod scheduler;

use jobgate_worker::engines::conformance::{self, Needs};
use libtest_mimic::{Arguments, Trial};
use std::{process::ExitCode, sync::Arc};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("scheduler") {
        return scheduler::main(args);
    }
    let mut trials = Vec::new();
    for case in conformance::cases(&[Needs::TwoPhase, Needs::Commands, Needs::Manager]) {
        // One forgets what has ended, lists what it has and reads the script from a file; the other knows all, is asked by
        // ids, answers in JSON and reads the script from standard input.
        for (kind, config) in [("forgetful", rig::forgetful as fn(&str, &str) -> _), ("strict", rig::strict)]
        {
            trials.push(trial(format!("{kind}::{}", case.name), move || {
                block_on((case.run)(Arc::new(rig::CommandRig::new(config))));
            }));
        }
    }
    // What begins by being created passes whatever asks for no more than that.
    for case in conformance::cases(&[Needs::Commands]) {
        trials.push(trial(format!("at_once::{}", case.name), move || {
            block_on((case.run)(Arc::new(rig::CommandRig::new(rig::at_once))));
        }));
    }
    for (name, test) in hardship::TESTS {
        trials.push(trial((*name).to_owned(), || block_on(test())));
    }
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
