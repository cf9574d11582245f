//! Storing new jobs: one statement and one commit for a whole batch.
//!
//! The statement is hopeful: it inserts plainly and fails as a whole when an id or a key is there already. That is rare
//! (a replay), and then what is there is read and the rest is tried again. A twin still being inserted is waited for by
//! the unique index.

use super::{
    fault::Fault,
    feed::Telling,
    pools::{Lane, Pools, Work},
    rows::{
        Moment, corrupt, job, job_columns, json, labels_literal, seconds, signed, sparse, sparse_json, uuids,
    },
};
use crate::{
    domain::{IdempotencyKey, Job, JobId, JobState, NewJob, Project},
    store::{Inserted, StoreResult},
};
use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use sqlx::{PgConnection, Row as _};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use uuid::Uuid;

const OPERATION: &str = "insert jobs";
/// How often what was there already is looked up anew, when twins arrive all the time.
const MAX_ROUNDS: usize = 8;

/// A key as it is stored: whose, and its name.
type Key = (Project, String);
/// What a key stands for: a body, and the job made of it.
type Held = ([u8; 32], JobId);

/// What is there already where some new jobs want to be.
#[derive(Debug, Default)]
struct Standing {
    by_key: HashMap<Key, Held>,
    jobs: HashMap<JobId, Job>,
}

impl Standing {
    fn answer(&self, new: &NewJob) -> Option<Inserted> {
        let existing = |id| self.jobs.get(id).map(|job| Inserted::Existing(Box::new(job.clone())));
        let key = new.idempotency.as_ref();
        let held = key
            .and_then(|key| self.by_key.get(&(new.project.clone(), key.key.clone())).map(|held| (key, held)));
        match held {
            Some((key, (body, _))) if *body != key.body => Some(Inserted::KeyReused),
            Some((_, (_, id))) => existing(id),
            None => existing(&new.id),
        }
    }
}

impl Pools {
    pub(super) async fn insert(
        self: &Arc<Self>,
        jobs: &[NewJob],
        hinted: Option<Duration>,
    ) -> StoreResult<Vec<Inserted>> {
        let mut answers: Vec<Option<Inserted>> = vec![None; jobs.len()];
        let twins = twins(jobs);
        let mut look = jobs.iter().any(|new| new.idempotency.is_some());
        for _ in 0..MAX_ROUNDS {
            if look {
                let standing = self.standing(jobs, &answers).await?;
                for (answer, new) in answers.iter_mut().zip(jobs) {
                    *answer = answer.take().or_else(|| standing.answer(new));
                }
            }
            let fresh: Vec<usize> =
                (0..jobs.len()).filter(|i| answers[*i].is_none() && !twins.contains_key(i)).collect();
            if fresh.is_empty() {
                return Ok(with_twins(jobs, answers, &twins));
            }
            let rows = Rows::of(fresh.iter().map(|i| &jobs[*i]), hinted);
            match self.try_write(Lane::Hot, rows, |c, rows| insert(c, rows)).await {
                Ok(now) => {
                    for i in fresh {
                        answers[i] = Some(Inserted::Created(Box::new(jobs[i].accepted(now))));
                    }
                    return Ok(with_twins(jobs, answers, &twins));
                }
                Err(Fault::Taken(_)) => look = true,
                Err(fault) => return Err(fault.into_error(OPERATION)),
            }
        }
        Err(Fault::Away(anyhow::anyhow!("lost {MAX_ROUNDS} races for a key in a row")).into_error(OPERATION))
    }

