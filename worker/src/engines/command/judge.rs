//! Where a submission stands, by what its files and the scheduler say together. Pure.
//!
//! The files come first: a token is given once and an end written once, whatever a scheduler believes. The scheduler is
//! believed when it says that something ended whose files say nothing, once they have had time to.

use super::{answer::Row, config::State, files::Standing};
use crate::engine::Sighting;
use chrono::{DateTime, Utc};
use jobgate_shared::domain::{Ending, Observation};
use std::time::Duration;

/// How long an end that is written waits for the scheduler to have cleared away what the job left.
const CLEARS: Duration = Duration::from_mins(1);

/// A scheduler is asked before the files are looked at, so of what began or ended in between it says what was. What it says
/// of a job that waits is believed of one that began so long ago.
const LAGS: Duration = Duration::from_mins(1);

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This is how it stands.
    Stands(Sighting),
    /// It is over, says the scheduler: if its files do not say how within a while, this is written. Until then it stands so.
    Over { word: &'static str, code: Option<i32>, reason: String, meanwhile: Sighting },
}

pub(super) fn judge(standing: &Standing, row: Option<&Row>, now: DateTime<Utc>) -> Verdict {
    match standing {
        Standing::Missing | Standing::Tombstone { canceled: false, .. } => Verdict::Stands(Sighting::Absent),
        Standing::Tombstone { at, canceled: true } => {
            let (reason, at) = (Some("canceled before it began".to_owned()), Some(*at));
            let ending = Ending::Canceled;
            let end = Observation::Ended { ending, exit_code: None, reason, began: None, at };
            Verdict::Stands(Sighting::Seen(end))
        }
        Standing::Lost { evidence } => Verdict::Stands(Sighting::Gone { evidence: evidence.clone() }),
        Standing::Ended { end, at, signaled } => {
            let clears = (now - *at).to_std().unwrap_or_default() < CLEARS;
            match (row.map(|row| row.state), end) {
                (
                    Some(Some(State::Running | State::Pending | State::Inert) | None),
                    Observation::Ended { began: Some(since), .. },
                ) if clears => running(*since, None),
                _ => Verdict::Stands(Sighting::Seen(explained(end, *signaled, row))),
            }
        }
        Standing::Fresh => fresh(row),
        Standing::Begun { since, canceled, again } => begun(*since, *canceled, *again, row, now),
    }
}

/// A written end, and what the scheduler knows better: what it told a job to end for that then ended well, and what killed one.
fn explained(end: &Observation, signaled: bool, row: Option<&Row>) -> Observation {
    let (Some(row), Observation::Ended { ending, exit_code, reason, began, at }) = (row, end) else {
        return end.clone();
    };
    let words = words_of(row);
    let (ending, exit_code, reason) = match (ending, row.state) {
        (Ending::Finished | Ending::Failed, Some(State::Canceled)) if signaled => {
            (Ending::Canceled, None, format!("the scheduler canceled it: {words}"))
        }
        (Ending::Finished | Ending::Failed, Some(State::TimedOut)) if signaled => {
            (Ending::TimedOut, None, format!("the scheduler's time limit was up: {words}"))
        }
        (Ending::Finished, Some(State::Failed)) if signaled => {
            (Ending::Failed, *exit_code, format!("the scheduler ended it: {words}"))
        }
        (Ending::Failed, Some(State::Failed)) if exit_code.is_some_and(|code| code > 128) => {
            let told = reason.as_deref().unwrap_or_default();
            (Ending::Failed, *exit_code, format!("{told}; the scheduler says: {words}"))
        }
        (
            Ending::Finished | Ending::Failed | Ending::Canceled | Ending::TimedOut | Ending::Lost,
            None
            | Some(
                State::Inert
                | State::Pending
                | State::Running
                | State::Finished
                | State::Failed
                | State::Canceled
                | State::TimedOut
                | State::Gone,
            ),
        ) => return end.clone(),
    };
    Observation::Ended { ending, exit_code, reason: Some(reason), began: *began, at: *at }
}

fn running(since: DateTime<Utc>, reason: Option<String>) -> Verdict {
    Verdict::Stands(Sighting::Seen(Observation::Running { since: Some(since), reason }))
}

