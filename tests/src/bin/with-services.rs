//! `with-services [--] COMMAND ARG…`: runs a command with PostgreSQL and RabbitMQ beside it.
//!
//! Starts both once, tells the command their addresses (`jobgate_tests::environment`), stops them afterwards and returns
//! the command's exit code. A process the command leaves behind is killed and turns success into failure.
#![allow(clippy::print_stderr, reason = "a command of the terminal; its command owns the standard output")]

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use jobgate_tests::containment::{self, Interrupts};
use jobgate_tests::environment::{AMQP_URL, DATABASE_URL, MANAGEMENT_URL};
use jobgate_tests::services::{Postgres, RabbitMq};
use tokio::process::Command;

/// The shell's code for a command that could not be run, used for all failures of our own.
const OURS: u8 = 125;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<OsString> = env::args_os().skip(1).skip_while(|word| word == "--").collect();
    run(words).await.map_or_else(
        |error| {
            eprintln!("with-services: {error:#}");
            ExitCode::from(OURS)
        },
        ExitCode::from,
    )
}

async fn run(words: Vec<OsString>) -> Result<u8> {
    let (program, arguments) = words.split_first().context("usage: with-services [--] COMMAND ARG…")?;
    let mut interrupted = Interrupts::install()?;
    let begin = Instant::now();
    let (mut postgres, mut rabbitmq) = tokio::select! {
        started = async { tokio::try_join!(Postgres::start(), RabbitMq::start()) } => started?,
        code = interrupted.next() => return Ok(code),
    };
    eprintln!(
        "with-services: {} and {} after {:.1?}",
        postgres.admin_url(),
        rabbitmq.amqp_url(),
        begin.elapsed()
    );

    let mut command = Command::new(program);
    command.args(arguments).env(DATABASE_URL, postgres.admin_url());
    command.env(AMQP_URL, rabbitmq.amqp_url()).env(MANAGEMENT_URL, rabbitmq.management_url());
    let outcome = containment::run(command, interrupted.next()).await?;

    let mut faults =
        outcome.leftovers.iter().map(|name| format!("left behind, killed: {name}")).collect::<Vec<_>>();
    if !postgres.is_running()? {
        faults.push("PostgreSQL ended during the run".into());
    }
    if !rabbitmq.is_running()? {
        faults.push("RabbitMQ ended during the run".into());
    }
    for fault in &faults {
        eprintln!("with-services: {fault}");
    }
    Ok(if outcome.code == 0 && !faults.is_empty() { 1 } else { outcome.code })
}
