//! A cap that follows the resource manager: halved when it errs or slows, raised one by one while it answers well.

use super::{Answer, Load, Regulator};
use std::time::Duration;

/// The cap is halved at most this often: one bad moment answers many calls at once.
const HALVE_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Adaptive {
    min: u32,
    max: u32,
    slow_after: Duration,
    cap: f64,
    halved_at: Option<Duration>,
}

impl Adaptive {
    pub(super) fn new(min: u32, max: u32, slow_after: Duration) -> Self {
        let min = min.min(max);
        Self { min, max, slow_after, cap: min.into(), halved_at: None }
    }
}

impl Regulator for Adaptive {
    fn allowed(&mut self, _now: Duration, _held: u32, _load: Load) -> u32 {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "kept between min and max"
        )]
        let cap = self.cap as u32;
        cap.clamp(self.min, self.max)
    }

    fn answered(&mut self, now: Duration, answer: Answer) {
        if answer.answered && answer.took <= self.slow_after {
            // One more for every full cap of good answers: steady, whatever the cap is.
            self.cap = (self.cap + 1.0 / self.cap.max(1.0)).min(self.max.into());
        } else if self.halved_at.is_none_or(|at| now >= at + HALVE_EVERY) {
            self.cap = (self.cap / 2.0).max(self.min.into());
            self.halved_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_while_answers_are_good_and_halves_when_they_are_not() {
        let mut regulator = Adaptive::new(2, 64, Duration::from_millis(100));
        let good = Answer { took: Duration::from_millis(10), answered: true };
        for _ in 0..10_000 {
            regulator.answered(Duration::ZERO, good);
        }
        assert_eq!(regulator.allowed(Duration::ZERO, 0, Load::default()), 64);
        let slow = Answer { took: Duration::from_secs(1), answered: true };
        for second in 1..20 {
            regulator.answered(Duration::from_secs(second), slow);
            regulator.answered(Duration::from_secs(second), slow);
        }
        assert_eq!(regulator.allowed(Duration::from_secs(30), 0, Load::default()), 2);
    }
}
