//! The client commands: each makes requests of a gateway and shows what it answers. None knows more than HTTP.

mod act;
mod fleet;
mod list;
mod logs;
mod select;
mod show;
mod submit;
mod token;
mod update;

pub(crate) use act::{Act, bulk};
pub(crate) use fleet::{Clusters, Queues, Workers};
pub(crate) use list::{List, Pages, ran};
pub(crate) use logs::Logs;
pub(crate) use show::Show;
pub(crate) use submit::{Submit, post_batch};
pub(crate) use token::Token;
pub(crate) use update::Update;

use crate::{
    client::{Client, ClientError, JobDoc, Request, Target},
    config::Config,
    render::{Format, Output},
};
use anyhow::Context as _;
use jobgate_shared::domain::{JobId, Project};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{path::PathBuf, time::Duration};

const SERVER_HELP: &str = "The gateway's address [env: JOBGATE_SERVER] \
    [default: the one that runs over the data directory, or http://127.0.0.1:7070]";

const CA_HELP: &str = "PEM file of authorities to trust beside this host's own, for https \
    [env: JOBGATE_CA_CERTIFICATE]";

/// How every client command reaches its gateway and shows what it hears.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Connection {
    #[arg(long, value_name = "URL", help = SERVER_HELP)]
    server: Option<String>,
    #[arg(long, value_name = "FILE", help = CA_HELP)]
    ca_certificate: Option<PathBuf>,
    /// Act on this project only; for a token that opens several
    #[arg(long, value_name = "PROJECT")]
    project: Option<Project>,
    /// How to show results
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// A gateway to talk to and a place to write to.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) output: Output,
}

impl Connection {
    /// Sets a session up; nothing is sent yet.
    pub(crate) fn open(&self, config: &Config) -> anyhow::Result<Session> {
        let target = Target::find(self.server.as_deref(), config)?.trusting(self.ca_certificate.clone());
        let client = Client::new(target)?.for_project(self.project.clone());
        Ok(Session { client, output: Output::stdout(self.output) })
    }
}

/// A document as the type that tables are made of.
pub(crate) fn read<T: DeserializeOwned>(document: &Value) -> anyhow::Result<T> {
    T::deserialize(document).context("the gateway answered with a document of another shape")
}

/// The items of a listing that comes in one piece.
pub(crate) fn items(document: &Value) -> &[Value] {
    let listed = document.get("items").unwrap_or(document);
    listed.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Waits until a job has ended, however long that takes and however often the gateway goes away meanwhile.
pub(crate) async fn wait_for_end(client: &Client, job: JobId) -> anyhow::Result<Value> {
    const TURN: Duration = Duration::from_secs(30);
    loop {
        match client.send(Request::get(format!("/v1/jobs/{job}")).waiting(TURN)).await {
            Ok(document) => {
                if read::<JobDoc>(&document)?.has_ended() {
                    return Ok(document);
                }
            }
            // The request itself was patient; whoever waits for a job is more so.
            Err(error) if error.is_transient() => tracing::warn!(%error, "still waiting"),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Tells on standard error; a command whose standard error is closed goes on.
pub(crate) fn tell(line: impl std::fmt::Display) {
    use std::io::Write as _;
    if writeln!(std::io::stderr(), "{line}").is_err() {
        tracing::trace!("standard error is closed");
    }
}

/// The same request may succeed later; whether this one did something is not known.
fn is_transient(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ClientError>().is_some_and(ClientError::is_transient)
}

/// A refusal is an answer about one job; anything else ends the command.
fn refusal(error: ClientError) -> anyhow::Result<String> {
    match error {
        ClientError::Refused(problem) if !problem.is_transient() && problem.status != 401 => {
            Ok(problem.to_string())
        }
        error @ (ClientError::Refused(_)
        | ClientError::Unreachable { .. }
        | ClientError::Unreadable { .. }
        | ClientError::Address { .. }
        | ClientError::Token { .. }) => Err(error.into()),
    }
}
