//! The core's steps, one scenario a test: what goes in, which effects come out.

use super::*;
use crate::engine::{ExitCodes, MemoryLimits, SubmitMode, TimeLimits};
use jobgate_shared::domain::{
    Ending, Fact, JobSpec, JobState, Life, Observation, Outcome, Project, RetryPolicy, transition,
};

/// A core with one cluster, time in its hands, and a job to give it.
struct Bench {
    core: Core,
    me: WorkerId,
    now: Moment,
}

/// The slowest answer that is in time.
const SLOW: Duration = Duration::from_secs(10);

fn name() -> ClusterName {
    "c".parse().unwrap()
}

impl Bench {
    fn new(mode: SubmitMode) -> Self {
        let capabilities = Capabilities {
            mode,
            reach: None,
            commands: false,
            exit_codes: ExitCodes::None,
            memory_limits: MemoryLimits::None,
            time_limits: TimeLimits::ByWatcher,
            warns_on_cancel: false,
            logs: false,
            poll_interval: Duration::from_secs(1),
        };
        let serving = Serving {
            cluster: name(),
            capabilities,
            max_creates: 2,
            lost_after: Duration::from_mins(2),
            slow_after: SLOW,
        };
        let me = WorkerId::generate();
        let now = Moment { since_start: Duration::ZERO, wall: DateTime::UNIX_EPOCH };
        Self { core: Core::new(me, vec![serving]), me, now }
    }

    fn job(&self) -> Job {
        let mut life = Life::begin(false, DateTime::UNIX_EPOCH);
        life.state = JobState::Claimed;
        life.epoch = 1;
        life.fruitless_claims = 1;
        life.owner = Some(self.me);
        Job {
            id: JobId::generate(),
            project: Project::default_project(),
            name: "job".into(),
            cluster: name(),
            spec: JobSpec { command: vec!["true".into()], ..JobSpec::default() },
            labels: vec![],
            priority: 0,
            inputs: serde_json::Map::new(),
            outputs: serde_json::Map::new(),
            report: None,
            max_attempts: 1,
            retry: RetryPolicy::default(),
            created_by: "test".into(),
            created_at: DateTime::UNIX_EPOCH,
            run_at: None,
            life,
        }
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.core.step(self.now, input, &mut effects);
        effects
    }

    fn grant(&mut self, job: &Job) -> Vec<Effect> {
        self.step(Input::Granted(Box::new(job.clone())))
    }

    fn after(&mut self, seconds: u64) -> Vec<Effect> {
        self.now.since_start += Duration::from_secs(seconds);
        self.step(Input::Tick)
    }

    /// Nothing rings until the last moment of so many seconds.
    fn quiet_for(&mut self, seconds: u64) -> bool {
        self.now.since_start +=
            Duration::from_secs(seconds).checked_sub(Duration::from_millis(1)).unwrap_or_default();
        let quiet = self.step(Input::Tick).is_empty();
        self.now.since_start += Duration::from_millis(1);
        quiet
    }

    /// Brings a fresh job to where its submission runs.
    fn running(&mut self, job: &Job) -> Hold {
        let hold = hold(job);
        self.grant(job);
        self.step(Input::Created(hold, Ok(submission("s"))));
        self.step(Input::Recorded(hold, Some(Recorded::Won)));
        self.step(Input::Started(hold, Ok(())));
        self.step(Input::Sighted(hold, Sighting::Seen(running())));
        hold
    }
}

fn hold(job: &Job) -> Hold {
    Hold { tag: SubmissionTag { job: job.id, attempt: job.life.attempt }, epoch: job.life.epoch, cluster: 0 }
}

fn submission(id: &str) -> Submission {
    Submission { id: id.into(), detail: serde_json::Value::Null, reach: None }
}

fn running() -> Observation {
    Observation::Running { since: None, reason: None }
}

fn ended(ending: Ending) -> Observation {
    Observation::Ended { ending, exit_code: None, reason: None, began: None, at: None }
}

fn endings(effects: &[Effect]) -> Vec<Ending> {
    let ending = |e: &Effect| match e {
        Effect::Publish(StatusEvent { observation: Observation::Ended { ending, .. }, .. }) => Some(*ending),
        Effect::Publish(_)
        | Effect::Create(..)
        | Effect::Record(..)
        | Effect::Start(..)
        | Effect::Cancel(..)
        | Effect::Discard(..)
        | Effect::HandBack(_)
        | Effect::ShipLogs(..)
        | Effect::Forget(..)
        | Effect::ClaimAgain(_) => None,
    };
    effects.iter().filter_map(ending).collect()
}

fn starts(effects: &[Effect]) -> usize {
    effects.iter().filter(|e| matches!(e, Effect::Start(..))).count()
}

#[test]
fn a_job_is_created_recorded_started_watched_told_and_forgotten_in_that_order() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    let hold = hold(&job);
    assert!(matches!(b.grant(&job)[..], [Effect::Create(h, _)] if h == hold));
    assert!(
        matches!(&b.step(Input::Created(hold, Ok(submission("s"))))[..], [Effect::Record(_, r)] if r.submission.id == "s")
    );
    assert!(
        matches!(&b.step(Input::Recorded(hold, Some(Recorded::Won)))[..], [Effect::Start(_, s)] if s.id == "s")
    );
    assert_eq!(b.step(Input::Started(hold, Ok(()))), []);
    assert!(
        matches!(&b.step(Input::Sighted(hold, Sighting::Seen(running())))[..], [Effect::Publish(e)] if e.submission.as_deref() == Some("s"))
    );
    assert_eq!(
        b.step(Input::Sighted(hold, Sighting::Seen(running()))),
        [],
        "told once while nothing changes"
    );
    let told = b.step(Input::Sighted(hold, Sighting::Seen(ended(Ending::Finished))));
    assert_eq!(endings(&told), [Ending::Finished]);
    assert_eq!(b.core.held(0), 0, "what has ended takes no room");
    assert_eq!(b.after(4), [], "the next heartbeat may make another telling needless");
    assert_eq!(endings(&b.after(1)), [Ending::Finished], "told again until the row agrees");
    assert_eq!(b.core.unsettled(), [(job.id, 1, 1)]);
    assert_eq!((b.core.jobs(), b.core.unended()), (1, 0), "in hand still, and ended");
    assert!(matches!(&b.step(Input::Settled(job.id))[..], [Effect::Forget(_, s)] if s.id == "s"));
    assert_eq!(b.core.jobs(), 0);
    assert_eq!(b.after(600), []);
}

