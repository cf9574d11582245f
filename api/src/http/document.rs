//! A job as everybody reads it.

use chrono::{DateTime, Utc};
use jobgate_shared::domain::{
    ClusterName, Document, Job, JobId, JobSpec, JobState, Project, RetryPolicy, SelfReport,
};
use serde::{Deserialize, Serialize};

/// A job as everybody reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobDocument {
    /// Its identity; ids of younger jobs are greater.
    pub id: JobId,
    /// Whose it is.
    pub project: Project,
    /// For people.
    pub name: String,
    /// Which cluster runs it.
    pub cluster: ClusterName,
    /// Where it stands.
    pub state: JobState,
    /// Why it stands there.
    pub reason: Option<String>,
    /// The attempt under way, from 1.
    pub attempt: u32,
    /// Attempts in all.
    pub max_attempts: u32,
    /// Order among waiting jobs of its cluster; the highest first.
    pub priority: i16,
    /// Words to find it by.
    pub labels: Vec<String>,
    /// What the producer handed in.
    #[schema(value_type = Object)]
    pub inputs: Document,
    /// What the job handed out.
    #[schema(value_type = Object)]
    pub outputs: Document,
    /// Percent done, as the attempt tells it.
    #[schema(maximum = 100)]
    pub progress: Option<u8>,
    /// What the attempt is busy with, in its own word.
    pub stage: Option<String>,
    /// What the attempt says to people.
    pub message: Option<String>,
    /// What it runs.
    pub spec: JobSpec,
    /// When another attempt follows a failed one.
    pub retry: RetryPolicy,
    /// What the resource manager calls the attempt.
    pub submission_id: Option<String>,
    /// Exit code of the attempt, where there is one.
    pub exit_code: Option<i32>,
    /// Somebody asked for its end, which has not come yet.
    pub cancel_requested: bool,
    /// Who posted it.
    pub created_by: String,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// The time it was asked to wait for.
    pub run_at: Option<DateTime<Utc>>,
    /// When a worker took the attempt.
    pub claimed_at: Option<DateTime<Utc>>,
    /// When the resource manager had it.
    pub submitted_at: Option<DateTime<Utc>>,
    /// When it began to run.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

impl From<Job> for JobDocument {
    fn from(job: Job) -> Self {
        let told = job.current_report().cloned();
        let told = told.unwrap_or_else(|| SelfReport::of(job.life.attempt));
        let SelfReport { progress, stage, message, .. } = told;
        let life = job.life;
        Self {
            id: job.id,
            project: job.project,
            name: job.name,
            cluster: job.cluster,
            state: life.state,
            reason: life.reason,
            attempt: life.attempt,
            max_attempts: job.max_attempts,
            priority: job.priority,
            labels: job.labels,
            inputs: job.inputs,
            outputs: job.outputs,
            progress,
            stage,
            message,
            spec: job.spec,
            retry: job.retry,
            submission_id: life.submission.map(|submission| submission.id),
            exit_code: life.exit_code,
            cancel_requested: life.cancel_requested,
            created_by: job.created_by,
            created_at: job.created_at,
            run_at: job.run_at,
            claimed_at: life.claimed_at,
            submitted_at: life.submitted_at,
            started_at: life.started_at,
            finished_at: life.finished_at,
        }
    }
}
