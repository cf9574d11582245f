//! The embedded form, end to end: one process, killed and started again, driven over HTTP.

use anyhow::{Context as _, Result, ensure};
use jobgate_tests::{
    environment::jobgate,
    gateway::{Client, Site},
    wait::until,
};
use serde_json::{Value, json};
use std::{os::unix::fs::PermissionsExt as _, time::Duration};

const CONFIG: &str = r#"
[clusters.local]
engine = "local"
regulator = { kind = "fixed", max_in_flight = 64 }
"#;

#[tokio::test]
async fn serve_killed_amid_a_thousand_jobs_and_started_again_runs_each_of_them_once() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let ledger = site.ledger();
    let mut serve = site.start("serve").await?;
    let jobs: Vec<Value> = (0..1000).map(|_| ledger.job("0.3")).collect();
    let accepted = site.client(&serve)?.submit("thousand", &jobs).await?;
    ensure!(accepted.len() == 1000);
    for runs in [100, 400, 700] {
        until("some have run", Duration::from_mins(2), async || {
            ensure!(ledger.runs()?.len() >= runs, "{} have run", ledger.runs()?.len());
            Ok(())
        })
        .await?;
        serve.process.kill()?;
        serve = site.start("serve").await?;
    }
    let client = site.client(&serve)?;
    client.all_finished(1000, Duration::from_mins(3)).await?;
    ledger.is_exactly(&accepted)?;
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn a_drained_serve_leaves_running_jobs_running_and_its_successor_sees_them_end() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let ledger = site.ledger();
    let mut serve = site.start("serve").await?;
    let accepted = site.client(&serve)?.submit("drain", &[ledger.job("4")]).await?;
    until("it runs", Duration::from_secs(20), async || {
        ensure!(ledger.runs()?.len() == 1);
        Ok(())
    })
    .await?;
    serve.drain(Duration::from_secs(20)).await?;
    let mut serve = site.start("serve").await?;
    site.client(&serve)?.all_finished(1, Duration::from_mins(1)).await?;
    ledger.is_exactly(&accepted)?;
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn every_way_a_job_can_go_wrong_ends_in_a_state_with_a_reason() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    let cases = [
        (json!({"spec": {"command": ["true"]}}), "FINISHED", ""),
        (json!({"spec": {"command": ["sh", "-c", "exit 7"]}}), "FAILED", "7"),
        (json!({"spec": {"command": ["no-such-program"]}}), "FAILED", "not found"),
        (json!({"spec": {"command": ["/etc/passwd"]}}), "FAILED", "not executable"),
        (json!({"spec": {"command": ["sh", "-c", "kill -9 $$"]}}), "FAILED", "signal 9"),
        (json!({"spec": {"command": ["sleep", "60"], "time_limit_seconds": 1}}), "TIMED_OUT", "1 s"),
        (json!({"spec": {"command": ["true"], "working_dir": "/no/such/place"}}), "FAILED", "/no/such/place"),
    ];
    for (job, state, reason) in &cases {
        let (status, accepted) = client.post("/v1/jobs", job).await?;
        ensure!(status == 201, "{status} {accepted}");
        let id = accepted["id"].as_str().context("id")?;
        let ended = client.get(&format!("/v1/jobs/{id}?wait=30s")).await?;
        ensure!(ended["state"] == *state, "{job}: {ended}");
        let told = ended["reason"].as_str().unwrap_or_default();
        ensure!(told.contains(reason), "{job}: {told:?} does not say {reason:?}");
    }
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn a_job_that_fails_twice_is_tried_a_third_time_and_its_history_says_so() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    let job = json!({
        "spec": {"command": ["sh", "-c", "test \"$JOBGATE_ATTEMPT\" -eq 3"]},
        "max_attempts": 3, "retry": {"backoff_seconds": 0}
    });
    let (_, accepted) = client.post("/v1/jobs", &job).await?;
    let id = accepted["id"].as_str().context("id")?;
    let ended = client.get(&format!("/v1/jobs/{id}?wait=30s")).await?;
    ensure!(ended["state"] == "FINISHED" && ended["attempt"] == 3, "{ended}");
    let history = client.get(&format!("/v1/jobs/{id}/history")).await?;
    let retries = history["items"].as_array().context("items")?.iter();
    ensure!(
        retries.filter(|e| e["from"] != Value::Null && e["to"] == "INITIALIZED").count() == 2,
        "{history}"
    );
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn logs_are_served_while_a_job_runs_and_after_it_has_ended() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    let job = json!({"spec": {"command": ["sh", "-c", "echo one; echo two >&2; sleep 1; echo three"]}});
    let (_, accepted) = client.post("/v1/jobs", &job).await?;
    let id = accepted["id"].as_str().context("id")?.to_owned();
    until("the first line", Duration::from_secs(20), async || {
        let text = client.text(&format!("/v1/jobs/{id}/logs/stdout")).await?;
        ensure!(text == "one\n", "{text:?}");
        Ok(())
    })
    .await?;
    let followed = client.text(&format!("/v1/jobs/{id}/logs/stdout?follow=true")).await?;
    ensure!(followed == "one\nthree\n", "{followed:?}");
    let errors = client.text(&format!("/v1/jobs/{id}/logs/stderr")).await?;
    ensure!(errors == "two\n", "{errors:?}");
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn a_cancel_reaches_a_job_in_every_state_and_its_process_is_gone() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let ledger = site.ledger();
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    let mut waiting = ledger.job("60");
    waiting["hold"] = json!(true);
    let ids = client.submit("cancel", &[ledger.job("60"), waiting]).await?;
    until("one runs", Duration::from_secs(20), async || {
        ensure!(client.get(&format!("/v1/jobs/{}", ids[0])).await?["state"] == "RUNNING");
        Ok(())
    })
    .await?;
    for id in &ids {
        let (status, answer) = client.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await?;
        ensure!(status == 200, "{status} {answer}");
        let ended = client.get(&format!("/v1/jobs/{id}?wait=30s")).await?;
        ensure!(ended["state"] == "CANCELED", "{ended}");
        let (status, _) = client.post(&format!("/v1/jobs/{id}/hold"), &json!({})).await?;
        ensure!(status == 409, "{status}");
    }
    ensure!(ledger.runs()?.len() == 1, "what was held never ran");
    serve.drain(Duration::from_secs(20)).await
}

