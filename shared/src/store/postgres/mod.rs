//! The store on PostgreSQL.
//!
//! * `pools` and `fault`: connections, tries, and what an error means. `rows`: between rows and the domain.
//! * `ledger` and `save`: the kernel's two operations; every change of a job is one load and one statement that saves.
//! * `insert`, `jobs`, `list`, `retire`; `leases`, `stranded`; `dispatch`, `counts`, `feed`; `settings`: the port's calls.
//! * `scratch`: a database for a measurement, and what the server itself can do.
//!
//! The schema and what each table is for stand in `migrations/postgres`. Nothing here decides about a state.

mod config;
mod counts;
mod dispatch;
mod fault;
mod feed;
mod insert;
mod jobs;
mod leases;
mod ledger;
mod list;
mod pools;
mod retire;
mod rows;
mod save;
mod scratch;
mod settings;
mod stranded;

pub use self::{config::PostgresConfig, scratch::ScratchDatabase};
use self::{pools::Pools, retire::Walk};
use super::{
    Applied, Apply, Changes, Claimed, ClusterSetting, Commanded, Depth, Due, FeedCursor, Filter, Heartbeat,
    Hinted, Inserted, Leases, Oldest, Page, PageRequest, Patch, Pulse, Recorded, Removed, Reported, Scope,
    Store, StoreError, StoreResult, Stranded, ToHandBack, ToRecord, Token, Vanished, Worker, WorkerCluster,
};
use crate::domain::{
    ClusterName, Command, HistoryEntry, Job, JobId, NewJob, Report, StatusEvent, TokenId, WorkerId,
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection, migrate::Migrator};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// A store on a PostgreSQL server, shared by any number of processes.
#[derive(Debug)]
pub struct PostgresStore {
    pools: Arc<Pools>,
    walk: Walk,
}

/// Brings the schema up to date. Safe from several processes at once, and while older ones run.
pub async fn migrate(config: &PostgresConfig) -> StoreResult<()> {
    const OPERATION: &str = "migrate";
    let refused = |source: anyhow::Error| StoreError::Refused { operation: OPERATION, source };
    let options = config.options("migrate").map_err(|e| refused(e.into()))?;
    // Building an index may take longer than any statement otherwise may.
    let options = options.options([("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0")]);
    let mut connection = pools::reach(&options, config, OPERATION).await?;
    match MIGRATIONS.run(&mut connection).await {
        Ok(()) => {}
        Err(sqlx::migrate::MigrateError::Execute(error)) => return Err(pools::error(error, OPERATION)),
        Err(error) => return Err(refused(error.into())),
    }
    connection.close().await.map_err(|error| pools::error(error, OPERATION))
}

impl PostgresStore {
    /// Opens the connections. [`StoreError::Away`] when there is no server; refused when its schema is older than this
    /// build ([`migrate`] first).
    pub async fn connect(config: &PostgresConfig) -> StoreResult<Self> {
        const OPERATION: &str = "connect";
        let options = config.options("start").map_err(|error| pools::error(error, OPERATION))?;
        let mut connection = pools::reach(&options, config, OPERATION).await?;
        check_schema(&mut connection).await?;
        feed::forget_the_future(&mut connection).await.map_err(|error| pools::error(error, OPERATION))?;
        connection.close().await.map_err(|error| pools::error(error, OPERATION))?;
        let pools = Pools::open(config).await.map_err(|error| pools::error(error, OPERATION))?;
        Ok(Self { pools, walk: Walk::default() })
    }

    /// Waits for writes under way and closes every connection. Calls after it find the store away.
    pub async fn close(&self) {
        self.pools.close().await;
    }
}

