//! A job as a producer posts it.
//!
//! It is checked here completely, so that nothing wrong becomes a row; the first fault found names its field by its path.

use super::{
    limits::MAX_PARSED,
    problem::{Answer, Problem},
};
use crate::clusters::SpecValidator;
use chrono::{DateTime, TimeDelta, Utc};
use jobgate_shared::domain::{
    ClusterName, Document, Ending, IdempotencyKey, JobId, JobSpec, NewJob, Project, RetryPolicy, object,
    parsed_weight,
};
use serde::Deserialize;
use std::path::Path;

/// Longest name, in characters.
pub(super) const MAX_NAME: usize = 200;
/// Most labels of a job, and the longest one in characters.
const MAX_LABELS: usize = 64;
const MAX_LABEL: usize = 200;
/// Most attempts.
const MAX_ATTEMPTS: u32 = 100;
/// Longest wait between two attempts: a week.
const MAX_BACKOFF_SECONDS: u32 = 7 * 24 * 3600;
/// How far ahead a job can be posted.
const MAX_AHEAD: TimeDelta = TimeDelta::days(5 * 365);
/// Largest spec in bytes, its script and its standard input aside.
const MAX_SPEC: usize = 256 * 1024;
/// Deepest nesting of a document handed in: answers nest it further, and readers stop at 128.
const MAX_DEPTH: usize = 100;

/// A job to run. Only `spec.command` is required.
#[derive(Debug, Clone, PartialEq, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "sum",
    "cluster": "local",
    "labels": ["nightly"],
    "spec": {"command": ["sha256sum", "data.bin"], "working_dir": "/data", "time_limit_seconds": 600}
}))]
pub struct JobRequest {
    /// For people; need not be unique. The program's name when absent.
    #[schema(max_length = 200, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    name: Option<String>,
    /// Which configured cluster runs it; the default one when absent.
    #[schema(value_type = Option<ClusterName>)]
    cluster: Option<String>,
    /// Words to find it by.
    #[serde(default)]
    #[schema(max_items = 64, value_type = Vec<Label>)]
    labels: Vec<String>,
    /// Order among waiting jobs of a cluster: −100 (last) to 100 (first).
    #[serde(default)]
    #[schema(minimum = -100, maximum = 100)]
    priority: i64,
    /// What to run.
    #[serde(deserialize_with = "object")]
    spec: JobSpec,
    /// Anything the job's readers want to find beside it; not interpreted. At most about 200 000 values, or 20 000 small
    /// objects.
    #[serde(default)]
    #[schema(value_type = Object)]
    inputs: Document,
    /// Attempts in all.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 100, default = 1)]
    max_attempts: i64,
    /// When another attempt follows a failed one.
    #[serde(default, deserialize_with = "object")]
    retry: RetryPolicy,
    /// Not before this time, from 1970 to five years ahead; a time in the past means now.
    run_at: Option<DateTime<Utc>>,
    /// Wait until released.
    #[serde(default)]
    hold: bool,
}

/// A word to find jobs by: one line of text.
#[derive(utoipa::ToSchema)]
#[schema(min_length = 1, max_length = 200, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
#[expect(dead_code, reason = "the schema of a string, not its type")]
pub(super) struct Label(String);

fn one() -> i64 {
    1
}

/// What a posted document is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Posting<'a> {
    /// The configured clusters.
    pub clusters: &'a dyn SpecValidator,
    /// Whose job it becomes.
    pub project: &'a Project,
    /// Who posts it.
    pub by: &'a str,
    /// The time.
    pub now: DateTime<Utc>,
}

impl JobRequest {
    /// The job this asks for, under a new id.
    pub fn check(self, posting: &Posting<'_>, idempotency: Option<IdempotencyKey>) -> Answer<NewJob> {
        let Self { name, cluster, labels, priority, spec, inputs, max_attempts, retry, run_at, hold } = self;
        if let Some(name) = &name {
            check_text("name", name, MAX_NAME)?;
        }
        check_labels(&labels)?;
        let priority = check_priority(priority)?;
        let max_attempts = u32::try_from(max_attempts).ok().filter(|n| (1..=MAX_ATTEMPTS).contains(n));
        let max_attempts = max_attempts
            .ok_or_else(|| Problem::invalid("max_attempts", format!("must be 1 to {MAX_ATTEMPTS}")))?;
        check_retry(&retry)?;
        check_document("inputs", &inputs)?;
        let run_at = check_run_at(run_at, posting.now)?;
        spec.check().map_err(|e| Problem::invalid(e.field, e.message))?;
        check_document("spec.engine", &spec.engine)?;
        if weight(&spec) > MAX_SPEC {
            return Err(Problem::invalid("spec", format!("is larger than {MAX_SPEC} bytes")));
        }
        let cluster = pick_cluster(cluster, posting.clusters)?;
        let checked = posting.clusters.validate(&cluster, &spec);
        checked.map_err(|e| Problem::invalid(e.field, e.message))?;
        let name = name.unwrap_or_else(|| program_name(&spec));
        Ok(NewJob {
            id: JobId::generate(),
            project: posting.project.clone(),
            name,
            cluster,
            spec,
            labels,
            priority,
            inputs,
            max_attempts,
            retry,
            run_at,
            hold,
            created_by: posting.by.to_owned(),
            idempotency,
        })
    }
}

