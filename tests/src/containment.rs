//! A command whose every descendant is accounted for: this process adopts those whose own parent dies, reaps them when
//! they end, and kills and names what still runs when the command has ended. What ran before the command is let alone.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::timeout;

use crate::wait::until;

/// What an interrupted command gets to end by itself.
const GOODBYE: Duration = Duration::from_secs(10);
/// What processes that are about to end get when the command has ended.
const GRACE: Duration = Duration::from_secs(3);
const KILLED: Duration = Duration::from_secs(5);
/// The exit code of a status that has none.
const UNKNOWN: u8 = 125;

/// How a command ended, and what it left.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code; 128 + n for signal n; what the interruption asked for if there was one.
    pub code: u8,
    /// Pid and command line of each process it left running. They have been killed.
    pub leftovers: Vec<String>,
}

/// Runs `command` to its end, or until `interrupted` says with which code to give up. Call it once at a time in a
/// process, and start no other child meanwhile: it would be taken for the command's.
pub async fn run(mut command: Command, interrupted: impl Future<Output = u8>) -> Result<Outcome> {
    let mut ours: Vec<Pid> = children()?.into_iter().map(|child| child.pid).collect();
    set_child_subreaper(Some(getpid())).context("become the reaper of orphans")?;
    let mut ended = signal(SignalKind::child())?;
    let program = command.as_std().get_program().display().to_string();
    let mut child = command.kill_on_drop(true).spawn().with_context(|| format!("run {program}"))?;
    ours.extend(pid(&child));
    tokio::pin!(interrupted);
    let code = loop {
        tokio::select! {
            status = child.wait() => break code_of(status?),
            code = &mut interrupted => {
                end(&mut child).await?;
                break code;
            }
            // An orphan that nobody reaps looks alive to whoever asks whether it has ended.
            _ = ended.recv() => drop(strangers(&ours)?),
        }
    };
    Ok(Outcome { code, leftovers: end_strangers(&ours).await? })
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(UNKNOWN)
}

fn pid(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
}

async fn end(child: &mut Child) -> Result<()> {
    if let Some(pid) = pid(child) {
        kill_process(pid, Signal::TERM)?;
    }
    if timeout(GOODBYE, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(())
}

/// Waits a moment for the end of all that is not `ours`, then kills it, and what that leaves, until nothing is there.
async fn end_strangers(ours: &[Pid]) -> Result<Vec<String>> {
    let none = async || match strangers(ours)?.as_slice() {
        [] => Ok(()),
        running => bail!("{running:?} still run"),
    };
    if until("every process ends by itself", GRACE, none).await.is_ok() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    until("leftovers can be killed", KILLED, async || {
        for Process { pid, name, .. } in strangers(ours)? {
            kill_process(pid, Signal::KILL)?;
            names.push(format!("{pid} {name}"));
        }
        none().await
    })
    .await?;
    names.dedup();
    Ok(names)
}

/// The running children that are not `ours`. Those that have ended are reaped on the way.
fn strangers(ours: &[Pid]) -> Result<Vec<Process>> {
    let mut running = Vec::new();
    for child in children()?.into_iter().filter(|child| !ours.contains(&child.pid)) {
        if child.ended {
            waitpid(Some(child.pid), WaitOptions::NOHANG)?;
        } else {
            running.push(child);
        }
    }
    Ok(running)
}

/// The signals by which a terminal or a CI runner ends us.
#[derive(Debug)]
pub struct Interrupts {
    int: Signals,
    term: Signals,
    hangup: Signals,
}

impl Interrupts {
    /// They no longer end this process by themselves.
    pub fn install() -> Result<Self> {
        let of = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            int: of(SignalKind::interrupt())?,
            term: of(SignalKind::terminate())?,
            hangup: of(SignalKind::hangup())?,
        })
    }

    /// The exit code the next signal asks for.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.int.recv() => 130,
            _ = self.term.recv() => 143,
            _ = self.hangup.recv() => 129,
        }
    }
}

#[derive(Debug)]
struct Process {
    pid: Pid,
    name: String,
    ended: bool,
}

/// The children of this process, adopted ones included. One that comes or goes meanwhile may be missing.
fn children() -> Result<Vec<Process>> {
    let folders = fs::read_dir("/proc").context("the harness needs Linux")?;
    let read = |folder: std::path::PathBuf| {
        let pid = Pid::from_raw(folder.file_name()?.to_str()?.parse().ok()?)?;
        // `pid (name) state parent …`, and a name may hold anything.
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let ended = matches!(fields.next()?, "Z" | "X");
        let parent = Pid::from_raw(fields.next()?.parse().ok()?)?;
        let words = fs::read(folder.join("cmdline")).ok()?;
        let name = String::from_utf8_lossy(&words).replace('\0', " ").trim_end().to_owned();
        (parent == getpid()).then_some(Process { pid, name, ended })
    };
    Ok(folders.flatten().filter_map(|entry| read(entry.path())).collect())
}
