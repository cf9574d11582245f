//! Saving a batch of moves: one statement, one commit, whatever the moves are.
//!
//! A row is written only while it has the version it was read with. Everything told about it (its queue entry, its claim,
//! its history, its counts, the feed) hangs on that row having been written, inside the same statement.

use super::{
    feed::Telling,
    pools::{Lane, Pools, Work},
    rows::{Moment, json, signed, sparse, sparse_json, storable},
};
use crate::{
    domain::{AttemptTimes, Change, ClusterName, JobId, JobState, Life, Phase, Project, SUSPECT_AFTER},
    store::{
        StoreResult,
        kernel::{Move, fresh_claims},
    },
};
use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use serde::Serialize;
use sqlx::{Connection as _, PgConnection};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use uuid::Uuid;

/// What a move does to the job's entry in the queue.
const STAYS: i16 = 0;
const LEAVES_QUEUE: i16 = 1;
const JOINS_QUEUE: i16 = 2;
/// What a move does to the cancel request its owner is told.
const ASKS: i16 = 1;
const ANSWERS: i16 = 2;

/// Moves, column by column as they are bound.
#[derive(Debug, Default)]
pub(super) struct Batch {
    at: DateTime<Utc>,
    jobs: Vec<Uuid>,
    versions: Vec<i32>,
    states: Vec<i16>,
    attempts: Vec<i32>,
    epochs: Vec<i32>,
    fruitless: Vec<i16>,
    owners: Vec<Option<Uuid>>,
    submission_ids: Vec<Option<String>>,
    submission_details: Vec<Option<String>>,
    submission_reaches: Vec<Option<String>>,
    last_epochs: Vec<i32>,
    last_seqs: Vec<i64>,
    cancel_requested: Vec<bool>,
    due_at: Vec<DateTime<Utc>>,
    claimed_at: Vec<Moment>,
    submitted_at: Vec<Moment>,
    started_at: Vec<Moment>,
    finished_at: Vec<Moment>,
    exit_codes: Vec<Option<i32>>,
    reasons: Vec<Option<String>>,
    queue: Vec<i16>,
    suspects: Vec<bool>,
    claims: Vec<bool>,
    cancels: Vec<i16>,
    deviations: Vec<Option<String>>,
    items: Vec<i16>,
    packed: Vec<Vec<u8>>,
    steps: Vec<i16>,
    words: Vec<String>,
    lines: Lines,
    /// Limited clusters, in order, and how many jobs of each are claimed.
    limited: Vec<String>,
    fresh: Vec<i64>,
}

/// What each kind of step does to the counts.
#[derive(Debug, Default)]
struct Lines {
    steps: Vec<i16>,
    projects: Vec<String>,
    clusters: Vec<String>,
    priorities: Vec<i16>,
    states: Vec<i16>,
    signs: Vec<i64>,
}

impl Lines {
    fn push(
        &mut self,
        step: i16,
        project: &Project,
        cluster: &ClusterName,
        priority: i16,
        state: JobState,
        sign: i64,
    ) {
        self.steps.push(step);
        self.projects.push(project.as_str().to_owned());
        self.clusters.push(cluster.as_str().to_owned());
        self.priorities.push(priority);
        self.states.push(state.code());
        self.signs.push(sign);
    }
}

/// A history row, as the statement unfolds it.
#[derive(Serialize)]
struct Deviating<'a> {
    at: DateTime<Utc>,
    attempt: i32,
    from_state: Option<i16>,
    to_state: i16,
    reason: Option<std::borrow::Cow<'a, str>>,
    by: Option<&'a str>,
    times: Option<AttemptTimes>,
}

/// A kind of step, as far as counts can tell.
type Step<'m> = (&'m Project, &'m ClusterName, i16, JobState, JobState);

impl Batch {
    /// The moves, decided at the store's time `now`.
    pub(super) fn of(moves: &[Move], now: DateTime<Utc>) -> Self {
        let mut batch = Self { at: now, ..Self::default() };
        let mut telling = Telling::default();
        let mut steps: HashMap<Step<'_>, i16> = HashMap::new();
        for moved in moves {
            batch.push_life(moved);
            batch.push_consequences(moved);
            batch.packed.push(telling.changes(moved.before.job, &moved.before.project, &moved.changes, now));
            batch.items.push(i16::try_from(moved.changes.len()).unwrap_or(i16::MAX));
            batch.push_step(moved, &mut steps);
        }
        batch.words = telling.into_words();
        for (cluster, fresh) in fresh_claims(moves) {
            batch.limited.push(cluster.as_str().to_owned());
            batch.fresh.push(fresh.into());
        }
        batch.thin_out();
        batch
    }

