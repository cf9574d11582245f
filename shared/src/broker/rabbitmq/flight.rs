//! Messages in flight on one confirming channel: written in order, watched all at once, each answered by its own verdict.

use super::verdicts::{Completion, Seq, Verdict, Verdicts};
use crate::broker::{BrokerError, Published};
use anyhow::{Result, anyhow};
use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered, task::AtomicWaker,
};
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::BasicPublishOptions,
    types::{FieldTable, ShortString},
};
use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};
use uuid::Uuid;

/// A message to publish.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) kind: Kind,
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) body: Bytes,
    pub(super) headers: FieldTable,
    /// Who waits; set by the publisher.
    pub(super) reply: Option<oneshot::Sender<Result<Published, BrokerError>>>,
}

impl Letter {
    pub(super) fn answer(self, verdict: Result<Published, BrokerError>) {
        answer(self.reply, verdict);
    }
}

fn answer(
    reply: Option<oneshot::Sender<Result<Published, BrokerError>>>,
    verdict: Result<Published, BrokerError>,
) {
    // Whoever asked may have gone.
    reply.and_then(|reply| reply.send(verdict).err());
}

/// What a message is, for metrics and for whoever looks into a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Hint,
    Events,
    Nudge,
    Dead,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Hint => "hint",
            Self::Events => "events",
            Self::Nudge => "nudge",
            Self::Dead => "dead",
        }
    }

    /// Whether nobody to take it is worth knowing, and whether it is kept on disk.
    fn is_kept(self) -> bool {
        match self {
            Self::Hint | Self::Events | Self::Dead => true,
            Self::Nudge => false,
        }
    }
}

/// Who waits for a message, and since when.
#[derive(Debug)]
struct Waiter {
    kind: Kind,
    since: Instant,
    reply: Option<oneshot::Sender<Result<Published, BrokerError>>>,
}

type Landing = BoxFuture<'static, (Seq, lapin::Result<Confirmation>)>;

/// The messages in flight.
pub(super) struct Flight {
    channel: Channel,
    patience: Duration,
    landings: FuturesUnordered<Landing>,
    verdicts: Verdicts<Waiter>,
    /// When whoever waits for a message has waited enough.
    deadlines: VecDeque<(Instant, Seq)>,
    last: Seq,
    given_up: usize,
    bell: Arc<Bell>,
    /// What ended the channel.
    error: Option<lapin::Error>,
}

impl Flight {
    pub(super) fn new(channel: Channel, patience: Duration) -> Self {
        Self {
            channel,
            patience,
            landings: FuturesUnordered::new(),
            verdicts: Verdicts::new(),
            deadlines: VecDeque::new(),
            last: 0,
            given_up: 0,
            bell: Arc::default(),
            error: None,
        }
    }

    /// Messages written and not confirmed, those nobody waits for any more included.
    pub(super) fn len(&self) -> usize {
        self.landings.len()
    }

    /// Messages not confirmed that nobody waits for any more.
    pub(super) fn given_up(&self) -> usize {
        self.given_up
    }

    /// Hands a message to the channel.
    pub(super) fn take_off(&mut self, letter: Letter) {
        let Letter { kind, exchange, routing_key, body, headers, reply } = letter;
        self.last += 1;
        let (seq, since, id) = (self.last, Instant::now(), Uuid::now_v7());
        let properties = BasicProperties::default()
            .with_message_id(id.to_string().into())
            .with_content_type("application/json".into())
            .with_type(kind.as_str().into())
            .with_delivery_mode(if kind.is_kept() { 2 } else { 1 })
            .with_headers(headers);
        let options = BasicPublishOptions { mandatory: kind.is_kept(), ..BasicPublishOptions::default() };
        let channel = self.channel.clone();
        let landing = async move {
            let published = channel.basic_publish(exchange, routing_key, options, &body, properties).await;
            match published {
                Ok(confirm) => (seq, confirm.await),
                Err(error) => (seq, Err(error)),
            }
        };
        let mut landing = landing.boxed();
        // The first poll numbers the message and queues its frames: so it happens here, in order.
        let early = landing.as_mut().now_or_never();
        self.landings.push(early.map_or(landing, |early| std::future::ready(early).boxed()));
        self.verdicts.sent(seq, id, Waiter { kind, since, reply });
        self.deadlines.push_back((since + self.patience, seq));
    }

