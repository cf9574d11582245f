//! The store in a file keeps the contract of every store, and answers random operations as the reference model does.

use async_trait::async_trait;
use jobgate_conformance::{differential, store::Stage};
use jobgate_shared::{
    clock::{Clock as _, ManualClock, SystemClock},
    store::{FullStore, sqlite::SqliteStore},
};
use std::{sync::Arc, time::Duration};

struct InFile {
    clock: Arc<ManualClock>,
    store: Arc<SqliteStore>,
    _directory: tempfile::TempDir,
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
    Ok(InFile { clock, store, _directory: directory })
}

jobgate_conformance::store_conformance!(in_file);

#[tokio::test(flavor = "multi_thread")]
async fn random_operations_are_answered_as_the_model_answers_them() -> anyhow::Result<()> {
    differential::agree(80, in_file)
}
