//! What the manager remembers of its submissions, in this process or in a file that processes share.
//!
//! Whatever happens to a submission is an [`Event`]: written first, then true. In a shared file each is a line, appended
//! under a lock after everything others appended was read, so all who have the file open are one manager. A line somebody
//! died over was never answered for and never was.

use crate::engine::{EngineError, EngineResult};
use anyhow::Context as _;
use chrono::{DateTime, Utc};
use jobgate_shared::{
    clock::Clock,
    domain::{Observation, Submission, SubmissionTag},
};
use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions, TryLockError},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Between two tries to have the file alone; nobody has it for longer than a line takes, unless it is stopped.
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// One thing that happened to one submission.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) tag: SubmissionTag,
    pub(super) id: String,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    Created {
        at: DateTime<Utc>,
        time_limit: Option<Duration>,
    },
    Begun {
        created: DateTime<Utc>,
        at: DateTime<Utc>,
    },
    Ended(Observation),
    Removed,
    /// Its name, that is its tag, may not be used any more.
    Buried,
}

impl Event {
    /// A beginning is a ledger's line, which starts with the tag; any other starts with a word.
    fn line(&self) -> String {
        let Self { tag, id, what } = self;
        match what {
            What::Created { at, time_limit } => {
                let limit = time_limit.map_or_else(|| "-".to_owned(), |limit| limit.as_secs().to_string());
                format!("created {tag} {id} {} {limit}\n", at.timestamp_micros())
            }
            What::Begun { created, at } => {
                format!("{tag} {id} {} {}\n", created.timestamp_micros(), at.timestamp_micros())
            }
            What::Ended(end) => {
                let end = serde_json::to_string(end).unwrap_or_default();
                format!("ended {tag} {id} {end}\n")
            }
            What::Removed => format!("removed {tag} {id}\n"),
            What::Buried => format!("buried {tag} {id}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (first, rest) = line.split_once(' ')?;
        if let Ok(tag) = first.parse() {
            let mut words = rest.split(' ');
            let (id, created, at) = (words.next()?.to_owned(), time(words.next()?)?, time(words.next()?)?);
            return Some(Self { tag, id, what: What::Begun { created, at } });
        }
        let mut words = rest.splitn(3, ' ');
        let (tag, id, more) =
            (words.next()?.parse().ok()?, words.next()?.to_owned(), words.next().unwrap_or_default());
        let what = match first {
            "created" => {
                let (at, limit) = more.split_once(' ')?;
                let time_limit = limit.parse().ok().map(Duration::from_secs);
                What::Created { at: time(at)?, time_limit }
            }
            "ended" => What::Ended(serde_json::from_str(more).ok()?),
            "removed" => What::Removed,
            "buried" => What::Buried,
            _ => return None,
        };
        Some(Self { tag, id, what })
    }
}

fn time(micros: &str) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros.parse().ok()?)
}

/// Where events are written.
#[derive(Debug)]
enum Journal {
    /// Nowhere.
    None,
    /// Beginnings only, for whoever counts them.
    Ledger(File),
    /// Everything, and everything in it counts, whoever wrote it.
    Shared(File),
}

/// The manager's memory.
#[derive(Debug)]
pub(super) struct Memory {
    journal: Journal,
    clock: Arc<dyn Clock>,
    /// How long another process may keep the file to itself.
    patience: Duration,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    tags: HashMap<SubmissionTag, Vec<Attempt>>,
    buried: HashSet<SubmissionTag>,
    /// How much of a shared file is in here.
    read: u64,
}

/// One submission.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) id: String,
    pub(super) created: Instant,
    pub(super) created_at: DateTime<Utc>,
    pub(super) time_limit: Option<Duration>,
    pub(super) phase: Phase,
}

