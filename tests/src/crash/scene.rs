//! What is asked of a deployment while it crashes, and what must have become of it afterwards.

use super::{
    deployment::Deployment,
    plan::{Drive, Manager},
};
use crate::{gateway::Client, wait::until};
use anyhow::{Context as _, Result, bail, ensure};
use jobgate_shared::domain::SUSPECT_AFTER;
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

/// How long something a drive waits for may take; a crash cuts it short.
pub(super) const SOON: Duration = Duration::from_secs(15);
/// How long the sweep may take for what has just ended to be old enough.
const SWEPT: Duration = Duration::from_secs(30);
/// How long an order lets a call sleep, for a cancel to come meanwhile.
pub(super) const NAP: Duration = Duration::from_millis(1500);

/// How long a claim goes unheard: two looks at the rows, a lease apart, and then some.
const UNHEARD: Duration = Duration::from_millis(7500);
/// What a job is posted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Ends well.
    Quick,
    /// Fails, and its second attempt too.
    Failing,
    /// Goes on until it is cancelled.
    Long,
    /// Held, then released; ends well.
    Held,
    /// Cancelled while it is held, then retried; ends well.
    Retried,
}

impl Kind {
    fn cluster(self) -> &'static str {
        match self {
            Self::Quick | Self::Held | Self::Retried => "quick",
            Self::Failing => "failing",
            Self::Long => "long",
        }
    }

    /// What it ends as when nothing but a crash happens to it.
    pub(super) fn ends_as(self) -> &'static str {
        match self {
            Self::Quick | Self::Held | Self::Retried => "FINISHED",
            Self::Failing => "FAILED",
            Self::Long => "CANCELED",
        }
    }

    fn body(self, deployment: &Deployment) -> Value {
        let then = match self {
            Self::Quick | Self::Held | Self::Retried => "echo done",
            Self::Failing => "exit 3",
            Self::Long => "exec sleep 600",
        };
        let command = match deployment.manager {
            Manager::Local => {
                let begin = r#"echo "jobgate-$JOBGATE_JOB_ID-$JOBGATE_ATTEMPT begins" >> "$1"; "#;
                let script = format!("{begin}{then}");
                json!(["/bin/sh", "-c", script, "job", deployment.ledger()])
            }
            Manager::TwoPhase
            | Manager::UniqueName
            | Manager::Fenced
            | Manager::AtMostOnce
            | Manager::Claimant => json!(["true"]),
        };
        json!({
            "cluster": self.cluster(),
            "spec": {"command": command},
            "hold": matches!(self, Self::Held | Self::Retried),
            "max_attempts": if self == Self::Failing { 2 } else { 1 },
            "retry": {"backoff_seconds": 0},
        })
    }
}

/// Jobs posted under one key, whose answer may have been cut off.
#[derive(Debug)]
struct Post {
    key: String,
    kinds: Vec<Kind>,
    ids: Vec<String>,
}

/// The jobs of one cell.
#[derive(Debug, Default)]
pub(super) struct Scene {
    posts: Vec<Post>,
}

impl Scene {
    /// Every job that was accepted.
    pub(super) fn jobs(&self) -> impl Iterator<Item = (Kind, &str)> {
        self.posts.iter().flat_map(|post| post.kinds.iter().copied().zip(post.ids.iter().map(String::as_str)))
    }

