//! Between rows and the domain, and the kernel's two operations. Batches travel as one JSON list, so that each statement is
//! one, whatever the number of jobs.

use super::writer::{Transaction, fault};
use crate::{
    domain::{Change, ClusterName, Job, JobId, JobState, Life, NameError, SUSPECT_AFTER, Standing, WorkerId},
    store::{
        JobChange, StoreError, StoreResult,
        kernel::{Ledger, Move, Purpose, Row},
    },
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use std::collections::{BTreeMap, HashSet};
use uuid::Uuid;

/// An id as the JSON lists carry it; `unhex` makes the 16 bytes of it again.
pub(super) fn hex(id: Uuid) -> String {
    id.simple().to_string()
}

/// Ids as one list.
pub(super) fn list(ids: impl IntoIterator<Item = Uuid>) -> String {
    ids.into_iter().map(hex).collect::<Value>().to_string()
}

pub(super) fn micros(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros()
}

pub(super) fn time(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

/// A document as stored.
pub(super) fn write<T: Serialize>(value: &T) -> StoreResult<String> {
    serde_json::to_string(value)
        .map_err(|e| StoreError::Refused { operation: "write a document", source: e.into() })
}

/// A document as stored, read back. One that cannot be read was written by a newer version or damaged.
pub(super) fn read<T: DeserializeOwned>(text: &str) -> StoreResult<T> {
    serde_json::from_str(text)
        .map_err(|e| StoreError::Refused { operation: "read a document", source: e.into() })
}

pub(super) fn id(row: &SqliteRow, column: &str) -> StoreResult<Uuid> {
    row.try_get(column).map_err(|e| fault(e, "read an id"))
}

/// The columns [`job`] reads, from [`JOBS`].
pub(super) const JOB: &str = "jobs.asked, job_state.life, job_state.priority";
/// Whole jobs. CROSS JOIN keeps the order of the tables: there is no plan worth more than one look-up each.
pub(super) const JOBS: &str = "jobs CROSS JOIN job_state ON job_state.job = jobs.id";

/// The whole jobs of a list of ids, as a statement with the list as its parameter.
pub(super) const LISTED_JOBS: &str = "-- listed_jobs
    SELECT jobs.asked, job_state.life, job_state.priority
      FROM json_each(?1) wanted
           CROSS JOIN jobs ON jobs.id = unhex(wanted.value)
           CROSS JOIN job_state ON job_state.job = jobs.id";

/// A whole job from [`JOB`].
pub(super) fn job(row: &SqliteRow) -> StoreResult<Job> {
    let get = |column| row.try_get::<String, _>(column).map_err(|e| fault(e, "read a job"));
    let asked: Job = read(&get("asked")?)?;
    Ok(Job { life: read(&get("life")?)?, priority: priority(row)?, ..asked })
}

pub(super) fn priority(row: &SqliteRow) -> StoreResult<i16> {
    row.try_get("priority").map_err(|e| fault(e, "read a priority"))
}

pub(super) fn state(row: &SqliteRow) -> StoreResult<JobState> {
    let code: i16 = row.try_get("state").map_err(|e| fault(e, "read a state"))?;
    JobState::from_code(code).ok_or_else(|| StoreError::Refused {
        operation: "read a state",
        source: anyhow::anyhow!("{code} is no state"),
    })
}

/// The rows inside a transaction, on behalf of `claimer` when it is a claim.
pub(super) struct Rows<'t> {
    pub(super) transaction: &'t mut Transaction,
    pub(super) claimer: Option<WorkerId>,
}

#[async_trait]
impl Ledger for Rows<'_> {
    async fn load(&mut self, jobs: &[JobId], _: Purpose) -> StoreResult<(DateTime<Utc>, Vec<Row>)> {
        let Transaction { connection, now } = &mut *self.transaction;
        let rows = sqlx::query(
            "-- load_jobs
            WITH room AS MATERIALIZED (SELECT cluster, room FROM cluster_room)
            SELECT s.job, s.project, s.cluster, s.priority, s.max_attempts, s.retry, s.life, s.version,
                   EXISTS (SELECT 1 FROM workers WHERE workers.id = ?2 AND workers.expires_at > ?3) AS claimer_alive,
                   EXISTS (SELECT 1 FROM workers WHERE workers.id = s.owner AND workers.expires_at > ?3) AS owner_alive,
                   EXISTS (SELECT 1 FROM clusters WHERE clusters.name = s.cluster AND clusters.paused) AS paused,
                   (SELECT r.room FROM room r WHERE r.cluster = s.cluster) AS room
              FROM json_each(?1) wanted CROSS JOIN job_state s ON s.job = unhex(wanted.value)",
        )
        .bind(list(jobs.iter().map(|job| job.0)))
        .bind(self.claimer.map(|worker| worker.0))
        .bind(micros(*now))
        .fetch_all(&mut *connection)
        .await
        .map_err(|e| fault(e, "load jobs"))?;
        Ok((*now, rows.iter().map(decidable).collect::<StoreResult<_>>()?))
    }

    async fn save(&mut self, moves: &[Move]) -> StoreResult<HashSet<JobId>> {
        let Transaction { connection, now } = &mut *self.transaction;
        // Nobody else writes, and the rows were read inside this very transaction: every guard holds.
        let mut lives = Vec::with_capacity(moves.len());
        let (mut claimed, mut waiting, mut deviations) = (Vec::new(), Vec::new(), Vec::new());
        let (mut told, mut counts) = (Vec::new(), Counts::default());
        for moved in moves {
            let (before, after) = (&moved.before, &moved.after);
            lives.push(life_columns(before.job, after, moved.keeps_hint())?);
            if after.state == JobState::Initialized {
                waiting.push(queue_columns(before.job, &before.cluster, before.priority, after, None));
            } else if before.life.state == JobState::Initialized {
                claimed.push(Value::from(hex(before.job.0)));
            }
            counts.add(before, before.life.state, -1);
            counts.add(before, after.state, 1);
            for change in &moved.changes {
                if let Some(deviation) = Change::deviation(change) {
                    deviations.push(json!([hex(before.job.0), write(&deviation)?]));
                }
                told.push(JobChange {
                    job: before.job,
                    project: before.project.clone(),
                    entry: change.entry.clone(),
                });
            }
        }
        execute(
            connection,
            "-- save_jobs
            UPDATE job_state
               SET life = moved.value ->> 'life', version = version + 1, state = moved.value ->> 'state',
                   owner = unhex(moved.value ->> 'owner'), cancel = moved.value ->> 'cancel',
                   finished_at = moved.value ->> 'finished_at',
                   hinted_until = CASE WHEN moved.value ->> 'hinted' THEN hinted_until END
              FROM json_each(?1) moved
             WHERE job_state.job = unhex(moved.value ->> 'id')",
            lives,
        )
        .await?;
        if !claimed.is_empty() {
            execute(
                connection,
                "-- leave_queue
                DELETE FROM waiting WHERE job IN (SELECT unhex(value) FROM json_each(?1))",
                claimed,
            )
            .await?;
        }
        if !waiting.is_empty() {
            execute(connection, ENTER_QUEUE, waiting).await?;
        }
        if !deviations.is_empty() {
            execute(
                connection,
                "-- save_deviations
                INSERT INTO deviations (job, what)
                SELECT unhex(value ->> 0), value ->> 1 FROM json_each(?1) ORDER BY key",
                deviations,
            )
            .await?;
        }
        counts.save(connection).await?;
        tell(connection, *now, &told).await?;
        Ok(moves.iter().map(|moved| moved.before.job).collect())
    }
}

