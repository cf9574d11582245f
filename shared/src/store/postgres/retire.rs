//! Retention: ended jobs and old feed batches go, a few at a time.

use super::{
    jobs::delete_ended,
    pools::{Lane, Pools, Work},
    rows::uuids,
};
use crate::{
    domain::JobId,
    store::{MAX_RETIRED_BATCHES, StoreResult, page::id_at},
};
use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt as _;
use sqlx::PgConnection;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// Most jobs looked at in one call.
const MAX_EXAMINED: i64 = 10_000;
/// How far the clock of an accepting process, which makes the ids, may be ahead of the server's; jobs of one that is
/// further ahead go later by as much.
const CLOCK_SLACK: TimeDelta = TimeDelta::minutes(1);

/// Where the walk over all jobs, oldest first, has come to. There is no index on when a job ended, which would cost every
/// job a write; so old jobs are looked at in turn, and those still waiting or running are not looked at every time.
/// Among the jobs looked at, those that ended first are retired first.
#[derive(Debug, Default)]
pub(super) struct Walk(Mutex<Uuid>);

impl Walk {
    fn stands_at(&self) -> Uuid {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_to(&self, job: Uuid) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = job;
    }
}

/// A stretch of the walk.
struct Stretch {
    before: DateTime<Utc>,
    after: Uuid,
    /// Nothing ends before it was accepted, so younger jobs are not looked at; a walk through them would not be back in
    /// time.
    below: Uuid,
    examine: i64,
}

/// A job on the walk, and when it ended, if that is long enough ago.
type Seen = (Uuid, Option<DateTime<Utc>>);

impl Pools {
    pub(super) async fn retirable(
        &self,
        walk: &Walk,
        before: DateTime<Utc>,
        limit: u32,
    ) -> StoreResult<Vec<JobId>> {
        let (start, below) = (walk.stands_at(), id_at(before + CLOCK_SLACK));
        let mut stretch = Stretch { before, after: start, below, examine: MAX_EXAMINED };
        let mut seen = self.read(Lane::Read, "find jobs to retire", &stretch, |c, s| walk_on(c, s)).await?;
        let at_end = i64::try_from(seen.len()).is_ok_and(|seen| seen < stretch.examine);
        if at_end && !start.is_nil() {
            stretch.after = Uuid::nil();
            let mut anew =
                self.read(Lane::Read, "find jobs to retire", &stretch, |c, s| walk_on(c, s)).await?;
            anew.retain(|(job, _)| *job <= start);
            seen.extend(anew);
        }
        let last = seen.last().map(|(job, _)| *job);
        let mut ended: Vec<_> = seen.into_iter().filter_map(|(job, at)| Some((at?, JobId(job)))).collect();
        ended.sort_unstable();
        if ended.len() <= limit as usize {
            // All there is to retire here is about to go; next time look further on.
            walk.go_to(last.filter(|_| !at_end).unwrap_or_default());
        }
        Ok(ended.into_iter().take(limit as usize).map(|(_, job)| job).collect())
    }

    pub(super) async fn retire(self: &Arc<Self>, jobs: &[JobId], before: DateTime<Utc>) -> StoreResult<u64> {
        let mut ids = uuids(jobs);
        ids.sort_unstable();
        let removed = self.write(Lane::Hot, "retire jobs", (ids, before), |c, (ids, before)| {
            async move { Ok(delete_ended(c, ids, Some(*before)).await?.len() as u64) }.boxed()
        });
        removed.await
    }

    pub(super) async fn retire_feed(self: &Arc<Self>, before: DateTime<Utc>) -> StoreResult<bool> {
        let removed =
            self.write(Lane::Hot, "retire the feed", before, |c, before| retire_feed(c, *before)).await?;
        Ok(removed >= i64::from(MAX_RETIRED_BATCHES))
    }
}

fn walk_on<'c>(connection: &'c mut PgConnection, stretch: &'c Stretch) -> Work<'c, Vec<Seen>> {
    sqlx::query_as(
        "-- jobs_to_retire
         SELECT j.id, CASE WHEN s.state >= 5 AND s.finished_at < $2 THEN s.finished_at END
           FROM (SELECT id FROM jobs WHERE id > $1 AND id < $4 ORDER BY id LIMIT $3) j
           JOIN job_state s ON s.job_id = ANY (ARRAY[j.id])
          ORDER BY j.id",
    )
    .bind(stretch.after)
    .bind(stretch.before)
    .bind(stretch.examine)
    .bind(stretch.below)
    .fetch_all(connection)
    .boxed()
}

/// Answers how many batches went.
fn retire_feed(connection: &mut PgConnection, before: DateTime<Utc>) -> Work<'_, i64> {
    sqlx::query_scalar(
        "-- retire_feed
         WITH old AS MATERIALIZED (
             SELECT f.batch FROM (SELECT batch, at FROM feed ORDER BY batch LIMIT $2) f WHERE f.at < $1
         ), gone AS (
             DELETE FROM feed f USING old WHERE f.batch = ANY (ARRAY[old.batch]) RETURNING f.batch, f.items
         ), raised AS (
             UPDATE feed_floor SET batch = last.batch, items = last.items
               FROM (SELECT g.batch, g.items FROM gone g ORDER BY g.batch DESC LIMIT 1) last
              WHERE (last.batch, last.items) > (feed_floor.batch, feed_floor.items)
         )
         SELECT count(*) FROM gone",
    )
    .bind(before)
    .bind(i64::from(MAX_RETIRED_BATCHES))
    .fetch_one(connection)
    .boxed()
}
