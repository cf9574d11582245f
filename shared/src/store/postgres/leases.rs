//! What workers do: leases, claims, records, hand-backs.

use super::{
    insert::whole_jobs,
    ledger::Rows,
    pools::{Lane, Pools, Work},
    rows::{Columns, bytes_before, job, job_columns, json, most_bytes, seconds, signed, sparse_json, uuids},
};
use crate::{
    domain::{ClusterName, Job, JobId, JobState, StatusEvent, WorkerId},
    store::{
        Applied, Claimed, Heartbeat, Pulse, Recorded, StoreResult, ToHandBack, ToRecord, Worker,
        WorkerCluster,
        kernel::{Told, decide, refused_for_room},
        page::up_to_a_page,
    },
};
use futures::FutureExt as _;
use sqlx::{PgConnection, Row as _};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use uuid::Uuid;

/// Most cancel requests one heartbeat carries; the rest come with the next.
const MAX_CANCELS: i64 = 10_000;
/// How long a dead worker that holds nothing is still shown, as an interval of the server's.
pub(super) const MOURNED_FOR: &str = "1 hour";
/// Where to find the jobs `s` of the worker `w`. A claim alone is no sign of one: claims are pruned later than jobs go. `OFFSET 0`
/// leaves the planner one way: for each job claimed, down the index. The other way round costs the product of both tables.
macro_rules! from_held_jobs {
    () => {
        "FROM claims c
         CROSS JOIN LATERAL unnest(c.job_ids) AS held (job_id)
         CROSS JOIN LATERAL (SELECT s.job_id FROM job_state s
                              WHERE s.job_id = held.job_id AND s.owner = w.id AND s.state IN (2, 3, 4) OFFSET 0) s
         WHERE c.worker_id = w.id"
    };
}
/// The worker `w` holds jobs.
pub(super) const HOLDS_JOBS: &str = concat!("EXISTS (SELECT ", from_held_jobs!(), ")");

impl Pools {
    pub(super) async fn apply(self: &Arc<Self>, events: &[StatusEvent]) -> StoreResult<Vec<Applied>> {
        let facts: Vec<_> = events.iter().map(|event| (event.job, Told::Event(event))).collect();
        let decided = decide(&mut Rows::new(self), &facts).await?;
        Ok(decided.iter().map(crate::store::kernel::Decided::applied).collect())
    }

    pub(super) async fn claim(
        self: &Arc<Self>,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        jobs: &[JobId],
        alone: bool,
    ) -> StoreResult<Vec<Claimed>> {
        let told = Told::Claim { worker, clusters, alone };
        let facts: Vec<_> = jobs.iter().map(|job| (*job, told)).collect();
        let mut rows = Rows::to_claim(self, worker);
        let decided = decide(&mut rows, &facts).await?;
        let claimed = jobs.iter().zip(decided).map(|(job, answer)| match answer.granted(worker) {
            Err(no) => no,
            Ok(life) => rows.jobs.get(job).map_or(Claimed::Absent, |job| {
                Claimed::Granted(Box::new(Job { life: *life, ..job.clone() }))
            }),
        });
        let claimed: Vec<Claimed> = claimed.collect();
        let full = refused_for_room(jobs, &claimed);
        if !full.is_empty() {
            self.unhint(&full).await?;
        }
        Ok(claimed)
    }

    pub(super) async fn record(self: &Arc<Self>, items: &[ToRecord]) -> StoreResult<Vec<Recorded>> {
        let facts: Vec<_> = items.iter().map(|item| (item.job, Told::Record(item))).collect();
        let decided = decide(&mut Rows::new(self), &facts).await?;
        let lost = items.iter().zip(&decided).filter(|(_, answer)| !answer.recorded());
        let lost: Vec<JobId> = lost.map(|(item, _)| item.job).collect();
        let mut current = HashMap::new();
        if !lost.is_empty() {
            let found = self.read(Lane::Hot, "read jobs", &uuids(&lost), |c, ids| whole_jobs(c, ids)).await?;
            current.extend(found.into_iter().map(|job| (job.id, job)));
        }
        let recorded = items.iter().zip(&decided).map(|(item, answer)| {
            if answer.recorded() {
                Recorded::Won
            } else {
                Recorded::Lost { current: current.get(&item.job).cloned().map(Box::new) }
            }
        });
        Ok(recorded.collect())
    }