    /// Reads what is there already for the jobs not yet answered.
    async fn standing(&self, jobs: &[NewJob], answers: &[Option<Inserted>]) -> StoreResult<Standing> {
        let open = || jobs.iter().zip(answers).filter(|(_, answer)| answer.is_none()).map(|(new, _)| new);
        let (projects, keys): (Vec<String>, Vec<String>) = open()
            .filter_map(|new| Some((new.project.as_str().to_owned(), new.idempotency.as_ref()?.key.clone())))
            .unzip();
        let mut by_key = HashMap::new();
        if !keys.is_empty() {
            let held =
                self.read(Lane::Hot, OPERATION, &(projects, keys), |c, (p, k)| held_keys(c, p, k)).await?;
            by_key.extend(held);
        }
        let held_jobs = by_key.values().map(|(_, job)| *job);
        let ids: Vec<JobId> = open().map(|new| new.id).chain(held_jobs).collect();
        let found = self.read(Lane::Hot, OPERATION, &uuids(&ids), |c, ids| whole_jobs(c, ids)).await?;
        Ok(Standing { by_key, jobs: found.into_iter().map(|job| (job.id, job)).collect() })
    }
}

/// Items of one batch that mean the same job as an earlier one: by key, or by id.
fn twins(jobs: &[NewJob]) -> BTreeMap<usize, usize> {
    let mut keys: HashMap<(&Project, &str), usize> = HashMap::new();
    let mut ids: HashMap<JobId, usize> = HashMap::new();
    let mut twins = BTreeMap::new();
    for (i, new) in jobs.iter().enumerate() {
        let by_key = new.idempotency.as_ref().and_then(|key| {
            let first = *keys.entry((&new.project, &key.key)).or_insert(i);
            (first != i).then_some(first)
        });
        let first = *ids.entry(new.id).or_insert(i);
        if let Some(first) = by_key.or((first != i).then_some(first)) {
            twins.insert(i, first);
        }
    }
    twins
}

/// Answers the later twins as the earlier ones were.
fn with_twins(
    jobs: &[NewJob],
    mut answers: Vec<Option<Inserted>>,
    twins: &BTreeMap<usize, usize>,
) -> Vec<Inserted> {
    for (twin, first) in twins {
        if answers[*twin].is_some() {
            continue;
        }
        let body = |i: usize| jobs[i].idempotency.as_ref().map(|key| (&key.key, key.body));
        let same_key = body(*twin).zip(body(*first)).filter(|(a, b)| a.0 == b.0);
        answers[*twin] = match (same_key, &answers[*first]) {
            (Some((mine, other)), _) if mine.1 != other.1 => Some(Inserted::KeyReused),
            (_, Some(Inserted::Created(job) | Inserted::Existing(job))) => {
                Some(Inserted::Existing(job.clone()))
            }
            (_, Some(Inserted::KeyReused) | None) => Some(Inserted::KeyReused),
        };
    }
    answers.into_iter().flatten().collect()
}

/// New jobs, column by column as they are bound.
#[derive(Debug, Default)]
struct Rows {
    ids: Vec<Uuid>,
    run_at: Vec<Moment>,
    projects: Vec<String>,
    clusters: Vec<String>,
    names: Vec<String>,
    created_by: Vec<String>,
    keys: Vec<Option<String>>,
    labels: Vec<Option<String>>,
    specs: Vec<String>,
    inputs: Vec<Option<String>>,
    retries: Vec<Option<String>>,
    max_attempts: Vec<i32>,
    priorities: Vec<i16>,
    states: Vec<i16>,
    key_projects: Vec<String>,
    key_names: Vec<String>,
    key_bodies: Vec<Vec<u8>>,
    key_jobs: Vec<Uuid>,
    count_projects: Vec<String>,
    count_clusters: Vec<String>,
    count_priorities: Vec<i16>,
    count_states: Vec<i16>,
    counts: Vec<i64>,
    words: Vec<String>,
    packed: Vec<u8>,
    hint_seconds: Option<f64>,
}

