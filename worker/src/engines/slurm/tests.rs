//! Answers in the shapes of slurmrestd's versions, read into one; and what a job becomes on its way there.

use super::{
    config::SlurmConfig,
    id::{self, Identity, Mark, Nonce},
    script,
    state::{self, ExitFile, Fault},
    wire::{Answer, JobRecord},
};
use crate::{
    engine::{Sighting, ToCreate},
    engines::EngineSettings as _,
};
use jobgate_shared::domain::{Ending, JobId, JobSpec, Observation, Project, SubmissionTag};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use std::{
    os::unix::{fs::PermissionsExt, process::CommandExt as _},
    process::Command,
};

fn config() -> SlurmConfig {
    SlurmConfig { user: Some("jane".into()), ..SlurmConfig::default() }
}

fn job() -> ToCreate {
    let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
    let spec = JobSpec { command: vec!["true".into()], ..JobSpec::default() };
    ToCreate { tag, project: Project::default_project(), name: "test".into(), spec }
}

fn read(answer: Value) -> JobRecord {
    serde_json::from_value::<Answer>(answer).unwrap().jobs.unwrap().remove(0)
}

/// One job in the shapes of v0.0.38 and of v0.0.40 and later.
fn shapes(state: &str, reason: &str, wait_status: i32) -> [JobRecord; 2] {
    let (code, signal) = (wait_status >> 8, wait_status & 0x7f);
    let number = |number: i64| json!({"set": true, "infinite": false, "number": number});
    let old = json!({"meta": {"Slurm": {"release": "22.05.8"}}, "errors": [], "jobs": [{
        "job_id": 42, "name": "jobgate-sum", "comment": "c", "job_state": state, "state_reason": reason,
        "exit_code": wait_status, "restart_cnt": 0, "submit_time": 1_700_000_000, "start_time": 1_700_000_010,
        "end_time": 1_700_000_020, "user_name": "jane", "time_limit": null, "nice": null}]});
    let new = json!({"meta": {"slurm": {"release": "24.11.5"}}, "errors": [], "warnings": [], "jobs": [{
        "job_id": 42, "name": "jobgate-sum", "comment": "c", "job_state": [state], "state_reason": reason,
        "exit_code": {"status": ["ERROR"], "return_code": number(code.into()),
            "signal": {"id": {"set": signal != 0, "infinite": false, "number": signal}, "name": ""}},
        "restart_cnt": 0, "submit_time": number(1_700_000_000), "start_time": number(1_700_000_010),
        "end_time": number(1_700_000_020), "user_name": "jane"}]});
    [read(old), read(new)]
}

fn ending(seen: &Observation) -> Option<(Ending, Option<i32>)> {
    match seen {
        Observation::Ended { ending, exit_code, .. } => Some((*ending, *exit_code)),
        Observation::Pending { .. } | Observation::Running { .. } => None,
    }
}

fn reason(seen: &Observation) -> String {
    match seen {
        Observation::Ended { reason, .. }
        | Observation::Pending { reason }
        | Observation::Running { reason, .. } => reason.clone().unwrap_or_default(),
    }
}

#[test]
fn both_shapes_of_a_job_read_as_the_same_one() {
    for (state, why, status) in [("FAILED", "NonZeroExitCode", 1792), ("FAILED", "NonZeroExitCode", 9)] {
        let [old, new] = shapes(state, why, status);
        assert_eq!(old.observe(None), new.observe(None));
        assert_eq!((old.job_id, id::submitted(&old)), (new.job_id, id::submitted(&new)));
        assert_eq!(old.user_name, new.user_name);
    }
}

