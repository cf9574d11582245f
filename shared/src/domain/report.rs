//! What a running job tells of itself, and what is kept of it.
//!
//! Reports come over a network that repeats and delays them, so the rule here never lets one move anything backwards,
//! and none moves a job: how a job stands is told by whoever watches it.

use super::{Document, Job, Phase};
use serde::{Deserialize, Serialize};

/// Something an attempt tells of itself. What is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// The attempt it is about; the one under way when absent.
    pub attempt: Option<u32>,
    /// Orders the reports of an attempt; one without is taken for the newest when it arrives.
    pub seq: Option<u64>,
    /// Percent done, 0 to 100.
    pub progress: Option<u8>,
    /// What it is busy with, in its own word; an empty one takes the last one back.
    pub stage: Option<String>,
    /// A line for people; an empty one takes the last one back.
    pub message: Option<String>,
    /// Added to the job's labels.
    pub labels: Vec<String>,
    /// Merged into the job's outputs, key by key.
    pub outputs: Document,
}

/// What one attempt has told of itself so far.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SelfReport {
    /// The attempt. What an earlier one told is not shown of a later one.
    pub attempt: u32,
    /// The greatest `seq` among its reports; 0 before there is one.
    pub seq: u64,
    /// Percent done, 0 to 100.
    pub progress: Option<u8>,
    /// What it is busy with, in its own word.
    pub stage: Option<String>,
    /// A line for people.
    pub message: Option<String>,
}

impl SelfReport {
    /// Of an attempt that has told nothing yet.
    pub fn of(attempt: u32) -> Self {
        Self { attempt, seq: 0, progress: None, stage: None, message: None }
    }
}

/// Why a job takes no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReportRefusal {
    /// Another attempt than the one it is about is under way, or was the last.
    OtherAttempt {
        /// That one.
        current: u32,
    },
    /// Nothing of the attempt can be running: it waits.
    NotBegun,
    /// It has ended.
    Ended,
}

impl Report {
    /// Takes the report down in `job`. Within an attempt progress only rises. One that is late, because a newer one came
    /// before it, replaces nothing: it only adds labels, and outputs nobody has told yet.
    pub fn apply(&self, job: &mut Job) -> Result<(), ReportRefusal> {
        let current = job.life.attempt;
        if self.attempt.is_some_and(|attempt| attempt != current) {
            return Err(ReportRefusal::OtherAttempt { current });
        }
        match job.life.state.phase() {
            Phase::Waiting => return Err(ReportRefusal::NotBegun),
            Phase::Ended => return Err(ReportRefusal::Ended),
            Phase::Claimed | Phase::Pending | Phase::Running => {}
        }
        let mut told = job.current_report().cloned().unwrap_or_else(|| SelfReport::of(current));
        let late = self.seq.is_some_and(|seq| seq < told.seq);
        told.seq = told.seq.max(self.seq.unwrap_or(0));
        told.progress = told.progress.max(self.progress);
        if !late {
            for (kept, text) in [(&mut told.stage, &self.stage), (&mut told.message, &self.message)] {
                if let Some(text) = text {
                    *kept = Some(text.clone()).filter(|text| !text.is_empty());
                }
            }
        }
        job.report = Some(told);
        for label in &self.labels {
            if !job.labels.contains(label) {
                job.labels.push(label.clone());
            }
        }
        for (key, value) in &self.outputs {
            if !late || !job.outputs.contains_key(key) {
                job.outputs.insert(key.clone(), value.clone());
            }
        }
        Ok(())
    }
}

impl Job {
    /// What the attempt under way, or the last one, has told of itself.
    pub fn current_report(&self) -> Option<&SelfReport> {
        self.report.as_ref().filter(|report| report.attempt == self.life.attempt)
    }

