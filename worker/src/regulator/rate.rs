//! So many claims per second: a bucket that fills steadily and holds one second's worth.

use super::{Answer, Load, Regulator};
use std::{num::NonZeroU32, time::Duration};

#[derive(Debug)]
struct Bucket {
    per_second: f64,
    /// Claims that may be made at `at`.
    tokens: f64,
    at: Duration,
}

impl Bucket {
    /// Empty at first: a worker that restarts in a circle must not get a full bucket each time.
    fn new(per_second: f64) -> Self {
        Self { per_second, tokens: 0.0, at: Duration::ZERO }
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = passed.mul_add(self.per_second, self.tokens).min(self.per_second.max(1.0));
        self.at = now;
    }

    /// How many may be held when `held` are.
    fn allowed(&mut self, now: Duration, held: u32) -> u32 {
        self.fill(now);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to a u32's worth")]
        let tokens = self.tokens as u32;
        held.saturating_add(tokens)
    }

    fn claimed(&mut self, now: Duration, jobs: u32) {
        self.fill(now);
        self.tokens -= f64::from(jobs);
    }
}

/// A cap, and a rate of this worker's own.
#[derive(Debug)]
pub(super) struct Rate {
    max: u32,
    bucket: Bucket,
}

impl Rate {
    pub(super) fn new(max: u32, per_second: u32) -> Self {
        Self { max, bucket: Bucket::new(per_second.into()) }
    }
}

impl Regulator for Rate {
    fn allowed(&mut self, now: Duration, held: u32, _load: Load) -> u32 {
        self.bucket.allowed(now, held).min(self.max)
    }

    fn claimed(&mut self, now: Duration, jobs: u32) {
        self.bucket.claimed(now, jobs);
    }
}

/// What `own` allows, and no more claims per second than this worker's part of a rate of all workers.
#[derive(Debug)]
struct SharedRate {
    own: Box<dyn Regulator>,
    /// Of all workers together.
    per_second: f64,
    bucket: Bucket,
}

/// `own`, and at most `per_second` claims of all workers together; none before this worker's part is known.
pub(crate) fn shared_rate(own: Box<dyn Regulator>, per_second: NonZeroU32) -> Box<dyn Regulator> {
    Box::new(SharedRate { own, per_second: per_second.get().into(), bucket: Bucket::new(0.0) })
}

impl Regulator for SharedRate {
    fn allowed(&mut self, now: Duration, held: u32, load: Load) -> u32 {
        self.bucket.allowed(now, held).min(self.own.allowed(now, held, load))
    }

    fn claimed(&mut self, now: Duration, jobs: u32) {
        self.bucket.claimed(now, jobs);
        self.own.claimed(now, jobs);
    }

    fn shared(&mut self, now: Duration, workers: u32) {
        self.bucket.fill(now);
        self.bucket.per_second = self.per_second / f64::from(workers.max(1));
    }

    fn answered(&mut self, now: Duration, answer: Answer) {
        self.own.answered(now, answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_any_stretch_no_more_is_claimed_than_the_rate_allows() {
        let (mut rate, mut claimed) = (Rate::new(10_000, 100), 0);
        for ms in (0..10_000).step_by(7) {
            let now = Duration::from_millis(ms);
            let room = rate.allowed(now, 0, Load::default());
            rate.claimed(now, room);
            claimed += room;
            assert!(f64::from(claimed) <= 100.0 * now.as_secs_f64() + 1.0, "{claimed} after {now:?}");
        }
        assert!(claimed >= 990, "{claimed}");
    }

    #[test]
    fn workers_that_share_a_rate_claim_no_more_together_than_it_allows() {
        let fixed = || crate::regulator::Fixed(10_000);
        let ten = NonZeroU32::new(10).unwrap();
        let mut workers: Vec<_> = (0..3).map(|_| shared_rate(Box::new(fixed()), ten)).collect();
        let mut claimed = 0;
        for ms in (0..60_000).step_by(50) {
            let now = Duration::from_millis(ms);
            for worker in &mut workers {
                if ms == 0 {
                    assert_eq!(worker.allowed(now, 0, Load::default()), 0, "its part is not known");
                    worker.shared(now, 3);
                }
                let room = worker.allowed(now, 0, Load::default());
                worker.claimed(now, room);
                claimed += room;
            }
            assert!(f64::from(claimed) <= 10.0 * now.as_secs_f64() + 3.0, "{claimed} after {now:?}");
        }
        assert!(claimed >= 590, "{claimed}");
        // What each may hold at once is its own affair.
        let mut one = shared_rate(Box::new(crate::regulator::Fixed(2)), ten);
        one.shared(Duration::ZERO, 1);
        assert_eq!(one.allowed(Duration::from_mins(1), 1, Load::default()), 2);
    }
}