#[test]
fn what_cannot_be_read_is_neither_a_success_nor_an_absence() {
    let read = |answer: Value| serde_json::from_value::<Answer>(answer).ok();
    for errors in [json!({"error_number": 2017}), json!("down"), json!(7), json!([null]), json!(["down"])] {
        assert!(read(json!({"errors": errors, "jobs": []})).is_none(), "{errors}");
    }
    for errors in [json!(null), json!([]), json!([{"error_number": 0, "error": null}])] {
        assert!(read(json!({"errors": errors, "jobs": []})).unwrap().judged(200).is_ok(), "{errors}");
    }
    for none in [json!({"errors": []}), json!({"jobs": null})] {
        assert!(read(none).unwrap().jobs.is_none(), "no empty list");
    }
    let ours = json!({"job_id": 42, "name": "jobgate-sum", "job_state": "RUNNING"});
    let listed = |job: &Value| read(json!({"jobs": [job]})).map(|answer| answer.jobs.unwrap().len());
    assert_eq!(listed(&ours), Some(1));
    for (field, value) in [
        ("job_id", json!(null)),
        ("job_id", json!("42")),
        ("job_id", json!({"set": false, "number": 42})),
        ("job_id", json!(0)),
        ("job_id", json!(i64::MAX)),
        ("name", json!(["jobgate-sum"])),
        ("job_state", json!(null)),
        ("job_state", json!([])),
        ("job_state", json!(["RUNNING", 7])),
        ("job_state", json!({"current": "RUNNING"})),
    ] {
        let mut odd = ours.clone();
        odd[field] = value;
        assert_eq!(listed(&odd), None, "{odd}");
    }
    assert_eq!(listed(&json!(["jobgate-sum"])), None);
    let strangers = json!({"job_id": {}, "name": "x", "job_state": 7, "comment": "like jobgate-sum"});
    assert_eq!(listed(&strangers), Some(0), "a stranger's voids nothing");
}

#[test]
fn every_end_of_slurms_is_one_of_ours() {
    for (state, why, status, expected, words) in [
        ("COMPLETED", "None", 0, (Ending::Finished, Some(0)), ""),
        ("FAILED", "NonZeroExitCode", 1792, (Ending::Failed, Some(7)), "exit code 7"),
        ("FAILED", "NonZeroExitCode", 9, (Ending::Failed, None), "signal 9"),
        ("FAILED", "NonZeroExitCode", 137 << 8, (Ending::Failed, Some(137)), "signal 9"),
        ("FAILED", "RaisedSignal:53(Real-time_signal_19)", 53, (Ending::Failed, None), "output"),
        ("FAILED", "BadConstraints", 0, (Ending::Failed, None), "BadConstraints"),
        ("CANCELLED", "None", 15, (Ending::Canceled, None), "canceled"),
        ("TIMEOUT", "TimeLimit", 15, (Ending::TimedOut, None), "time limit"),
        ("DEADLINE", "DeadLine", 0, (Ending::TimedOut, None), "deadline"),
        ("OUT_OF_MEMORY", "OutOfMemory", 125 << 8, (Ending::Failed, Some(125)), "out of memory"),
        (
            "OUT_OF_MEMORY",
            "OutOfMemory",
            125,
            (Ending::Failed, None),
            "out of memory; Slurm says OutOfMemory",
        ),
        ("NODE_FAIL", "NodeDown", 0, (Ending::Lost, None), "node"),
        ("BOOT_FAIL", "None", 0, (Ending::Failed, None), "boot"),
        ("PREEMPTED", "None", 0, (Ending::Failed, None), "preempted"),
        ("REVOKED", "None", 0, (Ending::Lost, None), "revoked"),
    ] {
        for record in shapes(state, why, status) {
            let seen = record.observe(None);
            assert_eq!(ending(&seen), Some(expected), "{state}");
            assert!(reason(&seen).contains(words), "{state}: {seen:?}");
            assert!(record.is_over(), "{state}");
        }
    }
}

#[test]
fn what_is_not_over_is_never_told_as_an_end() {
    for (state, runs) in [
        ("PENDING", false),
        ("CONFIGURING", false),
        ("REQUEUE_HOLD", false),
        ("A_STATE_OF_TOMORROW", false),
        ("RUNNING", true),
        ("SUSPENDED", true),
        ("COMPLETING", true),
    ] {
        for record in shapes(state, "Resources", 0) {
            let seen = record.observe(None);
            assert_eq!(matches!(seen, Observation::Running { .. }), runs, "{state}");
            assert!(!record.is_over() && ending(&seen).is_none(), "{state}");
        }
    }
    let mut completing = shapes("CANCELLED", "None", 0)[1].clone();
    completing.job_state.push("COMPLETING".into());
    assert!(!completing.is_over(), "its processes may live");
}

