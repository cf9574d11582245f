//! The feed: what was committed, in an order no later commit can get into.
//!
//! One row per saved batch, numbered by the transaction that wrote it. A batch is told once every transaction with a
//! lower number has ended, so nothing can appear behind a reader's cursor. Usually that is a matter of milliseconds; a
//! long transaction of somebody else in the same server would hold the feed up, so then the locks tell whether it is ours.

use super::{
    pools::{Lane, Pools, Work},
    rows::{Columns, corrupt, state, storable},
};
use crate::{
    domain::{Change, HistoryEntry, JobId, Project},
    store::{Changes, FeedCursor, JobChange, StoreResult},
};
use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt as _;
use sqlx::PgConnection;
use std::collections::HashMap;
use uuid::Uuid;

/// No state was left: the first entry of a job.
const NO_STATE: u64 = 255;

/// Collects what a batch tells, packed: jobs, times since the batch's own, codes, and numbers of words. An eighth of the
/// same as JSON.
#[derive(Debug, Default)]
pub(super) struct Telling {
    words: Vec<String>,
    known: HashMap<String, u64>,
}

impl Telling {
    /// One change, told at `batch_at`. Entries follow each other without separators.
    pub(super) fn entry(
        &mut self,
        packed: &mut Vec<u8>,
        job: JobId,
        project: &Project,
        entry: &HistoryEntry,
        batch_at: DateTime<Utc>,
    ) {
        packed.extend_from_slice(job.0.as_bytes());
        let since = (entry.at - batch_at).num_microseconds().unwrap_or(0);
        put(packed, zigzag(since));
        put(packed, u64::from(entry.attempt));
        put(packed, entry.from.map_or(NO_STATE, |from| from.code().unsigned_abs().into()));
        put(packed, entry.to.code().unsigned_abs().into());
        put(packed, self.word(Some(project.as_str())));
        put(packed, self.word(entry.reason.as_deref()));
        put(packed, self.word(entry.by.as_deref()));
    }

    /// The changes of one job.
    pub(super) fn changes(
        &mut self,
        job: JobId,
        project: &Project,
        changes: &[Change],
        batch_at: DateTime<Utc>,
    ) -> Vec<u8> {
        let mut packed = Vec::with_capacity(changes.len() * 24);
        for change in changes {
            self.entry(&mut packed, job, project, &change.entry, batch_at);
        }
        packed
    }

    /// The words the entries refer to.
    pub(super) fn into_words(self) -> Vec<String> {
        self.words
    }

    /// Zero: none; else the word's place, from 1.
    fn word(&mut self, word: Option<&str>) -> u64 {
        let Some(word) = word else { return 0 };
        if let Some(number) = self.known.get(word) {
            return *number;
        }
        self.words.push(storable(word).into_owned());
        let number = self.words.len() as u64;
        self.known.insert(word.to_owned(), number);
        number
    }
}

/// LEB128.
fn put(packed: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        packed.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    packed.push(number.to_le_bytes()[0]);
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// A batch that does not read as one.
#[derive(Debug, thiserror::Error)]
#[error("a batch of the feed is cut short")]
struct CutShort;

/// Reads what [`Telling`] packed.
struct Packed<'p> {
    bytes: &'p [u8],
    words: &'p [String],
    at: DateTime<Utc>,
}

impl Packed<'_> {
    fn number(&mut self) -> Result<u64, CutShort> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.bytes.split_first().ok_or(CutShort)?;
            self.bytes = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(CutShort)
    }

    fn word(&mut self) -> Result<Option<String>, CutShort> {
        let Some(place) = self.number()?.checked_sub(1) else { return Ok(None) };
        let word = usize::try_from(place).ok().and_then(|place| self.words.get(place));
        word.cloned().map(Some).ok_or(CutShort)
    }

    fn change(&mut self) -> sqlx::Result<JobChange> {
        let (job, rest) = self.bytes.split_first_chunk::<16>().ok_or_else(|| corrupt(CutShort))?;
        let job = JobId(Uuid::from_bytes(*job));
        self.bytes = rest;
        let since = unzigzag(self.number().map_err(corrupt)?);
        let at = self.at.checked_add_signed(TimeDelta::microseconds(since)).unwrap_or(self.at);
        let attempt = u32::try_from(self.number().map_err(corrupt)?).map_err(corrupt)?;
        let from = self.number().map_err(corrupt)?;
        let from = if from == NO_STATE { None } else { Some(state(i16::try_from(from).map_err(corrupt)?)?) };
        let to = state(i16::try_from(self.number().map_err(corrupt)?).map_err(corrupt)?)?;
        let project = self.word().map_err(corrupt)?.ok_or_else(|| corrupt(CutShort))?;
        let project = Project::try_from(project).map_err(corrupt)?;
        let (reason, by) = (self.word().map_err(corrupt)?, self.word().map_err(corrupt)?);
        Ok(JobChange { job, project, entry: HistoryEntry { at, attempt, from, to, reason, by } })
    }
}