impl Attempt {
    /// It runs or has run.
    pub(super) fn began(&self) -> bool {
        match &self.phase {
            Phase::Inert => false,
            Phase::Begun { .. } => true,
            Phase::Ended(end) => matches!(end, Observation::Ended { began: Some(_), .. }),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Phase {
    Inert,
    Begun { since: Instant, wall: DateTime<Utc> },
    Ended(Observation),
}

impl Memory {
    /// A memory that ends with the process; beginnings are also written to `ledger`.
    pub(super) fn of_process(ledger: Option<&Path>, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let ledger = ledger.map(|path| open(path).with_context(|| format!("ledger {}", path.display())));
        let journal = ledger.transpose()?.map_or(Journal::None, Journal::Ledger);
        Ok(Self { journal, clock, patience: Duration::ZERO, held: Mutex::default() })
    }

    /// A memory shared with everybody who has this file open.
    pub(super) fn shared(path: &Path, clock: Arc<dyn Clock>, patience: Duration) -> anyhow::Result<Self> {
        let file = open(path).with_context(|| format!("state {}", path.display()))?;
        Ok(Self { journal: Journal::Shared(file), clock, patience, held: Mutex::default() })
    }

    /// Everything that has happened, and nothing more happens until this is dropped.
    pub(super) async fn lock(&self) -> EngineResult<Locked<'_>> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(locked) = self.try_lock().map_err(EngineError::Away)? {
                return Ok(locked);
            }
            if Instant::now() >= deadline {
                let waited = anyhow::anyhow!("another process has its state to itself");
                return Err(EngineError::Away(waited));
            }
            // Not a blocking lock: a stopped process that has it would stop this one's thread with it.
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    fn try_lock(&self) -> anyhow::Result<Option<Locked<'_>>> {
        // A panic elsewhere leaves nothing half done in here.
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Journal::Shared(file) = &self.journal {
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error).context("lock of its state"),
            }
        }
        let mut locked = Locked { memory: self, held };
        locked.catch_up().context("its state")?;
        Ok(Some(locked))
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

/// The memory, for one call.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    memory: &'a Memory,
    held: MutexGuard<'a, Held>,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Journal::Shared(file) = &self.memory.journal {
            // Fails only for a file that is not open.
            file.unlock().unwrap_or_default();
        }
    }
}