#[test]
fn a_run_by_slurm_itself_is_told_as_a_reason() {
    let [mut record, _] = shapes("RUNNING", "None", 0);
    record.restart_cnt = Some(2);
    assert!(reason(&record.observe(None)).contains("run again by Slurm itself, 2 times"));
}

#[test]
fn slurmdbds_exit_code_is_not_believed_and_what_the_job_left_is() {
    let stored = read(json!({"errors": [], "jobs": [{"job_id": 42, "name": "jobgate-sum",
        "comment": {"administrator": null, "job": null, "system": null},
        "state": {"current": "FAILED", "reason": "NonZeroExitCode"},
        "exit_code": {"status": "SUCCESS", "return_code": 0},
        "time": {"submission": 1_700_000_000, "start": 1_700_000_010, "end": 1_700_000_020}}]}));
    assert_eq!(ending(&stored.observe(None)), Some((Ending::Failed, None)));
    let exit_file = ExitFile::Exit { code: 7, signaled: false, why: None };
    assert_eq!(ending(&stored.observe(Some(&exit_file))), Some((Ending::Failed, Some(7))));
}

#[test]
fn every_kind_of_error_means_one_thing() {
    let judged = |status: u16, errors: Value| {
        let answer: Answer = serde_json::from_value(json!({"errors": errors, "job_id": 7})).unwrap();
        match answer.judged(status) {
            Ok(_) => "done",
            Err(Fault::Unknown) => "unknown",
            Err(Fault::Over) => "over",
            Err(Fault::NotBelieved(_)) => "not believed",
            Err(Fault::Away(_)) => "away",
            Err(Fault::Refused(_)) => "refused",
            Err(Fault::NotNow(_)) => "not now",
        }
    };
    for (status, errors, meaning) in [
        (200, json!([]), "done"),
        (
            200,
            json!([{"error_code": 2042, "error": "Job is in held state, pending scheduler release"}]),
            "done",
        ),
        (
            200,
            json!([{"error_code": 2015, "error": "Requested partition configuration not available now"}]),
            "done",
        ),
        (500, json!([{"error_number": 2017, "error": "Invalid job id specified"}]), "unknown"),
        (404, json!([]), "unknown"),
        (200, json!([{"error_number": 9003, "error": "Nothing found"}]), "unknown"),
        (500, json!([{"error_number": 2084, "error": "Job has already finished"}]), "over"),
        (
            500,
            json!([{"error_number": -1, "error": "Unspecified error", "source": "slurm_load_jobs"}]),
            "away",
        ),
        (500, json!([{"error_code": 1800, "error": "Unable to contact slurm controller"}]), "away"),
        (200, json!([{"error_code": 5005, "error": "Zero Bytes were transmitted or received"}]), "away"),
        (503, json!([]), "away"),
        (511, json!([{"error_number": 1007, "error": "Protocol authentication error"}]), "not believed"),
        (500, json!([{"error_number": 1, "error": "Operation not permitted"}]), "away"),
        (500, json!([{"error_code": 2050, "error": "Job violates accounting/QOS policy"}]), "not now"),
        (500, json!([{"error_code": 11, "error": "Resource temporarily unavailable"}]), "not now"),
        (500, json!([{"error_code": 2000, "error": "Invalid partition name specified"}]), "refused"),
        (
            500,
            json!([{"error_code": 2014, "error": "Requested node configuration is not available"}]),
            "refused",
        ),
        (
            400,
            json!([{"description": "Unknown key \"x\""}, {"error_code": 9001, "error": "Failure"}]),
            "refused",
        ),
    ] {
        assert_eq!(judged(status, errors.clone()), meaning, "{status} {errors}");
    }
}

