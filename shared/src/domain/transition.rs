//! The one function that moves a job: (life, fact) → life.
//!
//! Pure and exhaustive. Every store reads a batch of rows, runs this, and writes back guarded by the row's version, so
//! PostgreSQL, SQLite and the reference model cannot disagree about what a fact means. Callers pass the store's time.

use super::{
    AttemptTimes, Deviation, Ending, HistoryEntry, JobState, Life, Observation, Phase, Reach, RetryPolicy,
    StatusEvent, Submission, WorkerId,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// After so many claims that recorded nothing a job is granted only alone, so that what kills workers is found out.
pub const SUSPECT_AFTER: u16 = 2;
/// After so many it is failed: it killed its worker again and again, the last times while nothing else was claimed.
pub const POISON_LIMIT: u16 = 5;

/// Something that happened, as told to a job.
#[derive(Debug, Clone)]
pub enum Fact<'a> {
    /// A worker asks for the job: fresh, or adopting one whose owner is gone.
    Claim {
        /// Who asks.
        worker: WorkerId,
        /// Where the worker's engine can act, when not everywhere.
        reach: Option<&'a Reach>,
        /// Nothing else is claimed in the same statement.
        alone: bool,
        /// What the store knows beside the row.
        standing: Standing,
    },
    /// A worker created an inert submission and asks to make it *the* submission.
    Record {
        /// The attempt it was created for.
        attempt: u32,
        /// The claim under which it was created.
        epoch: u32,
        /// What the resource manager calls it.
        submission: &'a Submission,
    },
    /// The owner gives the job up, in good order.
    HandBack {
        /// Who gives it up.
        worker: WorkerId,
        /// Under which claim.
        epoch: u32,
        /// Why, for people.
        why: &'a str,
        /// How long nobody should claim it again.
        pause: Duration,
    },
    /// A watcher tells what it saw.
    Event(&'a StatusEvent),
    /// Its owner is gone, and nobody acts where its submission lives.
    Vanished {
        /// Since when.
        since: DateTime<Utc>,
        /// It is given up after so long; never when absent.
        lost_after: Option<Duration>,
        /// What the store knows beside the row.
        standing: Standing,
    },
    /// A user asks for something.
    Command {
        /// What.
        command: Command,
        /// Who, for the history.
        by: &'a str,
    },
}

/// What a claim depends on beside the row itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The lease of the worker that asks has not ended. Without one nobody would ever miss it.
    pub claimer_alive: bool,
    /// The lease of the row's owner has not ended.
    pub owner_alive: bool,
    /// The job's cluster is paused by hand.
    pub cluster_paused: bool,
    /// How many more jobs of the cluster may be under way; no limit when absent.
    pub room: Option<u32>,
}

/// What users ask of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// End it, or never begin it.
    Cancel,
    /// Do not begin it for now.
    Hold,
    /// Undo a hold.
    Release,
    /// Run an ended job once more.
    Retry,
}

impl Command {
    /// Every command.
    pub const ALL: [Self; 4] = [Self::Cancel, Self::Hold, Self::Release, Self::Retry];
}

/// What a fact did.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The job has a new life.
    Advanced {
        /// The new life.
        life: Box<Life>,
        /// What to tell about it.
        change: Change,
    },
    /// The row already agrees.
    Duplicate,
    /// The fact is about an older attempt, claim or moment; it is dropped.
    Stale,
    /// The row says no.
    Refused(Refusal),
}

/// Why a row says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Who asks has no lease: it must register anew.
    NoLease,
    /// Its time has not come.
    NotDue,
    /// It is held.
    Held,
    /// Its cluster is paused.
    Paused,
    /// As many jobs of its cluster are under way as may be.
    Full,
    /// Somebody has it, whose lease has not ended.
    Owned,
    /// Its submission lives where the claimer cannot act.
    OutOfReach,
    /// It must be claimed alone: it may be what kills workers.
    Suspect,
    /// It has ended.
    Ended,
    /// It has not ended, and only an ended job can be retried.
    NotEnded,
    /// It finished well; there is nothing to retry.
    FinishedWell,
    /// A worker has it; hold and release act on waiting jobs only.
    Begun,
    /// Another submission is recorded for this attempt.
    AlreadyRecorded,
    /// A cancel was asked for before anything was recorded.
    CancelRequested,
}

