//! Judges a run by what it left. Knows nothing of processes, servers or faults; every rule is one function over
//! [`Evidence`], and a test shows each one an offence.

use super::evidence::{Evidence, Promise, Row, Start, Wish};
use jobgate_shared::domain::{HistoryEntry, JobId, JobState, Phase};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::LazyLock,
};

/// The states and what leads from one to another, as the transition function draws them.
const ARCHITECTURE: &str = include_str!("../../../ARCHITECTURE.md");

/// A rule that was broken, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// What broke it.
    pub what: String,
}

/// What must hold of every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// What was accepted is a row, under the id that was answered.
    Kept,
    /// Every row was accepted.
    NothingInvented,
    /// Every accepted job has ended.
    Ended,
    /// No attempt begins twice.
    OnceAtMost,
    /// A job that FINISHED has begun, in that attempt.
    OnceAtLeast,
    /// Nothing begins that has no row, or behind the row's attempt.
    NothingFromNowhere,
    /// Nothing of a job begins once it has been seen to have ended.
    NothingAfterTheEnd,
    /// An attempt that was canceled or given up before anything was recorded has not begun.
    NothingUnrecorded,
    /// A job ends as its producer wanted it, or canceled where that was asked for.
    AsWished,
    /// An end is never left again, a version never falls, an attempt never goes back.
    Forward,
    /// A history begins with the acceptance, takes only steps of the state diagram, and ends where the row stands.
    LegalHistory,
    /// The counts are those of the rows.
    Counted,
    /// Nothing panicked, ended by itself, gave up a message or answered with a defect.
    NoDefects,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}

/// Every violation in `evidence`; none means that the run was valid.
pub fn check(evidence: &Evidence) -> Vec<Violation> {
    let case = Case::of(evidence);
    let mut found = Vec::new();
    case.rows(&mut found);
    case.starts(&mut found);
    case.ends(&mut found);
    case.after_the_end(&mut found);
    case.sightings(&mut found);
    case.histories(&mut found);
    case.counts(&mut found);
    for defect in &evidence.defects {
        found.push(Violation { rule: Rule::NoDefects, what: defect.clone() });
    }
    found
}

/// The evidence, found by job.
struct Case<'a> {
    evidence: &'a Evidence,
    rows: BTreeMap<JobId, &'a Row>,
    wishes: BTreeMap<JobId, Wish>,
    /// How often each attempt began.
    starts: BTreeMap<JobId, BTreeMap<u32, usize>>,
}

impl<'a> Case<'a> {
    fn of(evidence: &'a Evidence) -> Self {
        let mut starts: BTreeMap<JobId, BTreeMap<u32, usize>> = BTreeMap::new();
        for tag in evidence.starts.iter().filter_map(|start| start.attempt().ok()) {
            *starts.entry(tag.job).or_default().entry(tag.attempt).or_default() += 1;
        }
        Self {
            evidence,
            rows: evidence.rows.iter().map(|row| (row.id, row)).collect(),
            wishes: evidence.accepted.iter().map(|accepted| (accepted.job, accepted.wish)).collect(),
            starts,
        }
    }

    fn began(&self, job: JobId, attempt: u32) -> usize {
        self.starts.get(&job).and_then(|attempts| attempts.get(&attempt)).copied().unwrap_or(0)
    }

    fn promise(&self, row: &Row) -> Promise {
        self.evidence.clusters.get(&row.cluster).copied().unwrap_or(Promise::Inert)
    }

    fn rows(&self, found: &mut Vec<Violation>) {
        let mut jobs_of: BTreeMap<&str, JobId> = BTreeMap::new();
        for accepted in &self.evidence.accepted {
            let other = jobs_of.insert(&accepted.key, accepted.job);
            if let Some(other) = other.filter(|other| *other != accepted.job) {
                let what = format!("key {} was answered {other} and {}", accepted.key, accepted.job);
                found.push(Violation { rule: Rule::Kept, what });
            }
            if !self.rows.contains_key(&accepted.job) {
                let what = format!("{} was accepted at {} and is no row", accepted.job, accepted.at);
                found.push(Violation { rule: Rule::Kept, what });
            }
        }
        if self.rows.len() != self.evidence.rows.len() {
            let what = format!("{} rows of {} jobs", self.evidence.rows.len(), self.rows.len());
            found.push(Violation { rule: Rule::NothingInvented, what });
        }
        for row in &self.evidence.rows {
            if !self.wishes.contains_key(&row.id) {
                let what = format!("{} is a row ({}) nobody was told of", row.id, row.state);
                found.push(Violation { rule: Rule::NothingInvented, what });
            }
            if !row.state.is_terminal() {
                let what = format!("{} is still {}: {:?}", row.id, row.state, row.reason);
                found.push(Violation { rule: Rule::Ended, what });
            }
        }
    }