/// Nothing has begun it yet.
fn fresh(row: Option<&Row>) -> Verdict {
    let Some(row) = row else { return Verdict::Stands(Sighting::Absent) };
    let pending = |reason| Sighting::Seen(Observation::Pending { reason });
    let over = |word, what: &str| Verdict::Over {
        word,
        code: None,
        reason: format!("{what} before it began: {}", words_of(row)),
        meanwhile: pending(None),
    };
    match row.state {
        Some(State::Inert) => Verdict::Stands(Sighting::Inert),
        Some(State::Pending) => Verdict::Stands(pending(row.reason.clone())),
        Some(State::Running) => Verdict::Stands(pending(None)),
        None => Verdict::Stands(pending(Some(format!("in a state without a meaning here: {}", row.word)))),
        Some(State::Canceled) => over("canceled", "the scheduler canceled it"),
        Some(State::Gone) => over("lost", "the scheduler lost it"),
        Some(State::Finished | State::Failed | State::TimedOut) => over("failed", "the scheduler ended it"),
    }
}

/// It began, and wrote no end.
fn begun(
    since: DateTime<Utc>,
    canceled: bool,
    again: bool,
    row: Option<&Row>,
    now: DateTime<Utc>,
) -> Verdict {
    let meanwhile = Sighting::Seen(Observation::Running { since: Some(since), reason: None });
    let over =
        |word, code, reason: String| Verdict::Over { word, code, reason, meanwhile: meanwhile.clone() };
    let Some(row) = row else {
        if canceled {
            return over("canceled", None, "canceled".to_owned());
        }
        return Verdict::Stands(Sighting::Absent);
    };
    let state = match row.state {
        Some(State::Inert | State::Pending) if (now - since).to_std().unwrap_or_default() < LAGS => {
            return running(since, None);
        }
        Some(State::Inert | State::Pending) => {
            return running(
                since,
                Some("the scheduler wants to begin it again, which will run nothing".to_owned()),
            );
        }
        Some(State::Running) if again => {
            return running(since, Some("the scheduler began it again, which ran nothing".to_owned()));
        }
        Some(State::Running) => return running(since, None),
        None => {
            return running(since, Some(format!("in a state without a meaning here: {}", row.word)));
        }
        Some(state @ (State::Finished | State::Failed | State::Canceled | State::TimedOut | State::Gone)) => {
            state
        }
    };
    if canceled {
        return over("canceled", None, format!("canceled: {}", words_of(row)));
    }
    if again {
        let reason = "its first run ended without a word; the scheduler began it again, which ran nothing";
        return over("lost", None, reason.to_owned());
    }
    match state {
        State::TimedOut => {
            over("timed_out", None, format!("the scheduler's time limit was up: {}", words_of(row)))
        }
        State::Canceled => over("canceled", None, format!("the scheduler canceled it: {}", words_of(row))),
        State::Failed => over("failed", row.exit, format!("the scheduler ended it: {}", words_of(row))),
        State::Inert | State::Pending | State::Running | State::Finished | State::Gone => {
            over("lost", None, format!("it wrote no end, and the scheduler says: {}", words_of(row)))
        }
    }
}

fn words_of(row: &Row) -> String {
    match &row.reason {
        Some(reason) => format!("{} ({reason})", row.word),
        None => row.word.clone(),
    }
}

#[cfg(test)]
#[allow(clippy::option_option, reason = "no row, a row whose word means nothing, a row in a state")]
mod tests {
    use super::*;

    fn row(state: Option<State>) -> Row {
        let (id, name, word) = ("7".to_owned(), "n".to_owned(), "WORD".to_owned());
        Row { id, name, state, word, exit: Some(9), reason: None }
    }

    /// One word for what follows, so that every state × every standing reads as a table.
    fn told(standing: &Standing, state: Option<Option<State>>) -> String {
        let row = state.map(row);
        match judge(standing, row.as_ref(), DateTime::UNIX_EPOCH) {
            Verdict::Stands(sighting) => match sighting {
                Sighting::Seen(Observation::Pending { .. }) => "pending".into(),
                Sighting::Seen(Observation::Running { reason, .. }) => {
                    if reason.is_some() {
                        "running, with a reason".into()
                    } else {
                        "running".into()
                    }
                }
                Sighting::Seen(Observation::Ended { ending, .. }) => format!("{ending:?}"),
                Sighting::Inert => "inert".into(),
                Sighting::Absent => "absent".into(),
                Sighting::Unseen => "unseen".into(),
                Sighting::Gone { .. } => "gone".into(),
            },
            Verdict::Over { word, .. } => format!("over: {word}"),
        }
    }

    const STATES: [Option<Option<State>>; 10] = [
        None,
        Some(Some(State::Inert)),
        Some(Some(State::Pending)),
        Some(Some(State::Running)),
        Some(Some(State::Finished)),
        Some(Some(State::Failed)),
        Some(Some(State::Canceled)),
        Some(Some(State::TimedOut)),
        Some(Some(State::Gone)),
        Some(None),
    ];

