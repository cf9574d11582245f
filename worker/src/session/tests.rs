//! Whole sessions over the reference store, in paused time, with an engine that does what the test says.

use super::*;
use crate::engine::{
    Capabilities, EngineResult, ExitCodes, LogChunk, MemoryLimits, Sighting, Stream, SubmitMode, TimeLimits,
    ToCreate,
};
use async_trait::async_trait;
use chrono::DateTime;
use futures::FutureExt as _;
use jobgate_shared::{
    broker::{Route, Subscription, memory::Memory},
    clock::ManualClock,
    domain::{
        Ending, Job, JobId, JobSpec, JobState, NewJob, Observation, Project, RetryPolicy, SUSPECT_AFTER,
        SpecError, StatusEvent, Submission, SubmissionTag,
    },
    reporting::{ReportKey, TOKEN_VARIABLE, URL_VARIABLE},
    store::{
        Applied, Apply, Claimed, Heartbeat, Pulse, Recorded, Scope, Store as _, StoreError, StoreResult,
        ToHandBack, ToRecord, memory::MemoryStore,
    },
    wire::Hint,
};
use std::{
    collections::{BTreeSet, VecDeque},
    num::NonZeroU32,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// Nobody waits so long for a poll in these tests.
const NEVER: Duration = Duration::from_hours(1);

/// Jobs run until a test ends them, and then it rings.
#[derive(Debug)]
struct Belled {
    bell: Notify,
    ended: Mutex<BTreeSet<SubmissionTag>>,
    /// When each poll began and how many it looked at.
    polls: watch::Sender<Vec<(Instant, usize)>>,
    polling: AtomicBool,
    poll_takes: Duration,
    create_takes: Duration,
    /// The next create or poll panics.
    panics: AtomicBool,
    /// A job ends before its start is answered, which takes so long.
    ends_at_start: Option<Duration>,
    created: Mutex<Vec<ToCreate>>,
    /// Jobs print, and those that run faster than anybody reads.
    prints: bool,
    forgotten: watch::Sender<BTreeSet<SubmissionTag>>,
}

impl Default for Belled {
    fn default() -> Self {
        Self {
            bell: Notify::new(),
            ended: Mutex::default(),
            polls: watch::channel(Vec::new()).0,
            polling: AtomicBool::new(false),
            poll_takes: Duration::ZERO,
            create_takes: Duration::ZERO,
            panics: AtomicBool::new(false),
            ends_at_start: None,
            created: Mutex::default(),
            prints: false,
            forgotten: watch::Sender::default(),
        }
    }
}

impl Belled {
    fn end(&self, tag: SubmissionTag) {
        self.ended.lock().unwrap().insert(tag);
        self.bell.notify_one();
    }

    fn polls(&self) -> Vec<(Instant, usize)> {
        self.polls.borrow().clone()
    }
}

#[async_trait]
impl Engine for Belled {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mode: SubmitMode::TwoPhase,
            reach: None,
            commands: false,
            exit_codes: ExitCodes::None,
            memory_limits: MemoryLimits::None,
            time_limits: TimeLimits::ByEngine,
            warns_on_cancel: false,
            logs: self.prints,
            poll_interval: NEVER,
        }
    }

    fn validate(&self, _: &JobSpec) -> Result<(), SpecError> {
        Ok(())
    }

    async fn create(&self, job: &ToCreate) -> EngineResult<Submission> {
        assert!(!self.panics.swap(false, Ordering::SeqCst), "as the test asked for");
        tokio::time::sleep(self.create_takes).await;
        self.created.lock().unwrap().push(job.clone());
        Ok(Submission { id: job.tag.to_string(), detail: serde_json::Value::Null, reach: None })
    }

    async fn start(&self, tag: SubmissionTag, _: &Submission) -> EngineResult<()> {
        if let Some(answer) = self.ends_at_start {
            self.end(tag);
            tokio::time::sleep(answer).await;
        }
        Ok(())
    }

    async fn poll(&self, submissions: &[(SubmissionTag, Submission)]) -> EngineResult<Vec<Sighting>> {
        assert!(!self.panics.swap(false, Ordering::SeqCst), "as the test asked for");
        assert!(!self.polling.swap(true, Ordering::SeqCst), "two polls at once");
        self.polls.send_modify(|polls| polls.push((Instant::now(), submissions.len())));
        tokio::time::sleep(self.poll_takes).await;
        self.polling.store(false, Ordering::SeqCst);
        let ended = self.ended.lock().unwrap();
        let look = |(tag, _): &(SubmissionTag, Submission)| {
            Sighting::Seen(if ended.contains(tag) {
                let (ending, exit_code) = (Ending::Finished, Some(0));
                Observation::Ended { ending, exit_code, reason: None, began: None, at: None }
            } else {
                Observation::Running { since: None, reason: None }
            })
        };
        Ok(submissions.iter().map(look).collect())
    }

    async fn stirred(&self) {
        self.bell.notified().await;
    }

    async fn cancel(&self, _: SubmissionTag, _: &Submission) -> EngineResult<()> {
        Ok(())
    }

    async fn discard(&self, _: SubmissionTag, _: Option<&Submission>) -> EngineResult<()> {
        Ok(())
    }

    async fn inert(&self, _: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        Ok(Vec::new())
    }

    async fn read_log(
        &self,
        tag: SubmissionTag,
        _: &Submission,
        _: Stream,
        _: u64,
        _: usize,
    ) -> EngineResult<LogChunk> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let last = self.ended.lock().unwrap().contains(&tag);
        let bytes = if last { bytes::Bytes::new() } else { bytes::Bytes::from_static(b"more") };
        Ok(LogChunk { bytes, last })
    }

    async fn forget(&self, tag: SubmissionTag, _: &Submission) -> EngineResult<()> {
        self.forgotten.send_modify(|forgotten| {
            forgotten.insert(tag);
        });
        Ok(())
    }
}

