//! Lives and facts to try the transition function on: one of each kind that can make a difference.

use super::{
    Command, Ending, Fact, JobId, JobState, Life, Observation, POISON_LIMIT, Phase, Reach, RetryPolicy,
    SUSPECT_AFTER, Standing, StatusEvent, Submission, WorkerId,
};
use chrono::{DateTime, Utc};
use std::time::Duration;
use uuid::Uuid;

/// The worker that has the job in every sample where one does.
pub(super) const OWNER: WorkerId = WorkerId(Uuid::from_u128(1));
/// Some other worker.
pub(super) const OTHER: WorkerId = WorkerId(Uuid::from_u128(2));

/// When samples happen, `seconds` into a day.
pub(super) fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

/// When a fact meets a sample life.
pub(super) fn now() -> DateTime<Utc> {
    at(1000)
}

pub(super) fn submission(id: &str) -> Submission {
    Submission { id: id.into(), detail: serde_json::Value::Null, reach: Some(Reach("here".into())) }
}

/// Every ending is followed by another attempt, if one is left.
pub(super) fn retry_all() -> RetryPolicy {
    let retry_on = vec![Ending::Finished, Ending::Failed, Ending::Canceled, Ending::TimedOut, Ending::Lost];
    RetryPolicy { retry_on, ..RetryPolicy::default() }
}

/// A fact that owns what it is made of.
#[derive(Debug, Clone)]
pub(super) enum Told {
    Claim { worker: WorkerId, reach: Option<Reach>, alone: bool, standing: Standing },
    Record { attempt: u32, epoch: u32, submission: Submission },
    HandBack { worker: WorkerId, epoch: u32, pause: Duration },
    Event(StatusEvent),
    Vanished { lost_after: Option<Duration>, standing: Standing },
    Command(Command),
}

impl Told {
    pub(super) fn fact(&self) -> Fact<'_> {
        match self {
            Self::Claim { worker, reach, alone, standing } => {
                Fact::Claim { worker: *worker, reach: reach.as_ref(), alone: *alone, standing: *standing }
            }
            Self::Record { attempt, epoch, submission } => {
                Fact::Record { attempt: *attempt, epoch: *epoch, submission }
            }
            Self::HandBack { worker, epoch, pause } => {
                Fact::HandBack { worker: *worker, epoch: *epoch, why: "no room", pause: *pause }
            }
            Self::Event(event) => Fact::Event(event),
            Self::Vanished { lost_after, standing } => {
                Fact::Vanished { since: at(0), lost_after: *lost_after, standing: *standing }
            }
            Self::Command(command) => Fact::Command { command: *command, by: "token:t" },
        }
    }

    /// What kind of fact it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Claim { .. } => "claim",
            Self::Record { .. } => "record",
            Self::HandBack { .. } => "hand back",
            Self::Event(_) => "event",
            Self::Vanished { .. } => "vanished",
            Self::Command(Command::Cancel) => "cancel",
            Self::Command(Command::Hold) => "hold",
            Self::Command(Command::Release) => "release",
            Self::Command(Command::Retry) => "retry",
        }
    }
}

/// A life in its second attempt, under its third claim, that reached `state` in good order.
fn life(state: JobState) -> Life {
    let mut life = Life { state, attempt: 2, epoch: 3, ..Life::begin(false, at(0)) };
    let phase = state.phase();
    if phase > Phase::Waiting {
        life.owner = Some(OWNER);
        life.claimed_at = Some(at(10));
        life.fruitless_claims = 1;
    }
    if phase > Phase::Claimed {
        life.submission = Some(submission("mine"));
        life.submitted_at = Some(at(20));
        life.fruitless_claims = 0;
    }
    if phase > Phase::Pending {
        life.started_at = Some(at(30));
        life.last_event = (3, 4);
    }
    if phase == Phase::Ended {
        life.finished_at = Some(at(40));
    }
    life
}

fn changed(mut life: Life, change: impl FnOnce(&mut Life)) -> Life {
    change(&mut life);
    life
}

fn unrecorded(life: &mut Life) {
    (life.submission, life.submitted_at, life.started_at) = (None, None, None);
}

/// Lives that differ in what they make of a fact.
pub(super) fn lives() -> Vec<(&'static str, Life)> {
    use JobState::{
        Canceled, Claimed, Failed, Finished, Held, Initialized, Lost, Pending, Running, TimedOut,
    };
    vec![
        ("HELD", life(Held)),
        ("INITIALIZED", life(Initialized)),
        ("INITIALIZED, due just now", changed(life(Initialized), |l| l.due_at = now())),
        ("INITIALIZED, not due", changed(life(Initialized), |l| l.due_at = at(2000))),
        ("INITIALIZED, suspect", changed(life(Initialized), |l| l.fruitless_claims = SUSPECT_AFTER)),
        ("INITIALIZED, poison", changed(life(Initialized), |l| l.fruitless_claims = POISON_LIMIT)),
        ("CLAIMED", life(Claimed)),
        ("CLAIMED, cancel requested", changed(life(Claimed), |l| l.cancel_requested = true)),
        ("CLAIMED, suspect", changed(life(Claimed), |l| l.fruitless_claims = SUSPECT_AFTER)),
        (
            "CLAIMED, poison, cancel requested",
            changed(life(Claimed), |l| {
                l.fruitless_claims = POISON_LIMIT;
                l.cancel_requested = true;
            }),
        ),
        ("PENDING", life(Pending)),
        ("PENDING, cancel requested", changed(life(Pending), |l| l.cancel_requested = true)),
        ("PENDING, handed back", changed(life(Pending), |l| l.owner = Some(WorkerId::NOBODY))),
        ("RUNNING", life(Running)),
        ("RUNNING, cancel requested", changed(life(Running), |l| l.cancel_requested = true)),
        ("RUNNING, last attempt", changed(life(Running), |l| l.attempt = 3)),
        ("FINISHED", life(Finished)),
        ("FAILED", life(Failed)),
        ("FAILED, never submitted", changed(life(Failed), unrecorded)),
        ("CANCELED", life(Canceled)),
        ("CANCELED, never submitted", changed(life(Canceled), unrecorded)),
        ("TIMED_OUT", life(TimedOut)),
        ("LOST", life(Lost)),
    ]
}