    /// Waits for confirms and answers those who wait for them, or tells whoever waited enough; an error when the channel is
    /// of no more use. Pending for ever while nothing is in flight. Cancel safe.
    pub(super) async fn progress(&mut self) -> Result<()> {
        while self.deadlines.pop_front_if(|(_, seq)| !self.verdicts.awaits(*seq)).is_some() {}
        let deadline = self.deadlines.front().map(|(deadline, _)| *deadline);
        let overdue = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let completed = tokio::select! {
            biased;
            completed = poll_fn(|context| self.poll_completed(context)) => completed,
            () = overdue => {
                self.give_up_overdue();
                return Ok(());
            }
        };
        for (waiter, verdict) in self.verdicts.round(completed) {
            self.settle(waiter, verdict);
        }
        match &self.error {
            Some(error) => Err(error.clone().into()),
            None => Ok(()),
        }
    }

    /// Everything that is completed, once something is: polls until nothing more is ready, which the verdicts rely on.
    fn poll_completed(&mut self, context: &mut Context<'_>) -> Poll<Vec<(Seq, Completion)>> {
        self.bell.task.register(context.waker());
        let waker = Waker::from(self.bell.clone());
        let mut own = Context::from_waker(&waker);
        let mut completed = Vec::new();
        loop {
            self.bell.rung.store(false, Ordering::SeqCst);
            while let Poll::Ready(Some((seq, confirmation))) = self.landings.poll_next_unpin(&mut own) {
                completed.push((seq, self.read(confirmation)));
            }
            // `Pending` may only mean "enough for now"; then the waker has been called.
            if !self.bell.rung.load(Ordering::SeqCst) {
                break;
            }
        }
        if completed.is_empty() { Poll::Pending } else { Poll::Ready(completed) }
    }

    fn read(&mut self, confirmation: lapin::Result<Confirmation>) -> Completion {
        match confirmation {
            Ok(Confirmation::Ack(returned)) => {
                Completion::Ack(returned.and_then(|message| id_of(&message.properties)))
            }
            Ok(Confirmation::Nack(returned)) => {
                Completion::Nack(returned.and_then(|message| id_of(&message.properties)))
            }
            Ok(Confirmation::NotRequested) => {
                self.error.get_or_insert(lapin::ErrorKind::FutureCompleted.into());
                Completion::Lost
            }
            Err(error) => {
                self.error.get_or_insert(error);
                Completion::Lost
            }
        }
    }

    fn settle(&mut self, waiter: Waiter, verdict: Verdict) {
        let Waiter { kind, since, reply } = waiter;
        if reply.is_none() {
            self.given_up -= 1;
        }
        let (outcome, verdict) = match verdict {
            Verdict::Routed => ("routed", Ok(Published::Routed)),
            Verdict::Unroutable => ("unroutable", Ok(Published::Unroutable)),
            Verdict::Refused => ("refused", Err(BrokerError::Refused(anyhow!("a negative confirm")))),
            Verdict::Unknown => ("unknown", Err(BrokerError::Down(self.why_lost()))),
        };
        metrics::counter!("jobgate_broker_published_total", "kind" => kind.as_str(), "outcome" => outcome)
            .increment(1);
        metrics::histogram!("jobgate_broker_publish_seconds", "kind" => kind.as_str())
            .record(since.elapsed());
        answer(reply, verdict);
    }

    fn why_lost(&self) -> anyhow::Error {
        let lost = anyhow!("cut off before the confirm");
        self.error
            .as_ref()
            .map_or(lost, |error| anyhow::Error::new(error.clone()).context("cut off before the confirm"))
    }

    fn give_up_overdue(&mut self) {
        let now = Instant::now();
        let mut through = None;
        while let Some((_, seq)) = self.deadlines.pop_front_if(|(deadline, _)| *deadline <= now) {
            through = Some(seq);
        }
        if let Some(through) = through {
            self.give_up_through(through);
        }
    }

    /// Tells everybody who waits that the broker is blocked; what was written may arrive all the same.
    pub(super) fn give_up_waiting(&mut self) {
        self.deadlines.clear();
        self.give_up_through(self.last);
    }

    fn give_up_through(&mut self, seq: Seq) {
        for waiter in self.verdicts.waiters_through(seq) {
            if let Some(reply) = waiter.reply.take() {
                self.given_up += 1;
                answer(Some(reply), Err(BrokerError::Blocked));
            }
        }
    }

    /// Waits for the confirms of everything in flight and closes the channel, each for at most `grace`. Whoever still waits
    /// then hears that the publisher ended.
    pub(super) async fn close(mut self, grace: Duration) {
        let all = async {
            while !self.landings.is_empty() {
                if self.progress().await.is_err() {
                    break;
                }
            }
        };
        timeout(grace, all).await.ok();
        timeout(grace, self.channel.close(200, "bye".into())).await.ok();
    }
}

fn id_of(properties: &BasicProperties) -> Option<Uuid> {
    properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok())
}

/// Remembers that it was rung, and wakes the task.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::SeqCst);
        self.task.wake();
    }
}
