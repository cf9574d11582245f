//! What a local job finds around it, and what stays of it.

use crate::rig::{LocalRig, create, end, is_running, job, output, over, run, sight, until};
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use jobgate_shared::{
    clock::Clock,
    domain::{Ending, Submission, SubmissionTag},
};
use jobgate_worker::{
    engine::{EngineError, Sighting, Stream},
    engines::conformance::Rig as _,
};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
    time::Duration,
};

type Test = (&'static str, fn() -> BoxFuture<'static, ()>);

macro_rules! tests {
    ($($name:ident,)*) => {
        pub(crate) const TESTS: &[Test] = &[$((stringify!($name), || Box::pin($name()))),*];
    };
}

tests! {
    output_beyond_the_limit_is_dropped_and_the_job_not_blocked,
    the_environment_is_exactly_the_configured_the_asked_for_and_the_identity,
    what_cannot_be_run_is_said_in_its_own_words,
    a_job_has_no_open_file_but_its_three,
    a_job_cannot_gain_privileges_and_leads_its_own_group,
    memory_beyond_the_limit_is_refused_to_the_job,
    a_job_that_asks_for_one_processor_sees_one,
    a_job_without_a_directory_gets_a_fresh_one_that_goes_with_it,
    a_log_replaced_by_a_link_or_a_pipe_is_not_read,
    the_spool_is_private_and_the_spec_is_gone_once_the_command_runs,
    a_spool_is_one_reach_and_a_replaced_one_is_away,
    an_end_stirs_every_instance,
    what_ended_and_nobody_forgot_is_listed,
    what_was_being_made_or_removed_is_debris_after_an_hour,
}

async fn output_beyond_the_limit_is_dropped_and_the_job_not_blocked() {
    let rig = LocalRig::with(|config| config.log_limit = 100_000);
    let engine = rig.engine();
    let flood = "head -c 5000000 /dev/zero | tr '\\0' x; head -c 100000 /dev/zero | tr '\\0' y >&2; exit 4";
    let made = run(&engine, &job(&rig, flood)).await;
    assert_eq!(end(&engine, &made).await, (Ending::Failed, Some(4), "exit code 4".to_owned()));
    let last = "\n[jobgate: 4900000 bytes dropped: more than 100000 bytes]\n";
    assert_eq!(output(&engine, &made, Stream::Stdout).await, format!("{}{last}", "x".repeat(100_000)));
    assert_eq!(output(&engine, &made, Stream::Stderr).await, "y".repeat(100_000));
}

