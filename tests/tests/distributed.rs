//! The distributed form, end to end: real PostgreSQL, real RabbitMQ, several processes of each role, and faults.

use anyhow::{Context as _, Result, ensure};
use jobgate_tests::{
    environment,
    gateway::{Client, Role, Site},
    scrape::Scrape,
    services::{Database, Postgres, RabbitMq, Shutdown, Vhost},
    wait::until,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

const LOCAL: &str = r#"
[worker]
lease = "4s"
heartbeat = "1s"

[clusters.local]
engine = "local"
max_calls = 8
regulator = { kind = "fixed", max_in_flight = 48 }
"#;

const NOOP: &str = r#"
[worker]
lease = "4s"
heartbeat = "1s"

[clusters.noop]
engine = "noop"
regulator = { kind = "fixed", max_in_flight = 1000 }
"#;

/// One of these at a time: each wants the whole machine.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn noop_jobs(count: usize) -> Vec<Value> {
    (0..count).map(|_| json!({"spec": {"command": ["true"]}})).collect()
}

/// `api` twice, and so many workers and recorders.
async fn start(
    site: &mut Site,
    workers: usize,
    recorders: usize,
) -> Result<(Vec<Role>, Vec<Role>, Vec<Role>)> {
    site.run(&["migrate"])?;
    let mut roles = [Vec::new(), Vec::new(), Vec::new()];
    for (place, (role, count)) in
        [("api", 2), ("worker", workers), ("recorder", recorders)].into_iter().enumerate()
    {
        for _ in 0..count {
            roles[place].push(site.spawn(role)?);
        }
    }
    for role in roles.iter_mut().flatten() {
        role.ready().await?;
    }
    let [api, workers, recorders] = roles;
    Ok((api, workers, recorders))
}

async fn end(roles: impl IntoIterator<Item = Role>) -> Result<()> {
    for mut role in roles {
        role.drain(Duration::from_secs(30)).await?;
    }
    Ok(())
}

async fn post_all(client: &Client, jobs: &[Value]) -> Result<Vec<String>> {
    let mut accepted = Vec::new();
    for (n, chunk) in jobs.chunks(1000).enumerate() {
        accepted.extend(client.submit(&format!("batch-{n}"), chunk).await?);
    }
    Ok(accepted)
}

/// `make test` runs these when all others have ended: beside ten thousand jobs a server that starts gets too little of the
/// processors to begin in minutes.
mod alone {
    use super::*;

    #[tokio::test]
    async fn ten_thousand_jobs_drain_once_each_while_workers_are_killed() -> Result<()> {
        let (database, vhost) = (Database::fresh().await?, Vhost::fresh().await?);
        let mut site = Site::distributed(LOCAL, database.url(), vhost.url())?;
        let ledger = site.ledger();
        let (api, mut workers, recorders) = start(&mut site, 3, 2).await?;
        let jobs: Vec<Value> = (0..10_000).map(|_| ledger.quick_job()).collect();
        let accepted = post_all(&site.client(&api[0])?, &jobs).await?;
        let mut killed = 0;
        while ledger.runs()?.len() < 9_500 {
            let seen = ledger.runs()?.len();
            until("some more have run", Duration::from_mins(2), async || {
                ensure!(ledger.runs()?.len() >= (seen + 700).min(9_500), "{} have run", ledger.runs()?.len());
                Ok(())
            })
            .await?;
            let mut victim = workers.remove(0);
            victim.process.kill()?;
            killed += 1;
            workers.push(site.start("worker").await?);
        }
        ensure!(killed >= 5, "only {killed} workers were killed");
        site.client(&api[1])?.all_finished(10_000, Duration::from_mins(5)).await?;
        ledger.is_exactly(&accepted)?;
        end(workers.into_iter().chain(recorders).chain(api)).await
    }
}

