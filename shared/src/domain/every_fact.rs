//! Every state told every fact: the table a reviewer reads, and laws that hold for any sequence of facts.

use super::samples::{OTHER, OWNER, Sample, Told, at, facts, lives, now, retry_all, submission};
use super::{
    Command, Ending, JobId, JobState, Life, Observation, Outcome, Phase, Reach, RetryPolicy, Standing,
    StatusEvent, WorkerId, transition,
};
use chrono::{DateTime, Utc};
use proptest::prelude::*;
use std::{fmt::Write as _, time::Duration};
use uuid::Uuid;

/// What an outcome did, in one line: the state reached and whatever else moved.
fn tell(before: &Life, outcome: &Outcome) -> String {
    let (life, change) = match outcome {
        Outcome::Advanced { life, change } => (life, change),
        Outcome::Duplicate => return "duplicate".into(),
        Outcome::Stale => return "stale".into(),
        Outcome::Refused(refusal) => return format!("refused: {refusal:?}"),
    };
    let mut text = format!("→ {}", life.state);
    let mut note = |moved: bool, more: String| {
        if moved {
            text.push_str(&more);
        }
    };
    note(life.attempt != before.attempt, format!(", attempt {}", life.attempt));
    note(life.epoch != before.epoch, format!(", epoch {}", life.epoch));
    let owner = match life.owner {
        None => "none",
        Some(OWNER) => "owner",
        Some(OTHER) => "other",
        Some(_) => "nobody",
    };
    note(life.owner != before.owner, format!(", held by {owner}"));
    note(life.cancel_requested && !before.cancel_requested, ", cancel requested".into());
    let due = (life.due_at - now()).num_seconds();
    note(life.due_at != before.due_at, format!(", due in {due} s"));
    let second = |time: Option<DateTime<Utc>>| {
        time.map_or_else(|| "never".into(), |t| (t - at(0)).num_seconds().to_string())
    };
    note(life.started_at != before.started_at, format!(", started {}", second(life.started_at)));
    note(life.finished_at != before.finished_at, format!(", finished {}", second(life.finished_at)));
    note(life.fruitless_claims != before.fruitless_claims, format!(", fruitless {}", life.fruitless_claims));
    note(change.entry.at != now(), format!(", at {}", second(Some(change.entry.at))));
    note(change.deviates, ", told in history".into());
    note(change.times.is_some(), " with its times".into());
    if let Some(reason) = &change.entry.reason {
        write!(text, " ({reason})").unwrap();
    }
    text
}

/// One line for each answer; facts that say the same and get the same answer share it.
fn answers(life: &Life) -> Vec<(String, String)> {
    let mut lines: Vec<(String, String)> = Vec::new();
    let answered: Vec<(Sample, String)> = facts(life.attempt)
        .into_iter()
        .map(|sample| {
            let outcome = transition(life, 3, &RetryPolicy::default(), &sample.told.fact(), now());
            (sample, tell(life, &outcome))
        })
        .collect();
    let all = |alike: fn(&Sample, &Sample) -> bool, one: &Sample, answer: &str| {
        answered.iter().all(|(other, given)| !alike(one, other) || given == answer)
    };
    for (sample, answer) in &answered {
        let fact = if sample.how.is_empty() {
            sample.what.to_owned()
        } else if all(|a, b| a.told.kind() == b.told.kind(), sample, answer) {
            format!("any {}", sample.told.kind())
        } else if all(|a, b| a.what == b.what, sample, answer) {
            format!("{}, however told", sample.what)
        } else {
            format!("{} {}", sample.what, sample.how)
        };
        if lines.last().is_none_or(|(last, _)| *last != fact) {
            lines.push((fact, answer.clone()));
        }
    }
    lines
}

#[test]
fn every_state_answers_every_fact_as_the_table_says() {
    let mut table = String::new();
    for (name, life) in lives() {
        writeln!(table, "{name}").unwrap();
        for (fact, answer) in answers(&life) {
            writeln!(table, "    {fact:<48}{answer}").unwrap();
        }
        table.push('\n');
    }
    insta::assert_snapshot!("every_state_told_every_fact", table);
}

