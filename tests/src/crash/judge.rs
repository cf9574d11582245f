//! What must hold of every job after every crash, by its row and by what the manager saw begin.

use super::{
    plan::{Manager, Point},
    scene::Kind,
};
use crate::torture::{checker::illegal, evidence::Row};
use anyhow::{Context as _, Result, ensure};
use jobgate_shared::domain::{HistoryEntry, SubmissionTag};
use serde::Deserialize as _;
use serde_json::Value;
use std::collections::BTreeMap;

/// A job's end, for good: nothing begins after it.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) id: String,
    /// How often its attempts had begun when it was seen.
    pub(super) begun: usize,
}

/// Judges one ended job.
pub(super) fn judge(
    job: &Value,
    history: &Value,
    kind: Kind,
    manager: Manager,
    point: &Point,
    begun: &BTreeMap<SubmissionTag, usize>,
) -> Result<Verdict> {
    let id = job["id"].as_str().context("id")?.to_owned();
    let state = job["state"].as_str().context("state")?;
    let attempt = u32::try_from(job["attempt"].as_u64().context("attempt")?)?;
    let tag = |attempt| Ok::<_, anyhow::Error>(SubmissionTag { job: id.parse()?, attempt });
    let times = |attempt| Ok::<_, anyhow::Error>(begun.get(&tag(attempt)?).copied().unwrap_or(0));
    let mut all = 0;
    for attempt in 1..=attempt {
        let times = times(attempt)?;
        ensure!(times <= 1, "attempt {attempt} began {times} times: {job}");
        all += times;
    }
    ensure!(state != "FINISHED" || times(attempt)? == 1, "it finished and never began: {job}");
    let excused = is_excused(job, manager, point);
    ensure!(excused || state == kind.ends_as(), "{kind:?} ended as {state}: {job}");
    // Where the job's own process was ended, an attempt is over that may not have begun.
    if kind == Kind::Failing && !excused && point.ends_a_role() {
        ensure!(attempt == 2 && all == 2, "began {all} times in {attempt} attempts: {job}");
    }
    let entries = Vec::<HistoryEntry>::deserialize(&history["items"])?;
    let wrong = illegal(&Row::deserialize(job)?, &entries);
    ensure!(wrong.is_none(), "{}: {job}", wrong.unwrap_or_default());
    Ok(Verdict { id, begun: all })
}

