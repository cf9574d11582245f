//! `jobgate bench`: the whole path measured through its real doors, beside what the machine's store and broker do at best.
//!
//! * [`deployment`]: the processes under measurement. [`load`]: requests. [`measures`]: what is measured, step by step.
//! * [`report`]: the figures and what they should be.
//!
//! A run is to be read as a whole: machines differ and are noisy, so a figure means something beside the floors of its run.

mod deployment;
mod load;
mod measures;
mod report;

use crate::{
    commands,
    config::Config,
    exit::Exit,
    render::{Format, Output},
    roles::Interrupts,
};
use deployment::{Backends, Deployment, Fleet};
use jobgate_shared::store::sqlite;
use report::{Figure, Report, Unit};
use std::time::Duration;

/// The windows publishing is measured with.
const WINDOWS: [usize; 3] = [1, 200, 1_000];

/// Measure the gateway on this machine
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Starts processes of its own on loopback, with an engine that runs nothing, and ends them. With JOBGATE_DATABASE_URL and \
JOBGATE_BROKER_URL (or store.url and broker.url) it measures the distributed form, in a database and under names that it \
makes and removes; without, the embedded form in a temporary directory. Measure a release build on an idle machine.")]
pub(crate) struct Bench {
    /// Jobs enqueued in bulk and drained
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..))]
    jobs: u32,
    /// Jobs that are watched at once while memory is measured; none when 0
    #[arg(long, default_value_t = 100_000)]
    watched: u32,
    /// Seconds of each step that goes on for a time
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
    #[command(flatten)]
    fleet: Fleet,
    /// How to show the figures
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

impl Bench {
    pub(crate) async fn run(self, config: &Config) -> anyhow::Result<Exit> {
        let mut interrupts = Interrupts::listen()?;
        let deployment = Deployment::begin(config, self.fleet).await?;
        let mut report = Report::new(match deployment.backends {
            Backends::Embedded => "embedded: SQLite, one process",
            Backends::Distributed { .. } => "distributed: PostgreSQL and RabbitMQ",
        });
        let measured = tokio::select! {
            measured = self.measure(&deployment, &mut report) => measured.map(|()| Exit::Done),
            _ = interrupts.next() => Ok(Exit::Interrupted),
        };
        let measured = measured.map_err(|error| error.context(deployment.last_words()));
        deployment.end().await?;
        let exit = measured?;
        report.show(&mut Output::stdout(self.output))?;
        Ok(exit)
    }

    async fn measure(&self, deployment: &Deployment, report: &mut Report) -> anyhow::Result<()> {
        commands::tell("the floors of this machine");
        report.floors = floors(deployment).await?;
        measures::all(self, deployment, &mut report.figures).await
    }

    fn span(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

/// What the store and the broker do at best, whatever is built on them. The gateway idles meanwhile.
async fn floors(deployment: &Deployment) -> anyhow::Result<Vec<Figure>> {
    let (store, publishing) = match &deployment.backends {
        Backends::Embedded => (sqlite::floors(deployment.directory()).await?, Vec::new()),
        Backends::Distributed { database, names } => {
            let rates = names.publish_floors(&WINDOWS).await?;
            (database.floors().await?, rates)
        }
    };
    let per_second = |rows: f64, time: Duration| rows / time.as_secs_f64();
    let mut figures = vec![
        Figure::time("commit of one row", store.commit_one_row),
        Figure::new(
            "insert of 1 000 rows",
            per_second(1_000.0, store.insert_thousand_rows),
            Unit::RowsPerSecond,
        ),
        Figure::new(
            "claim of 100 rows by id",
            per_second(100.0, store.claim_hundred_by_id),
            Unit::RowsPerSecond,
        ),
    ];
    for (window, rate) in WINDOWS.iter().zip(publishing) {
        let name = format!("publish and confirm, window {window}");
        figures.push(Figure::new(name, rate, Unit::MessagesPerSecond));
    }
    Ok(figures)
}
