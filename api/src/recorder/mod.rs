//! The recorder: status events from the broker become rows, in batches.
//!
//! It decides nothing the transition function does not. A batch is whatever is there: while one commits, the next one
//! gathers, so there is no timer and no wait. Messages are acknowledged after the commit; the row guards against every
//! order, repetition and loss, so any number of recorders may run.

pub mod batch;
#[cfg(test)]
mod tests;

use batch::{Answer, Batch, Todo};
use futures::FutureExt as _;
use jobgate_shared::{
    broker::{Broker, Delivery, Subscription},
    clock::Clock,
    domain::StatusEvent,
    failpoint,
    retry::Delays,
    settings::Number,
    store::{Applied, Apply, StoreError},
    supervise::Tasks,
    wire::Nudge,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// At most one nudge in so long: twenty a second.
const NUDGE_GAP: Duration = Duration::from_millis(50);
/// Between two looks at how far behind the recorders are.
const BEHIND_EVERY: Duration = Duration::from_secs(5);

/// What operators set of a recorder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Events in one transaction, about.
    pub batch_events: Number<1, 20_000>,
    /// Messages in one transaction, at most.
    pub batch_messages: Number<1, 1_000>,
    /// Batches recorded at once in this process; rows guard themselves, so more than one only costs connections.
    pub parallel: Number<1, 16>,
}

impl Default for Config {
    fn default() -> Self {
        Self { batch_events: Number::new(2_000), batch_messages: Number::new(64), parallel: Number::new(1) }
    }
}

/// What a recorder works with.
#[derive(Debug)]
pub struct Recorder {
    /// The rows.
    pub store: Arc<dyn Apply>,
    /// Where the events come from.
    pub broker: Arc<dyn Broker>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What operators set.
    pub config: Config,
}

#[derive(Debug)]
struct Shared {
    parts: Recorder,
    /// Rows have changed since the last nudge.
    changed: Notify,
}

/// Records until the tasks are shut down.
pub fn run(tasks: &Tasks, parts: Recorder) {
    let parallel = parts.config.parallel.get();
    let shared = Arc::new(Shared { parts, changed: Notify::new() });
    for _ in 0..parallel {
        let (shared, shutdown) = (shared.clone(), tasks.shutdown().clone());
        tasks.supervise("recorder", move || shared.clone().record(shutdown.clone()));
    }
    let (nudging, shutdown) = (shared.clone(), tasks.shutdown().clone());
    tasks.supervise("recorder-nudges", move || nudging.clone().nudge(shutdown.clone()));
    let shutdown = tasks.shutdown().clone();
    tasks.supervise("recorder-depth", move || shared.clone().measure(shutdown.clone()));
}

impl Shared {
    async fn record(self: Arc<Self>, shutdown: CancellationToken) -> anyhow::Result<()> {
        let config = &self.parts.config;
        // As many again wait here while a batch commits.
        let prefetch = u16::try_from(2 * config.batch_messages.get()).unwrap_or(u16::MAX);
        let mut events = self.parts.broker.events(prefetch);
        while let Some(Some(first)) = shutdown.run_until_cancelled(events.next()).await {
            let (messages, settles) = self.take(first, &mut events);
            let batch = Batch::new(messages);
            failpoint::pass("events.taken");
            // A shutdown leaves a batch that cannot be applied unsettled: it comes again, to another recorder.
            let Some(rejected) = self.apply(batch, &shutdown).await else { break };
            failpoint::pass("events.applied");
            settle(settles, rejected).await;
            failpoint::pass("events.acknowledged");
        }
        Ok(())
    }

    /// The first message and whatever is there beside it.
    fn take(
        &self,
        first: Delivery<Vec<StatusEvent>>,
        events: &mut Subscription<Vec<StatusEvent>>,
    ) -> (Vec<Vec<StatusEvent>>, Vec<Delivery<()>>) {
        let (most_events, most_messages) =
            (self.parts.config.batch_events.get() as usize, self.parts.config.batch_messages.get() as usize);
        let (body, settle) = first.split();
        let mut size = body.len();
        let (mut messages, mut settles) = (vec![body], vec![settle]);
        while size < most_events && messages.len() < most_messages {
            let Some(Some(next)) = events.next().now_or_never() else { break };
            let (body, settle) = next.split();
            size += body.len();
            messages.push(body);
            settles.push(settle);
        }
        (messages, settles)
    }

