//! Single jobs as people see and change them.

use super::{
    insert::whole_jobs,
    ledger::Rows,
    pools::{Lane, Pools, Work},
    rows::{Columns, job_columns, labels_literal, signed, sparse_json, storable, uuids},
};
use crate::{
    domain::{AttemptTimes, Command, Deviation, HistoryEntry, Job, JobId, JobState, Report, derive_history},
    store::{
        Commanded, Patch, Removed, Reported, Scope, StoreResult,
        kernel::{Decided, Told, decide},
    },
};
use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use serde::Deserialize;
use sqlx::{Connection as _, PgConnection, Row as _};
use std::sync::Arc;
use uuid::Uuid;

impl Pools {
    pub(super) async fn get(&self, scope: &Scope, job: JobId) -> StoreResult<Option<Job>> {
        let found = self.read(Lane::Read, "read a job", &uuids(&[job]), |c, ids| whole_jobs(c, ids)).await?;
        Ok(found.into_iter().find(|job| scope.covers(&job.project)))
    }

    pub(super) async fn present(&self, jobs: &[JobId]) -> StoreResult<Vec<JobId>> {
        self.read(Lane::Read, "look which jobs there are", &uuids(jobs), |c, ids| present(c, ids)).await
    }

    pub(super) async fn history(&self, scope: &Scope, job: JobId) -> StoreResult<Option<Vec<HistoryEntry>>> {
        let found = self.read(Lane::Read, "read a history", &job, |c, job| with_deviations(c, *job)).await?;
        let seen = found.filter(|(job, _)| scope.covers(&job.project));
        Ok(seen.map(|(job, deviations)| derive_history(&job, &deviations)))
    }

    pub(super) async fn command(
        self: &Arc<Self>,
        scope: &Scope,
        jobs: &[JobId],
        command: Command,
        by: &str,
    ) -> StoreResult<Vec<Commanded>> {
        let facts: Vec<_> = jobs.iter().map(|job| (*job, Told::Command { scope, command, by })).collect();
        let mut rows = Rows::of_whole_jobs(self);
        let decided = decide(&mut rows, &facts).await?;
        let commanded = jobs.iter().zip(decided).map(|(job, answer)| match answer {
            Decided::Advanced(life) | Decided::Duplicate(life) => {
                rows.jobs.get(job).map_or(Commanded::Absent, |job| {
                    let owner = life.holder();
                    Commanded::Done { job: Box::new(Job { life: *life, ..job.clone() }), owner }
                })
            }
            Decided::Refused(refusal) => Commanded::Refused(refusal),
            Decided::Stale | Decided::Absent => Commanded::Absent,
        });
        Ok(commanded.collect())
    }

    pub(super) async fn patch(
        self: &Arc<Self>,
        scope: &Scope,
        job: JobId,
        patch: &Patch,
    ) -> StoreResult<Option<Job>> {
        let input = (scope.clone(), job, patch.clone());
        self.write(Lane::Hot, "change a job", input, |c, (scope, job, change)| {
            patch_job(c, scope, *job, change)
        })
        .await
    }

    pub(super) async fn report(
        self: &Arc<Self>,
        scope: &Scope,
        job: JobId,
        report: &Report,
    ) -> StoreResult<Reported> {
        let input = (scope.clone(), job, report.clone());
        self.write(Lane::Hot, "take a report", input, |c, (scope, job, report)| {
            take_report(c, scope, *job, report)
        })
        .await
    }

    pub(super) async fn remove(self: &Arc<Self>, scope: &Scope, job: JobId) -> StoreResult<Removed> {
        self.write(Lane::Hot, "remove a job", (scope.clone(), job), |c, (scope, job)| remove(c, scope, *job))
            .await
    }
}

