//! The real servers. Two ways to have one: [`Database::fresh`] and [`Vhost::fresh`] give a test its own corner of the
//! servers the runner started once; a test that stops, kills or starves a server starts its own [`Postgres`] or
//! [`RabbitMq`]. Private servers keep everything in one temporary folder and listen on loopback only.

mod gridengine;
mod postgres;
mod rabbitmq;
mod slurm;

use std::fs::{self, Permissions};
use std::future::Future;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use tempfile::TempDir;

pub use self::gridengine::GridEngine;
pub use self::postgres::{Database, Postgres, Shutdown};
pub use self::rabbitmq::{RabbitMq, Vhost};
pub use self::slurm::{Accounting, Release, Slurm};
use crate::process::{Account, LastWord, Managed};

/// One server's folder and the account it runs under.
#[derive(Debug)]
struct Home {
    folder: TempDir,
    account: Option<Account>,
}

impl Home {
    /// A new folder for a server that, when we are root, runs as `account`. `owner` in it holds our pid, by which
    /// `make clean-services` knows the folders of killed runs.
    fn create(account: &str) -> Result<Self> {
        let account = Account::instead_of_root(account)?;
        let folder = tempfile::Builder::new()
            .prefix("jobgate-test-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .context("a temporary folder for a server")?;
        let home = Self { folder, account };
        home.hand_over(home.path())?;
        home.write("owner", &std::process::id().to_string())?;
        Ok(home)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a small file the server can read.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let file = self.file(name);
        fs::write(&file, text)?;
        self.hand_over(&file)
    }

    fn hand_over(&self, path: &Path) -> Result<()> {
        if let Some(Account { uid, gid }) = self.account {
            chown(path, Some(uid), Some(gid)).with_context(|| format!("chown {}", path.display()))?;
        }
        Ok(())
    }

    /// A command that runs in this folder; which account it gets is up to whoever starts it.
    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(self.path()).env("HOME", self.path());
        command
    }

    fn spawn(&self, name: &str, command: &Command, last_word: LastWord) -> Result<Managed> {
        Managed::spawn(name, command, self.account, &self.file(&format!("{name}.log")), last_word)
    }
}

/// Runs `work` to its end from a `Drop`, on a runtime of its own: the test's may be the one that is dropping.
/// Its failure fails the test, unless that is failing already.
fn finish<F>(what: &str, work: impl FnOnce() -> F + Send)
where
    F: Future<Output = Result<()>>,
{
    let done = thread::scope(|scope| {
        let on_own_runtime = || -> Result<()> {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work())
        };
        scope.spawn(on_own_runtime).join()
    });
    if thread::panicking() {
        return;
    }
    match done {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{what}: {error:#}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