#[test]
fn whatever_is_recorded_has_its_logs_shipped_once_and_is_forgotten_after_them() {
    let answers = [
        Ok(()),
        Err(Fault::Away("down".into())),
        Err(Fault::NotNow("full".into())),
        Err(Fault::Refused("no".into())),
    ];
    for (canceled, start) in
        [(true, None), (false, Some(&answers[0])), (false, Some(&answers[1])), (false, Some(&answers[2]))]
    {
        let mut b = Bench::new(SubmitMode::TwoPhase);
        b.core.clusters[0].serving.capabilities.logs = true;
        let job = b.job();
        let hold = hold(&job);
        b.grant(&job);
        b.step(Input::Created(hold, Ok(submission("s"))));
        if canceled {
            b.step(Input::CancelRequested(job.id));
        }
        let mut effects = b.step(Input::Recorded(hold, Some(Recorded::Won)));
        effects.extend(start.into_iter().flat_map(|answer| b.step(Input::Started(hold, answer.clone()))));
        effects.extend(b.step(Input::Sighted(hold, Sighting::Seen(ended(Ending::Finished)))));
        let shipped = effects.iter().filter(|e| matches!(e, Effect::ShipLogs(..))).count();
        assert_eq!(shipped, 1, "canceled {canceled}, start {start:?}: {effects:?}");
        assert_eq!(b.step(Input::Settled(job.id)), [], "its logs are not shipped yet");
        assert!(matches!(&b.step(Input::LogsShipped(hold))[..], [Effect::Forget(_, s)] if s.id == "s"));
    }
}

#[test]
fn logs_shipped_before_the_end_is_seen_are_not_waited_for_again() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    b.core.clusters[0].serving.capabilities.logs = true;
    let job = b.job();
    let hold = b.running(&job);
    assert_eq!(b.step(Input::LogsShipped(hold)), []);
    b.step(Input::Sighted(hold, Sighting::Seen(ended(Ending::Finished))));
    assert!(matches!(&b.step(Input::Settled(job.id))[..], [Effect::Forget(_, s)] if s.id == "s"));
    assert_eq!(b.core.jobs(), 0);
}

#[test]
fn nothing_starts_before_it_is_recorded_and_an_unanswered_record_is_made_again() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    let hold = hold(&job);
    b.grant(&job);
    b.step(Input::Created(hold, Ok(submission("s"))));
    for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(b.step(Input::Recorded(hold, None)), []);
        assert!(b.quiet_for(wait), "{wait}");
        assert!(matches!(b.after(0)[..], [Effect::Record(..)]), "{wait}");
    }
    assert_eq!(starts(&b.step(Input::Recorded(hold, Some(Recorded::Won)))), 1);
}

#[test]
fn the_loser_of_a_record_discards_its_own_and_lets_go() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let mut job = b.job();
    let hold = hold(&job);
    b.grant(&job);
    b.step(Input::Created(hold, Ok(submission("mine"))));
    job.life.owner = Some(WorkerId::generate());
    job.life.epoch = 2;
    job.life.submission = Some(submission("theirs"));
    job.life.state = JobState::Pending;
    let effects = b.step(Input::Recorded(hold, Some(Recorded::Lost { current: Some(Box::new(job)) })));
    assert!(matches!(&effects[..], [Effect::Discard(_, Some(s))] if s.id == "mine"));
    assert_eq!(b.core.jobs(), 0);
}

#[test]
fn a_lost_record_discards_nothing_that_another_claim_may_hold_under_the_same_id() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let mut job = b.job();
    let hold = hold(&job);
    b.grant(&job);
    b.step(Input::Created(hold, Ok(submission("s"))));
    job.life.owner = Some(WorkerId::generate());
    job.life.epoch = 2;
    job.life.state = JobState::Initialized;
    let effects = b.step(Input::Recorded(hold, Some(Recorded::Lost { current: Some(Box::new(job)) })));
    assert_eq!(effects, [], "the sweep judges it later");
    assert_eq!(b.core.jobs(), 0);
}

#[test]
fn a_cancel_before_the_record_discards_and_only_then_says_canceled() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    let hold = hold(&job);
    b.grant(&job);
    assert_eq!(b.step(Input::CancelRequested(job.id)), []);
    let effects = b.step(Input::Created(hold, Ok(submission("s"))));
    assert!(matches!(&effects[..], [Effect::Discard(_, Some(_))]));
    for wait in [1, 2, 4] {
        assert_eq!(b.step(Input::Discarded(hold, Err(Fault::Away("x".into())))), [], "not sure, not said");
        assert!(b.quiet_for(wait), "{wait}");
        assert!(matches!(&b.after(0)[..], [Effect::Discard(..)]), "{wait}");
    }
    assert_eq!(endings(&b.step(Input::Discarded(hold, Ok(())))), [Ending::Canceled]);
}

#[test]
fn a_cancel_of_what_waits_for_its_turn_outlasts_that_turn() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let jobs = [b.job(), b.job(), b.job()];
    for job in &jobs {
        b.grant(job);
    }
    let waits = hold(&jobs[2]);
    assert!(
        matches!(b.step(Input::CancelRequested(jobs[2].id))[..], [Effect::Discard(h, None)] if h == waits)
    );
    let answered = b.step(Input::Created(hold(&jobs[0]), Ok(submission("s"))));
    assert!(matches!(answered[..], [Effect::Record(..)]), "{answered:?}");
    assert_eq!(endings(&b.step(Input::Discarded(waits, Ok(())))), [Ending::Canceled]);
}

