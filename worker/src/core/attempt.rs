//! One attempt in a worker's hands: created inert, recorded, started, watched, told, settled.
//!
//! Each method is one named step. The order is the protocol's: nothing is started that is not recorded, nothing is
//! discarded that a row may record, an end is told until the row agrees.

use super::{Effect, Fault, Hold, Moment, Serving};
use crate::engine::{Sighting, SubmitMode, TimeLimits, ToCreate};
use chrono::{DateTime, Utc};
use jobgate_shared::{
    domain::{Ending, Job, JobState, Observation, StatusEvent, Submission, WorkerId},
    store::{Recorded, ToHandBack, ToRecord},
};
use std::time::Duration;

/// How often an absence must be seen before it can be an end.
const ABSENT_POLLS: u32 = 3;
/// How often positive evidence of a loss must be seen.
const GONE_POLLS: u32 = 2;
/// How long a started submission may still look inert before it is started again.
const START_SETTLES: Duration = Duration::from_secs(5);
/// How long a cancel is given before it is asked for again.
const CANCEL_SETTLES: Duration = Duration::from_secs(10);
/// How often a running job is told again, should the first telling have been lost.
const TELL_AGAIN: [Duration; 3] = [Duration::from_secs(10), Duration::from_mins(1), Duration::from_mins(10)];
/// How long an end is left to the next heartbeat, whose answer says that the row agrees, before it is told again.
const END_SETTLES: Duration = Duration::from_secs(5);
/// The shortest and the longest a job waits that its manager does not take at present.
const NOT_NOW_PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(10));
/// The longest wait between two tries of anything.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// What a step can see and do beside its attempt.
pub(super) struct Context<'a> {
    pub(super) me: WorkerId,
    pub(super) now: Moment,
    pub(super) serving: &'a Serving,
    pub(super) effects: &'a mut Vec<Effect>,
    /// Set by a step that wants a tick.
    pub(super) wake: Option<Duration>,
}

impl Context<'_> {
    fn wake_in(&mut self, delay: Duration) {
        self.wake = Some(self.now.since_start + delay);
    }
}

/// Where an attempt stands in the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    /// Granted; waits for its turn to be created.
    Queued { job: Box<ToCreate> },
    /// The create is out.
    Creating { job: Box<ToCreate> },
    /// Created inert; the record is out.
    Recording { submission: Submission },
    /// Recorded; the start is out.
    Starting { submission: Submission },
    /// In the manager's hands.
    Watching { submission: Submission, watch: Watch },
    /// Never to run: the discard is out, and the cancel is told once it is answered.
    Discarding { submission: Option<Submission> },
    /// Over and told; until the row agrees.
    Ended { event: Box<StatusEvent>, submission: Option<Submission>, settled: bool, shipped: bool },
    /// Nothing is left to do.
    Done,
}

/// What was seen of a submission, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Watch {
    told: Option<Observation>,
    told_times: u32,
    /// When its time is up, where nobody but its watcher ends it.
    time_up: Option<Duration>,
    started_at: Option<Duration>,
    absent: Option<(Duration, u32)>,
    gone: u32,
    /// A cancel is out, or was taken and not yet seen carried out.
    cancel_asked: bool,
    /// The cancel is ours, because the time is up.
    out_of_time: bool,
}

/// One attempt under one claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(clippy::struct_excessive_bools, reason = "four independent marks beside the phase")]
pub(super) struct Attempt {
    hold: Hold,
    phase: Phase,
    seq: u32,
    /// Tries of the effect that is out.
    tries: u32,
    cancel: bool,
    suspect: bool,
    /// An earlier claim may have submitted it, and what it submitted may run unrecorded.
    unsure: bool,
    wants_create: bool,
    /// Its logs are shipped to the end, which may be known before a poll sees that it ended.
    shipped: bool,
    time_limit: Option<Duration>,
    wake: Option<Duration>,
}

