//! What every role stands on: the rows, the bells and the logs, in either form.

use super::patience::until_there;
use crate::{config::Config, data_dir::DataDir};
use anyhow::Context as _;
use jobgate_shared::{
    broker::{Broker, memory::Memory, rabbitmq::RabbitMq},
    clock,
    logs::LogStore,
    store::{Apply, Leases, Store, postgres::PostgresStore, sqlite::SqliteStore},
};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The doors of one process.
#[derive(Debug, Clone)]
pub(super) struct Doors {
    /// The rows, for the API and its loops.
    pub(super) store: Arc<dyn Store>,
    /// The same rows, for the recorder.
    pub(super) apply: Arc<dyn Apply>,
    /// The same rows, for a worker.
    pub(super) leases: Arc<dyn Leases>,
    /// The bells.
    pub(super) broker: Arc<dyn Broker>,
    /// What jobs print.
    pub(super) logs: LogStore,
    /// The store as what it is, to close it.
    adapter: Adapter,
}

/// Which store it is.
#[derive(Debug, Clone)]
enum Adapter {
    Postgres(Arc<PostgresStore>),
    Sqlite(Arc<SqliteStore>),
}

impl Doors {
    /// Ends every connection, once nobody needs them any more.
    pub(super) async fn close(&self) {
        self.broker.close().await;
        match &self.adapter {
            Adapter::Postgres(store) => store.close().await,
            Adapter::Sqlite(store) => store.close().await,
        }
    }
}

/// PostgreSQL and RabbitMQ, waited for until both can be used or `shutdown` (then `None`). RabbitMQ need not be there:
/// it is connected to in the background, and everything but latency holds without it.
pub(super) async fn distributed(
    config: &Config,
    role: &'static str,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Doors>> {
    let postgres = config.store.postgres(role)?;
    let broker = config.broker.rabbitmq(role)?;
    let logs = logs(config, &DataDir::make(&config.data_dir)?)?;
    let connect = || Box::pin(PostgresStore::connect(&postgres));
    let Some(store) = until_there("the database", shutdown, connect).await? else { return Ok(None) };
    let store = Arc::new(store);
    let broker = RabbitMq::connect_lazily(broker, format!("jobgate {role} {}", super::worker::host(config)));
    Ok(Some(Doors {
        store: store.clone(),
        apply: store.clone(),
        leases: store.clone(),
        broker: Arc::new(broker),
        logs,
        adapter: Adapter::Postgres(store),
    }))
}

/// A file in the data directory, and bells inside this process. The caller holds the directory's lock.
pub(super) async fn embedded(config: &Config, data_dir: &DataDir) -> anyhow::Result<Doors> {
    let file = data_dir.store_file();
    let opened = SqliteStore::open(&file, clock::system()).await;
    let store = Arc::new(opened.with_context(|| format!("cannot open {}", file.display()))?);
    // Whoever had a lease held the lock before us, and is gone.
    store.expire_all_leases().await.context("cannot end the leases of the process before")?;
    Ok(Doors {
        store: store.clone(),
        apply: store.clone(),
        leases: store.clone(),
        broker: Arc::new(Memory::new()),
        logs: logs(config, data_dir)?,
        adapter: Adapter::Sqlite(store),
    })
}

fn logs(config: &Config, data_dir: &DataDir) -> anyhow::Result<LogStore> {
    let directory = config.logs.directory.clone().unwrap_or_else(|| data_dir.logs());
    LogStore::directory(&directory)
        .with_context(|| format!("cannot open the logs in {}", directory.display()))
}
