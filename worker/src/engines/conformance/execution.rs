//! What a command gets, what it leaves behind, and what a cancel does to it.

use super::{Bench, Made};
use crate::engine::{EngineError, Sighting, Stream, SubmitMode};
use jobgate_shared::domain::{Ending, Observation};
use std::collections::BTreeMap;

pub(super) async fn no_command_is_run(bench: Bench) {
    let made = bench.run(bench.job("echo > \"$SHARED/ran\"; exit 7")).await;
    bench.ends(&made, Ending::Finished).await;
    assert!(!bench.rig.shared_dir().join("ran").exists());
}

/// A job that runs until a file of this name is there.
fn until_released(name: &str, then: &str) -> String {
    format!("while [ ! -e \"$SHARED/{name}\" ]; do sleep 0.01; done; {then}")
}

fn release(bench: &Bench, name: &str) {
    std::fs::write(bench.rig.shared_dir().join(name), "").expect("a file");
}

async fn is_running(bench: &Bench, made: &Made) -> Observation {
    bench
        .until("a running job", || async {
            match bench.sight(made).await {
                Sighting::Seen(running @ Observation::Running { .. }) => Some(running),
                Sighting::Seen(Observation::Pending { .. }) | Sighting::Inert => None,
                ended @ (Sighting::Seen(Observation::Ended { .. })
                | Sighting::Absent
                | Sighting::Unseen
                | Sighting::Gone { .. }) => panic!("{ended:?}"),
            }
        })
        .await
}

pub(super) async fn a_running_job_is_seen_running_and_its_start_stays(bench: Bench) {
    let made = bench.run(bench.job(&until_released("go", ":"))).await;
    let seen = is_running(&bench, &made).await;
    bench.until("a beginning", || async { (bench.runs(made.tag()) == 1).then_some(()) }).await;
    assert_eq!(is_running(&bench, &made).await, seen, "what is told once need not be told again");
    release(&bench, "go");
    bench.ends(&made, Ending::Finished).await;
    let Observation::Running { since, .. } = seen else { unreachable!("seen running") };
    match bench.sight(&made).await {
        Sighting::Seen(Observation::Ended { began, at, .. }) => {
            assert_eq!(began, since);
            assert!(at >= began, "{at:?} is before {began:?}");
        }
        other @ (Sighting::Seen(Observation::Pending { .. } | Observation::Running { .. })
        | Sighting::Inert
        | Sighting::Absent
        | Sighting::Unseen
        | Sighting::Gone { .. }) => panic!("{other:?}"),
    }
}

pub(super) async fn arguments_arrive_verbatim(bench: Bench) {
    let arguments =
        ["a b", "", "line\nline", "'\"`$HOME` $(id) \\", "-n", "*", "é ☃", "\t;|&<>", "a=b", "--", "%s"];
    let mut command = vec!["/usr/bin/env", "printf", "<%s>"];
    command.extend(arguments);
    let made = bench.run(Bench::job_of(bench.spec(&command))).await;
    bench.ends(&made, Ending::Finished).await;
    let expected = format!("<{}>", arguments.join("><"));
    assert_eq!(bench.output(&made, Stream::Stdout).await, expected);
}

pub(super) async fn standard_input_and_scripts_arrive_verbatim(bench: Bench) {
    let text = format!("a 'line' with \"quotes\" and $HOME\n{}no newline at the end", "x".repeat(200_000));
    let mut spec = bench.spec(&["cat"]);
    spec.stdin = Some(text.clone());
    let echoed = bench.run(Bench::job_of(spec)).await;
    let nothing = bench.run(Bench::job_of(bench.spec(&["cat"]))).await;
    let mut spec = bench.spec(&["sh"]);
    spec.script =
        Some("#!/no/such/interpreter\nprintf '%s' \"$0 has $# arguments\" | sed 's/.* has/has/'\n".into());
    let scripted = bench.run(Bench::job_of(spec)).await;
    bench.ends(&echoed, Ending::Finished).await;
    assert_eq!(bench.output(&echoed, Stream::Stdout).await, text);
    bench.ends(&nothing, Ending::Finished).await;
    assert_eq!(bench.output(&nothing, Stream::Stdout).await, "");
    bench.ends(&scripted, Ending::Finished).await;
    assert_eq!(bench.output(&scripted, Stream::Stdout).await.trim_end(), "has 0 arguments");
}