impl Attempt {
    pub(super) fn new(now: Moment, hold: Hold, job: Job, suspect: bool, serving: &Serving) -> Self {
        let limited = serving.capabilities.time_limits == TimeLimits::ByWatcher;
        let time_limit = job.spec.time_limit_seconds.filter(|_| limited).map(Duration::from_secs);
        let phase = match job.life.submission {
            Some(submission) => {
                let running = job.life.state == JobState::Running;
                let began = job.life.started_at.filter(|_| running);
                let reason = job.life.reason;
                let told = began.map(|since| Observation::Running { since: Some(since), reason });
                let time_up = began.zip(time_limit).map(|(since, limit)| time_up(now, since, limit));
                Phase::Watching { submission, watch: Watch { told, time_up, ..Watch::default() } }
            }
            None => Phase::Queued {
                job: Box::new(ToCreate {
                    tag: hold.tag,
                    project: job.project,
                    name: job.name,
                    spec: job.spec,
                }),
            },
        };
        let cancel = job.life.cancel_requested;
        let unsure = job.life.fruitless_claims > 1 && runs_unrecorded(serving);
        let (seq, tries, wants_create, shipped, wake) = (0, 0, false, false, None);
        Self { hold, phase, seq, tries, cancel, suspect, unsure, wants_create, shipped, time_limit, wake }
    }

    pub(super) fn hold(&self) -> Hold {
        self.hold
    }

    /// It takes room: it has not ended.
    pub(super) fn counts(&self) -> bool {
        !matches!(self.phase, Phase::Ended { .. } | Phase::Done)
    }

    /// Its create is still to be answered, if it was made at all.
    pub(super) fn is_uncreated(&self) -> bool {
        matches!(self.phase, Phase::Queued { .. } | Phase::Creating { .. })
    }

