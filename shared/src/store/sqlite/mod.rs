//! The store in a file: the embedded form's, for one process at a time.
//!
//! * `writer`: the one connection that writes; whatever is asked of it while a commit is in flight shares the next one.
//! * `rows`: between rows and the domain, and the kernel's two operations.
//! * `jobs`, `list`, `queue`, `leases`, `settings`: the port's calls. `place`: where the file may lie.
//! * `scratch`: what SQLite itself can do, for measurements.
//!
//! Durable means durable: write-ahead log, `synchronous=FULL`. The file is locked against a second process, because only
//! one may write and end all leases.

mod jobs;
mod leases;
mod list;
mod place;
mod queue;
mod rows;
mod scratch;
mod settings;
mod writer;

pub use self::scratch::floors;
use self::writer::{Writer, fault};
use super::{
    Applied, Apply, Changes, Claimed, ClusterSetting, Commanded, Depth, Due, FeedCursor, Filter, Heartbeat,
    Hinted, Inserted, Leases, Oldest, Page, PageRequest, Patch, Pulse, Recorded, Removed, Reported, Scope,
    Store, StoreError, StoreResult, Stranded, ToHandBack, ToRecord, Token, Vanished, Worker, WorkerCluster,
};
use crate::{
    clock::Clock,
    domain::{
        ClusterName, Command, HistoryEntry, Job, JobId, NewJob, Report, StatusEvent, TokenId, WorkerId,
    },
};
use anyhow::Context as _;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{
    Connection as _, Row as _, SqliteConnection, SqlitePool,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{fs::File, path::Path, sync::Arc, time::Duration};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// The first version without a fault in its write-ahead log that can corrupt the file.
const OLDEST: (u32, u32, u32) = (3, 51, 3);
/// Connections that read.
const READERS: u32 = 4;

/// A store in a file.
#[derive(Debug)]
pub struct SqliteStore {
    clock: Arc<dyn Clock>,
    writer: Writer,
    readers: SqlitePool,
    /// Held as long as the store is open.
    _lock: File,
}

impl SqliteStore {
    /// Opens the file, makes it if it is not there, and brings its schema up to date. Refused when another process has it,
    /// and on a filesystem that other hosts serve.
    pub async fn open(path: &Path, clock: Arc<dyn Clock>) -> StoreResult<Self> {
        const OPERATION: &str = "open";
        let refused = |source: anyhow::Error| StoreError::Refused { operation: OPERATION, source };
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        place::check(directory.unwrap_or(Path::new("."))).map_err(refused)?;
        let lock = lock(path).map_err(refused)?;
        let options = settings_of(path);
        let mut connection =
            SqliteConnection::connect_with(&options).await.map_err(|e| fault(e, OPERATION))?;
        check_version(&mut connection).await.map_err(refused)?;
        MIGRATIONS.run(&mut connection).await.map_err(|error| refused(error.into()))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(Duration::from_secs(3))
            .connect_with(options.pragma("query_only", "on"))
            .await
            .map_err(|e| fault(e, OPERATION))?;
        Ok(Self { writer: Writer::spawn(connection, clock.clone()), clock, readers, _lock: lock })
    }

    /// Waits for writes under way and closes the file. Calls after it find the store away.
    pub async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
    }

    /// Looks the whole file over; slow.
    pub async fn check_integrity(&self) -> anyhow::Result<()> {
        let found: String =
            sqlx::query("-- check_integrity\nPRAGMA integrity_check").fetch_one(&self.readers).await?.get(0);
        anyhow::ensure!(found == "ok", "the store's file is damaged: {found}");
        Ok(())
    }
}

/// How a file is opened, made if it is not there.
fn settings_of(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(10))
        .foreign_keys(true)
}

/// Locks a file beside the store's: nothing SQLite does to its own can take that away.
fn lock(path: &Path) -> anyhow::Result<File> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&beside);
    let file = file.with_context(|| format!("cannot open {}", Path::new(&beside).display()))?;
    file.try_lock().with_context(|| format!("another process has {}", path.display()))?;
    Ok(file)
}

