//! What this process knows of its own lease: until when it may still begin side effects.
//!
//! Counted on the monotonic clock from *before* the heartbeat was sent, less a margin, so it always ends here before it
//! ends in the store.

use std::{sync::Mutex, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The part of a lease that is not used: clocks drift, and an effect begun takes a moment to leave this machine.
const MARGIN: u32 = 5;

/// The lease of one identity.
#[derive(Debug)]
pub(super) struct Lease {
    until: Mutex<Instant>,
    ttl: Duration,
    over: CancellationToken,
}

impl Lease {
    pub(super) fn new(sent: Instant, ttl: Duration) -> Self {
        Self { until: Mutex::new(sent + usable(ttl)), ttl, over: CancellationToken::new() }
    }

    /// A heartbeat sent at `sent` was answered well.
    pub(super) fn renewed(&self, sent: Instant) {
        let mut until = self.until.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *until = (*until).max(sent + usable(self.ttl));
    }

    /// A side effect may be begun now.
    pub(super) fn holds(&self) -> bool {
        !self.over.is_cancelled() && Instant::now() < self.until()
    }

    /// When it ends unless renewed.
    pub(super) fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The identity is over, whatever the clock says.
    pub(super) fn end(&self) {
        self.over.cancel();
    }

    /// Cancelled when the identity is over.
    pub(super) fn over(&self) -> &CancellationToken {
        &self.over
    }
}

fn usable(ttl: Duration) -> Duration {
    ttl.saturating_sub(ttl / MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_a_margin_before_the_store_can_end_it_and_never_runs_backwards() {
        let ttl = Duration::from_secs(10);
        let lease = Lease::new(Instant::now(), ttl);
        tokio::time::advance(Duration::from_secs(7)).await;
        assert!(lease.holds());
        let sent = Instant::now();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!lease.holds());
        lease.renewed(sent);
        assert!(lease.holds());
        lease.renewed(sent.checked_sub(Duration::from_secs(3)).unwrap());
        assert_eq!(lease.until(), sent + Duration::from_secs(8));
        lease.end();
        assert!(!lease.holds());
    }
}
