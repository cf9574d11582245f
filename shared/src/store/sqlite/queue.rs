//! What the dispatcher and the feed read: due jobs, hints, stranded jobs, counts, changes.

use super::{
    SqliteStore,
    rows::{id, is_suspect, list, micros, read, state, time},
    writer::{Transaction, fault},
};
use crate::{
    domain::{ClusterName, JobId, Life, Project, WorkerId},
    store::{
        Changes, Depth, Due, FeedCursor, Hinted, JobChange, Oldest, StoreError, StoreResult, Stranded,
        StrandedJob,
    },
};
use chrono::{DateTime, Utc};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use std::{collections::BTreeMap, time::Duration};

/// How long a dead worker that holds nothing is still known.
const MOURNED_FOR: Duration = Duration::from_hours(1);

fn cluster(row: &SqliteRow) -> StoreResult<ClusterName> {
    row.get::<String, _>("cluster").try_into().map_err(bad_name)
}

fn bad_name(source: crate::domain::NameError) -> StoreError {
    StoreError::Refused { operation: "read a name", source: source.into() }
}

/// Notes how long hints are good, for waiting and for stranded jobs.
pub(super) async fn hint(
    connection: &mut SqliteConnection,
    jobs: &[JobId],
    until: Option<i64>,
) -> StoreResult<()> {
    for statement in [
        "-- hint_waiting\nUPDATE waiting SET hinted_until = ?2 WHERE job IN (SELECT unhex(value) FROM json_each(?1))",
        "-- hint_stranded
        UPDATE job_state SET hinted_until = ?2
         WHERE job IN (SELECT unhex(value) FROM json_each(?1)) AND state IN (2, 3, 4)",
    ] {
        sqlx::query(statement)
            .bind(list(jobs.iter().map(|job| job.0)))
            .bind(until)
            .execute(&mut *connection)
            .await
            .map_err(|e| fault(e, "hint jobs"))?;
    }
    Ok(())
}

