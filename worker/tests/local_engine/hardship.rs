//! What the local engine must bear: deaths of workers and runners at any moment, zombies, and pids that mean others now.

use crate::rig::{LocalRig, Made, Worker, create, end, is_running, job, over, run, sight, until};
use futures::future::BoxFuture;
use jobgate_shared::{
    domain::{Ending, Observation},
    settings::Period,
};
use jobgate_worker::{
    engine::{Engine, EngineError, Sighting},
    engines::{build, conformance::Rig as _},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

type Test = (&'static str, fn() -> BoxFuture<'static, ()>);

macro_rules! tests {
    ($($name:ident,)*) => {
        pub(crate) const TESTS: &[Test] = &[$((stringify!($name), || Box::pin($name()))),*];
    };
}

tests! {
    a_job_outlives_its_worker_and_its_workers_whole_process_group,
    many_processes_that_start_one_attempt_run_it_once,
    a_job_that_does_not_listen_is_killed_after_the_grace,
    a_stopped_job_can_be_canceled,
    a_runner_that_is_told_to_end_ends_its_job_and_says_so,
    a_job_whose_runner_was_killed_is_gone_with_all_it_started,
    a_job_whose_runner_was_killed_can_still_be_canceled,
    a_command_that_hides_who_it_is_dies_with_its_runner,
    a_runner_killed_at_any_moment_never_makes_a_job_run_twice,
    a_recorded_pid_that_is_another_process_now_is_not_signalled,
    a_runner_that_cannot_be_started_is_an_outage_and_no_end,
    a_runner_that_cannot_work_says_why,
    a_discard_that_died_half_way_is_finished,
    a_forgotten_job_that_still_runs_is_ended,
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("a process");
}

/// Starts a child, one in a session of its own, and says who they are and itself.
const BROOD: &str = "sleep 600 & child=$!; setsid sh -c 'echo $$ > \"$SHARED/orphan\"; exec sleep 600' & \
    while [ ! -s \"$SHARED/orphan\" ]; do sleep 0.01; done; \
    echo \"$$ $child $(cat \"$SHARED/orphan\")\" > \"$SHARED/brood\"; wait";

async fn brood(rig: &LocalRig) -> Vec<u32> {
    let pids = rig.told("brood").await;
    let pids: Vec<u32> = pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.len() == 3 && !pids.iter().any(|pid| rig.is_gone(*pid)), "{pids:?}");
    pids
}

async fn a_job_outlives_its_worker_and_its_workers_whole_process_group() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let wait = "while [ ! -e \"$SHARED/go\" ]; do sleep 0.01; done; exit 5";
    let made = create(&engine, &job(&rig, wait)).await;
    let mut worker = Worker::new(&rig);
    worker.tell_to_start(&made);
    assert_eq!(worker.answer(), "started");
    until("a beginning", || (rig.runs(&made) == 1).then_some(())).await;
    worker.kill_group();
    is_running(&engine, &made).await;
    // Nor does the terminal of its worker, or whoever sits at it, end it.
    let runner = rig.runner(&made).await;
    for unheard in [Signal::INT, Signal::HUP] {
        signal(runner, unheard);
    }
    fs::write(rig.shared_dir().join("go"), "").unwrap();
    assert_eq!(end(&rig.engine(), &made).await, (Ending::Failed, Some(5), "exit code 5".to_owned()));
    assert_eq!(rig.runs(&made), 1);
}

async fn many_processes_that_start_one_attempt_run_it_once() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let mut workers: Vec<_> = (0..6).map(|_| Worker::new(&rig)).collect();
    for _ in 0..5 {
        let made = create(&engine, &job(&rig, ":")).await;
        for worker in &mut workers {
            worker.tell_to_start(&made);
        }
        assert!(workers.iter_mut().all(|worker| worker.answer() == "started"));
        assert_eq!(end(&engine, &made).await.0, Ending::Finished);
        // A runner that came late would be here now, or has gone: the next round's end is a fence for this one.
        let fence = run(&engine, &job(&rig, ":")).await;
        assert_eq!(end(&engine, &fence).await.0, Ending::Finished);
        assert_eq!(rig.runs(&made), 1);
    }
}

