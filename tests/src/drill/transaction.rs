//! Somebody's transaction stays open on the gateway's database: rows die and cannot be cleaned away, and claims must not
//! become slower for it.

use super::{Figures, Ground, all_finished, at_least_one, drain, post_at};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use sqlx::{Connection as _, PgConnection};
use std::time::Duration;

/// What to do.
#[derive(Debug, Args)]
pub struct Options {
    /// Jobs a second.
    #[arg(long, default_value_t = 100, value_parser = at_least_one::<u32>())]
    rate: u32,
    /// How long it stays open.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

/// How many times as slow as without it a claim may become: what grows with the dead rows would be far beyond.
const SLOWER: f64 = 5.0;
/// Rows that died and are still there, of every table.
const DEAD: &str = "-- dead_rows
    SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables";
/// From a job's being accepted to its beginning to run, over the last minute, in seconds: the middle one, and the slowest but
/// one in a hundred.
const WAITS: &str = "-- waits_of_the_last_minute
    SELECT percentile_cont(array[0.5, 0.99]) WITHIN GROUP (ORDER BY extract(epoch FROM s.started_at - j.created_at)::float8)
    FROM jobs j JOIN job_state s ON s.job_id = j.id
    WHERE s.started_at > now() - interval '1 minute'";

/// Plays it.
pub async fn run(options: &Options) -> Result<Figures> {
    let mut ground = Ground::lay("", "regulator = { kind = \"fixed\", max_in_flight = 1000 }").await?;
    let (apis, workers) = (ground.start("api", 2).await?, ground.start("worker", 2).await?);
    let recorders = ground.start("recorder", 1).await?;
    let clients = [ground.site.client(&apis[0])?, ground.site.client(&apis[1])?];
    let mut looking = PgConnection::connect(ground.database.url()).await?;
    let minute = Duration::from_mins(1);

    let mut figures = Figures::default();
    let (mut accepted, mut middle) = (Vec::new(), None);
    let mut holder = PgConnection::connect(ground.database.url()).await?;
    // Minute 0 is without it.
    for passed in 0..=options.minutes {
        if passed == 1 {
            sqlx::raw_sql("-- hold\nBEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM jobs")
                .execute(&mut holder)
                .await?;
        }
        let told = post_at(&clients, options.rate, minute).await;
        let still = sqlx::query("-- still_there\nSELECT 1").execute(&mut holder).await;
        still.context("the transaction was ended by somebody else")?;
        ensure!(told.others.is_empty(), "minute {passed}: {:?}", told.others);
        let dead: i64 = sqlx::query_scalar(DEAD).fetch_one(&mut looking).await?;
        let waits: Vec<f64> = sqlx::query_scalar(WAITS).fetch_one(&mut looking).await?;
        let [p50, p99] = waits[..] else { anyhow::bail!("two figures") };
        let line = format!(
            "post p99 {:.1?}, begun after p50 {:.1} ms, p99 {:.1} ms, dead rows {dead}",
            told.percentile(99),
            p50 * 1000.0,
            p99 * 1000.0
        );
        figures.note(&format!("minute {passed}"), &line);
        tracing::info!("minute {passed}: {line}");
        let without = *middle.get_or_insert(p50);
        ensure!(p50 <= SLOWER * without, "claims have become {:.1} times as slow:\n{figures}", p50 / without);
        accepted.extend(told.accepted);
    }
    holder.close().await?;
    all_finished(&clients[0], accepted.len(), minute).await?;
    ground.began_once(&accepted)?;
    looking.close().await?;
    drain(workers.into_iter().chain(recorders).chain(apis)).await?;
    Ok(figures)
}
