//! What a run leaves to be judged: plain data, written down as it is and read by the checker alone.

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, Utc};
use jobgate_shared::domain::{HistoryEntry, JobId, JobState, SubmissionTag};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
};

/// What a producer wanted of a job, and so how it may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Ends well at once or after a while.
    Succeed,
    /// Fails at the first attempt, ends well at the second.
    FailOnce,
    /// Fails at every attempt.
    FailAlways,
    /// Runs longer than its time limit.
    Overrun,
    /// Runs until it is canceled, which is asked for.
    Forever,
    /// Fails or not, as the resource manager throws its dice.
    Any,
}

/// What an engine promises, as far as it decides what a ledger may show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// Exactly once, and nothing begins that was not recorded.
    Inert,
    /// Exactly once, but what was never recorded may have begun and been ended.
    Eager,
    /// Never twice; `LOST` when nobody knows.
    AtMostOnce,
}

/// A job some producer was told to be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The job.
    pub job: JobId,
    /// The producer's own name for it.
    pub key: String,
    /// Where it runs.
    pub cluster: String,
    /// How it is to end.
    pub wish: Wish,
    /// When the answer came.
    pub at: DateTime<Utc>,
}

/// A job as the API shows it at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The job.
    pub id: JobId,
    /// Where it ran.
    pub cluster: String,
    /// Where it stands.
    pub state: JobState,
    /// Why.
    pub reason: Option<String>,
    /// Its last attempt.
    pub attempt: u32,
    /// Attempts it was allowed.
    pub max_attempts: u32,
}

/// One line of a ledger: an attempt began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Which.
    pub tag: String,
    /// In whose ledger.
    pub cluster: String,
    /// Where its line begins.
    pub offset: u64,
}

impl Start {
    /// Job and attempt.
    pub fn attempt(&self) -> Result<SubmissionTag> {
        self.tag
            .parse()
            .with_context(|| format!("a line of the ledger of {} names {:?}", self.cluster, self.tag))
    }
}

/// A row as it stood during the run, noted whenever it had changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// The job.
    pub job: JobId,
    /// When it was seen.
    pub at: DateTime<Utc>,
    /// Where it stood.
    pub state: JobState,
    /// Its attempt.
    pub attempt: u32,
    /// The row's version.
    pub version: i32,
    /// For an end: how long its cluster's ledger was *after* it was seen. Whatever stands behind began later.
    pub ledger_length: Option<u64>,
}

/// Everything the checker looks at.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// What each cluster promises.
    pub clusters: BTreeMap<String, Promise>,
    /// Every job a producer was told of.
    pub accepted: Vec<Accepted>,
    /// Every row.
    pub rows: Vec<Row>,
    /// The history of every row.
    pub histories: BTreeMap<JobId, Vec<HistoryEntry>>,
    /// Every line of every ledger.
    pub starts: Vec<Start>,
    /// What was seen of the rows while it ran, oldest first.
    pub sightings: Vec<Sighting>,
    /// Jobs somebody asked to be canceled.
    pub asked: BTreeSet<JobId>,
    /// Jobs a producer was answered to be CANCELED, and how long their cluster's ledger was after the answer.
    pub canceled: Vec<(JobId, u64)>,
    /// How many jobs stand where, as `/v1/queues` counts them.
    pub depths: BTreeMap<String, u64>,
    /// Defects noticed on the way: answers nobody may give, processes that ended by themselves, panics, dead letters.
    pub defects: Vec<String>,
    /// A job may say that the disk was full, for it was.
    pub disk_was_full: bool,
}

impl Evidence {
    /// Writes all of it into `folder`, one document a line.
    pub fn keep(&self, folder: &Path) -> Result<()> {
        lines(&folder.join("accepted.jsonl"), &self.accepted)?;
        lines(&folder.join("rows.jsonl"), &self.rows)?;
        lines(&folder.join("histories.jsonl"), &self.histories.iter().collect::<Vec<_>>())?;
        lines(&folder.join("starts.jsonl"), &self.starts)?;
        lines(&folder.join("sightings.jsonl"), &self.sightings)?;
        lines(&folder.join("asked.jsonl"), &self.asked.iter().collect::<Vec<_>>())?;
        lines(&folder.join("canceled.jsonl"), &self.canceled)?;
        lines(&folder.join("defects.jsonl"), &self.defects)
    }
}

fn lines<T: Serialize>(path: &Path, items: &[T]) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for item in items {
        serde_json::to_writer(&mut file, item)?;
        file.write_all(b"\n")?;
    }
    Ok(file.flush()?)
}

/// What else stands in the file of a resource manager that is shared: what happened, but no beginning.
const OTHER_LINES: [&str; 4] = ["created", "ended", "removed", "buried"];

/// The tag on a line of a ledger, if the line says that an attempt began.
pub fn begun(line: &str) -> Option<&str> {
    line.split_whitespace().next().filter(|word| !OTHER_LINES.contains(word))
}

/// Reads the ledger of `cluster`: the tag is the first word of each line. A ledger nobody wrote to is empty.
pub fn read_ledger(cluster: &str, path: &Path) -> Result<Vec<Start>> {
    let mut starts = Vec::new();
    let mut offset = 0;
    let bytes = if path.exists() { fs::read(path)? } else { Vec::new() };
    for line in String::from_utf8(bytes).context("a ledger is text")?.split_inclusive('\n') {
        ensure!(line.ends_with('\n'), "the ledger of {cluster} ends amid a line: {line:?}");
        if let Some(tag) = begun(line) {
            starts.push(Start { tag: tag.to_owned(), cluster: cluster.to_owned(), offset });
        }
        offset += line.len() as u64;
    }
    Ok(starts)
}