    /// It waits for its turn to be created.
    pub(super) fn is_queued(&self) -> bool {
        matches!(self.phase, Phase::Queued { .. })
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.suspect
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    pub(super) fn wake(&self) -> Option<Duration> {
        self.wake
    }

    pub(super) fn set_wake(&mut self, at: Duration) {
        self.wake = Some(at);
    }

    /// It asks for a turn to be created; asked once per turn.
    pub(super) fn take_wants_create(&mut self) -> bool {
        std::mem::take(&mut self.wants_create)
    }

    pub(super) fn watched(&self) -> Option<&Submission> {
        match &self.phase {
            Phase::Watching { submission, .. } => Some(submission),
            Phase::Queued { .. }
            | Phase::Creating { .. }
            | Phase::Recording { .. }
            | Phase::Starting { .. }
            | Phase::Discarding { .. }
            | Phase::Ended { .. }
            | Phase::Done => None,
        }
    }

    /// It may have begun at the manager, and its answer is not in: no poll looks at it yet.
    pub(super) fn is_submitting(&self) -> bool {
        match &self.phase {
            Phase::Creating { .. } | Phase::Recording { .. } | Phase::Starting { .. } => true,
            Phase::Queued { .. }
            | Phase::Watching { .. }
            | Phase::Discarding { .. }
            | Phase::Ended { .. }
            | Phase::Done => false,
        }
    }

    pub(super) fn is_unsettled(&self) -> bool {
        matches!(self.phase, Phase::Ended { settled: false, .. })
    }

    /// Just granted: fresh, or adopted with what is recorded.
    pub(super) fn begin(&mut self, cx: &mut Context<'_>) {
        match &self.phase {
            // This manager cannot be asked: submitting again could run it twice, and nothing it runs can be found to be ended.
            Phase::Queued { .. } if self.unsure && cx.serving.capabilities.mode == SubmitMode::AtMostOnce => {
                let why = "an earlier claim may have submitted it, and this resource manager cannot tell";
                self.end(cx, None, Ending::Lost, None, Some(why.to_owned()));
            }
            Phase::Queued { .. } if self.cancel => self.discard(cx, None),
            Phase::Queued { .. } => self.wants_create = true,
            Phase::Watching { submission, .. } => {
                self.ship_logs(cx, submission);
                if self.cancel {
                    self.ask_cancel(cx);
                }
            }
            Phase::Creating { .. }
            | Phase::Recording { .. }
            | Phase::Starting { .. }
            | Phase::Discarding { .. }
            | Phase::Ended { .. }
            | Phase::Done => {}
        }
    }

    /// Its turn has come.
    pub(super) fn create(&mut self, cx: &mut Context<'_>) {
        if let Phase::Queued { job } = std::mem::replace(&mut self.phase, Phase::Done) {
            cx.effects.push(Effect::Create(self.hold, job.clone()));
            self.phase = Phase::Creating { job };
        }
    }

    pub(super) fn created(&mut self, cx: &mut Context<'_>, answer: Result<Submission, Fault>) {
        let Phase::Creating { job } = std::mem::replace(&mut self.phase, Phase::Done) else { return };
        match answer {
            Ok(submission) if self.cancel => self.discard(cx, Some(submission)),
            Ok(submission) => {
                self.tries = 0;
                self.phase = Phase::Recording { submission };
                self.record(cx);
            }
            Err(Fault::Refused(why)) => self.end(cx, None, Ending::Failed, None, Some(why)),
            // That an earlier create made nothing, this one does not tell.
            Err(Fault::NotNow(_)) if self.is_unsure(cx) => self.create_again(cx, job),
            // Nothing was created, so it waits in line, and others go first.
            Err(Fault::NotNow(why)) => self.hand_back(cx, why, not_now_pause(self.hold.epoch)),
            Err(Fault::Away(why)) => self.create_unanswered(cx, job, &why),
        }
    }

    /// Whether it was created is unknown.
    fn create_unanswered(&mut self, cx: &mut Context<'_>, job: Box<ToCreate>, why: &str) {
        match cx.serving.capabilities.mode {
            // What may have been created can never run unrecorded, so anybody may begin anew; the later the more often it
            // was claimed, since a manager that answers all but submits is not parked for long.
            SubmitMode::TwoPhase | SubmitMode::Fenced => {
                let why = format!("{} is away: {why}", cx.serving.cluster);
                self.hand_back(cx, why, backoff(self.hold.epoch));
            }
            SubmitMode::UniqueName => self.create_again(cx, job),
            SubmitMode::AtMostOnce => {
                let why = format!(
                    "the submission was not answered ({why}), and this resource manager cannot be asked"
                );
                self.end(cx, None, Ending::Lost, None, Some(why));
            }
        }
    }

    /// What may have been created may run: only the same name keeps it single, so it stays in these hands.
    fn create_again(&mut self, cx: &mut Context<'_>, job: Box<ToCreate>) {
        self.phase = Phase::Queued { job };
        if self.cancel {
            self.discard(cx, None);
        } else {
            self.tries += 1;
            cx.wake_in(backoff(self.tries));
        }
    }

    /// Something may have been created under its tag that runs unrecorded.
    fn is_unsure(&self, cx: &Context<'_>) -> bool {
        self.unsure || self.tries > 0 && runs_unrecorded(cx.serving)
    }

    pub(super) fn recorded(&mut self, cx: &mut Context<'_>, answer: Option<Recorded>) {
        let Phase::Recording { submission } = std::mem::replace(&mut self.phase, Phase::Done) else { return };
        match answer {
            None => {
                self.tries += 1;
                self.phase = Phase::Recording { submission };
                cx.wake_in(backoff(self.tries));
            }
            Some(Recorded::Won) => {
                self.tries = 0;
                self.ship_logs(cx, &submission);
                // Recorded and never started: what it may leave behind is now the row's business, and ours to end.
                if self.cancel {
                    self.phase = Phase::Watching { submission, watch: Watch::default() };
                    self.ask_cancel(cx);
                } else {
                    cx.effects.push(Effect::Start(self.hold, submission.clone()));
                    self.phase = Phase::Starting { submission };
                }
            }
            Some(Recorded::Lost { current }) => self.beaten(cx, submission, current),
        }
    }

    /// The row holds another submission, or will take none.
    fn beaten(&mut self, cx: &mut Context<'_>, submission: Submission, current: Option<Box<Job>>) {
        let Some(job) = current else {
            cx.effects.push(Effect::Discard(self.hold, Some(submission)));
            return;
        };
        let life = &job.life;
        let mine = life.owner == Some(cx.me)
            && life.epoch == self.hold.epoch
            && life.attempt == self.hold.tag.attempt;
        if mine && life.cancel_requested && life.state == JobState::Claimed {
            self.cancel = true;
            self.discard(cx, Some(submission));
        } else if !life.may_start(self.hold.tag.attempt, &submission.id) {
            cx.effects.push(Effect::Discard(self.hold, Some(submission)));
        }
        // Else the same tag may be in somebody else's hands by now, under the same id: the sweep judges it later.
    }

    pub(super) fn started(&mut self, cx: &mut Context<'_>, answer: Result<(), Fault>) {
        let Phase::Starting { submission } = std::mem::replace(&mut self.phase, Phase::Done) else { return };
        match answer {
            Err(Fault::Refused(why)) => {
                let recorded = Some(submission);
                self.end(cx, recorded, Ending::Failed, None, Some(why));
            }
            // Unanswered, it may run or not: the next poll tells, and starts it again if it does not.
            Ok(()) | Err(Fault::Away(_) | Fault::NotNow(_)) => {
                self.tries = 0;
                let watch = Watch { started_at: Some(cx.now.since_start), ..Watch::default() };
                self.phase = Phase::Watching { submission, watch };
                if self.cancel {
                    self.ask_cancel(cx);
                }
            }
        }
    }

    pub(super) fn cancel_requested(&mut self, cx: &mut Context<'_>) {
        if self.cancel {
            return;
        }
        self.cancel = true;
        match &self.phase {
            Phase::Queued { .. } => self.discard(cx, None),
            Phase::Watching { .. } => self.ask_cancel(cx),
            // The answer that is out decides first: what was recorded is cancelled, what was not is discarded.
            Phase::Creating { .. }
            | Phase::Recording { .. }
            | Phase::Starting { .. }
            | Phase::Discarding { .. }
            | Phase::Ended { .. }
            | Phase::Done => {}
        }
    }

    fn ask_cancel(&mut self, cx: &mut Context<'_>) {
        if let Phase::Watching { submission, watch } = &mut self.phase {
            watch.cancel_asked = true;
            cx.effects.push(Effect::Cancel(self.hold, submission.clone()));
            cx.wake_in(CANCEL_SETTLES);
        }
    }

    pub(super) fn cancel_taken(&mut self, cx: &mut Context<'_>, answer: &Result<(), Fault>) {
        if let Phase::Watching { watch, .. } = &mut self.phase {
            match answer {
                Ok(()) => self.tries = 0,
                Err(Fault::Away(_) | Fault::Refused(_) | Fault::NotNow(_)) => {
                    watch.cancel_asked = false;
                    self.tries += 1;
                    cx.wake_in(backoff(self.tries));
                }
            }
        }
    }

    fn discard(&mut self, cx: &mut Context<'_>, submission: Option<Submission>) {
        cx.effects.push(Effect::Discard(self.hold, submission.clone()));
        self.phase = Phase::Discarding { submission };
    }

    pub(super) fn discarded(&mut self, cx: &mut Context<'_>, answer: &Result<(), Fault>) {
        if !matches!(self.phase, Phase::Discarding { .. }) {
            return;
        }
        match answer {
            Ok(()) => {
                let why = Some("canceled before it was submitted".to_owned());
                self.end(cx, None, Ending::Canceled, None, why);
            }
            // CANCELED is a promise; it is not given before it is sure.
            Err(Fault::Away(_) | Fault::Refused(_) | Fault::NotNow(_)) => {
                self.tries += 1;
                cx.wake_in(backoff(self.tries));
            }
        }
    }

    pub(super) fn sighted(&mut self, cx: &mut Context<'_>, sighting: Sighting) {
        let Phase::Watching { submission, watch } = &mut self.phase else { return };
        let now = cx.now.since_start;
        let (absent, gone) = match sighting {
            // No evidence, neither for a loss nor against one.
            Sighting::Unseen => return,
            Sighting::Absent => (true, false),
            Sighting::Gone { .. } => (false, true),
            Sighting::Seen(_) | Sighting::Inert => (false, false),
        };
        if !absent {
            watch.absent = None;
        }
        if !gone {
            watch.gone = 0;
        }
        match sighting {
            Sighting::Unseen => {}
            Sighting::Seen(observation) => self.seen(cx, observation),
            Sighting::Inert => {
                let settled = watch.started_at.is_none_or(|at| now >= at + START_SETTLES);
                if !self.cancel && !watch.out_of_time && settled {
                    watch.started_at = Some(now);
                    let submission = submission.clone();
                    cx.effects.push(Effect::Start(self.hold, submission.clone()));
                    self.phase = Phase::Starting { submission };
                }
            }
            Sighting::Absent => {
                let (since, polls) = watch.absent.unwrap_or((now, 0));
                watch.absent = Some((since, polls + 1));
                if polls + 1 >= ABSENT_POLLS && now >= since + cx.serving.lost_after {
                    let gone = now.saturating_sub(since).as_secs();
                    let why =
                        format!("the resource manager has not known it for {gone} s, {} polls", polls + 1);
                    let submission = Some(submission.clone());
                    self.end(cx, submission, Ending::Lost, None, Some(why));
                }
            }
            Sighting::Gone { evidence } => {
                watch.gone += 1;
                if watch.gone >= GONE_POLLS {
                    let submission = Some(submission.clone());
                    self.end(cx, submission, Ending::Lost, None, Some(evidence));
                }
            }
        }
    }

    fn seen(&mut self, cx: &mut Context<'_>, observation: Observation) {
        let Phase::Watching { submission, watch } = &mut self.phase else { return };
        let observation = match (observation, &watch.told) {
            (Observation::Ended { ending: Ending::Canceled, exit_code, began, at, .. }, _)
                if watch.out_of_time =>
            {
                let limit = self.time_limit.unwrap_or_default().as_secs();
                let reason = Some(format!("its time limit of {limit} s was up"));
                Observation::Ended { ending: Ending::TimedOut, exit_code, reason, began, at }
            }
            // Its manager requeued it. It began all the same, so that is a reason.
            (Observation::Pending { reason }, Some(Observation::Running { since, .. })) => {
                let reason = reason.or_else(|| Some("waits again".to_owned()));
                Observation::Running { since: *since, reason }
            }
            (
                observation @ (Observation::Ended { .. }
                | Observation::Pending { .. }
                | Observation::Running { .. }),
                _,
            ) => observation,
        };
        if watch.told.as_ref() == Some(&observation) {
            // Told by whoever had it before; its limit is ours to enforce.
            if watch.time_up.is_some() && self.wake.is_none() {
                self.rearm(cx);
            }
            return;
        }
        let ended = matches!(observation, Observation::Ended { .. });
        if let Observation::Running { since, .. } = &observation
            && watch.time_up.is_none()
        {
            watch.time_up = self.time_limit.map(|limit| time_up(cx.now, since.unwrap_or(cx.now.wall), limit));
        }
        watch.told = Some(observation.clone());
        watch.told_times = 0;
        let submission = submission.clone();
        self.seq += 1;
        let event = self.event(cx, Some(submission.id.clone()), observation);
        cx.effects.push(Effect::Publish(event.clone()));
        if ended {
            self.tell_until_settled(cx, event, Some(submission));
        } else {
            self.rearm(cx);
        }
    }

    /// When a watched attempt wants its next tick: to be told again, to be ended because its time is up.
    fn rearm(&mut self, cx: &mut Context<'_>) {
        let Phase::Watching { watch, .. } = &self.phase else { return };
        let again = TELL_AGAIN[(watch.told_times as usize).min(TELL_AGAIN.len() - 1)];
        let time_up = watch.time_up.filter(|_| !watch.out_of_time);
        let left = time_up.map(|at| at.saturating_sub(cx.now.since_start));
        let cancel = watch.cancel_asked.then_some(CANCEL_SETTLES);
        let wait = [Some(again), left, cancel].into_iter().flatten().min().unwrap_or(again);
        cx.wake_in(wait);
    }

    fn end(
        &mut self,
        cx: &mut Context<'_>,
        submission: Option<Submission>,
        ending: Ending,
        exit_code: Option<i32>,
        reason: Option<String>,
    ) {
        self.seq += 1;
        let observation = Observation::Ended { ending, exit_code, reason, began: None, at: None };
        let event = self.event(cx, submission.as_ref().map(|s| s.id.clone()), observation);
        cx.effects.push(Effect::Publish(event.clone()));
        self.tell_until_settled(cx, event, submission);
    }

    fn tell_until_settled(
        &mut self,
        cx: &mut Context<'_>,
        event: StatusEvent,
        submission: Option<Submission>,
    ) {
        let shipped = self.shipped || submission.is_none() || !cx.serving.capabilities.logs;
        self.tries = 0;
        self.phase = Phase::Ended { event: Box::new(event), submission, settled: false, shipped };
        cx.wake_in(END_SETTLES);
    }

    fn event(&self, cx: &Context<'_>, submission: Option<String>, observation: Observation) -> StatusEvent {
        let Hold { tag, epoch, .. } = self.hold;
        let (by, at) = (cx.me, cx.now.wall);
        StatusEvent {
            job: tag.job,
            attempt: tag.attempt,
            epoch,
            seq: self.seq,
            by,
            submission,
            observation,
            at,
        }
    }

    pub(super) fn settled(&mut self, cx: &mut Context<'_>) {
        if let Phase::Ended { settled, .. } = &mut self.phase {
            *settled = true;
            self.forget_if_over(cx);
        }
    }

    pub(super) fn logs_shipped(&mut self, cx: &mut Context<'_>) {
        self.shipped = true;
        if let Phase::Ended { shipped, .. } = &mut self.phase {
            *shipped = true;
            self.forget_if_over(cx);
        }
    }

    fn forget_if_over(&mut self, cx: &mut Context<'_>) {
        if let Phase::Ended { submission, settled: true, shipped: true, .. } = &self.phase {
            if let Some(submission) = submission {
                cx.effects.push(Effect::Forget(self.hold, submission.clone()));
            }
            self.phase = Phase::Done;
        }
    }

    pub(super) fn tick(&mut self, cx: &mut Context<'_>) {
        self.wake = None;
        match &mut self.phase {
            Phase::Queued { .. } => self.wants_create = true,
            Phase::Recording { .. } => self.record(cx),
            Phase::Discarding { submission } => {
                let submission = submission.clone();
                self.discard(cx, submission);
            }
            Phase::Ended { event, settled: false, .. } => {
                cx.effects.push(Effect::Publish((**event).clone()));
                self.tries += 1;
                cx.wake_in((END_SETTLES * (1 << self.tries.min(6))).min(LONGEST_WAIT));
            }
            Phase::Watching { .. } => self.watch_tick(cx),
            Phase::Creating { .. }
            | Phase::Starting { .. }
            | Phase::Ended { settled: true, .. }
            | Phase::Done => {}
        }
    }

    fn watch_tick(&mut self, cx: &mut Context<'_>) {
        let Phase::Watching { submission, watch } = &mut self.phase else { return };
        let since_start = cx.now.since_start;
        let due = watch.time_up.is_some_and(|at| since_start >= at);
        if due || self.cancel {
            watch.out_of_time |= due && !self.cancel;
            self.ask_cancel(cx);
            return;
        }
        if let Some(told) = watch.told.clone() {
            watch.told_times += 1;
            let submission = submission.id.clone();
            self.seq += 1;
            let event = self.event(cx, Some(submission), told);
            cx.effects.push(Effect::Publish(event));
        }
        self.rearm(cx);
    }

    /// Once, and for whatever is recorded: what has logs is not forgotten before they are shipped.
    fn ship_logs(&self, cx: &mut Context<'_>, submission: &Submission) {
        if cx.serving.capabilities.logs {
            cx.effects.push(Effect::ShipLogs(self.hold, submission.clone()));
        }
    }

    fn record(&mut self, cx: &mut Context<'_>) {
        if let Phase::Recording { submission } = &self.phase {
            let Hold { tag, epoch, .. } = self.hold;
            let item = ToRecord { job: tag.job, attempt: tag.attempt, epoch, submission: submission.clone() };
            cx.effects.push(Effect::Record(self.hold, item));
        }
    }

    /// The worker stops: what has not begun goes back, what runs goes on without us. Called again after every step of a
    /// drain, so an attempt whose answer is still out is given up when the answer comes.
    pub(super) fn drain(&mut self, cx: &mut Context<'_>) {
        match &self.phase {
            // A create went unanswered and may run: it stays CLAIMED for an adopter, who knows to be careful.
            Phase::Queued { .. } if self.is_unsure(cx) => self.phase = Phase::Done,
            // Back in line, an end that the row has not heard yet would be stale, and what was lost be submitted again.
            Phase::Ended { submission: None, .. }
                if cx.serving.capabilities.mode == SubmitMode::AtMostOnce =>
            {
                self.phase = Phase::Done;
            }
            // An end is told on the way out; should the row not hear it, an adopter sees it again.
            Phase::Queued { .. } | Phase::Watching { .. } | Phase::Ended { .. } => {
                self.hand_back(cx, "its worker stopped".to_owned(), Duration::ZERO);
            }
            Phase::Creating { .. }
            | Phase::Recording { .. }
            | Phase::Starting { .. }
            | Phase::Discarding { .. }
            | Phase::Done => {}
        }
    }

    fn hand_back(&mut self, cx: &mut Context<'_>, why: String, pause: Duration) {
        let (job, epoch) = (self.hold.tag.job, self.hold.epoch);
        cx.effects.push(Effect::HandBack(ToHandBack { job, epoch, why, pause }));
        self.phase = Phase::Done;
    }
}

/// What a create made may run although no row records it.
pub(super) fn runs_unrecorded(serving: &Serving) -> bool {
    match serving.capabilities.mode {
        SubmitMode::UniqueName | SubmitMode::AtMostOnce => true,
        SubmitMode::TwoPhase | SubmitMode::Fenced => false,
    }
}

/// When the limit is up of what runs since then, which may be longer than this worker.
fn time_up(now: Moment, since: DateTime<Utc>, limit: Duration) -> Duration {
    let ran = (now.wall - since).to_std().unwrap_or_default();
    now.since_start + limit.saturating_sub(ran)
}

/// Doubled with each claim of the job, whoever made it: that needs no memory, and what no limit ever lets in is asked for
/// ever more rarely.
fn not_now_pause(epoch: u32) -> Duration {
    (NOT_NOW_PAUSE.0 * (1 << epoch.saturating_sub(1).min(6))).min(NOT_NOW_PAUSE.1)
}

/// 1 s doubling to a minute.
fn backoff(tries: u32) -> Duration {
    Duration::from_secs(1 << tries.saturating_sub(1).min(6)).min(LONGEST_WAIT)
}
