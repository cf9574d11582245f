//! The PostgreSQL store keeps the contract of every store (the conformance suite), and what is its own: its plans, its
//! outages, its feed's order, its schema.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use jobgate_conformance::store::Stage;
use jobgate_shared::domain::{
    ClusterName, Command, Document, Ending, Job, JobId, JobSpec, JobState, NewJob, Observation, Project,
    RetryPolicy, StatusEvent, Submission, WorkerId,
};
use jobgate_shared::store::postgres::{PostgresConfig, PostgresStore, migrate};
use jobgate_shared::store::{
    Applied, Apply as _, Claimed, Filter, FullStore, Inserted, Leases as _, PageRequest, Recorded, Scope,
    Store as _, StoreError, ToRecord, Worker, WorkerCluster,
};
use jobgate_tests::services::{Database, Postgres, Shutdown};
use sqlx::{Connection as _, PgConnection};

const LONG: Duration = Duration::from_hours(1);
/// What an outage may cost a caller.
const PROMPT: Duration = Duration::from_secs(3);

fn config(url: &str) -> PostgresConfig {
    PostgresConfig { application_name: "test".into(), ..PostgresConfig::new(url) }
}

async fn open(url: &str) -> Result<Arc<PostgresStore>> {
    migrate(&config(url)).await?;
    Ok(Arc::new(PostgresStore::connect(&config(url)).await?))
}

fn new_job() -> NewJob {
    NewJob {
        id: JobId::generate(),
        project: Project::default_project(),
        name: "sum".into(),
        cluster: local(),
        spec: JobSpec { command: vec!["true".into()], ..JobSpec::default() },
        labels: vec!["nightly".into()],
        priority: 0,
        inputs: Document::new(),
        max_attempts: 1,
        retry: RetryPolicy::default(),
        run_at: None,
        hold: false,
        created_by: "token:test".into(),
        idempotency: None,
    }
}

fn local() -> ClusterName {
    "local".parse().expect("a good name")
}

fn serves() -> Vec<WorkerCluster> {
    vec![WorkerCluster { name: local(), reach: None, parked: None }]
}

async fn insert(store: &PostgresStore, count: usize) -> Result<Vec<JobId>> {
    let new: Vec<NewJob> = (0..count).map(|_| new_job()).collect();
    let outcomes = store.insert(&new, Some(LONG)).await?;
    let created = outcomes.into_iter().map(|outcome| match outcome {
        Inserted::Created(job) => Ok(job.id),
        Inserted::Existing(_) | Inserted::KeyReused => bail!("{outcome:?}"),
    });
    created.collect()
}

async fn worker(store: &PostgresStore) -> Result<WorkerId> {
    let (id, now) = (WorkerId::generate(), store.now().await?);
    let worker = Worker {
        id,
        host: "here".into(),
        clusters: serves(),
        registered_at: now,
        expires_at: now,
        alive: true,
        draining: false,
        jobs: 0,
    };
    store.register(&worker, LONG).await?;
    Ok(id)
}

fn ended(job: &Job, ending: Ending, at: DateTime<Utc>) -> StatusEvent {
    StatusEvent {
        job: job.id,
        attempt: job.life.attempt,
        epoch: job.life.epoch,
        seq: 1,
        by: job.life.owner.unwrap_or(WorkerId::NOBODY),
        submission: Some(job.id.to_string()),
        observation: Observation::Ended {
            ending,
            exit_code: Some(0),
            reason: None,
            began: Some(at),
            at: Some(at),
        },
        at,
    }
}

