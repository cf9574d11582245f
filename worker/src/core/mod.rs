//! What decides in a worker: one state machine per claimed attempt, and the rules about all of them together.
//!
//! Sans-IO: [`Core::step`] takes an [`Input`] and says which [`Effect`]s to perform; it does no I/O, reads no clock, and
//! its steps are deterministic, so a model checker and a simulator can drive this very code. Every answer to an effect
//! comes back as an input that names its [`Hold`], so an answer to a claim that is over falls on the floor here.

mod attempt;
mod breaker;

use crate::engine::{Capabilities, Sighting, ToCreate};
use attempt::{Attempt, Context};
use breaker::Breaker;
use chrono::{DateTime, Utc};
use jobgate_shared::{
    domain::{ClusterName, Job, JobId, SUSPECT_AFTER, StatusEvent, Submission, SubmissionTag, WorkerId},
    store::{Recorded, ToHandBack, ToRecord},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// One attempt under one claim: what answers are matched by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hold {
    /// Job and attempt.
    pub tag: SubmissionTag,
    /// The claim.
    pub epoch: u32,
    /// The cluster, as its place in what the worker serves.
    pub cluster: u16,
}

/// A point in time, both ways: monotonic since the worker began, and on the wall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Moment {
    /// What delays and limits are counted in.
    pub since_start: Duration,
    /// What events are stamped with.
    pub wall: DateTime<Utc>,
}

/// Why an engine did not do what it was asked, as far as deciding goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Outcome unknown; the same call can be made again.
    Away(String),
    /// It never will.
    Refused(String),
    /// It was not done, and may be another time.
    NotNow(String),
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// The store granted a claim.
    Granted(Box<Job>),
    /// A create was answered.
    Created(Hold, Result<Submission, Fault>),
    /// A record was answered; `None` when the store was away and the outcome is unknown.
    Recorded(Hold, Option<Recorded>),
    /// A start was answered.
    Started(Hold, Result<(), Fault>),
    /// A cancel was answered.
    CancelTaken(Hold, Result<(), Fault>),
    /// A discard was answered.
    Discarded(Hold, Result<(), Fault>),
    /// A poll saw it.
    Sighted(Hold, Sighting),
    /// A call to the manager of a cluster was answered after so long, be it with a refusal; or not, and why.
    Answered(u16, Result<Duration, String>),
    /// Somebody wants it cancelled.
    CancelRequested(JobId),
    /// The row agrees with the end that was told.
    Settled(JobId),
    /// The attempt goes on in somebody else's hands.
    Lost(JobId),
    /// Both its logs are shipped to the end.
    LogsShipped(Hold),
    /// By their rows, this worker has these jobs.
    Held(Vec<JobId>),
    /// Give everything back and stop.
    Drain,
    /// Time has passed.
    Tick,
}

/// Something to do. Store effects are idempotent and tried until answered; engine effects are tried once and answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Create it inert.
    Create(Hold, Box<ToCreate>),
    /// Make it *the* submission.
    Record(Hold, ToRecord),
    /// Start the recorded one.
    Start(Hold, Submission),
    /// End the recorded one.
    Cancel(Hold, Submission),
    /// Make sure what was never recorded never runs.
    Discard(Hold, Option<Submission>),
    /// Tell what was seen.
    Publish(StatusEvent),
    /// Give it up.
    HandBack(ToHandBack),
    /// Ship its logs from now on.
    ShipLogs(Hold, Submission),
    /// The engine may forget it.
    Forget(Hold, Submission),
    /// Claim what this worker has without knowing.
    ClaimAgain(JobId),
}

/// What a worker serves: one configured cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Serving {
    /// Its name.
    pub cluster: ClusterName,
    /// What its engine can do.
    pub capabilities: Capabilities,
    /// How many creates may be out at once.
    pub max_creates: usize,
    /// How long the manager must keep not knowing a submission before it is `LOST`.
    pub lost_after: Duration,
    /// An answer that takes longer shows a manager in trouble.
    pub slow_after: Duration,
}

