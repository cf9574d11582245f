//! Subscriptions: a task each, which consumes on a channel of its own, builds everything anew whenever the channel ends,
//! and closes it when the subscription is dropped, so that what was out goes back.

use super::{
    dial::{GOOD_LIFE, GRACE, LOOK, answer, delays},
    link::Link,
    publisher::Publisher,
    settling::{Desk, Unsettled, poison},
    topology::Topology,
};
use crate::{
    broker::{Delivery, Route, Settle, Source},
    supervise::Tasks,
    wire::Message,
};
use anyhow::{Context as _, Result, anyhow};
use async_trait::async_trait;
use futures::StreamExt as _;
use lapin::{
    Channel, Connection, Consumer,
    message::Delivery as Received,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Most nudges a process has not taken; one more is dropped, for those that wait say the same.
const WAITING_NUDGES: usize = 1_024;

/// What is consumed.
#[derive(Debug, Clone)]
pub(super) enum Feed {
    /// The queues these routes end in.
    Hints { routes: Vec<Route>, prefetch: u16 },
    /// The recorder's queue.
    Events { prefetch: u16 },
    /// A queue of its own that gets every nudge.
    Nudges,
}

impl Feed {
    /// Most messages out at once; `None` where nothing is settled.
    fn prefetch(&self) -> Option<u16> {
        match self {
            Self::Hints { prefetch, .. } | Self::Events { prefetch } => Some((*prefetch).max(1)),
            Self::Nudges => None,
        }
    }
}

/// What subscriptions work with.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    pub(super) link: Link,
    pub(super) publisher: Publisher,
    pub(super) topology: Arc<Topology>,
    pub(super) tasks: Tasks,
}

impl Reader {
    /// Starts a subscription.
    pub(super) fn subscribe<T: Message>(&self, feed: Feed) -> Inbox<T> {
        let waiting = feed.prefetch().map_or(WAITING_NUDGES, usize::from);
        let (deliveries, inbox) = mpsc::channel(waiting);
        let (reader, shutdown) = (self.clone(), self.tasks.shutdown().clone());
        self.tasks.spawn("subscription", async move { reader.keep(feed, &deliveries, &shutdown).await });
        Inbox { inbox, shutdown: self.tasks.shutdown().clone() }
    }

    async fn keep<T: Message>(
        &self,
        feed: Feed,
        deliveries: &mpsc::Sender<Delivery<T>>,
        shutdown: &CancellationToken,
    ) {
        let mut delays = delays();
        loop {
            let began = Instant::now();
            let connection = tokio::select! {
                connection = self.link.connection() => connection,
                () = gone(deliveries, shutdown) => break,
            };
            // Given up halfway only with the connection, for each step has a bound: the library breaks the whole connection
            // when the channels of abandoned steps close at the wrong moment.
            let opening = Intake::open(self, &connection, &feed);
            let Some(opened) = shutdown.run_until_cancelled(opening).await else { break };
            let error = match opened {
                Ok(mut intake) => {
                    let ended = tokio::select! {
                        error = intake.serve(deliveries) => Some(error),
                        () = gone(deliveries, shutdown) => None,
                    };
                    intake.close().await;
                    ended
                }
                Err(error) => Some(error),
            };
            let Some(error) = error else { break };
            if began.elapsed() > GOOD_LIFE {
                delays.reset();
            }
            let (delay, why) = (delays.next_delay(), format!("{error:#}"));
            tracing::warn!(error = why, ?feed, ?delay, "a subscription was cut off; subscribing again");
            tokio::select! {
                () = sleep(delay) => {}
                () = gone(deliveries, shutdown) => break,
            }
        }
    }
}

/// Whoever took the deliveries has gone, or everything ends.
async fn gone<T>(deliveries: &mpsc::Sender<T>, shutdown: &CancellationToken) {
    tokio::select! {
        () = deliveries.closed() => {}
        () = shutdown.cancelled() => {}
    }
}

/// A queue being consumed.
struct Tap {
    queue: Arc<str>,
    consumer: Consumer,
}

/// One channel's worth of a subscription.
struct Intake {
    channel: Channel,
    taps: Vec<Tap>,
    /// Received and not handed out, by tag, with the place of its tap.
    waiting: BTreeMap<u64, (usize, Received)>,
    /// Where deliveries are settled; none for nudges.
    desk: Option<Arc<Desk>>,
}

impl Intake {
    /// Makes the queues and consumes them on a new channel.
    async fn open(reader: &Reader, connection: &Connection, feed: &Feed) -> Result<Self> {
        let queues = declare(reader, connection, feed).await?;
        let channel = answer("open a channel", connection.create_channel()).await?;
        let no_ack = feed.prefetch().is_none();
        let mut taps = Vec::new();
        for (queue, prefetch) in queues {
            // Before each consume: it bounds the consumers that come after it, each by itself.
            let bounded = channel.basic_qos(prefetch, BasicQosOptions { global: false });
            answer("bound the prefetch", bounded).await?;
            let options = BasicConsumeOptions { no_ack, ..BasicConsumeOptions::default() };
            let asked =
                channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
            let consumer = answer("consume", asked).await.with_context(|| format!("queue {queue}"))?;
            if !no_ack {
                // There from now on, at 0: whoever watches increases is to see the first as one.
                poison(reader.topology.label(&queue)).increment(0);
            }
            taps.push(Tap { queue: queue.into(), consumer });
        }
        let desk =
            feed.prefetch().map(|prefetch| Arc::new(Desk::new(channel.clone(), prefetch, reader.clone())));
        Ok(Self { channel, taps, waiting: BTreeMap::new(), desk })
    }