/// Nothing ends before it was accepted: retention looks at nothing younger.
#[test]
fn a_job_ends_no_earlier_than_it_was_claimed_or_submitted_whatever_a_manager_tells() {
    for (name, life) in lives() {
        let ended = Observation::Ended {
            ending: Ending::Failed,
            exit_code: None,
            reason: None,
            began: Some(at(1)),
            at: Some(at(2)),
        };
        let event = StatusEvent {
            job: JobId(Uuid::from_u128(9)),
            attempt: life.attempt,
            epoch: life.epoch,
            seq: 9,
            by: OWNER,
            submission: life.submission.as_ref().map(|submission| submission.id.clone()),
            observation: ended,
            at: at(2),
        };
        let told = Told::Event(event);
        if let Outcome::Advanced { life: after, .. } =
            transition(&life, life.attempt, &RetryPolicy::default(), &told.fact(), now())
        {
            assert!(after.finished_at >= life.submitted_at.or(life.claimed_at), "{name}: {after:?}");
        }
    }
}

/// A step of a random life. What it says is mostly about the life it meets, sometimes about an older one.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Claim { worker: WorkerId, reach: bool, alone: bool, standing: Standing },
    Record { worker: bool, older_epoch: bool, older_attempt: bool },
    HandBack { older: bool },
    Event { observation: Observation, older_epoch: bool, older_attempt: bool, other: bool, seq: u32 },
    Vanished { owner_alive: bool, lost: bool },
    Command(Command),
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.1)
}