/// What a transition tells the history and the event feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The change itself.
    pub entry: HistoryEntry,
    /// It is no step of the happy path, so it must be stored as history.
    pub deviates: bool,
    /// Happy-path times, when the new life no longer holds them or no longer tells whose they are.
    pub times: Option<AttemptTimes>,
}

impl Change {
    /// The history row to store, if one is needed.
    pub fn deviation(&self) -> Option<Deviation> {
        self.deviates.then(|| Deviation { entry: self.entry.clone(), times: self.times })
    }
}

/// What `fact` makes of a job with this `life` and retry policy, at the store's time `now`.
pub fn transition(
    life: &Life,
    max_attempts: u32,
    policy: &RetryPolicy,
    fact: &Fact<'_>,
    now: DateTime<Utc>,
) -> Outcome {
    match fact {
        Fact::Claim { worker, reach, alone, standing } => {
            claim(life, *worker, *reach, *alone, *standing, now)
        }
        Fact::Record { attempt, epoch, submission } => record(life, *attempt, *epoch, submission, now),
        Fact::HandBack { worker, epoch, why, pause } => hand_back(life, *worker, *epoch, why, *pause, now),
        Fact::Event(event) => apply(life, max_attempts, policy, event, now),
        Fact::Vanished { since, lost_after, standing } => {
            vanish(life, max_attempts, policy, *since, *lost_after, *standing, now)
        }
        Fact::Command { command, by } => obey(life, *command, by, now),
    }
}

fn claim(
    life: &Life,
    worker: WorkerId,
    reach: Option<&Reach>,
    alone: bool,
    standing: Standing,
    now: DateTime<Utc>,
) -> Outcome {
    if !standing.claimer_alive {
        return Outcome::Refused(Refusal::NoLease);
    }
    let fresh = match life.state {
        JobState::Held => return Outcome::Refused(Refusal::Held),
        JobState::Initialized => true,
        JobState::Claimed | JobState::Pending | JobState::Running => false,
        JobState::Finished | JobState::Failed | JobState::Canceled | JobState::TimedOut | JobState::Lost => {
            return Outcome::Refused(Refusal::Ended);
        }
    };
    if fresh && life.due_at > now {
        return Outcome::Refused(Refusal::NotDue);
    }
    // A pause stops fresh work only: what the resource manager has must go on being watched.
    if fresh && standing.cluster_paused {
        return Outcome::Refused(Refusal::Paused);
    }
    if fresh && standing.room == Some(0) {
        return Outcome::Refused(Refusal::Full);
    }
    if !fresh && standing.owner_alive {
        // The same worker asking again is a replay after an unknown commit.
        return if life.owner == Some(worker) {
            Outcome::Duplicate
        } else {
            Outcome::Refused(Refusal::Owned)
        };
    }
    let made_in = life.submission.as_ref().and_then(|s| s.reach.as_ref());
    if made_in.is_some() && made_in != reach {
        return Outcome::Refused(Refusal::OutOfReach);
    }
    let unrecorded = life.submission.is_none();
    if unrecorded && life.fruitless_claims >= POISON_LIMIT {
        let reason = format!(
            "given up: {} claims ended without a submission, the last of them alone",
            life.fruitless_claims
        );
        let to = if life.cancel_requested { JobState::Canceled } else { JobState::Failed };
        return end(life, to, Some(reason), None, &by_worker(worker), now);
    }
    if unrecorded && life.fruitless_claims >= SUSPECT_AFTER && !alone {
        return Outcome::Refused(Refusal::Suspect);
    }
    let mut next = life.clone();
    next.owner = Some(worker);
    next.epoch += 1;
    if unrecorded {
        next.fruitless_claims = next.fruitless_claims.saturating_add(1);
    }
    if fresh {
        next.state = JobState::Claimed;
        next.claimed_at = Some(now);
        next.reason = None;
        return advanced(life, next, None, &by_worker(worker), now, false);
    }
    advanced(life, next, Some("adopted".to_owned()), &by_worker(worker), now, true)
}

