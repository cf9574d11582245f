//! A gateway of real processes: roles started, killed and drained one by one, spoken to over HTTP as any producer would,
//! and a ledger the jobs write themselves, which is what exactly-once is measured by.

use crate::{
    environment, ports,
    process::{LastWord, Managed},
    wait::until,
};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

/// Admits the first admin of a test's deployment.
const ADMIN: &str = "an-admin-token-that-only-tests-know-0123456789";
/// How long a role may take to be ready on a busy machine.
const READY: Duration = Duration::from_mins(1);

/// A place on disk, a configuration, and the addresses of the servers behind it.
#[derive(Debug)]
pub struct Site {
    dir: TempDir,
    config: PathBuf,
    servers: BTreeMap<&'static str, String>,
    /// What else its processes find in their environment.
    variables: BTreeMap<&'static str, String>,
    /// And what those of one role find, by its command.
    of_roles: Vec<(&'static str, &'static str, String)>,
    started: usize,
}

/// One running role.
#[derive(Debug)]
pub struct Role {
    /// The process.
    pub process: Managed,
    /// Where it serves `/metrics`, `/livez` and `/readyz`, and the API its API.
    pub url: String,
}

impl Site {
    /// The embedded form: everything in one process, on a file.
    pub fn embedded(config: &str) -> Result<Self> {
        Self::new(config, BTreeMap::new())
    }

    /// The distributed form on these servers.
    pub fn distributed(config: &str, database: &str, broker: &str) -> Result<Self> {
        let servers = [
            ("JOBGATE_DATABASE_URL", database.to_owned()),
            ("JOBGATE_BROKER_URL", broker.to_owned()),
            ("JOBGATE_ADMIN_TOKEN", ADMIN.to_owned()),
        ];
        Self::new(config, servers.into())
    }

    fn new(config: &str, servers: BTreeMap<&'static str, String>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("jobgate-test-site-").tempdir()?;
        let file = dir.path().join("jobgate.toml");
        fs::write(&file, config)?;
        let (variables, of_roles) = (BTreeMap::new(), Vec::new());
        Ok(Self { dir, config: file, servers, variables, of_roles, started: 0 })
    }

    /// Gives every process started from now on a variable more.
    pub fn set(&mut self, variable: &'static str, value: impl Into<String>) {
        self.variables.insert(variable, value.into());
    }

    /// Gives every process of this role that is started from now on a variable more.
    pub fn set_for(&mut self, role: &'static str, variable: &'static str, value: impl Into<String>) {
        self.of_roles.push((role, variable, value.into()));
    }

    /// Where jobs write down that they ran.
    pub fn ledger(&self) -> Ledger {
        Ledger(self.dir.path().join("ledger"))
    }

    /// The gateway's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Runs a command of the binary to its end.
    pub fn run(&self, arguments: &[&str]) -> Result<std::process::Output> {
        let output = self.command(arguments)?.output()?;
        ensure!(
            output.status.success(),
            "jobgate {arguments:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }

    /// Runs a command of the binary to its end, whatever that is.
    pub fn output(&self, arguments: &[&str]) -> Result<std::process::Output> {
        Ok(self.command(arguments)?.output()?)
    }

    /// Starts a command of the binary that goes on until it is told to stop; what it prints is its log.
    pub fn begin(&mut self, arguments: &[&str]) -> Result<Managed> {
        let command = self.command(arguments)?;
        let name = arguments.first().copied().unwrap_or_default();
        self.started += 1;
        let log = self.dir.path().join(format!("{name}-{}.log", self.started));
        Managed::spawn(name, &command, None, &log, LastWord::Kill)
    }

    /// Writes the configuration anew; processes that run keep the one they read.
    pub fn configure(&self, config: &str) -> Result<()> {
        Ok(fs::write(&self.config, config)?)
    }

    /// A file beside the configuration.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// How many lines of its processes' logs hold these words.
    pub fn said(&self, words: &str) -> Result<usize> {
        let mut lines = 0;
        for file in fs::read_dir(self.dir.path())? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let text = fs::read(&path)?;
                lines += String::from_utf8_lossy(&text).lines().filter(|line| line.contains(words)).count();
            }
        }
        Ok(lines)
    }

