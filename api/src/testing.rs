//! What the tests of this crate's HTTP half stand on: a store and a broker that can be told to fail, and an API over them.

use crate::{
    accept::AcceptSettings,
    auth::{self, TokenWish},
    clusters::{
        Capabilities, ClusterInfo, ExitCodes, MemoryLimits, ReachKind, ServedBy, SpecValidator, SubmitMode,
        Takes, TimeLimits,
    },
    dispatcher::HintBudget,
    http::{Api, ApiParts, Hosts, HttpConfig, router},
};
use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
    response::Response,
};
use chrono::{DateTime, Utc};
use http_body_util::BodyExt as _;
use jobgate_shared::{
    broker::{Broker, BrokerError, BrokerHealth, Published, Route, Subscription, memory::Memory},
    clock::system,
    domain::{
        ClusterName, Command, HistoryEntry, Job, JobId, JobSpec, NewJob, Report, SpecError, StatusEvent,
        SubmissionTag, TokenId, WorkerId,
    },
    logs::LogStore,
    reporting::ReportKey,
    store::{
        Applied, Apply, Changes, Claimed, ClusterSetting, Commanded, Depth, Due, FeedCursor, Filter,
        Heartbeat, Hinted, Inserted, Leases, Oldest, Page, PageRequest, Patch, Pulse, Recorded, Removed,
        Reported, Role, Scope, Store, StoreError, StoreResult, Stranded, ToHandBack, ToRecord, Token,
        Vanished, Worker, WorkerCluster, memory::MemoryStore,
    },
    supervise::Tasks,
    wire::{Hint, Nudge},
};
use serde_json::Value;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;
use tower::ServiceExt as _;

/// What the next insert does instead of simply storing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// Stores, and loses the answer.
    AnswerLost,
    /// Stores nothing.
    Cut,
    /// Panics.
    Panic,
}

/// One call of `insert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InsertCall {
    pub(crate) ids: Vec<JobId>,
    pub(crate) hinted: bool,
}

/// The reference store, with faults.
#[derive(Debug)]
pub(crate) struct ScriptedStore {
    pub(crate) inner: MemoryStore,
    /// Nothing answers.
    pub(crate) away: AtomicBool,
    pub(crate) mishaps: Mutex<VecDeque<Mishap>>,
    /// A row with a name that begins so is refused for good.
    pub(crate) poison: &'static str,
    pub(crate) inserts: Mutex<Vec<InsertCall>>,
    /// A retry by hand overtakes the next removal.
    pub(crate) overtaken: AtomicBool,
    /// So many calls of `compact_counts` leave something for the next.
    pub(crate) uncompacted: AtomicUsize,
    /// The answer of the next removal is lost, and it is made again.
    pub(crate) removed_unheard: AtomicBool,
    /// Inserts wait while this is false.
    pub(crate) open: watch::Sender<bool>,
    /// Calls of anything but `insert`.
    pub(crate) calls: AtomicUsize,
}

impl ScriptedStore {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::new(system()),
            away: AtomicBool::new(false),
            mishaps: Mutex::default(),
            poison: "poison",
            inserts: Mutex::default(),
            overtaken: AtomicBool::new(false),
            uncompacted: AtomicUsize::new(0),
            removed_unheard: AtomicBool::new(false),
            open: watch::channel(true).0,
            calls: AtomicUsize::new(0),
        })
    }

    pub(crate) fn inserts(&self) -> Vec<InsertCall> {
        self.inserts.lock().unwrap().clone()
    }

    fn answer(&self) -> StoreResult<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) { Err(cut()) } else { Ok(()) }
    }
}

fn cut() -> StoreError {
    StoreError::Away(anyhow::anyhow!("cut off"))
}

#[async_trait]
impl Apply for ScriptedStore {
    async fn apply(&self, events: &[StatusEvent]) -> StoreResult<Vec<Applied>> {
        self.answer()?;
        self.inner.apply(events).await
    }
}

