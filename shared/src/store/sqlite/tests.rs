//! What only a store in a file can show.

use super::*;
use crate::clock::{ManualClock, SystemClock};

struct InFile {
    directory: tempfile::TempDir,
    clock: Arc<ManualClock>,
    store: Arc<SqliteStore>,
}

async fn in_file() -> anyhow::Result<InFile> {
    let directory = tempfile::tempdir()?;
    let clock = Arc::new(ManualClock::at(SystemClock.now()));
    let store = Arc::new(SqliteStore::open(&directory.path().join("jobs.db"), clock.clone()).await?);
    Ok(InFile { directory, clock, store })
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

/// What a build before reports were kept by attempt left in the file.
#[tokio::test]
async fn progress_of_an_older_file_belongs_to_the_attempt_under_way() -> anyhow::Result<()> {
    let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
    for older in [
        "CREATE TABLE jobs (id INTEGER, asked TEXT)",
        "CREATE TABLE job_state (job INTEGER, life TEXT)",
        r#"INSERT INTO jobs VALUES (1, '{"name": "a", "progress": 40}'), (2, '{"name": "b", "progress": null}')"#,
        r#"INSERT INTO job_state VALUES (1, '{"attempt": 3}'), (2, '{"attempt": 1}')"#,
        include_str!("../../../migrations/sqlite/0002_reports.sql"),
    ] {
        sqlx::query(older).execute(&mut connection).await?;
    }
    let told =
        sqlx::query("SELECT asked -> '$.report' FROM jobs ORDER BY id").fetch_all(&mut connection).await?;
    let report: crate::domain::SelfReport = serde_json::from_str(told[0].get(0))?;
    assert_eq!(report, crate::domain::SelfReport { progress: Some(40), ..crate::domain::SelfReport::of(3) });
    assert_eq!(told[1].get::<Option<String>, _>(0), None);
    Ok(())
}
