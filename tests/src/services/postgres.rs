//! PostgreSQL: a private instance that can be broken, and a database per test. `fsync` stays on: what a committed row
//! survives is what we test, and what a commit costs is what we measure.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Url;
use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use super::{Home, finish};
use crate::environment::{DATABASE_URL, required};
use crate::ports;
use crate::process::{LastWord, Managed, guarded};
use crate::wait::until;

const START: Duration = Duration::from_mins(1);
const STOP: Duration = Duration::from_mins(1);
/// A closed connection's backend needs a moment to notice.
const DISCONNECT: Duration = Duration::from_secs(3);
/// Enough for every test of a binary at once, each with a pool or two.
const MAX_CONNECTIONS: u16 = 400;

/// How a server is told to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Aborts what is open and writes a checkpoint.
    Fast,
    /// As if it had crashed: the next start recovers from the write-ahead log.
    Immediate,
}

/// A private PostgreSQL. Its superuser is `postgres`, without a password.
#[derive(Debug)]
pub struct Postgres {
    server: Option<Managed>,
    home: Home,
    programs: PathBuf,
    port: u16,
}

impl Postgres {
    /// A new, empty, running server.
    pub async fn start() -> Result<Self> {
        let home = Home::create("postgres")?;
        let mut postgres = Self { server: None, home, programs: newest_programs(), port: ports::free()? };
        let mut initdb = postgres.home.command(postgres.programs.join("initdb"));
        initdb.args([
            "-D",
            "data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]);
        let mut initdb = guarded(&initdb, postgres.home.account, LastWord::Kill);
        let made = tokio::task::spawn_blocking(move || initdb.output())
            .await?
            .context("initdb of PostgreSQL cannot be run: deploy/install-services installs it")?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        postgres.start_again().await?;
        Ok(postgres)
    }

    /// Address of the database `postgres`, as superuser.
    pub fn admin_url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// A new, empty database. It goes with this server.
    pub async fn database(&self) -> Result<Database> {
        Database::create(self.admin_url(), false).await
    }

    /// Stops the server as `how` says and starts it on the same data and port.
    pub async fn restart(&mut self, how: Shutdown) -> Result<()> {
        self.stop(how).await?;
        self.start_again().await
    }

    /// Stops the server; its data and port stay.
    pub async fn stop(&mut self, how: Shutdown) -> Result<()> {
        let signal = match how {
            Shutdown::Fast => Signal::INT,
            Shutdown::Immediate => Signal::QUIT,
        };
        self.server.take().context("PostgreSQL is stopped already")?.stop(signal, STOP).await?;
        Ok(())
    }

    /// Starts a stopped server and returns when it answers.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "PostgreSQL runs already");
        let mut command = self.home.command(self.programs.join("postgres"));
        command.args(["-D", "data", "-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "unix_socket_directories=", "-c", "fsync=on"]);
        command.args(["-c", &format!("max_connections={MAX_CONNECTIONS}")]);
        // QUIT, not KILL: the postmaster takes its backends and its shared memory with it.
        let server = self.server.insert(self.home.spawn("postgres", &command, LastWord::Quit)?);
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        server.ready(START, async || Ok(PgConnection::connect(&url).await?.close().await?)).await
    }

    /// What the server and its backends have computed since it was started.
    pub fn cpu_time(&self) -> Result<Duration> {
        let postmaster = self.server.as_ref().context("PostgreSQL is stopped")?.pid();
        let mut ticks = 0;
        for process in fs::read_dir("/proc")?.flatten() {
            // One that ends meanwhile counts with the children its parent has waited for.
            let Ok(stat) = fs::read_to_string(process.path().join("stat")) else { continue };
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap_or_default().1.split_whitespace().collect();
            // proc(5): after the name, the parent is field 4 of all, and from field 14 on there are its own user and system
            // time, then those of children it has waited for.
            let field = |place: usize| fields.get(place - 3).and_then(|field| field.parse::<u64>().ok());
            if process.file_name().to_str() == Some(&postmaster.to_string()) {
                ticks += (14..=17).filter_map(field).sum::<u64>();
            } else if field(4) == Some(postmaster.into()) {
                ticks += (14..=15).filter_map(field).sum::<u64>();
            }
        }
        // The kernel tells in hundredths of a second, whatever it counts in.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Whether the server has not ended by itself.
    pub fn is_running(&mut self) -> Result<bool> {
        self.server.as_mut().map_or(Ok(false), Managed::is_running)
    }
}

/// The folder of the newest installed version's programs; empty (the search path decides) where Debian's is missing.
fn newest_programs() -> PathBuf {
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let installed =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let complete = installed.filter(|path| path.join("bin/initdb").is_file());
    complete.max_by_key(|path| version(path)).map(|path| path.join("bin")).unwrap_or_default()
}

/// An empty database of one test. On the run's server it is removed with this value, and a test that leaves
/// connections behind fails there: something it started outlives it.
#[derive(Debug)]
pub struct Database {
    url: String,
    name: String,
    admin_url: String,
    shared: bool,
}

impl Database {
    /// A new database on the run's server.
    pub async fn fresh() -> Result<Self> {
        Self::create(required(DATABASE_URL)?, true).await
    }

    /// Its `postgres://` address.
    pub fn url(&self) -> &str {
        &self.url
    }

    async fn create(admin_url: String, shared: bool) -> Result<Self> {
        let name = format!("test_{}", Uuid::new_v4().simple());
        let mut url = Url::parse(&admin_url).context("the address of the test database server")?;
        url.set_path(&name);
        let database = Self { url: url.into(), name, admin_url, shared };
        database.administer(format!("-- create_test_database\nCREATE DATABASE {}", database.name)).await?;
        Ok(database)
    }

    /// Runs a statement that names this database; the name is ours, letters and digits.
    async fn administer(&self, statement: String) -> Result<()> {
        let mut connection = PgConnection::connect(&self.admin_url).await?;
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
        Ok(connection.close().await?)
    }

    async fn nobody_connected(&self) -> Result<()> {
        let mut connection = PgConnection::connect(&self.admin_url).await?;
        let last: Vec<String> = sqlx::query_scalar(
            "-- connections_of_test_database
             SELECT concat_ws(' ', application_name, state, query) FROM pg_stat_activity
             WHERE datname = $1 AND backend_type = 'client backend'",
        )
        .bind(&self.name)
        .fetch_all(&mut connection)
        .await?;
        ensure!(last.is_empty(), "{} connections of this test are still open: {last:#?}", last.len());
        Ok(())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !self.shared {
            return;
        }
        let grace = if thread::panicking() { Duration::ZERO } else { DISCONNECT };
        finish("a test's database is left by everyone", async || {
            let left =
                until("the test's connections close", grace, async || self.nobody_connected().await).await;
            let name = &self.name;
            self.administer(format!("-- drop_test_database\nDROP DATABASE {name} WITH (FORCE)")).await?;
            left
        });
    }
}