async fn a_job_that_does_not_listen_is_killed_after_the_grace() {
    let rig = LocalRig::with(|config| config.kill_grace = Period::new(Duration::from_millis(200)));
    let engine = rig.engine();
    let deaf = "trap '' TERM; trap 'echo heard >> \"$SHARED/heard\"' USR1; echo up > \"$SHARED/up\"; \
        while :; do sleep 0.01; done";
    let mut limited = job(&rig, deaf);
    let canceled = run(&engine, &limited).await;
    rig.told("up").await;
    engine.cancel(canceled.tag, &canceled.submission).await.unwrap();
    let (ending, exit_code, reason) = end(&engine, &canceled).await;
    assert_eq!((ending, exit_code, reason.as_str()), (Ending::Canceled, None, "canceled"));
    limited.tag.attempt = 2;
    limited.spec.time_limit_seconds = Some(1);
    let timed_out = run(&engine, &limited).await;
    let (ending, exit_code, reason) = end(&engine, &timed_out).await;
    assert_eq!((ending, exit_code), (Ending::TimedOut, None));
    assert_eq!(reason, "its time limit of 1 s was up");
}

async fn a_stopped_job_can_be_canceled() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let stops = "trap 'exit 9' TERM; echo $$ > \"$SHARED/up\"; kill -STOP $$; while :; do sleep 0.01; done";
    let made = run(&engine, &job(&rig, stops)).await;
    let pid = rig.told("up").await;
    let stat = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
    until("a stopped job", || fs::read_to_string(&stat).unwrap().contains(") T ").then_some(())).await;
    engine.cancel(made.tag, &made.submission).await.unwrap();
    assert_eq!(end(&engine, &made).await, (Ending::Canceled, Some(9), "canceled".to_owned()));
}

async fn a_runner_that_is_told_to_end_ends_its_job_and_says_so() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let made = run(&engine, &job(&rig, BROOD)).await;
    let pids = brood(&rig).await;
    signal(rig.runner(&made).await, Signal::TERM);
    let (ending, _, reason) = end(&engine, &made).await;
    assert_eq!(ending, Ending::Failed);
    assert!(reason.contains("its runner was told to end"), "{reason}");
    assert!(pids.iter().all(|pid| rig.is_gone(*pid)), "{pids:?}");
}

async fn kill_the_runner(rig: &LocalRig, made: &Made) {
    let runner = rig.runner(made).await;
    signal(runner, Signal::KILL);
    until("a dead runner", || rig.is_gone(runner.cast_unsigned()).then_some(())).await;
}

async fn a_job_whose_runner_was_killed_is_gone_with_all_it_started() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let made = run(&engine, &job(&rig, BROOD)).await;
    let pids = brood(&rig).await;
    kill_the_runner(&rig, &made).await;
    for engine in [&engine, &rig.engine()] {
        match over(engine, &made).await {
            Sighting::Gone { evidence } => assert!(evidence.contains("wrote no end"), "{evidence}"),
            other => panic!("{other:?}"),
        }
        assert!(pids.iter().all(|pid| rig.is_gone(*pid)), "{pids:?}");
    }
    engine.start(made.tag, &made.submission).await.unwrap();
    let fence = run(&engine, &job(&rig, ":")).await;
    assert_eq!(end(&engine, &fence).await.0, Ending::Finished);
    assert_eq!(rig.runs(&made), 1);
    engine.forget(made.tag, &made.submission).await.unwrap();
    assert_eq!(sight(&engine, &made).await, Sighting::Absent);
}

