//! Which cases an engine must pass. That follows from what it declares, in both directions: each capability has a case that
//! shows it, and one for engines that do not declare it, which shows that they are right not to.

use super::{Bench, Rig, endings, execution, submission, trouble};
use crate::engine::{Capabilities, ExitCodes, MemoryLimits, SubmitMode, TimeLimits};
use futures::future::BoxFuture;
use std::sync::Arc;

/// What stands around an engine in a test, which no engine can declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetUp {
    /// A manager runs its jobs which calls may fail to reach.
    Manager,
    /// A job can be made which has to wait.
    Queue,
    /// Its manager is set up to hold jobs to the memory they ask for.
    Memory,
}

/// One thing that must hold.
pub struct Case {
    /// What holds, as a sentence.
    pub name: &'static str,
    /// Of which engines.
    pub(super) applies: fn(&Capabilities) -> bool,
    /// In which set-up; in any, where this is absent.
    pub needs: Option<SetUp>,
    /// Panics if it does not hold, or if the rig's engine does not declare what the case was chosen by.
    pub run: fn(Arc<dyn Rig>) -> BoxFuture<'static, ()>,
}

macro_rules! cases {
    ($(if |$has:ident| $applies:expr, in $needs:expr => { $($module:ident::$name:ident,)* })*) => {
        const CASES: &[Case] = &[$($({
            fn applies($has: &Capabilities) -> bool {
                $applies
            }
            Case {
                name: stringify!($name),
                applies,
                needs: $needs,
                run: |rig| {
                    let bench = Bench { engine: rig.engine(), rig };
                    let declared = bench.engine.capabilities();
                    assert!(applies(&declared), "chosen by another declaration than {declared:?}");
                    Box::pin($module::$name(bench))
                },
            }
        },)*)*];
    };
}

cases! {
    if |has| has.mode == SubmitMode::TwoPhase, in None => {
        submission::what_is_created_does_not_run_until_it_is_started,
        submission::created_twice_under_one_tag_and_started_twice_it_runs_once,
        submission::created_and_started_by_many_at_once_it_runs_once,
        submission::started_again_after_its_end_it_does_not_run_again,
        submission::canceled_before_its_start_it_never_runs,
        submission::a_start_and_a_cancel_at_once_leave_one_truth,
        submission::canceled_after_its_end_its_finish_stands,
        submission::what_is_inert_is_listed_and_once_discarded_never_runs,
        submission::a_discard_without_an_id_removes_what_stands_under_the_tag,
        submission::a_discard_does_not_touch_what_was_started,
        submission::a_poll_of_many_answers_each_in_its_place,
        submission::what_one_instance_began_another_ends,
        submission::what_was_forgotten_never_runs_again,
        submission::an_option_it_does_not_know_is_refused_by_name,
    }
    if |has| has.mode == SubmitMode::TwoPhase, in Some(SetUp::Queue) => {
        submission::canceled_while_it_waits_it_never_runs,
    }
    if |has| has.mode == SubmitMode::TwoPhase, in Some(SetUp::Manager) => {
        trouble::what_did_not_reach_its_manager_can_be_asked_again,
        trouble::what_was_done_and_never_answered_can_be_asked_again,
    }
    if |has| has.mode == SubmitMode::Fenced, in None => {
        submission::what_is_created_does_not_run_until_it_is_started,
        submission::of_two_that_were_started_one_runs,
        submission::an_option_it_does_not_know_is_refused_by_name,
    }
    if |has| has.mode == SubmitMode::UniqueName, in None => {
        submission::what_is_created_begins_by_itself,
        submission::a_name_is_taken_once_and_one_that_is_buried_never,
        submission::an_option_it_does_not_know_is_refused_by_name,
    }
    if |has| has.mode == SubmitMode::AtMostOnce, in None => {
        submission::what_is_created_begins_by_itself,
        submission::created_twice_it_runs_twice,
        submission::an_option_it_does_not_know_is_refused_by_name,
    }
    if |has| !has.commands, in None => {
        execution::no_command_is_run,
    }
    if |has| has.commands, in None => {
        execution::a_running_job_is_seen_running_and_its_start_stays,
        execution::a_cancel_ends_the_job_and_all_it_started,
        execution::nothing_a_job_started_outlives_it,
    }
    if |has| has.commands && has.warns_on_cancel, in None => {
        execution::canceled_it_is_told_and_canceled_even_if_it_then_ends_well,
        execution::canceled_what_its_command_started_is_told_and_has_as_long_as_that_waits,
    }
    if |has| has.commands && !has.warns_on_cancel, in None => {
        execution::canceled_it_has_no_time_to_end_by_itself,
    }
    if |has| has.commands && has.exit_codes == ExitCodes::None, in None => {
        endings::a_failure_is_told_from_a_success_and_no_code_is_made_up,
    }
    if |has| has.commands && has.exit_codes == ExitCodes::Codes, in None => {
        endings::exit_codes_are_told_and_a_signal_as_one,
        endings::what_cannot_be_run_says_why,
    }
    if |has| has.commands && has.exit_codes == ExitCodes::CodesAndSignals, in None => {
        endings::exit_codes_are_told_and_signals_apart_from_them,
        endings::what_cannot_be_run_says_why,
    }
    if |has| has.commands && has.time_limits == TimeLimits::ByEngine, in None => {
        endings::a_job_runs_no_longer_than_its_time_limit,
    }
    if |has| has.commands && has.time_limits == TimeLimits::ByWatcher, in None => {
        endings::a_time_limit_is_left_to_who_watches,
    }
    if |has| has.commands && has.memory_limits == MemoryLimits::None, in None => {
        endings::a_memory_limit_nobody_holds_a_job_to_is_refused,
    }
    if |has| has.commands && has.memory_limits == MemoryLimits::Enforced, in Some(SetUp::Memory) => {
        endings::a_job_gets_no_more_memory_than_it_asked_for_and_ends_as_it_likes,
    }
    if |has| has.commands && has.memory_limits == MemoryLimits::Told, in Some(SetUp::Memory) => {
        endings::a_job_that_outgrows_the_memory_it_asked_for_says_so,
    }
    if |has| has.commands && has.logs, in None => {
        execution::arguments_arrive_verbatim,
        execution::standard_input_and_scripts_arrive_verbatim,
        execution::a_job_gets_its_own_environment_and_nothing_of_the_workers,
        execution::output_can_be_read_while_it_grows_and_its_end_is_told,
    }
    if |has| !has.logs, in None => {
        execution::nothing_that_is_printed_can_be_read,
    }
}

/// Every case for an engine that declares this, in such a set-up.
pub fn cases(declared: &Capabilities, set_up: &[SetUp]) -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(move |case| {
        (case.applies)(declared) && case.needs.is_none_or(|needs| set_up.contains(&needs))
    })
}
