//! The broker inside one process: queues in memory, the same contract, no bytes.
//!
//! The embedded form stands on it, and tests that want a broker without a server. Nothing here survives the process,
//! which the port allows: the rows are the truth. Memory is bounded: a hint beyond its bound is refused (the dispatcher
//! hints again), an event beyond its bound makes the publisher wait for the recorder, a nudge beyond its bound replaces
//! the oldest.

mod lane;

use super::{Broker, BrokerError, BrokerHealth, Delivery, Published, Route, Settle, Source, Subscription};
use crate::{
    domain::{ClusterName, StatusEvent},
    wire::{Hint, MAX_EVENTS, Message, Nudge},
};
use async_trait::async_trait;
use lane::{Burden, Lane};
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

/// Most job ids waiting in one queue of hints: far above what a dispatcher keeps outstanding.
const HINTED_JOBS: usize = 200_000;
/// Most events waiting for the recorder.
const WAITING_EVENTS: usize = 100_000;
/// Most nudges one subscription has not taken yet.
const WAITING_NUDGES: usize = 1_024;
/// Most dead letters kept to be looked at.
const DEAD_LETTERS: usize = 1_000;

/// A message nobody will be given again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The queue it was taken from.
    pub queue: String,
    /// Why it was rejected.
    pub why: String,
    /// What it says, as it would have travelled.
    pub body: Vec<u8>,
}

/// The last dead letters.
#[derive(Debug, Clone, Default)]
struct DeadLetters(Arc<Mutex<VecDeque<DeadLetter>>>);

impl DeadLetters {
    fn lock(&self) -> MutexGuard<'_, VecDeque<DeadLetter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bury(&self, letter: DeadLetter) {
        tracing::warn!(queue = letter.queue, why = letter.why, "a message goes to the dead letters");
        metrics::counter!("jobgate_broker_poison_total", "queue" => letter.queue.clone()).increment(1);
        let mut letters = self.lock();
        if letters.len() == DEAD_LETTERS {
            letters.pop_front();
        }
        letters.push_back(letter);
    }
}

/// Where hints wait.
type Hints = Lane<Route, Hint>;
/// Where events wait: one queue.
type Events = Lane<(), Vec<StatusEvent>>;

/// The broker of one process. Clones are the same broker.
#[derive(Clone)]
pub struct Memory {
    hints: Arc<Hints>,
    events: Arc<Events>,
    nudges: broadcast::Sender<Nudge>,
    dead: DeadLetters,
    health: watch::Sender<BrokerHealth>,
    closed: CancellationToken,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty broker.
    pub fn new() -> Self {
        let (closed, dead) = (CancellationToken::new(), DeadLetters::default());
        metrics::gauge!("jobgate_broker_up").set(2.0);
        Self {
            hints: Arc::new(Lane::new(HINTED_JOBS, dead.clone(), closed.clone())),
            events: Arc::new(Lane::new(WAITING_EVENTS, dead.clone(), closed.clone())),
            nudges: broadcast::channel(WAITING_NUDGES).0,
            dead,
            health: watch::channel(BrokerHealth::Up).0,
            closed,
        }
    }

    /// The last messages that were rejected, oldest first.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.dead.lock().iter().cloned().collect()
    }

    fn open(&self) -> Result<(), BrokerError> {
        if self.closed.is_cancelled() { Err(closed()) } else { Ok(()) }
    }
}

fn closed() -> BrokerError {
    BrokerError::Down(anyhow::anyhow!("it is closed"))
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("health", &*self.health.borrow()).finish_non_exhaustive()
    }
}

impl Burden for Hint {
    fn weight(&self) -> usize {
        self.jobs.len()
    }
}

impl Burden for Vec<StatusEvent> {
    fn weight(&self) -> usize {
        self.len()
    }
}

