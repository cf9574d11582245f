//! Accepting jobs: posts that arrive together share a commit.
//!
//! No timer: what is there is committed at once, and the next batch forms while a commit is in flight. A row the store
//! refuses for good is found by halving and fails alone. A commit whose outcome is unknown is made again with the same
//! ids for a few seconds; then the caller is told to come back, and nothing is kept. Hints follow the commit and nobody
//! waits for them: the row alone is the promise.

mod hints;
#[cfg(test)]
mod tests;

use crate::{
    dispatcher::{self, HintBudget},
    feed::Feed,
};
use futures::{FutureExt as _, future::BoxFuture};
use jobgate_shared::{
    broker::Broker,
    domain::{Job, JobId, NewJob},
    failpoint,
    retry::Delays,
    store::{Inserted, Store, StoreError, StoreResult},
    supervise::Tasks,
};
use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

/// Most rows of one commit, unless a single call brings more.
pub const MAX_ROWS: usize = 1_000;
/// Commits in flight at once: one is on its way to the disk while the next is being sent.
const LANES: usize = 2;
/// How long an unknown commit is made again.
const REPLAY_FOR: Duration = Duration::from_secs(3);
/// How long one call of the store may take altogether.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most calls of the store to find the rows of one batch it refuses; what is left then is told to come back.
const MAX_HALVINGS: usize = 128;

/// How acceptance is set up.
#[derive(Debug, Clone, Copy)]
pub struct AcceptSettings {
    /// Most bytes of jobs that wait for a commit, roughly.
    pub max_waiting_bytes: usize,
    /// How long a hint published here stands before the dispatcher gives another: the dispatcher's `hint_ttl`.
    pub hint_for: Duration,
}

impl Default for AcceptSettings {
    fn default() -> Self {
        Self { max_waiting_bytes: 64 * 1024 * 1024, hint_for: *dispatcher::Config::default().hint_ttl }
    }
}

/// What became of one posted job.
#[derive(Debug, Clone, PartialEq)]
pub enum Accepted {
    /// It is stored.
    Created(Box<Job>),
    /// The same key and body were posted before: this job.
    Existing(Box<Job>),
    /// Its key stands for another body.
    KeyReused,
    /// The store will never take it.
    Refused,
    /// The store is away: whether it is stored is unknown, posting again under the same key is safe.
    Away,
}

/// More jobs wait for a commit than there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many jobs are waiting to be stored")]
pub struct Full;

/// Where posted jobs become rows.
#[derive(Debug)]
pub struct Acceptor {
    store: Arc<dyn Store>,
    broker: Arc<dyn Broker>,
    budget: Arc<HintBudget>,
    feed: Arc<Feed>,
    tasks: Tasks,
    settings: AcceptSettings,
    queue: Mutex<Queue>,
    /// Rung whenever calls leave the queue.
    room: Notify,
    /// The last commit was given up: until one succeeds, each is tried once, so that nobody waits long to be told.
    away: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Call>,
    bytes: usize,
    lanes: usize,
}

/// One caller's jobs.
#[derive(Debug)]
struct Call {
    jobs: Vec<NewJob>,
    bytes: usize,
    reply: oneshot::Sender<Vec<Accepted>>,
}

impl Acceptor {
    /// Stores into `store`, within the room `budget` leaves for hints.
    pub fn new(
        store: Arc<dyn Store>,
        broker: Arc<dyn Broker>,
        budget: Arc<HintBudget>,
        feed: Arc<Feed>,
        tasks: Tasks,
        settings: AcceptSettings,
    ) -> Arc<Self> {
        let (queue, room, away) = (Mutex::default(), Notify::new(), AtomicBool::new(false));
        Arc::new(Self { store, broker, budget, feed, tasks, settings, queue, room, away })
    }

    /// Stores jobs of `bytes` in all; one answer each, in order, once they are durable. Dropping the future leaves open
    /// whether they are stored.
    pub async fn accept(self: &Arc<Self>, jobs: Vec<NewJob>, bytes: usize) -> Result<Vec<Accepted>, Full> {
        let (count, began) = (jobs.len(), Instant::now());
        let (reply, answer) = oneshot::channel();
        self.enqueue(Call { jobs, bytes, reply }, self.settings.max_waiting_bytes).map_err(|_| Full)?;
        Ok(answered(answer, count, began).await)
    }