/// The reference store, counting what a worker asks of it; away when told to be.
#[derive(Debug)]
struct Counted {
    inner: MemoryStore,
    calls: AtomicU32,
    away: AtomicBool,
}

macro_rules! counted {
    ($port:ident: $($call:ident($($name:ident: $kind:ty),*) -> $told:ty;)*) => {
        #[async_trait]
        impl $port for Counted {
            $(async fn $call(&self, $($name: $kind),*) -> StoreResult<$told> {
                self.calls.fetch_add(1, Ordering::SeqCst);
                if self.away.load(Ordering::SeqCst) {
                    return Err(StoreError::Away(anyhow::anyhow!("no answer")));
                }
                self.inner.$call($($name),*).await
            })*
        }
    };
}

counted! { Apply:
    apply(events: &[StatusEvent]) -> Vec<Applied>;
}

counted! { Leases:
    register(worker: &Registration, ttl: Duration) -> ();
    heartbeat(worker: WorkerId, pulse: &Pulse) -> Heartbeat;
    claim(worker: WorkerId, clusters: &[WorkerCluster], jobs: &[JobId]) -> Vec<Claimed>;
    claim_alone(worker: WorkerId, clusters: &[WorkerCluster], job: JobId) -> Claimed;
    held(worker: WorkerId) -> Vec<JobId>;
    serving(clusters: &[ClusterName]) -> Vec<u32>;
    in_hands(cluster: &ClusterName, owners: &[WorkerId], after: Option<JobId>, limit: u32) -> Vec<Job>;
    record(items: &[ToRecord]) -> Vec<Recorded>;
    hand_back(worker: WorkerId, items: &[ToHandBack]) -> ();
    deregister(worker: WorkerId) -> ();
    leftovers(found: &[(JobId, u32, String)]) -> Vec<usize>;
}

/// A worker at work, and what stands around it.
struct House {
    engine: Arc<Belled>,
    store: Arc<Counted>,
    broker: Arc<Memory>,
    events: Subscription<Vec<StatusEvent>>,
    heard: VecDeque<StatusEvent>,
    /// Nobody records here, so ends are told again and again; each counts once.
    told: BTreeSet<JobId>,
    tasks: Tasks,
    _logs: tempfile::TempDir,
}