async fn a_job_whose_runner_was_killed_can_still_be_canceled() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let made = run(&engine, &job(&rig, BROOD)).await;
    let pids = brood(&rig).await;
    kill_the_runner(&rig, &made).await;
    engine.cancel(made.tag, &made.submission).await.unwrap();
    assert!(pids.iter().all(|pid| rig.is_gone(*pid)), "{pids:?}");
    for engine in [&engine, &rig.engine()] {
        let (ending, _, reason) = end(engine, &made).await;
        assert_eq!((ending, reason.as_str()), (Ending::Canceled, "canceled; its runner was gone already"));
    }
}

async fn a_command_that_hides_who_it_is_dies_with_its_runner() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let hide = "exec env -i sh -c 'echo $$ > \"$0/hidden\"; exec sleep 600' \"$SHARED\"";
    let made = run(&engine, &job(&rig, hide)).await;
    let hidden: u32 = rig.told("hidden").await.trim().parse().unwrap();
    kill_the_runner(&rig, &made).await;
    until("its end", || rig.is_gone(hidden).then_some(())).await;
    assert!(matches!(over(&engine, &made).await, Sighting::Gone { .. }));
}

async fn a_runner_killed_at_any_moment_never_makes_a_job_run_twice() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let (mut finished, mut gone, mut restarted) = (0, 0, 0);
    for round in 0..60_u32 {
        let made = create(&engine, &job(&rig, ":")).await;
        let spool = rig.attempt(&made);
        // Killed by the clock of its own progress: a little later every round, from before the token to after the end.
        let mut worker = Worker::new(&rig);
        worker.tell_to_start(&made);
        assert_eq!(worker.answer(), "started");
        for _ in 0..round * 40 {
            std::hint::black_box(spool.join("exit").exists());
        }
        kill_runners_of(&made);
        drop(worker);
        let mut tries = 0;
        let sighting = loop {
            match over_or_inert(&engine, &made).await {
                Sighting::Inert => {
                    tries += 1;
                    engine.start(made.tag, &made.submission).await.unwrap();
                }
                other => break other,
            }
        };
        restarted += u32::from(tries > 0);
        match sighting {
            Sighting::Seen(Observation::Ended { ending: Ending::Finished, .. }) => {
                finished += 1;
                assert_eq!(rig.runs(&made), 1);
            }
            Sighting::Gone { .. } => {
                gone += 1;
                assert!(rig.runs(&made) <= 1);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(finished > 0 && gone + restarted > 0, "{finished} finished, {gone} gone, {restarted} restarted");
}

/// Kills whatever cares for this attempt, if anything does.
fn kill_runners_of(made: &Made) {
    let tag = made.tag.to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains("\0run\0") && line.contains(&tag) {
            // It may have ended by itself.
            let _ended_already = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).is_err();
        }
    }
}

