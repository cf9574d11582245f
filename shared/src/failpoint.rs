//! Named points at which a test ends this process. Each stands in a gap: between two effects that last, or that others see.
//!
//! A test makes a directory of orders and names it to every process of a deployment. An order is a file, taken away by
//! whoever passes its point, so it is carried out once, however many processes pass, and the n-th passing can be meant:
//! `<directory>/<point>/<n>` says `pass`, `sleep <milliseconds>` or `abort`, and what aborts leaves `<point>.aborted`.
//!
//! Compiled in by the feature `failpoints`, for tests, and never into a release build: there [`pass`] is nothing. A structure
//! test compiles this file as such builds do and sees it take no orders, so it needs nothing but `std` there.

pub use compiled::{hand_down, pass, watch};

/// Whether this build has any points.
pub const COMPILED_IN: bool = cfg!(all(feature = "failpoints", debug_assertions));

/// The environment variable that names the directory of orders.
pub const VARIABLE: &str = "JOBGATE_TEST_FAILPOINTS";

/// Every point, and what has happened and what has not when it is passed.
pub const POINTS: &[(&str, &str)] = &[
    // Acceptance.
    ("accept.taken", "jobs are posted; no row"),
    ("accept.committed", "rows; not answered"),
    ("accept.hinting", "rows marked as hinted; no hint"),
    ("accept.hinted", "a hint is confirmed; nothing counts on it"),
    ("accept.unhinting", "a hint did not go out; its rows are marked as hinted"),
    ("accept.unhinted", "its rows are not marked any more; the dispatcher is not woken"),
    // Commands, and who is told of them.
    ("command.taken", "a command has come; the row knows nothing"),
    ("cancel.recorded", "the row is cancelled or asks for it; its owner is not nudged"),
    ("hold.recorded", "the row is held; not answered"),
    ("release.recorded", "the row waits; the dispatcher is not woken"),
    ("retry.recorded", "the row waits for its next attempt; the dispatcher is not woken"),
    ("bulk.paged", "a page of the jobs a filter means was commanded; no owner is nudged, no other page read"),
    // The dispatcher.
    ("dispatch.marked", "due rows are marked as hinted; no hint"),
    ("dispatch.hinted", "hints are confirmed; nothing counts on them"),
    ("dispatch.unhinting", "hints did not go out; their rows are marked as hinted"),
    ("dispatch.unhinted", "their rows are not marked any more; nobody looks at them again"),
    ("rescue.marked", "rows of the dead are marked as hinted; no hint"),
    ("rescue.hinted", "hints to adopters are confirmed; nothing counts on them"),
    ("rescue.unhinting", "hints to adopters did not go out; rows of the dead are marked as hinted"),
    ("rescue.unhinted", "rows of the dead are not marked any more; nobody looks at them again"),
    // The recorder.
    ("events.taken", "events are in hand; no row moved"),
    ("events.applied", "rows moved; not acknowledged"),
    ("events.acknowledged", "acknowledged; nobody is nudged"),
    // A worker: its identity, its claims.
    ("lease.registered", "the store knows a worker that does not know so"),
    ("claim.hinted", "a hint is in hand; nothing claimed"),
    ("claim.committed", "claimed; the hint is not acknowledged"),
    ("claim.acknowledged", "claimed and acknowledged; nothing done about it"),
    ("alone.refused", "a suspect was refused in company and waits its turn; nothing claimed"),
    ("alone.committed", "a suspect is claimed alone; nothing done about it"),
    ("adopt.hinted", "a hint of a stranded job is in hand; nothing claimed"),
    ("adopt.committed", "adopted; the hint is not acknowledged"),
    ("adopt.acknowledged", "adopted and acknowledged; nothing done about it"),
    ("unheard.found", "a row is this worker's that no claim told it of; not claimed again"),
    ("unheard.claimed", "claimed again; nothing done about it"),
    // Submission.
    ("create.begins", "claimed; the manager knows nothing"),
    ("create.done", "the manager has it; not recorded"),
    ("record.begins", "about to be recorded"),
    ("record.committed", "recorded; not started"),
    ("start.begins", "about to be started"),
    ("start.done", "started; not watched"),
    // Watching and telling.
    ("watch.seen", "a poll is answered; nothing told"),
    ("publish.begins", "events are due; none published"),
    ("publish.confirmed", "events are published; their sender does not know so"),
    ("apply.begins", "the broker is away for long; events are due to the rows, which know nothing"),
    ("apply.done", "the rows have the events; their sender does not know so"),
    ("settle.known", "the row agrees with an end; nothing forgotten"),
    ("forget.begins", "about to be forgotten"),
    ("forget.done", "the manager has forgotten it"),
    ("logs.appended", "a piece of a log is shipped; its end is not marked"),
    ("logs.finished", "a log is shipped to its end; nothing counts on it"),
    // Cancelling, on the worker's side.
    ("cancel.known", "the owner knows of a cancel; nothing done about it"),
    ("cancel.begins", "about to be cancelled at the manager"),
    ("cancel.done", "the manager took the cancel; not told"),
    ("discard.begins", "what was never recorded is about to be discarded"),
    ("discard.done", "discarded; the cancel is not told"),
    // Draining.
    ("drain.begins", "told to stop; nothing handed back"),
    ("hand_back.begins", "jobs are given up; the rows do not know"),
    ("hand_back.done", "jobs are handed back; nothing else has ended"),
    ("hand_over.begins", "events are left that no broker takes; the rows know nothing"),
    ("hand_over.done", "the rows have what was left; nothing else has ended"),
    ("drain.finished", "everything is given back; the lease still runs"),
    ("drain.deregistered", "the lease is ended; the process is not"),
    // Claimants, on the API's side.
    ("claimant.registered", "the store knows a claimant that does not know so"),
    ("claimant.marked", "due rows are marked for a claimant; nothing claimed"),
    ("claimant.claimed", "claimed for a claimant that does not know so"),
    ("claimant.recorded", "what a report names is recorded; the report is not applied"),
    ("claimant.applied", "a report is applied; not answered"),
    ("claimant.gave_up", "a claim is given up; not answered"),
    // Leftovers.
    ("sweep.found", "a leftover is judged; it still stands"),
    ("sweep.discarded", "a leftover is gone; others stand"),
    ("sweep.shipped", "what ended and nobody forgot has its log shipped; the manager knows it yet"),
    // The stores.
    ("store.writing", "a transaction is complete; not committed"),
    ("store.written", "committed; nobody is answered"),
    // The local engine's spool, in a worker.
    ("spool.prepared", "an attempt is complete; not under its tag"),
    ("spool.named", "an attempt lies under its tag; not answered"),
    ("spool.spawned", "a runner is started; not answered"),
    ("spool.cancel_asked", "a cancel is written down; nobody told, no tombstone"),
    ("spool.buried", "a tombstone keeps it from starting; not told"),
    ("spool.discarded", "a tombstone is in place of what was never recorded; it still lies there"),
    ("spool.trashed", "taken away from its tag; not removed"),
    // A local job's runner, and what becomes the job.
    ("runner.ready", "the runner can be found; it has no start token"),
    ("runner.token", "the job has begun, on paper; nobody knows its runner"),
    ("runner.known", "its runner is known; no process of it"),
    ("runner.child", "its process is on its way; nobody watches it"),
    ("runner.ended", "its process has ended; no end is written"),
    ("runner.exit_written", "an end is written under another name"),
    ("runner.exited", "its end is written; the bell is not rung"),
    ("exec.begins", "the job's process has taken on no limits"),
    ("exec.ready", "the spec is removed; the command does not run"),
];

