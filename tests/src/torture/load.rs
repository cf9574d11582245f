//! Producers: they post jobs at a rate, repeat what was not answered until it is, remember what they were told, and ask for
//! the end of some jobs at a moment of chance. What they post follows from the seed.

use super::{
    evidence::{Accepted, Wish, begun},
    fleet::ADMIN,
};
use anyhow::{Context as _, Result, bail};
use jobgate_shared::{
    clock::{Clock as _, SystemClock},
    domain::{JobId, JobState},
    supervise::Tasks,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a producer waits for an answer before it asks somebody else.
const PATIENCE: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(250);
/// Between accepting a job and asking for its end, at most.
const CANCEL_WITHIN: Duration = Duration::from_millis(1200);
/// The usual share of jobs that are canceled, in percent.
pub const CANCELED_PERCENT: u32 = 15;

/// Says that it began, takes a while, fails as often as it is to.
const SCRIPT: &str = r#"echo "jobgate-$JOBGATE_JOB_ID-$JOBGATE_ATTEMPT $$ $EPOCHREALTIME" >> "$1"
[ "$2" = 0 ] || sleep "$2"
[ "$JOBGATE_ATTEMPT" -gt "$3" ] || exit 7"#;

/// Where jobs are sent, and how they make themselves known there.
#[derive(Debug, Clone)]
pub struct Target {
    /// The cluster's name.
    pub cluster: String,
    /// Its ledger.
    pub ledger: PathBuf,
    /// Jobs are processes of this host; otherwise the manager itself writes the ledger and throws the dice.
    pub local: bool,
    /// Its share of the jobs, among those of the others.
    pub weight: u32,
}

/// One request: a job, or several at once.
#[derive(Debug, Clone)]
struct Order {
    key: String,
    path: &'static str,
    body: String,
    jobs: Vec<Plan>,
}

#[derive(Debug, Clone)]
struct Plan {
    cluster: String,
    wish: Wish,
    cancel_after: Option<Duration>,
}

/// What producers were told.
#[derive(Debug, Default)]
pub struct Book {
    /// Jobs they were told to be stored.
    pub accepted: Vec<Accepted>,
    /// Jobs whose end they asked for.
    pub asked: BTreeSet<JobId>,
    /// Jobs that were CANCELED by an answer, and how long the ledger was then.
    pub canceled: Vec<(JobId, u64)>,
    /// Answers nobody may give.
    pub defects: Vec<String>,
    /// How long accepted requests took, in milliseconds.
    pub latencies: Vec<u64>,
    orders: Vec<(Order, Vec<JobId>)>,
}

/// Answers other than an acceptance.
#[derive(Debug, Default)]
pub struct Troubles {
    /// 503: wait and come again.
    pub refused: AtomicU64,
    /// No answer at all, or none in time.
    pub silent: AtomicU64,
}

/// The producers.
#[derive(Debug)]
pub struct Load {
    apis: Vec<String>,
    targets: Vec<Target>,
    seed: u64,
    http: reqwest::Client,
    /// Jobs a second.
    rate: f64,
    /// Of a hundred jobs, how many are canceled.
    pub canceled_percent: AtomicU32,
    /// What did not go well.
    pub troubles: Troubles,
    open: AtomicU64,
    book: Mutex<Book>,
    /// How far each ledger is read, and how many beginnings were in there.
    read: Mutex<BTreeMap<String, (u64, u64)>>,
    tasks: Tasks,
}

impl Load {
    /// Producers that have posted nothing yet.
    pub fn new(apis: Vec<String>, targets: Vec<Target>, seed: u64, rate: f64, tasks: Tasks) -> Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        Ok(Self {
            apis,
            targets,
            seed,
            http,
            rate,
            canceled_percent: AtomicU32::new(CANCELED_PERCENT),
            troubles: Troubles::default(),
            open: AtomicU64::new(0),
            book: Mutex::default(),
            read: Mutex::default(),
            tasks,
        })
    }

    /// What was told so far.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        // A producer that panicked left whole entries.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where jobs are sent.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Requests and cancels that are not answered yet.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::SeqCst)
    }

    /// How long each cluster's ledger is now.
    pub fn ledger_lengths(&self) -> BTreeMap<String, u64> {
        self.targets.iter().map(|target| (target.cluster.clone(), length(target))).collect()
    }

    /// How many attempts began, as far as ledgers tell.
    pub fn started(&self) -> u64 {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        for target in &self.targets {
            let (offset, lines) = read.entry(target.cluster.clone()).or_default();
            let Ok(mut file) = File::open(&target.ledger) else { continue };
            let mut new = String::new();
            if file.seek(SeekFrom::Start(*offset)).and_then(|_| file.read_to_string(&mut new)).is_err() {
                continue;
            }
            let whole = new.rfind('\n').map_or(0, |end| end + 1);
            *offset += whole as u64;
            *lines += new[..whole].lines().filter(|line| begun(line).is_some()).count() as u64;
        }
        read.values().map(|(_, lines)| lines).sum()
    }

    /// Posts until it is dropped; what is under way goes on.
    pub async fn produce(self: &Arc<Self>) {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut due = tokio::time::Instant::now();
        for n in 0_u64.. {
            let order = self.draw(&mut rng, n);
            let jobs = u32::try_from(order.jobs.len()).unwrap_or(u32::MAX);
            due += Duration::from_secs_f64(f64::from(jobs) / self.rate);
            tokio::time::sleep_until(due).await;
            self.open.fetch_add(1, Ordering::SeqCst);
            let producer = self.clone();
            self.tasks.spawn("producer", async move {
                let stop = producer.tasks.shutdown().clone();
                stop.run_until_cancelled(producer.place(n, order)).await;
                producer.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    fn draw(&self, rng: &mut StdRng, n: u64) -> Order {
        let count = if rng.random_bool(0.75) { 1 } else { rng.random_range(2..=8) };
        let (jobs, bodies): (Vec<Plan>, Vec<Value>) = (0..count).map(|_| self.plan(rng)).unzip();
        let (path, body) = match bodies.as_slice() {
            [body] => ("/v1/jobs", body.to_string()),
            bodies => ("/v1/jobs/batch", json!(bodies).to_string()),
        };
        Order { key: format!("torture-{}-{n}", self.seed), path, body, jobs }
    }

    fn plan(&self, rng: &mut StdRng) -> (Plan, Value) {
        let mut ticket = rng.random_range(0..self.targets.iter().map(|target| target.weight).sum());
        let found = self.targets.iter().find(|target| {
            let hit = ticket < target.weight;
            ticket = ticket.saturating_sub(target.weight);
            hit
        });
        let target = found.unwrap_or(&self.targets[0]);
        let cancel = rng.random_range(0..100) < self.canceled_percent.load(Ordering::Relaxed);
        let cancel_after = rng.random_range(Duration::ZERO..CANCEL_WITHIN);
        let priority = rng.random_range(-1..=1);
        let (dice, millis) = (rng.random_range(0..100), rng.random_range(100..1500_u32));
        let wish = match dice {
            _ if !target.local => Wish::Any,
            0..80 => Wish::Succeed,
            80..90 => Wish::FailOnce,
            90..95 => Wish::FailAlways,
            95..98 => Wish::Overrun,
            _ => Wish::Forever,
        };
        let seconds = match wish {
            Wish::Overrun => "60".to_owned(),
            Wish::Forever => "86400".to_owned(),
            Wish::Succeed if dice < 40 => "0".to_owned(),
            Wish::Succeed | Wish::FailOnce | Wish::FailAlways | Wish::Any => {
                format!("{}.{:03}", millis / 1000, millis % 1000)
            }
        };
        let failing = match wish {
            Wish::FailOnce => "1",
            Wish::FailAlways => "9",
            Wish::Succeed | Wish::Overrun | Wish::Forever | Wish::Any => "0",
        };
        let mut spec = if target.local {
            json!({"command": ["/bin/bash", "-c", SCRIPT, "job", target.ledger, seconds, failing]})
        } else {
            json!({"command": ["true"]})
        };
        if wish == Wish::Overrun {
            spec["time_limit_seconds"] = json!(1);
        }
        let body = json!({
            "cluster": target.cluster,
            "spec": spec,
            "priority": priority,
            "max_attempts": if wish == Wish::Overrun { 1 } else { 2 },
            "retry": {"backoff_seconds": 1, "max_backoff_seconds": 1},
        });
        let cancel_after = (cancel || wish == Wish::Forever).then_some(cancel_after);
        let plan = Plan { cluster: target.cluster.clone(), wish, cancel_after };
        (plan, body)
    }

    /// Posts an order until it is taken.
    async fn place(self: &Arc<Self>, n: u64, order: Order) {
        for api in (n..).map(|n| self.api(n)) {
            let asked = Instant::now();
            match self.post(api, &order).await {
                Ok(Some(ids)) => {
                    let took = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
                    self.enter(order, ids, took);
                    return;
                }
                Ok(None) => tokio::time::sleep(PAUSE).await,
                Err(defect) => {
                    self.book().defects.push(format!("{defect:#}"));
                    return;
                }
            }
        }
    }

    fn api(&self, n: u64) -> &str {
        let count = self.apis.len() as u64;
        &self.apis[usize::try_from(n % count).unwrap_or(0)]
    }

    /// The ids of an order that was taken, in order; nothing when it has to be asked again.
    async fn post(&self, api: &str, order: &Order) -> Result<Option<Vec<JobId>>> {
        let request = self.http.post(format!("{api}{}", order.path));
        let request = request.header("Idempotency-Key", &order.key).body(order.body.clone());
        let Some((status, body)) = self.ask(request.header("Content-Type", "application/json")).await else {
            return Ok(None);
        };
        let wrong = || format!("POST {} under {}: {status} {body}", order.path, order.key);
        match status {
            StatusCode::OK | StatusCode::CREATED => {}
            StatusCode::SERVICE_UNAVAILABLE => return Ok(None),
            _ => bail!(wrong()),
        }
        let id = |job: &Value| job["id"].as_str().and_then(|id| id.parse().ok());
        let Some(items) = body["items"].as_array() else {
            return Ok(Some(vec![id(&body).with_context(wrong)?]));
        };
        let mut ids = Vec::new();
        for item in items {
            if item["error"]["status"] == 503 {
                self.troubles.refused.fetch_add(1, Ordering::Relaxed);
                return Ok(None);
            }
            ids.push(id(&item["job"]).with_context(wrong)?);
        }
        if ids.len() == order.jobs.len() { Ok(Some(ids)) } else { bail!(wrong()) }
    }

    /// Status and document; nothing when no answer came.
    async fn ask(&self, request: RequestBuilder) -> Option<(StatusCode, Value)> {
        let answer = async {
            let answer = request.bearer_auth(ADMIN).send().await?;
            let status = answer.status();
            Ok::<_, reqwest::Error>((status, answer.json().await?))
        };
        let answered = answer.await.ok();
        let trouble = match &answered {
            None => &self.troubles.silent,
            Some((StatusCode::SERVICE_UNAVAILABLE, _)) => &self.troubles.refused,
            Some(_) => return answered,
        };
        trouble.fetch_add(1, Ordering::Relaxed);
        answered
    }

    fn enter(self: &Arc<Self>, order: Order, ids: Vec<JobId>, took: u64) {
        let mut book = self.book();
        book.latencies.push(took);
        for (n, (plan, job)) in order.jobs.iter().zip(&ids).enumerate() {
            let at = SystemClock.now();
            let (cluster, wish) = (plan.cluster.clone(), plan.wish);
            book.accepted.push(Accepted { job: *job, key: format!("{}#{n}", order.key), cluster, wish, at });
            if let Some(after) = plan.cancel_after {
                book.asked.insert(*job);
                self.open.fetch_add(1, Ordering::SeqCst);
                let (producer, job, cluster) = (self.clone(), *job, plan.cluster.clone());
                self.tasks.spawn("cancel", async move {
                    let stop = producer.tasks.shutdown().clone();
                    let cancel = async {
                        tokio::time::sleep(after).await;
                        producer.cancel(job, &cluster).await;
                    };
                    stop.run_until_cancelled(cancel).await;
                    producer.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }
        book.orders.push((order, ids));
    }

    /// Asks for the end of a job until that is answered.
    async fn cancel(&self, job: JobId, cluster: &str) {
        for api in (job.0.as_u64_pair().1..).map(|n| self.api(n)) {
            match self.ask(self.http.post(format!("{api}/v1/jobs/{job}/cancel"))).await {
                Some((StatusCode::OK, body)) => {
                    if body["state"] == JobState::Canceled.as_str() {
                        let length = self.ledger_lengths().get(cluster).copied().unwrap_or(u64::MAX);
                        self.book().canceled.push((job, length));
                    }
                    return;
                }
                Some((StatusCode::CONFLICT, _)) => return,
                None | Some((StatusCode::SERVICE_UNAVAILABLE, _)) => tokio::time::sleep(PAUSE).await,
                Some((status, body)) => {
                    self.book().defects.push(format!("cancel of {job}: {status} {body}"));
                    return;
                }
            }
        }
    }

    /// Posts up to `most` accepted orders once more, each to every API; each must be answered with the same jobs.
    pub async fn replay(&self, most: usize) -> Vec<String> {
        let orders = self.book().orders.clone();
        let every = orders.len().div_ceil(most.max(1)).max(1);
        let mut defects = Vec::new();
        for (order, ids) in orders.iter().step_by(every) {
            for api in &self.apis {
                match self.post(api, order).await {
                    Ok(Some(again)) if again == *ids => {}
                    Ok(again) => {
                        defects.push(format!("{} was answered {ids:?} and then {again:?}", order.key));
                    }
                    Err(error) => defects.push(format!("{error:#}")),
                }
            }
        }
        defects
    }
}

fn length(target: &Target) -> u64 {
    fs::metadata(&target.ledger).map_or(0, |metadata| metadata.len())
}
