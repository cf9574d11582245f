//! Commands and patches: what users may do to one job or to many.

use super::{
    Stage,
    site::{Site, new_job},
};
use anyhow::{Context as _, Result, ensure};
use jobgate_shared::domain::{
    Command, Fact, JobId, JobState, Life, NewJob, Outcome, RetryPolicy, WorkerId, transition,
};
use jobgate_shared::store::{Commanded, Patch, Scope};
use serde_json::json;

/// The same life but for the times, which the store's clock gave.
fn timeless(life: &Life, other: &Life) -> Life {
    Life { due_at: other.due_at, finished_at: other.finished_at, ..life.clone() }
}

/// The transition function is the law, and nothing a store keeps beside the row may bend it.
pub async fn a_command_does_what_the_transition_says_in_every_state(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    for command in Command::ALL {
        for state in JobState::ALL {
            let before = site.in_state(worker, state).await?;
            let fact = Fact::Command { command, by: "token:c" };
            let expected = transition(&before.life, 1, &RetryPolicy::default(), &fact, site.now().await?);
            let outcome = site.command(command, before.id).await?;
            let after = site.get(before.id).await?;
            match (expected, outcome) {
                (Outcome::Advanced { life, .. }, Commanded::Done { job, .. }) => {
                    assert_eq!(timeless(&after.life, &life), *life, "{command:?} {state}");
                    assert_eq!(*job, after);
                }
                (Outcome::Duplicate, Commanded::Done { job, .. }) => {
                    assert_eq!((&before, &*job), (&after, &after), "{command:?} {state}");
                }
                (Outcome::Refused(expected), Commanded::Refused(refusal)) => {
                    assert_eq!((refusal, &after), (expected, &before), "{command:?} {state}");
                }
                (expected, outcome) => {
                    anyhow::bail!("{command:?} of {state}: {outcome:?} instead of {expected:?}")
                }
            }
        }
    }
    site.recount().await
}

/// Only the worker that has the job now; not one that had it, not nobody.
pub async fn a_command_names_who_should_be_nudged(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    for state in JobState::ALL {
        let job = site.in_state(worker, state).await?;
        let outcome = site.command(Command::Cancel, job.id).await?;
        let expected = state.is_owned().then_some(worker);
        match outcome {
            Commanded::Done { owner, .. } => assert_eq!(owner, expected, "{state}"),
            Commanded::Refused(_) => ensure!(state.is_terminal(), "{state} refused"),
            Commanded::Absent => anyhow::bail!("{state} is absent"),
        }
    }
    let orphan = site.pending(worker, new_job()).await?;
    site.store.hand_back(worker, &[super::site::to_hand_back(&orphan, std::time::Duration::ZERO)]).await?;
    let Commanded::Done { job, owner } = site.command(Command::Cancel, orphan.id).await? else {
        anyhow::bail!("refused");
    };
    assert_eq!((job.life.owner, owner), (Some(WorkerId::NOBODY), None));
    Ok(())
}

/// One outcome each, in order; a job named twice is told twice.
pub async fn commands_on_many_jobs_answer_each(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let waiting = site.accept(new_job()).await?;
    let running = site.running(worker, new_job()).await?;
    let jobs = [waiting.id, JobId::generate(), running.id, waiting.id];
    let outcomes = site.store.command(&Scope::All, &jobs, Command::Hold, "token:c").await?;
    ensure!(outcomes.len() == 4, "{outcomes:?}");
    assert!(matches!(&outcomes[0], Commanded::Done { job, owner: None } if job.life.state == JobState::Held));
    assert_eq!(outcomes[1], Commanded::Absent);
    assert!(matches!(outcomes[2], Commanded::Refused(_)));
    assert_eq!(outcomes[3], outcomes[0]);
    assert_eq!(site.store.command(&Scope::All, &[], Command::Hold, "token:c").await?, []);
    site.recount().await
}

/// Labels and priority are replaced, outputs merged key by key; the life goes on unchanged.
pub async fn a_patch_changes_what_it_names(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let outputs = |value: serde_json::Value| value.as_object().cloned();
    for state in [JobState::Held, JobState::Initialized, JobState::Running, JobState::Finished] {
        let job = site.in_state(worker, state).await?;
        let untouched = site.store.patch(&Scope::All, job.id, &Patch::default()).await?;
        assert_eq!(untouched.as_ref(), Some(&job));
        let changes = [
            Patch { labels: Some(vec!["a".into(), "b".into()]), ..Patch::default() },
            Patch {
                progress: Some(40),
                outputs: outputs(json!({"a": 1, "b": {"c": 2}})),
                ..Patch::default()
            },
            Patch { priority: Some(7), ..Patch::default() },
            Patch { outputs: outputs(json!({"a": null, "b": [3], "d": false})), ..Patch::default() },
            Patch { labels: Some(Vec::new()), priority: Some(-100), progress: Some(0), outputs: None },
        ];
        let mut expected = job.clone();
        for patch in changes {
            patch.apply(&mut expected);
            let patched = site.store.patch(&Scope::All, job.id, &patch).await?.context("absent")?;
            assert_eq!(patched, expected);
            assert_eq!(site.get(job.id).await?, expected);
        }
        assert_eq!(expected.outputs, outputs(json!({"b": [3], "d": false})).unwrap_or_default());
    }
    assert_eq!(site.store.patch(&Scope::All, JobId::generate(), &Patch::default()).await?, None);
    // What was patched before it began, and while it ran, is counted where it stands.
    let job = site.accept(NewJob { priority: 3, ..new_job() }).await?;
    let urgent = Patch { priority: Some(90), ..Patch::default() };
    site.store.patch(&Scope::All, job.id, &urgent).await?;
    site.take(worker, job.id).await?;
    site.recount().await
}
