//! Slurm's words and what they mean here: its job states and its error numbers, each in one table.

use super::wire::{Answer, ErrorEntry, Exit, JobRecord, moment};
use crate::engine::{EngineError, Sighting};
use jobgate_shared::domain::{Ending, Observation};

/// What a state of Slurm means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It waits; held or not is another question.
    Waiting,
    /// It has its nodes, and its processes may live.
    Running,
    /// It is over, so.
    Over(Ending),
}

/// Every state `squeue` documents. Where an answer holds several, the first of this table decides: a job that is still
/// completing is not over, whatever it will have been.
const STATES: [(&str, Meaning, Option<&str>); 24] = [
    ("COMPLETING", Meaning::Running, None),
    ("STAGE_OUT", Meaning::Running, Some("staging out")),
    ("SIGNALING", Meaning::Running, None),
    ("RESIZING", Meaning::Running, None),
    ("REQUEUE_HOLD", Meaning::Waiting, Some("held by Slurm after a requeue")),
    ("REQUEUE_FED", Meaning::Waiting, Some("requeued by the federation")),
    ("REQUEUED", Meaning::Waiting, Some("requeued by Slurm")),
    ("SPECIAL_EXIT", Meaning::Waiting, Some("held by Slurm after a special exit")),
    ("RESV_DEL_HOLD", Meaning::Waiting, Some("held: its reservation was deleted")),
    ("CONFIGURING", Meaning::Waiting, Some("its nodes are made ready")),
    ("SUSPENDED", Meaning::Running, Some("suspended")),
    ("STOPPED", Meaning::Running, Some("stopped")),
    ("PENDING", Meaning::Waiting, None),
    ("RUNNING", Meaning::Running, None),
    ("TIMEOUT", Meaning::Over(Ending::TimedOut), Some("ran longer than its time limit")),
    ("DEADLINE", Meaning::Over(Ending::TimedOut), Some("its deadline passed")),
    ("OUT_OF_MEMORY", Meaning::Over(Ending::Failed), Some("out of memory")),
    // Its processes may go on where nobody sees them, so it is repeated only for who asked for that.
    ("NODE_FAIL", Meaning::Over(Ending::Lost), Some("a node of it failed")),
    ("BOOT_FAIL", Meaning::Over(Ending::Failed), Some("its nodes did not boot")),
    ("PREEMPTED", Meaning::Over(Ending::Failed), Some("preempted by another job")),
    // What it was may run as a job of another cluster of the federation.
    ("REVOKED", Meaning::Over(Ending::Lost), Some("revoked by the federation of its cluster")),
    ("CANCELLED", Meaning::Over(Ending::Canceled), Some("canceled at Slurm")),
    ("FAILED", Meaning::Over(Ending::Failed), None),
    ("COMPLETED", Meaning::Over(Ending::Finished), None),
];

/// What a job left on its way out, where that could be read: see [`super::files`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ExitFile {
    /// Its command ended.
    Exit {
        code: i32,
        /// Slurm had told it to end before, so an end well may be no more than good manners.
        signaled: bool,
        why: Option<String>,
    },
    /// Slurm began it once more, which ran nothing; its first run has not said how it ended, and may go on.
    BegunAgain,
}

impl JobRecord {
    /// The states it is in, whoever tells.
    fn states(&self) -> &[String] {
        if self.job_state.is_empty() { &self.state.current } else { &self.job_state }
    }

    fn reason(&self) -> &str {
        let reason = if self.job_state.is_empty() { &self.state.reason } else { &self.state_reason };
        if reason == "None" { "" } else { reason }
    }

    fn meaning(&self) -> Option<(Meaning, Option<&'static str>)> {
        let found = STATES.iter().find(|(word, ..)| self.states().iter().any(|state| state == word));
        found.map(|(_, meaning, words)| (*meaning, *words))
    }

