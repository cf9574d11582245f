//! What each call of the local engine does, on a thread that may block.

use super::{
    LocalConfig,
    attempt::{Attempt, Token},
    away, cgroup,
    process::KILL_SETTLES,
    records::RunSpec,
    runner,
    spool::{Place, Spool},
    standing::{self, Burial, Standing, bury, look},
};
use crate::{
    engine::{EngineResult, LogChunk, Sighting, ToCreate},
    engines::EngineContext,
};
use anyhow::Context as _;
use chrono::{DateTime, Utc};
use jobgate_shared::{
    domain::{Ending, Observation, Reach, Submission, SubmissionTag},
    failpoint,
};
use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    process::{Child, ExitStatus},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How often runners that ended are waited for.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// How long one look waits, in all, for what it killed to be gone: what does not go hides no other's end.
const LOOK_SETTLES: Duration = Duration::from_millis(100);
/// What was being made or removed is debris after this.
const DEBRIS_AFTER: Duration = Duration::from_hours(1);

/// What every call works with.
#[derive(Debug)]
pub(super) struct Calls {
    spool: Spool,
    config: LocalConfig,
    context: EngineContext,
    runners: Mutex<Runners>,
}

/// Runners this process started and has not waited for.
#[derive(Debug)]
struct Runners {
    slots: HashMap<Place, Slot>,
    reaped: Instant,
}

#[derive(Debug)]
enum Slot {
    /// A call is about to start it.
    Starting,
    Started(Child),
}

impl Calls {
    pub(super) fn open(config: LocalConfig, context: EngineContext) -> anyhow::Result<Self> {
        let default = || context.data_dir.join("spool").join(context.cluster.as_str());
        let path = config.spool_dir.clone().unwrap_or_else(default);
        let spool = Spool::open(&path).with_context(|| format!("spool_dir {}", path.display()))?;
        if let Some(delegated) = &config.cgroup {
            let check = cgroup::check_delegated(delegated);
            if !check.with_context(|| format!("cgroup {}", delegated.display()))? {
                let cgroup = delegated.display();
                tracing::warn!(
                    "cgroup {cgroup}: no memory controller; a limit holds for each process of a job, and is not told"
                );
            }
        }
        let runners = Mutex::new(Runners { slots: HashMap::new(), reaped: Instant::now() });
        Ok(Self { spool, config, context, runners })
    }

    pub(super) fn config(&self) -> &LocalConfig {
        &self.config
    }

    pub(super) fn host_id(&self) -> &str {
        self.spool.host_id()
    }

    pub(super) fn listen(&self) -> io::Result<OwnedFd> {
        self.spool.listen()
    }

    fn count(&self, name: &'static str, by: u32) {
        metrics::counter!(name, "cluster" => self.context.cluster.to_string()).increment(by.into());
    }

