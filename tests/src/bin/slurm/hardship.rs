//! What only Slurm has to bear: ids given twice, a slurmctld that is gone, jobs it has forgotten, tokens that expire.

use crate::{
    Tried,
    rig::{CALL_TIMEOUT, SlurmRig},
};
use futures::future::LocalBoxFuture;
use jobgate_shared::domain::{Ending, JobId, JobSpec, Observation, Project, Submission, SubmissionTag};
use jobgate_tests::{
    services::{Accounting, Release, Slurm},
    wait::until,
};
use jobgate_worker::{
    engine::{Engine, EngineError, Sighting, ToCreate},
    engines::{
        conformance::Rig as _,
        slurm::{SlurmConfig, SlurmUser},
    },
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// One hardship.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    /// Whether what Slurm answers to it is another in each version of its API.
    pub(crate) by_api: bool,
    pub(crate) run: fn(Tried) -> LocalBoxFuture<'static, ()>,
}

macro_rules! tests {
    ($($name:ident, $by_api:literal, $run:expr;)*) => {
        pub(crate) const TESTS: &[Test] = &[$(Test {
            name: stringify!($name),
            by_api: $by_api,
            run: |tried| Box::pin(async move { ($run)(&tried).await }),
        }),*];
    };
}

tests! {
    an_id_slurm_gives_again_is_not_ours, false, an_id_given_again;
    a_slurmctld_that_is_gone_is_away_in_time, true, slurmctld_gone;
    what_slurm_forgot_is_known_by_what_it_left, false, async |tried: &Tried| aged_out(tried, Accounting::None).await;
    what_slurm_forgot_is_known_to_slurmdbd, true, async |tried: &Tried| aged_out(tried, Accounting::Slurmdbd).await;
    held_leftovers_go_and_the_started_stays, true, leftovers;
    a_hold_by_a_person_is_a_reason_and_stays, false, held_by_people;
    a_token_is_made_again_and_a_file_read_again, true, tokens;
    what_slurm_will_never_take_is_refused_and_what_cannot_run_now_waits, true, refused;
    what_is_beyond_a_limit_of_slurms_is_taken_once_there_is_room, true, limited;
    a_socket_serves_its_account_without_a_token, false, socket;
}

const LONG: Duration = Duration::from_mins(10);
const SOON: Duration = Duration::from_mins(1);

fn job(script: &str) -> ToCreate {
    let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let spec = JobSpec { command, ..JobSpec::default() };
    ToCreate { tag, project: Project::default_project(), name: "hardship".into(), spec }
}

async fn sight(engine: &Arc<dyn Engine>, job: &ToCreate, submission: &Submission) -> Sighting {
    engine.poll(&[(job.tag, submission.clone())]).await.unwrap().remove(0)
}

/// Until a poll shows what is looked for.
async fn seen(
    engine: &Arc<dyn Engine>,
    job: &ToCreate,
    submission: &Submission,
    what: impl Fn(&Sighting) -> bool,
) -> Sighting {
    until("a sighting", SOON, async || {
        let sighting = engine.poll(&[(job.tag, submission.clone())]).await?.remove(0);
        anyhow::ensure!(what(&sighting), "{sighting:?}");
        Ok(sighting)
    })
    .await
    .unwrap()
}

fn is_over(sighting: &Sighting) -> bool {
    matches!(sighting, Sighting::Seen(Observation::Ended { .. }))
}

fn number(submission: &Submission) -> &str {
    submission.id.split('.').next().unwrap()
}

/// slurmctld saves its state every few seconds, so of two submissions close together a crash loses the second; the next one
/// gets its id.
async fn an_id_given_again(tried: &Tried) {
    let mut slurm = tried.own(Accounting::None, LONG).await;
    let rig = SlurmRig::new(tried, &slurm, Accounting::None);
    let engine = rig.engine();
    for _ in 0..5 {
        engine.create(&job(":")).await.unwrap();
        // What is waited for here is the beginning of the pause until the next save.
        tokio::time::sleep(Duration::from_millis(700)).await;
        let lost = job("touch /nonexistent");
        let submission = engine.create(&lost).await.unwrap();
        slurm.kill_slurmctld().unwrap();
        slurm.start_slurmctld().await.unwrap();
        // The same tag, created again: only the nonce is another.
        let other = engine.create(&lost).await.unwrap();
        if number(&other) != number(&submission) {
            continue;
        }
        assert_ne!(other.id, submission.id, "an id of ours is never given twice");
        assert_eq!(sight(&engine, &lost, &submission).await, Sighting::Absent);
        engine.start(lost.tag, &submission).await.unwrap();
        engine.cancel(lost.tag, &submission).await.unwrap();
        engine.discard(lost.tag, Some(&submission)).await.unwrap();
        engine.forget(lost.tag, &submission).await.unwrap();
        assert_eq!(sight(&engine, &lost, &other).await, Sighting::Inert);
        return;
    }
    panic!("Slurm never gave an id twice, so nothing was shown");
}

