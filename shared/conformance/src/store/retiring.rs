//! Retention: what has ended goes, with its history and its key; nothing else does.

use super::{
    Stage,
    site::{Site, new_job, project},
};
use anyhow::Result;
use chrono::TimeDelta;
use jobgate_shared::domain::{Command, Ending, JobId, JobState, NewJob};
use jobgate_shared::store::{Claimed, Removed, Scope};

/// One that has not ended stays, whoever asks.
pub async fn only_an_ended_job_can_be_removed(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    for state in JobState::ALL {
        let job = site.in_state(worker, state).await?;
        let removed = site.store.remove(&Scope::All, job.id).await?;
        if state.is_terminal() {
            assert_eq!(removed, Removed::Removed, "{state}");
            assert_eq!(site.store.remove(&Scope::All, job.id).await?, Removed::Absent);
            assert_eq!(site.store.get(&Scope::All, job.id).await?, None);
            assert_eq!(site.store.history(&Scope::All, job.id).await?, None);
        } else {
            assert_eq!(removed, Removed::NotEnded, "{state}");
            assert_eq!(site.get(job.id).await?, job);
        }
    }
    site.recount().await
}

/// Those that ended first come first, up to the limit each time; what ended later, or lives again, stays.
pub async fn old_jobs_are_retired_a_few_at_a_time(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let mut ended = Vec::new();
    for ending in [Ending::Finished, Ending::Failed, Ending::Canceled, Ending::TimedOut, Ending::Lost] {
        ended.push(site.ended(worker, new_job(), ending).await?.id);
    }
    let mut living = Vec::new();
    for state in JobState::ALL.into_iter().filter(|state| !state.is_terminal()) {
        living.push(site.in_state(worker, state).await?);
    }
    let long_ago = site.now().await? - TimeDelta::hours(1);
    assert_eq!(site.store.retirable(long_ago, 10).await?, []);
    assert_eq!(site.store.retire(&ended, long_ago).await?, 0);
    let soon = site.now().await? + TimeDelta::hours(1);
    assert_eq!(site.store.retirable(soon, 2).await?, ended[..2]);
    assert_eq!(site.store.retirable(soon, 10).await?, ended);
    // Between the two steps somebody tries one of them again.
    site.command(Command::Retry, ended[1]).await?;
    let named: Vec<JobId> =
        ended[..2].iter().copied().chain([living[0].id, living[4].id, JobId::generate(), ended[0]]).collect();
    assert_eq!(site.store.retire(&named, soon).await?, 1);
    assert_eq!(site.store.retire(&named, soon).await?, 0);
    assert_eq!(site.store.retirable(soon, 10).await?, ended[2..]);
    site.recount().await?;
    assert_eq!(site.store.retire(&ended, soon).await?, 3);
    assert_eq!(site.store.retirable(soon, 10).await?, []);
    for job in living {
        assert_eq!(site.get(job.id).await?, job);
    }
    ended.remove(1);
    assert_eq!(site.claim(worker, &ended).await?, vec![Claimed::Absent; 4]);
    site.recount().await
}

/// Whose ever they are, however they stand, and however often one is named.
pub async fn which_jobs_there_are_is_told_of_many_at_once(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let mut there = Vec::new();
    for state in JobState::ALL {
        there.push(site.in_state(worker, state).await?.id);
    }
    let foreign = site.accept(NewJob { project: project("other"), ..new_job() }).await?;
    let removed = site.in_state(worker, JobState::Finished).await?.id;
    site.store.remove(&Scope::All, removed).await?;
    let named: Vec<JobId> =
        [foreign.id, removed, JobId::generate()].into_iter().chain(there.iter().rev().copied()).collect();
    there.push(foreign.id);
    there.sort_unstable();
    assert_eq!(site.store.present(&[&named[..], &named[..]].concat()).await?, there);
    assert_eq!(site.store.present(&[removed]).await?, []);
    assert_eq!(site.store.present(&[]).await?, []);
    Ok(())
}
