//! What workers and recorders may do.

use super::{
    SqliteStore,
    queue::hint,
    rows::{LISTED_JOBS, Rows, id, job, list, micros, read, time, write},
    writer::{Transaction, fault},
};
use crate::{
    domain::{ClusterName, Job, JobId, StatusEvent, WorkerId},
    store::{
        Applied, Claimed, Heartbeat, Pulse, Recorded, StoreResult, ToHandBack, ToRecord, Vanished, Worker,
        WorkerCluster,
        kernel::{Decided, Told, decide, refused_for_room},
        page::Filling,
    },
};
use futures::TryStreamExt as _;
use sqlx::Row as _;
use std::{collections::HashMap, time::Duration};

/// How long a dead worker that holds nothing is still shown.
const MOURNED_FOR: Duration = Duration::from_hours(1);

impl SqliteStore {
    pub(super) async fn apply_events(&self, events: &[StatusEvent]) -> StoreResult<Vec<Applied>> {
        let events = events.to_vec();
        let applied = self.writer.run(|transaction| {
            Box::pin(async move {
                let facts: Vec<_> = events.iter().map(|event| (event.job, Told::Event(event))).collect();
                let decided = decide(&mut Rows { transaction, claimer: None }, &facts).await?;
                Ok(decided.iter().map(Decided::applied).collect())
            })
        });
        applied.await
    }

    pub(super) async fn give_up(
        &self,
        jobs: &[Vanished],
        lost_after: Option<Duration>,
    ) -> StoreResult<Vec<Applied>> {
        let jobs = jobs.to_vec();
        let given_up = self.writer.run(move |transaction| {
            Box::pin(async move {
                let facts: Vec<_> =
                    jobs.iter().map(|gone| (gone.job, Told::Vanished(gone, lost_after))).collect();
                let decided = decide(&mut Rows { transaction, claimer: None }, &facts).await?;
                Ok(decided.iter().map(Decided::applied).collect())
            })
        });
        given_up.await
    }

    pub(super) async fn register_worker(&self, worker: &Worker, ttl: Duration) -> StoreResult<()> {
        let worker = worker.clone();
        let registered = self.writer.run(move |transaction| {
            Box::pin(async move {
                let Transaction { connection, now } = transaction;
                let expires_at = *now + ttl;
                let told = write(&Worker { registered_at: *now, expires_at, ..worker.clone() })?;
                sqlx::query("-- register\nINSERT INTO workers (id, expires_at, told) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")
                    .bind(worker.id.0)
                    .bind(micros(expires_at))
                    .bind(told)
                    .execute(connection)
                    .await
                    .map_err(|e| fault(e, "register"))?;
                Ok(())
            })
        });
        registered.await
    }

    pub(super) async fn beat(&self, worker: WorkerId, pulse: &Pulse) -> StoreResult<Heartbeat> {
        let pulse = pulse.clone();
        self.writer.run(move |transaction| Box::pin(beat(transaction, worker, pulse))).await
    }

    pub(super) async fn claim_jobs(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        jobs: &[JobId],
        alone: bool,
    ) -> StoreResult<Vec<Claimed>> {
        let (clusters, jobs) = (clusters.to_vec(), jobs.to_vec());
        let claimed = self.writer.run(move |transaction| {
            Box::pin(async move {
                let told = Told::Claim { worker, clusters: &clusters, alone };
                let facts: Vec<_> = jobs.iter().map(|job| (*job, told)).collect();
                let decided = decide(&mut Rows { transaction, claimer: Some(worker) }, &facts).await?;
                let granted: Vec<_> = decided.into_iter().map(|answer| answer.granted(worker)).collect();
                let taken =
                    jobs.iter().zip(&granted).filter(|(_, answer)| answer.is_ok()).map(|(job, _)| *job);
                let known = jobs_now(transaction, taken).await?;
                let claimed = jobs.iter().zip(granted).map(|(job, answer)| match answer {
                    Err(no) => no,
                    Ok(life) => match known.get(job) {
                        Some(job) => Claimed::Granted(Box::new(Job { life: *life, ..job.clone() })),
                        None => Claimed::Absent,
                    },
                });
                let claimed: Vec<Claimed> = claimed.collect();
                let full = refused_for_room(&jobs, &claimed);
                if !full.is_empty() {
                    hint(&mut transaction.connection, &full, None).await?;
                }
                Ok(claimed)
            })
        });
        claimed.await
    }

    pub(super) async fn held_jobs(&self, worker: WorkerId) -> StoreResult<Vec<JobId>> {
        let rows = sqlx::query("-- held\nSELECT job FROM job_state WHERE owner = ?1 AND state IN (2, 3, 4)")
            .bind(worker.0)
            .fetch_all(&self.readers)
            .await
            .map_err(|e| fault(e, "look for what a worker holds"))?;
        rows.iter().map(|row| id(row, "job").map(JobId)).collect()
    }