#[test]
fn a_cancel_after_the_record_never_starts_what_was_not_started() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    let hold = hold(&job);
    b.grant(&job);
    b.step(Input::Created(hold, Ok(submission("s"))));
    b.step(Input::CancelRequested(job.id));
    let effects = b.step(Input::Recorded(hold, Some(Recorded::Won)));
    assert!(matches!(&effects[..], [Effect::Cancel(..)]));
    assert_eq!(starts(&b.step(Input::Sighted(hold, Sighting::Inert))), 0);
    assert!(matches!(&b.after(10)[..], [Effect::Cancel(..)]), "asked again until it is seen carried out");
    assert_eq!(
        endings(&b.step(Input::Sighted(hold, Sighting::Seen(ended(Ending::Canceled))))),
        [Ending::Canceled]
    );
}

#[test]
fn if_it_finished_before_the_cancel_took_hold_the_finish_is_told() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    let hold = b.running(&job);
    assert!(matches!(&b.step(Input::CancelRequested(job.id))[..], [Effect::Cancel(..)]));
    assert_eq!(
        endings(&b.step(Input::Sighted(hold, Sighting::Seen(ended(Ending::Finished))))),
        [Ending::Finished]
    );
}

#[test]
fn an_unanswered_create_goes_back_where_that_is_safe_and_stays_where_it_is_not() {
    for (mode, expected) in [
        (SubmitMode::TwoPhase, "handed back"),
        (SubmitMode::Fenced, "handed back"),
        (SubmitMode::UniqueName, "created again"),
        (SubmitMode::AtMostOnce, "lost"),
    ] {
        let mut b = Bench::new(mode);
        let job = b.job();
        b.grant(&job);
        let mut effects = b.step(Input::Created(hold(&job), Err(Fault::Away("down".into()))));
        effects.extend(b.after(1));
        let got = match &effects[..] {
            [Effect::HandBack(item)] if item.pause > Duration::ZERO => "handed back",
            [Effect::Create(..)] => "created again",
            all if endings(all).first() == Some(&Ending::Lost) => "lost",
            other => panic!("{mode:?}: {other:?}"),
        };
        assert_eq!(got, expected, "{mode:?}");
    }
}

#[test]
fn an_at_most_once_job_whose_earlier_claim_may_have_submitted_it_is_lost_and_not_submitted() {
    let mut b = Bench::new(SubmitMode::AtMostOnce);
    let mut job = b.job();
    job.life.fruitless_claims = 2;
    assert_eq!(endings(&b.grant(&job)), [Ending::Lost]);
    let mut canceled = b.job();
    canceled.life.fruitless_claims = 2;
    canceled.life.cancel_requested = true;
    assert_eq!(endings(&b.grant(&canceled)), [Ending::Lost], "canceled would say that it does not run");
}

#[test]
fn a_refused_create_fails_the_job_with_the_managers_words() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    b.grant(&job);
    let effects = b.step(Input::Created(hold(&job), Err(Fault::Refused("no such partition".into()))));
    assert!(
        matches!(&effects[..], [Effect::Publish(e)] if matches!(&e.observation, Observation::Ended { reason: Some(r), .. } if r == "no such partition"))
    );
}

#[test]
fn absence_becomes_lost_only_after_repeated_polls_over_the_configured_time() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    let hold = b.running(&job);
    for _ in 0..100 {
        assert_eq!(b.step(Input::Sighted(hold, Sighting::Absent)), []);
    }
    b.now.since_start += Duration::from_secs(119);
    assert_eq!(b.step(Input::Sighted(hold, Sighting::Absent)), []);
    assert_eq!(
        b.step(Input::Sighted(hold, Sighting::Seen(running()))),
        [],
        "seen again: the count begins anew"
    );
    b.now.since_start += Duration::from_secs(5);
    assert_eq!(b.step(Input::Sighted(hold, Sighting::Absent)), []);
    b.now.since_start += Duration::from_mins(2);
    assert_eq!(b.step(Input::Sighted(hold, Sighting::Absent)), []);
    assert_eq!(endings(&b.step(Input::Sighted(hold, Sighting::Absent))), [Ending::Lost]);
}

#[test]
fn positive_evidence_must_be_seen_twice() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    let hold = b.running(&job);
    let gone = || Sighting::Gone { evidence: "its runner died".into() };
    assert_eq!(b.step(Input::Sighted(hold, gone())), []);
    assert_eq!(endings(&b.step(Input::Sighted(hold, gone()))), [Ending::Lost]);
}

#[test]
fn an_outage_of_the_manager_ends_nothing_and_parks_the_cluster() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    b.running(&job);
    for _ in 0..10 {
        assert_eq!(b.step(Input::Answered(0, Err("connection refused".into()))), []);
    }
    assert_eq!(b.core.parked(), [(name(), "connection refused".to_owned())]);
    assert_eq!(b.core.room(b.now.since_start, 0, 10), 0);
    b.now.since_start += Duration::from_mins(1);
    assert_eq!(b.core.room(b.now.since_start, 0, 10), 1, "one that runs is no probe");
    b.step(Input::Answered(0, Ok(SLOW)));
    assert_eq!(b.core.room(b.now.since_start, 0, 10), 9);
}

#[test]
fn there_is_no_room_between_the_grant_and_the_answer_of_a_probe() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let down = || Input::Answered(0, Err("down".into()));
    for _ in 0..3 {
        b.step(down());
    }
    b.now.since_start += Duration::from_secs(1);
    assert_eq!(b.core.reserve(b.now.since_start, 0, 10, 9), 1);
    assert_eq!(b.core.room(b.now.since_start, 0, 10), 0, "its claim is out");
    let probe = b.job();
    assert!(matches!(&b.grant(&probe)[..], [Effect::Create(..)]));
    b.core.release(0, 1);
    for _ in 0..100 {
        b.now.since_start += Duration::from_secs(1);
        assert_eq!(b.core.room(b.now.since_start, 0, 10), 0, "its create hangs");
    }
    b.step(Input::Created(hold(&probe), Err(Fault::Away("no answer".into()))));
    b.step(down());
    assert_eq!(b.core.room(b.now.since_start, 0, 10), 0, "so soon after the last");
    b.now.since_start += Duration::from_secs(2);
    assert_eq!(b.core.room(b.now.since_start, 0, 10), 1, "the next one's turn");
}

/// What was given back, and for how long.
fn handed_back(effects: &[Effect]) -> Vec<(JobId, &str, Duration)> {
    let items = effects.iter().filter_map(|e| if let Effect::HandBack(item) = e { Some(item) } else { None });
    items.map(|item| (item.job, item.why.as_str(), item.pause)).collect()
}

