//! Torture: the whole gateway as real processes behind breakable links, faults that follow from a seed, producers that do
//! not give up, and a checker that compares what was accepted, what began, what the rows say and what history tells.
//!
//! * [`deployment`]: what is deployed. [`fleet`], behind links of [`proxy`](crate::proxy), [`disk`]: what can be broken.
//! * [`schedule`], [`nemesis`]: what breaks it, and when. [`load`]: the producers.
//! * [`watcher`], [`evidence`]: what is noted. [`checker`]: what must hold of it. [`report`]: what is told.

pub mod checker;
pub mod deployment;
pub mod disk;
pub mod evidence;
pub mod fleet;
pub mod load;
pub mod nemesis;
pub mod report;
pub mod schedule;
pub mod watcher;

use self::{
    deployment::{CLUSTERS, config, targets},
    disk::Disk,
    evidence::{Evidence, Row, read_ledger},
    fleet::{ADMIN, Fleet, Ground, Kind},
    load::Load,
    nemesis::{Done, Nemesis},
    report::{Report, Settled, Verdict},
    schedule::{Fault, schedule},
    watcher::Watcher,
};
use crate::{
    environment,
    gateway::Client,
    proxy::Damage,
    services::{Postgres, RabbitMq},
};
use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jobgate_shared::{
    domain::{HistoryEntry, JobId, JobState},
    supervise::Tasks,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// APIs, workers and recorders.
const FLEET: [usize; 3] = [2, 3, 2];
/// How long a step may wait until what was accepted before it healed has ended.
const STEP_SETTLES: Duration = Duration::from_secs(4);
/// The same where only some faults are asked for, by name: what they cost is the question then.
const NAMED_STEP_SETTLES: Duration = Duration::from_mins(1);
/// Nothing has moved for so long, with every fault healed: it will not.
const STUCK: Duration = Duration::from_secs(45);
/// Every job has ended within this after the last fault, or no judgement is given.
const ALL_SETTLE: Duration = Duration::from_mins(4);
const DRAIN: Duration = Duration::from_secs(30);
/// Requests that are repeated at the end.
const REPLAYED: usize = 150;
/// Histories asked for at once.
const READERS: usize = 8;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long faults go on.
    pub lasts: Duration,
    /// What everything left to chance follows from.
    pub seed: u64,
    /// Where everything is kept; an empty folder.
    pub keep: PathBuf,
    /// How many jobs are posted a second.
    pub jobs_per_second: f64,
    /// These faults and no other, when there are any.
    pub only: Vec<Fault>,
    /// A fault that cannot be made here leaves nothing to be judged.
    pub strict: bool,
}

/// Says what happens as it happens.
fn say(text: &str) {
    tracing::info!("{text}");
}

/// A run from its first process to its verdict, unless `interrupted` comes first.
pub async fn run(options: &Options, interrupted: impl Future<Output = ()>) -> Result<Report> {
    let tasks = Tasks::default();
    let stage = Stage::set(options, &tasks).await?;
    let report = tokio::select! {
        report = stage.play(options, &tasks) => report,
        () = interrupted => Err(anyhow::anyhow!("interrupted")),
    };
    tasks.stop().await;
    drop(stage);
    report
}

/// Everything that runs.
struct Stage {
    fleet: Arc<Fleet>,
    load: Arc<Load>,
    watcher: Arc<Watcher>,
    nemesis: Nemesis,
    damage: Arc<Damage>,
    client: Client,
}

impl Stage {
    /// Starts the servers and the fleet.
    async fn set(options: &Options, tasks: &Tasks) -> Result<Self> {
        let keep = &options.keep;
        say("starting PostgreSQL and RabbitMQ");
        let (postgres, rabbitmq) = tokio::try_join!(Postgres::start(), RabbitMq::start())?;
        let (database, vhost) = tokio::try_join!(postgres.database(), rabbitmq.vhost())?;
        let disk = match Disk::mount(&keep.join("spool")) {
            Ok(disk) => Some(disk),
            Err(error) => {
                say(&format!("no disk of its own for the spool: {error:#}"));
                None
            }
        };
        let config = config(keep)?;
        let damage = Arc::new(Damage::default());
        let ground = Ground {
            folder: keep,
            config: &config,
            database: database.url(),
            broker: vhost.url(),
            seed: options.seed,
        };
        let fleet = Arc::new(Fleet::lay_out(&ground, FLEET, &damage, tasks).await?);
        migrate(keep, database.url())?;
        say(&format!("starting {FLEET:?} APIs, workers and recorders"));
        fleet.start_all().await?;
        let apis: Vec<String> = fleet.of(Kind::Api).iter().map(|member| member.url.clone()).collect();
        let client = Client::new(&apis[0], ADMIN)?;
        let rate = options.jobs_per_second;
        let load = Arc::new(Load::new(apis, targets(keep), options.seed, rate, tasks.clone())?);
        let watcher = Arc::new(Watcher::new(database.url().to_owned(), fleet.clone(), load.clone()));
        let dispatch = CLUSTERS.iter().map(|(name, ..)| format!("jobgate.dispatch.{name}"));
        let nemesis = Nemesis {
            fleet: fleet.clone(),
            load: load.clone(),
            postgres: Mutex::new(postgres),
            rabbitmq: Mutex::new(rabbitmq),
            vhost,
            disk,
            queues: dispatch.chain(["jobgate.events".to_owned()]).collect(),
            watcher: watcher.clone(),
        };
        Ok(Self { fleet, load, watcher, nemesis, damage, client })
    }