    pub(super) async fn count_serving(&self, clusters: &[ClusterName]) -> StoreResult<Vec<u32>> {
        let count = sqlx::query_scalar(
            "-- serving
            SELECT (SELECT count(*) FROM workers
                     WHERE expires_at > ?2
                       AND EXISTS (SELECT 1 FROM json_each(told, '$.clusters') served
                                    WHERE served.value ->> '$.name' = asked.value))
              FROM json_each(?1) asked ORDER BY asked.key",
        );
        count
            .bind(write(&clusters)?)
            .bind(micros(self.clock.now()))
            .fetch_all(&self.readers)
            .await
            .map_err(|e| fault(e, "count who serves a cluster"))
    }

    pub(super) async fn jobs_in_hands(
        &self,
        cluster: &ClusterName,
        owners: &[WorkerId],
        after: Option<JobId>,
        limit: u32,
    ) -> StoreResult<Vec<Job>> {
        let query = sqlx::query(
            "-- in_hands
            SELECT jobs.asked, job_state.life, job_state.priority
              FROM job_state CROSS JOIN jobs ON jobs.id = job_state.job
             WHERE job_state.owner IN (SELECT unhex(value) FROM json_each(?1)) AND job_state.state IN (2, 3, 4)
               AND job_state.cluster = ?2 AND ifnull(job_state.job > ?3, 1)
             ORDER BY job_state.job LIMIT ?4",
        )
        .bind(list(owners.iter().map(|owner| owner.0)))
        .bind(cluster.as_str().to_owned())
        .bind(after.map(|job| job.0))
        .bind(limit);
        let mut rows = query.fetch(&self.readers);
        let mut filling = Filling::new(limit);
        while let Some(row) = rows.try_next().await.map_err(|e| fault(e, "look for what workers hold"))? {
            if !filling.take(job(&row)?) {
                break;
            }
        }
        Ok(filling.page(false).jobs)
    }

    pub(super) async fn record_submissions(&self, items: &[ToRecord]) -> StoreResult<Vec<Recorded>> {
        let items = items.to_vec();
        let recorded = self.writer.run(move |transaction| {
            Box::pin(async move {
                let facts: Vec<_> = items.iter().map(|item| (item.job, Told::Record(item))).collect();
                let decided = decide(&mut Rows { transaction, claimer: None }, &facts).await?;
                let lost = items
                    .iter()
                    .zip(&decided)
                    .filter(|(_, answer)| !answer.recorded())
                    .map(|(item, _)| item.job);
                let known = jobs_now(transaction, lost).await?;
                let recorded = items.iter().zip(&decided).map(|(item, answer)| {
                    if answer.recorded() {
                        Recorded::Won
                    } else {
                        Recorded::Lost { current: known.get(&item.job).cloned().map(Box::new) }
                    }
                });
                Ok(recorded.collect())
            })
        });
        recorded.await
    }

    pub(super) async fn take_back(&self, worker: WorkerId, items: &[ToHandBack]) -> StoreResult<()> {
        let items = items.to_vec();
        let taken = self.writer.run(move |transaction| {
            Box::pin(async move {
                let facts: Vec<_> =
                    items.iter().map(|item| (item.job, Told::HandBack(worker, item))).collect();
                decide(&mut Rows { transaction, claimer: None }, &facts).await?;
                Ok(())
            })
        });
        taken.await
    }

    pub(super) async fn end_lease(&self, worker: WorkerId) -> StoreResult<()> {
        let ended = self.writer.run(move |Transaction { connection, now }| {
            Box::pin(async move {
                sqlx::query(
                    "-- deregister\nUPDATE workers SET expires_at = min(expires_at, ?2) WHERE id = ?1",
                )
                .bind(worker.0)
                .bind(micros(*now))
                .execute(connection)
                .await
                .map_err(|e| fault(e, "deregister"))?;
                Ok(())
            })
        });
        ended.await
    }

    pub(super) async fn end_all_leases(&self) -> StoreResult<()> {
        let ended = self.writer.run(|Transaction { connection, now }| {
            Box::pin(async move {
                sqlx::query("-- expire_all_leases\nUPDATE workers SET expires_at = min(expires_at, ?1)")
                    .bind(micros(*now))
                    .execute(connection)
                    .await
                    .map_err(|e| fault(e, "end all leases"))?;
                Ok(())
            })
        });
        ended.await
    }

