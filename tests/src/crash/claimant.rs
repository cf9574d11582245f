//! The service outside that works off the clusters of a deployment: a claimant for each, over a manager that outlives it.
//! It believes nothing but answers. Whenever one does not come it forgets what it knew and reads the rows.

use crate::gateway::Client;
use anyhow::{Context as _, Result, bail};
use jobgate_shared::supervise::Tasks;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;
use uuid::Uuid;

/// Between two rounds of a claimant.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a call may take to be answered.
const ANSWER: Duration = Duration::from_secs(5);

/// What all its claimants are told.
#[derive(Debug)]
pub(super) struct Service {
    api: watch::Sender<Option<Client>>,
    forget: Vec<Arc<AtomicBool>>,
    give_up: Arc<AtomicBool>,
}

impl Service {
    /// A claimant for each cluster, whose manager writes down what happens in this file.
    pub(super) fn begin(
        states: impl IntoIterator<Item = (&'static str, PathBuf)>,
        tasks: &Tasks,
    ) -> Result<Self> {
        let (api, give_up) = (watch::Sender::new(None), Arc::<AtomicBool>::default());
        let mut forget = Vec::new();
        for (cluster, state) in states {
            let told = Arc::<AtomicBool>::default();
            forget.push(told.clone());
            let mut claimant = Claimant {
                cluster,
                forget: told,
                give_up: give_up.clone(),
                manager: Memory::begin(&state)?,
                identity: Value::Null,
                hands: BTreeMap::new(),
                sure: false,
            };
            let (mut api, over) = (api.subscribe(), tasks.shutdown().clone());
            tasks.spawn("claimant", async move {
                over.run_until_cancelled(claimant.live(&mut api)).await;
            });
        }
        Ok(Self { api, forget, give_up })
    }

    /// Where the API is from now on.
    pub(super) fn reaches(&self, client: Client) {
        self.api.send_replace(Some(client));
    }

    /// Every claimant begins anew, knowing nothing.
    pub(super) fn forget(&self) {
        self.forget.iter().for_each(|forget| forget.store(true, Ordering::SeqCst));
    }

    /// The next job that is claimed and not submitted is given up.
    pub(super) fn give_up(&self) {
        self.give_up.store(true, Ordering::SeqCst);
    }
}

/// What the service runs jobs on: it creates what does not run yet, and starts it. It writes down what happens as the engine
/// that runs nothing does, and forgets nothing.
#[derive(Debug)]
struct Memory {
    state: File,
    /// What was created and has not begun, by the name of the attempt.
    inert: BTreeMap<String, BTreeSet<String>>,
    begun: BTreeSet<String>,
}

impl Memory {
    fn begin(state: &Path) -> Result<Self> {
        let state = File::options().append(true).create(true).open(state)?;
        Ok(Self { state, inert: BTreeMap::new(), begun: BTreeSet::new() })
    }

    fn create(&mut self, tag: &str) -> Result<String> {
        let id = Uuid::new_v4().simple().to_string();
        writeln!(self.state, "created {tag} {id} 0 -")?;
        self.inert.entry(tag.to_owned()).or_default().insert(id.clone());
        Ok(id)
    }

    /// Once, however often it is asked.
    fn start(&mut self, tag: &str, id: &str) -> Result<()> {
        if self.begun.insert(id.to_owned()) {
            writeln!(self.state, "{tag} {id} 0 0")?;
            self.inert.entry(tag.to_owned()).or_default().remove(id);
        }
        Ok(())
    }

    fn end(&mut self, tag: &str, id: &str) -> Result<()> {
        self.inert.entry(tag.to_owned()).or_default().remove(id);
        Ok(writeln!(self.state, "ended {tag} {id} -")?)
    }