    fn push_life(&mut self, Move { before, after, .. }: &Move) {
        self.jobs.push(before.job.0);
        // A version counts writes; no job is written two thousand million times.
        self.versions.push(i32::try_from(before.version).unwrap_or(i32::MAX));
        self.states.push(after.state.code());
        self.attempts.push(signed(after.attempt));
        self.epochs.push(signed(after.epoch));
        self.fruitless.push(i16::try_from(after.fruitless_claims).unwrap_or(i16::MAX));
        self.owners.push(after.owner.map(|owner| owner.0));
        let submission = after.submission.as_ref();
        self.submission_ids.push(submission.map(|s| storable(&s.id).into_owned()));
        self.submission_details.push(submission.and_then(|s| sparse_json(&s.detail)));
        self.submission_reaches
            .push(submission.and_then(|s| s.reach.as_ref()).map(|r| storable(&r.0).into_owned()));
        self.last_epochs.push(signed(after.last_event.0));
        self.last_seqs.push(after.last_event.1.into());
        self.cancel_requested.push(after.cancel_requested);
        self.due_at.push(after.due_at);
        self.claimed_at.push(after.claimed_at);
        self.submitted_at.push(after.submitted_at);
        self.started_at.push(after.started_at);
        self.finished_at.push(after.finished_at);
        self.exit_codes.push(after.exit_code);
        self.reasons.push(after.reason.as_deref().map(|r| storable(r).into_owned()));
    }

    fn push_consequences(&mut self, Move { before, after, changes }: &Move) {
        let (waited, waits) =
            (before.life.state.phase() == Phase::Waiting, after.state.phase() == Phase::Waiting);
        self.queue.push(if waits {
            JOINS_QUEUE
        } else if waited {
            LEAVES_QUEUE
        } else {
            STAYS
        });
        self.suspects.push(suspect(after));
        let (was, is) = (&before.life, after);
        let same_claim = was.state.is_owned() && was.owner == is.owner && was.epoch == is.epoch;
        self.claims.push(is.state.is_owned() && !same_claim);
        let (asked, asks) = (was.cancel_requested, is.cancel_requested && is.state.is_owned());
        self.cancels.push(if asks && !(asked && was.owner == is.owner) {
            ASKS
        } else if asked && !asks {
            ANSWERS
        } else {
            STAYS
        });
        self.deviations.push(deviations(changes));
    }

    fn push_step<'m>(&mut self, Move { before, after, .. }: &'m Move, steps: &mut HashMap<Step<'m>, i16>) {
        let (from, to) = (before.life.state, after.state);
        let next = i16::try_from(steps.len()).unwrap_or(i16::MAX);
        let step =
            *steps.entry((&before.project, &before.cluster, before.priority, from, to)).or_insert(next);
        self.steps.push(step);
        if step == next && from != to {
            let mut line = |state, sign| {
                self.lines.push(step, &before.project, &before.cluster, before.priority, state, sign);
            };
            line(from, -1);
            line(to, 1);
        }
    }

    fn thin_out(&mut self) {
        let Self { submission_ids, submission_details, submission_reaches, reasons, deviations, .. } = self;
        for column in [submission_ids, submission_details, submission_reaches, reasons, deviations] {
            *column = sparse(std::mem::take(column));
        }
        let Self { claimed_at, submitted_at, started_at, finished_at, .. } = self;
        for column in [claimed_at, submitted_at, started_at, finished_at] {
            *column = sparse(std::mem::take(column));
        }
        self.owners = sparse(std::mem::take(&mut self.owners));
        self.exit_codes = sparse(std::mem::take(&mut self.exit_codes));
    }
}

/// It may be what kills workers: to be hinted and claimed alone.
fn suspect(life: &Life) -> bool {
    life.submission.is_none() && life.fruitless_claims >= SUSPECT_AFTER
}

/// The changes history must keep, as a JSON array.
fn deviations(changes: &[Change]) -> Option<String> {
    let kept: Vec<Deviating<'_>> = changes
        .iter()
        .filter(|change| change.deviates)
        .map(|Change { entry, times, .. }| Deviating {
            at: entry.at,
            attempt: signed(entry.attempt),
            from_state: entry.from.map(JobState::code),
            to_state: entry.to.code(),
            reason: entry.reason.as_deref().map(storable),
            by: entry.by.as_deref(),
            times: *times,
        })
        .collect();
    (!kept.is_empty()).then(|| json(&kept))
}

