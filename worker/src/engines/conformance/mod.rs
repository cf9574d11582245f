//! What every engine must hold, as cases to run against it: the engine port's contract, made executable.
//!
//! That a job ran is proven by a ledger, a file every beginning appends a line to; that one did not run, by another job that
//! was started later and has run to its end. A case panics where the engine breaks the contract. Nothing waits for a time
//! to pass: everything waits for something to be seen, and gives up when the rig's patience ends.

mod cases;
mod endings;
mod execution;
pub mod lie;
mod submission;
mod trouble;

pub use cases::{Case, SetUp, cases};

use super::{EngineContext, local::RunnerCommand};
use crate::engine::{Engine, LogChunk, Sighting, Stream, ToCreate};
use jobgate_shared::{
    clock,
    domain::{Ending, JobId, JobSpec, Observation, Project, Submission, SubmissionTag},
};
use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The engine under test and what stands around it. Every case gets one of its own.
pub trait Rig: Send + Sync {
    /// A fresh instance, as another worker process would build it; the same one, if all it knows lies in its memory.
    fn engine(&self) -> Arc<dyn Engine>;

    /// A directory the test and its jobs both see, the same path for both.
    fn shared_dir(&self) -> &Path;

    /// An instance on another worker, whose way to the manager is in trouble. Where there is a [`SetUp::Manager`].
    fn troubled(&self, trouble: Trouble) -> Arc<dyn Engine> {
        panic!("nothing of {trouble:?} stands between this engine and what runs its jobs")
    }

    /// One line for every beginning, which begins with the tag and a space.
    fn ledger(&self) -> PathBuf {
        self.shared_dir().join("ledger")
    }

    /// Whether the process a job told the number of is gone.
    fn is_gone(&self, pid: u32) -> bool {
        // A zombie has ended; only its parent does not know yet.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
    }

    /// Whether a process of a job that left its parents is ended with the job. A fact of the set-up: managers follow
    /// processes as their hosts let them.
    fn ends_strays(&self) -> bool {
        true
    }

    /// Makes a job one that waits, once started, for as long as a test lasts. Where there is a [`SetUp::Queue`].
    fn has_to_wait(&self, job: &mut ToCreate) {
        panic!("nothing keeps {} waiting here", job.tag)
    }

    /// The longest anything may take.
    fn patience(&self) -> Duration {
        Duration::from_mins(1)
    }
}

/// What is wrong between an engine and its manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// No call arrives.
    Cut,
    /// What does something is done, and its answer is lost. Looks are answered.
    Mute,
}

impl Trouble {
    /// Words to put before every command of a scheduler. `looks`: what the lines of commands that only look match, as a
    /// pattern of the shell.
    pub fn prefix(self, looks: &str) -> Vec<String> {
        let script = match self {
            Self::Cut => "echo cannot reach the scheduler >&2; exit 75".to_owned(),
            Self::Mute => format!(
                r#"case "$*" in {looks}) exec "$@" ;; esac; "$@" >/dev/null 2>&1; echo timed out >&2; exit 75"#
            ),
        };
        ["/bin/sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
    }
}

/// What a process gives to an engine that starts no local jobs.
pub fn context(cluster: &str, data_dir: &Path, call_timeout: Duration) -> EngineContext {
    EngineContext {
        cluster: cluster.parse().expect("a name"),
        clock: clock::system(),
        data_dir: data_dir.to_owned(),
        runner: RunnerCommand { program: "/bin/false".into(), args: Vec::new() },
        call_timeout,
        look_timeout: call_timeout,
    }
}

/// One case's tools.
struct Bench {
    rig: Arc<dyn Rig>,
    engine: Arc<dyn Engine>,
}

/// An attempt the engine was told of.
#[derive(Debug, Clone)]
struct Made {
    job: ToCreate,
    submission: Submission,
}

impl Made {
    fn tag(&self) -> SubmissionTag {
        self.job.tag
    }
}

/// How an attempt was seen to end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    ending: Ending,
    exit_code: Option<i32>,
    reason: String,
}

