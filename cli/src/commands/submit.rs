//! `jobgate submit`: one job from flags, or many from a file.
//!
//! Every submission carries an idempotency key, so that a request whose answer was lost is made again without fear.

use super::{Connection, Session, is_transient, read, select::Moment, tell, wait_for_end};
use crate::{
    client::{Client, ClientError, JobDoc, Problem, Request},
    config::Config,
    exit::{Exit, Usage},
    job_file,
    render::{Output, clean, clean_line},
};
use jobgate_shared::{
    clock,
    domain::{ClusterName, JobId},
};
use serde_json::{Map, Value, json};
use std::{path::PathBuf, time::Duration};
use uuid::Uuid;

/// Submits a job given as a command, or the jobs in a file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints the id of each job, one a line.

  jobgate submit --name sum -- sha256sum data.bin
  jobgate submit --file jobs.jsonl --wait
  generate-jobs | jobgate submit --file -")]
pub(crate) struct Submit {
    /// Jobs as the HTTP interface takes them: an object, an array, or one object a line; `-` reads standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "command")]
    file: Option<PathBuf>,
    #[command(flatten)]
    job: JobFlags,
    /// Submitting again under the same key brings the same jobs [default: a new one]
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Wait until every job has ended; exit with 1 unless all FINISHED
    #[arg(long, short)]
    wait: bool,
    #[command(flatten)]
    connection: Connection,
}

/// A job in flags.
#[derive(Debug, clap::Args)]
struct JobFlags {
    /// A name, for people
    #[arg(long)]
    name: Option<String>,
    /// Where to run it
    #[arg(long)]
    cluster: Option<ClusterName>,
    /// A word to find it by; can be given several times
    #[arg(long)]
    label: Vec<String>,
    /// A variable of its environment; can be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Absolute path to run it in
    #[arg(long, value_name = "DIR")]
    working_dir: Option<String>,
    /// From -100 (last) to 100 (first)
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(i16).range(-100..=100))]
    priority: Option<i16>,
    /// How long it may run, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    time_limit: Option<Duration>,
    /// Processors it needs
    #[arg(long)]
    cpus: Option<u32>,
    /// Memory it needs, in MiB
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// How often it is tried in all
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Not before this time, or so long from now
    #[arg(long, value_name = "WHEN")]
    at: Option<Moment>,
    /// Leave it HELD until it is released
    #[arg(long)]
    hold: bool,
    /// The program and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl JobFlags {
    fn given(&self) -> bool {
        let named = [self.name.is_some(), self.cluster.is_some(), self.working_dir.is_some(), self.hold];
        let sized =
            [self.priority.is_some(), self.time_limit.is_some(), self.cpus.is_some(), self.memory.is_some()];
        let timed =
            [self.max_attempts.is_some(), self.at.is_some(), !self.label.is_empty(), !self.env.is_empty()];
        named.into_iter().chain(sized).chain(timed).any(|given| given)
    }

    fn document(&self) -> Result<Value, Usage> {
        if self.command.is_empty() {
            return Err(Usage("give the command after --, or jobs with --file".to_owned()));
        }
        let mut spec = Map::from_iter([("command".to_owned(), json!(self.command))]);
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                spec.insert(name.to_owned(), value);
            }
        };
        put("working_dir", self.working_dir.as_ref().map(|dir| json!(dir)));
        if let Some(limit) = self.time_limit {
            if limit.subsec_nanos() > 0 {
                return Err(Usage("--time-limit counts whole seconds".to_owned()));
            }
            put("time_limit_seconds", Some(json!(limit.as_secs())));
        }
        let mut resources = Map::new();
        resources.extend(self.cpus.map(|n| ("cpus".to_owned(), json!(n))));
        resources.extend(self.memory.map(|n| ("memory_mib".to_owned(), json!(n))));
        put("resources", (!resources.is_empty()).then_some(Value::Object(resources)));
        let mut env = Map::new();
        for variable in &self.env {
            let (name, value) = variable
                .split_once('=')
                .ok_or_else(|| Usage(format!("--env {variable}: must be NAME=VALUE")))?;
            env.insert(name.to_owned(), json!(value));
        }
        put("env", (!env.is_empty()).then_some(Value::Object(env)));
        let mut job = Map::from_iter([("spec".to_owned(), Value::Object(spec))]);
        let mut put =
            |name: &str, value: Option<Value>| job.extend(value.map(|value| (name.to_owned(), value)));
        put("name", self.name.as_ref().map(|name| json!(name)));
        put("cluster", self.cluster.as_ref().map(|cluster| json!(cluster)));
        put("labels", (!self.label.is_empty()).then(|| json!(self.label)));
        put("priority", self.priority.map(|priority| json!(priority)));
        put("max_attempts", self.max_attempts.map(|n| json!(n)));
        put("run_at", self.at.map(|moment| json!(moment.ahead(clock::system().as_ref()))));
        put("hold", self.hold.then_some(json!(true)));
        Ok(Value::Object(job))
    }
}