/// As [`over`], and also if nothing runs that could start it.
async fn over_or_inert(engine: &Arc<dyn Engine>, made: &Made) -> Sighting {
    let mut inert = 0;
    loop {
        match sight(engine, made).await {
            Sighting::Seen(Observation::Pending { .. } | Observation::Running { .. }) => {}
            // Its runner may be on its way; a second one would only lose the token.
            Sighting::Inert if inert < 20 => inert += 1,
            other => return other,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn a_recorded_pid_that_is_another_process_now_is_not_signalled() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    // Innocents that lead a session and a group, as a runner does, and carry nothing of the job.
    let mut innocents = Vec::new();
    for _ in 0..3 {
        innocents.push(Command::new("setsid").args(["sleep", "600"]).stdin(Stdio::null()).spawn().unwrap());
    }
    let started = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse::<u64>().unwrap()
    };
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap().to_str().unwrap().to_owned();
    for (n, (started, boot)) in
        [(started(innocents[0].id()), &boot), (1, &boot), (started(innocents[2].id()), &"another".to_owned())]
            .into_iter()
            .enumerate()
    {
        let made = create(&engine, &job(&rig, ":")).await;
        let place = rig.attempt(&made);
        let pid = innocents[n].id();
        let world = serde_json::json!({"boot": boot, "pid_namespace": namespace});
        let record = serde_json::json!({"runner": {"pid": pid, "started": started, "world": world}});
        fs::write(place.join("runner"), record.to_string()).unwrap();
        fs::write(place.join("start"), "").unwrap();
        let evidence = match sight(&engine, &made).await {
            Sighting::Gone { evidence } => evidence,
            other => panic!("{other:?}"),
        };
        assert_eq!(evidence.contains("restarted"), boot == "another", "{evidence}");
        engine.cancel(made.tag, &made.submission).await.unwrap();
        assert_eq!(end(&engine, &made).await.0, Ending::Canceled);
        engine.forget(made.tag, &made.submission).await.unwrap();
    }
    for mut innocent in innocents {
        assert!(innocent.try_wait().unwrap().is_none(), "an innocent was killed");
        innocent.kill().unwrap();
        innocent.wait().unwrap();
    }
}

fn engine_with_runner(rig: &LocalRig, program: &Path, args: &[&str]) -> Arc<dyn Engine> {
    let mut context = rig.context();
    program.clone_into(&mut context.runner.program);
    context.runner.args = args.iter().map(Into::into).collect();
    build(&rig.config.clone().into(), &context).unwrap()
}

async fn a_runner_that_cannot_be_started_is_an_outage_and_no_end() {
    let rig = LocalRig::new();
    let broken = engine_with_runner(&rig, Path::new("/no/such/runner"), &[]);
    let made = create(&broken, &job(&rig, ":")).await;
    match broken.start(made.tag, &made.submission).await {
        Err(EngineError::Away(error)) => {
            assert!(format!("{error:#}").contains("/no/such/runner"), "{error:#}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(sight(&broken, &made).await, Sighting::Inert);
    // One that does nothing, as a loser of the token would.
    let idle = engine_with_runner(&rig, Path::new("/bin/false"), &[]);
    idle.start(made.tag, &made.submission).await.unwrap();
    assert_eq!(sight(&idle, &made).await, Sighting::Inert);
    let engine = rig.engine();
    engine.start(made.tag, &made.submission).await.unwrap();
    assert_eq!(end(&engine, &made).await.0, Ending::Finished);
    assert_eq!(rig.runs(&made), 1);
}

async fn a_runner_that_cannot_work_says_why() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    // The name its own record needs is taken, or the one its output needs.
    for name in ["runner", "stdout"] {
        let made = create(&engine, &job(&rig, ":")).await;
        fs::create_dir(rig.attempt(&made).join(name)).unwrap();
        engine.start(made.tag, &made.submission).await.unwrap();
        let (ending, exit_code, reason) = end(&engine, &made).await;
        assert_eq!((ending, exit_code), (Ending::Failed, None), "{name}: {reason}");
        assert!(reason.starts_with("cannot be run: "), "{reason}");
        assert_eq!(rig.runs(&made), 0);
    }
    // One that cannot even begin leaves its words beside the job.
    let made = create(&engine, &job(&rig, ":")).await;
    let place = rig.attempt(&made);
    fs::remove_file(place.join("control")).unwrap();
    fs::create_dir(place.join("control")).unwrap();
    engine.start(made.tag, &made.submission).await.unwrap();
    let words =
        until("words", || fs::read_to_string(place.join("runner.log")).ok().filter(|w| w.ends_with('\n')))
            .await;
    assert!(words.starts_with("control: "), "{words}");
    assert_eq!(rig.runs(&made), 0);
}

async fn a_discard_that_died_half_way_is_finished() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let attempt = job(&rig, ":");
    let made = create(&engine, &attempt).await;
    fs::create_dir(rig.attempt(&made).join("start")).unwrap();
    assert_eq!(engine.inert(Duration::ZERO).await.unwrap(), [(made.tag, made.submission.clone())]);
    let again = create(&engine, &attempt).await;
    assert_ne!(again.submission, made.submission);
    assert_eq!(sight(&engine, &made).await, Sighting::Absent);
    engine.start(again.tag, &again.submission).await.unwrap();
    assert_eq!(end(&engine, &again).await.0, Ending::Finished);
    assert_eq!(rig.runs(&made), 1);
    // A cancel's tombstone is not: its id may be recorded.
    let canceled = create(&engine, &job(&rig, ":")).await;
    engine.cancel(canceled.tag, &canceled.submission).await.unwrap();
    assert_eq!(engine.inert(Duration::ZERO).await.unwrap(), []);
    engine.discard(canceled.tag, None).await.unwrap();
    assert_eq!(end(&engine, &canceled).await.0, Ending::Canceled);
}

async fn a_forgotten_job_that_still_runs_is_ended() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let made = run(&engine, &job(&rig, BROOD)).await;
    let pids = brood(&rig).await;
    assert!(matches!(engine.forget(made.tag, &made.submission).await, Err(EngineError::Away(_))));
    assert_eq!(end(&engine, &made).await.0, Ending::Canceled);
    assert!(pids.iter().all(|pid| rig.is_gone(*pid)), "{pids:?}");
    engine.forget(made.tag, &made.submission).await.unwrap();
    assert_eq!(sight(&engine, &made).await, Sighting::Absent);
}

/// A cgroup v2 directory in which this process may make groups, where the host has one.
fn writable_cgroup() -> Option<PathBuf> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let root = roots.into_iter().find(|root| root.join("cgroup.controllers").exists())?;
    let dir = root.join(format!("jobgate-test-{}", std::process::id()));
    fs::create_dir(&dir).ok()?;
    let usable = dir.join("cgroup.kill").exists();
    fs::remove_dir(&dir).ok()?;
    usable.then_some(dir)
}

