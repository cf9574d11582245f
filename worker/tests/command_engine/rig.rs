//! A scheduler of a test's own and engines over it.

use jobgate_shared::domain::{JobId, JobSpec, Project, Submission, SubmissionTag};
use jobgate_worker::{
    engine::{Engine, Sighting, ToCreate},
    engines::{
        EngineConfig, build,
        conformance::{self, Rig, Trouble},
    },
};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The longest anything may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// A scheduler, a shared directory, and a directory for what jobs leave.
pub(crate) struct CommandRig {
    dir: TempDir,
    jobs: PathBuf,
    pub(crate) config: Value,
    pub(crate) call_timeout: Duration,
}

fn call(scheduler: &str, words: &[&str]) -> Value {
    // By its name: behind a prefix, `self` is somebody else.
    let program = std::env::current_exe().expect("this program");
    let program = program.to_str().expect("UTF-8");
    let words = [program, "scheduler", scheduler].into_iter().chain(words.iter().copied());
    json!({"argv": words.collect::<Vec<_>>(), "unknown": "no such job", "refused": "no such queue", "not_now": "jobs are allowed"})
}

fn with(mut call: Value, over: Value) -> Value {
    let Value::Object(over) = over else { panic!("{over}") };
    call.as_object_mut().unwrap().extend(over);
    call
}

/// Shows what it has, a line each, and no more what has ended.
pub(crate) fn forgetful(scheduler: &str, shared: &str) -> Value {
    fs::write(Path::new(scheduler).join("forgets"), "").unwrap();
    let states = json!({"HELD": "inert", "RUNNING": "running", "DONE": "finished", "CANCELED": "canceled", "DIED": "failed"});
    json!({
        "engine": "command", "submit_mode": "two_phase", "shared_dir": shared,
        "exit_settles": "100ms", "kill_grace": "200ms", "poll_interval": "100ms", "warns_on_cancel": true,
        "create": with(call(scheduler, &["submit", "hold", "{name}", "{output}", "{script}"]), json!({"row": "Submitted batch job (?P<id>[0-9]+)"})),
        "start": call(scheduler, &["release", "{id}"]),
        "cancel": call(scheduler, &["cancel", "{id}"]),
        "find": with(call(scheduler, &["list"]), json!({
            "skip": "ID[|].*",
            "row": "(?P<id>[0-9]+)[|](?P<name>.*)[|](?P<state>[A-Z]+)[|](?P<exit>[0-9]+)",
            "states": states,
        })),
    })
}

/// Is asked by ids, in JSON, and says nothing of any when it does not know one.
pub(crate) fn strict(scheduler: &str, shared: &str) -> Value {
    let config = forgetful(scheduler, shared);
    fs::remove_file(Path::new(scheduler).join("forgets")).unwrap();
    let states = config["find"]["states"].clone();
    with(
        config,
        json!({
            "create": with(call(scheduler, &["submit", "hold", "{name}", "{output}", "-"]), json!({"stdin": true, "row": "Submitted batch job (?P<id>[0-9]+)"})),
            "poll": with(call(scheduler, &["show", "{ids}"]), json!({
                "json": {"rows": "/jobs", "name": "/name", "state": "/state", "exit": "/end/code"},
                "states": states,
            })),
        }),
    )
}

/// Cannot hold a job: what it is given begins.
pub(crate) fn at_once(scheduler: &str, shared: &str) -> Value {
    let mut config = strict(scheduler, shared);
    config["submit_mode"] = json!("at_most_once");
    config.as_object_mut().unwrap().remove("start");
    config["create"]["argv"][4] = json!("go");
    config
}

impl CommandRig {
    pub(crate) fn new(config: fn(&str, &str) -> Value) -> Self {
        let dir = tempfile::Builder::new().prefix("jobgate-test-command-").tempdir().expect("a directory");
        let jobs = dir.path().join("jobs");
        for name in ["jobs", "scheduler", "shared"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let shared = dir.path().join("shared");
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).expect("its mode");
        let config = config(dir.path().join("scheduler").to_str().unwrap(), shared.to_str().unwrap());
        Self { dir, jobs, config, call_timeout: Duration::from_secs(30) }
    }

