//! The broker of a run: the one in memory, with messages that are lost, doubled and late, behind each process's door.

use crate::{
    plan::{Fault, Flaw, Link},
    process::{Line, Process},
    world::{World, lock},
};
use async_trait::async_trait;
use futures::FutureExt as _;
use jobgate_shared::{
    broker::{
        Broker, BrokerError, BrokerHealth, Delivery, Published, Route, Settle, Source, Subscription,
        memory::Memory,
    },
    domain::{ClusterName, StatusEvent},
    wire::{Hint, Nudge},
};
use std::{
    fmt,
    sync::{Arc, Mutex, Weak},
};
use tokio::sync::{Notify, watch};

/// The broker itself.
#[derive(Debug)]
pub(crate) struct Bells {
    world: Arc<World>,
    inner: Memory,
    health: Mutex<BrokerHealth>,
    /// Something of a kind may be there to be taken.
    stirred: [Notify; 3],
}

/// What a subscription is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hints,
    Events,
    Nudges,
}

impl Bells {
    pub(crate) fn new(world: &Arc<World>) -> Arc<Self> {
        let (world, health) = (world.clone(), Mutex::new(BrokerHealth::Up));
        Arc::new(Self { world, inner: Memory::new(), health, stirred: Default::default() })
    }

    pub(crate) fn health(&self) -> BrokerHealth {
        *lock(&self.health)
    }

    /// How it is, from now on; the processes are to be told.
    pub(crate) fn set_health(&self, health: BrokerHealth) {
        self.world.say(|| format!("the broker is {health:?}"));
        *lock(&self.health) = health;
        self.ring();
    }

    /// Everybody looks again.
    pub(crate) fn ring(&self) {
        for kind in [Kind::Hints, Kind::Events, Kind::Nudges] {
            self.ring_for(kind);
        }
    }

    fn ring_for(&self, kind: Kind) {
        self.stirred[kind as usize].notify_waiters();
    }

    /// Empties a cluster's queue.
    pub(crate) fn purge(&self, cluster: &ClusterName) {
        self.world.say(|| format!("the queue of {cluster} is emptied"));
        let mut all = self.inner.hints(&[Route::Cluster(cluster.clone())], u16::MAX);
        while let Some(Some(delivery)) = all.next().now_or_never() {
            delivery.ack().now_or_never();
        }
    }

    fn put_hint(self: &Arc<Self>, route: &Route, hint: Hint) -> Result<Published, BrokerError> {
        let publish = |bells: &Self, hint| {
            let answer = bells.inner.publish_hint(route, hint).now_or_never();
            bells.ring_for(Kind::Hints);
            answer.unwrap_or(Err(BrokerError::Blocked))
        };
        if self.world.strikes(Fault::HintDropped) {
            return Ok(Published::Routed);
        }
        if self.world.strikes(Fault::HintDelayed) {
            let (bells, route) = (self.clone(), route.clone());
            let by = self.world.dice().millis(0, 8_000);
            let late = async move {
                // By then there may be nobody.
                drop(bells.inner.publish_hint(&route, hint).await);
                bells.ring_for(Kind::Hints);
            };
            self.world.later(by, late.boxed());
            return Ok(Published::Routed);
        }
        if self.world.strikes(Fault::HintDoubled) {
            drop(publish(self, hint.clone()));
        }
        publish(self, hint)
    }

    fn put_events(self: &Arc<Self>, events: Vec<StatusEvent>) {
        let publish = |bells: &Self, events| {
            // There is always room: nobody tells a hundred thousand events here.
            drop(bells.inner.publish_events(events).now_or_never());
            bells.ring_for(Kind::Events);
        };
        if self.world.strikes(Fault::EventsDropped) {
            return;
        }
        if self.world.strikes(Fault::EventsDelayed) {
            let by = self.world.dice().millis(0, 8_000);
            let bells = self.clone();
            self.world.later(by, async move { publish(&bells, events) }.boxed());
            return;
        }
        if self.world.strikes(Fault::EventsDoubled) {
            publish(self, events.clone());
        }
        publish(self, events);
    }
}

