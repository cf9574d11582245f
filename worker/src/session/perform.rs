//! Performs effects: calls to resource managers bounded per cluster, rows in batches that form while one is in flight.
//!
//! Every engine effect is tried once and its answer goes back to the core; a create or start is not even tried once the
//! lease is over. Channels here are unbounded and yet bounded: each holds at most a few entries per job in hand.

use super::{
    Served, Worker,
    claim::Claimer,
    drive::{Message, answered},
    held,
    lease::Lease,
    publish, ship,
};
use crate::{
    core::{Effect, Fault, Hold, Input},
    engine::ToCreate,
    regulator::Answer,
};
use futures::{StreamExt as _, stream};
use jobgate_shared::{
    domain::{ClusterName, JobId, StatusEvent, Submission, WorkerId},
    failpoint,
    reporting::Reporting,
    retry::Delays,
    store::{ToHandBack, ToRecord},
    supervise::Tasks,
};
use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};

/// Most records in one statement.
const MAX_RECORD: usize = 1000;
/// Most answers sent to the loop at once.
const ANSWERS: usize = 256;

/// One call to a resource manager.
enum Call {
    Create(Box<ToCreate>),
    Start(Submission),
    Cancel(Submission),
    Discard(Option<Submission>),
    Forget(Submission),
}

impl Call {
    fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Start(_) => "start",
            Self::Cancel(_) => "cancel",
            Self::Discard(_) => "discard",
            Self::Forget(_) => "forget",
        }
    }

    /// The points before and behind it.
    fn gaps(&self) -> [&'static str; 2] {
        match self {
            Self::Create(_) => ["create.begins", "create.done"],
            Self::Start(_) => ["start.begins", "start.done"],
            Self::Cancel(_) => ["cancel.begins", "cancel.done"],
            Self::Discard(_) => ["discard.begins", "discard.done"],
            Self::Forget(_) => ["forget.begins", "forget.done"],
        }
    }
}

/// The performing half of a session.
pub(super) struct Performer {
    served: Vec<Arc<Served>>,
    slots: Vec<Arc<Semaphore>>,
    inbox: mpsc::Sender<Message>,
    lease: Arc<Lease>,
    tasks: Tasks,
    records: mpsc::UnboundedSender<(Hold, ToRecord)>,
    events: mpsc::UnboundedSender<StatusEvent>,
    returns: mpsc::UnboundedSender<ToHandBack>,
    logs: mpsc::UnboundedSender<ship::Order>,
    unheard: mpsc::UnboundedSender<JobId>,
    reporting: Option<Reporting>,
}

impl Performer {
    pub(super) fn spawn(
        worker: &Arc<Worker>,
        id: WorkerId,
        inbox: &mpsc::Sender<Message>,
        lease: &Arc<Lease>,
        claimer: Claimer,
    ) -> Self {
        let tasks = Tasks::of_one_fate(lease.over());
        let (records, to_record) = mpsc::unbounded_channel();
        let (events, to_publish) = mpsc::unbounded_channel();
        let (returns, to_return) = mpsc::unbounded_channel();
        let (logs, to_ship) = mpsc::unbounded_channel();
        let (unheard, to_claim) = mpsc::unbounded_channel();
        tasks.spawn("record", record(worker.clone(), to_record, inbox.clone()));
        tasks.spawn("publish", publish::run(worker.clone(), to_publish));
        tasks.spawn("hand-back", hand_back(worker.clone(), id, to_return, lease.clone()));
        tasks.spawn("ship-logs", ship::run(worker.clone(), to_ship, inbox.clone(), lease.clone()));
        tasks.spawn("claim-again", held::claim_again(id, to_claim, inbox.clone(), claimer));
        let served: Vec<_> = worker.clusters.iter().cloned().map(Arc::new).collect();
        let slots = served.iter().map(|c| Arc::new(Semaphore::new(c.max_calls))).collect();
        Self {
            served,
            slots,
            inbox: inbox.clone(),
            lease: lease.clone(),
            tasks,
            records,
            events,
            returns,
            logs,
            unheard,
            reporting: worker.reporting.clone(),
        }
    }