    /// Percent done, as the attempt tells it.
    pub fn progress(&self) -> Option<u8> {
        self.current_report().and_then(|report| report.progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{JobId, JobSpec, JobState, NewJob, Project, RetryPolicy};
    use chrono::DateTime;
    use proptest::{collection::vec, prelude::*, sample::select};
    use serde_json::json;

    fn job(state: JobState, attempt: u32) -> Job {
        let new = NewJob {
            id: JobId::generate(),
            project: Project::default_project(),
            name: "sum".into(),
            cluster: "local".parse().unwrap(),
            spec: JobSpec::default(),
            labels: vec!["a".into()],
            priority: 0,
            inputs: Document::new(),
            max_attempts: 3,
            retry: RetryPolicy::default(),
            run_at: None,
            hold: false,
            created_by: "token:t".into(),
            idempotency: None,
        };
        let mut job = new.accepted(DateTime::UNIX_EPOCH);
        (job.life.state, job.life.attempt) = (state, attempt);
        job
    }

    fn outputs(value: &serde_json::Value) -> Document {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn a_report_changes_what_it_names_and_adds_labels_and_outputs() {
        let mut job = job(JobState::Running, 1);
        let told = Report {
            progress: Some(40),
            stage: Some("sorting".into()),
            message: Some("row 7".into()),
            labels: vec!["b".into(), "a".into()],
            outputs: outputs(&json!({"rows": 7})),
            ..Report::default()
        };
        told.apply(&mut job).unwrap();
        let next = Report { message: Some(String::new()), progress: Some(30), ..Report::default() };
        next.apply(&mut job).unwrap();
        let expected = SelfReport { progress: Some(40), stage: Some("sorting".into()), ..SelfReport::of(1) };
        assert_eq!(job.report, Some(expected));
        assert_eq!((job.labels, job.outputs), (vec!["a".into(), "b".into()], outputs(&json!({"rows": 7}))));
    }

    #[test]
    fn a_late_report_replaces_nothing_and_its_additions_are_kept() {
        let mut job = job(JobState::Pending, 1);
        let report = |seq, progress, word: &str, told| Report {
            seq: Some(seq),
            progress: Some(progress),
            stage: Some(word.into()),
            outputs: outputs(&told),
            ..Report::default()
        };
        report(9, 50, "new", json!({"a": 2})).apply(&mut job).unwrap();
        report(4, 60, "old", json!({"a": 1, "b": 1})).apply(&mut job).unwrap();
        let kept = job.report.clone().unwrap();
        assert_eq!((kept.seq, kept.progress, kept.stage.as_deref()), (9, Some(60), Some("new")));
        assert_eq!(job.outputs, outputs(&json!({"a": 2, "b": 1})));
        let unordered = Report { stage: Some("now".into()), ..Report::default() };
        unordered.apply(&mut job).unwrap();
        let kept = job.report.unwrap();
        assert_eq!((kept.seq, kept.stage.as_deref()), (9, Some("now")));
    }

    #[test]
    fn a_report_is_refused_of_another_attempt_before_the_beginning_and_after_the_end() {
        let of = |attempt| Report { attempt, progress: Some(1), ..Report::default() };
        for state in JobState::ALL {
            let before = job(state, 2);
            let refused = |report: Report| {
                let mut job = before.clone();
                let refused = report.apply(&mut job).err();
                assert!(refused.is_none() || job == before, "{state}: a refusal changes nothing");
                refused
            };
            assert_eq!(refused(of(Some(1))), Some(ReportRefusal::OtherAttempt { current: 2 }), "{state}");
            assert_eq!(refused(of(Some(3))), Some(ReportRefusal::OtherAttempt { current: 2 }), "{state}");
            let expected = match state.phase() {
                Phase::Waiting => Some(ReportRefusal::NotBegun),
                Phase::Claimed | Phase::Pending | Phase::Running => None,
                Phase::Ended => Some(ReportRefusal::Ended),
            };
            assert_eq!((refused(of(None)), refused(of(Some(2)))), (expected, expected), "{state}");
        }
    }

    #[test]
    fn what_an_attempt_told_is_not_told_of_the_next() {
        let mut job = job(JobState::Running, 1);
        Report { seq: Some(5), progress: Some(90), ..Report::default() }.apply(&mut job).unwrap();
        job.life.attempt = 2;
        assert_eq!((job.current_report(), job.progress()), (None, None));
        Report { seq: Some(1), progress: Some(3), ..Report::default() }.apply(&mut job).unwrap();
        assert_eq!(job.progress(), Some(3));
    }

    proptest! {
        #[test]
        fn reports_in_any_order_and_number_end_as_the_newest_says(
            told in vec((0..=100_u8, select(&["a", "b", ""][..])), 1..6),
            order in vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let reports: Vec<Report> = (1..).zip(&told).map(|(seq, (progress, stage))| Report {
                seq: Some(seq),
                progress: Some(*progress),
                stage: Some((*stage).to_owned()),
                ..Report::default()
            }).collect();
            let mut job = job(JobState::Running, 1);
            let mut progress = None;
            for report in order.iter().map(|place| place.get(&reports)).chain(&reports) {
                report.apply(&mut job).unwrap();
                prop_assert!(job.progress() >= progress);
                progress = job.progress();
            }
            let kept = job.report.unwrap();
            let newest = reports.last().and_then(|report| report.stage.clone()).filter(|stage| !stage.is_empty());
            prop_assert_eq!(kept.stage, newest);
            prop_assert_eq!(kept.progress, told.iter().map(|(progress, _)| *progress).max());
        }
    }
}
