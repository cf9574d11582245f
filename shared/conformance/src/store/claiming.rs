//! Claiming: who is granted what, and what the row says to everybody else.

use super::{
    Stage,
    site::{
        LONG, Site, cluster, ended, granted, heavy_by_its_text, heavy_when_parsed, new_job, serves,
        submission, to_hand_back,
    },
};
use anyhow::{Result, ensure};
use chrono::TimeDelta;
use futures::future::try_join_all;
use jobgate_shared::domain::{
    Command, Ending, Job, JobId, JobState, NewJob, POISON_LIMIT, Reach, Refusal, SUSPECT_AFTER, WorkerId,
};
use jobgate_shared::store::{Applied, Claimed, Filter, PAGE_BYTES, Recorded, Scope, ToRecord};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

fn refused(refusal: Refusal) -> Vec<Claimed> {
    vec![Claimed::Refused(refusal)]
}

/// The grant carries the whole job, with its life under the new claim.
pub async fn a_fresh_job_is_granted_to_who_asks(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let jobs = site.accept_many(3).await?;
    let before = site.now().await?;
    let claimed = site.claim(worker, &jobs).await?;
    let after = site.now().await?;
    for (id, outcome) in jobs.iter().zip(claimed) {
        let job = granted(outcome)?;
        let life = &job.life;
        assert_eq!((job.id, life.state, life.owner), (*id, JobState::Claimed, Some(worker)));
        assert_eq!((life.attempt, life.epoch, life.fruitless_claims), (1, 1, 1));
        ensure!(life.claimed_at.is_some_and(|at| before <= at && at <= after), "{life:?}");
        assert_eq!(site.get(*id).await?, job);
    }
    site.recount().await
}

/// One outcome for each id, in order: granted, refused with the reason, absent.
pub async fn a_claim_is_refused_for_what_the_row_says(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let (worker, other) = (site.worker().await?, site.worker().await?);
    let fresh = site.accept(new_job()).await?;
    let later = site.now().await? + TimeDelta::hours(1);
    let not_due = site.accept(NewJob { run_at: Some(later), ..new_job() }).await?;
    let held = site.in_state(other, JobState::Held).await?;
    let owned = site.in_state(other, JobState::Running).await?;
    let ended = site.in_state(other, JobState::Canceled).await?;
    let unserved = site.accept(NewJob { cluster: cluster("elsewhere"), ..new_job() }).await?;
    let jobs = [held.id, not_due.id, fresh.id, owned.id, JobId::generate(), ended.id, unserved.id].to_vec();
    let mut claimed = site.claim(worker, &jobs).await?;
    assert_eq!(granted(claimed.remove(2))?.id, fresh.id);
    let refusals = [Refusal::Held, Refusal::NotDue, Refusal::Owned];
    assert_eq!(claimed[..3], refusals.map(Claimed::Refused));
    assert_eq!(
        claimed[3..],
        [Claimed::Absent, Claimed::Refused(Refusal::Ended), Claimed::Refused(Refusal::OutOfReach)]
    );
    assert_eq!(site.store.claim(worker, &serves(None), &[]).await?, []);
    Ok(())
}

/// A pause stops fresh work only; a hand that has a job keeps it.
pub async fn a_paused_cluster_grants_nothing_fresh_until_it_is_resumed(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let (first, second) = (site.worker().await?, site.worker().await?);
    let local = site.accept(new_job()).await?;
    let slurm = site.accept(NewJob { cluster: cluster("slurm-a"), ..new_job() }).await?;
    let begun = site.pending(first, new_job()).await?;
    site.store.set_paused(&cluster("local"), true, "token:op").await?;
    site.store.deregister(first).await?;
    let claimed = site.claim(second, &[local.id, slurm.id, begun.id]).await?;
    assert_eq!(claimed[0], Claimed::Refused(Refusal::Paused));
    assert_eq!(granted(claimed[1].clone())?.id, slurm.id);
    assert_eq!(granted(claimed[2].clone())?.life.state, JobState::Pending);
    site.store.set_paused(&cluster("local"), false, "token:op").await?;
    site.take(second, local.id).await?;
    Ok(())
}