/// A row as far as a decision needs it.
fn decidable(row: &SqliteRow) -> StoreResult<Row> {
    let text = |column| row.try_get::<String, _>(column).map_err(|e| fault(e, "read a job"));
    let bad = |source: NameError| StoreError::Refused { operation: "read a name", source: source.into() };
    Ok(Row {
        job: JobId(id(row, "job")?),
        project: text("project")?.try_into().map_err(bad)?,
        cluster: text("cluster")?.try_into().map_err(bad)?,
        priority: priority(row)?,
        max_attempts: row.try_get("max_attempts").map_err(|e| fault(e, "read a job"))?,
        retry: read(&text("retry")?)?,
        life: read(&text("life")?)?,
        version: row.get("version"),
        standing: Standing {
            claimer_alive: row.get("claimer_alive"),
            owner_alive: row.get("owner_alive"),
            cluster_paused: row.get("paused"),
            room: row.get("room"),
        },
    })
}

/// Runs a statement whose one parameter is this list.
pub(super) async fn execute(
    connection: &mut SqliteConnection,
    statement: &'static str,
    list: Vec<Value>,
) -> StoreResult<()> {
    sqlx::query(statement)
        .bind(Value::from(list).to_string())
        .execute(connection)
        .await
        .map_err(|e| fault(e, "write rows"))?;
    Ok(())
}

