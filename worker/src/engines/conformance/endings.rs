//! How a command's end is told, whether it came to it by itself or at a limit.

use super::{Bench, End};
use jobgate_shared::domain::{Ending, SpecError};
use std::os::unix::fs::PermissionsExt as _;

async fn end_of(bench: &Bench, then: &str) -> End {
    let made = bench.run(bench.job(then)).await;
    bench.end(&made).await
}

pub(super) async fn a_failure_is_told_from_a_success_and_no_code_is_made_up(bench: Bench) {
    assert_eq!(end_of(&bench, "exit 0").await.ending, Ending::Finished);
    for fails in ["exit 7", "kill -9 $$"] {
        let end = end_of(&bench, fails).await;
        assert_eq!((end.ending, end.exit_code), (Ending::Failed, None), "{end:?}");
    }
}

pub(super) async fn exit_codes_are_told_and_a_signal_as_one(bench: Bench) {
    exit_codes_are_told(&bench).await;
    for killed in ["kill -9 $$", "exit 137"] {
        let end = end_of(&bench, killed).await;
        assert_eq!((end.ending, end.exit_code), (Ending::Failed, Some(137)), "{killed}: {end:?}");
        assert!(end.reason.contains("signal 9"), "{killed}: {end:?}");
    }
}

pub(super) async fn exit_codes_are_told_and_signals_apart_from_them(bench: Bench) {
    exit_codes_are_told(&bench).await;
    let end = end_of(&bench, "kill -9 $$").await;
    assert_eq!((end.ending, end.exit_code), (Ending::Failed, None), "{end:?}");
    assert!(end.reason.contains("signal 9"), "{end:?}");
    let end = end_of(&bench, "exit 137").await;
    assert_eq!((end.ending, end.exit_code), (Ending::Failed, Some(137)), "{end:?}");
    assert!(!end.reason.contains("signal"), "{end:?}");
}

async fn exit_codes_are_told(bench: &Bench) {
    let end = end_of(bench, "exit 0").await;
    assert_eq!((end.ending, end.exit_code), (Ending::Finished, Some(0)), "{end:?}");
    let end = end_of(bench, "exit 7").await;
    assert_eq!((end.ending, end.exit_code), (Ending::Failed, Some(7)), "{end:?}");
}

pub(super) async fn what_cannot_be_run_says_why(bench: Bench) {
    let plain = bench.rig.shared_dir().join("plain");
    std::fs::write(&plain, "no program").expect("a file");
    std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).expect("its mode");
    let not_there = Bench::job_of(bench.spec(&["jobgate-no-such-command"]));
    let not_executable = Bench::job_of(bench.spec(&[plain.to_str().expect("UTF-8")]));
    let mut nowhere = bench.job(":");
    nowhere.spec.working_dir = Some("/jobgate/no/such/directory".into());
    for (job, exit_code, word) in [
        (not_there, 127, "jobgate-no-such-command"),
        (not_executable, 126, "plain"),
        (nowhere, 127, "/jobgate/no/such/directory"),
    ] {
        let made = bench.run(job).await;
        let end = bench.end(&made).await;
        assert_eq!((end.ending, end.exit_code), (Ending::Failed, Some(exit_code)), "{end:?}");
        // The words are of the job's output, or lie beside it.
        assert!(end.reason.contains(word) || !bench.engine.capabilities().logs, "{end:?}");
        assert_eq!(bench.runs(made.tag()), 0);
    }
}

pub(super) async fn a_job_runs_no_longer_than_its_time_limit(bench: Bench) {
    let mut limited = bench.job("exec sleep 600");
    limited.spec.time_limit_seconds = Some(1);
    let mut in_time = bench.job(":");
    in_time.spec.time_limit_seconds = Some(600);
    let (limited, in_time) = (bench.run(limited).await, bench.run(in_time).await);
    bench.ends(&in_time, Ending::Finished).await;
    bench.ends(&limited, Ending::TimedOut).await;
    assert_eq!(bench.runs(limited.tag()), 1);
}

pub(super) async fn a_time_limit_is_left_to_who_watches(bench: Bench) {
    let mut limited = bench.job("sleep 3");
    limited.spec.time_limit_seconds = Some(1);
    let made = bench.run(limited).await;
    bench.ends(&made, Ending::Finished).await;
}

/// Of two jobs that ask for 64 MiB the one that wants 1 ends well; how the one ends that wants 300.
async fn end_of_a_greedy_one(bench: &Bench) -> End {
    let wants = |bytes: u32| {
        // A line without end is kept whole.
        let mut job = bench.job(&format!("head -c {bytes} /dev/zero | tail -n 1 >/dev/null"));
        job.spec.resources.memory_mib = Some(64);
        job
    };
    let (modest, greedy) = (bench.run(wants(1 << 20)).await, bench.run(wants(300 << 20)).await);
    bench.ends(&modest, Ending::Finished).await;
    let end = bench.end(&greedy).await;
    assert_eq!(end.ending, Ending::Failed, "{end:?}");
    end
}

/// In words of ours or the manager's.
fn is_told(end: &End) -> bool {
    end.reason.to_lowercase().replace('_', " ").contains("out of memory")
}

pub(super) async fn a_job_that_outgrows_the_memory_it_asked_for_says_so(bench: Bench) {
    let end = end_of_a_greedy_one(&bench).await;
    assert!(is_told(&end), "{end:?}");
}

pub(super) async fn a_job_gets_no_more_memory_than_it_asked_for_and_ends_as_it_likes(bench: Bench) {
    let end = end_of_a_greedy_one(&bench).await;
    assert!(!is_told(&end), "{end:?} tells more than was declared");
}

pub(super) async fn a_memory_limit_nobody_holds_a_job_to_is_refused(bench: Bench) {
    let mut spec = bench.spec(&["true"]);
    spec.resources.memory_mib = Some(1);
    let SpecError { field, .. } = bench.engine.validate(&spec).expect_err("it would hold to it");
    assert_eq!(field, "spec.resources.memory_mib");
}