fn record(life: &Life, attempt: u32, epoch: u32, submission: &Submission, now: DateTime<Utc>) -> Outcome {
    if life.attempt != attempt {
        return Outcome::Stale;
    }
    // Even mine: whoever adopted the job may have forgotten it since, and a start of it would be another.
    if life.state.is_terminal() {
        return Outcome::Refused(Refusal::Ended);
    }
    if let Some(recorded) = &life.submission {
        // Holding my own id means my commit's answer was lost: won.
        let mine = recorded.id == submission.id && recorded.reach == submission.reach;
        return if mine { Outcome::Duplicate } else { Outcome::Refused(Refusal::AlreadyRecorded) };
    }
    match life.state {
        JobState::Claimed => {}
        // Handed back or never claimed: whoever created this lost its claim, and nothing of it may start.
        JobState::Held | JobState::Initialized => return Outcome::Stale,
        // They always hold a submission.
        JobState::Pending
        | JobState::Running
        | JobState::Finished
        | JobState::Failed
        | JobState::Canceled
        | JobState::TimedOut
        | JobState::Lost => return Outcome::Refused(Refusal::AlreadyRecorded),
    }
    if life.cancel_requested {
        return Outcome::Refused(Refusal::CancelRequested);
    }
    // Whoever adopted the job saw that nothing was recorded, and may have ended it for that reason.
    if life.epoch != epoch {
        return Outcome::Stale;
    }
    let mut next = life.clone();
    next.state = JobState::Pending;
    next.submission = Some(submission.clone());
    next.submitted_at = Some(now);
    next.fruitless_claims = 0;
    let by = life.owner.map(by_worker).unwrap_or_default();
    advanced(life, next, None, &by, now, false)
}

fn hand_back(
    life: &Life,
    worker: WorkerId,
    epoch: u32,
    why: &str,
    pause: Duration,
    now: DateTime<Utc>,
) -> Outcome {
    if life.owner != Some(worker) || life.epoch != epoch {
        return Outcome::Stale;
    }
    let by = by_worker(worker);
    match life.state {
        JobState::Held | JobState::Initialized => Outcome::Duplicate,
        JobState::Claimed if life.cancel_requested => {
            end(life, JobState::Canceled, Some("canceled before it was submitted".to_owned()), None, &by, now)
        }
        JobState::Claimed => {
            let mut next = back_in_line(life, now + pause);
            next.reason = Some(why.to_owned());
            // In good order: this claim is no sign of poison.
            next.fruitless_claims = life.fruitless_claims.saturating_sub(1);
            advanced(life, next, Some(why.to_owned()), &by, now, true)
        }
        JobState::Pending | JobState::Running => {
            let mut next = life.clone();
            next.owner = Some(WorkerId::NOBODY);
            advanced(life, next, Some(why.to_owned()), &by, now, true)
        }
        JobState::Finished | JobState::Failed | JobState::Canceled | JobState::TimedOut | JobState::Lost => {
            Outcome::Duplicate
        }
    }
}

