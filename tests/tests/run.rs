//! `jobgate run FILE`, the first thing anybody tries: what it shows, what it ends with, and that kill -9 costs nothing but
//! time.

use anyhow::{Context as _, Result, ensure};
use jobgate_tests::{
    environment,
    gateway::{Ledger, Site},
    wait::until,
};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

const SOON: Duration = Duration::from_mins(1);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs an example as the README says, from the root of the source tree and without any configuration.
fn run_example(site: &Site, name: &str) -> Result<Output> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the root of the workspace")?;
    let mut run = Command::new(environment::jobgate()?);
    run.arg("--data-dir").arg(site.data_dir()).args(["run", &format!("examples/{name}.jsonl")]);
    Ok(run.current_dir(root).output()?)
}

/// The lines of a table's row of this many cells or more, as words.
fn rows(output: &Output) -> Vec<Vec<String>> {
    text(&output.stdout).lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[tokio::test]
async fn the_example_of_the_readme_runs_to_its_table_and_ends_well() -> Result<()> {
    let site = Site::embedded("")?;
    let ran = run_example(&site, "checksums")?;
    ensure!(ran.status.code() == Some(0), "{ran:?}");
    let rows = rows(&ran);
    for expected in [["STATE", "JOBS"], ["FINISHED", "40"]] {
        ensure!(rows.iter().any(|row| row == &expected), "no row {expected:?}: {}", text(&ran.stdout));
    }
    ensure!(!text(&ran.stdout).contains("NOT WELL"), "{}", text(&ran.stdout));
    ensure!(text(&ran.stderr).contains("logs are in "), "{}", text(&ran.stderr));
    Ok(())
}

#[tokio::test]
async fn failures_are_told_one_by_one_and_retries_that_succeed_are_none() -> Result<()> {
    let site = Site::embedded("")?;
    let ran = run_example(&site, "failures")?;
    ensure!(ran.status.code() == Some(1), "{ran:?}");
    let shown = text(&ran.stdout);
    let rows = rows(&ran);
    for expected in [["FAILED", "4"], ["FINISHED", "1"], ["TIMED_OUT", "1"]] {
        ensure!(rows.iter().any(|row| row == &expected), "no row {expected:?}: {shown}");
    }
    for told in ["exits with 3", "this goes wrong on purpose", "no-such-command", "/nonexistent", "signal 9"]
    {
        ensure!(shown.contains(told), "nothing of {told:?}: {shown}");
    }
    let ran = run_example(&site, "retries")?;
    ensure!(ran.status.code() == Some(0), "{ran:?}");
    Ok(())
}

#[tokio::test]
async fn a_run_killed_amid_its_jobs_goes_on_with_what_was_left() -> Result<()> {
    const JOBS: usize = 120;
    let mut site = Site::embedded(
        "[clusters.local]\nengine = \"local\"\nregulator = { kind = \"fixed\", max_in_flight = 8 }\n",
    )?;
    let ledger: Ledger = site.ledger();
    let file = site.file("jobs.jsonl");
    fs::write(&file, format!("{}\n", ledger.job("0.1")).repeat(JOBS))?;
    let file = file.to_str().context("a path")?;
    let mut run = site.begin(&["run", file])?;
    until("some have run", SOON, async || {
        let runs = ledger.runs()?.len();
        ensure!(runs >= JOBS / 4, "{runs} have run: {}", run.log_tail());
        Ok(())
    })
    .await?;
    run.kill()?;
    ensure!(ledger.runs()?.len() < JOBS, "it was killed too late to show anything");
    let again = site.output(&["run", file, "--output", "json"])?;
    ensure!(again.status.code() == Some(0), "{again:?}");
    ensure!(text(&again.stderr).contains("going on with the run before"), "{}", text(&again.stderr));
    let jobs: Vec<Value> = text(&again.stdout).lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(jobs.iter().all(|job| job["state"] == "FINISHED"), "{jobs:?}");
    let ids: Vec<String> = jobs.iter().filter_map(|job| job["id"].as_str().map(str::to_owned)).collect();
    ensure!(ids.len() == JOBS, "{} jobs", ids.len());
    ledger.is_exactly(&ids)
}
