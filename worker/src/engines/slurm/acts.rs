//! What is done to jobs at Slurm. Each act looks first whether the id is still ours.

use super::{
    SlurmEngine, blocking,
    files::Directory,
    id::{self, Identity, Mark},
    state::Fault,
};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// How long it is remembered that a job was forgotten: longer than slurmctld keeps what has ended.
const FORGOTTEN_FOR: Duration = Duration::from_hours(1);

impl SlurmEngine {
    pub(super) async fn lift_hold(&self, of: Identity, user: &str) -> Result<(), Fault> {
        let Some(job) = self.look(of, user).await? else {
            tracing::debug!(submission = of.job, "not started: Slurm does not know it");
            return Ok(());
        };
        if self.mark(of, &job) != Mark::Created || !job.is_held_by_user() {
            return Ok(());
        }
        let left = self.left_by(vec![(of, user.to_owned(), true)]).await?.remove(&of).transpose()?;
        if left.is_some_and(|left| left.begun) {
            tracing::warn!(submission = of.job, "not started: it has begun before, and slurmctld forgot it");
            return Ok(());
        }
        let comment = id::comment(of.tag, &self.scope, Mark::Started);
        done(self.rest.update(user, of.job, &json!({"hold": false, "comment": comment})).await)
    }

    pub(super) async fn end(&self, of: Identity, user: &str) -> Result<(), Fault> {
        match self.look(of, user).await? {
            Some(job) if !job.is_over() => done(self.rest.cancel(user, of.job).await),
            Some(_) | None => Ok(()),
        }
    }

    /// Ends a job that was never started, and writes down that nobody wanted it.
    pub(super) async fn remove(&self, of: Identity, user: &str) -> Result<(), Fault> {
        let Some(job) = self.look(of, user).await? else { return Ok(()) };
        let comment = id::comment(of.tag, &self.scope, Mark::Discarded);
        match self.mark(of, &job) {
            Mark::Created | Mark::Discarded if job.is_held_by_user() => {
                done(self.rest.update(user, of.job, &json!({"comment": comment})).await)?;
                done(self.rest.cancel(user, of.job).await)
            }
            Mark::Created | Mark::Started | Mark::Discarded => Ok(()),
        }
    }

    pub(super) async fn clear_away(&self, of: Identity, user: &str) -> Result<(), Fault> {
        if let Some(job) = self.look(of, user).await?.filter(|job| !job.is_over()) {
            if self.mark(of, &job) == Mark::Started || !job.is_held_by_user() {
                self.end(of, user).await?;
                return Err(Fault::Away(anyhow::anyhow!("it still runs; it is being ended")));
            }
            self.remove(of, user).await?;
        }
        if let Some(path) = self.config.log_dir(user) {
            blocking(move || {
                let dir = Directory::open(&path)?;
                for file in [of.file("out"), of.file("err"), of.exit_file(), of.start_file()] {
                    match dir.remove(&file) {
                        // Where workers may only read, whoever owns the directory clears it.
                        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                            tracing::debug!(%error, file, "left where it is");
                        }
                        removed => removed?,
                    }
                }
                Ok(())
            })
            .await
            .map_err(Fault::Away)?;
        }
        let now = Instant::now();
        let mut memory = self.memory();
        memory.over.remove(&of);
        memory.unstored.remove(&of);
        memory.forgotten.retain(|_, at| now - *at < FORGOTTEN_FOR);
        memory.forgotten.insert(of, now);
        Ok(())
    }
}

/// A job that is over or not known needs nothing more done to it.
fn done(answer: Result<(), Fault>) -> Result<(), Fault> {
    match answer {
        Ok(()) | Err(Fault::Unknown | Fault::Over) => Ok(()),
        Err(fault @ (Fault::NotBelieved(_) | Fault::Away(_) | Fault::Refused(_) | Fault::NotNow(_))) => {
            Err(fault)
        }
    }
}
