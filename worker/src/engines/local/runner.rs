//! The runner: the small process that starts one job, stays with it and writes down how it ended, whatever becomes of the
//! worker. It knows the spool and nothing else: no configuration, no runtime, no network.

use super::{
    attempt::{Attempt, Token},
    cgroup::Cgroup,
    cpus, exec,
    output::Pump,
    process::ProcessMark,
    records::{RunSpec, RunnerRecord},
    spool::{Nonce, Place, Spool},
    tend::{Signals, Tended, Tending, Why, end_children},
};
use anyhow::Context as _;
use chrono::{DateTime, Utc};
use jobgate_shared::{
    clock::{Clock as _, SystemClock},
    domain::{Ending, Observation},
    failpoint,
};
use rustix::io::Errno;
use std::{
    ffi::OsString,
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// How to start a runner: this very binary, told to be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerCommand {
    /// The binary; `/proc/self/exe` is the one that asks, even after an upgrade has replaced its file.
    pub program: PathBuf,
    /// The arguments that make its `main` call [`local_runner_main`] with the ones after them.
    pub args: Vec<OsString>,
}

/// The exit code of a runner that found its job begun, canceled or gone.
pub(super) const NOT_MINE: u8 = 125;
/// What the runner's own environment says of its job, so that a search for the job's processes finds the second stage.
const IDENTITY: [&str; 2] = ["JOBGATE_JOB_ID", "JOBGATE_ATTEMPT"];

/// What `main` becomes when it is started as a runner. To be called before any runtime or thread is made.
///
/// `args` are those after [`RunnerCommand::args`]: `run <spool> <tag> <nonce> <runner args…>`, or `exec …` from a runner.
pub fn local_runner_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let Some(words) = Words::parse(&args) else { return ExitCode::from(2) };
    let answer = match words.mode {
        Mode::Run { again } => run(words.spool, words.place, again),
        Mode::Exec { runner, cpus } => {
            Spool::enter(words.spool).and_then(|spool| exec::second_stage(&spool, words.place, runner, cpus))
        }
    };
    answer.unwrap_or_else(|error| {
        // Nobody listens to a runner; what it has to say lies beside its job, and if that cannot be, it is lost.
        let attempt = Spool::enter(words.spool).and_then(|spool| Ok(spool.attempt(words.place)?));
        if let Ok(Some(attempt)) = attempt {
            drop(attempt.write_last_words(&format!("{error:#}")));
        }
        ExitCode::FAILURE
    })
}

struct Words<'a> {
    spool: &'a Path,
    place: Place,
    mode: Mode<'a>,
}

