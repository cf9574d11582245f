//! Jobs: accepted, found, commanded, changed by hand, removed.

use super::{
    SqliteStore,
    rows::{
        Counts, ENTER_QUEUE, LISTED_JOBS, Rows, execute, hex, id, job, list, micros, queue_columns, read,
        tell, write,
    },
    writer::{Transaction, fault},
};
use crate::{
    domain::{Command, Deviation, HistoryEntry, Job, JobId, JobState, NewJob, Report, derive_history},
    store::{
        Commanded, Inserted, JobChange, MAX_RETIRED_BATCHES, Patch, Removed, Reported, Scope, StoreResult,
        kernel::{Decided, Told, decide},
    },
};
use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{Row as _, SqliteConnection, SqlitePool};
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

impl SqliteStore {
    pub(super) async fn insert_jobs(
        &self,
        jobs: &[NewJob],
        hinted: Option<Duration>,
    ) -> StoreResult<Vec<Inserted>> {
        let jobs = jobs.to_vec();
        self.writer.run(move |transaction| Box::pin(insert(transaction, jobs, hinted))).await
    }

    pub(super) async fn find(&self, scope: &Scope, job: JobId) -> StoreResult<Option<Job>> {
        find(&self.readers, scope, job).await
    }

    pub(super) async fn present_jobs(&self, jobs: &[JobId]) -> StoreResult<Vec<JobId>> {
        let rows = sqlx::query(
            "-- present
            SELECT id FROM jobs WHERE id IN (SELECT unhex(asked.value) FROM json_each(?1) asked) ORDER BY id",
        )
        .bind(list(jobs.iter().map(|job| job.0)))
        .fetch_all(&self.readers)
        .await
        .map_err(|e| fault(e, "look which jobs there are"))?;
        rows.iter().map(|row| id(row, "id").map(JobId)).collect()
    }

    pub(super) async fn tell_history(
        &self,
        scope: &Scope,
        job: JobId,
    ) -> StoreResult<Option<Vec<HistoryEntry>>> {
        let Some(found) = self.find(scope, job).await? else { return Ok(None) };
        let rows = sqlx::query("-- deviations\nSELECT what FROM deviations WHERE job = ?1 ORDER BY n")
            .bind(job.0)
            .fetch_all(&self.readers)
            .await
            .map_err(|e| fault(e, "read a history"))?;
        let deviations =
            rows.iter().map(|row| read(&row.get::<String, _>(0))).collect::<StoreResult<Vec<Deviation>>>()?;
        Ok(Some(derive_history(&found, &deviations)))
    }

    pub(super) async fn obey(
        &self,
        scope: &Scope,
        jobs: &[JobId],
        command: Command,
        by: &str,
    ) -> StoreResult<Vec<Commanded>> {
        let (scope, jobs, by) = (scope.clone(), jobs.to_vec(), by.to_owned());
        let obeyed = self.writer.run(move |transaction| {
            Box::pin(async move {
                let told = Told::Command { scope: &scope, command, by: &by };
                let facts: Vec<_> = jobs.iter().map(|job| (*job, told)).collect();
                let decided = decide(&mut Rows { transaction, claimer: None }, &facts).await?;
                let mut outcomes = Vec::with_capacity(jobs.len());
                for (job, answer) in jobs.iter().zip(decided) {
                    outcomes.push(match answer {
                        Decided::Advanced(life) | Decided::Duplicate(life) => {
                            match find_here(&mut transaction.connection, *job).await? {
                                Some(found) => {
                                    let owner = life.holder();
                                    Commanded::Done { job: Box::new(Job { life: *life, ..found }), owner }
                                }
                                None => Commanded::Absent,
                            }
                        }
                        Decided::Refused(refusal) => Commanded::Refused(refusal),
                        Decided::Stale | Decided::Absent => Commanded::Absent,
                    });
                }
                Ok(outcomes)
            })
        });
        obeyed.await
    }

    pub(super) async fn patch_job(
        &self,
        scope: &Scope,
        id: JobId,
        patch: &Patch,
    ) -> StoreResult<Option<Job>> {
        let (scope, patch) = (scope.clone(), patch.clone());
        let patched = self.writer.run(move |Transaction { connection, .. }| {
            Box::pin(async move {
                let found = find_here(connection, id).await?.filter(|job| scope.covers(&job.project));
                let Some(mut job) = found else { return Ok(None) };
                let mut counts = Counts::default();
                counts.add_job(&job, -1);
                patch.apply(&mut job);
                counts.add_job(&job, 1);
                counts.save(connection).await?;
                change(connection, &job).await?;
                Ok(Some(job))
            })
        });
        patched.await
    }

