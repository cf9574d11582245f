//! The gateway under measurement: real processes of this very binary, on loopback, over a directory that goes with them.

use crate::{
    client::{Client, Request, Target},
    commands,
    config::{Config, Secret},
};
use anyhow::{Context as _, bail, ensure};
use jobgate_api::auth;
use jobgate_shared::{broker::rabbitmq::ScratchNames, store::postgres::ScratchDatabase};
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::Instant,
};

/// How long a role may take to be ready, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many processes of each role the distributed form has.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Fleet {
    /// Processes that serve HTTP
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(super) apis: u8,
    /// Processes that work
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(super) workers: u8,
    /// Processes that record
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(super) recorders: u8,
}

/// What keeps the rows.
#[derive(Debug)]
pub(super) enum Backends {
    /// A file, and bells inside the process.
    Embedded,
    /// A PostgreSQL database of its own, and RabbitMQ under names of its own.
    Distributed { database: Box<ScratchDatabase>, names: Box<ScratchNames> },
}

/// Processes that run. Dropping it kills them.
#[derive(Debug)]
pub(super) struct Deployment {
    roles: Vec<(&'static str, Child)>,
    /// Where each API process serves.
    pub(super) addresses: Vec<String>,
    pub(super) token: Secret,
    pub(super) backends: Backends,
    dir: TempDir,
}

/// `work` for throughput, `timed` whose engine notes the times of every submission, `watched` whose jobs do not end.
const CLUSTERS: [&str; 3] = ["work", "timed", "watched"];

fn configuration(dir: &Path, backends: &Backends) -> String {
    let broker = match backends {
        Backends::Embedded => String::new(),
        Backends::Distributed { names, .. } => {
            format!("[broker]\nprefix = \"{}\"\n", names.config.prefix.as_str())
        }
    };
    let [ledger, logs] =
        [ledger(dir), dir.join("logs")].map(|path| toml::Value::from(path.display().to_string()));
    let [work, timed, watched] = CLUSTERS;
    format!(
        "default_cluster = \"{work}\"\n\
         [telemetry]\nlisten = \"127.0.0.1:0\"\nlog = \"warn\"\nlog_format = \"text\"\n\
         [logs]\ndirectory = {logs}\n\
         {broker}\
         [clusters.{work}]\nengine = \"noop\"\n\
         [clusters.{timed}]\nengine = \"noop\"\nledger = {ledger}\n\
         [clusters.{watched}]\nengine = \"noop\"\nrun_for = \"1h\"\npoll_interval = \"1s\"\n\
         regulator = {{ kind = \"fixed\", max_in_flight = 1000000 }}\n"
    )
}

fn ledger(dir: &Path) -> PathBuf {
    dir.join("ledger")
}

impl Deployment {
    /// Begins the form that `config` names backends for: both of them, or none.
    pub(super) async fn begin(config: &Config, fleet: Fleet) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("jobgate-bench-").tempdir()?;
        let backends = match (&config.store.url, &config.broker.url) {
            (Some(_), Some(_)) => {
                let names = Box::new(ScratchNames::choose(&config.broker.rabbitmq("bench")?));
                let database = Box::new(ScratchDatabase::create(&config.store.postgres("bench")?).await?);
                Backends::Distributed { database, names }
            }
            (None, None) => Backends::Embedded,
            (Some(_), None) | (None, Some(_)) => bail!(
                "set both JOBGATE_DATABASE_URL and JOBGATE_BROKER_URL to measure the distributed form, or neither to \
                 measure the embedded one"
            ),
        };
        fs::write(dir.path().join("jobgate.toml"), configuration(dir.path(), &backends))?;
        let token: Secret = auth::generate_bootstrap().into();
        let mut deployment = Self { roles: Vec::new(), addresses: Vec::new(), token, backends, dir };
        // Whatever was begun is ended, and the database dropped, whether or not all of it could begin.
        match deployment.begin_roles(fleet).await {
            Ok(()) => Ok(deployment),
            Err(error) => {
                let said = deployment.last_words();
                deployment.end().await.ok();
                Err(error.context(said))
            }
        }
    }

