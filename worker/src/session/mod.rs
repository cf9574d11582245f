//! The loops around the core: they perform what it says and bring it what happened, and decide nothing.
//!
//! One *session* is one registered identity: it ends when its lease does, or when the worker is told to stop. A session
//! that ends drops everything it held; whatever of it is still in flight is a zombie's, and the protocol allows for that.

mod claim;
mod drive;
mod held;
mod intake;
mod lease;
mod load;
mod perform;
mod publish;
mod rounds;
mod share;
mod ship;
mod sweep;
#[cfg(test)]
mod tests;

use crate::{
    core::{Core, Serving},
    engine::Engine,
    pace::Pace,
    regulator::{Regulator, RegulatorConfig, shared_rate},
};
use drive::{Drive, Ended};
use jobgate_shared::{
    broker::Broker,
    clock::Clock,
    domain::{ClusterName, WorkerId},
    failpoint,
    logs::LogStore,
    reporting::Reporting,
    retry::Delays,
    store::{Leases, StoreError, StoreResult, Worker as Registration, WorkerCluster},
    supervise::Tasks,
};
use lease::Lease;
use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// One cluster a worker serves.
#[derive(Debug, Clone)]
pub struct Served {
    /// Its name.
    pub name: ClusterName,
    /// What submits to it.
    pub engine: Arc<dyn Engine>,
    /// How much is taken on.
    pub regulator: RegulatorConfig,
    /// How many creates and starts may be out at once.
    pub max_calls: usize,
    /// When the next call may be made: a turn for each request it comes to. Reading logs takes none: where it asks the
    /// manager, it asks seldom.
    pub pace: Pace,
    /// Most jobs all workers together take on in a second, as a steady rate.
    pub max_submits_per_second: Option<NonZeroU32>,
    /// How long the manager must keep not knowing a submission before it is `LOST`.
    pub lost_after: Duration,
    /// An answer that takes longer counts against the manager as none does.
    pub slow_after: Duration,
}

impl Served {
    fn regulator(&self) -> Box<dyn Regulator> {
        let own = self.regulator.build();
        match self.max_submits_per_second {
            Some(most) => shared_rate(own, most),
            None => own,
        }
    }
}

/// The times a worker lives by.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long the lease runs from each heartbeat. A dead worker's jobs wait so long.
    pub lease: Duration,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// How long a drain waits for answers that are out, those of the store among them.
    pub drain: Duration,
    /// Between two looks at logs that grow.
    pub ship: Duration,
    /// Between two sweeps of inert leftovers.
    pub sweep: Duration,
    /// How old an inert submission must be before a sweep asks about it.
    pub sweep_older_than: Duration,
    /// How long the broker may be away before events go straight to the rows.
    pub broker_patience: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            heartbeat: Duration::from_secs(3),
            drain: Duration::from_secs(10),
            ship: Duration::from_millis(500),
            sweep: Duration::from_mins(5),
            sweep_older_than: Duration::from_mins(10),
            broker_patience: Duration::from_secs(30),
        }
    }
}

/// What a worker is made of.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Its door to the rows.
    pub leases: Arc<dyn Leases>,
    /// Its bells.
    pub broker: Arc<dyn Broker>,
    /// Its time.
    pub clock: Arc<dyn Clock>,
    /// Where logs are shipped to.
    pub logs: Arc<LogStore>,
    /// What it serves.
    pub clusters: Vec<Served>,
    /// The times it lives by.
    pub timing: Timing,
    /// What lets jobs report on themselves; without it they get nothing to report with.
    pub reporting: Option<Reporting>,
    /// Where it runs, for people.
    pub host: String,
}

impl Worker {
    /// Works until `shutdown`, then drains. An identity whose lease ended is followed by a new one.
    pub async fn run(self, shutdown: CancellationToken) {
        let worker = Arc::new(self);
        // Identities that end one after the other would count as workers that die.
        let mut delays = Delays::new(Duration::from_millis(50), Duration::from_secs(30));
        while let Some((id, lease)) = shutdown.run_until_cancelled(worker.register()).await {
            let began = worker.clock.monotonic();
            match worker.session(id, lease, &shutdown).await {
                Ended::Drained => break,
                Ended::LeaseOver => {
                    metrics::counter!("jobgate_worker_leases_lost_total").increment(1);
                    tracing::error!(worker = %id, "the lease ran out; what was held is dropped and a new identity begins");
                }
                Ended::Broken => {
                    tracing::error!(worker = %id, "a part of the worker panicked; what was held is dropped and a new identity begins");
                }
            }
            if began.elapsed() > Duration::from_mins(1) {
                delays.reset();
            }
            let rest = tokio::time::sleep(delays.next_delay());
            if shutdown.run_until_cancelled(rest).await.is_none() {
                break;
            }
        }
    }

