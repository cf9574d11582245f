//! Status events, each told many times and all of them in any order, while recorders are killed: the rows end where the
//! events end.

use super::{Figures, Ground, at_least_one, drain, post_backlog};
use crate::wait::until;
use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jobgate_shared::{
    broker::Broker as _,
    domain::{Ending, Job, JobId, Observation, StatusEvent, Submission, WorkerId},
    store::{
        Claimed, Leases as _, Recorded, Scope, Store as _, ToRecord, Worker, WorkerCluster,
        postgres::{PostgresConfig, PostgresStore},
    },
};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use std::time::{Duration, Instant};

/// No lease ends amid this.
const LEASE: Duration = Duration::from_hours(2);
const AT_ONCE: usize = 500;
const KILLED_EVERY: Duration = Duration::from_secs(5);
const RECORDED: Duration = Duration::from_mins(15);

/// What to do.
#[derive(Debug, Args)]
pub struct Options {
    /// Jobs that events are about, five of each.
    #[arg(long, default_value_t = 20_000, value_parser = at_least_one::<usize>())]
    jobs: usize,
    /// How often each event is told.
    #[arg(long, default_value_t = 10, value_parser = at_least_one::<usize>())]
    times: usize,
    /// Decides the order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Plays it.
pub async fn run(options: &Options) -> Result<Figures> {
    let mut ground = Ground::lay("", "").await?;
    let apis = ground.start("api", 1).await?;
    let client = ground.site.client(&apis[0])?;
    let accepted = post_backlog(&client, "flood", options.jobs).await?;
    let config =
        PostgresConfig { application_name: "drill".into(), ..PostgresConfig::new(ground.database.url()) };
    let store = PostgresStore::connect(&config).await?;
    let jobs = submitted(&store, &accepted).await?;
    let at = store.now().await?;

    let mut events: Vec<StatusEvent> = jobs
        .iter()
        .enumerate()
        .flat_map(|(n, job)| std::iter::repeat_n(told(job, n, at), options.times))
        .flatten()
        .collect();
    events.shuffle(&mut StdRng::seed_from_u64(options.seed));
    let total = events.len();
    let publisher = ground.publisher()?;
    let mut messages =
        stream::iter(events.chunks(AT_ONCE).map(|events| publisher.publish_events(events.to_vec())))
            .buffer_unordered(32);
    while messages.try_next().await?.is_some() {}
    drop(messages);

    let began = Instant::now();
    let mut recorders = ground.start("recorder", 2).await?;
    let (mut killed, mut last) = (0, Instant::now());
    until("every event is settled", RECORDED, async || {
        if last.elapsed() >= KILLED_EVERY {
            recorders.remove(0).process.kill()?;
            (killed, last) = (killed + 1, Instant::now());
            recorders.push(ground.site.spawn("recorder")?);
        }
        let behind = publisher.events_behind().await.context("nobody knows how many wait")?;
        ensure!(behind == 0, "{behind} messages wait");
        Ok(())
    })
    .await?;
    // What was delivered and not settled is no longer behind: only the end of its readers brings it back.
    drain(recorders).await?;
    let behind = publisher.events_behind().await;
    ensure!(behind == Some(0), "{behind:?} messages were left unsettled");
    let took = began.elapsed();

    let mut wrong = 0;
    for (n, job) in jobs.iter().enumerate() {
        let row = store.get(&Scope::All, job.id).await?.context("the job is gone")?.life;
        let (state, code) = ends(n);
        let expected =
            (state.state(), Some(code), Some(at + TimeDelta::seconds(3)), Some(at + TimeDelta::seconds(9)));
        wrong += usize::from((row.state, row.exit_code, row.started_at, row.finished_at) != expected);
    }
    let mut figures = Figures::default();
    figures.note("events", total);
    figures.note("recorders killed", killed);
    figures.note("events a second, kills included", total / usize::try_from(took.as_secs().max(1))?);
    ensure!(killed > 0, "it was over before a recorder was killed:\n{figures}");
    ensure!(wrong == 0, "{wrong} rows ended otherwise than their events:\n{figures}");
    let deadlocks = ground.site.said("deadlock")?;
    ensure!(deadlocks == 0, "{deadlocks} deadlocks surfaced:\n{figures}");
    let ended: u64 =
        client.depths().await?.iter().filter(|(state, _)| *state != "INITIALIZED").map(|(_, n)| n).sum();
    ensure!(ended == jobs.len() as u64, "{ended} of {} jobs are counted", jobs.len());
    publisher.close().await;
    store.close().await;
    drain(apis).await?;
    Ok(figures)
}

/// In the hands of one worker that does nothing, each with a submission of its own name.
async fn submitted(store: &PostgresStore, accepted: &[String]) -> Result<Vec<Job>> {
    let ids = accepted.iter().map(|id| Ok(id.parse()?)).collect::<Result<Vec<JobId>>>()?;
    let clusters = [WorkerCluster { name: "noop".parse()?, reach: None, parked: None }];
    let now: DateTime<Utc> = store.now().await?;
    let worker = Worker {
        id: WorkerId::generate(),
        host: "drill".into(),
        clusters: clusters.to_vec(),
        registered_at: now,
        expires_at: now,
        alive: true,
        draining: false,
        jobs: 0,
    };
    store.register(&worker, LEASE).await?;
    let mut jobs = Vec::with_capacity(ids.len());
    for ids in ids.chunks(AT_ONCE) {
        let mut granted = Vec::with_capacity(ids.len());
        for claimed in store.claim(worker.id, &clusters, ids).await? {
            match claimed {
                Claimed::Granted(job) => granted.push(*job),
                Claimed::Refused(_) | Claimed::Absent => anyhow::bail!("not granted: {claimed:?}"),
            }
        }
        let records: Vec<ToRecord> = granted.iter().map(to_record).collect();
        let recorded = store.record(&records).await?;
        ensure!(recorded.iter().all(|one| *one == Recorded::Won), "not recorded: {recorded:?}");
        jobs.append(&mut granted);
    }
    Ok(jobs)
}

fn to_record(job: &Job) -> ToRecord {
    let submission = Submission { id: job.id.to_string(), detail: serde_json::Value::Null, reach: None };
    ToRecord { job: job.id, attempt: job.life.attempt, epoch: job.life.epoch, submission }
}

/// How the n-th job ends.
fn ends(n: usize) -> (Ending, i32) {
    let endings = [Ending::Finished, Ending::Failed, Ending::Canceled, Ending::TimedOut, Ending::Lost];
    (endings[n % endings.len()], i32::try_from(n % 200).unwrap_or(0))
}

/// All that is told of the n-th job, in order.
fn told(job: &Job, n: usize, at: DateTime<Utc>) -> [StatusEvent; 5] {
    let (ending, code) = ends(n);
    let began = at + TimeDelta::seconds(3);
    let waits = |reason: Option<&str>| Observation::Pending { reason: reason.map(str::to_owned) };
    let runs = Observation::Running { since: Some(began), reason: None };
    let end = Observation::Ended {
        ending,
        exit_code: Some(code),
        reason: None,
        began: Some(began),
        at: Some(at + TimeDelta::seconds(9)),
    };
    let mut seq = 0;
    [waits(Some("priority")), waits(None), runs.clone(), runs, end].map(|observation| {
        seq += 1;
        StatusEvent {
            job: job.id,
            attempt: job.life.attempt,
            epoch: job.life.epoch,
            seq,
            by: job.life.owner.unwrap_or(WorkerId::NOBODY),
            submission: Some(job.id.to_string()),
            observation,
            at: at + TimeDelta::seconds(seq.into()),
        }
    })
}
