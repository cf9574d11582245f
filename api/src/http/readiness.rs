//! Whether a process can do its work.

use super::ops::{Probe, Readiness};
use async_trait::async_trait;
use jobgate_shared::{broker::BrokerHealth, store::Store};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};

/// How long the store may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long an answer is given again: anyone may ask, and the store has better to do.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// Asks the store, and looks at the broker.
#[derive(Debug)]
pub struct StoreProbe {
    store: Arc<dyn Store>,
    broker: watch::Receiver<BrokerHealth>,
    /// When the store was asked, and what is wrong with it.
    last: Mutex<Option<(Instant, Option<String>)>>,
}

impl StoreProbe {
    /// Of what a process works with.
    pub fn new(store: Arc<dyn Store>, broker: watch::Receiver<BrokerHealth>) -> Self {
        Self { store, broker, last: Mutex::new(None) }
    }

    async fn store_fault(&self) -> Option<String> {
        // Held while asking: whoever comes meanwhile takes the same answer.
        let mut last = self.last.lock().await;
        if let Some((at, fault)) = &*last
            && at.elapsed() < GOOD_FOR
        {
            return fault.clone();
        }
        let fault = match tokio::time::timeout(PATIENCE, self.store.ping()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the store does not answer".to_owned()),
        };
        *last = Some((Instant::now(), fault.clone()));
        fault
    }
}

#[async_trait]
impl Probe for StoreProbe {
    async fn readiness(&self) -> Readiness {
        if let Some(reason) = self.store_fault().await {
            return Readiness::Unready { reason };
        }
        let health = *self.broker.borrow();
        match health {
            BrokerHealth::Up => Readiness::Ready,
            BrokerHealth::Blocked => {
                degraded("the broker takes no messages; jobs are accepted and begin later")
            }
            BrokerHealth::Down => degraded("the broker is down; jobs are accepted and begin later"),
        }
    }
}

fn degraded(reason: &str) -> Readiness {
    Readiness::Degraded { reason: reason.to_owned() }
}