async fn slurmctld_gone(tried: &Tried) {
    let mut slurm = tried.own(Accounting::None, LONG).await;
    let rig = SlurmRig::new(tried, &slurm, Accounting::None);
    let engine = rig.engine();
    let ledger = rig.ledger();
    let job = job(&format!("echo runs >> {}; sleep 2", ledger.display()));
    let submission = engine.create(&job).await.unwrap();
    engine.start(job.tag, &submission).await.unwrap();
    seen(&engine, &job, &submission, |s| matches!(s, Sighting::Seen(Observation::Running { .. }))).await;
    until("its beginning", SOON, async || Ok(std::fs::read_to_string(&ledger)?)).await.unwrap();
    slurm.kill_slurmctld().unwrap();
    let asked = [(job.tag, submission.clone())];
    for (call, answer) in [
        ("create", timed(engine.create(&job)).await),
        ("start", timed(engine.start(job.tag, &submission)).await),
        ("poll", timed(engine.poll(&asked)).await),
        ("cancel", timed(engine.cancel(job.tag, &submission)).await),
        ("discard", timed(engine.discard(job.tag, None)).await),
        ("inert", timed(engine.inert(Duration::ZERO)).await),
    ] {
        let (away, took) = answer;
        assert!(away, "{call} is not told to be away");
        assert!(took < CALL_TIMEOUT + Duration::from_secs(1), "{call} took {took:?}");
    }
    slurm.start_slurmctld().await.unwrap();
    // It may have come back with the job held, as it was before its start: what has begun is not begun again.
    engine.start(job.tag, &submission).await.unwrap();
    let end =
        seen(&rig.engine(), &job, &submission, |s| is_over(s) || matches!(s, Sighting::Gone { .. })).await;
    let told = match &end {
        Sighting::Seen(Observation::Ended { ending: Ending::Finished | Ending::Failed, .. }) => true,
        other => matches!(other, Sighting::Gone { .. }),
    };
    assert!(told, "{end:?}");
    let runs = std::fs::read_to_string(&ledger).unwrap();
    assert_eq!(runs.lines().count(), 1, "{runs}");
}

/// Whether a call was told to be away, and how long it took.
async fn timed<T>(call: impl Future<Output = Result<T, EngineError>>) -> (bool, Duration) {
    let begun = Instant::now();
    let answer = call.await;
    (matches!(answer, Err(EngineError::Away(_))), begun.elapsed())
}

async fn aged_out(tried: &Tried, accounting: Accounting) {
    let slurm = tried.own(accounting, Duration::from_secs(2)).await;
    let rig = SlurmRig::new(tried, &slurm, accounting);
    let engine = rig.engine();
    let (badly, well) = (job("exit 7"), job(":"));
    let mut all = Vec::new();
    for job in [&badly, &well] {
        let submission = engine.create(job).await.unwrap();
        engine.start(job.tag, &submission).await.unwrap();
        all.push(submission);
    }
    for (job, submission) in [&badly, &well].into_iter().zip(&all) {
        seen(&engine, job, submission, is_over).await;
        let id = number(submission);
        until("slurmctld forgets it", SOON, async || {
            let jobs = slurm.command("squeue", &["-h", "-t", "all", "-o", "%i"]).await?;
            anyhow::ensure!(!jobs.lines().any(|line| line.trim() == id), "{jobs}");
            Ok(())
        })
        .await
        .unwrap();
    }
    let told = |sighting: &Sighting| match sighting {
        Sighting::Seen(Observation::Ended { ending, exit_code, .. }) => Some((*ending, *exit_code)),
        Sighting::Seen(Observation::Pending { .. } | Observation::Running { .. })
        | Sighting::Inert
        | Sighting::Absent
        | Sighting::Unseen
        | Sighting::Gone { .. } => None,
    };
    // Who never saw it, as a worker that was away.
    let fresh = rig.engine();
    assert_eq!(told(&sight(&fresh, &badly, &all[0]).await), Some((Ending::Failed, Some(7))));
    assert_eq!(told(&sight(&fresh, &well, &all[1]).await), Some((Ending::Finished, Some(0))));
    // Without what jobs leave, accounts know the ending, and 22.05's no code; without those nobody knows.
    let bare = SlurmRig::engine_of(SlurmConfig { log_dir: None, ..rig.config.clone() });
    let (ending, whole) = match accounting {
        Accounting::None => (None, None),
        Accounting::Slurmdbd => {
            let code = (tried.release != Release::Installed).then_some(7);
            (Some((Ending::Failed, code)), Some((Ending::Finished, Some(0))))
        }
    };
    assert_eq!(told(&sight(&bare, &badly, &all[0]).await), ending);
    assert_eq!(told(&sight(&bare, &well, &all[1]).await), whole);
}

