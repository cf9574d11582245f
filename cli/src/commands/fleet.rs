//! `jobgate queues`, `workers` and `clusters`: what operators look at when jobs wait.

use super::{Connection, Session, items, read, tell};
use crate::{
    client::{Client, ClusterDoc, QueueDoc, Request, WorkerDoc},
    config::Config,
    exit::{Exit, Usage},
    render::{Output, Table, age, clean, span},
};
use jobgate_shared::{
    clock,
    domain::{ClusterName, JobState},
};
use serde_json::Value;
use std::{
    io::{IsTerminal as _, stdout},
    time::Duration,
};

/// Shows how many jobs stand where, and how long the oldest has waited
#[derive(Debug, clap::Args)]
pub(crate) struct Queues {
    /// Show it again and again until interrupted
    #[arg(long, short)]
    watch: bool,
    /// Between two looks
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    interval: Duration,
    #[command(flatten)]
    connection: Connection,
}

/// Shows workers
#[derive(Debug, clap::Args)]
pub(crate) struct Workers {
    #[command(flatten)]
    connection: Connection,
}

/// Shows clusters; pauses, resumes or limits one
#[derive(Debug, clap::Args)]
pub(crate) struct Clusters {
    /// Begin no fresh job of this cluster
    #[arg(long, value_name = "CLUSTER", conflicts_with = "resume")]
    pause: Option<ClusterName>,
    /// Begin fresh jobs of this cluster again
    #[arg(long, value_name = "CLUSTER")]
    resume: Option<ClusterName>,
    /// Have at most --max-in-flight jobs of this cluster in flight, over all workers
    #[arg(long, value_name = "CLUSTER", conflicts_with_all = ["pause", "resume"], requires = "max_in_flight")]
    limit: Option<ClusterName>,
    /// How many, or none for no limit
    #[arg(long, value_name = "JOBS", requires = "limit", value_parser = limit)]
    max_in_flight: Option<Limit>,
    #[command(flatten)]
    connection: Connection,
}

/// A limit as it is typed.
#[derive(Debug, Clone, Copy)]
struct Limit(Option<u32>);

fn limit(typed: &str) -> Result<Limit, String> {
    if typed == "none" {
        return Ok(Limit(None));
    }
    typed.parse().map(|jobs| Limit(Some(jobs))).map_err(|_| "is neither a number of jobs nor none".to_owned())
}

impl Queues {
    pub(crate) async fn run(self, config: &Config) -> anyhow::Result<Exit> {
        let Session { client, mut output } = self.connection.open(config)?;
        if self.watch && !output.is_json() && !stdout().is_terminal() {
            return Err(Usage("--watch draws on a terminal; use --output json elsewhere".to_owned()).into());
        }
        if self.interval < Duration::from_millis(100) {
            return Err(Usage("--interval must be at least 100ms".to_owned()).into());
        }
        let mut drawn = 0;
        loop {
            let seen = look(&client).await;
            match seen {
                Ok(document) if output.is_json() => output.document(&document)?,
                Ok(document) => {
                    let text = format!("{}", queue_table(items(&document))?);
                    drawn = redraw(&mut output, &text, drawn)?;
                }
                // Whoever watches wants to see it come back.
                Err(error) if self.watch && drawn > 0 => {
                    drawn = redraw(&mut output, &clean(&error.to_string()), drawn)?;
                }
                Err(error) => return Err(error),
            }
            if !self.watch {
                return Ok(Exit::Done);
            }
            tokio::time::sleep(self.interval).await;
        }
    }
}

async fn look(client: &Client) -> anyhow::Result<Value> {
    Ok(client.send(Request::get("/v1/queues")).await?)
}

/// Draws over what was drawn before; answers how many lines there are now.
fn redraw(output: &mut Output, text: &str, drawn: usize) -> anyhow::Result<usize> {
    if drawn > 0 {
        // Up to the first line of what was drawn, and away with all of it.
        output.raw(format!("\x1b[{drawn}F\x1b[0J").as_bytes())?;
    }
    output.line(text)?;
    Ok(text.lines().count())
}