/// Variables a resource manager may rightly give a job the same value of as its worker has.
const OF_THE_HOST: [&str; 11] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TERM", "TMPDIR", "PWD", "OLDPWD", "SHLVL"];

pub(super) async fn a_job_gets_its_own_environment_and_nothing_of_the_workers(bench: Bench) {
    let mut spec = bench.spec(&["env", "-0"]);
    let own =
        [("A", "1"), ("LINES", "a\nb=c"), ("QUOTES", "'\"$A`"), ("EMPTY", ""), ("JOBGATE_JOB_ID", "forged")];
    spec.env = own.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let made = bench.run(Bench::job_of(spec)).await;
    bench.ends(&made, Ending::Finished).await;
    let output = bench.output(&made, Stream::Stdout).await;
    let got: BTreeMap<&str, &str> = output.split_terminator('\0').filter_map(|v| v.split_once('=')).collect();
    for (name, value) in &own[..4] {
        assert_eq!(got.get(name), Some(value), "{name}");
    }
    assert_eq!(got.get("JOBGATE_JOB_ID"), Some(&made.tag().job.to_string().as_str()));
    assert_eq!(got.get("JOBGATE_ATTEMPT"), Some(&"1"));
    assert!(got.contains_key("PATH"));
    let mut compared = 0;
    for (name, value) in std::env::vars_os() {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        if !OF_THE_HOST.contains(&name.as_ref()) {
            compared += 1;
            assert_ne!(got.get(name.as_ref()), Some(&value.as_ref()), "{name} is the worker's");
        }
    }
    assert!(compared > 0, "an empty environment proves nothing");
}

pub(super) async fn output_can_be_read_while_it_grows_and_its_end_is_told(bench: Bench) {
    let say = "echo out; echo err >&2; ";
    let made = bench.create(bench.job(&format!("{say}{}", until_released("go", "echo more")))).await;
    let early = bench.log(&made, Stream::Stdout, 0).await;
    let begun = bench.engine.capabilities().mode == SubmitMode::AtMostOnce;
    assert!((early.bytes.is_empty() || begun) && !early.last, "{early:?}");
    bench.start(&made).await;
    for (stream, text) in [(Stream::Stdout, "out\n"), (Stream::Stderr, "err\n")] {
        let chunk = bench
            .until("output", || async {
                Some(bench.log(&made, stream, 0).await).filter(|c| !c.bytes.is_empty())
            })
            .await;
        assert_eq!((chunk.bytes.as_ref(), chunk.last), (text.as_bytes(), false));
        let rest = bench.log(&made, stream, 4).await;
        assert!(rest.bytes.is_empty() && !rest.last, "{rest:?}");
    }
    release(&bench, "go");
    bench.ends(&made, Ending::Finished).await;
    let rest = bench.log(&made, Stream::Stdout, 4).await;
    assert_eq!((rest.bytes.as_ref(), rest.last), (&b"more\n"[..], true));
    let small =
        bench.engine.read_log(made.tag(), &made.submission, Stream::Stdout, 0, 3).await.expect("read_log");
    assert_eq!((small.bytes.as_ref(), small.last), (&b"out"[..], false));
    assert_eq!(bench.output(&made, Stream::Stdout).await, "out\nmore\n");
    assert_eq!(bench.output(&made, Stream::Stderr).await, "err\n");
    let beyond = bench.log(&made, Stream::Stdout, 1000).await;
    assert!(beyond.bytes.is_empty() && beyond.last, "{beyond:?}");
}

pub(super) async fn nothing_that_is_printed_can_be_read(bench: Bench) {
    let made = bench.run(bench.job("echo out; echo err >&2")).await;
    for _ in 0..2 {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let read = bench.engine.read_log(made.tag(), &made.submission, stream, 0, 100).await;
            assert!(matches!(read, Err(EngineError::Refused(_))), "{read:?}");
        }
        bench.ends(&made, Ending::Finished).await;
    }
}