    async fn play(&self, options: &Options, tasks: &Tasks) -> Result<Report> {
        // On threads of their own, so that nothing the nemesis waits for keeps anybody from posting or looking.
        let (stop, watcher) = (tasks.shutdown().clone(), self.watcher.clone());
        tasks.spawn("watcher", async move {
            stop.run_until_cancelled(watcher.watch()).await;
        });
        let (stop, load) = (tasks.shutdown().child_token(), self.load.clone());
        let producing = stop.clone();
        tasks.spawn("producers", async move {
            producing.run_until_cancelled(load.produce()).await;
        });
        let tortured = self.torture(options).await;
        stop.cancel();
        let (mut done, healed) = tortured?;
        self.note_what_had_no_effect(&mut done);
        say("every fault is healed; waiting until every job has ended");
        let settled = self.settle(healed).await;
        let counts = self.watcher.standing().borrow().counts;
        let (evidence, notes) = self.gather(&done).await.context("gather what is to be judged")?;
        evidence.keep(&options.keep)?;
        fs::write(options.keep.join("steps.json"), serde_json::to_vec_pretty(&done)?)?;
        let violations = checker::check(&evidence);
        let only_open = violations.iter().all(|violation| violation.rule == checker::Rule::Ended);
        let all_run = done.iter().all(|done| done.not_run.is_empty());
        let verdict = match &settled {
            Settled::After(_) if violations.is_empty() && options.strict && !all_run => Verdict::Unknown,
            Settled::After(_) if violations.is_empty() => Verdict::Valid,
            Settled::Moving(_) if only_open => Verdict::Unknown,
            // Nobody saw them end, and they have.
            Settled::Stuck(_) if violations.is_empty() => Verdict::Unknown,
            Settled::After(_) | Settled::Moving(_) | Settled::Stuck(_) => Verdict::Invalid,
        };
        let (seed, commit) = (options.seed, commit());
        let report = Report { verdict, seed, commit, done, violations, settled, counts, notes };
        fs::write(options.keep.join("report.txt"), format!("{report}\n"))?;
        Ok(report)
    }

    /// Carries out steps until the time is over.
    async fn torture(&self, options: &Options) -> Result<(Vec<Done>, Instant)> {
        let patience = if options.only.is_empty() { STEP_SETTLES } else { NAMED_STEP_SETTLES };
        let begun = Instant::now();
        let mut done = Vec::new();
        for step in schedule(options.seed, &options.only) {
            if begun.elapsed() >= options.lasts {
                break;
            }
            let names: Vec<String> = step.faults.iter().map(|fault| fault.name()).collect();
            say(&format!("{:>5.1} s: {}", begun.elapsed().as_secs_f64(), names.join(" and ")));
            let carried_out = self.nemesis.carry_out(step, begun, patience).await?;
            let settled = carried_out.settled_after.map_or_else(
                || format!("not settled within {patience:?}"),
                |after| format!("settled {:.1} s after", after.as_secs_f64()),
            );
            say(&format!("         lasted {:.1} s, {settled}", carried_out.lasted.as_secs_f64()));
            done.push(carried_out);
        }
        Ok((done, Instant::now()))
    }

    /// A fault that was carried out and hit nothing is none.
    fn note_what_had_no_effect(&self, done: &mut [Done]) {
        let Damage { cut, unheard_commits, .. } = &*self.damage;
        for (fault, hits) in [(Fault::Cuts, cut), (Fault::UnknownCommits, unheard_commits)] {
            if hits.load(Ordering::Relaxed) == 0 {
                for done in done.iter_mut().filter(|done| done.step.faults.contains(&fault)) {
                    done.not_run.push(format!("{}: it hit nothing", fault.name()));
                }
            }
        }
    }

    /// Waits until every request is answered and every job has ended.
    async fn settle(&self, healed: Instant) -> Settled {
        let mut standing = self.watcher.standing();
        loop {
            let now = standing.borrow_and_update().clone();
            let open = self.load.open();
            if now.at > healed && now.open == 0 && open == 0 {
                return Settled::After(now.at - healed);
            }
            let left = format!("{} jobs have not ended, {open} requests were not answered", now.open);
            if healed.elapsed() > STUCK && now.moved.elapsed() > STUCK {
                return Settled::Stuck(left);
            }
            if healed.elapsed() > ALL_SETTLE {
                return Settled::Moving(left);
            }
            tokio::time::timeout(Duration::from_secs(1), standing.changed()).await.ok();
        }
    }

