//! Which process a recorded pid means, and the end of processes that have lost their runner.
//!
//! A pid alone means nothing: it is used again. Here a process is its pid, the time it was started (in ticks since boot)
//! and the world both belong to: the boot and the pid namespace. Nothing is signalled by a bare number: a pidfd is opened,
//! what it stands for is checked, and the signal goes through it.

use jobgate_shared::domain::SubmissionTag;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    time::{Duration, Instant},
};

/// How long processes that were killed are given to be gone, where nothing else waits for that.
pub(super) const KILL_SETTLES: Duration = Duration::from_secs(2);

/// One process, for as long as anybody may ask about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessMark {
    pub(super) pid: i32,
    /// When it was started, in clock ticks since boot.
    pub(super) started: u64,
    /// The boot and the pid namespace.
    pub(super) world: World,
}

/// Where a pid means something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct World {
    pub(super) boot: String,
    pub(super) pid_namespace: String,
}

impl World {
    pub(super) fn here() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let namespace = fs::read_link("/proc/self/ns/pid")?;
        Ok(Self { boot, pid_namespace: namespace.to_string_lossy().into_owned() })
    }
}

impl ProcessMark {
    pub(super) fn of_self() -> io::Result<Self> {
        let pid = rustix::process::getpid().as_raw_pid();
        let stat = Stat::of(pid).ok_or_else(|| io::Error::other("/proc does not show this process"))?;
        Ok(Self { pid, started: stat.started, world: World::here()? })
    }
}

/// What `/proc/<pid>/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    pid: i32,
    state: u8,
    session: i32,
    started: u64,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        Self::parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(pid: i32, text: &[u8]) -> Option<Self> {
        // The command's name stands in parentheses and may hold anything, parentheses included.
        let after_name = text.iter().rposition(|byte| *byte == b')')? + 1;
        let mut fields = std::str::from_utf8(&text[after_name..]).ok()?.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let session = fields.nth(2)?.parse().ok()?;
        let started = fields.nth(15)?.parse().ok()?;
        Some(Self { pid, state, session, started })
    }

    /// A zombie has ended; only its parent does not know yet.
    fn runs(self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// What became of a job's processes after their runner was gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leftovers {
    /// Processes that were killed.
    pub(super) killed: u32,
    /// Nothing is left.
    pub(super) all_gone: bool,
}

/// Kills whatever still runs of the job whose runner was `runner`, once at least, and waits `until` then for it to be gone.
///
/// A process is the job's when its environment carries the job's identity, which every descendant inherits; and once one of
/// those stands in the runner's session, that session's number cannot be anybody else's, so all of it is the job's. What
/// cleared its environment *and* outlived everything that had not is not found.
pub(super) fn end_leftovers(
    runner: &ProcessMark,
    tag: SubmissionTag,
    until: Instant,
) -> io::Result<Leftovers> {
    let mut ended = Leftovers { killed: 0, all_gone: true };
    if World::here()? != runner.world {
        // Its boot is over, or its container is: nothing of it can run where this can act.
        return Ok(ended);
    }
    loop {
        let found = leftovers(runner, tag)?;
        if found.is_empty() {
            ended.all_gone = true;
            return Ok(ended);
        }
        for stat in &found {
            ended.killed += u32::from(kill_exactly(stat.pid, stat.started));
        }
        if Instant::now() >= until {
            ended.all_gone = false;
            return Ok(ended);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn leftovers(runner: &ProcessMark, tag: SubmissionTag) -> io::Result<Vec<Stat>> {
    let mut candidates = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ends under our eyes is one less.
        let Some(stat) = Stat::of(pid).filter(|stat| stat.runs() && stat.started >= runner.started) else {
            continue;
        };
        candidates.push((stat, pid != runner.pid && carries(pid, tag)));
    }
    let session_is_ours = candidates.iter().any(|(stat, ours)| *ours && stat.session == runner.pid);
    let ours = |(stat, carries): &(Stat, bool)| {
        *carries || session_is_ours && stat.session == runner.pid && stat.pid != runner.pid
    };
    Ok(candidates.iter().filter(|candidate| ours(candidate)).map(|(stat, _)| *stat).collect())
}

/// Its environment, as it was started, names the attempt.
fn carries(pid: i32, tag: SubmissionTag) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    let (job, attempt) = (format!("JOBGATE_JOB_ID={}", tag.job), format!("JOBGATE_ATTEMPT={}", tag.attempt));
    let holds =
        |variable: &str| environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes());
    holds(&job) && holds(&attempt)
}