    fn starts(&self, found: &mut Vec<Violation>) {
        for start in &self.evidence.starts {
            if let Err(error) = start.attempt() {
                found.push(Violation { rule: Rule::NothingFromNowhere, what: error.to_string() });
            }
        }
        for (job, attempts) in &self.starts {
            for (attempt, times) in attempts {
                if *times > 1 {
                    let what = format!("attempt {attempt} of {job} began {times} times");
                    found.push(Violation { rule: Rule::OnceAtMost, what });
                }
                if self.rows.get(job).is_none_or(|row| row.attempt < *attempt) {
                    let what = format!("attempt {attempt} of {job} began, and its row knows nothing of it");
                    found.push(Violation { rule: Rule::NothingFromNowhere, what });
                }
            }
        }
    }

    fn ends(&self, found: &mut Vec<Violation>) {
        for row in &self.evidence.rows {
            let began = self.began(row.id, row.attempt);
            if row.state == JobState::Finished && began == 0 {
                let what = format!("{} FINISHED, and attempt {} never began", row.id, row.attempt);
                found.push(Violation { rule: Rule::OnceAtLeast, what });
            }
            if let Some(wrong) = self.wrong_end(row) {
                let what = format!("{} is {} ({:?}): {wrong}", row.id, row.state, row.reason);
                found.push(Violation { rule: Rule::AsWished, what });
            }
            let left = self.evidence.histories.get(&row.id).and_then(|entries| entries.last()?.from);
            let unrecorded = left.is_some_and(|left| left.phase() < Phase::Pending);
            if row.state.is_terminal() && unrecorded && began > 0 && self.promise(row) == Promise::Inert {
                let what =
                    format!("attempt {} of {} began and was {} unrecorded", row.attempt, row.id, row.state);
                found.push(Violation { rule: Rule::NothingUnrecorded, what });
            }
        }
    }

