//! Drills: one outage each, at the size production meets it, with figures instead of a seed. What torture mixes and keeps
//! small, these make alone and large.
//!
//! * [`outage`]: the broker is away while jobs are accepted. [`silence`]: the database neither answers nor refuses.
//! * [`herd`]: very many workers and a long queue. [`transaction`]: somebody's transaction stays open.
//! * [`flood`]: status events, told many times in any order. [`storm`]: hints of jobs that are over.
//! * [`poison`]: jobs that kill whichever worker creates them.
//!
//! Each starts servers of its own, checks what must hold, and fails if it does not; the figures are for people.

pub mod flood;
pub mod herd;
pub mod outage;
pub mod poison;
pub mod silence;
pub mod storm;
pub mod transaction;

use crate::{
    gateway::{Client, Role, Site},
    services::{Database, Postgres, RabbitMq, Vhost},
    torture::evidence::read_ledger,
    wait::until,
};
use anyhow::{Result, ensure};
use clap::builder::RangedU64ValueParser;
use futures::future::join_all;
use jobgate_shared::{broker, supervise::Tasks};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Reads a number of which a drill needs some: of nothing, whatever happens holds.
fn at_least_one<T: TryFrom<u64> + Clone + Send + Sync + 'static>() -> RangedU64ValueParser<T> {
    RangedU64ValueParser::new().range(1..)
}

/// What a drill found out, a line each.
#[derive(Debug, Default)]
pub struct Figures(String);