fn reporting() -> Reporting {
    let key = ReportKey::new("a key that only these tests know").unwrap();
    Reporting { url: "http://gate.example".into(), key }
}

fn cluster() -> ClusterName {
    "c".parse().unwrap()
}

fn plain() -> JobSpec {
    JobSpec { command: vec!["true".into()], ..JobSpec::default() }
}

/// A worker that somebody else runs.
fn elsewhere() -> Registration {
    Registration {
        id: WorkerId::generate(),
        host: "elsewhere".to_owned(),
        clusters: vec![WorkerCluster { name: cluster(), reach: None, parked: None }],
        registered_at: DateTime::UNIX_EPOCH,
        expires_at: DateTime::UNIX_EPOCH,
        alive: true,
        draining: false,
        jobs: 0,
    }
}

impl House {
    fn start(engine: Belled) -> Self {
        Self::start_among(0, engine, Pace::default())
    }

    /// So many others serve the cluster already.
    fn start_among(others: usize, engine: Belled, pace: Pace) -> Self {
        // The store's clock stands still, so no lease ends while a test lets hours pass.
        let clock = Arc::new(ManualClock::at(DateTime::UNIX_EPOCH));
        let (calls, away) = (AtomicU32::new(0), AtomicBool::new(false));
        let store = Arc::new(Counted { inner: MemoryStore::new(clock.clone()), calls, away });
        for _ in 0..others {
            let registered = store.inner.register(&elsewhere(), NEVER).now_or_never();
            registered.expect("the model waits for nothing").unwrap();
        }
        let (engine, broker, tasks) = (Arc::new(engine), Arc::new(Memory::new()), Tasks::default());
        let logs = tempfile::tempdir().unwrap();
        let served = Served {
            name: cluster(),
            engine: engine.clone(),
            regulator: RegulatorConfig::Fixed { max_in_flight: NonZeroU32::new(1000).unwrap() },
            max_calls: 16,
            pace,
            max_submits_per_second: None,
            lost_after: Duration::from_mins(2),
            slow_after: Duration::from_mins(1),
        };
        let worker = Worker {
            leases: store.clone(),
            broker: broker.clone(),
            clock,
            logs: Arc::new(LogStore::directory(logs.path()).unwrap()),
            clusters: vec![served],
            timing: Timing::default(),
            reporting: Some(reporting()),
            host: "here".into(),
        };
        let events = broker.events(1000);
        tasks.spawn("worker", worker.run(tasks.shutdown().clone()));
        Self {
            engine,
            store,
            broker,
            events,
            heard: VecDeque::new(),
            told: BTreeSet::new(),
            tasks,
            _logs: logs,
        }
    }

    /// Accepts jobs and hints them.
    async fn post(&self, jobs: usize) -> Vec<SubmissionTag> {
        self.post_all(&vec![plain(); jobs]).await
    }

    /// Accepts jobs that are to run this and hints them.
    async fn post_all(&self, specs: &[JobSpec]) -> Vec<SubmissionTag> {
        let accepted = self.accept(specs).await;
        self.hint(accepted.clone()).await;
        accepted.into_iter().map(|job| SubmissionTag { job, attempt: 1 }).collect()
    }

    async fn accept(&self, specs: &[JobSpec]) -> Vec<JobId> {
        let job = |spec: &JobSpec| NewJob {
            id: JobId::generate(),
            project: Project::default_project(),
            name: "job".into(),
            cluster: cluster(),
            spec: spec.clone(),
            labels: Vec::new(),
            priority: 0,
            inputs: serde_json::Map::new(),
            max_attempts: 1,
            retry: RetryPolicy::default(),
            run_at: None,
            hold: false,
            created_by: "test".into(),
            idempotency: None,
        };
        let jobs: Vec<NewJob> = specs.iter().map(job).collect();
        self.store.inner.insert(&jobs, Some(NEVER)).await.unwrap();
        jobs.iter().map(|job| job.id).collect()
    }