/// The jobs, from accepted to ended.
async fn run(store: &PostgresStore, worker: WorkerId, ids: &[JobId], ending: Ending) -> Result<()> {
    let mut jobs = Vec::new();
    for outcome in store.claim(worker, &serves(), ids).await? {
        let Claimed::Granted(job) = outcome else { bail!("{outcome:?}") };
        jobs.push(*job);
    }
    let submission =
        |job: &Job| Submission { id: job.id.to_string(), detail: serde_json::Value::Null, reach: None };
    let created: Vec<ToRecord> = jobs
        .iter()
        .map(|job| ToRecord {
            job: job.id,
            attempt: job.life.attempt,
            epoch: job.life.epoch,
            submission: submission(job),
        })
        .collect();
    let recorded = store.record(&created).await?;
    ensure!(recorded.iter().all(|r| *r == Recorded::Won), "{recorded:?}");
    let at = store.now().await?;
    let events: Vec<StatusEvent> = jobs.iter().map(|job| ended(job, ending, at)).collect();
    let applied = store.apply(&events).await?;
    ensure!(applied.iter().all(|a| *a == Applied::Advanced), "{applied:?}");
    Ok(())
}

/// Rows of jobs that were accepted and ended one a second, the first of them then.
async fn make_ended(connection: &mut PgConnection, first: DateTime<Utc>, count: i64) -> Result<()> {
    let make = "-- make_ended
        WITH times AS (
            SELECT $1::timestamptz + make_interval(secs => n) AS at FROM generate_series(0, $2::bigint - 1) AS n
        ), made AS (
            SELECT at, (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '70008000000000000000')::uuid AS id
              FROM times
        ), bodies AS (
            INSERT INTO jobs (id, created_at, project, cluster, name, created_by, spec)
            SELECT id, at, 'default', 'local', 'sum', 'token:test', '{}' FROM made
        )
        INSERT INTO job_state (job_id, project, cluster, max_attempts, priority, due_at, attempt, epoch, fruitless_claims,
                               state, version, cancel_requested, last_epoch, last_seq, finished_at)
        SELECT id, 'default', 'local', 1, 0, at, 1, 1, 0, 5, 1, false, 1, 1, at FROM made";
    sqlx::query(make).bind(first).bind(count).execute(connection).await?;
    Ok(())
}

/// Scans of whole tables, and rows read through indexes, since the server counted from zero.
async fn reads(connection: &mut PgConnection) -> Result<(i64, i64)> {
    let tables: (i64, i64) = sqlx::query_as(
        "-- reads_of_tables
         SELECT coalesce(sum(seq_tup_read), 0)::bigint, coalesce(sum(idx_tup_fetch), 0)::bigint
           FROM pg_stat_user_tables WHERE relname IN ('jobs', 'job_state', 'waiting')",
    )
    .fetch_one(connection)
    .await?;
    Ok(tables)
}

