//! Recording a submission: write-once, and what a loser learns.

use super::{
    Stage,
    site::{Site, new_job, submission, to_hand_back, to_record},
};
use anyhow::{Context as _, Result, ensure};
use jobgate_shared::domain::{Command, Ending, Job, JobId, JobState};
use jobgate_shared::store::{Recorded, ToRecord};
use std::time::Duration;

fn lost(outcome: Recorded) -> Result<Job> {
    match outcome {
        Recorded::Lost { current } => Ok(*current.context("the job is gone")?),
        Recorded::Won => anyhow::bail!("won"),
    }
}

/// Again with the same id (the first answer was lost): still won, whatever has happened since.
pub async fn the_first_record_wins_and_stays_won(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let job = site.claimed(worker, new_job()).await?;
    let before = site.now().await?;
    assert_eq!(site.record(&job, "a").await?, Recorded::Won);
    let pending = site.get(job.id).await?;
    assert_eq!(
        (pending.life.state, pending.life.submission.clone()),
        (JobState::Pending, Some(submission("a")))
    );
    ensure!(pending.life.submitted_at.is_some_and(|at| at >= before), "{pending:?}");
    assert_eq!(pending.life.fruitless_claims, 0);
    site.command(Command::Cancel, job.id).await?;
    let canceled = site.get(job.id).await?;
    assert_eq!(site.record(&job, "a").await?, Recorded::Won);
    assert_eq!(site.get(job.id).await?, canceled);
    assert_eq!(site.store.record(&[]).await?, []);
    site.recount().await
}

/// What the loser gets is the job as it stands, to go on from.
pub async fn a_record_is_lost_to_another_id_a_cancel_a_later_attempt_and_a_hand_back(
    stage: &dyn Stage,
) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let taken = site.claimed(worker, new_job()).await?;
    let items = [to_record(&taken, "a"), to_record(&taken, "b")];
    let outcomes = site.store.record(&items).await?;
    assert_eq!(outcomes[0], Recorded::Won);
    assert_eq!(lost(outcomes[1].clone())?.life.submission, Some(submission("a")));

    let canceled = site.claimed(worker, new_job()).await?;
    site.command(Command::Cancel, canceled.id).await?;
    let current = lost(site.record(&canceled, "a").await?)?;
    assert_eq!((current.life.state, current.life.cancel_requested), (JobState::Claimed, true));
    assert_eq!(current, site.get(canceled.id).await?);

    let first = site.ended(worker, new_job(), Ending::Failed).await?;
    site.command(Command::Retry, first.id).await?;
    site.take(worker, first.id).await?;
    let current = lost(site.record(&first, "late").await?)?;
    assert_eq!((current.life.attempt, current.life.submission), (2, None));

    let given_up = site.claimed(worker, new_job()).await?;
    site.store.hand_back(worker, &[to_hand_back(&given_up, Duration::ZERO)]).await?;
    assert_eq!(lost(site.record(&given_up, "a").await?)?.life.state, JobState::Initialized);

    let absent = ToRecord { job: JobId::generate(), attempt: 1, epoch: 1, submission: submission("a") };
    assert_eq!(site.store.record(&[absent]).await?, [Recorded::Lost { current: None }]);
    Ok(())
}

/// The heir saw that nothing was recorded and may have ended the job for that reason; and what was recorded before it was
/// adopted is won for good.
pub async fn a_zombie_records_nothing_once_its_job_is_adopted(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let (zombie, heir) = (site.worker().await?, site.worker().await?);
    let old = site.claimed(zombie, new_job()).await?;
    site.store.deregister(zombie).await?;
    let adopted = site.take(heir, old.id).await?;
    let current = lost(site.record(&old, "zombie's").await?)?;
    assert_eq!((current.life.owner, current.life.epoch), (Some(heir), 2));
    assert_eq!(site.record(&adopted, "heir's").await?, Recorded::Won);
    let current = lost(site.record(&old, "zombie's").await?)?;
    assert_eq!(current.life.submission, Some(submission("heir's")));
    site.store.deregister(heir).await?;
    site.take(site.worker().await?, old.id).await?;
    assert_eq!(site.record(&adopted, "heir's").await?, Recorded::Won);
    Ok(())
}

/// Either the record was first, and the cancel waits for the manager's word; or the cancel, and nothing is recorded.
pub async fn a_record_and_a_cancel_at_once_agree_on_who_was_first(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    for _ in 0..20 {
        let job = site.claimed(worker, new_job()).await?;
        let (recorded, commanded) =
            tokio::join!(site.record(&job, "a"), site.command(Command::Cancel, job.id));
        commanded?;
        let now = site.get(job.id).await?;
        ensure!(now.life.cancel_requested, "the cancel is gone: {now:?}");
        match recorded? {
            Recorded::Won => assert_eq!(now.life.state, JobState::Pending),
            Recorded::Lost { .. } => {
                assert_eq!((now.life.state, now.life.submission), (JobState::Claimed, None));
            }
        }
    }
    site.recount().await
}

/// While an attempt is the row's and nothing is recorded, somebody may be about to record what was found.
pub async fn leftovers_are_what_nobody_will_ever_start(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let waiting = site.in_state(worker, JobState::Initialized).await?;
    let claimed = site.in_state(worker, JobState::Claimed).await?;
    let pending = site.in_state(worker, JobState::Pending).await?;
    let ended = site.in_state(worker, JobState::Failed).await?;
    let retried = site.in_state(worker, JobState::Failed).await?;
    site.command(Command::Retry, retried.id).await?;
    let its_own = |job: &Job| job.id.to_string();
    let found = [
        (waiting.id, 1, "x".to_owned(), false),
        (claimed.id, 1, "x".to_owned(), false),
        (pending.id, 1, its_own(&pending), false),
        (pending.id, 1, "x".to_owned(), true),
        (ended.id, 1, its_own(&ended), true),
        (retried.id, 1, its_own(&retried), true),
        (retried.id, 2, "x".to_owned(), false),
        (JobId::generate(), 1, "x".to_owned(), true),
    ];
    let expected: Vec<usize> = (0..found.len()).filter(|i| found[*i].3).collect();
    let asked: Vec<_> = found.into_iter().map(|(job, attempt, id, _)| (job, attempt, id)).collect();
    assert_eq!(site.store.leftovers(&asked).await?, expected);
    assert_eq!(site.store.leftovers(&[]).await?, Vec::<usize>::new());
    Ok(())
}