/// The changes of one batch, each with the cursor after it.
fn unpack(
    batch: i64,
    at: DateTime<Utc>,
    words: &[String],
    bytes: &[u8],
) -> sqlx::Result<Vec<(FeedCursor, JobChange)>> {
    let mut packed = Packed { bytes, words, at };
    let mut changes = Vec::new();
    for index in 1.. {
        if packed.bytes.is_empty() {
            break;
        }
        changes.push((FeedCursor { batch, index }, packed.change()?));
    }
    Ok(changes)
}

impl Pools {
    pub(super) async fn changes(&self, after: FeedCursor, limit: u32) -> StoreResult<Changes> {
        self.read(Lane::Read, "read the feed", &(after, limit), |c, (after, limit)| {
            changes(c, *after, *limit).boxed()
        })
        .await
    }

    pub(super) async fn feed_end(&self) -> StoreResult<FeedCursor> {
        self.read(Lane::Read, "find the end of the feed", &(), |c, ()| feed_end(c).boxed()).await
    }
}

/// How far the feed reaches.
struct Reach {
    /// A reader may go up to here for now: below every transaction that may still write a batch.
    horizon: i64,
    /// No transaction has had this number or a higher one.
    beyond: i64,
}

async fn reach(connection: &mut PgConnection) -> sqlx::Result<Reach> {
    let (horizon, beyond, held_up): (i64, i64, bool) = sqlx::query_as(
        "-- feed_horizon
         SELECT h.horizon, h.beyond,
                EXISTS (SELECT FROM feed WHERE batch >= h.horizon AND at < now() - interval '1 second')
           FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
                        pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS beyond) h",
    )
    .fetch_one(&mut *connection)
    .await?;
    let horizon = if held_up { horizon_past_strangers(connection).await? } else { horizon };
    Ok(Reach { horizon, beyond })
}

async fn horizon_past_strangers(connection: &mut PgConnection) -> sqlx::Result<i64> {
    // Whatever writes the feed has locked it before it got a number (the lock comes with the plan, the number with the
    // first row; where there are statements before it, the first of them locks). So a running transaction that shows its number and not that lock is somebody else's. One that ended
    // since the snapshot shows neither, and counts as ours: its batch may not be visible yet.
    sqlx::query_scalar(
        "-- feed_horizon_past_strangers
         WITH running AS MATERIALIZED (SELECT pg_current_snapshot() AS snapshot),
              locks AS MATERIALIZED (
                  SELECT locktype, virtualtransaction, transactionid, relation, mode
                    FROM pg_locks
                   WHERE granted AND (locktype = 'transactionid' OR (locktype = 'relation' AND relation = 'feed'::regclass
                         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())))),
              strangers AS (
                  SELECT t.transactionid::text::bigint AS low_bits
                    FROM locks t
                   WHERE t.locktype = 'transactionid' AND t.mode = 'ExclusiveLock'
                     AND NOT EXISTS (SELECT FROM locks r WHERE r.locktype = 'relation' AND r.mode = 'RowExclusiveLock'
                                        AND r.virtualtransaction = t.virtualtransaction))
         SELECT coalesce(
                    (SELECT min(x.xid::text::bigint)
                       FROM running CROSS JOIN LATERAL pg_snapshot_xip(running.snapshot) AS x(xid)
                      WHERE NOT EXISTS (SELECT FROM strangers
                                         WHERE strangers.low_bits = (x.xid::text::bigint & 4294967295))),
                    (SELECT pg_snapshot_xmax(snapshot)::text::bigint FROM running))",
    )
    .fetch_one(connection)
    .await
}