fn pick_cluster(asked: Option<String>, clusters: &dyn SpecValidator) -> Answer<ClusterName> {
    let Some(asked) = asked else {
        let default = clusters.default_cluster().cloned();
        return default.ok_or_else(|| Problem::invalid("cluster", "is needed: no default is configured"));
    };
    let known = clusters.clusters().iter().find(|info| info.name.as_str() == asked);
    known.map(|info| info.name.clone()).ok_or_else(|| {
        let names: Vec<&str> = clusters.clusters().iter().map(|info| info.name.as_str()).collect();
        Problem::invalid("cluster", format!("must be one of: {}", names.join(", ")))
    })
}

/// The file name of the program, as a name for the job.
fn program_name(spec: &JobSpec) -> String {
    let program = spec.command.first().map_or("", String::as_str);
    let file = Path::new(program).file_name().and_then(|f| f.to_str()).unwrap_or(program);
    file.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
}

/// Checks one line of text for people.
pub(super) fn check_text(field: &str, text: &str, longest: usize) -> Answer<()> {
    if text.chars().count() > longest {
        return Err(Problem::invalid(field, format!("is longer than {longest} characters")));
    }
    if text.chars().any(char::is_control) {
        return Err(Problem::invalid(field, "must not contain control characters"));
    }
    Ok(())
}

/// Checks labels.
pub(super) fn check_labels(labels: &[String]) -> Answer<()> {
    if labels.len() > MAX_LABELS {
        return Err(Problem::invalid("labels", format!("holds more than {MAX_LABELS}")));
    }
    for (i, label) in labels.iter().enumerate() {
        check_label(&format!("labels[{i}]"), label)?;
    }
    Ok(())
}

/// Checks one label.
pub(super) fn check_label(field: &str, label: &str) -> Answer<()> {
    check_text(field, label, MAX_LABEL)?;
    if label.is_empty() { Err(Problem::invalid(field, "must not be empty")) } else { Ok(()) }
}

/// Checks a priority.
pub(super) fn check_priority(priority: i64) -> Answer<i16> {
    let fits = i16::try_from(priority).ok().filter(|p| (-100..=100).contains(p));
    fits.ok_or_else(|| Problem::invalid("priority", "must be -100 to 100"))
}

/// Checks percents.
pub(super) fn check_progress(progress: i64) -> Answer<u8> {
    let fits = u8::try_from(progress).ok().filter(|p| *p <= 100);
    fits.ok_or_else(|| Problem::invalid("progress", "must be 0 to 100"))
}

/// Checks a document that is kept and not interpreted.
pub(super) fn check_document(field: &str, document: &Document) -> Answer<()> {
    if !document.values().all(|value| nests_at_most(value, MAX_DEPTH)) {
        return Err(Problem::invalid(field, format!("nests deeper than {MAX_DEPTH}")));
    }
    if parsed_weight(document) > MAX_PARSED {
        let counted = "a value counts 64, an array 128 more, an object 640 more for every six fields";
        let detail = format!("holds more than {MAX_PARSED} bytes of memory allow: {counted}");
        return Err(Problem::invalid(field, detail));
    }
    Ok(())
}

fn nests_at_most(value: &serde_json::Value, depth: usize) -> bool {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        Value::Array(items) => depth > 0 && items.iter().all(|v| nests_at_most(v, depth - 1)),
        Value::Object(fields) => depth > 0 && fields.values().all(|v| nests_at_most(v, depth - 1)),
    }
}

fn check_retry(retry: &RetryPolicy) -> Answer<()> {
    for (field, seconds) in [
        ("retry.backoff_seconds", retry.backoff_seconds),
        ("retry.max_backoff_seconds", retry.max_backoff_seconds),
    ] {
        if seconds > MAX_BACKOFF_SECONDS {
            return Err(Problem::invalid(field, format!("must be at most {MAX_BACKOFF_SECONDS}")));
        }
    }
    for (i, ending) in retry.retry_on.iter().enumerate() {
        match ending {
            Ending::Failed | Ending::TimedOut | Ending::Lost => {}
            Ending::Finished | Ending::Canceled => {
                let field = format!("retry.retry_on[{i}]");
                return Err(Problem::invalid(field, "must be FAILED, TIMED_OUT or LOST"));
            }
        }
        if retry.retry_on[..i].contains(ending) {
            return Err(Problem::invalid(format!("retry.retry_on[{i}]"), "stands there twice"));
        }
    }
    Ok(())
}

fn check_run_at(run_at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Answer<Option<DateTime<Utc>>> {
    let Some(run_at) = run_at else { return Ok(None) };
    if run_at > now + MAX_AHEAD {
        return Err(Problem::invalid("run_at", "is more than five years ahead"));
    }
    if run_at < DateTime::UNIX_EPOCH {
        return Err(Problem::invalid("run_at", "is before 1970"));
    }
    // Whole microseconds are what every store can hold; no store knows a leap second.
    Ok(DateTime::from_timestamp_micros(run_at.timestamp_micros()))
}

/// Bytes of a spec without what may be long.
fn weight(spec: &JobSpec) -> usize {
    let command: usize = spec.command.iter().map(|a| a.len() + 3).sum();
    let env: usize = spec.env.iter().map(|(k, v)| k.len() + v.len() + 6).sum();
    let engine = if spec.engine.is_empty() {
        0
    } else {
        serde_json::to_vec(&spec.engine).map_or(usize::MAX / 2, |bytes| bytes.len())
    };
    let rest = spec.working_dir.as_ref().map_or(0, String::len) + spec.image.as_ref().map_or(0, String::len);
    command + env + engine + rest
}
