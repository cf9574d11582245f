//! What is measured, in the order in which it is: latency while nothing else happens, then bulk, then single requests, then
//! latency under load, and at last memory.

use super::{
    Bench,
    deployment::{Backends, Deployment},
    load::{self, Answered, Template, number, percentile},
    report::{Figure, Goal, Unit},
};
use crate::{
    client::{Client, QueueDoc, Request},
    commands,
};
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use jobgate_shared::{
    clock,
    domain::{JobId, SubmissionTag},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Jobs of one bulk request, and such requests in flight.
const BULK: (u32, usize) = (1_000, 4);
/// Connections of single requests.
const CONCURRENCIES: [usize; 3] = [1, 16, 256];
/// Rates of single requests, whatever is answered.
const RATES: [u32; 4] = [1_000, 2_500, 5_000, 10_000];
/// Connections that keep such a rate.
const OPEN_CONNECTIONS: usize = 256;
/// Requests a second that are "load" while latency is measured.
const LOAD: u32 = 1_000;
/// Between two jobs whose latency is measured; no divisor of any poll interval.
const GAP: Duration = Duration::from_millis(23);
/// How long a count may stand still before the measurement counts as stuck.
const STUCK: Duration = Duration::from_mins(1);
/// Between two looks at a count.
const LOOK: Duration = Duration::from_millis(100);

/// Measures everything.
pub(super) async fn all(
    bench: &Bench,
    deployment: &Deployment,
    figures: &mut Vec<Figure>,
) -> anyhow::Result<()> {
    let mut measuring = Measuring { bench, deployment, client: deployment.client()?, figures };
    commands::tell("latency, idle");
    measuring.latency("idle", 0).await?;
    commands::tell(format_args!("bulk enqueue and drain of {} jobs", bench.jobs));
    measuring.bulk().await?;
    commands::tell("single requests");
    measuring.single().await?;
    commands::tell(format_args!("latency at {LOAD} jobs/s"));
    measuring.latency("under load", LOAD).await?;
    if bench.watched > 0 {
        commands::tell(format_args!("memory of {} watched jobs", bench.watched));
        measuring.memory().await?;
    }
    Ok(())
}

struct Measuring<'a> {
    bench: &'a Bench,
    deployment: &'a Deployment,
    client: Client,
    figures: &'a mut Vec<Figure>,
}

fn job(cluster: &str) -> String {
    json!({"name": "bench", "cluster": cluster, "spec": {"command": ["true"]}}).to_string()
}

