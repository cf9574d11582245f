//! The second stage: the process that becomes the job's command. It takes on the job's limits, cleans itself of everything
//! inherited, and executes the command in its own place; what prevents that it writes down, exactly.

use super::{
    attempt::Attempt,
    cgroup::Cgroup,
    cpus,
    records::{Failure, RunSpec},
    spool::{Place, Spool},
};
use anyhow::Context as _;
use jobgate_shared::failpoint;
use rustix::{
    fs::Mode,
    process::{Pid, Resource, Rlimit, Signal},
};
use std::{
    ffi::OsString,
    fs,
    io::{self, ErrorKind},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// The exit code shells use for a command that is not there; for one that is there and cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_RUNNABLE: i32 = 126;

/// How much sooner than the worker and its runner a job is chosen when the host runs out of memory (−1000 to 1000).
const OOM_SCORE_ADJ: &str = "500";

/// Becomes the job's command; returns only if it could not.
pub(super) fn second_stage(spool: &Spool, place: Place, runner: i32, cpus: &str) -> anyhow::Result<ExitCode> {
    // The job must not outlive its runner, which may have died before this line.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(runner) {
        return Ok(ExitCode::FAILURE);
    }
    failpoint::pass("exec.begins");
    let attempt = spool.attempt(place)?.context("the attempt is gone")?;
    let failure = match take_on(&attempt, place, cpus) {
        Ok(spec) => {
            failpoint::pass("exec.ready");
            become_command(&spool.path().join(place.path()), &spec)
        }
        Err(error) => Failure { exit_code: NOT_RUNNABLE, reason: format!("cannot be run: {error:#}") },
    };
    attempt.write_failure(&failure)?;
    Ok(ExitCode::from(u8::try_from(failure.exit_code).unwrap_or(u8::MAX)))
}

/// Limits and rights of the job, from here to its end.
fn take_on(attempt: &Attempt, place: Place, cpus: &str) -> anyhow::Result<RunSpec> {
    let spec = attempt.spec()?.context("its spec is gone")?;
    let cgroup = spec.cgroup.as_ref().map(|delegated| Cgroup::at(delegated, &place.submission_id()));
    if let Some(cgroup) = &cgroup {
        cgroup.join().context("its cgroup")?;
    }
    // Not every container lets a process change this; it only orders who goes first.
    match fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
        Err(error)
            if !matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
        {
            return Err(error).context("oom_score_adj");
        }
        Ok(()) | Err(_) => {}
    }
    cpus::stay_on(cpus).context("its processors")?;
    if let Some(bytes) = spec.memory_bytes.filter(|_| !cgroup.is_some_and(|cgroup| cgroup.limits_memory())) {
        // What a process has written to, or may. The size of its address space would be the stricter measure, but many
        // runtimes reserve address space they never use.
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        rustix::process::setrlimit(Resource::Data, limit).context("its memory limit")?;
    }
    rustix::thread::set_no_new_privs(true).context("no_new_privs")?;
    rustix::process::umask(Mode::from_raw_mode(spec.umask));
    attempt.drop_spec().context("its spec")?;
    Ok(spec)
}

/// Only failure returns.
fn become_command(path: &Path, spec: &RunSpec) -> Failure {
    let dir = spec.working_dir.clone().unwrap_or_else(|| path.join("work"));
    if let Err(error) = std::env::set_current_dir(&dir) {
        let reason = format!("working directory {}: {}", dir.display(), plain(&error));
        let missing = error.kind() == ErrorKind::NotFound;
        return Failure { exit_code: if missing { NOT_FOUND } else { NOT_RUNNABLE }, reason };
    }
    let Some(mut command) = command(path, spec) else {
        return Failure { exit_code: NOT_FOUND, reason: "command not found: there is none".to_owned() };
    };
    let error = command.exec();
    not_run(&command.get_program().to_string_lossy(), &error)
}

/// The job's program with its arguments and its environment, and nothing else.
pub(super) fn command(path: &Path, spec: &RunSpec) -> Option<Command> {
    let (program, arguments) = spec.command.split_first()?;
    let script: Option<OsString> = spec.script.is_some().then(|| path.join("script").into());
    let mut command = Command::new(program);
    command.args(arguments).args(script).env_clear().envs(&spec.env);
    Some(command)
}

fn not_run(program: &str, error: &io::Error) -> Failure {
    let (exit_code, reason) = if error.kind() == ErrorKind::PermissionDenied {
        (NOT_RUNNABLE, format!("command not executable: {program}"))
    } else if error.kind() != ErrorKind::NotFound {
        (NOT_RUNNABLE, format!("command cannot be run: {program}: {}", plain(error)))
    } else if program.contains('/') && PathBuf::from(program).exists() {
        (NOT_FOUND, format!("command cannot be run: {program} names an interpreter that is not there"))
    } else {
        (NOT_FOUND, format!("command not found: {program}"))
    };
    Failure { exit_code, reason }
}

/// Without the number `io::Error` appends.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
