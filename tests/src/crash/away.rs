//! What is asked of a deployment while the broker is away for one of its roles, or nobody takes what is hinted.

use super::{
    deployment::Deployment,
    plan::Form,
    scene::{Kind, NAP, SOON, Scene, command, ended},
};
use anyhow::{Context as _, Result};
use std::time::Duration;

/// How long a role may take to find out that its broker is away, and to do what it does then.
const LETS_GO: Duration = Duration::from_secs(3);

impl Scene {
    /// A job is cancelled and ends: its worker has nobody to tell but the rows.
    pub(super) async fn tell_rows(&mut self, deployment: &Deployment) -> Result<()> {
        let client = deployment.client()?;
        let id = self.running(deployment).await?;
        deployment.cut_off("worker", true)?;
        command(&client, &id, "cancel").await?;
        ended(&client, &id).await?;
        deployment.cut_off("worker", false)
    }

    /// A worker is told to stop with an event in hand that it cannot publish.
    pub(super) async fn tell_rows_draining(&mut self, deployment: &mut Deployment) -> Result<()> {
        deployment.orders.sleep_at("publish.begins", NAP)?;
        self.post_one(deployment, Kind::Long).await?;
        passing("publish.begins", deployment).await?;
        deployment.cut_off("worker", true)?;
        deployment.drain_worker().await
    }

    /// A job is posted, and the hint of it does not go out.
    pub(super) async fn unhint_posted(&mut self, deployment: &Deployment) -> Result<()> {
        let client = deployment.client()?;
        // Whatever was away before is known to be back once this one has been hinted.
        let id = self.post_one(deployment, Kind::Quick).await?;
        ended(&client, &id).await?;
        deployment.orders.sleep_at("accept.hinting", NAP)?;
        let id = self.post_one(deployment, Kind::Quick).await?;
        lose_broker_at("accept.hinting", deployment).await?;
        ended(&client, &id).await.map(drop)
    }

    /// A job becomes due, and the hint of it does not go out.
    pub(super) async fn unhint_due(&mut self, deployment: &Deployment) -> Result<()> {
        let client = deployment.client()?;
        let id = self.post_one(deployment, Kind::Held).await?;
        deployment.orders.sleep_at("dispatch.marked", NAP)?;
        command(&client, &id, "release").await?;
        lose_broker_at("dispatch.marked", deployment).await?;
        ended(&client, &id).await.map(drop)
    }

    /// A worker dies, and no hint of what it left reaches an adopter.
    pub(super) async fn unhint_stranded(&mut self, deployment: &mut Deployment) -> Result<()> {
        let id = self.running(deployment).await?;
        let asleep = match deployment.form {
            // Its next life is in the rows and does not listen yet: it has no queue.
            Form::Sqlite => "lease.registered",
            Form::Postgres => "rescue.marked",
        };
        deployment.orders.sleep_at(asleep, NAP)?;
        deployment.worker()?.process.kill()?;
        deployment.revive().await?;
        if deployment.form == Form::Postgres {
            lose_broker_at(asleep, deployment).await?;
        }
        let client = deployment.client()?;
        command(&client, &id, "cancel").await?;
        ended(&client, &id).await.map(drop)
    }
}

/// The api sleeps at `point`, and when it wakes up its broker is away for a while.
async fn lose_broker_at(point: &str, deployment: &Deployment) -> Result<()> {
    passing(point, deployment).await?;
    deployment.cut_off("api", true)?;
    tokio::time::sleep(NAP + LETS_GO).await;
    deployment.orders.withdraw(point)?;
    deployment.cut_off("api", false)
}

/// Somebody passes a point where it was ordered to sleep.
async fn passing(point: &str, deployment: &Deployment) -> Result<()> {
    tokio::time::timeout(SOON, deployment.orders.passing(point)).await.context("nobody passed it")
}