    /// Does once what passes the point, unless that ends it.
    pub(super) async fn play(&mut self, drive: Drive, deployment: &mut Deployment) -> Result<()> {
        let client = deployment.client()?;
        match drive {
            Drive::Run => {
                let ids = self.post(deployment, &[Kind::Quick, Kind::Failing, Kind::Quick]).await?;
                let one = self.post(deployment, &[Kind::Quick]).await?;
                for id in ids.iter().chain(&one) {
                    ended(&client, id).await?;
                }
                Ok(())
            }
            Drive::Release => {
                let id = self.post_one(deployment, Kind::Held).await?;
                command(&client, &id, "hold").await?;
                command(&client, &id, "release").await?;
                ended(&client, &id).await.map(drop)
            }
            Drive::Retry => {
                let id = self.post_one(deployment, Kind::Retried).await?;
                command(&client, &id, "cancel").await?;
                command(&client, &id, "retry").await?;
                ended(&client, &id).await.map(drop)
            }
            Drive::Cancel => {
                let id = self.running(deployment).await?;
                command(&client, &id, "cancel").await?;
                ended(&client, &id).await.map(drop)
            }
            Drive::CancelUnrecorded => self.cancel_during("create.begins", &["CLAIMED"], deployment).await,
            Drive::CancelUnbegun => self.cancel_during("record.committed", &["PENDING"], deployment).await,
            Drive::Drain => {
                self.running(deployment).await?;
                deployment.drain_worker().await
            }
            Drive::Kill => {
                let id = self.running(deployment).await?;
                deployment.worker()?.process.kill()?;
                deployment.revive().await?;
                // Adopted: whoever has it now carries the cancel out.
                let client = deployment.client()?;
                command(&client, &id, "cancel").await?;
                ended(&client, &id).await.map(drop)
            }
            Drive::CancelMany => {
                let id = self.running(deployment).await?;
                let (status, answer) = client.post("/v1/jobs/cancel?cluster=long", &json!({})).await?;
                ensure!(status == 200, "cancel of many: {status} {answer}");
                ended(&client, &id).await.map(drop)
            }
            Drive::Unforgotten => {
                let id = self.end_worker_at("forget.begins", 1, &[Kind::Quick], deployment).await?;
                ended(&deployment.client()?, &id).await?;
                until("the rest of it is swept", SWEPT, async || {
                    let left = deployment.leftovers()?;
                    ensure!(left.is_empty(), "{left:?}");
                    Ok(())
                })
                .await
            }
            Drive::Suspect => {
                let kinds = [Kind::Quick, Kind::Quick];
                let id = self.end_worker_at("create.begins", SUSPECT_AFTER, &kinds, deployment).await?;
                ended(&deployment.client()?, &id).await.map(drop)
            }
            Drive::Unheard => {
                deployment.orders.sleep_at("claim.committed", UNHEARD)?;
                let id = self.post_one(deployment, Kind::Quick).await?;
                ended(&client, &id).await.map(drop)
            }
            Drive::TellRows => self.tell_rows(deployment).await,
            Drive::TellRowsDraining => self.tell_rows_draining(deployment).await,
            Drive::UnhintPosted => self.unhint_posted(deployment).await,
            Drive::UnhintDue => self.unhint_due(deployment).await,
            Drive::UnhintStranded => self.unhint_stranded(deployment).await,
            Drive::Newcomer => {
                deployment.service()?.forget();
                let id = self.post_one(deployment, Kind::Quick).await?;
                ended(&client, &id).await.map(drop)
            }
            Drive::GiveUp => {
                deployment.service()?.give_up();
                let id = self.post_one(deployment, Kind::Quick).await?;
                ended(&client, &id).await.map(drop)
            }
            Drive::Leftover => {
                deployment.leave_behind()?;
                until("the leftover is swept", SOON, async || {
                    let left = deployment.leftovers()?;
                    ensure!(left.is_empty(), "{left:?}");
                    Ok(())
                })
                .await
            }
        }
    }

    /// A job is cancelled while its worker sleeps at `point`, before which it shows one of `states`.
    async fn cancel_during(
        &mut self,
        point: &str,
        states: &[&str],
        deployment: &mut Deployment,
    ) -> Result<()> {
        let client = deployment.client()?;
        deployment.orders.sleep_at(point, NAP)?;
        let id = self.post_one(deployment, Kind::Long).await?;
        // Seen too late on a busy machine, it is another drive's turn.
        reaches(&client, &id, states, 2 * NAP).await?;
        command(&client, &id, "cancel").await?;
        ended(&client, &id).await?;
        deployment.orders.withdraw(point)
    }

