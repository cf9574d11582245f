//! What every store must do, one case per sentence of the contract. Each adapter's tests run all of them through
//! [`store_conformance!`](crate::store_conformance).
//!
//! A case begins with an empty store. Nothing here waits for a time to pass, except where a lease, a hint or a back-off
//! itself is what is tested; there the stage lets it pass.

#![allow(clippy::missing_errors_doc, reason = "every case fails when the store does not keep its contract")]

pub mod accepting;
pub mod applying;
pub mod claiming;
pub mod commanding;
pub mod counting;
pub mod hinting;
pub mod leasing;
pub mod listing;
pub mod recording;
pub mod reporting;
pub mod retiring;
pub mod settling;
mod site;
pub mod telling;

use async_trait::async_trait;
use jobgate_shared::store::FullStore;
use std::{sync::Arc, time::Duration};

/// An empty store and its clock.
#[async_trait]
pub trait Stage: Send + Sync {
    /// The store.
    fn store(&self) -> Arc<dyn FullStore>;

    /// Returns when so much time has passed by the store's clock.
    async fn pass(&self, by: Duration);

    /// Closes the store.
    async fn close(&self);
}

/// Makes a test of every case. `$make` is an expression of an async closure that gives `anyhow::Result<impl Stage>`.
#[macro_export]
macro_rules! store_conformance {
    ($make:expr) => {
        $crate::store_conformance!(@ $make, accepting;
            a_job_reads_back_as_it_was_accepted,
            a_job_is_due_when_it_asked_to_be_and_never_before_now,
            a_replayed_insert_stores_nothing_twice,
            a_known_key_gives_its_job_for_the_same_body_and_refuses_another,
            a_key_belongs_to_its_project,
            twin_keys_in_one_batch_make_one_job,
            twin_keys_posted_at_once_make_one_job,
            a_key_lives_as_long_as_its_job,
            a_refused_batch_leaves_nothing_behind,
        );
        $crate::store_conformance!(@ $make, claiming;
            a_fresh_job_is_granted_to_who_asks,
            a_claim_is_refused_for_what_the_row_says,
            a_paused_cluster_grants_nothing_fresh_until_it_is_resumed,
            a_limited_cluster_grants_no_more_than_its_limit,
            claims_made_at_once_take_no_more_than_the_limit,
            a_worker_without_a_lease_is_granted_nothing,
            a_replayed_claim_gives_the_same_claim_again,
            a_worker_holds_what_it_was_granted_until_it_is_given_up_ended_or_adopted,
            what_is_in_given_hands_is_told_by_cluster_and_in_pages,
            what_is_in_given_hands_ends_with_the_job_that_fills_a_page,
            an_id_named_twice_is_granted_under_one_claim,
            a_dead_workers_jobs_are_adopted_as_they_are,
            a_lease_that_ran_out_frees_its_jobs,
            what_was_handed_back_can_be_adopted_while_its_worker_lives,
            a_submission_is_adopted_only_inside_its_reach,
            what_may_kill_workers_is_granted_alone_and_given_up_at_last,
            eight_claimers_of_the_same_jobs_are_granted_each_once,
        );
        $crate::store_conformance!(@ $make, recording;
            the_first_record_wins_and_stays_won,
            a_record_is_lost_to_another_id_a_cancel_a_later_attempt_and_a_hand_back,
            a_zombie_records_nothing_once_its_job_is_adopted,
            a_record_and_a_cancel_at_once_agree_on_who_was_first,
            leftovers_are_what_nobody_will_ever_start,
        );
        $crate::store_conformance!(@ $make, applying;
            events_of_one_batch_apply_in_order,
            events_told_again_change_nothing,
            a_flood_of_shuffled_and_repeated_events_ends_where_the_ordered_ones_do,
            events_of_what_is_over_are_stale,
            an_older_claims_end_counts_but_not_its_lost,
            a_failed_attempt_is_followed_by_another_after_its_back_off,
            recorders_that_apply_the_same_events_at_once_apply_each_once,
            a_cancel_racing_events_is_carried_out_or_overtaken,
        );
        $crate::store_conformance!(@ $make, commanding;
            a_command_does_what_the_transition_says_in_every_state,
            a_command_names_who_should_be_nudged,
            commands_on_many_jobs_answer_each,
            a_patch_changes_what_it_names,
        );
        $crate::store_conformance!(@ $make, reporting;
            a_report_is_taken_as_the_rule_says_in_every_state,
            a_late_report_moves_nothing_backwards,
            what_an_attempt_told_is_not_told_of_the_next,
            reports_told_at_once_are_all_kept,
            a_foreign_job_takes_no_report,
        );
        $crate::store_conformance!(@ $make, leasing;
            a_heartbeat_tells_its_worker_what_is_to_be_cancelled,
            a_heartbeat_settles_what_the_row_agrees_with,
            a_lease_runs_from_its_last_heartbeat,
            a_lease_that_ended_is_never_renewed,
            workers_are_shown_as_they_last_told,
            who_serves_a_cluster_is_counted_while_its_lease_runs,
            handing_back_gives_up_only_what_is_still_ones_own,
            every_lease_can_be_ended_at_once,
        );
        $crate::store_conformance!(@ $make, hinting;
            due_jobs_come_by_priority_then_age_and_only_once,
            what_is_held_claimed_or_not_yet_due_is_not_hinted,
            a_hint_that_ran_out_is_given_again_after_a_while,
            a_hint_taken_back_is_given_again_at_once,
            a_hint_is_forgotten_with_the_claim_it_led_to,
            a_job_hinted_by_its_acceptance_waits_like_any_hinted,
            dispatchers_at_once_hint_each_job_once,
            the_jobs_of_the_dead_and_of_nobody_are_stranded,
            a_stranded_job_is_told_once_a_hint,
            a_stranded_jobs_hint_is_its_own,
            a_job_nobody_can_reach_says_so_and_is_given_up_in_time,
        );
        $crate::store_conformance!(@ $make, listing;
            a_foreign_job_is_absent_everywhere,
            pages_of_any_size_make_up_the_whole_list,
            a_page_of_heavy_jobs_ends_with_the_one_that_fills_it,
            a_filter_means_what_it_says_for_every_scope,
            new_arrivals_do_not_disturb_a_walk,
            histories_tell_every_turn_of_a_life,
        );
        $crate::store_conformance!(@ $make, counting;
            depths_equal_a_recount_after_a_busy_run,
            the_oldest_due_job_of_each_queue_is_known,
        );
        $crate::store_conformance!(@ $make, telling;
            the_feed_tells_every_change_once_and_in_order,
            the_feed_can_be_resumed_at_any_cursor,
            a_reader_that_follows_busy_writers_misses_nothing,
            a_cursor_older_than_what_is_kept_shows_a_gap,
            a_cursor_from_beyond_the_last_batch_shows_a_gap,
        );
        $crate::store_conformance!(@ $make, retiring;
            only_an_ended_job_can_be_removed,
            old_jobs_are_retired_a_few_at_a_time,
            which_jobs_there_are_is_told_of_many_at_once,
        );
        $crate::store_conformance!(@ $make, settling;
            a_token_is_found_listed_and_revoked,
            a_cluster_setting_tells_who_set_it,
            the_store_answers_and_has_a_clock,
        );
    };
    (@ $make:expr, $group:ident; $($case:ident),* $(,)?) => {
        mod $group {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() -> anyhow::Result<()> {
                    let stage = ($make)().await?;
                    let outcome = $crate::store::$group::$case(&stage).await;
                    $crate::store::Stage::close(&stage).await;
                    outcome
                }
            )*
        }
    };
}