#[tokio::test]
async fn with_the_broker_stopped_posts_are_still_accepted_and_all_of_them_drain_after_it_is_back()
-> Result<()> {
    let _alone = ALONE.lock().await;
    let database = Database::fresh().await?;
    let mut broker = RabbitMq::start().await?;
    let vhost = broker.vhost().await?;
    let mut site = Site::distributed(NOOP, database.url(), vhost.url())?;
    let (api, workers, recorders) = start(&mut site, 2, 1).await?;
    let client = site.client(&api[0])?;
    broker.stop().await?;
    for _ in 0..50 {
        let (status, answer) = client.post("/v1/jobs", &noop_jobs(1)[0]).await?;
        ensure!(status == 201, "{status} {answer}");
    }
    post_all(&client, &noop_jobs(950)).await?;
    let ready = client.get("/readyz").await?;
    ensure!(ready["status"] == "degraded", "{ready}");
    broker.start_again().await?;
    client.all_finished(1000, Duration::from_secs(90)).await?;
    end(workers.into_iter().chain(recorders).chain(api)).await
}

#[tokio::test]
async fn a_purged_queue_is_dispatched_again_within_ten_seconds() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (database, vhost) = (Database::fresh().await?, Vhost::fresh().await?);
    let mut site = Site::distributed(NOOP, database.url(), vhost.url())?;
    let (api, _, recorders) = start(&mut site, 0, 1).await?;
    let client = site.client(&api[0])?;
    post_all(&client, &noop_jobs(2000)).await?;
    let queue = "jobgate.dispatch.noop";
    until("hints wait", Duration::from_secs(30), async || {
        ensure!(vhost.queue_depth(queue).await? > 0);
        Ok(())
    })
    .await?;
    vhost.purge(queue).await?;
    let worker = site.start("worker").await?;
    until("all dispatched again", Duration::from_secs(10), async || {
        let waiting = client.depths().await?.get("INITIALIZED").copied().unwrap_or(0);
        ensure!(waiting == 0, "{waiting} still wait");
        Ok(())
    })
    .await?;
    client.all_finished(2000, Duration::from_mins(1)).await?;
    end([worker].into_iter().chain(recorders).chain(api)).await
}

#[tokio::test]
async fn no_accepted_job_is_lost_when_the_database_is_restarted_amid_posts() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut server = Postgres::start().await?;
    let (database, vhost) = (server.database().await?, Vhost::fresh().await?);
    let mut site = Site::distributed(NOOP, database.url(), vhost.url())?;
    let (api, workers, recorders) = start(&mut site, 2, 1).await?;
    let client = site.client(&api[0])?;
    let mut accepted = 0;
    let mut refused = 0;
    for n in 0..60 {
        if n == 10 || n == 35 {
            server.restart(Shutdown::Immediate).await?;
        }
        // The same key until it is answered: whatever was committed and not told is found again.
        let ids = until("a batch is accepted", Duration::from_mins(1), async || {
            let answer = client.submit(&format!("n{n}"), &noop_jobs(20)).await;
            refused += usize::from(answer.is_err());
            answer
        })
        .await?;
        accepted += ids.len();
    }
    ensure!(accepted == 1200);
    tracing::info!(refused, "batches answered 503 while the database was away");
    client.all_finished(1200, Duration::from_secs(90)).await?;
    end(workers.into_iter().chain(recorders).chain(api)).await
}

#[tokio::test]
async fn a_database_that_is_away_shows_in_metrics_though_nobody_asks_for_anything() -> Result<()> {
    let _alone = ALONE.lock().await;
    let mut server = Postgres::start().await?;
    let (database, vhost) = (server.database().await?, Vhost::fresh().await?);
    let mut site = Site::distributed(NOOP, database.url(), vhost.url())?;
    let (api, workers, recorders) = start(&mut site, 1, 1).await?;
    let clients = [site.client(&api[0])?, site.client(&workers[0])?];
    let away = async |client: &Client, more_than: f64| {
        Scrape::parse(&client.text("/metrics").await?)?.is_above("jobgate_store_away_total", &[], more_than)
    };
    for client in &clients {
        ensure!(away(client, 0.0).await.is_err(), "it was away before");
    }
    server.stop(Shutdown::Immediate).await?;
    for client in &clients {
        // Twice: what is over for good does not page.
        until("it is told again", Duration::from_secs(30), async || away(client, 1.0).await).await?;
    }
    server.start_again().await?;
    end(workers.into_iter().chain(recorders).chain(api)).await
}