async fn the_environment_is_exactly_the_configured_the_asked_for_and_the_identity() {
    let rig = LocalRig::with(|config| {
        config.env = [("SITE", "here"), ("BOTH", "site")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    });
    let engine = rig.engine();
    let mut job = job(&rig, ":");
    job.spec.command = vec!["env".into()];
    job.spec.env = [("BOTH", "job"), ("MINE", "1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let made = run(&engine, &job).await;
    assert_eq!(end(&engine, &made).await.0, Ending::Finished);
    let id = format!("JOBGATE_JOB_ID={}", job.tag.job);
    let expected = BTreeSet::from([
        "SITE=here",
        "BOTH=job",
        "MINE=1",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        &id,
        "JOBGATE_ATTEMPT=1",
        "JOBGATE_PROJECT=default",
        "JOBGATE_JOB_NAME=a test",
    ]);
    let output = output(&engine, &made, Stream::Stdout).await;
    assert_eq!(output.lines().collect::<BTreeSet<_>>(), expected);
}

async fn what_cannot_be_run_is_said_in_its_own_words() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let file = |name: &str, text: &str, mode: u32| {
        let path = rig.shared_dir().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = file("plain", "no program", 0o644);
    let orphan = file("orphan", "#!/no/such/interpreter\n", 0o755);
    let missing = format!("{plain}-missing");
    for (command, exit_code, reason) in [
        ("no-such-command".to_owned(), 127, "command not found: no-such-command".to_owned()),
        (missing.clone(), 127, format!("command not found: {missing}")),
        (plain.clone(), 126, format!("command not executable: {plain}")),
        (
            orphan.clone(),
            127,
            format!("command cannot be run: {orphan} names an interpreter that is not there"),
        ),
    ] {
        let mut job = job(&rig, ":");
        job.spec.command = vec![command];
        let made = run(&engine, &job).await;
        assert_eq!(end(&engine, &made).await, (Ending::Failed, Some(exit_code), reason));
    }
    for (dir, exit_code, why) in
        [("/no/such/directory", 127, "No such file or directory"), (&plain, 126, "Not a directory")]
    {
        let mut job = job(&rig, ":");
        job.spec.working_dir = Some(dir.to_owned());
        let made = run(&engine, &job).await;
        let reason = format!("working directory {dir}: {why}");
        assert_eq!(end(&engine, &made).await, (Ending::Failed, Some(exit_code), reason));
    }
    let made = run(&engine, &job(&rig, "kill -SEGV $$")).await;
    assert_eq!(end(&engine, &made).await, (Ending::Failed, None, "killed by signal 11 (SIGSEGV)".to_owned()));
}

async fn a_job_has_no_open_file_but_its_three() {
    let rig = LocalRig::new();
    // One that stays open across exec, as whoever starts a worker may leave it.
    let inherited = fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
    let engine = rig.engine();
    let mut job = job(&rig, ":");
    job.spec.command = ["ls", "/proc/self/fd"].map(str::to_owned).to_vec();
    let made = run(&engine, &job).await;
    assert_eq!(end(&engine, &made).await.0, Ending::Finished);
    // The fourth is the directory `ls` reads.
    assert_eq!(output(&engine, &made, Stream::Stdout).await, "0\n1\n2\n3\n");
}

async fn a_job_cannot_gain_privileges_and_leads_its_own_group() {
    let rig = LocalRig::with(|config| config.umask = 0o027);
    let engine = rig.engine();
    let show = "grep NoNewPrivs /proc/self/status; umask; cut -d' ' -f 1,5 /proc/$$/stat; \
        grep -E '^Sig(Ign|Blk)' /proc/self/status";
    let made = run(&engine, &job(&rig, show)).await;
    assert_eq!(end(&engine, &made).await.0, Ending::Finished);
    let output = output(&engine, &made, Stream::Stdout).await;
    let lines: Vec<&str> = output.lines().collect();
    let [privileges, umask, pid_and_group, blocked, ignored] = lines[..] else { panic!("{output}") };
    assert_eq!((privileges, umask), ("NoNewPrivs:\t1", "0027"));
    let (pid, group) = pid_and_group.split_once(' ').unwrap();
    assert_eq!(pid, group);
    assert_eq!(blocked, "SigBlk:\t0000000000000000");
    // Of the real-time signals what whoever started all this ignored stays ignored.
    let ignored = u64::from_str_radix(ignored.trim_start_matches("SigIgn:\t"), 16).unwrap();
    assert_eq!(ignored & 0x7fff_ffff, 0, "{ignored:x}");
}

async fn memory_beyond_the_limit_is_refused_to_the_job() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    // `tail` keeps all of what has no newline.
    for (mib, ending) in [(64, Ending::Failed), (512, Ending::Finished)] {
        let mut job = job(&rig, "head -c 150000000 /dev/zero | tail -n 1 > /dev/null");
        job.spec.resources.memory_mib = Some(mib);
        let made = run(&engine, &job).await;
        let seen = end(&engine, &made).await;
        let errors = output(&engine, &made, Stream::Stderr).await;
        assert_eq!(
            (seen.0, errors.is_empty()),
            (ending, ending == Ending::Finished),
            "{mib} MiB: {seen:?} {errors}"
        );
    }
}

async fn a_job_that_asks_for_one_processor_sees_one() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let mut asking = job(&rig, "nproc");
    let free = run(&engine, &asking).await;
    assert_eq!(end(&engine, &free).await.0, Ending::Finished);
    let all = std::thread::available_parallelism().unwrap().to_string();
    assert_eq!(output(&engine, &free, Stream::Stdout).await.trim(), all);
    asking.tag.attempt = 2;
    asking.spec.resources.cpus = Some(1);
    let bound = run(&engine, &asking).await;
    assert_eq!(end(&engine, &bound).await.0, Ending::Finished);
    assert_eq!(output(&engine, &bound, Stream::Stdout).await, "1\n");
}

async fn a_job_without_a_directory_gets_a_fresh_one_that_goes_with_it() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let untidy =
        "ls -a | wc -l; mkdir -p a/b; touch a/b/c; chmod 0 a/b a; ln -s / root; pwd > \"$SHARED/pwd\"";
    let made = run(&engine, &job(&rig, untidy)).await;
    assert_eq!(end(&engine, &made).await.0, Ending::Finished);
    assert_eq!(output(&engine, &made, Stream::Stdout).await.trim(), "2", "it was empty");
    let place = rig.attempt(&made);
    assert_eq!(rig.told("pwd").await.trim_end(), place.join("work").to_str().unwrap());
    engine.forget(made.tag, &made.submission).await.unwrap();
    assert!(!place.exists() && !place.parent().unwrap().exists());
    assert_eq!(fs::read_dir(rig.spool().join("trash")).unwrap().count(), 0);
    assert!(fs::exists("/bin/sh").unwrap(), "a link is removed, not what it names");
}

