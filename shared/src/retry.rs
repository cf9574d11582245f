//! Delays between tries. The only file that knows the `backoff` crate, which is unmaintained: it serves as a pure source
//! of delays, nothing sleeps or reads a clock in it, and the jitter is ours, so that a simulation can seed it.

use crate::random;
use backoff::{ExponentialBackoff, backoff::Backoff as _};
use std::time::Duration;

/// How far a delay is made shorter or longer, as a share of it.
const JITTER: f64 = 0.5;

/// Delays that grow from a first to a longest one, with jitter, and never end.
#[derive(Debug)]
pub struct Delays(ExponentialBackoff);

impl Delays {
    /// From `first` (before jitter) doubling up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let mut source = ExponentialBackoff {
            initial_interval: first,
            current_interval: first,
            max_interval: longest,
            multiplier: 2.0,
            randomization_factor: 0.0,
            // The crate's default ends a "for ever" after 15 minutes: the very outage that matters.
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        source.reset();
        Self(source)
    }

    /// For anything that lives across the network: 100 ms to 10 s.
    pub fn network() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(10))
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        // `None` only once `max_elapsed_time` has passed, and there is none.
        let delay = self.0.next_backoff().unwrap_or(self.0.max_interval);
        delay.mul_f64(2.0f64.mul_add(JITTER * random::share(), 1.0 - JITTER))
    }

    /// Begins again at the first delay, after a success.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_longest_and_begin_again_after_a_reset() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut delays = Delays::new(first, longest);
        let seen: Vec<_> = (0..50).map(|_| delays.next_delay()).collect();
        assert!(seen[0] >= first / 2 && seen[0] <= first * 2, "{seen:?}");
        assert!(seen[10..].iter().all(|d| *d >= longest / 2 && *d <= longest * 2), "{seen:?}");
        delays.reset();
        assert!(delays.next_delay() <= first * 2);
    }
}
