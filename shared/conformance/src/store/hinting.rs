//! Hints: which jobs are offered to workers, in which order, and how often.

use super::{
    Stage,
    site::{LONG, Site, cluster, new_job, serves, submission, to_hand_back},
};
use anyhow::{Result, ensure};
use chrono::TimeDelta;
use futures::future::try_join_all;
use jobgate_shared::domain::{Command, Job, JobId, JobState, NewJob, Reach, SUSPECT_AFTER, WorkerId};
use jobgate_shared::store::Applied::{self, Advanced, Duplicate, Stale};
use jobgate_shared::store::{Due, Hinted, Patch, Scope, ToRecord, Vanished};
use std::{collections::BTreeSet, time::Duration};

/// A hint short enough to be waited for.
const SHORT: Duration = Duration::from_secs(1);

async fn due(site: &Site<'_>, limit: u32) -> Result<Vec<JobId>> {
    let due = site.store.due(&cluster("local"), limit, LONG, Duration::ZERO).await?;
    Ok(due.into_iter().map(|due| due.job).collect())
}

async fn outstanding(site: &Site<'_>) -> Result<Vec<(String, u64, u64)>> {
    let line = |h: Hinted| (h.cluster.to_string(), h.outstanding, h.expired);
    let mut hinted: Vec<_> = site.store.outstanding().await?.into_iter().map(line).collect();
    hinted.sort();
    Ok(hinted)
}

/// The most urgent first, among equals the longest due, and never the same again while its hint is out.
pub async fn due_jobs_come_by_priority_then_age_and_only_once(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let low = site.accept(NewJob { priority: -5, ..new_job() }).await?;
    let middle = site.accept_many(3).await?;
    let high = site.accept(NewJob { priority: 5, ..new_job() }).await?;
    let raised = site.accept(new_job()).await?;
    site.store.patch(&Scope::All, raised.id, &Patch { priority: Some(9), ..Patch::default() }).await?;
    site.accept(NewJob { cluster: cluster("slurm-a"), ..new_job() }).await?;
    assert_eq!(outstanding(&site).await?, [("local".into(), 0, 0), ("slurm-a".into(), 0, 0)]);
    let before = site.now().await?;
    let first = site.store.due(&cluster("local"), 2, LONG, Duration::ZERO).await?;
    assert_eq!([first[0].job, first[1].job], [raised.id, high.id]);
    ensure!(first.iter().all(|due| !due.suspect && !due.again), "{first:?}");
    let waited = TimeDelta::from_std(first[0].waited)?;
    ensure!(waited >= before - raised.life.due_at, "{first:?}");
    assert_eq!(outstanding(&site).await?[0], ("local".into(), 2, 0));
    let mut rest = middle;
    rest.push(low.id);
    assert_eq!(due(&site, 100).await?, rest);
    assert_eq!(due(&site, 100).await?, []);
    assert_eq!(outstanding(&site).await?, [("local".into(), 6, 0), ("slurm-a".into(), 0, 0)]);
    Ok(())
}

/// Nor what has ended; a release makes it due.
pub async fn what_is_held_claimed_or_not_yet_due_is_not_hinted(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let states = [JobState::Claimed, JobState::Pending, JobState::Running, JobState::Failed];
    for state in states {
        site.in_state(worker, state).await?;
    }
    let held = site.in_state(worker, JobState::Held).await?;
    let soon = site.now().await? + SHORT;
    let later = site.accept(NewJob { run_at: Some(soon), ..new_job() }).await?;
    assert_eq!(due(&site, 100).await?, []);
    assert_eq!(outstanding(&site).await?, []);
    assert_eq!(site.store.oldest().await?, []);
    site.pass(SHORT).await;
    assert_eq!(due(&site, 100).await?, [later.id]);
    site.command(Command::Release, held.id).await?;
    assert_eq!(due(&site, 100).await?, [held.id]);
    site.command(Command::Hold, later.id).await?;
    site.command(Command::Release, later.id).await?;
    assert_eq!(due(&site, 100).await?, [later.id]);
    Ok(())
}

