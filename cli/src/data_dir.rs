//! The data directory: what lies where in it, and who has it.
//!
//! One gateway at a time works in it. A lock held by the kernel says so, so that it ends with its process however that
//! ends; the text in the lock file only tells people and clients who it is.

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::NamedTempFile;

/// Paths below one data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataDir(PathBuf);

/// Who has a data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// The process.
    pub(crate) pid: u32,
    /// What it was started as: `serve`, `run`.
    pub(crate) command: String,
    /// Where it serves HTTP, once it does.
    pub(crate) url: Option<String>,
}

/// Whoever holds this has the data directory.
#[derive(Debug)]
pub(crate) struct DataDirLock {
    file: File,
    holder: Holder,
}

impl DataDir {
    /// The directory at `path`, which need not exist.
    pub(crate) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Makes it, readable by its owner only, and answers it as an absolute path.
    pub(crate) fn make(path: &Path) -> anyhow::Result<Self> {
        make_private(path)?;
        let absolute = path.canonicalize().with_context(|| format!("cannot resolve {}", path.display()))?;
        Ok(Self(absolute))
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The first token, which may do everything here.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.0.join("token")
    }

    /// What the tokens are made of that jobs report with.
    pub(crate) fn report_key_file(&self) -> PathBuf {
        self.0.join("report-key")
    }

    /// The embedded store.
    pub(crate) fn store_file(&self) -> PathBuf {
        self.0.join("jobgate.db")
    }

    /// Logs of jobs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// What `run` remembers of the files it was given.
    pub(crate) fn runs(&self) -> PathBuf {
        self.0.join("runs")
    }

    /// Who has it now, if anyone does.
    pub(crate) fn holder(&self) -> Option<Holder> {
        let mut file = File::open(self.lock_file()).ok()?;
        // Held by nobody: what the file says is about a process that is gone. Given back when the file closes.
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return None;
        }
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Takes the directory for this process; an error says who has it.
    pub(crate) async fn lock(&self, command: &str) -> anyhow::Result<DataDirLock> {
        let path = self.lock_file();
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        // A client that only looks who has it holds the lock for an instant.
        for _ in 0..10 {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let holder = Holder { pid: std::process::id(), command: command.to_owned(), url: None };
                    let mut lock = DataDirLock { file, holder };
                    lock.write()?;
                    return Ok(lock);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => {
                    return Err(io::Error::from(error))
                        .with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
        let root = self.0.display();
        match self.holder() {
            Some(Holder { pid, command, url }) => {
                let place = url.map(|url| format!(" at {url}")).unwrap_or_default();
                bail!("process {pid} (jobgate {command}{place}) has the data directory {root}")
            }
            None => bail!("another process has the data directory {root}"),
        }
    }

    fn lock_file(&self) -> PathBuf {
        self.0.join("lock")
    }
}

impl DataDirLock {
    /// Tells clients where the gateway is.
    pub(crate) fn announce(&mut self, url: &str) -> anyhow::Result<()> {
        self.holder.url = Some(url.to_owned());
        self.write()
    }

    fn write(&mut self) -> anyhow::Result<()> {
        let text = serde_json::to_string(&self.holder)?;
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(text.as_bytes())
        };
        write(&mut self.file).context("cannot write the lock file")
    }
}

/// Makes a directory and its parents, readable by their owner only. One that is there is left as it is.
pub(crate) fn make_private(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Writes a file only its owner can read, unless it is there; answers whether it was written. It is there whole or not at
/// all, whenever this process is killed. One process at a time may write it.
pub(crate) fn write_private(path: &Path, text: &str) -> anyhow::Result<bool> {
    let write = || -> io::Result<bool> {
        if path.try_exists()? {
            return Ok(false);
        }
        let place = path.parent().unwrap_or(Path::new("."));
        let written = match beside(path, place, text)?.persist_noclobber(path) {
            Ok(_) => true,
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error.error),
        };
        File::open(place)?.sync_all()?;
        Ok(written)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The file under another name, in `place`: complete and on the disk. Its owner only can read it.
fn beside(path: &Path, place: &Path, text: &str) -> io::Result<NamedTempFile> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    match fs::remove_file(place.join(&name)) {
        // Left by one that was killed.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempfile_in(place)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[tokio::test]
    async fn a_directory_has_one_holder_and_says_who_it_is() {
        let place = tempfile::tempdir().unwrap();
        let directory = DataDir::make(&place.path().join("a/b")).unwrap();
        assert_eq!(directory.holder(), None);
        let mut lock = directory.lock("serve").await.unwrap();
        lock.announce("http://127.0.0.1:1").unwrap();
        let holder = directory.holder().unwrap();
        assert_eq!((holder.pid, holder.url.as_deref()), (std::process::id(), Some("http://127.0.0.1:1")));
        let refusal = directory.lock("serve").await.unwrap_err().to_string();
        assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
        assert!(refusal.contains("(jobgate serve at http://127.0.0.1:1)"), "{refusal}");
        drop(lock);
        assert_eq!(directory.holder(), None, "what the file says ends with the lock");
        directory.lock("run").await.unwrap();
    }

    #[test]
    fn private_files_are_written_once_and_for_their_owner() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("token");
        assert!(write_private(&file, "one").unwrap());
        assert!(!write_private(&file, "two").unwrap());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let directory = DataDir::make(&place.path().join("data")).unwrap();
        assert_eq!(std::fs::metadata(directory.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_private_file_is_under_its_name_whole_or_not_at_all_whenever_its_writer_is_killed() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("token");
        // As kill -9 leaves it: complete and not yet under its name, or not even complete.
        for left in ["whole", ""] {
            std::mem::forget(beside(&file, place.path(), left).unwrap());
            assert!(!file.exists());
        }
        assert!(write_private(&file, "one").unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "one");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
