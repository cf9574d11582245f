//! The only source of time in code that decides.
//!
//! Wall time is data (it is stored, shown, compared with stored times); monotonic time bounds what this process may
//! still do. Anything two processes must agree on takes the store's clock instead.

use chrono::{DateTime, SubsecRound as _, Utc};
use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Wall and monotonic time.
pub trait Clock: Send + Sync + Debug {
    /// Wall time, in whole microseconds: what every store can hold exactly.
    fn now(&self) -> DateTime<Utc>;

    /// Monotonic time of this process; follows tokio's paused time in tests.
    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the clock the rule points to")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now().trunc_subsecs(6)
    }
}

/// The machine's clock behind the port.
pub fn system() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// A clock that stands still until it is told to move. For tests.
#[derive(Debug)]
pub struct ManualClock(Mutex<DateTime<Utc>>);

impl ManualClock {
    /// Stands at `now`.
    pub fn at(now: DateTime<Utc>) -> Self {
        Self(Mutex::new(now))
    }

    /// Moves it forward.
    pub fn advance(&self, by: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
