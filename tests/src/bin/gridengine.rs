//! `gridengine TEST-FLAG…`: the command engine's preset against the real Grid Engine, which it starts privately.
//!
//! The whole conformance suite, and what only the real one shows. As root it starts the cell and then itself once more, as
//! an ordinary account that is to Grid Engine what a worker is; `make test-gridengine` runs it.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests, as a command of the terminal"
)]

use anyhow::{Context as _, Result};
use futures::future::LocalBoxFuture;
use jobgate_shared::domain::{Ending, JobId, JobSpec, Observation, Project, Submission, SubmissionTag};
use jobgate_tests::{
    containment::{self, Interrupts},
    process::{Account, LastWord, guarded},
    services::GridEngine,
    wait::until,
};
use jobgate_worker::{
    engine::{Engine, EngineError, Sighting, Stream, ToCreate},
    engines::{
        EngineConfig, build,
        conformance::{self, Rig, SetUp, Trouble},
    },
};
use libtest_mimic::{Arguments, Trial};
use serde_json::json;
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;

/// Whom jobs belong to.
const ACCOUNT: &str = "nobody";
const PATIENCE: Duration = Duration::from_mins(3);

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some("inside") {
        return inside();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(outside()).map_or_else(
        |error| {
            eprintln!("gridengine: {error:#}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}

/// The cell, and this program again beside it.
async fn outside() -> Result<u8> {
    let mut interrupted = Interrupts::install()?;
    let cell = GridEngine::start().await?;
    let account = Account::instead_of_root(ACCOUNT)?.context("root")?;
    let folder = cell.folder("tests", account)?;
    // Where this lies others may not be let in.
    let program = folder.join("gridengine");
    fs::copy(env::current_exe()?, &program)?;
    let mut command = Command::new(&program);
    command.arg("inside").args(env::args_os().skip(1)).current_dir(&folder);
    command.env("TMPDIR", &folder);
    // Under other names: a job gets these from Grid Engine, and must get nothing from the worker.
    command.envs(cell.environment().map(|(name, value)| (format!("TEST_{name}"), value)));
    let command = guarded(&command, Some(account), LastWord::Terminate);
    let outcome = containment::run(command.into(), interrupted.next()).await?;
    for name in &outcome.leftovers {
        eprintln!("gridengine: left behind, killed: {name}");
    }
    cell.end_all_jobs().await?;
    Ok(if outcome.code == 0 && !outcome.leftovers.is_empty() { 1 } else { outcome.code })
}

/// The tests.
fn inside() -> ExitCode {
    let mut arguments =
        Arguments::from_iter(env::args().enumerate().filter(|(n, _)| *n != 1).map(|(_, arg)| arg));
    // Jobs wait for the scheduler more than they compute.
    arguments.test_threads = arguments.test_threads.or(Some(6));
    let mut trials = Vec::new();
    let declared = GridEngineRig::new().engine().capabilities();
    for case in conformance::cases(&declared, &[SetUp::Manager, SetUp::Memory]) {
        trials.push(trial(case.name, || Box::pin((case.run)(Arc::new(GridEngineRig::new())))));
    }
    for (name, test) in TESTS {
        trials.push(trial(name, || test(GridEngineRig::new())));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &'static str, test: impl FnOnce() -> LocalBoxFuture<'static, ()> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(test());
        Ok(())
    })
}

/// Engines over the cell with a shared directory of their own.
struct GridEngineRig {
    dir: TempDir,
    jobs: PathBuf,
}

impl GridEngineRig {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["shared", "jobs"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let jobs = dir.path().join("jobs");
        Self { dir, jobs }
    }

    fn job(&self, then: &str) -> ToCreate {
        let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
        let script = format!("echo \"{tag} runs\" >> {}; {then}", self.ledger().display());
        let command = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
        let spec = JobSpec { command, ..JobSpec::default() };
        ToCreate { tag, project: Project::default_project(), name: "a test".into(), spec }
    }
}

impl GridEngineRig {
    fn engine_behind(&self, prefix: &[String]) -> Arc<dyn Engine> {
        let told =
            |name: &str| env::var_os(format!("TEST_{name}")).and_then(|value| value.into_string().ok());
        let mut env: BTreeMap<&str, String> = ["SGE_ROOT", "SGE_CELL", "SGE_QMASTER_PORT", "SGE_EXECD_PORT"]
            .into_iter()
            .map(|name| (name, told(name).expect("told by the cell's starter")))
            .collect();
        env.insert("PATH", "/usr/lib/gridengine:/usr/bin:/bin".to_owned());
        let config: EngineConfig = serde_json::from_value(json!({
            "engine": "command", "preset": "gridengine", "shared_dir": self.dir.path().join("shared"),
            "env": env, "prefix": prefix,
            "exit_settles": "500ms", "poll_interval": "500ms", "kill_grace": "1s",
            "options": {"queue": {"argv": ["-q", "{value}"]}},
        }))
        .expect("a configuration");
        let context = conformance::context("gridengine", self.dir.path(), Duration::from_secs(30));
        build(&config, &context).expect("an engine")
    }
}

impl Rig for GridEngineRig {
    fn engine(&self) -> Arc<dyn Engine> {
        self.engine_behind(&[])
    }

    fn troubled(&self, trouble: Trouble) -> Arc<dyn Engine> {
        self.engine_behind(&trouble.prefix("qstat*|qacct*"))
    }

    fn shared_dir(&self) -> &Path {
        &self.jobs
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}

type Test = fn(GridEngineRig) -> LocalBoxFuture<'static, ()>;
const TESTS: &[(&str, Test)] = &[
    ("a_queue_that_is_not_there_is_refused_in_grid_engines_words", |rig| Box::pin(refused(rig))),
    ("a_queue_and_processors_that_are_there_are_given", |rig| Box::pin(given(rig))),
    ("a_job_an_operator_deletes_is_told_by_the_accounting", |rig| Box::pin(deleted(rig))),
];

async fn refused(rig: GridEngineRig) {
    let mut job = rig.job(":");
    job.spec.engine.insert("queue".into(), "no-such.q".into());
    match rig.engine().create(&job).await {
        Err(EngineError::Refused(why)) => assert!(why.contains("no-such.q"), "{why}"),
        other => panic!("{other:?}"),
    }
}

async fn given(rig: GridEngineRig) {
    let (engine, mut job) = (rig.engine(), rig.job("echo $QUEUE $NSLOTS $JOBGATE_JOB_ID"));
    job.spec.engine.insert("queue".into(), "all.q".into());
    job.spec.resources.cpus = Some(2);
    let submission = engine.create(&job).await.unwrap();
    engine.start(job.tag, &submission).await.unwrap();
    assert_eq!(ended(&engine, &job, &submission).await.0, Ending::Finished);
    let log = engine.read_log(job.tag, &submission, Stream::Stdout, 0, 100).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&log.bytes), format!("all.q 2 {}\n", job.tag.job));
}

async fn deleted(rig: GridEngineRig) {
    let (engine, job) = (rig.engine(), rig.job("exec sleep 600"));
    let submission = engine.create(&job).await.unwrap();
    engine.start(job.tag, &submission).await.unwrap();
    until("it runs", PATIENCE, async || {
        fs::read_to_string(rig.ledger()).ok().filter(|text| text.contains("runs")).context("not yet")
    })
    .await
    .unwrap();
    let (id, _) = submission.id.rsplit_once('.').unwrap();
    let named = env::vars_os()
        .filter_map(|(name, value)| Some((name.to_str()?.strip_prefix("TEST_")?.to_owned(), value)));
    let done = Command::new("/usr/lib/gridengine/qdel").arg(id).envs(named).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let (ending, code, reason) = ended(&engine, &job, &submission).await;
    assert_eq!((ending, code), (Ending::Failed, Some(137)), "{reason}");
}

async fn ended(
    engine: &Arc<dyn Engine>,
    job: &ToCreate,
    submission: &Submission,
) -> (Ending, Option<i32>, String) {
    until("it ends", PATIENCE, async || {
        match engine.poll(&[(job.tag, submission.clone())]).await?.remove(0) {
            Sighting::Seen(Observation::Ended { ending, exit_code, reason, .. }) => {
                Ok((ending, exit_code, reason.unwrap_or_default()))
            }
            other => anyhow::bail!("{other:?}"),
        }
    })
    .await
    .unwrap()
}
