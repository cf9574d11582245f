//! What a run is told to have been: the verdict, the seed that repeats it, and numbers for each fault.

use super::{checker::Violation, nemesis::Done, schedule::Fault, watcher::Counts};
use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    time::Duration,
};

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that must hold held.
    Valid,
    /// Something was lost, doubled, or otherwise wrong.
    Invalid,
    /// The run could not be carried to where it can be judged.
    Unknown,
}

impl Verdict {
    /// The exit code that says so.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Valid => 0,
            Self::Invalid => 2,
            Self::Unknown => 3,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Valid => "valid",
            Self::Invalid => "INVALID",
            Self::Unknown => "UNKNOWN",
        })
    }
}

/// Whether everything ended once every fault was healed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// All of it, so long after the last fault.
    After(Duration),
    /// Not in time, and it still moved.
    Moving(String),
    /// It does not move any more.
    Stuck(String),
}

impl fmt::Display for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(after) => write!(f, "all settled {:.1} s after the last fault", after.as_secs_f64()),
            Self::Moving(left) => write!(f, "not settled in time, though all still moves: {left}"),
            Self::Stuck(left) => write!(f, "stuck: {left}"),
        }
    }
}

/// A run, told.
#[derive(Debug)]
pub struct Report {
    /// The judgement.
    pub verdict: Verdict,
    /// What it can be repeated with.
    pub seed: u64,
    /// What was tortured.
    pub commit: String,
    /// What was done, step by step.
    pub done: Vec<Done>,
    /// What broke which rule.
    pub violations: Vec<Violation>,
    /// How it ended once everything was healed.
    pub settled: Settled,
    /// All that was done.
    pub counts: Counts,
    /// Further numbers, a line each.
    pub notes: Vec<String>,
}

/// Violations that are told one by one.
const MOST_VIOLATIONS: usize = 30;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<16} {:>5} {:>8} {:>8} {:>8} {:>8} {:>6} {:>5} {:>8} {:>8}  longest from heal to settled",
            "fault",
            "times",
            "accepted",
            "started",
            "finished",
            "canceled",
            "failed",
            "503",
            "silent",
            "lasted"
        )?;
        for (fault, of) in self.by_fault() {
            let Counts { accepted, started, finished, canceled, failed, refused, silent } = of.counts;
            writeln!(
                f,
                "{:<16} {:>5} {accepted:>8} {started:>8} {finished:>8} {canceled:>8} {failed:>6} {refused:>5} {silent:>8} {:>7.1}s  {}",
                fault.name(),
                of.times,
                of.lasted.as_secs_f64(),
                of.settled()
            )?;
        }
        for note in self.done.iter().flat_map(|done| &done.not_run) {
            writeln!(f, "NOT RUN: {note}")?;
        }
        let Counts { accepted, started, finished, canceled, failed, refused, silent } = self.counts;
        writeln!(
            f,
            "in all: {accepted} jobs accepted, {started} attempts started, {finished} jobs finished, {canceled} canceled, \
             {failed} failed as wished; {refused} answers 503, {silent} requests without an answer"
        )?;
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        writeln!(f, "{}", self.settled)?;
        for violation in self.violations.iter().take(MOST_VIOLATIONS) {
            writeln!(f, "VIOLATION {violation}")?;
        }
        if self.violations.len() > MOST_VIOLATIONS {
            writeln!(f, "… and {} more violations", self.violations.len() - MOST_VIOLATIONS)?;
        }
        write!(f, "verdict {}, seed {}, commit {}", self.verdict, self.seed, self.commit)
    }
}

#[derive(Debug, Default)]
struct OfFault {
    times: usize,
    counts: Counts,
    lasted: Duration,
    longest: Option<Duration>,
    unsettled: usize,
}

impl OfFault {
    fn settled(&self) -> String {
        let mut text =
            self.longest.map_or_else(|| "-".to_owned(), |longest| format!("{:.1} s", longest.as_secs_f64()));
        if self.unsettled > 0 {
            // The next fault came first, which is no failure: the end of the run waits for everything.
            write!(text, " ({} times not before the next fault)", self.unsettled).unwrap_or_default();
        }
        text
    }
}

impl Report {
    /// A step with two faults counts for both.
    fn by_fault(&self) -> BTreeMap<Fault, OfFault> {
        let mut faults: BTreeMap<Fault, OfFault> = BTreeMap::new();
        for done in self.done.iter().filter(|done| done.not_run.is_empty()) {
            for fault in &done.step.faults {
                let of = faults.entry(*fault).or_default();
                of.times += 1;
                of.counts = of.counts.plus(done.meanwhile);
                of.lasted += done.lasted;
                of.longest = of.longest.max(done.settled_after);
                of.unsettled += usize::from(done.settled_after.is_none());
            }
        }
        faults
    }
}