    pub(super) async fn take_report(
        &self,
        scope: &Scope,
        id: JobId,
        report: &Report,
    ) -> StoreResult<Reported> {
        let (scope, report) = (scope.clone(), report.clone());
        let reported = self.writer.run(move |Transaction { connection, .. }| {
            Box::pin(async move {
                let found = find_here(connection, id).await?.filter(|job| scope.covers(&job.project));
                let Some(mut job) = found else { return Ok(Reported::Absent) };
                if let Err(refusal) = report.apply(&mut job) {
                    return Ok(Reported::Refused(refusal));
                }
                change(connection, &job).await?;
                Ok(Reported::Taken(Box::new(job)))
            })
        });
        reported.await
    }

    pub(super) async fn remove_job(&self, scope: &Scope, id: JobId) -> StoreResult<Removed> {
        let scope = scope.clone();
        let removed = self.writer.run(move |Transaction { connection, .. }| {
            Box::pin(async move {
                match find_here(connection, id).await?.filter(|job| scope.covers(&job.project)) {
                    None => Ok(Removed::Absent),
                    Some(job) if !job.life.state.is_terminal() => Ok(Removed::NotEnded),
                    Some(job) => {
                        forget(connection, &[job]).await?;
                        Ok(Removed::Removed)
                    }
                }
            })
        });
        removed.await
    }

    pub(super) async fn ended_before(&self, before: DateTime<Utc>, limit: u32) -> StoreResult<Vec<JobId>> {
        let rows = sqlx::query(
            "-- retirable
            SELECT job FROM job_state WHERE state >= 5 AND finished_at < ?1 ORDER BY finished_at, job LIMIT ?2",
        )
        .bind(micros(before))
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(|e| fault(e, "find old jobs"))?;
        rows.iter().map(|row| id(row, "job").map(JobId)).collect()
    }

    pub(super) async fn retire_jobs(&self, jobs: &[JobId], before: DateTime<Utc>) -> StoreResult<u64> {
        // One that is named twice goes, and leaves the counts, once.
        let jobs: BTreeSet<JobId> = jobs.iter().copied().collect();
        let wanted = list(jobs.iter().map(|job| job.0));
        let retired = self.writer.run(move |Transaction { connection, .. }| {
            Box::pin(async move {
                let rows = sqlx::query(LISTED_JOBS)
                    .bind(wanted)
                    .fetch_all(&mut *connection)
                    .await
                    .map_err(|e| fault(e, "retire jobs"))?;
                let mut old = rows.iter().map(job).collect::<StoreResult<Vec<_>>>()?;
                let ended = |job: &Job| {
                    job.life.state.is_terminal() && job.life.finished_at.is_some_and(|at| at < before)
                };
                old.retain(ended);
                forget(connection, &old).await?;
                Ok(old.len() as u64)
            })
        });
        retired.await
    }

    pub(super) async fn shorten_feed(&self, before: DateTime<Utc>) -> StoreResult<bool> {
        let shortened =
            self.writer.run(move |Transaction { connection, .. }| Box::pin(forget_feed(connection, before)));
        shortened.await
    }
}

/// Writes what was changed by hand, or told by the job itself.
async fn change(connection: &mut SqliteConnection, job: &Job) -> StoreResult<()> {
    const OPERATION: &str = "change a job";
    sqlx::query("-- patch_job\nUPDATE jobs SET asked = ?2, labels = ?3 WHERE id = ?1")
        .bind(job.id.0)
        .bind(write(job)?)
        .bind(write(&job.labels)?)
        .execute(&mut *connection)
        .await
        .map_err(|e| fault(e, OPERATION))?;
    for statement in [
        "-- patch_state\nUPDATE job_state SET priority = ?2 WHERE job = ?1 AND priority <> ?2",
        "-- patch_queue\nUPDATE waiting SET priority = ?2 WHERE job = ?1 AND priority <> ?2",
    ] {
        sqlx::query(statement)
            .bind(job.id.0)
            .bind(job.priority)
            .execute(&mut *connection)
            .await
            .map_err(|e| fault(e, OPERATION))?;
    }
    Ok(())
}

