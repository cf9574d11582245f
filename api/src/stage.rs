//! What the tests of the loops stand on: the reference store and the broker in memory, living by tokio's paused time.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use jobgate_shared::{
    broker::{
        Broker, BrokerError, BrokerHealth, Published, Route, Subscription,
        memory::{DeadLetter, Memory},
    },
    clock::Clock,
    domain::{
        ClusterName, Document, JobId, JobSpec, NewJob, Project, Reach, RetryPolicy, StatusEvent, Submission,
        WorkerId,
    },
    store::{
        Claimed, Inserted, Leases as _, Pulse, Store as _, ToRecord, Worker, WorkerCluster,
        memory::MemoryStore,
    },
    supervise::Tasks,
    wire::{Hint, Nudge},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Wall time that follows tokio's.
#[derive(Debug)]
pub(crate) struct TokioClock(Instant);

impl Clock for TokioClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + Duration::from_hours(24 * 365 * 50) + self.0.elapsed()
    }
}

/// The broker in memory, behind a door that can be shut.
#[derive(Debug)]
pub(crate) struct GatedBroker {
    pub(crate) inner: Memory,
    health: watch::Sender<BrokerHealth>,
    /// Hints offered, taken or not.
    pub(crate) offered: AtomicUsize,
}

impl GatedBroker {
    /// Shuts or opens the door.
    pub(crate) fn set(&self, health: BrokerHealth) {
        self.health.send_replace(health);
    }

    /// What goes to the dead letters.
    pub(crate) fn dead_letters(&self) -> Vec<DeadLetter> {
        self.inner.dead_letters()
    }

    fn open(&self) -> Result<(), BrokerError> {
        match *self.health.borrow() {
            BrokerHealth::Up => Ok(()),
            BrokerHealth::Blocked => Err(BrokerError::Blocked),
            BrokerHealth::Down => Err(BrokerError::Down(anyhow::anyhow!("the door is shut"))),
        }
    }
}

#[async_trait]
impl Broker for GatedBroker {
    async fn publish_hint(&self, route: &Route, hint: Hint) -> Result<Published, BrokerError> {
        self.offered.fetch_add(1, Ordering::SeqCst);
        self.open()?;
        self.inner.publish_hint(route, hint).await
    }

    async fn publish_events(&self, events: Vec<StatusEvent>) -> Result<(), BrokerError> {
        self.open()?;
        self.inner.publish_events(events).await
    }

    async fn nudge(&self, nudge: Nudge) -> Result<(), BrokerError> {
        self.open()?;
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

    async fn hints_waiting(&self, cluster: &ClusterName) -> Option<u64> {
        self.inner.hints_waiting(cluster).await
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

/// A store, a broker, a clock and tasks.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) broker: Arc<GatedBroker>,
    pub(crate) clock: Arc<TokioClock>,
    pub(crate) tasks: Tasks,
}

/// How long the workers' leases run here.
pub(crate) const LEASE: Duration = Duration::from_secs(10);

impl Stage {
    pub(crate) fn new() -> Self {
        let clock = Arc::new(TokioClock(Instant::now()));
        let broker = GatedBroker {
            inner: Memory::new(),
            health: watch::channel(BrokerHealth::Up).0,
            offered: AtomicUsize::new(0),
        };
        Self {
            store: Arc::new(MemoryStore::new(clock.clone())),
            broker: Arc::new(broker),
            clock,
            tasks: Tasks::default(),
        }
    }

    /// Stores jobs nobody has hinted.
    pub(crate) async fn post(&self, name: &str, jobs: usize) -> Vec<JobId> {
        let new: Vec<NewJob> = (0..jobs).map(|_| new_job(name)).collect();
        let created = self.store.insert(&new, None).await.unwrap();
        assert!(created.iter().all(|one| matches!(one, Inserted::Created(_))));
        new.into_iter().map(|job| job.id).collect()
    }

    /// Registers a worker and renews its lease until the tasks end, or until the answer is cancelled.
    pub(crate) async fn worker(&self, name: &str, reach: Option<&str>) -> (Worker, Arc<tokio::sync::Notify>) {
        let worker = Worker {
            id: WorkerId::generate(),
            host: "here".to_owned(),
            clusters: vec![WorkerCluster {
                name: cluster(name),
                reach: reach.map(|r| Reach(r.to_owned())),
                parked: None,
            }],
            registered_at: self.clock.now(),
            expires_at: self.clock.now(),
            alive: true,
            draining: false,
            jobs: 0,
        };
        self.store.register(&worker, LEASE).await.unwrap();
        let (store, id, killed) = (self.store.clone(), worker.id, Arc::new(tokio::sync::Notify::new()));
        let (kill, shutdown) = (killed.clone(), self.tasks.shutdown().clone());
        self.tasks.spawn("heartbeat", async move {
            let pulse = Pulse { ttl: LEASE, ..Pulse::default() };
            loop {
                tokio::select! {
                    () = kill.notified() => return,
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(LEASE / 4) => {}
                }
                store.heartbeat(id, &pulse).await.unwrap();
            }
        });
        (worker, killed)
    }

    /// Lets a worker claim jobs and record a submission of each.
    pub(crate) async fn claim(&self, worker: &Worker, jobs: &[JobId]) {
        let claimed = self.store.claim(worker.id, &worker.clusters, jobs).await.unwrap();
        assert!(claimed.iter().all(|one| matches!(one, Claimed::Granted(_))), "{claimed:?}");
        let submission = |job: &JobId| Submission {
            id: job.to_string(),
            detail: serde_json::Value::Null,
            reach: worker.clusters[0].reach.clone(),
        };
        let records: Vec<ToRecord> = jobs
            .iter()
            .map(|job| ToRecord { job: *job, attempt: 1, epoch: 1, submission: submission(job) })
            .collect();
        self.store.record(&records).await.unwrap();
    }

    /// Stops everything and sees that it ends.
    pub(crate) async fn end(self) {
        self.broker.close().await;
        self.tasks.stop().await;
    }
}

pub(crate) fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

pub(crate) fn new_job(name: &str) -> NewJob {
    NewJob {
        id: JobId::generate(),
        project: Project::default_project(),
        name: "test".to_owned(),
        cluster: cluster(name),
        spec: JobSpec { command: vec!["true".to_owned()], ..JobSpec::default() },
        labels: Vec::new(),
        priority: 0,
        inputs: Document::new(),
        max_attempts: 1,
        retry: RetryPolicy::default(),
        run_at: None,
        hold: false,
        created_by: "token:test".to_owned(),
        idempotency: None,
    }
}
