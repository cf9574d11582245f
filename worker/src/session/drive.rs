//! The one loop that owns the core: messages in, effects out, ticks, polls and heartbeats in between.

use super::{Worker, answered_within, claim::Turn, lease::Lease, perform::Performer, rounds::Rounds};
use crate::{
    core::{Core, Effect, Fault, Hold, Input, Moment},
    engine::{EngineError, EngineResult, Sighting},
    regulator::{Answer, Load, Regulator},
};
use anyhow::anyhow;
use futures::FutureExt as _;
use jobgate_shared::{
    domain::{Job, Submission, SubmissionTag, WorkerId},
    failpoint,
    store::{Heartbeat, Pulse, StoreError},
};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Most messages taken at once.
const MESSAGES: usize = 256;
/// Most ends asked about in one heartbeat.
const UNSETTLED: usize = 20_000;
/// So many ends that wait for their rows are asked about sooner than the next heartbeat is due: those that wait long are told
/// again, and a worker that ends thousands of jobs a second would tell most of them twice.
const MANY_UNSETTLED: usize = 5_000;
/// Between two heartbeats at least, then.
const SOON: Duration = Duration::from_millis(250);
/// What a drain whose time is up still gives to writes that are out.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// What reaches the loop.
pub(super) enum Message {
    /// How many jobs of a cluster could be claimed now?
    Room { cluster: u16, reply: oneshot::Sender<u32> },
    /// Promise room for a claim.
    Reserve { cluster: u16, wanted: u32, reply: oneshot::Sender<u32> },
    /// A claim was answered, for which room had been promised.
    Claimed { cluster: u16, reserved: u32, jobs: Vec<Job> },
    /// A suspect was claimed, or not after all; in whose room, if room had been promised.
    ClaimedAlone { cluster: Option<u16>, job: Option<Box<Job>>, turn: Turn },
    /// Jobs came by the worker's own queue, for which no room is asked.
    Adopted(Vec<Job>),
    /// Effects were answered, with how each call to the manager went.
    Answered { cluster: u16, inputs: Vec<Input>, answers: Vec<Answer> },
    /// Rows or logs answered.
    Inputs(Vec<Input>),
    /// A poll was answered.
    Polled { cluster: u16, inputs: Vec<Input> },
    /// An engine says that a look is worth it.
    Stirred { cluster: u16 },
    /// A heartbeat was answered.
    Heartbeat { sent: Instant, answer: Result<Heartbeat, StoreError> },
    /// Send a heartbeat now: there is news.
    Nudged,
    /// How busy this machine is.
    Load(Load),
    /// So many workers share the limits of a cluster.
    Share { cluster: u16, workers: u32 },
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Everything was given back.
    Drained,
    /// The lease ran out, or the store says so.
    LeaseOver,
    /// A part of the session panicked.
    Broken,
}

pub(super) struct Drive {
    worker: Arc<Worker>,
    id: WorkerId,
    core: Core,
    regulators: Vec<Box<dyn Regulator>>,
    performer: Performer,
    messages: mpsc::Receiver<Message>,
    room: Arc<Notify>,
    lease: Arc<Lease>,
    taking: CancellationToken,
    began: Instant,
    load: Load,
    /// That of the suspect in hand.
    turn: Option<Turn>,
    /// When each cluster is polled.
    polls: Vec<Rounds>,
    next_heartbeat: Instant,
    heartbeat_out: bool,
    lease_over: bool,
}

impl Drive {
    #[allow(clippy::too_many_arguments, reason = "the parts of a session, put together once")]
    pub(super) fn new(
        worker: &Arc<Worker>,
        id: WorkerId,
        core: Core,
        regulators: Vec<Box<dyn Regulator>>,
        performer: Performer,
        messages: mpsc::Receiver<Message>,
        room: Arc<Notify>,
        lease: Arc<Lease>,
        taking: CancellationToken,
    ) -> Self {
        let began = worker.clock.monotonic();
        Self {
            polls: vec![Rounds::new(began); worker.clusters.len()],
            next_heartbeat: began + worker.timing.heartbeat,
            worker: worker.clone(),
            id,
            core,
            regulators,
            performer,
            messages,
            room,
            lease,
            taking,
            began,
            load: Load::default(),
            turn: None,
            heartbeat_out: false,
            lease_over: false,
        }
    }