async fn insert(
    transaction: &mut Transaction,
    jobs: Vec<NewJob>,
    hinted: Option<Duration>,
) -> StoreResult<Vec<Inserted>> {
    let now = transaction.now;
    let connection = &mut transaction.connection;
    let mut outcomes = Vec::with_capacity(jobs.len());
    let mut fresh: HashMap<JobId, Job> = HashMap::new();
    let (mut bodies, mut states, mut queue) = (Vec::new(), Vec::new(), Vec::new());
    let (mut keys, mut told, mut counts) = (HashMap::new(), Vec::new(), Counts::default());
    let known = known_ids(connection, &jobs).await?;
    for new in &jobs {
        if let Some(existing) = existing(connection, new, &known, &keys, &fresh).await? {
            outcomes.push(existing);
            continue;
        }
        let job = new.accepted(now);
        let hintable = job.life.state == JobState::Initialized && job.life.due_at <= now;
        let hinted_until = hinted.filter(|_| hintable).map(|hint| micros(now + hint));
        bodies.push(json!([
            hex(job.id.0),
            job.project,
            job.name,
            job.cluster,
            write(&job.labels)?,
            micros(job.created_at),
            write(&job)?
        ]));
        states.push(json!([
            hex(job.id.0),
            job.project,
            job.cluster,
            job.priority,
            job.max_attempts,
            write(&job.retry)?,
            write(&job.life)?,
            job.life.state.code()
        ]));
        if job.life.state == JobState::Initialized {
            queue.push(queue_columns(job.id, &job.cluster, job.priority, &job.life, hinted_until));
        }
        if let Some(key) = &new.idempotency {
            keys.insert((new.project.clone(), key.key.clone()), (key.body, new.id));
        }
        let (job_id, project) = (job.id, job.project.clone());
        told.push(JobChange { job: job_id, project, entry: job.acceptance(job.life.state) });
        counts.add_job(&job, 1);
        outcomes.push(Inserted::Created(Box::new(job.clone())));
        fresh.insert(job.id, job);
    }
    if bodies.is_empty() {
        return Ok(outcomes);
    }
    for (statement, rows) in [(INSERT_BODIES, bodies), (INSERT_STATES, states), (ENTER_QUEUE, queue)] {
        execute(connection, statement, rows).await?;
    }
    for ((project, key), (body, job)) in keys {
        sqlx::query(
            "-- insert_key\nINSERT INTO idempotency_keys (project, key, body, job) VALUES (?1, ?2, ?3, ?4)",
        )
        .bind(project.as_str().to_owned())
        .bind(key)
        .bind(body.to_vec())
        .bind(job.0)
        .execute(&mut *connection)
        .await
        .map_err(|e| fault(e, "insert a key"))?;
    }
    counts.save(connection).await?;
    told.sort_by_key(|change| change.job);
    tell(connection, now, &told).await?;
    Ok(outcomes)
}

const INSERT_BODIES: &str = "-- insert_jobs
    INSERT INTO jobs (id, project, name, cluster, labels, created_at, asked)
    SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
      FROM json_each(?1)";

const INSERT_STATES: &str = "-- insert_states
    INSERT INTO job_state (job, project, cluster, priority, max_attempts, retry, life, state, cancel)
    SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, 0
      FROM json_each(?1)";

/// Which of these ids are taken: a replay after an unknown commit.
async fn known_ids(connection: &mut SqliteConnection, jobs: &[NewJob]) -> StoreResult<Vec<JobId>> {
    let rows = sqlx::query(
        "-- known_ids
        SELECT jobs.id FROM json_each(?1) wanted CROSS JOIN jobs ON jobs.id = unhex(wanted.value)",
    )
    .bind(list(jobs.iter().map(|job| job.id.0)))
    .fetch_all(connection)
    .await
    .map_err(|e| fault(e, "insert jobs"))?;
    rows.iter().map(|row| id(row, "id").map(JobId)).collect()
}

type Keys = HashMap<(crate::domain::Project, String), ([u8; 32], JobId)>;

/// What stands already where `new` wants to be, in the file or earlier in this batch.
async fn existing(
    connection: &mut SqliteConnection,
    new: &NewJob,
    known: &[JobId],
    keys: &Keys,
    fresh: &HashMap<JobId, Job>,
) -> StoreResult<Option<Inserted>> {
    if let Some(key) = &new.idempotency {
        let holder = match keys.get(&(new.project.clone(), key.key.clone())) {
            Some((body, job)) => Some((body.to_vec(), *job)),
            None => key_holder(connection, new.project.as_str(), &key.key).await?,
        };
        if let Some((body, job)) = holder {
            if body != key.body {
                return Ok(Some(Inserted::KeyReused));
            }
            let job = match fresh.get(&job) {
                Some(job) => Some(job.clone()),
                None => find_here(connection, job).await?,
            };
            return Ok(job.map(|job| Inserted::Existing(Box::new(job))));
        }
    }
    if let Some(job) = fresh.get(&new.id) {
        return Ok(Some(Inserted::Existing(Box::new(job.clone()))));
    }
    if known.contains(&new.id) {
        return Ok(find_here(connection, new.id).await?.map(|job| Inserted::Existing(Box::new(job))));
    }
    Ok(None)
}

