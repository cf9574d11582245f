//! The one task that publishes. It owns the publishing connection and its channel; callers hand it letters and get the
//! verdict after the confirm. Many letters are in flight at once, in the order they were handed over.
//!
//! It never lets a caller hang: without a connection, or with a blocked one, a letter is answered at once.

use super::{
    condition::{Condition, Role},
    config::RabbitMqConfig,
    dial::{Change, GOOD_LIFE, GRACE, LOOK, Line, answer, delays, dial},
    flight::{Flight, Letter},
    topology::Topology,
};
use crate::{
    broker::{BrokerError, BrokerHealth, Published},
    supervise::Tasks,
};
use anyhow::{Context as _, Result, anyhow};
use lapin::options::ConfirmSelectOptions;
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// Hands letters to the task.
#[derive(Debug, Clone)]
pub(super) struct Publisher {
    letters: mpsc::Sender<Letter>,
    patience: Duration,
}

impl Publisher {
    /// Starts the task.
    pub(super) fn start(office: Office) -> Self {
        let (config, tasks) = (&office.config, office.tasks.clone());
        // As many again as are in flight, so that the next window is there when this one's confirms come.
        let window = config.publish_window.get() as usize;
        // Once for a place in the window, once for the confirm.
        let patience = 2 * *config.publish_timeout;
        let (letters, inbox) = mpsc::channel(window);
        let inbox = Arc::new(Mutex::new(inbox));
        let (office, shutdown) = (Arc::new(office), tasks.shutdown().clone());
        tasks.supervise("publisher", move || {
            let (office, inbox, shutdown) = (office.clone(), inbox.clone(), shutdown.clone());
            async move {
                let mut inbox = inbox.lock().await;
                office.run(&mut inbox, &shutdown).await;
                Ok(())
            }
        });
        Self { letters, patience }
    }

    /// Publishes `letter` and waits for its verdict.
    pub(super) async fn publish(&self, mut letter: Letter) -> Result<Published, BrokerError> {
        let (reply, verdict) = oneshot::channel();
        letter.reply = Some(reply);
        let published = async {
            self.letters.send(letter).await.map_err(|_| down("it is closed"))?;
            verdict.await.map_err(|_| down("the publisher ended"))?
        };
        // The task answers earlier, unless it waits for its very first connection.
        timeout(self.patience, published).await.unwrap_or(Err(BrokerError::Blocked))
    }
}

fn down(why: &str) -> BrokerError {
    BrokerError::Down(anyhow!("{why}"))
}

/// What the task works with.
#[derive(Debug)]
pub(super) struct Office {
    pub(super) config: RabbitMqConfig,
    pub(super) process: String,
    pub(super) topology: Arc<Topology>,
    pub(super) condition: Arc<Condition>,
    /// What a dial outlives the publisher in.
    pub(super) tasks: Tasks,
}

impl Office {
    async fn run(&self, inbox: &mut mpsc::Receiver<Letter>, shutdown: &CancellationToken) {
        let mut delays = delays();
        let mut last_failure: Option<String> = None;
        while !shutdown.is_cancelled() {
            let began = Instant::now();
            // Before the first try has failed, letters wait for it: a process that just started is not an outage.
            let opened = match last_failure.take() {
                None => tokio::select! {
                    opened = self.open() => opened,
                    () = shutdown.cancelled() => break,
                },
                Some(why) => match refusing(inbox, &why, shutdown, self.open()).await {
                    Some(opened) => opened,
                    None => break,
                },
            };
            let ended = match opened {
                Ok((line, flight)) => {
                    self.condition.set(Role::Publish, BrokerHealth::Up);
                    let ended = self.serve(inbox, line, flight, shutdown).await;
                    self.condition.set(Role::Publish, BrokerHealth::Down);
                    ended
                }
                Err(error) => Err(error),
            };
            let Err(error) = ended else { break };
            if began.elapsed() > GOOD_LIFE {
                delays.reset();
            }
            let (delay, why) = (delays.next_delay(), format!("{error:#}"));
            tracing::warn!(error = why, ?delay, "publishing is cut off from the broker; connecting again");
            metrics::counter!("jobgate_broker_reconnects_total", "connection" => "publish").increment(1);
            if refusing(inbox, &why, shutdown, tokio::time::sleep(delay)).await.is_none() {
                break;
            }
            last_failure = Some(why);
        }
        inbox.close();
        while let Some(letter) = inbox.recv().await {
            letter.answer(Err(down("it is closed")));
        }
    }

