//! The kernel's view of the rows: load them for a decision, hand its moves to be saved.

use super::{
    pools::{Lane, Pools, Work},
    rows::{Columns, job_columns, kernel_row, life_columns, uuids},
    save::Batch,
};
use crate::{
    domain::{Job, JobId, RetryPolicy, Standing, WorkerId},
    store::{
        StoreResult,
        kernel::{Ledger, Move, Purpose, Row},
    },
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use sqlx::PgConnection;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use uuid::Uuid;

/// Rows for one call.
#[derive(Debug)]
pub(super) struct Rows {
    pools: Arc<Pools>,
    claimer: Option<WorkerId>,
    whole: bool,
    /// The whole jobs, as they were before the decision; only kept by [`Rows::of_whole_jobs`] and [`Rows::to_claim`].
    pub(super) jobs: HashMap<JobId, Job>,
    now: DateTime<Utc>,
}

impl Rows {
    /// For a decision whose caller wants the lives alone.
    pub(super) fn new(pools: &Arc<Pools>) -> Self {
        let now = DateTime::UNIX_EPOCH;
        Self { pools: Arc::clone(pools), claimer: None, whole: false, jobs: HashMap::new(), now }
    }

    /// For a decision whose caller wants the whole jobs back.
    pub(super) fn of_whole_jobs(pools: &Arc<Pools>) -> Self {
        Self { whole: true, ..Self::new(pools) }
    }

    /// For a claim of `worker`'s.
    pub(super) fn to_claim(pools: &Arc<Pools>, worker: WorkerId) -> Self {
        Self { claimer: Some(worker), whole: true, ..Self::new(pools) }
    }
}

/// Decisions that are no claims do not look at it.
const UNREAD: Standing =
    Standing { claimer_alive: true, owner_alive: true, cluster_paused: false, room: None };

#[async_trait]
impl Ledger for Rows {
    async fn load(&mut self, jobs: &[JobId], purpose: Purpose) -> StoreResult<(DateTime<Utc>, Vec<Row>)> {
        let ids = uuids(jobs);
        let (now, rows) = if self.whole || purpose == Purpose::Claim {
            let claimer = self.claimer.map(|worker| worker.0);
            let input = (ids, claimer);
            let (now, whole) = self
                .pools
                .read(Lane::Hot, "load jobs", &input, |c, (ids, claimer)| load_whole(c, ids, *claimer))
                .await?;
            let rows = whole.iter().map(|w| kernel_row(&w.job, w.version, w.standing)).collect();
            self.jobs.extend(whole.into_iter().map(|w| (w.job.id, w.job)));
            (now, rows)
        } else {
            self.pools.read(Lane::Hot, "load jobs", &ids, |c, ids| load_rows(c, ids)).await?
        };
        self.now = now;
        Ok((now, rows))
    }

    async fn save(&mut self, moves: &[Move]) -> StoreResult<HashSet<JobId>> {
        self.pools.save(Batch::of(moves, self.now)).await
    }
}

/// What the database says of a cluster's room.
pub(super) fn room(room: Option<i64>) -> Option<u32> {
    room.map(|room| u32::try_from(room.max(0)).unwrap_or(u32::MAX))
}

/// A job with everything a claim depends on.
struct Whole {
    job: Job,
    version: i32,
    standing: Standing,
}

fn load_rows<'c>(connection: &'c mut PgConnection, ids: &'c [Uuid]) -> Work<'c, (DateTime<Utc>, Vec<Row>)> {
    async move {
        let found = sqlx::query(concat!(
            "-- load_rows
             SELECT now(), s.job_id, s.project, s.cluster, s.retry, s.max_attempts, s.priority, s.version, ",
            life_columns!(),
            " FROM job_state s WHERE s.job_id = ANY ($1)"
        ))
        .bind(ids)
        .fetch_all(connection)
        .await?;
        let mut now = DateTime::UNIX_EPOCH;
        let mut rows = Vec::with_capacity(found.len());
        for row in &found {
            let mut columns = Columns::of(row);
            now = columns.take()?;
            rows.push(Row {
                job: JobId(columns.take()?),
                project: columns.name()?,
                cluster: columns.name()?,
                retry: columns.json::<RetryPolicy>()?,
                max_attempts: columns.number()?,
                priority: columns.take()?,
                version: columns.take::<i32>()?.into(),
                life: columns.life()?,
                standing: UNREAD,
            });
        }
        Ok((now, rows))
    }
    .boxed()
}

fn load_whole<'c>(
    connection: &'c mut PgConnection,
    ids: &'c [Uuid],
    claimer: Option<Uuid>,
) -> Work<'c, (DateTime<Utc>, Vec<Whole>)> {
    async move {
        let found = sqlx::query(concat!(
            "-- load_whole_jobs
             SELECT now(), s.version,
                    coalesce((SELECT w.expires_at > now() FROM workers w WHERE w.id = $2), false),
                    coalesce((SELECT w.expires_at > now() FROM workers w WHERE w.id = s.owner), false),
                    coalesce(s.cluster = ANY ((SELECT array_agg(c.name) FROM clusters c WHERE c.paused)::text[]), false),
                    (((SELECT jsonb_object_agg(r.cluster, r.room) FROM cluster_room r)) ->> s.cluster)::bigint, ",
            job_columns!(),
            " FROM job_state s JOIN jobs j ON j.id = ANY (ARRAY[s.job_id]) WHERE s.job_id = ANY ($1)"
        ))
        .bind(ids)
        .bind(claimer)
        .fetch_all(connection)
        .await?;
        let mut now = DateTime::UNIX_EPOCH;
        let mut whole = Vec::with_capacity(found.len());
        for row in &found {
            let mut columns = Columns::of(row);
            now = columns.take()?;
            let version = columns.take()?;
            let standing = Standing {
                claimer_alive: columns.take()?,
                owner_alive: columns.take()?,
                cluster_paused: columns.take()?,
                room: room(columns.take()?),
            };
            whole.push(Whole { job: columns.job()?, version, standing });
        }
        Ok((now, whole))
    }
    .boxed()
}
