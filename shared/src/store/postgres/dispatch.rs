//! What the dispatcher asks: which jobs wait, and which of them to hint.

use super::{
    ledger::room,
    pools::{Lane, Pools, Work},
    rows::{Columns, seconds, uuids},
};
use crate::{
    domain::{ClusterName, JobId},
    store::{Due, Hinted, Oldest, StoreResult},
};
use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use sqlx::PgConnection;
use std::{cmp::Reverse, sync::Arc, time::Duration};

/// What to hint: of which cluster, how many, for how many seconds.
struct Hinting {
    cluster: String,
    limit: i64,
    seconds: f64,
    /// Seconds since a former hint ran out.
    again_seconds: f64,
}

impl Pools {
    pub(super) async fn due(
        self: &Arc<Self>,
        cluster: &ClusterName,
        limit: u32,
        hint_for: Duration,
        again_after: Duration,
    ) -> StoreResult<Vec<Due>> {
        let hinting = Hinting {
            cluster: cluster.as_str().to_owned(),
            limit: limit.into(),
            seconds: seconds(hint_for),
            again_seconds: seconds(again_after),
        };
        self.write(Lane::Hot, "hint due jobs", hinting, |c, hinting| due(c, hinting)).await
    }

    pub(super) async fn outstanding(&self) -> StoreResult<Vec<Hinted>> {
        self.read(Lane::Read, "count hints", &(), |c, ()| outstanding(c)).await
    }

    pub(super) async fn oldest(&self) -> StoreResult<Vec<Oldest>> {
        self.read(Lane::Read, "find the oldest due jobs", &(), |c, ()| oldest(c)).await
    }

    pub(super) async fn unhint(self: &Arc<Self>, jobs: &[JobId]) -> StoreResult<()> {
        let mut ids = uuids(jobs);
        ids.sort_unstable();
        self.write(Lane::Hot, "take hints back", ids.clone(), |c, ids| {
            let unhint = sqlx::query(
                "-- unhint_waiting
                 UPDATE waiting SET hint_until = NULL WHERE job_id = ANY ($1) AND hint_until IS NOT NULL",
            );
            async move { unhint.bind(ids).execute(c).await.map(drop) }.boxed()
        })
        .await?;
        self.unhint_claims(ids).await
    }
}

