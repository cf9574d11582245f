//! `jobgate cancel`, `hold`, `release` and `retry`: on jobs by id, or on all a filter means.

use super::{Connection, Session, read, refusal, select::Select, tell};
use crate::{
    client::{Client, JobDoc, Request},
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
            // Each of them does nothing when it is done already.
            let request = Request::post(format!("/v1/jobs/{job}/{}", verb(command))).repeatable();
            match client.send(request).await {
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
                    let why = refusal(error)?;
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
        let request = Request::post(format!("/v1/jobs/{}", verb(command))).query(query.clone());
        let document = client.send(request.query(everything).query(cursor).repeatable()).await?;
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