fn apply(
    life: &Life,
    max_attempts: u32,
    policy: &RetryPolicy,
    event: &StatusEvent,
    now: DateTime<Utc>,
) -> Outcome {
    if event.attempt != life.attempt || life.state.phase() == Phase::Waiting {
        return Outcome::Stale;
    }
    if life.state.is_terminal() {
        return match &event.observation {
            Observation::Ended { ending, .. } if ending.state() == life.state => Outcome::Duplicate,
            Observation::Ended { .. } | Observation::Pending { .. } | Observation::Running { .. } => {
                Outcome::Stale
            }
        };
    }
    let recorded = life.submission.as_ref().map(|s| s.id.as_str());
    if event.submission.as_deref() != recorded {
        return Outcome::Stale;
    }
    let current = event.epoch == life.epoch;
    let by = by_worker(event.by);
    match &event.observation {
        Observation::Pending { reason } if recorded.is_some() => {
            advance(life, JobState::Pending, None, reason.as_ref(), event, &by)
        }
        Observation::Running { since, reason } if recorded.is_some() => {
            advance(life, JobState::Running, Some(since.unwrap_or(event.at)), reason.as_ref(), event, &by)
        }
        // Nothing recorded means nothing can be waiting or running, or can have run.
        Observation::Pending { .. } | Observation::Running { .. } => Outcome::Stale,
        Observation::Ended { ending: Ending::Finished | Ending::TimedOut, .. } if recorded.is_none() => {
            Outcome::Stale
        }
        // Only who holds the job now may say that it is gone, or that it could never be submitted.
        Observation::Ended { ending: Ending::Lost, .. } if !current => Outcome::Stale,
        Observation::Ended { .. } if recorded.is_none() && !current => Outcome::Stale,
        Observation::Ended { ending, exit_code, reason, began, at } => {
            let mut seen = life.clone();
            seen.last_event = (event.epoch, event.seq);
            seen.exit_code = *exit_code;
            // Two clocks meet here; a life that runs backwards helps nobody.
            let earliest = life.submitted_at.or(life.claimed_at);
            seen.started_at = began.map(|t| t.max(earliest.unwrap_or(t))).or(life.started_at);
            let at = at.unwrap_or(event.at).max(seen.started_at.or(life.submitted_at).unwrap_or(now));
            let retryable = policy.retry_on.contains(ending) && *ending != Ending::Canceled;
            if retryable && life.attempt < max_attempts && !life.cancel_requested {
                return retry_later(
                    life,
                    &seen,
                    max_attempts,
                    policy,
                    ending.state(),
                    reason.as_deref(),
                    &by,
                    now,
                );
            }
            end_as(life, seen, ending.state(), reason.clone(), &by, at)
        }
    }
}

/// Applies a report that the submission waits or runs: forward moves the state, sideways only the reason.
fn advance(
    life: &Life,
    to: JobState,
    since: Option<DateTime<Utc>>,
    reason: Option<&String>,
    event: &StatusEvent,
    by: &str,
) -> Outcome {
    let order = (event.epoch, event.seq);
    if to.phase() < life.state.phase() {
        return Outcome::Stale;
    }
    let same = to == life.state;
    if same && (order <= life.last_event || life.reason.as_ref() == reason) {
        return Outcome::Duplicate;
    }
    let mut next = life.clone();
    next.last_event = order;
    next.reason = reason.cloned();
    next.state = to;
    if !same && let Some(since) = since {
        next.started_at = Some(since.max(life.submitted_at.unwrap_or(since)));
    }
    let at = next.started_at.filter(|_| !same).unwrap_or(event.at);
    advanced(life, next, reason.cloned(), by, at, false)
}

/// Who tells what no worker is left to tell.
const BY_DISPATCHER: &str = "dispatcher";

fn vanish(
    life: &Life,
    max_attempts: u32,
    policy: &RetryPolicy,
    since: DateTime<Utc>,
    lost_after: Option<Duration>,
    standing: Standing,
    now: DateTime<Utc>,
) -> Outcome {
    if !life.state.is_owned() {
        return Outcome::Stale;
    }
    if standing.owner_alive {
        return Outcome::Refused(Refusal::Owned);
    }
    // What lives everywhere, or nowhere yet, any worker can adopt.
    let Some(reach) = life.submission.as_ref().and_then(|s| s.reach.as_ref()) else { return Outcome::Stale };
    let gone = (now - since).to_std().unwrap_or_default();
    if lost_after.is_none_or(|limit| gone < limit) {
        let reason = Some(format!("waits for a worker on {reach}"));
        if life.reason == reason {
            return Outcome::Duplicate;
        }
        let next = Life { reason: reason.clone(), ..life.clone() };
        return advanced(life, next, reason, BY_DISPATCHER, now, false);
    }
    let reason = format!("no worker on {reach} for {} s", gone.as_secs());
    if policy.retry_on.contains(&Ending::Lost) && life.attempt < max_attempts && !life.cancel_requested {
        let lost = JobState::Lost;
        return retry_later(life, life, max_attempts, policy, lost, Some(&reason), BY_DISPATCHER, now);
    }
    end(life, JobState::Lost, Some(reason), None, BY_DISPATCHER, now)
}

