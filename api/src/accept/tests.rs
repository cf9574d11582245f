//! Acceptance against a store and a broker that fail when told to.

use super::*;
use crate::testing::{HeardBroker, Mishap, ScriptedStore};
use chrono::TimeDelta;
use jobgate_shared::{
    broker::Route,
    clock::system,
    domain::{Document, IdempotencyKey, JobSpec, Project, RetryPolicy},
    store::{Filter, PageRequest, Scope},
    wire::{Hint, MAX_HINT},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
};

struct Bench {
    store: Arc<ScriptedStore>,
    broker: Arc<HeardBroker>,
    budget: Arc<HintBudget>,
    tasks: Tasks,
    acceptor: Arc<Acceptor>,
}

fn bench(room: usize) -> Bench {
    let (store, broker, tasks) = (ScriptedStore::new(), HeardBroker::new(), Tasks::default());
    let budget = Arc::new(HintBudget::new());
    budget.set(BTreeMap::new(), room);
    let feed = Feed::new(store.clone(), tasks.clone());
    let settings = AcceptSettings { max_waiting_bytes: 1_000, ..AcceptSettings::default() };
    let acceptor =
        Acceptor::new(store.clone(), broker.clone(), budget.clone(), feed, tasks.clone(), settings);
    Bench { store, broker, budget, tasks, acceptor }
}

fn job(name: &str) -> NewJob {
    NewJob {
        id: JobId::generate(),
        project: Project::default_project(),
        name: name.to_owned(),
        cluster: "local".parse().unwrap(),
        spec: JobSpec { command: vec!["true".to_owned()], ..JobSpec::default() },
        labels: Vec::new(),
        priority: 0,
        inputs: Document::new(),
        max_attempts: 1,
        retry: RetryPolicy::default(),
        run_at: None,
        hold: false,
        created_by: "token:test".to_owned(),
        idempotency: None,
    }
}

fn jobs(n: usize) -> Vec<NewJob> {
    (0..n).map(|i| job(&format!("job {i}"))).collect()
}

impl Bench {
    /// Posts each job by itself and together, and waits for all.
    async fn post_each(&self, jobs: Vec<NewJob>) -> Vec<Accepted> {
        let posts = jobs.into_iter().map(|job| self.acceptor.accept(vec![job], 1));
        let answers = futures::future::join_all(posts).await;
        answers.into_iter().flat_map(|answer| answer.unwrap()).collect()
    }

    /// Completes once `n` inserts have been called.
    async fn called(&self, n: usize) {
        while self.store.inserts().len() < n {
            tokio::task::yield_now().await;
        }
    }

    /// Keeps both lanes busy until the store opens again.
    async fn both_lanes_busy(
        &self,
    ) -> [Pin<Box<dyn Future<Output = Result<Vec<Accepted>, Full>> + Send>>; 2] {
        self.store.open.send_replace(false);
        let mut posts = [1, 2].map(|_| {
            let acceptor = self.acceptor.clone();
            let post: Pin<Box<dyn Future<Output = _> + Send>> =
                Box::pin(async move { acceptor.accept(vec![job("busy")], 1).await });
            post
        });
        for (n, post) in posts.iter_mut().enumerate() {
            assert!(futures::poll!(post).is_pending());
            self.called(n + 1).await;
        }
        posts
    }

    async fn stored(&self) -> usize {
        let page = PageRequest { after: None, limit: 10_000 };
        self.store.inner.list(&Scope::All, &Filter::default(), page).await.unwrap().jobs.len()
    }

    async fn hinted(&self, n: usize) -> BTreeSet<JobId> {
        let mut hints = self.broker.hints.subscribe();
        let all = |hints: &Vec<(Route, Hint)>| -> BTreeSet<JobId> {
            hints.iter().flat_map(|(_, hint)| hint.jobs.iter().copied()).collect()
        };
        all(&hints.wait_for(|hints| all(hints).len() >= n).await.unwrap())
    }
}

fn id_of(accepted: &Accepted) -> JobId {
    let Accepted::Created(job) = accepted else { panic!("{accepted:?}") };
    job.id
}

