//! How the broker is, put together from what the two connections see.

use crate::broker::BrokerHealth;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// Which of the two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Carries publishes; an alarm blocks it.
    Publish,
    /// Carries consumers and their acknowledgements; never publishes, so that an alarm cannot block it.
    Consume,
}

impl Role {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Consume => "consume",
        }
    }
}

#[derive(Debug, Default)]
struct Seen {
    publish: BrokerHealth,
    consume: BrokerHealth,
}

/// The health of the broker as this process sees it.
#[derive(Debug)]
pub(super) struct Condition {
    seen: Mutex<Seen>,
    health: watch::Sender<BrokerHealth>,
}

impl Condition {
    pub(super) fn new() -> Self {
        metrics::gauge!("jobgate_broker_up").set(0.0);
        Self { seen: Mutex::default(), health: watch::channel(BrokerHealth::Down).0 }
    }

    pub(super) fn watch(&self) -> watch::Receiver<BrokerHealth> {
        self.health.subscribe()
    }

    /// One of the connections is so from now on.
    pub(super) fn set(&self, role: Role, health: BrokerHealth) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match role {
            Role::Publish => seen.publish = health,
            Role::Consume => seen.consume = health,
        }
        let whole = match (seen.publish, seen.consume) {
            (BrokerHealth::Down, _) | (_, BrokerHealth::Down) => BrokerHealth::Down,
            (BrokerHealth::Blocked, _) | (_, BrokerHealth::Blocked) => BrokerHealth::Blocked,
            (BrokerHealth::Up, BrokerHealth::Up) => BrokerHealth::Up,
        };
        // Inside the lock, so that what is told last is what was seen last.
        let changed = self.health.send_if_modified(|now| std::mem::replace(now, whole) != whole);
        if changed {
            let level = match whole {
                BrokerHealth::Down => 0.0,
                BrokerHealth::Blocked => 1.0,
                BrokerHealth::Up => 2.0,
            };
            metrics::gauge!("jobgate_broker_up").set(level);
            tracing::info!(health = ?whole, "the broker's health changed");
        }
    }
}