#[allow(clippy::too_many_arguments, reason = "one call; a struct for it would only rename the arguments")]
fn retry_later(
    life: &Life,
    seen: &Life,
    max_attempts: u32,
    policy: &RetryPolicy,
    ended: JobState,
    reason: Option<&str>,
    by: &str,
    now: DateTime<Utc>,
) -> Outcome {
    let delay = policy.delay_after(life.attempt);
    let told = reason.map(|r| format!(": {r}")).unwrap_or_default();
    let why =
        format!("attempt {} of {max_attempts} {ended}{told}; next in {} s", life.attempt, delay.as_secs());
    let mut next = next_attempt(seen, now + delay);
    next.reason = Some(why.clone());
    let change = Change {
        entry: HistoryEntry {
            at: now,
            attempt: next.attempt,
            from: Some(life.state),
            to: next.state,
            reason: Some(why),
            by: Some(by.to_owned()),
        },
        deviates: true,
        times: Some(AttemptTimes::from(seen)),
    };
    Outcome::Advanced { life: Box::new(next), change }
}

fn obey(life: &Life, command: Command, by: &str, now: DateTime<Utc>) -> Outcome {
    let phase = life.state.phase();
    match (command, phase) {
        (Command::Cancel, Phase::Waiting) => end(life, JobState::Canceled, None, None, by, now),
        (Command::Cancel, Phase::Claimed | Phase::Pending | Phase::Running) if life.cancel_requested => {
            Outcome::Duplicate
        }
        (Command::Cancel, Phase::Claimed | Phase::Pending | Phase::Running) => {
            let mut next = life.clone();
            next.cancel_requested = true;
            advanced(life, next, Some("cancel requested".to_owned()), by, now, true)
        }
        (Command::Cancel, Phase::Ended) if life.state == JobState::Canceled => Outcome::Duplicate,
        (Command::Cancel | Command::Hold | Command::Release, Phase::Ended) => {
            Outcome::Refused(Refusal::Ended)
        }
        (Command::Hold, Phase::Waiting) => set_held(life, JobState::Held, by, now),
        (Command::Release, Phase::Waiting) => set_held(life, JobState::Initialized, by, now),
        (Command::Hold | Command::Release, Phase::Claimed | Phase::Pending | Phase::Running) => {
            Outcome::Refused(Refusal::Begun)
        }
        (Command::Retry, Phase::Ended) if life.state == JobState::Finished => {
            Outcome::Refused(Refusal::FinishedWell)
        }
        (Command::Retry, Phase::Ended) => {
            advanced(life, next_attempt(life, now), Some("retried by hand".to_owned()), by, now, true)
        }
        (Command::Retry, Phase::Waiting | Phase::Claimed | Phase::Pending | Phase::Running) => {
            Outcome::Refused(Refusal::NotEnded)
        }
    }
}

fn set_held(life: &Life, to: JobState, by: &str, now: DateTime<Utc>) -> Outcome {
    if life.state == to {
        return Outcome::Duplicate;
    }
    let mut next = life.clone();
    next.state = to;
    advanced(life, next, None, by, now, true)
}

/// The life of the same attempt, waiting again with nothing in anybody's hands.
fn back_in_line(life: &Life, due_at: DateTime<Utc>) -> Life {
    let mut next = life.clone();
    next.state = JobState::Initialized;
    next.owner = None;
    next.due_at = due_at;
    next.claimed_at = None;
    next
}

/// The life of the attempt after this one. The epoch goes on counting: an event of an old claim can never look new.
fn next_attempt(life: &Life, due_at: DateTime<Utc>) -> Life {
    Life { attempt: life.attempt + 1, epoch: life.epoch, ..Life::begin(false, due_at) }
}

fn end(
    life: &Life,
    to: JobState,
    reason: Option<String>,
    exit_code: Option<i32>,
    by: &str,
    now: DateTime<Utc>,
) -> Outcome {
    let mut seen = life.clone();
    seen.exit_code = exit_code;
    end_as(life, seen, to, reason, by, now)
}

fn end_as(
    before: &Life,
    mut next: Life,
    to: JobState,
    reason: Option<String>,
    by: &str,
    at: DateTime<Utc>,
) -> Outcome {
    next.state = to;
    next.reason.clone_from(&reason);
    next.finished_at = Some(at);
    // Carried out, or overtaken by the end: either way nothing is left to cancel.
    next.cancel_requested = false;
    advanced(before, next, reason, by, at, to != JobState::Finished)
}