async fn check_version(connection: &mut SqliteConnection) -> anyhow::Result<()> {
    let version: String =
        sqlx::query("-- version\nSELECT sqlite_version()").fetch_one(connection).await?.get(0);
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    let found = (next(), next(), next());
    anyhow::ensure!(
        found >= OLDEST,
        "SQLite {version} can corrupt its write-ahead log; {OLDEST:?} or newer is needed"
    );
    Ok(())
}

#[async_trait]
impl Apply for SqliteStore {
    async fn apply(&self, events: &[StatusEvent]) -> StoreResult<Vec<Applied>> {
        self.apply_events(events).await
    }
}

#[async_trait]
impl Leases for SqliteStore {
    async fn register(&self, worker: &Worker, ttl: Duration) -> StoreResult<()> {
        self.register_worker(worker, ttl).await
    }

    async fn heartbeat(&self, worker: WorkerId, pulse: &Pulse) -> StoreResult<Heartbeat> {
        self.beat(worker, pulse).await
    }

    async fn claim(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        jobs: &[JobId],
    ) -> StoreResult<Vec<Claimed>> {
        self.claim_jobs(worker, clusters, jobs, false).await
    }

    async fn claim_alone(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        job: JobId,
    ) -> StoreResult<Claimed> {
        let claimed = self.claim_jobs(worker, clusters, &[job], true).await?;
        Ok(claimed.into_iter().next().unwrap_or(Claimed::Absent))
    }

    async fn record(&self, items: &[ToRecord]) -> StoreResult<Vec<Recorded>> {
        self.record_submissions(items).await
    }

    async fn hand_back(&self, worker: WorkerId, items: &[ToHandBack]) -> StoreResult<()> {
        self.take_back(worker, items).await
    }

    async fn deregister(&self, worker: WorkerId) -> StoreResult<()> {
        self.end_lease(worker).await
    }

    async fn held(&self, worker: WorkerId) -> StoreResult<Vec<JobId>> {
        self.held_jobs(worker).await
    }

    async fn serving(&self, clusters: &[ClusterName]) -> StoreResult<Vec<u32>> {
        self.count_serving(clusters).await
    }

    async fn in_hands(
        &self,
        cluster: &ClusterName,
        owners: &[WorkerId],
        after: Option<JobId>,
        limit: u32,
    ) -> StoreResult<Vec<Job>> {
        self.jobs_in_hands(cluster, owners, after, limit).await
    }

    async fn leftovers(&self, found: &[(JobId, u32, String)]) -> StoreResult<Vec<usize>> {
        self.judge_leftovers(found).await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn ping(&self) -> StoreResult<()> {
        sqlx::query("-- ping\nSELECT 1").execute(&self.readers).await.map_err(|e| fault(e, "ping"))?;
        Ok(())
    }

    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        Ok(self.clock.now())
    }

    async fn insert(&self, jobs: &[NewJob], hinted: Option<Duration>) -> StoreResult<Vec<Inserted>> {
        self.insert_jobs(jobs, hinted).await
    }

    async fn get(&self, scope: &Scope, job: JobId) -> StoreResult<Option<Job>> {
        self.find(scope, job).await
    }

    async fn present(&self, jobs: &[JobId]) -> StoreResult<Vec<JobId>> {
        self.present_jobs(jobs).await
    }

    async fn list(&self, scope: &Scope, filter: &Filter, page: PageRequest) -> StoreResult<Page> {
        self.page(scope, filter, page).await
    }

    async fn history(&self, scope: &Scope, job: JobId) -> StoreResult<Option<Vec<HistoryEntry>>> {
        self.tell_history(scope, job).await
    }

