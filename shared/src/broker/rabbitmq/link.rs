//! The consuming connection, kept up for as long as the process lives. Everything that is not a publish goes through it:
//! consumers, their acknowledgements, declarations. It never publishes, so an alarm never blocks it.

use super::{
    condition::{Condition, Role},
    config::RabbitMqConfig,
    dial::{Change, GOOD_LIFE, Line, delays, dial},
};
use crate::{broker::BrokerHealth, supervise::Tasks};
use anyhow::Result;
use lapin::Connection;
use std::sync::Arc;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// Lends the connection out.
#[derive(Debug, Clone)]
pub(super) struct Link(watch::Receiver<Option<Arc<Connection>>>);

impl Link {
    /// Starts keeping the connection up.
    pub(super) fn start(
        config: RabbitMqConfig,
        process: String,
        condition: Arc<Condition>,
        tasks: &Tasks,
    ) -> Self {
        let (up, link) = watch::channel(None);
        let keeper = Arc::new(Keeper { config, process, condition, tasks: tasks.clone(), up });
        let shutdown = tasks.shutdown().clone();
        tasks.supervise("consuming connection", move || {
            let (keeper, shutdown) = (keeper.clone(), shutdown.clone());
            async move {
                keeper.keep(&shutdown).await;
                Ok(())
            }
        });
        Self(link)
    }

    /// The connection, as soon as there is one. Pending for ever after the shutdown. Cancel safe.
    pub(super) async fn connection(&self) -> Arc<Connection> {
        let mut link = self.0.clone();
        let up = link.wait_for(Option::is_some).await.ok().and_then(|up| up.clone());
        match up {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }
}

#[derive(Debug)]
struct Keeper {
    config: RabbitMqConfig,
    process: String,
    condition: Arc<Condition>,
    /// What a dial outlives us in.
    tasks: Tasks,
    up: watch::Sender<Option<Arc<Connection>>>,
}

impl Keeper {
    async fn keep(&self, shutdown: &CancellationToken) {
        let mut delays = delays();
        while !shutdown.is_cancelled() {
            let began = Instant::now();
            let ended = self.once(shutdown).await;
            let Err(error) = ended else { break };
            if began.elapsed() > GOOD_LIFE {
                delays.reset();
            }
            let (delay, why) = (delays.next_delay(), format!("{error:#}"));
            tracing::warn!(error = why, ?delay, "consuming is cut off from the broker; connecting again");
            metrics::counter!("jobgate_broker_reconnects_total", "connection" => "consume").increment(1);
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// One connection's life: an error when it ends by itself.
    async fn once(&self, shutdown: &CancellationToken) -> Result<()> {
        let connection = tokio::select! {
            dialled = dial(&self.config, &self.process, Role::Consume, &self.tasks) => dialled?,
            () = shutdown.cancelled() => return Ok(()),
        };
        let mut line = Line::new(connection);
        self.up.send_replace(Some(line.connection().clone()));
        self.condition.set(Role::Consume, BrokerHealth::Up);
        let ended = loop {
            tokio::select! {
                () = shutdown.cancelled() => break Ok(()),
                change = line.change() => match change {
                    Change::Broken(error) => break Err(error),
                    Change::Blocked(_) | Change::Unblocked => {}
                },
            }
        };
        self.up.send_replace(None);
        self.condition.set(Role::Consume, BrokerHealth::Down);
        line.close().await;
        ended
    }
}
