//! Applying events: forward only, in order, as often as told.

use super::{
    Stage,
    site::{Site, ended, new_job, runs, waits},
};
use anyhow::{Result, ensure};
use chrono::TimeDelta;
use futures::future::try_join_all;
use jobgate_shared::domain::{
    Command, Ending, JobId, JobState, Life, NewJob, Observation, Refusal, RetryPolicy, StatusEvent,
};
use jobgate_shared::store::Applied::{self, Advanced, Stale, Unknown};
use jobgate_shared::store::{Claimed, FeedCursor, Recorded};
use std::time::Duration;

/// A whole run in one batch, and two jobs' events mixed.
pub async fn events_of_one_batch_apply_in_order(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let (one, two) = (site.pending(worker, new_job()).await?, site.pending(worker, new_job()).await?);
    let at = site.now().await?;
    let later = |seconds| at + TimeDelta::seconds(seconds);
    let batch = [
        Site::event(&one, 1, waits(Some("priority")), later(1)),
        Site::event(&two, 1, runs(), later(1)),
        Site::event(&one, 2, runs(), later(2)),
        Site::event(&one, 3, ended(Ending::Finished), later(3)),
        Site::event(&two, 2, waits(None), later(2)),
        Site::event(&two, 3, ended(Ending::Failed), later(4)),
        Site::event(&one, 4, ended(Ending::Failed), later(5)),
    ];
    let outcomes = site.store.apply(&batch).await?;
    assert_eq!(outcomes, [Advanced, Advanced, Advanced, Advanced, Stale, Advanced, Stale]);
    let one = site.get(one.id).await?.life;
    assert_eq!(
        (one.state, one.started_at, one.finished_at),
        (JobState::Finished, Some(later(2)), Some(later(3)))
    );
    let two = site.get(two.id).await?.life;
    assert_eq!((two.state, two.exit_code, two.started_at), (JobState::Failed, Some(3), Some(later(1))));
    assert_eq!(site.store.apply(&[]).await?, []);
    site.recount().await
}

/// Level-triggered watching repeats itself until the row agrees.
pub async fn events_told_again_change_nothing(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let job = site.pending(worker, new_job()).await?;
    let at = site.now().await?;
    let batch = [Site::event(&job, 1, waits(Some("priority")), at), Site::event(&job, 2, runs(), at)];
    assert_eq!(site.store.apply(&batch).await?, [Applied::Advanced; 2]);
    let once = site.get(job.id).await?;
    assert_eq!(site.store.apply(&batch).await?, [Applied::Stale, Applied::Duplicate]);
    assert_eq!(site.get(job.id).await?, once);
    let end = [Site::event(&job, 3, ended(Ending::Canceled), at)];
    assert_eq!(site.store.apply(&end).await?, [Applied::Advanced]);
    let over = site.get(job.id).await?;
    assert_eq!(site.store.apply(&end).await?, [Applied::Duplicate]);
    assert_eq!(site.get(job.id).await?, over);
    site.recount().await
}