fn advanced(
    before: &Life,
    next: Life,
    reason: Option<String>,
    by: &str,
    at: DateTime<Utc>,
    deviates: bool,
) -> Outcome {
    let entry = HistoryEntry {
        at,
        attempt: next.attempt,
        from: Some(before.state),
        to: next.state,
        reason,
        by: (!by.is_empty()).then(|| by.to_owned()),
    };
    // The row is about to forget who had the job, or even when: history must keep it.
    let forgets = next.claimed_at.is_none() || next.owner != before.owner;
    let times = (before.claimed_at.is_some() && forgets).then(|| AttemptTimes::from(before));
    Outcome::Advanced { life: Box::new(next), change: Change { entry, deviates, times } }
}

fn by_worker(worker: WorkerId) -> String {
    format!("worker:{worker}")
}

#[cfg(test)]
mod vanished_tests {
    use super::*;

    const LIMIT: Duration = Duration::from_hours(24);

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn running(reach: Option<&str>) -> Life {
        let reach = reach.map(|r| Reach(r.to_owned()));
        let submission = Submission { id: "7".to_owned(), detail: serde_json::Value::Null, reach };
        let owner = Some(WorkerId::generate());
        Life { state: JobState::Running, owner, submission: Some(submission), ..Life::begin(false, at(0)) }
    }

    fn tell(life: &Life, gone: Duration, owner_alive: bool, policy: &RetryPolicy) -> Outcome {
        let standing = Standing { claimer_alive: false, owner_alive, cluster_paused: false, room: None };
        let fact = Fact::Vanished { since: at(0), lost_after: Some(LIMIT), standing };
        transition(life, 2, policy, &fact, at(0) + gone)
    }

    fn life(outcome: Outcome) -> Life {
        match outcome {
            Outcome::Advanced { life, .. } => *life,
            Outcome::Duplicate | Outcome::Stale | Outcome::Refused(_) => panic!("{outcome:?}"),
        }
    }

    #[test]
    fn a_job_nobody_can_reach_says_so_once_and_is_lost_when_its_time_is_up() {
        let (job, policy) = (running(Some("host-a")), RetryPolicy::default());
        let waits = life(tell(&job, Duration::from_secs(5), false, &policy));
        assert_eq!(waits.reason.as_deref(), Some("waits for a worker on host-a"));
        assert_eq!(Life { reason: None, ..waits.clone() }, job, "nothing else has changed");
        assert_eq!(tell(&waits, Duration::from_secs(9), false, &policy), Outcome::Duplicate);
        let lost = life(tell(&waits, LIMIT, false, &policy));
        assert_eq!((lost.state, lost.finished_at), (JobState::Lost, Some(at(0) + LIMIT)));
        assert_eq!(lost.reason.as_deref(), Some("no worker on host-a for 86400 s"));
    }

    #[test]
    fn a_lost_job_is_tried_again_only_where_that_was_asked_for() {
        let policy = RetryPolicy { retry_on: vec![Ending::Lost], ..RetryPolicy::default() };
        let next = life(tell(&running(Some("host-a")), LIMIT, false, &policy));
        assert_eq!((next.state, next.attempt), (JobState::Initialized, 2));
        let canceled = Life { cancel_requested: true, ..running(Some("host-a")) };
        let last = Life { attempt: 2, ..running(Some("host-a")) };
        assert_eq!(life(tell(&last, LIMIT, false, &policy)).state, JobState::Lost);
        assert_eq!(life(tell(&canceled, LIMIT, false, &policy)).state, JobState::Lost);
    }

    #[test]
    fn nothing_is_given_up_that_somebody_has_or_anybody_can_adopt() {
        let policy = RetryPolicy::default();
        let owned = tell(&running(Some("host-a")), LIMIT, true, &policy);
        assert_eq!(owned, Outcome::Refused(Refusal::Owned));
        assert_eq!(tell(&running(None), LIMIT, false, &policy), Outcome::Stale);
        let claimed = Life { state: JobState::Claimed, submission: None, ..running(None) };
        assert_eq!(tell(&claimed, LIMIT, false, &policy), Outcome::Stale);
        let ended = Life { state: JobState::Finished, ..running(Some("host-a")) };
        assert_eq!(tell(&ended, LIMIT, false, &policy), Outcome::Stale);
    }
}
