//! Opens connections and notices when they break. The client library's own recovery stays off: with it, consumers hang
//! after a channel error, and everything hangs once its tries are used up.

use super::{condition::Role, config::RabbitMqConfig};
use crate::{retry::Delays, supervise::Tasks};
use anyhow::{Context as _, Result, anyhow};
use futures::{Stream, StreamExt as _};
use lapin::{
    Connection, ConnectionProperties, Event,
    runtime::default_runtime,
    tcp::{AMQPUriTcpExt as _, OwnedTLSConfig},
};
use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::oneshot, time::timeout};

/// For what the broker answers at once: a channel, a declaration, a close.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// A connection or channel that lived this long was a good one: the next delay is the first again.
pub(super) const GOOD_LIFE: Duration = Duration::from_mins(1);
/// How often a connection or a channel is looked at beside what it tells.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// For what is still to be said at an end; whoever does not hear it notices the closed socket.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// Delays before the broker is tried again: short enough that its return is noticed soon, jittered so that a hundred
/// processes do not return as one.
pub(super) fn delays() -> Delays {
    Delays::new(Duration::from_millis(100), Duration::from_secs(5))
}

/// Waits for an answer of the broker, for at most [`ANSWER`].
pub(super) async fn answer<T>(
    what: &'static str,
    asked: impl Future<Output = lapin::Result<T>>,
) -> Result<T> {
    let answered = timeout(ANSWER, asked).await.map_err(|_| anyhow!("no answer within {ANSWER:?}"));
    answered.context(what)?.context(what)
}

/// Connects, or says why not within twice the configured time. The library connects on a thread of its own, which goes on
/// when nobody waits any more and panics when the runtime is gone before it has the socket. So `tasks` wait for it, not
/// long: their shutdown cuts it short.
pub(super) async fn dial(
    config: &RabbitMqConfig,
    process: &str,
    role: Role,
    tasks: &Tasks,
) -> Result<Connection> {
    let cert_chain = match &config.ca_certificate {
        Some(path) => {
            Some(tokio::fs::read_to_string(path).await.with_context(|| path.display().to_string())?)
        }
        None => None,
    };
    let tls = OwnedTLSConfig { identity: None, cert_chain };
    let (within, shutdown) = (*config.connect_timeout, tasks.shutdown().clone());
    // The library's own `connection_timeout` does nothing here, and its thread waits for this to end.
    let reach = async move |uri: lapin::uri::AMQPUri, runtime| {
        let reaching = timeout(within, uri.connect_with_config_async(tls.as_ref(), &runtime));
        let reached = shutdown.run_until_cancelled(reaching).await;
        let reached = reached.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        Ok(reached.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??)
    };
    let name = format!("{process} {}", role.as_str());
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "jobgate".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    let opening = Connection::connector(config.url.uri().clone(), default_runtime()?, reach, properties);
    let (tell, told) = oneshot::channel();
    let shutdown = tasks.shutdown().clone();
    tasks.spawn("dial", async move {
        let mut opening = pin!(timeout(within * 2, opening));
        let opened = match shutdown.run_until_cancelled(&mut opening).await {
            Some(opened) => opened,
            None => timeout(GRACE, opening).await.unwrap_or_else(Err),
        };
        tell.send(opened).ok();
    });
    let opened = told.await.context("the process ends")?;
    let opened = opened.map_err(|_| anyhow!("no greeting within {:?}", within * 2));
    opened.and_then(|opened| Ok(opened?)).with_context(|| format!("connect to {}", config.url))
}

/// What a connection goes through.
#[derive(Debug)]
pub(super) enum Change {
    /// A resource alarm: it takes no messages.
    Blocked(String),
    /// It takes messages again.
    Unblocked,
    /// It is no more.
    Broken(anyhow::Error),
}

/// A connection and its events. One listener only: copies would share the events, not each see them all.
pub(super) struct Line {
    connection: Arc<Connection>,
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
    /// The last error told of; it may have been a channel's only.
    error: Option<lapin::Error>,
}

impl Line {
    pub(super) fn new(connection: Connection) -> Self {
        let events = connection.events_listener().boxed();
        Self { connection: Arc::new(connection), events, error: None }
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The next change. Cancel safe.
    pub(super) async fn change(&mut self) -> Change {
        loop {
            if !self.connection.status().connected() {
                let error = self.error.take();
                return Change::Broken(
                    error.map_or_else(|| anyhow!("the connection is gone"), anyhow::Error::new),
                );
            }
            match timeout(LOOK, self.events.next()).await {
                Ok(Some(Event::ConnectionBlocked(reason))) => return Change::Blocked(reason),
                Ok(Some(Event::ConnectionUnblocked)) => return Change::Unblocked,
                // A channel's error, or the connection's: the status tells.
                Ok(Some(Event::Error(error))) => self.error = Some(error),
                Ok(Some(_)) | Err(_) => {}
                Ok(None) => return Change::Broken(anyhow!("the connection tells nothing more")),
            }
        }
    }

    /// Says good-bye, briefly.
    pub(super) async fn close(self) {
        // A blocked or broken connection cannot; dropping it closes the socket.
        timeout(GRACE, self.connection.close(200, "bye".into())).await.ok();
    }
}
