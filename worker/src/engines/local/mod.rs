//! The local engine: jobs as processes of this host, each in the care of a runner that outlives the worker.
//!
//! An attempt is a directory of the spool; its start token is a name in it that the kernel gives to one taker, once. Nothing
//! here holds state a restart could lose: any worker process on the same spool continues what another began.
//!
//! **Why nothing runs twice.** Three things could: two starts of one attempt, a start after a cancel, and a late start of one
//! that was forgotten. (1) A runner begins only what it took the token of, and only after the token is on disk. (2) A cancel
//! or a discard takes the same token, so it knows whether it came first. (3) A forgotten attempt has no directory left that
//! could remember it, so its *name* must not live on: a submission id is the tag and a random nonce, and the attempt lies
//! under both. A zombie that creates under the tag again gets another id, which the row's write-once record refuses (were
//! the id the tag alone, the record would read as won); a zombie that starts the old id finds nothing. What is left is a
//! runner caught between opening the directory and taking the token while the directory is removed. A removal renames the
//! directory first and deletes the token after, so a runner that got a token out of a dying directory finds, looking again,
//! that its directory is no longer at its place, and goes.
//!
//! **Why nothing is taken for dead that lives.** A runner holds its `control` FIFO open from before it takes the token until
//! after it has written the end. The kernel closes it, whatever kills the runner; no pid is asked.

pub(super) mod attempt;
mod calls;
mod cgroup;
pub(super) mod config;
mod cpus;
mod exec;
mod output;
mod process;
pub(super) mod records;
#[cfg(any(test, fuzzing))]
pub mod rendering;
mod runner;
mod spool;
mod standing;
mod tend;

pub use config::LocalConfig;
pub use runner::{RunnerCommand, local_runner_main};

use crate::{
    engine::{Capabilities, Engine, EngineError, EngineResult, LogChunk, Sighting, Stream, ToCreate},
    engines::{EngineContext, EngineSettings as _},
};
use anyhow::Context as _;
use async_trait::async_trait;
use calls::Calls;
use jobgate_shared::domain::{JobSpec, Reach, SpecError, Submission, SubmissionTag};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::unix::pipe::Receiver,
    sync::{OnceCell, Semaphore},
};

/// Calls at work on the disk at once; more would only wait there, in threads of their own.
const CALLS_AT_ONCE: usize = 64;

/// The engine. Cheap to share; one per spool and process.
#[derive(Debug)]
pub struct LocalEngine {
    inside: Arc<Calls>,
    permits: Arc<Semaphore>,
    call_timeout: Duration,
    look_timeout: Duration,
    /// Reads whatever descriptor can be polled; here the kernel's notes that the bell has rung.
    bell: OnceCell<Option<Receiver>>,
}

impl LocalEngine {
    /// Opens the spool, making it if need be.
    pub fn open(config: LocalConfig, context: EngineContext) -> anyhow::Result<Self> {
        let EngineContext { call_timeout, look_timeout, .. } = context;
        let inside = Arc::new(Calls::open(config, context)?);
        let permits = Arc::new(Semaphore::new(CALLS_AT_ONCE));
        Ok(Self { inside, permits, call_timeout, look_timeout, bell: OnceCell::new() })
    }

    /// All the work of a call that does something.
    async fn call<T, F>(&self, work: F) -> EngineResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Calls) -> EngineResult<T> + Send + 'static,
    {
        self.within(self.call_timeout, work).await
    }

    /// All the work of a look.
    async fn glance<T, F>(&self, work: F) -> EngineResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Calls) -> EngineResult<T> + Send + 'static,
    {
        self.within(self.look_timeout, work).await
    }

    /// The work on one blocking thread, which nobody waits for longer; it keeps its permit for as long as it takes.
    async fn within<T, F>(&self, patience: Duration, work: F) -> EngineResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Calls) -> EngineResult<T> + Send + 'static,
    {
        let (inside, permits) = (self.inside.clone(), self.permits.clone());
        let done = async {
            let permit = permits.acquire_owned().await.context("closed").map_err(EngineError::Away)?;
            let work = move || {
                let _permit = permit;
                work(&inside)
            };
            let done = tokio::task::spawn_blocking(work).await;
            done.context("a call ended early").map_err(EngineError::Away)?
        };
        match tokio::time::timeout(patience, done).await {
            Ok(answer) => answer,
            Err(_) => Err(EngineError::Away(anyhow::anyhow!("the disk did not answer in time"))),
        }
    }
}

/// The disk did not do it; it may the next time.
fn away(error: impl Into<anyhow::Error>) -> EngineError {
    EngineError::Away(error.into())
}

#[async_trait]
impl Engine for LocalEngine {
    fn capabilities(&self) -> Capabilities {
        let reach = Some(Reach(self.inside.host_id().to_owned()));
        Capabilities { reach, ..self.inside.config().capabilities() }
    }

    fn validate(&self, spec: &JobSpec) -> Result<(), SpecError> {
        self.inside.config().validate(spec)
    }

    async fn create(&self, job: &ToCreate) -> EngineResult<Submission> {
        self.validate(&job.spec).map_err(|fault| EngineError::Refused(fault.to_string()))?;
        let job = job.clone();
        self.call(move |calls| calls.create(&job)).await
    }