/// An end the crash itself explains, and that the manager's promise allows.
fn is_excused(job: &Value, manager: Manager, point: &Point) -> bool {
    let ended = |state: &str, words: &str| {
        job["state"] == state && job["reason"].as_str().is_some_and(|reason| reason.contains(words))
    };
    match manager {
        // Nobody is left who could tell how it ended; and what aborts in place of the command has failed.
        Manager::Local => match point.name {
            "runner.token" | "runner.known" | "runner.child" | "runner.ended" | "runner.exit_written" => {
                ended("LOST", "its runner")
            }
            "exec.begins" | "exec.ready" => ended("FAILED", "SIGABRT"),
            _ => false,
        },
        Manager::TwoPhase | Manager::UniqueName | Manager::Fenced | Manager::Claimant => false,
        Manager::AtMostOnce => ended("LOST", "this resource manager can"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::plan::POINTS, *};
    use jobgate_shared::domain::JobId;
    use serde_json::json;

    fn at(name: &str) -> &'static Point {
        POINTS.iter().find(|point| point.name == name).unwrap()
    }

    /// Whether a job that ended so, with its attempts begun so often, passes.
    fn passes(kind: Kind, end: (&str, &str), begun: &[usize], manager: Manager, point: &str) -> bool {
        let id = JobId::generate();
        let attempt = u32::try_from(begun.len()).unwrap();
        let job = json!({"id": id.to_string(), "cluster": "quick", "state": end.0, "reason": end.1, "attempt": attempt,
            "max_attempts": attempt});
        let history = history(end.0, attempt);
        let tags = (1..).map(|attempt| SubmissionTag { job: id, attempt });
        let begun: BTreeMap<_, _> = tags.zip(begun.iter().copied()).collect();
        judge(&job, &history, kind, manager, at(point), &begun).is_ok()
    }

    /// How a job gets there whose attempts before the last failed.
    fn history(end: &str, attempts: u32) -> Value {
        let mut from = Value::Null;
        let mut items = Vec::new();
        for attempt in 1..=attempts {
            let last = [if attempt == attempts { end } else { "" }];
            for to in ["INITIALIZED", "CLAIMED", "PENDING", "RUNNING"].into_iter().chain(last) {
                if !to.is_empty() {
                    items.push(
                        json!({"at": "2027-01-01T00:00:00Z", "attempt": attempt, "from": from, "to": to}),
                    );
                    from = json!(to);
                }
            }
        }
        json!({"items": items})
    }

    #[test]
    fn a_job_whose_history_cannot_be_does_not_pass() {
        let id = JobId::generate();
        let job = json!({"id": id, "cluster": "quick", "state": "FINISHED", "attempt": 1, "max_attempts": 1});
        let begun = BTreeMap::from([(SubmissionTag { job: id, attempt: 1 }, 1)]);
        let passes = |history: &Value| {
            judge(&job, history, Kind::Quick, Manager::TwoPhase, at("create.done"), &begun).is_ok()
        };
        let mut told = history("FINISHED", 1);
        assert!(passes(&told));
        told["items"].as_array_mut().unwrap().remove(2);
        assert!(!passes(&told), "it ran and was never submitted");
        assert!(!passes(&history("FAILED", 1)), "it tells another end");
    }

    #[test]
    fn a_job_passes_as_it_would_have_ended_and_not_otherwise() {
        let plain = |state, begun| passes(Kind::Quick, (state, ""), begun, Manager::TwoPhase, "create.done");
        assert!(plain("FINISHED", &[1]));
        assert!(!plain("FINISHED", &[2]), "it began twice");
        assert!(!plain("FINISHED", &[0]), "it never began");
        assert!(!plain("FINISHED", &[1, 0]), "its last attempt never began");
        assert!(!plain("LOST", &[1]) && !plain("FAILED", &[1]) && !plain("CANCELED", &[0]));
        let failing = |begun| passes(Kind::Failing, ("FAILED", ""), begun, Manager::TwoPhase, "create.done");
        assert!(failing(&[1, 1]));
        assert!(!failing(&[1]) && !failing(&[1, 0]) && !failing(&[0, 1]) && !failing(&[2, 1]));
        let process = |begun| passes(Kind::Failing, ("FAILED", ""), begun, Manager::Local, "exec.begins");
        assert!(process(&[0, 1]) && !process(&[2, 1]));
        let long = |begun| passes(Kind::Long, ("CANCELED", ""), begun, Manager::TwoPhase, "create.done");
        assert!(long(&[0]) && long(&[1]) && !long(&[2]));
    }

    #[test]
    fn an_end_is_excused_only_where_the_crash_explains_it() {
        let gone = ("LOST", "its runner (process 7) is gone and wrote no end");
        assert!(passes(Kind::Quick, gone, &[1], Manager::Local, "runner.child"));
        assert!(!passes(Kind::Quick, gone, &[1], Manager::Local, "create.done"));
        assert!(!passes(Kind::Quick, gone, &[1], Manager::TwoPhase, "create.done"));
        let unasked = "an earlier claim may have submitted it, and this resource manager cannot tell";
        assert!(passes(Kind::Quick, ("LOST", unasked), &[1], Manager::AtMostOnce, "create.done"));
        assert!(!passes(Kind::Quick, ("LOST", unasked), &[2], Manager::AtMostOnce, "create.done"));
        assert!(!passes(Kind::Quick, ("LOST", unasked), &[1], Manager::UniqueName, "create.done"));
    }
}
