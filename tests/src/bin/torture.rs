//! `torture [--seconds N] [--seed N] …`: the gateway as real processes, faults that follow from the seed, and a verdict.
//!
//! Starts servers of its own. Exit code 0: valid; 2: invalid; 3: no judgement could be given. What it notes is kept, whatever
//! the verdict. Ctrl-C ends everything in order.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command of the terminal")]

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use jobgate_tests::{
    containment::{self, Interrupts},
    torture::{
        self, Options,
        report::Verdict,
        schedule::{Fault, schedule},
    },
};
use rustix::process::getuid;
use std::{env, fs, path::PathBuf, process::ExitCode, time::Duration};
use tokio::process::Command;
use tracing_subscriber::{EnvFilter, fmt, fmt::time::uptime};

#[derive(Debug, Parser)]
#[command(about = "Breaks everything around a running gateway and checks what it made of its jobs")]
struct Arguments {
    /// How long faults go on; starting, settling and checking come on top.
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// What decides the faults and the load; a random one when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Where everything is kept, an empty or new folder; one below the build's when absent.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Jobs posted a second.
    #[arg(long, default_value_t = 12.0)]
    jobs_per_second: f64,
    /// Only these faults, each alone, and no next one before all is settled.
    #[arg(long, value_enum, num_args = 1.., value_name = "FAULT")]
    only: Vec<Fault>,
    /// No verdict where a fault of the schedule cannot be made: no mount, no libfaketime.
    #[arg(long)]
    strict: bool,
    /// Given by this program to itself.
    #[arg(long, hide = true)]
    contained: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = if arguments.contained { play(arguments).await } else { contain(&arguments).await };
    ended.map_or_else(
        |error| {
            eprintln!("torture: {error:#}");
            ExitCode::from(Verdict::Unknown.exit_code())
        },
        ExitCode::from,
    )
}

/// Starts this program once more, where it accounts for every process and, where that may be done, has mounts of its own.
async fn contain(arguments: &Arguments) -> Result<u8> {
    let mut interrupts = Interrupts::install()?;
    let program = env::current_exe()?;
    let unshare = ["--mount", "--propagation", "private", "--"];
    let mut probe = Command::new("unshare");
    let may_mount = getuid().is_root()
        && probe.args(unshare).arg("true").output().await.is_ok_and(|done| done.status.success());
    let mut command = if may_mount {
        let mut command = Command::new("unshare");
        command.args(unshare).arg(&program);
        command
    } else {
        Command::new(&program)
    };
    let seed = arguments.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    command.args(env::args_os().skip(1)).arg("--contained");
    if arguments.seed.is_none() {
        command.arg("--seed").arg(seed.to_string());
    }
    let outcome = containment::run(command, interrupts.next()).await?;
    for leftover in &outcome.leftovers {
        eprintln!("torture: left behind, killed: {leftover}");
    }
    let clean = outcome.leftovers.is_empty() || outcome.code != 0;
    Ok(if clean { outcome.code } else { Verdict::Invalid.exit_code() })
}

async fn play(arguments: Arguments) -> Result<u8> {
    let filter = EnvFilter::new("warn,jobgate_tests=info,lapin=off,sqlx=off");
    fmt().with_env_filter(filter).with_target(false).with_ansi(false).with_timer(uptime()).init();
    // No certificate is checked here; the client only wants to know whom it would ask.
    rustls::crypto::ring::default_provider().install_default().ok();
    let seed = arguments.seed.context("no seed")?;
    let options = Options {
        lasts: Duration::from_secs(arguments.seconds),
        seed,
        keep: kept(arguments.keep, seed)?,
        jobs_per_second: arguments.jobs_per_second,
        only: arguments.only,
        strict: arguments.strict,
    };
    println!("seed {seed}, {} s, kept in {}", arguments.seconds, options.keep.display());
    let steps: Vec<String> = schedule(seed, &options.only)
        .take(usize::try_from(arguments.seconds / 12 + 1)?)
        .map(|step| step.faults.iter().map(|fault| fault.name()).collect::<Vec<_>>().join("+"))
        .collect();
    println!("schedule, as far as time allows: {}", steps.join(", "));
    let mut interrupts = Interrupts::install()?;
    let interrupted = async {
        interrupts.next().await;
    };
    let report = torture::run(&options, interrupted).await?;
    println!("{report}");
    println!("kept in {}", options.keep.display());
    Ok(report.verdict.exit_code())
}

/// The folder to keep everything in, made and empty.
fn kept(asked: Option<PathBuf>, seed: u64) -> Result<PathBuf> {
    let folder = if let Some(folder) = asked {
        folder
    } else {
        let program = env::current_exe()?;
        let build = program.ancestors().nth(2).context("no folder above the program's")?;
        let folder = build.join("torture").join(format!("seed-{seed}"));
        // A run of ours, with the same seed.
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        folder
    };
    fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    ensure!(fs::read_dir(&folder)?.next().is_none(), "{} is not empty", folder.display());
    Ok(folder)
}