fn present<'c>(connection: &'c mut PgConnection, ids: &'c [Uuid]) -> Work<'c, Vec<JobId>> {
    async move {
        let present =
            sqlx::query_scalar("-- present\nSELECT j.id FROM jobs j WHERE j.id = ANY ($1) ORDER BY j.id");
        let present: Vec<Uuid> = present.bind(ids).fetch_all(connection).await?;
        Ok(present.into_iter().map(JobId).collect())
    }
    .boxed()
}

/// A history row as the database gathers it.
#[derive(Deserialize)]
struct Stored {
    at: DateTime<Utc>,
    attempt: u32,
    from_state: Option<i16>,
    to_state: i16,
    reason: Option<String>,
    by: Option<String>,
    times: Option<AttemptTimes>,
}

impl TryFrom<Stored> for Deviation {
    type Error = sqlx::Error;
    fn try_from(told: Stored) -> sqlx::Result<Self> {
        let from = told.from_state.map(super::rows::state).transpose()?;
        let to = super::rows::state(told.to_state)?;
        let Stored { at, attempt, reason, by, times, .. } = told;
        Ok(Self { entry: HistoryEntry { at, attempt, from, to, reason, by }, times })
    }
}

/// The job and its stored history, of one moment.
fn with_deviations(connection: &mut PgConnection, job: JobId) -> Work<'_, Option<(Job, Vec<Deviation>)>> {
    async move {
        let row = sqlx::query(concat!(
            "-- job_with_history
             SELECT (SELECT json_agg(h ORDER BY h.n)::text FROM job_history h WHERE h.job_id = j.id), ",
            job_columns!(),
            " FROM jobs j JOIN job_state s ON s.job_id = ANY (ARRAY[j.id]) WHERE j.id = $1"
        ))
        .bind(job.0)
        .fetch_optional(connection)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let mut columns = Columns::of(&row);
        let told: Vec<Stored> = columns.json()?;
        let job = columns.job()?;
        let deviations = told.into_iter().map(Deviation::try_from).collect::<sqlx::Result<_>>()?;
        Ok(Some((job, deviations)))
    }
    .boxed()
}

/// The job with its state row locked, if it is in scope.
async fn lock(connection: &mut PgConnection, scope: &Scope, job: JobId) -> sqlx::Result<Option<Job>> {
    let row = sqlx::query(concat!(
        "-- lock_job
         SELECT ",
        job_columns!(),
        " FROM job_state s JOIN jobs j ON j.id = ANY (ARRAY[s.job_id]) WHERE s.job_id = $1 FOR UPDATE"
    ))
    .bind(job.0)
    .fetch_optional(connection)
    .await?;
    let job = row.as_ref().map(super::rows::job).transpose()?;
    Ok(job.filter(|job| scope.covers(&job.project)))
}

fn patch_job<'c>(
    connection: &'c mut PgConnection,
    scope: &'c Scope,
    job: JobId,
    patch: &'c Patch,
) -> Work<'c, Option<Job>> {
    async move {
        let mut transaction = connection.begin().await?;
        let Some(before) = lock(&mut transaction, scope, job).await? else {
            transaction.rollback().await?;
            return Ok(None);
        };
        let mut after = before.clone();
        patch.apply(&mut after);
        save_body(&mut transaction, &after).await?;
        if after.priority != before.priority {
            sqlx::query(
                "-- patch_priority
                 WITH state AS (
                     UPDATE job_state SET priority = $2, version = version + 1 WHERE job_id = $1
                     RETURNING project, cluster, state
                 ), queue AS (
                     UPDATE waiting SET priority = $2 WHERE job_id = $1
                 )
                 INSERT INTO count_deltas (project, cluster, priority, state, jobs)
                 SELECT s.project, s.cluster, d.priority, s.state, d.jobs
                   FROM state s CROSS JOIN (VALUES ($3, -1), ($2, 1)) AS d (priority, jobs)",
            )
            .bind(job.0)
            .bind(after.priority)
            .bind(before.priority)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(Some(after))
    }
    .boxed()
}

