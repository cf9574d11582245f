//! The shared directory: one directory per submission, and how its files say where it stands.
//!
//! ```text
//! <shared>/shared-id          tells this directory from an empty mount point
//! <shared>/<tag>/<nonce>/     one submission
//!     job        what the scheduler is given          payload   what that runs; removed when it begins
//!     id         the scheduler's id                   start     the start token: a file when it began, a directory when it never will
//!     cancel     somebody asked for an end            out_of_time   its time limit was up
//!     exit       how it ended: written once, by link  failed    why the command never ran
//!     again      the scheduler began it again, which ran nothing
//!     stdout, stderr, stdin, script, work/            the job's own
//!     scheduler.out, scheduler.err                    what the scheduler adds
//! ```
//!
//! The nonce is in the job's name at the scheduler and in the submission's id: an id a scheduler uses again is another job.

use super::{config::Settings, script};
use crate::{
    engine::ToCreate,
    engines::local::attempt::{Attempt, Token},
};
use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use jobgate_shared::domain::{Ending, Observation, Submission, SubmissionTag};
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};
use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};
use uuid::Uuid;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A submission's directory, and its name at the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) tag: SubmissionTag,
    nonce: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:016x}", self.tag, self.nonce)
    }
}

impl Place {
    /// The place of a job by its name at the scheduler; `None` if it is none of ours.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (tag, nonce) = name.rsplit_once('.')?;
        let place = Self { tag: tag.parse().ok()?, nonce: u64::from_str_radix(nonce, 16).ok()? };
        // One spelling only.
        (place.to_string() == name).then_some(place)
    }

    /// A recorded submission's place and the scheduler's id; `None` for an id this engine never gave to the tag.
    pub(super) fn of(tag: SubmissionTag, submission: &Submission) -> Option<(Self, String)> {
        let (id, nonce) = submission.id.rsplit_once('.')?;
        Some((Self::named(&format!("{tag}.{nonce}"))?, id.to_owned()))
    }

    pub(super) fn submission(self, id: &str) -> Submission {
        let id = format!("{id}.{:016x}", self.nonce);
        Submission { id, detail: serde_json::Value::Null, reach: None }
    }

    fn path(self) -> String {
        format!("{}/{:016x}", self.tag, self.nonce)
    }
}

/// What the files of a submission say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Never made, or forgotten.
    Missing,
    /// Nothing began it.
    Fresh,
    /// It will never begin: discarded, or canceled.
    Tombstone { at: DateTime<Utc>, canceled: bool },
    /// It began, and has not said how it ended.
    Begun { since: DateTime<Utc>, canceled: bool, again: bool },
    /// How it ended, for good; `signaled`: after it had been told to end, so an end well may be no more than good manners.
    Ended { end: Observation, at: DateTime<Utc>, signaled: bool },
    /// It ended, and nobody saw how.
    Lost { evidence: String },
}

/// The shared directory.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    root: OwnedFd,
    id: String,
}

