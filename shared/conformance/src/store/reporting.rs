//! Reports: what running jobs tell of themselves.

use super::{
    Stage,
    site::{Site, ended, new_job, project},
};
use anyhow::{Context as _, Result, bail, ensure};
use jobgate_shared::domain::{
    Document, Ending, Job, JobId, JobState, NewJob, Report, ReportRefusal, RetryPolicy,
};
use jobgate_shared::store::{Applied, Patch, Reported, Scope};
use serde_json::json;

fn outputs(pairs: &[(&str, i64)]) -> Document {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect()
}

/// A report that says something of everything.
fn full(seq: u64, progress: u8) -> Report {
    Report {
        attempt: Some(1),
        seq: Some(seq),
        progress: Some(progress),
        stage: Some(format!("stage {seq}")),
        message: Some(format!("message {seq}, \"ä\"")),
        labels: vec![format!("label {seq}")],
        outputs: outputs(&[("last", i64::from(progress))]),
    }
}

async fn told(site: &Site<'_>, job: JobId, report: &Report) -> Result<Job> {
    match site.store.report(&Scope::All, job, report).await? {
        Reported::Taken(taken) => {
            ensure!(*taken == site.get(job).await?, "it reads back as another");
            Ok(*taken)
        }
        other @ (Reported::Refused(_) | Reported::Absent) => bail!("not taken: {other:?}"),
    }
}

/// [`Report::apply`] is the law: a store keeps what it makes of a job, or nothing.
pub async fn a_report_is_taken_as_the_rule_says_in_every_state(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    for state in JobState::ALL {
        for attempt in [None, Some(1), Some(2)] {
            let before = site.in_state(worker, state).await?;
            let report = Report { attempt, ..full(3, 40) };
            let mut expected = before.clone();
            let outcome = site.store.report(&Scope::All, before.id, &report).await?;
            match report.apply(&mut expected) {
                Ok(()) => assert_eq!(outcome, Reported::Taken(Box::new(expected.clone())), "{state}"),
                Err(refusal) => assert_eq!(outcome, Reported::Refused(refusal), "{state}"),
            }
            assert_eq!(site.get(before.id).await?, expected, "{state} {attempt:?}");
            assert_eq!(expected.life, before.life, "no report moves a job");
        }
    }
    site.recount().await
}

/// Redelivered, overtaken or both.
pub async fn a_late_report_moves_nothing_backwards(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let job = site.running(worker, new_job()).await?.id;
    told(&site, job, &full(7, 60)).await?;
    for late in [full(2, 20), full(7, 60), full(2, 20)] {
        told(&site, job, &late).await?;
    }
    let kept = site.get(job).await?;
    assert_eq!((kept.progress(), kept.outputs), (Some(60), outputs(&[("last", 60)])));
    let report = kept.report.context("nothing was kept")?;
    assert_eq!((report.seq, report.stage.as_deref()), (7, Some("stage 7")));
    assert_eq!(kept.labels, ["label 7", "label 2"], "what it adds is not lost");
    // A hand may put it where it likes, and no report forgets that it was newer.
    let by_hand = Patch { progress: Some(5), ..Patch::default() };
    site.store.patch(&Scope::All, job, &by_hand).await?;
    let kept = told(&site, job, &full(6, 10)).await?;
    let stage = kept.current_report().and_then(|report| report.stage.clone());
    assert_eq!((kept.progress(), stage.as_deref()), (Some(10), Some("stage 7")));
    Ok(())
}

/// Outputs and labels are the job's; everything else ends with the attempt.
pub async fn what_an_attempt_told_is_not_told_of_the_next(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let retry = RetryPolicy { backoff_seconds: 0, ..RetryPolicy::default() };
    let first = site.running(worker, NewJob { max_attempts: 2, retry, ..new_job() }).await?;
    told(&site, first.id, &full(9, 90)).await?;
    let applied = site.tell(&first, 2, ended(Ending::Failed)).await?;
    ensure!(applied == Applied::Advanced, "{applied:?}");
    let waiting = site.get(first.id).await?;
    assert_eq!((waiting.life.attempt, waiting.current_report()), (2, None));
    assert_eq!((waiting.outputs, waiting.labels.len()), (outputs(&[("last", 90)]), 1));
    let second = site.take(worker, first.id).await?;
    let old = site.store.report(&Scope::All, first.id, &full(10, 95)).await?;
    assert_eq!(old, Reported::Refused(ReportRefusal::OtherAttempt { current: 2 }));
    assert_eq!(site.get(first.id).await?, second);
    let report = Report { attempt: Some(2), ..full(1, 10) };
    let kept = told(&site, first.id, &report).await?;
    assert_eq!((kept.progress(), kept.outputs), (Some(10), outputs(&[("last", 10)])));
    Ok(())
}

/// Each adds something of its own, and the furthest progress is the one that stays.
pub async fn reports_told_at_once_are_all_kept(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let job = site.running(worker, new_job()).await?.id;
    let reports: Vec<Report> = (1..=8)
        .map(|n| Report { outputs: outputs(&[(&format!("part {n}"), 1)]), ..full(n, 10) })
        .map(|report| Report { progress: report.seq.and_then(|n| u8::try_from(n * 10).ok()), ..report })
        .collect();
    let telling = reports.iter().map(|report| site.store.report(&Scope::All, job, report));
    for outcome in futures::future::join_all(telling).await {
        ensure!(matches!(outcome?, Reported::Taken(_)));
    }
    let kept = site.get(job).await?;
    assert_eq!((kept.progress(), kept.outputs.len(), kept.labels.len()), (Some(80), 8, 8));
    assert_eq!(kept.report.and_then(|report| report.stage).as_deref(), Some("stage 8"));
    Ok(())
}

/// As absent as one that never was.
pub async fn a_foreign_job_takes_no_report(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let job = site.running(worker, new_job()).await?;
    let foreign = Scope::Project(project("foreign"));
    assert_eq!(site.store.report(&foreign, job.id, &full(1, 1)).await?, Reported::Absent);
    assert_eq!(site.store.report(&Scope::All, JobId::generate(), &full(1, 1)).await?, Reported::Absent);
    assert_eq!(site.get(job.id).await?, job);
    Ok(())
}
