//! The processes under torture: roles of the real binary, each behind links of its own to PostgreSQL and RabbitMQ, each to
//! be killed, frozen and started again. Workers of [`Fleet::clocked`] live under libfaketime, whose offset can be changed
//! while they run.

use crate::{
    environment, ports,
    process::{LastWord, Managed},
    proxy::{Damage, Link, Mode, Protocol},
};
use anyhow::{Context as _, Result, ensure};
use jobgate_shared::supervise::Tasks;
use rustix::process::Signal;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Mutex;

/// Admits the harness to the API.
pub const ADMIN: &str = "an-admin-token-that-only-tests-know-0123456789";
/// How long a role may take to be ready on a busy machine.
const READY: Duration = Duration::from_mins(1);
/// What a process of the fleet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Takes jobs.
    Api,
    /// Runs them.
    Worker,
    /// Writes down what became of them.
    Recorder,
}

impl Kind {
    /// Its command.
    pub fn role(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Worker => "worker",
            Self::Recorder => "recorder",
        }
    }
}

/// One process, through all its lives.
#[derive(Debug)]
pub struct Member {
    /// What it is.
    pub kind: Kind,
    /// Its name in logs and reports.
    pub name: String,
    /// Where it serves its API, or its health and metrics.
    pub url: String,
    /// Its way to PostgreSQL.
    pub database: Link,
    /// Its way to RabbitMQ.
    pub broker: Link,
    /// The file that holds its clock's offset.
    clock: Option<PathBuf>,
    command: CommandLine,
    life: Mutex<Life>,
}

/// What starts a member; a `Command` cannot be started twice.
#[derive(Debug)]
struct CommandLine {
    arguments: Vec<PathBuf>,
    variables: Vec<(&'static str, String)>,
    folder: PathBuf,
    log: PathBuf,
}

impl CommandLine {
    fn build(&self) -> Command {
        let mut command = Command::new(&self.arguments[0]);
        command.args(&self.arguments[1..]).current_dir(&self.folder);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }
}

#[derive(Debug, Default)]
struct Life {
    process: Option<Managed>,
    frozen: bool,
}

/// All of them.
#[derive(Debug)]
pub struct Fleet {
    /// The processes; APIs first, then workers, then recorders.
    pub members: Vec<Member>,
}

/// What a fleet stands on.
#[derive(Debug)]
pub struct Ground<'a> {
    /// Where everything of it lies.
    pub folder: &'a Path,
    /// The configuration every role reads.
    pub config: &'a str,
    /// `postgres://` address of the database.
    pub database: &'a str,
    /// `amqp://` address of the vhost.
    pub broker: &'a str,
    /// Decides what links leave to chance.
    pub seed: u64,
}

impl Fleet {
    /// Lays out the members, none of them started; workers but the first are [`clocked`](Self::clocked) when the library
    /// is there.
    pub async fn lay_out(
        ground: &Ground<'_>,
        counts: [usize; 3],
        damage: &Arc<Damage>,
        tasks: &Tasks,
    ) -> Result<Self> {
        let config = ground.folder.join("jobgate.toml");
        fs::write(&config, ground.config)?;
        let binary = environment::jobgate()?;
        let library = faketime();
        let mut members = Vec::new();
        for (kind, count) in [Kind::Api, Kind::Worker, Kind::Recorder].into_iter().zip(counts) {
            for n in 1..=count {
                let name = format!("{}-{n}", kind.role());
                let seed = ground.seed.wrapping_add(members.len() as u64 * 2);
                let (database, database_url) =
                    Link::to(ground.database, Protocol::Postgres, seed, damage.clone(), tasks).await?;
                let (broker, broker_url) =
                    Link::to(ground.broker, Protocol::Opaque, seed + 1, damage.clone(), tasks).await?;
                let address = format!("127.0.0.1:{}", ports::free()?);
                let listen = if kind == Kind::Api { "JOBGATE_LISTEN" } else { "JOBGATE_OPS_LISTEN" };
                let mut variables = vec![
                    ("JOBGATE_DATABASE_URL", database_url),
                    ("JOBGATE_BROKER_URL", broker_url),
                    ("JOBGATE_ADMIN_TOKEN", ADMIN.to_owned()),
                    (listen, address.clone()),
                ];
                let mut clock = None;
                if let Some(library) = library.as_ref().filter(|_| kind == Kind::Worker && n > 1) {
                    let file = ground.folder.join(format!("{name}.clock"));
                    fs::write(&file, "+0\n")?;
                    variables.extend([
                        ("LD_PRELOAD", library.display().to_string()),
                        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
                        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
                        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
                        ("NO_FAKE_STAT", "1".to_owned()),
                    ]);
                    clock = Some(file);
                }
                let arguments = [
                    binary.clone(),
                    "--config".into(),
                    config.clone(),
                    "--data-dir".into(),
                    ground.folder.join("data"),
                    kind.role().into(),
                ];
                let command = CommandLine {
                    arguments: arguments.into(),
                    variables,
                    folder: ground.folder.to_owned(),
                    log: ground.folder.join(format!("{name}.log")),
                };
                let (url, life) = (format!("http://{address}"), Mutex::default());
                members.push(Member { kind, name, url, database, broker, clock, command, life });
            }
        }
        Ok(Self { members })
    }

    /// Those of one kind.
    pub fn of(&self, kind: Kind) -> Vec<&Member> {
        self.members.iter().filter(|member| member.kind == kind).collect()
    }

