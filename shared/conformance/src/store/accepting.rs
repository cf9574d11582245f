//! Accepting jobs: what is stored, and what a replay or a twin finds.

use super::{
    Stage,
    site::{LONG, Site, cluster, created, existing, key, new_job, project},
};
use anyhow::{Result, ensure};
use chrono::TimeDelta;
use futures::future::try_join_all;
use jobgate_shared::domain::{Ending, JobState, Life, NewJob, Resources, RetryPolicy};
use jobgate_shared::store::{FeedCursor, Filter, Inserted, Removed, Scope};
use serde_json::json;
use std::{collections::HashSet, time::Duration};

fn rich_job() -> NewJob {
    let mut new = new_job();
    new.project = project("physics");
    new.name = "naïve \"sum\" 💥 \\ %_' ; --".into();
    new.cluster = cluster("slurm-a");
    new.spec.command = vec!["sh".into(), "-c".into(), "echo \"$A\" | tr a b\n".into(), String::new()];
    new.spec.env = [("A".to_owned(), "1\n2\t\u{1}".to_owned())].into();
    new.spec.stdin = Some("x".repeat(100_000));
    new.spec.resources = Resources { memory_mib: Some(1 << 30), ..Resources::default() };
    new.spec.time_limit_seconds = Some(600);
    new.spec.engine = json!({"partition": "long", "n": [1, 2.5, null, {"deep": true}]})
        .as_object()
        .cloned()
        .unwrap_or_default();
    new.labels = vec!["nightly".into(), "a,b".into(), "{}".into(), "\"".into(), "nightly".into()];
    new.priority = -100;
    new.inputs =
        json!({"big": u64::MAX, "tiny": 1e-300, "": "", "k": []}).as_object().cloned().unwrap_or_default();
    new.max_attempts = 7;
    new.retry = RetryPolicy { backoff_seconds: 0, max_backoff_seconds: 9, retry_on: vec![Ending::Lost] };
    new.created_by = "token:ä".into();
    new
}

/// Every field, of a plain job and of one that uses all of them.
pub async fn a_job_reads_back_as_it_was_accepted(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    for new in [new_job(), rich_job()] {
        let before = site.now().await?;
        let job = site.accept(new.clone()).await?;
        let after = site.now().await?;
        ensure!(before <= job.created_at && job.created_at <= after, "{job:?}");
        assert_eq!(job, new.accepted(job.created_at));
        assert_eq!(job.life, Life::begin(false, job.created_at));
        assert_eq!(site.get(job.id).await?, job);
        assert_eq!(site.store.get(&Scope::Project(new.project), job.id).await?, Some(job));
    }
    assert_eq!(site.store.insert(&[], Some(LONG)).await?, []);
    Ok(())
}

/// `run_at` in the future delays, in the past does not jump the queue; a held job is due all the same.
pub async fn a_job_is_due_when_it_asked_to_be_and_never_before_now(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let now = site.now().await?;
    let (later, earlier) = (Some(now + TimeDelta::hours(1)), Some(now - TimeDelta::hours(1)));
    let job = site.accept(NewJob { run_at: later, ..new_job() }).await?;
    assert_eq!((job.run_at, Some(job.life.due_at)), (later, later));
    assert_eq!(site.get(job.id).await?, job);
    let job = site.accept(NewJob { run_at: earlier, ..new_job() }).await?;
    assert_eq!((job.run_at, job.life.due_at), (earlier, job.created_at));
    assert_eq!(site.get(job.id).await?, job);
    let job = site.accept(NewJob { hold: true, ..new_job() }).await?;
    assert_eq!((job.life.state, job.life.due_at), (JobState::Held, job.created_at));
    assert_eq!(site.get(job.id).await?, job);
    site.recount().await
}

/// The answer to a commit was lost; the caller tries again, some of its jobs having moved on.
pub async fn a_replayed_insert_stores_nothing_twice(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let new: Vec<NewJob> = (0..5)
        .map(|n| NewJob { idempotency: (n % 2 == 0).then(|| key(&n.to_string(), 1)), ..new_job() })
        .collect();
    site.accept_all(&new[..4]).await?;
    let worker = site.worker().await?;
    let moved = site.take(worker, new[1].id).await?;
    let again = site.store.insert(&new, Some(LONG)).await?;
    for (new, outcome) in new.iter().zip(&again).take(4) {
        let job = existing(outcome.clone())?;
        assert_eq!(job, site.get(new.id).await?);
    }
    assert_eq!(existing(again[1].clone())?, moved);
    assert_eq!(created(again[4].clone())?.id, new[4].id);
    // Four accepted, one claimed, one more accepted.
    let told = site.changes(FeedCursor::default(), 6, 10).await?;
    assert_eq!([told[4].1.job, told[5].1.job], [new[1].id, new[4].id]);
    // A job that is there twice in one batch is one job.
    let twice = new_job();
    let outcomes = site.store.insert(&[twice.clone(), twice.clone()], None).await?;
    created(outcomes[0].clone())?;
    assert_eq!(existing(outcomes[1].clone())?.id, twice.id);
    site.recount().await
}

