//! Many clients with the same keys, on both forms: whatever is cut off and sent again, a key is one job.

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use jobgate_tests::{
    environment,
    gateway::{Role, Site},
    services::{Database, Vhost},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::Barrier;

const CONFIG: &str = "[clusters.noop]\nengine = \"noop\"\n";
const CLIENTS: usize = 50;
/// `JOBGATE_TEST_KEYS` says otherwise.
const KEYS: usize = 40;

/// Posts under `key` until there is an answer. A first try that is not waited for leaves its outcome unknown, as a lost
/// answer does.
async fn post(
    http: &reqwest::Client,
    site: &Place,
    key: usize,
    body: &Value,
    hasty: bool,
) -> Result<(u16, Value)> {
    for attempt in 0.. {
        let request = http.post(format!("{}/v1/jobs", site.url)).bearer_auth(&site.token);
        let request = request.header("Idempotency-Key", format!("key-{key}")).json(body);
        let patience = if hasty && attempt == 0 { Duration::from_millis(2) } else { Duration::from_secs(30) };
        // Time may be up amid the answer, too.
        let answered = async {
            let answer = request.timeout(patience).send().await?;
            Ok((answer.status().as_u16(), answer.json().await?))
        };
        match answered.await {
            Ok(answer) => return Ok(answer),
            Err(error) if attempt < 5 => {
                let error: reqwest::Error = error;
                ensure!(error.is_timeout() || error.is_request(), "{error:?}");
            }
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("it returns or goes on")
}

struct Place {
    url: String,
    token: String,
}

async fn one_job_a_key(site: &Site, api: &Role) -> Result<()> {
    let keys = environment::size("JOBGATE_TEST_KEYS", KEYS)?;
    let place = Place { url: api.url.clone(), token: site.token()? };
    let barrier = Barrier::new(CLIENTS);
    let clients = (0..CLIENTS).map(|client| {
        let (place, barrier) = (&place, &barrier);
        async move {
            let http = reqwest::Client::builder().no_proxy().build()?;
            let mut told = Vec::new();
            barrier.wait().await;
            // Each begins at another key, so that some are new and some are old at any moment.
            for key in (0..keys).map(|n| (n + client / 5) % keys) {
                let body = json!({"name": format!("job {key}"), "spec": {"command": ["true"]}});
                let (status, job) = post(&http, place, key, &body, (client + key) % 3 == 0).await?;
                ensure!(matches!(status, 200 | 201), "{status} {job}");
                ensure!(job["name"] == body["name"], "{job}");
                told.push((key, job["id"].as_str().context("id")?.to_owned(), status));
                let other = json!({"name": "another", "spec": {"command": ["true"]}});
                let (status, problem) = post(&http, place, key, &other, false).await?;
                ensure!(status == 422 && problem["field"] == "Idempotency-Key", "{status} {problem}");
            }
            anyhow::Ok(told)
        }
    });
    let mut jobs = BTreeMap::new();
    let mut created = 0;
    for told in try_join_all(clients).await? {
        for (key, id, status) in told {
            created += usize::from(status == 201);
            let first = jobs.entry(key).or_insert_with(|| id.clone()).clone();
            ensure!(first == id, "key {key} is {first} and {id}");
        }
    }
    ensure!(created <= keys, "{created} answers say that {keys} jobs were created");
    let client = site.client(api)?;
    client.all_finished(keys, Duration::from_mins(2)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_clients_with_the_same_keys_make_one_job_of_each_in_the_embedded_form() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    one_job_a_key(&site, &serve).await?;
    serve.drain(Duration::from_secs(30)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_clients_with_the_same_keys_make_one_job_of_each_in_the_distributed_form() -> Result<()> {
    let (database, vhost) = tokio::try_join!(Database::fresh(), Vhost::fresh())?;
    let mut site = Site::distributed(CONFIG, database.url(), vhost.url())?;
    site.run(&["migrate"])?;
    let mut roles = Vec::new();
    for role in ["api", "recorder", "worker"] {
        roles.push(site.start(role).await?);
    }
    one_job_a_key(&site, &roles[0]).await?;
    for mut role in roles {
        role.drain(Duration::from_secs(30)).await?;
    }
    Ok(())
}