    /// Whether it waits for a hold to be lifted that is not an administrator's.
    pub(super) fn is_held_by_user(&self) -> bool {
        let waits = matches!(self.meaning(), Some((Meaning::Waiting, _)));
        let held = self.reason() == "JobHeldUser" || self.priority == Some(0);
        waits && held && self.reason() != "JobHeldAdmin"
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.meaning(), Some((Meaning::Running, _)))
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.meaning(), Some((Meaning::Over(_), _)))
    }

    /// Where it stands, once it was started. Slurm's word on an end is about the run that was none, where it began again what
    /// had begun; that it was told to end it stays true.
    pub(super) fn sight(&self, exit_file: Option<&ExitFile>) -> Sighting {
        match (self.meaning(), exit_file) {
            (
                Some((Meaning::Over(Ending::Finished | Ending::Failed | Ending::Lost), _)),
                Some(ExitFile::BegunAgain),
            ) => begun_again(),
            (Some((Meaning::Over(_) | Meaning::Waiting | Meaning::Running, _)) | None, _) => {
                Sighting::Seen(self.observe(exit_file))
            }
        }
    }

    /// What is seen of it.
    pub(super) fn observe(&self, exit_file: Option<&ExitFile>) -> Observation {
        let again = self.restart_cnt.filter(|count| *count > 0);
        let again = again.map(|count| format!("run again by Slurm itself, {count} times"));
        let Some((meaning, words)) = self.meaning() else {
            // A state nobody knows yet is neither a beginning nor an end.
            let reason = Some(format!("Slurm says {}", self.states().join(" ")));
            return Observation::Pending { reason };
        };
        let words = words.map(str::to_owned);
        let moment_of = |live, stored| moment(live).or(moment(stored));
        let (start, end) =
            (moment_of(self.start_time, self.time.start), moment_of(self.end_time, self.time.end));
        match meaning {
            Meaning::Waiting => {
                let told = (!self.reason().is_empty()).then(|| self.reason().to_owned());
                Observation::Pending { reason: join([words, told, again]) }
            }
            Meaning::Running => Observation::Running { since: start, reason: join([words, again]) },
            Meaning::Over(ending) => {
                // It came to its end, whatever Slurm did to a job it had lost sight of.
                let came = matches!(exit_file, Some(ExitFile::Exit { code: 0, signaled: false, .. }));
                let (ending, words) = match ending {
                    Ending::Canceled | Ending::Failed | Ending::Lost if came => (Ending::Finished, None),
                    Ending::Finished
                    | Ending::Canceled
                    | Ending::Failed
                    | Ending::Lost
                    | Ending::TimedOut => (ending, words),
                };
                let (exit_code, why) = self.end(ending, exit_file);
                let began = start.filter(|start| end.is_none_or(|end| *start <= end));
                Observation::Ended { ending, exit_code, reason: join([words, why, again]), began, at: end }
            }
        }
    }

    /// Exit code and words for an end. A failure's code of 0 is none: slurmdbd's v0.0.38 tells success of an exit with 7.
    fn end(&self, ending: Ending, exit_file: Option<&ExitFile>) -> (Option<i32>, Option<String>) {
        let (exit, why) = match exit_file {
            Some(ExitFile::Exit { code, why, .. }) => (Some(Exit::Code(*code)), why.clone()),
            Some(ExitFile::BegunAgain) => (None, None),
            None => (self.exit_code, None),
        };
        match ending {
            Ending::Finished => (Some(0), None),
            Ending::Failed => {
                let (code, said) = told(exit);
                (code, why.or(said).or_else(|| self.spoken()))
            }
            Ending::Canceled | Ending::TimedOut | Ending::Lost => (None, None),
        }
    }

    fn spoken(&self) -> Option<String> {
        (!self.reason().is_empty()).then(|| format!("Slurm says {}", self.reason()))
    }
}

/// The code of an exit, and words for it.
fn told(exit: Option<Exit>) -> (Option<i32>, Option<String>) {
    match exit {
        // A failure without a code has its reason in Slurm; what no kernel has for a signal says that memory was too little.
        None | Some(Exit::Code(0) | Exit::Signal(65..)) => (None, None),
        // What slurmstepd sets when it cannot open the output of a job.
        Some(Exit::Signal(53)) => (None, Some("its output or directory could not be opened".to_owned())),
        Some(Exit::Signal(signal)) => (None, Some(format!("killed by signal {signal}"))),
        Some(Exit::Code(code @ 129..=192)) => {
            let signal = code - 128;
            (Some(code), Some(format!("exit code {code}, as of one killed by signal {signal}")))
        }
        Some(Exit::Code(code)) => (Some(code), Some(format!("exit code {code}"))),
    }
}

/// What is told of a job of which nothing but its exit file is left.
pub(super) fn sight_exit_file(exit_file: &ExitFile) -> Sighting {
    let (ending, exit_code, reason) = match exit_file {
        ExitFile::BegunAgain => return begun_again(),
        ExitFile::Exit { code: 0, signaled: false, .. } => (Ending::Finished, Some(0), None),
        ExitFile::Exit { code: 0, signaled: true, .. } => {
            let reason = "ended with 0 after a signal; Slurm no longer says what that was for";
            (Ending::Finished, Some(0), Some(reason.to_owned()))
        }
        ExitFile::Exit { code, why, .. } => {
            let (code, said) = told(Some(Exit::Code(*code)));
            (Ending::Failed, code, why.clone().or(said))
        }
    };
    Sighting::Seen(Observation::Ended { ending, exit_code, reason, began: None, at: None })
}

/// How the first run of a job ended that Slurm began again is not known, and it may go on.
fn begun_again() -> Sighting {
    let evidence = "Slurm began it again, which ran nothing; how its first run ended is not known";
    Sighting::Gone { evidence: evidence.to_owned() }
}

