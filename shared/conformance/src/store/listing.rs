//! Reading: scopes, filters, pages, histories.

use super::{
    Stage,
    site::{
        Site, cluster, ended, heavy_by_its_text, heavy_when_parsed, new_job, project, runs, to_hand_back,
    },
};
use anyhow::{Context as _, Result, ensure};
use jobgate_shared::domain::{Command, Ending, HistoryEntry, Job, JobId, JobState, NewJob, RetryPolicy};
use jobgate_shared::store::{Commanded, Filter, PAGE_BYTES, PageRequest, Patch, Removed, Scope};
use std::time::Duration;

/// Whoever cannot see a job cannot tell it from one that never was, and changes nothing of it.
pub async fn a_foreign_job_is_absent_everywhere(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let foreign = Scope::Project(project("other"));
    let own = Scope::Project(new_job().project);
    for state in [JobState::Initialized, JobState::Running, JobState::Failed] {
        let job = site.in_state(worker, state).await?;
        assert_eq!(site.store.get(&foreign, job.id).await?, None);
        assert_eq!(site.store.get(&own, job.id).await?.as_ref(), Some(&job));
        assert_eq!(site.store.history(&foreign, job.id).await?, None);
        ensure!(site.store.history(&own, job.id).await?.is_some(), "no history");
        for command in Command::ALL {
            let outcomes = site.store.command(&foreign, &[job.id], command, "token:x").await?;
            assert_eq!(outcomes, [Commanded::Absent]);
        }
        let patch = Patch { priority: Some(100), labels: Some(vec!["x".into()]), ..Patch::default() };
        assert_eq!(site.store.patch(&foreign, job.id, &patch).await?, None);
        assert_eq!(site.store.remove(&foreign, job.id).await?, Removed::Absent);
        assert_eq!(site.get(job.id).await?, job);
    }
    assert_eq!(site.all(&foreign, &Filter::default(), 10).await?, []);
    assert_eq!(site.all(&own, &Filter::default(), 10).await?.len(), 3);
    assert_eq!(site.store.history(&Scope::All, JobId::generate()).await?, None);
    site.recount().await
}

/// Newest first, no gap and no double, whatever the size of a page.
pub async fn pages_of_any_size_make_up_the_whole_list(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let mut jobs = site.accept_many(23).await?;
    jobs.reverse();
    for limit in [1, 2, 5, 22, 23, 24, 1000] {
        let listed = site.all(&Scope::All, &Filter::default(), limit).await?;
        assert_eq!(listed.into_iter().map(|job| job.id).collect::<Vec<_>>(), jobs, "pages of {limit}");
    }
    let after_last = PageRequest { after: Some(jobs[22]), limit: 5 };
    let page = site.store.list(&Scope::All, &Filter::default(), after_last).await?;
    assert_eq!((page.jobs, page.next), (Vec::new(), None));
    Ok(())
}

