//! A job: what was asked for, which never changes, and its life, which only [`super::transition`] changes.

use super::{
    ClusterName, Ending, HistoryEntry, JobId, JobSpec, JobState, Project, SelfReport, Submission, WorkerId,
    weight::{length, parsed_weight},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// Free-form documents a producer hands in or a job hands out.
pub type Document = serde_json::Map<String, serde_json::Value>;

/// When and how a failed attempt is followed by another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicy {
    /// Seconds before the second attempt; doubled for each one after it.
    #[schema(minimum = 0, maximum = 604_800)]
    pub backoff_seconds: u32,
    /// The longest wait between two attempts, in seconds.
    #[schema(minimum = 0, maximum = 604_800)]
    pub max_backoff_seconds: u32,
    /// Which endings are followed by another attempt. `LOST` only if asked for: what the lost attempt did is unknown.
    #[schema(value_type = BTreeSet<BadEnding>)]
    pub retry_on: Vec<Ending>,
}

/// An ending that another attempt can follow.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(dead_code, reason = "the schema of some values of a type, not a type")]
enum BadEnding {
    Failed,
    TimedOut,
    Lost,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            backoff_seconds: 10,
            max_backoff_seconds: 600,
            retry_on: vec![Ending::Failed, Ending::TimedOut],
        }
    }
}

impl RetryPolicy {
    /// How long to wait after `attempt` (from 1) before the next.
    pub fn delay_after(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let seconds = u64::from(self.backoff_seconds) << doublings;
        Duration::from_secs(seconds.min(u64::from(self.max_backoff_seconds)))
    }
}

/// A job about to be accepted: checked, with its id, not yet stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// Made by the accepting API instance, so that a replay after an unknown commit inserts nothing twice.
    pub id: JobId,
    /// Whose it is.
    pub project: Project,
    /// For people; not unique.
    pub name: String,
    /// Which resource manager runs it.
    pub cluster: ClusterName,
    /// What to run.
    pub spec: JobSpec,
    /// Words to find it by.
    pub labels: Vec<String>,
    /// −100 (last) to 100 (first).
    pub priority: i16,
    /// What the producer hands in; not interpreted.
    pub inputs: Document,
    /// Attempts in all, from 1.
    pub max_attempts: u32,
    /// When another attempt follows.
    pub retry: RetryPolicy,
    /// Not before this time.
    pub run_at: Option<DateTime<Utc>>,
    /// Starts `HELD`.
    pub hold: bool,
    /// The token that posted it.
    pub created_by: String,
    /// Whoever posts the same key and body again gets this job back.
    pub idempotency: Option<IdempotencyKey>,
}

impl NewJob {
    /// About how many bytes it takes in memory beside the text it was posted as.
    pub fn parsed_weight(&self) -> usize {
        self.spec.parsed_weight() + parsed_weight(&self.inputs)
    }

    /// The job as stored, accepted at the store's time `now`. A `run_at` in the past is due now: asking for the past
    /// must not pass those who waited.
    pub fn accepted(&self, now: DateTime<Utc>) -> Job {
        let due_at = self.run_at.map_or(now, |at| at.max(now));
        Job {
            id: self.id,
            project: self.project.clone(),
            name: self.name.clone(),
            cluster: self.cluster.clone(),
            spec: self.spec.clone(),
            labels: self.labels.clone(),
            priority: self.priority,
            inputs: self.inputs.clone(),
            outputs: Document::new(),
            report: None,
            max_attempts: self.max_attempts,
            retry: self.retry.clone(),
            created_by: self.created_by.clone(),
            created_at: now,
            run_at: self.run_at,
            life: Life::begin(self.hold, due_at),
        }
    }
}

/// A producer's own name for one submission, and a digest of the body it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    /// As sent; `key#index` for an item of a batch.
    pub key: String,
    /// SHA-256 of the body.
    pub body: [u8; 32],
}

/// The part of a job that changes. Only [`super::transition`] makes a new one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Life {
    /// Where it stands.
    pub state: JobState,
    /// Why it stands there, in words for people.
    pub reason: Option<String>,
    /// The attempt under way, from 1.
    pub attempt: u32,
    /// Counts the claims of this job; whoever acts on it quotes the epoch of its own claim.
    pub epoch: u32,
    /// Claims of this attempt that ended with nothing recorded; what kills its worker shows here.
    pub fruitless_claims: u16,
    /// The worker that has it; kept after the end.
    pub owner: Option<WorkerId>,
    /// What the resource manager calls it; written once an attempt.
    pub submission: Option<Submission>,
    /// Epoch and sequence of the newest event applied to this attempt.
    pub last_event: (u32, u32),
    /// A cancel was asked for and is not yet carried out.
    pub cancel_requested: bool,
    /// Not before this time: `run_at`, or the end of a retry's back-off.
    pub due_at: DateTime<Utc>,
    /// The exit code of the attempt, where there is one.
    pub exit_code: Option<i32>,
    /// When a worker took this attempt.
    pub claimed_at: Option<DateTime<Utc>>,
    /// When its submission was recorded.
    pub submitted_at: Option<DateTime<Utc>>,
    /// When it began to run.
    pub started_at: Option<DateTime<Utc>>,
    /// When it reached a terminal state.
    pub finished_at: Option<DateTime<Utc>>,
}