impl Measuring<'_> {
    fn is_embedded(&self) -> bool {
        matches!(self.deployment.backends, Backends::Embedded)
    }

    fn note(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    fn template(&self, path: &'static str, content_type: &'static str, body: impl Into<Bytes>) -> Template {
        let token = self.deployment.token.expose().to_owned();
        Template { path, content_type, body: body.into(), token }
    }

    fn one(&self, cluster: &str) -> Template {
        self.template("/v1/jobs", "application/json", job(cluster))
    }

    fn many(&self, cluster: &str) -> Template {
        let body = format!("{}\n", job(cluster)).repeat(BULK.0 as usize);
        self.template("/v1/jobs/batch", "application/x-ndjson", body)
    }

    /// How many jobs of a cluster stand in these states.
    async fn count(&self, cluster: &str, states: &[&str]) -> anyhow::Result<u64> {
        let answer = self.client.send(Request::get("/v1/queues")).await?;
        let mut jobs = 0;
        for item in commands::items(&answer) {
            let queue: QueueDoc = commands::read(item)?;
            if queue.cluster == cluster {
                let counted = queue.depths.iter().filter(|depth| states.contains(&depth.state.as_str()));
                jobs += counted.map(|depth| depth.jobs).sum::<u64>();
            }
        }
        Ok(jobs)
    }

    /// Waits until so many jobs of a cluster stand in `state`.
    async fn until(&self, cluster: &str, state: &str, jobs: u64) -> anyhow::Result<()> {
        let mut last = (0, Instant::now());
        loop {
            let now = self.count(cluster, &[state]).await?;
            if now >= jobs {
                return Ok(());
            }
            if now != last.0 {
                last = (now, Instant::now());
            }
            ensure!(last.1.elapsed() < STUCK, "{now} of {jobs} jobs are {state} and nothing moves");
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn accepted(&self, cluster: &str) -> anyhow::Result<u64> {
        let all = ["HELD", "INITIALIZED", "CLAIMED", "PENDING", "RUNNING", "FINISHED"];
        self.count(cluster, &all).await
    }

    async fn set(&self, cluster: &str, verb: &str) -> anyhow::Result<()> {
        self.client.send(Request::post(format!("/v1/clusters/{cluster}/{verb}"))).await?;
        Ok(())
    }

    /// From the answer that a job is accepted to the call that submits it, with nothing else or with load beside it.
    async fn latency(&mut self, how: &str, load: u32) -> anyhow::Result<()> {
        let (addresses, template) = (&self.deployment.addresses, self.one("timed"));
        let before = self.accepted("timed").await?;
        let requests = u32::try_from(self.bench.span().as_millis() / GAP.as_millis())?.max(100);
        let mut answers: HashMap<JobId, DateTime<Utc>> = HashMap::new();
        let clock = clock::system();
        let probing = load::one_by_one(&addresses[0], &template, requests, GAP, |body| {
            let now = clock.now();
            let document: Value = serde_json::from_slice(body)?;
            let id = document["id"].as_str().context("a job without an id")?;
            answers.insert(id.parse()?, now);
            Ok(())
        });
        let mut sent = u64::from(requests);
        let answered = if load == 0 {
            probing.await?
        } else {
            let beside = load::at_a_rate(addresses, &template, OPEN_CONNECTIONS, load, GAP * requests);
            let (answered, beside) = tokio::try_join!(probing, beside)?;
            sent += beside.times.len() as u64;
            answered
        };
        self.until("timed", "FINISHED", before + sent).await?;
        let (mut submits, mut starts) = (Vec::new(), Vec::new());
        for line in self.deployment.ledger()?.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [tag, _, created, begun] = words[..] else { continue };
            let Some(at) = answers.get(&tag.parse::<SubmissionTag>()?.job) else { continue };
            let since = |micros: &str| -> anyhow::Result<Duration> {
                let late = micros.parse::<i64>()? - at.timestamp_micros();
                // The hint overtook the answer: no wait at all.
                Ok(Duration::from_micros(u64::try_from(late).unwrap_or_default()))
            };
            submits.push(since(created)?);
            starts.push(since(begun)?);
        }
        ensure!(
            submits.len() == answers.len(),
            "{} of {} jobs are in the ledger",
            submits.len(),
            answers.len()
        );
        submits.sort_unstable();
        starts.sort_unstable();
        let goals = if load == 0 { [Some(2.0), Some(6.0)] } else { [None, None] };
        for (name, percent, goal) in [("p50", 50, goals[0]), ("p99", 99, goals[1])] {
            let figure =
                Figure::time(format!("accept → submit, {how}, {name}"), percentile(&submits, percent));
            self.note(match goal {
                Some(most) => figure.goal(Goal::AtMost(most)),
                None => figure,
            });
        }
        for (name, percent) in [("p50", 50), ("p99", 99)] {
            self.note(Figure::time(format!("accept → start, {how}, {name}"), percentile(&starts, percent)));
        }
        for (name, percent) in [("p50", 50), ("p99", 99)] {
            self.note(Figure::time(format!("POST → accept, {how}, {name}"), answered.percentile(percent)));
        }
        Ok(())
    }

    /// Many jobs a request while nothing is taken on, then all of them drained.
    async fn bulk(&mut self) -> anyhow::Result<()> {
        let (enqueue, drain) = if self.is_embedded() { (20_000.0, 5_000.0) } else { (100_000.0, 30_000.0) };
        self.set("work", "pause").await?;
        let wal = self.deployment.wal_bytes().await?;
        let requests = u64::from(self.bench.jobs / BULK.0);
        let jobs = requests * u64::from(BULK.0);
        let template = self.many("work");
        let posted =
            load::as_fast_as_answered(&self.deployment.addresses, &template, BULK.1, requests).await?;
        ensure!(self.accepted("work").await? >= jobs, "fewer jobs are counted than were accepted");
        let rate = posted.rate() * f64::from(BULK.0);
        self.note(
            Figure::new("bulk enqueue, 1 000 a request", rate, Unit::JobsPerSecond)
                .goal(Goal::AtLeast(enqueue)),
        );
        let began = Instant::now();
        self.set("work", "resume").await?;
        self.until("work", "FINISHED", jobs).await?;
        let rate = number(jobs) / began.elapsed().as_secs_f64();
        self.note(Figure::new("drain", rate, Unit::JobsPerSecond).goal(Goal::AtLeast(drain)));
        if let (Some(before), Some(after)) = (wal, self.deployment.wal_bytes().await?) {
            let bytes = number(after - before) / number(jobs);
            let figure = Figure::new("write-ahead log, whole life", bytes, Unit::BytesPerJob);
            self.note(figure.goal(Goal::AtMost(1_536.0)));
        }
        self.history_is_readable().await
    }

    /// A drained job's history tells its whole life: speed that forgets would be no speed.
    async fn history_is_readable(&self) -> anyhow::Result<()> {
        let newest =
            Request::get("/v1/jobs").query([("cluster", "work".to_owned()), ("limit", "1".to_owned())]);
        let page = self.client.send(newest).await?;
        let id = page["items"][0]["id"].as_str().context("no job is listed")?.to_owned();
        let history = self.client.send(Request::get(format!("/v1/jobs/{id}/history"))).await?;
        let states: Vec<&str> =
            commands::items(&history).iter().filter_map(|entry| entry["to"].as_str()).collect();
        let whole = states.first() == Some(&"INITIALIZED")
            && states.contains(&"CLAIMED")
            && states.last() == Some(&"FINISHED");
        ensure!(whole, "the history of {id} is {states:?}");
        Ok(())
    }

    /// One job a request, answered one after another and at given rates, while nothing is taken on.
    async fn single(&mut self) -> anyhow::Result<()> {
        let (addresses, template) = (&self.deployment.addresses, self.one("work"));
        self.set("work", "pause").await?;
        for connections in CONCURRENCIES {
            // As many as take about the time at a usual rate.
            let requests = u64::from(self.bench.seconds) * if connections == 1 { 300 } else { 3_000 };
            let posted = load::as_fast_as_answered(addresses, &template, connections, requests).await?;
            let name = |what: &str| format!("single POST, {connections} at once{what}");
            self.figures.push(Figure::new(name(""), posted.rate(), Unit::JobsPerSecond));
            self.figures.push(Figure::time(name(", p99"), posted.percentile(99)));
        }
        for rate in RATES {
            let posted =
                load::at_a_rate(addresses, &template, OPEN_CONNECTIONS, rate, self.bench.span()).await?;
            open_loop(self.figures, rate, &posted);
            if posted.rate() < f64::from(rate) * 0.9 {
                // It falls behind; a higher rate would tell the same.
                break;
            }
        }
        self.set("work", "resume").await?;
        self.until("work", "FINISHED", self.accepted("work").await?).await
    }

    /// What a worker needs for each job it watches.
    async fn memory(&mut self) -> anyhow::Result<()> {
        let role = if self.is_embedded() { "serve" } else { "worker" };
        let before = self.deployment.resident(role)?;
        let requests = u64::from(self.bench.watched.div_ceil(BULK.0));
        let jobs = requests * u64::from(BULK.0);
        let template = self.many("watched");
        load::as_fast_as_answered(&self.deployment.addresses, &template, BULK.1, requests).await?;
        self.until("watched", "RUNNING", jobs).await?;
        let grown = number(self.deployment.resident(role)?.saturating_sub(before)) / 1e6;
        let per_hundred_thousand = grown / number(jobs) * 1e5;
        let name = format!("memory of `{role}` per 100 000 watched jobs");
        self.note(Figure::new(name, per_hundred_thousand, Unit::Megabytes).goal(Goal::AtMost(60.0)));
        Ok(())
    }
}

fn open_loop(figures: &mut Vec<Figure>, rate: u32, posted: &Answered) {
    let name = |what: &str| format!("single POST, {rate}/s offered, {what}");
    let mut achieved = Figure::new(name("accepted"), posted.rate(), Unit::JobsPerSecond);
    let mut late = Figure::time(name("p99"), posted.percentile(99));
    if rate == 10_000 {
        achieved = achieved.goal(Goal::AtLeast(9_900.0));
        late = late.goal(Goal::AtMost(20.0));
    }
    figures.extend([achieved, Figure::time(name("p50"), posted.percentile(50)), late]);
}
