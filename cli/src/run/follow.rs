//! Following the jobs of a run to their end: the feed tells what changes, a look now and then tells what it did not.

use super::{cancel_all, change, progress::Progress, tracker::Tracker};
use crate::{
    client::{Client, ClientError, Events, JobDoc, Request},
    commands,
    roles::Interrupts,
};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How long nothing may be heard before jobs are looked at one by one.
const SILENCE: Duration = Duration::from_secs(5);
/// Jobs looked at in one go.
const LOOK_AT: usize = 200;
/// Between two drawings.
const DRAW: Duration = Duration::from_millis(100);

/// How the jobs came to their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Each as it would.
    ByThemselves,
    /// Somebody cancelled those that had not ended.
    Canceled,
}

/// An open feed and what it is read for.
pub(super) struct Follow {
    client: Client,
    label: String,
    events: Events,
}

impl Follow {
    /// Opens the feed; what happens from now on is heard.
    pub(super) async fn begin(client: &Client, label: &str) -> anyhow::Result<Self> {
        let events = Events::follow(client, "/v1/events", Vec::new()).await?;
        Ok(Self { client: client.clone(), label: label.to_owned(), events })
    }

    /// Follows until every job the tracker knows has ended. The first interrupt, if there was none yet, cancels them; at the
    /// second nothing is waited for: `None`.
    pub(super) async fn until_all_ended(
        mut self,
        tracker: &mut Tracker,
        progress: &mut Progress,
        interrupts: &mut Interrupts,
        interrupted: Option<&'static str>,
    ) -> anyhow::Result<Option<Ended>> {
        let mut ended = Ended::ByThemselves;
        if let Some(name) = interrupted {
            ended = Ended::Canceled;
            if !self.cancel(name, progress, interrupts).await? {
                return Ok(None);
            }
        }
        let mut heard_at = Instant::now();
        let mut drawing = interval(DRAW);
        drawing.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while tracker.counts().ended() < tracker.counts().all() {
            tokio::select! {
                event = self.events.next() => {
                    heard_at = Instant::now();
                    let event = event?;
                    if event.kind == "gap" {
                        self.look(tracker, progress).await?;
                    } else if let Some((id, state, attempt, reason)) = change(&event.data)
                        && let Some(job) = tracker.heard(&id, state, attempt, reason)
                    {
                        progress.ended(&id, job);
                    }
                }
                _ = drawing.tick() => progress.counts(tracker.counts()),
                () = tokio::time::sleep_until(heard_at + SILENCE) => {
                    heard_at = Instant::now();
                    self.look(tracker, progress).await?;
                }
                name = interrupts.next() => match ended {
                    Ended::ByThemselves => {
                        ended = Ended::Canceled;
                        if !self.cancel(name, progress, interrupts).await? {
                            return Ok(None);
                        }
                    }
                    Ended::Canceled => return Ok(None),
                },
            }
        }
        progress.counts(tracker.counts());
        Ok(Some(ended))
    }

    /// Cancels what has not ended; false when another interrupt came meanwhile.
    async fn cancel(
        &self,
        name: &str,
        progress: &Progress,
        interrupts: &mut Interrupts,
    ) -> anyhow::Result<bool> {
        progress.say(&format!("{name}: cancelling what has not ended; once more to leave at once"));
        // Raced against the next interrupt: a gateway that hangs must not keep anybody here.
        tokio::select! {
            canceled = cancel_all(&self.client, &self.label) => canceled.map(|_| true),
            _ = interrupts.next() => Ok(false),
        }
    }

    /// Asks about jobs that are not known to have ended.
    async fn look(&self, tracker: &mut Tracker, progress: &Progress) -> anyhow::Result<()> {
        for id in tracker.unended().into_iter().take(LOOK_AT) {
            match self.client.send(Request::get(format!("/v1/jobs/{id}"))).await {
                Ok(document) => {
                    let job: JobDoc = commands::read(&document)?;
                    if let Some(standing) = tracker.answered(&job) {
                        progress.ended(&job.id, standing);
                    }
                }
                // Looked at again after the next silence.
                Err(error @ ClientError::Unreachable { .. }) => {
                    tracing::debug!(%error, "a job could not be looked at");
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