    async fn command(
        &self,
        scope: &Scope,
        jobs: &[JobId],
        command: Command,
        by: &str,
    ) -> StoreResult<Vec<Commanded>> {
        self.obey(scope, jobs, command, by).await
    }

    async fn patch(&self, scope: &Scope, job: JobId, patch: &Patch) -> StoreResult<Option<Job>> {
        self.patch_job(scope, job, patch).await
    }

    async fn report(&self, scope: &Scope, job: JobId, report: &Report) -> StoreResult<Reported> {
        self.take_report(scope, job, report).await
    }

    async fn remove(&self, scope: &Scope, job: JobId) -> StoreResult<Removed> {
        self.remove_job(scope, job).await
    }

    async fn retirable(&self, before: DateTime<Utc>, limit: u32) -> StoreResult<Vec<JobId>> {
        self.ended_before(before, limit).await
    }

    async fn retire(&self, jobs: &[JobId], before: DateTime<Utc>) -> StoreResult<u64> {
        self.retire_jobs(jobs, before).await
    }

    async fn retire_feed(&self, before: DateTime<Utc>) -> StoreResult<bool> {
        self.shorten_feed(before).await
    }

    async fn depths(&self) -> StoreResult<Vec<Depth>> {
        self.counted().await
    }

    async fn oldest(&self) -> StoreResult<Vec<Oldest>> {
        self.oldest_due().await
    }

    async fn compact_counts(&self) -> StoreResult<bool> {
        // Counts are kept in place: one writer has nobody to wait for.
        Ok(false)
    }

    async fn changes(&self, after: FeedCursor, limit: u32) -> StoreResult<Changes> {
        self.read_feed(after, limit).await
    }

    async fn feed_end(&self) -> StoreResult<FeedCursor> {
        self.end_of_feed().await
    }

    async fn outstanding(&self) -> StoreResult<Vec<Hinted>> {
        self.hinted().await
    }

    async fn due(
        &self,
        cluster: &ClusterName,
        limit: u32,
        hint_for: Duration,
        again_after: Duration,
    ) -> StoreResult<Vec<Due>> {
        self.take_due(cluster, limit, hint_for, again_after).await
    }

    async fn unhint(&self, jobs: &[JobId]) -> StoreResult<()> {
        self.forget_hints(jobs).await
    }

    async fn stranded(
        &self,
        dead: &[WorkerId],
        limit: u32,
        hint_for: Duration,
    ) -> StoreResult<Vec<Stranded>> {
        self.take_stranded(dead, limit, hint_for).await
    }

    async fn vanished(&self, jobs: &[Vanished], lost_after: Option<Duration>) -> StoreResult<Vec<Applied>> {
        self.give_up(jobs, lost_after).await
    }

    async fn workers(&self) -> StoreResult<Vec<Worker>> {
        self.known_workers().await
    }

    async fn expire_all_leases(&self) -> StoreResult<()> {
        self.end_all_leases().await
    }

    async fn cluster_settings(&self) -> StoreResult<Vec<ClusterSetting>> {
        self.settings().await
    }

    async fn set_paused(&self, cluster: &ClusterName, paused: bool, by: &str) -> StoreResult<()> {
        self.pause(cluster, paused, by).await
    }

    async fn limit(&self, cluster: &ClusterName, max_in_flight: Option<u32>, by: &str) -> StoreResult<()> {
        self.set_limit(cluster, max_in_flight, by).await
    }

    async fn create_token(&self, token: &Token) -> StoreResult<()> {
        self.keep_token(token).await
    }

    async fn tokens(&self, scope: &Scope) -> StoreResult<Vec<Token>> {
        self.all_tokens(scope).await
    }

    async fn token(&self, id: TokenId) -> StoreResult<Option<Token>> {
        self.find_token(id).await
    }

    async fn revoke_token(&self, scope: &Scope, id: TokenId) -> StoreResult<bool> {
        self.drop_token(scope, id).await
    }
}

#[cfg(test)]
mod tests;