#[test]
fn what_its_manager_does_not_take_waits_ever_longer_with_its_words_and_is_not_lost() {
    let mut b = Bench::new(SubmitMode::AtMostOnce);
    let mut job = b.job();
    for (epoch, pause) in [(1, 10), (2, 20), (3, 40), (6, 320), (7, 600), (8, 600), (u32::MAX, 600)] {
        job.life.epoch = epoch;
        b.grant(&job);
        let effects = b.step(Input::Created(hold(&job), Err(Fault::NotNow("submit limit".into()))));
        assert_eq!(handed_back(&effects), [(job.id, "submit limit", Duration::from_secs(pause))]);
        assert_eq!(endings(&effects), [], "nothing was created, so nothing is lost");
    }
}

#[test]
fn what_a_manager_does_not_answer_to_submit_is_handed_back_for_ever_longer_while_it_answers_polls() {
    for mode in [SubmitMode::TwoPhase, SubmitMode::Fenced] {
        let mut b = Bench::new(mode);
        let mut job = b.job();
        for (epoch, pause) in
            [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32), (7, 60), (8, 60), (u32::MAX, 60)]
        {
            job.life.epoch = epoch;
            b.grant(&job);
            b.step(Input::Answered(0, Err("no answer".into())));
            let effects = b.step(Input::Created(hold(&job), Err(Fault::Away("no answer".into()))));
            let pauses: Vec<Duration> =
                handed_back(&effects).into_iter().map(|(_, _, pause)| pause).collect();
            assert_eq!(pauses, [Duration::from_secs(pause)], "{mode:?}, claim {epoch}");
            b.step(Input::Answered(0, Ok(Duration::ZERO)));
            assert_eq!(b.core.parked(), [], "its polls are answered");
        }
    }
}

#[test]
fn jobs_no_limit_ever_lets_in_keep_no_others_waiting() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    // In the order of their priority, each with the time it is due; the first ten are never taken.
    let mut line: Vec<(Job, Duration)> = (0..110).map(|_| (b.job(), Duration::ZERO)).collect();
    let impossible: Vec<JobId> = line[..10].iter().map(|(job, _)| job.id).collect();
    let mut tries = 0;
    for _ in 0..300 {
        let now = b.now.since_start;
        let room = b.core.reserve(now, 0, 200, 2);
        let due = line.extract_if(.., |(_, due)| *due <= now).take(room as usize).collect::<Vec<_>>();
        for (mut job, _) in due {
            b.grant(&job);
            if impossible.contains(&job.id) {
                tries += 1;
                let back = b.step(Input::Created(hold(&job), Err(Fault::NotNow("too large".into()))));
                job.life.epoch += 1;
                line.insert(0, (job, now + handed_back(&back)[0].2));
            } else {
                b.step(Input::Created(hold(&job), Ok(submission("s"))));
            }
        }
        b.core.release(0, room);
        assert_eq!(b.core.parked(), [], "no fact about the cluster");
        b.after(1);
    }
    assert_eq!(line.len(), impossible.len(), "all the others were created");
    assert!(tries <= 60, "{tries} tries of ten jobs in five minutes");
}

#[test]
fn what_an_earlier_create_may_have_made_stays_in_these_hands_however_later_ones_are_answered() {
    let not_now = || Err(Fault::NotNow("submit limit".into()));
    for (adopted, canceled) in [(true, false), (false, false), (true, true), (false, true)] {
        let mut b = Bench::new(SubmitMode::UniqueName);
        let mut job = b.job();
        if adopted {
            job.life.fruitless_claims = 2;
        }
        let hold = hold(&job);
        b.grant(&job);
        if !adopted {
            b.step(Input::Created(hold, Err(Fault::Away("down".into()))));
            assert!(matches!(b.after(1)[..], [Effect::Create(..)]));
        }
        if canceled {
            b.step(Input::CancelRequested(job.id));
            let effects = b.step(Input::Created(hold, not_now()));
            assert!(matches!(effects[..], [Effect::Discard(h, None)] if h == hold), "{effects:?}");
            continue;
        }
        for wait in if adopted { [1, 2, 4] } else { [2, 4, 8] } {
            assert_eq!(b.step(Input::Created(hold, not_now())), [], "adopted {adopted}: not handed back");
            assert!(b.quiet_for(wait), "{wait}");
            assert!(matches!(b.after(0)[..], [Effect::Create(..)]), "{wait}");
        }
        assert_eq!(b.step(Input::Drain), []);
        assert_eq!(b.step(Input::Created(hold, not_now())), [], "an adopter has to be as careful");
        assert_eq!(b.core.jobs(), 0);
    }
}

#[test]
fn a_look_that_did_not_reach_a_job_counts_neither_for_nor_against_its_loss() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    let hold = b.running(&job);
    let look = |b: &mut Bench, sighting: Sighting| {
        b.now.since_start += Duration::from_mins(1);
        endings(&b.step(Input::Sighted(hold, sighting)))
    };
    assert_eq!(look(&mut b, Sighting::Absent), []);
    for _ in 0..10 {
        assert_eq!(look(&mut b, Sighting::Unseen), []);
    }
    assert_eq!(look(&mut b, Sighting::Absent), [], "seen to be absent twice");
    assert_eq!(look(&mut b, Sighting::Unseen), []);
    assert_eq!(look(&mut b, Sighting::Absent), [Ending::Lost], "and a third time");
}

#[test]
fn a_time_limit_only_the_watcher_can_enforce_cancels_and_tells_timed_out() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let mut job = b.job();
    job.spec.time_limit_seconds = Some(5);
    let hold = b.running(&job);
    assert_eq!(b.after(4), []);
    assert!(matches!(&b.after(1)[..], [Effect::Cancel(..)]));
    assert_eq!(
        endings(&b.step(Input::Sighted(hold, Sighting::Seen(ended(Ending::Canceled))))),
        [Ending::TimedOut]
    );
}