/// Kills the process with this pid if it is the one started then; whether it was.
fn kill_exactly(pid: i32, started: u64) -> bool {
    let Some(fd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return false;
    };
    // The pidfd pins the process: if the pid still shows the one we mean, the pidfd stands for it.
    let same = Stat::of(pid).is_some_and(|stat| stat.started == started);
    same && pidfd_send_signal(&fd, Signal::KILL).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobgate_shared::domain::JobId;
    use std::process::{Child, Command};

    struct Ended(Child);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    fn sleeper(environment: &[(&str, &str)]) -> Ended {
        let mut command = Command::new("sleep");
        Ended(command.arg("600").env_clear().envs(environment.iter().copied()).spawn().unwrap())
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let line = b"7 (a ) (b) S 1 7 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1";
        assert_eq!(Stat::parse(7, line), Some(Stat { pid: 7, state: b'S', session: 42, started: 12345 }));
        assert_eq!(Stat::parse(7, b"7 (cut"), None);
    }

    #[test]
    fn a_pid_that_is_another_process_now_is_not_signalled() {
        let mut child = sleeper(&[]);
        let pid = child.0.id().cast_signed();
        let started = Stat::of(pid).unwrap().started;
        assert!(!kill_exactly(pid, started + 1));
        assert!(!kill_exactly(pid, started - 1));
        assert!(child.0.try_wait().unwrap().is_none());
        assert!(kill_exactly(pid, started));
        assert!(!child.0.wait().unwrap().success());
        assert!(!kill_exactly(pid, started));
    }

    #[test]
    fn only_what_carries_the_attempt_is_killed() {
        let tag = SubmissionTag { job: JobId::generate(), attempt: 2 };
        let job = tag.job.to_string();
        let before = ProcessMark::of_self().unwrap();
        let runner = ProcessMark { pid: i32::MAX, ..before };
        let mut ours = sleeper(&[("JOBGATE_JOB_ID", &job), ("JOBGATE_ATTEMPT", "2")]);
        let mut other_attempt = sleeper(&[("JOBGATE_JOB_ID", &job), ("JOBGATE_ATTEMPT", "1")]);
        // It may not have become `sleep` yet, with the environment it was given.
        while !carries(ours.0.id().cast_signed(), tag) {
            std::thread::yield_now();
        }
        // Who has no time to wait finds it gone the next time.
        let no_wait = end_leftovers(&runner, tag, Instant::now()).unwrap();
        assert_eq!(no_wait, Leftovers { killed: 1, all_gone: false });
        let wait = || Instant::now() + KILL_SETTLES;
        assert!(end_leftovers(&runner, tag, wait()).unwrap().all_gone);
        ours.0.wait().unwrap();
        assert!(other_attempt.0.try_wait().unwrap().is_none());
        let boot = "another".to_owned();
        let elsewhere = ProcessMark { world: World { boot, ..runner.world.clone() }, ..runner };
        let one = SubmissionTag { attempt: 1, ..tag };
        let nothing = Leftovers { killed: 0, all_gone: true };
        assert_eq!(end_leftovers(&elsewhere, one, wait()).unwrap(), nothing);
        assert!(other_attempt.0.try_wait().unwrap().is_none());
    }
}