    /// Registers a new identity, however long the store takes to be there.
    async fn register(&self) -> (WorkerId, Arc<Lease>) {
        let mut delays = Delays::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let (id, sent) = (WorkerId::generate(), self.clock.monotonic());
            match self.leases.register(&self.registration(id), self.timing.lease).await {
                Ok(()) => {
                    failpoint::pass("lease.registered");
                    tracing::info!(worker = %id, clusters = self.clusters.len(), "worker registered");
                    return (id, Arc::new(Lease::new(sent, self.timing.lease)));
                }
                Err(error) => {
                    tracing::warn!(worker = %id, error = format!("{:#}", anyhow::Error::new(error)), "cannot register; trying again");
                    tokio::time::sleep(delays.next_delay()).await;
                }
            }
        }
    }

    async fn session(
        self: &Arc<Self>,
        id: WorkerId,
        lease: Arc<Lease>,
        shutdown: &CancellationToken,
    ) -> Ended {
        let serving = self.clusters.iter().map(|c| Serving {
            cluster: c.name.clone(),
            capabilities: c.engine.capabilities(),
            max_creates: c.max_calls,
            lost_after: c.lost_after,
            slow_after: c.slow_after,
        });
        let core = Core::new(id, serving.collect());
        let regulators: Vec<Box<dyn Regulator>> = self.clusters.iter().map(Served::regulator).collect();
        let (inbox, messages) = mpsc::channel(1024);
        // An identity with a part missing would renew its lease and never do that part again, so it ends with it.
        let tasks = Tasks::of_one_fate(lease.over());
        let room = Arc::new(tokio::sync::Notify::new());
        let taking = lease.over().child_token();
        let claimer = claim::Claimer::spawn(&tasks, self, id, &lease, &inbox, &taking);
        let intakes = intake::Intakes {
            worker: self.clone(),
            id,
            claimer: claimer.clone(),
            inbox: inbox.clone(),
            room: room.clone(),
            lease: lease.clone(),
            taking: taking.clone(),
        };
        intakes.spawn(&tasks);
        drop(intakes);
        // These do without one another, and begin again by themselves.
        let aside = Tasks::new(lease.over().clone());
        load::spawn(&aside, self, &inbox);
        share::spawn(&aside, self, &inbox);
        sweep::spawn(&aside, self, &lease);
        held::spawn(&aside, self, id, &inbox);
        rounds::listen(&tasks, self, &inbox, &lease);
        let performer = perform::Performer::spawn(self, id, &inbox, &lease, claimer);
        drop(inbox);
        let drive = Drive::new(self, id, core, regulators, performer, messages, room, lease.clone(), taking);
        let ended = drive.run(shutdown).await;
        // Whatever still waits for something waits in vain: the identity is over.
        lease.end();
        tasks.stop().await;
        aside.wait().await;
        if matches!(ended, Ended::Drained) {
            failpoint::pass("drain.finished");
            if let Err(error) = self.leases.deregister(id).await {
                tracing::warn!(worker = %id, error = format!("{:#}", anyhow::Error::new(error)), "cannot deregister; the lease will run out by itself");
            }
            failpoint::pass("drain.deregistered");
        }
        ended
    }

    fn registration(&self, id: WorkerId) -> Registration {
        let now = self.clock.now();
        Registration {
            id,
            host: self.host.clone(),
            clusters: self.served(),
            registered_at: now,
            expires_at: now,
            alive: true,
            draining: false,
            jobs: 0,
        }
    }

    fn served(&self) -> Vec<WorkerCluster> {
        let cluster = |c: &Served| WorkerCluster {
            name: c.name.clone(),
            reach: c.engine.capabilities().reach,
            parked: None,
        };
        self.clusters.iter().map(cluster).collect()
    }
}

/// The store's answer, if it comes in time; what it was asked for may happen later all the same.
async fn answered_within<T>(
    patience: Duration,
    answer: impl Future<Output = StoreResult<T>>,
) -> StoreResult<T> {
    let answer = tokio::time::timeout(patience, answer).await;
    answer.unwrap_or_else(|_| Err(StoreError::Away(anyhow::anyhow!("no answer in {patience:?}"))))
}