/// Walks the queues of the cluster from the most urgent priority down, each only as far as it is due. Rows are marked in
/// the order of ids, in which claims lock them too.
fn due<'c>(connection: &'c mut PgConnection, hinting: &'c Hinting) -> Work<'c, Vec<Due>> {
    async move {
        let rows = sqlx::query(
            "-- hint_due
             WITH RECURSIVE queue AS (
                 (SELECT w.priority FROM waiting w
                   WHERE w.cluster = $1 AND NOT w.held AND w.hint_until IS NULL
                   ORDER BY w.cluster, w.priority DESC LIMIT 1)
                 UNION ALL
                 SELECT further.priority FROM queue CROSS JOIN LATERAL (
                     SELECT w.priority FROM waiting w
                      WHERE w.cluster = $1 AND w.priority < queue.priority AND NOT w.held AND w.hint_until IS NULL
                      ORDER BY w.cluster, w.priority DESC LIMIT 1) AS further
             ), fresh AS (
                 SELECT w.job_id, w.priority, w.due_at FROM queue CROSS JOIN LATERAL (
                     SELECT w.job_id, w.priority, w.due_at FROM waiting w
                      WHERE w.cluster = $1 AND w.priority = queue.priority AND NOT w.held AND w.hint_until IS NULL
                        AND w.due_at <= now()
                      ORDER BY w.cluster, w.priority DESC, w.due_at, w.job_id LIMIT $2) AS w
                  LIMIT $2
             ), expired AS (
                 SELECT w.job_id, w.priority, w.due_at FROM waiting w
                  WHERE w.cluster = $1 AND NOT w.held AND w.hint_until IS NOT NULL
                    AND w.hint_until <= now() - make_interval(secs => $4) AND w.due_at <= now()
                  ORDER BY w.priority DESC, w.due_at, w.job_id LIMIT $2
             ), urgent AS (
                 SELECT c.job_id, c.again
                   FROM (SELECT *, false AS again FROM fresh UNION ALL SELECT *, true FROM expired) c
                  ORDER BY c.priority DESC, c.due_at, c.job_id LIMIT $2
             ), picked AS MATERIALIZED (SELECT job_id, again FROM urgent ORDER BY job_id)
             UPDATE waiting w SET hint_until = now() + make_interval(secs => $3)
               FROM picked p
              WHERE w.job_id = ANY (ARRAY[p.job_id]) AND NOT w.held AND (w.hint_until IS NULL OR w.hint_until <= now())
             RETURNING w.job_id, w.suspect, p.again, extract(epoch FROM now() - w.due_at)::float8, w.priority, w.due_at",
        )
        .bind(&hinting.cluster)
        .bind(hinting.limit)
        .bind(hinting.seconds)
        .bind(hinting.again_seconds)
        .fetch_all(connection)
        .await?;
        let mut hinted = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut columns = Columns::of(row);
            let due = Due {
                job: JobId(columns.take()?),
                suspect: columns.take()?,
                again: columns.take()?,
                waited: Duration::try_from_secs_f64(columns.take()?).unwrap_or_default(),
            };
            let urgency: (Reverse<i16>, DateTime<Utc>) = (Reverse(columns.take()?), columns.take()?);
            hinted.push((urgency, due));
        }
        hinted.sort_unstable_by_key(|(urgency, due)| (*urgency, due.job));
        Ok(hinted.into_iter().map(|(_, due)| due).collect())
    }
    .boxed()
}

fn outstanding(connection: &mut PgConnection) -> Work<'_, Vec<Hinted>> {
    async move {
        let rows = sqlx::query(
            "-- outstanding_hints
             SELECT q.cluster, count(*) FILTER (WHERE q.hint_until > now()),
                    count(*) FILTER (WHERE q.hint_until <= now()),
                    (SELECT r.room FROM cluster_room r WHERE r.cluster = q.cluster)
               FROM (SELECT h.cluster, NULL AS hint_until FROM queue_heads h WHERE h.due_at <= now()
                     UNION ALL
                     SELECT w.cluster, w.hint_until FROM waiting w
                      WHERE NOT w.held AND w.hint_until IS NOT NULL AND w.due_at <= now()) q
              GROUP BY q.cluster
              ORDER BY q.cluster",
        )
        .fetch_all(connection)
        .await?;
        rows.iter()
            .map(|row| {
                let mut columns = Columns::of(row);
                Ok(Hinted {
                    cluster: columns.name()?,
                    outstanding: columns.take::<i64>()?.unsigned_abs(),
                    expired: columns.take::<i64>()?.unsigned_abs(),
                    room: room(columns.take()?),
                })
            })
            .collect()
    }
    .boxed()
}

fn oldest(connection: &mut PgConnection) -> Work<'_, Vec<Oldest>> {
    async move {
        let rows = sqlx::query(
            "-- oldest_due
             SELECT q.cluster, q.priority, min(q.due_at)
               FROM (SELECT h.cluster, h.priority, h.due_at FROM queue_heads h WHERE h.due_at <= now()
                     UNION ALL
                     SELECT w.cluster, w.priority, w.due_at FROM waiting w
                      WHERE NOT w.held AND w.hint_until IS NOT NULL AND w.due_at <= now()) q
              GROUP BY q.cluster, q.priority
              ORDER BY q.cluster, q.priority",
        )
        .fetch_all(connection)
        .await?;
        rows.iter()
            .map(|row| {
                let mut columns = Columns::of(row);
                Ok(Oldest { cluster: columns.name()?, priority: columns.take()?, due_since: columns.take()? })
            })
            .collect()
    }
    .boxed()
}
