//! From hints to claims. A cluster's queue is listened to only while there is room; the worker's own queue always, since
//! adoption is never refused for lack of room. A hint is acknowledged once the claim has committed.

use super::{Worker, claim::Claimer, drive::Message, lease::Lease};
use futures::FutureExt as _;
use jobgate_shared::{
    broker::{Delivery, Route, Subscription},
    domain::{JobId, WorkerId},
    failpoint,
    supervise::Tasks,
    wire::{Hint, Nudge},
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Most ids in one claim.
const MAX_CLAIM: usize = 1000;
/// Hints in hand at once.
const PREFETCH: u16 = 16;
/// How long ids for which there is no room are kept before they go back to the others.
const KEEP: Duration = Duration::from_millis(500);
/// How often room is looked for when nobody says that there is some.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(200);

/// What every intake of a session works with.
#[derive(Clone)]
pub(super) struct Intakes {
    pub(super) worker: Arc<Worker>,
    pub(super) id: WorkerId,
    pub(super) claimer: Claimer,
    pub(super) inbox: mpsc::Sender<Message>,
    /// Rung when room may have opened.
    pub(super) room: Arc<Notify>,
    pub(super) lease: Arc<Lease>,
    /// Cancelled when nothing is taken any more: a drain, or the end of the lease.
    pub(super) taking: CancellationToken,
}

impl Intakes {
    /// Begins taking: hints of every cluster while there is room, the worker's own at all times, and nudges.
    pub(super) fn spawn(&self, tasks: &Tasks) {
        for place in 0..self.worker.clusters.len() {
            let cluster = u16::try_from(place).unwrap_or(u16::MAX);
            let mut intake = Intake {
                route: Route::Cluster(self.worker.clusters[place].name.clone()),
                cluster,
                to: self.clone(),
                subscription: None,
                pocket: Pocket::default(),
            };
            tasks.spawn("intake", async move {
                let Err(Closed) = intake.run().await;
            });
        }
        tasks.spawn("intake-own", self.clone().take_own());
        tasks.spawn("nudges", self.clone().listen());
    }

    /// Takes the worker's own hints: jobs only it can reach, or that nobody has any more.
    async fn take_own(self) {
        let mut subscription = self.worker.broker.hints(&[Route::Worker(self.id)], PREFETCH);
        // Only the wait can be cut short: a claim under way must be answered, or its jobs would be nobody's for a lease.
        while let Some(Some(delivery)) = self.taking.run_until_cancelled(subscription.next()).await {
            let (hint, settle) = delivery.split();
            failpoint::pass("adopt.hinted");
            let Some(jobs) = self.claimer.claim(&hint.jobs, None).await else { return };
            failpoint::pass("adopt.committed");
            settle.ack().await;
            failpoint::pass("adopt.acknowledged");
            if self.inbox.send(Message::Adopted(jobs)).await.is_err() {
                return;
            }
        }
    }

    /// Listens for taps on the shoulder.
    async fn listen(self) {
        let mut nudges = self.worker.broker.nudges();
        while let Some(Some(delivery)) = self.lease.over().run_until_cancelled(nudges.next()).await {
            match delivery.body {
                Nudge::Cancel { worker } if worker == self.id => {
                    if self.inbox.send(Message::Nudged).await.is_err() {
                        return;
                    }
                }
                Nudge::Cancel { .. } | Nudge::Changed | Nudge::Settings => {}
            }
        }
    }
}

/// The session is over.
struct Closed;

/// Ids in hand whose claim has not been made, and the deliveries to acknowledge as they are used up.
#[derive(Default)]
struct Pocket {
    ids: VecDeque<JobId>,
    /// Each with how many of `ids` it still stands for.
    deliveries: VecDeque<(usize, Delivery<()>)>,
}

impl Pocket {
    fn put(&mut self, delivery: Delivery<Hint>) {
        let (hint, settle) = delivery.split();
        self.deliveries.push_back((hint.jobs.len(), settle));
        self.ids.extend(hint.jobs);
    }

    fn take(&mut self, most: usize) -> Vec<JobId> {
        self.ids.drain(..most.min(self.ids.len())).collect()
    }

    /// So many ids were claimed: what they came with is done.
    async fn used(&mut self, mut ids: usize) {
        while let Some((left, delivery)) = self.deliveries.pop_front() {
            if left > ids {
                self.deliveries.push_front((left - ids, delivery));
                return;
            }
            ids -= left;
            delivery.ack().await;
        }
    }

    async fn give_back(&mut self) {
        self.ids.clear();
        for (_, delivery) in self.deliveries.drain(..) {
            delivery.retry().await;
        }
    }
}

struct Intake {
    route: Route,
    cluster: u16,
    to: Intakes,
    subscription: Option<Subscription<Hint>>,
    pocket: Pocket,
}

impl Intake {
    async fn run(&mut self) -> Result<std::convert::Infallible, Closed> {
        loop {
            if self.pocket.ids.is_empty() {
                self.wait_for_room().await?;
                self.fill().await?;
            }
            let wanted = self.pocket.ids.len().min(MAX_CLAIM);
            let reserved = self.reserve(wanted).await?;
            if reserved == 0 {
                if let Ok(room) = tokio::time::timeout(KEEP, self.wait_for_room()).await {
                    room?;
                } else {
                    self.pocket.give_back().await;
                    // Without a subscription no further hint is stuck here while others have room.
                    self.subscription = None;
                }
                continue;
            }
            let ids = self.pocket.take(reserved as usize);
            failpoint::pass("claim.hinted");
            let jobs = self.to.claimer.claim(&ids, Some(self.cluster)).await.ok_or(Closed)?;
            failpoint::pass("claim.committed");
            self.pocket.used(ids.len()).await;
            failpoint::pass("claim.acknowledged");
            let message = Message::Claimed { cluster: self.cluster, reserved, jobs };
            self.to.inbox.send(message).await.map_err(|_| Closed)?;
        }
    }

    /// Waits for a hint and takes those that are there already with it.
    async fn fill(&mut self) -> Result<(), Closed> {
        let (worker, route) = (&self.to.worker, &self.route);
        // Whoever may take on a few jobs a second leaves the other hints to those who share the rate.
        let is_rated = worker.clusters[usize::from(self.cluster)].max_submits_per_second.is_some();
        let prefetch = if is_rated { 1 } else { PREFETCH };
        let subscribe = || worker.broker.hints(std::slice::from_ref(route), prefetch);
        let subscription = self.subscription.get_or_insert_with(subscribe);
        let first = self.to.taking.run_until_cancelled(subscription.next()).await.flatten().ok_or(Closed)?;
        self.pocket.put(first);
        while self.pocket.ids.len() < MAX_CLAIM {
            match subscription.next().now_or_never() {
                Some(Some(delivery)) => self.pocket.put(delivery),
                Some(None) | None => break,
            }
        }
        Ok(())
    }

    async fn reserve(&mut self, wanted: usize) -> Result<u32, Closed> {
        let (reply, answer) = oneshot::channel();
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let message = Message::Reserve { cluster: self.cluster, wanted, reply };
        self.to.inbox.send(message).await.map_err(|_| Closed)?;
        answer.await.map_err(|_| Closed)
    }

    async fn wait_for_room(&mut self) -> Result<(), Closed> {
        loop {
            let opened = self.to.room.notified();
            let (reply, answer) = oneshot::channel();
            let message = Message::Room { cluster: self.cluster, reply };
            self.to.inbox.send(message).await.map_err(|_| Closed)?;
            if answer.await.map_err(|_| Closed)? > 0 {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = self.to.taking.cancelled() => return Err(Closed),
                () = opened => {}
                () = tokio::time::sleep(LOOK_FOR_ROOM) => {}
            }
        }
    }
}