/// Starts a child, one in a session of its own whose parent is gone, and one that does not listen to SIGTERM; writes down
/// who they are.
const BROOD: &str = "sleep 600 & child=$!; \
    (setsid sh -c 'echo $$ > \"$SHARED/$NAME.orphan\"; exec sleep 600' &); \
    sh -c 'trap \"\" TERM; echo $$ > \"$SHARED/$NAME.deaf\"; while :; do sleep 600; done' & \
    while [ ! -s \"$SHARED/$NAME.orphan\" ] || [ ! -s \"$SHARED/$NAME.deaf\" ]; do sleep 0.01; done; \
    echo \"$child $(cat \"$SHARED/$NAME.orphan\") $(cat \"$SHARED/$NAME.deaf\") $$\" > \"$SHARED/$NAME.new\"; \
    mv \"$SHARED/$NAME.new\" \"$SHARED/$NAME\"; ";

async fn brood(bench: &Bench, name: &str, then: &str) -> (Made, Vec<u32>) {
    let mut job = bench.job(&format!("{BROOD}{then}"));
    job.spec.env.insert("NAME".into(), name.into());
    let made = bench.run(job).await;
    let pids = bench.file(name).await;
    let pids: Vec<u32> = pids.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
    assert_eq!(pids.len(), 4, "{pids:?}");
    (made, pids)
}

/// Holds the rig's declaration, in both directions.
fn assert_gone(bench: &Bench, pids: &[u32]) {
    if !bench.rig.ends_strays() {
        assert!(bench.rig.is_gone(pids[3]), "the command itself, of {pids:?}, lives on");
        assert!(
            !bench.rig.is_gone(pids[1]),
            "what left its parents was ended, which is more than was declared"
        );
        for pid in pids.iter().filter(|pid| !bench.rig.is_gone(**pid)) {
            let pid = i32::try_from(*pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it was there");
        }
        return;
    }
    for pid in pids {
        assert!(bench.rig.is_gone(*pid), "{pid} of {pids:?} lives on");
    }
}

pub(super) async fn a_cancel_ends_the_job_and_all_it_started(bench: Bench) {
    let (made, pids) = brood(&bench, "brood", "wait").await;
    assert!(!pids.iter().any(|pid| bench.rig.is_gone(*pid)), "{pids:?}");
    bench.cancel(&made).await;
    bench.cancel(&made).await;
    bench.ends(&made, Ending::Canceled).await;
    assert_gone(&bench, &pids);
    assert_eq!(bench.runs(made.tag()), 1);
}

/// One that takes a moment to end by itself when it is told to is canceled, begun as `command` says; whether it had that moment.
async fn heeds_a_cancel(bench: &Bench, command: &str) -> bool {
    let polite = "trap 'sleep 0.1; echo > \"$SHARED/told\"; exit 0' TERM; echo > \"$SHARED/ready\"; \
        while :; do sleep 0.01; done";
    let mut job = bench.job(command);
    job.spec.env.insert("POLITE".into(), polite.into());
    let made = bench.run(job).await;
    bench.file("ready").await;
    bench.cancel(&made).await;
    bench.ends(&made, Ending::Canceled).await;
    bench.rig.shared_dir().join("told").exists()
}

const ITSELF: &str = "eval \"$POLITE\"";

pub(super) async fn canceled_it_is_told_and_canceled_even_if_it_then_ends_well(bench: Bench) {
    assert!(heeds_a_cancel(&bench, ITSELF).await);
}

pub(super) async fn canceled_what_its_command_started_is_told_and_has_as_long_as_that_waits(bench: Bench) {
    assert!(heeds_a_cancel(&bench, "trap : TERM; sh -c \"$POLITE\"; exit 0").await);
}

pub(super) async fn canceled_it_has_no_time_to_end_by_itself(bench: Bench) {
    assert!(!heeds_a_cancel(&bench, ITSELF).await, "it had, which is more than was declared");
}

pub(super) async fn nothing_a_job_started_outlives_it(bench: Bench) {
    let (made, pids) = brood(&bench, "brood", "exit 3").await;
    bench.ends(&made, Ending::Failed).await;
    assert_gone(&bench, &pids);
}