impl Locked<'_> {
    /// Every submission that is known.
    pub(super) fn all(&self) -> impl Iterator<Item = (SubmissionTag, &Attempt)> {
        self.held.tags.iter().flat_map(|(tag, attempts)| attempts.iter().map(|attempt| (*tag, attempt)))
    }

    /// What is known under a tag, in the order it was created.
    pub(super) fn under(&self, tag: SubmissionTag) -> &[Attempt] {
        self.held.tags.get(&tag).map_or(&[], Vec::as_slice)
    }

    pub(super) fn find(&self, tag: SubmissionTag, submission: &Submission) -> Option<&Attempt> {
        self.under(tag).iter().find(|attempt| attempt.id == submission.id)
    }

    pub(super) fn is_buried(&self, tag: SubmissionTag) -> bool {
        self.held.buried.contains(&tag)
    }

    /// It happened, all of it or nothing.
    pub(super) fn tell(&mut self, events: Vec<Event>) -> EngineResult<()> {
        self.write(&events).map_err(|error| EngineError::Away(error.into()))?;
        for event in events {
            self.apply(event);
        }
        Ok(())
    }

    fn write(&mut self, events: &[Event]) -> std::io::Result<()> {
        let (mut file, shared) = match &self.memory.journal {
            Journal::None => return Ok(()),
            Journal::Ledger(file) => (file, false),
            Journal::Shared(file) => (file, true),
        };
        let kept = events.iter().filter(|event| shared || matches!(event.what, What::Begun { .. }));
        let lines: String = kept.map(Event::line).collect();
        file.write_all(lines.as_bytes())?;
        self.held.read += lines.len() as u64;
        Ok(())
    }

    /// Reads what others wrote.
    fn catch_up(&mut self) -> anyhow::Result<()> {
        let Journal::Shared(file) = &self.memory.journal else { return Ok(()) };
        let new = file.metadata()?.len().saturating_sub(self.held.read);
        if new == 0 {
            return Ok(());
        }
        let mut bytes = vec![0; usize::try_from(new)?];
        file.read_exact_at(&mut bytes, self.held.read)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            file.set_len(self.held.read + whole as u64)?;
        }
        for line in std::str::from_utf8(&bytes[..whole])?.lines() {
            let event = Event::parse(line).with_context(|| format!("a line nobody writes: {line:?}"))?;
            self.apply(event);
        }
        self.held.read += whole as u64;
        Ok(())
    }

    fn apply(&mut self, Event { tag, id, what }: Event) {
        let clock = &self.memory.clock;
        let ago = |at: DateTime<Utc>| (clock.now() - at).to_std().unwrap_or_default();
        let since = |at| clock.monotonic().checked_sub(ago(at)).unwrap_or_else(|| clock.monotonic());
        let held = &mut *self.held;
        let attempts = held.tags.entry(tag).or_default();
        let known = attempts.iter_mut().find(|attempt| attempt.id == id);
        match what {
            What::Created { at, time_limit } => {
                let (created, phase) = (since(at), Phase::Inert);
                attempts.push(Attempt { id, created, created_at: at, time_limit, phase });
            }
            What::Begun { at, .. } => {
                if let Some(attempt) = known {
                    attempt.phase = Phase::Begun { since: since(at), wall: at };
                }
            }
            What::Ended(end) => {
                if let Some(attempt) = known {
                    attempt.phase = Phase::Ended(end);
                }
            }
            What::Removed => attempts.retain(|attempt| attempt.id != id),
            What::Buried => drop(held.buried.insert(tag)),
        }
        if attempts.is_empty() {
            held.tags.remove(&tag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobgate_shared::{
        clock,
        domain::{Ending, JobId},
    };

    fn events() -> Vec<Event> {
        let tag = SubmissionTag { job: JobId::generate(), attempt: 2 };
        let (at, id) = (DateTime::UNIX_EPOCH, "noop-0-1".to_owned());
        let (reason, time_limit) = (Some("two words".to_owned()), Some(Duration::from_secs(3)));
        let end = Observation::Ended {
            ending: Ending::Canceled,
            exit_code: None,
            reason,
            began: Some(at),
            at: Some(at),
        };
        [
            What::Created { at, time_limit },
            What::Created { at, time_limit: None },
            What::Begun { created: at, at },
            What::Ended(end),
            What::Removed,
            What::Buried,
        ]
        .map(|what| Event { tag, id: id.clone(), what })
        .into()
    }

    #[test]
    fn a_line_says_all_there_is_to_an_event() {
        for event in events() {
            let line = event.line();
            assert_eq!(line.strip_suffix('\n').and_then(Event::parse), Some(event), "{line}");
        }
        assert_eq!(Event::parse("created"), None);
    }

    #[tokio::test]
    async fn a_line_somebody_died_over_never_was_and_the_next_one_stands_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let open = || Memory::shared(&path, clock::system(), Duration::ZERO).unwrap();
        let event = events().swap_remove(0);
        let (one, other) = (open(), open());
        one.lock().await.unwrap().tell(vec![event.clone()]).unwrap();
        let mut torn = event.line();
        torn.truncate(torn.len() / 2);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(torn.as_bytes()).unwrap();
        assert_eq!(other.lock().await.unwrap().under(event.tag).len(), 1);
        let removed = Event { what: What::Removed, ..event.clone() };
        other.lock().await.unwrap().tell(vec![removed]).unwrap();
        assert!(one.lock().await.unwrap().under(event.tag).is_empty());
    }

    #[tokio::test]
    async fn while_one_process_has_the_state_another_is_told_that_the_manager_is_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let open = || Memory::shared(&path, clock::system(), Duration::from_millis(3)).unwrap();
        let (one, other) = (open(), open());
        let locked = one.lock().await.unwrap();
        assert!(matches!(other.lock().await, Err(EngineError::Away(_))));
        drop(locked);
        other.lock().await.unwrap();
    }
}