/// Shown as ignored where the host delegates no cgroup.
pub(crate) fn cgroup_trial() -> libtest_mimic::Trial {
    let cgroup = writable_cgroup();
    let ignored = cgroup.is_none();
    let test = || {
        let Some(dir) = cgroup else { return Err("no cgroup v2 this process may write to".into()) };
        crate::block_on(a_job_has_a_cgroup_of_its_own_that_ends_with_it(dir));
        Ok(())
    };
    libtest_mimic::Trial::test("local::a_job_has_a_cgroup_of_its_own_that_ends_with_it", test)
        .with_ignored_flag(ignored)
}

async fn a_job_has_a_cgroup_of_its_own_that_ends_with_it(dir: PathBuf) {
    fs::create_dir(&dir).unwrap();
    let rig = LocalRig::with(|config| config.cgroup = Some(dir.clone()));
    let engine = rig.engine();
    let made = run(&engine, &job(&rig, BROOD)).await;
    let pids = brood(&rig).await;
    let group = dir.join(&made.submission.id);
    let inside = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    assert!(pids.iter().all(|pid| inside.lines().any(|line| line == pid.to_string())), "{pids:?}: {inside}");
    engine.cancel(made.tag, &made.submission).await.unwrap();
    assert_eq!(end(&engine, &made).await.0, Ending::Canceled);
    assert!(!group.exists());
    // One that hides by clearing its environment and leaving every group it can.
    let hide = "setsid env -i sh -c 'echo $$ > \"$0/hidden.new\"; mv \"$0/hidden.new\" \"$0/hidden\"; exec sleep 600' \
        \"$SHARED\" & exec sleep 600";
    let made = run(&engine, &job(&rig, hide)).await;
    let hidden: u32 = rig.told("hidden").await.trim().parse().unwrap();
    kill_the_runner(&rig, &made).await;
    match over(&engine, &made).await {
        Sighting::Gone { .. } => assert!(rig.is_gone(hidden)),
        other => panic!("{other:?}"),
    }
    assert!(!dir.join(&made.submission.id).exists());
    fs::remove_dir(&dir).unwrap();
}