async fn key_holder(
    connection: &mut SqliteConnection,
    project: &str,
    key: &str,
) -> StoreResult<Option<(Vec<u8>, JobId)>> {
    let row =
        sqlx::query("-- key_holder\nSELECT body, job FROM idempotency_keys WHERE project = ?1 AND key = ?2")
            .bind(project.to_owned())
            .bind(key.to_owned())
            .fetch_optional(connection)
            .await
            .map_err(|e| fault(e, "look up a key"))?;
    row.map(|row| Ok((row.get("body"), JobId(id(&row, "job")?)))).transpose()
}

const GET_JOB: &str = "-- get_job
    SELECT jobs.asked, job_state.life, job_state.priority
      FROM jobs CROSS JOIN job_state ON job_state.job = jobs.id WHERE jobs.id = ?1";

async fn find(readers: &SqlitePool, scope: &Scope, wanted: JobId) -> StoreResult<Option<Job>> {
    let row = sqlx::query(GET_JOB)
        .bind(wanted.0)
        .fetch_optional(readers)
        .await
        .map_err(|e| fault(e, "get a job"))?;
    Ok(row.as_ref().map(job).transpose()?.filter(|job| scope.covers(&job.project)))
}

async fn find_here(connection: &mut SqliteConnection, wanted: JobId) -> StoreResult<Option<Job>> {
    let row = sqlx::query(GET_JOB)
        .bind(wanted.0)
        .fetch_optional(connection)
        .await
        .map_err(|e| fault(e, "get a job"))?;
    row.as_ref().map(job).transpose()
}

/// Removes jobs with all that belongs to them.
async fn forget(connection: &mut SqliteConnection, jobs: &[Job]) -> StoreResult<()> {
    const OPERATION: &str = "remove jobs";
    let mut counts = Counts::default();
    for job in jobs {
        counts.add_job(job, -1);
    }
    let gone = list(jobs.iter().map(|job| job.id.0));
    for statement in [
        "-- forget_keys\nDELETE FROM idempotency_keys WHERE job IN (SELECT unhex(value) FROM json_each(?1))",
        "-- forget_deviations\nDELETE FROM deviations WHERE job IN (SELECT unhex(value) FROM json_each(?1))",
        "-- forget_states\nDELETE FROM job_state WHERE job IN (SELECT unhex(value) FROM json_each(?1))",
        "-- forget_jobs\nDELETE FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?1))",
    ] {
        sqlx::query(statement)
            .bind(&gone)
            .execute(&mut *connection)
            .await
            .map_err(|e| fault(e, OPERATION))?;
    }
    counts.save(connection).await
}

/// Removes some of what is older of the feed, and remembers where that ended. True: more may be left.
async fn forget_feed(connection: &mut SqliteConnection, before: DateTime<Utc>) -> StoreResult<bool> {
    const OPERATION: &str = "shorten the feed";
    let oldest = sqlx::query("-- oldest_feed\nSELECT batch, at FROM feed ORDER BY batch LIMIT ?1")
        .bind(MAX_RETIRED_BATCHES)
        .fetch_all(&mut *connection)
        .await
        .map_err(|e| fault(e, OPERATION))?;
    // Up to the first batch that is young enough: the feed is kept from one point on, without holes.
    let old = oldest.iter().take_while(|row| row.get::<i64, _>("at") < micros(before));
    let old: Vec<i64> = old.map(|row| row.get("batch")).collect();
    let Some(&last) = old.last() else { return Ok(false) };
    for statement in [
        "-- feed_forgotten
        UPDATE feed_forgotten SET (batch, length) = (SELECT batch, length FROM feed WHERE batch = ?1)",
        "-- forget_feed\nDELETE FROM feed WHERE batch <= ?1",
    ] {
        sqlx::query(statement).bind(last).execute(&mut *connection).await.map_err(|e| fault(e, OPERATION))?;
    }
    Ok(old.len() >= MAX_RETIRED_BATCHES as usize)
}