    /// Begins every effect; answers come back as messages.
    pub(super) fn perform(&self, effects: Vec<Effect>) {
        let mut calls: BTreeMap<u16, Vec<(Hold, Call)>> = BTreeMap::new();
        let mut call = |hold: Hold, call| calls.entry(hold.cluster).or_default().push((hold, call));
        for effect in effects {
            // A send fails only when its task has ended, and then the session has too.
            match effect {
                Effect::Create(hold, mut job) => {
                    self.introduce(&mut job);
                    call(hold, Call::Create(job));
                }
                Effect::Start(hold, submission) => call(hold, Call::Start(submission)),
                Effect::Cancel(hold, submission) => call(hold, Call::Cancel(submission)),
                Effect::Discard(hold, submission) => call(hold, Call::Discard(submission)),
                Effect::Forget(hold, submission) => call(hold, Call::Forget(submission)),
                Effect::Record(hold, item) => self.records.send((hold, item)).unwrap_or_default(),
                Effect::Publish(event) => {
                    if matches!(event.observation, jobgate_shared::domain::Observation::Ended { .. }) {
                        self.logs.send(ship::Order::Look(event.job)).unwrap_or_default();
                    }
                    self.events.send(event).unwrap_or_default();
                }
                Effect::HandBack(item) => {
                    self.logs.send(ship::Order::Stop(item.job)).unwrap_or_default();
                    self.returns.send(item).unwrap_or_default();
                }
                Effect::ShipLogs(hold, submission) => {
                    self.logs.send(ship::Order::Begin(hold, submission)).unwrap_or_default();
                }
                Effect::ClaimAgain(job) => self.unheard.send(job).unwrap_or_default(),
            }
        }
        for (cluster, calls) in calls {
            self.call(cluster, calls);
        }
    }

    /// Gives a job what it reports with, on its way to the engine and nowhere else: no row and no answer of ours ever holds
    /// its token. A variable the job's own spec sets stays: it may have another way to us, or a token that opens more.
    fn introduce(&self, job: &mut ToCreate) {
        for (name, value) in self.reporting.iter().flat_map(|reporting| reporting.variables(job.tag)) {
            job.spec.env.entry(name.to_owned()).or_insert(value);
        }
    }

    /// Runs something whose outcome is one message.
    pub(super) fn run(&self, work: impl Future<Output = Message> + Send + 'static) {
        let inbox = self.inbox.clone();
        self.tasks.spawn("call", async move {
            let message = work.await;
            inbox.send(message).await.unwrap_or_default();
        });
    }

    /// Lets what has been begun come to its end, for so long.
    pub(super) async fn finish(self, patience: Duration) {
        let Self { tasks, records, events, returns, logs, unheard, .. } = self;
        drop((records, events, returns, logs, unheard));
        if tokio::time::timeout(patience, tasks.wait()).await.is_err() {
            tracing::warn!(
                "some effects of a drain were not answered in time; adopters will find what they did"
            );
        }
    }