    fn table(standing: &Standing) -> Vec<String> {
        STATES.iter().map(|state| told(standing, *state)).collect()
    }

    #[test]
    fn what_nothing_began_waits_or_never_begins() {
        let expected = [
            "absent",
            "inert",
            "pending",
            "pending",
            "over: failed",
            "over: failed",
            "over: canceled",
            "over: failed",
            "over: lost",
            "pending",
        ];
        assert_eq!(table(&Standing::Fresh), expected);
    }

    #[test]
    fn what_began_is_never_begun_again_and_an_absence_is_no_end() {
        let long_ago = DateTime::UNIX_EPOCH - LAGS;
        let begun = |canceled, again| Standing::Begun { since: long_ago, canceled, again };
        let again = "running, with a reason";
        let expected = [
            "absent",
            again,
            again,
            "running",
            "over: lost",
            "over: failed",
            "over: canceled",
            "over: timed_out",
            "over: lost",
            again,
        ];
        assert_eq!(table(&begun(false, false)), expected);
        let expected = [
            "over: canceled",
            again,
            again,
            "running",
            "over: canceled",
            "over: canceled",
            "over: canceled",
            "over: canceled",
            "over: canceled",
            again,
        ];
        assert_eq!(table(&begun(true, false)), expected);
        let just_now = Standing::Begun { since: DateTime::UNIX_EPOCH, canceled: false, again: false };
        assert_eq!(table(&just_now)[1..4], ["running", "running", "running"], "what it says was so before");
        let requeued = table(&begun(false, true));
        assert_eq!(requeued[3], again);
        assert!(requeued[4..9].iter().all(|told| told == "over: lost"), "{requeued:?}");
    }

    #[test]
    fn what_was_told_to_end_and_ended_well_is_what_the_scheduler_told_it_to_end_for() {
        let at = DateTime::UNIX_EPOCH - CLEARS;
        let ended = |ending, code| Observation::Ended {
            ending,
            exit_code: Some(code),
            reason: None,
            began: Some(at),
            at: Some(at),
        };
        let well = Standing::Ended { end: ended(Ending::Finished, 0), at, signaled: true };
        let told = table(&well);
        assert_eq!(told[4..9], ["Finished", "Failed", "Canceled", "TimedOut", "Finished"]);
        assert_eq!(told[0], "Finished", "nobody says otherwise");
        let killed = Standing::Ended { end: ended(Ending::Failed, 143), at, signaled: true };
        assert_eq!(table(&killed)[4..9], ["Failed", "Failed", "Canceled", "TimedOut", "Failed"]);
    }

    #[test]
    fn what_killed_a_job_is_told_in_the_schedulers_words() {
        let at = DateTime::UNIX_EPOCH - CLEARS;
        for (code, told) in [(137, true), (7, false)] {
            let (ending, reason) = (Ending::Failed, Some(format!("exit code {code}")));
            let end =
                Observation::Ended { ending, exit_code: Some(code), reason, began: Some(at), at: Some(at) };
            let row = Row { word: "OUT_OF_MEMORY".into(), ..row(Some(State::Failed)) };
            let verdict =
                judge(&Standing::Ended { end, at, signaled: false }, Some(&row), DateTime::UNIX_EPOCH);
            let said = format!("{verdict:?}");
            assert!(said.contains(&format!("exit code {code}")), "{said}");
            assert_eq!(said.contains("OUT_OF_MEMORY"), told, "{said}");
        }
    }

    #[test]
    fn a_written_end_stands_whatever_the_scheduler_says() {
        let at = DateTime::UNIX_EPOCH;
        let (ending, began) = (Ending::Finished, Some(at));
        let end = Observation::Ended { ending, exit_code: Some(0), reason: None, began, at: Some(at) };
        let told = table(&Standing::Ended { end, at, signaled: false });
        let cleared = |n: usize| !matches!(n, 1..=3 | 9);
        assert!(told.iter().enumerate().all(|(n, told)| !cleared(n) || told == "Finished"), "{told:?}");
        let rest = [1, 2, 3, 9].map(|n: usize| told[n].as_str());
        assert_eq!(rest, ["running"; 4], "until it has cleared away the rest");
        let tombstone = Standing::Tombstone { at, canceled: true };
        assert!(table(&tombstone).iter().all(|told| told == "Canceled"));
        let lost = Standing::Lost { evidence: "e".into() };
        assert!(table(&lost).iter().all(|told| told == "gone"));
        for nobodys in [Standing::Missing, Standing::Tombstone { at, canceled: false }] {
            assert!(table(&nobodys).iter().all(|told| told == "absent"));
        }
    }
}
