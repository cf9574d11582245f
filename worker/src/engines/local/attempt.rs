//! One attempt's directory, and every file operation in it. Held by an open descriptor, so that it stays this attempt
//! whatever happens to its name.
//!
//! ```text
//! spec      what to run; removed when the command takes over
//! control   a FIFO its runner holds open for reading as long as it lives: who can open it for writing has found the runner
//! start     the start token: a file when a runner has it, a directory when a cancel or discard has; given once, to one
//! cancel    somebody asked for an end
//! runner    which process runs it                      failed    why the command never ran
//! exit      how it ended; its appearance is the end    runner.log  the last words of a runner that could not go on
//! stdout, stderr, stdin, script, work/                 the job's own
//! ```

use super::records::{Failure, RunSpec, RunnerRecord};
use crate::engines::beneath::{self, BENEATH};
use chrono::{DateTime, Utc};
use jobgate_shared::{domain::Observation, failpoint};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// An attempt's directory.
#[derive(Debug)]
pub(in crate::engines) struct Attempt {
    dir: OwnedFd,
}

/// Who has the start token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engines) enum Token {
    /// A runner: the job began.
    Runner {
        /// When.
        at: DateTime<Utc>,
    },
    /// A cancel or a discard: the job will never begin.
    Tombstone {
        /// When.
        at: DateTime<Utc>,
    },
}

impl AsFd for Attempt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Attempt {
    pub(in crate::engines) fn new(dir: OwnedFd) -> Self {
        Self { dir }
    }

    /// Writes what a runner will need, to stay.
    pub(super) fn prepare(&self, spec: &RunSpec) -> io::Result<()> {
        rustix::fs::mkfifoat(&self.dir, "control", PRIVATE)?;
        let mut file = self.create_new("spec")?;
        file.write_all(&serde_json::to_vec(spec)?)?;
        file.sync_all()?;
        self.sync()
    }

    pub(super) fn spec(&self) -> io::Result<Option<RunSpec>> {
        self.read_json("spec")
    }