impl Rows {
    fn of<'j>(jobs: impl Iterator<Item = &'j NewJob>, hinted: Option<Duration>) -> Self {
        let mut rows = Self { hint_seconds: hinted.map(seconds), ..Self::default() };
        let mut jobs: Vec<&NewJob> = jobs.collect();
        // Neighbours in the index, and every batch in the same order.
        jobs.sort_unstable_by_key(|new| new.id);
        let (mut telling, mut counts) = (Telling::default(), BTreeMap::<_, i64>::new());
        let mut keys: Vec<(&Project, &IdempotencyKey, JobId)> = Vec::new();
        for new in &jobs {
            // The entry's time is the batch's own, which only the server knows yet.
            let at = DateTime::<Utc>::UNIX_EPOCH;
            let accepted = new.accepted(at);
            let entry = accepted.acceptance(accepted.life.state);
            telling.entry(&mut rows.packed, new.id, &new.project, &entry, at);
            *counts.entry((&new.project, &new.cluster, new.priority, accepted.life.state)).or_default() += 1;
            keys.extend(new.idempotency.as_ref().map(|key| (&new.project, key, new.id)));
            rows.push(new, accepted.life.state);
        }
        keys.sort_unstable_by_key(|(project, key, _)| (*project, &key.key));
        for (project, key, job) in keys {
            rows.key_projects.push(project.as_str().to_owned());
            rows.key_names.push(key.key.clone());
            rows.key_bodies.push(key.body.to_vec());
            rows.key_jobs.push(job.0);
        }
        for ((project, cluster, priority, state), jobs) in counts {
            rows.count_projects.push(project.as_str().to_owned());
            rows.count_clusters.push(cluster.as_str().to_owned());
            rows.count_priorities.push(priority);
            rows.count_states.push(state.code());
            rows.counts.push(jobs);
        }
        rows.words = telling.into_words();
        rows.run_at = sparse(rows.run_at);
        for column in [&mut rows.keys, &mut rows.labels, &mut rows.inputs, &mut rows.retries] {
            *column = sparse(std::mem::take(column));
        }
        rows
    }

    fn push(&mut self, new: &NewJob, state: JobState) {
        self.ids.push(new.id.0);
        self.run_at.push(new.run_at);
        self.projects.push(new.project.as_str().to_owned());
        self.clusters.push(new.cluster.as_str().to_owned());
        self.names.push(new.name.clone());
        self.created_by.push(new.created_by.clone());
        self.keys.push(new.idempotency.as_ref().map(|key| key.key.clone()));
        self.labels.push(labels_literal(&new.labels));
        self.specs.push(json(&new.spec));
        self.inputs.push(sparse_json(&new.inputs));
        self.retries.push(sparse_json(&new.retry));
        self.max_attempts.push(signed(new.max_attempts));
        self.priorities.push(new.priority);
        self.states.push(state.code());
    }
}

/// Inserts all, or fails; answers when they were accepted.
fn insert<'c>(connection: &'c mut PgConnection, r: &'c Rows) -> Work<'c, DateTime<Utc>> {
    async move {
        sqlx::query_scalar(INSERT)
            .bind(&r.ids)
            .bind(&r.run_at)
            .bind(&r.projects)
            .bind(&r.clusters)
            .bind(&r.names)
            .bind(&r.created_by)
            .bind(&r.keys)
            .bind(&r.labels)
            .bind(&r.specs)
            .bind(&r.inputs)
            .bind(&r.retries)
            .bind(&r.max_attempts)
            .bind(&r.priorities)
            .bind(&r.states)
            .bind(&r.key_projects)
            .bind(&r.key_names)
            .bind(&r.key_bodies)
            .bind(&r.key_jobs)
            .bind(&r.count_projects)
            .bind(&r.count_clusters)
            .bind(&r.count_priorities)
            .bind(&r.count_states)
            .bind(&r.counts)
            .bind(&r.words)
            .bind(&r.packed)
            .bind(r.hint_seconds)
            .fetch_one(connection)
            .await
    }
    .boxed()
}

