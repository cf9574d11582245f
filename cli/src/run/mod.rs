//! `jobgate run FILE`: a whole gateway for the jobs of one file, from submission to the table of outcomes.
//!
//! The gateway is the embedded one, on a free port of this host, and this is an ordinary client of it. Killed and started
//! again, a run goes on where it was: the same jobs under the same keys. With every job ended, the next run is a new one.

mod follow;
mod memory;
mod plan;
mod progress;
mod summary;
mod tracker;

use crate::{
    client::{Client, JobDoc, Request, Target},
    commands::{self, Pages, post_batch},
    config::Config,
    data_dir::DataDir,
    exit::Exit,
    job_file,
    render::{Format, Output, clean_line},
    roles::{Gateway, Interrupts, Place},
};
use follow::{Ended, Follow};
use jobgate_shared::{clock, domain::Command};
use memory::Memory;
use plan::Plan;
use progress::Progress;
use serde_json::Value;
use std::{net::SocketAddr, path::PathBuf, pin::pin};
use tracker::Tracker;

/// Lines of standard error shown of a job that did not end well.
const LAST_LINES: usize = 3;
/// Jobs whose standard error is shown.
const EXPLAINED: usize = 10;

/// Runs the jobs in a file to their end, on this host
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Starts a gateway of its own over the data directory, submits the jobs, shows how they get on, and exits with 0 if every \
job FINISHED. A job runs in the directory `run` is called in, unless it names a working_dir; a relative one is below it. \
Ctrl-C cancels the jobs and waits for their end; a second one leaves at once. A run that was killed goes on when it is \
started again; once every job has ended, the next run submits them anew.")]
pub(crate) struct Run {
    /// Jobs as `submit --file` takes them
    file: PathBuf,
    /// How to show what became of the jobs
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

impl Run {
    pub(crate) async fn run(self, config: &Config) -> anyhow::Result<Exit> {
        // Read before anything is begun: most mistakes are in the file.
        let entries = job_file::read(&self.file)?;
        let here = std::env::current_dir()?;
        let plan = Plan::new(&entries, &here)?;
        let interrupts = Interrupts::listen()?;
        let (client, gateway) = reach(config).await?;
        let data_dir = DataDir::make(&config.data_dir)?;
        let mut memory = Memory::recall(&data_dir, &plan.digest, &self.file)?;
        let carried_out = Running { plan: &plan, client: &client, interrupts, progress: Progress::begin() };
        let outcome = carried_out.complete(&mut memory).await;
        let exit = match outcome {
            Ok(Some((ended, refused))) => {
                let mut output = Output::stdout(self.output);
                let jobs = report(&client, &plan.label(memory.generation()), &mut output).await?;
                let logs = config.logs.directory.clone().unwrap_or_else(|| data_dir.logs());
                commands::tell(format_args!("logs are in {}", logs.display()));
                Ok(exit(ended, refused == 0 && jobs.iter().all(|job| job.state == "FINISHED")))
            }
            Ok(None) => {
                commands::tell("left at once; run it again to go on");
                std::process::exit(130);
            }
            Err(error) => Err(error),
        };
        if let Some(gateway) = gateway {
            gateway.stop().await;
        }
        exit
    }
}

/// The gateway over the data directory: the one `serve` runs there, or one of our own, to be ended with the run.
async fn reach(config: &Config) -> anyhow::Result<(Client, Option<Gateway>)> {
    let holder = DataDir::at(&config.data_dir).holder().filter(|holder| holder.command == "serve");
    if let Some(url) = holder.and_then(|holder| holder.url) {
        commands::tell(format_args!("the gateway at {url} has the data directory; it runs the jobs"));
        return Ok((Client::new(Target::find(Some(&url), config)?)?, None));
    }
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let gateway = Gateway::start(config, Place { command: "run", listen, tls: false }).await?;
    let client = Client::new(Target::known(&gateway.url, Some(gateway.token.clone()))?)?;
    Ok((client, Some(gateway)))
}

fn exit(ended: Ended, well: bool) -> Exit {
    match (ended, well) {
        (Ended::Canceled, _) => Exit::Interrupted,
        (Ended::ByThemselves, true) => Exit::Done,
        (Ended::ByThemselves, false) => Exit::Unwell,
    }
}

/// A run under way.
struct Running<'a> {
    plan: &'a Plan,
    client: &'a Client,
    interrupts: Interrupts,
    progress: Progress,
}