/// As 24.11 says it to a cancel in v0.0.42, over HTTP 200.
#[test]
fn what_a_cancel_says_of_one_job_is_no_success() {
    let judged = |code: i64, message: &str| {
        let status = json!([{"error": {"string": message, "code": code, "message": message}, "step_id": "7",
            "job_id": {"set": true, "infinite": false, "number": 7}, "federation": {"sibling": ""}}]);
        let answer = json!({"status": status, "errors": [], "warnings": []});
        serde_json::from_value::<Answer>(answer).unwrap().judged(200)
    };
    assert!(judged(0, "No error").is_ok());
    assert!(matches!(judged(2017, "Invalid job id specified"), Err(Fault::Unknown)));
    assert!(matches!(judged(2021, "Job/step already completing or completed"), Err(Fault::Over)));
    match judged(2020, "Job can not be altered now, try again later") {
        Err(Fault::Away(why)) => assert!(why.to_string().contains("can not be altered now"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_cancel_says_that_cannot_be_read_is_no_success() {
    let read = |status: Value| serde_json::from_value::<Answer>(json!({"status": status, "errors": []})).ok();
    for status in [json!({"error": {"code": 0}}), json!("done"), json!([null]), json!(["done"]), json!(0)] {
        assert!(read(status.clone()).is_none(), "{status}");
    }
    for status in [
        json!([{}]),
        json!([{"error": null}]),
        json!([{"error": "Invalid job id specified"}]),
        json!([{"error": {"message": "No error"}}]),
        json!([{"error": {"code": "0"}}]),
        json!([{"error": {"code": {"set": false, "number": 0}}}]),
        json!([{"error": {"code": 0}}, {"error": {}}]),
    ] {
        let judged = read(status.clone()).unwrap().judged(200);
        assert!(matches!(judged, Err(Fault::Away(_))), "{status}: {judged:?}");
    }
    for status in [json!(null), json!([]), json!([{"error": {"code": 0}}])] {
        assert!(read(status.clone()).unwrap().judged(200).is_ok(), "{status}");
    }
}

#[test]
fn a_request_has_the_shape_of_its_version_and_is_always_held() {
    let mut job = job();
    job.spec.resources.memory_mib = Some(100);
    job.spec.resources.cpus = Some(2);
    job.spec.time_limit_seconds = Some(61);
    job.spec.engine.insert("constraint".into(), "fast".into());
    let defaults = [("partition".to_owned(), "debug".to_owned())].into();
    let config = SlurmConfig { defaults, ..config() };
    let outputs = id::outputs(None, job.tag, Nonce::draw());
    let request = |version: &str, job: &ToCreate| {
        script::request(&config, version, job, ("name", "comment"), &outputs, "#!/bin/sh\n".into())
    };
    let old = request("v0.0.38", &job).unwrap();
    assert_eq!(old["script"], "#!/bin/sh\n");
    assert_eq!((&old["job"]["time_limit"], &old["job"]["memory_per_node"]), (&json!(2), &json!(100)));
    assert!(old["job"]["environment"].is_object());
    assert_eq!(old["job"].get("requeue"), None, "its mere presence means yes");
    let new = request("v0.0.41", &job).unwrap();
    assert_eq!(new["job"]["script"], "#!/bin/sh\n");
    assert_eq!(new["job"]["time_limit"]["number"], 2);
    assert!(new["job"]["environment"].is_array());
    assert_eq!(new["job"]["requeue"], false);
    for request in [old, new] {
        assert_eq!(request["job"]["hold"], true);
        assert_eq!(
            (&request["job"]["partition"], &request["job"]["constraints"]),
            (&json!("debug"), &json!("fast"))
        );
    }
    job.spec.resources.gpus = Some(2);
    assert!(request("v0.0.38", &job).is_err());
    assert_eq!(request("v0.0.42", &job).unwrap()["job"]["tres_per_node"], "gres/gpu:2");
}

#[test]
fn a_comment_tells_how_far_a_job_was_brought_and_by_which_gateway() {
    let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
    let of = Identity { tag, nonce: Nonce::draw(), job: 7 };
    for mark in [Mark::Created, Mark::Started, Mark::Discarded] {
        let record = JobRecord { comment: id::comment(tag, "here", mark), ..JobRecord::default() };
        assert_eq!(of.mark(&record, "here"), Some(mark));
        assert_eq!(of.mark(&record, "there"), None);
    }
}

/// Runs a script as Slurm would; what the command printed, and what was left of its end.
fn run(job: &ToCreate) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let exit_file = dir.path().join("exit");
    let path = dir.path().join("batch");
    let text = script::render(&config(), job, Some(&exit_file));
    assert!(!text.lines().any(|line| line.starts_with("#SBATCH")), "{text}");
    std::fs::write(&path, text).unwrap();
    // The run of all tests ignores signals.
    let output = Command::new("/usr/bin/env")
        .args(["--default-signal", "/bin/sh"])
        .arg(&path)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap();
    (String::from_utf8(output.stdout).unwrap(), std::fs::read_to_string(exit_file).unwrap())
}

#[test]
fn no_text_of_a_users_becomes_a_directive_an_option_or_a_command() {
    let mean =
        ["\n#SBATCH --uid=0\n", "'; id #", "$(id)", "`id`", "\\", "JOBGATE_END\nid\n", "-n", "", "\"$nl\""];
    for text in mean {
        let mut job = job();
        job.spec.command = vec!["printf".into(), "%s|%s".into(), text.into(), "end".into()];
        assert_eq!(run(&job), (format!("{text}|end"), "0\n".to_owned()));
        job.spec.command = ["sh", "-c", "cat; printf '|%s' \"$V\""].map(str::to_owned).to_vec();
        job.spec.stdin = Some(text.into());
        job.spec.env.insert("V".into(), text.into());
        assert_eq!(run(&job).0, format!("{text}|{text}"));
        job.spec.command = vec!["cat".into()];
        job.spec.script = Some(text.into());
        assert_eq!(run(&job).0, text);
    }
}

#[test]
fn a_script_that_slurm_begins_again_runs_nothing_and_tells_what_the_first_came_to() {
    let dir = tempfile::tempdir().unwrap();
    let (exit_file, path) = (dir.path().join("exit"), dir.path().join("batch"));
    let mut job = job();
    job.spec.command = ["sh", "-c", "echo runs; exit 7"].map(str::to_owned).to_vec();
    std::fs::write(&path, script::render(&config(), &job, Some(&exit_file))).unwrap();
    let begin = || {
        let output =
            Command::new("/bin/sh").arg(&path).env_clear().env("PATH", "/usr/bin:/bin").output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    };
    assert_eq!(begin(), ("runs\n".to_owned(), Some(7)));
    assert_eq!(begin(), (String::new(), Some(7)));
    std::fs::remove_file(&exit_file).unwrap();
    assert_eq!(begin(), (String::new(), Some(125)));
    assert_eq!(std::fs::read_to_string(&exit_file).unwrap(), "begun again\n");
    assert_eq!(begin(), (String::new(), Some(125)), "and again");
}

#[test]
fn an_end_the_job_came_to_by_itself_beats_what_slurm_did_to_it_later() {
    let exit = |code, signaled| ExitFile::Exit { code, signaled, why: None };
    // One that was told to end, and did so with good manners, is what it was told to end for.
    for (state, with_well, with_killed, with_manners) in [
        ("CANCELLED", Ending::Finished, Ending::Canceled, Ending::Canceled),
        ("FAILED", Ending::Finished, Ending::Failed, Ending::Failed),
        ("NODE_FAIL", Ending::Finished, Ending::Lost, Ending::Lost),
        ("PREEMPTED", Ending::Finished, Ending::Failed, Ending::Failed),
        ("TIMEOUT", Ending::TimedOut, Ending::TimedOut, Ending::TimedOut),
        ("COMPLETED", Ending::Finished, Ending::Finished, Ending::Finished),
    ] {
        let job = JobRecord { job_state: vec![state.into()], ..JobRecord::default() };
        for (exit_file, expected) in
            [(exit(0, false), with_well), (exit(143, true), with_killed), (exit(0, true), with_manners)]
        {
            let told = ending(&job.observe(Some(&exit_file))).map(|(ending, _)| ending);
            assert_eq!(told, Some(expected), "{state} with {exit_file:?}");
        }
    }
}

#[test]
fn what_slurm_began_again_is_lost_unless_it_was_told_to_end() {
    for (state, gone) in [
        ("FAILED", true),
        ("NODE_FAIL", true),
        ("COMPLETED", true),
        ("CANCELLED", false),
        ("TIMEOUT", false),
        ("RUNNING", false),
        ("PENDING", false),
    ] {
        for record in shapes(state, "NonZeroExitCode", 125 << 8) {
            let sighting = record.sight(Some(&ExitFile::BegunAgain));
            assert_eq!(matches!(sighting, Sighting::Gone { .. }), gone, "{state}: {sighting:?}");
        }
    }
    assert!(matches!(state::sight_exit_file(&ExitFile::BegunAgain), Sighting::Gone { .. }));
}

/// What a /bin/sh may be: dash here, and on many clusters bash, which is then as POSIX wants it.
fn shells() -> Vec<&'static [&'static str]> {
    let all: [&[&str]; 2] = [&["/bin/sh"], &["/bin/bash", "--posix"]];
    all.into_iter().filter(|shell| std::path::Path::new(shell[0]).exists()).collect()
}

/// A job that begins under a shell as it would under Slurm, at the head of its process group. Its command finds the paths of
/// two files in `BEGUN` and `HEARD`.
struct Batch {
    dir: tempfile::TempDir,
    command: Command,
}

impl Batch {
    fn new(shell: &[&str], script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut job = job();
        job.spec.command = ["sh", "-c", script].map(str::to_owned).to_vec();
        for (name, file) in [("BEGUN", "begun"), ("HEARD", "heard")] {
            job.spec.env.insert(name.into(), dir.path().join(file).to_str().unwrap().to_owned());
        }
        let path = dir.path().join("batch");
        std::fs::write(&path, script::render(&config(), &job, Some(&dir.path().join("exit")))).unwrap();
        let mut command = Command::new("/usr/bin/env");
        // The run of all tests ignores signals.
        command.arg("--default-signal").args(shell).arg(&path);
        command.env_clear().env("PATH", "/usr/bin:/bin").process_group(0);
        Self { dir, command }
    }

    /// What it left of its end, after `tell` sent what it sends, once the command says that it has begun.
    fn told(&mut self, tell: impl Fn(Pid)) -> String {
        let mut running = self.command.spawn().unwrap();
        while self.file("begun").is_none() {
            std::thread::yield_now();
        }
        tell(Pid::from_child(&running));
        running.wait().unwrap();
        self.file("exit").unwrap()
    }

    fn file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.dir.path().join(name)).ok().filter(|text| text.ends_with('\n'))
    }
}

