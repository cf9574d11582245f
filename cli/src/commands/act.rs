//! `jobgate cancel`, `hold`, `release` and `retry`: on jobs by id, or on all a filter means.

use super::{Connection, Session, read, refusal, select::Select, tell};
use crate::{
    client::{Client, ClientError, JobDoc, Request},
    config::Config,
    exit::{Exit, Usage},
    render::{clean, clean_line},
};
use jobgate_shared::{
    clock,
    domain::{Command, JobId},
};
use serde::{Deserialize, Serialize};

/// Jobs to act on
#[derive(Debug, clap::Args)]
pub(crate) struct Act {
    /// The jobs
    #[arg(value_name = "JOB")]
    jobs: Vec<JobId>,
    #[command(flatten)]
    select: Select,
    /// Every job the token's holder may act on
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    connection: Connection,
}

fn verb(command: Command) -> &'static str {
    match command {
        Command::Cancel => "cancel",
        Command::Hold => "hold",
        Command::Release => "release",
        Command::Retry => "retry",
    }
}

/// The request for a command; made again while the gateway is away, unless that could do more than was asked for.
fn request(command: Command, path: &str) -> Request {
    let request = Request::post(path);
    match command {
        // None of them does anything when it is done already, though a released job may have begun since and says so.
        Command::Cancel | Command::Hold | Command::Release => request.repeatable(),
        // A job that has failed again meanwhile would be retried again.
        Command::Retry => request,
    }
}

/// Tells of a command made once that it may have been carried out.
fn doubt(command: Command, error: anyhow::Error) -> anyhow::Error {
    let in_doubt = error.downcast_ref().is_some_and(ClientError::is_in_doubt);
    match command {
        Command::Retry if in_doubt => {
            error.context("jobs may have been retried; see how they stand before you retry them again")
        }
        Command::Cancel | Command::Hold | Command::Release | Command::Retry => error,
    }
}

impl Act {
    pub(crate) async fn run(self, command: Command, config: &Config) -> anyhow::Result<Exit> {
        let by_filter = self.all || !self.select.is_empty();
        match (self.jobs.is_empty(), by_filter) {
            (true, false) => {
                Err(Usage(format!("say which jobs to {}: by id, by filter, or --all", verb(command))).into())
            }
            (false, true) => Err(Usage("give ids or a filter, not both".to_owned()).into()),
            (false, false) => self.each(command, config).await,
            (true, true) => self.matching(command, config).await,
        }
    }

    async fn each(&self, command: Command, config: &Config) -> anyhow::Result<Exit> {
        let Session { client, mut output } = self.connection.open(config)?;
        let mut exit = Exit::Done;
        for job in &self.jobs {
            match client.send(request(command, &format!("/v1/jobs/{job}/{}", verb(command)))).await {
                Ok(document) if output.is_json() => output.document(&document)?,
                Ok(document) => {
                    let job: JobDoc = read(&document)?;
                    let on_its_way =
                        if job.cancel_requested && !job.has_ended() { ", cancel requested" } else { "" };
                    output.line(format_args!(
                        "{} {}{on_its_way}",
                        clean(&job.id),
                        clean_line(&job.state, 40)
                    ))?;
                }
                Err(error) => {
                    exit = Exit::Unwell;
                    let why = refusal(error).map_err(|error| doubt(command, error))?;
                    tell(format_args!("{job}: {why}"));
                }
            }
        }
        Ok(exit)
    }

    async fn matching(&self, command: Command, config: &Config) -> anyhow::Result<Exit> {
        let Session { client, mut output } = self.connection.open(config)?;
        let query = self.select.query(clock::system().as_ref());
        let outcome = bulk(&client, command, query, self.all).await?;
        if output.is_json() {
            output.document(&serde_json::to_value(&outcome)?)?;
        } else {
            for Refused { id, reason } in &outcome.refusals {
                tell(format_args!("{}: {}", clean(id), clean(reason)));
            }
            let BulkDoc { matched, done, refused, .. } = outcome;
            output.line(format_args!("{matched} matched, {done} done, {refused} refused"))?;
        }
        Ok(if outcome.refused == 0 { Exit::Done } else { Exit::Unwell })
    }
}

/// What became of a command for many jobs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct BulkDoc {
    /// Jobs that were meant.
    pub(crate) matched: u64,
    /// Jobs it was carried out for.
    pub(crate) done: u64,
    /// Jobs that refused.
    pub(crate) refused: u64,
    /// Some of those, and why.
    #[serde(default)]
    refusals: Vec<Refused>,
    #[serde(default, skip_serializing)]
    next_cursor: Option<String>,
}

/// A job that refused a command.
#[derive(Debug, Serialize, Deserialize)]
struct Refused {
    id: String,
    reason: String,
}

/// Carries out a command on all jobs these parameters mean, in as many requests as the gateway wants.
pub(crate) async fn bulk(
    client: &Client,
    command: Command,
    query: Vec<(&'static str, String)>,
    all: bool,
) -> anyhow::Result<BulkDoc> {
    let mut outcome = BulkDoc::default();
    loop {
        let everything = all.then(|| ("all", "true".to_owned()));
        let cursor = outcome.next_cursor.take().map(|cursor| ("cursor", cursor));
        let request = request(command, &format!("/v1/jobs/{}", verb(command))).query(query.clone());
        let answer = client.send(request.query(everything).query(cursor)).await;
        let document = answer.map_err(|error| doubt(command, error.into()))?;
        let part: BulkDoc = read(&document)?;
        outcome.matched += part.matched;
        outcome.done += part.done;
        outcome.refused += part.refused;
        outcome.refusals.extend(part.refusals);
        outcome.next_cursor = part.next_cursor;
        if outcome.next_cursor.is_none() {
            return Ok(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::canned::{Canned, answer};
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        act: Act,
    }

    const JOB: &str = "0197a3a8-7c1e-7000-8000-000000000001";

    /// How a command ends whose first answer is lost, and how often it is asked for.
    async fn unanswered(command: Command, jobs: &[&str], next: &str) -> (anyhow::Result<Exit>, usize) {
        let server = Canned::answering(vec![None, Some(answer("200 OK", next))]).await;
        let place = tempfile::tempdir().unwrap();
        let config = Config { data_dir: place.path().to_owned(), ..Config::default() };
        let line = Line::parse_from([&["x", "--server", &server.address], jobs].concat());
        let exit = line.act.run(command, &config).await;
        (exit, server.asked().len())
    }

    #[tokio::test]
    async fn a_retry_that_was_not_answered_is_not_made_again_and_left_to_whoever_asked_for_it() {
        for jobs in [[JOB].as_slice(), &["--label", "nightly"]] {
            let (exit, asked) = unanswered(Command::Retry, jobs, "{}").await;
            assert_eq!(asked, 1);
            let error = exit.unwrap_err();
            assert!(error.to_string().starts_with("jobs may have been retried"), "{error}");
        }
    }

    #[tokio::test]
    async fn what_does_nothing_when_it_is_done_already_is_made_again() {
        let job = format!(r#"{{"id":"{JOB}","state":"CANCELED"}}"#);
        for command in [Command::Cancel, Command::Hold, Command::Release] {
            let (exit, asked) = unanswered(command, &[JOB], &job).await;
            assert_eq!((exit.unwrap(), asked), (Exit::Done, 2));
        }
    }
}