#[cfg(all(feature = "failpoints", debug_assertions))]
mod compiled {
    use super::{POINTS, VARIABLE};
    use std::{
        fs,
        io::{self, ErrorKind},
        path::{Path, PathBuf},
        process::{Command, abort},
        sync::OnceLock,
        thread,
        time::Duration,
    };

    static ORDERS: OnceLock<PathBuf> = OnceLock::new();

    /// Takes orders from this directory from now on.
    pub fn watch(orders: PathBuf) {
        ORDERS.get_or_init(|| orders);
    }

    /// Gives a child process, whose environment is empty otherwise, the same orders.
    pub fn hand_down(command: &mut Command) {
        if let Some(orders) = ORDERS.get() {
            command.env(VARIABLE, orders);
        }
    }

    /// Passes a point, if there is no other order.
    #[allow(clippy::panic, reason = "a test that cannot order anything must not look like one that passed")]
    pub fn pass(point: &'static str) {
        let Some(orders) = ORDERS.get() else { return };
        debug_assert!(POINTS.iter().any(|(name, _)| *name == point), "{point} is not in the table");
        match take(&orders.join(point)) {
            Ok(None) => {}
            Ok(Some(order)) => obey(&order, point, orders),
            Err(error) => panic!("orders of the failpoint {point}: {error}"),
        }
    }

    fn obey(order: &str, point: &str, orders: &Path) {
        match order.split_once(' ') {
            None if order == "pass" => {}
            None if order == "abort" => {
                if fs::write(orders.join(format!("{point}.aborted")), "").is_ok() {
                    abort();
                }
            }
            // It blocks its thread as a slow call in the wrong place would; a test gives the process threads to spare.
            Some(("sleep", millis)) => {
                thread::sleep(Duration::from_millis(millis.parse().unwrap_or_default()));
            }
            None | Some(_) => tracing::error!(point, order, "not an order"),
        }
    }

    /// The next order; whoever renames it has it alone.
    fn take(orders: &Path) -> io::Result<Option<String>> {
        let mut names = match fs::read_dir(orders) {
            Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        names.retain(|name| !name.to_string_lossy().ends_with(".taken"));
        names.sort_unstable();
        for name in names {
            let mut taken = name.clone();
            taken.push(".taken");
            match fs::rename(orders.join(&name), orders.join(&taken)) {
                Ok(()) => {
                    let read = fs::read_to_string(orders.join(&taken));
                    // It may have been withdrawn meanwhile.
                    let gone = read.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
                    return if gone { Ok(None) } else { read.map(Some) };
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn orders_are_taken_one_by_one_and_each_once() {
            let dir = tempfile::tempdir().unwrap();
            let point = dir.path().join("create.done");
            assert_eq!(take(&point).unwrap(), None);
            fs::create_dir(&point).unwrap();
            fs::write(point.join("2"), "abort").unwrap();
            fs::write(point.join("1"), "pass").unwrap();
            let order = || take(&point).unwrap();
            assert_eq!(
                [order(), order(), order()],
                [Some("pass".to_owned()), Some("abort".to_owned()), None]
            );
        }
    }
}

#[cfg(not(all(feature = "failpoints", debug_assertions)))]
mod compiled {
    use std::{path::PathBuf, process::Command};

    /// Nothing: this build has no points.
    pub fn watch(_orders: PathBuf) {}

    /// Nothing: this build has no points.
    pub fn hand_down(_command: &mut Command) {}

    /// Nothing: this build has no points.
    #[inline(always)]
    pub fn pass(_point: &'static str) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_point_has_a_name_of_its_own() {
        let names: BTreeSet<_> = POINTS.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), POINTS.len());
    }
}