/// A limit stops fresh work only; what ends, or waits again, makes room.
pub async fn a_limited_cluster_grants_no_more_than_its_limit(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let (first, second) = (site.worker().await?, site.worker().await?);
    let local = cluster("local");
    let room = async || {
        let outstanding = site.store.outstanding().await?;
        anyhow::Ok(outstanding.into_iter().find(|hinted| hinted.cluster == local).and_then(|h| h.room))
    };
    let elsewhere = site.accept(NewJob { cluster: cluster("slurm-a"), ..new_job() }).await?;
    let jobs = site.accept_many(5).await?;
    assert_eq!(room().await?, None);
    site.store.limit(&local, Some(2), "token:op").await?;
    assert_eq!(room().await?, Some(2));
    let claimed = site.claim(first, &[jobs[0], elsewhere.id, jobs[1], jobs[2]]).await?;
    assert_eq!(claimed[3], Claimed::Refused(Refusal::Full));
    let taken = claimed[..3].iter().cloned().map(granted).collect::<Result<Vec<_>>>()?;
    // Asking again takes no more room, and finds none.
    assert_eq!(site.claim(first, &jobs[..2]).await?, [claimed[0].clone(), claimed[2].clone()]);
    assert_eq!(site.claim(second, &jobs[2..4]).await?, [(); 2].map(|()| Claimed::Refused(Refusal::Full)));
    assert_eq!(site.claim_alone(second, jobs[4]).await?, Claimed::Refused(Refusal::Full));
    assert_eq!(room().await?, Some(0));
    // What somebody had already is taken over all the same.
    site.store.deregister(first).await?;
    let adopted = site.take(second, taken[0].id).await?;
    site.store.hand_back(second, &[to_hand_back(&adopted, Duration::ZERO)]).await?;
    assert_eq!(room().await?, Some(1));
    site.take(second, jobs[2]).await?;
    // More than the new limit are in flight, and stay.
    site.store.limit(&local, Some(1), "token:op").await?;
    assert_eq!(room().await?, Some(0));
    site.take(second, taken[2].id).await?;
    assert_eq!(site.claim(second, &[jobs[3]]).await?, refused(Refusal::Full));
    site.store.limit(&local, None, "token:op").await?;
    assert_eq!(room().await?, None);
    site.take(second, jobs[3]).await?;
    site.recount().await
}

/// Each sees what the others took.
pub async fn claims_made_at_once_take_no_more_than_the_limit(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    site.store.limit(&cluster("local"), Some(7), "token:op").await?;
    let mut asked = Vec::new();
    for _ in 0..8 {
        asked.push((site.worker().await?, site.accept_many(4).await?));
    }
    let claims = try_join_all(asked.iter().map(|(worker, jobs)| site.claim(*worker, jobs))).await?;
    let (granted, refused): (Vec<_>, Vec<_>) =
        claims.into_iter().flatten().partition(|claimed| matches!(claimed, Claimed::Granted(_)));
    assert_eq!((granted.len(), refused.len()), (7, 25));
    ensure!(refused.iter().all(|claimed| *claimed == Claimed::Refused(Refusal::Full)), "{refused:?}");
    site.recount().await
}

/// Never registered, deregistered: nobody would notice its death, so it must not have jobs.
pub async fn a_worker_without_a_lease_is_granted_nothing(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let job = site.accept(new_job()).await?;
    assert_eq!(site.claim(WorkerId::generate(), &[job.id]).await?, refused(Refusal::NoLease));
    let worker = site.worker().await?;
    site.store.deregister(worker).await?;
    assert_eq!(site.claim(worker, &[job.id]).await?, refused(Refusal::NoLease));
    assert_eq!(site.get(job.id).await?, job);
    Ok(())
}

/// The answer to a commit was lost: asking again changes nothing and tells what holds.
pub async fn a_replayed_claim_gives_the_same_claim_again(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let jobs = site.accept_many(3).await?;
    let first = site.claim(worker, &jobs).await?;
    assert_eq!(site.claim(worker, &jobs).await?, first);
    let recorded = site.pending(worker, new_job()).await?;
    assert_eq!(site.take(worker, recorded.id).await?, recorded);
    site.recount().await
}

