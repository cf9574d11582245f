//! A role that begins before its servers are there.

use anyhow::{Context as _, Result, ensure};
use jobgate_tests::{gateway::Site, ports, wait::until};
use rustix::process::Signal;
use std::time::Duration;

const SOON: Duration = Duration::from_mins(1);

#[tokio::test]
async fn an_api_without_its_database_lives_is_not_ready_and_sends_everybody_away_until_later() -> Result<()> {
    let database = format!("postgres://nobody@127.0.0.1:{}/none", ports::free()?);
    let broker = format!("amqp://nobody@127.0.0.1:{}/none", ports::free()?);
    let mut site = Site::distributed("", &database, &broker)?;
    let mut api = site.spawn("api")?;
    let client = site.client(&api)?;
    until("it answers", SOON, async || {
        ensure!(client.answer("/livez").await?.status() == 200);
        Ok(())
    })
    .await?;
    let ready = client.answer("/readyz").await?;
    ensure!(ready.status() == 503, "{}", ready.status());
    let ready: serde_json::Value = ready.json().await?;
    ensure!(ready["status"] == "unready" && ready["reason"] == "the database is waited for", "{ready}");
    for path in ["/v1/jobs", "/metrics", "/no/such/path"] {
        let answer = client.answer(path).await?;
        ensure!(answer.status() == 503, "{path}: {}", answer.status());
        let again = answer.headers().get("retry-after").context("Retry-After")?.to_str()?.to_owned();
        ensure!(again.parse::<u32>()? > 0, "{again}");
        let problem: serde_json::Value = answer.json().await?;
        ensure!(problem["type"] == "urn:jobgate:problem:store-away", "{problem}");
    }
    let ended = api.process.stop(Signal::TERM, SOON).await?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}