impl Pools {
    /// Saves the moves; answers the jobs whose row was still as it was read.
    pub(super) async fn save(self: &Arc<Self>, batch: Batch) -> StoreResult<HashSet<JobId>> {
        if batch.limited.is_empty() {
            return self.write(Lane::Hot, "save jobs", batch, |c, batch| save(c, batch)).await;
        }
        self.write(Lane::Hot, "save claims of limited clusters", batch, |c, batch| save_limited(c, batch))
            .await
    }
}

/// Readers of the feed rely on its lock being there before the transaction has a number, which locking a row gives it. And a
/// client that stands still must not hold up the others for long.
const BEGIN_LIMITED: &str = "BEGIN; LOCK TABLE feed IN ROW EXCLUSIVE MODE;
    SET LOCAL idle_in_transaction_session_timeout = '2s'";

/// Claims of limited clusters are made one batch after another, so that each sees what those before it took.
fn save_limited<'c>(connection: &'c mut PgConnection, b: &'c Batch) -> Work<'c, HashSet<JobId>> {
    async move {
        let mut transaction = connection.begin_with(BEGIN_LIMITED).await?;
        sqlx::query(
            "-- lock_limited_clusters
             SELECT 1 FROM clusters WHERE name = ANY ($1) ORDER BY name FOR UPDATE",
        )
        .bind(&b.limited)
        .execute(&mut *transaction)
        .await?;
        // A statement of its own sees what was committed while this one waited for the lock.
        let full: bool = sqlx::query_scalar(
            "-- limited_clusters_full
             SELECT EXISTS (SELECT 1 FROM unnest($1::text[], $2::bigint[]) AS claimed (cluster, jobs)
                              JOIN cluster_room r ON r.cluster = claimed.cluster
                             WHERE r.room < claimed.jobs)",
        )
        .bind(&b.limited)
        .bind(&b.fresh)
        .fetch_one(&mut *transaction)
        .await?;
        let saved = if full { HashSet::new() } else { save(&mut transaction, b).await? };
        transaction.commit().await?;
        Ok(saved)
    }
    .boxed()
}

fn save<'c>(connection: &'c mut PgConnection, b: &'c Batch) -> Work<'c, HashSet<JobId>> {
    async move {
        let saved: Option<Vec<Uuid>> = sqlx::query_scalar(SAVE)
            .bind(&b.jobs)
            .bind(&b.versions)
            .bind(&b.states)
            .bind(&b.attempts)
            .bind(&b.epochs)
            .bind(&b.fruitless)
            .bind(&b.owners)
            .bind(&b.submission_ids)
            .bind(&b.submission_details)
            .bind(&b.submission_reaches)
            .bind(&b.last_epochs)
            .bind(&b.last_seqs)
            .bind(&b.cancel_requested)
            .bind(&b.due_at)
            .bind(&b.claimed_at)
            .bind(&b.submitted_at)
            .bind(&b.started_at)
            .bind(&b.finished_at)
            .bind(&b.exit_codes)
            .bind(&b.reasons)
            .bind(&b.queue)
            .bind(&b.suspects)
            .bind(&b.claims)
            .bind(&b.cancels)
            .bind(&b.deviations)
            .bind(&b.items)
            .bind(&b.packed)
            .bind(&b.steps)
            .bind(&b.lines.steps)
            .bind(&b.lines.projects)
            .bind(&b.lines.clusters)
            .bind(&b.lines.priorities)
            .bind(&b.lines.states)
            .bind(&b.lines.signs)
            .bind(b.at)
            .bind(&b.words)
            .fetch_one(connection)
            .await?;
        Ok(saved.into_iter().flatten().map(JobId).collect())
    }
    .boxed()
}