impl SqliteStore {
    pub(super) async fn counted(&self) -> StoreResult<Vec<Depth>> {
        let rows = sqlx::query(
            "-- depths
            SELECT project, cluster, priority, state, jobs FROM counts WHERE jobs > 0
             ORDER BY project, cluster, priority, state",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(|e| fault(e, "read depths"))?;
        let depth = |row: &SqliteRow| {
            let project: Project = row.get::<String, _>("project").try_into().map_err(bad_name)?;
            let jobs = u64::try_from(row.get::<i64, _>("jobs")).unwrap_or(0);
            Ok(Depth {
                project,
                cluster: cluster(row)?,
                priority: row.get("priority"),
                state: state(row)?,
                jobs,
            })
        };
        rows.iter().map(depth).collect()
    }

    pub(super) async fn oldest_due(&self) -> StoreResult<Vec<Oldest>> {
        let rows = sqlx::query(
            "-- oldest
            SELECT cluster, priority, due_at
              FROM (SELECT q.cluster, q.priority,
                           (SELECT min(w.due_at) FROM waiting w WHERE w.cluster = q.cluster AND w.priority = q.priority) AS due_at
                      FROM (SELECT DISTINCT cluster, priority FROM counts WHERE state = 1 AND jobs > 0) q)
             WHERE due_at <= ?1",
        )
        .bind(micros(self.clock.now()))
        .fetch_all(&self.readers)
        .await
        .map_err(|e| fault(e, "find the oldest"))?;
        let oldest = |row: &SqliteRow| {
            Ok(Oldest {
                cluster: cluster(row)?,
                priority: row.get("priority"),
                due_since: time(row.get("due_at")),
            })
        };
        rows.iter().map(oldest).collect()
    }

    pub(super) async fn hinted(&self) -> StoreResult<Vec<Hinted>> {
        let rows = sqlx::query(
            "-- outstanding
            SELECT c.cluster,
                   (SELECT count(*) FROM waiting w
                     WHERE w.cluster = c.cluster AND w.hinted_until > ?1 AND w.due_at <= ?1) AS outstanding,
                   (SELECT count(*) FROM waiting w
                     WHERE w.cluster = c.cluster AND w.hinted_until <= ?1 AND w.due_at <= ?1) AS expired,
                   (SELECT r.room FROM cluster_room r WHERE r.cluster = c.cluster) AS room
              FROM (SELECT DISTINCT q.cluster FROM counts q
                     WHERE q.state = 1 AND q.jobs > 0
                       AND EXISTS (SELECT 1 FROM waiting w
                                    WHERE w.cluster = q.cluster AND w.priority = q.priority AND w.due_at <= ?1)) c",
        )
        .bind(micros(self.clock.now()))
        .fetch_all(&self.readers)
        .await
        .map_err(|e| fault(e, "count hints"))?;
        let hinted = |row: &SqliteRow| {
            let count = |column| u64::try_from(row.get::<i64, _>(column)).unwrap_or(0);
            Ok(Hinted {
                cluster: cluster(row)?,
                outstanding: count("outstanding"),
                expired: count("expired"),
                room: row.get("room"),
            })
        };
        rows.iter().map(hinted).collect()
    }

    pub(super) async fn take_due(
        &self,
        cluster: &ClusterName,
        limit: u32,
        hint_for: Duration,
        again_after: Duration,
    ) -> StoreResult<Vec<Due>> {
        let cluster = cluster.to_string();
        let due = self.writer.run(move |Transaction { connection, now }| {
            Box::pin(async move {
                let again = *now - again_after;
                let mut due = Vec::new();
                // One priority after the other: within one, the index has them in order, those due first.
                for priority in waiting_priorities(connection, &cluster).await? {
                    let more = limit.saturating_sub(u32::try_from(due.len()).unwrap_or(u32::MAX));
                    due.extend(due_at_priority(connection, &cluster, priority, *now, again, more).await?);
                }
                let jobs: Vec<JobId> = due.iter().map(|due| due.job).collect();
                if !jobs.is_empty() {
                    hint(connection, &jobs, Some(micros(*now + hint_for))).await?;
                }
                Ok(due)
            })
        });
        due.await
    }

    pub(super) async fn forget_hints(&self, jobs: &[JobId]) -> StoreResult<()> {
        let jobs = jobs.to_vec();
        let forgot = self.writer.run(move |Transaction { connection, .. }| {
            Box::pin(async move { hint(connection, &jobs, None).await })
        });
        forgot.await
    }

    pub(super) async fn take_stranded(
        &self,
        dead: &[WorkerId],
        limit: u32,
        hint_for: Duration,
    ) -> StoreResult<Vec<Stranded>> {
        let owners = list(dead.iter().map(|worker| worker.0).chain([WorkerId::NOBODY.0]));
        let dead = list(dead.iter().map(|worker| worker.0));
        let stranded = self.writer.run(move |Transaction { connection, now }| {
            Box::pin(async move {
                let now = *now;
                let rows = sqlx::query(
                    "-- stranded
                    SELECT job, cluster, life FROM job_state
                     WHERE state IN (2, 3, 4) AND owner IN (SELECT unhex(value) FROM json_each(?1))
                       AND ifnull(hinted_until <= ?2, 1)
                     ORDER BY job LIMIT ?3",
                )
                .bind(owners)
                .bind(micros(now))
                .bind(limit)
                .fetch_all(&mut *connection)
                .await
                .map_err(|e| fault(e, "find stranded jobs"))?;
                let found = rows.iter().map(stranded_job).collect::<StoreResult<Vec<_>>>()?;
                let jobs: Vec<JobId> = found.iter().map(|(job, ..)| *job).collect();
                if !jobs.is_empty() {
                    hint(connection, &jobs, Some(micros(now + hint_for))).await?;
                }
                forget_the_dead(connection, dead, micros(now - MOURNED_FOR)).await?;
                Ok(grouped(found))
            })
        });
        stranded.await
    }

    pub(super) async fn read_feed(&self, after: FeedCursor, limit: u32) -> StoreResult<Changes> {
        const OPERATION: &str = "read the feed";
        // One snapshot for both: what is forgotten must not change in between.
        let mut snapshot = self.readers.begin().await.map_err(|e| fault(e, OPERATION))?;
        let bounds = sqlx::query(
            "-- feed_bounds
            SELECT batch, length, ifnull((SELECT max(batch) FROM feed), batch) AS last FROM feed_forgotten",
        )
        .fetch_one(&mut *snapshot)
        .await
        .map_err(|e| fault(e, OPERATION))?;
        let batches = unread_batches(&mut snapshot, after, limit).await.map_err(|e| fault(e, OPERATION))?;
        snapshot.commit().await.map_err(|e| fault(e, OPERATION))?;
        let mut items = Vec::new();
        for (batch, changes) in batches {
            let changes: Vec<JobChange> = read(&changes)?;
            let cursors = (1u32..).map(|index| FeedCursor { batch, index });
            let unread = cursors.zip(changes).filter(|(cursor, _)| *cursor > after);
            items.extend(unread.take(limit as usize - items.len()));
            if items.len() >= limit as usize {
                break;
            }
        }
        let gap = after < cursor(&bounds) || after.batch > bounds.get::<i64, _>("last");
        Ok(Changes { items, gap })
    }

    pub(super) async fn end_of_feed(&self) -> StoreResult<FeedCursor> {
        let row = sqlx::query(
            "-- feed_end
            SELECT batch, length FROM (SELECT batch, length FROM feed UNION ALL SELECT batch, length FROM feed_forgotten)
             ORDER BY batch DESC LIMIT 1",
        )
        .fetch_one(&self.readers)
        .await
        .map_err(|e| fault(e, "find the end of the feed"))?;
        Ok(cursor(&row))
    }
}

/// The batches that hold the next `limit` changes, and none beyond: each may hold a thousand.
pub(super) async fn unread_batches(
    connection: &mut SqliteConnection,
    after: FeedCursor,
    limit: u32,
) -> sqlx::Result<Vec<(i64, String)>> {
    // Step by step: a sum over what follows would read all of it, because `length` stands behind `changes` in a row.
    sqlx::query_as(
        "-- changes
        WITH RECURSIVE stretch (batch, told) AS (
            SELECT * FROM (
                SELECT batch, length - iif(batch = ?1, ?2, 0) FROM feed
                 WHERE batch >= ?1 AND (batch > ?1 OR length > ?2) ORDER BY batch LIMIT 1)
             UNION ALL
            SELECT feed.batch, told + length
              FROM stretch CROSS JOIN feed ON feed.batch = (SELECT min(batch) FROM feed WHERE batch > stretch.batch)
             WHERE told < ?3)
        SELECT batch, changes FROM stretch CROSS JOIN feed USING (batch) ORDER BY batch",
    )
    .bind(after.batch)
    .bind(after.index)
    .bind(limit)
    .fetch_all(connection)
    .await
}

fn cursor(row: &SqliteRow) -> FeedCursor {
    let length = u32::try_from(row.get::<i64, _>("length")).unwrap_or(u32::MAX);
    FeedCursor { batch: row.get("batch"), index: length }
}

/// The priorities that jobs of a cluster wait at, most urgent first.
async fn waiting_priorities(connection: &mut SqliteConnection, cluster: &str) -> StoreResult<Vec<i16>> {
    let rows = sqlx::query(
        "-- waiting_priorities
        SELECT DISTINCT priority FROM counts WHERE state = 1 AND jobs > 0 AND cluster = ?1 ORDER BY priority DESC",
    )
    .bind(cluster.to_owned())
    .fetch_all(connection)
    .await
    .map_err(|e| fault(e, "find due jobs"))?;
    rows.iter().map(super::rows::priority).collect()
}

async fn due_at_priority(
    connection: &mut SqliteConnection,
    cluster: &str,
    priority: i16,
    now: DateTime<Utc>,
    again: DateTime<Utc>,
    limit: u32,
) -> StoreResult<Vec<Due>> {
    let rows = sqlx::query(
        "-- due
        SELECT job, suspect, hinted_until, due_at FROM waiting
         WHERE cluster = ?1 AND priority = ?2 AND due_at <= ?3 AND ifnull(hinted_until <= ?4, 1)
         ORDER BY due_at, job LIMIT ?5",
    )
    .bind(cluster.to_owned())
    .bind(priority)
    .bind(micros(now))
    .bind(micros(again))
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(|e| fault(e, "find due jobs"))?;
    let due = |row: &SqliteRow| {
        Ok(Due {
            job: JobId(id(row, "job")?),
            suspect: row.get("suspect"),
            again: row.get::<Option<i64>, _>("hinted_until").is_some(),
            waited: (now - time(row.get("due_at"))).to_std().unwrap_or_default(),
        })
    };
    rows.iter().map(due).collect()
}

fn stranded_job(row: &SqliteRow) -> StoreResult<(JobId, ClusterName, Life)> {
    Ok((JobId(id(row, "job")?), cluster(row)?, read(&row.get::<String, _>("life"))?))
}

/// By cluster, reach and owner: what one hint can be about.
fn grouped(found: Vec<(JobId, ClusterName, Life)>) -> Vec<Stranded> {
    let mut groups: BTreeMap<_, Vec<StrandedJob>> = BTreeMap::new();
    for (id, cluster, life) in found {
        let reach = life.submission.as_ref().and_then(|submission| submission.reach.clone());
        let owner = life.owner.unwrap_or(WorkerId::NOBODY);
        let job = StrandedJob { job: id, suspect: is_suspect(&life) };
        groups.entry((cluster, reach, owner)).or_default().push(job);
    }
    let group = |((cluster, reach, owner), jobs)| Stranded { cluster, reach, owner, jobs };
    groups.into_iter().map(group).collect()
}

/// Removes workers that are dead for long and hold nothing.
async fn forget_the_dead(connection: &mut SqliteConnection, dead: String, before: i64) -> StoreResult<()> {
    sqlx::query(
        "-- forget_the_dead
        DELETE FROM workers
         WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND expires_at <= ?2
           AND NOT EXISTS (SELECT 1 FROM job_state WHERE owner = workers.id AND state IN (2, 3, 4))",
    )
    .bind(dead)
    .bind(before)
    .execute(connection)
    .await
    .map_err(|e| fault(e, "forget dead workers"))?;
    Ok(())
}