/// Writes what of a job's body can change.
async fn save_body(connection: &mut PgConnection, job: &Job) -> sqlx::Result<()> {
    let report = job.report.as_ref();
    let text = |text: Option<&String>| text.map(|text| storable(text).into_owned());
    sqlx::query(
        "-- patch_body
         UPDATE jobs
            SET labels = $2::text[], outputs = $3, reported_attempt = $4, reported_seq = $5, progress = $6,
                stage = $7, message = $8
          WHERE id = $1",
    )
    .bind(job.id.0)
    .bind(labels_literal(&job.labels))
    .bind(sparse_json(&job.outputs))
    .bind(report.map(|report| signed(report.attempt)))
    .bind(report.map(|report| i64::try_from(report.seq).unwrap_or(i64::MAX)))
    .bind(report.and_then(|report| report.progress).map(i16::from))
    .bind(text(report.and_then(|report| report.stage.as_ref())))
    .bind(text(report.and_then(|report| report.message.as_ref())))
    .execute(connection)
    .await?;
    Ok(())
}

fn take_report<'c>(
    connection: &'c mut PgConnection,
    scope: &'c Scope,
    job: JobId,
    report: &'c Report,
) -> Work<'c, Reported> {
    async move {
        let mut transaction = connection.begin().await?;
        // Locked, so that the attempt cannot end or be followed by another between the look and the write.
        let reported = match lock(&mut transaction, scope, job).await? {
            None => Reported::Absent,
            Some(mut job) => {
                if let Err(refusal) = report.apply(&mut job) {
                    Reported::Refused(refusal)
                } else {
                    save_body(&mut transaction, &job).await?;
                    Reported::Taken(Box::new(job))
                }
            }
        };
        transaction.commit().await?;
        Ok(reported)
    }
    .boxed()
}

fn remove<'c>(connection: &'c mut PgConnection, scope: &'c Scope, job: JobId) -> Work<'c, Removed> {
    async move {
        let mut transaction = connection.begin().await?;
        let removed = match lock(&mut transaction, scope, job).await? {
            None => Removed::Absent,
            Some(job) if !job.life.state.is_terminal() => Removed::NotEnded,
            Some(job) => {
                delete_ended(&mut transaction, &[job.id.0], None).await?;
                Removed::Removed
            }
        };
        transaction.commit().await?;
        Ok(removed)
    }
    .boxed()
}

/// Deletes those of these jobs that have ended (before a time, if given), with all that hangs on them; answers which.
pub(super) async fn delete_ended(
    connection: &mut PgConnection,
    ids: &[Uuid],
    before: Option<DateTime<Utc>>,
) -> sqlx::Result<Vec<JobId>> {
    let ended: Vec<i16> = JobState::ALL.iter().filter(|s| s.is_terminal()).map(|s| s.code()).collect();
    let rows = sqlx::query(
        "-- delete_ended_jobs
         WITH gone AS (
             DELETE FROM job_state
              WHERE job_id = ANY ($1) AND state = ANY ($2) AND coalesce(finished_at < $3, $3 IS NULL)
             RETURNING job_id, project, cluster, priority, state
         ), bodies AS (
             DELETE FROM jobs j USING gone g WHERE j.id = ANY (ARRAY[g.job_id]) RETURNING j.project, j.idempotency_key
         ), keys AS (
             DELETE FROM idempotency_keys k USING bodies b
              WHERE k.project = ANY (ARRAY[b.project]) AND k.key = ANY (ARRAY[b.idempotency_key])
         ), history AS (
             DELETE FROM job_history h USING gone g WHERE h.job_id = ANY (ARRAY[g.job_id])
         ), counted AS (
             INSERT INTO count_deltas (project, cluster, priority, state, jobs)
             SELECT project, cluster, priority, state, -count(*) FROM gone GROUP BY project, cluster, priority, state
         )
         SELECT job_id FROM gone",
    )
    .bind(ids)
    .bind(ended)
    .bind(before)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| row.try_get(0).map(JobId)).collect()
}
