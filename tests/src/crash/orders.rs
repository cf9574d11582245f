//! Orders to the failpoints of a deployment: files in a directory every process of it looks into.

use anyhow::{Context as _, Result};
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

/// Between two looks whether a point was passed.
const LOOK: Duration = Duration::from_millis(10);

/// The directory.
#[derive(Debug, Clone)]
pub(super) struct Orders(PathBuf);

impl Orders {
    pub(super) fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self(dir))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Whoever passes this point for the `nth` time from now on, in whatever process, is ended there.
    pub(super) fn abort_at(&self, point: &str, nth: usize) -> Result<()> {
        let mut orders = vec!["pass".to_owned(); nth.saturating_sub(1)];
        orders.push("abort".to_owned());
        self.give(point, &orders)
    }

    /// The next to pass this point takes a while.
    pub(super) fn sleep_at(&self, point: &str, time: Duration) -> Result<()> {
        self.give(point, &[format!("sleep {}", time.as_millis())])
    }

    /// Returns when somebody has passed this point since it was ordered.
    pub(super) async fn passing(&self, point: &str) {
        while !self.0.join(point).join("000.taken").exists() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Somebody was ended at this point.
    pub(super) fn aborted(&self, point: &str) -> bool {
        self.witness(point).exists()
    }

    /// Returns when somebody was.
    pub(super) async fn abortion(&self, point: &str) {
        while !self.aborted(point) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Withdraws what was ordered, and forgets what came of it.
    pub(super) fn withdraw(&self, point: &str) -> Result<()> {
        for gone in [fs::remove_dir_all(self.0.join(point)), fs::remove_file(self.witness(point))] {
            match gone {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// All at once, so that nobody finds a part of them.
    fn give(&self, point: &str, orders: &[String]) -> Result<()> {
        self.withdraw(point)?;
        let aside = self.0.join(format!("{point}.new"));
        fs::create_dir(&aside)?;
        for (n, order) in orders.iter().enumerate() {
            fs::write(aside.join(format!("{n:03}")), order)?;
        }
        Ok(fs::rename(aside, self.0.join(point))?)
    }

    fn witness(&self, point: &str) -> PathBuf {
        self.0.join(format!("{point}.aborted"))
    }
}