/// Every call but `insert`, `remove` and `compact_counts` is simply passed on unless the store is away.
macro_rules! passing_on {
    ($($call:ident($($name:ident: $kind:ty),*) -> $told:ty;)*) => {
        #[async_trait]
        impl Store for ScriptedStore {
            $(async fn $call(&self, $($name: $kind),*) -> StoreResult<$told> {
                self.answer()?;
                self.inner.$call($($name),*).await
            })*

            async fn remove(&self, scope: &Scope, job: JobId) -> StoreResult<Removed> {
                self.answer()?;
                if self.overtaken.swap(false, Ordering::SeqCst) {
                    self.inner.command(scope, &[job], Command::Retry, "token:faster").await?;
                }
                if self.removed_unheard.swap(false, Ordering::SeqCst) {
                    self.inner.remove(scope, job).await?;
                }
                self.inner.remove(scope, job).await
            }

            async fn compact_counts(&self) -> StoreResult<bool> {
                self.answer()?;
                self.inner.compact_counts().await?;
                let fewer = |left: usize| left.checked_sub(1);
                Ok(self.uncompacted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok())
            }

            async fn insert(&self, jobs: &[NewJob], hinted: Option<Duration>) -> StoreResult<Vec<Inserted>> {
                let ids = jobs.iter().map(|job| job.id).collect();
                self.inserts.lock().unwrap().push(InsertCall { ids, hinted: hinted.is_some() });
                self.open.subscribe().wait_for(|open| *open).await.unwrap();
                if self.away.load(Ordering::SeqCst) {
                    return Err(cut());
                }
                let mishap = self.mishaps.lock().unwrap().pop_front();
                match mishap {
                    Some(Mishap::Cut) => return Err(cut()),
                    Some(Mishap::Panic) => panic!("told to"),
                    Some(Mishap::AnswerLost) => {
                        self.inner.insert(jobs, hinted).await?;
                        return Err(cut());
                    }
                    None => {}
                }
                if jobs.iter().any(|job| job.name.starts_with(self.poison)) {
                    let source = anyhow::anyhow!("poison");
                    return Err(StoreError::Refused { operation: "insert", source });
                }
                self.inner.insert(jobs, hinted).await
            }
        }
    };
}

passing_on! {
    ping() -> ();
    now() -> DateTime<Utc>;
    get(scope: &Scope, job: JobId) -> Option<Job>;
    present(jobs: &[JobId]) -> Vec<JobId>;
    list(scope: &Scope, filter: &Filter, page: PageRequest) -> Page;
    history(scope: &Scope, job: JobId) -> Option<Vec<HistoryEntry>>;
    command(scope: &Scope, jobs: &[JobId], command: Command, by: &str) -> Vec<Commanded>;
    patch(scope: &Scope, job: JobId, patch: &Patch) -> Option<Job>;
    report(scope: &Scope, job: JobId, report: &Report) -> Reported;
    retirable(before: DateTime<Utc>, limit: u32) -> Vec<JobId>;
    retire(jobs: &[JobId], before: DateTime<Utc>) -> u64;
    retire_feed(before: DateTime<Utc>) -> bool;
    depths() -> Vec<Depth>;
    oldest() -> Vec<Oldest>;
    changes(after: FeedCursor, limit: u32) -> Changes;
    feed_end() -> FeedCursor;
    outstanding() -> Vec<Hinted>;
    due(cluster: &ClusterName, limit: u32, hint_for: Duration, again_after: Duration) -> Vec<Due>;
    unhint(jobs: &[JobId]) -> ();
    stranded(dead: &[WorkerId], limit: u32, hint_for: Duration) -> Vec<Stranded>;
    vanished(jobs: &[Vanished], lost_after: Option<Duration>) -> Vec<Applied>;
    workers() -> Vec<Worker>;
    expire_all_leases() -> ();
    cluster_settings() -> Vec<ClusterSetting>;
    set_paused(cluster: &ClusterName, paused: bool, by: &str) -> ();
    limit(cluster: &ClusterName, max_in_flight: Option<u32>, by: &str) -> ();
    create_token(token: &Token) -> ();
    tokens(scope: &Scope) -> Vec<Token>;
    token(id: TokenId) -> Option<Token>;
    revoke_token(scope: &Scope, id: TokenId) -> bool;
}

