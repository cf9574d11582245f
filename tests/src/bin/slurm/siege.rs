//! The whole gateway on a Slurm that is broken again and again: `slurm siege JOBS`, as `make siege`.
//!
//! Every job writes itself down. What the rows say of each is held against that: nothing ran twice, nothing FINISHED without
//! having run, what Slurm lost or ended by itself says so in its reason and lay in its hands around a kill of slurmctld, most
//! finish, nothing accepted is left, nothing held stays at Slurm.

use crate::rig::folder;
use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use jobgate_shared::clock;
use jobgate_tests::{
    gateway::{Client, Ledger, Role, Site},
    scrape::Scrape,
    services::{Accounting, Postgres, RabbitMq, Release, Slurm},
    wait::until,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

/// How long slurmctld remembers what has ended: longer than this takes.
const MIN_JOB_AGE: Duration = Duration::from_mins(30);
/// The longest the next fault waits for progress.
const STALLED: Duration = Duration::from_secs(45);
/// How long after the last end nothing held may be left.
const ORPHANS_GO: Duration = Duration::from_mins(5);
/// Jobs of the count of calls.
const QUEUED: u16 = 500;

/// What is done to it, in this order, spread over the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// `kill -9` of a worker; another starts.
    KillWorker,
    /// slurmctld is stopped in order, and started.
    RestartSlurmctld,
    /// `kill -9` of slurmctld: what it had not saved is lost.
    KillSlurmctld,
    /// slurmrestd is killed and started.
    RestartSlurmrestd,
}

/// How long before a kill of slurmctld a job may have been submitted or begun that the kill loses: it saves every 5 s or so.
const UNSAVED: TimeDelta = TimeDelta::seconds(15);
/// And how long after it what becomes of a job may be its doing: nodes register anew and tell what they run, and what is not
/// known is LOST only after `lost_after`.
const SETTLES: TimeDelta = TimeDelta::seconds(180);
/// Of a hundred jobs so many must come to their end, whatever is done to Slurm.
const FINISH_OF_100: usize = 60;

const FAULTS: [Fault; 16] = {
    use Fault::{KillSlurmctld as K, KillWorker as W, RestartSlurmctld as C, RestartSlurmrestd as R};
    [W, C, W, K, W, C, W, R, W, C, W, K, C, W, C, W]
};

/// Everything that runs; the fields end in this order.
struct Field {
    workers: Vec<Role>,
    recorder: Role,
    api: Role,
    client: Client,
    site: Site,
    slurm: Slurm,
    _broker: RabbitMq,
    _database: Postgres,
    folder: tempfile::TempDir,
}

impl Field {
    async fn start(workers: usize) -> Result<Self> {
        let slurm = Slurm::start(Release::Installed, Accounting::None, MIN_JOB_AGE).await?;
        let (database, broker) = (Postgres::start().await?, RabbitMq::start().await?);
        let (db, vhost, folder) = (database.database().await?, broker.vhost().await?, folder());
        let mut site = Site::distributed(&configuration(&slurm, folder.path()), db.url(), vhost.url())?;
        site.run(&["migrate"])?;
        let (api, recorder) = (site.start("api").await?, site.start("recorder").await?);
        let client = site.client(&api)?;
        let mut field = Self {
            workers: Vec::new(),
            recorder,
            api,
            client,
            site,
            slurm,
            _broker: broker,
            _database: database,
            folder,
        };
        for _ in 0..workers {
            field.workers.push(field.site.start("worker").await?);
        }
        Ok(field)
    }

    fn ledger(&self) -> Ledger {
        Ledger::at(self.folder.path().join("ledger"))
    }

    async fn post(&self, jobs: &[Value]) -> Result<Vec<String>> {
        let mut accepted = Vec::new();
        for (n, chunk) in jobs.chunks(500).enumerate() {
            accepted.extend(self.client.submit(&format!("batch-{n}"), chunk).await?);
        }
        Ok(accepted)
    }

    /// Slurm drains a node whose slurmd knows a job that slurmctld has forgotten; a person would put it to work again.
    async fn look_after(&self) -> Result<()> {
        if let Some(why) = self.slurm.resume_node().await? {
            println!("        Slurm had drained its node: {why}");
        }
        Ok(())
    }