impl Submit {
    pub(crate) async fn run(self, config: &Config) -> anyhow::Result<Exit> {
        let key = self.key.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
        let Session { client, mut output } = match &self.file {
            Some(_) if self.job.given() => {
                return Err(
                    Usage("flags describe one job; those in a file describe themselves".to_owned()).into()
                );
            }
            Some(_) | None => self.connection.open(config)?,
        };
        let submitted = match &self.file {
            None => self.submit_one(&client, &mut output, &key).await,
            Some(file) => {
                let entries = job_file::read(file)?;
                submit_entries(&client, &mut output, &entries, &key, self.wait).await
            }
        };
        let (jobs, well) = submitted.map_err(|error| {
            let advice =
                format!("whether jobs are stored is not known; again with --key {key} none is stored twice");
            if is_transient(&error) { error.context(advice) } else { error }
        })?;
        let well = if self.wait { wait_for_all(&client, &mut output, &jobs).await? && well } else { well };
        Ok(if well { Exit::Done } else { Exit::Unwell })
    }

    /// Submits the job in the flags.
    async fn submit_one(
        &self,
        client: &Client,
        output: &mut Output,
        key: &str,
    ) -> anyhow::Result<(Vec<Value>, bool)> {
        let request = Request::post("/v1/jobs").json(&self.job.document()?).key(key);
        let job = client.send(request).await?;
        show(output, &job, self.wait)?;
        Ok((vec![job], true))
    }
}

/// Submits the jobs of a file; the ones accepted, and whether that is all of them.
async fn submit_entries(
    client: &Client,
    output: &mut Output,
    entries: &[job_file::Entry],
    key: &str,
    quiet: bool,
) -> anyhow::Result<(Vec<Value>, bool)> {
    let jobs: Vec<&str> = entries.iter().map(|e| e.json.as_str()).collect();
    let (mut accepted, mut well) = (Vec::new(), true);
    let mut entries = entries.iter();
    for (i, batch) in job_file::batches(&jobs).into_iter().enumerate() {
        for (outcome, entry) in
            post_batch(client, batch, &format!("{key}-{i}")).await?.into_iter().zip(&mut entries)
        {
            match outcome {
                Ok(job) => {
                    show(output, &job, quiet)?;
                    accepted.push(job);
                }
                Err(problem) => {
                    well = false;
                    tell(format_args!("line {}: {problem}", entry.line));
                }
            }
        }
    }
    if !well {
        tell(format_args!("{} of {} jobs submitted", accepted.len(), jobs.len()));
    }
    Ok((accepted, well))
}

/// Submits a batch under a key; one outcome per job, in order. Fails unless every job is known to be stored or refused.
pub(crate) async fn post_batch(
    client: &Client,
    jobs: &[&str],
    key: &str,
) -> anyhow::Result<Vec<Result<Value, Box<Problem>>>> {
    let request = Request::post("/v1/jobs/batch").ndjson(jobs.join("\n")).key(key);
    let mut answer = client.send_checked(request, all_known).await?;
    let items = answer.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
    anyhow::ensure!(
        items.len() == jobs.len(),
        "{} jobs were sent and {} were answered for",
        jobs.len(),
        items.len()
    );
    let outcome = |mut item: Value| match item.get_mut("job").map(Value::take) {
        Some(job) => Ok(job),
        None => Err(Box::new(Problem::from_item(item.get("error").unwrap_or(&Value::Null)))),
    };
    Ok(items.into_iter().map(outcome).collect())
}