impl Life {
    /// The life of a job just accepted.
    pub fn begin(hold: bool, due_at: DateTime<Utc>) -> Self {
        Self {
            state: if hold { JobState::Held } else { JobState::Initialized },
            reason: None,
            attempt: 1,
            epoch: 0,
            fruitless_claims: 0,
            owner: None,
            submission: None,
            last_event: (0, 0),
            cancel_requested: false,
            due_at,
            exit_code: None,
            claimed_at: None,
            submitted_at: None,
            started_at: None,
            finished_at: None,
        }
    }

    /// How the row stands to an end that `worker` told of `attempt`, which it claimed under `epoch`.
    pub fn agreement(&self, worker: WorkerId, attempt: u32, epoch: u32) -> Agreement {
        if self.attempt > attempt || self.state.is_terminal() {
            Agreement::Settled
        } else if self.epoch != epoch || self.owner != Some(worker) {
            Agreement::Lost
        } else {
            Agreement::Open
        }
    }

    /// Somebody may yet start this submission of `attempt`. While the attempt is the row's and nothing is recorded it may
    /// be started whatever the state: somebody may be about to record it.
    pub fn may_start(&self, attempt: u32, submission: &str) -> bool {
        let recorded = self.submission.as_ref().filter(|_| self.attempt == attempt);
        self.attempt <= attempt
            && !self.state.is_terminal()
            && recorded.is_none_or(|recorded| recorded.id == submission)
    }

    /// The worker that has the job now; nobody once it was handed back or has ended.
    pub fn holder(&self) -> Option<WorkerId> {
        self.owner.filter(|owner| self.state.is_owned() && *owner != WorkerId::NOBODY)
    }
}

/// How a row stands to an end that was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// The attempt is over in the row, too.
    Settled,
    /// The attempt goes on in somebody else's hands: what is kept for it must stay.
    Lost,
    /// The row has not heard yet.
    Open,
}

/// A job as stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Job {
    /// Its identity.
    pub id: JobId,
    /// Whose it is.
    pub project: Project,
    /// For people; not unique.
    pub name: String,
    /// Which resource manager runs it.
    pub cluster: ClusterName,
    /// What to run.
    pub spec: JobSpec,
    /// Words to find it by.
    pub labels: Vec<String>,
    /// −100 (last) to 100 (first).
    pub priority: i16,
    /// What the producer handed in.
    pub inputs: Document,
    /// What the job handed out.
    pub outputs: Document,
    /// What one of its attempts told of itself; see [`Job::current_report`].
    pub report: Option<SelfReport>,
    /// Attempts in all.
    pub max_attempts: u32,
    /// When another attempt follows.
    pub retry: RetryPolicy,
    /// The token that posted it.
    pub created_by: String,
    /// When it was accepted, by the store's clock.
    pub created_at: DateTime<Utc>,
    /// The time it was asked to wait for.
    pub run_at: Option<DateTime<Utc>>,
    /// The part that changes.
    pub life: Life,
}

impl Job {
    /// About how many bytes it takes in memory: what was asked for and handed out, the same for every store. Stored or sent
    /// it is less.
    pub fn weight(&self) -> usize {
        // What is around the documents: names, times, words.
        const FRAME: usize = 1024;
        let text = length(&self.spec) + length(&self.inputs) + length(&self.outputs);
        let parsed = self.spec.parsed_weight() + parsed_weight(&self.inputs) + parsed_weight(&self.outputs);
        FRAME + text + parsed
    }

    /// The first entry of its history: accepted, in the state it began in.
    pub fn acceptance(&self, began: JobState) -> HistoryEntry {
        HistoryEntry {
            at: self.created_at,
            attempt: 1,
            from: None,
            to: began,
            reason: None,
            by: Some(self.created_by.clone()),
        }
    }
}

/// Environment every job gets to know itself by.
pub fn identity_env(job: JobId, attempt: u32, project: &Project, name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("JOBGATE_JOB_ID".to_owned(), job.to_string()),
        ("JOBGATE_ATTEMPT".to_owned(), attempt.to_string()),
        ("JOBGATE_PROJECT".to_owned(), project.to_string()),
        ("JOBGATE_JOB_NAME".to_owned(), name.to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_its_cap() {
        let policy = RetryPolicy { backoff_seconds: 10, max_backoff_seconds: 60, ..RetryPolicy::default() };
        let delays: Vec<u64> = [1, 2, 3, 4, 5, 200].map(|n| policy.delay_after(n).as_secs()).to_vec();
        assert_eq!(delays, [10, 20, 40, 60, 60, 60]);
    }
}
