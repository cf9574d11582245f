//! What RabbitMQ itself can do, measured with a queue of its own: what measurements are read against.

use super::{
    condition::Role,
    config::RabbitMqConfig,
    dial::{answer, dial},
};
use anyhow::{Result, ensure};
use lapin::{
    BasicProperties, Channel, Confirmation, PublisherConfirm,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use std::collections::VecDeque;
use tokio::time::Instant;

/// About a hint's size.
const BODY: [u8; 100] = [b'x'; 100];

/// Durable messages of 100 bytes that one channel publishes and has confirmed in a second, with each of these many at most
/// unconfirmed, into a queue of the kind hints are kept in.
pub async fn publish_floors(config: &RabbitMqConfig, windows: &[usize]) -> Result<Vec<f64>> {
    let connection = dial(config, "jobgate bench", Role::Publish).await?;
    let channel = answer("open a channel", connection.create_channel()).await?;
    answer("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let queue = ShortString::from(format!("{}.floors.{}", config.prefix.as_str(), std::process::id()));
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(config.dispatch_queue.as_str().into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    answer("declare a queue", channel.queue_declare(queue.clone(), options, arguments)).await?;
    let mut rates = Vec::new();
    for window in windows {
        // A second's worth on a usual machine; a window of one is a round trip each.
        let messages = if *window == 1 { 1_000 } else { 20_000 };
        rates.push(publish(&channel, &queue, *window, messages).await?);
    }
    answer("delete a queue", channel.queue_delete(queue, QueueDeleteOptions::default())).await?;
    answer("close the connection", connection.close(200, "bye".into())).await?;
    Ok(rates)
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
