//! What a gateway says it measures, against what it was made to do.

use anyhow::{Context as _, Result, ensure};
use jobgate_shared::telemetry::{self, Kind, Metric};
use jobgate_tests::{
    gateway::{Client, Site},
    scrape::Scrape,
    wait::until,
};
use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant},
};

/// One job at a time, so that some wait; heartbeats well within the time after which an end is told again.
const CONFIG: &str = r#"
[clusters.local]
engine = "local"
regulator = { kind = "fixed", max_in_flight = 1 }
[worker]
heartbeat = "1s"
[retention]
measure_every = "1s"
"#;
const SOON: Duration = Duration::from_mins(1);
const LOCAL: (&str, &str) = ("cluster", "local");

async fn scrape(client: &Client) -> Result<Scrape> {
    Scrape::parse(&client.text("/metrics").await?)
}

/// Depth and oldest age of one queue, by what `/metrics` says.
fn depth(scrape: &Scrape, priority: &str, state: &str, jobs: f64) -> Result<()> {
    scrape.is("jobgate_jobs", &[LOCAL, ("priority", priority), ("state", state)], jobs)
}

#[tokio::test]
async fn counters_and_latencies_tell_what_was_done_and_nothing_else() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    let jobs: Vec<Value> = (0..4).map(|_| json!({"spec": {"command": ["true"]}})).collect();
    let accepted = client.submit("four", &jobs).await?;
    ensure!(client.submit("four", &jobs).await? == accepted, "the same jobs");
    client.all_finished(4, SOON).await?;
    let told = until("every end is settled and the gauges say so", SOON, async || {
        let scrape = scrape(&client).await?;
        depth(&scrape, "0", "FINISHED", 4.0)?;
        scrape.is("jobgate_worker_jobs", &[], 0.0)?;
        scrape.is("jobgate_worker_unsettled", &[], 0.0)?;
        scrape.is("jobgate_hints_outstanding", &[LOCAL], 0.0)?;
        scrape.is("jobgate_rm_calls_total", &[LOCAL, ("call", "forget"), ("outcome", "answered")], 4.0)?;
        Ok(scrape)
    })
    .await?;
    told.is("jobgate_jobs_accepted_total", &[], 4.0)?;
    told.is("jobgate_accept_seconds_count", &[], 2.0)?;
    told.is_above("jobgate_accept_commit_seconds_count", &[], 0.0)?;
    for call in ["create", "start"] {
        told.is("jobgate_rm_calls_total", &[LOCAL, ("call", call)], 4.0)?;
        told.is("jobgate_rm_call_seconds_count", &[LOCAL, ("call", call)], 4.0)?;
    }
    told.is("jobgate_claim_wait_seconds_count", &[LOCAL], 4.0)?;
    told.is_above("jobgate_claim_seconds_count", &[], 0.0)?;
    told.is_above("jobgate_poll_seconds_count", &[LOCAL], 0.0)?;
    told.is_above("jobgate_record_submission_seconds_count", &[], 0.0)?;
    let advanced = told.value("jobgate_events_total", &[("outcome", "advanced")]).context("events")?;
    ensure!(advanced >= 4.0, "{advanced} events moved rows");
    told.is("jobgate_record_latency_seconds_count", &[], advanced)?;
    told.is("jobgate_duplicates_dropped_total", &[], 0.0)?;
    told.is("jobgate_events_behind", &[], 0.0)?;
    told.is("jobgate_lease_expiries_total", &[], 0.0)?;
    told.is("jobgate_broker_up", &[], 2.0)?;
    told.is("jobgate_http_requests_total", &[("route", "/v1/jobs/batch"), ("status", "200")], 2.0)?;
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn gauges_tell_how_many_jobs_stand_where_and_how_long_they_wait() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    let go = site.data_dir().join("go");
    // Not for ever: a test that fails must not leave it running.
    let script = "for i in $(seq 2000); do test -e \"$1\" && exit 0; sleep 0.05; done; exit 1";
    let wait = json!(["/bin/sh", "-c", script, "job", go]);
    client.submit("first", &[json!({"priority": 10, "spec": {"command": wait}})]).await?;
    until("it runs", SOON, async || {
        ensure!(client.depths().await?.get("RUNNING") == Some(&1));
        Ok(())
    })
    .await?;
    let job = |priority| json!({"priority": priority, "spec": {"command": ["true"]}});
    client.submit("others", &[job(0), job(0), job(5)]).await?;
    until("one runs and three wait", SOON, async || {
        let scrape = scrape(&client).await?;
        depth(&scrape, "10", "RUNNING", 1.0)?;
        depth(&scrape, "0", "INITIALIZED", 2.0)?;
        depth(&scrape, "5", "INITIALIZED", 1.0)?;
        for priority in ["0", "5"] {
            let queue = [LOCAL, ("priority", priority), ("state", "INITIALIZED")];
            scrape.is_above("jobgate_oldest_due_seconds", &queue, 0.0)?;
        }
        scrape.is("jobgate_hints_outstanding", &[LOCAL], 3.0)?;
        scrape.is("jobgate_worker_jobs", &[], 1.0)
    })
    .await?;
    fs::write(&go, "")?;
    client.all_finished(4, SOON).await?;
    until("nothing waits", SOON, async || {
        let scrape = scrape(&client).await?;
        depth(&scrape, "0", "FINISHED", 2.0)?;
        scrape.is("jobgate_jobs", &[LOCAL, ("state", "FINISHED")], 4.0)?;
        scrape.is("jobgate_jobs", &[LOCAL, ("state", "INITIALIZED")], 0.0)?;
        scrape.is("jobgate_oldest_due_seconds", &[LOCAL], 0.0)?;
        scrape.is("jobgate_hints_outstanding", &[LOCAL], 0.0)
    })
    .await?;
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn every_metric_says_what_it_is_and_every_plain_counter_is_there_from_the_start() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    client.submit("one", &[json!({"spec": {"command": ["true"]}})]).await?;
    client.all_finished(1, SOON).await?;
    let scrape = scrape(&client).await?;
    let worker = jobgate_worker::telemetry::METRICS;
    let tables = [telemetry::METRICS, jobgate_api::telemetry::API, jobgate_api::telemetry::RECORDER, worker];
    let described: Vec<&Metric> = tables.into_iter().flatten().collect();
    for name in scrape.metrics() {
        let metric = described.iter().find(|metric| metric.name == name);
        let metric = metric.with_context(|| format!("{name} is not described"))?;
        ensure!(scrape.helps.get(name).is_some_and(|help| help == metric.help), "{name} has no help");
        ensure!(
            scrape.kinds.get(name).is_some_and(|kind| kind == metric.kind.as_str()),
            "{name} has no type"
        );
    }
    let plain = described.iter().filter(|metric| metric.kind == Kind::Counter && metric.labels.is_empty());
    for metric in plain {
        ensure!(scrape.metrics().contains(metric.name), "{} comes only with its first event", metric.name);
    }
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn a_manager_is_called_no_more_often_than_allowed_and_the_calls_are_counted() -> Result<()> {
    const A_SECOND: u32 = 20;
    let config = format!(
        "[clusters.local]\nengine = \"noop\"\nmax_calls_per_second = {A_SECOND}\npoll_interval = \"1s\"\n"
    );
    let mut site = Site::embedded(&config)?;
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    let calls =
        async || Ok::<_, anyhow::Error>(scrape(&client).await?.value("jobgate_rm_calls_total", &[LOCAL]));
    let (began, before) = (Instant::now(), calls().await?.unwrap_or(0.0));
    let jobs: Vec<Value> = (0..60).map(|_| json!({"spec": {"command": ["true"]}})).collect();
    client.submit("sixty", &jobs).await?;
    client.all_finished(60, SOON).await?;
    let made = calls().await?.context("calls are counted")? - before;
    let most = began.elapsed().as_secs_f64() * f64::from(A_SECOND) + 2.0;
    // Each was created and started.
    ensure!((120.0..=most).contains(&made), "{made} calls, at most {most} allowed");
    serve.drain(Duration::from_secs(20)).await
}
