//! Whether a role without an HTTP interface can do its work: its store is there and answers.

use super::doors::Doors;
use async_trait::async_trait;
use jobgate_api::http::ops::{Probe, Readiness};
use jobgate_shared::broker::BrokerHealth;
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

/// How long the store may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks the store, and looks at the broker; before there is a store it says what is waited for.
#[derive(Debug, Clone, Default)]
pub(super) struct DoorsProbe(Arc<OnceLock<Doors>>);

impl DoorsProbe {
    /// The role has begun on these doors.
    pub(super) fn open(&self, doors: &Doors) {
        // A role begins once; a second set would change nothing.
        self.0.get_or_init(|| doors.clone());
    }
}

#[async_trait]
impl Probe for DoorsProbe {
    async fn readiness(&self) -> Readiness {
        let unready = |reason: &str| Readiness::Unready { reason: reason.to_owned() };
        let Some(doors) = self.0.get() else { return unready("the database is waited for") };
        match tokio::time::timeout(PATIENCE, doors.store.ping()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return unready(&error.to_string()),
            Err(_) => return unready("the store does not answer"),
        }
        let health = *doors.broker.health().borrow();
        match health {
            BrokerHealth::Up => Readiness::Ready,
            BrokerHealth::Blocked => {
                Readiness::Degraded { reason: "the broker takes no messages".to_owned() }
            }
            BrokerHealth::Down => Readiness::Degraded { reason: "the broker is down".to_owned() },
        }
    }
}
