//! What can be typed: commands and flags. What they do lies with each command.

use crate::{
    bench::Bench,
    commands::{Act, Clusters, List, Logs, Queues, Show, Submit, Token, Update, Workers},
    exit,
    run::Run,
};
use clap::{Parser, Subcommand};
use std::{net::SocketAddr, path::PathBuf};

/// One line, so that it says both defaults.
const DATA_DIR_HELP: &str =
    "Where this host keeps what must outlive a process [env: JOBGATE_DATA_DIR] [default: jobgate-data]";

/// A gateway for batch jobs: HTTP in front, any resource manager behind
#[derive(Debug, Parser)]
#[command(name = "jobgate", version, after_help = exit::HELP, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[arg(long, global = true, value_name = "FILE", help = "Configuration file [env: JOBGATE_CONFIG]")]
    pub(crate) config: Option<PathBuf>,
    #[arg(long, global = true, value_name = "DIR", help = DATA_DIR_HELP)]
    pub(crate) data_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole gateway in one process, for this host
    Serve(Listen),
    /// Run the jobs in a file to their end, on this host
    Run(Run),
    /// Run the HTTP interface with its dispatcher; needs PostgreSQL and RabbitMQ
    Api(Listen),
    /// Run a worker: claims jobs, submits and watches them; needs PostgreSQL and RabbitMQ
    Worker,
    /// Run a recorder: writes down what workers tell; needs PostgreSQL and RabbitMQ
    Recorder,
    /// Bring the schema of PostgreSQL up to date
    Migrate,
    /// Submit a job given as a command, or the jobs in a file
    Submit(Submit),
    /// List jobs, newest first
    #[command(visible_alias = "ls")]
    List(List),
    /// Show jobs with their history
    Show(Show),
    /// Show what a job printed
    Logs(Logs),
    /// Cancel jobs: end them, or never begin them
    Cancel(Act),
    /// Hold jobs that have not begun
    Hold(Act),
    /// Release held jobs
    Release(Act),
    /// Run ended jobs once more
    Retry(Act),
    /// Report on a running job: how far it is, what it does, what it made; inside a job, on itself
    Update(Update),
    /// Show how many jobs stand where, and how long the oldest has waited
    Queues(Queues),
    /// Show workers
    Workers(Workers),
    /// Show clusters; pause, resume or limit one
    Clusters(Clusters),
    /// Make, list and revoke tokens
    Token(Token),
    /// Measure the gateway on this machine
    Bench(Bench),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// It is a process of the service, whose log operators read; anything else is somebody at a terminal.
    pub(crate) fn is_role(&self) -> bool {
        match self {
            Self::Serve(_) | Self::Api(_) | Self::Worker | Self::Recorder | Self::Migrate => true,
            Self::Run(_)
            | Self::Submit(_)
            | Self::List(_)
            | Self::Show(_)
            | Self::Logs(_)
            | Self::Cancel(_)
            | Self::Hold(_)
            | Self::Release(_)
            | Self::Retry(_)
            | Self::Update(_)
            | Self::Queues(_)
            | Self::Workers(_)
            | Self::Clusters(_)
            | Self::Token(_)
            | Self::Bench(_)
            | Self::Completion { .. } => false,
        }
    }

    /// It serves the API at the configured address.
    pub(crate) fn serves(&self) -> bool {
        matches!(self, Self::Serve(_) | Self::Api(_))
    }

    /// Where it is to listen, if a flag says so.
    pub(crate) fn listen(&self) -> Option<SocketAddr> {
        match self {
            Self::Serve(place) | Self::Api(place) => place.listen,
            Self::Run(_)
            | Self::Worker
            | Self::Recorder
            | Self::Migrate
            | Self::Submit(_)
            | Self::List(_)
            | Self::Show(_)
            | Self::Logs(_)
            | Self::Cancel(_)
            | Self::Hold(_)
            | Self::Release(_)
            | Self::Retry(_)
            | Self::Update(_)
            | Self::Queues(_)
            | Self::Workers(_)
            | Self::Clusters(_)
            | Self::Token(_)
            | Self::Bench(_)
            | Self::Completion { .. } => None,
        }
    }
}

/// Where a role with an HTTP interface listens.
#[derive(Debug, clap::Args)]
pub(crate) struct Listen {
    #[arg(
        long,
        value_name = "ADDR",
        help = "Address and port [env: JOBGATE_LISTEN] [default: 127.0.0.1:7070]"
    )]
    pub(crate) listen: Option<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn every_command_and_flag_is_well_formed_and_explained() {
        Arguments::command().debug_assert();
        for command in Arguments::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for flag in command.get_arguments() {
                assert!(flag.get_help().is_some(), "{} {}", command.get_name(), flag.get_id());
            }
        }
    }
}
