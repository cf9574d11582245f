//! The names of queues and exchanges, and how they are made. Arguments are the queue type alone: whatever an operator may
//! want to tune is set by policy, and a queue that exists with other arguments is used as it is.

use super::{
    config::{QueueKind, RabbitMqConfig},
    dial::answer,
};
use crate::{
    broker::Route,
    domain::{ClusterName, WorkerId},
};
use anyhow::{Context as _, Result};
use lapin::{
    Connection, ErrorKind, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::{AMQPValue, FieldTable, ShortString},
};
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};
use uuid::Uuid;

/// The routing key of status events; whoever wants them binds a queue with it.
pub(super) const STATUS_KEY: &str = "job.status";

/// The names, and what is known of the things they name.
#[derive(Debug)]
pub(super) struct Topology {
    prefix: String,
    dispatch: QueueKind,
    /// What exists with other arguments than ours: not worth asking for again, nor telling again.
    foreign: Mutex<HashSet<String>>,
}

// Every name fits: 60 bytes of prefix, 63 of a cluster's name, 36 of an id, and our own words, below 255 together.
fn name(text: &str) -> ShortString {
    ShortString::from(text)
}

impl Topology {
    pub(super) fn new(config: &RabbitMqConfig) -> Self {
        Self {
            prefix: config.prefix.as_str().to_owned(),
            dispatch: config.dispatch_queue,
            foreign: Mutex::default(),
        }
    }

    /// The events exchange and the recorder's queue have the same name.
    pub(super) fn events(&self) -> String {
        format!("{}.events", self.prefix)
    }

