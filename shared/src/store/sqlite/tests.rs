//! What only a store in a file can show.

use super::*;
use crate::{
    clock::{ManualClock, SystemClock},
    domain::JobState,
};

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

#[tokio::test]
async fn old_feed_goes_a_part_at_a_time_and_is_kept_from_one_point_on() -> anyhow::Result<()> {
    let stage = in_file().await?;
    let file = stage.directory.path().join("jobs.db");
    let mut connection = SqliteConnection::connect_with(&settings_of(&file)).await?;
    // One before the last is young, as when the clock was set back.
    let tell = "-- tell
        WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < 2503)
        INSERT INTO feed (at, changes, length) SELECT iif(n = 2500, ?1, 0), '[]', 3 FROM n";
    sqlx::query(tell).bind(stage.clock.now().timestamp_micros()).execute(&mut connection).await?;
    let (mut more, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        more.push(stage.store.retire_feed(stage.clock.now()).await?);
        let end = "-- ends
            SELECT forgotten.batch, forgotten.length, (SELECT min(batch) FROM feed) FROM feed_forgotten forgotten";
        ends.push(sqlx::query_as::<_, (i64, i64, i64)>(end).fetch_one(&mut connection).await?);
    }
    assert_eq!(more, [true, true, false, false]);
    assert_eq!(ends, [(1_000, 3, 1_001), (2_000, 3, 2_001), (2_499, 3, 2_500), (2_499, 3, 2_500)]);
    connection.close().await?;
    stage.store.close().await;
    Ok(())
}

#[tokio::test]
async fn a_listing_looks_at_so_many_jobs_and_at_no_finished_one_for_other_states() -> anyhow::Result<()> {
    let stage = in_file().await?;
    let file = stage.directory.path().join("jobs.db");
    let mut connection = SqliteConnection::connect_with(&settings_of(&file)).await?;
    for made in [
        "-- make_jobs
        WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < 20000)
        INSERT INTO jobs (id, project, name, cluster, labels, created_at, asked)
        SELECT unhex(printf('%032x', n)), 'default', 'sum', 'local', '[]', 0, '' FROM n",
        "-- make_finished
        INSERT INTO job_state (job, project, cluster, priority, max_attempts, retry, life, state, cancel, finished_at)
        SELECT id, project, cluster, 0, 1, '', '', 5, 0, 0 FROM jobs",
    ] {
        sqlx::query(made).execute(&mut connection).await?;
    }
    connection.close().await?;
    let list = async |filter: &Filter, after| {
        stage.store.list(&Scope::All, filter, PageRequest { after, limit: 100 }).await
    };
    let unused = Filter { labels: vec!["nobody has it".into()], ..Filter::default() };
    let first = list(&unused, None).await?;
    assert!(first.jobs.is_empty() && first.next.is_some(), "{first:?}");
    assert_eq!(list(&unused, first.next).await?, Page::default());
    for state in JobState::ALL.into_iter().filter(|state| *state != JobState::Finished) {
        let filter = Filter { states: vec![state], ..Filter::default() };
        assert_eq!(list(&filter, None).await?, Page::default(), "{state}");
    }
    stage.store.close().await;
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

#[tokio::test]
async fn a_read_of_the_feed_takes_no_batch_it_has_no_room_for() -> anyhow::Result<()> {
    let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
    MIGRATIONS.run(&mut connection).await?;
    sqlx::query(
        "INSERT INTO feed (at, changes, length) VALUES (0, '', 3), (0, '', 1), (0, '', 1000), (0, '', 1000)",
    )
    .execute(&mut connection)
    .await?;
    for (batch, index, limit, expected) in [
        (0, 0, 3, vec![1]),
        (0, 0, 4, vec![1, 2]),
        (1, 1, 2, vec![1]),
        (1, 1, 3, vec![1, 2]),
        (1, 3, 2, vec![2, 3]),
        (2, 1, 1000, vec![3]),
        (3, 400, 600, vec![3]),
        (3, 400, 601, vec![3, 4]),
        (4, 1000, 500, vec![]),
    ] {
        let read = queue::unread_batches(&mut connection, FeedCursor { batch, index }, limit).await?;
        let read: Vec<i64> = read.into_iter().map(|(batch, _)| batch).collect();
        assert_eq!(read, expected, "{limit} after {batch}-{index}");
    }
    Ok(())
}