fn changes(connection: &mut PgConnection, after: FeedCursor, limit: u32) -> Work<'_, Changes> {
    async move {
        let Reach { horizon, beyond } = reach(connection).await?;
        let rows = sqlx::query(
            "-- read_feed
             SELECT f.batch, f.at, f.words, f.entries, floor.batch, floor.items
               FROM feed_floor floor
               LEFT JOIN LATERAL (
                    SELECT b.batch, b.at, b.words, b.entries, sum(b.items) OVER (ORDER BY b.batch) - b.items AS before
                      FROM (SELECT batch, at, words, entries, items
                              FROM feed
                             WHERE batch >= $1 AND batch < $2
                             ORDER BY batch
                             LIMIT $3 + 1) b
               ) f ON f.before <= $3 + $4
              ORDER BY f.batch",
        )
        .bind(after.batch)
        .bind(horizon)
        .bind(i64::from(limit))
        .bind(i64::from(after.index))
        .fetch_all(connection)
        .await?;
        let mut told = Changes::default();
        for row in &rows {
            let mut columns = Columns::of(row);
            let batch: Option<i64> = columns.take()?;
            let at: Option<DateTime<Utc>> = columns.take()?;
            let words: Option<Vec<String>> = columns.take()?;
            let entries: Option<&[u8]> = columns.take()?;
            let floor = FeedCursor { batch: columns.take()?, index: columns.number()? };
            // A cursor from beyond all batches was made by another server's counter (a restored dump).
            told.gap = after < floor || after.batch >= beyond;
            let (Some(batch), Some(at), Some(words), Some(entries)) = (batch, at, words, entries) else { continue };
            let unread = unpack(batch, at, &words, entries)?.into_iter().filter(|(cursor, _)| *cursor > after);
            let room = (limit as usize).saturating_sub(told.items.len());
            told.items.extend(unread.take(room));
        }
        Ok(told)
    }
    .boxed()
}

fn feed_end(connection: &mut PgConnection) -> Work<'_, FeedCursor> {
    async move {
        let Reach { horizon, .. } = reach(connection).await?;
        let (batch, items): (i64, i32) = sqlx::query_as(
            "-- feed_end
             (SELECT batch, items FROM feed WHERE batch < $1 ORDER BY batch DESC LIMIT 1)
             UNION ALL
             SELECT batch, items FROM feed_floor
             LIMIT 1",
        )
        .bind(horizon)
        .fetch_one(connection)
        .await?;
        Ok(FeedCursor { batch, index: u32::try_from(items).map_err(corrupt)? })
    }
    .boxed()
}

/// Removes batches numbered by another server's counter: a restored dump. They would hide what is told from now on.
pub(super) async fn forget_the_future(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query(
        "-- forget_the_future
         WITH gone AS (
             DELETE FROM feed WHERE batch >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
         )
         UPDATE feed_floor SET batch = 0, items = 0 WHERE batch >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint",
    )
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::JobState;
    use proptest::prelude::*;

    const AT: DateTime<Utc> = DateTime::<Utc>::UNIX_EPOCH;

    fn state() -> impl Strategy<Value = JobState> {
        proptest::sample::select(&JobState::ALL[..])
    }

    fn told() -> impl Strategy<Value = JobChange> {
        let when = (any::<i32>(), any::<u32>());
        let which = (any::<u128>(), proptest::option::of(state()), state(), any::<Option<String>>());
        (when, which).prop_map(|((since, attempt), (job, from, to, reason))| JobChange {
            job: JobId(Uuid::from_u128(job)),
            project: Project::default_project(),
            entry: HistoryEntry {
                at: AT + TimeDelta::microseconds(since.into()),
                attempt,
                from,
                to,
                reason: reason.map(|r| storable(&r).into_owned()),
                by: Some("token:test".to_owned()),
            },
        })
    }

    proptest! {
        #[test]
        fn a_batch_reads_back_as_it_was_told(told in proptest::collection::vec(told(), 0..20)) {
            let (mut telling, mut packed) = (Telling::default(), Vec::new());
            for JobChange { job, project, entry } in &told {
                telling.entry(&mut packed, *job, project, entry, AT);
            }
            let read = unpack(7, AT, &telling.into_words(), &packed).unwrap();
            let read: Vec<_> = read.into_iter().map(|(_, change)| change).collect();
            prop_assert_eq!(read, told);
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes: Vec<u8>) {
            unpack(7, AT, &["default".to_owned()], &bytes).ok();
        }
    }
}