impl Figures {
    /// One more.
    pub fn note(&mut self, what: &str, figure: impl std::fmt::Display) {
        writeln!(self.0, "{what}: {figure}").expect("memory takes any text");
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Servers of this drill alone and a gateway on them. Jobs go to a cluster `noop`, whose engine keeps a ledger that outlives workers.
#[derive(Debug)]
struct Ground {
    site: Site,
    ledger: PathBuf,
    database: Database,
    vhost: Vhost,
    broker: RabbitMq,
    postgres: Postgres,
}

impl Ground {
    /// `cluster`: settings of the cluster; `rest`: of anything else, before it.
    async fn lay(rest: &str, cluster: &str) -> Result<Self> {
        let (postgres, broker) = tokio::try_join!(Postgres::start(), RabbitMq::start())?;
        let (database, vhost) = tokio::try_join!(postgres.database(), broker.vhost())?;
        let site = Site::distributed("", database.url(), vhost.url())?;
        let ledger = site.file("begun");
        let config = format!(
            "{rest}\n[clusters.noop]\nengine = \"noop\"\nstate = \"{}\"\n{cluster}\n",
            ledger.display()
        );
        site.configure(&config)?;
        site.run(&["migrate"])?;
        Ok(Self { site, ledger, database, vhost, broker, postgres })
    }

    /// So many of a role, all started before the first is waited for.
    async fn start(&mut self, role: &str, count: usize) -> Result<Vec<Role>> {
        let mut roles = (0..count).map(|_| self.site.spawn(role)).collect::<Result<Vec<_>>>()?;
        for role in &mut roles {
            role.ready().await?;
        }
        Ok(roles)
    }

    /// Every job the ledger names, once each.
    fn begun(&self) -> Result<BTreeSet<String>> {
        let mut begun = BTreeSet::new();
        for start in read_ledger("noop", &self.ledger)? {
            ensure!(begun.insert(start.tag.clone()), "{} began twice", start.tag);
        }
        Ok(begun)
    }

    /// Exactly these jobs began, each in its first attempt and once.
    fn began_once(&self, accepted: &[String]) -> Result<()> {
        let expected: BTreeSet<String> = accepted.iter().map(|job| format!("jobgate-{job}-1")).collect();
        ensure!(expected.len() == accepted.len(), "an id was told twice");
        let begun = self.begun()?;
        let (missing, more) = (expected.difference(&begun).count(), begun.difference(&expected).count());
        ensure!(missing == 0 && more == 0, "{missing} accepted jobs never began, {more} began that were not");
        Ok(())
    }

    /// A client of the broker beside the gateway's own.
    fn publisher(&self) -> Result<broker::rabbitmq::RabbitMq> {
        let config = broker::rabbitmq::RabbitMqConfig {
            url: self.vhost.url().parse().map_err(anyhow::Error::msg)?,
            ..broker::rabbitmq::RabbitMqConfig::default()
        };
        Ok(broker::rabbitmq::RabbitMq::connect_lazily(config, "drill"))
    }
}

async fn drain(roles: impl IntoIterator<Item = Role>) -> Result<()> {
    for ended in
        join_all(roles.into_iter().map(async |mut role| role.drain(Duration::from_mins(1)).await)).await
    {
        ended?;
    }
    Ok(())
}

fn jobs(count: usize) -> Vec<Value> {
    vec![json!({"spec": {"command": ["true"]}}); count]
}

/// Accepts a backlog, a thousand jobs a request.
async fn post_backlog(client: &Client, key: &str, count: usize) -> Result<Vec<String>> {
    let mut accepted = Vec::with_capacity(count);
    for (n, chunk) in jobs(count).chunks(1000).enumerate() {
        accepted.extend(client.submit(&format!("{key}-{n}"), chunk).await?);
    }
    Ok(accepted)
}

/// What producers were told.
#[derive(Debug, Default)]
struct Told {
    accepted: Vec<String>,
    /// Every other answer, and how often.
    others: BTreeMap<String, usize>,
    /// From the moment a post was due to its answer, sorted at the end.
    times: Vec<Duration>,
}

impl Told {
    fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.times.len() * percent).div_ceil(100);
        self.times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    fn accept_figures(&self, figures: &mut Figures) {
        let [p50, p99, most] = [50, 99, 100].map(|percent| self.percentile(percent));
        figures.note("posts accepted", self.accepted.len());
        figures.note("other answers", format!("{:?}", self.others));
        figures.note("post p50, p99, longest", format!("{p50:.1?}, {p99:.1?}, {most:.1?}"));
    }
}

/// Posts jobs one by one, `rate` a second for as long as `lasts`, to each client in turn, whether earlier ones are answered
/// or not.
async fn post_at(clients: &[Client], rate: u32, lasts: Duration) -> Told {
    let (tasks, told) = (Tasks::default(), Arc::new(Mutex::new(Told::default())));
    let job = Arc::new(jobs(1).remove(0));
    let began = Instant::now();
    let every = Duration::from_secs(1) / rate;
    for (n, client) in (0..).zip(clients.iter().cycle()) {
        let due = every * n;
        if due >= lasts {
            break;
        }
        tokio::time::sleep_until((began + due).into()).await;
        let (client, told, job) = (client.clone(), told.clone(), job.clone());
        tasks.spawn("post", async move {
            let answer = client.post("/v1/jobs", &job).await;
            let time = (began + due).elapsed();
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            told.times.push(time);
            match answer {
                Ok((201, accepted)) => {
                    told.accepted.push(accepted["id"].as_str().unwrap_or_default().to_owned());
                }
                Ok((status, _)) => *told.others.entry(status.to_string()).or_default() += 1,
                Err(error) => *told.others.entry(format!("{:#}", error.root_cause())).or_default() += 1,
            }
        });
    }
    tasks.wait().await;
    let mut told = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
    told.times.sort_unstable();
    told
}

/// Waits until every job has ended well; how long it took.
async fn all_finished(client: &Client, jobs: usize, within: Duration) -> Result<Duration> {
    let began = Instant::now();
    let expected = BTreeMap::from([("FINISHED".to_owned(), jobs as u64)]);
    until("every job FINISHED", within, async || {
        let depths = client.depths().await?;
        ensure!(depths == expected, "{depths:?}");
        Ok(())
    })
    .await?;
    Ok(began.elapsed())
}