async fn a_log_replaced_by_a_link_or_a_pipe_is_not_read() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    fs::write(rig.shared_dir().join("secret"), "secret").unwrap();
    for replace in ["ln -s \"$SHARED/secret\" ../stdout", "mkfifo ../stdout", "mkdir ../stdout", ":"] {
        let made = run(&engine, &job(&rig, &format!("echo mine; rm ../stdout; {replace}"))).await;
        assert_eq!(end(&engine, &made).await.0, Ending::Finished);
        assert_eq!(output(&engine, &made, Stream::Stdout).await, "", "{replace}");
    }
}

async fn the_spool_is_private_and_the_spec_is_gone_once_the_command_runs() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let bits = |path: std::path::PathBuf| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(bits(rig.spool()), 0o700);
    let made = create(&engine, &job(&rig, "read line < \"$SHARED/go\"")).await;
    let place = rig.attempt(&made);
    assert_eq!((bits(place.clone()), bits(place.join("spec"))), (0o700, 0o600));
    let go = rig.shared_dir().join("go");
    assert!(std::process::Command::new("mkfifo").arg(&go).status().unwrap().success());
    engine.start(made.tag, &made.submission).await.unwrap();
    // Opens once the job reads.
    let release = tokio::task::spawn_blocking(move || fs::write(go, "\n"));
    until("a command in place of its spec", || (!place.join("spec").exists()).then_some(())).await;
    release.await.unwrap().unwrap();
    assert_eq!(end(&engine, &made).await.0, Ending::Finished);
    for name in ["stdout", "stderr", "exit", "start"] {
        assert_eq!(bits(place.join(name)), 0o600, "{name}");
    }
}

async fn a_spool_is_one_reach_and_a_replaced_one_is_away() {
    let (rig, other) = (LocalRig::new(), LocalRig::new());
    let engine = rig.engine();
    let reach = |engine: &Arc<dyn jobgate_worker::engine::Engine>| engine.capabilities().reach.unwrap();
    assert_eq!(reach(&engine), reach(&rig.engine()));
    assert_ne!(reach(&engine), reach(&other.engine()));
    let made = create(&engine, &job(&rig, ":")).await;
    let asked = [(made.tag, made.submission.clone())];
    assert!(matches!(other.engine().poll(&asked).await, Err(EngineError::Away(_))));
    assert_eq!(sight(&engine, &made).await, Sighting::Inert);
    let host_id = rig.spool().join("host-id");
    let id = fs::read(&host_id).unwrap();
    fs::remove_file(&host_id).unwrap();
    assert!(matches!(engine.poll(&asked).await, Err(EngineError::Away(_))));
    fs::write(&host_id, fs::read(other.spool().join("host-id")).unwrap()).unwrap();
    assert!(matches!(engine.poll(&asked).await, Err(EngineError::Away(_))));
    fs::write(&host_id, id).unwrap();
    assert_eq!(sight(&engine, &made).await, Sighting::Inert);
}