    pub(super) async fn judge_leftovers(&self, found: &[(JobId, u32, String)]) -> StoreResult<Vec<usize>> {
        let rows = sqlx::query(LISTED_JOBS)
            .bind(list(found.iter().map(|(job, ..)| job.0)))
            .fetch_all(&self.readers)
            .await
            .map_err(|e| fault(e, "judge leftovers"))?;
        let known = rows.iter().map(job).collect::<StoreResult<Vec<Job>>>()?;
        let lives: HashMap<JobId, _> = known.into_iter().map(|job| (job.id, job.life)).collect();
        let live = |job: &JobId, attempt: u32, submission: &str| {
            let Some(life) = lives.get(job) else { return false };
            let recorded = life.submission.as_ref().filter(|_| life.attempt == attempt);
            life.attempt <= attempt
                && !life.state.is_terminal()
                && recorded.is_none_or(|recorded| recorded.id == submission)
        };
        let left = found.iter().enumerate().filter(|(_, (job, attempt, id))| !live(job, *attempt, id));
        Ok(left.map(|(index, _)| index).collect())
    }

    pub(super) async fn known_workers(&self) -> StoreResult<Vec<Worker>> {
        let now = self.clock.now();
        let rows = sqlx::query(
            "-- workers
            SELECT told, expires_at FROM workers
             WHERE expires_at > ?1 OR EXISTS (SELECT 1 FROM job_state WHERE owner = workers.id AND state IN (2, 3, 4))",
        )
        .bind(micros(now - MOURNED_FOR))
        .fetch_all(&self.readers)
        .await
        .map_err(|e| fault(e, "list workers"))?;
        let worker = |row: &sqlx::sqlite::SqliteRow| {
            let (told, expires_at): (String, i64) = (row.get(0), row.get(1));
            let expires_at = time(expires_at);
            Ok(Worker { expires_at, alive: expires_at > now, ..read(&told)? })
        };
        rows.iter().map(worker).collect()
    }
}

/// The jobs as they stand inside the transaction.
async fn jobs_now(
    transaction: &mut Transaction,
    jobs: impl Iterator<Item = JobId>,
) -> StoreResult<HashMap<JobId, Job>> {
    let wanted = list(jobs.map(|job| job.0));
    let rows = sqlx::query(LISTED_JOBS)
        .bind(wanted)
        .fetch_all(&mut transaction.connection)
        .await
        .map_err(|e| fault(e, "read jobs"))?;
    let known = rows.iter().map(job).collect::<StoreResult<Vec<Job>>>()?;
    Ok(known.into_iter().map(|job| (job.id, job)).collect())
}

async fn beat(transaction: &mut Transaction, worker: WorkerId, pulse: Pulse) -> StoreResult<Heartbeat> {
    const OPERATION: &str = "heartbeat";
    let now = transaction.now;
    let connection = &mut transaction.connection;
    let known = sqlx::query("-- lease\nSELECT told FROM workers WHERE id = ?1 AND expires_at > ?2")
        .bind(worker.0)
        .bind(micros(now))
        .fetch_optional(&mut *connection)
        .await
        .map_err(|e| fault(e, OPERATION))?;
    let Some(row) = known else { return Ok(Heartbeat::Expired) };
    let mut told: Worker = read(&row.get::<String, _>(0))?;
    told.jobs = pulse.jobs;
    told.draining = pulse.draining;
    for cluster in &mut told.clusters {
        let parked = pulse.parked.iter().find(|(name, _)| *name == cluster.name);
        cluster.parked = parked.map(|(_, why)| why.clone());
    }
    sqlx::query("-- renew\nUPDATE workers SET expires_at = ?2, told = ?3 WHERE id = ?1")
        .bind(worker.0)
        .bind(micros(now + pulse.ttl))
        .bind(write(&told)?)
        .execute(&mut *connection)
        .await
        .map_err(|e| fault(e, OPERATION))?;
    let rows = sqlx::query(
        "-- cancels\nSELECT job FROM job_state WHERE owner = ?1 AND state IN (2, 3, 4) AND cancel",
    )
    .bind(worker.0)
    .fetch_all(&mut *connection)
    .await
    .map_err(|e| fault(e, OPERATION))?;
    let cancel = rows.iter().map(|row| id(row, "job").map(JobId)).collect::<StoreResult<_>>()?;
    let known = jobs_now(transaction, pulse.unsettled.iter().map(|(job, ..)| *job)).await?;
    let (mut settled, mut lost) = (Vec::new(), Vec::new());
    for (job, attempt, epoch) in &pulse.unsettled {
        match known.get(job).map(|job| &job.life) {
            None => settled.push(*job),
            Some(life) if life.attempt > *attempt || life.state.is_terminal() => settled.push(*job),
            Some(life) if life.epoch != *epoch || life.owner != Some(worker) => lost.push(*job),
            Some(_) => {}
        }
    }
    Ok(Heartbeat::Renewed { cancel, settled, lost })
}