/// Two of a kind, each with what becomes of it: one is told in order, the other many times in any order.
pub async fn a_flood_of_shuffled_and_repeated_events_ends_where_the_ordered_ones_do(
    stage: &dyn Stage,
) -> Result<()> {
    const PAIRS: usize = 60;
    const TIMES: usize = 10;
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let ends = [Ending::Finished, Ending::Failed, Ending::Canceled, Ending::TimedOut, Ending::Lost];
    let (mut ordered, mut flood, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    let mut twins = Vec::new();
    for _ in 0..PAIRS {
        twins.push([site.pending(worker, new_job()).await?, site.pending(worker, new_job()).await?]);
    }
    // After the last submission: nothing begins before it was submitted, which differs between twins.
    let at = site.now().await?;
    for (pair, twins) in twins.into_iter().enumerate() {
        let began = at + TimeDelta::seconds(3);
        let end = Observation::Ended {
            ending: ends[pair % ends.len()],
            exit_code: i32::try_from(pair).ok(),
            reason: Some(format!("end {pair}")),
            began: Some(began),
            at: Some(at + TimeDelta::seconds(9)),
        };
        let running = Observation::Running { since: Some(began), reason: None };
        // Some are still waiting or running when all is told.
        let told = [waits(Some("priority")), waits(None), running.clone(), running, end];
        let told = &told[..=pair % told.len()];
        for ((seq, observation), seconds) in (1..).zip(told).zip(1..) {
            let at = at + TimeDelta::seconds(seconds);
            let [one, other] =
                [&twins[0], &twins[1]].map(|job| Site::event(job, seq, observation.clone(), at));
            ordered.push(one);
            flood.extend(std::iter::repeat_n(other, TIMES));
        }
        pairs.push(twins.map(|job| job.id));
    }
    // Any order will do, as long as it is the same each time.
    let mut places: Vec<usize> = (0..flood.len()).collect();
    places.sort_by_key(|place| place.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17));
    site.store.apply(&ordered).await?;
    let shuffled: Vec<StatusEvent> = places.into_iter().map(|place| flood[place].clone()).collect();
    // Two recorders at once, as there may be.
    let (one, other) = shuffled.split_at(shuffled.len() / 2);
    let half = async |events: &[StatusEvent]| -> Result<()> {
        for batch in events.chunks(97) {
            site.store.apply(batch).await?;
        }
        Ok(())
    };
    futures::try_join!(half(one), half(other))?;
    for [one, other] in pairs {
        let [one, other] = [site.get(one).await?.life, site.get(other).await?.life];
        // What is told twice is not written down again, so an older word may come to stand while the job goes on.
        let shown = |life: &Life| {
            let reason = life.reason.clone().filter(|_| life.state.is_terminal());
            (life.state, reason, life.exit_code, life.started_at, life.finished_at)
        };
        assert_eq!(shown(&other), shown(&one));
    }
    site.recount().await
}

/// A former attempt, a foreign submission, a job that is not there.
pub async fn events_of_what_is_over_are_stale(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let first = site.ended(worker, new_job(), Ending::Failed).await?;
    site.command(Command::Retry, first.id).await?;
    let at = site.now().await?;
    let waiting = Site::event(&first, 9, ended(Ending::Finished), at);
    assert_eq!(site.store.apply(&[waiting]).await?, [Applied::Stale]);
    let second = site.take(worker, first.id).await?;
    assert_eq!(site.record(&second, "second").await?, Recorded::Won);
    let second = site.get(first.id).await?;
    let foreign = StatusEvent { submission: Some("?".into()), ..Site::event(&second, 1, runs(), at) };
    let unsubmitted = StatusEvent { submission: None, ..Site::event(&second, 1, ended(Ending::Failed), at) };
    let unknown = StatusEvent { job: JobId::generate(), ..Site::event(&second, 1, runs(), at) };
    let batch = [Site::event(&first, 9, ended(Ending::Finished), at), foreign, unsubmitted, unknown];
    assert_eq!(site.store.apply(&batch).await?, [Stale, Stale, Stale, Unknown]);
    assert_eq!(site.get(second.id).await?, second);
    Ok(())
}

/// What a former owner saw to its end is true; that it sees nothing any more is not.
pub async fn an_older_claims_end_counts_but_not_its_lost(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let (first, second) = (site.worker().await?, site.worker().await?);
    let old = site.running(first, new_job()).await?;
    let gone = site.running(first, new_job()).await?;
    site.store.deregister(first).await?;
    for job in [&old, &gone] {
        site.take(second, job.id).await?;
        assert_eq!(site.tell(job, 5, ended(Ending::Lost)).await?, Applied::Stale);
        assert_eq!(site.tell(job, 6, waits(None)).await?, Applied::Stale);
    }
    assert_eq!(site.tell(&old, 7, ended(Ending::Finished)).await?, Applied::Advanced);
    let now = site.get(old.id).await?.life;
    assert_eq!((now.state, now.owner), (JobState::Finished, Some(second)));
    let gone = site.get(gone.id).await?;
    assert_eq!(site.tell(&gone, 1, ended(Ending::Lost)).await?, Applied::Advanced);
    site.recount().await
}