/// Under every shell: what the job left, and what its command wrote down.
fn told(script: &str, tell: impl Fn(Pid), left: &str, heard: Option<&str>) {
    for shell in shells() {
        let mut batch = Batch::new(shell, script);
        assert_eq!(batch.told(&tell), left, "{script} under {shell:?}");
        assert_eq!(batch.file("heard").as_deref(), heard, "{script} under {shell:?}");
    }
}

const BEGUN: &str = "echo >\"$BEGUN\"; while :; do sleep 0.01; done";

fn sigterm(job: Pid) {
    kill_process(job, Signal::TERM).unwrap();
}

#[test]
fn an_exit_with_0_on_slurms_own_sigterm_leaves_word_of_the_signal() {
    let to_all = |job| kill_process_group(job, Signal::TERM).unwrap();
    told(&format!("trap 'sleep 0.1; exit 0' TERM; {BEGUN}"), to_all, "0 after a signal\n", None);
}

#[test]
fn a_sigterm_to_the_batch_script_alone_reaches_the_command_once() {
    let also_broken_off = |job| {
        kill_process(job, Signal::USR1).unwrap();
        sigterm(job);
    };
    told(&format!("trap 'exit 7' TERM; {BEGUN}"), also_broken_off, "7 after a signal\n", None);
    // A command that waits for longer than it is told to is waited for.
    told(&format!("trap 'sleep 0.3; exit 3' TERM; {BEGUN}"), sigterm, "3 after a signal\n", None);
    let counts = "trap 'echo x >>\"$HEARD\"' TERM; echo >\"$BEGUN\"; \
        until [ -s \"$HEARD\" ]; do sleep 0.01; done; sleep 0.2; exit 4";
    told(counts, sigterm, "4 after a signal\n", Some("x\n"));
}