impl Bench {
    /// A job that begins, so that the ledger shows it, then does `then` in a shell.
    fn job(&self, then: &str) -> ToCreate {
        let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
        let script = format!("echo \"$TAG runs\" >> \"$LEDGER\"; {then}");
        let mut spec = self.spec(&["/bin/sh", "-c", &script]);
        spec.env.insert("TAG".into(), tag.to_string());
        spec.env.insert("LEDGER".into(), self.rig.ledger().to_string_lossy().into_owned());
        spec.env.insert("SHARED".into(), self.rig.shared_dir().to_string_lossy().into_owned());
        ToCreate { tag, project: Project::default_project(), name: "conformance".into(), spec }
    }

    fn spec(&self, command: &[&str]) -> JobSpec {
        let command = command.iter().map(ToString::to_string).collect();
        let working_dir = Some(self.rig.shared_dir().to_string_lossy().into_owned());
        JobSpec { command, working_dir, ..JobSpec::default() }
    }

    /// A job with this spec, which need not show in the ledger.
    fn job_of(spec: JobSpec) -> ToCreate {
        let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
        ToCreate { tag, project: Project::default_project(), name: "conformance".into(), spec }
    }

    fn troubled(&self, trouble: Trouble) -> Arc<dyn Engine> {
        self.rig.troubled(trouble)
    }

    async fn create(&self, job: ToCreate) -> Made {
        let submission = self.engine.create(&job).await.expect("create");
        Made { job, submission }
    }

    async fn start(&self, made: &Made) {
        self.engine.start(made.tag(), &made.submission).await.expect("start");
    }

    async fn run(&self, job: ToCreate) -> Made {
        let made = self.create(job).await;
        self.start(&made).await;
        made
    }

    async fn cancel(&self, made: &Made) {
        self.engine.cancel(made.tag(), &made.submission).await.expect("cancel");
    }

    async fn sight(&self, made: &Made) -> Sighting {
        let sightings = self.engine.poll(&[(made.tag(), made.submission.clone())]).await.expect("poll");
        let [sighting] = <[Sighting; 1]>::try_from(sightings).expect("one sighting for one submission");
        sighting
    }

    /// Until it has ended.
    async fn end(&self, made: &Made) -> End {
        self.until("an end", || async {
            match self.sight(made).await {
                Sighting::Seen(Observation::Ended { ending, exit_code, reason, .. }) => {
                    Some(End { ending, exit_code, reason: reason.unwrap_or_default() })
                }
                // Inert: started, and not yet on its way.
                Sighting::Seen(Observation::Pending { .. } | Observation::Running { .. })
                | Sighting::Inert => None,
                Sighting::Absent => panic!("{} is not known", made.tag()),
                Sighting::Unseen => panic!("{} was not looked at", made.tag()),
                Sighting::Gone { evidence } => panic!("{} is gone: {evidence}", made.tag()),
            }
        })
        .await
    }

    async fn ends(&self, made: &Made, ending: Ending) {
        let end = self.end(made).await;
        assert_eq!(end.ending, ending, "{end:?}");
    }

    /// Until something that was started after everything before has run to its end.
    async fn fence(&self) {
        let made = self.run(self.job(":")).await;
        self.ends(&made, Ending::Finished).await;
        assert_eq!(self.runs(made.tag()), 1);
    }

    /// How often the attempt has begun.
    fn runs(&self, tag: SubmissionTag) -> usize {
        let ledger = std::fs::read_to_string(self.rig.ledger()).unwrap_or_default();
        let line = format!("{tag} ");
        ledger.lines().filter(|found| found.starts_with(&line)).count()
    }

    /// The whole of a stream, once it has ended.
    async fn output(&self, made: &Made, stream: Stream) -> String {
        let mut all = Vec::new();
        loop {
            let chunk = self.log(made, stream, all.len()).await;
            all.extend_from_slice(&chunk.bytes);
            if chunk.last {
                return String::from_utf8(all).expect("UTF-8");
            }
            assert!(!chunk.bytes.is_empty(), "an ended job's log stops short of its end");
        }
    }

    async fn log(&self, made: &Made, stream: Stream, offset: usize) -> LogChunk {
        let read = self.engine.read_log(made.tag(), &made.submission, stream, offset as u64, 4096);
        read.await.expect("read_log")
    }

    /// Until `look` sees something.
    async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, mut look: impl FnMut() -> F) -> T {
        let deadline = tokio::time::Instant::now() + self.rig.patience();
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Until a job has written this file; its text.
    async fn file(&self, name: &str) -> String {
        let path = self.rig.shared_dir().join(name);
        self.until(name, || async { std::fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n')) })
            .await
    }
}
