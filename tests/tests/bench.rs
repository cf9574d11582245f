//! `jobgate bench` measures both forms and leaves nothing behind. What it measures here, on a debug build, is of no interest.

use anyhow::{Context as _, Result, ensure};
use jobgate_tests::{
    gateway::Site,
    services::{Postgres, RabbitMq},
};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};

const SMALL: [&str; 9] =
    ["bench", "--output", "json", "--jobs", "1000", "--watched", "1000", "--seconds", "1"];

fn report(site: &Site) -> Result<Value> {
    let output = site.run(&SMALL)?;
    serde_json::from_slice(&output.stdout).context("one JSON document")
}

/// Every figure is a number above zero, and those named are among them.
fn holds(report: &Value, part: &str, names: &[&str]) -> Result<()> {
    let figures = report[part].as_array().with_context(|| format!("{report}"))?;
    for figure in figures {
        // The hint may overtake the answer to the POST, and a thousand jobs may fit into memory that was there.
        let name = figure["name"].as_str().unwrap_or_default();
        let may_be_nothing = name.starts_with("accept → ") || name.starts_with("memory");
        let least = if may_be_nothing { 0.0 } else { 1e-9 };
        ensure!(figure["value"].as_f64().is_some_and(|value| value >= least), "{figure}");
        ensure!(figure["unit"].is_string(), "{figure}");
    }
    for name in names {
        ensure!(figures.iter().any(|figure| figure["name"] == *name), "no {name} in {figures:?}");
    }
    Ok(())
}

const MEASURED: [&str; 6] = [
    "accept → submit, idle, p99",
    "bulk enqueue, 1 000 a request",
    "drain",
    "single POST, 256 at once",
    "single POST, 1000/s offered, p99",
    "accept → start, under load, p50",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_form_is_measured() -> Result<()> {
    let report = report(&Site::embedded("")?)?;
    holds(&report, "floors", &["commit of one row", "insert of 1 000 rows", "claim of 100 rows by id"])?;
    holds(&report, "figures", &MEASURED)?;
    holds(&report, "figures", &["memory of `serve` per 100 000 watched jobs"])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_distributed_form_is_measured_and_the_servers_are_left_as_they_were() -> Result<()> {
    let (mut postgres, mut rabbitmq) = tokio::try_join!(Postgres::start(), RabbitMq::start())?;
    let report = report(&Site::distributed("", &postgres.admin_url(), &rabbitmq.amqp_url())?)?;
    holds(&report, "floors", &["commit of one row", "publish and confirm, window 1000"])?;
    holds(&report, "figures", &MEASURED)?;
    holds(&report, "figures", &["write-ahead log, whole life"])?;
    let mut connection = PgConnection::connect(&postgres.admin_url()).await?;
    let databases: Vec<String> =
        sqlx::query_scalar("SELECT datname FROM pg_database WHERE NOT datistemplate")
            .fetch_all(&mut connection)
            .await?;
    ensure!(databases == ["postgres"], "{databases:?}");
    connection.close().await?;
    let names = rabbitmq.rabbitmqctl(&["--quiet", "list_queues", "name"]).await?;
    ensure!(!names.contains("jobgate"), "{names}");
    let names = rabbitmq.rabbitmqctl(&["--quiet", "list_exchanges", "name"]).await?;
    ensure!(!names.contains("jobgate"), "{names}");
    rabbitmq.stop().await?;
    postgres.stop(jobgate_tests::services::Shutdown::Fast).await
}