    /// Why a job may not stand where it stands.
    fn wrong_end(&self, row: &Row) -> Option<&'static str> {
        let wish = *self.wishes.get(&row.id)?;
        // Whoever asked for its end does not want another attempt.
        let asked = self.evidence.asked.contains(&row.id);
        let tried_all = asked || row.attempt == row.max_attempts;
        let told_of_disk = || {
            let reason = row.reason.as_deref().unwrap_or_default();
            self.evidence.disk_was_full
                && ["No space left", "os error 28"].iter().any(|word| reason.contains(word))
        };
        match row.state {
            JobState::Finished => match wish {
                Wish::Succeed | Wish::Any => None,
                Wish::FailOnce => (row.attempt != 2).then_some("its second attempt was to end well"),
                Wish::FailAlways => Some("it was to fail"),
                Wish::Overrun => Some("it was to run too long"),
                Wish::Forever => Some("it was to run until it was canceled"),
            },
            JobState::Failed if told_of_disk() => None,
            JobState::Failed => match wish {
                Wish::Succeed | Wish::Overrun | Wish::Forever => Some("it was not to fail"),
                Wish::FailOnce => {
                    (!asked || row.attempt != 1).then_some("its second attempt was to end well")
                }
                Wish::FailAlways | Wish::Any => (!tried_all).then_some("attempts are left"),
            },
            JobState::TimedOut => match wish {
                Wish::Overrun => None,
                Wish::Succeed | Wish::FailOnce | Wish::FailAlways | Wish::Forever | Wish::Any => {
                    Some("it had time")
                }
            },
            JobState::Lost => match self.promise(row) {
                Promise::AtMostOnce => None,
                Promise::Inert | Promise::Eager => Some("its resource manager loses nothing"),
            },
            JobState::Canceled => (!asked).then_some("nobody asked for that"),
            JobState::Held
            | JobState::Initialized
            | JobState::Claimed
            | JobState::Pending
            | JobState::Running => None,
        }
    }

    fn after_the_end(&self, found: &mut Vec<Violation>) {
        let mut last: BTreeMap<JobId, &Start> = BTreeMap::new();
        for start in &self.evidence.starts {
            if let Ok(tag) = start.attempt() {
                let newest = last.entry(tag.job).or_insert(start);
                if newest.offset < start.offset {
                    *newest = start;
                }
            }
        }
        let seen = self.evidence.sightings.iter().filter_map(|sighting| {
            let length = sighting.ledger_length.filter(|_| sighting.state.is_terminal())?;
            Some((sighting.job, length, sighting.state))
        });
        let answered = self.evidence.canceled.iter().map(|(job, length)| (*job, *length, JobState::Canceled));
        for (job, length, state) in seen.chain(answered) {
            if let Some(late) = last.get(&job).filter(|start| start.offset >= length) {
                let what = format!(
                    "{} began at byte {} after it was seen {state} at {length}",
                    late.tag, late.offset
                );
                found.push(Violation { rule: Rule::NothingAfterTheEnd, what });
            }
        }
    }

    fn sightings(&self, found: &mut Vec<Violation>) {
        let mut before: BTreeMap<JobId, (JobState, u32, i32)> = BTreeMap::new();
        let finally = self.evidence.rows.iter().map(|row| (row.id, row.state, row.attempt, i32::MAX));
        let seen = self.evidence.sightings.iter().map(|s| (s.job, s.state, s.attempt, s.version));
        for (job, state, attempt, version) in seen.chain(finally) {
            let Some((was, of, at)) = before.insert(job, (state, attempt, version)) else { continue };
            let forward = if was.is_terminal() {
                state == was && attempt == of
            } else if attempt == of {
                // A claim that recorded nothing may be given back; nothing else is undone within an attempt.
                state.phase() >= was.phase() || was == JobState::Claimed && state.phase() == Phase::Waiting
            } else {
                attempt > of
            };
            if !forward || version < at {
                let what = format!(
                    "{job} was {was} (attempt {of}, version {at}) and then {state} (attempt {attempt}, version {version})"
                );
                found.push(Violation { rule: Rule::Forward, what });
            }
        }
    }

    fn histories(&self, found: &mut Vec<Violation>) {
        for row in &self.evidence.rows {
            let entries = self.evidence.histories.get(&row.id).map(Vec::as_slice).unwrap_or_default();
            if let Some(wrong) = illegal(row, entries) {
                found.push(Violation { rule: Rule::LegalHistory, what: format!("{}: {wrong}", row.id) });
            }
        }
    }

    fn counts(&self, found: &mut Vec<Violation>) {
        let mut counted: BTreeMap<String, u64> = BTreeMap::new();
        for row in &self.evidence.rows {
            *counted.entry(row.state.to_string()).or_default() += 1;
        }
        let told: BTreeMap<_, _> = self
            .evidence
            .depths
            .iter()
            .filter(|(_, jobs)| **jobs > 0)
            .map(|(s, n)| (s.clone(), *n))
            .collect();
        if counted != told {
            let what = format!("the rows are {counted:?}, /v1/queues tells {told:?}");
            found.push(Violation { rule: Rule::Counted, what });
        }
    }
}

/// What is wrong with the history of `row`.
pub(crate) fn illegal(row: &Row, entries: &[HistoryEntry]) -> Option<String> {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        return Some("it has no history".to_owned());
    };
    if first.from.is_some() || first.to.phase() != Phase::Waiting {
        return Some(format!("its history begins with {:?} → {}", first.from, first.to));
    }
    if (last.to, last.attempt) != (row.state, row.attempt) {
        return Some(format!(
            "its history ends with {} (attempt {}), its row says {} (attempt {})",
            last.to, last.attempt, row.state, row.attempt
        ));
    }
    for pair in entries.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        let step = (before.to, after.to);
        // An adoption or a hand-back of what the manager has is told, and changes no state.
        let stays = before.to == after.to && before.to.is_owned();
        if after.from != Some(before.to) || !(stays || STEPS.contains(&step)) {
            return Some(format!("no step leads from {} to {}", before.to, after.to));
        }
        let next_attempt = before.to.phase() > Phase::Claimed && after.to == JobState::Initialized;
        let fits = match after.attempt.checked_sub(before.attempt) {
            Some(0) => !next_attempt,
            Some(1) => after.to == JobState::Initialized,
            _ => false,
        };
        if !fits {
            return Some(format!(
                "{} of attempt {} is followed by {} of attempt {}",
                before.to, before.attempt, after.to, after.attempt
            ));
        }
    }
    None
}

