//! `drill NAME [--…]`: one outage at the size production meets it, with servers of its own. Exit code 0: what must hold held.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command of the terminal")]

use anyhow::Result;
use clap::{Parser, Subcommand};
use jobgate_tests::{
    containment::{self, Interrupts},
    drill::{Figures, flood, herd, outage, poison, silence, storm, transaction},
};
use std::{env, process::ExitCode, time::Instant};
use tokio::process::Command;
use tracing_subscriber::{EnvFilter, fmt, fmt::time::uptime};

#[derive(Debug, Parser)]
#[command(about = "Plays one outage against a gateway of real processes and says what it cost")]
struct Arguments {
    #[command(subcommand)]
    drill: Drill,
    /// Given by this program to itself.
    #[arg(long, hide = true, global = true)]
    contained: bool,
}

#[derive(Debug, Subcommand)]
enum Drill {
    /// The broker is away while jobs are posted.
    Outage(outage::Options),
    /// The database says nothing while jobs run.
    Silence(silence::Options),
    /// Very many workers begin at once on a long queue.
    Herd(herd::Options),
    /// A transaction stays open on the database.
    Transaction(transaction::Options),
    /// Status events many times in any order, with recorders killed.
    Flood(flood::Options),
    /// Hints of jobs that are over.
    Storm(storm::Options),
    /// Jobs that kill whichever worker creates them, among many that do not.
    Poison(poison::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = if arguments.contained { play(&arguments.drill).await } else { contain().await };
    ended.unwrap_or_else(|error| {
        eprintln!("drill: {error:#}");
        ExitCode::FAILURE
    })
}

/// Starts this program once more, where it accounts for every process.
async fn contain() -> Result<ExitCode> {
    let mut interrupts = Interrupts::install()?;
    let mut command = Command::new(env::current_exe()?);
    command.args(env::args_os().skip(1)).arg("--contained");
    let outcome = containment::run(command, interrupts.next()).await?;
    for leftover in &outcome.leftovers {
        eprintln!("drill: left behind, killed: {leftover}");
    }
    let clean = outcome.leftovers.is_empty() || outcome.code != 0;
    Ok(ExitCode::from(if clean { outcome.code } else { 1 }))
}

async fn play(drill: &Drill) -> Result<ExitCode> {
    let filter = EnvFilter::new("warn,jobgate_tests=info,lapin=off,sqlx=off");
    fmt().with_env_filter(filter).with_target(false).with_ansi(false).with_timer(uptime()).init();
    // No certificate is checked here; the client only wants to know whom it would ask.
    rustls::crypto::ring::default_provider().install_default().ok();
    let began = Instant::now();
    let mut interrupts = Interrupts::install()?;
    let played = async {
        match drill {
            Drill::Outage(options) => outage::run(options).await,
            Drill::Silence(options) => silence::run(options).await,
            Drill::Herd(options) => herd::run(options).await,
            Drill::Transaction(options) => transaction::run(options).await,
            Drill::Flood(options) => flood::run(options).await,
            Drill::Storm(options) => storm::run(options).await,
            Drill::Poison(options) => poison::run(options).await,
        }
    };
    let figures: Figures = tokio::select! {
        figures = played => figures?,
        code = interrupts.next() => return Ok(ExitCode::from(code)),
    };
    println!("{figures}held, in {:.0?} with servers and all", began.elapsed());
    Ok(ExitCode::SUCCESS)
}