    /// Where a submission lies; `None` for one that cannot lie here.
    pub(super) fn place(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<Option<Place>> {
        if submission.reach.as_ref().is_some_and(|reach| reach.0 != self.spool.host_id()) {
            return Err(away(anyhow::anyhow!("{tag} lies in the spool of another host")));
        }
        Ok(Place::of(tag, submission))
    }

    pub(super) fn create(&self, job: &ToCreate) -> EngineResult<Submission> {
        let place = self.spool.create(job.tag, &RunSpec::of(&self.config, job)).map_err(away)?;
        Ok(self.submission(place))
    }

    fn submission(&self, place: Place) -> Submission {
        let reach = Some(Reach(self.spool.host_id().to_owned()));
        Submission { id: place.submission_id(), detail: serde_json::Value::Null, reach }
    }

    pub(super) fn start(&self, place: Place) -> EngineResult<()> {
        match look(&self.spool, place).map_err(away)?.0 {
            Standing::Inert => {}
            Standing::Missing => {
                let submission = place.submission_id();
                tracing::debug!(submission, "not started: it was forgotten");
                return Ok(());
            }
            Standing::Tombstone { .. }
            | Standing::Running { .. }
            | Standing::Ended(_)
            | Standing::Abandoned { .. } => return Ok(()),
        }
        if !self.runners().reserve(place).map_err(away)? {
            // Another call is at it, or its runner is on its way to the token.
            return Ok(());
        }
        let spawned = runner::command(&self.context.runner, self.spool.path(), place).spawn();
        let (slot, answer) = match spawned {
            Ok(child) => {
                failpoint::pass("spool.spawned");
                self.count("jobgate_local_runners_started_total", 1);
                (Some(Slot::Started(child)), Ok(()))
            }
            Err(error) => {
                self.count("jobgate_local_runner_failures_total", 1);
                let program = self.context.runner.program.display().to_string();
                (None, Err(away(anyhow::Error::from(error).context(format!("runner {program}")))))
            }
        };
        self.runners().settle(place, slot);
        answer
    }

    pub(super) fn poll(&self, places: &[Option<Place>]) -> EngineResult<Vec<Sighting>> {
        self.reap();
        // An empty mount point must not look like a spool that has forgotten everything.
        self.spool.still_stands().map_err(away)?;
        let until = Instant::now() + LOOK_SETTLES;
        let sight =
            |place: &Option<Place>| place.map_or(Ok(Sighting::Absent), |place| self.sight(place, until));
        places.iter().map(sight).collect::<io::Result<_>>().map_err(away)
    }

    fn sight(&self, place: Place, until: Instant) -> io::Result<Sighting> {
        let (standing, attempt) = look(&self.spool, place)?;
        Ok(match (standing, attempt) {
            (Standing::Missing, _) | (_, None) => Sighting::Absent,
            (Standing::Inert, Some(_)) => Sighting::Inert,
            (Standing::Tombstone { at }, Some(_)) => Sighting::Seen(never_began(at)),
            (Standing::Running { since }, Some(_)) => {
                Sighting::Seen(Observation::Running { since: Some(since), reason: None })
            }
            (Standing::Ended(end), Some(_)) => Sighting::Seen(end),
            (Standing::Abandoned { since }, Some(attempt)) => self.bury(place, &attempt, since, until)?,
        })
    }

    fn bury(
        &self,
        place: Place,
        attempt: &Attempt,
        since: DateTime<Utc>,
        until: Instant,
    ) -> io::Result<Sighting> {
        let now = self.context.clock.now();
        let (burial, killed) = bury(attempt, place, self.config.cgroup.as_deref(), since, now, until)?;
        if killed > 0 {
            self.count("jobgate_local_processes_killed_total", killed);
            let submission = place.submission_id();
            tracing::warn!(submission, killed, "killed what a job left behind whose runner was gone");
        }
        Ok(match burial {
            Burial::Gone { evidence } => Sighting::Gone { evidence },
            Burial::Canceled(end) => Sighting::Seen(end),
            Burial::Restless => {
                let reason = Some("its runner is gone, and its processes do not end".to_owned());
                Sighting::Seen(Observation::Running { since: Some(since), reason })
            }
        })
    }

    pub(super) fn cancel(&self, place: Place) -> io::Result<()> {
        let Some(attempt) = self.spool.attempt(place)? else { return Ok(()) };
        attempt.ask_cancel()?;
        failpoint::pass("spool.cancel_asked");
        if attempt.take_tombstone()? {
            failpoint::pass("spool.buried");
            return self.spool.ring();
        }
        // Begun, or never to begin. A runner that has the token opened its control before it took it.
        match attempt.find_runner()? {
            Some(mut runner) => match io::Write::write(&mut runner, b"c") {
                Ok(_) => Ok(()),
                // It has not read what it was told before, and will find the wish when it does.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                Err(error) => Err(error),
            },
            // It ended, or was abandoned; then looking at it carries the cancel out.
            None => self.sight(place, Instant::now() + KILL_SETTLES).map(drop),
        }
    }

    /// Whatever never began under the tag, or only `place`.
    pub(super) fn discard(&self, tag: SubmissionTag, place: Option<Place>) -> io::Result<()> {
        let place = match place {
            Some(place) => Some(place),
            None => self.spool.under(tag)?,
        };
        let Some(place) = place else { return Ok(()) };
        let Some(attempt) = self.spool.attempt(place)? else { return Ok(()) };
        if attempt.take_tombstone()? || attempt.is_discarded()? {
            failpoint::pass("spool.discarded");
            self.spool.remove(place)?;
        }
        Ok(())
    }

    pub(super) fn forget(&self, place: Place) -> EngineResult<()> {
        let (standing, attempt) = look(&self.spool, place).map_err(away)?;
        let Some(attempt) = attempt else { return Ok(()) };
        let until = Instant::now() + KILL_SETTLES;
        match standing {
            Standing::Inert => {
                if !attempt.take_tombstone().map_err(away)? {
                    return Err(away(anyhow::anyhow!("it is just being started")));
                }
            }
            Standing::Running { .. } => {
                self.cancel(place).map_err(away)?;
                return Err(away(anyhow::anyhow!("it still runs; it is being ended")));
            }
            Standing::Abandoned { since } => match self.bury(place, &attempt, since, until).map_err(away)? {
                Sighting::Seen(Observation::Running { .. } | Observation::Pending { .. }) => {
                    return Err(away(anyhow::anyhow!("some of its processes still run")));
                }
                Sighting::Seen(Observation::Ended { .. })
                | Sighting::Gone { .. }
                | Sighting::Inert
                | Sighting::Absent
                | Sighting::Unseen => {}
            },
            Standing::Missing | Standing::Tombstone { .. } | Standing::Ended(_) => {}
        }
        self.spool.remove(place).map_err(away)
    }

    /// Attempts that never began and nobody canceled.
    pub(super) fn inert(&self, older_than: Duration) -> io::Result<Vec<(SubmissionTag, Submission)>> {
        self.reap();
        self.spool.clear_debris(self.context.clock.now().into(), DEBRIS_AFTER)?;
        self.sweep(older_than, |attempt| {
            Ok(match attempt.token()? {
                None => Some(attempt.changed_at()?),
                Some(Token::Tombstone { at }) => (!attempt.is_cancel_asked()?).then_some(at),
                Some(Token::Runner { .. }) => None,
            })
        })
    }

    /// Attempts that are over and lie here still.
    pub(super) fn ended(&self, older_than: Duration) -> io::Result<Vec<(SubmissionTag, Submission)>> {
        self.sweep(older_than, |attempt| {
            Ok(match standing::read(attempt)? {
                Standing::Ended(_) | Standing::Abandoned { .. } => Some(attempt.changed_at()?),
                Standing::Tombstone { at } => attempt.is_cancel_asked()?.then_some(at),
                Standing::Missing | Standing::Inert | Standing::Running { .. } => None,
            })
        })
    }

    /// Attempts for which `since` gives a time at least `older_than` ago.
    fn sweep(
        &self,
        older_than: Duration,
        since: impl Fn(&Attempt) -> io::Result<Option<DateTime<Utc>>>,
    ) -> io::Result<Vec<(SubmissionTag, Submission)>> {
        let now = self.context.clock.now();
        let tags = self.spool.tags()?;
        let cluster = self.context.cluster.to_string();
        #[allow(clippy::cast_precision_loss, reason = "a spool never holds 2^52 attempts")]
        metrics::gauge!("jobgate_local_spool_attempts", "cluster" => cluster).set(tags.len() as f64);
        let mut found = Vec::new();
        for tag in tags {
            let Some(place) = self.spool.under(tag)? else { continue };
            let Some(attempt) = self.spool.attempt(place)? else { continue };
            let age = since(&attempt)?.and_then(|at| (now - at).to_std().ok());
            if age.is_some_and(|age| age >= older_than) {
                found.push((tag, self.submission(place)));
            }
        }
        Ok(found)
    }

    pub(super) fn read_log(
        &self,
        place: Place,
        name: &str,
        offset: u64,
        limit: usize,
    ) -> EngineResult<LogChunk> {
        // Looked at before the bytes are: what is read after the end was seen is all there is.
        let (standing, attempt) = look(&self.spool, place).map_err(away)?;
        let Some(attempt) = attempt else { return Err(forgotten()) };
        let over = match standing {
            Standing::Inert | Standing::Running { .. } => false,
            Standing::Missing
            | Standing::Tombstone { .. }
            | Standing::Ended(_)
            | Standing::Abandoned { .. } => true,
        };
        let (bytes, at_end) = attempt.read_at(name, offset, limit).map_err(away)?;
        Ok(LogChunk { bytes: bytes.into(), last: over && at_end })
    }

    /// Waits for runners that ended, so that they do not stay as zombies.
    fn reap(&self) {
        for (place, status) in self.runners().reap() {
            if status.code().is_none_or(|code| code != 0 && code != i32::from(runner::NOT_MINE)) {
                self.count("jobgate_local_runner_failures_total", 1);
                let submission = place.submission_id();
                tracing::warn!(submission, %status, "a runner ended before its work was done");
            }
        }
    }

    /// A panic elsewhere leaves nothing half done in here.
    fn runners(&self) -> MutexGuard<'_, Runners> {
        self.runners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runners {
    /// Makes the caller the one who starts a runner for `place`; `false` when one is being started or on its way.
    fn reserve(&mut self, place: Place) -> io::Result<bool> {
        let busy = match self.slots.get_mut(&place) {
            Some(Slot::Starting) => true,
            Some(Slot::Started(child)) => child.try_wait()?.is_none(),
            None => false,
        };
        if busy {
            return Ok(false);
        }
        self.slots.insert(place, Slot::Starting);
        Ok(true)
    }

    fn settle(&mut self, place: Place, slot: Option<Slot>) {
        match slot {
            Some(slot) => drop(self.slots.insert(place, slot)),
            None => drop(self.slots.remove(&place)),
        }
    }

    /// Those that ended since the last time, if that was long enough ago.
    fn reap(&mut self) -> Vec<(Place, ExitStatus)> {
        let mut ended = Vec::new();
        if self.reaped.elapsed() < REAP_EVERY {
            return ended;
        }
        self.reaped = Instant::now();
        self.slots.retain(|place, slot| match slot {
            Slot::Starting => true,
            Slot::Started(child) => match child.try_wait() {
                Ok(None) => true,
                Ok(Some(status)) => {
                    ended.push((*place, status));
                    false
                }
                // Not ours to wait for, which cannot be: there is nothing to keep.
                Err(_) => false,
            },
        });
        ended
    }
}

/// What its output was is not known here any more.
pub(super) fn forgotten() -> super::EngineError {
    super::EngineError::Refused("its logs are not kept here any more".to_owned())
}

fn never_began(at: DateTime<Utc>) -> Observation {
    let reason = Some("canceled before it began".to_owned());
    Observation::Ended { ending: Ending::Canceled, exit_code: None, reason, began: None, at: Some(at) }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{process::ProcessMark, records::RunnerRecord},
        *,
    };
    use crate::engines::conformance;
    use jobgate_shared::domain::{JobId, JobSpec, Project};
    use rustix::process::{Pid, Signal, kill_process_group};
    use std::{
        fs,
        os::unix::process::CommandExt as _,
        path::Path,
        process::{Command, Stdio},
    };

    fn calls(dir: &Path) -> Calls {
        let context = conformance::context("local", dir, Duration::from_secs(1));
        Calls::open(LocalConfig::default(), context).unwrap()
    }

    /// An attempt whose start token a runner has taken.
    fn begun(calls: &Calls) -> (Place, Attempt) {
        let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
        let spec = JobSpec { command: vec!["true".into()], ..JobSpec::default() };
        let job = ToCreate { tag, project: Project::default_project(), name: "job".into(), spec };
        let place = Place::of(tag, &calls.create(&job).unwrap()).unwrap();
        let attempt = calls.spool.attempt(place).unwrap().unwrap();
        assert!(attempt.take_start().unwrap());
        (place, attempt)
    }

    /// Three processes of an attempt's, each followed by another however often they are killed.
    struct Undying(Child);

    impl Undying {
        fn of(tag: SubmissionTag) -> Self {
            let script = "for n in 1 2 3; do \
                while :; do JOBGATE_JOB_ID=$0 JOBGATE_ATTEMPT=$1 sleep 600; done & done; wait";
            let mut command = Command::new("sh");
            command.args(["-c", script, &tag.job.to_string(), &tag.attempt.to_string()]);
            command.env_clear().env("PATH", "/usr/bin:/bin").process_group(0);
            let undying = Self(command.stderr(Stdio::null()).spawn().unwrap());
            let id = format!("JOBGATE_JOB_ID={}", tag.job);
            let carries = |process: &fs::DirEntry| {
                fs::read(process.path().join("environ"))
                    .is_ok_and(|environment| String::from_utf8_lossy(&environment).contains(&id))
            };
            while fs::read_dir("/proc").unwrap().flatten().filter(carries).count() < 3 {
                std::thread::yield_now();
            }
            undying
        }
    }

    impl Drop for Undying {
        fn drop(&mut self) {
            kill_process_group(Pid::from_child(&self.0), Signal::KILL).unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn what_does_not_end_when_it_is_killed_hides_no_other_end_from_a_look() {
        let dir = tempfile::tempdir().unwrap();
        let calls = calls(dir.path());
        let here = ProcessMark::of_self().unwrap();
        let (mut places, mut undying) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (place, attempt) = begun(&calls);
            let runner = ProcessMark { pid: i32::MAX, ..here.clone() };
            attempt.write_runner(&RunnerRecord { runner }).unwrap();
            undying.push(Undying::of(place.tag));
            places.push(Some(place));
        }
        let (place, attempt) = begun(&calls);
        let (ending, at) = (Ending::Finished, Some(DateTime::UNIX_EPOCH));
        let end = Observation::Ended { ending, exit_code: Some(0), reason: None, began: at, at };
        attempt.write_exit(&end).unwrap();
        places.push(Some(place));
        let began = Instant::now();
        let seen = calls.poll(&places).unwrap();
        assert!(began.elapsed() < KILL_SETTLES, "it took {:?}", began.elapsed());
        assert_eq!(seen[2], Sighting::Seen(end));
    }
}
