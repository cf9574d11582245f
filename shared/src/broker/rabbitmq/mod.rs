//! The broker behind RabbitMQ (3.10 to 4.x). The only module that knows the client library.
//!
//! * [`publisher`] and [`flight`]: the one task that publishes, on a connection of its own; [`verdicts`] decides what a
//!   confirm means.
//! * [`link`]: the other connection. [`subscription`], [`settling`] and [`tags`]: what is consumed over it.
//! * [`topology`]: queues and exchanges. [`dial`]: connecting. [`condition`]: the health both see.
//! * [`scratch`]: names for a measurement, and what the server itself can do.
//!
//! Nothing here waits for the broker without a bound, except a subscription for its next delivery.

mod condition;
mod config;
mod dial;
mod flight;
mod link;
mod publisher;
mod scratch;
mod settling;
mod subscription;
mod tags;
mod topology;
mod verdicts;

pub use config::{AmqpUrl, Prefix, PrefixError, QueueKind, RabbitMqConfig, UrlError};
pub use scratch::ScratchNames;

use super::{Broker, BrokerError, BrokerHealth, Published, Route, Subscription};
use crate::{
    domain::{ClusterName, StatusEvent},
    retry::Delays,
    supervise::Tasks,
    wire::{Hint, MAX_EVENTS, Message as _, Nudge},
};
use anyhow::{Result, anyhow};
use async_trait::async_trait;
use bytes::Bytes;
use condition::Condition;
use flight::{Kind, Letter};
use futures::future::try_join_all;
use lapin::types::{FieldTable, ShortString};
use link::Link;
use publisher::{Office, Publisher};
use std::{fmt, future::Future, sync::Arc, time::Duration};
use subscription::{Feed, Reader};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use topology::{STATUS_KEY, Topology};

/// Who logs a warning for each message that had no queue: the library. Here that is everyday life, told by the answer
/// (`Published::Unroutable`), so whoever sets up logging may hush it.
pub const RETURNED_MESSAGES: &str = "lapin::returned_messages";

/// For how long a negative confirm may mean that a queue is without a leader.
const LEADERLESS: Duration = Duration::from_secs(2);
/// How long a depth is good enough for metrics.
const DEPTH_AGE: Duration = Duration::from_secs(5);

/// A RabbitMQ, kept connected to in the background.
pub struct RabbitMq {
    config: RabbitMqConfig,
    condition: Arc<Condition>,
    topology: Arc<Topology>,
    publisher: Publisher,
    link: Link,
    reader: Reader,
    /// The connections, which outlive what reads over them.
    connections: Tasks,
    depth: Mutex<Option<(Instant, Option<u64>)>>,
    /// Ends everything also when it is dropped without `close`.
    _end: DropGuard,
}

impl RabbitMq {
    /// Begins to connect, in the background, and goes on until `close`; never fails because the broker is away. `process`
    /// names the connections in RabbitMQ's own tools. Must be called inside the runtime.
    pub fn connect_lazily(config: RabbitMqConfig, process: impl Into<String>) -> Self {
        let (process, shutdown) = (process.into(), CancellationToken::new());
        let connections = Tasks::new(shutdown.clone());
        let condition = Arc::new(Condition::new());
        let topology = Arc::new(Topology::new(&config));
        let office = Office {
            config: config.clone(),
            process: process.clone(),
            topology: topology.clone(),
            condition: condition.clone(),
            tasks: connections.clone(),
        };
        let publisher = Publisher::start(office);
        let link = Link::start(config.clone(), process, condition.clone(), &connections);
        let reader = Reader {
            link: link.clone(),
            publisher: publisher.clone(),
            topology: topology.clone(),
            tasks: Tasks::new(shutdown.child_token()),
        };
        Self {
            config,
            condition,
            topology,
            publisher,
            link,
            reader,
            connections,
            depth: Mutex::default(),
            _end: shutdown.drop_guard(),
        }
    }

    /// Publishes again what is refused, for a while: a quorum queue that is new, or whose leader went, says no to everything.
    async fn publish(
        &self,
        kind: Kind,
        (exchange, routing_key): (ShortString, ShortString),
        body: Bytes,
    ) -> Result<Published, BrokerError> {
        let mut delays = Delays::new(Duration::from_millis(10), Duration::from_millis(250));
        let began = Instant::now();
        loop {
            let (exchange, routing_key) = (exchange.clone(), routing_key.clone());
            let (body, headers) = (body.clone(), FieldTable::default());
            let letter = Letter { kind, exchange, routing_key, body, headers, reply: None };
            match self.publisher.publish(letter).await {
                Err(BrokerError::Refused(_)) if began.elapsed() < LEADERLESS => {
                    tokio::time::sleep(delays.next_delay()).await;
                }
                answer => return answer,
            }
        }
    }

