//! Jobs that kill whichever worker creates them, among many that do not: they are given up, and cost the others little.

use super::{Figures, Ground, at_least_one, drain};
use crate::{gateway::Role, torture::evidence::read_ledger};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// What to do.
#[derive(Debug, Args)]
pub struct Options {
    /// Jobs that do no harm.
    #[arg(long, default_value_t = 5000, value_parser = at_least_one::<usize>())]
    jobs: usize,
    /// Jobs that kill.
    #[arg(long, default_value_t = 10, value_parser = at_least_one::<usize>())]
    poison: usize,
    /// Workers; one that dies is started again at once.
    #[arg(long, default_value_t = 3, value_parser = at_least_one::<usize>())]
    workers: usize,
}

/// The longest all jobs together may take.
const ALL_ENDED: Duration = Duration::from_mins(20);
/// How many claims a job gets that never comes to a submission.
const CLAIMS: usize = 5;
/// What the others may lose.
const LOSS: f64 = 0.2;

/// Plays a scheduler: a job is a file that holds the path of its script. Its owner may execute it once it is released, and
/// its group once the script has ended.
const SCHEDULER: &str = r#"
cd "${0%/*}/jobs" || exit
case $1 in
create) [ "$3" != poison ] || kill -9 "$PPID"
        for script; do :; done
        echo "$script" > "$2" && echo "$2" ;;
release) [ ! -x "$2" ] || exit 0
        read -r script < "$2" || exit
        setsid /bin/sh -c 'chmod 700 "$2"; /bin/sh "$1"; chmod 710 "$2"' run "$script" "$2" </dev/null >/dev/null 2>&1 &
        # A command that is cut off takes its process group with it, so nothing is said before the job is out of that.
        until [ -x "$2" ]; do sleep 0.01; done ;;
cancel) rm -f "$2" ;;
list) find . -type f \( ! -perm -100 -printf '%f %f HELD\n' -o ! -perm -010 -printf '%f %f RUNNING\n' \
          -o -printf '%f %f DONE\n' \) ;;
esac
"#;
/// What a job that does no harm does.
const JOB: &str = r#"echo "jobgate-$JOBGATE_JOB_ID-$JOBGATE_ATTEMPT" >> "$1"; exec sleep 2"#;

/// Plays it, once without and once with what kills.
pub async fn run(options: &Options) -> Result<Figures> {
    let without = Round::play(options, 0).await?;
    tracing::info!("without: {without:?}");
    let with = Round::play(options, options.poison).await?;
    tracing::info!("with: {with:?}");
    let loss = 1.0 - without.others_ended.as_secs_f64() / with.others_ended.as_secs_f64();
    let mut figures = Figures::default();
    figures.note("jobs that do no harm ended, alone, in", format!("{:.1?}", without.others_ended));
    figures.note("the same among what kills workers", format!("{:.1?}", with.others_ended));
    figures.note("lost throughput, percent", format!("{:.0}", 100.0 * loss));
    figures.note("the last that kills was given up after", format!("{:.1?}", with.all_ended));
    figures.note("workers killed by their jobs", with.killed);
    ensure!(without.killed == 0, "{} workers ended by themselves:\n{figures}", without.killed);
    ensure!(with.killed >= options.poison, "what kills did not:\n{figures}");
    ensure!(with.killed <= options.poison * CLAIMS, "somebody was let kill too often:\n{figures}");
    ensure!(loss < LOSS, "the others lost too much:\n{figures}");
    Ok(figures)
}

#[derive(Debug)]
struct Round {
    others_ended: Duration,
    all_ended: Duration,
    killed: usize,
}