fn observation() -> impl Strategy<Value = Observation> {
    let reason = prop::option::of(Just("why".to_owned()));
    let ending = prop::sample::select(retry_all().retry_on);
    prop_oneof![
        reason.clone().prop_map(|reason| Observation::Pending { reason }),
        reason.clone().prop_map(|reason| Observation::Running { since: None, reason }),
        (ending, reason).prop_map(|(ending, reason)| {
            Observation::Ended { ending, exit_code: Some(1), reason, began: None, at: None }
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let worker = prop::sample::select(vec![OWNER, OTHER]);
    let standing = (rarely(), any::<bool>(), rarely(), prop::option::weighted(0.1, 0u32..2));
    let standing = standing.prop_map(|(dead, owner_alive, cluster_paused, room)| Standing {
        claimer_alive: !dead,
        owner_alive,
        cluster_paused,
        room,
    });
    let claim = (worker, any::<bool>(), any::<bool>(), standing);
    prop_oneof![
        4 => claim.prop_map(|(worker, reach, alone, standing)| Step::Claim { worker, reach, alone, standing }),
        3 => (any::<bool>(), rarely(), rarely()).prop_map(
            |(worker, older_epoch, older_attempt)| Step::Record { worker, older_epoch, older_attempt }
        ),
        1 => rarely().prop_map(|older| Step::HandBack { older }),
        4 => (observation(), rarely(), rarely(), rarely(), 0u32..6).prop_map(
            |(observation, older_epoch, older_attempt, other, seq)| Step::Event {
                observation, older_epoch, older_attempt, other, seq,
            }
        ),
        1 => (any::<bool>(), rarely()).prop_map(|(owner_alive, lost)| Step::Vanished { owner_alive, lost }),
        1 => prop::sample::select(Command::ALL.to_vec()).prop_map(Step::Command),
    ]
}

impl Step {
    fn told(self, life: &Life) -> Told {
        let owner = life.holder().unwrap_or(OWNER);
        match self {
            Self::Claim { worker, reach, alone, standing } => {
                let reach = reach.then(|| Reach("here".into()));
                Told::Claim { worker, reach, alone, standing }
            }
            Self::Record { worker, older_epoch, older_attempt } => Told::Record {
                attempt: life.attempt - u32::from(older_attempt),
                epoch: life.epoch.saturating_sub(u32::from(older_epoch)),
                submission: submission(if worker { "mine" } else { "other" }),
            },
            Self::HandBack { older } => Told::HandBack {
                worker: owner,
                epoch: life.epoch.saturating_sub(u32::from(older)),
                pause: Duration::ZERO,
            },
            Self::Event { observation, older_epoch, older_attempt, other, seq } => Told::Event(StatusEvent {
                job: JobId(Uuid::from_u128(9)),
                attempt: life.attempt - u32::from(older_attempt),
                epoch: life.epoch.saturating_sub(u32::from(older_epoch)),
                seq,
                by: owner,
                submission: if other {
                    Some("?".into())
                } else {
                    life.submission.as_ref().map(|s| s.id.clone())
                },
                observation,
                at: at(0),
            }),
            Self::Vanished { owner_alive, lost } => Told::Vanished {
                lost_after: lost.then_some(Duration::ZERO),
                standing: Standing { claimer_alive: false, owner_alive, cluster_paused: false, room: None },
            },
            Self::Command(command) => Told::Command(command),
        }
    }
}

/// The lives a job goes through, with what each fact did; a second for each.
pub(super) fn walk(steps: Vec<Step>, held: bool, mut see: impl FnMut(&Life, &Told, &Outcome)) -> Life {
    let mut life = Life::begin(held, at(0));
    for (step, second) in steps.into_iter().zip(1..) {
        let mut told = step.told(&life);
        if let Told::Event(event) = &mut told {
            event.at = at(second);
        }
        // The back-off has passed whenever the next fact comes.
        life.due_at = life.due_at.min(at(second));
        let outcome = transition(&life, 3, &retry_all(), &told.fact(), at(second));
        see(&life, &told, &outcome);
        if let Outcome::Advanced { life: next, .. } = outcome {
            life = *next;
        }
    }
    life
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..40)
}

fn is_retry(told: &Told) -> bool {
    matches!(told, Told::Command(Command::Retry))
}

proptest! {
    #[test]
    fn an_ended_job_is_left_only_by_a_manual_retry(steps in steps(), held: bool) {
        walk(steps, held, |life, told, outcome| {
            if life.state.is_terminal() && matches!(outcome, Outcome::Advanced { .. }) {
                assert!(is_retry(told), "{life:?} {told:?} {outcome:?}");
            }
        });
    }

    #[test]
    fn within_an_attempt_a_job_goes_back_only_when_it_is_handed_back_unsubmitted(steps in steps(), held: bool) {
        walk(steps, held, |before, told, outcome| {
            let Outcome::Advanced { life, .. } = outcome else { return };
            if life.attempt == before.attempt && life.state.phase() < before.state.phase() {
                assert!(matches!(told, Told::HandBack { .. }) && before.state == JobState::Claimed);
            }
        });
    }

    #[test]
    fn attempt_and_epoch_never_fall_and_each_claim_raises_the_epoch(steps in steps(), held: bool) {
        walk(steps, held, |before, told, outcome| {
            let Outcome::Advanced { life, .. } = outcome else { return };
            assert!(life.attempt >= before.attempt && life.attempt <= before.attempt + 1);
            let granted = matches!(told, Told::Claim { .. }) && life.state.is_owned();
            assert_eq!(life.epoch, before.epoch + u32::from(granted));
        });
    }

    #[test]
    fn a_submission_is_written_once_an_attempt(steps in steps(), held: bool) {
        walk(steps, held, |before, _, outcome| {
            let Outcome::Advanced { life, .. } = outcome else { return };
            if before.submission.is_some() && life.attempt == before.attempt {
                assert_eq!(&life.submission, &before.submission);
            }
            let has_one = life.submission.is_some();
            match life.state.phase() {
                Phase::Waiting | Phase::Claimed => assert!(!has_one),
                Phase::Pending | Phase::Running => assert!(has_one),
                Phase::Ended if life.state == JobState::Finished => assert!(has_one),
                Phase::Ended => {}
            }
        });
    }

    #[test]
    fn after_a_cancel_was_asked_for_nothing_is_submitted_and_no_attempt_follows(steps in steps(), held: bool) {
        walk(steps, held, |before, told, outcome| {
            let Outcome::Advanced { life, .. } = outcome else { return };
            if before.cancel_requested {
                assert!(life.submission == before.submission, "{told:?}");
                assert_eq!(life.attempt, before.attempt, "{told:?}");
                assert!(life.cancel_requested || life.state.is_terminal(), "{told:?}");
            }
        });
    }

    #[test]
    fn a_fact_told_twice_moves_a_job_once(steps in steps(), held: bool) {
        walk(steps, held, |_, told, outcome| {
            let Outcome::Advanced { life, .. } = outcome else { return };
            // Whoever claims again is alive, and so is the owner of what was claimed.
            let again = match told.clone() {
                Told::Claim { worker, reach, alone, standing } => {
                    Told::Claim { worker, reach, alone, standing: Standing { owner_alive: true, ..standing } }
                }
                told @ (Told::Record { .. }
                | Told::HandBack { .. }
                | Told::Event(_)
                | Told::Vanished { .. }
                | Told::Command(_)) => told,
            };
            let outcome = transition(life, 3, &retry_all(), &again.fact(), at(5000));
            assert!(!matches!(outcome, Outcome::Advanced { .. }), "{told:?} {outcome:?}");
        });
    }

    #[test]
    fn lost_is_told_only_by_the_claim_that_holds(steps in steps(), held: bool) {
        walk(steps, held, |before, told, outcome| {
            let Told::Event(event) = told else { return };
            let lost = matches!(event.observation, Observation::Ended { ending: Ending::Lost, .. });
            if lost && matches!(outcome, Outcome::Advanced { .. }) {
                assert_eq!(event.epoch, before.epoch);
            }
        });
    }
}