    /// Hands deliveries out until the channel ends, and says why it did.
    async fn serve<T: Message>(&mut self, deliveries: &mpsc::Sender<Delivery<T>>) -> anyhow::Error {
        let mut look = tokio::time::interval(LOOK);
        loop {
            let full = self.hand_out(deliveries);
            let desk = self.desk.clone();
            let room = async {
                match &desk {
                    Some(desk) => desk.room().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                received = poll_fn(|context| self.poll_received(context)) => if let Err(error) = received {
                    return error;
                },
                () = room => {}
                _ = deliveries.reserve(), if full => {}
                _ = look.tick() => if !self.channel.status().connected() {
                    return anyhow!("the channel is gone");
                },
            }
        }
    }

    /// Takes in whatever the consumers have, all of it: tags are handed out in their order, so that settling "through" one
    /// never reaches a message that was not handed out. What has a lower tag than anything seen was received before it,
    /// so a pass over all consumers that finds nothing new leaves no gap.
    fn poll_received(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let before = self.waiting.len();
        loop {
            let seen = self.waiting.len();
            for (place, tap) in self.taps.iter_mut().enumerate() {
                while let Poll::Ready(next) = tap.consumer.poll_next_unpin(context) {
                    let received = match next {
                        Some(Ok(received)) => received,
                        Some(Err(error)) => return Poll::Ready(Err(error.into())),
                        None => {
                            return Poll::Ready(Err(anyhow!("the consumer of {} was cancelled", tap.queue)));
                        }
                    };
                    self.waiting.insert(received.delivery_tag, (place, received));
                }
            }
            if self.waiting.len() == seen {
                break;
            }
        }
        if self.waiting.len() == before { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// Hands out as many deliveries as may be out; true when more may be, but nobody takes those that are. What an earlier
    /// channel gave can fill the inbox: dropped for that, a delivery would go back and come again at once, without end.
    fn hand_out<T: Message>(&mut self, deliveries: &mpsc::Sender<Delivery<T>>) -> bool {
        while self.desk.as_ref().is_none_or(|desk| desk.has_room()) && !self.waiting.is_empty() {
            let free = match (deliveries.try_reserve(), &self.desk) {
                (Ok(free), _) => free,
                (Err(TrySendError::Full(())), Some(_)) => return true,
                (Err(TrySendError::Full(())), None) => {
                    // Nudges: those in the inbox say the same.
                    self.waiting.clear();
                    break;
                }
                // The end is near.
                (Err(TrySendError::Closed(())), _) => break,
            };
            let Some((tag, (place, received))) = self.waiting.pop_first() else { break };
            let queue = &self.taps[place].queue;
            let (redelivered, body) = (received.redelivered, T::decode(&received.data));
            let delivery = match (&self.desk, body) {
                (Some(desk), body) => {
                    let unsettled = Unsettled::new(desk.clone(), tag, queue.clone(), received.data);
                    match body {
                        Ok(body) => Delivery::new(body, redelivered, Box::new(unsettled)),
                        Err(error) => {
                            unsettled.bury(format!("{:#}", anyhow::Error::new(error)));
                            continue;
                        }
                    }
                }
                (None, Ok(body)) => Delivery::new(body, redelivered, Box::new(Nothing)),
                (None, Err(error)) => {
                    tracing::debug!(
                        error = format!("{:#}", anyhow::Error::new(error)),
                        "a nudge nobody here understands"
                    );
                    continue;
                }
            };
            free.send(delivery);
        }
        false
    }

    /// Closes the channel: what is out goes back to its queue.
    async fn close(self) {
        timeout(GRACE, self.channel.close(200, "bye".into())).await.ok();
    }
}

/// Makes the queues of `feed` where they are missing; returns them with the prefetch of each.
async fn declare(reader: &Reader, connection: &Connection, feed: &Feed) -> Result<Vec<(String, u16)>> {
    match feed {
        Feed::Hints { routes, prefetch } => {
            // Nobody else can take what waits in a worker's own queue; but of the shared ones, no more than the prefetch
            // may lie here in all.
            let own = (*prefetch).max(1);
            let shared = routes.iter().filter(|route| matches!(route, Route::Cluster(_))).count();
            let share = (own / u16::try_from(shared).unwrap_or(u16::MAX).max(1)).max(1);
            let mut queues = Vec::new();
            for route in routes {
                match route {
                    Route::Worker(worker) => {
                        queues.push((reader.topology.declare_worker(connection, *worker).await?, own));
                    }
                    Route::Cluster(cluster) => {
                        reader.topology.declare_dispatch(connection, cluster).await?;
                        queues.push((reader.topology.dispatch(cluster), share));
                    }
                }
            }
            Ok(queues)
        }
        Feed::Events { prefetch } => {
            reader.topology.declare_base(connection).await?;
            Ok(vec![(reader.topology.events(), (*prefetch).max(1))])
        }
        Feed::Nudges => {
            reader.topology.declare_base(connection).await?;
            Ok(vec![(reader.topology.declare_nudges(connection).await?, 0)])
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

/// The subscriber's half.
pub(super) struct Inbox<T> {
    inbox: mpsc::Receiver<Delivery<T>>,
    shutdown: CancellationToken,
}

#[async_trait]
impl<T: Send> Source<T> for Inbox<T> {
    async fn next(&mut self) -> Option<Delivery<T>> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            delivery = self.inbox.recv() => delivery,
        }
    }
}