    async fn start(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let Some(place) = self.inside.place(tag, submission)? else { return Ok(()) };
        self.call(move |calls| calls.start(place)).await
    }

    async fn poll(&self, submissions: &[(SubmissionTag, Submission)]) -> EngineResult<Vec<Sighting>> {
        let places: EngineResult<Vec<_>> =
            submissions.iter().map(|(tag, submission)| self.inside.place(*tag, submission)).collect();
        let places = places?;
        self.glance(move |calls| calls.poll(&places)).await
    }

    async fn stirred(&self) {
        let listen = || async {
            let bell = self.inside.listen().and_then(Receiver::from_owned_fd_unchecked);
            bell.inspect_err(|error| {
                tracing::warn!(%error, "ends are noticed by polling only: the kernel watches no more files");
            })
            .ok()
        };
        match self.bell.get_or_init(listen).await {
            Some(bell) => hear(bell).await,
            None => std::future::pending().await,
        }
    }

    async fn cancel(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let Some(place) = self.inside.place(tag, submission)? else { return Ok(()) };
        self.call(move |calls| calls.cancel(place).map_err(away)).await
    }

    async fn discard(&self, tag: SubmissionTag, submission: Option<&Submission>) -> EngineResult<()> {
        let place = match submission {
            None => None,
            Some(submission) => match self.inside.place(tag, submission)? {
                None => return Ok(()),
                place => place,
            },
        };
        self.call(move |calls| calls.discard(tag, place).map_err(away)).await
    }

    async fn inert(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        self.glance(move |calls| calls.inert(older_than).map_err(away)).await
    }

    async fn ended(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        self.glance(move |calls| calls.ended(older_than).map_err(away)).await
    }

    async fn read_log(
        &self,
        tag: SubmissionTag,
        submission: &Submission,
        stream: Stream,
        offset: u64,
        limit: usize,
    ) -> EngineResult<LogChunk> {
        let Some(place) = self.inside.place(tag, submission)? else {
            return Err(calls::forgotten());
        };
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        self.glance(move |calls| calls.read_log(place, name, offset, limit)).await
    }

    async fn forget(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let Some(place) = self.inside.place(tag, submission)? else { return Ok(()) };
        self.call(move |calls| calls.forget(place)).await
    }
}

/// Until the bell rings.
async fn hear(bell: &Receiver) {
    let mut notes = [0; 4096];
    loop {
        if bell.readable().await.is_err() {
            return std::future::pending().await;
        }
        // One ring may hide others; whoever hears it looks at everything.
        if bell.try_read(&mut notes).is_ok() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::conformance;
    use futures::future::join_all;
    use jobgate_shared::domain::{JobId, Project};
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    #[tokio::test]
    async fn calls_nobody_waits_for_any_more_count_among_those_at_work() {
        let dir = tempfile::tempdir().unwrap();
        let context = conformance::context("local", dir.path(), Duration::from_millis(10));
        let mut engine = LocalEngine::open(LocalConfig::default(), context).unwrap();
        let begun = Arc::new(AtomicUsize::new(0));
        let (comes_back, disk) = mpsc::channel::<()>();
        let disk = Arc::new(Mutex::new(disk));
        let hang = || {
            let (begun, disk) = (begun.clone(), disk.clone());
            engine.call(move |_| {
                begun.fetch_add(1, Ordering::SeqCst);
                // It never says anything; it ends.
                disk.lock().unwrap().recv().unwrap_or_default();
                Ok(())
            })
        };
        for _ in 0..2 {
            let answers = join_all((0..CALLS_AT_ONCE).map(|_| hang())).await;
            assert!(answers.iter().all(|answer| matches!(answer, Err(EngineError::Away(_)))), "{answers:?}");
        }
        let at_work = begun.load(Ordering::SeqCst);
        assert!(at_work <= CALLS_AT_ONCE, "{at_work} at once");
        drop(comes_back);
        engine.call_timeout = Duration::from_mins(1);
        engine.call(|_| Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn a_look_may_take_longer_than_a_call() {
        let dir = tempfile::tempdir().unwrap();
        let context = conformance::context("local", dir.path(), Duration::from_mins(1));
        let mut engine = LocalEngine::open(LocalConfig::default(), context).unwrap();
        let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
        let spec = JobSpec { command: vec!["true".into()], ..JobSpec::default() };
        let job = ToCreate { tag, project: Project::default_project(), name: "job".into(), spec };
        let submission = engine.create(&job).await.unwrap();
        engine.call_timeout = Duration::ZERO;
        let asked = [(tag, submission)];
        assert_eq!(engine.poll(&asked).await.unwrap(), [Sighting::Inert]);
        assert_eq!(engine.inert(Duration::ZERO).await.unwrap(), asked);
        assert_eq!(engine.ended(Duration::ZERO).await.unwrap(), []);
        let [(tag, submission)] = asked;
        let chunk = engine.read_log(tag, &submission, Stream::Stdout, 0, 1).await.unwrap();
        assert!(chunk.bytes.is_empty() && !chunk.last);
    }
}