    /// Applies a batch; answers the messages to reject. `None` when there was no time left for it.
    async fn apply(&self, mut batch: Batch, shutdown: &CancellationToken) -> Option<BTreeMap<usize, String>> {
        let mut delays = Delays::network();
        count("merged", batch.merged() as u64);
        loop {
            let answer = match batch.todo() {
                Todo::Settle(rejected) => return Some(rejected.clone()),
                Todo::Rest => {
                    shutdown.run_until_cancelled(tokio::time::sleep(delays.next_delay())).await?;
                    batch.rested();
                    continue;
                }
                Todo::Apply(events) => match self.parts.store.apply(events).await {
                    Ok(outcomes) => {
                        delays.reset();
                        self.tell(events, &outcomes);
                        Answer::Applied
                    }
                    Err(error @ StoreError::Away(_)) => {
                        let (error, events) = (chain(error), events.len());
                        tracing::warn!(error, events, "events cannot be recorded now; they are kept");
                        Answer::Away
                    }
                    Err(error @ StoreError::Refused { .. }) => {
                        let (error, events) = (chain(error), events.len());
                        tracing::warn!(error, events, "the store refuses events; looking for those to blame");
                        Answer::Refused(error)
                    }
                },
            };
            batch.step(answer);
        }
    }

    fn tell(&self, events: &[StatusEvent], outcomes: &[Applied]) {
        let now = self.parts.clock.now();
        let latency = metrics::histogram!("jobgate_record_latency_seconds");
        let (mut advanced, mut duplicate, mut stale, mut unknown) = (0, 0, 0, 0);
        for (event, outcome) in events.iter().zip(outcomes) {
            match outcome {
                Applied::Advanced => {
                    advanced += 1;
                    latency.record((now - event.at).to_std().unwrap_or_default());
                }
                Applied::Duplicate => duplicate += 1,
                Applied::Stale => stale += 1,
                Applied::Unknown => unknown += 1,
            }
        }
        let counts =
            [("advanced", advanced), ("duplicate", duplicate), ("stale", stale), ("unknown", unknown)];
        for (outcome, events) in counts {
            count(outcome, events);
        }
        metrics::counter!("jobgate_duplicates_dropped_total").increment(duplicate);
        if advanced > 0 {
            self.changed.notify_one();
        }
    }

    /// Taps everybody on the shoulder when rows have changed, so often at most.
    async fn nudge(self: Arc<Self>, shutdown: CancellationToken) -> anyhow::Result<()> {
        while shutdown.run_until_cancelled(self.changed.notified()).await.is_some() {
            if let Err(error) = self.parts.broker.nudge(Nudge::Changed).await {
                // Feeds look by themselves now and then; the broker's health is told elsewhere.
                tracing::debug!(error = chain(error), "nobody was told that rows have changed");
            }
            tokio::time::sleep(NUDGE_GAP).await;
        }
        Ok(())
    }

    async fn measure(self: Arc<Self>, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(BEHIND_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            if let Some(Some(messages)) =
                shutdown.run_until_cancelled(self.parts.broker.events_behind()).await
            {
                let messages = f64::from(u32::try_from(messages).unwrap_or(u32::MAX));
                metrics::gauge!("jobgate_events_behind").set(messages);
            }
        }
        Ok(())
    }
}

/// Rejects the messages to blame, then acknowledges all others at once.
async fn settle(settles: Vec<Delivery<()>>, mut rejected: BTreeMap<usize, String>) {
    // One dropped before the last is acknowledged would be given back.
    let mut recorded = Vec::with_capacity(settles.len());
    for (index, settle) in settles.into_iter().enumerate() {
        if let Some(why) = rejected.remove(&index) {
            tracing::error!(why, "a message of status events goes to the dead letters");
            settle.reject(why).await;
        } else {
            recorded.push(settle);
        }
    }
    if let Some(last) = recorded.pop() {
        last.ack_through().await;
    }
}

fn count(outcome: &'static str, events: u64) {
    metrics::counter!("jobgate_events_total", "outcome" => outcome).increment(events);
}

fn chain(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}