/// Puts jobs into the queue, or anew where they stand.
pub(super) const ENTER_QUEUE: &str = "-- enter_queue
    INSERT OR REPLACE INTO waiting (job, cluster, priority, due_at, suspect, hinted_until)
    SELECT unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5 FROM json_each(?1)";

/// A row of [`ENTER_QUEUE`].
pub(super) fn queue_columns(
    job: JobId,
    cluster: &ClusterName,
    priority: i16,
    life: &Life,
    hinted_until: Option<i64>,
) -> Value {
    json!([hex(job.0), cluster, priority, micros(life.due_at), is_suspect(life), hinted_until])
}

/// It may be what kills workers.
pub(super) fn is_suspect(life: &Life) -> bool {
    life.submission.is_none() && life.fruitless_claims >= SUSPECT_AFTER
}

/// What of a life is searched for, beside the life itself.
pub(super) fn life_columns(job: JobId, life: &Life, hinted: bool) -> StoreResult<Value> {
    Ok(json!({
        "id": hex(job.0),
        "life": write(life)?,
        "state": life.state.code(),
        "owner": life.owner.map(|worker| hex(worker.0)),
        "cancel": life.cancel_requested,
        "finished_at": life.finished_at.map(micros),
        "hinted": hinted,
    }))
}

/// Changes of the counts, added up before they are written.
#[derive(Default)]
pub(super) struct Counts(BTreeMap<(String, String, i16, i16), i64>);

impl Counts {
    fn add(&mut self, row: &Row, state: JobState, jobs: i64) {
        self.put(row.project.as_str(), row.cluster.as_str(), row.priority, state, jobs);
    }

    pub(super) fn put(&mut self, project: &str, cluster: &str, priority: i16, state: JobState, jobs: i64) {
        *self.0.entry((project.to_owned(), cluster.to_owned(), priority, state.code())).or_default() += jobs;
    }

    pub(super) fn add_job(&mut self, job: &Job, jobs: i64) {
        self.put(job.project.as_str(), job.cluster.as_str(), job.priority, job.life.state, jobs);
    }

    pub(super) async fn save(self, connection: &mut SqliteConnection) -> StoreResult<()> {
        let changed = self.0.into_iter().filter(|(_, jobs)| *jobs != 0);
        let changed = changed
            .map(|((project, cluster, priority, state), n)| json!([project, cluster, priority, state, n]));
        let changed: Vec<Value> = changed.collect();
        if changed.is_empty() {
            return Ok(());
        }
        execute(
            connection,
            "-- save_counts
            INSERT INTO counts (project, cluster, priority, state, jobs)
            SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?1) WHERE true
            ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs",
            changed,
        )
        .await
    }
}

/// Appends what was done to the feed.
pub(super) async fn tell(
    connection: &mut SqliteConnection,
    now: DateTime<Utc>,
    told: &[JobChange],
) -> StoreResult<()> {
    if told.is_empty() {
        return Ok(());
    }
    sqlx::query("-- tell\nINSERT INTO feed (at, changes, length) VALUES (?1, ?2, ?3)")
        .bind(micros(now))
        .bind(write(&told)?)
        .bind(i64::try_from(told.len()).unwrap_or(i64::MAX))
        .execute(connection)
        .await
        .map_err(|e| fault(e, "tell"))?;
    Ok(())
}
