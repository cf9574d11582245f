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

use jobgate_worker::{
    engine::{ExitCodes, MemoryLimits},
    engines::conformance::{
        self, Rig as _, SetUp,
        lie::{Lie, find},
    },
};
use libtest_mimic::{Arguments, Trial};
use std::{process::ExitCode, sync::Arc};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("scheduler") {
        return scheduler::main(args);
    }
    let mut trials = Vec::new();
    // The first forgets what has ended, lists what it has and reads the script from a file; the second knows all, is asked by
    // ids, answers in JSON and reads the script from standard input; the third cannot hold a job.
    let kinds = [
        ("forgetful", rig::forgetful as fn(&str, &str) -> _),
        ("strict", rig::strict),
        ("at_once", rig::at_once),
    ];
    for (kind, config) in kinds {
        let declared = rig::CommandRig::new(config).engine().capabilities();
        for case in conformance::cases(&declared, &[SetUp::Manager]) {
            trials.push(trial(format!("{kind}::{}", case.name), move || {
                block_on((case.run)(Arc::new(rig::CommandRig::new(config))));
            }));
        }
    }
    let not_told = "spec.resources.memory_mib: this cluster is not told of it";
    let lies: [(&str, &str, Lie); 4] = [
        (
            "exit_codes_are_told_and_signals_apart_from_them",
            "exit code 137: killed by signal 9",
            |declared| {
                declared.exit_codes = ExitCodes::CodesAndSignals;
            },
        ),
        ("a_job_gets_no_more_memory_than_it_asked_for_and_ends_as_it_likes", not_told, |declared| {
            declared.memory_limits = MemoryLimits::Enforced;
        }),
        ("a_job_that_outgrows_the_memory_it_asked_for_says_so", not_told, |declared| {
            declared.memory_limits = MemoryLimits::Told;
        }),
        ("canceled_it_has_no_time_to_end_by_itself", "it had, which is more than was declared", |declared| {
            declared.warns_on_cancel = false;
        }),
    ];
    for (case, words, lie) in lies {
        trials.push(trial(format!("lies::{case}"), move || {
            find(|| Arc::new(rig::CommandRig::new(rig::strict)), &[SetUp::Memory], lie)
                .assert_is((case, words));
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
