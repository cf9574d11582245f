//! Spaces out what workers ask of a resource manager, so that all of them together never ask more often than an operator
//! allows: each takes an equal share.

use jobgate_shared::domain::ClusterName;
use std::{
    cell::Cell,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep_until},
};

tokio::task_local! {
    /// Requests the call under way has made.
    static MADE: Cell<u32>;
}

/// An engine asks its manager something, within whatever call it is part of.
pub(crate) fn request(cluster: &ClusterName) {
    metrics::counter!("jobgate_rm_requests_total", "cluster" => cluster.to_string()).increment(1);
    // What is no call of a worker's loops, such as a look at logs, pays for nothing.
    MADE.try_with(|made| made.set(made.get() + 1)).unwrap_or_default();
}

/// A call, and how many requests it came to.
pub(crate) async fn counted<T>(call: impl Future<Output = T>) -> (T, u32) {
    let with_count = async {
        let answer = call.await;
        (answer, MADE.with(Cell::get))
    };
    MADE.scope(Cell::new(0), with_count).await
}

/// This worker's turns to call one manager, evenly spaced in the order they were asked for; or no limit.
#[derive(Debug, Clone, Default)]
pub struct Pace(Option<Arc<Turns>>);

#[derive(Debug)]
struct Turns {
    /// Between two turns of all workers.
    apart: Duration,
    /// How many share the turns; 0: that is not known yet.
    workers: watch::Sender<u32>,
    /// When the next turn is, at the earliest. Held by whoever waits for it.
    next: Mutex<Option<Instant>>,
    /// Turns that were taken and not waited for: a call that came to several requests is paid for by those that follow.
    owed: AtomicU32,
}

impl Pace {
    /// At most so many calls of all workers in any second; none of this one before it has its [`Pace::share`].
    pub fn per_second(calls: NonZeroU32) -> Self {
        let apart = Duration::from_secs(1) / calls.get();
        let (workers, next, owed) = (watch::Sender::new(0), Mutex::default(), AtomicU32::new(0));
        Self(Some(Arc::new(Turns { apart, workers, next, owed })))
    }

    /// There is a limit.
    pub fn is_limited(&self) -> bool {
        self.0.is_some()
    }

    /// So many workers share the turns, this one included; 0 when that is not known (any more).
    pub fn share(&self, workers: u32) {
        if let Some(turns) = &self.0 {
            turns.workers.send_replace(workers);
        }
    }

    /// Waits for a turn.
    pub async fn turn(&self) {
        let Some(turns) = &self.0 else { return };
        let mut next = turns.next.lock().await;
        let mut told = turns.workers.subscribe();
        if told.wait_for(|workers| *workers > 0).await.is_err() {
            unreachable!("the sender lives as long as the turns");
        }
        let now = Instant::now();
        let mut at = next.map_or(now, |next| next.max(now));
        loop {
            sleep_until(at).await;
            let workers = (*told.borrow()).max(1);
            match turns.owed.swap(0, Ordering::Relaxed) {
                0 => {
                    *next = Some(at + turns.apart * workers);
                    return;
                }
                owed => {
                    at += turns.apart * workers * owed;
                    // Should this be given up, it is waited for all the same.
                    *next = Some(at);
                }
            }
        }
    }

    /// Makes a call that has had its turn; what it asks the manager beyond one request takes a turn each.
    pub async fn pays<T>(&self, call: impl Future<Output = T>) -> T {
        let (answer, made) = counted(call).await;
        if let Some(turns) = &self.0 {
            turns.owed.fetch_add(made.saturating_sub(1), Ordering::Relaxed);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt as _, future::join_all};

    fn ten_a_second(workers: u32) -> Pace {
        let pace = Pace::per_second(NonZeroU32::new(10).unwrap());
        pace.share(workers);
        pace
    }

    #[tokio::test(start_paused = true)]
    async fn turns_come_in_order_and_never_more_of_them_in_a_second_than_allowed() {
        let pace = ten_a_second(1);
        let began = Instant::now();
        let turn = async |n: usize| {
            pace.turn().await;
            (n, began.elapsed())
        };
        let taken = join_all((0..100).map(turn)).await;
        assert!(
            taken.windows(2).all(|pair| pair[0].1 + Duration::from_millis(100) <= pair[1].1),
            "{taken:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        // What was not used is not saved up.
        tokio::time::sleep(Duration::from_mins(1)).await;
        let began = Instant::now();
        join_all((0..3).map(|_| pace.turn())).await;
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn workers_that_share_make_no_more_calls_than_one_alone() {
        let paces = [ten_a_second(4), ten_a_second(4), ten_a_second(4), ten_a_second(4)];
        let began = Instant::now();
        join_all(paces.iter().map(|pace| join_all((0..26).map(|_| pace.turn())))).await;
        // The first of each comes at once.
        assert_eq!(began.elapsed(), Duration::from_secs(10));
        // A smaller share counts from the next turn on, for those too who wait already.
        let [pace, ..] = paces;
        let began = Instant::now();
        let mut waiting = Box::pin(join_all((0..3).map(|_| pace.turn())));
        assert!(waiting.as_mut().now_or_never().is_none());
        pace.share(1);
        waiting.await;
        assert_eq!(began.elapsed(), Duration::from_millis(600));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_calls_before_the_share_is_known() {
        let pace = ten_a_second(0);
        let turn = tokio::time::timeout(Duration::from_mins(1), pace.turn()).await;
        assert!(turn.is_err());
        pace.share(1);
        pace.turn().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_of_several_requests_takes_as_many_turns() {
        let (pace, cluster) = (ten_a_second(1), "c".parse().unwrap());
        let began = Instant::now();
        for requests in [3, 0, 1, 1] {
            pace.turn().await;
            pace.pays(async { (0..requests).for_each(|_| request(&cluster)) }).await;
        }
        pace.turn().await;
        // The call that asked nothing had its turn all the same.
        assert_eq!(began.elapsed(), Duration::from_millis(300 + 100 + 100 + 100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_given_up_is_the_next_ones() {
        let pace = ten_a_second(1);
        pace.turn().await;
        let began = Instant::now();
        assert!(tokio::time::timeout(Duration::from_millis(50), pace.turn()).await.is_err());
        pace.turn().await;
        assert_eq!(began.elapsed(), Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits() {
        let began = Instant::now();
        join_all((0..1000).map(|_| async { Pace::default().turn().await })).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