#[test]
fn a_drain_hands_back_what_waits_and_what_runs_and_lets_answers_come_in_first() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let (watched, creating) = (b.job(), b.job());
    b.running(&watched);
    b.grant(&creating);
    let effects = b.step(Input::Drain);
    assert!(
        matches!(&effects[..], [Effect::HandBack(item)] if item.job == watched.id && item.pause.is_zero())
    );
    let hold = hold(&creating);
    b.step(Input::Created(hold, Ok(submission("s"))));
    assert_eq!(starts(&b.step(Input::Recorded(hold, Some(Recorded::Won)))), 1);
    assert!(
        matches!(&b.step(Input::Started(hold, Ok(())))[..], [Effect::HandBack(item)] if item.job == creating.id)
    );
    assert_eq!(b.core.jobs(), 0);
    assert_eq!(b.core.room(b.now.since_start, 0, 10), 0);
}

#[test]
fn a_drain_puts_nothing_back_in_line_that_may_run_unrecorded() {
    let mut b = Bench::new(SubmitMode::AtMostOnce);
    let lost = b.job();
    b.grant(&lost);
    b.step(Input::Created(hold(&lost), Err(Fault::Away("down".into()))));
    assert_eq!(b.step(Input::Drain), [], "its end is told, and the row stays as it is until that is heard");
    assert_eq!(b.core.jobs(), 0);
    let mut b = Bench::new(SubmitMode::UniqueName);
    let (first, mut adopted) = (b.job(), b.job());
    adopted.life.fruitless_claims = 2;
    let (before, other) = (b.job(), b.job());
    for job in [&before, &other, &first, &adopted] {
        b.grant(job);
    }
    let effects = b.step(Input::Drain);
    assert!(matches!(&effects[..], [Effect::HandBack(item)] if item.job == first.id), "{effects:?}");
    let mut b = Bench::new(SubmitMode::UniqueName);
    let unanswered = b.job();
    b.grant(&unanswered);
    b.step(Input::Created(hold(&unanswered), Err(Fault::Away("down".into()))));
    assert_eq!(b.step(Input::Drain), [], "it may have been created");
    assert_eq!(b.core.jobs(), 0);
}

#[test]
fn a_drain_puts_back_in_line_whatever_cannot_run_unrecorded() {
    for mode in [SubmitMode::TwoPhase, SubmitMode::Fenced] {
        let mut b = Bench::new(mode);
        let refused = b.job();
        b.grant(&refused);
        b.step(Input::Created(hold(&refused), Err(Fault::Refused("no such queue".into()))));
        let (first, second, mut adopted) = (b.job(), b.job(), b.job());
        adopted.life.fruitless_claims = 2;
        for job in [&first, &second, &adopted] {
            b.grant(job);
        }
        let handed_back =
            |effect: &Effect| if let Effect::HandBack(item) = effect { Some(item.job) } else { None };
        let effects = b.step(Input::Drain);
        let jobs: BTreeSet<JobId> = effects.iter().filter_map(handed_back).collect();
        assert_eq!(jobs.len(), effects.len(), "{mode:?}: {effects:?}");
        assert_eq!(jobs, [refused.id, adopted.id].into(), "{mode:?}");
        assert!(b.core.worked_off.iter().all(BTreeMap::is_empty), "a late answer only makes what is swept");
    }
}

#[test]
fn what_a_user_cancels_before_its_time_is_up_is_canceled_however_long_that_takes() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let mut job = b.job();
    job.spec.time_limit_seconds = Some(5);
    let hold = b.running(&job);
    b.step(Input::CancelRequested(job.id));
    for _ in 0..3 {
        assert!(matches!(b.after(10)[..], [Effect::Cancel(..)]));
    }
    let ended = ended(Ending::Canceled);
    assert_eq!(endings(&b.step(Input::Sighted(hold, Sighting::Seen(ended)))), [Ending::Canceled]);
}

#[test]
fn an_adopted_submission_is_watched_and_started_only_if_it_is_inert() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let mut job = b.job();
    job.life.state = JobState::Pending;
    job.life.submission = Some(submission("s"));
    assert_eq!(b.grant(&job), []);
    let hold = hold(&job);
    assert_eq!(starts(&b.step(Input::Sighted(hold, Sighting::Inert))), 1);
    b.step(Input::Started(hold, Ok(())));
    assert_eq!(starts(&b.step(Input::Sighted(hold, Sighting::Inert))), 0, "a listing may lag behind a start");
    b.now.since_start += Duration::from_secs(5);
    assert_eq!(starts(&b.step(Input::Sighted(hold, Sighting::Inert))), 1);
}

/// A job somebody else brought so far that it runs, since the epoch of its clock.
fn adopted(b: &Bench, reason: Option<&str>) -> Job {
    let mut job = b.job();
    job.life.state = JobState::Running;
    job.life.epoch = 2;
    job.life.submission = Some(submission("s"));
    job.life.started_at = Some(DateTime::UNIX_EPOCH);
    job.life.reason = reason.map(str::to_owned);
    job.life.last_event = (1, 9);
    job
}

/// The row, once it has heard what was told.
fn told_row(job: &Job, effects: &[Effect]) -> Life {
    let hear = |life: Life, effect: &Effect| {
        let Effect::Publish(event) = effect else { return life };
        let policy = RetryPolicy::default();
        match transition(&life, 1, &policy, &Fact::Event(event), DateTime::UNIX_EPOCH) {
            Outcome::Advanced { life, .. } => *life,
            Outcome::Duplicate | Outcome::Stale | Outcome::Refused(_) => life,
        }
    };
    effects.iter().fold(job.life.clone(), hear)
}

#[test]
fn an_adopter_takes_back_a_reason_that_has_passed_and_tells_nothing_the_row_says() {
    let seen = || Observation::Running { since: Some(DateTime::UNIX_EPOCH), reason: None };
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = adopted(&b, Some("waits for a worker on h"));
    assert_eq!(b.grant(&job), []);
    let told = b.step(Input::Sighted(hold(&job), Sighting::Seen(seen())));
    assert!(matches!(told[..], [Effect::Publish(_)]), "{told:?}");
    let row = told_row(&job, &told);
    assert_eq!((row.state, row.reason), (JobState::Running, None));
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = adopted(&b, None);
    b.grant(&job);
    assert_eq!(b.step(Input::Sighted(hold(&job), Sighting::Seen(seen()))), []);
    assert_eq!(b.after(600), []);
}

