//! Child processes of the harness: started with a log file, probed until ready, signalled by pid, gone after `Drop`.
//!
//! Every child also dies when the harness itself is killed: it runs under the kernel's parent-death signal, which
//! `setpriv` sets without `unsafe` code of ours. What escapes is found by [`crate::containment`]. Linux only.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, getuid, kill_process};

use crate::wait::until;

/// How long `Drop` waits for its own signal to work before it kills.
const FAREWELL: Duration = Duration::from_secs(5);
const LOG_TAIL_LINES: usize = 40;

/// The system account a server insists on: set only when we are root, whom PostgreSQL refuses.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    /// Numeric user.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
}

impl Account {
    /// The account `name` if this process is root; `None` (stay who we are) for an ordinary user.
    pub fn instead_of_root(name: &str) -> Result<Option<Self>> {
        if !getuid().is_root() {
            return Ok(None);
        }
        let id = |flag: &str| -> Result<u32> {
            let out = Command::new("id").args([flag, name]).output()?;
            String::from_utf8(out.stdout)?.trim().parse().with_context(|| {
                format!("there is no account {name} on this machine: run deploy/install-services first")
            })
        };
        Ok(Some(Self { uid: id("-u")?, gid: id("-g")? }))
    }
}

/// The signal a child gets when its owner drops it or dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastWord {
    /// `SIGKILL`: nothing of it needs to be put in order.
    Kill,
    /// `SIGQUIT`: PostgreSQL's "at once, and take your children with you".
    Quit,
    /// `SIGTERM`: an orderly end.
    Terminate,
}

impl LastWord {
    fn signal(self) -> Signal {
        match self {
            Self::Kill => Signal::KILL,
            Self::Quit => Signal::QUIT,
            Self::Terminate => Signal::TERM,
        }
    }

    fn setpriv_name(self) -> &'static str {
        match self {
            Self::Kill => "KILL",
            Self::Quit => "QUIT",
            Self::Terminate => "TERM",
        }
    }
}

/// `command` as `account`, sent `last_word` when its parent dies. Same arguments, variables and folder; same pid, since
/// `setpriv` replaces itself.
pub fn guarded(command: &Command, account: Option<Account>, last_word: LastWord) -> Command {
    let mut guarded = Command::new("setpriv");
    guarded.arg(format!("--pdeathsig={}", last_word.setpriv_name()));
    if let Some(Account { uid, gid }) = account {
        guarded.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
    }
    guarded.arg("--").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => guarded.env(name, value),
            None => guarded.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        guarded.current_dir(folder);
    }
    guarded
}

/// A running child and its log. Ends with this value.
#[derive(Debug)]
pub struct Managed {
    name: String,
    child: Child,
    log: PathBuf,
    last_word: LastWord,
}

impl Managed {
    /// Starts `command`, its output appended to `log`. `last_word` is what it is sent when this value is dropped or the
    /// harness dies; what outlives it by five seconds is killed.
    ///
    /// The variables and folder set on `command` hold; `env_clear` does not survive (std does not tell of it).
    pub fn spawn(
        name: &str,
        command: &Command,
        account: Option<Account>,
        log: &Path,
        last_word: LastWord,
    ) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        let mut command = guarded(command, account, last_word);
        // Its own group: a terminal's Ctrl-C reaches the runner, which ends its servers in order.
        command.process_group(0).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn_from_lasting_thread(command).with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.into(), child, log: log.into(), last_word })
    }

    /// Returns when `probe` says `Ok`; fails with the end of the log when the process ends first or `within` is over.
    pub async fn ready(&mut self, within: Duration, probe: impl AsyncFnMut() -> Result<()>) -> Result<()> {
        let what = format!("{} is ready", self.name);
        let failed = tokio::select! {
            status = self.exited(within * 2) => anyhow!("it ended: {}", status?),
            answer = until(&what, within, probe) => match answer {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
        };
        Err(failed.context(format!("{} did not start; its log ends:\n{}", self.name, self.log_tail())))
    }

    /// Its status once it has ended by itself or by a signal; an error after `within`.
    pub async fn exited(&mut self, within: Duration) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        let child = &mut self.child;
        until(&what, within, async || child.try_wait()?.context("it still runs")).await
    }

    /// Sends `signal` and waits for the end, at most `within`.
    pub async fn stop(&mut self, signal: Signal, within: Duration) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.exited(within).await
    }

    /// Sends `signal` to the process, not to its children. An error if it has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // The child is not reaped elsewhere, so its pid cannot be another's.
        if let Some(status) = self.child.try_wait()? {
            bail!("{} has ended already: {status}", self.name);
        }
        kill_process(Pid::from_child(&self.child), signal).with_context(|| format!("signal {}", self.name))
    }

    /// `kill -9`, and gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Its process id, valid while this value lives.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// The last lines it wrote, for the message of a failure.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        if self.signal(self.last_word.signal()).is_err() {
            return;
        }
        let asked = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if asked.elapsed() > FAREWELL {
                self.kill().ok();
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The parent-death signal follows the *thread* that forked, and a test's thread ends with its test, so one thread as
/// lasting as the process starts every child.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Request = (Command, SyncSender<io::Result<Child>>);
    static SPAWNER: LazyLock<Mutex<Sender<Request>>> = LazyLock::new(|| {
        let (requests, received) = channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in received {
                answer.send(command.spawn()).ok();
            }
        });
        Mutex::new(requests)
    });
    let (answer, answered) = sync_channel(1);
    let gone = || io::Error::other("the thread that starts processes is gone");
    SPAWNER.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str, log: &Path, last_word: LastWord) -> Result<Managed> {
        Managed::spawn("script", Command::new("sh").args(["-c", script]), None, log, last_word)
    }

    #[tokio::test]
    async fn a_process_that_ends_before_it_is_ready_fails_with_the_end_of_its_log() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut script = shell("echo no such port; exit 3", &folder.path().join("log"), LastWord::Kill)?;
        let never = script.ready(SOON, async || bail!("no answer")).await.unwrap_err();
        let message = format!("{never:#}");
        assert!(message.contains("no such port") && message.contains("exit status: 3"), "{message}");
        Ok(())
    }

    #[tokio::test]
    async fn a_dropped_process_hears_its_last_word_and_is_gone() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let script = "trap 'echo put in order; exit 0' TERM; echo listening; while :; do sleep 0.05; done";
        let mut child = shell(script, &log, LastWord::Terminate)?;
        let listens = || fs::read_to_string(&log).is_ok_and(|text| text.contains("listening"));
        child.ready(SOON, async || listens().then_some(()).context("silent")).await?;
        let pid = Pid::from_child(&child.child);
        drop(child);
        assert!(fs::read_to_string(&log)?.ends_with("put in order\n"));
        rustix::process::test_kill_process(pid).unwrap_err();
        Ok(())
    }
}
