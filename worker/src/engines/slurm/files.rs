//! What jobs leave in the log directory: their output, and their exit code.
//!
//! Everything there was made by a job's account, so nothing is believed but bytes: no link is followed out of the directory,
//! and what is no plain file is not there.

use super::{
    id::Identity,
    script::{BEGUN_AGAIN, SIGNALED},
    state::ExitFile,
};
use crate::engines::beneath;
use rustix::fs::{Mode, OFlags};
use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// What is read of an exit code and its words at most.
const EXIT_FILE_BYTES: u64 = 8 << 10;
/// What is told of it.
const WHY_CHARS: usize = 1000;

/// What a job left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Its output was opened, which is the first thing a beginning does.
    pub(super) begun: bool,
    /// What it said of its end.
    pub(super) exit_file: Option<ExitFile>,
}

/// The log directory of one account.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    dir: OwnedFd,
}

impl Directory {
    /// An error when it is not there: then it must not seem that nothing is in it.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty());
        let dir = dir.map_err(|error| anyhow::anyhow!("log_dir {}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), dir })
    }

    /// Up to `limit` bytes of a job's file and whether they reach its present end; `None` when there is no such file.
    pub(super) fn read_at(
        &self,
        name: &str,
        offset: u64,
        limit: usize,
    ) -> io::Result<Option<(Vec<u8>, bool)>> {
        let Some(file) = beneath::open_plain(&self.dir, name)? else { return Ok(None) };
        beneath::read_at(&file, offset, limit).map(Some)
    }

    /// What one job left.
    pub(super) fn left_by(&self, of: &Identity) -> io::Result<Left> {
        let begun = beneath::open_plain(&self.dir, &of.file("out"))?.is_some();
        Ok(Left { begun, exit_file: self.exit_file(&of.exit_file())? })
    }

    /// What the script of a job left when its command had ended.
    fn exit_file(&self, name: &str) -> io::Result<Option<ExitFile>> {
        let Some(file) = beneath::open_plain(&self.dir, name)? else { return Ok(None) };
        let mut text = Vec::new();
        File::take(file, EXIT_FILE_BYTES).read_to_end(&mut text)?;
        Ok(parse(&String::from_utf8_lossy(&text)))
    }

    /// Removes a file that may not be there.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Jobs of ours that left output and changed it last at least `older_than` ago.
    pub(super) fn left(&self, now: SystemTime, older_than: Duration) -> io::Result<Vec<Identity>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let Some(of) = entry.file_name().to_str().and_then(Identity::of_stdout) else { continue };
            let changed = match entry.metadata() {
                Ok(metadata) => metadata.modified()?,
                // Forgotten just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if now.duration_since(changed).is_ok_and(|age| age >= older_than) {
                found.push(of);
            }
        }
        Ok(found)
    }
}

/// The code in the first line and whether a signal came before, or that it was begun again; words in the others.
fn parse(text: &str) -> Option<ExitFile> {
    let (first, why) = text.split_once('\n')?;
    if first == BEGUN_AGAIN {
        return Some(ExitFile::BegunAgain);
    }
    let (code, signaled) = first.strip_suffix(SIGNALED).map_or((first, false), |code| (code, true));
    let code = code.parse().ok().filter(|code| (0..=255).contains(code))?;
    let why: String = why.trim().chars().take(WHY_CHARS).collect();
    Some(ExitFile::Exit { code, signaled, why: (!why.is_empty()).then_some(why) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_left_is_read_and_anything_else_is_nothing() {
        let left = |code, signaled, why: Option<&str>| {
            Some(ExitFile::Exit { code, signaled, why: why.map(str::to_owned) })
        };
        assert_eq!(parse("0\n"), left(0, false, None));
        assert_eq!(parse("0 after a signal\n"), left(0, true, None));
        assert_eq!(parse("127\nx: command not found\n"), left(127, false, Some("x: command not found")));
        assert_eq!(parse("begun again\n"), Some(ExitFile::BegunAgain));
        for broken in ["", "7", "x\n", "256\n", "-1\n", "\n7\n", "0 after\n", "begun again"] {
            assert_eq!(parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_link_in_the_place_of_an_output_is_not_followed() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(elsewhere.path().join("secret"), "7\nsecret").unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("secret"), dir.path().join("link")).unwrap();
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        for name in ["link", "dir", "nothing"] {
            assert_eq!(directory.read_at(name, 0, 10).unwrap(), None, "{name}");
            assert_eq!(directory.exit_file(name).unwrap(), None, "{name}");
        }
        assert!(directory.read_at("../secret", 0, 10).is_err());
        assert!(Directory::open(&dir.path().join("nothing")).is_err(), "not there is not empty");
    }
}
