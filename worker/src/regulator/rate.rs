//! So many claims per second: a bucket that fills steadily and holds one second's worth.

use super::{Load, Regulator};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Rate {
    max: u32,
    per_second: f64,
    /// Claims that may be made at `at`.
    tokens: f64,
    at: Duration,
}

impl Rate {
    pub(super) fn new(max: u32, per_second: u32) -> Self {
        // Empty at first: a worker that restarts in a circle must not get a full bucket each time.
        Self { max, per_second: per_second.into(), tokens: 0.0, at: Duration::ZERO }
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = passed.mul_add(self.per_second, self.tokens).min(self.per_second.max(1.0));
        self.at = now;
    }
}

impl Regulator for Rate {
    fn allowed(&mut self, now: Duration, held: u32, _load: Load) -> u32 {
        self.fill(now);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to a u32's worth")]
        let tokens = self.tokens as u32;
        held.saturating_add(tokens).min(self.max)
    }

    fn claimed(&mut self, now: Duration, jobs: u32) {
        self.fill(now);
        self.tokens -= f64::from(jobs);
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
}