    async fn strike(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::KillWorker => {
                self.workers.remove(0).process.kill()?;
                self.workers.push(self.site.start("worker").await?);
            }
            Fault::RestartSlurmctld => {
                self.slurm.stop_slurmctld().await?;
                self.slurm.start_slurmctld().await?;
            }
            Fault::KillSlurmctld => {
                self.slurm.kill_slurmctld()?;
                self.slurm.start_slurmctld().await?;
            }
            Fault::RestartSlurmrestd => self.slurm.restart_slurmrestd().await?,
        }
        Ok(())
    }

    async fn end(mut self) -> Result<()> {
        for role in self.workers.iter_mut().chain([&mut self.recorder, &mut self.api]) {
            role.drain(Duration::from_secs(30)).await?;
        }
        Ok(())
    }
}

fn configuration(slurm: &Slurm, folder: &Path) -> String {
    let words: Vec<String> =
        slurm.token_command(Duration::from_hours(1)).iter().map(|word| format!("{word:?}")).collect();
    format!(
        "[worker]\nlease = \"6s\"\nheartbeat = \"2s\"\nsweep = \"20s\"\nsweep_older_than = \"1m\"\n\n\
         [clusters.slurm]\nengine = \"slurm\"\nurl = {url:?}\nuser = {user:?}\ntoken_command = [{words}]\n\
         log_dir = \"{folder}\"\npoll_interval = \"2s\"\nlost_after = \"2m\"\nmax_calls = 8\n",
        folder = folder.display(),
        url = slurm.url(),
        user = slurm.account(),
        words = words.join(", "),
    )
}

