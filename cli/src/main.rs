//! `jobgate`: the one binary. Chooses what to be and puts it together.
//!
//! * [`config`]: the configuration of every role, and the only reader of the environment.
//! * [`roles`]: the composition root. [`run`]: the gateway for the jobs of one file.
//! * [`commands`] and [`client`]: the client commands, ordinary users of the HTTP interface.
//! * [`bench`]: the gateway measured.
//! * [`render`], [`logging`], [`exit`]: what people and scripts see.

mod args;
mod bench;
mod client;
mod commands;
mod config;
mod data_dir;
mod exit;
mod job_file;
mod logging;
mod render;
mod roles;
mod run;

use crate::{
    args::{Arguments, Command},
    config::{Config, Environment, Flags},
    exit::{Exit, OneLine},
    render::{Format, Output},
};
use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use jobgate_shared::domain;
use jobgate_worker::engines::local::local_runner_main;
use std::process::ExitCode;

fn main() -> ExitCode {
    config::take_orders();
    // Before anything else: there is a runner for every job that runs, so it must begin quickly and stay small.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == roles::LOCAL_RUNNER) {
        return local_runner_main(words);
    }
    let arguments = Arguments::parse();
    match begin(arguments) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let code = exit::code_of(&error);
            if code != ExitCode::SUCCESS {
                commands::tell(format_args!("jobgate: {}", render::clean(&OneLine(&error).to_string())));
            }
            code
        }
    }
}

fn begin(arguments: Arguments) -> anyhow::Result<Exit> {
    let Arguments { config, data_dir, command } = arguments;
    if let Command::Completion { shell } = command {
        clap_complete::generate(shell, &mut Arguments::command(), "jobgate", &mut std::io::stdout());
        return Ok(Exit::Done);
    }
    // The one provider of this binary; whoever asks for a default gets it.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a second TLS provider is in this binary"))?;
    let environment = Environment::read()?;
    let flags = Flags { config, data_dir, listen: command.listen(), serves: command.serves() };
    let config = Config::load(&flags, &environment)?;
    let log = if command.is_role() {
        &config.telemetry.log
    } else {
        environment.get("JOBGATE_LOG").unwrap_or(logging::QUIET)
    };
    logging::begin(&config.telemetry, log)?;
    for name in &environment.unknown {
        tracing::warn!("the environment variable {name} means nothing to jobgate");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot begin the asynchronous runtime")?;
    runtime.block_on(carry_out(command, &config))
}

async fn carry_out(command: Command, config: &Config) -> anyhow::Result<Exit> {
    match command {
        Command::Serve(_) => roles::serve(config, Output::stdout(Format::Table)).await,
        Command::Run(run) => run.run(config).await,
        Command::Api(_) => roles::api(config).await,
        Command::Worker => roles::worker(config).await,
        Command::Recorder => roles::recorder(config).await,
        Command::Migrate => roles::migrate(config).await,
        Command::Bench(bench) => bench.run(config).await,
        Command::Submit(submit) => submit.run(config).await,
        Command::List(list) => list.run(config).await,
        Command::Show(show) => show.run(config).await,
        Command::Logs(logs) => logs.run(config).await,
        Command::Cancel(act) => act.run(domain::Command::Cancel, config).await,
        Command::Hold(act) => act.run(domain::Command::Hold, config).await,
        Command::Release(act) => act.run(domain::Command::Release, config).await,
        Command::Retry(act) => act.run(domain::Command::Retry, config).await,
        Command::Update(update) => update.run(config).await,
        Command::Queues(queues) => queues.run(config).await,
        Command::Workers(workers) => workers.run(config).await,
        Command::Clusters(clusters) => clusters.run(config).await,
        Command::Token(token) => token.run(config).await,
        Command::Completion { .. } => Ok(Exit::Done),
    }
}