/// The arrows of the state diagram.
static STEPS: LazyLock<BTreeSet<(JobState, JobState)>> = LazyLock::new(|| {
    let step = |line: &str| {
        let (from, rest) = line.trim().split_once(" --> ")?;
        let (to, _) = rest.split_once(" : ")?;
        Some((from.parse().ok()?, to.parse().ok()?))
    };
    ARCHITECTURE.lines().filter_map(step).collect()
});

#[cfg(test)]
mod tests {
    use super::super::evidence::{Accepted, Sighting};
    use super::*;
    use chrono::{DateTime, Utc};
    use jobgate_shared::domain::SubmissionTag;
    use uuid::Uuid;

    fn job(n: u128) -> JobId {
        JobId(Uuid::from_u128(n))
    }

    fn at() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn start(n: u128, attempt: u32, offset: u64) -> Start {
        let tag = SubmissionTag { job: job(n), attempt }.to_string();
        Start { tag, cluster: "local".to_owned(), offset }
    }

    fn history(states: &[(JobState, u32)]) -> Vec<HistoryEntry> {
        let mut from = None;
        let entry = |(to, attempt): &(JobState, u32)| HistoryEntry {
            at: at(),
            attempt: *attempt,
            from: from.replace(*to),
            to: *to,
            reason: None,
            by: None,
        };
        states.iter().map(entry).collect()
    }

    fn sighting(
        n: u128,
        state: JobState,
        attempt: u32,
        version: i32,
        ledger_length: Option<u64>,
    ) -> Sighting {
        Sighting { job: job(n), at: at(), state, attempt, version, ledger_length }
    }

    const HAPPY: [(JobState, u32); 5] = [
        (JobState::Initialized, 1),
        (JobState::Claimed, 1),
        (JobState::Pending, 1),
        (JobState::Running, 1),
        (JobState::Finished, 1),
    ];

    /// Three jobs: one that finished, one that failed once, one canceled before it was claimed.
    fn good() -> Evidence {
        let accepted = |n: u128, wish| Accepted {
            job: job(n),
            key: format!("key-{n}"),
            cluster: "local".to_owned(),
            wish,
            at: at(),
        };
        let row = |n, state, attempt| Row {
            id: job(n),
            cluster: "local".to_owned(),
            state,
            reason: None,
            attempt,
            max_attempts: 2,
        };
        let twice = [&HAPPY[..4], &HAPPY.map(|(state, _)| (state, 2))].concat();
        let canceled = [HAPPY[0], (JobState::Canceled, 1)];
        let promise = [("local".to_owned(), Promise::Inert)];
        Evidence {
            clusters: promise.into(),
            accepted: vec![
                accepted(1, Wish::Succeed),
                accepted(2, Wish::FailOnce),
                accepted(3, Wish::Succeed),
            ],
            rows: vec![
                row(1, JobState::Finished, 1),
                row(2, JobState::Finished, 2),
                row(3, JobState::Canceled, 1),
            ],
            histories: [(job(1), history(&HAPPY)), (job(2), history(&twice)), (job(3), history(&canceled))]
                .into(),
            starts: vec![start(1, 1, 0), start(2, 1, 50), start(2, 2, 100)],
            sightings: vec![
                sighting(1, JobState::Claimed, 1, 2, None),
                sighting(2, JobState::Running, 1, 4, None),
                sighting(1, JobState::Initialized, 1, 3, None),
                sighting(3, JobState::Canceled, 1, 2, Some(50)),
                sighting(2, JobState::Initialized, 2, 5, None),
                sighting(1, JobState::Finished, 1, 8, Some(100)),
                sighting(2, JobState::Finished, 2, 9, Some(150)),
            ],
            asked: [job(3)].into(),
            canceled: vec![(job(3), 50)],
            depths: [("FINISHED".to_owned(), 2), ("CANCELED".to_owned(), 1), ("FAILED".to_owned(), 0)].into(),
            defects: Vec::new(),
            disk_was_full: false,
        }
    }