    pub(crate) fn scheduler(&self) -> PathBuf {
        self.dir.path().join("scheduler")
    }

    /// From now on a command of the scheduler fails so; an empty word ends that.
    pub(crate) fn fault(&self, verb: &str, how: &str) {
        fs::write(self.scheduler().join(format!("fault-{verb}")), how).expect("a file");
    }

    /// How often a command was called.
    pub(crate) fn calls(&self, verb: &str) -> usize {
        let calls = fs::read_to_string(self.scheduler().join("calls")).unwrap_or_default();
        calls.lines().filter(|line| line.split(' ').next() == Some(verb)).count()
    }

    /// The scheduler's directory of a job, by the id in a submission's.
    pub(crate) fn at_scheduler(&self, submission: &Submission) -> PathBuf {
        let (id, _) = submission.id.rsplit_once('.').expect("an id");
        self.scheduler().join("jobs").join(id)
    }

    /// The submission's own directory.
    pub(crate) fn attempt(&self, tag: SubmissionTag, submission: &Submission) -> PathBuf {
        let (_, nonce) = submission.id.rsplit_once('.').expect("an id");
        self.dir.path().join("shared").join(tag.to_string()).join(nonce)
    }

    pub(crate) fn runs(&self, tag: SubmissionTag) -> usize {
        let line = format!("{tag} ");
        let ledger = fs::read_to_string(self.ledger()).unwrap_or_default();
        ledger.lines().filter(|found| found.starts_with(&line)).count()
    }

    fn supervisors(&self) -> Vec<String> {
        let jobs = fs::read_dir(self.scheduler().join("jobs")).into_iter().flatten().flatten();
        jobs.filter_map(|job| fs::read_to_string(job.path().join("supervisor")).ok()).collect()
    }

    fn cancel_all(&self) {
        for job in fs::read_dir(self.scheduler().join("jobs")).into_iter().flatten().flatten() {
            fs::write(job.path().join("cancel"), "").ok();
        }
    }
}

impl Rig for CommandRig {
    fn engine(&self) -> Arc<dyn Engine> {
        let config: EngineConfig = serde_json::from_value(self.config.clone()).expect("a configuration");
        let context = conformance::context("command", self.dir.path(), self.call_timeout);
        build(&config, &context).expect("an engine")
    }

    fn troubled(&self, trouble: Trouble) -> Arc<dyn Engine> {
        let mut config = self.config.clone();
        config["prefix"] = json!(trouble.prefix("*' list'*|*' show'*"));
        let config: EngineConfig = serde_json::from_value(config).expect("a configuration");
        let context = conformance::context("command", self.dir.path(), self.call_timeout);
        build(&config, &context).expect("an engine")
    }

    fn shared_dir(&self) -> &Path {
        &self.jobs
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}

impl Drop for CommandRig {
    fn drop(&mut self) {
        // A supervisor goes a moment after its job; one that stays has a job nobody ended.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.supervisors().is_empty() {
            if thread::panicking() {
                self.cancel_all();
            }
            if Instant::now() >= deadline {
                assert!(thread::panicking(), "left behind: {:?}", self.supervisors());
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A shell job that shows in the ledger first, then does `then`.
pub(crate) fn job(rig: &CommandRig, then: &str) -> ToCreate {
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

pub(crate) async fn sight(engine: &Arc<dyn Engine>, tag: SubmissionTag, submission: &Submission) -> Sighting {
    let sightings = engine.poll(&[(tag, submission.clone())]).await.expect("poll");
    sightings.into_iter().next().expect("one sighting")
}

/// Until a poll shows what `look` looks for.
pub(crate) async fn until<T>(
    engine: &Arc<dyn Engine>,
    tag: SubmissionTag,
    submission: &Submission,
    mut look: impl FnMut(&Sighting) -> Option<T>,
) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let seen = sight(engine, tag, submission).await;
        if let Some(found) = look(&seen) {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain; last: {seen:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
