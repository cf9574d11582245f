//! `jobgate update`: a running job tells how far it is; or somebody tells it of a job.

use super::{CA_HELP, refusal, tell};
use crate::{
    client::{Client, Request, Target},
    config::{Config, Within},
    exit::{Exit, Usage},
    render::clean,
};
use jobgate_shared::{clock, domain::JobId};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

const SERVER_HELP: &str =
    "The gateway's address [default: JOBGATE_URL, which a job has; else as for other commands]";

/// Reports on a running job; inside a job, on itself
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Inside a job it needs nothing: the job's address, id and token are in its environment. Prints nothing when all is well.
Progress only rises within an attempt, and a report that comes late replaces nothing.

  jobgate update --progress 40 --stage sorting --message 'row 480 of 1200'
  jobgate update --output result=s3://bucket/sum.csv --label checked || true")]
pub(crate) struct Update {
    /// The job [default: the one this runs in]
    #[arg(value_name = "JOB")]
    job: Option<JobId>,
    /// Percent done
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    progress: Option<u8>,
    /// What it is busy with, in a word or two; an empty one takes the last one back
    #[arg(long, visible_alias = "status")]
    stage: Option<String>,
    /// A line for people; an empty one takes the last one back
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// A text among its outputs; can be given several times
    #[arg(long, value_name = "NAME=TEXT")]
    output: Vec<String>,
    /// The same with any JSON
    #[arg(long, value_name = "NAME=JSON")]
    output_json: Vec<String>,
    /// A word more to find it by; can be given several times
    #[arg(long)]
    label: Vec<String>,
    #[arg(long, value_name = "URL", help = SERVER_HELP)]
    server: Option<String>,
    #[arg(long, value_name = "FILE", help = CA_HELP)]
    ca_certificate: Option<PathBuf>,
}

/// What is told: of which job, and what.
#[derive(Debug, PartialEq)]
struct Told {
    job: JobId,
    report: Value,
}

impl Update {
    pub(crate) async fn run(self, config: &Config) -> anyhow::Result<Exit> {
        // Microseconds: a later call of a job tells a greater number, on any host whose clock is about right.
        let seq = clock::system().now().timestamp_micros();
        let Told { job, report } = self.told(&config.client.within, seq)?;
        let target =
            Target::of_reports(self.server.as_deref(), config)?.trusting(self.ca_certificate.clone());
        let client = Client::new(target)?;
        let request = Request::post(format!("/v1/jobs/{job}/reports")).json(&report).repeatable();
        match client.send(request).await {
            Ok(_) => Ok(Exit::Done),
            Err(error) => {
                tell(format_args!("{job}: {}", clean(&refusal(error)?)));
                Ok(Exit::Unwell)
            }
        }
    }

    fn told(&self, within: &Within, seq: i64) -> Result<Told, Usage> {
        let of_itself = within.job.as_ref().and_then(|id| id.parse::<JobId>().ok());
        let nobody = || Usage("say which job: this does not run in one".to_owned());
        let job = self.job.or(of_itself).ok_or_else(nobody)?;
        let mut report = Map::new();
        let mut put =
            |name: &str, value: Option<Value>| report.extend(value.map(|value| (name.to_owned(), value)));
        put("progress", self.progress.map(|percent| json!(percent)));
        put("stage", self.stage.as_ref().map(|text| json!(text)));
        put("message", self.message.as_ref().map(|text| json!(text)));
        put("labels", (!self.label.is_empty()).then(|| json!(self.label)));
        let outputs = self.outputs()?;
        put("outputs", (!outputs.is_empty()).then_some(Value::Object(outputs)));
        if report.is_empty() {
            return Err(Usage(
                "say what to tell: --progress, --stage, --message, --output or --label".to_owned(),
            ));
        }
        report.insert("seq".to_owned(), json!(seq));
        if of_itself == Some(job)
            && let Some(attempt) = within.attempt.as_ref().and_then(|attempt| attempt.parse::<u32>().ok())
        {
            report.insert("attempt".to_owned(), json!(attempt));
        }
        Ok(Told { job, report: Value::Object(report) })
    }

    fn outputs(&self) -> Result<Map<String, Value>, Usage> {
        let named = |flag: &str, pair: &str| match pair.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            Some(_) | None => Err(Usage(format!("{flag} {pair}: must be NAME=VALUE"))),
        };
        let mut outputs = Map::new();
        for pair in &self.output {
            let (name, text) = named("--output", pair)?;
            outputs.insert(name, Value::String(text));
        }
        for pair in &self.output_json {
            let (name, text) = named("--output-json", pair)?;
            let value = serde_json::from_str(&text)
                .map_err(|error| Usage(format!("--output-json {name}: {error}")))?;
            outputs.insert(name, value);
        }
        Ok(outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    const JOB: &str = "00000000-0000-7000-8000-000000000007";

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        update: Update,
    }

    fn inside() -> Within {
        Within { url: None, job: Some(JOB.to_owned()), attempt: Some("2".to_owned()) }
    }

    fn told(within: &Within, args: &[&str]) -> Result<Told, String> {
        let line = Line::try_parse_from([&["x"], args].concat()).map_err(|e| e.to_string())?;
        line.update.told(within, 9).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_make_a_report_of_the_attempt_this_runs_in() {
        let args = [
            "--progress",
            "40",
            "--stage",
            "sorting",
            "-m",
            "row 7",
            "--output",
            "url=s3://b/x?a=1",
            "--output-json",
            "rows=[7]",
            "--label",
            "a",
            "--label",
            "b",
        ];
        let report = json!({
            "attempt": 2, "seq": 9, "progress": 40, "stage": "sorting", "message": "row 7", "labels": ["a", "b"],
            "outputs": {"url": "s3://b/x?a=1", "rows": [7]},
        });
        assert_eq!(told(&inside(), &args), Ok(Told { job: JOB.parse().unwrap(), report }));
    }

    #[test]
    fn another_jobs_attempt_is_not_told_to_be_ours() {
        let other = "00000000-0000-7000-8000-000000000008";
        let report = json!({"seq": 9, "message": ""});
        let expected = Told { job: other.parse().unwrap(), report };
        assert_eq!(told(&inside(), &[other, "--message", ""]), Ok(expected));
        let outside = told(&Within::default(), &[JOB, "--progress", "0"]).unwrap();
        assert_eq!(outside.report, json!({"seq": 9, "progress": 0}));
    }

    #[test]
    fn what_is_no_report_is_a_wrong_usage() {
        assert!(told(&Within::default(), &["--progress", "1"]).unwrap_err().contains("which job"));
        assert!(told(&inside(), &[]).unwrap_err().contains("what to tell"));
        assert!(told(&inside(), &["--output", "x"]).unwrap_err().contains("NAME=VALUE"));
        assert!(told(&inside(), &["--output-json", "x={"]).unwrap_err().contains("--output-json x"));
        assert!(told(&inside(), &["--progress", "101"]).is_err());
    }
}