    /// Those whose clock can be set.
    pub fn clocked(&self) -> Vec<&Member> {
        self.members.iter().filter(|member| member.clock.is_some()).collect()
    }

    /// Starts everyone who does not run, and returns when all are ready.
    pub async fn start_all(&self) -> Result<()> {
        for member in &self.members {
            member.start().await?;
        }
        for member in &self.members {
            member.ready().await?;
        }
        Ok(())
    }

    /// Every link passes, nobody is frozen, every clock is right, everyone runs.
    pub async fn heal(&self) -> Result<()> {
        for member in &self.members {
            member.database.set(Mode::Pass);
            member.broker.set(Mode::Pass);
            member.set_clock(0)?;
            member.thaw().await?;
            member.start().await?;
        }
        Ok(())
    }

    /// Ends everyone in order, workers before those they need; says who did not end well.
    pub async fn drain(&self, within: Duration) -> Vec<String> {
        let mut faults = Vec::new();
        for kind in [Kind::Worker, Kind::Recorder, Kind::Api] {
            let drains = self.of(kind).into_iter().map(|member| member.drain(within));
            let ended = futures::future::join_all(drains).await;
            faults.extend(ended.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")));
        }
        faults
    }

    /// Whoever has ended without being told to, and how.
    pub async fn fallen(&self) -> Vec<String> {
        let mut fallen = Vec::new();
        for member in &self.members {
            if let Some(how) = member.fell().await {
                fallen.push(format!("{} ended by itself: {how}", member.name));
            }
        }
        fallen
    }
}

impl Member {
    /// Starts it if it does not run.
    pub async fn start(&self) -> Result<()> {
        let mut life = self.life.lock().await;
        if life.process.is_none() {
            let command = self.command.build();
            let process = Managed::spawn(&self.name, &command, None, &self.command.log, LastWord::Kill)?;
            *life = Life { process: Some(process), frozen: false };
        }
        Ok(())
    }

    /// Returns when it says that it is ready.
    pub async fn ready(&self) -> Result<()> {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        let url = format!("{}/readyz", self.url);
        let mut life = self.life.lock().await;
        let process = life.process.as_mut().with_context(|| format!("{} is not started", self.name))?;
        process
            .ready(READY, async || {
                http.get(&url).send().await?.error_for_status()?;
                Ok(())
            })
            .await
    }

    /// `kill -9`, if it runs.
    pub async fn kill(&self) -> Result<()> {
        let mut life = self.life.lock().await;
        life.frozen = false;
        if let Some(mut process) = life.process.take() {
            process.kill()?;
            self.clean_up_after(process.pid())?;
        }
        Ok(())
    }

    /// Stops it where it is, until [`thaw`](Self::thaw).
    pub async fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP, true).await
    }

    /// Lets it go on.
    pub async fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT, false).await
    }

    async fn signal(&self, signal: Signal, frozen: bool) -> Result<()> {
        let mut life = self.life.lock().await;
        if life.frozen != frozen
            && let Some(process) = life.process.as_mut()
        {
            process.signal(signal)?;
            life.frozen = frozen;
        }
        Ok(())
    }

    /// Sets its clock so many seconds off, if it has one of its own.
    pub fn set_clock(&self, seconds: i32) -> Result<()> {
        let Some(file) = &self.clock else { return Ok(()) };
        // At once: who reads it must not find it empty.
        let new = file.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n"))?;
        Ok(fs::rename(new, file)?)
    }

    /// The resident memory of its present life, in MiB.
    pub async fn memory_mib(&self) -> Option<u64> {
        let pid = self.life.lock().await.process.as_ref()?.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
    }

    /// What its log says of panics, over all its lives.
    pub fn panics(&self) -> Result<Vec<String>> {
        let log = String::from_utf8_lossy(&fs::read(&self.command.log)?).into_owned();
        let lines = log.lines().filter(|line| line.contains("panicked"));
        Ok(lines.map(|line| format!("{}: {line}", self.name)).collect())
    }

    async fn fell(&self) -> Option<ExitStatus> {
        let mut life = self.life.lock().await;
        let status = life.process.as_mut()?.ended().ok()??;
        life.process = None;
        Some(status)
    }

    /// Removes what libfaketime leaves of a process that could not.
    fn clean_up_after(&self, pid: u32) -> Result<()> {
        for file in [format!("faketime_shm_{pid}"), format!("sem.faketime_sem_{pid}")] {
            let file = Path::new("/dev/shm").join(file);
            if self.clock.is_some() && file.exists() {
                fs::remove_file(file)?;
            }
        }
        Ok(())
    }

    async fn drain(&self, within: Duration) -> Result<()> {
        let Some(mut process) = self.life.lock().await.process.take() else { return Ok(()) };
        let status = process.stop(Signal::TERM, within).await?;
        self.clean_up_after(process.pid())?;
        ensure!(status.success(), "{} was told to end and did with {status}", self.name);
        Ok(())
    }
}

/// The library that fakes time for programs of several threads, where distributions put it.
fn faketime() -> Option<PathBuf> {
    let inside = |folder: &Path| folder.join("faketime/libfaketimeMT.so.1");
    let architectures = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = ["/usr/lib", "/usr/lib64"].into_iter().map(PathBuf::from).chain(architectures);
    folders.map(|folder| inside(&folder)).find(|library| library.is_file())
}
