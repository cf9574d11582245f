//! Hands hints over to the broker, many at a time, in order.

use futures::StreamExt as _;
use jobgate_shared::{
    broker::{Broker, BrokerError, BrokerHealth, Published, Route},
    domain::JobId,
    wire::Hint,
};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;

/// Messages whose confirm is waited for at once.
const IN_FLIGHT: usize = 64;

/// Publishes hints and answers for each whether it is in a queue. Once the broker is found away the others are not tried:
/// whoever marked them hinted forgets that, and they go out later.
pub(super) async fn publish(broker: &dyn Broker, hints: Vec<(Route, Vec<JobId>)>) -> Vec<bool> {
    let away = AtomicBool::new(false);
    let one = async |(route, jobs): (Route, Vec<JobId>)| {
        if away.load(Ordering::Relaxed) {
            return false;
        }
        match broker.publish_hint(&route, Hint { jobs }).await {
            Ok(Published::Routed) => true,
            Ok(Published::Unroutable) => {
                tracing::debug!(?route, "there is no such queue for a hint");
                false
            }
            Err(error) => {
                let first = match &error {
                    BrokerError::Down(_) | BrokerError::Blocked => !away.swap(true, Ordering::Relaxed),
                    BrokerError::Refused(_) => true,
                };
                if first {
                    let error = format!("{:#}", anyhow::Error::new(error));
                    tracing::warn!(error, ?route, "the broker did not take a hint; it is given out again");
                }
                false
            }
        }
    };
    futures::stream::iter(hints).map(one).buffered(IN_FLIGHT).collect().await
}

/// The broker takes messages, as far as this process can tell.
pub(super) fn takes(health: &mut watch::Receiver<BrokerHealth>) -> bool {
    match *health.borrow_and_update() {
        BrokerHealth::Up => true,
        BrokerHealth::Blocked | BrokerHealth::Down => false,
    }
}
