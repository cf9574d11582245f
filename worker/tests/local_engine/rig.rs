//! A spool of a test's own, engines over it, and workers in processes of their own.

use jobgate_shared::{
    clock::{self, Clock},
    domain::{Ending, JobId, JobSpec, Observation, Project, Submission, SubmissionTag},
};
use jobgate_worker::{
    engine::{Engine, LogChunk, Sighting, Stream, SubmitMode, ToCreate},
    engines::{
        EngineConfig, EngineContext, build,
        conformance::Rig,
        local::{LocalConfig, RunnerCommand},
        noop::{NoopConfig, Unknown},
    },
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The longest anything may take.
const PATIENCE: Duration = Duration::from_mins(1);

fn context(data_dir: &Path, clock: Arc<dyn Clock>) -> EngineContext {
    EngineContext {
        cluster: "local".parse().expect("a name"),
        clock,
        data_dir: data_dir.to_owned(),
        runner: RunnerCommand { program: "/proc/self/exe".into(), args: vec!["local-runner".into()] },
        call_timeout: Duration::from_secs(30),
        look_timeout: Duration::from_secs(30),
    }
}

/// A spool, and a directory for what jobs leave.
pub(crate) struct LocalRig {
    dir: TempDir,
    shared: PathBuf,
    pub(crate) config: LocalConfig,
    pub(crate) clock: Arc<dyn Clock>,
}

impl LocalRig {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut LocalConfig)) -> Self {
        let dir = tempfile::Builder::new().prefix("jobgate-test-local-").tempdir().expect("a directory");
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).expect("a directory");
        let mut config = LocalConfig { spool_dir: Some(dir.path().join("spool")), ..LocalConfig::default() };
        change(&mut config);
        Self { dir, shared, config, clock: clock::system() }
    }

    pub(crate) fn context(&self) -> EngineContext {
        context(self.dir.path(), self.clock.clone())
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    pub(crate) fn attempt(&self, made: &Made) -> PathBuf {
        let (tag, nonce) = made.submission.id.rsplit_once('.').expect("an id");
        self.spool().join(tag).join(nonce)
    }

    /// The runner that has the start token, once it has said who it is.
    pub(crate) async fn runner(&self, made: &Made) -> i32 {
        let path = self.attempt(made).join("runner");
        until("a runner", || {
            let record: serde_json::Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
            i32::try_from(record["runner"]["pid"].as_i64()?).ok()
        })
        .await
    }

    /// A file a job has written and ended with a newline.
    pub(crate) async fn told(&self, name: &str) -> String {
        let path = self.shared_dir().join(name);
        until(name, || fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'))).await
    }

    /// How often the attempt has begun.
    pub(crate) fn runs(&self, made: &Made) -> usize {
        let line = format!("{} ", made.tag);
        let ledger = fs::read_to_string(self.ledger()).unwrap_or_default();
        ledger.lines().filter(|found| found.starts_with(&line)).count()
    }

    /// Processes that were started with this spool's path, runners and their second stages, each with its command line.
    fn runners(&self) -> Vec<(Pid, String)> {
        let spool = self.spool();
        let command_line = |pid: Pid| {
            let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        };
        let lines = processes().into_iter().filter_map(command_line);
        lines.filter(|(_, line)| line.contains(&*spool.to_string_lossy())).collect()
    }

    /// Kills every runner together with its job: all of the session it leads.
    fn kill_all(&self) {
        let runners: Vec<Pid> = self.runners().into_iter().map(|(pid, _)| pid).collect();
        for pid in processes() {
            if leader(pid).is_some_and(|leader| runners.contains(&leader)) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
    }
}

fn processes() -> Vec<Pid> {
    let names = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.file_name());
    names.filter_map(|name| Pid::from_raw(name.to_str()?.parse().ok()?)).collect()
}

impl Rig for LocalRig {
    fn engine(&self) -> Arc<dyn Engine> {
        build(&self.config.clone().into(), &self.context()).expect("an engine")
    }

    fn shared_dir(&self) -> &Path {
        &self.shared
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}

impl Drop for LocalRig {
    fn drop(&mut self) {
        // A runner goes a moment after the end it wrote; one that stays belongs to a job nobody ended.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if thread::panicking() {
                self.kill_all();
            }
            let left = self.runners();
            if left.is_empty() {
                return;
            }
            if Instant::now() >= deadline {
                assert!(thread::panicking(), "left behind: {left:#?}");
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Who leads the session of a process. `getsid` panics for kernel threads, which have none.
fn leader(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    Pid::from_raw(after_name.split_whitespace().nth(3)?.parse().ok()?)
}

/// The engine that runs nothing: one instance that remembers in memory only, or any number over one state.
pub(crate) struct NoopRig {
    dir: TempDir,
    config: EngineConfig,
    only: Option<Arc<dyn Engine>>,
}

impl NoopRig {
    pub(crate) fn in_memory(mode: SubmitMode) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let ledger = Some(dir.path().join("ledger"));
        let config: EngineConfig =
            NoopConfig { mode, ledger, unknown: Unknown::Absent, ..NoopConfig::default() }.into();
        let engine = build(&config, &context(dir.path(), clock::system())).expect("an engine");
        Self { dir, config, only: Some(engine) }
    }

    pub(crate) fn over_a_state(mode: SubmitMode) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let state = Some(dir.path().join("ledger"));
        let config = NoopConfig { mode, state, ..NoopConfig::default() }.into();
        Self { dir, config, only: None }
    }
}

impl Rig for NoopRig {
    fn engine(&self) -> Arc<dyn Engine> {
        let another = || build(&self.config, &context(self.dir.path(), clock::system())).expect("an engine");
        self.only.clone().unwrap_or_else(another)
    }

    fn shared_dir(&self) -> &Path {
        self.dir.path()
    }
}

/// An attempt an engine was told of.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) tag: SubmissionTag,
    pub(crate) submission: Submission,
}

/// A shell job that shows in the ledger first, then does `then`.
pub(crate) fn job(rig: &LocalRig, then: &str) -> ToCreate {
    let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
    let script = format!("echo \"$TAG runs\" >> \"$SHARED/ledger\"; {then}");
    let shared = rig.shared_dir().to_str().expect("UTF-8").to_owned();
    let spec = JobSpec {
        command: ["/bin/sh", "-c", &script].map(str::to_owned).to_vec(),
        env: [("TAG".to_owned(), tag.to_string()), ("SHARED".to_owned(), shared)].into(),
        ..JobSpec::default()
    };
    ToCreate { tag, project: Project::default_project(), name: "a test".into(), spec }
}

pub(crate) async fn create(engine: &Arc<dyn Engine>, job: &ToCreate) -> Made {
    Made { tag: job.tag, submission: engine.create(job).await.expect("create") }
}

pub(crate) async fn run(engine: &Arc<dyn Engine>, job: &ToCreate) -> Made {
    let made = create(engine, job).await;
    engine.start(made.tag, &made.submission).await.expect("start");
    made
}

pub(crate) async fn sight(engine: &Arc<dyn Engine>, made: &Made) -> Sighting {
    let sightings = engine.poll(&[(made.tag, made.submission.clone())]).await.expect("poll");
    sightings.into_iter().next().expect("one sighting")
}

/// Its end or its loss.
pub(crate) async fn over(engine: &Arc<dyn Engine>, made: &Made) -> Sighting {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match sight(engine, made).await {
            Sighting::Seen(Observation::Pending { .. } | Observation::Running { .. }) | Sighting::Inert => {}
            over @ (Sighting::Seen(Observation::Ended { .. })
            | Sighting::Gone { .. }
            | Sighting::Absent
            | Sighting::Unseen) => {
                return over;
            }
        }
        assert!(tokio::time::Instant::now() < deadline, "{} does not end", made.tag);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How it ended, and the reason or an empty one.
pub(crate) async fn end(engine: &Arc<dyn Engine>, made: &Made) -> (Ending, Option<i32>, String) {
    match over(engine, made).await {
        Sighting::Seen(Observation::Ended { ending, exit_code, reason, .. }) => {
            (ending, exit_code, reason.unwrap_or_default())
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn is_running(engine: &Arc<dyn Engine>, made: &Made) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match sight(engine, made).await {
            Sighting::Seen(Observation::Running { .. }) => return,
            Sighting::Inert => {}
            other => panic!("{other:?}"),
        }
        assert!(tokio::time::Instant::now() < deadline, "{} does not begin", made.tag);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The whole of a stream of a job that has ended.
pub(crate) async fn output(engine: &Arc<dyn Engine>, made: &Made, stream: Stream) -> String {
    let (limit, submission) = (1 << 20, &made.submission);
    let LogChunk { bytes, last } =
        engine.read_log(made.tag, submission, stream, 0, limit).await.expect("read_log");
    assert!(last, "{} bytes are not all", bytes.len());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Until `look` sees something.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Another worker: a process with an engine of its own over the same spool, in a process group of its own.
pub(crate) struct Worker {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Worker {
    pub(crate) fn new(rig: &LocalRig) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command.arg("worker").arg(rig.dir.path()).process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a worker");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut worker = Self { child, answers };
        assert_eq!(worker.answer(), "ready");
        worker
    }

    /// Tells it to start a submission; it answers once it has.
    pub(crate) fn tell_to_start(&mut self, made: &Made) {
        let line = format!("{} {}\n", made.tag, serde_json::to_string(&made.submission).expect("JSON"));
        self.child.stdin.as_mut().expect("piped").write_all(line.as_bytes()).expect("a worker that listens");
    }

    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }

    /// Kills it and all that is still in its process group, as if its host's service manager had no patience.
    pub(crate) fn kill_group(mut self) {
        let group = Pid::from_child(&self.child);
        kill_process_group(group, Signal::KILL).expect("a group");
        self.child.wait().expect("a child");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Its standard input ends, so it does.
        drop(self.child.stdin.take());
        if self.child.wait().is_err() {
            assert!(thread::panicking(), "a worker could not be waited for");
        }
    }
}

/// What the binary is as another worker: starts what its standard input names, until that ends.
pub(crate) fn worker_main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let dir = PathBuf::from(args.next().expect("a directory"));
    let spool_dir = Some(dir.join("spool"));
    let config = LocalConfig { spool_dir, ..LocalConfig::default() }.into();
    let engine = build(&config, &context(&dir, clock::system())).expect("an engine");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line.expect("a line");
        let (tag, submission) = line.split_once(' ').expect("a tag and a submission");
        let submission: Submission = serde_json::from_str(submission).expect("a submission");
        let tag = tag.parse().expect("a tag");
        runtime.block_on(engine.start(tag, &submission)).expect("start");
        println!("started");
    }
    ExitCode::SUCCESS
}