#[test]
fn what_ran_and_waits_again_at_its_manager_is_told_as_running_with_that_reason() {
    let since = Some(DateTime::UNIX_EPOCH);
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let mut job = adopted(&b, None);
    b.grant(&job);
    let mut look = |seen: Observation| {
        let effects = b.step(Input::Sighted(hold(&job), Sighting::Seen(seen)));
        job.life = told_row(&job, &effects);
        (effects.len(), job.life.state, job.life.reason.clone())
    };
    let requeued = || Observation::Pending { reason: Some("requeued by Slurm".into()) };
    let told = |reason: &str| (1, JobState::Running, Some(reason.to_owned()));
    assert_eq!(look(Observation::Running { since, reason: None }), (0, JobState::Running, None));
    assert_eq!(look(requeued()), told("requeued by Slurm"));
    assert_eq!(look(requeued()), (0, JobState::Running, Some("requeued by Slurm".into())), "told once");
    assert_eq!(look(Observation::Pending { reason: None }), told("waits again"));
    assert_eq!(look(Observation::Running { since, reason: None }), (1, JobState::Running, None));
}

#[test]
fn an_adopter_enforces_what_is_left_of_a_time_limit() {
    // Some managers tell since when it runs, some do not.
    for since in [Some(DateTime::UNIX_EPOCH), None] {
        let mut b = Bench::new(SubmitMode::TwoPhase);
        b.now.wall += Duration::from_secs(57);
        let mut job = adopted(&b, None);
        job.spec.time_limit_seconds = Some(60);
        b.grant(&job);
        b.step(Input::Sighted(hold(&job), Sighting::Seen(Observation::Running { since, reason: None })));
        assert!(b.quiet_for(3), "{since:?}");
        assert!(matches!(b.after(0)[..], [Effect::Cancel(..)]), "{since:?}");
    }
}

#[test]
fn a_doubled_grant_changes_nothing_and_an_answer_to_an_older_claim_falls_on_the_floor() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let mut job = b.job();
    b.grant(&job);
    assert_eq!(b.grant(&job), []);
    assert_eq!(b.core.held(0), 1);
    let old = hold(&job);
    job.life.epoch = 2;
    assert!(matches!(&b.grant(&job)[..], [Effect::Create(..)]));
    assert_eq!(b.core.held(0), 1);
    assert_eq!(b.step(Input::Created(old, Ok(submission("s")))), []);
}

#[test]
fn what_is_this_workers_and_unknown_twice_in_a_row_is_claimed_again() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let (known, unheard, under_way) = (b.job(), b.job(), b.job());
    b.grant(&known);
    assert_eq!(b.step(Input::Held(vec![known.id, unheard.id])), []);
    assert_eq!(b.step(Input::Held(vec![known.id, under_way.id])), [], "gone in between");
    assert_eq!(
        b.step(Input::Held(vec![known.id, under_way.id, unheard.id])),
        [Effect::ClaimAgain(under_way.id)]
    );
    b.grant(&under_way);
    assert_eq!(b.step(Input::Held(vec![under_way.id, unheard.id])), [Effect::ClaimAgain(unheard.id)]);
    assert_eq!(b.step(Input::Held(vec![under_way.id, unheard.id])), [Effect::ClaimAgain(unheard.id)]);
    b.step(Input::Drain);
    assert_eq!(
        b.step(Input::Held(vec![under_way.id, unheard.id])),
        [],
        "they are adopted when the lease ends"
    );
}

#[test]
fn a_late_answer_to_a_claim_begins_nothing_again_where_that_could_run_twice() {
    for mode in [SubmitMode::UniqueName, SubmitMode::AtMostOnce] {
        let mut b = Bench::new(mode);
        let mut job = b.job();
        job.life.epoch = 2;
        let hold = b.running(&job);
        let mut older = job.clone();
        older.life.epoch = 1;
        assert_eq!(b.grant(&older), [], "in hand under a later claim");
        b.step(Input::Sighted(hold, Sighting::Seen(ended(Ending::Finished))));
        b.step(Input::Settled(job.id));
        assert_eq!(b.core.jobs(), 0);
        for looks in 0..2 {
            assert_eq!(b.grant(&job), [], "{mode:?} after {looks} looks");
            assert_eq!(b.grant(&older), [], "{mode:?} after {looks} looks");
            b.step(Input::Held(vec![]));
        }
        job.life.epoch = 3;
        assert_eq!(b.grant(&job).len(), 1, "another claim is another matter");
        b.step(Input::Held(vec![]));
        assert!(b.core.worked_off.iter().all(BTreeMap::is_empty), "no answer is that late");
    }
}

#[test]
fn an_attempt_that_went_to_somebody_else_is_dropped_and_never_forgotten_at_the_engine() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    let hold = b.running(&job);
    b.step(Input::Sighted(hold, Sighting::Seen(ended(Ending::Finished))));
    assert_eq!(b.step(Input::Lost(job.id)), []);
    assert_eq!(b.core.jobs(), 0);
    let under_way = b.job();
    b.grant(&under_way);
    assert!(b.core.is_submitting(0));
    b.step(Input::Lost(under_way.id));
    assert!(!b.core.is_submitting(0));
}

#[test]
fn creates_are_bounded_and_a_suspect_is_submitted_while_nothing_else_is() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let (one, two, mut suspect, three) = (b.job(), b.job(), b.job(), b.job());
    suspect.life.fruitless_claims = SUSPECT_AFTER + 1;
    let created = |effects: &[Effect]| effects.iter().filter(|e| matches!(e, Effect::Create(..))).count();
    assert_eq!(created(&b.grant(&one)), 1);
    assert_eq!(created(&b.grant(&two)), 1);
    assert!(!b.core.has_suspect());
    assert_eq!(created(&b.grant(&suspect)), 0);
    assert!(b.core.has_suspect());
    assert_eq!(created(&b.grant(&three)), 0, "nothing passes a waiting suspect");
    assert_eq!(created(&b.step(Input::Created(hold(&one), Ok(submission("1"))))), 0);
    let effects = b.step(Input::Created(hold(&two), Ok(submission("2"))));
    assert!(matches!(effects.last(), Some(Effect::Create(h, _)) if h.tag.job == suspect.id));
    b.step(Input::Created(hold(&suspect), Ok(submission("3"))));
    b.step(Input::Recorded(hold(&suspect), Some(Recorded::Won)));
    assert!(b.core.has_suspect());
    let effects = b.step(Input::Started(hold(&suspect), Ok(())));
    assert!(matches!(&effects[..], [Effect::Create(h, _)] if h.tag.job == three.id));
    assert!(!b.core.has_suspect());
}