#[tokio::test]
async fn posts_that_arrive_during_a_commit_share_the_next_one_in_the_order_of_their_ids() {
    let bench = bench(1_000);
    let busy = bench.both_lanes_busy().await;
    let mut posted = jobs(100);
    posted.reverse();
    let expected: Vec<JobId> = posted.iter().map(|job| job.id).collect();
    let (answers, ()) = tokio::join!(bench.post_each(posted), async {
        bench.store.open.send_replace(true);
    });
    assert_eq!(answers.iter().map(id_of).collect::<Vec<_>>(), expected, "each caller hears of its own job");
    futures::future::join_all(busy).await;
    let inserts = bench.store.inserts();
    assert_eq!(inserts.iter().map(|call| call.ids.len()).collect::<Vec<_>>(), [1, 1, 100]);
    assert!(inserts[2].ids.is_sorted());
}

#[tokio::test]
async fn a_row_the_store_refuses_fails_alone() {
    let bench = bench(1_000);
    let mut posted = jobs(40);
    posted[17].name = "poison".to_owned();
    let answers = bench.acceptor.accept(posted, 1).await.unwrap();
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(matches!(answer, Accepted::Refused), i == 17, "{i}: {answer:?}");
    }
    assert_eq!(bench.stored().await, 39);
    assert!(bench.store.inserts().len() <= 13, "found by halving");
}