async fn leftovers(tried: &Tried) {
    let slurm = tried.own(Accounting::None, LONG).await;
    let rig = SlurmRig::new(tried, &slurm, Accounting::None);
    let engine = rig.engine();
    let job = job("sleep 600");
    let [started, left, other] = [
        engine.create(&job).await.unwrap(),
        engine.create(&job).await.unwrap(),
        engine.create(&job).await.unwrap(),
    ];
    engine.start(job.tag, &started).await.unwrap();
    let mut inert = engine.inert(Duration::ZERO).await.unwrap();
    inert.sort_by(|a, b| a.1.id.cmp(&b.1.id));
    assert_eq!(inert, [(job.tag, left.clone()), (job.tag, other.clone())]);
    // Another gateway on the same account does not see them, and cannot sweep them.
    let stranger = SlurmRig::engine_of(SlurmConfig { scope: Some("another".into()), ..rig.config.clone() });
    assert_eq!(stranger.inert(Duration::ZERO).await.unwrap(), []);
    stranger.discard(job.tag, None).await.unwrap();
    assert_eq!(sight(&engine, &job, &left).await, Sighting::Inert);
    engine.discard(job.tag, None).await.unwrap();
    assert_eq!(engine.inert(Duration::ZERO).await.unwrap(), []);
    for submission in [&left, &other] {
        assert_eq!(sight(&rig.engine(), &job, submission).await, Sighting::Absent, "to whoever looks");
    }
    seen(&engine, &job, &started, |s| matches!(s, Sighting::Seen(Observation::Running { .. }))).await;
    engine.cancel(job.tag, &started).await.unwrap();
    seen(&engine, &job, &started, is_over).await;
}

async fn held_by_people(tried: &Tried) {
    let slurm = tried.own(Accounting::None, LONG).await;
    let rig = SlurmRig::new(tried, &slurm, Accounting::None);
    let engine = rig.engine();
    // Nothing runs, so that what is started waits.
    slurm.command("scontrol", &["update", "PartitionName=debug", "State=DOWN"]).await.unwrap();
    let job = job(":");
    let submission = engine.create(&job).await.unwrap();
    engine.start(job.tag, &submission).await.unwrap();
    for (verb, word) in [("uhold", "JobHeldUser"), ("hold", "JobHeldAdmin")] {
        slurm.command("scontrol", &[verb, number(&submission)]).await.unwrap();
        engine.start(job.tag, &submission).await.unwrap();
        engine.discard(job.tag, None).await.unwrap();
        let sighting = sight(&engine, &job, &submission).await;
        let told = matches!(&sighting, Sighting::Seen(Observation::Pending { reason: Some(why) }) if why.contains(word));
        assert!(told, "{sighting:?}");
        slurm.command("scontrol", &["release", number(&submission)]).await.unwrap();
    }
    assert_eq!(engine.inert(Duration::ZERO).await.unwrap(), []);
    slurm.command("scontrol", &["update", "PartitionName=debug", "State=UP"]).await.unwrap();
    let end = seen(&engine, &job, &submission, is_over).await;
    assert!(matches!(&end, Sighting::Seen(Observation::Ended { ending: Ending::Finished, .. })), "{end:?}");
}

