//! The broker is away while producers go on: every job is accepted, and all of them run once it is back.

use super::{Figures, Ground, all_finished, at_least_one, drain, post_at};
use anyhow::{Result, ensure};
use clap::Args;
use std::time::Duration;
use tokio::time::Instant;

/// How long after the broker's return every job may take to have ended.
const DRAINED: Duration = Duration::from_mins(2);

/// What to do.
#[derive(Debug, Args)]
pub struct Options {
    /// Posts a second.
    #[arg(long, default_value_t = 1000, value_parser = at_least_one::<u32>())]
    rate: u32,
    /// How long they go on.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How long the broker is away in all.
    #[arg(long, default_value_t = 300)]
    away: u64,
}

/// Plays it.
pub async fn run(options: &Options) -> Result<Figures> {
    let mut ground = Ground::lay("", "regulator = { kind = \"fixed\", max_in_flight = 2000 }").await?;
    let (apis, workers) = (ground.start("api", 2).await?, ground.start("worker", 2).await?);
    let recorders = ground.start("recorder", 2).await?;
    let clients = [ground.site.client(&apis[0])?, ground.site.client(&apis[1])?];
    let away_since = Instant::now();
    ground.broker.stop().await?;
    let told = post_at(&clients, options.rate, Duration::from_secs(options.seconds)).await;
    tokio::time::sleep_until(away_since + Duration::from_secs(options.away)).await;
    ground.broker.start_again().await?;
    let drained = all_finished(&clients[0], told.accepted.len(), DRAINED).await;

    let mut figures = Figures::default();
    told.accept_figures(&mut figures);
    ensure!(told.others.is_empty(), "not every post was accepted:\n{figures}");
    figures.note("the last job ended, after the broker's return", format!("{:.1?}", drained?));
    ground.began_once(&told.accepted)?;
    drain(workers.into_iter().chain(recorders).chain(apis)).await?;
    Ok(figures)
}
