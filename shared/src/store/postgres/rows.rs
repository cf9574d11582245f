//! Between rows and the domain: column lists, and the readers that go through a row in their order.

use crate::{
    domain::{
        ClusterName, Document, Job, JobId, JobState, Life, Project, Reach, RetryPolicy, SelfReport,
        Submission, WorkerId,
    },
    store::{PAGE_BYTES, kernel::Row},
};
use chrono::{DateTime, Utc};
use sqlx::{Decode, Postgres, Row as _, Type, postgres::PgRow};
use std::borrow::Cow;
use uuid::Uuid;

/// What [`Columns::life`] reads, of `job_state s`.
macro_rules! life_columns {
    () => {
        "s.state, s.attempt, s.epoch, s.fruitless_claims, s.owner, s.submission_id, s.submission_detail, \
         s.submission_reach, s.last_epoch, s.last_seq, s.cancel_requested, s.due_at, s.exit_code, s.claimed_at, \
         s.submitted_at, s.started_at, s.finished_at, s.reason"
    };
}

/// What [`Columns::job`] reads, of `jobs j` and `job_state s`.
macro_rules! job_columns {
    () => {
        concat!(
            "j.id, j.created_at, j.run_at, j.reported_attempt, j.reported_seq, j.progress, j.stage, j.message, j.project, \
             j.cluster, j.name, j.created_by, j.labels, j.spec, j.inputs, j.outputs, s.retry, s.max_attempts, \
             s.priority, ",
            $crate::store::postgres::rows::life_columns!()
        )
    };
}

/// Bytes of text of all `jobs j` before each in an order. Their lengths are known without reading them.
macro_rules! bytes_before {
    ($order:literal) => {
        concat!(
            "sum(octet_length(j.spec) + coalesce(octet_length(j.inputs), 0) + coalesce(octet_length(j.outputs), 0)) \
             OVER (ORDER BY ",
            $order,
            " ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
        )
    };
}

pub(super) use {bytes_before, job_columns, life_columns};

/// Most bytes of text before a job that is read for a page: by [`Job::weight`] jobs are never less than half of their text.
pub(super) fn most_bytes() -> i64 {
    i64::try_from(2 * PAGE_BYTES).unwrap_or(i64::MAX)
}

/// A row's columns, taken in order.
pub(super) struct Columns<'r> {
    row: &'r PgRow,
    next: usize,
}

impl<'r> Columns<'r> {
    pub(super) fn of(row: &'r PgRow) -> Self {
        Self { row, next: 0 }
    }

    /// The next column.
    pub(super) fn take<T: Decode<'r, Postgres> + Type<Postgres>>(&mut self) -> sqlx::Result<T> {
        let at = self.next;
        self.next += 1;
        self.row.try_get(at)
    }

    /// A count or number the database holds signed and the domain unsigned.
    pub(super) fn number(&mut self) -> sqlx::Result<u32> {
        u32::try_from(self.take::<i32>()?).map_err(corrupt)
    }

    /// A state's code.
    pub(super) fn state(&mut self) -> sqlx::Result<JobState> {
        state(self.take()?)
    }

    /// A name that was checked before it was stored.
    pub(super) fn name<N: TryFrom<String>>(&mut self) -> sqlx::Result<N>
    where
        N::Error: std::error::Error + Send + Sync + 'static,
    {
        N::try_from(self.take()?).map_err(corrupt)
    }

    /// JSON; the default when null.
    pub(super) fn json<T: serde::de::DeserializeOwned + Default>(&mut self) -> sqlx::Result<T> {
        self.take::<Option<&str>>()?
            .map_or_else(|| Ok(T::default()), |text| serde_json::from_str(text).map_err(corrupt))
    }

    /// [`life_columns`].
    pub(super) fn life(&mut self) -> sqlx::Result<Life> {
        let state = self.state()?;
        let (attempt, epoch) = (self.number()?, self.number()?);
        let fruitless_claims = u16::try_from(self.take::<i16>()?).map_err(corrupt)?;
        let owner = self.take::<Option<Uuid>>()?.map(WorkerId);
        let submission_id: Option<String> = self.take()?;
        let detail = self.json()?;
        let reach = self.take::<Option<String>>()?.map(Reach);
        let last_event = (self.number()?, u32::try_from(self.take::<i64>()?).map_err(corrupt)?);
        Ok(Life {
            state,
            attempt,
            epoch,
            fruitless_claims,
            owner,
            submission: submission_id.map(|id| Submission { id, detail, reach }),
            last_event,
            cancel_requested: self.take()?,
            due_at: self.take()?,
            exit_code: self.take()?,
            claimed_at: self.take()?,
            submitted_at: self.take()?,
            started_at: self.take()?,
            finished_at: self.take()?,
            reason: self.take()?,
        })
    }

    /// What an attempt has told of itself, if one has.
    fn report(&mut self) -> sqlx::Result<Option<SelfReport>> {
        let attempt = self.take::<Option<i32>>()?.map(u32::try_from).transpose().map_err(corrupt)?;
        let seq = self.take::<Option<i64>>()?.map(u64::try_from).transpose().map_err(corrupt)?;
        let progress = self.take::<Option<i16>>()?.map(u8::try_from).transpose().map_err(corrupt)?;
        let (stage, message) = (self.take()?, self.take()?);
        let seq = seq.unwrap_or_default();
        Ok(attempt.map(|attempt| SelfReport { attempt, seq, progress, stage, message }))
    }

    /// [`job_columns`].
    pub(super) fn job(&mut self) -> sqlx::Result<Job> {
        let id = JobId(self.take()?);
        let created_at = self.take()?;
        let run_at = self.take()?;
        let report = self.report()?;
        let project = self.name::<Project>()?;
        let cluster = self.name::<ClusterName>()?;
        let name = self.take()?;
        let created_by = self.take()?;
        let labels = self.take::<Option<Vec<String>>>()?.unwrap_or_default();
        let spec = serde_json::from_str(self.take()?).map_err(corrupt)?;
        let inputs = self.json::<Document>()?;
        let outputs = self.json::<Document>()?;
        let retry = self.json::<RetryPolicy>()?;
        let max_attempts = self.number()?;
        let priority = self.take()?;
        let life = self.life()?;
        Ok(Job {
            id,
            project,
            name,
            cluster,
            spec,
            labels,
            priority,
            inputs,
            outputs,
            report,
            max_attempts,
            retry,
            created_by,
            created_at,
            run_at,
            life,
        })
    }
}

