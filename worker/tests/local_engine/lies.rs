//! What an engine declares that is not so, the suite finds.

use crate::rig::{LocalRig, NoopRig};
use jobgate_shared::settings::Period;
use jobgate_worker::{
    engine::{ExitCodes, MemoryLimits, SubmitMode, TimeLimits},
    engines::conformance::{
        SetUp,
        lie::{Lie, find},
    },
};
use std::{sync::Arc, time::Duration};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("no_exit_codes_are_told", || {
        of_local(
            |declared| declared.exit_codes = ExitCodes::None,
            ("a_failure_is_told_from_a_success_and_no_code_is_made_up", "exit_code: Some(7)"),
        );
    }),
    ("signals_are_told_as_codes", || {
        of_local(
            |declared| declared.exit_codes = ExitCodes::Codes,
            ("exit_codes_are_told_and_a_signal_as_one", "kill -9 $$: End { ending: Failed, exit_code: None"),
        );
    }),
    ("no_memory_limit_is_held_to", || {
        of_local(
            |declared| declared.memory_limits = MemoryLimits::None,
            ("a_memory_limit_nobody_holds_a_job_to_is_refused", "it would hold to it: ()"),
        );
    }),
    ("a_want_of_memory_is_told", || {
        of_local(
            |declared| declared.memory_limits = MemoryLimits::Told,
            ("a_job_that_outgrows_the_memory_it_asked_for_says_so", "exit_code: Some(1)"),
        );
    }),
    ("time_limits_are_the_watchers", || {
        of_local(
            |declared| declared.time_limits = TimeLimits::ByWatcher,
            ("a_time_limit_is_left_to_who_watches", "ending: TimedOut"),
        );
    }),
    ("a_cancel_kills_at_once", || {
        of_local(
            |declared| declared.warns_on_cancel = false,
            ("canceled_it_has_no_time_to_end_by_itself", "it had, which is more than was declared"),
        );
    }),
    ("there_are_no_logs", || {
        of_local(|declared| declared.logs = false, ("nothing_that_is_printed_can_be_read", "Ok(LogChunk"));
    }),
    ("no_commands_are_run", || {
        of_local(|declared| declared.commands = false, ("no_command_is_run", "exit_code: Some(7)"));
    }),
    ("a_cancel_warns", a_cancel_warns),
    ("commands_are_run", || {
        of_noop(
            SubmitMode::TwoPhase,
            |declared| declared.commands = true,
            ("a_running_job_is_seen_running_and_its_start_stays", "ending: Finished"),
        );
    }),
    ("it_is_submitted_in_another_way", it_is_submitted_in_another_way),
];

/// The case that finds a lie, and some of the words it does so with.
type FoundBy = (&'static str, &'static str);

fn of_local(lie: Lie, found_by: FoundBy) {
    find(|| Arc::new(LocalRig::new()), &[SetUp::Memory], lie).assert_is(found_by);
}

fn of_noop(mode: SubmitMode, lie: Lie, found_by: FoundBy) {
    find(|| Arc::new(NoopRig::in_memory(mode)), &[], lie).assert_is(found_by);
}

fn a_cancel_warns() {
    let kills_at_once = || LocalRig::with(|config| config.kill_grace = Period::new(Duration::ZERO));
    find(|| Arc::new(kills_at_once()), &[], |declared| declared.warns_on_cancel = true)
        .assert_is(("canceled_it_is_told_and_canceled_even_if_it_then_ends_well", "heeds_a_cancel"));
}

fn it_is_submitted_in_another_way() {
    const RUNS: FoundBy = ("what_is_created_does_not_run_until_it_is_started", "right: Inert");
    const WAITS: FoundBy = ("what_is_created_begins_by_itself", "waited in vain for an end");
    let two_phase: Lie = |declared| declared.mode = SubmitMode::TwoPhase;
    let unique_name: Lie = |declared| declared.mode = SubmitMode::UniqueName;
    let fenced: Lie = |declared| declared.mode = SubmitMode::Fenced;
    let at_most_once: Lie = |declared| declared.mode = SubmitMode::AtMostOnce;
    let found = [
        // A fence keeps what two-phase promises, so of it that is no lie.
        (two_phase, SubmitMode::UniqueName, RUNS),
        (two_phase, SubmitMode::AtMostOnce, RUNS),
        (unique_name, SubmitMode::TwoPhase, WAITS),
        (unique_name, SubmitMode::Fenced, WAITS),
        (unique_name, SubmitMode::AtMostOnce, ("a_name_is_taken_once_and_one_that_is_buried_never", "noop-")),
        (fenced, SubmitMode::TwoPhase, ("of_two_that_were_started_one_runs", "more than was declared")),
        (fenced, SubmitMode::UniqueName, RUNS),
        (fenced, SubmitMode::AtMostOnce, RUNS),
        (at_most_once, SubmitMode::TwoPhase, WAITS),
        (
            at_most_once,
            SubmitMode::UniqueName,
            ("created_twice_it_runs_twice", "once is more than was declared"),
        ),
        (at_most_once, SubmitMode::Fenced, WAITS),
    ];
    for (lie, truth, found_by) in found {
        of_noop(truth, lie, found_by);
    }
}
