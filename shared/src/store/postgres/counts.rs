//! How many jobs stand where: sums over appended deltas, which are folded together now and then.

use super::{
    pools::{Lane, Pools, Work},
    rows::Columns,
};
use crate::store::{Depth, StoreResult};
use futures::FutureExt as _;
use sqlx::{Connection as _, PgConnection};
use std::sync::Arc;

/// Names the folding among advisory locks; any constant no other part uses.
const FOLDING: i64 = 0x6a6f_6267_6174_6501;

impl Pools {
    pub(super) async fn depths(&self) -> StoreResult<Vec<Depth>> {
        self.read(Lane::Read, "count jobs", &(), |c, ()| depths(c)).await
    }

    pub(super) async fn compact_counts(self: &Arc<Self>) -> StoreResult<bool> {
        self.write(Lane::Hot, "fold counts", (), |c, ()| fold(c)).await?;
        self.prune_claims().await
    }
}

fn depths(connection: &mut PgConnection) -> Work<'_, Vec<Depth>> {
    async move {
        let rows = sqlx::query(
            "-- depths
             SELECT project, cluster, priority, state, sum(jobs)::bigint
               FROM count_deltas
              GROUP BY project, cluster, priority, state
             HAVING sum(jobs) <> 0
              ORDER BY project, cluster, priority, state",
        )
        .fetch_all(connection)
        .await?;
        rows.iter()
            .map(|row| {
                let mut columns = Columns::of(row);
                Ok(Depth {
                    project: columns.name()?,
                    cluster: columns.name()?,
                    priority: columns.take()?,
                    state: columns.state()?,
                    jobs: columns.take::<i64>()?.unsigned_abs(),
                })
            })
            .collect()
    }
    .boxed()
}

/// The sum is the same before and after, so two at once would do no harm; the lock only saves the second one's work.
fn fold(connection: &mut PgConnection) -> Work<'_, ()> {
    async move {
        let mut transaction = connection.begin().await?;
        let mine: bool = sqlx::query_scalar(
            "-- lock_folding
             SELECT pg_try_advisory_xact_lock($1)",
        )
        .bind(FOLDING)
        .fetch_one(&mut *transaction)
        .await?;
        if mine {
            sqlx::query(
                "-- fold_counts
                 WITH folded AS (DELETE FROM count_deltas RETURNING project, cluster, priority, state, jobs)
                 INSERT INTO count_deltas (project, cluster, priority, state, jobs)
                 SELECT project, cluster, priority, state, sum(jobs)
                   FROM folded
                  GROUP BY project, cluster, priority, state
                 HAVING sum(jobs) <> 0",
            )
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await
    }
    .boxed()
}