/// The first attempt reports, leaves its token in the file `$1` and fails. The second tries that token, which must not be
/// heard, reports, waits for the file `$2` and reports again. `$0` is our binary.
const REPORTING: &str = r#"
update() { "$0" update "$@"; }
if [ "$JOBGATE_ATTEMPT" = 1 ]; then
    printf %s "$JOBGATE_TOKEN" >"$1" || exit 3
    update --progress 90 --stage first --output part=one || exit 4
    exit 1
fi
JOBGATE_ATTEMPT= JOBGATE_TOKEN=$(cat "$1") "$0" update --progress 99 --stage old
[ $? = 1 ] || exit 5
update --progress 40 --stage second --message "it's me" --label checked || exit 6
update --progress 30 || exit 7
until [ -e "$2" ]; do sleep 0.05; done
update --progress 100 --message "" --output result=s3://bucket/x --output-json rows='[7]' || exit 8
"#;

#[tokio::test]
async fn a_job_reports_on_itself_and_an_attempt_that_is_over_is_not_heard() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    let (token, go) = (site.file("token-of-the-first"), site.file("go"));
    let command = json!(["/bin/sh", "-c", REPORTING, jobgate()?, token, go]);
    let job = json!({"spec": {"command": command}, "max_attempts": 2, "retry": {"backoff_seconds": 0}});
    let (_, accepted) = client.post("/v1/jobs", &job).await?;
    let path = format!("/v1/jobs/{}", accepted["id"].as_str().context("id")?);
    let told = |job: &Value| {
        let fields = ["attempt", "progress", "stage", "message", "labels", "outputs"];
        Value::Array(fields.iter().map(|field| job[field].clone()).collect())
    };
    let second = json!([2, 40, "second", "it's me", ["checked"], {"part": "one"}]);
    until("the second attempt has told how far it is", Duration::from_secs(30), async || {
        let job = client.get(&path).await?;
        ensure!(told(&job) == second, "{job}");
        Ok(())
    })
    .await?;
    let running = client.get(&path).await?;
    ensure!(!running.to_string().contains("jgj_"), "no answer shows a token: {running}");
    std::fs::write(&go, "")?;
    let ended = client.get(&format!("{path}?wait=30s")).await?;
    ensure!(ended["state"] == "FINISHED", "{ended}");
    let outputs = json!({"part": "one", "result": "s3://bucket/x", "rows": [7]});
    ensure!(told(&ended) == json!([2, 100, "second", null, ["checked"], outputs]), "{ended}");
    let first = std::fs::read_to_string(&token)?;
    let (status, problem) =
        Client::new(&serve.url, &first)?.post(&format!("{path}/reports"), &json!({"progress": 1})).await?;
    ensure!(status == 409 && problem["type"] == "urn:jobgate:problem:state-conflict", "{status} {problem}");
    ensure!(Client::new(&serve.url, &first)?.answer("/v1/jobs").await?.status() == 403);
    ensure!(!serve.process.log_tail().contains("jgj_"), "{}", serve.process.log_tail());
    let key = std::fs::metadata(site.data_dir().join("report-key"))?;
    ensure!(key.permissions().mode() & 0o777 == 0o600, "only its owner may read the key");
    serve.drain(Duration::from_secs(20)).await
}