/// What it may have forgotten, or never heard of.
pub async fn a_worker_holds_what_it_was_granted_until_it_is_given_up_ended_or_adopted(
    stage: &dyn Stage,
) -> Result<()> {
    let site = Site::new(stage);
    let (first, second) = (site.worker().await?, site.worker().await?);
    let held = async |worker| anyhow::Ok(BTreeSet::from_iter(site.store.held(worker).await?));
    assert_eq!(held(first).await?, BTreeSet::new());
    site.accept(new_job()).await?;
    let claimed = site.claimed(first, new_job()).await?;
    let pending = site.pending(first, new_job()).await?;
    let running = site.running(first, new_job()).await?;
    let canceled = site.running(first, new_job()).await?;
    site.command(Command::Cancel, canceled.id).await?;
    let given_up = site.claimed(first, new_job()).await?;
    let handed_over = site.pending(first, new_job()).await?;
    let over = site.running(first, new_job()).await?;
    // Claimed twice, by two statements.
    site.take(first, claimed.id).await?;
    let others = site.claimed(second, new_job()).await?;
    let all = [&claimed, &pending, &running, &canceled, &given_up, &handed_over, &over];
    assert_eq!(held(first).await?, all.map(|job| job.id).into());
    let items = [&given_up, &handed_over].map(|job| to_hand_back(job, Duration::ZERO));
    site.store.hand_back(first, &items).await?;
    site.tell(&over, 2, ended(Ending::Finished)).await?;
    let left = [&claimed, &pending, &running, &canceled].map(|job| job.id);
    assert_eq!(held(first).await?, left.into());
    site.store.deregister(first).await?;
    for job in left {
        site.take(second, job).await?;
    }
    assert_eq!(held(first).await?, BTreeSet::new());
    assert_eq!(held(second).await?, left.into_iter().chain([others.id]).collect());
    assert_eq!(held(WorkerId::generate()).await?, BTreeSet::new());
    Ok(())
}

/// Those of the living and of the dead, and what was handed back, each as its row is.
pub async fn what_is_in_given_hands_is_told_by_cluster_and_in_pages(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let (first, second) = (site.worker().await?, site.worker().await?);
    let (local, far) = (cluster("local"), cluster("slurm-a"));
    site.accept(new_job()).await?;
    let claimed = site.claimed(first, new_job()).await?;
    let elsewhere = site.claimed(first, NewJob { cluster: far.clone(), ..new_job() }).await?;
    let running = site.running(second, new_job()).await?;
    let nobodys = site.pending(second, new_job()).await?;
    let waits_again = site.claimed(second, new_job()).await?;
    let over = site.running(second, new_job()).await?;
    site.command(Command::Cancel, claimed.id).await?;
    let given_up = [&nobodys, &waits_again].map(|job| to_hand_back(job, Duration::ZERO));
    site.store.hand_back(second, &given_up).await?;
    site.tell(&over, 2, ended(Ending::Finished)).await?;
    site.store.deregister(second).await?;
    let in_hands = async |cluster, owners: &[WorkerId], after, limit| {
        let jobs = site.store.in_hands(cluster, owners, after, limit).await?;
        for job in &jobs {
            assert_eq!(*job, site.get(job.id).await?);
        }
        anyhow::Ok(jobs.into_iter().map(|job| job.id).collect::<Vec<_>>())
    };
    let all = [first, second, WorkerId::NOBODY];
    let mut expected = [claimed.id, running.id, nobodys.id];
    expected.sort_unstable();
    assert_eq!(in_hands(&local, &all, None, 10).await?, expected);
    assert_eq!(in_hands(&local, &all, None, 2).await?, expected[..2]);
    assert_eq!(in_hands(&local, &all, Some(expected[1]), 2).await?, expected[2..]);
    assert_eq!(in_hands(&local, &all, Some(expected[2]), 2).await?, []);
    assert_eq!(in_hands(&far, &all, None, 10).await?, [elsewhere.id]);
    assert_eq!(in_hands(&local, &[second], None, 10).await?, [running.id]);
    assert_eq!(in_hands(&local, &[WorkerId::NOBODY], None, 10).await?, [nobodys.id]);
    assert_eq!(in_hands(&local, &[WorkerId::generate()], None, 10).await?, []);
    assert_eq!(in_hands(&local, &[], None, 10).await?, []);
    // Claimed twice and adopted, it is told once and as whose it is.
    site.take(first, running.id).await?;
    assert_eq!(in_hands(&local, &[second], None, 10).await?, []);
    assert_eq!(in_hands(&local, &[first, second], None, 10).await?.len(), 2);
    Ok(())
}