    pub(super) async fn run(mut self, shutdown: &CancellationToken) -> Ended {
        let mut taken = Vec::with_capacity(MESSAGES);
        let mut give_up = None;
        loop {
            if self.lease.over().is_cancelled() {
                return Ended::Broken;
            }
            if self.lease_over || !self.lease.holds() {
                return Ended::LeaseOver;
            }
            if let Some(at) = give_up
                && (self.core.jobs() == 0 || self.now() >= at)
            {
                let left = at.saturating_duration_since(self.now());
                self.performer.finish(left.max(LAST_WRITES)).await;
                return Ended::Drained;
            }
            let wake = self.next_wake(give_up);
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if give_up.is_none() => {
                    give_up = Some(self.now() + self.worker.timing.drain);
                    self.taking.cancel();
                    let (jobs, ended) = self.in_hand();
                    tracing::info!(worker = %self.id, jobs, ended, "draining: {jobs} jobs are handed back; {ended} more have ended and wait for their rows only");
                    failpoint::pass("drain.begins");
                    self.step(vec![Input::Drain]);
                }
                count = self.messages.recv_many(&mut taken, MESSAGES) => {
                    if count == 0 {
                        return Ended::LeaseOver;
                    }
                    for message in taken.drain(..) {
                        self.take(message);
                    }
                }
                () = self.lease.over().cancelled() => return Ended::Broken,
                () = tokio::time::sleep_until(wake) => {}
            }
            self.on_time();
        }
    }

    fn now(&self) -> Instant {
        self.worker.clock.monotonic()
    }

    fn since_start(&self) -> Duration {
        self.now().saturating_duration_since(self.began)
    }

    fn next_wake(&self, give_up: Option<Instant>) -> Instant {
        let timer = self.core.next_timer().map(|at| self.began + at);
        let polls = self.polls.iter().filter_map(Rounds::due).filter(|_| self.core.jobs() > 0);
        let heartbeat = (!self.heartbeat_out).then_some(self.next_heartbeat);
        polls.chain(timer).chain(heartbeat).chain(give_up).fold(self.lease.until(), Instant::min)
    }

    /// What time alone brings: ticks, polls, heartbeats.
    fn on_time(&mut self) {
        let now = self.now();
        if self.core.next_timer().is_some_and(|at| self.began + at <= now) {
            self.step(vec![Input::Tick]);
        }
        for place in 0..self.polls.len() {
            if self.core.jobs() > 0 && self.polls[place].due().is_some_and(|at| at <= now) {
                self.poll(place);
            }
        }
        if !self.heartbeat_out && self.next_heartbeat <= now {
            self.beat();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Room { cluster, reply } => {
                let room = self.room_of(cluster);
                // Nobody listens any more only when the intake is over.
                reply.send(room).unwrap_or_default();
            }
            Message::Reserve { cluster, wanted, reply } => {
                let (now, allowed) = (self.since_start(), self.allowed(cluster));
                let granted = self.core.reserve(now, cluster, allowed, wanted);
                if let Some(regulator) = self.regulators.get_mut(usize::from(cluster)) {
                    regulator.claimed(now, granted);
                }
                if reply.send(granted).is_err() {
                    self.core.release(cluster, granted);
                }
            }
            Message::Claimed { cluster, reserved, jobs } => {
                self.grant(jobs);
                self.core.release(cluster, reserved);
            }
            Message::ClaimedAlone { cluster, job, turn } => {
                self.turn = Some(turn);
                self.step(job.into_iter().map(Input::Granted).collect());
                if let Some(cluster) = cluster {
                    self.core.release(cluster, 1);
                }
            }
            Message::Adopted(jobs) => {
                metrics::counter!("jobgate_jobs_adopted_total").increment(jobs.len() as u64);
                self.grant(jobs);
            }
            Message::Answered { cluster, inputs, answers } => {
                let now = self.since_start();
                if let Some(regulator) = self.regulators.get_mut(usize::from(cluster)) {
                    for answer in answers {
                        regulator.answered(now, answer);
                    }
                }
                let started = inputs.iter().any(|input| matches!(input, Input::Started(..)));
                self.step(inputs);
                if started {
                    let (now, core) = (self.now(), &self.core);
                    self.polls[usize::from(cluster)].started(now, || core.is_submitting(cluster));
                }
            }
            Message::Inputs(inputs) => self.step(inputs),
            Message::Polled { cluster, inputs } => {
                let (now, interval) = (self.now(), self.interval(usize::from(cluster)));
                self.polls[usize::from(cluster)].answered(now, interval);
                self.step(inputs);
            }
            Message::Stirred { cluster } => {
                let (now, submitting) = (self.now(), self.core.is_submitting(cluster));
                self.polls[usize::from(cluster)].stirred(now, submitting);
            }
            Message::Heartbeat { sent, answer } => self.heartbeat(sent, answer),
            Message::Nudged => self.next_heartbeat = self.now(),
            Message::Load(load) => self.load = load,
            Message::Share { cluster, workers } => {
                let now = self.since_start();
                if let Some(regulator) = self.regulators.get_mut(usize::from(cluster)) {
                    regulator.shared(now, workers);
                }
            }
        }
    }

    /// Takes jobs on. A submission made under another claim may be over, or wait to be started, so it is looked at now.
    fn grant(&mut self, jobs: Vec<Job>) {
        let now = self.now();
        for (rounds, served) in self.polls.iter_mut().zip(&self.worker.clusters) {
            if jobs.iter().any(|job| job.life.submission.is_some() && job.cluster == served.name) {
                rounds.stirred(now, false);
            }
        }
        self.step(jobs.into_iter().map(|job| Input::Granted(Box::new(job))).collect());
    }

    /// Jobs that have not ended, and jobs that have and wait for their rows to say so or for their logs.
    fn in_hand(&self) -> (usize, usize) {
        let jobs = self.core.unended();
        (jobs, self.core.jobs().saturating_sub(jobs))
    }

    fn interval(&self, place: usize) -> Duration {
        self.worker.clusters[place].engine.capabilities().poll_interval
    }

    fn allowed(&mut self, cluster: u16) -> u32 {
        let (now, held, load) = (self.since_start(), self.core.held(cluster), self.load);
        self.regulators.get_mut(usize::from(cluster)).map_or(0, |r| r.allowed(now, held, load))
    }

    fn room_of(&mut self, cluster: u16) -> u32 {
        let (now, allowed) = (self.since_start(), self.allowed(cluster));
        self.core.room(now, cluster, allowed)
    }

    fn step(&mut self, inputs: Vec<Input>) {
        let held = self.core.held_in_all();
        let mut effects: Vec<Effect> = Vec::new();
        let now = Moment { since_start: self.since_start(), wall: self.worker.clock.now() };
        for input in inputs {
            self.core.step(now, input, &mut effects);
        }
        self.performer.perform(effects);
        if !self.core.has_suspect() {
            self.turn = None;
        }
        if self.core.held_in_all() < held {
            self.room.notify_waiters();
        }
    }

    /// One look at everything this worker watches in one cluster.
    fn poll(&mut self, place: usize) {
        let Ok(cluster) = u16::try_from(place) else { return };
        let (watched, now) = (self.core.watched(cluster), self.now());
        if watched.is_empty() {
            let interval = self.interval(place);
            self.polls[place].skip(now, interval);
            return;
        }
        self.polls[place].begin(now);
        let served = &self.worker.clusters[place];
        let (served, name) = (served.clone(), served.name.to_string());
        self.performer.run(async move {
            let asked: Vec<(SubmissionTag, Submission)> =
                watched.iter().map(|(hold, submission)| (hold.tag, submission.clone())).collect();
            served.pace.turn().await;
            let began = Instant::now();
            // Whoever adopted these jobs would look at them and panic in turn: a manager that cannot be read is away.
            let look = AssertUnwindSafe(served.pace.pays(served.engine.poll(&asked))).catch_unwind();
            let answer = look.await.unwrap_or_else(|_| Err(EngineError::Away(anyhow!("the engine panicked"))));
            failpoint::pass("watch.seen");
            let took = began.elapsed();
            metrics::histogram!("jobgate_poll_seconds", "cluster" => name.clone()).record(took.as_secs_f64());
            let outcome = if answer.is_ok() { "answered" } else { "away" };
            metrics::counter!("jobgate_rm_calls_total", "cluster" => name, "call" => "poll", "outcome" => outcome)
                .increment(1);
            Message::Polled { cluster, inputs: sightings(cluster, &watched, took, answer) }
        });
    }

    fn beat(&mut self) {
        self.heartbeat_out = true;
        // A nudge that comes while this one is out moves the next one forward again.
        self.next_heartbeat = self.now() + self.worker.timing.heartbeat;
        let mut unsettled = self.core.unsettled();
        unsettled.truncate(UNSETTLED);
        let pulse = Pulse {
            ttl: self.worker.timing.lease,
            jobs: u32::try_from(self.core.unended()).unwrap_or(u32::MAX),
            draining: self.core.is_draining(),
            parked: self.core.parked(),
            unsettled,
        };
        let ended = u32::try_from(self.in_hand().1).unwrap_or(u32::MAX);
        metrics::gauge!("jobgate_worker_jobs").set(f64::from(pulse.jobs));
        metrics::gauge!("jobgate_worker_unsettled").set(f64::from(ended));
        let (leases, id, patience) = (self.worker.leases.clone(), self.id, self.worker.timing.lease / 2);
        self.performer.run(async move {
            let sent = Instant::now();
            let answer = answered_within(patience, leases.heartbeat(id, &pulse)).await;
            Message::Heartbeat { sent, answer }
        });
    }

    fn heartbeat(&mut self, sent: Instant, answer: Result<Heartbeat, StoreError>) {
        self.heartbeat_out = false;
        match answer {
            Ok(Heartbeat::Renewed { cancel, settled, lost }) => {
                self.lease.renewed(sent);
                if !cancel.is_empty() {
                    failpoint::pass("cancel.known");
                }
                let goes_on = !settled.is_empty();
                if goes_on {
                    failpoint::pass("settle.known");
                }
                let cancel = cancel.into_iter().map(Input::CancelRequested);
                let news = cancel
                    .chain(settled.into_iter().map(Input::Settled))
                    .chain(lost.into_iter().map(Input::Lost));
                self.step(news.collect());
                // Where nothing settles, asking more often would only burden who is behind already.
                if goes_on && self.core.unsettled().len() >= MANY_UNSETTLED {
                    self.next_heartbeat = self.next_heartbeat.min(self.now() + SOON);
                }
            }
            Ok(Heartbeat::Expired) => self.lease_over = true,
            Err(error) => {
                self.next_heartbeat = self.now() + self.worker.timing.heartbeat / 4;
                tracing::warn!(worker = %self.id, error = format!("{:#}", anyhow::Error::new(error)), "heartbeat not answered");
            }
        }
    }
}