/// So many jobs, all the faults, and the verdict.
pub(crate) async fn run(jobs: usize) -> Result<()> {
    let mut field = Field::start(2).await?;
    let ledger = field.ledger();
    let began = Instant::now();
    let posted: Vec<Value> = (0..jobs).map(|_| ledger.quick_job()).collect();
    let accepted = field.post(&posted).await?;
    println!("{} jobs accepted", accepted.len());
    let mut kills = Vec::new();
    for (n, fault) in FAULTS.into_iter().enumerate() {
        let (since, goal) = (Instant::now(), jobs * (n + 1) / (FAULTS.len() + 1));
        while ledger.runs()?.len() < goal && since.elapsed() < STALLED {
            tokio::time::sleep(Duration::from_millis(500)).await;
            field.look_after().await?;
        }
        println!("{:>5.0} s: {} have run; {fault:?}", began.elapsed().as_secs_f64(), ledger.runs()?.len());
        if fault == Fault::KillSlurmctld {
            kills.push(clock::system().now());
        }
        field.strike(fault).await.with_context(|| format!("{fault:?}"))?;
    }
    until("every job has ended", Duration::from_mins(15), async || {
        field.look_after().await?;
        let left: BTreeMap<String, u64> =
            field.client.depths().await?.into_iter().filter(|(state, _)| !is_terminal(state)).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    println!("{:>5.0} s: every job has ended", began.elapsed().as_secs_f64());
    let quiet = Instant::now();
    until("nothing held is left", ORPHANS_GO, async || {
        let held = field.slurm.command("squeue", &["-h", "-t", "PD", "-o", "%i %j %r"]).await?;
        ensure!(held.trim().is_empty(), "{held}");
        Ok(())
    })
    .await?;
    println!("nothing is held at Slurm {:.0} s later", quiet.elapsed().as_secs_f64());
    judge(&field.client, &ledger, &accepted, &kills).await?;
    field.end().await
}

fn is_terminal(state: &str) -> bool {
    matches!(state, "FINISHED" | "FAILED" | "CANCELED" | "TIMED_OUT" | "LOST")
}

/// What the rows say against what ran.
async fn judge(client: &Client, ledger: &Ledger, accepted: &[String], kills: &[DateTime<Utc>]) -> Result<()> {
    let runs = ledger.runs()?;
    let (mut counts, mut hidden) = (BTreeMap::<(String, usize), usize>::new(), Vec::new());
    let mut exposed = 0;
    for id in accepted {
        let job = client.get(&format!("/v1/jobs/{id}")).await?;
        let state = job["state"].as_str().context("state")?.to_owned();
        let ran = runs.get(id).copied().unwrap_or(0);
        let reason = job["reason"].as_str().unwrap_or_default();
        exposed += usize::from(is_near(&job, &["submitted_at", "started_at"], kills, UNSAVED)?);
        let struck = is_near(&job, &["submitted_at", "started_at", "finished_at"], kills, SETTLES)?;
        let well = match (state.as_str(), ran) {
            ("FINISHED", 1) => true,
            // Slurm lost it, or ended it: the row has to say that, in Slurm's words or ours, and a kill to have done it.
            ("LOST", 0 | 1) => {
                let lost = ["has not known it", "forgot that it had begun", "began it again", "node"];
                lost.iter().any(|words| reason.contains(words)) && struck
            }
            ("FAILED" | "CANCELED", 0 | 1) => reason.contains("Slurm") && struck,
            _ => false,
        };
        if !well {
            hidden.push(format!("{id} is {state}, ran {ran} times: {reason}; {job}"));
        }
        *counts.entry((state, ran)).or_default() += 1;
    }
    for ((state, ran), jobs) in &counts {
        println!("{jobs} jobs are {state} and ran {ran} times");
    }
    let strangers: Vec<_> = runs.keys().filter(|id| !accepted.contains(id)).collect();
    ensure!(strangers.is_empty(), "ran and were never accepted: {strangers:?}");
    ensure!(hidden.is_empty(), "{} jobs are not as they are told:\n{}", hidden.len(), hidden.join("\n"));
    let finished = counts.get(&("FINISHED".to_owned(), 1)).copied().unwrap_or(0);
    let least = accepted.len() * FINISH_OF_100 / 100;
    ensure!(finished >= least, "{finished} of {} jobs finished, and {least} must", accepted.len());
    let ended_badly = accepted.len() - finished;
    println!(
        "{exposed} jobs were submitted or begun within {} s of a kill of slurmctld",
        UNSAVED.num_seconds()
    );
    ensure!(ended_badly <= exposed, "{ended_badly} jobs did not finish, and a kill can have lost {exposed}");
    println!("valid: what ran is what the rows say");
    Ok(())
}

/// One of these moments of a job lies shortly before a kill of slurmctld, or so long after it.
fn is_near(job: &Value, moments: &[&str], kills: &[DateTime<Utc>], after: TimeDelta) -> Result<bool> {
    for moment in moments {
        let Some(text) = job[moment].as_str() else { continue };
        let at: DateTime<Utc> = text.parse()?;
        if kills.iter().any(|kill| (*kill - UNSAVED..=*kill + after).contains(&at)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Calls to Slurm for jobs that only wait and run, in a minute.
pub(crate) async fn calls() -> Result<()> {
    let field = Field::start(1).await?;
    let sleeper: Value = serde_json::json!({"spec": {"command": ["sleep", "600"]}});
    let jobs = vec![sleeper; QUEUED.into()];
    field.post(&jobs).await?;
    until("all are at Slurm", Duration::from_mins(10), async || {
        let depths = field.client.depths().await?;
        let there = ["PENDING", "RUNNING"].iter().filter_map(|state| depths.get(*state)).sum::<u64>();
        ensure!(there == u64::from(QUEUED), "{depths:?}");
        Ok(())
    })
    .await?;
    let ops = Client::new(&field.workers[0].url, "")?;
    let starts = [("call", "start"), ("outcome", "answered")];
    until("every start is answered", Duration::from_mins(1), async || {
        let scrape = Scrape::parse(&ops.text("/metrics").await?)?;
        scrape.is_above("jobgate_rm_calls_total", &starts, f64::from(QUEUED) - 1.0)
    })
    .await?;
    let count = async || anyhow::Ok(Scrape::parse(&ops.text("/metrics").await?)?);
    let before = count().await?;
    tokio::time::sleep(Duration::from_mins(1)).await;
    let after = count().await?;
    let made = |metric: &str, labels: &[(&str, &str)]| {
        let of = |scrape: &Scrape| scrape.value(metric, labels).unwrap_or(0.0);
        of(&after) - of(&before)
    };
    for call in ["poll", "create", "start", "cancel", "discard", "forget", "inert", "ended"] {
        println!("{call}: {} calls in a minute", made("jobgate_rm_calls_total", &[("call", call)]));
    }
    // Whatever they are called, and what they came to.
    let (all, requests) = (made("jobgate_rm_calls_total", &[]), made("jobgate_rm_requests_total", &[]));
    println!("{:.3} calls a job and minute, for {QUEUED} jobs", all / f64::from(QUEUED));
    println!("{:.3} requests a job and minute", requests / f64::from(QUEUED));
    let (status, answer) = field.client.post("/v1/jobs/cancel?cluster=slurm", &Value::Null).await?;
    ensure!(status < 300, "{status} {answer}");
    until("all are canceled", Duration::from_mins(5), async || {
        let depths = field.client.depths().await?;
        ensure!(depths.keys().all(|state| is_terminal(state)), "{depths:?}");
        Ok(())
    })
    .await?;
    field.end().await
}
