//! `serve` killed again and again while clients post: the file stays whole, what was accepted ends, and nobody is told that
//! the database is busy.

use anyhow::{Context as _, Result, ensure};
use jobgate_tests::{
    environment,
    gateway::{Client, Site},
};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;

const CONFIG: &str = "[clusters.noop]\nengine = \"noop\"\n";
/// Clients at once, and jobs of each of their batches.
const CLIENTS: usize = 8;
const JOBS: usize = 20;

/// How often it is killed; `JOBGATE_TEST_KILLS` says otherwise.
const KILLS: usize = 6;

/// Posts batch after batch until `done`, each until it is answered; tells what was accepted.
async fn post_all(client: Client, number: usize, done: Arc<AtomicBool>) -> Result<Vec<String>> {
    let jobs: Vec<Value> = (0..JOBS).map(|_| json!({"spec": {"command": ["true"]}})).collect();
    let mut accepted = Vec::new();
    for batch in 0.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        loop {
            match client.submit(&format!("{number}-{batch}"), &jobs).await {
                Ok(ids) => {
                    accepted.extend(ids);
                    break;
                }
                // It is being killed, or begins. That the file is busy is nobody's to be told.
                Err(error)
                    if error.downcast_ref::<reqwest::Error>().is_some()
                        || error.to_string().contains("the database is waited for") =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(error),
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(accepted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serve_that_is_killed_again_and_again_keeps_its_file_whole_and_every_job() -> Result<()> {
    let mut site = Site::embedded(CONFIG)?;
    let mut serve = site.start("serve").await?;
    let address = serve.url.strip_prefix("http://").context("a plain address")?.to_owned();
    let done = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(post_all(site.client(&serve)?, number, done.clone()));
    }
    for kill in 0..environment::size("JOBGATE_TEST_KILLS", KILLS)? {
        // Never at the same point of what goes on.
        tokio::time::sleep(Duration::from_millis(300 + kill as u64 * 137 % 700)).await;
        serve.process.kill()?;
        serve = site.spawn_at("serve", &address)?;
        serve.ready().await?;
    }
    done.store(true, Ordering::Relaxed);
    let mut accepted = BTreeSet::new();
    let mut answers = 0;
    while let Some(client) = clients.join_next().await {
        let ids = client??;
        answers += ids.len();
        accepted.extend(ids);
    }
    ensure!(accepted.len() == answers && answers > 0, "{answers} answers, {} jobs", accepted.len());
    let client = site.client(&serve)?;
    let posted: u64 = client.depths().await?.values().sum();
    ensure!(posted == accepted.len() as u64, "{posted} jobs, {} accepted", accepted.len());
    client.all_finished(accepted.len(), Duration::from_mins(3)).await?;
    serve.drain(Duration::from_secs(30)).await?;
    let file = site.data_dir().join("jobgate.db");
    let mut database = SqliteConnectOptions::new().filename(&file).connect().await?;
    let found: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut database).await?;
    ensure!(found == "ok", "{found}");
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs").fetch_one(&mut database).await?;
    ensure!(u64::try_from(rows)? == posted, "{rows} rows, {posted} jobs");
    Ok(database.close().await?)
}