/// A row for each priority of each cluster; a cluster without jobs has one, too.
fn queue_table(items: &[Value]) -> anyhow::Result<Table> {
    let columns = [
        "CLUSTER", "PRIO", "HELD", "WAITING", "CLAIMED", "PENDING", "RUNNING", "ENDED", "OLDEST", "WORKERS",
        "NOTE",
    ];
    let mut table = Table::new(columns).right(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for item in items {
        let queue: QueueDoc = read(item)?;
        let note = if queue.paused {
            "paused"
        } else if queue.workers == 0 {
            "no worker serves it"
        } else {
            ""
        };
        let mut priorities: Vec<i16> = queue.depths.iter().map(|depth| depth.priority).collect();
        priorities.dedup();
        if priorities.is_empty() {
            priorities.push(0);
        }
        for priority in priorities {
            let count = |states: &[JobState]| {
                let counted = queue.depths.iter().filter(|d| d.priority == priority && d.is_in(states));
                counted.map(|d| d.jobs).sum::<u64>().to_string()
            };
            let ended: Vec<JobState> =
                JobState::ALL.into_iter().filter(|state| state.is_terminal()).collect();
            let oldest = queue.oldest.iter().flatten().find(|oldest| oldest.priority == priority);
            table.row(&[
                queue.cluster.clone(),
                priority.to_string(),
                count(&[JobState::Held]),
                count(&[JobState::Initialized]),
                count(&[JobState::Claimed]),
                count(&[JobState::Pending]),
                count(&[JobState::Running]),
                count(&ended),
                oldest.map(|oldest| span(oldest.age())).unwrap_or_default(),
                queue.workers.to_string(),
                note.to_owned(),
            ]);
        }
    }
    Ok(table)
}

impl Workers {
    pub(crate) async fn run(self, config: &Config) -> anyhow::Result<Exit> {
        let Session { client, mut output } = self.connection.open(config)?;
        let document = client.send(Request::get("/v1/workers")).await?;
        let mut table = Table::new(["ID", "HOST", "STATE", "JOBS", "SINCE", "CLUSTERS"]).right(&[3]);
        let now = clock::system().now();
        for item in items(&document) {
            if output.is_json() {
                output.document(item)?;
                continue;
            }
            let worker: WorkerDoc = read(item)?;
            let state = if !worker.alive {
                "dead"
            } else if worker.draining {
                "draining"
            } else {
                "alive"
            };
            let cluster = |served: &crate::client::ServedDoc| match &served.parked {
                Some(why) => format!("{} ({why})", served.name),
                None => served.name.clone(),
            };
            let clusters: Vec<String> = worker.clusters.iter().map(cluster).collect();
            table.row(&[
                worker.id,
                worker.host,
                state.to_owned(),
                worker.jobs.to_string(),
                worker.registered_at.map(|at| age(at, now)).unwrap_or_default(),
                clusters.join(", "),
            ]);
        }
        if !output.is_json() {
            output.line(table)?;
        }
        Ok(Exit::Done)
    }
}

impl Clusters {
    /// What is asked for besides a look, and what to say once it is done.
    fn change(&self) -> Option<(Request, String)> {
        if let (Some(cluster), Some(Limit(limit))) = (&self.limit, self.max_in_flight) {
            let request = Request::patch(format!("/v1/clusters/{cluster}"));
            let request = request.json(&serde_json::json!({ "max_in_flight": limit }));
            let told =
                limit.map_or_else(|| "no limit".to_owned(), |jobs| format!("at most {jobs} jobs in flight"));
            return Some((request, format!("{cluster} has {told}")));
        }
        let changes = [(&self.pause, "pause"), (&self.resume, "resume")];
        let (cluster, verb) =
            changes.into_iter().find_map(|(cluster, verb)| Some((cluster.as_ref()?, verb)))?;
        Some((Request::post(format!("/v1/clusters/{cluster}/{verb}")), format!("{cluster} is {verb}d")))
    }

    pub(crate) async fn run(self, config: &Config) -> anyhow::Result<Exit> {
        let Session { client, mut output } = self.connection.open(config)?;
        let document = match self.change() {
            Some((request, told)) => {
                let document = client.send(request.repeatable()).await?;
                tell(format_args!("{told}"));
                Value::Array(vec![document])
            }
            None => client.send(Request::get("/v1/clusters")).await?,
        };
        let mut table = Table::new(["CLUSTER", "ENGINE", "SUBMITS", "WORKERS", "STATE"]).right(&[3]);
        for item in items(&document) {
            if output.is_json() {
                output.document(item)?;
                continue;
            }
            let cluster: ClusterDoc = read(item)?;
            let default = if cluster.is_default { " (default)" } else { "" };
            let state = cluster.state();
            let workers = cluster.workers.len().to_string();
            table.row(&[format!("{}{default}", cluster.name), cluster.engine, cluster.mode, workers, state]);
        }
        if !output.is_json() {
            output.line(table)?;
        }
        Ok(Exit::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_a_row_for_each_priority() {
        let items = [
            serde_json::json!({"cluster": "local", "paused": false, "workers": 1, "hints_outstanding": 2,
                "depths": [{"priority": 10, "state": "INITIALIZED", "jobs": 4}, {"priority": 0, "state": "RUNNING", "jobs": 2},
                           {"priority": 0, "state": "FINISHED", "jobs": 7}, {"priority": 0, "state": "FAILED", "jobs": 1}],
                "oldest": [{"priority": 10, "due_since": "2030-01-01T00:00:00Z", "age_seconds": 61.5}]}),
            serde_json::json!({"cluster": "slurm-a", "paused": true, "workers": 0, "depths": [], "oldest": null}),
        ];
        let shown = queue_table(&items).unwrap().to_string();
        let rows: Vec<Vec<&str>> =
            shown.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["local", "10", "0", "4", "0", "0", "0", "0", "1m", "01s", "1"]);
        assert_eq!(rows[1], ["local", "0", "0", "0", "0", "0", "2", "8", "1"]);
        assert_eq!(rows[2], ["slurm-a", "0", "0", "0", "0", "0", "0", "0", "0", "paused"]);
    }
}
