//! A hint is a hint: told a hundred times, late and in any order, it changes nothing.

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use jobgate_shared::{
    broker::{
        Broker as _, Route,
        rabbitmq::{RabbitMq, RabbitMqConfig},
    },
    domain::JobId,
    wire::Hint,
};
use jobgate_tests::{
    gateway::{Client, Site},
    services::{Database, Vhost},
    wait::until,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

const JOBS: usize = 200;
const TIMES: usize = 100;

/// How often each job began, as the engine wrote it down.
fn begun(ledger: &Path) -> Result<BTreeMap<String, usize>> {
    let mut begun = BTreeMap::new();
    for line in fs::read_to_string(ledger).unwrap_or_default().lines() {
        *begun.entry(line.split(' ').next().context("a tag")?.to_owned()).or_default() += 1;
    }
    Ok(begun)
}

/// Each job a hundred times, in messages that hold the same jobs never in the same order.
async fn storm(broker: &RabbitMq, route: &Route, jobs: &[JobId]) -> Result<()> {
    let messages = (0..TIMES).flat_map(|turn| {
        let mut turned = jobs.to_vec();
        turned.sort_by_key(|job| job.0.as_u64_pair().1.rotate_left(u32::try_from(turn % 64).unwrap_or(0)));
        let size = 1 + turn % 50;
        turned.chunks(size).map(|jobs| Hint { jobs: jobs.to_vec() }).collect::<Vec<_>>()
    });
    for window in messages.collect::<Vec<_>>().chunks(500) {
        try_join_all(window.iter().map(|hint| broker.publish_hint(route, hint.clone()))).await?;
    }
    Ok(())
}

async fn behind(vhost: &Vhost, client: &Client) -> Result<()> {
    until("every hint is discarded", Duration::from_mins(2), async || {
        let waiting = vhost.queue_depth("jobgate.dispatch.noop").await?;
        ensure!(waiting == 0, "{waiting} messages wait");
        Ok(())
    })
    .await?;
    client.all_finished(JOBS, Duration::from_mins(1)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hint_told_a_hundred_times_in_any_order_begins_a_job_once() -> Result<()> {
    let (database, vhost) = tokio::try_join!(Database::fresh(), Vhost::fresh())?;
    let folder = tempfile::tempdir()?;
    let ledger = folder.path().join("begun");
    let config = format!(
        "[clusters.noop]\nengine = \"noop\"\nrun_for = \"200ms\"\nledger = \"{}\"\nregulator = {{ kind = \"fixed\", max_in_flight = 50 }}\n",
        ledger.display()
    );
    let mut site = Site::distributed(&config, database.url(), vhost.url())?;
    site.run(&["migrate"])?;
    let mut api = site.start("api").await?;
    let mut recorder = site.start("recorder").await?;
    let client = site.client(&api)?;
    let jobs: Vec<Value> = (0..JOBS).map(|_| json!({"spec": {"command": ["true"]}})).collect();
    let accepted = client.submit("storm", &jobs).await?;
    let ids: Vec<JobId> = accepted.iter().map(|id| Ok(id.parse()?)).collect::<Result<_>>()?;
    let broker =
        RabbitMqConfig { url: vhost.url().parse().context("an address")?, ..RabbitMqConfig::default() };
    let broker = RabbitMq::connect_lazily(broker, "storm");
    let route = Route::Cluster("noop".parse()?);

    // Before anybody is there to take them, while two workers do, and when all is over.
    storm(&broker, &route, &ids).await?;
    let mut workers = [site.start("worker").await?, site.start("worker").await?];
    storm(&broker, &route, &ids).await?;
    behind(&vhost, &client).await?;
    storm(&broker, &route, &ids).await?;
    behind(&vhost, &client).await?;

    let begun = begun(&ledger)?;
    let twice: Vec<_> = begun.iter().filter(|(_, times)| **times != 1).collect();
    ensure!(twice.is_empty() && begun.len() == JOBS, "{} began, {twice:?} more than once", begun.len());
    let job = client.get(&format!("/v1/jobs/{}/history", accepted[0])).await?;
    ensure!(job["items"].as_array().context("items")?.len() == 5, "{job}");
    broker.close().await;
    for role in workers.iter_mut().chain([&mut api, &mut recorder]) {
        role.drain(Duration::from_secs(30)).await?;
    }
    Ok(())
}