impl Running<'_> {
    /// Submits what is not yet, and follows all of it to its end: how it ended and how many jobs were refused; `None`
    /// when somebody wanted to leave at once.
    async fn complete(mut self, memory: &mut Memory) -> anyhow::Result<Option<(Ended, usize)>> {
        memory.begin()?;
        let label = self.plan.label(memory.generation());
        let mut follow = Follow::begin(self.client, &label).await?;
        let mut tracker = Tracker::default();
        let Some(mut submitted) = self.submit(memory.generation(), &mut tracker).await? else {
            return Ok(None);
        };
        let counts = tracker.counts();
        let goes_on = memory.is_resumed() && submitted.interrupted.is_none();
        if goes_on && counts.ended() == counts.all() && counts.all() > 0 {
            self.progress.say("every job of the run before had ended; this is a new run");
            memory.complete()?;
            memory.begin()?;
            let label = self.plan.label(memory.generation());
            (follow, tracker) = (Follow::begin(self.client, &label).await?, Tracker::default());
            let Some(anew) = self.submit(memory.generation(), &mut tracker).await? else { return Ok(None) };
            submitted = anew;
        } else if goes_on {
            self.progress.say(&format!(
                "going on with the run before: {} of {} jobs had ended",
                counts.ended(),
                counts.all()
            ));
        }
        let Submitted { refused, interrupted, failed } = submitted;
        let (progress, interrupts) = (&mut self.progress, &mut self.interrupts);
        let ended = follow.until_all_ended(&mut tracker, progress, interrupts, interrupted).await;
        self.progress.end();
        let ended = match (ended, failed) {
            (Ok(ended), None) => ended,
            (Ok(Some(_)), Some(failure)) => {
                memory.complete()?;
                return Err(failure);
            }
            (Ok(None), Some(failure)) => {
                commands::tell(format_args!("{failure:#}"));
                None
            }
            // Most often for the same reason.
            (Err(_), Some(failure)) | (Err(failure), None) => return Err(failure),
        };
        let Some(ended) = ended else { return Ok(None) };
        memory.complete()?;
        Ok(Some((ended, refused)))
    }

    /// Submits every job of a generation; those submitted before answer as they stand. An interrupt ends it with the batch
    /// under way, whatever becomes of that, a second one at once: `None`.
    async fn submit(&mut self, generation: u32, tracker: &mut Tracker) -> anyhow::Result<Option<Submitted>> {
        let documents = self.plan.documents(generation);
        let mut submitted = Submitted { refused: 0, interrupted: None, failed: None };
        let mut index = 0;
        for (i, batch) in job_file::batches(&documents).into_iter().enumerate() {
            let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
            let key = format!("{}-{i}", self.plan.label(generation));
            let mut posted = pin!(post_batch(self.client, &batch, &key));
            let outcomes = loop {
                tokio::select! {
                    outcomes = &mut posted => break outcomes,
                    name = self.interrupts.next() => {
                        // What is on its way may be stored: its jobs must be known to be cancelled.
                        if submitted.interrupted.replace(name).is_some() {
                            return Ok(None);
                        }
                        self.progress.say(&format!("{name}: nothing more is submitted"));
                    }
                }
            };
            let outcomes = match outcomes {
                Ok(outcomes) => outcomes,
                // What was submitted before is cancelled all the same.
                Err(failure) if submitted.interrupted.is_some() => {
                    submitted.failed = Some(failure);
                    break;
                }
                Err(failure) => return Err(failure),
            };
            for outcome in outcomes {
                match outcome {
                    Ok(document) => {
                        tracker.answered(&commands::read(&document)?);
                    }
                    Err(problem) => {
                        submitted.refused += 1;
                        self.progress.say(&format!("line {}: {problem}", self.plan.line(index)));
                    }
                }
                index += 1;
            }
            self.progress.counts(tracker.counts());
            if submitted.interrupted.is_some() {
                let left = documents.len() - index;
                self.progress.say(&format!("{left} jobs of the file are not submitted any more"));
                break;
            }
        }
        tracker.settle();
        Ok(Some(submitted))
    }
}

/// How a submission went.
struct Submitted {
    /// Jobs that were refused.
    refused: usize,
    /// The signal that ended it early.
    interrupted: Option<&'static str>,
    /// What its last batch failed for, after that.
    failed: Option<anyhow::Error>,
}

/// Shows what became of the jobs with this label; answers them.
async fn report(client: &Client, label: &str, output: &mut Output) -> anyhow::Result<Vec<JobDoc>> {
    let mut pages = Pages::new(vec![("label", label.to_owned())]);
    let mut jobs: Vec<JobDoc> = Vec::new();
    while let Some(items) = pages.next(client, usize::MAX).await? {
        for item in items {
            if output.is_json() {
                output.document(&item)?;
            }
            jobs.push(commands::read(&item)?);
        }
    }
    // Newest first is how they are listed; as they stand in the file is how they are read.
    jobs.reverse();
    if !output.is_json() {
        summary::show(output, &jobs, clock::system().now())?;
        for job in jobs.iter().filter(|job| job.state != "FINISHED").take(EXPLAINED) {
            show_last_lines(client, job, output).await?;
        }
    }
    Ok(jobs)
}

/// The end of a job's standard error, if it wrote any.
async fn show_last_lines(client: &Client, job: &JobDoc, output: &mut Output) -> anyhow::Result<()> {
    use futures::TryStreamExt as _;
    let (_, body) = client.stream(Request::get(format!("/v1/jobs/{}/logs/stderr", job.id))).await?;
    let bytes = body.try_fold(Vec::new(), |mut all, piece| async move {
        all.extend_from_slice(&piece);
        Ok(all)
    });
    let text = String::from_utf8_lossy(&bytes.await?).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    if !last.is_empty() {
        output.line(format_args!("\nstandard error of {}:", clean_line(&job.name, 80)))?;
        for line in last {
            output.line(format_args!("  {}", clean_line(line, 200)))?;
        }
    }
    Ok(())
}

/// Cancels every job of a run that has not ended.
async fn cancel_all(client: &Client, label: &str) -> anyhow::Result<u64> {
    let outcome = commands::bulk(client, Command::Cancel, vec![("label", label.to_owned())], false).await?;
    Ok(outcome.done)
}

/// What an event of the feed says: which job, where it stands, in which attempt, why.
fn change(data: &str) -> Option<(String, jobgate_shared::domain::JobState, u32, Option<String>)> {
    let document: Value = serde_json::from_str(data).ok()?;
    let state = document.get("to")?.as_str()?.parse().ok()?;
    let attempt = u32::try_from(document.get("attempt")?.as_u64()?).ok()?;
    let reason = document.get("reason").and_then(Value::as_str).map(str::to_owned);
    Some((document.get("job")?.as_str()?.to_owned(), state, attempt, reason))
}