const INSERT: &str = "-- insert_jobs
WITH keys AS (
    INSERT INTO idempotency_keys (project, key, body, job_id)
    SELECT n.project, n.key, n.body, n.job_id
      FROM unnest($15::text[], $16::text[], $17::bytea[], $18::uuid[]) AS n (project, key, body, job_id)
), bodies AS (
    INSERT INTO jobs (id, created_at, run_at, project, cluster, name, created_by, idempotency_key, labels, spec, inputs)
    SELECT n.id, now(), n.run_at, n.project, n.cluster, n.name, n.created_by, n.key, n.labels::text[], n.spec, n.inputs
      FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                  $8::text[], $9::text[], $10::text[])
           AS n (id, run_at, project, cluster, name, created_by, key, labels, spec, inputs)
), states AS (
    INSERT INTO job_state (job_id, project, cluster, retry, max_attempts, priority, due_at, attempt, epoch,
                           fruitless_claims, state, version, cancel_requested, last_epoch, last_seq)
    SELECT n.id, n.project, n.cluster, n.retry, n.max_attempts, n.priority, greatest(n.run_at, now()), 1, 0,
           0, n.state, 0, false, 0, 0
      FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $11::text[], $12::integer[], $13::smallint[],
                  $14::smallint[])
           AS n (id, run_at, project, cluster, retry, max_attempts, priority, state)
), queue AS (
    INSERT INTO waiting (job_id, due_at, hint_until, priority, held, suspect, cluster)
    SELECT n.id, greatest(n.run_at, now()),
           CASE WHEN n.state = 1 AND coalesce(n.run_at <= now(), true) THEN now() + make_interval(secs => $26) END,
           n.priority, n.state = 0, false, n.cluster
      FROM unnest($1::uuid[], $2::timestamptz[], $4::text[], $13::smallint[], $14::smallint[])
           AS n (id, run_at, cluster, priority, state)
), counted AS (
    INSERT INTO count_deltas (project, cluster, priority, state, jobs)
    SELECT n.project, n.cluster, n.priority, n.state, n.jobs
      FROM unnest($19::text[], $20::text[], $21::smallint[], $22::smallint[], $23::bigint[])
           AS n (project, cluster, priority, state, jobs)
), told AS (
    INSERT INTO feed (batch, at, items, words, entries)
    VALUES (pg_current_xact_id()::text::bigint, now(), cardinality($1::uuid[]), $24, $25)
)
SELECT now()";

/// Those of these keys that stand for a job: the body, and the job.
fn held_keys<'c>(
    connection: &'c mut PgConnection,
    projects: &'c [String],
    keys: &'c [String],
) -> Work<'c, Vec<(Key, Held)>> {
    async move {
        let rows = sqlx::query(
            "-- held_keys
             SELECT k.project, k.key, k.body, k.job_id
               FROM unnest($1::text[], $2::text[]) AS n (project, key)
               JOIN idempotency_keys k ON k.project = ANY (ARRAY[n.project]) AND k.key = ANY (ARRAY[n.key])",
        )
        .bind(projects)
        .bind(keys)
        .fetch_all(connection)
        .await?;
        rows.iter()
            .map(|row| {
                let project = Project::try_from(row.try_get::<String, _>(0)?).map_err(corrupt)?;
                let body: &[u8] = row.try_get(2)?;
                let body = body.try_into().map_err(corrupt)?;
                Ok(((project, row.try_get(1)?), (body, JobId(row.try_get(3)?))))
            })
            .collect()
    }
    .boxed()
}

/// Whole jobs, in any order.
pub(super) fn whole_jobs<'c>(connection: &'c mut PgConnection, ids: &'c [Uuid]) -> Work<'c, Vec<Job>> {
    async move {
        let rows = sqlx::query(concat!(
            "-- whole_jobs
             SELECT ",
            job_columns!(),
            " FROM jobs j JOIN job_state s ON s.job_id = ANY (ARRAY[j.id]) WHERE j.id = ANY ($1)"
        ))
        .bind(ids)
        .fetch_all(connection)
        .await?;
        rows.iter().map(job).collect()
    }
    .boxed()
}