#[test]
fn a_suspect_passes_all_that_waits_and_one_that_is_wanted_gone_is_not_waited_for() {
    let created = |effects: &[Effect]| effects.iter().filter(|e| matches!(e, Effect::Create(..))).count();
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let jobs: Vec<Job> = (0..4).map(|_| b.job()).collect();
    assert_eq!(jobs.iter().map(|job| created(&b.grant(job))).sum::<usize>(), 2, "the others wait");
    let (mut suspect, mut unwanted) = (b.job(), b.job());
    for job in [&mut suspect, &mut unwanted] {
        job.life.fruitless_claims = SUSPECT_AFTER + 1;
    }
    b.grant(&unwanted);
    b.grant(&suspect);
    b.step(Input::CancelRequested(unwanted.id));
    b.step(Input::Created(hold(&jobs[0]), Ok(submission("1"))));
    let effects = b.step(Input::Created(hold(&jobs[1]), Ok(submission("2"))));
    assert!(matches!(effects.last(), Some(Effect::Create(h, _)) if h.tag.job == suspect.id), "{effects:?}");
    // Canceled after its record, it is submitted and never starts: nobody waits for that.
    b.step(Input::Created(hold(&suspect), Ok(submission("3"))));
    b.step(Input::CancelRequested(suspect.id));
    let effects = b.step(Input::Recorded(hold(&suspect), Some(Recorded::Won)));
    assert_eq!(created(&effects), 2, "{effects:?}");
    assert!(!b.core.has_suspect());
}

#[test]
fn room_is_never_promised_twice() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    assert_eq!(b.core.reserve(Duration::ZERO, 0, 5, 3), 3);
    assert_eq!(b.core.reserve(Duration::ZERO, 0, 5, 3), 2);
    assert_eq!(b.core.reserve(Duration::ZERO, 0, 5, 3), 0);
    let job = b.job();
    b.grant(&job);
    b.core.release(0, 3);
    assert_eq!((b.core.held(0), b.core.held_in_all()), (3, 3));
    assert_eq!(b.core.room(Duration::ZERO, 0, 5), 2);
}

#[test]
fn a_poll_looks_at_what_is_in_the_managers_hands_and_at_nothing_else() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let (job, other) = (b.job(), b.job());
    let under_way = hold(&other);
    assert!(!b.core.is_submitting(0));
    let hold = b.running(&job);
    assert!(!b.core.is_submitting(0));
    b.grant(&other);
    assert_eq!(b.core.watched(0), [(hold, submission("s"))]);
    assert_eq!(b.core.watched(1), []);
    for answer in
        [Input::Created(under_way, Ok(submission("t"))), Input::Recorded(under_way, Some(Recorded::Won))]
    {
        assert!(b.core.is_submitting(0) && !b.core.is_submitting(1));
        assert_eq!(b.core.watched(0).len(), 1);
        b.step(answer);
    }
    assert!(b.core.is_submitting(0), "its start is out");
    b.step(Input::Started(under_way, Ok(())));
    assert!(!b.core.is_submitting(0));
    assert_eq!(b.core.watched(0).len(), 2);
    assert_eq!((b.core.jobs(), b.core.unended(), b.core.unsettled()), (2, 2, vec![]));
    assert!(!b.core.is_draining());
    b.step(Input::Drain);
    assert!(b.core.is_draining());
}

#[test]
fn an_attempt_has_one_timer_and_the_next_of_all_is_known() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    assert_eq!(b.core.next_timer(), None);
    let (job, other) = (b.job(), b.job());
    let hold = b.running(&job);
    assert_eq!(b.core.next_timer(), Some(Duration::from_secs(10)));
    b.now.since_start += Duration::from_secs(3);
    b.step(Input::CancelRequested(job.id));
    assert_eq!(b.core.next_timer(), Some(Duration::from_secs(13)));
    b.running(&other);
    b.step(Input::CancelTaken(hold, Err(Fault::Away("down".into()))));
    assert_eq!(b.core.next_timer(), Some(Duration::from_secs(4)));
    assert_eq!(b.core.timers.len(), 2);
    b.step(Input::Lost(job.id));
    assert_eq!(b.core.next_timer(), Some(Duration::from_secs(13)));
    assert_eq!(b.core.timers.len(), 1);
}

#[test]
fn what_runs_is_told_again_ever_more_rarely_and_every_telling_has_its_number() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    let hold = b.running(&job);
    let numbers = |effects: &[Effect]| -> Vec<u32> {
        effects
            .iter()
            .filter_map(|e| if let Effect::Publish(event) = e { Some(event.seq) } else { None })
            .collect()
    };
    for (number, wait) in (2..).zip([10, 60, 600, 600, 600]) {
        assert!(b.quiet_for(wait), "{wait}");
        assert_eq!(numbers(&b.after(0)), [number], "{wait}");
    }
    assert_eq!(numbers(&b.step(Input::Sighted(hold, Sighting::Seen(ended(Ending::Failed))))), [7]);
    for wait in [5, 10, 20, 40, 60, 60] {
        assert!(b.quiet_for(wait), "{wait}");
        assert_eq!(numbers(&b.after(0)), [7], "the same end, {wait}");
    }
}

#[test]
fn an_end_of_the_workers_own_has_the_next_number() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    let hold = b.running(&job);
    let gone = || Sighting::Gone { evidence: "its host is".into() };
    assert_eq!(b.step(Input::Sighted(hold, gone())), [], "seen once is not enough");
    let effects = b.step(Input::Sighted(hold, gone()));
    assert!(matches!(&effects[..], [Effect::Publish(e)] if e.seq == 2), "{effects:?}");
}

