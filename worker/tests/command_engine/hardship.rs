//! What schedulers do that no contract mentions.

use crate::{
    counts::Counts,
    rig::{CommandRig, at_once, forgetful, job, sight, strict, until},
};
use futures::future::LocalBoxFuture;
use jobgate_shared::domain::{Ending, Observation};
use jobgate_worker::{
    engine::{EngineError, Sighting},
    engines::conformance::Rig as _,
};
use serde_json::json;
use std::{fs, time::Duration};

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[(&str, fn() -> LocalBoxFuture<'static, ()>)] =
            &[$((stringify!($name), || Box::pin($name()))),*];
    };
}

tests! {
    a_command_that_hangs_is_cut_off_with_its_children_and_its_create_is_not_repeated,
    a_create_whose_answer_is_lost_leaves_only_what_the_sweep_finds,
    garbage_a_flood_and_a_failure_are_an_absence_of_the_manager_and_never_of_a_job,
    a_job_the_scheduler_refuses_is_told_in_its_words_and_leaves_nothing,
    an_id_the_scheduler_uses_again_is_neither_started_nor_canceled_nor_believed,
    a_job_the_scheduler_begins_again_runs_once_and_says_so,
    a_job_killed_without_a_word_fails_once_the_scheduler_says_so,
    an_unknown_id_in_a_batch_hides_no_other,
    what_began_by_being_created_is_ended_by_a_discard,
    the_environment_of_the_worker_reaches_no_command_unless_named,
    a_link_in_place_of_a_log_is_not_followed,
    options_are_those_that_are_configured_and_their_values_match,
}

fn ending(sighting: &Sighting) -> Option<(Ending, Option<i32>, String)> {
    match sighting {
        Sighting::Seen(Observation::Ended { ending, exit_code, reason, .. }) => {
            Some((*ending, *exit_code, reason.clone().unwrap_or_default()))
        }
        _ => None,
    }
}