/// Until every other backend of the database has ended: it reports what it read before it leaves the list of them, which
/// is after its client has gone.
async fn alone(connection: &mut PgConnection) -> Result<()> {
    let others = "-- other_backends
        SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    for _ in 0..600 {
        let others: i64 = sqlx::query_scalar(others).fetch_one(&mut *connection).await?;
        if others == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("other backends are still there")
}

/// A database of its own for each case. Its clock is the server's, so time passes by waiting.
struct Server {
    store: Arc<PostgresStore>,
    _database: Database,
}

#[async_trait]
impl Stage for Server {
    fn store(&self) -> Arc<dyn FullStore> {
        self.store.clone()
    }

    async fn pass(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

jobgate_conformance::store_conformance!(async || {
    let database = Database::fresh().await?;
    anyhow::Ok(Server { store: open(database.url()).await?, _database: database })
});

#[tokio::test(flavor = "multi_thread")]
async fn plans_hold_when_the_statistics_say_that_every_table_is_empty() -> Result<()> {
    const ROWS: usize = 20_000;
    const BATCH: usize = 200;
    let database = Database::fresh().await?;
    let store = open(database.url()).await?;
    let mut connection = PgConnection::connect(database.url()).await?;
    // Counted while empty, and never again: the worst a planner can believe.
    let stale = "-- stale_statistics
        ALTER TABLE jobs SET (autovacuum_enabled = off); ALTER TABLE job_state SET (autovacuum_enabled = off);
        ALTER TABLE waiting SET (autovacuum_enabled = off); VACUUM ANALYZE jobs, job_state, waiting";
    for statement in stale.split(';') {
        sqlx::raw_sql(statement).execute(&mut connection).await?;
    }
    let worker = worker(&store).await?;
    // Every statement is planned on empty tables, and keeps that plan.
    let first = insert(&store, 1).await?;
    run(&store, worker, &first, Ending::Finished).await?;
    for _ in 0..ROWS / 1_000 {
        insert(&store, 1_000).await?;
    }
    store.close().await;
    let store = open(database.url()).await?;
    let ids = insert(&store, BATCH).await?;
    sqlx::raw_sql("-- forget_reads\nSELECT pg_stat_reset()").execute(&mut connection).await?;
    run(&store, worker, &ids, Ending::Failed).await?;
    store.command(&Scope::All, &ids, Command::Retry, "token:test").await?;
    store.command(&Scope::All, &ids, Command::Cancel, "token:test").await?;
    let claimed = insert(&store, BATCH).await?;
    store.claim(worker, &serves(), &claimed).await?;
    let held = store.held(worker).await?;
    ensure!(held.len() == BATCH, "{} of {BATCH} jobs are held", held.len());
    let present = store.present(&claimed).await?;
    ensure!(present.len() == BATCH, "{} of {BATCH} jobs are there", present.len());
    let due = store.due(&local(), 10, LONG, LONG).await?;
    ensure!(due.is_empty(), "everything is hinted: {due:?}");
    let states = vec![JobState::Canceled];
    let filter = Filter { states, ..Filter::default() };
    let page = store.list(&Scope::All, &filter, PageRequest { after: None, limit: 50 }).await?;
    ensure!(page.jobs.len() == 50, "{} jobs", page.jobs.len());
    store.close().await;
    alone(&mut connection).await?;
    let (scanned, fetched) = reads(&mut connection).await?;
    ensure!(scanned == 0, "{scanned} rows were read by scanning whole tables");
    let (touched, most) = (i64::try_from(BATCH)?, 40);
    ensure!(fetched >= touched * 5, "{fetched} rows fetched: the counters do not count");
    ensure!(fetched < touched * most, "{fetched} rows fetched for {touched} jobs: not by their keys");
    Ok(connection.close().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_is_away_at_once_and_back_when_it_is_back() -> Result<()> {
    let mut server = Postgres::start().await?;
    let database = server.database().await?;
    let store = open(database.url()).await?;
    let worker = worker(&store).await?;
    let ids = insert(&store, 10).await?;
    server.stop(Shutdown::Immediate).await?;
    let away = async |what: &str, outcome: Result<(), StoreError>, began: Instant| {
        ensure!(matches!(outcome, Err(StoreError::Away(_))), "{what}: {outcome:?}");
        ensure!(began.elapsed() < PROMPT, "{what} took {:?}", began.elapsed());
        Ok(())
    };
    let began = Instant::now();
    away("a read", store.get(&Scope::All, ids[0]).await.map(drop), began).await?;
    let began = Instant::now();
    away("a write", store.insert(&[new_job()], None).await.map(drop), began).await?;
    let began = Instant::now();
    away("a claim", store.claim(worker, &serves(), &ids).await.map(drop), began).await?;
    let began = Instant::now();
    away("a start", PostgresStore::connect(&config(database.url())).await.map(drop), began).await?;
    server.start_again().await?;
    run(&store, worker, &ids, Ending::Finished).await?;
    store.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_under_way_is_finished_though_its_caller_is_gone() -> Result<()> {
    let database = Database::fresh().await?;
    let store = open(database.url()).await?;
    let mut blocker = PgConnection::connect(database.url()).await?;
    let mut transaction = blocker.begin().await?;
    sqlx::raw_sql("-- block_inserts\nLOCK TABLE jobs IN SHARE MODE").execute(&mut *transaction).await?;
    let new = new_job();
    let mut call = Box::pin(store.insert(std::slice::from_ref(&new), None));
    let waits = "-- waiting_backends
        SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let under_way = async {
        while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut *transaction).await? == 0 {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        answer = &mut call => bail!("the insert was not held up: {answer:?}"),
        waits = under_way => waits?,
    }
    drop(call);
    transaction.commit().await?;
    // Closing waits for the write.
    store.close().await;
    let store = open(database.url()).await?;
    let stored = store.get(&Scope::All, new.id).await?.context("the job was stored")?;
    ensure!(stored.life.state == JobState::Initialized, "{stored:?}");
    store.close().await;
    Ok(blocker.close().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_transaction_of_somebody_else_does_not_hold_the_feed_up() -> Result<()> {
    let database = Database::fresh().await?;
    let store = open(database.url()).await?;
    let mut stranger = PgConnection::connect(database.url()).await?;
    let mut transaction = stranger.begin().await?;
    sqlx::raw_sql("-- take_a_number\nSELECT pg_current_xact_id()").execute(&mut *transaction).await?;
    let begin = store.feed_end().await?;
    let ids = insert(&store, 3).await?;
    let told = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let changes = store.changes(begin, 10).await?;
            if !changes.items.is_empty() {
                return anyhow::Ok(changes);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await??;
    let jobs: Vec<JobId> = told.items.iter().map(|(_, change)| change.job).collect();
    ensure!(jobs == ids && !told.gap, "{told:?}");
    transaction.rollback().await?;
    store.close().await;
    Ok(stranger.close().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_waits_for_a_batch_that_began_earlier_and_commits_later() -> Result<()> {
    let database = Database::fresh().await?;
    let store = open(database.url()).await?;
    let begin = store.feed_end().await?;
    let mut slow = PgConnection::connect(database.url()).await?;
    let mut transaction = slow.begin().await?;
    // As a save does it: the number and the row in one statement.
    let tell = "-- tell_nothing
        INSERT INTO feed (batch, at, items, words, entries)
        VALUES (pg_current_xact_id()::text::bigint, now() - interval '1 minute', 0, '{}', '')";
    sqlx::raw_sql(tell).execute(&mut *transaction).await?;
    insert(&store, 1).await?;
    // Long enough that the reader asks whose the running transaction is.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let early = store.changes(begin, 10).await?;
    ensure!(early.items.is_empty(), "told past a batch still being written: {early:?}");
    transaction.commit().await?;
    let told = store.changes(begin, 10).await?;
    ensure!(told.items.len() == 1, "{told:?}");
    store.close().await;
    Ok(slow.close().await?)
}

#[tokio::test]
async fn the_feed_misses_nothing_of_claims_that_wait_for_the_row_of_a_limited_cluster() -> Result<()> {
    let database = Database::fresh().await?;
    let store = open(database.url()).await?;
    let (mut jobs, mut serves) = (Vec::new(), Vec::new());
    for name in ["limited-a", "limited-b"] {
        let cluster: ClusterName = name.parse()?;
        store.limit(&cluster, Some(5), "token:test").await?;
        let job = NewJob { cluster: cluster.clone(), ..new_job() };
        jobs.push(job.id);
        store.insert(&[job], None).await?;
        serves.push(WorkerCluster { name: cluster, reach: None, parked: None });
    }
    let begin = store.feed_end().await?;
    let mut slow = PgConnection::connect(database.url()).await?;
    let mut transaction = slow.begin().await?;
    let lock = "-- lock_a_cluster
        SELECT 1 FROM clusters WHERE name = 'limited-b' FOR UPDATE";
    sqlx::raw_sql(lock).execute(&mut *transaction).await?;
    let worker = worker(&store).await?;
    let claim = store.claim(worker, &serves, &jobs);
    let read = async {
        // The claim has the first row and waits for the second, while others commit after it, and a reader wonders whose
        // transaction that is.
        tokio::time::sleep(Duration::from_millis(200)).await;
        insert(&store, 1).await?;
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let early = store.changes(begin, 10).await?;
        transaction.commit().await?;
        anyhow::Ok(early)
    };
    let (claimed, early) = tokio::join!(claim, read);
    let (claimed, early) = (claimed?, early?);
    ensure!(claimed.iter().all(|one| matches!(one, Claimed::Granted(_))), "{claimed:?}");
    let after = early.items.last().map_or(begin, |(cursor, _)| *cursor);
    let late = store.changes(after, 10).await?;
    let told = early.items.iter().chain(&late.items);
    let claims = told.filter(|(_, change)| change.entry.to == JobState::Claimed).count();
    ensure!(claims == 2, "{early:?} {late:?}");
    store.close().await;
    Ok(slow.close().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_are_over_are_forgotten_as_long_as_there_are_any() -> Result<()> {
    const CLAIMS: i64 = 3_000;
    let database = Database::fresh().await?;
    let store = open(database.url()).await?;
    let mut connection = PgConnection::connect(database.url()).await?;
    let ids = insert(&store, 1).await?;
    let worker = worker(&store).await?;
    run(&store, worker, &ids, Ending::Finished).await?;
    let held = insert(&store, 1).await?;
    store.claim(worker, &serves(), &held).await?;
    // As many claims made one by one.
    let claim = "-- claim_often
        INSERT INTO claims (worker_id, claimed_at, check_at, hinted, job_ids, epochs)
        SELECT $1, now(), now(), 0, ARRAY[$2], ARRAY[1] FROM generate_series(1, $3)";
    sqlx::query(claim).bind(worker.0).bind(ids[0].0).bind(CLAIMS).execute(&mut connection).await?;
    sqlx::raw_sql("-- check_now\nUPDATE claims SET check_at = now()").execute(&mut connection).await?;
    while store.compact_counts().await? {}
    let left: Vec<Vec<uuid::Uuid>> =
        sqlx::query_scalar("-- claims_left\nSELECT job_ids FROM claims").fetch_all(&mut connection).await?;
    ensure!(left == [vec![held[0].0]], "{} claims are left", left.len());
    store.close().await;
    Ok(connection.close().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_retired_when_it_is_old_enough_however_many_young_ones_come_after_it() -> Result<()> {
    const BATCH: u32 = 500;
    let database = Database::fresh().await?;
    let store = open(database.url()).await?;
    let mut connection = PgConnection::connect(database.url()).await?;
    let before = store.now().await? - TimeDelta::days(30);
    let young = before + TimeDelta::hours(1);
    make_ended(&mut connection, before - TimeDelta::days(1), 600).await?;
    make_ended(&mut connection, young, 25_000).await?;
    let mut retired = 0;
    loop {
        let jobs = store.retirable(before, BATCH).await?;
        retired += store.retire(&jobs, before).await?;
        if jobs.len() < BATCH as usize {
            break;
        }
    }
    ensure!(retired == 600, "{retired} jobs are retired");
    let jobs = store.retirable(young + TimeDelta::seconds(100), BATCH).await?;
    ensure!(jobs.len() == 100, "{} of the young ones that have grown old are found", jobs.len());
    store.close().await;
    Ok(connection.close().await?)
}

#[tokio::test]
async fn old_feed_goes_a_part_at_a_time_until_none_is_left() -> Result<()> {
    const BATCHES: i64 = 3_500;
    let database = Database::fresh().await?;
    let store = open(database.url()).await?;
    let mut connection = PgConnection::connect(database.url()).await?;
    // Numbered below every transaction there will be.
    let tell = "-- tell_long_ago
        INSERT INTO feed (batch, at, items, words, entries)
        SELECT n - $1, now() - interval '1 year', 0, '{}', '' FROM generate_series(1, $1) AS n";
    sqlx::query(tell).bind(BATCHES).execute(&mut connection).await?;
    let before = store.now().await?;
    let mut left = vec![BATCHES];
    loop {
        let more = store.retire_feed(before).await?;
        let count = sqlx::query_scalar("-- feed_left\nSELECT count(*) FROM feed");
        left.push(count.fetch_one(&mut connection).await?);
        if !more {
            break;
        }
    }
    ensure!(left == [3_500, 2_500, 1_500, 500, 0], "{left:?}");
    store.close().await;
    Ok(connection.close().await?)
}

#[tokio::test]
async fn a_schema_that_is_older_than_the_build_is_refused_at_the_start() -> Result<()> {
    let database = Database::fresh().await?;
    let refused = PostgresStore::connect(&config(database.url())).await;
    ensure!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
    migrate(&config(database.url())).await?;
    migrate(&config(database.url())).await?;
    let store = PostgresStore::connect(&config(database.url())).await?;
    store.ping().await?;
    store.close().await;
    Ok(())
}