/// A job alone in a row.
pub(super) fn job(row: &PgRow) -> sqlx::Result<Job> {
    Columns::of(row).job()
}

/// The state a stored code means.
pub(super) fn state(code: i16) -> sqlx::Result<JobState> {
    JobState::from_code(code).ok_or_else(|| corrupt(UnknownState(code)))
}

/// A job as the kernel decides about it.
pub(super) fn kernel_row(job: &Job, version: i32, standing: crate::domain::Standing) -> Row {
    Row {
        job: job.id,
        project: job.project.clone(),
        cluster: job.cluster.clone(),
        priority: job.priority,
        max_attempts: job.max_attempts,
        retry: job.retry.clone(),
        life: job.life.clone(),
        version: i64::from(version),
        standing,
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0} is the code of no state")]
struct UnknownState(i16);

/// Stored data this build cannot read.
pub(super) fn corrupt(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

/// As JSON text.
pub(super) fn json(value: &impl serde::Serialize) -> String {
    // Maps with string keys, numbers and strings only: nothing to fail on.
    serde_json::to_string(value).unwrap_or_default()
}

/// As JSON text; null when it is the default.
pub(super) fn sparse_json<T: serde::Serialize + Default + PartialEq>(value: &T) -> Option<String> {
    (*value != T::default()).then(|| json(value))
}

/// Text from outside (a resource manager's words) without the one character PostgreSQL's text cannot hold.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Labels as the text of a `text[]`; null when there are none. Arrays of arrays cannot be bound.
pub(super) fn labels_literal(labels: &[String]) -> Option<String> {
    if labels.is_empty() {
        return None;
    }
    let mut literal = String::from("{");
    for (i, label) in labels.iter().enumerate() {
        if i > 0 {
            literal.push(',');
        }
        literal.push('"');
        for character in label.chars() {
            if matches!(character, '"' | '\\') {
                literal.push('\\');
            }
            literal.push(character);
        }
        literal.push('"');
    }
    literal.push('}');
    Some(literal)
}

/// For a column most rows leave empty: `unnest` pads a shorter array with nulls, so an array of nulls need not be sent.
pub(super) fn sparse<T>(column: Vec<Option<T>>) -> Vec<Option<T>> {
    if column.iter().all(Option::is_none) { Vec::new() } else { column }
}

/// The domain's number in a signed column; what no column can hold becomes the largest it can.
pub(super) fn signed(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Ids as the server takes them.
pub(super) fn uuids(jobs: &[JobId]) -> Vec<Uuid> {
    jobs.iter().map(|job| job.0).collect()
}

/// Seconds, for `make_interval`.
pub(super) fn seconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64()
}

/// A moment, if it was one the server can hold to the microsecond.
pub(super) type Moment = Option<DateTime<Utc>>;