/// A process's door to the broker.
#[derive(Debug)]
pub(crate) struct BrokerDoor {
    process: Arc<Process>,
    bells: Arc<Bells>,
}

impl BrokerDoor {
    pub(crate) fn new(process: &Arc<Process>, bells: &Arc<Bells>) -> Arc<Self> {
        Arc::new(Self { process: process.clone(), bells: bells.clone() })
    }

    /// Carries a message there, unless the broker is known to be away.
    async fn publish<T: Send + 'static>(
        &self,
        put: impl FnOnce(&Arc<Bells>) -> Result<T, BrokerError> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let bells = self.bells.clone();
        let call = async move {
            match bells.health() {
                BrokerHealth::Up => put(&bells),
                BrokerHealth::Blocked => Err(BrokerError::Blocked),
                BrokerHealth::Down => Err(down()),
            }
        };
        self.process.carry(Link::Broker, call.boxed()).await.unwrap_or_else(|| Err(down()))
    }

    fn subscribe<T: Send + 'static>(
        &self,
        kind: Kind,
        early: bool,
        open: impl Fn(&Memory) -> Subscription<T> + Send + Sync + 'static,
    ) -> Subscription<T> {
        let (process, bells) = (self.process.clone(), self.bells.clone());
        let held = Arc::new(Held { bells, kind, open: Box::new(open), inner: Mutex::new(None) });
        if !process.is_dead() && !process.is_cut(Link::Broker) && self.bells.health() != BrokerHealth::Down {
            held.dial();
        }
        let line: Weak<Held<T>> = Arc::downgrade(&held);
        process.add_line(line);
        Subscription::new(Reading { process, held, early })
    }
}

fn down() -> BrokerError {
    BrokerError::Down(anyhow::anyhow!("no connection"))
}

/// Subscribes.
type Open<T> = dyn Fn(&Memory) -> Subscription<T> + Send + Sync;

/// A subscription as the broker knows it; gone with the connection, and opened anew with the next.
struct Held<T> {
    bells: Arc<Bells>,
    kind: Kind,
    open: Box<Open<T>>,
    inner: Mutex<Option<Subscription<T>>>,
}

impl<T: Send> Line for Held<T> {
    fn hang_up(&self) {
        let gone = lock(&self.inner).take();
        drop(gone);
        self.bells.ring_for(self.kind);
    }

    fn dial(&self) {
        let mut inner = lock(&self.inner);
        inner.get_or_insert_with(|| (self.open)(&self.bells.inner));
        drop(inner);
        self.bells.ring_for(self.kind);
    }
}

/// The process's half.
struct Reading<T> {
    process: Arc<Process>,
    held: Arc<Held<T>>,
    /// Takes what it gives out for done.
    early: bool,
}

#[async_trait]
impl<T: Send + 'static> Source<T> for Reading<T> {
    async fn next(&mut self) -> Option<Delivery<T>> {
        let bells = &self.held.bells;
        loop {
            let stirred = bells.stirred[self.held.kind as usize].notified();
            if self.process.is_dead() {
                std::future::pending::<()>().await;
            }
            if self.process.is_running() && bells.health() != BrokerHealth::Down {
                let next = lock(&self.held.inner).as_mut().and_then(|inner| inner.next().now_or_never());
                if let Some(Some(delivery)) = next {
                    if self.held.kind == Kind::Nudges {
                        // There is nothing to settle.
                        return Some(delivery);
                    }
                    let redelivered = delivery.redelivered;
                    let (body, mut inner) = delivery.split();
                    if self.early {
                        inner.ack().now_or_never();
                        inner = Delivery::new((), redelivered, Box::new(Done));
                    }
                    let (process, bells, kind) = (self.process.clone(), bells.clone(), self.held.kind);
                    let settle = Receipt { inner: Some(inner), process, bells, kind };
                    return Some(Delivery::new(body, redelivered, Box::new(settle)));
                }
            }
            stirred.await;
        }
    }
}

impl<T> Drop for Reading<T> {
    fn drop(&mut self) {
        let gone = lock(&self.held.inner).take();
        drop(gone);
        self.held.bells.ring_for(self.held.kind);
    }
}

