//! Whether a role without an HTTP interface can do its work: its store answers.

use super::doors::Doors;
use async_trait::async_trait;
use jobgate_api::http::ops::{Probe, Readiness};
use jobgate_shared::{broker::BrokerHealth, store::Store};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// How long the store may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks the store, and looks at the broker.
#[derive(Debug)]
pub(super) struct DoorsProbe {
    store: Arc<dyn Store>,
    broker: watch::Receiver<BrokerHealth>,
}

impl DoorsProbe {
    pub(super) fn new(doors: &Doors) -> Self {
        Self { store: doors.store.clone(), broker: doors.broker.health() }
    }
}

#[async_trait]
impl Probe for DoorsProbe {
    async fn readiness(&self) -> Readiness {
        let unready = |reason: String| Readiness::Unready { reason };
        match tokio::time::timeout(PATIENCE, self.store.ping()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return unready(error.to_string()),
            Err(_) => return unready("the store does not answer".to_owned()),
        }
        let health = *self.broker.borrow();
        match health {
            BrokerHealth::Up => Readiness::Ready,
            BrokerHealth::Blocked => {
                Readiness::Degraded { reason: "the broker takes no messages".to_owned() }
            }
            BrokerHealth::Down => Readiness::Degraded { reason: "the broker is down".to_owned() },
        }
    }
}
