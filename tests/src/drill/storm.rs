//! Hints of jobs that are over, as a broker that redelivers for ever would tell them: how fast a worker sees that there is
//! nothing to do.

use super::{Figures, Ground, all_finished, at_least_one, drain, post_backlog};
use crate::wait::until;
use anyhow::{Result, ensure};
use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jobgate_shared::{
    broker::{Broker as _, Route},
    domain::JobId,
    wire::Hint,
};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use std::time::{Duration, Instant};

const QUEUE: &str = "jobgate.dispatch.noop";
/// As many as the dispatcher puts into one.
const JOBS_A_HINT: usize = 100;
const WITHIN: Duration = Duration::from_mins(5);

/// What to do.
#[derive(Debug, Args)]
pub struct Options {
    /// Jobs.
    #[arg(long, default_value_t = 2000, value_parser = at_least_one::<usize>())]
    jobs: usize,
    /// How often each is hinted once it is over.
    #[arg(long, default_value_t = 100, value_parser = at_least_one::<usize>())]
    times: usize,
    /// Decides the order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Plays it.
pub async fn run(options: &Options) -> Result<Figures> {
    let mut ground = Ground::lay("", "").await?;
    let (apis, recorders) = (ground.start("api", 1).await?, ground.start("recorder", 1).await?);
    let client = ground.site.client(&apis[0])?;
    let accepted = post_backlog(&client, "storm", options.jobs).await?;
    let worker = ground.start("worker", 1).await?;
    all_finished(&client, options.jobs, WITHIN).await?;
    drain(worker).await?;

    let mut ids = accepted.iter().map(|id| Ok(id.parse()?)).collect::<Result<Vec<JobId>>>()?;
    let (publisher, route) = (ground.publisher()?, Route::Cluster("noop".parse()?));
    let mut chance = StdRng::seed_from_u64(options.seed);
    for _ in 0..options.times {
        ids.shuffle(&mut chance);
        let hints =
            ids.chunks(JOBS_A_HINT).map(|jobs| publisher.publish_hint(&route, Hint { jobs: jobs.to_vec() }));
        let mut hints = stream::iter(hints).buffer_unordered(32);
        while hints.try_next().await?.is_some() {}
    }
    let hinted = options.jobs * options.times;
    let worker = ground.start("worker", 1).await?;
    let began = Instant::now();
    until("every hint is discarded", WITHIN, async || {
        let waiting = ground.vhost.queue_depth(QUEUE).await?;
        ensure!(waiting == 0, "{waiting} messages wait");
        Ok(())
    })
    .await?;
    let took = began.elapsed();
    // What was delivered and not settled does not wait: only the end of its reader shows it.
    drain(worker).await?;
    let left = ground.vhost.queue_depth(QUEUE).await?;
    ensure!(left == 0, "{left} messages were not settled");
    let mut figures = Figures::default();
    figures.note("jobs hinted that were over", hinted);
    figures.note("seen through by one worker in", format!("{took:.2?}"));
    ground.began_once(&accepted)?;
    publisher.close().await;
    drain(recorders.into_iter().chain(apis)).await?;
    Ok(figures)
}