#[test]
fn a_sigterm_reaches_what_the_command_started_and_that_has_its_time() {
    let polite = format!(
        "'trap \"sleep 0.3; echo told >\\\"\\$HEARD\\\"; exit 0\" TERM; {}'",
        BEGUN.replace('\'', "")
    );
    // The shell that waits for it dies of the signal.
    told(&format!("sh -c {polite}; exit 9"), sigterm, "143 after a signal\n", Some("told\n"));
    // One that heeds the signal itself.
    told(&format!("trap : TERM; sh -c {polite}; exit 9"), sigterm, "9 after a signal\n", Some("told\n"));
    // A command that left the group is told, too.
    told(&format!("exec setsid sh -c {polite}"), sigterm, "0 after a signal\n", Some("told\n"));
}

#[test]
fn what_was_told_to_end_before_its_command_began_does_not_begin() {
    for shell in shells() {
        // Each is run by the script before that: at the latest it is told while the last one runs.
        for early in ["mktemp", "env"] {
            let mut batch = Batch::new(shell, "echo >\"$HEARD\"; exit 0");
            let bin = batch.dir.path().join("bin");
            std::fs::create_dir(&bin).unwrap();
            let tells = format!("#!/bin/sh\nkill -TERM $PPID\nexec /usr/bin/{early} \"$@\"\n");
            std::fs::write(bin.join(early), tells).unwrap();
            std::fs::set_permissions(bin.join(early), PermissionsExt::from_mode(0o755)).unwrap();
            batch.command.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
            batch.command.status().unwrap();
            let left = (batch.file("exit"), batch.file("heard"));
            assert_eq!(left, (Some("143 after a signal\n".into()), None), "{shell:?}, {early}");
        }
    }
}