impl Serving {
    /// What an answer shows to be wrong with the manager.
    fn trouble(&self, answer: Result<Duration, String>) -> Option<String> {
        match answer {
            Ok(took) if took <= self.slow_after => None,
            Ok(took) => Some(format!("slow: an answer took {took:.1?}")),
            Err(why) => Some(why),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Cluster {
    serving: Serving,
    breaker: Breaker,
    /// Attempts whose create is out.
    creating: BTreeSet<JobId>,
    /// Attempts waiting for their turn to be created.
    queue: VecDeque<JobId>,
    /// Attempts a poll looks at, and those whose submission is under way: asked for so often that looking through all that
    /// is in hand would be what a busy worker does most.
    watched: BTreeSet<JobId>,
    submitting: BTreeSet<JobId>,
    /// Room promised to claims that are under way.
    reserved: u32,
    held: u32,
}

impl Cluster {
    /// Keeps the books about an attempt that has just made a step.
    fn note(&mut self, job: JobId, attempt: &Attempt) {
        let books = [
            (&mut self.watched, attempt.watched().is_some()),
            (&mut self.submitting, attempt.is_submitting()),
        ];
        for (book, belongs) in books {
            if belongs {
                book.insert(job);
            } else {
                book.remove(&job);
            }
        }
    }

    fn strike(&mut self, job: JobId) {
        for book in [&mut self.creating, &mut self.watched, &mut self.submitting] {
            book.remove(&job);
        }
    }
}

/// The deciding half of one worker identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Core {
    me: WorkerId,
    clusters: Vec<Cluster>,
    attempts: BTreeMap<JobId, Attempt>,
    /// When an attempt wants a tick.
    timers: BTreeSet<(Duration, JobId)>,
    /// May be what kills workers: they are created before everything else that waits, each while no other create is out.
    suspects: VecDeque<JobId>,
    /// The one of them whose submission is under way.
    quarantined: Option<JobId>,
    /// Jobs this worker had by their rows when it last looked, and did not know.
    unknown: BTreeSet<JobId>,
    /// The latest claims that were worked off of jobs that may run unrecorded, since the last look and before it: a claim's
    /// answer that was late would have them submitted again.
    worked_off: [BTreeMap<JobId, u32>; 2],
    draining: bool,
}

impl Core {
    /// A worker that holds nothing yet.
    pub fn new(me: WorkerId, serving: Vec<Serving>) -> Self {
        let clusters = serving.into_iter().map(|serving| Cluster {
            breaker: Breaker::default(),
            creating: BTreeSet::new(),
            queue: VecDeque::new(),
            watched: BTreeSet::new(),
            submitting: BTreeSet::new(),
            reserved: 0,
            held: 0,
            serving,
        });
        Self {
            me,
            clusters: clusters.collect(),
            attempts: BTreeMap::new(),
            timers: BTreeSet::new(),
            suspects: VecDeque::new(),
            quarantined: None,
            unknown: BTreeSet::new(),
            worked_off: Default::default(),
            draining: false,
        }
    }

    /// Takes one input and appends what to do about it.
    pub fn step(&mut self, now: Moment, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Granted(job) => self.granted(now, *job, effects),
            Input::Created(hold, answer) => {
                if let Some(cluster) = self.cluster_of(hold) {
                    cluster.creating.remove(&hold.tag.job);
                }
                self.with(now, hold, effects, |attempt, cx| attempt.created(cx, answer));
            }
            Input::Recorded(hold, answer) => {
                self.with(now, hold, effects, |attempt, cx| attempt.recorded(cx, answer));
            }
            Input::Started(hold, answer) => {
                self.with(now, hold, effects, |attempt, cx| attempt.started(cx, answer));
            }
            Input::CancelTaken(hold, answer) => {
                self.with(now, hold, effects, |attempt, cx| attempt.cancel_taken(cx, &answer));
            }
            Input::Discarded(hold, answer) => {
                self.with(now, hold, effects, |attempt, cx| attempt.discarded(cx, &answer));
            }
            Input::Sighted(hold, sighting) => {
                self.with(now, hold, effects, |attempt, cx| attempt.sighted(cx, sighting));
            }
            Input::Answered(place, answer) => {
                if let Some(cluster) = self.clusters.get_mut(usize::from(place)) {
                    cluster.breaker.told(now.since_start, cluster.serving.trouble(answer));
                }
            }
            Input::CancelRequested(job) => self.with_job(now, job, effects, Attempt::cancel_requested),
            Input::Lost(job) => self.remove(job),
            Input::Settled(job) => self.with_job(now, job, effects, Attempt::settled),
            Input::LogsShipped(hold) => self.with(now, hold, effects, Attempt::logs_shipped),
            Input::Held(jobs) => self.held_by_rows(jobs, effects),
            Input::Drain => self.drain(now, effects),
            Input::Tick => self.tick(now, effects),
        }
        self.begin_creates(now, effects);
    }

    /// How many jobs of `cluster` may be claimed now, given what its regulator allows to be held in all.
    pub fn room(&self, now: Duration, cluster: u16, allowed: u32) -> u32 {
        match self.clusters.get(usize::from(cluster)) {
            Some(served) if !self.draining => {
                let room = allowed.saturating_sub(served.held + served.reserved);
                // A parked cluster lets one job through at a time, to find out whether its manager is back; from its claim to
                // the answer to its create.
                let uncreated = |a: &Attempt| a.hold().cluster == cluster && a.is_uncreated();
                let probing = || served.reserved > 0 || self.attempts.values().any(uncreated);
                served.breaker.admits(now, room, probing)
            }
            Some(_) | None => 0,
        }
    }

    /// Promises room to a claim about to be made, until [`Self::release`]; answers how much of `wanted`.
    pub fn reserve(&mut self, now: Duration, cluster: u16, allowed: u32, wanted: u32) -> u32 {
        let granted = self.room(now, cluster, allowed).min(wanted);
        if let Some(cluster) = self.clusters.get_mut(usize::from(cluster)) {
            cluster.reserved += granted;
        }
        granted
    }

    /// The claim the room was promised to has been answered (grants have come in as inputs before).
    pub fn release(&mut self, cluster: u16, reserved: u32) {
        if let Some(cluster) = self.clusters.get_mut(usize::from(cluster)) {
            cluster.reserved = cluster.reserved.saturating_sub(reserved);
        }
    }

    /// Jobs held or promised room in `cluster`. What has ended and waits for its row does not count.
    pub fn held(&self, cluster: u16) -> u32 {
        self.clusters.get(usize::from(cluster)).map_or(0, |c| c.held + c.reserved)
    }

    /// The same of every cluster.
    pub fn held_in_all(&self) -> u32 {
        self.clusters.iter().map(|c| c.held + c.reserved).sum()
    }

    /// What a poll of `cluster` should look at.
    pub fn watched(&self, cluster: u16) -> Vec<(Hold, Submission)> {
        let watched = self.clusters.get(usize::from(cluster)).into_iter().flat_map(|c| &c.watched);
        let attempts = watched.filter_map(|job| self.attempts.get(job));
        attempts.filter_map(|a| a.watched().map(|s| (a.hold(), s.clone()))).collect()
    }

    /// Submissions to `cluster` are under way that no poll looks at yet.
    pub fn is_submitting(&self, cluster: u16) -> bool {
        self.clusters.get(usize::from(cluster)).is_some_and(|c| !c.submitting.is_empty())
    }

    /// Ends that were told and that no row has agreed with yet.
    pub fn unsettled(&self) -> Vec<(JobId, u32, u32)> {
        let told = self.attempts.values().filter(|a| a.is_unsettled());
        told.map(|a| (a.hold().tag.job, a.hold().tag.attempt, a.hold().epoch)).collect()
    }

    /// Clusters nothing fresh is claimed for, and why.
    pub fn parked(&self) -> Vec<(ClusterName, String)> {
        let parked = |c: &Cluster| Some((c.serving.cluster.clone(), c.breaker.parked()?.to_owned()));
        self.clusters.iter().filter_map(parked).collect()
    }

    /// Jobs in this worker's hands, ended or not.
    pub fn jobs(&self) -> usize {
        self.attempts.len()
    }

    /// Those of them that have not ended. The others wait for their rows to say so, or for their logs to be shipped.
    pub fn unended(&self) -> usize {
        self.clusters.iter().map(|c| c.held as usize).sum()
    }

    /// A suspect waits for its submission, or it is under way. One that was not answered and waits for another try is not
    /// waited for: its manager may be away for long.
    pub fn has_suspect(&self) -> bool {
        self.quarantined.is_some() || !self.suspects.is_empty()
    }

    /// A drain is under way.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// When the next tick is due.
    pub fn next_timer(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn granted(&mut self, now: Moment, job: Job, effects: &mut Vec<Effect>) {
        let Some(place) = self.clusters.iter().position(|c| c.serving.cluster == job.cluster) else { return };
        let tag = SubmissionTag { job: job.id, attempt: job.life.attempt };
        let Ok(cluster) = u16::try_from(place) else { return };
        let hold = Hold { tag, epoch: job.life.epoch, cluster };
        if self.worked_off.iter().any(|jobs| jobs.get(&job.id).is_some_and(|epoch| *epoch >= hold.epoch)) {
            return;
        }
        match self.attempts.get(&job.id).map(Attempt::hold) {
            // A doubled hint, or a replayed claim: it is in hand already.
            Some(known) if known.epoch >= hold.epoch => return,
            // A newer claim of our own, so whatever the older one was doing is over.
            Some(_) => self.remove(job.id),
            None => {}
        }
        let suspect = job.life.submission.is_none() && job.life.fruitless_claims > SUSPECT_AFTER;
        let serving = &mut self.clusters[place];
        serving.held += 1;
        self.attempts.insert(job.id, Attempt::new(now, hold, job, suspect, &serving.serving));
        self.with(now, hold, effects, Attempt::begin);
    }

    /// What is unknown twice in a row is no claim under way: its answer never came, and nobody else would notice.
    fn held_by_rows(&mut self, held: Vec<JobId>, effects: &mut Vec<Effect>) {
        self.worked_off.swap(0, 1);
        self.worked_off[0].clear();
        if self.draining {
            return;
        }
        let unknown: BTreeSet<JobId> =
            held.into_iter().filter(|job| !self.attempts.contains_key(job)).collect();
        effects.extend(unknown.intersection(&self.unknown).map(|job| Effect::ClaimAgain(*job)));
        self.unknown = unknown;
    }

    /// Begins creates in the order of claims, bounded per cluster; a suspect's before all others and while nothing else is
    /// being submitted.
    fn begin_creates(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        while self.quarantined.is_none() {
            let Some(job) = self.next_to_create() else { return };
            let Some(hold) = self.attempts.get(&job).map(Attempt::hold) else { return };
            if let Some(cluster) = self.clusters.get_mut(usize::from(hold.cluster)) {
                cluster.creating.insert(job);
            }
            self.with(now, hold, effects, Attempt::create);
        }
    }

    /// Takes from the lines whose turn it is.
    fn next_to_create(&mut self) -> Option<JobId> {
        // Some are gone, or were canceled while they waited: their discards are out.
        let waits = |job: &JobId| self.attempts.get(job).is_some_and(Attempt::is_queued);
        while let Some(suspect) = self.suspects.front().copied() {
            if waits(&suspect) {
                // What is out comes back first; nothing else begins before the suspect has had its turn.
                if self.clusters.iter().any(|cluster| !cluster.creating.is_empty()) {
                    return None;
                }
                self.quarantined = self.suspects.pop_front();
                return self.quarantined;
            }
            self.suspects.pop_front();
        }
        for cluster in &mut self.clusters {
            while let Some(job) = cluster.queue.front().copied() {
                if waits(&job) {
                    if cluster.creating.len() < cluster.serving.max_creates {
                        return cluster.queue.pop_front();
                    }
                    break;
                }
                cluster.queue.pop_front();
            }
        }
        None
    }

    fn drain(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        self.draining = true;
        for job in self.attempts.keys().copied().collect::<Vec<_>>() {
            self.with_job(now, job, effects, |_, _| ());
        }
    }

    fn tick(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        while let Some((at, job)) = self.timers.first().copied() {
            if at > now.since_start {
                break;
            }
            self.timers.pop_first();
            self.with_job(now, job, effects, Attempt::tick);
        }
    }

    fn cluster_of(&mut self, hold: Hold) -> Option<&mut Cluster> {
        let known = self.attempts.get(&hold.tag.job).is_some_and(|a| a.hold() == hold);
        if known { self.clusters.get_mut(usize::from(hold.cluster)) } else { None }
    }

    fn with(
        &mut self,
        now: Moment,
        hold: Hold,
        effects: &mut Vec<Effect>,
        step: impl FnOnce(&mut Attempt, &mut Context<'_>),
    ) {
        if self.attempts.get(&hold.tag.job).is_some_and(|a| a.hold() == hold) {
            self.with_job(now, hold.tag.job, effects, step);
        }
    }

    /// Runs one step of one attempt and keeps the books about it.
    fn with_job(
        &mut self,
        now: Moment,
        job: JobId,
        effects: &mut Vec<Effect>,
        step: impl FnOnce(&mut Attempt, &mut Context<'_>),
    ) {
        let Some(attempt) = self.attempts.get_mut(&job) else { return };
        let Some(cluster) = self.clusters.get_mut(usize::from(attempt.hold().cluster)) else { return };
        let counted = attempt.counts();
        let mut context = Context { me: self.me, now, serving: &cluster.serving, effects, wake: None };
        let before = attempt.wake();
        step(attempt, &mut context);
        if self.draining {
            attempt.drain(&mut context);
        }
        let after = context.wake;
        if let Some(at) = before
            && after.is_some()
        {
            self.timers.remove(&(at, job));
        }
        if let Some(at) = after {
            attempt.set_wake(at);
            self.timers.insert((at, job));
        }
        if attempt.take_wants_create() {
            let line = if attempt.is_suspect() { &mut self.suspects } else { &mut cluster.queue };
            line.push_back(job);
        }
        // Submitted, it outlived its start, and so did we.
        if self.quarantined == Some(job) && !attempt.is_submitting() {
            self.quarantined = None;
        }
        if counted && !attempt.counts() {
            cluster.held = cluster.held.saturating_sub(1);
        }
        cluster.note(job, attempt);
        if attempt.is_done() {
            self.remove(job);
        }
    }

    fn remove(&mut self, job: JobId) {
        if let Some(attempt) = self.attempts.remove(&job) {
            if let Some(at) = attempt.wake() {
                self.timers.remove(&(at, job));
            }
            if let Some(cluster) = self.clusters.get_mut(usize::from(attempt.hold().cluster)) {
                if attempt::runs_unrecorded(&cluster.serving) {
                    self.worked_off[0].insert(job, attempt.hold().epoch);
                }
                cluster.held = cluster.held.saturating_sub(attempt.counts().into());
                cluster.strike(job);
            }
            if self.quarantined == Some(job) {
                self.quarantined = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
