//! The store in a file, through the suite every store must pass, and what only a file can show.

use super::*;
use crate::{
    clock::{ManualClock, SystemClock},
    store::{FullStore, conformance::Stage, differential},
};

struct InFile {
    directory: tempfile::TempDir,
    clock: Arc<ManualClock>,
    store: Arc<SqliteStore>,
}

#[async_trait]
impl Stage for InFile {
    fn store(&self) -> Arc<dyn FullStore> {
        self.store.clone()
    }

    async fn pass(&self, by: Duration) {
        self.clock.advance(by);
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

async fn in_file() -> anyhow::Result<InFile> {
    let directory = tempfile::tempdir()?;
    let clock = Arc::new(ManualClock::at(SystemClock.now()));
    let store = Arc::new(SqliteStore::open(&directory.path().join("jobs.db"), clock.clone()).await?);
    Ok(InFile { directory, clock, store })
}

crate::store_conformance!(in_file);

#[tokio::test(flavor = "multi_thread")]
async fn random_operations_are_answered_as_the_model_answers_them() -> anyhow::Result<()> {
    differential::agree(80, in_file)
}

#[tokio::test]
async fn a_second_process_is_refused_while_the_first_has_the_file() -> anyhow::Result<()> {
    let stage = in_file().await?;
    let path = stage.directory.path().join("jobs.db");
    let refused = SqliteStore::open(&path, stage.clock.clone()).await.unwrap_err();
    anyhow::ensure!(format!("{:#}", anyhow::Error::new(refused)).contains("another process has"));
    stage.store.close().await;
    drop(stage.store);
    SqliteStore::open(&path, stage.clock.clone()).await?.close().await;
    Ok(())
}

#[tokio::test]
async fn what_was_committed_is_there_after_the_file_is_opened_again() -> anyhow::Result<()> {
    let stage = in_file().await?;
    let cluster: ClusterName = "local".parse()?;
    stage.store.set_paused(&cluster, true, "tester").await?;
    stage.store.close().await;
    let InFile { directory, clock, store } = stage;
    drop(store);
    let store = SqliteStore::open(&directory.path().join("jobs.db"), clock).await?;
    assert!(store.cluster_settings().await?[0].paused);
    store.check_integrity().await?;
    store.close().await;
    Ok(())
}