    pub(super) async fn hand_back(
        self: &Arc<Self>,
        worker: WorkerId,
        items: &[ToHandBack],
    ) -> StoreResult<()> {
        let facts: Vec<_> = items.iter().map(|item| (item.job, Told::HandBack(worker, item))).collect();
        decide(&mut Rows::new(self), &facts).await.map(drop)
    }

    pub(super) async fn register(self: &Arc<Self>, worker: &Worker, ttl: Duration) -> StoreResult<()> {
        self.write(Lane::Beat, "register a worker", (worker.clone(), ttl), |c, (worker, ttl)| {
            register(c, worker, *ttl)
        })
        .await
    }

    pub(super) async fn heartbeat(
        self: &Arc<Self>,
        worker: WorkerId,
        pulse: &Pulse,
    ) -> StoreResult<Heartbeat> {
        self.write(Lane::Beat, "renew a lease", (worker, pulse.clone()), |c, (worker, pulse)| {
            heartbeat(c, *worker, pulse)
        })
        .await
    }

    pub(super) async fn deregister(self: &Arc<Self>, worker: WorkerId) -> StoreResult<()> {
        self.write(Lane::Beat, "end a lease", worker, |c, worker| {
            let end = sqlx::query(
                "-- end_lease
                 UPDATE workers SET expires_at = now() WHERE id = $1 AND expires_at > now()",
            );
            async move { end.bind(worker.0).execute(c).await.map(drop) }.boxed()
        })
        .await
    }

    pub(super) async fn expire_all_leases(self: &Arc<Self>) -> StoreResult<()> {
        self.write(Lane::Beat, "end every lease", (), |c, ()| {
            let end = sqlx::query(
                "-- end_every_lease
                 UPDATE workers SET expires_at = now() WHERE expires_at > now()",
            );
            async move { end.execute(c).await.map(drop) }.boxed()
        })
        .await
    }

    pub(super) async fn workers(&self) -> StoreResult<Vec<Worker>> {
        self.read(Lane::Read, "list workers", &(), |c, ()| workers(c)).await
    }

    pub(super) async fn held(&self, worker: WorkerId) -> StoreResult<Vec<JobId>> {
        self.read(Lane::Read, "look for what a worker holds", &worker, |c, worker| held(c, *worker)).await
    }

    pub(super) async fn serving(&self, clusters: &[ClusterName]) -> StoreResult<Vec<u32>> {
        let clusters: Vec<String> = clusters.iter().map(|cluster| cluster.as_str().to_owned()).collect();
        self.read(Lane::Read, "count who serves clusters", &clusters, |c, clusters| serving(c, clusters))
            .await
    }

    pub(super) async fn in_hands(
        &self,
        cluster: &ClusterName,
        owners: &[WorkerId],
        after: Option<JobId>,
        limit: u32,
    ) -> StoreResult<Vec<Job>> {
        let hands = Hands {
            cluster: cluster.as_str().to_owned(),
            owners: owners.iter().map(|owner| owner.0).collect(),
            after: after.map(|job| job.0),
            limit: limit.into(),
        };
        self.read(Lane::Read, "look for what workers hold", &hands, |c, hands| in_hands(c, hands)).await
    }

    pub(super) async fn leftovers(&self, found: &[(JobId, u32, String)]) -> StoreResult<Vec<usize>> {
        let ids: Vec<Uuid> = found.iter().map(|(job, ..)| job.0).collect();
        let recorded = self.read(Lane::Read, "look for leftovers", &ids, |c, ids| recorded(c, ids)).await?;
        let live = |job: &JobId, attempt: u32, submission: &str| {
            let Some(row) = recorded.get(job) else { return false };
            let same = row.submission.as_ref().filter(|_| row.attempt == attempt);
            row.attempt <= attempt
                && !row.state.is_terminal()
                && same.is_none_or(|recorded| recorded == submission)
        };
        let left = found.iter().enumerate().filter(|(_, (job, attempt, id))| !live(job, *attempt, id));
        Ok(left.map(|(index, _)| index).collect())
    }
}

