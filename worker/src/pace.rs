//! Spaces out what workers ask of a resource manager, so that all of them together never ask more often than an operator
//! allows: each takes an equal share.

use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep_until},
};

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
}

impl Pace {
    /// At most so many calls of all workers in any second; none of this one before it has its [`Pace::share`].
    pub fn per_second(calls: NonZeroU32) -> Self {
        let apart = Duration::from_secs(1) / calls.get();
        Self(Some(Arc::new(Turns { apart, workers: watch::Sender::new(0), next: Mutex::default() })))
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
        let at = next.map_or(now, |next| next.max(now));
        sleep_until(at).await;
        let workers = (*told.borrow()).max(1);
        *next = Some(at + turns.apart * workers);
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
