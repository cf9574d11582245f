//! The dispatcher: publishes hints for rows that are due, and for rows whose worker is gone.
//!
//! It never claims and never talks to a resource manager. Any number of dispatchers may run at once: the store hands
//! each due row to one of them. What decides is [`plan`] and [`rescue`], which do no I/O; the loops here perform what
//! those say.

pub mod budget;
pub mod plan;
pub mod rescue;

mod hinting;
mod publishing;
mod rescuing;
#[cfg(test)]
mod tests;

pub use budget::HintBudget;

use jobgate_shared::{
    broker::Broker,
    clock::Clock,
    domain::ClusterName,
    retry::Delays,
    settings::{Number, Period},
    store::Store,
    supervise::Tasks,
};
use plan::Rest;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// What operators set of a dispatcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Jobs of one cluster hinted at once, at most. The rest waits in the store, where priority decides. Each dispatcher
    /// keeps to it by what the store counts, so several together may exceed it by what they do in the same instant.
    pub hints_outstanding: Number<1, 1_000_000>,
    /// How long a hint is given to be claimed. A purged queue is filled again within this time and a second.
    pub hint_ttl: Period<1_000, 300_000>,
    /// How long no worker may have been where a job's submission lives before the job is `LOST`.
    pub lost_after: Period<60_000, 31_536_000_000>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hints_outstanding: Number::new(10_000),
            hint_ttl: Period::new(Duration::from_secs(5)),
            lost_after: Period::new(Duration::from_hours(24)),
        }
    }
}

/// What a dispatcher works with.
#[derive(Debug)]
pub struct Dispatcher {
    /// The rows.
    pub store: Arc<dyn Store>,
    /// The bells.
    pub broker: Arc<dyn Broker>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The room shared with acceptance in this process.
    pub budget: Arc<HintBudget>,
    /// What operators set.
    pub config: Config,
    /// How long a worker's lease runs: what the workers are configured with.
    pub lease: Duration,
    /// No other process can open the store, so whoever had a lease before this one began is dead.
    pub sole: bool,
    /// Clusters that are served from outside: who claims there asks the store, and hears no hint.
    pub outside: BTreeSet<ClusterName>,
}

/// What both loops share.
#[derive(Debug)]
struct Shared {
    parts: Dispatcher,
    /// How many workers take new work, by cluster: the rescuer reads them, the plan spreads hints over them.
    serving: watch::Sender<BTreeMap<ClusterName, u32>>,
}

/// Dispatches until the tasks are shut down.
pub fn run(tasks: &Tasks, parts: Dispatcher) {
    let shared = Arc::new(Shared { parts, serving: watch::channel(BTreeMap::new()).0 });
    let (hinting, shutdown) = (shared.clone(), tasks.shutdown().clone());
    tasks.supervise("dispatcher", move || hinting::run(hinting.clone(), shutdown.clone()));
    let shutdown = tasks.shutdown().clone();
    tasks.supervise("rescuer", move || rescuing::run(shared.clone(), shutdown.clone()));
}

/// When a loop is to be woken.
struct Timer {
    at: Option<Instant>,
    delays: Delays,
}

impl Timer {
    /// Rings at once.
    fn new() -> Self {
        let delays = Delays::new(Duration::from_millis(100), Duration::from_secs(2));
        Self { at: Some(Instant::now()), delays }
    }

    /// A shorter rest wins over one under way.
    fn set(&mut self, rest: Rest) {
        let rest = match rest {
            Rest::For(rest) => {
                self.delays.reset();
                rest
            }
            Rest::Retry => self.delays.next_delay(),
        };
        let at = Instant::now() + rest;
        self.at = Some(self.at.map_or(at, |before| before.min(at)));
    }

    fn stop(&mut self) {
        self.at = None;
    }

    /// Completes when it rings, once. Cancel safe.
    async fn rung(&mut self) {
        match self.at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
        self.at = None;
    }
}