    async fn begin_roles(&mut self, fleet: Fleet) -> anyhow::Result<()> {
        let Backends::Distributed { database, names } = &self.backends else {
            self.begin_role("serve", None, 0)?;
            return self.until_ready().await;
        };
        let url = database.config.url.clone();
        let broker = names.config.url.expose().to_owned();
        let servers = (url.as_str(), broker.as_str());
        self.begin_role("migrate", Some(servers), 0)?;
        let (_, mut migration) = self.roles.remove(0);
        ensure!(migration.wait().await?.success(), "`jobgate migrate` failed");
        for (role, count) in [("api", fleet.apis), ("recorder", fleet.recorders), ("worker", fleet.workers)] {
            for number in 0..count {
                self.begin_role(role, Some(servers), number)?;
            }
        }
        self.until_ready().await
    }

    fn begin_role(
        &mut self,
        role: &'static str,
        servers: Option<(&str, &str)>,
        number: u8,
    ) -> anyhow::Result<()> {
        let dir = self.dir.path();
        let log = fs::File::create(dir.join(format!("{role}-{number}.log")))?;
        let mut command = Command::new("/proc/self/exe");
        // Whatever the environment says about another gateway is not about this one.
        command.env_clear().env("JOBGATE_CONFIG", dir.join("jobgate.toml"));
        command.env("JOBGATE_DATA_DIR", dir.join("data")).env("JOBGATE_ADMIN_TOKEN", self.token.expose());
        if let Some((database, broker)) = servers {
            command.env("JOBGATE_DATABASE_URL", database).env("JOBGATE_BROKER_URL", broker);
        }
        if matches!(role, "api" | "serve") {
            // Free now; the process takes it in a moment.
            let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
            command.env("JOBGATE_LISTEN", &address);
            self.addresses.push(address);
        }
        command.arg(role).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("cannot start `jobgate {role}`"))?;
        self.roles.push((role, child));
        Ok(())
    }

    /// A client of one API process.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let address = self.addresses.first().context("no API process")?;
        Client::new(Target::known(&format!("http://{address}"), Some(self.token.clone()))?)
    }

    /// Waits until every API process is ready and a worker serves the clusters.
    async fn until_ready(&mut self) -> anyhow::Result<()> {
        let (client, began) = (self.client()?, Instant::now());
        loop {
            for (role, child) in &mut self.roles {
                if let Some(status) = child.try_wait()? {
                    bail!("`jobgate {role}` ended with {status}");
                }
            }
            let workers = client.send(Request::get("/v1/workers")).await;
            match workers {
                Ok(workers) if !commands::items(&workers).is_empty() => return Ok(()),
                Ok(_) | Err(_) if began.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(_) => bail!("no worker within {PATIENCE:?}"),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Resident memory of the processes of a role, in bytes.
    pub(super) fn resident(&self, role: &str) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for (_, child) in self.roles.iter().filter(|(name, _)| *name == role) {
            let pid = child.id().with_context(|| format!("`jobgate {role}` has ended"))?;
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
            let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
            bytes += kibibytes * 1024;
        }
        Ok(bytes)
    }

    /// Bytes of write-ahead log so far; `None` where nobody counts them.
    pub(super) async fn wal_bytes(&self) -> anyhow::Result<Option<u64>> {
        match &self.backends {
            Backends::Embedded => Ok(None),
            Backends::Distributed { database, .. } => Ok(Some(database.wal_bytes().await?)),
        }
    }

    /// Where the processes keep what they keep.
    pub(super) fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// What the engine of `timed` has written down.
    pub(super) fn ledger(&self) -> anyhow::Result<String> {
        match fs::read_to_string(ledger(self.dir.path())) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            read => Ok(read?),
        }
    }

    /// The last lines each process has logged.
    pub(super) fn last_words(&self) -> String {
        let mut said = String::from("the processes' last words:");
        for (role, _) in &self.roles {
            let log = fs::read_to_string(self.dir.path().join(format!("{role}-0.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(3)..] {
                said.extend(["\n  ", role, ": ", line]);
            }
        }
        said
    }

    /// Ends every process and removes what they kept.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        for (_, child) in &mut self.roles {
            child.start_kill().ok();
        }
        for (role, child) in &mut self.roles {
            tokio::time::timeout(PATIENCE, child.wait())
                .await
                .with_context(|| format!("`jobgate {role}` does not end"))??;
        }
        match self.backends {
            Backends::Embedded => Ok(()),
            Backends::Distributed { database, names } => {
                database.remove().await?;
                let clusters: Result<Vec<_>, _> = CLUSTERS.iter().map(|name| name.parse()).collect();
                names.remove(&clusters?).await
            }
        }
    }
}