/// Settles what is settled already.
struct Done;

#[async_trait]
impl Settle for Done {
    async fn ack(self: Box<Self>, _through: bool) {}
    async fn retry(self: Box<Self>) {}
    async fn reject(self: Box<Self>, _why: String) {}
}

/// What a process holds of a delivery.
struct Receipt {
    inner: Option<Delivery<()>>,
    process: Arc<Process>,
    bells: Arc<Bells>,
    kind: Kind,
}

impl Receipt {
    /// The delivery to settle; nothing when that cannot reach the broker, which then gives it again.
    async fn reached(&mut self) -> Option<Delivery<()>> {
        self.process.awake().await;
        let away = self.process.is_cut(Link::Broker) || self.bells.health() == BrokerHealth::Down;
        self.inner.take().filter(|_| !away)
    }
}

#[async_trait]
impl Settle for Receipt {
    async fn ack(mut self: Box<Self>, through: bool) {
        match self.reached().await {
            Some(delivery) if through => delivery.ack_through().await,
            Some(delivery) => delivery.ack().await,
            None => {}
        }
    }

    async fn retry(mut self: Box<Self>) {
        if let Some(delivery) = self.reached().await {
            delivery.retry().await;
        }
    }

    async fn reject(mut self: Box<Self>, why: String) {
        self.process.world.wrong(|| format!("a message is rejected: {why}"));
        if let Some(delivery) = self.reached().await {
            delivery.reject(why).await;
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        drop(self.inner.take());
        self.bells.ring_for(self.kind);
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receipt")
    }
}

#[async_trait]
impl Broker for BrokerDoor {
    async fn publish_hint(&self, route: &Route, hint: Hint) -> Result<Published, BrokerError> {
        let route = route.clone();
        let name = self.process.name.clone();
        self.publish(move |bells| {
            let jobs = hint.jobs.len();
            let put = bells.put_hint(&route, hint);
            bells.world.say(|| format!("{name} hints {jobs} jobs to {route:?}: {put:?}"));
            put
        })
        .await
    }

    async fn publish_events(&self, events: Vec<StatusEvent>) -> Result<(), BrokerError> {
        self.publish(move |bells| {
            bells.put_events(events);
            Ok(())
        })
        .await
    }

    async fn nudge(&self, nudge: Nudge) -> Result<(), BrokerError> {
        self.publish(move |bells| {
            if !bells.world.strikes(Fault::NudgeDropped) {
                drop(bells.inner.nudge(nudge).now_or_never());
                bells.ring_for(Kind::Nudges);
            }
            Ok(())
        })
        .await
    }

    fn hints(&self, routes: &[Route], prefetch: u16) -> Subscription<Hint> {
        let routes = routes.to_vec();
        let early = self.process.world.plan.flaw == Flaw::HintsAreLost;
        self.subscribe(Kind::Hints, early, move |inner| inner.hints(&routes, prefetch))
    }

    fn events(&self, prefetch: u16) -> Subscription<Vec<StatusEvent>> {
        self.subscribe(Kind::Events, false, move |inner| inner.events(prefetch))
    }

    fn nudges(&self) -> Subscription<Nudge> {
        self.subscribe(Kind::Nudges, false, Memory::nudges)
    }

    async fn hints_waiting(&self, cluster: &ClusterName) -> Option<u64> {
        if !self.process.world.plan.tells_waiting {
            return None;
        }
        let cluster = cluster.clone();
        let asked = self.publish(move |bells| {
            let waiting = bells.inner.hints_waiting(&cluster).now_or_never();
            Ok(waiting.flatten())
        });
        asked.await.ok().flatten()
    }

    async fn events_behind(&self) -> Option<u64> {
        None
    }

    fn health(&self) -> watch::Receiver<BrokerHealth> {
        let reached = !self.process.is_dead() && !self.process.is_cut(Link::Broker);
        self.process.health(if reached { self.bells.health() } else { BrokerHealth::Down })
    }

    async fn close(&self) {}
}