/// Once it ran out it counts as such, is left alone for `again_after`, and then comes as a second hint.
pub async fn a_hint_that_ran_out_is_given_again_after_a_while(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let local = cluster("local");
    let job = site.accept(new_job()).await?;
    let first = site.store.due(&local, 10, SHORT, LONG).await?;
    ensure!(first.len() == 1 && !first[0].again, "{first:?}");
    site.pass(SHORT).await;
    assert_eq!(outstanding(&site).await?, [("local".into(), 0, 1)]);
    assert_eq!(site.store.due(&local, 10, SHORT, LONG).await?, []);
    let again = site.store.due(&local, 10, LONG, Duration::ZERO).await?;
    ensure!(again.len() == 1 && again[0].again && again[0].job == job.id, "{again:?}");
    ensure!(again[0].waited >= SHORT, "{again:?}");
    assert_eq!(outstanding(&site).await?, [("local".into(), 1, 0)]);
    Ok(())
}

/// The broker did not take it.
pub async fn a_hint_taken_back_is_given_again_at_once(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let jobs = site.accept_many(3).await?;
    assert_eq!(due(&site, 10).await?, jobs);
    site.store.unhint(&[jobs[2], JobId::generate(), jobs[0]]).await?;
    assert_eq!(outstanding(&site).await?, [("local".into(), 1, 0)]);
    let again = site.store.due(&cluster("local"), 10, LONG, LONG).await?;
    assert_eq!(
        again.iter().map(|due| (due.job, due.again)).collect::<Vec<_>>(),
        [(jobs[0], false), (jobs[2], false)]
    );
    Ok(())
}

/// What waits again waits unhinted; what waits for another attempt too.
pub async fn a_hint_is_forgotten_with_the_claim_it_led_to(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let jobs = site.accept_many(2).await?;
    assert_eq!(due(&site, 10).await?, jobs);
    let claimed = site.take(worker, jobs[0]).await?;
    assert_eq!(outstanding(&site).await?, [("local".into(), 1, 0)]);
    site.store.hand_back(worker, &[to_hand_back(&claimed, Duration::ZERO)]).await?;
    assert_eq!(outstanding(&site).await?, [("local".into(), 1, 0)]);
    let again = site.store.due(&cluster("local"), 10, LONG, LONG).await?;
    assert_eq!(again.iter().map(|due| (due.job, due.again)).collect::<Vec<_>>(), [(jobs[0], false)]);
    let running = site.take(worker, jobs[1]).await?;
    site.command(Command::Cancel, jobs[1]).await?;
    site.store.hand_back(worker, &[to_hand_back(&running, Duration::ZERO)]).await?;
    site.command(Command::Retry, jobs[1]).await?;
    assert_eq!(due(&site, 10).await?, [jobs[1]]);
    Ok(())
}

/// Whoever accepts a job hints it; one that is not due yet is left to the dispatcher.
pub async fn a_job_hinted_by_its_acceptance_waits_like_any_hinted(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let soon = site.now().await? + SHORT;
    let later = NewJob { run_at: Some(soon), ..new_job() };
    let new = [new_job(), NewJob { hold: true, ..new_job() }, later];
    site.store.insert(&new, Some(LONG)).await?;
    assert_eq!(outstanding(&site).await?, [("local".into(), 1, 0)]);
    assert_eq!(due(&site, 10).await?, []);
    site.store.insert(&[new_job()], Some(SHORT)).await?;
    site.pass(SHORT).await;
    let mut hinted = due(&site, 10).await?;
    hinted.retain(|job| *job != new[2].id);
    ensure!(hinted.len() == 1 && hinted[0] != new[0].id && hinted[0] != new[1].id, "{hinted:?}");
    site.command(Command::Release, new[1].id).await?;
    assert_eq!(due(&site, 10).await?, [new[1].id]);
    Ok(())
}