    /// The same for a part of a larger batch: waits for room, and leaves half of it to those who post one job.
    pub async fn accept_part(self: &Arc<Self>, jobs: Vec<NewJob>, bytes: usize) -> Vec<Accepted> {
        let (count, began) = (jobs.len(), Instant::now());
        let (reply, answer) = oneshot::channel();
        let mut call = Call { jobs, bytes, reply };
        loop {
            // Before the look, so that room made between the two is not missed.
            let room = self.room.notified();
            match self.enqueue(call, self.settings.max_waiting_bytes / 2) {
                Ok(()) => return answered(answer, count, began).await,
                Err(back) => call = back,
            }
            room.await;
        }
    }

    fn enqueue(self: &Arc<Self>, call: Call, limit: usize) -> Result<(), Call> {
        let mut queue = self.queue();
        if queue.bytes > 0 && queue.bytes + call.bytes > limit {
            return Err(call);
        }
        queue.bytes += call.bytes;
        queue.waiting.push_back(call);
        if queue.lanes < LANES {
            queue.lanes += 1;
            drop(queue);
            self.tasks.spawn("accept", self.clone().run_lane());
        }
        Ok(())
    }

    /// Commits batch after batch until nothing waits.
    async fn run_lane(self: Arc<Self>) {
        while let Some(calls) = self.next_batch() {
            // A panic must not take the lane, and with it everybody who waits, along.
            if AssertUnwindSafe(self.commit(calls)).catch_unwind().await.is_err() {
                metrics::counter!("jobgate_task_panics_total", "task" => "accept").increment(1);
                tracing::error!("a commit of accepted jobs panicked");
            }
        }
    }

    /// Takes what waits, up to the size of a batch; closes the lane when nothing does.
    fn next_batch(&self) -> Option<Vec<Call>> {
        let mut queue = self.queue();
        let mut calls = Vec::new();
        let mut rows = 0;
        while rows < MAX_ROWS
            && let Some(call) = queue.waiting.pop_front()
        {
            queue.bytes -= call.bytes;
            // Whoever went away does not want it any more.
            if !call.reply.is_closed() {
                rows += call.jobs.len();
                calls.push(call);
            }
        }
        if calls.is_empty() {
            queue.lanes -= 1;
        }
        drop(queue);
        self.room.notify_waiters();
        (!calls.is_empty()).then_some(calls)
    }

    async fn commit(self: &Arc<Self>, calls: Vec<Call>) {
        let began = Instant::now();
        let mut replies = Vec::with_capacity(calls.len());
        let mut rows = Vec::new();
        for (caller, call) in calls.into_iter().enumerate() {
            let places = vec![None; call.jobs.len()];
            rows.extend(call.jobs.into_iter().enumerate().map(|(place, job)| ((caller, place), job)));
            replies.push((call.reply, places));
        }
        // One order for all: two commits that meet at the same keys wait for each other in a line, not in a circle.
        rows.sort_by(|(_, a), (_, b)| {
            let (key_a, key_b) = (a.idempotency.as_ref(), b.idempotency.as_ref());
            let keys = key_a.map(|k| &k.key).cmp(&key_b.map(|k| &k.key));
            a.project.cmp(&b.project).then(keys).then(a.id.cmp(&b.id))
        });
        let (places, jobs): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        let answers = self.store_all(&jobs).await;
        let rows = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        metrics::histogram!("jobgate_accept_commit_rows").record(f64::from(rows));
        metrics::histogram!("jobgate_accept_commit_seconds").record(began.elapsed().as_secs_f64());
        for ((caller, place), answer) in places.into_iter().zip(answers) {
            replies[caller].1[place] = Some(answer);
        }
        for (reply, answers) in replies {
            // Whoever went away meanwhile needs no answer.
            drop(reply.send(answers.into_iter().map(|a| a.unwrap_or(Accepted::Away)).collect()));
        }
    }