#[test]
fn a_cancel_that_is_not_taken_is_asked_for_again_soon_and_ever_more_rarely() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let job = b.job();
    let hold = b.running(&job);
    b.step(Input::CancelRequested(job.id));
    for wait in [1, 2, 4] {
        assert_eq!(b.step(Input::CancelTaken(hold, Err(Fault::Away("down".into())))), []);
        assert!(b.quiet_for(wait), "{wait}");
        assert!(matches!(b.after(0)[..], [Effect::Cancel(..)]), "{wait}");
    }
    assert_eq!(b.step(Input::CancelTaken(hold, Ok(()))), []);
    assert!(b.quiet_for(10));
    assert!(matches!(b.after(0)[..], [Effect::Cancel(..)]), "taken, and not seen carried out");
    b.step(Input::CancelTaken(hold, Err(Fault::Refused("busy".into()))));
    assert!(b.quiet_for(1), "an answer in between counts");
    assert!(matches!(b.after(0)[..], [Effect::Cancel(..)]));
}

#[test]
fn an_unanswered_create_of_a_unique_name_is_made_again_ever_more_rarely_and_discarded_if_canceled() {
    let mut b = Bench::new(SubmitMode::UniqueName);
    let job = b.job();
    let hold = hold(&job);
    b.grant(&job);
    let away = || Err(Fault::Away("down".into()));
    for wait in [1, 2, 4] {
        assert_eq!(b.step(Input::Created(hold, away())), []);
        assert!(b.quiet_for(wait), "{wait}");
        assert!(matches!(b.after(0)[..], [Effect::Create(..)]), "{wait}");
    }
    assert_eq!(b.step(Input::CancelRequested(job.id)), [], "the create is out");
    assert!(matches!(b.step(Input::Created(hold, away()))[..], [Effect::Discard(_, None)]));
}

#[test]
fn a_granted_job_that_is_to_be_canceled_is_discarded_and_not_created() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let mut job = b.job();
    job.life.cancel_requested = true;
    assert!(matches!(b.grant(&job)[..], [Effect::Discard(_, None)]));
    assert_eq!(endings(&b.step(Input::Discarded(hold(&job), Ok(())))), [Ending::Canceled]);
}

#[test]
fn a_record_lost_to_a_cancel_of_this_claim_is_ended_by_it_and_one_lost_to_anything_else_is_not() {
    let lost = |change: fn(&mut Job)| {
        let mut b = Bench::new(SubmitMode::TwoPhase);
        let mut job = b.job();
        b.grant(&job);
        b.step(Input::Created(hold(&job), Ok(submission("s"))));
        let granted = hold(&job);
        job.life.cancel_requested = true;
        change(&mut job);
        let effects = b.step(Input::Recorded(granted, Some(Recorded::Lost { current: Some(Box::new(job)) })));
        let discards = effects.iter().filter(|e| matches!(e, Effect::Discard(_, Some(_)))).count();
        (discards, b.core.jobs(), endings(&b.step(Input::Discarded(granted, Ok(())))))
    };
    assert_eq!(lost(|_| ()), (1, 1, vec![Ending::Canceled]));
    let elsewhere: [fn(&mut Job); 5] = [
        |job| job.life.owner = Some(WorkerId::generate()),
        |job| job.life.epoch = 2,
        |job| job.life.cancel_requested = false,
        |job| job.life.state = JobState::Pending,
        |job| job.life.attempt = 0,
    ];
    for change in elsewhere {
        let (_, jobs, endings) = lost(change);
        assert_eq!((jobs, endings), (0, vec![]), "it is not this claim's to end");
    }
    assert_eq!(lost(|job| job.life.attempt = 2), (1, 0, vec![]), "its attempt is over");
}

#[test]
fn a_cluster_is_parked_by_answers_missing_or_slow_in_a_row_with_the_reason_and_opened_by_one_in_time() {
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let slow = || Ok(SLOW + Duration::from_millis(200));
    for answers in [[slow(), slow(), Err("no route".to_owned())], [Err("no route".into()), slow(), slow()]] {
        let last = answers[2].clone();
        for answer in answers {
            assert_eq!(b.core.parked(), []);
            b.step(Input::Answered(0, answer));
        }
        let why = last.err().unwrap_or_else(|| "slow: an answer took 10.2s".to_owned());
        assert_eq!(b.core.parked(), [(name(), why)]);
        b.step(Input::Answered(0, Ok(SLOW)));
        assert_eq!(b.core.parked(), []);
    }
    b.step(Input::Answered(0, slow()));
    b.step(Input::Answered(0, slow()));
    b.step(Input::Answered(0, Ok(Duration::ZERO)));
    b.step(Input::Answered(0, slow()));
    assert_eq!(b.core.parked(), [], "not in a row");
}

#[test]
fn only_what_was_claimed_in_vain_too_often_is_a_suspect_and_its_turn_ends_with_it() {
    let created = |effects: &[Effect]| effects.iter().filter(|e| matches!(e, Effect::Create(..))).count();
    let mut b = Bench::new(SubmitMode::TwoPhase);
    let (one, mut twice) = (b.job(), b.job());
    twice.life.fruitless_claims = SUSPECT_AFTER;
    assert_eq!(created(&b.grant(&one)), 1);
    assert_eq!(created(&b.grant(&twice)), 1, "not yet");
    for ends in ["its create is unanswered", "it is somebody else's"] {
        let mut b = Bench::new(SubmitMode::UniqueName);
        let (mut suspect, next) = (b.job(), b.job());
        suspect.life.fruitless_claims = SUSPECT_AFTER + 1;
        assert_eq!(created(&b.grant(&suspect)), 1);
        assert_eq!(created(&b.grant(&next)), 0, "alone while its create is out");
        b.step(Input::Lost(JobId::generate()));
        let effects = if ends == "its create is unanswered" {
            b.step(Input::Created(hold(&suspect), Err(Fault::Away("down".into()))))
        } else {
            b.step(Input::Lost(suspect.id))
        };
        assert_eq!(created(&effects), 1, "{ends}");
        assert!(!b.core.has_suspect(), "{ends}");
    }
}