/// Every instance runs a dispatcher.
pub async fn dispatchers_at_once_hint_each_job_once(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let jobs: BTreeSet<JobId> = site.accept_many(200).await?.into_iter().collect();
    let dispatchers = (0..4).map(|_| {
        let store = site.store.clone();
        async move {
            let mut hinted: Vec<Due> = Vec::new();
            for _ in 0..10 {
                hinted.extend(store.due(&cluster("local"), 20, LONG, Duration::ZERO).await?);
            }
            anyhow::Ok(hinted)
        }
    });
    let hinted: Vec<JobId> =
        try_join_all(dispatchers).await?.into_iter().flatten().map(|due| due.job).collect();
    assert_eq!((hinted.len(), hinted.into_iter().collect::<BTreeSet<_>>()), (200, jobs));
    assert_eq!(outstanding(&site).await?, [("local".into(), 200, 0)]);
    Ok(())
}

type Group = (String, Option<Reach>, WorkerId, BTreeSet<(JobId, bool)>);

async fn stranded(site: &Site<'_>, dead: &[WorkerId], hint_for: Duration) -> Result<BTreeSet<Group>> {
    let groups = site.store.stranded(dead, 100, hint_for).await?.into_iter().map(|group| {
        let jobs = group.jobs.iter().map(|job| (job.job, job.suspect)).collect();
        (group.cluster.to_string(), group.reach, group.owner, jobs)
    });
    Ok(groups.collect())
}

/// Grouped by where they can be adopted and who had them; a living worker's jobs are not among them.
pub async fn the_jobs_of_the_dead_and_of_nobody_are_stranded(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let (dead, alive) = (site.worker().await?, site.worker().await?);
    let claimed = site.claimed(dead, new_job()).await?;
    let slurm = site.pending(dead, NewJob { cluster: cluster("slurm-a"), ..new_job() }).await?;
    let bound = site.claimed(dead, new_job()).await?;
    let mut made = submission("1");
    made.reach = Some(Reach("host-a".into()));
    site.store.record(&[ToRecord { job: bound.id, attempt: 1, epoch: 1, submission: made.clone() }]).await?;
    let handed_back = site.running(alive, new_job()).await?;
    site.store.hand_back(alive, &[to_hand_back(&handed_back, Duration::ZERO)]).await?;
    let suspect = site.accept(new_job()).await?;
    for _ in 1..SUSPECT_AFTER {
        let killed = site.worker().await?;
        site.take(killed, suspect.id).await?;
        site.store.deregister(killed).await?;
    }
    site.take(dead, suspect.id).await?;
    site.ended(dead, new_job(), jobgate_shared::domain::Ending::Failed).await?;
    site.running(alive, new_job()).await?;
    site.store.deregister(dead).await?;
    let groups = stranded(&site, &[dead], LONG).await?;
    let local = "local".to_owned();
    let expected: BTreeSet<Group> = [
        (local.clone(), None, dead, [(claimed.id, false), (suspect.id, true)].into()),
        (local.clone(), made.reach, dead, [(bound.id, false)].into()),
        ("slurm-a".to_owned(), None, dead, [(slurm.id, false)].into()),
        (local, None, WorkerId::NOBODY, [(handed_back.id, false)].into()),
    ]
    .into();
    assert_eq!(groups, expected);
    assert_eq!(due(&site, 10).await?, []);
    Ok(())
}

