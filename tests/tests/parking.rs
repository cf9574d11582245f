//! A cluster whose manager fails is parked, end to end: its jobs wait with that reason, the others go on, and it comes back by
//! itself.

use anyhow::{Context as _, Result, ensure};
use jobgate_tests::{
    gateway::{Client, Site},
    wait::until,
};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};

const SOON: Duration = Duration::from_mins(1);
const JOBS: usize = 5;

/// A scheduler of a few lines: `$1` is its directory, `$2` what it is to do.
const SCHEDULER: &str = r#"
cd "$1" || exit 75
case $2 in
submit)
    id=1; until mkdir "$id" 2>/dev/null; do id=$((id + 1)); done
    echo "$3" >"$id/name"; cp "$4" "$id/script"; echo HELD >"$id/state"; echo "$id" ;;
release)
    echo RUNNING >"$3/state"
    { sh "$3/script"; echo DONE >"$3/state"; } </dev/null >/dev/null 2>&1 & ;;
cancel) echo CANCELED >"$3/state" ;;
list) for id in *; do [ ! -s "$id/state" ] || echo "$id|$(cat "$id/name")|$(cat "$id/state")"; done ;;
esac
"#;

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    let call = |words: &str| format!("argv = [\"/bin/sh\", \"{dir}/scheduler.sh\", \"{dir}/jobs\", {words}]");
    format!(
        r#"
[clusters.near]
engine = "noop"

[clusters.far]
engine = "command"
submit_mode = "two_phase"
shared_dir = "{dir}/shared"
prefix = ["/bin/sh", "-c", "[ ! -e {dir}/broken ] || {{ echo the scheduler is down >&2; exit 75; }}; exec \"$@\"", "sh"]
poll_interval = "200ms"
exit_settles = "100ms"
create = {{ {submit}, row = "(?P<id>[0-9]+)" }}
start = {{ {release} }}
cancel = {{ {cancel} }}
find = {{ {list}, row = "(?P<id>[0-9]+)[|](?P<name>.*)[|](?P<state>[A-Z]+)", states = {{ HELD = "inert", RUNNING = "running", DONE = "finished", CANCELED = "canceled" }} }}
"#,
        submit = call(r#""submit", "{name}", "{script}""#),
        release = call(r#""release", "{id}""#),
        cancel = call(r#""cancel", "{id}""#),
        list = call(r#""list""#),
    )
}

async fn jobs(client: &Client, ids: &[String]) -> Result<Vec<Value>> {
    let mut jobs = Vec::new();
    for id in ids {
        jobs.push(client.get(&format!("/v1/jobs/{id}")).await?);
    }
    Ok(jobs)
}

#[tokio::test]
async fn a_cluster_that_fails_is_parked_burns_no_attempt_and_comes_back_by_itself() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broken = dir.path().join("broken");
    for name in ["jobs", "shared"] {
        fs::create_dir(dir.path().join(name))?;
    }
    fs::write(dir.path().join("scheduler.sh"), SCHEDULER)?;
    fs::write(&broken, "")?;
    let mut site = Site::embedded(&configuration(dir.path()))?;
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    let ledger = dir.path().join("ledger");
    let script = format!("echo \"$JOBGATE_JOB_ID\" >> {}", ledger.display());
    let of = |cluster: &str| json!({"cluster": cluster, "spec": {"command": ["/bin/sh", "-c", script]}});
    let far = client.submit("far", &vec![of("far"); JOBS]).await?;
    until("its jobs wait with that reason", SOON, async || {
        for job in jobs(&client, &far).await? {
            let waits = job["state"] == "INITIALIZED" && job["attempt"] == 1;
            let why = job["reason"].as_str().unwrap_or_default();
            ensure!(waits && why.contains("the scheduler is down"), "{job}");
        }
        let clusters = client.get("/v1/clusters").await?;
        ensure!(clusters.to_string().contains("the scheduler is down"), "not parked: {clusters}");
        Ok(())
    })
    .await?;
    let near = client.submit("near", &vec![of("near"); JOBS]).await?;
    until("the other cluster goes on", SOON, async || {
        let jobs = jobs(&client, &near).await?;
        ensure!(jobs.iter().all(|job| job["state"] == "FINISHED"), "{jobs:?}");
        Ok(())
    })
    .await?;
    ensure!(!ledger.exists(), "something ran on a cluster that is down");
    fs::remove_file(&broken)?;
    until("it comes back by itself", SOON, async || {
        for job in jobs(&client, &far).await? {
            ensure!(job["state"] == "FINISHED" && job["attempt"] == 1, "{job}");
        }
        Ok(())
    })
    .await?;
    let mut ran: Vec<String> =
        fs::read_to_string(&ledger).context("the ledger")?.lines().map(str::to_owned).collect();
    let mut accepted = far;
    ran.sort();
    accepted.sort();
    ensure!(ran == accepted, "each ran once: {ran:?}");
    serve.drain(SOON).await
}