    fn call(&self, cluster: u16, calls: Vec<(Hold, Call)>) {
        let place = usize::from(cluster);
        let (served, slots) = (self.served[place].clone(), self.slots[place].clone());
        let (inbox, lease) = (self.inbox.clone(), self.lease.clone());
        self.tasks.spawn("rm-calls", async move {
            let width = served.max_calls;
            let answered =
                stream::iter(calls).map(|(hold, call)| one_call(&served, &slots, &lease, hold, call));
            let mut chunks = answered.buffer_unordered(width).ready_chunks(ANSWERS);
            while let Some(chunk) = chunks.next().await {
                let (inputs, answers): (Vec<_>, Vec<_>) = chunk.into_iter().flatten().unzip();
                let inputs = inputs.into_iter().flatten().flatten().collect();
                if inbox.send(Message::Answered { cluster, inputs, answers }).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Makes one call when its turn comes; `None` when it must not be made any more.
async fn one_call(
    served: &Served,
    slots: &Semaphore,
    lease: &Lease,
    hold: Hold,
    call: Call,
) -> Option<([Option<Input>; 2], Answer)> {
    let _slot = slots.acquire().await.ok()?;
    served.pace.turn().await;
    if !lease.holds() {
        return None;
    }
    let (engine, tag, name, began) = (&served.engine, hold.tag, call.name(), Instant::now());
    let [before, behind] = call.gaps();
    failpoint::pass(before);
    let (went, input) = match call {
        Call::Create(job) => {
            let answer = served.pace.pays(engine.create(&job)).await;
            (answered(&answer), Some(Input::Created(hold, answer.map_err(Fault::from))))
        }
        Call::Start(submission) => {
            let answer = served.pace.pays(engine.start(tag, &submission)).await;
            (answered(&answer), Some(Input::Started(hold, answer.map_err(Fault::from))))
        }
        Call::Cancel(submission) => {
            let answer = served.pace.pays(engine.cancel(tag, &submission)).await;
            (answered(&answer), Some(Input::CancelTaken(hold, answer.map_err(Fault::from))))
        }
        Call::Discard(submission) => {
            let answer = served.pace.pays(engine.discard(tag, submission.as_ref())).await;
            (answered(&answer), Some(Input::Discarded(hold, answer.map_err(Fault::from))))
        }
        Call::Forget(submission) => {
            let answer = served.pace.pays(engine.forget(tag, &submission)).await;
            if let Err(error) = &answer {
                // What is left behind is inert and old: nothing depends on it.
                tracing::debug!(job = %tag.job, cluster = %served.name, %error, "the engine could not forget a submission");
            }
            (answered(&answer), None)
        }
    };
    failpoint::pass(behind);
    let (took, answered) = (began.elapsed(), went.is_ok());
    count_call(&served.name, name, took, answered);
    let told = Input::Answered(hold.cluster, went.map(|()| took));
    Some(([Some(told), input], Answer { took, answered }))
}

/// A call to the manager of a cluster has been made.
pub(super) fn count_call(cluster: &ClusterName, name: &'static str, took: Duration, answered: bool) {
    let (cluster, outcome) = (cluster.to_string(), if answered { "answered" } else { "away" });
    metrics::histogram!("jobgate_rm_call_seconds", "cluster" => cluster.clone(), "call" => name)
        .record(took.as_secs_f64());
    metrics::counter!("jobgate_rm_calls_total", "cluster" => cluster, "call" => name, "outcome" => outcome)
        .increment(1);
}

/// Records what was created, as many at once as wait.
async fn record(
    worker: Arc<Worker>,
    mut waiting: mpsc::UnboundedReceiver<(Hold, ToRecord)>,
    inbox: mpsc::Sender<Message>,
) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, MAX_RECORD).await > 0 {
        let (holds, items): (Vec<Hold>, Vec<ToRecord>) = batch.drain(..).unzip();
        let began = Instant::now();
        failpoint::pass("record.begins");
        let inputs = match worker.leases.record(&items).await {
            Ok(outcomes) => {
                failpoint::pass("record.committed");
                metrics::histogram!("jobgate_record_submission_seconds")
                    .record(began.elapsed().as_secs_f64());
                holds
                    .into_iter()
                    .zip(outcomes)
                    .map(|(hold, outcome)| Input::Recorded(hold, Some(outcome)))
                    .collect()
            }
            Err(error) => {
                tracing::warn!(
                    jobs = items.len(),
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "submissions not recorded; trying again"
                );
                holds.into_iter().map(|hold| Input::Recorded(hold, None)).collect()
            }
        };
        if inbox.send(Message::Inputs(inputs)).await.is_err() {
            return;
        }
    }
}

/// Gives jobs up, as many at once as wait; tries again until the lease is over (then they are anybody's anyway).
async fn hand_back(
    worker: Arc<Worker>,
    id: WorkerId,
    mut waiting: mpsc::UnboundedReceiver<ToHandBack>,
    lease: Arc<Lease>,
) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, MAX_RECORD).await > 0 {
        let mut delays = Delays::network();
        while lease.holds() {
            failpoint::pass("hand_back.begins");
            match worker.leases.hand_back(id, &batch).await {
                Ok(()) => {
                    failpoint::pass("hand_back.done");
                    break;
                }
                Err(error) => {
                    tracing::warn!(
                        jobs = batch.len(),
                        error = format!("{:#}", anyhow::Error::new(error)),
                        "jobs not handed back; trying again"
                    );
                    tokio::time::sleep(delays.next_delay()).await;
                }
            }
        }
        batch.clear();
    }
}
