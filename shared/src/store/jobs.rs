//! What producers and operators ask of jobs, and what they are answered.

use crate::domain::{
    ClusterName, Document, HistoryEntry, Job, JobId, JobState, Project, Refusal, ReportRefusal, SelfReport,
    WorkerId,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// What became of one accepted job.
#[derive(Debug, Clone, PartialEq)]
pub enum Inserted {
    /// It is stored.
    Created(Box<Job>),
    /// Its idempotency key (or its id, after an unknown commit) was there already, with the same body: this job.
    Existing(Box<Job>),
    /// Its idempotency key stands for another body.
    KeyReused,
}

/// Which jobs a listing or a bulk command means. Empty means no restriction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Filter {
    /// In one of these states.
    pub states: Vec<JobState>,
    /// With every one of these labels.
    pub labels: Vec<String>,
    /// Of this cluster.
    pub cluster: Option<ClusterName>,
    /// Of exactly this name.
    pub name: Option<String>,
    /// Accepted at or after this time.
    pub created_after: Option<DateTime<Utc>>,
    /// Accepted before this time.
    pub created_before: Option<DateTime<Utc>>,
}

impl Filter {
    /// It means this job.
    pub fn matches(&self, job: &Job) -> bool {
        (self.states.is_empty() || self.states.contains(&job.life.state))
            && self.labels.iter().all(|label| job.labels.contains(label))
            && self.cluster.as_ref().is_none_or(|cluster| *cluster == job.cluster)
            && self.name.as_ref().is_none_or(|name| *name == job.name)
            && self.created_after.is_none_or(|from| from <= job.created_at)
            && self.created_before.is_none_or(|to| job.created_at < to)
    }
}

/// Newest first; `after` is the last job of the page before. Job ids are time-ordered, so the id is the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    /// Continue below this job.
    pub after: Option<JobId>,
    /// At most so many.
    pub limit: u32,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// The jobs, newest first.
    pub jobs: Vec<Job>,
    /// Where the next page begins; absent on the last. A page can be short, even empty, and still have a next one: it ends
    /// with the job that brings it to [`PAGE_BYTES`](super::PAGE_BYTES), and an adapter may stop looking after a bounded
    /// number of rows.
    pub next: Option<JobId>,
}

/// What became of one command.
#[derive(Debug, Clone, PartialEq)]
pub enum Commanded {
    /// Carried out, or it held already; `owner` has it and should be nudged.
    Done {
        /// The job now.
        job: Box<Job>,
        /// The worker that has it, if one does.
        owner: Option<WorkerId>,
    },
    /// The row says no.
    Refused(Refusal),
    /// No such job in scope.
    Absent,
}

/// What `PATCH` may change; absent means unchanged.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Patch {
    /// Replaces the labels.
    pub labels: Option<Vec<String>>,
    /// Replaces the priority; orders the job anew while it waits.
    pub priority: Option<i16>,
    /// Percent done of the attempt under way, or the last one; unlike a report's it may fall.
    pub progress: Option<u8>,
    /// Merged into the outputs, key by key; `null` removes one.
    pub outputs: Option<Document>,
}

impl Patch {
    /// Changes `job`. None of this is part of its life.
    pub fn apply(&self, job: &mut Job) {
        if let Some(labels) = &self.labels {
            job.labels.clone_from(labels);
        }
        job.priority = self.priority.unwrap_or(job.priority);
        if self.progress.is_some() {
            let told = job.current_report().cloned();
            let told = told.unwrap_or_else(|| SelfReport::of(job.life.attempt));
            job.report = Some(SelfReport { progress: self.progress, ..told });
        }
        for (key, value) in self.outputs.iter().flatten() {
            if value.is_null() {
                job.outputs.remove(key);
            } else {
                job.outputs.insert(key.clone(), value.clone());
            }
        }
    }
}

/// What became of a report.
#[derive(Debug, Clone, PartialEq)]
pub enum Reported {
    /// It is taken down: the job now.
    Taken(Box<Job>),
    /// The row says no.
    Refused(ReportRefusal),
    /// No such job in scope.
    Absent,
}

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It is gone, with its history and its key.
    Removed,
    /// It has not ended.
    NotEnded,
    /// No such job in scope.
    Absent,
}

/// One committed change, as the feed tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobChange {
    /// The job.
    pub job: JobId,
    /// Whose it is.
    pub project: Project,
    /// The change.
    #[serde(flatten)]
    pub entry: HistoryEntry,
}

/// Where a reader of the feed stands: after this much of it. Ordered; opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct FeedCursor {
    /// The batch.
    pub batch: i64,
    /// How many of its changes were read.
    pub index: u32,
}

/// A stretch of the feed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Each with the cursor that stands after it.
    pub items: Vec<(FeedCursor, JobChange)>,
    /// Some changes are missing before `items`: the cursor asked for is older than what is kept, or from beyond the last
    /// batch, as one of another feed is (before the store was restored or made anew).
    pub gap: bool,
}