#[async_trait]
impl Leases for ScriptedStore {
    async fn register(&self, worker: &Worker, ttl: Duration) -> StoreResult<()> {
        self.answer()?;
        self.inner.register(worker, ttl).await
    }

    async fn heartbeat(&self, worker: WorkerId, pulse: &Pulse) -> StoreResult<Heartbeat> {
        self.answer()?;
        self.inner.heartbeat(worker, pulse).await
    }

    async fn claim(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        jobs: &[JobId],
    ) -> StoreResult<Vec<Claimed>> {
        self.answer()?;
        self.inner.claim(worker, clusters, jobs).await
    }

    async fn claim_alone(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        job: JobId,
    ) -> StoreResult<Claimed> {
        self.answer()?;
        self.inner.claim_alone(worker, clusters, job).await
    }

    async fn held(&self, worker: WorkerId) -> StoreResult<Vec<JobId>> {
        self.answer()?;
        self.inner.held(worker).await
    }

    async fn serving(&self, clusters: &[ClusterName]) -> StoreResult<Vec<u32>> {
        self.answer()?;
        self.inner.serving(clusters).await
    }

    async fn in_hands(
        &self,
        cluster: &ClusterName,
        owners: &[WorkerId],
        after: Option<JobId>,
        limit: u32,
    ) -> StoreResult<Vec<Job>> {
        self.answer()?;
        self.inner.in_hands(cluster, owners, after, limit).await
    }

    async fn record(&self, items: &[ToRecord]) -> StoreResult<Vec<Recorded>> {
        self.answer()?;
        self.inner.record(items).await
    }

    async fn hand_back(&self, worker: WorkerId, items: &[ToHandBack]) -> StoreResult<()> {
        self.answer()?;
        self.inner.hand_back(worker, items).await
    }

    async fn deregister(&self, worker: WorkerId) -> StoreResult<()> {
        self.answer()?;
        self.inner.deregister(worker).await
    }

    async fn leftovers(&self, found: &[(JobId, u32, String)]) -> StoreResult<Vec<usize>> {
        self.answer()?;
        self.inner.leftovers(found).await
    }
}

/// The broker of one process, with an ear at it.
#[derive(Debug)]
pub(crate) struct HeardBroker {
    pub(crate) inner: Memory,
    pub(crate) down: AtomicBool,
    pub(crate) health: watch::Sender<BrokerHealth>,
    pub(crate) hints: watch::Sender<Vec<(Route, Hint)>>,
    pub(crate) nudges: watch::Sender<Vec<Nudge>>,
}

