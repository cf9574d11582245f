//! What every engine must hold, as cases to run against it: the engine port's contract, made executable.
//!
//! Which cases those are follows from what the engine declares ([`Capabilities`]), in both directions: each capability has a
//! case that shows it, and one for engines that do not declare it, which shows that they are right not to.
//!
//! That a job ran is proven by a ledger, a file every beginning appends a line to; that one did not run, by another job that
//! was started later and has run to its end. A case panics where the engine breaks the contract. Nothing waits for a time
//! to pass: everything waits for something to be seen, and gives up when the rig's patience ends.

mod endings;
mod execution;
pub mod lie;
mod submission;
mod trouble;

use super::{EngineContext, local::RunnerCommand};
use crate::engine::{
    Capabilities, Engine, ExitCodes, LogChunk, MemoryLimits, Sighting, Stream, SubmitMode, TimeLimits,
    ToCreate,
};
use futures::future::BoxFuture;
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

/// What stands around an engine in a test, which no engine can declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetUp {
    /// A manager runs its jobs which calls may fail to reach.
    Manager,
    /// A job can be made which has to wait.
    Queue,
    /// Its manager is set up to hold jobs to the memory they ask for.
    Memory,
}

/// One thing that must hold.
pub struct Case {
    /// What holds, as a sentence.
    pub name: &'static str,
    /// Of which engines.
    applies: fn(&Capabilities) -> bool,
    /// In which set-up; in any, where this is absent.
    pub needs: Option<SetUp>,
    /// Panics if it does not hold, or if the rig's engine does not declare what the case was chosen by.
    pub run: fn(Arc<dyn Rig>) -> BoxFuture<'static, ()>,
}

macro_rules! cases {
    ($(if |$has:ident| $applies:expr, in $needs:expr => { $($module:ident::$name:ident,)* })*) => {
        const CASES: &[Case] = &[$($({
            fn applies($has: &Capabilities) -> bool {
                $applies
            }
            Case {
                name: stringify!($name),
                applies,
                needs: $needs,
                run: |rig| {
                    let bench = Bench { engine: rig.engine(), rig };
                    let declared = bench.engine.capabilities();
                    assert!(applies(&declared), "chosen by another declaration than {declared:?}");
                    Box::pin($module::$name(bench))
                },
            }
        },)*)*];
    };
}

cases! {
    if |has| has.mode == SubmitMode::TwoPhase, in None => {
        submission::what_is_created_does_not_run_until_it_is_started,
        submission::created_twice_under_one_tag_and_started_twice_it_runs_once,
        submission::created_and_started_by_many_at_once_it_runs_once,
        submission::started_again_after_its_end_it_does_not_run_again,
        submission::canceled_before_its_start_it_never_runs,
        submission::a_start_and_a_cancel_at_once_leave_one_truth,
        submission::canceled_after_its_end_its_finish_stands,
        submission::what_is_inert_is_listed_and_once_discarded_never_runs,
        submission::a_discard_without_an_id_removes_what_stands_under_the_tag,
        submission::a_discard_does_not_touch_what_was_started,
        submission::a_poll_of_many_answers_each_in_its_place,
        submission::what_one_instance_began_another_ends,
        submission::what_was_forgotten_never_runs_again,
        submission::an_option_it_does_not_know_is_refused_by_name,
    }
    if |has| has.mode == SubmitMode::TwoPhase, in Some(SetUp::Queue) => {
        submission::canceled_while_it_waits_it_never_runs,
    }
    if |has| has.mode == SubmitMode::TwoPhase, in Some(SetUp::Manager) => {
        trouble::what_did_not_reach_its_manager_can_be_asked_again,
        trouble::what_was_done_and_never_answered_can_be_asked_again,
    }
    if |has| has.mode == SubmitMode::Fenced, in None => {
        submission::what_is_created_does_not_run_until_it_is_started,
        submission::of_two_that_were_started_one_runs,
        submission::an_option_it_does_not_know_is_refused_by_name,
    }
    if |has| has.mode == SubmitMode::UniqueName, in None => {
        submission::what_is_created_begins_by_itself,
        submission::a_name_is_taken_once_and_one_that_is_buried_never,
        submission::an_option_it_does_not_know_is_refused_by_name,
    }
    if |has| has.mode == SubmitMode::AtMostOnce, in None => {
        submission::what_is_created_begins_by_itself,
        submission::created_twice_it_runs_twice,
        submission::an_option_it_does_not_know_is_refused_by_name,
    }
    if |has| !has.commands, in None => {
        execution::no_command_is_run,
    }
    if |has| has.commands, in None => {
        execution::a_running_job_is_seen_running_and_its_start_stays,
        execution::a_cancel_ends_the_job_and_all_it_started,
        execution::nothing_a_job_started_outlives_it,
    }
    if |has| has.commands && has.warns_on_cancel, in None => {
        execution::canceled_it_is_told_and_canceled_even_if_it_then_ends_well,
    }
    if |has| has.commands && !has.warns_on_cancel, in None => {
        execution::canceled_it_has_no_time_to_end_by_itself,
    }
    if |has| has.commands && has.exit_codes == ExitCodes::None, in None => {
        endings::a_failure_is_told_from_a_success_and_no_code_is_made_up,
    }
    if |has| has.commands && has.exit_codes == ExitCodes::Codes, in None => {
        endings::exit_codes_are_told_and_a_signal_as_one,
        endings::what_cannot_be_run_says_why,
    }
    if |has| has.commands && has.exit_codes == ExitCodes::CodesAndSignals, in None => {
        endings::exit_codes_are_told_and_signals_apart_from_them,
        endings::what_cannot_be_run_says_why,
    }
    if |has| has.commands && has.time_limits == TimeLimits::ByEngine, in None => {
        endings::a_job_runs_no_longer_than_its_time_limit,
    }
    if |has| has.commands && has.time_limits == TimeLimits::ByWatcher, in None => {
        endings::a_time_limit_is_left_to_who_watches,
    }
    if |has| has.commands && has.memory_limits == MemoryLimits::None, in None => {
        endings::a_memory_limit_nobody_holds_a_job_to_is_refused,
    }
    if |has| has.commands && has.memory_limits == MemoryLimits::Enforced, in Some(SetUp::Memory) => {
        endings::a_job_gets_no_more_memory_than_it_asked_for_and_ends_as_it_likes,
    }
    if |has| has.commands && has.memory_limits == MemoryLimits::Told, in Some(SetUp::Memory) => {
        endings::a_job_that_outgrows_the_memory_it_asked_for_says_so,
    }
    if |has| has.commands && has.logs, in None => {
        execution::arguments_arrive_verbatim,
        execution::standard_input_and_scripts_arrive_verbatim,
        execution::a_job_gets_its_own_environment_and_nothing_of_the_workers,
        execution::output_can_be_read_while_it_grows_and_its_end_is_told,
    }
    if |has| !has.logs, in None => {
        execution::nothing_that_is_printed_can_be_read,
    }
}

/// Every case for an engine that declares this, in such a set-up.
pub fn cases(declared: &Capabilities, set_up: &[SetUp]) -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(move |case| {
        (case.applies)(declared) && case.needs.is_none_or(|needs| set_up.contains(&needs))
    })
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