const fn standing(owner_alive: bool, cluster_paused: bool) -> Standing {
    Standing { claimer_alive: true, owner_alive, cluster_paused, room: None }
}

/// A fact, and how it differs from others that say the same.
pub(super) struct Sample {
    pub(super) what: &'static str,
    pub(super) how: &'static str,
    pub(super) told: Told,
}

fn claims() -> Vec<Sample> {
    let here = Reach("here".into());
    let claim = |how, worker, alone, standing| {
        let told = Told::Claim { worker, reach: Some(here.clone()), alone, standing };
        Sample { what: "claim", how, told }
    };
    let dead = standing(false, false);
    let elsewhere =
        Told::Claim { worker: OTHER, reach: Some(Reach("there".into())), alone: true, standing: dead };
    vec![
        claim("by its owner, alive", OWNER, true, standing(true, false)),
        claim("by another, owner alive", OTHER, true, standing(true, false)),
        claim("by another, owner dead", OTHER, true, dead),
        claim("… in company", OTHER, false, dead),
        claim("… cluster paused", OTHER, true, standing(false, true)),
        claim("… cluster full", OTHER, true, Standing { room: Some(0), ..standing(false, false) }),
        Sample { what: "claim", how: "… out of reach", told: elsewhere },
        claim("… without a lease", OTHER, true, Standing { claimer_alive: false, ..dead }),
    ]
}

/// How an event relates to the life it is told to.
struct Angle {
    how: &'static str,
    attempt: u32,
    epoch: u32,
    submission: Option<&'static str>,
}

fn events(attempt: u32) -> Vec<Sample> {
    let angles = [
        Angle { how: "told by its owner", attempt, epoch: 3, submission: Some("mine") },
        Angle { how: "told under an older claim", attempt, epoch: 2, submission: Some("mine") },
        Angle { how: "told of another submission", attempt, epoch: 3, submission: Some("other") },
        Angle { how: "told of no submission", attempt, epoch: 3, submission: None },
        Angle { how: "… and an older claim", attempt, epoch: 2, submission: None },
        Angle { how: "told of the attempt before", attempt: attempt - 1, epoch: 3, submission: Some("mine") },
    ];
    let ended = |ending| Observation::Ended { ending, exit_code: None, reason: None, began: None, at: None };
    let seen = [
        ("it waits", Observation::Pending { reason: None }),
        ("it waits for a reason", Observation::Pending { reason: Some("priority".into()) }),
        ("it runs", Observation::Running { since: None, reason: None }),
        ("it runs again", Observation::Running { since: Some(at(850)), reason: Some("requeued".into()) }),
        ("it finished", ended(Ending::Finished)),
        ("it failed", ended(Ending::Failed)),
        ("it was canceled", ended(Ending::Canceled)),
        ("it timed out", ended(Ending::TimedOut)),
        ("it is lost", ended(Ending::Lost)),
    ];
    let event = |observation: &Observation, angle: &Angle| StatusEvent {
        job: JobId(Uuid::from_u128(9)),
        attempt: angle.attempt,
        epoch: angle.epoch,
        seq: 9,
        by: OWNER,
        submission: angle.submission.map(str::to_owned),
        observation: observation.clone(),
        at: at(900),
    };
    let told = seen.iter().flat_map(|(what, observation)| {
        angles.iter().map(move |a| Sample { what, how: a.how, told: Told::Event(event(observation, a)) })
    });
    told.collect()
}

/// Facts that differ in what they do to a life at this attempt.
pub(super) fn facts(attempt: u32) -> Vec<Sample> {
    let record = |how, attempt, epoch, id| {
        let told = Told::Record { attempt, epoch, submission: submission(id) };
        Sample { what: "record", how, told }
    };
    let hand_back = |how, worker, epoch| {
        let told = Told::HandBack { worker, epoch, pause: Duration::from_mins(1) };
        Sample { what: "hand back", how, told }
    };
    let mut facts = claims();
    facts.extend([
        record("mine", attempt, 3, "mine"),
        record("mine, under an older claim", attempt, 2, "mine"),
        record("another", attempt, 3, "other"),
        record("of the attempt before", attempt - 1, 3, "mine"),
        hand_back("by its owner", OWNER, 3),
        hand_back("under an older claim", OWNER, 2),
        hand_back("by another", OTHER, 3),
    ]);
    facts.extend(events(attempt));
    let vanished = |how, lost_after, standing| {
        let told = Told::Vanished { lost_after: Some(Duration::from_secs(lost_after)), standing };
        Sample { what: "vanished", how, told }
    };
    facts.extend([
        vanished("for a while", 5000, standing(false, false)),
        vanished("for too long", 500, standing(false, false)),
        vanished("though its owner lives", 500, standing(true, false)),
    ]);
    facts.extend(Command::ALL.map(|command| {
        let told = Told::Command(command);
        Sample { what: told.kind(), how: "", told }
    }));
    facts
}
