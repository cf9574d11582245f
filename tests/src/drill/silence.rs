//! The database stays connected and says nothing: nothing new is submitted once claims cannot be believed any more, what
//! runs goes on and ends, and every end is recorded once it speaks again.

use super::{Figures, Ground, all_finished, at_least_one, drain, post_backlog};
use crate::{
    proxy::{Damage, Link, Mode, Protocol},
    wait::until,
};
use anyhow::{Result, ensure};
use clap::Args;
use jobgate_shared::supervise::Tasks;
use std::{sync::Arc, time::Duration};

/// The default, and how long a worker may go on after its last heartbeat.
const LEASE: Duration = Duration::from_secs(10);
/// How long after its return every end must be recorded.
const RECORDED: Duration = Duration::from_mins(1);

/// What to do.
#[derive(Debug, Args)]
pub struct Options {
    /// How long it says nothing.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Jobs that run, and as many that wait behind them.
    #[arg(long, default_value_t = 2000, value_parser = at_least_one::<usize>())]
    jobs: usize,
}

/// Plays it.
pub async fn run(options: &Options) -> Result<Figures> {
    let runs = options.seconds / 2;
    let cluster = format!(
        "run_for = \"{runs}s\"\npoll_interval = \"500ms\"\nregulator = {{ kind = \"fixed\", max_in_flight = {} }}",
        options.jobs / 2
    );
    let mut ground = Ground::lay("", &cluster).await?;
    let tasks = Tasks::default();
    let (link, through) =
        Link::to(ground.database.url(), Protocol::Opaque, 1, Arc::new(Damage::default()), &tasks).await?;
    // The API looks on; everybody who acts does so through the link.
    for role in ["worker", "recorder"] {
        ground.site.set_for(role, "JOBGATE_DATABASE_URL", through.clone());
    }
    let apis = ground.start("api", 1).await?;
    let (workers, recorders) = (ground.start("worker", 2).await?, ground.start("recorder", 1).await?);
    let client = ground.site.client(&apis[0])?;
    let accepted = post_backlog(&client, "silence", 2 * options.jobs).await?;
    // Amid their submission, so that claims, creates and records are under way.
    until("half of those there is room for run", Duration::from_mins(2), async || {
        let running = client.depths().await?.get("RUNNING").copied().unwrap_or(0);
        ensure!(running >= options.jobs as u64 / 2, "{running} run");
        Ok(())
    })
    .await?;

    link.set(Mode::Stall { up: true, down: true });
    let caught = ground.begun()?.len();
    tokio::time::sleep(LEASE + Duration::from_secs(5)).await;
    let believed = ground.begun()?.len();
    tokio::time::sleep(Duration::from_secs(options.seconds).saturating_sub(LEASE)).await;
    let begun = ground.begun()?.len();
    ensure!(begun == believed, "{} were submitted while nobody could know whose they were", begun - believed);
    let stands = client.depths().await?;
    link.set(Mode::Pass);
    let back = tokio::time::Instant::now();
    until("what ended meanwhile is recorded", RECORDED, async || {
        let finished = client.depths().await?.get("FINISHED").copied().unwrap_or(0);
        ensure!(finished >= begun as u64, "{finished} of {begun} have ended");
        Ok(())
    })
    .await?;
    let recorded = back.elapsed();

    let mut figures = Figures::default();
    figures
        .note("had begun when it fell silent, and when leases had run out", format!("{caught}, {believed}"));
    figures.note("stood at the end of the silence", format!("{stands:?}"));
    figures.note("every end was recorded after its return, within", format!("{recorded:.1?}"));
    let rest = Duration::from_secs(2 * runs) + Duration::from_mins(2);
    all_finished(&client, accepted.len(), rest).await?;
    ground.began_once(&accepted)?;
    drain(workers.into_iter().chain(recorders).chain(apis)).await?;
    tasks.stop().await;
    Ok(figures)
}