impl Files {
    /// Opens the directory, which must be there: one that is not mounted must not look like one that forgot everything.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let root = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
        let metadata = fs::metadata(path)?;
        let me = rustix::process::geteuid().as_raw();
        ensure!(metadata.uid() == me, "belongs to user {}, not to this one ({me})", metadata.uid());
        ensure!(metadata.mode() & 0o022 == 0, "others may write to it");
        let id = match read_id(&root) {
            Ok(id) => id,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Linked into place whole; who comes second takes the first's.
                let new = format!("shared-id.{}", Uuid::new_v4());
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mut file =
                    fs::File::from(rustix::fs::openat(&root, &new, flags, Mode::RUSR | Mode::WUSR)?);
                file.write_all(Uuid::new_v4().to_string().as_bytes())?;
                file.sync_all()?;
                link(&root, &new, "shared-id")?;
                rustix::fs::unlinkat(&root, &new, AtFlags::empty())?;
                read_id(&root)?
            }
            Err(error) => return Err(error).context("shared-id"),
        };
        Ok(Self { path: path.to_owned(), root, id })
    }

    /// The directory is what it was: not unmounted, not replaced.
    pub(super) fn still_stand(&self) -> anyhow::Result<()> {
        let found = read_id(&self.root).context("shared-id")?;
        ensure!(found == self.id, "{} was replaced", self.path.display());
        Ok(())
    }

    pub(super) fn dir(&self, place: Place) -> String {
        self.path.join(place.path()).to_string_lossy().into_owned()
    }

    /// Makes the directory of a submission that is yet to be made; the script to submit.
    pub(super) fn make(&self, settings: &Settings, job: &ToCreate) -> io::Result<(Place, String)> {
        let place = Place { tag: job.tag, nonce: rand::random() };
        loop {
            made(rustix::fs::mkdirat(&self.root, job.tag.to_string(), Mode::RWXU))?;
            match rustix::fs::mkdirat(&self.root, place.path(), Mode::RWXU) {
                Ok(()) => break,
                // Another's last submission under the tag was just removed.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let attempt = self.attempt(place)?.ok_or(Errno::NOENT)?;
        let dir = self.dir(place);
        let limit = job.spec.time_limit_seconds.map(Duration::from_secs);
        let wrapper = script::wrapper(&dir, limit, *settings.kill_grace);
        let payload = script::payload(&dir, &job.spec, &settings.env_of(job));
        let input = job.spec.stdin.as_ref().map(|text| ("stdin", text));
        let script = job.spec.script.as_ref().map(|text| ("script", text));
        for (name, text) in [("job", &wrapper), ("payload", &payload)].into_iter().chain(input).chain(script)
        {
            let mut file = attempt.create_new(name)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
        }
        if job.spec.working_dir.is_none() {
            attempt.make_dir("work")?;
        }
        attempt.sync()?;
        Ok((place, wrapper))
    }

    /// Writes down the scheduler's id, for a discard that is told none.
    pub(super) fn note_id(&self, place: Place, id: &str) -> io::Result<()> {
        let Some(attempt) = self.attempt(place)? else { return Ok(()) };
        attempt.create_new("id")?.write_all(id.as_bytes())
    }

    pub(super) fn noted_id(&self, place: Place) -> io::Result<Option<String>> {
        let Some(attempt) = self.attempt(place)? else { return Ok(None) };
        read(&attempt, "id")
    }

    pub(super) fn attempt(&self, place: Place) -> io::Result<Option<Attempt>> {
        match rustix::fs::openat(&self.root, place.path(), DIRECTORY, Mode::empty()) {
            Ok(dir) => Ok(Some(Attempt::new(dir))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn look(&self, place: Place) -> io::Result<Standing> {
        let Some(attempt) = self.attempt(place)? else { return Ok(Standing::Missing) };
        let token = attempt.token()?;
        if let Some(text) = read(&attempt, "exit")? {
            return ended(&attempt, token, &text);
        }
        Ok(match token {
            None => Standing::Fresh,
            Some(Token::Tombstone { at }) => Standing::Tombstone { at, canceled: attempt.is_cancel_asked()? },
            Some(Token::Runner { at }) => Standing::Begun {
                since: at,
                canceled: attempt.is_cancel_asked()?,
                again: attempt.open_existing("again")?.is_some(),
            },
        })
    }

    /// Asks for an end. Whether it will never begin now, because it had not.
    pub(super) fn cancel(&self, place: Place) -> io::Result<bool> {
        let Some(attempt) = self.attempt(place)? else { return Ok(false) };
        attempt.ask_cancel()?;
        attempt.take_tombstone()
    }

    /// Makes sure it never begins, unless it has. Whether it is nobody's now.
    pub(super) fn bury_fresh(&self, place: Place) -> io::Result<bool> {
        let Some(attempt) = self.attempt(place)? else { return Ok(false) };
        Ok(attempt.take_tombstone()? || attempt.is_discarded()?)
    }

    /// Writes how it ended for one that cannot any more. Whatever was written first stands.
    pub(super) fn write_end(
        &self,
        place: Place,
        word: &str,
        code: Option<i32>,
        reason: &str,
    ) -> io::Result<()> {
        let Some(attempt) = self.attempt(place)? else { return Ok(()) };
        let new = format!("exit.{:016x}", rand::random::<u64>());
        let code = code.map_or_else(|| "-".to_owned(), |code| code.to_string());
        let reason = reason.replace('\n', " ");
        let mut file = attempt.create_new(&new)?;
        file.write_all(format!("{word} {code} {reason}\n").as_bytes())?;
        file.sync_all()?;
        link(attempt.as_fd(), &new, "exit")?;
        rustix::fs::unlinkat(attempt.as_fd(), &new, AtFlags::empty())?;
        attempt.sync()
    }

    /// Every place there is.
    pub(super) fn places(&self) -> io::Result<Vec<Place>> {
        let mut places = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.root)? {
            if let Some(tag) = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
                places.extend(self.under(tag)?);
            }
        }
        Ok(places)
    }

    pub(super) fn under(&self, tag: SubmissionTag) -> io::Result<Vec<Place>> {
        let dir = match rustix::fs::openat(&self.root, tag.to_string(), DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut places = Vec::new();
        for entry in rustix::fs::Dir::new(dir)? {
            let entry = entry?;
            let name =
                entry.file_name().to_str().ok().and_then(|nonce| Place::named(&format!("{tag}.{nonce}")));
            places.extend(name);
        }
        Ok(places)
    }

    /// When its directory last changed.
    pub(super) fn changed_at(&self, place: Place) -> io::Result<Option<DateTime<Utc>>> {
        self.attempt(place)?.map(|attempt| attempt.changed_at()).transpose()
    }

    /// Takes it away. Nobody may call this before its start token is taken.
    pub(super) fn remove(&self, place: Place) -> io::Result<()> {
        match fs::remove_dir_all(self.path.join(place.path())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        match rustix::fs::unlinkat(&self.root, place.tag.to_string(), AtFlags::REMOVEDIR) {
            // Not empty: another submission stands under the tag.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn made(answer: rustix::io::Result<()>) -> io::Result<()> {
    match answer {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives a file its name, unless another has it.
fn link(dir: impl std::os::fd::AsFd, from: &str, to: &str) -> io::Result<()> {
    made(rustix::fs::linkat(&dir, from, &dir, to, AtFlags::empty()))
}

fn read_id(root: &OwnedFd) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    io::read_to_string(fs::File::from(rustix::fs::openat(root, "shared-id", flags, Mode::empty())?))
}

/// A small text of ours.
fn read(attempt: &Attempt, name: &str) -> io::Result<Option<String>> {
    let Some(file) = attempt.open_existing(name)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(4096).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned()))
}

/// What `exit` says.
fn ended(attempt: &Attempt, token: Option<Token>, text: &str) -> io::Result<Standing> {
    let file = attempt.open_existing("exit")?.ok_or(Errno::NOENT)?.metadata()?;
    let nanos = u32::try_from(file.mtime_nsec()).unwrap_or(0) / 1000 * 1000;
    let at = DateTime::from_timestamp(file.mtime(), nanos).unwrap_or_default();
    let began = match token {
        Some(Token::Runner { at }) => Some(at),
        Some(Token::Tombstone { .. }) | None => None,
    };
    let mut words = text.splitn(3, ' ');
    let (word, code) = (words.next().unwrap_or_default(), words.next().and_then(|code| code.parse().ok()));
    let said = words.next().filter(|reason| !reason.is_empty()).map(str::to_owned);
    let (ending, exit_code, reason) = match (word, code) {
        ("exited" | "signaled", Some(0)) => (Ending::Finished, Some(0), None),
        ("exited" | "signaled", Some(code)) => {
            let failure = attempt.failure()?.filter(|failure| failure.exit_code == code);
            (Ending::Failed, Some(code), Some(failure.map_or_else(|| told(code), |failure| failure.reason)))
        }
        ("failed", code) => (Ending::Failed, code, said),
        ("canceled", _) => (Ending::Canceled, None, said.or_else(|| Some("canceled".to_owned()))),
        ("timed_out", _) => {
            (Ending::TimedOut, None, said.or_else(|| Some("its time limit was up".to_owned())))
        }
        ("lost", _) => return Ok(Standing::Lost { evidence: said.unwrap_or_default() }),
        _ => {
            return Ok(Standing::Lost {
                evidence: "it ended, and what it wrote of that cannot be read".to_owned(),
            });
        }
    };
    // A start token of another host's clock is never after the end.
    let at = began.map_or(at, |began| at.max(began));
    let end = Observation::Ended { ending, exit_code, reason, began, at: Some(at) };
    Ok(Standing::Ended { end, at, signaled: word == "signaled" })
}

/// A shell tells a signal as a code above 128.
fn told(code: i32) -> String {
    match code {
        129..=192 => format!("exit code {code}: killed by signal {}", code - 128),
        code => format!("exit code {code}"),
    }
}
