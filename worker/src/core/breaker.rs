//! When a resource manager errs or is slow again and again its cluster is *parked*: nothing fresh is claimed for it, its jobs wait
//! with that reason and burn no attempt, and one job at a time finds out whether it is back. A manager that answers, and does not
//! take a job at present, parks nothing: the limit may be one account's or that job's alone.

use std::time::Duration;

/// Answers in a row, missing or slow, that park a cluster.
const TRIPS_AT: u32 = 3;
/// The first and the longest wait before a probe.
const PROBE_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The breaker of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Breaker {
    failures: u32,
    parked: Option<Parked>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Parked {
    why: String,
    probe_at: Duration,
}

impl Breaker {
    /// A call was answered in time (`None`), or something was wrong.
    pub(super) fn told(&mut self, now: Duration, trouble: Option<String>) {
        let Some(why) = trouble else {
            *self = Self::default();
            return;
        };
        self.failures = self.failures.saturating_add(1);
        if self.failures >= TRIPS_AT {
            let doublings = (self.failures - TRIPS_AT).min(8);
            let wait = (PROBE_AFTER.0 * 2u32.pow(doublings)).min(PROBE_AFTER.1);
            self.parked = Some(Parked { why, probe_at: now + wait });
        }
    }

    /// How much of `room` may be used now; `probing` tells whether a job is on its way to find out.
    pub(super) fn admits(&self, now: Duration, room: u32, probing: impl FnOnce() -> bool) -> u32 {
        match &self.parked {
            None => room,
            Some(parked) if now >= parked.probe_at && !probing() => room.min(1),
            Some(_) => 0,
        }
    }

    /// Why nothing fresh is claimed.
    pub(super) fn parked(&self) -> Option<&str> {
        self.parked.as_ref().map(|p| p.why.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_parks_after_errors_in_a_row_probes_one_at_a_time_and_opens_on_an_answer() {
        let (mut breaker, second) = (Breaker::default(), Duration::from_secs(1));
        for _ in 0..2 {
            breaker.told(Duration::ZERO, Some("away".into()));
        }
        assert_eq!(breaker.admits(Duration::ZERO, 9, || false), 9);
        breaker.told(Duration::ZERO, Some("away".into()));
        assert_eq!(breaker.parked(), Some("away"));
        assert_eq!(breaker.admits(Duration::ZERO, 9, || false), 0);
        assert_eq!(breaker.admits(second, 9, || false), 1);
        assert_eq!(breaker.admits(second, 9, || true), 0);
        breaker.told(second, None);
        assert_eq!(breaker.admits(second, 9, || false), 9);
    }

    #[test]
    fn probes_grow_rarer_up_to_half_a_minute() {
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            breaker.told(Duration::ZERO, Some("away".into()));
        }
        assert_eq!(breaker.admits(Duration::from_secs(29), 1, || false), 0);
        assert_eq!(breaker.admits(Duration::from_secs(30), 1, || false), 1);
    }
}