    /// Runs a declaration, over the connection no alarm can block.
    async fn make(&self, declaration: impl Future<Output = Result<()>>) -> Result<(), BrokerError> {
        let patience = *self.config.publish_timeout;
        let made = timeout(patience, declaration).await.unwrap_or_else(|_| Err(anyhow!("no answer")));
        made.map_err(BrokerError::Down)
    }

    /// Messages ready in a queue; `None` when the broker does not tell soon.
    async fn waiting_in(&self, queue: &str) -> Option<u64> {
        let asking = async { self.topology.depth(&*self.link.connection().await, queue).await };
        match timeout(dial::GRACE, asking).await {
            Ok(Ok(waiting)) => Some(waiting),
            Ok(Err(error)) => {
                tracing::debug!(queue, error = format!("{error:#}"), "a queue's depth is not known");
                None
            }
            Err(_) => None,
        }
    }

    async fn publish_status(&self, body: Bytes) -> Result<(), BrokerError> {
        let address = || (ShortString::from(self.topology.events()), ShortString::from(STATUS_KEY));
        if self.publish(Kind::Events, address(), body.clone()).await? == Published::Routed {
            return Ok(());
        }
        self.make(async { self.topology.declare_base(&*self.link.connection().await).await }).await?;
        match self.publish(Kind::Events, address(), body).await? {
            Published::Routed => Ok(()),
            Published::Unroutable => Err(BrokerError::Refused(anyhow!("no queue takes status events"))),
        }
    }
}

impl fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMq").field("config", &self.config).finish_non_exhaustive()
    }
}

#[async_trait]
impl Broker for RabbitMq {
    async fn publish_hint(&self, route: &Route, hint: Hint) -> Result<Published, BrokerError> {
        let body = Bytes::from(hint.encode());
        let published = self.publish(Kind::Hint, self.topology.address(route), body.clone()).await?;
        match (published, route) {
            (Published::Routed, _) | (Published::Unroutable, Route::Worker(_)) => Ok(published),
            (Published::Unroutable, Route::Cluster(cluster)) => {
                let made =
                    async { self.topology.declare_dispatch(&*self.link.connection().await, cluster).await };
                self.make(made).await?;
                self.publish(Kind::Hint, self.topology.address(route), body).await
            }
        }
    }

    async fn publish_events(&self, events: Vec<StatusEvent>) -> Result<(), BrokerError> {
        let mut events = events.into_iter();
        let bodies = std::iter::from_fn(|| {
            let message: Vec<StatusEvent> = events.by_ref().take(MAX_EVENTS).collect();
            (!message.is_empty()).then(|| message.encode())
        });
        // First polled in this order, which is the order in which they reach the publisher.
        try_join_all(bodies.map(|body| self.publish_status(body.into()))).await?;
        Ok(())
    }

    async fn nudge(&self, nudge: Nudge) -> Result<(), BrokerError> {
        let address = (self.topology.nudge_exchange().into(), ShortString::default());
        match self.publish(Kind::Nudge, address, nudge.encode().into()).await? {
            // Nobody listening is nobody missing it.
            Published::Routed | Published::Unroutable => Ok(()),
        }
    }

    fn hints(&self, routes: &[Route], prefetch: u16) -> Subscription<Hint> {
        Subscription::new(self.reader.subscribe(Feed::Hints { routes: routes.to_vec(), prefetch }))
    }

    fn events(&self, prefetch: u16) -> Subscription<Vec<StatusEvent>> {
        Subscription::new(self.reader.subscribe(Feed::Events { prefetch }))
    }

    fn nudges(&self) -> Subscription<Nudge> {
        Subscription::new(self.reader.subscribe(Feed::Nudges))
    }

    async fn hints_waiting(&self, cluster: &ClusterName) -> Option<u64> {
        self.waiting_in(&self.topology.dispatch(cluster)).await
    }

    async fn events_behind(&self) -> Option<u64> {
        let mut depth = self.depth.lock().await;
        if let Some((asked, behind)) = *depth
            && asked.elapsed() < DEPTH_AGE
        {
            return behind;
        }
        let behind = self.waiting_in(&self.topology.events()).await;
        *depth = Some((Instant::now(), behind));
        behind
    }

    fn health(&self) -> watch::Receiver<BrokerHealth> {
        self.condition.watch()
    }

    async fn close(&self) {
        // Channels before their connections: what is out goes back in order.
        self.reader.tasks.stop().await;
        self.connections.stop().await;
    }
}