    /// Starts a role and waits until it says that it is ready.
    pub async fn start(&mut self, role: &str) -> Result<Role> {
        let mut role = self.spawn(role)?;
        role.ready().await?;
        Ok(role)
    }

    /// Starts a role.
    pub fn spawn(&mut self, role: &str) -> Result<Role> {
        self.spawn_at(role, &format!("127.0.0.1:{}", ports::free()?))
    }

    /// Starts a role where another one was, for clients that know no other place.
    pub fn spawn_at(&mut self, role: &str, address: &str) -> Result<Role> {
        let mut command = self.command(&[role])?;
        let listen = if matches!(role, "api" | "serve") { "JOBGATE_LISTEN" } else { "JOBGATE_OPS_LISTEN" };
        command.env(listen, address);
        self.started += 1;
        let log = self.dir.path().join(format!("{role}-{}.log", self.started));
        let process = Managed::spawn(role, &command, None, &log, LastWord::Kill)?;
        Ok(Role { process, url: format!("http://{address}") })
    }

    /// A client of the API served by `role`.
    pub fn client(&self, role: &Role) -> Result<Client> {
        Client::new(&role.url, &self.token()?)
    }

    /// The token of an administrator of every project.
    pub fn token(&self) -> Result<String> {
        if !self.servers.is_empty() {
            return Ok(ADMIN.to_owned());
        }
        let token = fs::read_to_string(self.data_dir().join("token"));
        Ok(token.context("the token `serve` writes")?.trim().to_owned())
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(environment::jobgate()?);
        // First, because what follows a `--` is a job's.
        command.arg("--config").arg(&self.config).arg("--data-dir").arg(self.data_dir()).args(arguments);
        command.envs(&self.servers).envs(&self.variables).current_dir(self.dir.path());
        let role = arguments.first().copied();
        for (_, variable, value) in self.of_roles.iter().filter(|(of, ..)| Some(*of) == role) {
            command.env(variable, value);
        }
        Ok(command)
    }
}

impl Role {
    /// Returns when it says that it is ready.
    pub async fn ready(&mut self) -> Result<()> {
        let url = format!("{}/readyz", self.url);
        let http = http()?;
        self.process
            .ready(READY, async || {
                http.get(&url).send().await?.error_for_status()?;
                Ok(())
            })
            .await
    }

    /// SIGTERM, and its end.
    pub async fn drain(&mut self, within: Duration) -> Result<()> {
        let status = self.process.stop(Signal::TERM, within).await?;
        ensure!(status.success(), "a drain ends well, not with {status}\n{}", self.process.log_tail());
        Ok(())
    }
}

fn http() -> Result<reqwest::Client> {
    // No certificate is ever checked in these tests; the client only wants to know whom to ask.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_mins(1));
    // The server closes what was silent for `http.header_timeout`, which may be just as a request goes out.
    Ok(client.pool_idle_timeout(Duration::from_secs(5)).build()?)
}

