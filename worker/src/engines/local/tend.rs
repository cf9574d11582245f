//! Tends one running job, in one thread without a runtime: carries its output, ends it when it is canceled, out of time or
//! told to, notices its end, and leaves nothing of it behind.

use super::{attempt::Attempt, cgroup::Cgroup, output::Pump};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, kill_process_group,
        pidfd_open, waitid, waitpid,
    },
};
use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Why a job was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Somebody asked for it.
    Canceled,
    /// Its time limit was up.
    TimedOut,
    /// Its runner was told to end.
    Terminated,
}

/// How a job ended.
#[derive(Debug)]
pub(super) struct Tended {
    pub(super) status: ExitStatus,
    pub(super) why: Option<Why>,
    /// The kernel killed it because its own limit on memory was reached.
    pub(super) out_of_memory: bool,
    /// Something of it could not be killed.
    pub(super) left_something: bool,
}

/// Signals the runner hears. All but SIGTERM and SIGCHLD only wake it: a job outlives the terminal its worker was started
/// from. A signal that is heard is also one the job does not ignore because whoever started the worker did: handlers end at
/// exec, where an ignored signal stays ignored.
#[derive(Debug)]
pub(super) struct Signals {
    woken: UnixStream,
    terminated: Arc<AtomicBool>,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        use signal_hook::consts::{
            SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1,
            SIGUSR2,
        };
        let terminated = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGTERM, terminated.clone())?;
        let (woken, wake) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        for signal in [
            SIGTERM, SIGCHLD, SIGINT, SIGHUP, SIGQUIT, SIGALRM, SIGPIPE, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1,
            SIGUSR2,
        ] {
            signal_hook::low_level::pipe::register(signal, wake.try_clone()?)?;
        }
        Ok(Self { woken, terminated })
    }

    pub(super) fn terminated(&self) -> bool {
        self.terminated.load(Ordering::SeqCst)
    }
}

/// The job and everything its runner holds of it.
pub(super) struct Tending<'a> {
    pub(super) attempt: &'a Attempt,
    pub(super) control: &'a OwnedFd,
    pub(super) signals: &'a Signals,
    pub(super) cgroup: Option<&'a Cgroup>,
    pub(super) pumps: Vec<Pump>,
    pub(super) deadline: Option<Instant>,
    pub(super) kill_grace: Duration,
}

/// What is carried at once.
const BUFFER: usize = 64 * 1024;
/// How long what outlives the command and was killed is given to be gone.
const KILL_SETTLES: Duration = Duration::from_secs(5);

/// An end under way.
struct Stop {
    why: Why,
    /// When to stop being polite; `None` once that has happened.
    kill_at: Option<Instant>,
}

impl Tending<'_> {
    /// Until the job has ended and nothing of it is left.
    pub(super) fn tend(mut self, mut child: Child) -> io::Result<Tended> {
        let main = Pid::from_child(&child);
        let pidfd = pidfd_open(main, PidfdFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        let mut stop: Option<Stop> = None;
        loop {
            self.wait(&pidfd, stop.as_ref())?;
            // Before any wish to end it: if it has finished, the finish stands.
            if has_ended(main)? {
                break;
            }
            for pump in &mut self.pumps {
                pump.carry(&mut buffer);
            }
            let told = drain(self.control);
            if drain(&self.signals.woken) {
                reap_orphans(main)?;
            }
            if stop.is_none()
                && let Some(why) = self.wish(told)?
            {
                signal_all(main, Signal::TERM)?;
                // One that is stopped would not hear it.
                signal_all(main, Signal::CONT)?;
                stop = Some(Stop { why, kill_at: Some(Instant::now() + self.kill_grace) });
            }
            if let Some(stop) = &mut stop
                && stop.kill_at.is_some_and(|at| Instant::now() >= at)
            {
                signal_all(main, Signal::KILL)?;
                stop.kill_at = None;
            }
        }
        // Not waited for yet, so its number, and that of its group, cannot mean anything else.
        unless_gone(kill_process_group(main, Signal::KILL))?;
        let status = child.wait()?;
        let out_of_memory = self.cgroup.is_some_and(Cgroup::ran_out_of_memory);
        let left_something = !end_children(self.cgroup)?;
        for mut pump in self.pumps {
            while pump.carry(&mut buffer) {}
            // A note that cannot be written leaves an output without it; the end matters more.
            drop(pump.finish());
        }
        Ok(Tended { status, why: stop.map(|stop| stop.why), out_of_memory, left_something })
    }

    /// Why the job should end now, if it should; `told`: somebody wants this to look.
    fn wish(&self, told: bool) -> io::Result<Option<Why>> {
        if told && self.attempt.is_cancel_asked()? {
            return Ok(Some(Why::Canceled));
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(Some(Why::TimedOut));
        }
        Ok(self.signals.terminated().then_some(Why::Terminated))
    }

    /// Sleeps until something happens or a moment comes.
    fn wait(&self, pidfd: &OwnedFd, stop: Option<&Stop>) -> io::Result<()> {
        let moment = match stop {
            Some(stop) => stop.kill_at,
            None => self.deadline,
        };
        let timeout = moment.map(|moment| moment.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let sources = [self.control.as_fd(), self.signals.woken.as_fd(), pidfd.as_fd()];
        let sources = sources.into_iter().chain(self.pumps.iter().filter_map(Pump::source));
        let mut fds: Vec<_> = sources.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Kills every process of the job that is left, and waits a moment until they are gone: whoever left the job's group, or its
/// session, became a child of this process when it lost its parent. Whether nothing is left.
pub(super) fn end_children(cgroup: Option<&Cgroup>) -> io::Result<bool> {
    let deadline = Instant::now() + KILL_SETTLES;
    loop {
        let children = children()?;
        if children.is_empty() {
            break;
        }
        for child in children {
            // A child nobody waited for keeps its number.
            unless_gone(kill_process(child, Signal::KILL))?;
            waitpid(Some(child), WaitOptions::NOHANG)?;
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    cgroup.map_or(Ok(true), |cgroup| cgroup.end(deadline))
}

/// It has ended; it stays unwaited for.
fn has_ended(main: Pid) -> io::Result<bool> {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(main), look)?.is_some())
}

/// To the job's group, and to its first process, which may have moved to another.
fn signal_all(main: Pid, signal: Signal) -> io::Result<()> {
    unless_gone(kill_process_group(main, signal))?;
    unless_gone(kill_process(main, signal))
}

fn unless_gone(answer: rustix::io::Result<()>) -> io::Result<()> {
    match answer {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits for descendants that ended after their parents had, or a long job would fill the process table with them.
fn reap_orphans(main: Pid) -> io::Result<()> {
    for child in children()?.into_iter().filter(|child| *child != main) {
        waitpid(Some(child), WaitOptions::NOHANG)?;
    }
    Ok(())
}

fn children() -> io::Result<Vec<Pid>> {
    let me = rustix::process::getpid();
    let list = fs::read_to_string(format!("/proc/self/task/{me}/children"))?;
    Ok(list.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect())
}

/// Whether there was anything.
fn drain(fd: impl AsFd) -> bool {
    let (mut bytes, mut any) = ([0_u8; 64], false);
    while rustix::io::read(&fd, &mut bytes).is_ok_and(|n| n > 0) {
        any = true;
    }
    any
}