async fn an_end_stirs_every_instance() {
    let rig = LocalRig::new();
    let (engine, other) = (rig.engine(), rig.engine());
    let made = create(&engine, &job(&rig, ":")).await;
    let (mut here, mut there) = (engine.stirred(), other.stirred());
    // Both listen before anything can end.
    assert!(futures::poll!(&mut here).is_pending() && futures::poll!(&mut there).is_pending());
    engine.start(made.tag, &made.submission).await.unwrap();
    tokio::time::timeout(Duration::from_mins(1), futures::future::join(here, there)).await.expect("stirred");
    assert!(matches!(sight(&other, &made).await, Sighting::Seen(_)));
    assert_eq!(end(&engine, &made).await.0, Ending::Finished);
    is_quiet(&engine).await;
}

async fn is_quiet(engine: &Arc<dyn jobgate_worker::engine::Engine>) {
    // A ring may have been heard twice, but not for ever.
    let rings = async {
        for _ in 0..1000 {
            engine.stirred().await;
        }
    };
    tokio::select! {
        () = rings => panic!("it stirs without an end"),
        () = tokio::time::sleep(Duration::from_millis(50)) => {}
    }
}

#[derive(Debug)]
struct Ahead(Mutex<Duration>);

impl Clock for Ahead {
    fn now(&self) -> DateTime<Utc> {
        jobgate_shared::clock::SystemClock.now() + *self.0.lock().unwrap()
    }
}

async fn what_ended_and_nobody_forgot_is_listed() {
    let rig = LocalRig::new();
    let engine = rig.engine();
    let finished = run(&engine, &job(&rig, ":")).await;
    assert_eq!(end(&engine, &finished).await.0, Ending::Finished);
    let abandoned = run(&engine, &job(&rig, "kill -9 $PPID")).await;
    assert!(matches!(over(&engine, &abandoned).await, Sighting::Gone { .. }));
    let canceled = create(&engine, &job(&rig, ":")).await;
    engine.cancel(canceled.tag, &canceled.submission).await.unwrap();
    let running = run(&engine, &job(&rig, "exec sleep 600")).await;
    is_running(&engine, &running).await;
    let inert = create(&engine, &job(&rig, ":")).await;
    let ids = |found: Vec<(SubmissionTag, Submission)>| -> BTreeSet<String> {
        found.into_iter().map(|(_, submission)| submission.id).collect()
    };
    let over_now = [&finished, &abandoned, &canceled].map(|made| made.submission.id.clone());
    assert_eq!(ids(engine.ended(Duration::ZERO).await.unwrap()), BTreeSet::from(over_now));
    assert!(engine.ended(Duration::from_hours(1)).await.unwrap().is_empty());
    assert_eq!(ids(engine.inert(Duration::ZERO).await.unwrap()), BTreeSet::from([inert.submission.id]));
    for made in [&finished, &abandoned, &canceled] {
        engine.forget(made.tag, &made.submission).await.unwrap();
    }
    assert!(engine.ended(Duration::ZERO).await.unwrap().is_empty());
    engine.cancel(running.tag, &running.submission).await.unwrap();
    assert_eq!(end(&engine, &running).await.0, Ending::Canceled);
}

async fn what_was_being_made_or_removed_is_debris_after_an_hour() {
    let mut rig = LocalRig::new();
    let clock = Arc::new(Ahead(Mutex::new(Duration::ZERO)));
    rig.clock = clock.clone();
    let engine = rig.engine();
    let inert = create(&engine, &job(&rig, ":")).await;
    let debris = ["trash/0123456789abcdef", "new/0123456789abcdef"].map(|path| rig.spool().join(path));
    for path in &debris {
        fs::create_dir(path).unwrap();
    }
    let empty = rig.spool().join(job(&rig, ":").tag.to_string());
    fs::create_dir(&empty).unwrap();
    for (hours, stays) in [(0, true), (2, false)] {
        *clock.0.lock().unwrap() = Duration::from_hours(hours);
        let found = engine.inert(Duration::ZERO).await.unwrap();
        assert_eq!(found, [(inert.tag, inert.submission.clone())]);
        assert!(debris.iter().all(|path| path.exists() == stays), "after {hours} h");
        assert!(!empty.exists(), "an empty place is nobody's");
    }
}