#[test]
fn an_exit_code_of_127_is_told_whatever_broke_off_the_wait() {
    told(&format!("trap 'exit 127' TERM; {BEGUN}"), sigterm, "127 after a signal\n", None);
    let usr1 = |job| kill_process(job, Signal::USR1).unwrap();
    told("echo >\"$BEGUN\"; sleep 0.6; exit 127", usr1, "127\n", None);
}

#[test]
fn a_command_is_begun_without_ignored_signals() {
    let mut job = job();
    job.spec.command = ["grep", "SigIgn", "/proc/self/status"].map(str::to_owned).to_vec();
    let told = run(&job).0;
    let ignored = u64::from_str_radix(told.trim_start_matches("SigIgn:").trim(), 16).unwrap();
    // SIGINT and SIGQUIT, which a shell has what it begins in the background ignore.
    assert_eq!(ignored & 0b110, 0, "{told}");
}

#[test]
fn what_cannot_be_run_says_so_in_what_it_leaves() {
    for (command, left) in [
        ("jobgate-no-such-command", "127\njobgate-no-such-command: command not found\n"),
        ("/no/such/file", "127\n/no/such/file: no such file\n"),
        ("/etc/passwd", "126\n/etc/passwd: cannot be executed\n"),
        ("/", "126\n/: cannot be executed\n"),
    ] {
        let mut job = job();
        job.spec.command = vec![command.into()];
        assert_eq!(run(&job).1, left);
    }
    let mut job = job();
    job.spec.command = ["sh", "-c", "exit 127"].map(str::to_owned).to_vec();
    assert_eq!(run(&job).1, "127\n", "a command's own code is no fault of ours");
}