    /// The spec may hold secrets in its environment, and nobody needs it once the command runs.
    pub(super) fn drop_spec(&self) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.dir, "spec", AtFlags::empty())?)
    }

    /// Who has the start token, if anyone has.
    pub(in crate::engines) fn token(&self) -> io::Result<Option<Token>> {
        match rustix::fs::statat(&self.dir, "start", AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let at = time_of(&stat);
                let runner = FileType::from_raw_mode(stat.st_mode).is_file();
                Ok(Some(if runner { Token::Runner { at } } else { Token::Tombstone { at } }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the start token for a runner; `false` if it is taken. Once this says `true` it says so after a power cut, too.
    pub(super) fn take_start(&self) -> io::Result<bool> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        self.taken(rustix::fs::openat(&self.dir, "start", flags, PRIVATE).map(drop))
    }

    /// Takes the start token so that nobody can; `false` if it is taken.
    pub(in crate::engines) fn take_tombstone(&self) -> io::Result<bool> {
        self.taken(rustix::fs::mkdirat(&self.dir, "start", Mode::RWXU))
    }

    fn taken(&self, answer: rustix::io::Result<()>) -> io::Result<bool> {
        match answer {
            Ok(()) => self.sync().map(|()| true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// It was discarded: a tombstone without a cancel, so no row ever recorded it.
    pub(in crate::engines) fn is_discarded(&self) -> io::Result<bool> {
        Ok(matches!(self.token()?, Some(Token::Tombstone { .. })) && !self.is_cancel_asked()?)
    }

    pub(in crate::engines) fn ask_cancel(&self) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.dir, "cancel", flags, PRIVATE)?;
        Ok(())
    }

    pub(in crate::engines) fn is_cancel_asked(&self) -> io::Result<bool> {
        match rustix::fs::statat(&self.dir, "cancel", AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The runner's end of `control`: for reading what it is told, and for being found while it lives. It is opened for
    /// writing, too, so that it never looks hung up.
    pub(super) fn control(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&self.dir, "control", flags, Mode::empty(), BENEATH)?)
    }

    /// The runner, if it lives; writing a byte makes it look at what it was asked for.
    pub(super) fn find_runner(&self) -> io::Result<Option<File>> {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat2(&self.dir, "control", flags, Mode::empty(), BENEATH) {
            Ok(control) => Ok(Some(File::from(control))),
            Err(Errno::NXIO | Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn write_runner(&self, record: &RunnerRecord) -> io::Result<()> {
        self.write_json("runner", record)
    }

    pub(super) fn runner(&self) -> io::Result<Option<RunnerRecord>> {
        self.read_json("runner")
    }

    pub(super) fn write_failure(&self, failure: &Failure) -> io::Result<()> {
        self.write_json("failed", failure)
    }

    pub(in crate::engines) fn failure(&self) -> io::Result<Option<Failure>> {
        self.read_json("failed")
    }

    /// The end, all at once and to stay.
    pub(super) fn write_exit(&self, end: &Observation) -> io::Result<()> {
        self.write_json("exit.new", end)?;
        self.open_existing("exit.new")?.ok_or(Errno::NOENT)?.sync_all()?;
        failpoint::pass("runner.exit_written");
        rustix::fs::renameat(&self.dir, "exit.new", &self.dir, "exit")?;
        self.sync()
    }

    pub(super) fn exit(&self) -> io::Result<Option<Observation>> {
        self.read_json("exit")
    }

    /// When its directory last changed: when it was made, as long as nothing has started it; when it ended, once it has.
    pub(in crate::engines) fn changed_at(&self) -> io::Result<DateTime<Utc>> {
        Ok(time_of(&rustix::fs::fstat(&self.dir)?))
    }

    /// Makes a file of the job's that does not exist yet.
    pub(in crate::engines) fn create_new(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::APPEND
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW;
        Ok(File::from(rustix::fs::openat(&self.dir, name, flags, PRIVATE)?))
    }

    pub(in crate::engines) fn make_dir(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.dir, name, Mode::RWXU)?)
    }

    /// Opens a plain file for reading, whatever the job has put in its place.
    pub(in crate::engines) fn open_existing(&self, name: &str) -> io::Result<Option<File>> {
        beneath::open_plain(&self.dir, name)
    }

    /// Up to `limit` bytes of an output file from `offset`, and whether they reach its present end.
    pub(in crate::engines) fn read_at(
        &self,
        name: &str,
        offset: u64,
        limit: usize,
    ) -> io::Result<(Vec<u8>, bool)> {
        match self.open_existing(name)? {
            Some(file) => beneath::read_at(&file, offset, limit),
            None => Ok((Vec::new(), true)),
        }
    }

    /// A runner that cannot go on says why; the first to look reads it.
    pub(super) fn last_words(&self) -> Option<String> {
        let mut text = String::new();
        self.open_existing("runner.log").ok()??.take(4096).read_to_string(&mut text).ok()?;
        let text = text.trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    pub(super) fn write_last_words(&self, words: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file = File::from(rustix::fs::openat(&self.dir, "runner.log", flags, PRIVATE)?);
        file.write_all(format!("{words}\n").as_bytes())
    }

    pub(in crate::engines) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.dir)?)
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file = File::from(rustix::fs::openat(&self.dir, name, flags, PRIVATE)?);
        file.write_all(&serde_json::to_vec(value)?)
    }

    /// `None` when it is not there, or not whole: the host or its writer went down over it.
    fn read_json<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let Some(mut file) = self.open_existing(name)? else { return Ok(None) };
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text).ok())
    }
}

/// A file's time, in the whole microseconds every store can hold.
fn time_of(stat: &rustix::fs::Stat) -> DateTime<Utc> {
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    DateTime::from_timestamp(stat.st_mtime, nanos / 1000 * 1000).unwrap_or_default()
}