    async fn hint(&self, jobs: Vec<JobId>) {
        let hinted = self.broker.publish_hint(&Route::Cluster(cluster()), Hint { jobs }).await;
        assert_eq!(hinted.unwrap(), jobgate_shared::broker::Published::Routed);
    }

    /// Workers claim these again and again, and die.
    async fn kill_claimers(&self, jobs: &[JobId], times: u16) {
        let served = [WorkerCluster { name: cluster(), reach: None, parked: None }];
        for _ in 0..times {
            let worker = elsewhere();
            let id = worker.id;
            self.store.inner.register(&worker, NEVER).await.unwrap();
            let claimed = self.store.inner.claim(id, &served, jobs).await.unwrap();
            assert!(claimed.iter().all(|answer| matches!(answer, Claimed::Granted(_))), "{claimed:?}");
            self.store.inner.deregister(id).await.unwrap();
        }
    }

    /// A worker submits it and dies.
    async fn submit_elsewhere(&self, job: JobId) {
        let served = [WorkerCluster { name: cluster(), reach: None, parked: None }];
        let worker = elsewhere();
        self.store.inner.register(&worker, NEVER).await.unwrap();
        self.store.inner.claim(worker.id, &served, &[job]).await.unwrap();
        let submission = Submission { id: "s".into(), detail: serde_json::Value::Null, reach: None };
        let recorded = self.store.inner.record(&[ToRecord { job, attempt: 1, epoch: 1, submission }]).await;
        assert_eq!(recorded.unwrap(), [Recorded::Won]);
        self.store.inner.deregister(worker.id).await.unwrap();
    }

    async fn in_state(&self, jobs: &[JobId], state: JobState) -> usize {
        let mut count = 0;
        for job in jobs {
            let row = self.store.inner.get(&Scope::All, *job).await.unwrap().unwrap();
            count += usize::from(row.life.state == state);
        }
        count
    }

    /// Rings until every one of so many jobs is looked at.
    async fn until_watched(&self, jobs: usize) {
        let mut polls = self.engine.polls.subscribe();
        loop {
            self.engine.bell.notify_one();
            let seen = polls.wait_for(|polls| polls.last().is_some_and(|(_, looked)| *looked == jobs));
            if tokio::time::timeout(Duration::from_millis(50), seen).await.is_ok() {
                return;
            }
        }
    }

    /// The next end that is told for the first time.
    async fn next_end(&mut self) -> JobId {
        loop {
            while let Some(event) = self.heard.pop_front() {
                if matches!(event.observation, Observation::Ended { .. }) && self.told.insert(event.job) {
                    return event.job;
                }
            }
            let delivery = self.events.next().await.expect("the broker is open");
            let (events, settle) = delivery.split();
            self.heard.extend(events);
            settle.ack().await;
        }
    }