    /// Reads everything the checker wants, then ends the fleet in order, which is part of what is judged.
    async fn gather(&self, done: &[Done]) -> Result<(Evidence, Vec<String>)> {
        let mut defects = self.load.replay(REPLAYED).await;
        let rows = self.rows().await?;
        let histories = self.histories(&rows).await?;
        let depths = self.client.depths().await?;
        self.watcher.scrape_all().await;
        defects.extend(self.fleet.fallen().await);
        defects.extend(self.fleet.drain(DRAIN).await);
        for member in &self.fleet.members {
            defects.extend(member.panics()?);
        }
        let dead = self.nemesis.vhost.queue_depth("jobgate.dead").await?;
        if dead > 0 {
            defects.push(format!("{dead} dead letters"));
        }
        let mut starts = Vec::new();
        for target in self.load.targets() {
            starts.extend(read_ledger(&target.cluster, &target.ledger)?);
        }
        let mut notes = self.notes();
        notes.push(format!("a worker's clock was up to {} s off the store's", furthest_clock(&histories)));
        let seen = std::mem::take(&mut *self.watcher.notes());
        defects.extend(seen.defects);
        let book = std::mem::take(&mut *self.load.book());
        defects.extend(book.defects);
        let evidence = Evidence {
            clusters: CLUSTERS.iter().map(|(name, promise, ..)| ((*name).to_owned(), *promise)).collect(),
            accepted: book.accepted,
            rows,
            histories,
            starts,
            sightings: seen.sightings,
            asked: book.asked,
            canceled: book.canceled,
            depths,
            defects,
            disk_was_full: done.iter().any(|done| done.step.faults.contains(&Fault::DiskFull)),
        };
        Ok((evidence, notes))
    }

    async fn rows(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut path = "/v1/jobs?limit=1000".to_owned();
        loop {
            let page = self.client.get(&path).await?;
            for job in page["items"].as_array().context("items")? {
                rows.push(serde_json::from_value(job.clone())?);
            }
            match page["next_cursor"].as_str() {
                Some(cursor) => path = format!("/v1/jobs?limit=1000&cursor={cursor}"),
                None => return Ok(rows),
            }
        }
    }

    async fn histories(&self, rows: &[Row]) -> Result<BTreeMap<JobId, Vec<HistoryEntry>>> {
        let read = async |id: JobId| {
            let mut document: Value = self.client.get(&format!("/v1/jobs/{id}/history")).await?;
            Ok::<_, anyhow::Error>((id, serde_json::from_value(document["items"].take())?))
        };
        stream::iter(rows.iter().map(|row| read(row.id))).buffer_unordered(READERS).try_collect().await
    }

    /// Numbers worth telling.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let damage = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        notes.push(format!(
            "links: {} connections cut, {} commits carried out and not heard of, {} commits never sent",
            damage(&self.damage.cut),
            damage(&self.damage.unheard_commits),
            damage(&self.damage.unsent_commits)
        ));
        let mut latencies = self.load.book().latencies.clone();
        latencies.sort_unstable();
        let at = |share: usize| {
            latencies.get((latencies.len() * share / 100).min(latencies.len().saturating_sub(1)))
        };
        if let (Some(half), Some(most)) = (at(50), at(99)) {
            notes.push(format!("accepted requests answered within {half} ms (p50), {most} ms (p99)"));
        }
        let peaks = self.watcher.notes().peak_memory_mib.clone();
        let peaks: Vec<String> =
            peaks.into_iter().map(|(kind, mib)| format!("{} {mib} MiB", kind.role())).collect();
        notes.push(format!("most memory of one process: {}", peaks.join(", ")));
        notes
    }
}

/// How far a time told by a worker was from the one the store had written just before.
fn furthest_clock(histories: &BTreeMap<JobId, Vec<HistoryEntry>>) -> i64 {
    let pairs = histories.values().flat_map(|entries| entries.windows(2));
    let told = pairs.filter(|pair| (pair[0].to, pair[1].to) == (JobState::Pending, JobState::Running));
    told.map(|pair| (pair[1].at - pair[0].at).num_seconds().abs()).max().unwrap_or(0)
}

fn migrate(folder: &Path, database: &str) -> Result<()> {
    let mut command = Command::new(environment::jobgate()?);
    command.arg("--config").arg(folder.join("jobgate.toml")).arg("--data-dir").arg(folder.join("data"));
    let done = command.arg("migrate").env("JOBGATE_DATABASE_URL", database).output()?;
    ensure!(done.status.success(), "migrate: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// What was built, as git names it.
fn commit() -> String {
    let mut command = Command::new("git");
    command.args(["describe", "--always", "--dirty", "--abbrev=12"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let told = command.output().ok().filter(|done| done.status.success());
    let told = told.and_then(|done| String::from_utf8(done.stdout).ok());
    told.map_or_else(|| "unknown".to_owned(), |told| told.trim().to_owned())
}