impl Round {
    async fn play(options: &Options, poison: usize) -> Result<Self> {
        let scheduler = tempfile::Builder::new().prefix("jobgate-drill-").tempdir()?;
        let mut ground = Ground::lay("", &cluster(&scheduler)?).await?;
        let (apis, recorders) = (ground.start("api", 1).await?, ground.start("recorder", 1).await?);
        let client = ground.site.client(&apis[0])?;
        let ledger = scheduler.path().join("begun");
        let jobs = mixed(options.jobs, poison, &ledger);
        let mut accepted = Vec::with_capacity(jobs.len());
        for (n, chunk) in jobs.chunks(1000).enumerate() {
            accepted.extend(client.submit(&format!("poison-{n}"), chunk).await?);
        }
        let (killers, others): (Vec<_>, Vec<_>) =
            accepted.iter().zip(&jobs).partition(|(_, job)| job["spec"]["engine"].is_object());

        let mut workers = ground.start("worker", options.workers).await?;
        let (began, mut others_ended, mut killed) = (Instant::now(), None, 0);
        let all_ended = loop {
            killed += replace_dead(&mut ground, &mut workers)?;
            let depths = client.depths().await?;
            let [finished, failed] = ["FINISHED", "FAILED"].map(|state| depths.get(state).copied());
            if finished == Some(others.len() as u64) {
                others_ended.get_or_insert_with(|| began.elapsed());
            }
            if finished.unwrap_or(0) + failed.unwrap_or(0) == jobs.len() as u64 {
                break began.elapsed();
            }
            ensure!(began.elapsed() < ALL_ENDED, "not every job ends: {depths:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        if others_ended.is_none() {
            let page = client.get("/v1/jobs?state=FAILED&limit=1000").await?;
            let items = page["items"].as_array().context("items")?;
            let harmless = items.iter().find(|job| job["spec"]["engine"] != json!({"poison": "yes"}));
            anyhow::bail!("one that does no harm failed: {harmless:?}");
        }
        for (job, _) in killers {
            let job = client.get(&format!("/v1/jobs/{job}")).await?;
            let reason = job["reason"].as_str().unwrap_or_default();
            ensure!(job["state"] == "FAILED" && reason.starts_with("given up: "), "{job}");
        }
        let starts = read_ledger("campus", &ledger)?;
        let once: BTreeSet<_> = starts.iter().map(|start| start.tag.as_str()).collect();
        let tags: Vec<_> = others.iter().map(|(job, _)| format!("jobgate-{job}-1")).collect();
        ensure!(once == tags.iter().map(String::as_str).collect(), "begun is not what does no harm");
        ensure!(starts.len() == once.len(), "{} began, of {}", starts.len(), once.len());
        drain(workers.into_iter().chain(recorders).chain(apis)).await?;
        let others_ended = others_ended.context("some of what does no harm did not finish")?;
        Ok(Self { others_ended, all_ended, killed })
    }
}

/// Starts another worker in the place of each that has ended; how many had.
fn replace_dead(ground: &mut Ground, workers: &mut [Role]) -> Result<usize> {
    let mut dead = 0;
    for worker in workers {
        if !worker.process.is_running()? {
            dead += 1;
            *worker = ground.site.spawn("worker")?;
        }
    }
    Ok(dead)
}

/// One that kills after each so many that do not.
fn mixed(others: usize, poison: usize, ledger: &Path) -> Vec<Value> {
    let job = json!({"cluster": "campus", "spec": {"command": ["/bin/sh", "-c", JOB, "job", ledger]}});
    let killer = json!({"cluster": "campus", "spec": {"command": ["true"], "engine": {"poison": "yes"}}});
    let mut jobs = Vec::with_capacity(others + poison);
    for n in 0..others {
        jobs.push(job.clone());
        if (n + 1) * poison / others > n * poison / others {
            jobs.push(killer.clone());
        }
    }
    jobs
}

/// The scheduler, and the settings of its cluster.
fn cluster(scheduler: &TempDir) -> Result<String> {
    let dir = scheduler.path();
    for name in ["jobs", "shared"] {
        fs::create_dir(dir.join(name))?;
    }
    let program = dir.join("scheduler");
    fs::write(&program, SCHEDULER)?;
    Ok(settings(&program, &dir.join("shared")))
}

fn settings(program: &Path, shared: &Path) -> String {
    let (program, shared) = (program.display(), shared.display());
    format!(
        r#"
[clusters.campus]
engine = "command"
submit_mode = "two_phase"
shared_dir = "{shared}"
poll_interval = "1s"
exit_settles = "0ms"
env = {{ PATH = "/usr/bin:/bin" }}
# Three workers begin some fifty jobs a second, which leaves the processors time.
regulator = {{ kind = "fixed", max_in_flight = 40 }}
options.poison = {{ argv = ["poison"], pattern = "yes" }}

[clusters.campus.create]
argv = ["/bin/sh", "{program}", "create", "{{name}}", "{{options}}", "{{script}}"]
row = "(?P<id>.+)"
[clusters.campus.start]
argv = ["/bin/sh", "{program}", "release", "{{id}}"]
[clusters.campus.cancel]
argv = ["/bin/sh", "{program}", "cancel", "{{id}}"]
[clusters.campus.find]
argv = ["/bin/sh", "{program}", "list"]
row = '(?P<id>\S+) (?P<name>\S+) (?P<state>[A-Z]+)'
states = {{ HELD = "inert", RUNNING = "running", DONE = "finished" }}
"#
    )
}
