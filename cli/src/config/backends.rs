//! `[store]` and `[broker]`: where rows are kept and who rings the bells, in the distributed form. `serve` has its own.
//!
//! The adapters' own structs hold the values and their defaults; here an address may be missing, because only some
//! roles need one.

use super::{ConfigError, Conflict, Secret};
use jobgate_shared::{
    broker::rabbitmq::{AmqpUrl, Prefix, QueueKind, RabbitMqConfig},
    settings::{Number, Period},
    store::postgres::PostgresConfig,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StoreSection {
    /// PostgreSQL's address.
    pub(crate) url: Option<Secret>,
    /// What PostgreSQL shows for our connections.
    pub(crate) application_name: String,
    /// Most connections of one process for writes, and for the reads that writes are decided by.
    pub(crate) write_connections: Number<1, 1000>,
    /// Most connections of one process for what people look at.
    pub(crate) read_connections: Number<1, 1000>,
    /// How long to wait for a free connection before the store counts as away.
    pub(crate) acquire_timeout: Period<100, 60_000>,
    /// How long a statement may wait for another transaction's lock.
    pub(crate) lock_timeout: Period<100, 60_000>,
    /// How long one statement may run on the server.
    pub(crate) statement_timeout: Period<1_000, 600_000>,
    /// How long a whole operation may take, its tries together, before the store counts as away.
    pub(crate) operation_timeout: Period<1_000, 600_000>,
}

impl Default for StoreSection {
    fn default() -> Self {
        let usual = PostgresConfig::new("");
        Self {
            url: None,
            application_name: usual.application_name,
            write_connections: usual.write_connections,
            read_connections: usual.read_connections,
            acquire_timeout: usual.acquire_timeout,
            lock_timeout: usual.lock_timeout,
            statement_timeout: usual.statement_timeout,
            operation_timeout: usual.operation_timeout,
        }
    }
}

/// `role` cannot begin without this.
fn needed(key: &str, variable: &str, role: &str) -> ConfigError {
    let message = format!("`jobgate {role}` needs it, here or in {variable}; `jobgate serve` does without");
    ConfigError::Impossible { key: key.to_owned(), message }
}

impl StoreSection {
    pub(super) fn check(&self) -> Result<(), Conflict> {
        let url = self.url.as_ref().map_or(Ok(()), |url| PostgresConfig::check_url(url.expose()));
        url.map_err(|message| Conflict { key: "store.url".to_owned(), message })
    }

    /// As the adapter takes it; an error when there is no address, which `role` needs.
    pub(crate) fn postgres(&self, role: &str) -> Result<PostgresConfig, ConfigError> {
        let url = self.url.as_ref().ok_or_else(|| needed("store.url", "JOBGATE_DATABASE_URL", role))?;
        Ok(PostgresConfig {
            url: url.expose().to_owned(),
            application_name: self.application_name.clone(),
            write_connections: self.write_connections,
            read_connections: self.read_connections,
            acquire_timeout: self.acquire_timeout,
            lock_timeout: self.lock_timeout,
            statement_timeout: self.statement_timeout,
            operation_timeout: self.operation_timeout,
        })
    }
}

/// `[broker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BrokerSection {
    /// RabbitMQ's address.
    pub(crate) url: Option<AmqpUrl>,
    /// For `amqps`: certificate authorities to trust beside the public ones.
    pub(crate) ca_certificate: Option<PathBuf>,
    /// Begins the name of every queue and exchange.
    pub(crate) prefix: Prefix,
    /// What dispatch queues are made as.
    pub(crate) dispatch_queue: QueueKind,
    /// Most messages written and not confirmed.
    pub(crate) publish_window: Number<1, 10_000>,
    /// How long a message may wait for its confirm.
    pub(crate) publish_timeout: Period<100, 60_000>,
    /// How long reaching the broker and its greeting may take each.
    pub(crate) connect_timeout: Period<100, 60_000>,
}

impl Default for BrokerSection {
    fn default() -> Self {
        let usual = RabbitMqConfig::default();
        Self {
            url: None,
            ca_certificate: usual.ca_certificate,
            prefix: usual.prefix,
            dispatch_queue: usual.dispatch_queue,
            publish_window: usual.publish_window,
            publish_timeout: usual.publish_timeout,
            connect_timeout: usual.connect_timeout,
        }
    }
}

impl BrokerSection {
    /// As the adapter takes it; an error when there is no address, which `role` needs.
    pub(crate) fn rabbitmq(&self, role: &str) -> Result<RabbitMqConfig, ConfigError> {
        let url = self.url.clone().ok_or_else(|| needed("broker.url", "JOBGATE_BROKER_URL", role))?;
        Ok(RabbitMqConfig {
            url,
            ca_certificate: self.ca_certificate.clone(),
            prefix: self.prefix.clone(),
            dispatch_queue: self.dispatch_queue,
            publish_window: self.publish_window,
            publish_timeout: self.publish_timeout,
            connect_timeout: self.connect_timeout,
        })
    }
}