#[async_trait]
impl Broker for Memory {
    async fn publish_hint(&self, route: &Route, hint: Hint) -> Result<Published, BrokerError> {
        self.open()?;
        let absent = match route {
            Route::Cluster(_) => false,
            Route::Worker(_) => !self.hints.is_read(route),
        };
        if absent {
            return Ok(Published::Unroutable);
        }
        self.hints.offer(route, hint).map(|()| Published::Routed).map_err(|_| BrokerError::Blocked)
    }

    async fn publish_events(&self, events: Vec<StatusEvent>) -> Result<(), BrokerError> {
        if events.len() <= MAX_EVENTS {
            return self.events.put((), events).await.map_err(|_| closed());
        }
        let mut events = events.into_iter();
        while events.len() > 0 {
            let message = events.by_ref().take(MAX_EVENTS).collect();
            self.events.put((), message).await.map_err(|_| closed())?;
        }
        Ok(())
    }

    async fn nudge(&self, nudge: Nudge) -> Result<(), BrokerError> {
        self.open()?;
        // An error only says that nobody listens now.
        self.nudges.send(nudge).ok();
        Ok(())
    }

    fn hints(&self, routes: &[Route], prefetch: u16) -> Subscription<Hint> {
        Subscription::new(self.hints.read(routes.to_vec(), prefetch))
    }

    fn events(&self, prefetch: u16) -> Subscription<Vec<StatusEvent>> {
        Subscription::new(self.events.read(vec![()], prefetch))
    }

    fn nudges(&self) -> Subscription<Nudge> {
        Subscription::new(Nudged { nudges: self.nudges.subscribe(), closed: self.closed.clone() })
    }

    async fn hints_waiting(&self, cluster: &ClusterName) -> Option<u64> {
        Some(self.hints.waiting(&Route::Cluster(cluster.clone())))
    }

    async fn events_behind(&self) -> Option<u64> {
        Some(self.events.waiting(&()))
    }

    fn health(&self) -> watch::Receiver<BrokerHealth> {
        self.health.subscribe()
    }

    async fn close(&self) {
        self.closed.cancel();
        self.health.send_replace(BrokerHealth::Down);
        metrics::gauge!("jobgate_broker_up").set(0.0);
    }
}

/// A subscription to nudges.
struct Nudged {
    nudges: broadcast::Receiver<Nudge>,
    closed: CancellationToken,
}

#[async_trait]
impl Source<Nudge> for Nudged {
    async fn next(&mut self) -> Option<Delivery<Nudge>> {
        loop {
            let received = tokio::select! {
                biased;
                () = self.closed.cancelled() => return None,
                received = self.nudges.recv() => received,
            };
            match received {
                Ok(nudge) => return Some(Delivery::new(nudge, false, Box::new(Nothing))),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// Settles what needs no settling.
struct Nothing;

#[async_trait]
impl Settle for Nothing {
    async fn ack(self: Box<Self>, _through: bool) {}
    async fn retry(self: Box<Self>) {}
    async fn reject(self: Box<Self>, _why: String) {}
}

/// What names a queue.
trait Named {
    /// Its name in metrics and among the dead letters.
    fn queue(&self) -> String;

    /// Whether the queue goes when nobody reads it.
    fn is_readers_own(&self) -> bool;
}

impl Named for Route {
    fn queue(&self) -> String {
        match self {
            Route::Cluster(cluster) => format!("dispatch.{cluster}"),
            // One name for all: workers come and go, and a metric must not remember each of them.
            Route::Worker(_) => "worker".to_owned(),
        }
    }

    fn is_readers_own(&self) -> bool {
        match self {
            Route::Cluster(_) => false,
            Route::Worker(_) => true,
        }
    }
}

impl Named for () {
    fn queue(&self) -> String {
        "events".to_owned()
    }

    fn is_readers_own(&self) -> bool {
        false
    }
}

/// A dead letter out of a message.
fn dead<K: Named, T: Message>(key: &K, body: T, why: String) -> DeadLetter {
    DeadLetter { queue: key.queue(), why, body: body.encode() }
}

#[cfg(test)]
mod tests;
