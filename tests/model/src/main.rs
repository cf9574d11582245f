//! `model [--kind K …]`: the searches, as a table; without words, those of the tests and deeper ones.
#![allow(clippy::print_stdout, reason = "a command of the terminal")]

use clap::Parser;
use jobgate_model::{
    Faults, Protocol,
    coverage::{STEPS, Seen},
    promises::Promise,
    search::{self, Broken, Report},
    submissions::Kind,
};
use std::{process::ExitCode, time::Instant};

#[derive(Debug, Parser)]
#[command(about = "Searches every interleaving of the submission protocol for broken promises")]
struct Arguments {
    /// Only this manager, under exactly the faults named.
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Worker processes that die at once.
    #[arg(long, default_value_t = 0, requires = "kind")]
    crashes: u8,
    /// Leases that end while their worker lives on.
    #[arg(long, default_value_t = 0, requires = "kind")]
    expiries: u8,
    /// Answers, events and sightings that do not come.
    #[arg(long, default_value_t = 0, requires = "kind")]
    losses: u8,
    /// Times a worker's next timer rings.
    #[arg(long, default_value_t = 0, requires = "kind")]
    ticks: u8,
    /// Cancels by a user.
    #[arg(long, default_value_t = 0, requires = "kind")]
    cancels: u8,
    /// Retries by a user.
    #[arg(long, default_value_t = 0, requires = "kind")]
    retries: u8,
    /// Workers told to stop.
    #[arg(long, default_value_t = 0, requires = "kind")]
    drains: u8,
    /// Ended submissions that the manager forgets.
    #[arg(long, default_value_t = 0, requires = "kind")]
    forgets: u8,
    /// Attempts the job has.
    #[arg(long, default_value_t = 1, requires = "kind")]
    attempts: u32,
    /// The manager keeps logs, which are shipped.
    #[arg(long, requires = "kind")]
    logs: bool,
}

fn main() -> ExitCode {
    let Arguments {
        kind,
        crashes,
        expiries,
        losses,
        ticks,
        cancels,
        retries,
        drains,
        forgets,
        attempts,
        logs,
    } = Arguments::parse();
    if let Some(kind) = kind {
        let faults = Faults { crashes, expiries, losses, ticks, cancels, retries, drains, forgets };
        let protocol = Protocol { max_attempts: attempts, logs, ..Protocol::new(kind, faults) };
        let report = run(protocol, None);
        report.broken.iter().for_each(show);
        return code(report.broken.is_empty());
    }
    let seen = Seen::default();
    let mut valid = true;
    for protocol in search::sound(true, &seen) {
        let report = run(protocol, None);
        report.broken.iter().for_each(show);
        valid &= report.broken.is_empty();
    }
    for (protocol, known) in search::unsound() {
        let name = known.name();
        if let Some(broken) = run(protocol, Some(known)).found(known) {
            println!("    as it must be, not {name}: {}", broken.way.join(" → "));
        } else {
            println!("    NOT FOUND, and it must be: not {name}");
            valid = false;
        }
    }
    let wrong = seen.wrong();
    for wrong in &wrong {
        println!("    {wrong}");
    }
    println!("{} steps, {} not as said of a kind of manager", STEPS.len(), wrong.len());
    code(valid && wrong.is_empty())
}

fn run(protocol: Protocol, known: Option<Promise>) -> Report {
    let (name, began) = (protocol.to_string(), Instant::now());
    let report = protocol.search(known);
    let verdict = if report.broken.is_empty() { "holds" } else { "BROKEN" };
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{verdict:6} {name:70} {:>9} states {:>10} steps {:>3} deep {seconds:>6.1} s",
        report.states, report.steps, report.depth
    );
    report
}

fn show(broken: &Broken) {
    println!("    {}{}", broken.promise, broken.why.map(|why| format!(": {why}")).unwrap_or_default());
    broken.way.iter().for_each(|step| println!("        {step}"));
    println!("        {:?}", broken.end);
}

fn code(valid: bool) -> ExitCode {
    if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
