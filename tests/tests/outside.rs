//! A cluster that is served from outside, end to end: a service that forgets everything whenever it dies, over a manager
//! that remembers what it was given.

use anyhow::{Context as _, Result, ensure};
use jobgate_tests::{
    gateway::{Client, Role, Site},
    services::{Database, Vhost},
    wait::until,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A worker of the same deployment has nothing to do with `far`.
const CONFIG: &str = r#"
default_cluster = "far"

[worker]
lease = "4s"
heartbeat = "1s"

[reports]
url = "https://jobs.example.org"
key = "0123456789abcdef0123456789abcdef"

[clusters.far]
engine = "external"

[clusters.near]
engine = "noop"
"#;
const CLAIMS: &str = "/v1/clusters/far/claims";
const JOBS: usize = 60;

/// What the service runs jobs on: it creates what does not run yet, and starts it. Outlives every service.
#[derive(Debug, Default)]
struct Manager {
    /// Whose each submission is, and whether it was started.
    submissions: BTreeMap<String, (String, bool)>,
    /// How often each attempt ran.
    runs: BTreeMap<String, usize>,
}

impl Manager {
    fn create(&mut self, tag: &str) -> String {
        let id = format!("run-{}", self.submissions.len());
        self.submissions.insert(id.clone(), (tag.to_owned(), false));
        id
    }

    fn start(&mut self, id: &str) -> Result<()> {
        let (tag, started) =
            self.submissions.get_mut(id).with_context(|| format!("{id} was never created"))?;
        if !std::mem::replace(started, true) {
            *self.runs.entry(tag.clone()).or_default() += 1;
        }
        Ok(())
    }
}

/// One life of the service. It dies when it has no steps left, between any two calls.
struct Service<'a> {
    client: &'a Client,
    manager: &'a mut Manager,
    steps: usize,
}

/// It has died, here and now.
struct Dead;

impl Service<'_> {
    fn step(&mut self) -> Result<(), Dead> {
        self.steps = self.steps.checked_sub(1).ok_or(Dead)?;
        Ok(())
    }

    /// Claims and works until it dies; `Ok` once nothing has been left for a while.
    async fn live(&mut self) -> Result<Result<(), Dead>> {
        let mut claimant = Value::Null;
        let mut idle = 0;
        while idle < 3 {
            if self.step().is_err() {
                return Ok(Err(Dead));
            }
            let ask = json!({"claimant": claimant, "max": 7, "wait": "2s", "lease": "5s", "host": "service"});
            let (status, claimed) = self.client.post(CLAIMS, &ask).await?;
            ensure!(status == 200, "{status} {claimed}");
            claimant = claimed["claimant"].clone();
            let jobs = claimed["jobs"].as_array().context("jobs")?;
            idle = if jobs.is_empty() { idle + 1 } else { 0 };
            // One of them: each call is time the lease runs.
            if let Some(job) = jobs.first() {
                self.says(job).await?;
            }
            for job in jobs {
                if self.work(&claimant, job).await?.is_err() {
                    return Ok(Err(Dead));
                }
            }
        }
        Ok(Ok(()))
    }

    /// Goes on with a job from wherever it stands.
    async fn work(&mut self, claimant: &Value, job: &Value) -> Result<Result<(), Dead>> {
        let report = |state: &str, id: &str| {
            json!({"claimant": claimant, "attempt": job["attempt"], "epoch": job["epoch"], "state": state,
                "submission_id": id})
        };
        let id = if let Some(recorded) = job["submission_id"].as_str() {
            recorded.to_owned()
        } else {
            let id = self.manager.create(job["tag"].as_str().context("tag")?);
            if self.step().is_err() {
                return Ok(Err(Dead));
            }
            self.tell(job, &report("PENDING", &id)).await?;
            id
        };
        if self.step().is_err() {
            return Ok(Err(Dead));
        }
        self.manager.start(&id)?;
        for state in ["RUNNING", "FINISHED"] {
            if self.step().is_err() {
                return Ok(Err(Dead));
            }
            self.tell(job, &report(state, &id)).await?;
        }
        Ok(Ok(()))
    }

    /// The job itself, with what the claim gave it to report with.
    async fn says(&self, job: &Value) -> Result<()> {
        let own = self.client.with_token(job["report"]["token"].as_str().context("report")?);
        let path = format!("/v1/jobs/{}/reports", job["id"].as_str().context("id")?);
        let (status, told) = own.post(&path, &json!({"progress": 50})).await?;
        ensure!(status == 200 && told["progress"] == 50, "{status} {told}");
        Ok(())
    }

    /// Twice: the first answer may have been lost.
    async fn tell(&self, job: &Value, report: &Value) -> Result<()> {
        let path = format!("{CLAIMS}/{}", job["id"].as_str().context("id")?);
        for again in [false, true] {
            let (status, told) = self.client.patch(&path, report).await?;
            ensure!(status == 200, "{status} {told} to {report}");
            let outcome = told["outcome"].as_str().context("outcome")?;
            ensure!(if again { outcome != "advanced" } else { outcome != "stale" }, "{told}");
        }
        Ok(())
    }
}