fn join<const N: usize>(parts: [Option<String>; N]) -> Option<String> {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// What an answer that is no success means.
#[derive(Debug)]
pub(super) enum Fault {
    /// Slurm does not know the job.
    Unknown,
    /// It is over, and will not be changed any more.
    Over,
    /// Slurm does not believe who we are.
    NotBelieved(anyhow::Error),
    /// It may do it another time.
    Away(anyhow::Error),
    /// It will never do it.
    Refused(String),
    /// It will do it once others are gone.
    NotNow(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unknown,
    Over,
    NotBelieved,
    Away,
    Refused,
    NotNow,
}

/// Error numbers that say something of their own, in the order of their numbers. Of what is not here, 2000 to 2999 (what
/// slurmctld finds wrong with a request) and 9000 to 9999 (what slurmrestd cannot read) are refusals; the rest, among them
/// -1 and all that concerns reaching slurmctld, is no answer.
const ERRORS: [(i64, Kind); 11] = [
    (11, Kind::NotNow),        // slurmctld holds as many jobs as it may
    (1007, Kind::NotBelieved), // a token slurmctld does not believe, since v0.0.40; before, -1 says it
    (2016, Kind::Away),        // nodes busy
    (2017, Kind::Unknown),     // invalid job id
    (2020, Kind::Away),        // in transition, no update
    (2021, Kind::Over),        // already done
    (2022, Kind::Away),        // interconnect failure
    (2027, Kind::Away),        // slurmctld in standby
    (2050, Kind::NotNow),      // a limit of its account or QOS, mostly on jobs submitted
    (2084, Kind::Over),        // job finished
    (9003, Kind::Unknown),     // empty answer of slurmdbd, over HTTP 200
];

/// Notes on a request that was done: a job is held, or cannot run at present.
const NOTES: [i64; 2] = [2015, 2042];

impl ErrorEntry {
    fn kind(&self) -> Kind {
        let number = self.error_number.unwrap_or(-1);
        match ERRORS.iter().find(|(known, _)| *known == number) {
            Some((_, kind)) => *kind,
            None if (2000..3000).contains(&number) || (9000..10000).contains(&number) => Kind::Refused,
            None => Kind::Away,
        }
    }

    fn is_note(&self) -> bool {
        self.error_number.is_some_and(|number| number == 0 || NOTES.contains(&number))
    }

    fn text(&self) -> String {
        let words = [self.error.trim(), self.description.trim()];
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        match self.error_number {
            Some(number) => format!("{} ({number})", words.join(": ")),
            None => words.join(": "),
        }
    }
}

impl Answer {
    /// Whether it may mean that a token is not believed: slurmctld is asked with it, and what it thinks of it is not told apart.
    pub(super) fn doubts_who_asks(&self) -> bool {
        self.faults().iter().any(|entry| matches!(entry.error_number, Some(-1 | 1007 | 5005)))
    }

    /// Whether it is a success: by its status and what stands in it, since errors come over 200 and notes over 500.
    pub(super) fn judged(self, status: u16) -> Result<Self, Fault> {
        let all = self.faults();
        let errors: Vec<&ErrorEntry> = all.iter().filter(|entry| !entry.is_note()).collect();
        // An entry without a number only explains the next.
        let decisive = errors.iter().find(|entry| entry.error_number.is_some()).or(errors.first());
        let text = || errors.iter().map(|entry| entry.text()).collect::<Vec<_>>().join(", ");
        match decisive {
            None if (200..300).contains(&status) || !all.is_empty() => Ok(self),
            None if status == 404 => Err(Fault::Unknown),
            None => Err(Fault::Away(anyhow::anyhow!("slurmrestd answered with status {status}"))),
            Some(entry) => Err(match entry.kind() {
                Kind::Unknown => Fault::Unknown,
                Kind::Over => Fault::Over,
                Kind::NotBelieved => Fault::NotBelieved(anyhow::anyhow!("Slurm: {}", text())),
                Kind::Refused => Fault::Refused(format!("Slurm: {}", text())),
                Kind::NotNow => Fault::NotNow(format!("Slurm: {}", text())),
                Kind::Away => Fault::Away(anyhow::anyhow!("Slurm: {}", text())),
            }),
        }
    }
}

impl From<Fault> for EngineError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unknown => Self::Away(anyhow::anyhow!("Slurm does not know what was asked for")),
            Fault::Over => Self::Away(anyhow::anyhow!("Slurm says that the job is over")),
            Fault::NotBelieved(source) | Fault::Away(source) => Self::Away(source),
            Fault::Refused(why) => Self::Refused(why),
            Fault::NotNow(why) => Self::NotNow(why),
        }
    }
}