    pub(super) fn dead(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    pub(super) fn nudge_exchange(&self) -> String {
        format!("{}.nudge", self.prefix)
    }

    pub(super) fn worker_exchange(&self) -> String {
        format!("{}.worker", self.prefix)
    }

    pub(super) fn dispatch(&self, cluster: &ClusterName) -> String {
        format!("{}.dispatch.{cluster}", self.prefix)
    }

    /// What a queue is called in metrics: one name for all workers', for they come and go.
    pub(super) fn label(&self, queue: &str) -> String {
        let name = queue.strip_prefix(&self.prefix).unwrap_or(queue).trim_start_matches('.');
        if name.starts_with("worker.") { "worker".to_owned() } else { name.to_owned() }
    }

    /// Exchange and routing key of a hint.
    pub(super) fn address(&self, route: &Route) -> (ShortString, ShortString) {
        match route {
            Route::Cluster(cluster) => (name(""), name(&self.dispatch(cluster))),
            Route::Worker(worker) => (name(&self.worker_exchange()), name(&worker.to_string())),
        }
    }

    /// What every process relies on: the exchanges, the recorder's queue, the queue of dead letters.
    pub(super) async fn declare_base(&self, connection: &Connection) -> Result<()> {
        self.declare_exchange(connection, &self.events(), ExchangeKind::Topic).await?;
        self.declare_exchange(connection, &self.nudge_exchange(), ExchangeKind::Fanout).await?;
        self.declare_exchange(connection, &self.worker_exchange(), ExchangeKind::Direct).await?;
        self.declare_queue(connection, &self.dead(), QueueKind::Quorum).await?;
        self.declare_queue(connection, &self.events(), QueueKind::Quorum).await?;
        self.bind(connection, &self.events(), &self.events(), STATUS_KEY).await
    }

    pub(super) async fn declare_dispatch(
        &self,
        connection: &Connection,
        cluster: &ClusterName,
    ) -> Result<()> {
        self.declare_queue(connection, &self.dispatch(cluster), self.dispatch).await
    }

    /// A queue of this connection alone that goes with its consumer, reached by the worker's id. Its own name is new each
    /// time: after a cut the broker may hold the old connection, and its queues, for half a minute more.
    pub(super) async fn declare_worker(&self, connection: &Connection, worker: WorkerId) -> Result<String> {
        let queue = format!("{}.worker.{worker}.{}", self.prefix, suffix());
        self.declare_own(connection, &queue).await?;
        self.bind(connection, &queue, &self.worker_exchange(), &worker.to_string()).await?;
        Ok(queue)
    }

    /// A queue of this connection alone that goes with its consumer and gets every nudge.
    pub(super) async fn declare_nudges(&self, connection: &Connection) -> Result<String> {
        let queue = format!("{}.nudge.{}", self.prefix, suffix());
        self.declare_own(connection, &queue).await?;
        self.bind(connection, &queue, &self.nudge_exchange(), "").await?;
        Ok(queue)
    }

    /// Messages ready in a queue; 0 when there is none of that name.
    pub(super) async fn depth(&self, connection: &Connection, queue: &str) -> Result<u64> {
        let channel = answer("open a channel", connection.create_channel()).await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let asked = channel.queue_declare(name(queue), passive, FieldTable::default());
        match answer("ask for a queue's depth", asked).await {
            Ok(found) => {
                answer("close the channel", channel.close(200, "counted".into())).await?;
                Ok(found.message_count().into())
            }
            Err(error) if refused_with(&error, &AMQPSoftError::NOTFOUND) => Ok(0),
            Err(error) => Err(error),
        }
    }

    async fn declare_exchange(
        &self,
        connection: &Connection,
        exchange: &str,
        kind: ExchangeKind,
    ) -> Result<()> {
        let passive = self.is_foreign(exchange);
        let options = ExchangeDeclareOptions { durable: true, passive, ..ExchangeDeclareOptions::default() };
        let channel = answer("open a channel", connection.create_channel()).await?;
        let declared = channel.exchange_declare(name(exchange), kind.clone(), options, FieldTable::default());
        match answer("declare an exchange", declared).await {
            Ok(()) => answer("close the channel", channel.close(200, "declared".into())).await,
            Err(error) if !passive && refused_with(&error, &AMQPSoftError::PRECONDITIONFAILED) => {
                self.found_foreign(exchange, &error);
                Box::pin(self.declare_exchange(connection, exchange, kind)).await
            }
            Err(error) => Err(error.context(format!("exchange {exchange}"))),
        }
    }

    /// Each declaration has a channel of its own: a refusal closes it.
    async fn declare_queue(&self, connection: &Connection, queue: &str, kind: QueueKind) -> Result<()> {
        let passive = self.is_foreign(queue);
        let options = QueueDeclareOptions { passive, ..QueueDeclareOptions::durable() };
        match self.declare(connection, queue, options, kind).await {
            Err(error) if !passive && refused_with(&error, &AMQPSoftError::PRECONDITIONFAILED) => {
                self.found_foreign(queue, &error);
                let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
                self.declare(connection, queue, passive, kind).await
            }
            declared => declared,
        }
        .with_context(|| format!("queue {queue}"))
    }

    async fn declare_own(&self, connection: &Connection, queue: &str) -> Result<()> {
        let own =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        self.declare(connection, queue, own, QueueKind::Classic)
            .await
            .with_context(|| format!("queue {queue}"))
    }

    async fn declare(
        &self,
        connection: &Connection,
        queue: &str,
        options: QueueDeclareOptions,
        kind: QueueKind,
    ) -> Result<()> {
        let channel = answer("open a channel", connection.create_channel()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.as_str().into()));
        let declared = channel.queue_declare(name(queue), options, arguments);
        answer("declare", declared).await?;
        answer("close the channel", channel.close(200, "declared".into())).await
    }

    async fn bind(&self, connection: &Connection, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let channel = answer("open a channel", connection.create_channel()).await?;
        let options = QueueBindOptions::default();
        let bound =
            channel.queue_bind(name(queue), name(exchange), name(key), options, FieldTable::default());
        answer("bind", bound).await.with_context(|| format!("{queue} to {exchange}"))?;
        answer("close the channel", channel.close(200, "bound".into())).await
    }

    fn is_foreign(&self, what: &str) -> bool {
        self.foreign.lock().unwrap_or_else(PoisonError::into_inner).contains(what)
    }

    fn found_foreign(&self, what: &str, error: &anyhow::Error) {
        if self.foreign.lock().unwrap_or_else(PoisonError::into_inner).insert(what.to_owned()) {
            let error = format!("{error:#}");
            tracing::warn!(name = what, error, "exists with other arguments than ours; it is used as it is");
        }
    }
}

fn suffix() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Whether the broker refused with this code: `PRECONDITIONFAILED` when the thing exists with other arguments.
fn refused_with(error: &anyhow::Error, code: &AMQPSoftError) -> bool {
    let refusal = error.chain().find_map(|cause| cause.downcast_ref::<lapin::Error>());
    match refusal.map(lapin::Error::kind) {
        Some(ErrorKind::ProtocolError(refusal)) => {
            matches!(refusal.kind(), AMQPErrorKind::Soft(soft) if soft == code)
        }
        _ => false,
    }
}
