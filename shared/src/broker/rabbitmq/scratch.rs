//! Names of their own for a measurement, removed after it; and what the server itself can do, measured under such a name.

use super::{
    condition::Role,
    config::{Prefix, RabbitMqConfig},
    dial::{answer, dial},
    topology::Topology,
};
use crate::{domain::ClusterName, supervise::Tasks};
use anyhow::{Result, ensure};
use lapin::{
    BasicProperties, Channel, Confirmation, PublisherConfirm,
    options::{
        BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};
use std::collections::VecDeque;
use tokio::time::Instant;
use uuid::Uuid;

/// About a hint's size.
const BODY: [u8; 100] = [b'x'; 100];
const PROCESS: &str = "jobgate measurement";

/// Names that nobody else uses, until [`ScratchNames::remove`].
#[derive(Debug)]
pub struct ScratchNames {
    /// How the server is reached, and the prefix of the names.
    pub config: RabbitMqConfig,
}

impl ScratchNames {
    /// Names on the configured server; nothing is made yet.
    pub fn choose(server: &RabbitMqConfig) -> Self {
        let prefix = Prefix::scratch(Uuid::new_v4());
        Self { config: RabbitMqConfig { prefix, ..server.clone() } }
    }

    /// Removes every queue and exchange under the names, for these clusters. No process uses them any more.
    pub async fn remove(self, clusters: &[ClusterName]) -> Result<()> {
        let connection = dial(&self.config, PROCESS, Role::Publish, &Tasks::default()).await?;
        let channel = answer("open a channel", connection.create_channel()).await?;
        let topology = Topology::new(&self.config);
        let shared = [topology.events(), topology.dead(), self.floors_queue()];
        // One that is not there is removed as well.
        for queue in shared.into_iter().chain(clusters.iter().map(|cluster| topology.dispatch(cluster))) {
            let deleted = channel.queue_delete(queue.into(), QueueDeleteOptions::default());
            answer("delete a queue", deleted).await?;
        }
        for exchange in [topology.events(), topology.nudge_exchange(), topology.worker_exchange()] {
            let deleted = channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default());
            answer("delete an exchange", deleted).await?;
        }
        answer("close the connection", connection.close(200, "bye".into())).await
    }

    fn floors_queue(&self) -> String {
        format!("{}.floors", self.config.prefix.as_str())
    }

    /// Durable messages of 100 bytes that one channel publishes and has confirmed in a second, with each of these many at
    /// most unconfirmed, into a queue of the kind hints are kept in.
    pub async fn publish_floors(&self, windows: &[usize]) -> Result<Vec<f64>> {
        let connection = dial(&self.config, PROCESS, Role::Publish, &Tasks::default()).await?;
        let channel = answer("open a channel", connection.create_channel()).await?;
        answer("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let queue = ShortString::from(self.floors_queue());
        let mut arguments = FieldTable::default();
        let kind = self.config.dispatch_queue.as_str();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        let declared = channel.queue_declare(queue.clone(), QueueDeclareOptions::durable(), arguments);
        answer("declare a queue", declared).await?;
        let mut rates = Vec::new();
        for window in windows {
            // A second's worth on a usual machine; a window of one is a round trip each.
            let messages = if *window == 1 { 1_000 } else { 20_000 };
            rates.push(publish(&channel, &queue, *window, messages).await?);
        }
        answer("delete the queue", channel.queue_delete(queue, QueueDeleteOptions::default())).await?;
        answer("close the connection", connection.close(200, "bye".into())).await?;
        Ok(rates)
    }
}

async fn publish(channel: &Channel, queue: &ShortString, window: usize, messages: u32) -> Result<f64> {
    let (options, properties) =
        (BasicPublishOptions::default(), BasicProperties::default().with_delivery_mode(2));
    let mut unconfirmed: VecDeque<PublisherConfirm> = VecDeque::with_capacity(window);
    let began = Instant::now();
    for _ in 0..messages {
        if unconfirmed.len() == window {
            confirmed(&mut unconfirmed).await?;
        }
        let sent = channel.basic_publish("".into(), queue.clone(), options, &BODY, properties.clone());
        unconfirmed.push_back(answer("publish", sent).await?);
    }
    while !unconfirmed.is_empty() {
        confirmed(&mut unconfirmed).await?;
    }
    Ok(f64::from(messages) / began.elapsed().as_secs_f64())
}

async fn confirmed(unconfirmed: &mut VecDeque<PublisherConfirm>) -> Result<()> {
    let Some(oldest) = unconfirmed.pop_front() else { return Ok(()) };
    let confirmation = answer("a confirm", oldest).await?;
    ensure!(matches!(confirmation, Confirmation::Ack(None)), "the broker answered {confirmation:?}");
    Ok(())
}