enum Mode<'a> {
    Run { again: &'a [OsString] },
    Exec { runner: i32, cpus: &'a str },
}

impl<'a> Words<'a> {
    fn parse(args: &'a [OsString]) -> Option<Self> {
        let [mode, spool, tag, nonce, rest @ ..] = args else { return None };
        let place = Place { tag: tag.to_str()?.parse().ok()?, nonce: Nonce::parse(nonce.to_str()?)? };
        let mode = match mode.to_str()? {
            "run" => Mode::Run { again: rest },
            "exec" => {
                let [runner, cpus] = rest else { return None };
                Mode::Exec { runner: runner.to_str()?.parse().ok()?, cpus: cpus.to_str()? }
            }
            _ => return None,
        };
        Some(Self { spool: Path::new(spool), place, mode })
    }
}

/// The command that starts a runner for `place`.
pub(super) fn command(runner: &RunnerCommand, spool: &Path, place: Place) -> Command {
    let mut command = Command::new(&runner.program);
    command.args(&runner.args).args(words("run", spool, place)).args(&runner.args);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    failpoint::hand_down(&mut command);
    command
}

fn words(mode: &str, spool: &Path, place: Place) -> [OsString; 4] {
    [mode.into(), spool.into(), place.tag.to_string().into(), place.nonce.to_string().into()]
}

/// One job from its start token to its exit.
fn run(path: &Path, place: Place, again: &[OsString]) -> anyhow::Result<ExitCode> {
    close_inherited().context("inherited files")?;
    // Out of the worker's session: neither its terminal nor a signal to its group ends a job.
    match rustix::process::setsid() {
        Ok(_) | Err(Errno::PERM) => {}
        Err(error) => return Err(error).context("setsid"),
    }
    let signals = Signals::listen().context("signals")?;
    let spool = Spool::enter(path)?;
    let Some(attempt) = spool.attempt(place)? else { return Ok(ExitCode::from(NOT_MINE)) };
    // Before the token, so that whoever finds the token taken finds this runner, or knows that it is gone.
    let control = attempt.control().context("control")?;
    let Some(spec) = attempt.spec()? else { return Ok(ExitCode::from(NOT_MINE)) };
    anyhow::ensure!(!signals.terminated(), "told to end before it began");
    failpoint::pass("runner.ready");
    if !begins(&spool, place, &attempt).context("start token")? {
        return Ok(ExitCode::from(NOT_MINE));
    }
    failpoint::pass("runner.token");
    let began = match attempt.token()? {
        Some(Token::Runner { at }) => at,
        Some(Token::Tombstone { .. }) | None => anyhow::bail!("the start token changed"),
    };
    let known = attempt.write_runner(&RunnerRecord { runner: ProcessMark::of_self()? });
    failpoint::pass("runner.known");
    let observed = match known {
        // On a full disk, say. Nothing has begun, so nobody needs to find it; but the token is spent.
        Err(error) => {
            ended(Ending::Failed, None, Some(format!("cannot be run: its runner's record: {error}")), None)
        }
        Ok(()) if attempt.is_cancel_asked()? => {
            ended(Ending::Canceled, None, Some("canceled before it began".to_owned()), None)
        }
        Ok(()) => {
            let cgroup = spec.cgroup.as_ref().map(|group| Cgroup::at(group, &place.submission_id()));
            let mut work = Begun { spool: &spool, place, attempt: &attempt, spec, cgroup, again };
            match work.run(&control, &signals, began) {
                Ok(end) => end,
                Err(error) => {
                    // What has begun must not go on after it is said to have ended.
                    end_children(work.cgroup.as_ref())?;
                    ended(Ending::Failed, None, Some(format!("cannot be run: {error:#}")), Some(began))
                }
            }
        }
    };
    failpoint::pass("runner.ended");
    write_exit(&attempt, &observed)?;
    failpoint::pass("runner.exited");
    spool.ring().context("bell")?;
    Ok(ExitCode::SUCCESS)
}

/// Closes every descriptor but the standard three. Whatever started the worker may have left it some, open across exec: a job
/// must not get them, nor keep whoever waits for their end waiting. Called before this process has opened anything.
fn close_inherited() -> io::Result<()> {
    let mut inherited = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        inherited.extend(number.filter(|number| *number > 2));
    }
    for number in inherited {
        match nix::unistd::close(number) {
            // The listing itself was one of them.
            Ok(()) | Err(nix::errno::Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Takes the start token. One made in a directory that is being removed is none: see the engine's head.
fn begins(spool: &Spool, place: Place, attempt: &Attempt) -> io::Result<bool> {
    Ok(attempt.take_start()? && spool.holds(place, attempt)?)
}

/// How often, at one-second intervals, the end is tried to be written: a full disk may be cleared.
const EXIT_TRIES: u32 = 60;

fn write_exit(attempt: &Attempt, end: &Observation) -> anyhow::Result<()> {
    for _ in 1..EXIT_TRIES {
        if attempt.write_exit(end).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    attempt.write_exit(end).with_context(|| format!("could not write its end, {end:?}"))
}

/// An attempt whose start token is ours.
struct Begun<'a> {
    spool: &'a Spool,
    place: Place,
    attempt: &'a Attempt,
    spec: RunSpec,
    cgroup: Option<Cgroup>,
    again: &'a [OsString],
}

impl Begun<'_> {
    fn run(
        &mut self,
        control: &OwnedFd,
        signals: &Signals,
        began: DateTime<Utc>,
    ) -> anyhow::Result<Observation> {
        // Whoever of the job loses its parent becomes a child of this process, and is found at the end.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("subreaper")?;
        if let Some(cgroup) = &self.cgroup {
            cgroup.make(self.spec.memory_bytes).context("its cgroup")?;
        }
        let processors = match self.spec.cpus {
            Some(wanted) => cpus::take(self.spool, wanted).context("its processors")?,
            None => None,
        };
        let cpus = processors.as_ref().map(cpus::Processors::to_argument).unwrap_or_default();
        let stdin = self.lay_out()?;
        let files = [self.attempt.create_new("stdout")?, self.attempt.create_new("stderr")?];
        let mut child = self.second_stage(&cpus, stdin).spawn().context("its process")?;
        failpoint::pass("runner.child");
        let pipes = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
        let pumps = pipes
            .into_iter()
            .zip(files)
            .map(|(pipe, file)| Ok(Pump::new(pipe.context("no pipe")?, file, self.spec.log_limit)?));
        let pumps = pumps.collect::<anyhow::Result<Vec<_>>>()?;
        let tending = Tending {
            attempt: self.attempt,
            control,
            signals,
            cgroup: self.cgroup.as_ref(),
            pumps,
            deadline: self.spec.time_limit.and_then(|limit| Instant::now().checked_add(limit)),
            kill_grace: self.spec.kill_grace,
        };
        self.judge(&tending.tend(child)?, began)
    }

    /// Puts the job's own files in place; its standard input, open.
    fn lay_out(&mut self) -> anyhow::Result<Stdio> {
        if self.spec.working_dir.is_none() {
            self.attempt.make_dir("work").context("its directory")?;
        }
        if let Some(script) = self.spec.script.take() {
            self.attempt.create_new("script")?.write_all(script.as_bytes()).context("its script")?;
        }
        let Some(text) = self.spec.stdin.take() else { return Ok(Stdio::null()) };
        self.attempt.create_new("stdin")?.write_all(text.as_bytes()).context("its standard input")?;
        Ok(self.attempt.open_existing("stdin")?.context("its standard input is gone")?.into())
    }

    fn second_stage(&self, cpus: &str, stdin: Stdio) -> Command {
        let mut command = Command::new("/proc/self/exe");
        let me = rustix::process::getpid().to_string();
        command.args(self.again).args(words("exec", self.spool.path(), self.place)).args([&me, cpus]);
        let identity = IDENTITY.iter().filter_map(|name| self.spec.env.get_key_value(*name));
        command.env_clear().envs(identity);
        failpoint::hand_down(&mut command);
        command.process_group(0).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn judge(&self, tended: &Tended, began: DateTime<Utc>) -> anyhow::Result<Observation> {
        let code = tended.status.code();
        let (ending, exit_code, mut reason) = match tended.why {
            Some(Why::Canceled) => (Ending::Canceled, code, Some("canceled".to_owned())),
            Some(Why::TimedOut) => {
                let limit = self.spec.time_limit.unwrap_or_default().as_secs();
                (Ending::TimedOut, code, Some(format!("its time limit of {limit} s was up")))
            }
            Some(Why::Terminated) => {
                let why = "its runner was told to end (SIGTERM), as when the host shuts down";
                (Ending::Failed, code, Some(why.to_owned()))
            }
            None => match (self.attempt.failure()?, code) {
                (Some(failure), _) => (Ending::Failed, Some(failure.exit_code), Some(failure.reason)),
                (None, Some(0)) => (Ending::Finished, Some(0), None),
                (None, Some(code)) => (Ending::Failed, Some(code), Some(format!("exit code {code}"))),
                (None, None) if tended.out_of_memory => {
                    (Ending::Failed, None, Some("out of memory".to_owned()))
                }
                (None, None) => {
                    let signal = tended.status.signal().unwrap_or_default();
                    (Ending::Failed, None, Some(format!("killed by {}", signal_name(signal))))
                }
            },
        };
        if tended.left_something {
            let note = "some of its processes could not be killed";
            reason = Some(reason.map_or_else(|| note.to_owned(), |reason| format!("{reason}; {note}")));
        }
        Ok(ended(ending, exit_code, reason, Some(began)))
    }
}

fn ended(
    ending: Ending,
    exit_code: Option<i32>,
    reason: Option<String>,
    began: Option<DateTime<Utc>>,
) -> Observation {
    Observation::Ended { ending, exit_code, reason, began, at: Some(SystemClock.now()) }
}

fn signal_name(number: i32) -> String {
    let names = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (13, "SIGPIPE"),
        (14, "SIGALRM"),
        (15, "SIGTERM"),
        (24, "SIGXCPU"),
        (25, "SIGXFSZ"),
        (31, "SIGSYS"),
    ];
    match names.iter().find(|(n, _)| *n == number) {
        Some((_, name)) => format!("signal {number} ({name})"),
        None => format!("signal {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobgate_shared::domain::{JobId, SubmissionTag};
    use std::{collections::BTreeMap, fs};

    fn spec() -> RunSpec {
        RunSpec {
            command: vec!["true".into()],
            env: BTreeMap::new(),
            working_dir: None,
            stdin: None,
            script: None,
            memory_bytes: None,
            cpus: None,
            time_limit: None,
            log_limit: 0,
            kill_grace: Duration::ZERO,
            umask: 0o022,
            cgroup: None,
        }
    }

    #[test]
    fn a_runner_caught_in_a_removal_does_not_begin_though_it_gets_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool")).unwrap();
        let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
        let place = spool.create(tag, &spec()).unwrap();
        let caught = spool.attempt(place).unwrap().unwrap();
        // As far as a removal has come when it has deleted the token and not yet the directory.
        let trash = spool.path().join("trash").join(place.nonce.to_string());
        fs::rename(spool.path().join(place.path()), &trash).unwrap();
        assert!(!begins(&spool, place, &caught).unwrap());
        assert!(trash.join("start").exists(), "it had the token");
        // Another life under the same tag is not its own either.
        fs::remove_file(trash.join("start")).unwrap();
        fs::remove_dir(spool.path().join(tag.to_string())).unwrap();
        let other = spool.create(tag, &spec()).unwrap();
        assert_ne!(other, place);
        assert!(!begins(&spool, place, &caught).unwrap());
        let own = spool.attempt(other).unwrap().unwrap();
        assert!(begins(&spool, other, &own).unwrap());
        assert!(!begins(&spool, other, &own).unwrap(), "once");
    }

    #[test]
    fn a_removed_attempt_cannot_be_begun_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool")).unwrap();
        let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
        let place = spool.create(tag, &spec()).unwrap();
        let caught = spool.attempt(place).unwrap().unwrap();
        assert!(caught.take_tombstone().unwrap());
        spool.remove(place).unwrap();
        assert!(
            begins(&spool, place, &caught).is_err(),
            "nothing can be made in a directory that is no more"
        );
        assert!(spool.attempt(place).unwrap().is_none() && spool.under(tag).unwrap().is_none());
    }
}
