//! Client commands as people and scripts run them: the real binary, against a real gateway.

use anyhow::{Context as _, Result, ensure};
use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header::HOST},
    response::{IntoResponse as _, Response},
};
use jobgate_shared::supervise::Tasks;
use jobgate_tests::{
    gateway::{Client, Role, Site},
    process::Managed,
    wait::until,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fs, os::unix::process::ExitStatusExt as _, process::Command, time::Duration};
use tokio::sync::{mpsc, oneshot};

const CONFIG: &str = r#"
[clusters.local]
engine = "local"
kill_grace = "3s"
regulator = { kind = "fixed", max_in_flight = 8 }
"#;
const SOON: Duration = Duration::from_mins(1);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Submits by command line; the id it prints.
fn submit(site: &Site, arguments: &[&str]) -> Result<String> {
    Ok(text(&site.run(&[&["submit"], arguments].concat())?.stdout))
}

async fn stands(client: &Client, id: &str, state: &str) -> Result<()> {
    until(state, SOON, async || {
        let job = client.get(&format!("/v1/jobs/{id}")).await?;
        ensure!(job["state"] == state, "{job}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn jobs_are_held_released_retried_and_canceled_from_the_command_line() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    let later = submit(&site, &["--at", "1h", "--", "true"])?;
    for (command, state) in [("hold", "HELD"), ("release", "INITIALIZED"), ("cancel", "CANCELED")] {
        site.run(&[command, &later])?;
        stands(&client, &later, state).await?;
    }
    let refused = site.output(&["hold", &later])?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(text(&refused.stderr).contains(&later), "{refused:?}");
    let script = "test -e \"$0\" || exit 3";
    let mark = site.file("mark").display().to_string();
    let fails = submit(&site, &["--label", "again", "--", "sh", "-c", script, &mark])?;
    stands(&client, &fails, "FAILED").await?;
    fs::write(&mark, "")?;
    site.run(&["retry", "--label", "again"])?;
    stands(&client, &fails, "FINISHED").await?;
    ensure!(client.get(&format!("/v1/jobs/{fails}")).await?["attempt"] == 2);
    let unknown = site.output(&["cancel", "00000000-0000-7000-8000-000000000000"])?;
    ensure!(unknown.status.code() == Some(1), "{unknown:?}");
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn a_token_opens_what_its_role_allows_until_it_is_revoked() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let create = ["token", "create", "reader", "--role", "read", "--output", "json"];
    let nowhere = site.output(&create)?;
    ensure!(nowhere.status.code() == Some(5), "whose maker opens every project: {nowhere:?}");
    let made = site.run(&[&create[..], &["--opens", "default"]].concat())?;
    let made: Value = serde_json::from_slice(&made.stdout)?;
    let (id, secret) = (made["id"].as_str().context("id")?, made["token"].as_str().context("token")?);
    let reader = Client::new(&serve.url, secret)?;
    reader.get("/v1/jobs").await?;
    let (status, _) = reader.post("/v1/jobs", &json!({"spec": {"command": ["true"]}})).await?;
    ensure!(status == 403, "{status}");
    ensure!(text(&site.run(&["token", "list"])?.stdout).contains(id));
    site.run(&["token", "revoke", id])?;
    until("it opens nothing", SOON, async || {
        let status = reader.answer("/v1/jobs").await?.status();
        ensure!(status == 401, "{status}");
        Ok(())
    })
    .await?;
    ensure!(!text(&site.run(&["token", "list"])?.stdout).contains(id));
    let again = site.output(&["token", "revoke", id])?;
    ensure!(again.status.code() == Some(5), "{again:?}");
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn queues_are_watched_until_somebody_interrupts() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let mut watch = site.begin(&["queues", "--watch", "--interval", "100ms", "--output", "json"])?;
    let looks = |log: String| -> Vec<Value> {
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    until("it looked three times", SOON, async || {
        let looks = looks(watch.log_tail());
        ensure!(looks.len() >= 3, "{} looks", looks.len());
        ensure!(looks.iter().all(|look| look["items"][0]["cluster"] == "local"), "{looks:?}");
        Ok(())
    })
    .await?;
    submit(&site, &["--wait", "--", "true"])?;
    until("it sees the job", SOON, async || {
        let last = looks(watch.log_tail()).pop().context("no look")?;
        ensure!(last["items"][0]["depths"][0]["state"] == "FINISHED", "{last}");
        Ok(())
    })
    .await?;
    let ended = watch.stop(Signal::INT, SOON).await?;
    ensure!(ended.signal() == Some(Signal::INT.as_raw()) || ended.code() == Some(130), "{ended}");
    let drawn = site.output(&["queues", "--watch"])?;
    ensure!(drawn.status.code() == Some(2), "no terminal to draw on: {drawn:?}");
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn a_second_interrupt_of_a_run_leaves_at_once_and_the_next_gateway_has_its_jobs() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let began = site.file("began");
    // Deaf to a polite end, so that the run has to wait for it.
    let script = "trap '' TERM; echo > \"$1\"; for i in $(seq 600); do sleep 0.1; done";
    let job = json!({"name": "deaf", "spec": {"command": ["/bin/sh", "-c", script, "job", began]}});
    let file = site.file("jobs.jsonl");
    fs::write(&file, format!("{job}\n"))?;
    let mut run = site.begin(&["run", file.to_str().context("a path")?])?;
    until("the job runs", SOON, async || {
        ensure!(began.exists(), "{}", run.log_tail());
        Ok(())
    })
    .await?;
    run.signal(Signal::INT)?;
    until("it cancels", SOON, async || {
        ensure!(run.log_tail().contains("cancelling"), "{}", run.log_tail());
        Ok(())
    })
    .await?;
    let left = run.stop(Signal::INT, Duration::from_secs(2)).await?;
    ensure!(left.code() == Some(130), "{left}: {}", run.log_tail());
    ensure!(run.log_tail().contains("run it again to go on"), "{}", run.log_tail());
    let mut serve = site.start("serve").await?;
    let client = site.client(&serve)?;
    let jobs = client.get("/v1/jobs").await?;
    let id = jobs["items"][0]["id"].as_str().with_context(|| jobs.to_string())?.to_owned();
    // The second interrupt may have come before the cancel was recorded; either way somebody has the job.
    site.run(&["cancel", &id])?;
    stands(&client, &id, "CANCELED").await?;
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn one_interrupt_of_a_run_cancels_and_tells_what_became_of_the_jobs() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let began = site.file("began");
    let script = "echo > \"$1\"; exec sleep 60";
    let job = json!({"name": "long", "spec": {"command": ["/bin/sh", "-c", script, "job", began]}});
    let file = site.file("jobs.jsonl");
    fs::write(&file, format!("{job}\n"))?;
    let mut run = site.begin(&["run", file.to_str().context("a path")?])?;
    until("the job runs", SOON, async || {
        ensure!(began.exists(), "{}", run.log_tail());
        Ok(())
    })
    .await?;
    let ended = run.stop(Signal::INT, SOON).await?;
    ensure!(ended.code() == Some(130), "{ended}: {}", run.log_tail());
    ensure!(run.log_tail().contains("CANCELED     1"), "{}", run.log_tail());
    Ok(())
}

#[tokio::test]
async fn an_interrupt_of_a_run_that_still_submits_ends_the_submission() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let mut door = Door::before(&site, &serve).await?;
    let mut run = site.begin(&["run", &batches(&site, 3)?])?;
    let first = door.knock().await?;
    run.signal(Signal::INT)?;
    seen(&mut run, "SIGINT: nothing more is submitted").await?;
    first.answer(None)?;
    let ended = run.exited(SOON).await?;
    ensure!(ended.code() == Some(130), "{ended}: {}", run.log_tail());
    canceled(&site.client(&serve)?, 1_000).await?;
    serve.drain(Duration::from_secs(20)).await
}

#[tokio::test]
async fn an_interrupt_of_a_run_whose_submission_then_fails_cancels_what_was_submitted() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let mut door = Door::before(&site, &serve).await?;
    let mut run = site.begin(&["run", &batches(&site, 3)?])?;
    door.knock().await?.answer(None)?;
    let second = door.knock().await?;
    run.signal(Signal::INT)?;
    seen(&mut run, "SIGINT: nothing more is submitted").await?;
    second.answer(Some("the door is shut"))?;
    let ended = run.exited(SOON).await?;
    ensure!(ended.code() == Some(5), "the gateway refused: {ended}: {}", run.log_tail());
    ensure!(run.log_tail().contains("the door is shut"), "{}", run.log_tail());
    canceled(&site.client(&serve)?, 1_000).await?;
    serve.drain(Duration::from_secs(20)).await
}

/// A file of held jobs that are submitted in so many batches.
fn batches(site: &Site, batches: usize) -> Result<String> {
    let job = json!({"hold": true, "spec": {"command": ["true"]}}).to_string() + "\n";
    let file = site.file("jobs.jsonl");
    fs::write(&file, job.repeat(batches * 1_000))?;
    Ok(file.to_str().context("a path")?.to_owned())
}

async fn seen(process: &mut Managed, told: &str) -> Result<()> {
    until(told, SOON, async || {
        ensure!(process.log_tail().contains(told), "{}", process.log_tail());
        Ok(())
    })
    .await
}

/// There are so many jobs, and every one is canceled.
async fn canceled(client: &Client, jobs: u64) -> Result<()> {
    let depths = client.depths().await?;
    ensure!(depths == [("CANCELED".to_owned(), jobs)].into(), "{depths:?}");
    Ok(())
}

/// Stands before a gateway: each batch waits until it is said what becomes of it, everything else passes.
struct Door {
    knocks: mpsc::UnboundedReceiver<Knock>,
}

/// A batch at the door.
struct Knock(oneshot::Sender<Option<&'static str>>);

impl Knock {
    /// Lets it in, or refuses it for this.
    fn answer(self, refused: Option<&'static str>) -> Result<()> {
        self.0.send(refused).ok().context("it does not wait any more")
    }
}

impl Door {
    /// Whoever looks in the data directory where the gateway is finds the door.
    async fn before(site: &Site, gateway: &Role) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let lock = site.data_dir().join("lock");
        let mut holder: Value = serde_json::from_str(&fs::read_to_string(&lock)?)?;
        holder["url"] = json!(format!("http://{}", listener.local_addr()?));
        fs::write(&lock, holder.to_string())?;
        let (knock, knocks) = mpsc::unbounded_channel();
        let (client, behind) = (reqwest::Client::builder().no_proxy().build()?, gateway.url.clone());
        let pass = move |request: Request| pass(client.clone(), behind.clone(), knock.clone(), request);
        Tasks::default().spawn("door", async move {
            axum::serve(listener, Router::new().fallback(pass)).await.expect("a server");
        });
        Ok(Self { knocks })
    }

    async fn knock(&mut self) -> Result<Knock> {
        tokio::time::timeout(SOON, self.knocks.recv()).await?.context("a batch")
    }
}

async fn pass(
    client: reqwest::Client,
    behind: String,
    knock: mpsc::UnboundedSender<Knock>,
    request: Request,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
    if parts.uri.path() == "/v1/jobs/batch" {
        let (says, said) = oneshot::channel();
        knock.send(Knock(says)).expect("somebody at the door");
        if let Some(why) = said.await.expect("an answer") {
            let problem = json!({"title": "Forbidden", "status": 403, "detail": why});
            return (StatusCode::FORBIDDEN, problem.to_string()).into_response();
        }
    }
    parts.headers.remove(HOST);
    let url = format!("{behind}{}", parts.uri);
    let asked = client.request(parts.method, url).headers(parts.headers).body(body).send().await;
    let answer = asked.expect("the gateway");
    let (status, headers) = (answer.status(), answer.headers().clone());
    // An event at a time: a feed does not end.
    (status, headers, Body::from_stream(answer.bytes_stream())).into_response()
}

/// A certificate for 127.0.0.1 that stands for itself, and its key.
fn certify(site: &Site) -> Result<(String, String)> {
    let path = |name| site.file(name).display().to_string();
    let (certificate, key) = (path("certificate.pem"), path("key.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args(["-days", "2", "-subj", "/CN=jobgate", "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", &key, "-out", &certificate]);
    let made = openssl.output().context("openssl: run deploy/install-services first")?;
    ensure!(made.status.success(), "{made:?}");
    Ok((certificate, key))
}

#[tokio::test]
async fn a_gateway_speaks_tls_and_clients_trust_the_certificate_they_are_told_to() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let (certificate, key) = certify(&site)?;
    let tls = format!("[api.tls]\ncertificate = {certificate:?}\nkey = {key:?}\n");
    site.configure(&format!("{CONFIG}\n{tls}"))?;
    let mut serve = site.spawn("serve")?;
    let trusting = ["queues", "--output", "json", "--ca-certificate", &certificate];
    serve
        .process
        .ready(SOON, async || {
            let seen = site.output(&trusting)?;
            ensure!(seen.status.success(), "{seen:?}");
            Ok(())
        })
        .await?;
    let doubting = site.output(&["queues"])?;
    ensure!(doubting.status.code() == Some(4), "a stranger's certificate: {doubting:?}");
    let plain = site.output(&["queues", "--server", &serve.url])?;
    ensure!(!plain.status.success(), "plain HTTP to a TLS port: {plain:?}");
    let nothing = site.output(&["queues", "--ca-certificate", &key])?;
    ensure!(nothing.status.code() == Some(2), "no certificate in it: {nothing:?}");
    site.configure(&format!("{CONFIG}\n{tls}[client]\nca_certificate = {certificate:?}\n"))?;
    let waited = site.run(&["submit", "--wait", "--", "true"])?;
    ensure!(text(&waited.stdout).contains("FINISHED"), "{waited:?}");
    serve.drain(Duration::from_secs(20)).await
}