/// The second body is refused, whoever sends it and whatever became of the job.
pub async fn a_known_key_gives_its_job_for_the_same_body_and_refuses_another(
    stage: &dyn Stage,
) -> Result<()> {
    let site = Site::new(stage);
    let first = site.accept(NewJob { idempotency: Some(key("k", 1)), ..new_job() }).await?;
    let (same, other) = (key("k", 1), key("k", 2));
    let twins = [
        NewJob { idempotency: Some(same.clone()), ..new_job() },
        NewJob { idempotency: Some(other.clone()), ..new_job() },
        new_job(),
    ];
    let outcomes = site.store.insert(&twins, None).await?;
    assert_eq!(existing(outcomes[0].clone())?, first);
    assert_eq!(outcomes[1], Inserted::KeyReused);
    created(outcomes[2].clone())?;
    let worker = site.worker().await?;
    let taken = site.take(worker, first.id).await?;
    let outcomes = site.store.insert(&[NewJob { idempotency: Some(same), ..new_job() }], None).await?;
    assert_eq!(existing(outcomes[0].clone())?, taken);
    let outcomes = site.store.insert(&[NewJob { idempotency: Some(other), ..new_job() }], None).await?;
    assert_eq!(outcomes, [Inserted::KeyReused]);
    assert_eq!(site.all(&Scope::All, &Filter::default(), 10).await?.len(), 2);
    site.recount().await
}

/// The same word in two projects is two keys.
pub async fn a_key_belongs_to_its_project(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let mine = site.accept(NewJob { idempotency: Some(key("k", 1)), ..new_job() }).await?;
    let theirs = site
        .accept(NewJob { idempotency: Some(key("k", 2)), project: project("other"), ..new_job() })
        .await?;
    ensure!(mine.id != theirs.id, "one job for two projects");
    Ok(())
}

/// Whichever comes first in the batch is the job.
pub async fn twin_keys_in_one_batch_make_one_job(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let keys = [key("a", 1), key("b", 1), key("a", 1), key("a", 2), key("b", 1)];
    let new: Vec<NewJob> =
        keys.into_iter().map(|key| NewJob { idempotency: Some(key), ..new_job() }).collect();
    let outcomes = site.store.insert(&new, None).await?;
    assert_eq!(created(outcomes[0].clone())?.id, new[0].id);
    assert_eq!(created(outcomes[1].clone())?.id, new[1].id);
    assert_eq!(existing(outcomes[2].clone())?.id, new[0].id);
    assert_eq!(outcomes[3], Inserted::KeyReused);
    assert_eq!(existing(outcomes[4].clone())?.id, new[1].id);
    assert_eq!(site.all(&Scope::All, &Filter::default(), 10).await?.len(), 2);
    site.recount().await
}

/// A client that sends the same batch many times at once, in any order, makes each job once.
pub async fn twin_keys_posted_at_once_make_one_job(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let posts = (0..8).map(|post| {
        let keys = (0..20).map(|n| if post % 2 == 0 { n } else { 19 - n });
        let new: Vec<NewJob> =
            keys.map(|n| NewJob { idempotency: Some(key(&n.to_string(), 1)), ..new_job() }).collect();
        let store = site.store.clone();
        async move { store.insert(&new, None).await }
    });
    let outcomes: Vec<Inserted> = try_join_all(posts).await?.into_iter().flatten().collect();
    let made = outcomes.iter().filter(|o| matches!(o, Inserted::Created(_))).count();
    assert_eq!((outcomes.len(), made), (160, 20));
    let job = |outcome: Inserted| match outcome {
        Inserted::Created(job) | Inserted::Existing(job) => Some(job.id),
        Inserted::KeyReused => None,
    };
    let jobs: HashSet<_> = outcomes.into_iter().map(job).collect();
    ensure!(jobs.len() == 20 && !jobs.contains(&None), "{jobs:?}");
    assert_eq!(site.all(&Scope::All, &Filter::default(), 50).await?.len(), 20);
    site.recount().await
}

/// Removed or retired, the job takes its key with it.
pub async fn a_key_lives_as_long_as_its_job(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let new = NewJob { idempotency: Some(key("k", 1)), ..new_job() };
    let first = site.ended(worker, new, Ending::Finished).await?;
    let again = |body| NewJob { idempotency: Some(key("k", body)), ..new_job() };
    assert_eq!(existing(site.store.insert(&[again(1)], None).await?.remove(0))?.id, first.id);
    assert_eq!(site.store.remove(&Scope::All, first.id).await?, Removed::Removed);
    let second = site.ended(worker, again(2), Ending::Finished).await?;
    let soon = site.now().await? + TimeDelta::hours(1);
    assert_eq!(site.store.retire(&[second.id], soon).await?, 1);
    site.accept(again(3)).await?;
    Ok(())
}

/// A text no store may be able to hold is in the middle of a batch: all are stored, or none and the error is final.
pub async fn a_refused_batch_leaves_nothing_behind(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let new = [new_job(), NewJob { name: "a\0b".into(), ..new_job() }, new_job()];
    let stored = match site.store.insert(&new, Some(Duration::ZERO)).await {
        Ok(outcomes) => outcomes.into_iter().map(created).collect::<Result<Vec<_>>>()?.len(),
        Err(error) => {
            ensure!(!error.is_transient(), "{error:?}");
            0
        }
    };
    assert_eq!(site.all(&Scope::All, &Filter::default(), 10).await?.len(), stored);
    site.accept_many(1).await?;
    site.recount().await
}