/// Not again while its hint is out; again when it has run out, was taken back, or the adopter died too.
pub async fn a_stranded_job_is_told_once_a_hint(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let first = site.worker().await?;
    let job = site.pending(first, new_job()).await?;
    site.store.deregister(first).await?;
    let group = |owner| [("local".to_owned(), None, owner, [(job.id, false)].into())].into();
    assert_eq!(stranded(&site, &[first], SHORT).await?, group(first));
    assert_eq!(stranded(&site, &[first], SHORT).await?, [].into());
    site.pass(SHORT).await;
    assert_eq!(stranded(&site, &[first], LONG).await?, group(first));
    assert_eq!(stranded(&site, &[first], LONG).await?, [].into());
    site.store.unhint(&[job.id]).await?;
    assert_eq!(stranded(&site, &[first], LONG).await?, group(first));
    let second = site.worker().await?;
    let adopted = site.take(second, job.id).await?;
    assert_eq!(stranded(&site, &[first], LONG).await?, [].into());
    site.store.hand_back(second, &[to_hand_back(&adopted, Duration::ZERO)]).await?;
    assert_eq!(stranded(&site, &[], LONG).await?, group(WorkerId::NOBODY));
    let third = site.worker().await?;
    site.take(third, job.id).await?;
    site.store.deregister(third).await?;
    assert_eq!(stranded(&site, &[first, second, third], LONG).await?, group(third));
    Ok(())
}

/// Though they were claimed together.
pub async fn a_stranded_jobs_hint_is_its_own(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let jobs = site.accept_many(2).await?;
    site.claim(worker, &jobs).await?;
    site.store.deregister(worker).await?;
    let mut told = Vec::new();
    for hint_for in [SHORT, LONG] {
        let one = site.store.stranded(&[worker], 1, hint_for).await?;
        told.extend(one.into_iter().flat_map(|group| group.jobs).map(|stranded| stranded.job));
    }
    assert_eq!(told.iter().copied().collect::<BTreeSet<_>>(), jobs.into_iter().collect());
    site.pass(SHORT).await;
    let again = [("local".to_owned(), None, worker, [(told[0], false)].into())].into();
    assert_eq!(stranded(&site, &[worker], LONG).await?, again);
    Ok(())
}

/// It waits for the reason that nobody is there, and is lost after long enough; one adopted meanwhile is left alone.
pub async fn a_job_nobody_can_reach_says_so_and_is_given_up_in_time(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let mut jobs = Vec::new();
    for id in ["1", "2", "3"] {
        let job = site.claimed(worker, new_job()).await?;
        let mut made = submission(id);
        made.reach = Some(Reach("host-a".into()));
        site.store.record(&[ToRecord { job: job.id, attempt: 1, epoch: 1, submission: made }]).await?;
        jobs.push(site.get(job.id).await?);
    }
    let anywhere = site.pending(worker, new_job()).await?;
    let since = site.now().await? - TimeDelta::hours(2);
    let gone = |job: &Job| Vanished { job: job.id, since };
    let too_early = [gone(&jobs[0]), Vanished { job: JobId::generate(), since }];
    assert_eq!(site.store.vanished(&too_early, None).await?, [Applied::Stale, Applied::Unknown]);
    site.store.deregister(worker).await?;
    let second = site.register(serves(Some("host-a")), LONG).await?;
    site.store.claim(second, &serves(Some("host-a")), &[jobs[2].id]).await?;
    let adopted = site.get(jobs[2].id).await?;
    let all = [gone(&jobs[0]), gone(&jobs[1]), gone(&jobs[2]), gone(&anywhere)];
    let patient = Some(Duration::from_hours(3));
    assert_eq!(site.store.vanished(&all, patient).await?, [Advanced, Advanced, Stale, Stale]);
    let told = site.get(jobs[0].id).await?.life;
    ensure!(
        told.state == JobState::Pending && told.reason.is_some_and(|why| why.contains("host-a")),
        "untold"
    );
    assert_eq!(site.store.vanished(&all[..2], patient).await?, [Duplicate, Duplicate]);
    assert_eq!(
        site.store.vanished(&all[1..], Some(Duration::from_hours(1))).await?,
        [Advanced, Stale, Stale]
    );
    assert_eq!(site.get(jobs[1].id).await?.life.state, JobState::Lost);
    assert_eq!(site.get(adopted.id).await?, adopted);
    assert_eq!(site.get(anywhere.id).await?, anywhere);
    site.recount().await
}
