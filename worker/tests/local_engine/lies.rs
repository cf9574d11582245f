//! What an engine declares that is not so, the suite finds.

use crate::{
    MODES,
    rig::{LocalRig, NoopRig},
};
use jobgate_shared::settings::Period;
use jobgate_worker::{
    engine::{ExitCodes, MemoryLimits, SubmitMode, TimeLimits},
    engines::conformance::{
        SetUp,
        lie::{Lie, must_be_found},
    },
};
use std::{sync::Arc, time::Duration};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("no_exit_codes_are_told", || of_local(|declared| declared.exit_codes = ExitCodes::None)),
    ("signals_are_told_as_codes", || of_local(|declared| declared.exit_codes = ExitCodes::Codes)),
    ("no_memory_limit_is_held_to", || of_local(|declared| declared.memory_limits = MemoryLimits::None)),
    ("a_want_of_memory_is_told", || of_local(|declared| declared.memory_limits = MemoryLimits::Told)),
    ("time_limits_are_the_watchers", || of_local(|declared| declared.time_limits = TimeLimits::ByWatcher)),
    ("a_cancel_kills_at_once", || of_local(|declared| declared.warns_on_cancel = false)),
    ("there_are_no_logs", || of_local(|declared| declared.logs = false)),
    ("no_commands_are_run", || of_local(|declared| declared.commands = false)),
    ("a_cancel_warns", a_cancel_warns),
    ("commands_are_run", || of_noop(SubmitMode::TwoPhase, |declared| declared.commands = true)),
    ("it_is_submitted_in_another_way", it_is_submitted_in_another_way),
];

fn of_local(lie: Lie) {
    must_be_found(|| Arc::new(LocalRig::new()), &[SetUp::Memory], lie);
}

fn of_noop(mode: SubmitMode, lie: Lie) {
    must_be_found(|| Arc::new(NoopRig::in_memory(mode)), &[], lie);
}

fn a_cancel_warns() {
    let kills_at_once = || LocalRig::with(|config| config.kill_grace = Period::new(Duration::ZERO));
    must_be_found(|| Arc::new(kills_at_once()), &[], |declared| declared.warns_on_cancel = true);
}

fn it_is_submitted_in_another_way() {
    let lies: [(SubmitMode, Lie); 4] = [
        (SubmitMode::TwoPhase, |declared| declared.mode = SubmitMode::TwoPhase),
        (SubmitMode::UniqueName, |declared| declared.mode = SubmitMode::UniqueName),
        (SubmitMode::Fenced, |declared| declared.mode = SubmitMode::Fenced),
        (SubmitMode::AtMostOnce, |declared| declared.mode = SubmitMode::AtMostOnce),
    ];
    for (said, lie) in lies {
        // A fence keeps what two-phase promises.
        let true_of = |mode| mode == said || (mode, said) == (SubmitMode::Fenced, SubmitMode::TwoPhase);
        for mode in MODES.into_iter().filter(|mode| !true_of(*mode)) {
            of_noop(mode, lie);
        }
    }
}