/// However many are asked for, what is told of given hands is no more than its last job makes it.
pub async fn what_is_in_given_hands_ends_with_the_job_that_fills_a_page(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let third = || heavy_by_its_text(PAGE_BYTES / 3);
    let mut jobs = Vec::new();
    for new in [third(), heavy_when_parsed(), third(), heavy_by_its_text(PAGE_BYTES * 5 / 2), new_job()] {
        jobs.push(site.claimed(worker, new).await?.id);
    }
    let (mut after, mut pages, mut told) = (None, Vec::new(), Vec::new());
    loop {
        let page = site.store.in_hands(&cluster("local"), &[worker], after, 1000).await?;
        pages.push(page.len());
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        told.extend(page.into_iter().map(|job| job.id));
    }
    assert_eq!((pages, told), (vec![3, 1, 1, 0], jobs));
    Ok(())
}

/// A hint may name a job twice, and two hints of one batch may name the same.
pub async fn an_id_named_twice_is_granted_under_one_claim(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let job = site.accept(new_job()).await?;
    let claimed = site.claim(worker, &[job.id, job.id]).await?;
    assert_eq!(claimed[0], claimed[1]);
    assert_eq!(granted(claimed[0].clone())?.life.epoch, 1);
    assert_eq!(site.get(job.id).await?.life.epoch, 1);
    Ok(())
}

/// Adoption keeps the state, the submission and a cancel; it raises the epoch and changes the owner.
pub async fn a_dead_workers_jobs_are_adopted_as_they_are(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let (first, second) = (site.worker().await?, site.worker().await?);
    let mut jobs = Vec::new();
    for state in [JobState::Claimed, JobState::Pending, JobState::Running] {
        jobs.push(site.in_state(first, state).await?);
        let canceled = site.in_state(first, state).await?;
        site.command(Command::Cancel, canceled.id).await?;
        jobs.push(site.get(canceled.id).await?);
    }
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    assert_eq!(site.claim(second, &ids).await?, vec![Claimed::Refused(Refusal::Owned); 6]);
    site.store.deregister(first).await?;
    for (before, outcome) in jobs.iter().zip(site.claim(second, &ids).await?) {
        let adopted = granted(outcome)?;
        let mut expected = before.life.clone();
        expected.owner = Some(second);
        expected.epoch += 1;
        expected.fruitless_claims += u16::from(expected.submission.is_none());
        assert_eq!(adopted.life, expected);
        assert_eq!(site.get(before.id).await?, adopted);
    }
    site.recount().await
}

/// Nobody has to end a lease for it to end.
pub async fn a_lease_that_ran_out_frees_its_jobs(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let second = site.worker().await?;
    let ttl = Duration::from_secs(2);
    let first = site.register(serves(None), ttl).await?;
    let job = site.claimed(first, new_job()).await?;
    assert_eq!(site.claim(second, &[job.id]).await?, refused(Refusal::Owned));
    site.pass(ttl).await;
    assert_eq!(site.claim(first, &[job.id]).await?, refused(Refusal::NoLease));
    assert_eq!(site.take(second, job.id).await?.life.epoch, 2);
    Ok(())
}

/// A good hand-back needs no death.
pub async fn what_was_handed_back_can_be_adopted_while_its_worker_lives(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let (first, second) = (site.worker().await?, site.worker().await?);
    let job = site.pending(first, new_job()).await?;
    site.store.hand_back(first, &[to_hand_back(&job, Duration::ZERO)]).await?;
    assert_eq!(site.get(job.id).await?.life.owner, Some(WorkerId::NOBODY));
    let adopted = site.take(second, job.id).await?;
    assert_eq!((adopted.life.state, adopted.life.epoch), (JobState::Pending, 2));
    assert_eq!(site.tell(&adopted, 1, ended(Ending::Finished)).await?, Applied::Advanced);
    Ok(())
}

/// A process on a host can only be watched from that host.
pub async fn a_submission_is_adopted_only_inside_its_reach(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let first = site.register(serves(Some("host-a")), LONG).await?;
    let job = site.accept(new_job()).await?;
    let claimed = site.store.claim(first, &serves(Some("host-a")), &[job.id]).await?;
    let job = granted(claimed[0].clone())?;
    let mut made = submission("1");
    made.reach = Some(Reach("host-a".into()));
    made.detail = serde_json::json!({"pid": 4, "boot": "x"});
    let item = ToRecord { job: job.id, attempt: 1, epoch: 1, submission: made.clone() };
    assert_eq!(site.store.record(&[item]).await?, [Recorded::Won]);
    site.store.deregister(first).await?;
    let second = site.worker().await?;
    for reach in [None, Some("host-b")] {
        let claimed = site.store.claim(second, &serves(reach), &[job.id]).await?;
        assert_eq!(claimed, refused(Refusal::OutOfReach));
    }
    let claimed = site.store.claim(second, &serves(Some("host-a")), &[job.id]).await?;
    assert_eq!(granted(claimed[0].clone())?.life.submission, Some(made));
    Ok(())
}