impl HeardBroker {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Memory::new(),
            down: AtomicBool::new(false),
            health: watch::channel(BrokerHealth::Up).0,
            hints: watch::channel(Vec::new()).0,
            nudges: watch::channel(Vec::new()).0,
        })
    }

    fn answer(&self) -> Result<(), BrokerError> {
        if self.down.load(Ordering::SeqCst) {
            Err(BrokerError::Down(anyhow::anyhow!("down")))
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl Broker for HeardBroker {
    async fn publish_hint(&self, route: &Route, hint: Hint) -> Result<Published, BrokerError> {
        self.answer()?;
        self.hints.send_modify(|hints| hints.push((route.clone(), hint.clone())));
        self.inner.publish_hint(route, hint).await
    }

    async fn publish_events(&self, events: Vec<StatusEvent>) -> Result<(), BrokerError> {
        self.answer()?;
        self.inner.publish_events(events).await
    }

    async fn nudge(&self, nudge: Nudge) -> Result<(), BrokerError> {
        self.answer()?;
        self.nudges.send_modify(|nudges| nudges.push(nudge.clone()));
        self.inner.nudge(nudge).await
    }

    fn hints(&self, routes: &[Route], prefetch: u16) -> Subscription<Hint> {
        self.inner.hints(routes, prefetch)
    }

    fn events(&self, prefetch: u16) -> Subscription<Vec<StatusEvent>> {
        self.inner.events(prefetch)
    }

    fn nudges(&self) -> Subscription<Nudge> {
        self.inner.nudges()
    }

    async fn events_behind(&self) -> Option<u64> {
        self.inner.events_behind().await
    }

    fn health(&self) -> watch::Receiver<BrokerHealth> {
        self.health.subscribe()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// `local`, `slurm`, which takes no images, and `far` and `farther`, which are served from outside.
#[derive(Debug)]
pub(crate) struct SomeClusters(Vec<ClusterInfo>);

impl SomeClusters {
    pub(crate) fn new() -> Arc<Self> {
        let info = |name: &str| ClusterInfo {
            name: name.parse().unwrap(),
            engine: name.to_owned(),
            served_by: if name.starts_with("far") { ServedBy::Claimants } else { ServedBy::Workers },
            mode: SubmitMode::TwoPhase,
            capabilities: Capabilities {
                reach: if name == "local" { ReachKind::Host } else { ReachKind::Everywhere },
                commands: true,
                exit_codes: ExitCodes::CodesAndSignals,
                memory_limits: MemoryLimits::Told,
                time_limits: TimeLimits::ByEngine,
                warns_on_cancel: true,
                logs: true,
                poll_interval_seconds: 0.2,
            },
            takes: Takes { fields: vec!["script"], options: Some([].into()) },
        };
        Arc::new(Self(["local", "slurm", "far", "farther"].map(info).into()))
    }
}

impl SpecValidator for SomeClusters {
    fn clusters(&self) -> &[ClusterInfo] {
        &self.0
    }

    fn default_cluster(&self) -> Option<&ClusterName> {
        self.0.first().map(|info| &info.name)
    }

    fn validate(&self, cluster: &ClusterName, spec: &JobSpec) -> Result<(), SpecError> {
        if cluster.as_str() == "slurm" && spec.image.is_some() {
            return Err(SpecError::new("spec.image", "this engine runs no images"));
        }
        Ok(())
    }
}

/// An API, everything under it, and a caller.
pub(crate) struct Bench {
    pub(crate) store: Arc<ScriptedStore>,
    pub(crate) broker: Arc<HeardBroker>,
    pub(crate) logs: LogStore,
    pub(crate) budget: Arc<HintBudget>,
    pub(crate) tasks: Tasks,
    pub(crate) api: Arc<Api>,
    pub(crate) router: Router,
    /// Administers every project.
    pub(crate) admin: String,
    /// What jobs' own tokens are made of.
    pub(crate) report_key: ReportKey,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(HttpConfig::default())
    }

    pub(crate) fn with(config: HttpConfig) -> Self {
        let (store, broker, tasks) = (ScriptedStore::new(), HeardBroker::new(), Tasks::default());
        let logs = LogStore::in_memory();
        let budget = Arc::new(HintBudget::new());
        // As the dispatcher has it: nobody is hinted of what is served from outside.
        let outside = ["far", "farther"].map(|name| (name.parse().unwrap(), 0));
        budget.set(outside.into(), 10_000);
        let admin = auth::generate_bootstrap();
        let report_key = ReportKey::new(&auth::generate_bootstrap()).unwrap();
        let api = Api::start(ApiParts {
            store: store.clone(),
            leases: store.clone(),
            broker: broker.clone(),
            logs: logs.clone(),
            clock: system(),
            clusters: SomeClusters::new(),
            budget: budget.clone(),
            metrics: Arc::new(|| "jobgate_metric 1\n".to_owned()),
            admin_token: Some(admin.clone()),
            report_key: Some(report_key.clone()),
            report_url: Some("https://jobs.example.org".to_owned()),
            accept: AcceptSettings::default(),
            config,
            tasks: tasks.clone(),
        });
        let api = api.unwrap();
        let hosts = Hosts::new("127.0.0.1:7070".parse().unwrap(), &["jobs.example.org".to_owned()]);
        let router = router(api.clone(), hosts);
        Self { store, broker, logs, budget, tasks, api, router, admin, report_key }
    }

    /// A new token.
    pub(crate) async fn token(&self, project: Option<&str>, roles: &[Role]) -> String {
        let project = project.map(|name| name.parse().unwrap());
        let (name, roles) = ("tester".to_owned(), roles.to_vec());
        self.minted(TokenWish { name, project, cluster: None, roles, expires_at: None }).await
    }

    /// A new token that works for a cluster.
    pub(crate) async fn worker_token(&self, cluster: &str) -> String {
        let (name, cluster) = ("runner".to_owned(), Some(cluster.parse().unwrap()));
        let roles = vec![Role::Work];
        self.minted(TokenWish { name, project: None, cluster, roles, expires_at: None }).await
    }

    async fn minted(&self, wish: TokenWish) -> String {
        let minted = auth::mint(wish, "token:test", system().now());
        self.store.inner.create_token(&minted.token).await.unwrap();
        minted.text
    }

    /// The token an attempt of a job reports with.
    pub(crate) fn own_token(&self, job: &Value, attempt: u32) -> String {
        let job = job["id"].as_str().unwrap().parse().unwrap();
        self.report_key.token(SubmissionTag { job, attempt })
    }

    /// A request as the administrator, to be changed and sent.
    pub(crate) fn call(&self, method: &str, path: &str) -> Call<'_> {
        let request = Request::builder().method(method).uri(path).header(header::HOST, "127.0.0.1:7070");
        Call { bench: self, request: request.body(Body::empty()).unwrap() }.token(&self.admin)
    }

    /// Posts a job as the administrator; it must be accepted.
    pub(crate) async fn posted(&self, document: Value) -> Value {
        let answer = self.call("POST", "/v1/jobs").json(&document).send().await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        answer.json()
    }
}

/// A request on its way.
pub(crate) struct Call<'a> {
    bench: &'a Bench,
    request: Request<Body>,
}

impl Call<'_> {
    pub(crate) fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.request.headers_mut().insert(name, value.parse().unwrap());
        self
    }

    pub(crate) fn without(mut self, name: &'static str) -> Self {
        self.request.headers_mut().remove(name);
        self
    }

    pub(crate) fn json(self, document: &Value) -> Self {
        self.body("application/json", document.to_string())
    }

    pub(crate) fn body(self, kind: &str, body: impl Into<Body>) -> Self {
        self.content(body).header("content-type", kind)
    }

    /// A body whose type is told elsewhere.
    pub(crate) fn content(mut self, body: impl Into<Body>) -> Self {
        *self.request.body_mut() = body.into();
        self
    }

    /// Sends it and reads the whole answer.
    pub(crate) async fn send(self) -> Answered {
        Answered::read(self.open().await).await
    }

    /// Sends it and leaves the body to be read.
    pub(crate) async fn open(self) -> Response {
        self.bench.router.clone().oneshot(self.request).await.unwrap()
    }
}

/// An answer, read.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answered {
    /// Reads a response to its end.
    pub(crate) async fn read(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Self { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// It is a problem document of this kind, about this field.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, kind: &str, field: Option<&str>) {
        let shown: String = self.text().chars().take(500).collect();
        assert_eq!(self.status.as_u16(), status, "{shown}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["type"], format!("urn:jobgate:problem:{kind}"), "{problem}");
        assert_eq!(problem["status"], status);
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        assert_eq!(problem.get("field").and_then(Value::as_str), field, "{problem}");
    }
}

/// The smallest job there is.
pub(crate) fn small_job() -> Value {
    serde_json::json!({"spec": {"command": ["true"]}})
}