    /// The rules broken by what `doctor` does to good evidence, each once.
    fn broken(doctor: impl FnOnce(&mut Evidence)) -> Vec<Rule> {
        let mut evidence = good();
        doctor(&mut evidence);
        let rules: BTreeSet<Rule> = check(&evidence).into_iter().map(|violation| violation.rule).collect();
        rules.into_iter().collect()
    }

    #[test]
    fn good_evidence_is_valid_and_the_state_diagram_is_read() {
        assert_eq!(check(&good()), []);
        assert!(STEPS.len() > 20 && STEPS.contains(&(JobState::Running, JobState::TimedOut)), "{STEPS:?}");
    }

    #[test]
    fn a_job_that_runs_until_it_is_canceled_must_be_canceled() {
        let forever = |e: &mut Evidence| e.accepted[0].wish = Wish::Forever;
        assert_eq!(broken(forever), [Rule::AsWished]);
        let canceled = |e: &mut Evidence| e.accepted[2].wish = Wish::Forever;
        assert_eq!(broken(canceled), []);
    }

    #[test]
    fn a_second_start_of_one_attempt_is_reported() {
        assert_eq!(broken(|e| e.starts.push(start(2, 1, 60))), [Rule::OnceAtMost]);
    }

    #[test]
    fn a_job_that_was_accepted_and_is_nowhere_is_reported() {
        let lost = broken(|e| {
            e.rows.remove(2);
            e.depths.remove("CANCELED");
        });
        assert!(lost.contains(&Rule::Kept), "{lost:?}");
        assert_eq!(
            broken(|e| e.accepted[2].job = job(1)),
            [Rule::NothingInvented],
            "nobody was told of job 3"
        );
        let twice = broken(|e| {
            let mut second = e.accepted[1].clone();
            second.key = "key-1".to_owned();
            e.accepted.push(second);
        });
        assert_eq!(twice, [Rule::Kept], "one key, two jobs");
    }

    #[test]
    fn a_job_that_does_not_end_is_reported() {
        let stuck = broken(|e| {
            e.rows[0].state = JobState::Running;
            e.histories.insert(job(1), history(&HAPPY[..4]));
            e.sightings.retain(|sighting| sighting.job != job(1));
            e.depths =
                [("FINISHED".to_owned(), 1), ("CANCELED".to_owned(), 1), ("RUNNING".to_owned(), 1)].into();
        });
        assert_eq!(stuck, [Rule::Ended]);
    }

    #[test]
    fn an_end_without_a_start_is_reported_and_so_is_a_start_without_a_row() {
        assert_eq!(broken(|e| drop(e.starts.remove(0))), [Rule::OnceAtLeast]);
        assert_eq!(broken(|e| e.starts.push(start(9, 1, 10))), [Rule::NothingFromNowhere]);
        assert_eq!(broken(|e| e.starts.push(start(1, 2, 10))), [Rule::NothingFromNowhere]);
        assert_eq!(
            broken(|e| e.starts[0].tag = "half a li".to_owned()),
            [Rule::OnceAtLeast, Rule::NothingFromNowhere]
        );
    }

    #[test]
    fn a_start_after_canceled_is_reported_however_canceled_was_learned() {
        let seen = broken(|e| {
            e.starts.push(start(3, 1, 120));
            e.canceled.clear();
        });
        assert_eq!(seen, [Rule::NothingAfterTheEnd, Rule::NothingUnrecorded]);
        let answered = broken(|e| {
            e.starts.push(start(3, 1, 120));
            e.sightings.retain(|sighting| sighting.job != job(3));
            e.clusters.insert("local".to_owned(), Promise::Eager);
        });
        assert_eq!(answered, [Rule::NothingAfterTheEnd]);
        let before = broken(|e| e.starts.push(start(3, 1, 40)));
        assert_eq!(before, [Rule::NothingUnrecorded], "early enough, but nothing was recorded");
    }

