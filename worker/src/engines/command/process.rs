//! Runs one command of the scheduler: its own environment, its own process group, a bound on what it prints. A run that is
//! given up, because its caller's time is over, takes the whole group with it.

use super::{
    answer::shown,
    config::{Call, Settings},
};
use crate::engine::EngineError;
use anyhow::{Context as _, anyhow};
use jobgate_shared::domain::ClusterName;
use rustix::process::{Pid, Signal, kill_process_group};
use std::process::{ExitStatus, Stdio};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

/// How a command answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// It did what it was told; what it printed.
    Done(String),
    /// It does not know the id, or none of them.
    Unknown,
    /// It will never take the job; its words.
    Refused(String),
    /// It takes no more at present; its words.
    NotNow(String),
}

/// A process group that is killed unless it is done.
struct Group<'a> {
    leader: Option<Pid>,
    cluster: &'a ClusterName,
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            // Not waited for, so the number is still its own. What has ended meanwhile needs no signal.
            kill_process_group(leader, Signal::KILL).ok();
            metrics::counter!("jobgate_commands_cut_off_total", "cluster" => self.cluster.to_string())
                .increment(1);
        }
    }
}

/// Runs `argv` and reads its answer; anything unexpected is `Away`.
pub(super) async fn run(
    settings: &Settings,
    cluster: &ClusterName,
    call: &Call,
    argv: &[String],
    input: Option<&str>,
) -> Result<Answer, EngineError> {
    let program = argv.first().map_or("", String::as_str);
    let away = |error: anyhow::Error| EngineError::Away(error.context(program.to_owned()));
    let (status, output, errors) = ended(settings, cluster, argv, input).await.map_err(away)?;
    let said = format!("{errors}\n{output}");
    let says = |pattern: &Option<super::config::Pattern>| {
        pattern.as_ref().is_some_and(|pattern| pattern.regex.is_match(&said))
    };
    if status.success() {
        return Ok(Answer::Done(output));
    }
    let is = |statuses: &[i32]| status.code().is_some_and(|code| statuses.contains(&code));
    if says(&call.done) {
        Ok(Answer::Done(String::new()))
    } else if is(&call.unknown_status) || says(&call.unknown) {
        Ok(Answer::Unknown)
    } else if is(&call.not_now_status) || says(&call.not_now) {
        Ok(Answer::NotNow(said.trim().chars().take(1000).collect()))
    } else if is(&call.refused_status) || says(&call.refused) {
        Ok(Answer::Refused(said.trim().chars().take(1000).collect()))
    } else {
        Err(away(anyhow!("{status}: {}", shown(&said))))
    }
}

async fn ended(
    settings: &Settings,
    cluster: &ClusterName,
    argv: &[String],
    input: Option<&str>,
) -> anyhow::Result<(ExitStatus, String, String)> {
    crate::pace::request(cluster);
    let mut words = settings.prefix.iter().chain(argv);
    let mut command = Command::new(words.next().context("no command")?);
    command.args(words).env_clear().env("PATH", settings.path());
    for name in &settings.pass_env {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.envs(&settings.env).current_dir("/").process_group(0).kill_on_drop(true);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let leader = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let mut group = Group { leader, cluster };
    let stdin = child.stdin.take();
    let give = async {
        if let (Some(mut stdin), Some(text)) = (stdin, input) {
            // One that does not read it to its end says by its exit status what that means.
            stdin.write_all(text.as_bytes()).await.ok();
        }
    };
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let limit = settings.max_output;
    let ((), output, errors) = tokio::join!(give, capped(output, limit), capped(errors, limit));
    let (output, errors) = (output?, errors?);
    let status = child.wait().await?;
    group.leader = None;
    Ok((status, output, errors))
}

/// All of a stream, unless it is more than `limit`. The rest of one that is more is let pass, so that the others end.
async fn capped(stream: Option<impl AsyncRead + Unpin>, limit: u64) -> anyhow::Result<String> {
    let Some(stream) = stream else { return Ok(String::new()) };
    let mut stream = stream.take(limit + 1);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > limit {
        tokio::io::copy(&mut stream.into_inner(), &mut tokio::io::sink()).await?;
        anyhow::bail!("it printed more than {limit} bytes");
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
