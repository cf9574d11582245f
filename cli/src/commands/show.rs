//! `jobgate show`: one job with everything about it, and how it came to stand there.

use super::{Connection, Session, items, list::ran, read};
use crate::{
    client::{HistoryDoc, JobDoc, Request},
    config::Config,
    exit::Exit,
    render::{Output, Table, clean, clean_line, stamp},
};
use jobgate_shared::{clock, domain::JobId};
use serde_json::{Value, json};

/// Shows jobs with their history
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// The jobs
    #[arg(required = true, value_name = "JOB")]
    jobs: Vec<JobId>,
    #[command(flatten)]
    connection: Connection,
}

impl Show {
    pub(crate) async fn run(self, config: &Config) -> anyhow::Result<Exit> {
        let Session { client, mut output } = self.connection.open(config)?;
        for (i, job) in self.jobs.iter().enumerate() {
            let document = client.send(Request::get(format!("/v1/jobs/{job}"))).await?;
            let history = client.send(Request::get(format!("/v1/jobs/{job}/history"))).await?;
            if output.is_json() {
                output.document(&with_history(document, &history))?;
                continue;
            }
            if i > 0 {
                output.line("")?;
            }
            show_job(&mut output, &read(&document)?)?;
            show_history(&mut output, items(&history))?;
        }
        Ok(Exit::Done)
    }
}

fn with_history(mut document: Value, history: &Value) -> Value {
    if let Some(fields) = document.as_object_mut() {
        fields.insert("history".to_owned(), json!(items(history)));
    }
    document
}

fn show_job(output: &mut Output, job: &JobDoc) -> anyhow::Result<()> {
    let mut line = |name: &str, value: Option<String>| -> anyhow::Result<()> {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            output.line(format_args!("{name:<12} {}", clean(&value)))?;
        }
        Ok(())
    };
    let when = |at: Option<chrono::DateTime<chrono::Utc>>| at.map(stamp);
    let document =
        |value: &Value| value.as_object().filter(|fields| !fields.is_empty()).map(|_| value.to_string());
    line("job", Some(job.id.clone()))?;
    line("name", Some(job.name.clone()))?;
    line("project", Some(job.project.clone()))?;
    line("cluster", Some(job.cluster.clone()))?;
    line("state", Some(job.state.clone()))?;
    line("reason", job.reason.clone())?;
    line("cancel", (job.cancel_requested && !job.has_ended()).then(|| "requested".to_owned()))?;
    line("exit code", job.exit_code.map(|code| code.to_string()))?;
    line("attempt", Some(format!("{} of {}", job.attempt, job.max_attempts)))?;
    line("priority", Some(job.priority.to_string()))?;
    line("labels", Some(job.labels.join(", ")))?;
    line("progress", job.progress.map(|percent| format!("{percent}%")))?;
    line("stage", job.stage.clone())?;
    line("message", job.message.clone())?;
    line("submission", job.submission_id.clone())?;
    line("command", job.spec.get("command").map(command_line))?;
    let rest = job.spec.as_object().map(|spec| spec.iter().filter(|(key, _)| *key != "command"));
    for (key, value) in rest.into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        line(&format!("  {key}"), Some(clean_line(&text, 500)))?;
    }
    line("inputs", document(&job.inputs))?;
    line("outputs", document(&job.outputs))?;
    line("created", when(job.created_at).map(|at| format!("{at} by {}", job.created_by)))?;
    line("runs at", when(job.run_at))?;
    line("started", when(job.started_at))?;
    line("finished", when(job.finished_at))?;
    line("ran", ran(job, clock::system().now()))
}

/// An argv as one would type it.
fn command_line(argv: &Value) -> String {
    let words = argv.as_array().map(Vec::as_slice).unwrap_or_default();
    let quoted = words.iter().filter_map(Value::as_str).map(quote);
    quoted.collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn show_history(output: &mut Output, entries: &[Value]) -> anyhow::Result<()> {
    let mut table = Table::new(["WHEN", "TRY", "FROM", "TO", "BY", "REASON"]);
    for entry in entries {
        let HistoryDoc { at, attempt, from, to, reason, by } = read(entry)?;
        let text = Option::unwrap_or_default;
        table.row(&[
            at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            attempt.to_string(),
            text(from),
            to,
            text(by),
            text(reason),
        ]);
    }
    output.line("")?;
    Ok(output.line(table)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_as_one_would_type_it() {
        assert_eq!(command_line(&json!(["sh", "-c", "echo it's", ""])), r"sh -c 'echo it'\''s' ''");
    }
}