/// Speaks HTTP to the API.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Client {
    /// A client with this token.
    pub fn new(base: &str, token: &str) -> Result<Self> {
        Ok(Self { http: http()?, base: base.to_owned(), token: token.to_owned() })
    }

    /// The same gateway, by another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { http: self.http.clone(), base: self.base.clone(), token: token.to_owned() }
    }

    /// `GET`, as JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let answer = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token).send().await?;
        let (status, body) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "GET {path}: {status} {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// `GET`, however it is answered.
    pub async fn answer(&self, path: &str) -> Result<reqwest::Response> {
        Ok(self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token).send().await?)
    }

    /// `GET`, as text.
    pub async fn text(&self, path: &str) -> Result<String> {
        let answer = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// `POST`: status and body.
    pub async fn post(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token);
        let answer = request.json(body).send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await.unwrap_or(Value::Null)))
    }

    /// `PATCH`: status and body.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        let request = self.http.patch(format!("{}{path}", self.base)).bearer_auth(&self.token);
        let answer = request.json(body).send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await.unwrap_or(Value::Null)))
    }

    /// `DELETE`: its status.
    pub async fn delete(&self, path: &str) -> Result<u16> {
        let request = self.http.delete(format!("{}{path}", self.base)).bearer_auth(&self.token);
        Ok(request.send().await?.status().as_u16())
    }

    /// Posts a batch under a key; answers the accepted ids. May be called again with the same arguments.
    pub async fn submit(&self, key: &str, jobs: &[Value]) -> Result<Vec<String>> {
        let request = self.http.post(format!("{}/v1/jobs/batch", self.base)).bearer_auth(&self.token);
        let answer = request.header("Idempotency-Key", key).json(jobs).send().await?;
        let (status, body) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "batch {key}: {status} {body}");
        let body: Value = serde_json::from_str(&body)?;
        let items = body["items"].as_array().context("items")?;
        items
            .iter()
            .map(|item| Ok(item["job"]["id"].as_str().with_context(|| item.to_string())?.to_owned()))
            .collect()
    }

    /// How many jobs stand in each state, over all queues.
    pub async fn states(&self) -> Result<BTreeMap<String, u64>> {
        let mut states = BTreeMap::new();
        let mut path = "/v1/jobs?limit=1000".to_owned();
        loop {
            let page = self.get(&path).await?;
            for job in page["items"].as_array().context("items")? {
                *states.entry(job["state"].as_str().context("state")?.to_owned()).or_default() += 1;
            }
            match page["next_cursor"].as_str() {
                Some(cursor) => path = format!("/v1/jobs?limit=1000&cursor={cursor}"),
                None => return Ok(states),
            }
        }
    }

    /// Depths by state, as `/v1/queues` tells them.
    pub async fn depths(&self) -> Result<BTreeMap<String, u64>> {
        let queues = self.get("/v1/queues").await?;
        let mut depths = BTreeMap::new();
        for queue in queues["items"].as_array().context("items")? {
            for depth in queue["depths"].as_array().context("depths")? {
                let state = depth["state"].as_str().context("state")?.to_owned();
                *depths.entry(state).or_default() += depth["jobs"].as_u64().context("jobs")?;
            }
        }
        Ok(depths)
    }

    /// Waits until so many jobs are `FINISHED` and none is anything else.
    pub async fn all_finished(&self, jobs: usize, within: Duration) -> Result<()> {
        let expected = BTreeMap::from([("FINISHED".to_owned(), jobs as u64)]);
        until("every job FINISHED", within, async || {
            let states = self.depths().await?;
            if states == expected { Ok(()) } else { bail!("{states:?}") }
        })
        .await?;
        ensure!(self.states().await? == expected, "the rows say otherwise than the depths");
        Ok(())
    }
}

/// What jobs wrote down: one line each time one of them ran.
#[derive(Debug, Clone)]
pub struct Ledger(PathBuf);

impl Ledger {
    /// In this file, which jobs must be able to write.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// A local job that writes itself down and then takes `seconds`.
    pub fn job(&self, seconds: &str) -> Value {
        let script = r#"echo "$JOBGATE_JOB_ID" >> "$1"; exec sleep "$2""#;
        json!({"spec": {"command": ["/bin/sh", "-c", script, "job", self.0, seconds]}})
    }

    /// A local job that writes itself down and ends, without a further process.
    pub fn quick_job(&self) -> Value {
        json!({"spec": {"command": ["/bin/sh", "-c", r#"echo "$JOBGATE_JOB_ID" >> "$1""#, "job", self.0]}})
    }

    /// How often each job ran.
    pub fn runs(&self) -> Result<BTreeMap<String, usize>> {
        let mut runs = BTreeMap::new();
        for line in fs::read_to_string(&self.0).unwrap_or_default().lines() {
            *runs.entry(line.to_owned()).or_default() += 1;
        }
        Ok(runs)
    }

    /// Every accepted job ran once, and nothing else did.
    pub fn is_exactly(&self, accepted: &[String]) -> Result<()> {
        let runs = self.runs()?;
        let twice: Vec<_> = runs.iter().filter(|(_, n)| **n != 1).collect();
        ensure!(twice.is_empty(), "ran more than once: {twice:?}");
        let missing: Vec<_> = accepted.iter().filter(|job| !runs.contains_key(*job)).collect();
        ensure!(missing.is_empty(), "accepted, ended and never ran: {missing:?}");
        ensure!(runs.len() == accepted.len(), "{} jobs ran, {} were accepted", runs.len(), accepted.len());
        Ok(())
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0
    }
}