async fn tokens(tried: &Tried) {
    let slurm = tried.own(Accounting::None, LONG).await;
    let rig = SlurmRig::new(tried, &slurm, Accounting::None);
    // One that lives two seconds is made anew after one; Slurm itself says when the first is not believed any more.
    let short = slurm.token_command(Duration::from_secs(2));
    let engine =
        SlurmRig::engine_of(SlurmConfig { token_command: Some(short.clone()), ..rig.config.clone() });
    let file = rig.shared_dir().join("token");
    let named = format!("username={}", slurm.account());
    let named = ["token", &named, "lifespan=2"];
    std::fs::write(&file, token(&slurm, &named).await).unwrap();
    let from_file = SlurmConfig { token_command: None, token_file: Some(file.clone()), ..rig.config.clone() };
    let from_file = SlurmRig::engine_of(from_file);
    assert!(from_file.inert(Duration::ZERO).await.is_ok());
    until("the token in the file expires", SOON, async || {
        anyhow::ensure!(engine.inert(Duration::ZERO).await.is_ok(), "the command's token was not renewed");
        match from_file.inert(Duration::ZERO).await {
            Err(EngineError::Away(_)) => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })
    .await
    .unwrap();
    assert!(engine.inert(Duration::ZERO).await.is_ok());
    // Slurm says since 24.11 that it is the token it does not believe; of two accounts the other's jobs go on then.
    let other = SlurmUser { user: "daemon".into(), token_file: Some(file.clone()), token_command: None };
    let users = [("other".parse().unwrap(), other)].into();
    let of_two = SlurmRig::engine_of(SlurmConfig { users, ..rig.config.clone() });
    let of_other = ToCreate { project: "other".parse().unwrap(), ..job(":") };
    let told = of_two.create(&of_other).await.unwrap_err();
    let waits = matches!(&told, EngineError::NotNow(_));
    assert_eq!(waits, tried.release != Release::Installed, "{told:?}");
    let submission = of_two.create(&job(":")).await.unwrap();
    assert_eq!(of_two.inert(Duration::ZERO).await.unwrap().len(), 1, "{submission:?}");
    std::fs::write(&file, token(&slurm, &named).await).unwrap();
    assert!(from_file.inert(Duration::ZERO).await.is_ok());
}

async fn token(slurm: &Slurm, arguments: &[&str]) -> String {
    slurm.command("scontrol", arguments).await.unwrap()
}

async fn refused(tried: &Tried) {
    let slurm = tried.own(Accounting::None, LONG).await;
    let rig = SlurmRig::new(tried, &slurm, Accounting::None);
    let options = [("partition".to_owned(), ["*".to_owned()].into())].into();
    let engine = SlurmRig::engine_of(SlurmConfig { options, ..rig.config.clone() });
    let mut nowhere = job(":");
    nowhere.spec.engine.insert("partition".into(), "nowhere".into());
    match engine.create(&nowhere).await {
        Err(EngineError::Refused(why)) => assert!(why.contains("Invalid partition"), "{why}"),
        other => panic!("{other:?}"),
    }
    // What no node can hold at present Slurm takes and lets wait, and says so over what looks like errors.
    let mut too_large = job(":");
    too_large.spec.resources.cpus = Some(1000);
    let submission = engine.create(&too_large).await.unwrap();
    assert_eq!(sight(&engine, &too_large, &submission).await, Sighting::Inert);
    engine.start(too_large.tag, &submission).await.unwrap();
    seen(&engine, &too_large, &submission, |sighting| {
        let waits = |why: &str| why.contains("PartitionConfig");
        matches!(sighting, Sighting::Seen(Observation::Pending { reason: Some(why) }) if waits(why))
    })
    .await;
    let unmapped = SlurmConfig { user: None, token_command: None, ..rig.config.clone() };
    let user = SlurmUser {
        user: slurm.account().to_owned(),
        token_file: None,
        token_command: rig.config.token_command.clone(),
    };
    let users = [("known".parse().unwrap(), user)].into();
    let engine = SlurmRig::engine_of(SlurmConfig { users, ..unmapped });
    assert!(matches!(engine.create(&job(":")).await, Err(EngineError::Refused(_))));
    let known = ToCreate { project: "known".parse().unwrap(), ..job(":") };
    let submission = engine.create(&known).await.unwrap();
    assert_eq!(sight(&engine, &known, &submission).await, Sighting::Inert);
}

async fn limited(tried: &Tried) {
    let mut slurm = tried.own(Accounting::Slurmdbd, LONG).await;
    slurm.limit_submits(2).await.unwrap();
    let rig = SlurmRig::new(tried, &slurm, Accounting::Slurmdbd);
    let engine = rig.engine();
    let jobs = [job(":"), job(":"), job(":")];
    let mut taken = Vec::new();
    for job in &jobs[..2] {
        taken.push(engine.create(job).await.unwrap());
    }
    match engine.create(&jobs[2]).await {
        Err(EngineError::NotNow(why)) => assert!(why.contains("limit"), "{why}"),
        other => panic!("{other:?}"),
    }
    engine.start(jobs[0].tag, &taken[0]).await.unwrap();
    seen(&engine, &jobs[0], &taken[0], is_over).await;
    until("there is room", SOON, async || Ok(engine.create(&jobs[2]).await?)).await.unwrap();
}

async fn socket(tried: &Tried) {
    let mut slurm = tried.own(Accounting::None, LONG).await;
    let rig = SlurmRig::new(tried, &slurm, Accounting::None);
    let url = slurm.start_socket().await.unwrap();
    let engine = SlurmRig::engine_of(SlurmConfig { url, token_command: None, ..rig.config.clone() });
    let job = job("exit 7");
    let submission = engine.create(&job).await.unwrap();
    assert_eq!(sight(&engine, &job, &submission).await, Sighting::Inert);
    assert_eq!(engine.inert(Duration::ZERO).await.unwrap(), [(job.tag, submission.clone())]);
    engine.start(job.tag, &submission).await.unwrap();
    let end = seen(&engine, &job, &submission, is_over).await;
    assert!(
        matches!(&end, Sighting::Seen(Observation::Ended { ending: Ending::Failed, exit_code: Some(7), .. })),
        "{end:?}"
    );
}