/// In the same step, so nobody sees a passing failure; not for a cancel, not after the last attempt.
pub async fn a_failed_attempt_is_followed_by_another_after_its_back_off(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let back_off = Duration::from_secs(1);
    let retry = RetryPolicy { backoff_seconds: 1, ..RetryPolicy::default() };
    let new = NewJob { max_attempts: 2, retry, ..new_job() };
    let job = site.running(worker, new.clone()).await?;
    let before = site.now().await?;
    assert_eq!(site.tell(&job, 2, ended(Ending::Failed)).await?, Applied::Advanced);
    let again = site.get(job.id).await?.life;
    assert_eq!((again.state, again.attempt, again.epoch, again.owner), (JobState::Initialized, 2, 1, None));
    assert_eq!((again.submission, again.claimed_at, again.exit_code), (None, None, None));
    ensure!(again.due_at >= before + back_off, "due at {} after {before}", again.due_at);
    ensure!(again.reason.is_some_and(|why| why.contains("attempt 1 of 2")), "no reason");
    assert_eq!(site.claim(worker, &[job.id]).await?, [Claimed::Refused(Refusal::NotDue)]);
    assert_eq!(site.tell(&job, 2, ended(Ending::Failed)).await?, Applied::Stale);
    site.pass(back_off).await;
    let job = site.take(worker, job.id).await?;
    assert_eq!(job.life.epoch, 2);
    assert_eq!(site.record(&job, "b").await?, Recorded::Won);
    let job = site.get(job.id).await?;
    assert_eq!(site.tell(&job, 1, ended(Ending::TimedOut)).await?, Applied::Advanced);
    assert_eq!(site.get(job.id).await?.life.state, JobState::TimedOut);

    let canceled = site.running(worker, NewJob { id: JobId::generate(), ..new }).await?;
    site.command(Command::Cancel, canceled.id).await?;
    assert_eq!(site.tell(&canceled, 2, ended(Ending::Failed)).await?, Applied::Advanced);
    assert_eq!(site.get(canceled.id).await?.life.state, JobState::Failed);
    site.recount().await
}

/// Recorders share a queue, and a redelivery can reach two of them.
pub async fn recorders_that_apply_the_same_events_at_once_apply_each_once(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let at = site.now().await?;
    let mut batch = Vec::new();
    for _ in 0..20 {
        let job = site.pending(worker, new_job()).await?;
        batch.push(Site::event(&job, 1, runs(), at));
        batch.push(Site::event(&job, 2, ended(Ending::Finished), at));
    }
    let recorders = (0..4).map(|n| {
        let store = site.store.clone();
        let mut batch = batch.clone();
        // Each in its own order of jobs; the events of one job stay in theirs.
        batch.rotate_left(n * 10);
        async move { store.apply(&batch).await }
    });
    let outcomes: Vec<Applied> = try_join_all(recorders).await?.into_iter().flatten().collect();
    let advanced = outcomes.iter().filter(|outcome| **outcome == Applied::Advanced).count();
    assert_eq!(advanced, 40);
    ensure!(!outcomes.contains(&Applied::Unknown), "a job is gone");
    // Accepted, claimed, recorded, begun and finished: once each.
    let told = site.changes(FeedCursor::default(), 100, 7).await?;
    let finished = told.iter().filter(|(_, change)| change.entry.to == JobState::Finished).count();
    assert_eq!((told.len(), finished), (100, 20));
    site.recount().await
}

/// A user cancels while the manager tells the end: the end wins if it was first, the request is kept if not.
pub async fn a_cancel_racing_events_is_carried_out_or_overtaken(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    for ending in [Ending::Finished, Ending::Canceled].repeat(10) {
        let job = site.running(worker, new_job()).await?;
        let (applied, commanded) =
            tokio::join!(site.tell(&job, 2, ended(ending)), site.command(Command::Cancel, job.id));
        assert_eq!(applied?, Applied::Advanced);
        commanded?;
        let life = site.get(job.id).await?.life;
        ensure!(life.state.is_terminal() && !life.cancel_requested, "{life:?}");
    }
    // Moving on does not forget a cancel.
    for _ in 0..20 {
        let job = site.pending(worker, new_job()).await?;
        let (applied, commanded) =
            tokio::join!(site.tell(&job, 1, runs()), site.command(Command::Cancel, job.id));
        assert_eq!(applied?, Applied::Advanced);
        commanded?;
        let life = site.get(job.id).await?.life;
        assert_eq!((life.state, life.cancel_requested), (JobState::Running, true));
    }
    site.recount().await
}
