//! The broker port: bells. Nothing that matters is kept here; a lost, doubled or late message costs latency only.
//!
//! Three kinds of traffic: *hints* to workers (a queue per cluster, and one per worker for jobs only it can reach),
//! *status events* to the recorder (and to anyone else who binds a queue), *nudges* to every process.
//!
//! Contract, held by the conformance suite:
//! * `publish_*` returns after the broker took responsibility, or an error after which the message may or may not arrive.
//! * A subscription outlives the broker: it reconnects by itself, and after a reconnect unsettled deliveries come again.
//! * A delivery dropped unsettled, or left by a dead process, comes again, to anyone.
//! * Bytes no reader understands are moved to the dead-letter queue by the subscription itself and counted.

pub mod memory;
pub mod rabbitmq;

use crate::{
    domain::{ClusterName, StatusEvent, WorkerId},
    wire::{Hint, Nudge},
};
use async_trait::async_trait;
use std::fmt::Debug;
use tokio::sync::watch;

/// Where a hint goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Route {
    /// To whichever worker of the cluster has room.
    Cluster(ClusterName),
    /// To one worker: these jobs had another, which is gone. Adopting them waits for no room, so neither does this queue.
    Worker(WorkerId),
}

/// What became of a hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Published {
    /// In a queue.
    Routed,
    /// There is no such queue now; the row will be hinted again.
    Unroutable,
}

/// How the broker is, as this process sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BrokerHealth {
    /// Connected.
    Up,
    /// Connected, but it takes no messages for now (a resource alarm).
    Blocked,
    /// Not connected.
    #[default]
    Down,
}

/// Why a message could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Not connected, or cut off before the confirm: it may arrive all the same.
    #[error("the broker cannot be reached")]
    Down(#[source] anyhow::Error),
    /// Connected and blocked, or the confirm did not come in time: it may arrive all the same.
    #[error("the broker does not take messages")]
    Blocked,
    /// It said no, again and again.
    #[error("the broker refused the message")]
    Refused(#[source] anyhow::Error),
}

/// The port.
#[async_trait]
pub trait Broker: Send + Sync + Debug {
    /// Hands a hint over; makes the cluster's queue if it is not there.
    async fn publish_hint(&self, route: &Route, hint: Hint) -> Result<Published, BrokerError>;

    /// Hands status events over, in order, in as few messages as they fit in.
    async fn publish_events(&self, events: Vec<StatusEvent>) -> Result<(), BrokerError>;

    /// Taps every process on the shoulder.
    async fn nudge(&self, nudge: Nudge) -> Result<(), BrokerError>;

    /// Hints from the queues these routes end in; a worker's own queue lives as long as this subscription. At most
    /// `prefetch` messages are out at once.
    fn hints(&self, routes: &[Route], prefetch: u16) -> Subscription<Hint>;

    /// Status events for a recorder.
    fn events(&self, prefetch: u16) -> Subscription<Vec<StatusEvent>>;

    /// Nudges for one process; nothing to settle.
    fn nudges(&self) -> Subscription<Nudge>;

    /// Hint messages waiting in a cluster's queue, not counting those already given to a worker; 0 when there is no such
    /// queue, `None` when the broker does not tell.
    async fn hints_waiting(&self, _cluster: &ClusterName) -> Option<u64> {
        None
    }

    /// Messages waiting for the recorder, when the broker tells; for metrics only.
    async fn events_behind(&self) -> Option<u64>;

    /// How the broker is, now and from now on.
    fn health(&self) -> watch::Receiver<BrokerHealth>;

    /// Ends every subscription and connection; what was confirmed stays.
    async fn close(&self);
}

/// Where a subscription takes its deliveries from: the adapter's half.
#[async_trait]
pub trait Source<T>: Send {
    /// The next delivery; waits through outages; `None` only after [`Broker::close`].
    async fn next(&mut self) -> Option<Delivery<T>>;
}

/// A stream of deliveries. Dropping it gives unsettled deliveries back.
pub struct Subscription<T>(Box<dyn Source<T>>);

impl<T> Subscription<T> {
    /// Wraps an adapter's source.
    pub fn new(source: impl Source<T> + 'static) -> Self {
        Self(Box::new(source))
    }

    /// The next delivery; waits through outages; `None` only after [`Broker::close`]. Cancel safe.
    pub async fn next(&mut self) -> Option<Delivery<T>> {
        self.0.next().await
    }
}

impl<T> Debug for Subscription<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription")
    }
}

/// How one delivery is settled: the adapter's half. Errors mean it will come again, so nobody needs to hear of them.
#[async_trait]
pub trait Settle: Send {
    /// Done with it; `through` also settles everything delivered before it on the same subscription.
    async fn ack(self: Box<Self>, through: bool);
    /// Give it again, to anyone.
    async fn retry(self: Box<Self>);
    /// Never give it again; keep it where an operator can see it.
    async fn reject(self: Box<Self>, why: String);
}

/// A message in hand.
pub struct Delivery<T> {
    /// What it says.
    pub body: T,
    /// The broker has given it out before.
    pub redelivered: bool,
    settle: Box<dyn Settle>,
}

impl<T> Delivery<T> {
    /// Made by adapters.
    pub fn new(body: T, redelivered: bool, settle: Box<dyn Settle>) -> Self {
        Self { body, redelivered, settle }
    }

    /// Done with it.
    pub async fn ack(self) {
        self.settle.ack(false).await;
    }

    /// Done with it and with every delivery before it on the same subscription.
    pub async fn ack_through(self) {
        self.settle.ack(true).await;
    }

    /// Give it again, to anyone.
    pub async fn retry(self) {
        self.settle.retry().await;
    }

    /// Never give it again; keep it where an operator can see it.
    pub async fn reject(self, why: impl Into<String>) {
        self.settle.reject(why.into()).await;
    }

    /// Takes the body out and leaves the settling.
    pub fn split(self) -> (T, Delivery<()>) {
        (self.body, Delivery { body: (), redelivered: self.redelivered, settle: self.settle })
    }
}

impl<T: Debug> Debug for Delivery<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery")
            .field("body", &self.body)
            .field("redelivered", &self.redelivered)
            .finish_non_exhaustive()
    }
}