/// A store that goes away leaves it open which jobs of a batch it took; the whole batch under the same key settles that.
fn all_known(answer: &Value) -> Result<(), ClientError> {
    let items = answer.get("items").and_then(Value::as_array).into_iter().flatten();
    let mut problems = items.filter_map(|item| item.get("error")).map(Problem::from_item);
    let unknown = problems.find(Problem::is_transient);
    unknown.map_or(Ok(()), |problem| Err(ClientError::Refused(Box::new(problem))))
}

fn show(output: &mut Output, job: &Value, quiet: bool) -> anyhow::Result<()> {
    if quiet {
        return Ok(());
    }
    if output.is_json() {
        return Ok(output.document(job)?);
    }
    Ok(output.line(clean(&read::<JobDoc>(job)?.id))?)
}

/// Waits for every job; whether all of them FINISHED.
async fn wait_for_all(client: &Client, output: &mut Output, jobs: &[Value]) -> anyhow::Result<bool> {
    let mut well = true;
    for job in jobs {
        let id: JobId = read::<JobDoc>(job)?.id.parse()?;
        let document = wait_for_end(client, id).await?;
        let ended: JobDoc = read(&document)?;
        well &= ended.state == "FINISHED";
        if output.is_json() {
            output.document(&document)?;
        } else {
            let reason =
                ended.reason.map(|reason| format!(": {}", clean_line(&reason, 200))).unwrap_or_default();
            let name = if ended.name.is_empty() {
                String::new()
            } else {
                format!(" {}", clean_line(&ended.name, 60))
            };
            output.line(format_args!("{} {}{name}{reason}", clean(&ended.id), clean(&ended.state)))?;
        }
    }
    Ok(well)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::canned::{Canned, answer};
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        submit: Submit,
    }

    fn document(args: &[&str]) -> Result<Value, String> {
        let line = Line::try_parse_from([&["x"], args].concat()).map_err(|e| e.to_string())?;
        line.submit.job.document().map_err(|e| e.to_string())
    }

    #[test]
    fn flags_make_the_document_the_interface_takes() {
        let args = [
            "--name",
            "sum",
            "--label",
            "a",
            "--label",
            "b",
            "--env",
            "A=1=2",
            "--priority",
            "-5",
            "--time-limit",
            "10m",
            "--cpus",
            "2",
            "--hold",
            "--",
            "sha256sum",
            "--check",
            "x",
        ];
        let expected = json!({
            "name": "sum", "labels": ["a", "b"], "priority": -5, "hold": true,
            "spec": {"command": ["sha256sum", "--check", "x"], "env": {"A": "1=2"}, "time_limit_seconds": 600,
                     "resources": {"cpus": 2}},
        });
        assert_eq!(document(&args), Ok(expected));
        assert_eq!(document(&["--", "true"]), Ok(json!({"spec": {"command": ["true"]}})));
    }

    #[test]
    fn what_is_no_job_is_a_wrong_usage() {
        assert!(document(&[]).unwrap_err().contains("--file"));
        assert!(document(&["--env", "A", "--", "true"]).unwrap_err().contains("NAME=VALUE"));
        assert!(document(&["--priority", "101", "--", "true"]).is_err());
        assert!(document(&["--file", "x", "--", "true"]).is_err());
        assert!(document(&["--time-limit", "1s 5ms", "--", "true"]).unwrap_err().contains("whole seconds"));
    }

    #[tokio::test]
    async fn a_batch_the_store_went_away_from_is_sent_again_under_its_key() {
        let away = r#"{"error":{"type":"urn:jobgate:problem:store-away","title":"away","status":503}}"#;
        let first = answer("200 OK", &format!(r#"{{"items":[{{"job":{{"id":"1"}}}},{away}]}}"#));
        let second = answer("200 OK", r#"{"items":[{"job":{"id":"1"}},{"job":{"id":"2"}}]}"#);
        let server = Canned::answering(vec![Some(first), Some(second)]).await;
        let outcomes = post_batch(&server.client(), &["{}", "{}"], "k-0").await.unwrap();
        let jobs: Vec<Value> = outcomes.into_iter().map(Result::unwrap).collect();
        assert_eq!(jobs, [json!({"id": "1"}), json!({"id": "2"})]);
        let asked = server.asked();
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[0], asked[1]);
        assert!(asked[0].contains("idempotency-key: k-0"), "{}", asked[0]);
    }
}