/// `= ANY (ARRAY[…])` instead of `=` leaves the planner one way to join: for each move, down the index. Rows of `saved`
/// carry all that the other parts need, because joining two intermediate results in a nested loop costs their product.
const SAVE: &str = "-- save_moves
WITH saved AS (
    UPDATE job_state AS s
       SET state = m.state, attempt = m.attempt, epoch = m.epoch, version = s.version + 1,
           fruitless_claims = m.fruitless_claims, owner = m.owner, submission_id = m.submission_id,
           submission_detail = m.submission_detail, submission_reach = m.submission_reach, last_epoch = m.last_epoch,
           last_seq = m.last_seq, cancel_requested = m.cancel_requested, due_at = m.due_at, claimed_at = m.claimed_at,
           submitted_at = m.submitted_at, started_at = m.started_at, finished_at = m.finished_at,
           exit_code = m.exit_code, reason = m.reason
      FROM unnest($1::uuid[], $2::integer[], $3::smallint[], $4::integer[], $5::integer[], $6::smallint[], $7::uuid[],
                  $8::text[], $9::text[], $10::text[], $11::integer[], $12::bigint[], $13::boolean[],
                  $14::timestamptz[], $15::timestamptz[], $16::timestamptz[], $17::timestamptz[], $18::timestamptz[],
                  $19::integer[], $20::text[], $21::smallint[], $22::boolean[], $23::boolean[], $24::smallint[],
                  $25::text[], $26::smallint[], $27::bytea[], $28::smallint[])
           AS m (job_id, version, state, attempt, epoch, fruitless_claims, owner, submission_id, submission_detail,
                 submission_reach, last_epoch, last_seq, cancel_requested, due_at, claimed_at, submitted_at,
                 started_at, finished_at, exit_code, reason, queue, suspect, claims, cancels, deviations, items,
                 packed, step)
     WHERE s.job_id = ANY (ARRAY[m.job_id]) AND s.version = m.version
    RETURNING s.job_id, s.project, s.cluster, s.priority, s.state, s.epoch, s.owner, s.due_at,
              m.queue, m.suspect, m.claims, m.cancels, m.deviations, m.items, m.packed, m.step
), left_queue AS (
    DELETE FROM waiting w USING saved v WHERE v.queue = 1 AND w.job_id = ANY (ARRAY[v.job_id])
), joined_queue AS (
    INSERT INTO waiting (job_id, due_at, hint_until, priority, held, suspect, cluster)
    SELECT v.job_id, v.due_at, NULL, v.priority, v.state = 0, v.suspect, v.cluster FROM saved v WHERE v.queue = 2
    ON CONFLICT (job_id) DO UPDATE
       SET due_at = excluded.due_at, hint_until = NULL, priority = excluded.priority, held = excluded.held,
           suspect = excluded.suspect
), claimed AS (
    INSERT INTO claims (worker_id, claimed_at, check_at, hinted, job_ids, epochs)
    SELECT v.owner, now(), now() + interval '10 seconds', 0, array_agg(v.job_id), array_agg(v.epoch)
      FROM saved v WHERE v.claims GROUP BY v.owner
), asked AS (
    INSERT INTO cancel_requests (job_id, owner)
    SELECT v.job_id, v.owner FROM saved v WHERE v.cancels = 1
    ON CONFLICT (job_id) DO UPDATE SET owner = excluded.owner
), answered AS (
    DELETE FROM cancel_requests c USING saved v WHERE v.cancels = 2 AND c.job_id = ANY (ARRAY[v.job_id])
), deviated AS (
    INSERT INTO job_history (job_id, project, at, attempt, from_state, to_state, reason, by, times)
    SELECT v.job_id, v.project, d.at, d.attempt, d.from_state, d.to_state, d.reason, d.by, d.times
      FROM saved v
     CROSS JOIN LATERAL jsonb_to_recordset(v.deviations::jsonb)
           AS d (at timestamptz, attempt integer, from_state smallint, to_state smallint, reason text, by text, times jsonb)
     WHERE v.deviations IS NOT NULL
), counted AS (
    INSERT INTO count_deltas (project, cluster, priority, state, jobs)
    SELECT l.project, l.cluster, l.priority, l.state, l.sign * c.jobs
      FROM (SELECT v.step, count(*) AS jobs FROM saved v GROUP BY v.step) c
      JOIN unnest($29::smallint[], $30::text[], $31::text[], $32::smallint[], $33::smallint[], $34::bigint[])
           AS l (step, project, cluster, priority, state, sign) ON l.step = c.step
), told AS (
    INSERT INTO feed (batch, at, items, words, entries)
    SELECT pg_current_xact_id()::text::bigint, $35, sum(v.items), $36, string_agg(v.packed, ''::bytea)
      FROM saved v
    HAVING count(*) > 0
)
SELECT array_agg(v.job_id) FROM saved v";