async fn check_schema(connection: &mut PgConnection) -> StoreResult<()> {
    const OPERATION: &str = "check the schema";
    let known: bool = sqlx::query_scalar(
        "-- find_schema
         SELECT to_regclass('_sqlx_migrations') IS NOT NULL",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(|error| pools::error(error, OPERATION))?;
    let mut version: Option<i64> = None;
    if known {
        version = sqlx::query_scalar(
            "-- schema_version
             SELECT max(version) FROM _sqlx_migrations WHERE success",
        )
        .fetch_one(connection)
        .await
        .map_err(|error| pools::error(error, OPERATION))?;
    }
    let needed = MIGRATIONS.iter().map(|migration| migration.version).max();
    if version >= needed {
        return Ok(());
    }
    let source = anyhow::anyhow!(
        "the schema is at version {version:?}, this build needs {needed:?}: migrate it first"
    );
    Err(StoreError::Refused { operation: OPERATION, source })
}

/// Runs one call of the port and takes its time.
async fn timed<T>(operation: &'static str, call: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
    let began = Instant::now();
    let answer = call.await;
    metrics::histogram!("jobgate_store_seconds", "operation" => operation).record(began.elapsed());
    answer
}

#[async_trait]
impl Apply for PostgresStore {
    async fn apply(&self, events: &[StatusEvent]) -> StoreResult<Vec<Applied>> {
        timed("apply", self.pools.apply(events)).await
    }
}

#[async_trait]
impl Leases for PostgresStore {
    async fn register(&self, worker: &Worker, ttl: Duration) -> StoreResult<()> {
        timed("register", self.pools.register(worker, ttl)).await
    }

    async fn heartbeat(&self, worker: WorkerId, pulse: &Pulse) -> StoreResult<Heartbeat> {
        timed("heartbeat", self.pools.heartbeat(worker, pulse)).await
    }

    async fn claim(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        jobs: &[JobId],
    ) -> StoreResult<Vec<Claimed>> {
        timed("claim", self.pools.claim(worker, clusters, jobs, false)).await
    }

    async fn claim_alone(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        job: JobId,
    ) -> StoreResult<Claimed> {
        let claimed = timed("claim", self.pools.claim(worker, clusters, &[job], true)).await?;
        Ok(claimed.into_iter().next().unwrap_or(Claimed::Absent))
    }

    async fn record(&self, items: &[ToRecord]) -> StoreResult<Vec<Recorded>> {
        timed("record", self.pools.record(items)).await
    }

    async fn hand_back(&self, worker: WorkerId, items: &[ToHandBack]) -> StoreResult<()> {
        timed("hand_back", self.pools.hand_back(worker, items)).await
    }

    async fn deregister(&self, worker: WorkerId) -> StoreResult<()> {
        timed("deregister", self.pools.deregister(worker)).await
    }

    async fn held(&self, worker: WorkerId) -> StoreResult<Vec<JobId>> {
        timed("held", self.pools.held(worker)).await
    }

    async fn serving(&self, clusters: &[ClusterName]) -> StoreResult<Vec<u32>> {
        timed("serving", self.pools.serving(clusters)).await
    }

    async fn in_hands(
        &self,
        cluster: &ClusterName,
        owners: &[WorkerId],
        after: Option<JobId>,
        limit: u32,
    ) -> StoreResult<Vec<Job>> {
        timed("in_hands", self.pools.in_hands(cluster, owners, after, limit)).await
    }

    async fn leftovers(&self, found: &[(JobId, u32, String)]) -> StoreResult<Vec<usize>> {
        timed("leftovers", self.pools.leftovers(found)).await
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn ping(&self) -> StoreResult<()> {
        timed("ping", self.pools.now()).await.map(drop)
    }

    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        timed("now", self.pools.now()).await
    }

    async fn insert(&self, jobs: &[NewJob], hinted: Option<Duration>) -> StoreResult<Vec<Inserted>> {
        timed("insert", self.pools.insert(jobs, hinted)).await
    }

    async fn get(&self, scope: &Scope, job: JobId) -> StoreResult<Option<Job>> {
        timed("get", self.pools.get(scope, job)).await
    }

    async fn present(&self, jobs: &[JobId]) -> StoreResult<Vec<JobId>> {
        timed("present", self.pools.present(jobs)).await
    }

    async fn list(&self, scope: &Scope, filter: &Filter, page: PageRequest) -> StoreResult<Page> {
        timed("list", self.pools.list(scope, filter, page)).await
    }

    async fn history(&self, scope: &Scope, job: JobId) -> StoreResult<Option<Vec<HistoryEntry>>> {
        timed("history", self.pools.history(scope, job)).await
    }

    async fn command(
        &self,
        scope: &Scope,
        jobs: &[JobId],
        command: Command,
        by: &str,
    ) -> StoreResult<Vec<Commanded>> {
        timed("command", self.pools.command(scope, jobs, command, by)).await
    }

    async fn patch(&self, scope: &Scope, job: JobId, patch: &Patch) -> StoreResult<Option<Job>> {
        timed("patch", self.pools.patch(scope, job, patch)).await
    }

    async fn report(&self, scope: &Scope, job: JobId, report: &Report) -> StoreResult<Reported> {
        timed("report", self.pools.report(scope, job, report)).await
    }

    async fn remove(&self, scope: &Scope, job: JobId) -> StoreResult<Removed> {
        timed("remove", self.pools.remove(scope, job)).await
    }

    async fn retirable(&self, before: DateTime<Utc>, limit: u32) -> StoreResult<Vec<JobId>> {
        timed("retirable", self.pools.retirable(&self.walk, before, limit)).await
    }

    async fn retire(&self, jobs: &[JobId], before: DateTime<Utc>) -> StoreResult<u64> {
        timed("retire", self.pools.retire(jobs, before)).await
    }

    async fn retire_feed(&self, before: DateTime<Utc>) -> StoreResult<bool> {
        timed("retire_feed", self.pools.retire_feed(before)).await
    }

    async fn depths(&self) -> StoreResult<Vec<Depth>> {
        timed("depths", self.pools.depths()).await
    }

    async fn oldest(&self) -> StoreResult<Vec<Oldest>> {
        timed("oldest", self.pools.oldest()).await
    }

    async fn compact_counts(&self) -> StoreResult<bool> {
        timed("compact_counts", self.pools.compact_counts()).await
    }

    async fn changes(&self, after: FeedCursor, limit: u32) -> StoreResult<Changes> {
        timed("changes", self.pools.changes(after, limit)).await
    }

    async fn feed_end(&self) -> StoreResult<FeedCursor> {
        timed("feed_end", self.pools.feed_end()).await
    }

    async fn outstanding(&self) -> StoreResult<Vec<Hinted>> {
        timed("outstanding", self.pools.outstanding()).await
    }

    async fn due(
        &self,
        cluster: &ClusterName,
        limit: u32,
        hint_for: Duration,
        again_after: Duration,
    ) -> StoreResult<Vec<Due>> {
        timed("due", self.pools.due(cluster, limit, hint_for, again_after)).await
    }

    async fn unhint(&self, jobs: &[JobId]) -> StoreResult<()> {
        timed("unhint", self.pools.unhint(jobs)).await
    }

    async fn stranded(
        &self,
        dead: &[WorkerId],
        limit: u32,
        hint_for: Duration,
    ) -> StoreResult<Vec<Stranded>> {
        timed("stranded", self.pools.stranded(dead, limit, hint_for)).await
    }

    async fn vanished(&self, jobs: &[Vanished], lost_after: Option<Duration>) -> StoreResult<Vec<Applied>> {
        timed("vanished", self.pools.vanished(jobs, lost_after)).await
    }

    async fn workers(&self) -> StoreResult<Vec<Worker>> {
        timed("workers", self.pools.workers()).await
    }

    async fn expire_all_leases(&self) -> StoreResult<()> {
        timed("expire_all_leases", self.pools.expire_all_leases()).await
    }

    async fn cluster_settings(&self) -> StoreResult<Vec<ClusterSetting>> {
        timed("cluster_settings", self.pools.cluster_settings()).await
    }

    async fn set_paused(&self, cluster: &ClusterName, paused: bool, by: &str) -> StoreResult<()> {
        timed("set_paused", self.pools.set_paused(cluster, paused, by)).await
    }

    async fn limit(&self, cluster: &ClusterName, max_in_flight: Option<u32>, by: &str) -> StoreResult<()> {
        timed("limit", self.pools.limit(cluster, max_in_flight, by)).await
    }

    async fn create_token(&self, token: &Token) -> StoreResult<()> {
        timed("create_token", self.pools.create_token(token)).await
    }

    async fn tokens(&self, scope: &Scope) -> StoreResult<Vec<Token>> {
        timed("tokens", self.pools.tokens(scope)).await
    }

    async fn token(&self, id: TokenId) -> StoreResult<Option<Token>> {
        timed("token", self.pools.token(id)).await
    }

    async fn revoke_token(&self, scope: &Scope, id: TokenId) -> StoreResult<bool> {
        timed("revoke_token", self.pools.revoke_token(scope, id)).await
    }
}