    /// Removes what has not begun under this name, except for what is recorded.
    fn discard(&mut self, tag: &str, recorded: Option<&str>) -> Result<()> {
        for id in self.inert.remove(tag).unwrap_or_default() {
            if Some(id.as_str()) == recorded {
                self.inert.entry(tag.to_owned()).or_default().insert(id);
            } else {
                writeln!(self.state, "removed {tag} {id}")?;
            }
        }
        Ok(())
    }
}

/// One claimant.
struct Claimant {
    cluster: &'static str,
    forget: Arc<AtomicBool>,
    give_up: Arc<AtomicBool>,
    manager: Memory,
    identity: Value,
    /// The jobs it knows that it has, as the rows were.
    hands: BTreeMap<String, Value>,
    /// It has missed no answer since it last read the rows.
    sure: bool,
}

impl Claimant {
    async fn live(&mut self, api: &mut watch::Receiver<Option<Client>>) {
        loop {
            let reached = api.borrow_and_update().clone();
            let Some(client) = reached else {
                if api.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let round = tokio::time::timeout(ANSWER, self.round(&client)).await;
            if !matches!(round, Ok(Ok(()))) {
                // Whatever the lost answer said, the rows know it.
                self.sure = false;
                self.hands.clear();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn round(&mut self, client: &Client) -> Result<()> {
        let claims = format!("/v1/clusters/{}/claims", self.cluster);
        if self.forget.swap(false, Ordering::SeqCst) {
            self.identity = Value::Null;
            self.hands.clear();
        }
        // Nothing waits for it: it may as well wait for a job.
        let wait = if self.hands.is_empty() { "1s" } else { "0s" };
        let wish = json!({"claimant": self.identity, "max": 7, "lease": "5s", "wait": wait});
        let (status, claimed) = client.post(&claims, &wish).await?;
        if status == 409 {
            self.identity = Value::Null;
            bail!("its lease has ended");
        }
        let claimed = heard(status, claimed)?;
        self.identity = claimed["claimant"].clone();
        self.take(&claimed["jobs"])?;
        if !self.sure {
            self.read_rows(client, &claims).await?;
        }
        let unended: Vec<Value> = self.hands.values().cloned().collect();
        if unended.is_empty() {
            return Ok(());
        }
        let renewal = json!({"claimant": self.identity, "lease": "5s"});
        let (status, renewed) = client.post(&format!("{claims}/renew"), &renewal).await?;
        let cancel = heard(status, renewed)?["cancel"].as_array().cloned().unwrap_or_default();
        for job in unended {
            let canceled = cancel.contains(&job["id"]) || job["cancel_requested"] == json!(true);
            self.work(client, &claims, job, canceled).await?;
        }
        Ok(())
    }

    fn take(&mut self, jobs: &Value) -> Result<()> {
        for job in jobs.as_array().context("jobs")? {
            self.hands.insert(text(job, "id")?.to_owned(), job.clone());
        }
        Ok(())
    }

    /// What it has by the rows is what it has; what no claim names is over.
    async fn read_rows(&mut self, client: &Client, claims: &str) -> Result<()> {
        let claimed = client.get(claims).await?["items"].as_array().cloned().context("items")?;
        self.hands.clear();
        self.take(&claimed.iter().filter(|job| job["claimant"] == self.identity).cloned().collect())?;
        let named = claimed.iter().map(|job| text(job, "tag")).collect::<Result<BTreeSet<_>>>()?;
        let tags: Vec<String> = self.manager.inert.keys().cloned().collect();
        for tag in tags.iter().filter(|tag| !named.contains(tag.as_str())) {
            self.manager.discard(tag, None)?;
        }
        self.sure = true;
        Ok(())
    }

    /// Goes on with a job from wherever it stands.
    async fn work(&mut self, client: &Client, claims: &str, job: Value, canceled: bool) -> Result<()> {
        let (id, tag) = (text(&job, "id")?.to_owned(), text(&job, "tag")?.to_owned());
        let Some(submission) = job["submission_id"].as_str().map(ToOwned::to_owned) else {
            return self.submit(client, claims, &job, canceled).await;
        };
        self.manager.discard(&tag, Some(&submission))?;
        if !canceled {
            self.manager.start(&tag, &submission)?;
            if job["state"] == "PENDING" {
                let running = json!({"state": "RUNNING", "submission_id": submission});
                let Some(now) = self.tell(client, claims, &job, running).await? else { return Ok(()) };
                self.hands.insert(id.clone(), now);
            }
        }
        let end = match self.cluster {
            _ if canceled => json!({"state": "CANCELED", "submission_id": submission}),
            "long" => return Ok(()),
            "failing" => json!({"state": "FAILED", "submission_id": submission, "exit_code": 3}),
            _ => json!({"state": "FINISHED", "submission_id": submission, "exit_code": 0}),
        };
        self.manager.end(&tag, &submission)?;
        self.tell(client, claims, &job, end).await?;
        self.hands.remove(&id);
        Ok(())
    }

    /// Of what nothing is recorded: nothing runs of it.
    async fn submit(&mut self, client: &Client, claims: &str, job: &Value, canceled: bool) -> Result<()> {
        let (id, tag) = (text(job, "id")?, text(job, "tag")?);
        self.manager.discard(tag, None)?;
        if canceled {
            self.tell(client, claims, job, json!({"state": "CANCELED"})).await?;
            self.hands.remove(id);
            return Ok(());
        }
        if self.give_up.swap(false, Ordering::SeqCst) {
            let claimant = self.identity.as_str().context("claimant")?;
            let path = format!("{claims}/{id}?claimant={claimant}&epoch={}", job["epoch"]);
            // Said until it is answered: it may be said twice.
            let status =
                client.delete(&path).await.inspect_err(|_| self.give_up.store(true, Ordering::SeqCst))?;
            heard(status, Value::Null)?;
            self.hands.remove(id);
            return Ok(());
        }
        let created = self.manager.create(tag)?;
        let pending = json!({"state": "PENDING", "submission_id": created});
        if let Some(now) = self.tell(client, claims, job, pending).await? {
            self.hands.insert(id.to_owned(), now);
        }
        Ok(())
    }

    /// The job as it is after the report; `None` when the claim is not its own any more, or over.
    async fn tell(
        &mut self,
        client: &Client,
        claims: &str,
        job: &Value,
        mut report: Value,
    ) -> Result<Option<Value>> {
        for name in ["attempt", "epoch"] {
            report[name] = job[name].clone();
        }
        report["claimant"] = self.identity.clone();
        let id = text(job, "id")?;
        let (status, told) = client.patch(&format!("{claims}/{id}"), &report).await?;
        if status == 409 || status == 200 && told["outcome"] == "stale" {
            // Begin nothing: the rows tell what there is to do instead.
            self.hands.remove(id);
            self.sure = false;
            return Ok(None);
        }
        Ok(Some(heard(status, told)?["job"].clone()))
    }
}

fn text<'a>(job: &'a Value, name: &'static str) -> Result<&'a str> {
    job[name].as_str().context(name)
}

fn heard(status: u16, answer: Value) -> Result<Value> {
    if (200..300).contains(&status) { Ok(answer) } else { bail!("{status} {answer}") }
}