fn register<'c>(connection: &'c mut PgConnection, worker: &'c Worker, ttl: Duration) -> Work<'c, ()> {
    async move {
        let told = worker.clusters.iter();
        let parked = told.filter_map(|cluster| Some((cluster.name.as_str(), cluster.parked.as_deref()?)));
        sqlx::query(
            "-- register_worker
             INSERT INTO workers (id, registered_at, expires_at, jobs, draining, host, clusters, parked)
             VALUES ($1, now(), now() + make_interval(secs => $2), $3, $4, $5, $6, $7)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(worker.id.0)
        .bind(seconds(ttl))
        .bind(signed(worker.jobs))
        .bind(worker.draining)
        .bind(&worker.host)
        .bind(json(&worker.clusters))
        .bind(sparse_json(&parked.collect::<BTreeMap<_, _>>()))
        .execute(connection)
        .await
        .map(drop)
    }
    .boxed()
}

/// One statement: the lease runs on exactly if it still ran, and the news are of the same moment.
fn heartbeat<'c>(
    connection: &'c mut PgConnection,
    worker: WorkerId,
    pulse: &'c Pulse,
) -> Work<'c, Heartbeat> {
    async move {
        let parked = pulse.parked.iter().map(|(cluster, why)| (cluster.as_str(), why.as_str()));
        let renewed = sqlx::query(
            "-- renew_lease
             WITH lease AS (
                 UPDATE workers
                    SET expires_at = now() + make_interval(secs => $2), jobs = $3, draining = $4, parked = $5
                  WHERE id = $1 AND expires_at > now()
                 RETURNING id
             )
             SELECT ARRAY(SELECT c.job_id FROM cancel_requests c WHERE c.owner = lease.id LIMIT $9),
                    news.settled, news.lost
               FROM lease
              CROSS JOIN LATERAL (
                    SELECT array_agg(u.job_id) FILTER (WHERE r.over IS NOT FALSE) AS settled,
                           array_agg(u.job_id) FILTER (WHERE NOT r.over AND NOT r.mine) AS lost
                      FROM unnest($6::uuid[], $7::integer[], $8::integer[]) AS u (job_id, attempt, epoch)
                      LEFT JOIN LATERAL (
                           SELECT s.attempt > u.attempt OR s.state >= 5 AS over,
                                  s.epoch = u.epoch AND coalesce(s.owner = lease.id, false) AS mine
                             FROM job_state s WHERE s.job_id = u.job_id) r ON true
              ) news",
        )
        .bind(worker.0)
        .bind(seconds(pulse.ttl))
        .bind(signed(pulse.jobs))
        .bind(pulse.draining)
        .bind(sparse_json(&parked.collect::<BTreeMap<_, _>>()))
        .bind(pulse.unsettled.iter().map(|(job, ..)| job.0).collect::<Vec<_>>())
        .bind(pulse.unsettled.iter().map(|(_, attempt, _)| signed(*attempt)).collect::<Vec<_>>())
        .bind(pulse.unsettled.iter().map(|(.., epoch)| signed(*epoch)).collect::<Vec<_>>())
        .bind(MAX_CANCELS)
        .fetch_optional(connection)
        .await?;
        let Some(row) = renewed else { return Ok(Heartbeat::Expired) };
        let jobs = |ids: Option<Vec<Uuid>>| ids.into_iter().flatten().map(JobId).collect();
        Ok(Heartbeat::Renewed {
            cancel: jobs(row.try_get(0)?),
            settled: jobs(row.try_get(1)?),
            lost: jobs(row.try_get(2)?),
        })
    }
    .boxed()
}

fn workers(connection: &mut PgConnection) -> Work<'_, Vec<Worker>> {
    async move {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "-- list_workers
             SELECT w.id, w.host, w.clusters, w.parked, w.registered_at, w.expires_at, w.expires_at > now(), w.draining,
                    w.jobs
               FROM workers w
              WHERE w.expires_at > now() - interval '{MOURNED_FOR}' OR {HOLDS_JOBS}
              ORDER BY w.id"
        )))
        .fetch_all(connection)
        .await?;
        rows.iter()
            .map(|row| {
                let mut columns = Columns::of(row);
                let (id, host) = (WorkerId(columns.take()?), columns.take()?);
                let mut clusters: Vec<WorkerCluster> = columns.json()?;
                let mut parked: BTreeMap<String, String> = columns.json()?;
                for cluster in &mut clusters {
                    cluster.parked = parked.remove(cluster.name.as_str());
                }
                Ok(Worker {
                    id,
                    host,
                    clusters,
                    registered_at: columns.take()?,
                    expires_at: columns.take()?,
                    alive: columns.take()?,
                    draining: columns.take()?,
                    jobs: columns.number()?,
                })
            })
            .collect()
    }
    .boxed()
}

