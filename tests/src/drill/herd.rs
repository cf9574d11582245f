//! Very many workers begin at once on a long queue, and are killed and begin again, all together.

use super::{Figures, Ground, all_finished, at_least_one, drain, post_backlog};
use crate::{gateway::Client, wait::until};
use anyhow::{Result, ensure};
use clap::Args;
use std::time::{Duration, Instant};

/// Connections are what fifty workers have least of.
const STORE: &str = "[store]\nwrite_connections = 3\nread_connections = 1\n";
const ALL_ENDED: Duration = Duration::from_mins(10);

/// What to do.
#[derive(Debug, Args)]
pub struct Options {
    /// Workers.
    #[arg(long, default_value_t = 50, value_parser = at_least_one::<usize>())]
    workers: usize,
    /// Jobs that wait for them.
    #[arg(long, default_value_t = 100_000, value_parser = at_least_one::<usize>())]
    jobs: usize,
}

/// Plays it.
pub async fn run(options: &Options) -> Result<Figures> {
    let mut ground = Ground::lay(STORE, "regulator = { kind = \"fixed\", max_in_flight = 500 }").await?;
    // So many processes on few processors: two threads of each are one too many.
    ground.site.set("TOKIO_WORKER_THREADS", "1");
    let (apis, recorders) = (ground.start("api", 1).await?, ground.start("recorder", 2).await?);
    let client = ground.site.client(&apis[0])?;
    let accepted = post_backlog(&client, "herd", options.jobs).await?;

    let began = Instant::now();
    let (busy, mut look) = (ground.postgres.cpu_time()?, Look::default());
    let mut workers = ground.start("worker", options.workers).await?;
    until("a third is taken", ALL_ENDED, async || {
        let waiting = look.look(&client).await?;
        ensure!(waiting <= options.jobs as u64 * 2 / 3, "{waiting} wait");
        Ok(())
    })
    .await?;
    for worker in &mut workers {
        worker.process.kill()?;
    }
    drop(workers);
    let workers = ground.start("worker", options.workers).await?;
    until("all are taken", ALL_ENDED, async || {
        let waiting = look.look(&client).await?;
        ensure!(waiting == 0, "{waiting} wait");
        Ok(())
    })
    .await?;
    all_finished(&client, accepted.len(), ALL_ENDED).await?;
    let took = began.elapsed();
    let busy = ground.postgres.cpu_time()?.saturating_sub(busy);
    let cores = std::thread::available_parallelism()?.get();

    let mut figures = Figures::default();
    figures.note("jobs ended, all workers killed once amid them, in", format!("{took:.1?}"));
    let share = 100.0 * busy.as_secs_f64() / took.as_secs_f64() / f64::from(u32::try_from(cores)?);
    figures.note("PostgreSQL's share of the processors, percent", format!("{share:.0}"));
    let unconnected = ground.site.said("pool timed out")? + ground.site.said("no connection in time")?;
    figures.note("operations that got no connection in time", unconnected);
    ensure!(unconnected == 0, "somebody got no connection:\n{figures}");
    figures.note(
        "looks at which more waited than before: the manager kept jobs waiting, which went back",
        look.rises,
    );
    ensure!(look.falls == 0, "fewer had ended than before {} times:\n{figures}", look.falls);
    ground.began_once(&accepted)?;
    drain(workers.into_iter().chain(recorders).chain(apis)).await?;
    Ok(figures)
}

/// How many wait and how many have ended, again and again.
#[derive(Debug, Default)]
struct Look {
    waiting: Option<u64>,
    rises: usize,
    ended: u64,
    falls: usize,
}

impl Look {
    async fn look(&mut self, client: &Client) -> Result<u64> {
        let depths = client.depths().await?;
        let [waiting, ended] =
            ["INITIALIZED", "FINISHED"].map(|state| depths.get(state).copied().unwrap_or(0));
        self.falls += usize::from(ended < self.ended);
        self.ended = ended;
        self.rises += usize::from(self.waiting.is_some_and(|before| before < waiting));
        self.waiting = Some(waiting);
        Ok(waiting)
    }
}