    async fn stop(self) {
        self.tasks.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_is_told_when_the_engine_stirs_and_not_when_its_interval_is_over() {
    let mut house = House::start(Belled::default());
    let tags = house.post(2).await;
    house.until_watched(2).await;
    for tag in tags {
        tokio::time::sleep(Duration::from_secs(20)).await;
        let ended = Instant::now();
        house.engine.end(tag);
        assert_eq!(house.next_end().await, tag.job);
        assert!(ended.elapsed() < Duration::from_millis(20), "told after {:?}", ended.elapsed());
    }
    house.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_adopted_is_looked_at_at_once() {
    let house = House::start(Belled::default());
    house.post(1).await;
    house.until_watched(1).await;
    let jobs = house.accept(&[plain()]).await;
    house.submit_elsewhere(jobs[0]).await;
    let (mut polls, hinted) = (house.engine.polls.subscribe(), Instant::now());
    house.hint(jobs).await;
    polls.wait_for(|polls| polls.last().is_some_and(|(_, looked)| *looked == 2)).await.unwrap();
    assert!(hinted.elapsed() < Duration::from_millis(20), "looked at after {:?}", hinted.elapsed());
    house.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_end_before_its_start_is_answered_is_told_as_soon_as_the_answer_is_in() {
    let answer = Duration::from_millis(300);
    let mut house = House::start(Belled { ends_at_start: Some(answer), ..Belled::default() });
    let began = Instant::now();
    let tags = house.post(1).await;
    assert_eq!(house.next_end().await, tags[0].job);
    assert!(began.elapsed() < answer + Duration::from_millis(20), "told after {:?}", began.elapsed());
    house.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_rings_is_a_few_polls_of_everything_one_after_the_other() {
    let poll_takes = Duration::from_millis(1);
    let house = House::start(Belled { poll_takes, ..Belled::default() });
    house.post(300).await;
    house.until_watched(300).await;
    let (before, began) = (house.engine.polls().len(), Instant::now());
    for _ in 0..10_000 {
        house.engine.bell.notify_one();
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    let polls = house.engine.polls().split_off(before);
    let most = began.elapsed().as_millis() / 5 + 1;
    assert!((20..=most).contains(&(polls.len() as u128)), "{} polls in {:?}", polls.len(), began.elapsed());
    assert!(polls.iter().all(|(_, looked)| *looked == 300), "each looks at everything");
    let spaced = polls.windows(2).all(|pair| pair[1].0 - pair[0].0 >= Duration::from_millis(5));
    assert!(spaced, "two within 5 ms");
    house.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_polls_nothing_and_asks_the_store_less_than_once_a_second_however_it_rings() {
    let house = House::start(Belled::default());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = house.store.calls.load(Ordering::SeqCst);
    for _ in 0..600 {
        house.engine.bell.notify_one();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let calls = house.store.calls.load(Ordering::SeqCst) - before;
    assert!(calls < 60, "{calls} calls in a minute");
    assert_eq!(house.engine.polls(), []);
    house.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_call_ends_the_identity_and_the_next_one_takes_what_is_hinted_again() {
    let house = House::start(Belled { panics: AtomicBool::new(true), ..Belled::default() });
    let tags = house.post(1).await;
    let identities = async || house.store.inner.workers().await.unwrap();
    let second = async {
        while identities().await.len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Timing::default().heartbeat, second).await.expect("at once, not when a lease ends");
    assert_eq!(house.in_state(&[tags[0].job], JobState::Claimed).await, 1);
    house.store.inner.deregister(identities().await[0].id).await.unwrap();
    house.hint(vec![tags[0].job]).await;
    house.until_watched(1).await;
    house.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_look_is_an_answer_that_did_not_come() {
    let mut house = House::start(Belled::default());
    let tags = house.post(1).await;
    house.until_watched(1).await;
    house.engine.panics.store(true, Ordering::SeqCst);
    house.engine.end(tags[0]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!house.engine.panics.load(Ordering::SeqCst), "it was looked at");
    house.engine.bell.notify_one();
    assert_eq!(house.next_end().await, tags[0].job);
    assert_eq!(house.store.inner.workers().await.unwrap().len(), 1, "no other identity began");
    house.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hint_whose_claim_never_committed_is_somebody_elses_once_the_lease_is_over() {
    let house = House::start(Belled::default());
    tokio::time::sleep(Duration::from_secs(1)).await;
    house.store.away.store(true, Ordering::SeqCst);
    let tags = house.post(1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut others = house.broker.hints(&[Route::Cluster(cluster())], 1);
    let soon = tokio::time::timeout(Duration::from_secs(5), others.next()).await;
    assert!(soon.is_err(), "the worker has it in hand: {soon:?}");
    let later = tokio::time::timeout(Duration::from_mins(10), others.next()).await;
    let hinted = later.expect("it comes back").expect("the broker is open").body.jobs.clone();
    assert_eq!(hinted, [tags[0].job]);
}

#[tokio::test(start_paused = true)]
async fn a_job_gets_its_address_and_token_on_the_way_to_the_engine_and_its_row_does_not() {
    let house = House::start(Belled::default());
    let own = [(TOKEN_VARIABLE.to_owned(), "jgt_its_own".to_owned()), ("A".to_owned(), "1".to_owned())];
    let tags = house.post_all(&[plain(), JobSpec { env: own.into(), ..plain() }]).await;
    house.until_watched(2).await;
    let created = house.engine.created.lock().unwrap().clone();
    let env_of = |tag: &SubmissionTag| {
        let job = created.iter().find(|job| job.tag == *tag).expect("it was created");
        job.spec.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect::<Vec<_>>()
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let url = pair(URL_VARIABLE, "http://gate.example");
    let token = reporting().key.token(tags[0]);
    assert_eq!(env_of(&tags[0]), [pair(TOKEN_VARIABLE, &token), url.clone()]);
    let kept = [pair("A", "1"), pair(TOKEN_VARIABLE, "jgt_its_own"), url];
    assert_eq!(env_of(&tags[1]), kept, "what the spec itself sets stays");
    let row = house.store.inner.get(&Scope::All, tags[0].job).await.unwrap().expect("a row");
    assert!(row.spec.env.is_empty(), "{:?}", row.spec.env);
    house.stop().await;
}

#[tokio::test(start_paused = true)]
async fn of_what_may_kill_workers_a_worker_holds_one_at_a_time_and_comes_to_all_of_them() {
    let create_takes = Duration::from_millis(100);
    let house = House::start(Belled { create_takes, ..Belled::default() });
    let (suspects, healthy) = (house.accept(&vec![plain(); 10]).await, house.accept(&vec![plain(); 5]).await);
    house.kill_claimers(&suspects, SUSPECT_AFTER).await;
    let all: Vec<JobId> = suspects.iter().chain(&healthy).copied().collect();
    house.hint(all.clone()).await;
    // Doubled, and as the only one of its message.
    house.hint(vec![suspects[3]]).await;
    let fresh = SUSPECT_AFTER + 1;
    while house.in_state(&all, JobState::Pending).await < all.len() {
        let mut in_hand = 0;
        for suspect in &suspects {
            let life = house.store.inner.get(&Scope::All, *suspect).await.unwrap().unwrap().life;
            in_hand += usize::from(life.fruitless_claims == fresh);
        }
        assert!(in_hand <= 1, "{in_hand} suspects in one worker's hands");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    house.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_takes_its_part_of_a_shared_limit_once_the_others_have_heard_of_it() {
    // Create, start and first look of one job are three calls.
    for (others, first_call, apart) in [(0, 0, 100), (1, 4500, 200), (3, 4500, 400)] {
        let (began, pace) = (Instant::now(), Pace::per_second(NonZeroU32::new(10).unwrap()));
        let house = House::start_among(others, Belled::default(), pace);
        house.post(1).await;
        house.until_watched(1).await;
        let looked = house.engine.polls.borrow()[0].0 - began;
        let least = Duration::from_millis(first_call + 2 * apart);
        assert!((least..least + Duration::from_secs(1)).contains(&looked), "{others} others: {looked:?}");
        house.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_prints_faster_than_it_is_shipped_keeps_no_other_from_being_forgotten() {
    let mut house = House::start(Belled { prints: true, ..Belled::default() });
    let tags = house.post(2).await;
    house.until_watched(2).await;
    tokio::time::sleep(Timing::default().ship * 2).await;
    house.engine.end(tags[0]);
    let mut forgotten = house.engine.forgotten.subscribe();
    let record = async {
        while let Some(delivery) = house.events.next().await {
            let (events, settle) = delivery.split();
            house.store.inner.apply(&events).await.unwrap();
            settle.ack().await;
        }
    };
    tokio::select! {
        () = record => panic!("the broker is open"),
        one = forgotten.wait_for(|tags| !tags.is_empty()) => assert_eq!(*one.unwrap(), [tags[0]].into()),
        () = tokio::time::sleep(Duration::from_mins(1)) => panic!("its logs wait for those of the other"),
    }
    house.stop().await;
}