#[tokio::test]
async fn a_store_that_refuses_everything_is_not_asked_for_ever() {
    let bench = bench(1_000);
    let mut posted = jobs(500);
    for job in &mut posted {
        job.name = "poison".to_owned();
    }
    let answers = bench.acceptor.accept(posted, 1).await.unwrap();
    assert!(answers.iter().all(|a| matches!(a, Accepted::Refused | Accepted::Away)));
    assert!(bench.store.inserts().len() <= MAX_HALVINGS);
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_answer_was_lost_is_made_again_with_the_same_ids_and_counts_as_made() {
    let bench = bench(1_000);
    bench.store.mishaps.lock().unwrap().extend([Mishap::AnswerLost, Mishap::Cut]);
    let answers = bench.post_each(jobs(1)).await;
    id_of(&answers[0]);
    let inserts = bench.store.inserts();
    assert_eq!(inserts.len(), 3);
    assert!(inserts.iter().all(|call| call == &inserts[0]));
    assert_eq!(bench.stored().await, 1);
}

#[tokio::test(start_paused = true)]
async fn callers_are_told_to_come_back_after_three_seconds_of_outage_and_at_once_until_it_is_over() {
    let bench = bench(1_000);
    bench.store.away.store(true, Ordering::SeqCst);
    let began = Instant::now();
    assert_eq!(bench.post_each(jobs(1)).await, [Accepted::Away]);
    assert!(began.elapsed() <= REPLAY_FOR, "{:?}", began.elapsed());
    assert!(bench.store.inserts().len() > 3);
    let (asked, again) = (bench.store.inserts().len(), Instant::now());
    assert_eq!(bench.post_each(jobs(1)).await, [Accepted::Away]);
    assert_eq!((again.elapsed(), bench.store.inserts().len()), (Duration::ZERO, asked + 1));
    bench.store.away.store(false, Ordering::SeqCst);
    id_of(&bench.post_each(jobs(1)).await[0]);
    assert_eq!(bench.stored().await, 1, "nothing was kept from the outage");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_is_not_waited_for() {
    let bench = bench(1_000);
    bench.store.open.send_replace(false);
    assert_eq!(bench.post_each(jobs(1)).await, [Accepted::Away]);
}

#[tokio::test]
async fn a_panic_in_one_commit_leaves_the_next_alone() {
    let bench = bench(1_000);
    bench.store.mishaps.lock().unwrap().push_back(Mishap::Panic);
    assert_eq!(bench.post_each(jobs(1)).await, [Accepted::Away]);
    id_of(&bench.post_each(jobs(1)).await[0]);
    assert_eq!(bench.acceptor.queue().lanes, 0);
}

#[tokio::test]
async fn due_jobs_are_hinted_after_their_commit_and_others_are_not() {
    let bench = bench(1_000);
    let mut posted = jobs(MAX_HINT + 50);
    posted[0].hold = true;
    posted[1].run_at = Some(system().now() + TimeDelta::hours(1));
    posted[2].priority = 7;
    let (urgent, due): (_, BTreeSet<JobId>) = (posted[2].id, posted[2..].iter().map(|job| job.id).collect());
    bench.acceptor.accept(posted, 1).await.unwrap();
    assert_eq!(bench.hinted(due.len()).await, due);
    let hints = bench.broker.hints.borrow().clone();
    assert_eq!(hints[0], (Route::Cluster("local".parse().unwrap()), hints[0].1.clone()));
    assert_eq!(hints[0].1.jobs[0], urgent, "the most urgent first");
    assert_eq!(hints.iter().map(|(_, hint)| hint.jobs.len()).collect::<Vec<_>>(), [MAX_HINT, 48]);
    assert_eq!(bench.budget.try_take(&"local".parse().unwrap(), 1_000), 1_000 - due.len());
}

#[tokio::test]
async fn a_cluster_without_room_for_all_is_left_to_the_dispatcher_and_others_are_not() {
    let bench = bench(3);
    let mut posted = jobs(6);
    posted[5].cluster = "other".parse().unwrap();
    let other = posted[5].id;
    bench.acceptor.accept(posted, 1).await.unwrap();
    bench.budget.wanted().await;
    assert_eq!(bench.hinted(1).await, BTreeSet::from([other]));
    let hinted: Vec<(usize, bool)> =
        bench.store.inserts().iter().map(|call| (call.ids.len(), call.hinted)).collect();
    assert_eq!(hinted, [(1, true), (5, false)]);
    assert!(!bench.budget.ran_low().is_empty());
    assert_eq!(bench.budget.try_take(&"local".parse().unwrap(), 3), 3, "its room is given back");
}

#[tokio::test]
async fn a_hint_the_broker_does_not_take_is_the_dispatchers() {
    let bench = bench(10);
    bench.broker.down.store(true, Ordering::SeqCst);
    bench.acceptor.accept(jobs(2), 1).await.unwrap();
    bench.budget.wanted().await;
    bench.tasks.wait().await;
    assert_eq!(bench.budget.try_take(&"local".parse().unwrap(), 10), 10);
    let hour = Duration::from_hours(1);
    let due = bench.store.inner.due(&"local".parse().unwrap(), 10, hour, Duration::ZERO).await.unwrap();
    assert_eq!(due.len(), 2, "no hint stands for them");
}

#[tokio::test]
async fn what_does_not_fit_is_refused_at_once_and_a_part_of_a_batch_waits_for_room() {
    let bench = bench(1_000);
    let busy = bench.both_lanes_busy().await;
    // Nothing waits, so even what is larger than all room is taken. Then there is none left.
    let mut large = Box::pin(bench.acceptor.accept(jobs(1), 2_000));
    assert!(futures::poll!(&mut large).is_pending());
    assert_eq!(bench.acceptor.accept(jobs(1), 1).await, Err(Full));
    let mut part = Box::pin(bench.acceptor.accept_part(jobs(2), 10));
    assert!(futures::poll!(&mut part).is_pending());
    bench.store.open.send_replace(true);
    let (large, part) = tokio::join!(large, part);
    id_of(&large.unwrap()[0]);
    assert_eq!(part.iter().map(id_of).count(), 2);
    futures::future::join_all(busy).await;
    assert_eq!(bench.stored().await, 5);
}

#[tokio::test]
async fn whoever_left_before_the_commit_began_is_not_stored() {
    let bench = bench(1_000);
    let busy = bench.both_lanes_busy().await;
    let mut left = Box::pin(bench.acceptor.accept(jobs(1), 1));
    assert!(futures::poll!(&mut left).is_pending());
    drop(left);
    bench.store.open.send_replace(true);
    futures::future::join_all(busy).await;
    bench.tasks.wait().await;
    assert_eq!(bench.stored().await, 2);
}

#[tokio::test]
async fn twins_in_one_commit_become_one_job() {
    let bench = bench(1_000);
    let mut posted = jobs(3);
    for (job, body) in posted.iter_mut().zip([1, 1, 2]) {
        job.idempotency = Some(IdempotencyKey { key: "mine".to_owned(), body: [body; 32] });
    }
    let mut answers = bench.acceptor.accept(posted.clone(), 1).await.unwrap();
    assert_eq!(answers.pop(), Some(Accepted::KeyReused));
    let Some(Accepted::Existing(twin)) = answers.pop() else { panic!("{answers:?}") };
    assert_eq!(twin.id, id_of(&answers[0]));
    assert_eq!(bench.stored().await, 1);
}
