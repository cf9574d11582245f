//! What an attempt is called at Slurm, and how it is known again.
//!
//! Slurm gives a job id a second time: after a crash slurmctld goes on from what it saved last. So a job is ours only if its
//! name is, too, and a name holds the tag and a nonce that every create draws anew. A submit time would say the same less
//! surely: it has whole seconds, and Slurm itself changes it when it requeues a job. A name is also what slurmdbd always keeps.

use super::{
    script::Outputs,
    wire::{JobRecord, moment},
};
use chrono::{DateTime, Utc};
use jobgate_shared::domain::{Submission, SubmissionTag};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What every create draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Nonce(u32);

/// One job of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) tag: SubmissionTag,
    pub(super) nonce: Nonce,
    /// Slurm's own id.
    pub(super) job: u32,
}

/// What is kept beside the id.
#[derive(Debug, Serialize, Deserialize)]
struct Detail {
    user: String,
}

/// How far the attempt was brought, as its comment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Created,
    Started,
    Discarded,
}

impl Nonce {
    pub(super) fn draw() -> Self {
        Self(rand::random())
    }

    /// One spelling only.
    fn parse(text: &str) -> Option<Self> {
        let nonce = Self(u32::from_str_radix(text, 16).ok()?);
        (nonce.to_string() == text).then_some(nonce)
    }
}

impl std::fmt::Display for Nonce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// The job's name at Slurm.
pub(super) fn name(tag: SubmissionTag, nonce: Nonce) -> String {
    format!("{tag}.{nonce}")
}

/// The job's comment: whose it is, and how far it was brought.
pub(super) fn comment(tag: SubmissionTag, scope: &str, mark: Mark) -> String {
    match mark {
        Mark::Created => format!("{tag} {scope}"),
        Mark::Started => format!("{tag} {scope} started"),
        Mark::Discarded => format!("{tag} {scope} discarded"),
    }
}

/// Where the output of a job goes, which has no id yet.
pub(super) fn outputs(dir: Option<&Path>, tag: SubmissionTag, nonce: Nonce) -> Outputs {
    let file = |ending: &str| match dir {
        Some(dir) => dir.join(format!("{}.%j.{ending}", name(tag, nonce))).to_string_lossy().into_owned(),
        None => "/dev/null".to_owned(),
    };
    Outputs { stdout: file("out"), stderr: file("err") }
}

/// Where a job leaves its exit code: within its name nothing is expanded, as Slurm never reads it.
pub(super) fn exit_file(tag: SubmissionTag, nonce: Nonce) -> String {
    format!("{}.exit", name(tag, nonce))
}

impl Identity {
    /// The job a submission names; `None` for one that cannot be ours.
    pub(super) fn of(tag: SubmissionTag, submission: &Submission) -> Option<(Self, String)> {
        let (job, nonce) = submission.id.split_once('.')?;
        let identity = Self { tag, nonce: Nonce::parse(nonce)?, job: job.parse().ok()? };
        let detail: Detail = serde_json::from_value(submission.detail.clone()).ok()?;
        Some((identity, detail.user))
    }

    pub(super) fn submission(&self, user: &str) -> Submission {
        let detail = serde_json::json!(Detail { user: user.to_owned() });
        Submission { id: format!("{}.{}", self.job, self.nonce), detail, reach: None }
    }

    /// The job of ours a record shows, if it does.
    pub(super) fn seen(record: &JobRecord) -> Option<Self> {
        let (tag, nonce) = record.name.rsplit_once('.')?;
        let job = u32::try_from(record.job_id?).ok()?;
        Some(Self { tag: tag.parse().ok()?, nonce: Nonce::parse(nonce)?, job })
    }

    /// The job that left a file of this name.
    pub(super) fn of_stdout(file: &str) -> Option<Self> {
        let (name, job) = file.strip_suffix(".out")?.rsplit_once('.')?;
        let (tag, nonce) = name.rsplit_once('.')?;
        Some(Self { tag: tag.parse().ok()?, nonce: Nonce::parse(nonce)?, job: job.parse().ok()? })
    }

    pub(super) fn file(&self, ending: &str) -> String {
        format!("{}.{}.{ending}", name(self.tag, self.nonce), self.job)
    }

    pub(super) fn exit_file(&self) -> String {
        exit_file(self.tag, self.nonce)
    }

    /// Made by the first beginning.
    pub(super) fn start_file(&self) -> String {
        format!("{}.start", self.exit_file())
    }

    /// How far the job was brought; `None` where the comment is not of this gateway.
    pub(super) fn mark(&self, record: &JobRecord, scope: &str) -> Option<Mark> {
        [Mark::Created, Mark::Started, Mark::Discarded]
            .into_iter()
            .find(|mark| record.comment == comment(self.tag, scope, *mark))
    }
}

/// When Slurm took a job.
pub(super) fn submitted(record: &JobRecord) -> Option<DateTime<Utc>> {
    moment(record.submit_time).or(moment(record.time.submission))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobgate_shared::domain::JobId;

    #[test]
    fn a_job_is_known_by_its_submission_its_record_and_its_file() {
        let tag = SubmissionTag { job: JobId::generate(), attempt: 3 };
        let identity = Identity { tag, nonce: Nonce(0x1f), job: 42 };
        let submission = identity.submission("jane");
        assert_eq!(submission.id, "42.0000001f");
        assert_eq!(Identity::of(tag, &submission), Some((identity, "jane".to_owned())));
        let record = JobRecord { job_id: Some(42), name: name(tag, identity.nonce), ..JobRecord::default() };
        assert_eq!(Identity::seen(&record), Some(identity));
        assert_eq!(Identity::of_stdout(&identity.file("out")), Some(identity));
        assert_eq!(Identity::of_stdout(&identity.file("err")), None);
    }

    #[test]
    fn another_life_of_an_id_is_another_job() {
        let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
        let of = |nonce, name: String| {
            let record = JobRecord { job_id: Some(5), name, ..JobRecord::default() };
            Identity::seen(&record) == Some(Identity { tag, nonce, job: 5 })
        };
        assert!(of(Nonce(1), name(tag, Nonce(1))));
        assert!(!of(Nonce(1), name(tag, Nonce(2))), "the same tag, created again");
        assert!(!of(Nonce(1), "sleep".to_owned()));
        assert!(!of(Nonce(1), format!("{tag}.1")), "one spelling only");
    }
}
