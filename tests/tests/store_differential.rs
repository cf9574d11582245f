//! Random operations are answered by the PostgreSQL store as the reference model answers them, to the microsecond: the
//! server is given a clock that stands where the test puts it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use jobgate_conformance::differential;
use jobgate_conformance::store::Stage;
use jobgate_shared::store::FullStore;
use jobgate_shared::store::postgres::{PostgresConfig, PostgresStore, migrate};
use jobgate_tests::services::Database;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::Mutex;

/// What `now()` means from here on, for everyone who connects later: a function of that name is found before the
/// server's own. Nothing here is about what survives a crash, so commits need not wait for the disk.
const CLOCK: &str = "-- manual_clock
    CREATE SCHEMA manual;
    CREATE TABLE manual.clock (at timestamptz NOT NULL);
    INSERT INTO manual.clock VALUES ('-infinity');
    CREATE FUNCTION manual.now() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT at FROM manual.clock';
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = manual, pg_catalog, public', current_database());
        EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database());
    END $$";

/// Takes away everything a sequence left behind, and the time that passed. Faster than a new database, and than TRUNCATE
/// for a few rows.
const CLEAR: &str = "-- clear
    UPDATE manual.clock SET at = '2031-05-06 07:08:09.123456+00';
    DELETE FROM jobs; DELETE FROM job_state; DELETE FROM waiting; DELETE FROM claims; DELETE FROM cancel_requests;
    DELETE FROM job_history; DELETE FROM feed; UPDATE feed_floor SET batch = 0, items = 0; DELETE FROM count_deltas;
    DELETE FROM idempotency_keys; DELETE FROM workers; DELETE FROM clusters; DELETE FROM tokens";

/// One store for all sequences.
struct Server {
    store: Arc<PostgresStore>,
    setting: Arc<Mutex<PgConnection>>,
}

#[async_trait]
impl Stage for Server {
    fn store(&self) -> Arc<dyn FullStore> {
        self.store.clone()
    }

    async fn pass(&self, by: Duration) {
        let pass = sqlx::query("-- pass\nUPDATE manual.clock SET at = at + $1 * interval '1 microsecond'");
        let micros = i64::try_from(by.as_micros()).expect("a time that can pass");
        let passed = pass.bind(micros).execute(&mut *self.setting.lock().await).await;
        passed.expect("the clock is set");
    }

    async fn close(&self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn random_operations_are_answered_as_the_model_answers_them() -> Result<()> {
    let database = Database::fresh().await?;
    let config = PostgresConfig { application_name: "test".into(), ..PostgresConfig::new(database.url()) };
    migrate(&config).await?;
    let mut setting = PgConnection::connect(database.url()).await?;
    sqlx::raw_sql(CLOCK).execute(&mut setting).await?;
    let store = Arc::new(PostgresStore::connect(&config).await?);
    let setting = Arc::new(Mutex::new(setting));
    let outcome = differential::agree(80, async || {
        sqlx::raw_sql(CLEAR).execute(&mut *setting.lock().await).await.context("clearing the tables")?;
        Ok(Server { store: store.clone(), setting: setting.clone() })
    });
    store.close().await;
    let setting = Arc::into_inner(setting).context("the clock is still in use")?;
    setting.into_inner().close().await?;
    outcome
}