    /// A connection with what we publish to, and a channel that confirms.
    async fn open(&self) -> Result<(Line, Flight)> {
        let line = Line::new(dial(&self.config, &self.process, Role::Publish, &self.tasks).await?);
        self.topology.declare_base(line.connection()).await?;
        let channel = answer("open a channel", line.connection().create_channel()).await?;
        answer("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let flight = Flight::new(channel, *self.config.publish_timeout);
        Ok((line, flight))
    }

    /// Publishes until the connection breaks (an error) or the shutdown (no error).
    async fn serve(
        &self,
        inbox: &mut mpsc::Receiver<Letter>,
        mut line: Line,
        mut flight: Flight,
        shutdown: &CancellationToken,
    ) -> Result<()> {
        let window = self.config.publish_window.get() as usize;
        let mut batch = Vec::with_capacity(window);
        let (mut blocked, mut stuck) = (false, Stuck::new(*self.config.publish_timeout));
        let mut look = tokio::time::interval(LOOK);
        let ended = loop {
            let room = if blocked { window } else { window.saturating_sub(flight.len()) };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break Ok(()),
                change = line.change() => match change {
                    Change::Blocked(reason) => {
                        tracing::warn!(reason, "the broker is blocked and takes no messages");
                        blocked = true;
                        self.condition.set(Role::Publish, BrokerHealth::Blocked);
                        flight.give_up_waiting();
                    }
                    Change::Unblocked => {
                        blocked = false;
                        self.condition.set(Role::Publish, BrokerHealth::Up);
                    }
                    Change::Broken(error) => break Err(error),
                },
                flown = flight.progress() => if let Err(error) = flown {
                    break Err(error).context("the publishing channel");
                },
                count = inbox.recv_many(&mut batch, room), if room > 0 => {
                    if count == 0 {
                        break Ok(());
                    }
                    for letter in batch.drain(..) {
                        if blocked {
                            letter.answer(Err(BrokerError::Blocked));
                        } else {
                            flight.take_off(letter);
                        }
                    }
                }
                _ = look.tick() => {}
            }
            if stuck.is(!blocked && 2 * flight.given_up() > window) {
                break Err(anyhow!("half of the publishing window waits for confirms that do not come"));
            }
        };
        if ended.is_ok() && !blocked {
            flight.close(GRACE).await;
        } else {
            drop(flight);
        }
        line.close().await;
        ended
    }
}

/// Messages whose confirms never come (a queue without a leader) must not fill the window for ever; but after an alarm,
/// those written during it may take a while.
struct Stuck {
    patience: Duration,
    since: Option<Instant>,
}

impl Stuck {
    fn new(patience: Duration) -> Self {
        Self { patience, since: None }
    }

    /// Whether it has been `full` for too long.
    fn is(&mut self, full: bool) -> bool {
        self.since = full.then(|| self.since.unwrap_or_else(Instant::now));
        self.since.is_some_and(|since| since.elapsed() > self.patience)
    }
}

/// Does `work` and meanwhile answers every letter that there is no connection; `None` at the shutdown.
async fn refusing<T>(
    inbox: &mut mpsc::Receiver<Letter>,
    why: &str,
    shutdown: &CancellationToken,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return None,
            done = &mut work => return Some(done),
            letter = inbox.recv() => letter?.answer(Err(down(why))),
        }
    }
}
