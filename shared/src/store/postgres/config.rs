//! How to reach the server, and how long to wait for it.

use crate::settings::{Number, Period};
use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;
use std::{fmt, str::FromStr as _, time::Duration};

/// How the PostgreSQL store reaches its server.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database?sslmode=…`. The password is never printed.
    pub url: String,
    /// What the server shows for our connections in `pg_stat_activity`.
    #[serde(default = "application_name")]
    pub application_name: String,
    /// Most connections for writes and for the reads writes are decided by.
    #[serde(default = "connections")]
    pub write_connections: Number<1, 1000>,
    /// Most connections for everything people look at.
    #[serde(default = "connections")]
    pub read_connections: Number<1, 1000>,
    /// How long to wait for a free connection before the store counts as away.
    #[serde(default = "acquire_timeout")]
    pub acquire_timeout: Period<100, 60_000>,
    /// How long a statement may wait for another transaction's lock.
    #[serde(default = "lock_timeout")]
    pub lock_timeout: Period<100, 60_000>,
    /// How long one statement may run on the server.
    #[serde(default = "statement_timeout")]
    pub statement_timeout: Period<1_000, 600_000>,
    /// How long a whole operation may take, its tries together, before the store counts as away. Bounds what a server
    /// that fell silent can hold up.
    #[serde(default = "operation_timeout")]
    pub operation_timeout: Period<1_000, 600_000>,
}

fn application_name() -> String {
    "jobgate".to_owned()
}

fn connections() -> Number<1, 1000> {
    Number::new(8)
}

fn acquire_timeout() -> Period<100, 60_000> {
    Period::new(Duration::from_millis(2_500))
}

fn lock_timeout() -> Period<100, 60_000> {
    Period::new(Duration::from_secs(3))
}

fn statement_timeout() -> Period<1_000, 600_000> {
    Period::new(Duration::from_secs(15))
}

fn operation_timeout() -> Period<1_000, 600_000> {
    Period::new(Duration::from_secs(20))
}

impl PostgresConfig {
    /// The server at `url`, everything else as usual.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            application_name: application_name(),
            write_connections: connections(),
            read_connections: connections(),
            acquire_timeout: acquire_timeout(),
            lock_timeout: lock_timeout(),
            statement_timeout: statement_timeout(),
            operation_timeout: operation_timeout(),
        }
    }

    /// Whether this can be the address of a server; an error says what is wrong, and repeats nothing of what may be secret.
    pub fn check_url(url: &str) -> Result<(), String> {
        if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err("must begin with postgres://".to_owned());
        }
        match PgConnectOptions::from_str(url) {
            Ok(_) => Ok(()),
            Err(sqlx::Error::Configuration(cause)) => Err(format!("is no address of a database: {cause}")),
            Err(_) => Err("is no address of a database".to_owned()),
        }
    }

    /// How a connection for `purpose` is opened.
    pub(super) fn options(&self, purpose: &str) -> sqlx::Result<PgConnectOptions> {
        let statement = self.statement_timeout.as_millis().to_string();
        let lock = self.lock_timeout.as_millis().to_string();
        let options = PgConnectOptions::from_str(&self.url)?
            .application_name(&format!("{} {purpose}", self.application_name))
            // A transaction that stands idle has lost its client; its locks must not outlive it by much.
            .options([("idle_in_transaction_session_timeout", statement.as_str())])
            .options([("statement_timeout", statement.as_str()), ("lock_timeout", lock.as_str())])
            .options([("jit", "off"), ("default_transaction_isolation", "read committed")]);
        Ok(options)
    }

    /// As [`Self::options`], with the plans of the hot statements pinned: each finds its rows through an index whatever
    /// the statistics say, so one plan serves a batch of any size. Their joins are written so that nothing but a nested
    /// loop over that index is possible (`= ANY (ARRAY[…])`), and a sequential scan is the one way around it.
    pub(super) fn pinned_options(&self, purpose: &str) -> sqlx::Result<PgConnectOptions> {
        let pins = [
            ("plan_cache_mode", "force_generic_plan"),
            ("enable_seqscan", "off"),
            ("enable_bitmapscan", "off"),
        ];
        Ok(self.options(purpose)?.options(pins))
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("url", &without_password(&self.url))
            .field("application_name", &self.application_name)
            .field("write_connections", &self.write_connections.get())
            .field("read_connections", &self.read_connections.get())
            .field("acquire_timeout", &*self.acquire_timeout)
            .field("lock_timeout", &*self.lock_timeout)
            .field("statement_timeout", &*self.statement_timeout)
            .field("operation_timeout", &*self.operation_timeout)
            .finish()
    }
}

/// The address with neither password nor query, either of which may hold a secret.
fn without_password(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return "…".to_owned() };
    // A password may itself hold an '@'.
    match rest.rsplit_once('@') {
        None => format!("{scheme}://{rest}"),
        Some((credentials, place)) => {
            let user = credentials.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{place}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_can_be_none_is_refused_without_a_word_of_its_password() {
        for good in
            ["postgres://jg:se@db:5432/jobs?sslmode=require", "postgresql:///jobs?host=/run/postgresql"]
        {
            assert_eq!(PostgresConfig::check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "secret",
            "mysql://jg:secret@db/jobs",
            "postgres://jg:secret@db:port/jobs",
            "postgres://jg:secret@db/jobs?sslmode=perhaps",
            "postgres://jg:secret@[db/jobs",
        ] {
            let said = PostgresConfig::check_url(bad).unwrap_err();
            assert!(!said.is_empty() && !said.contains("secret"), "{bad}: {said}");
        }
    }

    #[test]
    fn a_printed_configuration_holds_no_password() {
        for url in
            ["postgres://jg:se@cret@db:5432/jobs?password=secret", "postgres://jg:secret@db/jobs", "secret"]
        {
            let printed = format!("{:?}", PostgresConfig::new(url));
            assert!(!printed.contains("cret"), "{printed}");
        }
        let printed = format!("{:?}", PostgresConfig::new("postgres://jg:secret@db:5432/jobs"));
        assert!(printed.contains("postgres://jg@db:5432/jobs"), "{printed}");
    }
}
