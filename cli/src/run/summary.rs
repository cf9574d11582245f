//! What a run came to: how many jobs ended how, which took longest, which did not end well and why.

use crate::{
    client::JobDoc,
    commands::ran,
    render::{Output, Table, clean_line},
};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::BTreeMap;

/// Slowest jobs shown.
const SLOWEST: usize = 5;
/// Jobs shown that did not end well.
const UNWELL: usize = 50;

/// Shows the table of outcomes.
pub(super) fn show(output: &mut Output, jobs: &[JobDoc], now: DateTime<Utc>) -> anyhow::Result<()> {
    let mut states: BTreeMap<&str, u64> = BTreeMap::new();
    for job in jobs {
        *states.entry(&job.state).or_default() += 1;
    }
    let mut table = Table::new(["STATE", "JOBS"]).right(&[1]);
    for (state, count) in states {
        table.row(&[state.to_owned(), count.to_string()]);
    }
    output.line(table)?;
    show_slowest(output, jobs, now)?;
    show_unwell(output, jobs)
}

fn show_slowest(output: &mut Output, jobs: &[JobDoc], now: DateTime<Utc>) -> anyhow::Result<()> {
    let took = |job: &JobDoc| {
        job.finished_at.zip(job.started_at).map_or(TimeDelta::zero(), |(end, start)| end - start)
    };
    let mut slowest: Vec<&JobDoc> = jobs.iter().filter(|job| job.started_at.is_some()).collect();
    slowest.sort_by_key(|job| std::cmp::Reverse(took(job)));
    if slowest.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(["SLOWEST", "RAN", "NAME"]);
    for job in slowest.into_iter().take(SLOWEST) {
        table.row(&[job.id.clone(), ran(job, now).unwrap_or_default(), job.name.clone()]);
    }
    output.line("")?;
    Ok(output.line(table)?)
}

fn show_unwell(output: &mut Output, jobs: &[JobDoc]) -> anyhow::Result<()> {
    let unwell: Vec<&JobDoc> = jobs.iter().filter(|job| job.state != "FINISHED").collect();
    if unwell.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(["NOT WELL", "STATE", "TRY", "NAME", "REASON"]);
    for job in unwell.iter().take(UNWELL) {
        let reason = clean_line(job.reason.as_deref().unwrap_or_default(), 160);
        table.row(&[job.id.clone(), job.state.clone(), job.attempt.to_string(), job.name.clone(), reason]);
    }
    output.line("")?;
    output.line(table)?;
    if unwell.len() > UNWELL {
        output.line(format_args!("and {} more", unwell.len() - UNWELL))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::Format;
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    #[derive(Clone, Default)]
    struct Shown(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Shown {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn job(id: &str, state: &str, seconds: u32) -> JobDoc {
        serde_json::from_value(serde_json::json!({
            "id": id, "state": state, "name": format!("job {id}"), "attempt": 1, "reason": (state == "FAILED").then_some("exit code 3"),
            "started_at": "2030-01-01T00:00:00Z", "finished_at": format!("2030-01-01T00:00:{seconds:02}Z"),
        }))
        .unwrap()
    }

    #[test]
    fn outcomes_are_counted_the_slowest_named_and_failures_explained() {
        let shown = Shown::default();
        let mut output = Output::to(Format::Table, shown.clone());
        let jobs = [job("a", "FINISHED", 2), job("b", "FINISHED", 30), job("c", "FAILED", 1)];
        show(&mut output, &jobs, "2030-01-01T00:01:00Z".parse().unwrap()).unwrap();
        let text = String::from_utf8(shown.0.lock().unwrap().clone()).unwrap();
        let expected = "\
STATE     JOBS
FAILED       1
FINISHED     2

SLOWEST  RAN   NAME
b        30s   job b
a        2.0s  job a
c        1.0s  job c

NOT WELL  STATE   TRY  NAME   REASON
c         FAILED  1    job c  exit code 3
";
        assert_eq!(text, expected);
    }
}