fn held(connection: &mut PgConnection, worker: WorkerId) -> Work<'_, Vec<JobId>> {
    async move {
        let rows = sqlx::query(concat!(
            "-- held_jobs
             SELECT DISTINCT mine.job_id
               FROM workers w CROSS JOIN LATERAL (SELECT s.job_id ",
            from_held_jobs!(),
            ") mine WHERE w.id = $1"
        ))
        .bind(worker.0)
        .fetch_all(connection)
        .await?;
        rows.iter().map(|row| row.try_get(0).map(JobId)).collect()
    }
    .boxed()
}

fn serving<'c>(connection: &'c mut PgConnection, clusters: &'c [String]) -> Work<'c, Vec<u32>> {
    async move {
        let serving: Vec<i64> = sqlx::query_scalar(
            "-- workers_serving
             SELECT count(w.id) FROM unnest($1::text[]) WITH ORDINALITY AS asked (name, place)
               LEFT JOIN workers w
                 ON w.expires_at > now()
                AND w.clusters::jsonb @> jsonb_build_array(jsonb_build_object('name', asked.name))
              GROUP BY asked.place ORDER BY asked.place",
        )
        .bind(clusters)
        .fetch_all(connection)
        .await?;
        Ok(serving.into_iter().map(|count| u32::try_from(count).unwrap_or(u32::MAX)).collect())
    }
    .boxed()
}

/// Whose jobs to look for, and which of them.
struct Hands {
    cluster: String,
    owners: Vec<Uuid>,
    after: Option<Uuid>,
    limit: i64,
}

fn in_hands<'c>(connection: &'c mut PgConnection, hands: &'c Hands) -> Work<'c, Vec<Job>> {
    async move {
        let rows = sqlx::query(concat!(
            "-- jobs_in_hands
             SELECT * FROM (
                 SELECT ",
            job_columns!(),
            ", ",
            bytes_before!("j.id"),
            " AS before
                   FROM (SELECT DISTINCT s.job_id
                           FROM claims c
                          CROSS JOIN LATERAL unnest(c.job_ids) AS held (job_id)
                           JOIN job_state s ON s.job_id = ANY (ARRAY[held.job_id])
                          WHERE c.worker_id = ANY ($1) AND s.owner = c.worker_id AND s.state IN (2, 3, 4)
                            AND s.cluster = $2 AND ($3::uuid IS NULL OR s.job_id > $3)
                          ORDER BY s.job_id LIMIT $4) mine
                   JOIN jobs j ON j.id = ANY (ARRAY[mine.job_id])
                   JOIN job_state s ON s.job_id = ANY (ARRAY[mine.job_id])) m
              WHERE coalesce(m.before, 0) < $5 ORDER BY m.id"
        ))
        .bind(&hands.owners)
        .bind(&hands.cluster)
        .bind(hands.after)
        .bind(hands.limit)
        .bind(most_bytes())
        .fetch_all(connection)
        .await?;
        up_to_a_page(rows.iter().map(job))
    }
    .boxed()
}

/// What a row records of its attempt.
struct Recording {
    attempt: u32,
    state: JobState,
    submission: Option<String>,
}

fn recorded<'c>(connection: &'c mut PgConnection, ids: &'c [Uuid]) -> Work<'c, HashMap<JobId, Recording>> {
    async move {
        let rows = sqlx::query(
            "-- recorded_submissions
             SELECT s.job_id, s.attempt, s.state, s.submission_id FROM job_state s WHERE s.job_id = ANY ($1)",
        )
        .bind(ids)
        .fetch_all(connection)
        .await?;
        rows.iter()
            .map(|row| {
                let mut columns = Columns::of(row);
                let job = JobId(columns.take()?);
                let (attempt, state, submission) = (columns.number()?, columns.state()?, columns.take()?);
                Ok((job, Recording { attempt, state, submission }))
            })
            .collect()
    }
    .boxed()
}
