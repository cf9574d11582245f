//! What went wrong on a connection, sorted by what helps: the only place that reads the server's error codes.

use crate::store::StoreError;
use anyhow::Error;

/// A failed try.
#[derive(Debug)]
pub(super) enum Fault {
    /// Another transaction was in the way; the server undid ours.
    Conflict(sqlx::Error),
    /// The connection broke: whether it took effect is unknown.
    Broken(sqlx::Error),
    /// The server cannot serve now; or it did not answer in time, and the outcome is unknown.
    Away(Error),
    /// A row with this unique value is there already.
    Taken(sqlx::Error),
    /// It will never do this.
    Refused(sqlx::Error),
}

/// How often a broken connection is followed by another try at once. One per pooled connection would be needed after a
/// restart of the server; callers come back anyway.
const BREAKS_BORNE: u32 = 3;

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        if let sqlx::Error::Database(database) = &error {
            let code = database.code().unwrap_or_default().into_owned();
            return Self::from_code(&code, error);
        }
        if matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed) {
            return Self::Away(error.into());
        }
        if matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)) {
            return Self::Broken(error);
        }
        Self::Refused(error)
    }
}

impl Fault {
    /// By SQLSTATE (PostgreSQL manual, appendix A).
    fn from_code(code: &str, error: sqlx::Error) -> Self {
        match code {
            // serialization_failure, deadlock_detected, lock_not_available
            "40001" | "40P01" | "55P03" => Self::Conflict(error),
            // unique_violation
            "23505" => Self::Taken(error),
            // admin_shutdown, crash_shutdown, cannot_connect_now, idle_in_transaction_session_timeout
            "57P01" | "57P02" | "57P03" | "25P03" => Self::Broken(error),
            // query_canceled (our statement_timeout), read_only_sql_transaction (a standby after a failover)
            "57014" | "25006" => Self::Away(error.into()),
            // connection_exception
            code if code.starts_with("08") => Self::Broken(error),
            // insufficient_resources: too many connections, disk full, out of memory
            code if code.starts_with("53") => Self::Away(error.into()),
            _ => Self::Refused(error),
        }
    }

    /// Trying again, after `tries` so far, may help.
    pub(super) fn helps_to_try_again(&self, tries: u32) -> bool {
        match self {
            Self::Conflict(_) => true,
            Self::Broken(_) => tries < BREAKS_BORNE,
            Self::Away(_) | Self::Taken(_) | Self::Refused(_) => false,
        }
    }

    /// To callers the store is away.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Conflict(_) | Self::Broken(_) | Self::Away(_) => true,
            Self::Taken(_) | Self::Refused(_) => false,
        }
    }

    /// The connection must not be used again.
    pub(super) fn spoils_connection(&self) -> bool {
        match self {
            Self::Broken(_) | Self::Away(_) => true,
            Self::Conflict(_) | Self::Taken(_) | Self::Refused(_) => false,
        }
    }

    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Conflict(_) => "conflict",
            Self::Broken(_) => "broken",
            Self::Away(_) => "away",
            Self::Taken(_) => "taken",
            Self::Refused(_) => "refused",
        }
    }

    pub(super) fn into_error(self, operation: &'static str) -> StoreError {
        match self {
            Self::Conflict(error) | Self::Broken(error) => StoreError::Away(error.into()),
            Self::Away(error) => StoreError::Away(error),
            Self::Taken(error) | Self::Refused(error) => {
                StoreError::Refused { operation, source: error.into() }
            }
        }
    }
}