fn sightings(
    cluster: u16,
    watched: &[(Hold, Submission)],
    took: Duration,
    answer: EngineResult<Vec<Sighting>>,
) -> Vec<Input> {
    match answer {
        Ok(seen) => {
            let seen = watched.iter().zip(seen).map(|((hold, _), sighting)| Input::Sighted(*hold, sighting));
            std::iter::once(Input::Answered(cluster, Ok(took))).chain(seen).collect()
        }
        Err(error) => {
            // An outage of the manager never ends a job; it only parks the cluster.
            let (Fault::Away(why) | Fault::Refused(why) | Fault::NotNow(why)) = Fault::from(error);
            vec![Input::Answered(cluster, Err(why))]
        }
    }
}

/// Whether the manager answered, be it with a refusal; why not otherwise.
pub(super) fn answered<T>(answer: &EngineResult<T>) -> Result<(), String> {
    match answer {
        Err(EngineError::Away(source)) => Err(format!("{source:#}")),
        Ok(_) | Err(EngineError::Refused(_) | EngineError::NotNow(_)) => Ok(()),
    }
}

impl From<EngineError> for Fault {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Away(source) => Self::Away(format!("{source:#}")),
            EngineError::Refused(why) => Self::Refused(why),
            EngineError::NotNow(why) => Self::NotNow(why),
        }
    }
}