/// Claims and dies with it, again and again.
async fn kill_workers(site: &Site<'_>, job: &Job, times: u16) -> Result<()> {
    for _ in 0..times {
        let worker = site.worker().await?;
        granted(site.claim_alone(worker, job.id).await?)?;
        site.store.deregister(worker).await?;
    }
    Ok(())
}

/// First in company, then alone, then not at all; a good hand-back is no sign of poison.
pub async fn what_may_kill_workers_is_granted_alone_and_given_up_at_last(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let (poison, harmless) = (site.accept(new_job()).await?, site.accept(new_job()).await?);
    let wanted_gone = site.accept(new_job()).await?;
    let worker = site.worker().await?;
    for _ in 0..POISON_LIMIT {
        let job = site.take(worker, harmless.id).await?;
        site.store.hand_back(worker, &[to_hand_back(&job, Duration::ZERO)]).await?;
    }
    kill_workers(&site, &poison, SUSPECT_AFTER).await?;
    let claimed = site.claim(worker, &[poison.id, harmless.id]).await?;
    assert_eq!(claimed[0], Claimed::Refused(Refusal::Suspect));
    granted(claimed[1].clone())?;
    // Nor as the only one: whoever asks may hold another.
    assert_eq!(site.claim(worker, &[poison.id]).await?, refused(Refusal::Suspect));
    kill_workers(&site, &poison, POISON_LIMIT - SUSPECT_AFTER).await?;
    assert_eq!(site.claim(worker, &[poison.id]).await?, refused(Refusal::Ended));
    let given_up = site.get(poison.id).await?;
    assert_eq!(given_up.life.state, JobState::Failed);
    ensure!(given_up.life.reason.is_some_and(|why| why.contains('5')), "no reason");
    kill_workers(&site, &wanted_gone, POISON_LIMIT).await?;
    site.command(Command::Cancel, wanted_gone.id).await?;
    assert_eq!(site.claim(worker, &[wanted_gone.id]).await?, refused(Refusal::Ended));
    assert_eq!(site.get(wanted_gone.id).await?.life.state, JobState::Canceled);
    // What was recorded once is not suspect, however often its worker dies.
    let recorded = site.pending(worker, new_job()).await?;
    site.store.deregister(worker).await?;
    kill_workers(&site, &recorded, POISON_LIMIT + 1).await?;
    assert_eq!(site.get(recorded.id).await?.life.state, JobState::Pending);
    site.recount().await
}

/// Each job has one owner, who knows it; the others were told whose it is not.
pub async fn eight_claimers_of_the_same_jobs_are_granted_each_once(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let jobs = site.accept_many(200).await?;
    let mut claims = Vec::new();
    for n in 0..8 {
        let worker = site.worker().await?;
        let mut wanted = jobs.clone();
        wanted.rotate_left(n * 25);
        let store = site.store.clone();
        claims.push(async move {
            let claimed = store.claim(worker, &serves(None), &wanted).await?;
            anyhow::Ok(claimed.into_iter().map(|outcome| (worker, outcome)).collect::<Vec<_>>())
        });
    }
    let mut owners = BTreeMap::new();
    for (worker, outcome) in try_join_all(claims).await?.into_iter().flatten() {
        match outcome {
            Claimed::Granted(job) => {
                assert_eq!((job.life.owner, job.life.epoch), (Some(worker), 1));
                ensure!(owners.insert(job.id, worker).is_none(), "{} was granted twice", job.id);
            }
            Claimed::Refused(refusal) => assert_eq!(refusal, Refusal::Owned),
            Claimed::Absent => anyhow::bail!("a job is absent"),
        }
    }
    assert_eq!(owners.len(), 200);
    for (job, worker) in owners {
        assert_eq!(site.get(job).await?.life.owner, Some(worker));
    }
    let waiting = Filter { states: vec![JobState::Initialized], ..Filter::default() };
    assert_eq!(site.all(&Scope::All, &waiting, 10).await?, []);
    site.recount().await
}