/// A client that may claim, and nothing else.
async fn runner(site: &Site, api: &Role) -> Result<Client> {
    let wish = json!({"name": "runner", "cluster": "far", "roles": ["work"]});
    let (status, made) = site.client(api)?.post("/v1/tokens", &wish).await?;
    ensure!(status == 201, "{status} {made}");
    Client::new(&api.url, made["token"].as_str().context("token")?)
}

async fn unsettled(client: &Client) -> Result<BTreeSet<String>> {
    let page = client.get(CLAIMS).await?;
    let items = page["items"].as_array().context("items")?.iter();
    items.map(|job| Ok(job["id"].as_str().context("id")?.to_owned())).collect()
}

/// Runs every job over services that die again and again; `between` two lives the caller does what it likes.
async fn work_off(
    admin: &Client,
    runner: &Client,
    mut between: impl AsyncFnMut(usize) -> Result<()>,
) -> Result<()> {
    let mut manager = Manager::default();
    let jobs: Vec<Value> = (0..JOBS).map(|n| json!({"spec": {"command": ["run", n.to_string()]}})).collect();
    let accepted = admin.submit("all", &jobs).await?;
    let mut lives = 0;
    loop {
        // Another number each time, so that it dies in every place; the last ones live long enough.
        let steps = 5 + lives * 23 % 37 + lives * lives * 3;
        let mut service = Service { client: runner, manager: &mut manager, steps };
        let end = service.live().await?;
        lives += 1;
        let depths = admin.depths().await?;
        let held: u64 = ["CLAIMED", "PENDING", "RUNNING"].iter().filter_map(|state| depths.get(*state)).sum();
        let known = unsettled(runner).await?;
        ensure!(known.len() as u64 == held, "{known:?} of {depths:?}");
        if end.is_ok() && held == 0 && depths.get("FINISHED") == Some(&(JOBS as u64)) {
            break;
        }
        ensure!(lives < 30, "{lives} lives were not enough: {depths:?}");
        between(lives).await?;
    }
    ensure!(lives > 3, "it died only {lives} times");
    admin.all_finished(JOBS, Duration::from_mins(1)).await?;
    let ran: BTreeMap<String, usize> = accepted.iter().map(|id| (format!("jobgate-{id}-1"), 1)).collect();
    ensure!(manager.runs == ran, "every job runs once: {:?}", manager.runs);
    Ok(())
}

#[tokio::test]
async fn a_service_that_dies_amid_its_work_finds_all_of_it_again_and_runs_each_job_once() -> Result<()> {
    let (database, vhost) = (Database::fresh().await?, Vhost::fresh().await?);
    let mut site = Site::distributed(CONFIG, database.url(), vhost.url())?;
    site.run(&["migrate"])?;
    let api = site.start("api").await?;
    let other = site.start("api").await?;
    let worker = site.start("worker").await?;
    let recorder = site.start("recorder").await?;
    let admin = site.client(&other)?;
    let runner = runner(&site, &api).await?;
    work_off(&admin, &runner, async |_| Ok(())).await?;
    let queues = admin.get("/v1/queues").await?;
    let far = queues["items"].as_array().context("items")?.iter().find(|queue| queue["cluster"] == "far");
    ensure!(far.is_some_and(|queue| queue["hints_outstanding"] == 0), "{queues}");
    ensure!(vhost.queue_depth("jobgate.dispatch.far").await.unwrap_or(0) == 0, "somebody was hinted");
    // The deployment's own worker does its own work beside it.
    let (status, job) =
        admin.post("/v1/jobs", &json!({"cluster": "near", "spec": {"command": ["x"]}})).await?;
    ensure!(status == 201, "{status} {job}");
    until("the worker's job is finished", Duration::from_secs(30), async || {
        let job = admin.get(&format!("/v1/jobs/{}", job["id"].as_str().context("id")?)).await?;
        ensure!(job["state"] == "FINISHED", "{job}");
        Ok(())
    })
    .await?;
    for mut role in [worker, recorder, api, other] {
        role.drain(Duration::from_secs(30)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_same_over_an_embedded_gateway_that_is_killed_in_between() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let (admin, runner) = (site.client(&serve)?, runner(&site, &serve).await?);
    let address = serve.url.trim_start_matches("http://").to_owned();
    work_off(&admin, &runner, async |lives| {
        if lives % 2 == 0 {
            serve.process.kill()?;
            serve = site.spawn_at("serve", &address)?;
            serve.ready().await?;
        }
        Ok(())
    })
    .await?;
    serve.drain(Duration::from_secs(20)).await
}