    /// Stores rows, hinting those of the clusters that have room for hints of all of theirs.
    async fn store_all(self: &Arc<Self>, jobs: &[NewJob]) -> Vec<Accepted> {
        let taken = self.take_room(jobs);
        let (with, without): (Vec<usize>, Vec<usize>) =
            (0..jobs.len()).partition(|i| taken.contains_key(&jobs[*i].cluster));
        let answers = if without.is_empty() {
            self.store_some(jobs, true).await
        } else if with.is_empty() {
            self.store_some(jobs, false).await
        } else {
            let mut answers = vec![Accepted::Away; jobs.len()];
            for (part, hinted) in [(with, true), (without, false)] {
                let rows: Vec<NewJob> = part.iter().map(|i| jobs[*i].clone()).collect();
                for (i, answer) in part.into_iter().zip(self.store_some(&rows, hinted).await) {
                    answers[i] = answer;
                }
            }
            answers
        };
        self.ring(&answers, taken);
        answers
    }

    async fn store_some(&self, jobs: &[NewJob], hinted: bool) -> Vec<Accepted> {
        let hinted = hinted.then_some(self.settings.hint_for);
        let mut calls = 0;
        self.store_or_halve(jobs, hinted, &mut calls).await
    }

    fn store_or_halve<'a>(
        &'a self,
        jobs: &'a [NewJob],
        hinted: Option<Duration>,
        calls: &'a mut usize,
    ) -> BoxFuture<'a, Vec<Accepted>> {
        async move {
            *calls += 1;
            if *calls > MAX_HALVINGS {
                return vec![Accepted::Away; jobs.len()];
            }
            match self.insert(jobs, hinted).await {
                Ok(inserted) => {
                    inserted.into_iter().zip(jobs).map(|(outcome, job)| accepted(outcome, job.id)).collect()
                }
                Err(error @ StoreError::Away(_)) => {
                    if !self.away.swap(true, Ordering::Relaxed) {
                        let error = format!("{:#}", anyhow::Error::from(error));
                        tracing::warn!(error, "the store takes no jobs; callers are told to come back");
                    }
                    vec![Accepted::Away; jobs.len()]
                }
                Err(error @ StoreError::Refused { .. }) => {
                    if let [job] = jobs {
                        let error = format!("{:#}", anyhow::Error::from(error));
                        tracing::error!(job = %job.id, error, "the store refused job {}", job.id);
                        return vec![Accepted::Refused];
                    }
                    let (left, right) = jobs.split_at(jobs.len() / 2);
                    let mut answers = self.store_or_halve(left, hinted, calls).await;
                    answers.extend(self.store_or_halve(right, hinted, calls).await);
                    answers
                }
            }
        }
        .boxed()
    }

    /// Inserts, and again while the outcome is unknown and there is time.
    async fn insert(&self, jobs: &[NewJob], hinted: Option<Duration>) -> StoreResult<Vec<Inserted>> {
        let began = Instant::now();
        let replay_for = if self.away.load(Ordering::Relaxed) { Duration::ZERO } else { REPLAY_FOR };
        let mut delays = Delays::new(Duration::from_millis(20), Duration::from_millis(500));
        loop {
            failpoint::pass("accept.taken");
            let outcome = tokio::time::timeout_at(began + PATIENCE, self.store.insert(jobs, hinted)).await;
            failpoint::pass("accept.committed");
            let error = match outcome {
                Ok(Err(error)) if error.is_transient() => error,
                Ok(told) => {
                    if self.away.swap(false, Ordering::Relaxed) {
                        tracing::info!("the store takes jobs again");
                    }
                    return told;
                }
                Err(_) => StoreError::Away(anyhow::anyhow!("no answer within {PATIENCE:?}")),
            };
            let delay = delays.next_delay();
            if began.elapsed() + delay >= replay_for {
                return Err(error);
            }
            tokio::time::sleep(delay).await;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No answer means that the commit panicked, which is logged there; its outcome is as unknown as any.
async fn answered(answer: oneshot::Receiver<Vec<Accepted>>, count: usize, began: Instant) -> Vec<Accepted> {
    let answers = answer.await.unwrap_or_else(|_| vec![Accepted::Away; count]);
    metrics::histogram!("jobgate_accept_seconds").record(began.elapsed().as_secs_f64());
    answers
}

fn accepted(outcome: Inserted, id: JobId) -> Accepted {
    match outcome {
        Inserted::Created(job) => Accepted::Created(job),
        // Made by this very call, whose answer was lost the first time.
        Inserted::Existing(job) if job.id == id => Accepted::Created(job),
        Inserted::Existing(job) => Accepted::Existing(job),
        Inserted::KeyReused => Accepted::KeyReused,
    }
}