#[tokio::test]
async fn a_worker_that_cannot_open_its_spool_says_so_and_ends_in_order() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (database, vhost) = (Database::fresh().await?, Vhost::fresh().await?);
    let nowhere = "[clusters.local]\nengine = \"local\"\nspool_dir = \"/dev/null/spool\"\n";
    // The other broker never greets: the worker ends amid its dial.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let silence = format!("amqps://127.0.0.1:{}/%2f", silent.local_addr()?.port());
    for broker in [vhost.url(), &silence] {
        let site = Site::distributed(nowhere, database.url(), broker)?;
        site.run(&["migrate"])?;
        let output = site.output(&["worker"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains("/dev/null/spool"), "{}: {said}", output.status);
        ensure!(!said.contains("panicked"), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_job_has_what_it_reports_with_once_both_address_and_key_are_configured() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (database, vhost) = (Database::fresh().await?, Vhost::fresh().await?);
    let mut site = Site::distributed(LOCAL, database.url(), vhost.url())?;
    site.run(&["migrate"])?;
    site.set("JOBGATE_REPORT_KEY", "a-report-key-that-only-tests-know");
    let (api, recorder) = (site.start("api").await?, site.start("recorder").await?);
    let client = site.client(&api)?;
    let run = async |script: &str| {
        let command = json!(["/bin/sh", "-c", script, environment::jobgate()?]);
        let (_, accepted) = client.post("/v1/jobs", &json!({"spec": {"command": command}})).await?;
        let id = accepted["id"].as_str().unwrap_or_default();
        let ended = client.get(&format!("/v1/jobs/{id}?wait=30s")).await?;
        ensure!(ended["state"] == "FINISHED", "{ended}");
        anyhow::Ok(ended)
    };
    let mut worker = site.start("worker").await?;
    run(r#"test -n "$JOBGATE_JOB_ID" && test -z "$JOBGATE_URL$JOBGATE_TOKEN""#).await?;
    worker.drain(Duration::from_secs(30)).await?;
    site.set("JOBGATE_REPORT_URL", api.url.clone());
    let worker = site.start("worker").await?;
    let ended = run(r#""$0" update --progress 70 --stage counting && "$0" update --progress 60"#).await?;
    ensure!(ended["progress"] == 70 && ended["stage"] == "counting", "{ended}");
    end([worker, recorder, api]).await
}

#[tokio::test]
async fn whatever_one_api_began_the_other_one_sees_follows_and_ends() -> Result<()> {
    let _alone = ALONE.lock().await;
    let (database, vhost) = (Database::fresh().await?, Vhost::fresh().await?);
    let mut site = Site::distributed(LOCAL, database.url(), vhost.url())?;
    let (api, workers, recorders) = start(&mut site, 1, 1).await?;
    let (here, there) = (site.client(&api[0])?, site.client(&api[1])?);
    let post = async |script: &str, argument: &Path| {
        let command = json!(["/bin/sh", "-c", script, "job", argument]);
        let (status, job) = here.post("/v1/jobs", &json!({"spec": {"command": command}})).await?;
        ensure!(status == 201, "{status} {job}");
        Ok(format!("/v1/jobs/{}", job["id"].as_str().context("id")?))
    };
    // Posted here; read, followed and waited for there.
    let go = site.file("go");
    let job = post(r#"echo begun; until test -e "$1"; do sleep 0.05; done; echo done"#, &go).await?;
    let mut events = there.answer(&format!("{job}/events")).await?.error_for_status()?;
    until("its log is read there while it runs", Duration::from_secs(30), async || {
        let log = there.text(&format!("{job}/logs/stdout")).await?;
        ensure!(log == "begun\n", "{log:?}");
        Ok(())
    })
    .await?;
    let path = format!("{job}?wait=60s");
    let (waited, written) = tokio::join!(there.get(&path), async { fs::write(&go, "") });
    written?;
    let waited = waited?;
    ensure!(waited["state"] == "FINISHED", "{waited}");
    let mut told = String::new();
    while !told.contains(r#""to":"FINISHED""#) {
        let piece = events.chunk().await?.with_context(|| format!("the stream ended: {told}"))?;
        told.push_str(&String::from_utf8_lossy(&piece));
    }
    ensure!(told.contains(r#""to":"RUNNING""#), "{told}");
    let log = there.text(&format!("{job}/logs/stdout?follow=true")).await?;
    ensure!(log == "begun\ndone\n", "{log:?}");
    // Running for one, ended by the other.
    let sleeper = post(r#"echo > "$1"; exec sleep 600"#, &site.file("began")).await?;
    until("it runs", Duration::from_secs(30), async || {
        let job = here.get(&sleeper).await?;
        ensure!(job["state"] == "RUNNING", "{job}");
        Ok(())
    })
    .await?;
    let (status, asked) = there.post(&format!("{sleeper}/cancel"), &Value::Null).await?;
    ensure!(status == 200, "{status} {asked}");
    let ended = here.get(&format!("{sleeper}?wait=60s")).await?;
    ensure!(ended["state"] == "CANCELED", "{ended}");
    // A token made there and known here opens nothing here once it is revoked there.
    let wish = json!({"name": "reader", "project": "default", "roles": ["read"]});
    let (status, made) = there.post("/v1/tokens", &wish).await?;
    ensure!(status == 201, "{status} {made}");
    let reader = Client::new(&api[0].url, made["token"].as_str().context("token")?)?;
    reader.get(&job).await?;
    let id = made["id"].as_str().context("id")?;
    ensure!(there.delete(&format!("/v1/tokens/{id}")).await? == 204);
    until("it opens nothing", Duration::from_secs(10), async || {
        let status = reader.answer(&job).await?.status();
        ensure!(status == 401, "{status}");
        Ok(())
    })
    .await?;
    end(workers.into_iter().chain(recorders).chain(api)).await
}

#[tokio::test]
async fn workers_keep_to_the_limits_of_a_cluster_together() -> Result<()> {
    const CALLS: u32 = 60;
    const SUBMITS: u32 = 10;
    const IN_FLIGHT: u64 = 5;
    let _alone = ALONE.lock().await;
    let (database, vhost) = (Database::fresh().await?, Vhost::fresh().await?);
    let limits = format!("max_calls_per_second = {CALLS}\nmax_submits_per_second = {SUBMITS}\n");
    let config = format!("{NOOP}{limits}run_for = \"300ms\"\npoll_interval = \"500ms\"\n");
    let mut site = Site::distributed(&config, database.url(), vhost.url())?;
    let (api, workers, recorders) = start(&mut site, 3, 1).await?;
    let client = site.client(&api[0])?;
    let began = Instant::now();
    post_all(&client, &noop_jobs(60)).await?;
    client.all_finished(60, Duration::from_mins(2)).await?;
    let mut calls = 0.0;
    for worker in &workers {
        let scrape = Scrape::parse(&site.client(worker)?.text("/metrics").await?)?;
        calls += scrape.value("jobgate_rm_calls_total", &[("cluster", "noop")]).unwrap_or(0.0);
    }
    let took = began.elapsed().as_secs_f64();
    // Each was created and started; the first call of each worker waits for nothing.
    ensure!((120.0..=took.mul_add(CALLS.into(), 3.0)).contains(&calls), "{calls} calls in {took} s");
    ensure!(took >= 57.0 / f64::from(SUBMITS), "60 jobs were taken on in {took} s");
    // What operators set while it runs.
    let (status, limited) = client.patch("/v1/clusters/noop", &json!({"max_in_flight": IN_FLIGHT})).await?;
    ensure!(status == 200 && limited["max_in_flight"] == IN_FLIGHT, "{status} {limited}");
    client.submit("more", &noop_jobs(30)).await?;
    let mut most = 0;
    until("every job has finished", Duration::from_mins(2), async || {
        let depths = client.depths().await?;
        let of = |state: &str| depths.get(state).copied().unwrap_or(0);
        let in_flight = of("CLAIMED") + of("PENDING") + of("RUNNING");
        most = most.max(in_flight);
        ensure!(of("FINISHED") == 90, "{depths:?}");
        Ok(())
    })
    .await?;
    ensure!((1..=IN_FLIGHT).contains(&most), "{most} jobs were in flight at once");
    end(workers.into_iter().chain(recorders).chain(api)).await
}
