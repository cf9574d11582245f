//! Settles deliveries of one channel. Acknowledgements are handed to the channel in the order decided, under one lock, and
//! not waited for: one that does not reach the broker means the message comes again, which everybody expects anyway.
//!
//! A delivery holds its own channel's desk. A later channel of the same subscription has another, so a tag is never
//! settled on a channel that did not give it.

use super::{
    dial::{ANSWER, delays},
    flight::{Kind, Letter},
    subscription::Reader,
    tags::{Ack, Tag, Tags},
};
use crate::broker::{Published, Settle};
use anyhow::{Result, anyhow};
use async_trait::async_trait;
use futures::FutureExt as _;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicNackOptions},
    types::{AMQPValue, FieldTable},
};
use metrics::Counter;
use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::Notify, time::timeout};

/// Longest reason written beside a dead letter, in bytes.
const LONGEST_REASON: usize = 1_000;

/// Counts messages of a queue that went to the dead letters.
pub(super) fn poison(queue: String) -> Counter {
    metrics::counter!("jobgate_broker_poison_total", "queue" => queue)
}

/// What settles the deliveries of one channel.
pub(super) struct Desk {
    channel: Channel,
    prefetch: usize,
    tags: Mutex<Tags>,
    settled: Notify,
    reader: Reader,
}

impl Desk {
    pub(super) fn new(channel: Channel, prefetch: u16, reader: Reader) -> Self {
        let (tags, settled) = (Mutex::default(), Notify::new());
        Self { channel, prefetch: prefetch.into(), tags, settled, reader }
    }

    /// Whether one more delivery may be out.
    pub(super) fn has_room(&self) -> bool {
        self.tags().len() < self.prefetch
    }

    /// Something was settled since this was last waited for.
    pub(super) async fn room(&self) {
        self.settled.notified().await;
    }

    fn tags(&self) -> MutexGuard<'_, Tags> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ack(&self, tag: Tag) {
        let mut tags = self.tags();
        if tags.settle(tag) {
            self.write_ack(Ack { tag, multiple: false });
        }
        drop(tags);
        self.settled.notify_one();
    }

    fn ack_through(&self, tag: Tag) {
        let mut tags = self.tags();
        for ack in tags.settle_through(tag) {
            self.write_ack(ack);
        }
        drop(tags);
        self.settled.notify_one();
    }

    fn buried(&self, tag: Tag) {
        let mut tags = self.tags();
        if tags.unpark(tag) {
            self.write_ack(Ack { tag, multiple: false });
        }
        drop(tags);
        self.settled.notify_one();
    }

    /// Gives the message back, unless it is settled or parked.
    fn give_back(&self, tag: Tag) {
        let mut tags = self.tags();
        if tags.settle(tag) {
            let options = BasicNackOptions { requeue: true, multiple: false };
            hand_over(self.channel.basic_nack(tag, options));
        }
        drop(tags);
        self.settled.notify_one();
    }

    fn write_ack(&self, Ack { tag, multiple }: Ack) {
        hand_over(self.channel.basic_ack(tag, BasicAckOptions { multiple }));
    }

    /// Publishes the message among the dead letters, then acknowledges it. Tries until it succeeds, or the channel is gone:
    /// then the message comes again.
    async fn bury(self: Arc<Self>, tag: Tag, queue: Arc<str>, bytes: Vec<u8>, why: String) {
        let shutdown = self.reader.tasks.shutdown().clone();
        shutdown.run_until_cancelled(self.try_to_bury(tag, &queue, &bytes, &why)).await;
    }

    async fn try_to_bury(&self, tag: Tag, queue: &str, bytes: &[u8], why: &str) {
        let mut delays = delays();
        while self.channel.status().connected() {
            match self.publish_dead(queue, bytes, why).await {
                Ok(()) => {
                    poison(self.reader.topology.label(queue)).increment(1);
                    tracing::warn!(queue, why, "a message went to the dead letters");
                    return self.buried(tag);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::debug!(queue, error, "a dead letter could not be published yet");
                }
            }
            tokio::time::sleep(delays.next_delay()).await;
        }
    }

    async fn publish_dead(&self, queue: &str, bytes: &[u8], why: &str) -> Result<()> {
        let mut headers = FieldTable::default();
        let why = &why[..why.floor_char_boundary(LONGEST_REASON)];
        headers.insert("jobgate-reason".into(), AMQPValue::LongString(why.into()));
        headers.insert("jobgate-queue".into(), AMQPValue::LongString(queue.into()));
        let dead = self.reader.topology.dead();
        let letter = Letter {
            kind: Kind::Dead,
            exchange: "".into(),
            routing_key: dead.as_str().into(),
            body: bytes.to_vec().into(),
            headers,
            reply: None,
        };
        match self.reader.publisher.publish(letter).await? {
            Published::Routed => Ok(()),
            Published::Unroutable => {
                let declare = async {
                    let connection = self.reader.link.connection().await;
                    self.reader.topology.declare_base(&connection).await
                };
                timeout(ANSWER, declare).await??;
                Err(anyhow!("{dead} was not there"))
            }
        }
    }
}

/// Polls once: that queues the frame for writing, in the order of these calls. (The library's own ackers write in no
/// order: each acknowledgement is a task.)
fn hand_over(written: impl Future<Output = lapin::Result<()>>) {
    if let Some(Err(error)) = written.now_or_never() {
        tracing::debug!(%error, "a delivery could not be settled; it comes again");
        metrics::counter!("jobgate_broker_settles_lost_total").increment(1);
    }
}

/// A delivery in somebody's hands.
pub(super) struct Unsettled {
    desk: Arc<Desk>,
    tag: Tag,
    queue: Arc<str>,
    bytes: Vec<u8>,
}

impl Unsettled {
    pub(super) fn new(desk: Arc<Desk>, tag: Tag, queue: Arc<str>, bytes: Vec<u8>) -> Self {
        desk.tags().hand_out(tag);
        Self { desk, tag, queue, bytes }
    }

    /// Sends it to the dead letters, in the background.
    pub(super) fn bury(mut self, why: String) {
        if self.desk.tags().park(self.tag) {
            let (desk, queue, bytes) =
                (self.desk.clone(), self.queue.clone(), std::mem::take(&mut self.bytes));
            let burial = desk.clone().bury(self.tag, queue, bytes, why);
            desk.reader.tasks.spawn("dead letter", burial);
        }
    }
}

#[async_trait]
impl Settle for Unsettled {
    async fn ack(self: Box<Self>, through: bool) {
        if through {
            self.desk.ack_through(self.tag);
        } else {
            self.desk.ack(self.tag);
        }
    }

    async fn retry(self: Box<Self>) {
        // Dropping it is giving it back.
    }

    async fn reject(self: Box<Self>, why: String) {
        self.bury(why);
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.desk.give_back(self.tag);
    }
}