async fn a_command_that_hangs_is_cut_off_with_its_children_and_its_create_is_not_repeated() {
    let mut rig = CommandRig::new(forgetful);
    rig.call_timeout = Duration::from_millis(700);
    let (engine, job) = (rig.engine(), job(&rig, ":"));
    rig.fault("submit", "hang");
    let counts = Counts::default();
    let counting = metrics::set_default_local_recorder(&counts);
    let answer = engine.create(&job).await;
    drop(counting);
    assert!(matches!(answer, Err(EngineError::Away(_))), "{answer:?}");
    assert_eq!(counts.of("jobgate_commands_cut_off_total"), 1);
    assert_eq!(counts.of("jobgate_rm_requests_total"), 1);
    assert_eq!(rig.calls("submit"), 1);
    let place = rig.scheduler().to_string_lossy().into_owned();
    let left = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines.filter(|line| String::from_utf8_lossy(line).contains(&place)).count()
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while left() > 0 {
        assert!(std::time::Instant::now() < deadline, "a command that was given up runs on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.fault("submit", "");
    assert!(engine.create(&job).await.is_ok());
}

async fn a_create_whose_answer_is_lost_leaves_only_what_the_sweep_finds() {
    let mut rig = CommandRig::new(forgetful);
    rig.call_timeout = Duration::from_secs(2);
    let (engine, job) = (rig.engine(), job(&rig, ":"));
    rig.fault("submit", "hang after");
    assert!(matches!(engine.create(&job).await, Err(EngineError::Away(_))));
    let inert = engine.inert(Duration::ZERO).await.unwrap();
    let [(tag, submission)] = inert.as_slice() else { panic!("{inert:?}") };
    assert_eq!(*tag, job.tag);
    engine.discard(*tag, None).await.unwrap();
    assert_eq!(engine.inert(Duration::ZERO).await.unwrap(), []);
    engine.start(*tag, submission).await.unwrap();
    assert_eq!(sight(&engine, *tag, submission).await, Sighting::Absent);
    assert_eq!(rig.runs(*tag), 0);
}

async fn garbage_a_flood_and_a_failure_are_an_absence_of_the_manager_and_never_of_a_job() {
    for config in [forgetful, strict] {
        let mut rig = CommandRig::new(config);
        rig.config["max_output"] = json!("64 KiB");
        rig.call_timeout = Duration::from_secs(1);
        let (engine, job) = (rig.engine(), job(&rig, ":"));
        let submission = engine.create(&job).await.unwrap();
        for how in ["garbage", "flood", "fail", "odd status"] {
            rig.fault("list", how);
            rig.fault("show", how);
            let answer = engine.poll(&[(job.tag, submission.clone())]).await;
            assert!(matches!(answer, Err(EngineError::Away(_))), "{how}: {answer:?}");
        }
        for verb in ["list", "show"] {
            rig.fault(verb, "");
        }
        assert_eq!(sight(&engine, job.tag, &submission).await, Sighting::Inert);
        for how in ["garbage", "fail"] {
            rig.fault("submit", how);
            assert!(matches!(engine.create(&job).await, Err(EngineError::Away(_))), "{how}");
        }
    }
}

async fn a_job_the_scheduler_refuses_is_told_in_its_words_and_leaves_nothing() {
    let rig = CommandRig::new(forgetful);
    let (engine, job) = (rig.engine(), job(&rig, ":"));
    rig.fault("submit", "reject");
    match engine.create(&job).await {
        Err(EngineError::Refused(why)) => assert!(why.contains("no such queue"), "{why}"),
        other => panic!("{other:?}"),
    }
    let shared = rig.scheduler().with_file_name("shared").join(job.tag.to_string());
    assert!(!shared.exists());
    rig.fault("submit", "full");
    match engine.create(&job).await {
        Err(EngineError::NotNow(why)) => assert!(why.contains("only 2 jobs"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(!shared.exists());
    rig.fault("submit", "");
    assert!(engine.create(&job).await.is_ok(), "the same job, once there is room");
}

async fn an_id_the_scheduler_uses_again_is_neither_started_nor_canceled_nor_believed() {
    for config in [forgetful, strict] {
        let rig = CommandRig::new(config);
        let (engine, job) = (rig.engine(), job(&rig, ":"));
        let submission = engine.create(&job).await.unwrap();
        // The scheduler lost it and gave its id to another, which even has our tag, of another life.
        let name = rig.at_scheduler(&submission).join("name");
        fs::write(&name, format!("{}.{:016x}", job.tag, 1)).unwrap();
        engine.start(job.tag, &submission).await.unwrap();
        assert_eq!(sight(&engine, job.tag, &submission).await, Sighting::Absent);
        engine.cancel(job.tag, &submission).await.unwrap();
        engine.forget(job.tag, &submission).await.unwrap();
        assert_eq!((rig.calls("release"), rig.calls("cancel")), (0, 0));
    }
}

async fn a_job_the_scheduler_begins_again_runs_once_and_says_so() {
    let rig = CommandRig::new(strict);
    let (engine, job) = (rig.engine(), job(&rig, "while [ ! -e \"$SHARED/go\" ]; do sleep 0.01; done"));
    let submission = engine.create(&job).await.unwrap();
    engine.start(job.tag, &submission).await.unwrap();
    while rig.runs(job.tag) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Its host is lost, so the scheduler runs the script again elsewhere.
    let script = rig.at_scheduler(&submission).join("script");
    let again = tokio::process::Command::new("/bin/sh").arg(&script).output().await.unwrap();
    assert_eq!(again.status.code(), Some(125));
    let reason = until(&engine, job.tag, &submission, |seen| match seen {
        Sighting::Seen(Observation::Running { reason, .. }) => reason.clone(),
        _ => None,
    });
    assert!(reason.await.contains("began it again"));
    fs::write(rig.at_scheduler(&submission).join("kill"), "").unwrap();
    let evidence = until(&engine, job.tag, &submission, |seen| match seen {
        Sighting::Gone { evidence } => Some(evidence.clone()),
        _ => None,
    });
    assert!(evidence.await.contains("began it again"));
    assert_eq!(rig.runs(job.tag), 1);
    let log =
        engine.read_log(job.tag, &submission, jobgate_worker::engine::Stream::Stdout, 0, 1).await.unwrap();
    assert!(log.last, "what is lost has said its last");
}

async fn a_job_killed_without_a_word_fails_once_the_scheduler_says_so() {
    let rig = CommandRig::new(strict);
    let (engine, job) = (rig.engine(), job(&rig, "exec sleep 600"));
    let submission = engine.create(&job).await.unwrap();
    engine.start(job.tag, &submission).await.unwrap();
    while rig.runs(job.tag) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fs::write(rig.at_scheduler(&submission).join("kill"), "").unwrap();
    let end = until(&engine, job.tag, &submission, ending).await;
    assert_eq!((end.0, end.1), (Ending::Failed, Some(137)), "{end:?}");
    assert!(end.2.contains("DIED"), "{end:?}");
    // The scheduler forgets; the end was written and stays.
    fs::remove_dir_all(rig.at_scheduler(&submission)).unwrap();
    assert_eq!(until(&engine, job.tag, &submission, ending).await, end);
}

async fn an_unknown_id_in_a_batch_hides_no_other() {
    let rig = CommandRig::new(strict);
    let engine = rig.engine();
    let mut asked = Vec::new();
    for _ in 0..9 {
        let job = job(&rig, ":");
        let submission = engine.create(&job).await.unwrap();
        asked.push((job.tag, submission));
    }
    for lost in [0, 4, 5] {
        fs::remove_dir_all(rig.at_scheduler(&asked[lost].1)).unwrap();
    }
    let seen = engine.poll(&asked).await.unwrap();
    let absent: Vec<usize> = (0..9).filter(|n| seen[*n] == Sighting::Absent).collect();
    let inert = seen.iter().filter(|seen| **seen == Sighting::Inert).count();
    assert_eq!((absent, inert), (vec![0, 4, 5], 6));
}

async fn what_began_by_being_created_is_ended_by_a_discard() {
    let rig = CommandRig::new(at_once);
    let (engine, ran, cut) = (rig.engine(), job(&rig, "echo out"), job(&rig, "exec sleep 600"));
    let submission = engine.create(&ran).await.unwrap();
    engine.start(ran.tag, &submission).await.unwrap();
    assert_eq!(until(&engine, ran.tag, &submission, ending).await.0, Ending::Finished);
    let submission = engine.create(&cut).await.unwrap();
    while rig.runs(cut.tag) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    engine.discard(cut.tag, None).await.unwrap();
    assert_eq!(until(&engine, cut.tag, &submission, ending).await.0, Ending::Canceled);
    assert_eq!((rig.runs(ran.tag), rig.runs(cut.tag)), (1, 1));
}

async fn the_environment_of_the_worker_reaches_no_command_unless_named() {
    let mut rig = CommandRig::new(forgetful);
    let told = rig.scheduler().join("environment");
    let show = format!("env > {}; echo Submitted batch job 1", told.display());
    rig.config["create"]["argv"] = json!(["/bin/sh", "-c", show]);
    rig.config["pass_env"] = json!(["CARGO_MANIFEST_DIR"]);
    rig.config["env"] = json!({"SLURM_CONF": "/etc/slurm.conf"});
    rig.engine().create(&job(&rig, ":")).await.unwrap();
    let told = fs::read_to_string(told).unwrap();
    let names: Vec<&str> = told.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let theirs = ["PATH", "PWD", "OLDPWD", "SHLVL", "_", "SLURM_CONF", "CARGO_MANIFEST_DIR"];
    assert!(names.iter().all(|name| theirs.contains(name)), "{names:?}");
    assert!(names.contains(&"SLURM_CONF") && names.contains(&"CARGO_MANIFEST_DIR"), "{names:?}");
}

async fn a_link_in_place_of_a_log_is_not_followed() {
    let rig = CommandRig::new(strict);
    let (engine, job) = (rig.engine(), job(&rig, ":"));
    let submission = engine.create(&job).await.unwrap();
    engine.start(job.tag, &submission).await.unwrap();
    until(&engine, job.tag, &submission, ending).await;
    let log = rig.attempt(job.tag, &submission).join("stdout");
    fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &log).unwrap();
    let chunk =
        engine.read_log(job.tag, &submission, jobgate_worker::engine::Stream::Stdout, 0, 100).await.unwrap();
    assert!(chunk.bytes.is_empty() && chunk.last, "{chunk:?}");
}

async fn options_are_those_that_are_configured_and_their_values_match() {
    let mut rig = CommandRig::new(forgetful);
    rig.config["create"]["argv"].as_array_mut().unwrap().push(json!("{options}"));
    rig.config["options"] = json!({"queue": {"argv": ["-q", "{value}"], "pattern": "[a-z]+"}});
    let engine = rig.engine();
    let mut job = job(&rig, ":");
    for wrong in [json!("-x"), json!("a b"), json!("long\nq"), json!("long\n"), json!(["long"]), json!(null)]
    {
        job.spec.engine.insert("queue".into(), wrong.clone());
        let fault = engine.validate(&job.spec).expect_err(&wrong.to_string());
        assert_eq!(fault.field, "spec.engine.queue");
    }
    job.spec.engine.insert("queue".into(), "long".into());
    engine.validate(&job.spec).unwrap();
}