/// However many jobs are asked for, a page is no larger than its last job makes it; the walk over all pages misses none.
pub async fn a_page_of_heavy_jobs_ends_with_the_one_that_fills_it(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let mut jobs = Vec::new();
    for n in 0..7 {
        // As easily compressed as jobs can be, one that is heavy only once it is parsed, and one that alone is more than a page.
        let new = match n {
            1 => heavy_when_parsed(),
            3 => heavy_by_its_text(PAGE_BYTES * 5 / 2),
            _ => heavy_by_its_text(PAGE_BYTES / 3),
        };
        jobs.push(site.accept(new).await?.id);
        site.accept(new_job()).await?;
    }
    let mut after = None;
    let mut pages = Vec::new();
    let mut walked = Vec::new();
    loop {
        let page =
            site.store.list(&Scope::All, &Filter::default(), PageRequest { after, limit: 1000 }).await?;
        let weights: Vec<usize> = page.jobs.iter().map(Job::weight).collect();
        let before_last: usize = weights.iter().rev().skip(1).sum();
        ensure!(before_last < PAGE_BYTES, "a page goes on after it is full: {weights:?}");
        let full = weights.iter().sum::<usize>() >= PAGE_BYTES;
        ensure!(full == page.next.is_some(), "{weights:?} and then {:?}", page.next);
        pages.push(weights.len());
        walked.extend(page.jobs.into_iter().map(|job| job.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, [6, 2, 6, 0], "newest first, a small job above each heavy one");
    assert_eq!(walked.iter().filter(|id| jobs.contains(id)).count(), 7);
    assert_eq!(walked.len(), 14);
    Ok(())
}

/// Thirty jobs that differ in everything a filter can ask for.
async fn assorted(site: &Site<'_>) -> Result<Vec<Job>> {
    let worker = site.worker().await?;
    let states = [
        JobState::Initialized,
        JobState::Held,
        JobState::Running,
        JobState::Finished,
        JobState::Failed,
        JobState::Canceled,
    ];
    let mut jobs = Vec::new();
    for n in 0..30 {
        let new = NewJob {
            project: project(if n % 3 == 0 { "a" } else { "b" }),
            cluster: cluster(if n % 5 == 0 { "slurm-a" } else { "local" }),
            name: format!("n%{}", n % 4),
            labels: ["x", "y\"", "z,"].iter().take(n % 4).map(|label| (*label).to_owned()).collect(),
            ..new_job()
        };
        let job = match states[n % states.len()] {
            JobState::Held => site.accept(NewJob { hold: true, ..new }).await?,
            JobState::Running => site.running(worker, new).await?,
            JobState::Finished => site.ended(worker, new, Ending::Finished).await?,
            JobState::Failed => site.ended(worker, new, Ending::Failed).await?,
            JobState::Canceled => {
                let job = site.accept(new).await?;
                site.command(Command::Cancel, job.id).await?;
                site.get(job.id).await?
            }
            JobState::Initialized
            | JobState::Claimed
            | JobState::Pending
            | JobState::TimedOut
            | JobState::Lost => site.accept(new).await?,
        };
        jobs.push(job);
    }
    jobs.reverse();
    Ok(jobs)
}

/// Every restriction alone and many together; what is listed is what the filter's own definition picks.
pub async fn a_filter_means_what_it_says_for_every_scope(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let jobs = assorted(&site).await?;
    let labels = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect();
    let none = Filter::default();
    let mut filters = vec![
        none.clone(),
        Filter { labels: labels(&["x"]), ..none.clone() },
        Filter { labels: labels(&["y\"", "x"]), ..none.clone() },
        Filter { labels: labels(&["nothing has it"]), ..none.clone() },
        Filter { cluster: Some(cluster("slurm-a")), ..none.clone() },
        Filter { cluster: Some(cluster("nowhere")), ..none.clone() },
        Filter { name: Some("n%1".into()), ..none.clone() },
        Filter { created_after: Some(jobs[10].created_at), ..none.clone() },
        Filter { created_before: Some(jobs[10].created_at), ..none.clone() },
        Filter { states: JobState::ALL.to_vec(), name: Some("n%2".into()), ..none.clone() },
        Filter {
            states: vec![JobState::Failed, JobState::Canceled],
            labels: labels(&["x"]),
            cluster: Some(cluster("local")),
            created_after: Some(jobs[28].created_at),
            created_before: Some(jobs[1].created_at),
            ..none.clone()
        },
    ];
    let one = |state| Filter { states: vec![state], ..none.clone() };
    filters.extend(JobState::ALL.map(one));
    filters.push(Filter { states: vec![JobState::Held, JobState::Finished, JobState::Running], ..none });
    for scope in [Scope::All, Scope::Project(project("a")), Scope::Project(project("c"))] {
        for filter in &filters {
            let meant = |job: &&Job| scope.covers(&job.project) && filter.matches(job);
            let expected: Vec<Job> = jobs.iter().filter(meant).cloned().collect();
            for limit in [2, 100] {
                assert_eq!(site.all(&scope, filter, limit).await?, expected, "{scope:?} {filter:?}");
            }
        }
    }
    Ok(())
}

/// A page below the cursor does not move when jobs arrive above it.
pub async fn new_arrivals_do_not_disturb_a_walk(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let mut expected = site.accept_many(10).await?;
    expected.reverse();
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = site.store.list(&Scope::All, &Filter::default(), PageRequest { after, limit: 3 }).await?;
        seen.extend(page.jobs.into_iter().map(|job| job.id));
        site.accept_many(2).await?;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, expected);
    Ok(())
}

/// Each entry as `state/attempt by`, and the chain of states unbroken.
fn story(history: &[HistoryEntry]) -> Result<Vec<String>> {
    let mut before = None;
    for entry in history {
        ensure!(entry.from == before, "{history:#?}");
        before = Some(entry.to);
    }
    let by = |entry: &HistoryEntry| match entry.by.as_deref() {
        Some(by) if by.starts_with("worker:") => "worker".to_owned(),
        Some(by) => by.to_owned(),
        None => "?".to_owned(),
    };
    Ok(history.iter().map(|entry| format!("{}/{} {}", entry.to, entry.attempt, by(entry))).collect())
}

/// Held, released, handed back, retried, adopted, cancelled: everything that happened, in order, and who did it.
pub async fn histories_tell_every_turn_of_a_life(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let retry = RetryPolicy { backoff_seconds: 0, ..RetryPolicy::default() };
    let job = site.accept(NewJob { hold: true, max_attempts: 2, retry, ..new_job() }).await?;
    site.command(Command::Release, job.id).await?;
    let claimed = site.take(worker, job.id).await?;
    site.store.hand_back(worker, &[to_hand_back(&claimed, Duration::ZERO)]).await?;
    let claimed = site.take(worker, job.id).await?;
    site.record(&claimed, "a").await?;
    let first = site.get(job.id).await?;
    site.tell(&first, 1, runs()).await?;
    site.tell(&first, 2, ended(Ending::Failed)).await?;
    let claimed = site.take(worker, job.id).await?;
    site.record(&claimed, "b").await?;
    site.store.deregister(worker).await?;
    let heir = site.worker().await?;
    let adopted = site.take(heir, job.id).await?;
    site.command(Command::Cancel, job.id).await?;
    site.tell(&adopted, 1, ended(Ending::Canceled)).await?;
    let history = site.store.history(&Scope::All, job.id).await?.context("no history")?;
    assert_eq!(
        story(&history)?,
        [
            "HELD/1 token:t",
            "INITIALIZED/1 token:c",
            "CLAIMED/1 worker",
            "INITIALIZED/1 worker",
            "CLAIMED/1 worker",
            "PENDING/1 worker",
            "RUNNING/1 worker",
            "INITIALIZED/2 worker",
            "CLAIMED/2 worker",
            "PENDING/2 worker",
            "PENDING/2 worker",
            "PENDING/2 token:c",
            "CANCELED/2 worker",
        ]
    );
    let by = |index: usize| history[index].by.clone();
    assert_eq!((by(9), by(10)), (Some(format!("worker:{worker}")), Some(format!("worker:{heir}"))));
    let happy = site.ended(heir, new_job(), Ending::Finished).await?;
    let history = site.store.history(&Scope::All, happy.id).await?.context("no history")?;
    let times: Vec<_> = history.iter().map(|entry| Some(entry.at)).collect();
    let life = happy.life;
    let expected =
        [Some(happy.created_at), life.claimed_at, life.submitted_at, life.started_at, life.finished_at];
    assert_eq!(times, expected);
    Ok(())
}