    /// Jobs are posted whose worker ends at `point`, so many times, and is started again; the first of them.
    async fn end_worker_at(
        &mut self,
        point: &str,
        times: u16,
        kinds: &[Kind],
        deployment: &mut Deployment,
    ) -> Result<String> {
        let orders = deployment.orders.clone();
        orders.abort_at(point, 1)?;
        let ids = self.post(deployment, kinds).await?;
        for left in (0..times).rev() {
            tokio::time::timeout(SOON, orders.abortion(point)).await.context("nobody passed it")?;
            deployment.see_abort().await?;
            // Before the next worker is there, which may pass the point as soon as it is.
            if left > 0 {
                orders.abort_at(point, 1)?;
            } else {
                orders.withdraw(point)?;
            }
            let revived = deployment.revive().await;
            // One that was ended again at once never was ready.
            if !orders.aborted(point) {
                revived?;
            }
        }
        ids.into_iter().next().context("a job was posted")
    }

    /// A job that runs.
    pub(super) async fn running(&mut self, deployment: &Deployment) -> Result<String> {
        let id = self.post_one(deployment, Kind::Long).await?;
        reaches(&deployment.client()?, &id, &["RUNNING"], SOON).await?;
        Ok(id)
    }

    pub(super) async fn post_one(&mut self, deployment: &Deployment, kind: Kind) -> Result<String> {
        self.post(deployment, &[kind]).await?.pop().context("a job was posted")
    }

    /// Known before it is answered: a crash may keep the answer and not the jobs.
    async fn post(&mut self, deployment: &Deployment, kinds: &[Kind]) -> Result<Vec<String>> {
        let key = Uuid::new_v4().to_string();
        self.posts.push(Post { key, kinds: kinds.to_vec(), ids: Vec::new() });
        let post = self.posts.last_mut().context("it was just put there")?;
        post.submit(deployment).await?;
        Ok(post.ids.clone())
    }

    /// Brings every job to its end, as its producers would, once everything runs again.
    pub(super) async fn bring_to_end(&mut self, deployment: &Deployment, within: Duration) -> Result<()> {
        let client = deployment.client()?;
        for post in self.posts.iter_mut().filter(|post| post.ids.is_empty()) {
            until("a post is answered under the same key", within, async || post.submit(deployment).await)
                .await?;
        }
        for (kind, id) in self.jobs() {
            until("a job ends", within, async || {
                let job = client.get(&format!("/v1/jobs/{id}?wait=1s")).await?;
                let state = job["state"].as_str().context("state")?;
                match (kind, state) {
                    (Kind::Held, "HELD") => command(&client, id, "release").await?,
                    (Kind::Retried, "HELD") => command(&client, id, "cancel").await?,
                    (Kind::Retried, "CANCELED") => command(&client, id, "retry").await?,
                    (Kind::Long, _) if !terminal(state) && job["cancel_requested"] != json!(true) => {
                        command(&client, id, "cancel").await?;
                    }
                    _ if terminal(state) => return Ok(()),
                    _ => {}
                }
                bail!("{job}")
            })
            .await?;
        }
        Ok(())
    }
}

impl Post {
    async fn submit(&mut self, deployment: &Deployment) -> Result<()> {
        let bodies: Vec<Value> = self.kinds.iter().map(|kind| kind.body(deployment)).collect();
        self.ids = deployment.client()?.submit(&self.key, &bodies).await?;
        Ok(())
    }
}

/// It is over.
pub(super) fn terminal(state: &str) -> bool {
    matches!(state, "FINISHED" | "FAILED" | "CANCELED" | "TIMED_OUT" | "LOST")
}

pub(super) async fn command(client: &Client, id: &str, word: &str) -> Result<()> {
    let (status, answer) = client.post(&format!("/v1/jobs/{id}/{word}"), &json!({})).await?;
    ensure!(status == 200, "{word}: {status} {answer}");
    Ok(())
}

async fn reaches(client: &Client, id: &str, states: &[&str], within: Duration) -> Result<()> {
    until("a job gets so far", within, async || {
        let job = client.get(&format!("/v1/jobs/{id}")).await?;
        ensure!(job["state"].as_str().is_some_and(|state| states.contains(&state)), "{job}");
        Ok(())
    })
    .await
}

pub(super) async fn ended(client: &Client, id: &str) -> Result<Value> {
    until("a job ends", SOON, async || {
        let job = client.get(&format!("/v1/jobs/{id}?wait=3s")).await?;
        ensure!(job["state"].as_str().is_some_and(terminal), "{job}");
        Ok(job)
    })
    .await
}