    #[test]
    fn an_end_that_is_overwritten_is_reported() {
        let flipped = broken(|e| {
            let canceled = sighting(1, JobState::Canceled, 1, 7, None);
            e.sightings.insert(5, canceled);
        });
        assert_eq!(flipped, [Rule::Forward]);
        let revived = broken(|e| e.sightings.push(sighting(3, JobState::Initialized, 2, 9, None)));
        assert_eq!(revived, [Rule::Forward]);
        let back = broken(|e| e.sightings.insert(2, sighting(2, JobState::Pending, 1, 5, None)));
        assert_eq!(back, [Rule::Forward]);
        let older = broken(|e| e.sightings.insert(2, sighting(2, JobState::Running, 1, 3, None)));
        assert_eq!(older, [Rule::Forward], "a version fell");
    }

    #[test]
    fn an_end_nobody_wished_for_is_reported() {
        let ends_as = |state: JobState| {
            broken(|e| {
                e.rows[0].state = state;
                let entries = [&HAPPY[..4], &[(state, 1)]].concat();
                e.histories.insert(job(1), history(&entries));
                e.sightings.retain(|sighting| sighting.job != job(1));
                e.depths =
                    [("FINISHED".to_owned(), 1), ("CANCELED".to_owned(), 1), (state.to_string(), 1)].into();
            })
        };
        for state in [JobState::Failed, JobState::Lost, JobState::TimedOut] {
            assert_eq!(ends_as(state), [Rule::AsWished], "{state}");
        }
        assert_eq!(broken(|e| e.accepted[0].wish = Wish::FailAlways), [Rule::AsWished]);
        assert_eq!(broken(|e| e.asked.clear()), [Rule::AsWished], "canceled by nobody");
        let given_up = broken(|e| {
            let mut entries = history(&HAPPY);
            entries[4].to = JobState::Failed;
            e.histories.insert(job(2), entries);
            (e.rows[1].state, e.rows[1].attempt) = (JobState::Failed, 1);
            e.starts.pop();
            e.sightings.retain(|sighting| sighting.job != job(2));
            e.depths =
                [("FINISHED", 1), ("CANCELED", 1), ("FAILED", 1)].map(|(s, n)| (s.to_owned(), n)).into();
            e.asked.insert(job(2));
        });
        assert_eq!(given_up, [], "nobody wants a second attempt of a job that is to be canceled");
        let lost = broken(|e| {
            e.rows[0].reason = Some("No space left on device".to_owned());
            e.disk_was_full = true;
            e.accepted[0].wish = Wish::FailAlways;
        });
        assert_eq!(lost, [Rule::AsWished], "a full disk explains a failure, not a success");
    }

    #[test]
    fn an_illegal_history_is_reported() {
        let histories: [&[(JobState, u32)]; 6] = [
            &[],
            &HAPPY[1..],
            &HAPPY[..4],
            &[HAPPY[0], HAPPY[1], HAPPY[3], HAPPY[4]],
            &[HAPPY[0], (JobState::Claimed, 2), HAPPY[2], HAPPY[4]],
            &[HAPPY[0], HAPPY[1], HAPPY[2], (JobState::Initialized, 1), HAPPY[1], HAPPY[2], HAPPY[4]],
        ];
        for entries in histories {
            let found = broken(|e| drop(e.histories.insert(job(1), history(entries))));
            assert_eq!(found, [Rule::LegalHistory], "{entries:?}");
        }
        let unlinked = broken(|e| e.histories.get_mut(&job(1)).unwrap()[2].from = Some(JobState::Held));
        assert_eq!(unlinked, [Rule::LegalHistory]);
        let adopted = [HAPPY[0], HAPPY[1], HAPPY[2], HAPPY[2], HAPPY[3], HAPPY[3], HAPPY[4]];
        assert_eq!(broken(|e| drop(e.histories.insert(job(1), history(&adopted)))), []);
        let handed_back = [HAPPY[0], HAPPY[1], HAPPY[0], HAPPY[1], HAPPY[2], HAPPY[4]];
        assert_eq!(broken(|e| drop(e.histories.insert(job(1), history(&handed_back)))), []);
    }

    #[test]
    fn wrong_counts_and_defects_are_reported() {
        assert_eq!(broken(|e| e.depths = [("RUNNING".to_owned(), 1)].into()), [Rule::Counted]);
        assert_eq!(broken(|e| e.defects.push("a task panicked".to_owned())), [Rule::NoDefects]);
    }
}