#[test]
fn what_cannot_be_is_refused_by_field() {
    let options = [("partition".to_owned(), ["debug".to_owned()].into())].into();
    let config = SlurmConfig { max_cpus: Some(4), options, max_script_bytes: 100_000, ..config() };
    let fault = |change: &dyn Fn(&mut JobSpec)| {
        let mut spec = job().spec;
        change(&mut spec);
        config.validate(&spec).err().map(|fault| fault.field)
    };
    let option = |name: &'static str, value: Value| {
        move |s: &mut JobSpec| drop(s.engine.insert(name.into(), value.clone()))
    };
    assert_eq!(fault(&|_| {}), None);
    assert_eq!(fault(&|s| s.image = Some("alpine".into())).as_deref(), Some("spec.image"));
    assert_eq!(fault(&|s| s.resources.cpus = Some(5)).as_deref(), Some("spec.resources.cpus"));
    assert_eq!(fault(&|s| s.resources.gpus = Some(1)).as_deref(), Some("spec.resources.gpus"));
    assert_eq!(fault(&|s| s.resources.nodes = Some(2)).as_deref(), Some("spec.resources.nodes"));
    assert_eq!(fault(&|s| s.command[0] = "A=1".into()).as_deref(), Some("spec.command[0]"));
    assert_eq!(fault(&|s| s.command[0] = "-S".into()).as_deref(), Some("spec.command[0]"));
    assert_eq!(fault(&|s| s.stdin = Some("x".repeat(100_000))).as_deref(), Some("spec"));
    assert_eq!(fault(&option("partition", "debug".into())), None);
    for (name, value) in [
        ("partition", json!("long")),
        ("qos", json!("high")),
        ("partition", json!("a b")),
        ("array", json!("1-9")),
    ] {
        assert_eq!(fault(&option(name, value)), Some(format!("spec.engine.{name}")));
    }
}

#[test]
fn a_script_is_never_longer_than_the_spec_was_judged_to_make_it() {
    let mut job = job();
    job.spec.command.extend(["'".repeat(3_000), "\n".repeat(3_000)]);
    job.spec.stdin = Some("é\n".repeat(10_000));
    job.spec.env.insert("A".into(), "'\n".repeat(2_000));
    let length = script::render(&config(), &job, None).len() as u64;
    let fits = |max_script_bytes| SlurmConfig { max_script_bytes, ..config() }.validate(&job.spec).is_ok();
    assert!(!fits(length - 1), "a script of {length} bytes was taken for a shorter one");
    assert!(fits(length + (16 << 10)));
}

#[test]
fn a_wrong_setting_is_named() {
    let fault = |config: SlurmConfig| config.check().unwrap_err().to_string();
    assert!(config().check().is_ok());
    assert!(fault(SlurmConfig::default()).contains("user"));
    assert!(fault(SlurmConfig { url: "ftp://x".into(), ..config() }).contains("url"));
    assert!(fault(SlurmConfig { url: "unix:socket".into(), ..config() }).contains("url"));
    assert!(fault(SlurmConfig { log_dir: Some("/logs/%j".into()), ..config() }).contains("log_dir"));
    assert!(fault(SlurmConfig { scope: Some("a b".into()), ..config() }).contains("scope"));
    assert!(fault(SlurmConfig { observer: Some("joe".into()), ..config() }).contains("observer"));
    assert!(fault(SlurmConfig { api_versions: Vec::new(), ..config() }).contains("api_versions"));
    let options = [("array".to_owned(), ["*".to_owned()].into())].into();
    assert!(fault(SlurmConfig { options, ..config() }).contains("options.array"));
    let both =
        SlurmConfig { token_file: Some("/t".into()), token_command: Some(vec!["t".into()]), ..config() };
    assert!(fault(both).contains("not both"));
}
