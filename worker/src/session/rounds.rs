//! When a cluster is polled: at its interval, sooner when its engine stirs or something was adopted, never twice at once.
//!
//! A ring is only a hint. It is heard late while another is acted upon, rings in between become one, and what is never
//! rung for is seen at the interval.

use super::{Worker, drive::Message, lease::Lease};
use jobgate_shared::supervise::Tasks;
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};

/// Between the beginnings of two polls at least, however often the engine stirs.
const SPACING: Duration = Duration::from_millis(5);
/// A poll for a ring waits so many times as long as the one before took, so that looking stays the smaller part of the
/// work however much there is to look at.
const REST: u32 = 4;

/// Tells the loop whenever an engine stirs, while the lease holds.
pub(super) fn listen(tasks: &Tasks, worker: &Worker, inbox: &mpsc::Sender<Message>, lease: &Arc<Lease>) {
    for (place, served) in worker.clusters.iter().enumerate() {
        let Ok(cluster) = u16::try_from(place) else { return };
        let (engine, inbox, lease) = (served.engine.clone(), inbox.clone(), lease.clone());
        tasks.spawn("stirred", async move {
            let mut pause = Duration::ZERO;
            let heard = async {
                loop {
                    // It listens during the pause, too: a ring that falls into it is told at its end.
                    tokio::join!(engine.stirred(), tokio::time::sleep(pause));
                    if inbox.send(Message::Stirred { cluster }).await.is_err() {
                        return;
                    }
                    pause = SPACING;
                }
            };
            lease.over().run_until_cancelled(heard).await;
        });
    }
}

/// The polls of one cluster.
#[derive(Debug, Clone)]
pub(super) struct Rounds {
    next: Instant,
    /// When the poll that is out began.
    out: Option<Instant>,
    /// No ring brings a poll before this.
    rested: Instant,
    /// It rang while a poll was out, which may have looked before.
    rang: bool,
    /// It rang while submissions were not watched yet: it may have meant one of them.
    unseen: bool,
}

impl Rounds {
    /// The first poll is due `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, out: None, rested: now, rang: false, unseen: false }
    }

    /// When the next poll is due; `None` while one is out.
    pub(super) fn due(&self) -> Option<Instant> {
        self.out.is_none().then_some(self.next)
    }

    /// A poll goes out.
    pub(super) fn begin(&mut self, now: Instant) {
        self.out = Some(now);
        self.rang = false;
    }

    /// There is nothing to look at.
    pub(super) fn skip(&mut self, now: Instant, interval: Duration) {
        self.next = now + interval;
        self.rested = now + SPACING;
    }

    /// The poll that was out is answered.
    pub(super) fn answered(&mut self, now: Instant, interval: Duration) {
        let began = self.out.take().unwrap_or(now);
        self.next = now + interval;
        self.rested = (began + SPACING).max(now + now.saturating_duration_since(began) * REST);
        if std::mem::take(&mut self.rang) {
            self.hurry(now);
        }
    }

    /// The engine stirred, or there is more to look at; `submitting` tells that answers of submissions are still out.
    pub(super) fn stirred(&mut self, now: Instant, submitting: bool) {
        self.unseen |= submitting;
        self.hurry(now);
    }

    /// A start was answered: what rang before may be seen now.
    pub(super) fn started(&mut self, now: Instant, submitting: impl FnOnce() -> bool) {
        if self.unseen {
            self.unseen = submitting();
            self.hurry(now);
        }
    }

    fn hurry(&mut self, now: Instant) {
        if self.out.is_some() {
            self.rang = true;
        } else {
            self.next = self.next.min(self.rested.max(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn a_ring_brings_the_next_poll_forward_but_not_into_the_rest_after_the_last() {
        let start = Instant::now();
        let mut rounds = Rounds::new(start);
        rounds.begin(start);
        assert_eq!(rounds.due(), None, "never two at once");
        rounds.answered(start + ms(10), INTERVAL);
        assert_eq!(rounds.due(), Some(start + ms(1010)));
        rounds.stirred(start + ms(20), false);
        assert_eq!(rounds.due(), Some(start + ms(50)), "a poll of 10 ms is followed by 40 ms of rest");
        rounds.begin(start + ms(50));
        rounds.answered(start + ms(50), INTERVAL);
        rounds.stirred(start + ms(51), false);
        assert_eq!(rounds.due(), Some(start + ms(55)), "however quick a poll is");
        rounds.stirred(start + ms(500), false);
        assert_eq!(rounds.due(), Some(start + ms(55)), "a second ring delays nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_ring_during_a_poll_is_followed_by_another_poll() {
        let start = Instant::now();
        let mut rounds = Rounds::new(start);
        rounds.begin(start);
        rounds.stirred(start + ms(1), false);
        rounds.answered(start + ms(2), INTERVAL);
        assert_eq!(rounds.due(), Some(start + ms(10)));
        rounds.begin(start + ms(10));
        rounds.answered(start + ms(10), INTERVAL);
        assert_eq!(rounds.due(), Some(start + ms(1010)), "by one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_ring_before_a_start_was_answered_is_acted_upon_once_it_is() {
        let start = Instant::now();
        let mut rounds = Rounds::new(start);
        rounds.skip(start, INTERVAL);
        rounds.started(start + ms(20), || true);
        assert_eq!(rounds.due(), Some(start + INTERVAL), "nothing rang");
        rounds.stirred(start + ms(30), true);
        rounds.skip(start + ms(30), INTERVAL);
        rounds.started(start + ms(60), || true);
        assert_eq!(rounds.due(), Some(start + ms(60)));
        rounds.skip(start + ms(60), INTERVAL);
        rounds.started(start + ms(90), || false);
        assert_eq!(rounds.due(), Some(start + ms(90)), "it may have been the other one");
        rounds.skip(start + ms(90), INTERVAL);
        rounds.started(start + ms(120), || false);
        assert_eq!(rounds.due(), Some(start + ms(1090)));
    }
}
