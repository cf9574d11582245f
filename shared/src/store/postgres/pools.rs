//! Connections, and the one way anything runs on them: bounded in time, tried again where that helps, its error classified.
//!
//! Writes run in a task of their own, so that a caller that goes away never cuts one off between its commit and the answer.

use super::{PostgresConfig, fault::Fault};
use crate::{
    failpoint,
    retry::Delays,
    store::{StoreError, StoreResult},
    supervise::Tasks,
};
use anyhow::anyhow;
use futures::future::BoxFuture;
use sqlx::{
    Connection as _, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

/// Most tries of one operation.
const MAX_TRIES: u32 = 8;
/// A connection unused for longer is asked whether it still lives before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(2);
/// How long a lease's statement may take in all; a heartbeat that takes longer is of no use.
const BEAT_TIMEOUT: Duration = Duration::from_secs(3);

/// What an operation does on a connection. It may be run again after a failure.
pub(super) type Work<'c, T> = BoxFuture<'c, sqlx::Result<T>>;

/// Which connections an operation takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Writes, and the reads they are decided by; plans are pinned.
    Hot,
    /// What people look at.
    Read,
    /// Leases.
    Beat,
}

/// The connections of one process.
#[derive(Debug)]
pub(super) struct Pools {
    hot: PgPool,
    read: PgPool,
    beat: PgPool,
    operation_timeout: Duration,
    tasks: Tasks,
}

impl Pools {
    /// Opens the pools and one connection of each.
    pub(super) async fn open(config: &PostgresConfig) -> sqlx::Result<Arc<Self>> {
        let pool = |most: u32| {
            PgPoolOptions::new()
                .max_connections(most)
                .acquire_timeout(*config.acquire_timeout)
                .test_before_acquire(false)
                .before_acquire(|connection, usage| {
                    Box::pin(async move {
                        if usage.idle_for > TRUSTED_IDLE {
                            connection.ping().await.map(|()| true)
                        } else {
                            Ok(true)
                        }
                    })
                })
        };
        let hot = pool(config.write_connections.get()).connect_with(config.pinned_options("write")?);
        let read = pool(config.read_connections.get()).connect_with(config.pinned_options("read")?);
        let beat = pool(1).connect_with(config.pinned_options("lease")?);
        let (hot, read, beat) = tokio::try_join!(hot, read, beat)?;
        let operation_timeout = *config.operation_timeout;
        Ok(Arc::new(Self { hot, read, beat, operation_timeout, tasks: Tasks::default() }))
    }

    /// Waits for running writes and closes every connection.
    pub(super) async fn close(&self) {
        self.tasks.wait().await;
        tokio::join!(self.hot.close(), self.read.close(), self.beat.close());
    }

    /// Runs a read.
    pub(super) async fn read<I: Sync, T>(
        &self,
        lane: Lane,
        operation: &'static str,
        input: &I,
        work: for<'c> fn(&'c mut PgConnection, &'c I) -> Work<'c, T>,
    ) -> StoreResult<T> {
        self.run(lane, input, work).await.map_err(|fault| fault.into_error(operation))
    }

    /// Runs a write, to its end even when the caller is gone. It must bear being run again after an unknown outcome.
    pub(super) async fn write<I, T>(
        self: &Arc<Self>,
        lane: Lane,
        operation: &'static str,
        input: I,
        work: for<'c> fn(&'c mut PgConnection, &'c I) -> Work<'c, T>,
    ) -> StoreResult<T>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
    {
        self.try_write(lane, input, work).await.map_err(|fault| fault.into_error(operation))
    }

    /// As [`Self::write`], for a caller that knows some of the faults.
    pub(super) async fn try_write<I, T>(
        self: &Arc<Self>,
        lane: Lane,
        input: I,
        work: for<'c> fn(&'c mut PgConnection, &'c I) -> Work<'c, T>,
    ) -> Result<T, Fault>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let pools = Arc::clone(self);
        self.tasks.spawn("postgres_write", async move {
            failpoint::pass("store.writing");
            let written = pools.run(lane, &input, work).await;
            failpoint::pass("store.written");
            // The caller may be gone; the write is done all the same.
            answer.send(written).ok();
        });
        answered.await.unwrap_or_else(|_| Err(Fault::Away(anyhow!("the write's task panicked"))))
    }

    async fn run<I: Sync, T>(
        &self,
        lane: Lane,
        input: &I,
        work: for<'c> fn(&'c mut PgConnection, &'c I) -> Work<'c, T>,
    ) -> Result<T, Fault> {
        let within = if lane == Lane::Beat { BEAT_TIMEOUT } else { self.operation_timeout };
        let deadline = Instant::now() + within;
        let mut delays = Delays::new(Duration::from_millis(4), Duration::from_millis(250));
        let mut tries = 1;
        loop {
            let fault = match self.once(lane, deadline, input, work).await {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            let delay = delays.next_delay();
            if !fault.helps_to_try_again(tries) || tries >= MAX_TRIES || Instant::now() + delay >= deadline {
                if fault.is_transient() {
                    metrics::counter!("jobgate_store_away_total").increment(1);
                }
                return Err(fault);
            }
            metrics::counter!("jobgate_store_retries_total", "reason" => fault.label()).increment(1);
            tokio::time::sleep(delay).await;
            tries += 1;
        }
    }

    async fn once<I: Sync, T>(
        &self,
        lane: Lane,
        deadline: Instant,
        input: &I,
        work: for<'c> fn(&'c mut PgConnection, &'c I) -> Work<'c, T>,
    ) -> Result<T, Fault> {
        let mut connection = self.acquire(lane, deadline).await?;
        let outcome = timeout_at(deadline, work(&mut connection, input)).await;
        let fault = match outcome {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Fault::from(error),
            Err(_) => Fault::Away(anyhow!("no answer in time")),
        };
        if fault.spoils_connection() {
            // Out of the pool without another word: whoever waits on a silent server must not wait again to say goodbye.
            drop(connection.detach());
        }
        Err(fault)
    }

    async fn acquire(&self, lane: Lane, deadline: Instant) -> Result<PoolConnection<Postgres>, Fault> {
        let (pool, name) = match lane {
            Lane::Hot => (&self.hot, "write"),
            Lane::Read => (&self.read, "read"),
            Lane::Beat => (&self.beat, "lease"),
        };
        let asked = Instant::now();
        let acquired = timeout(deadline - asked, pool.acquire()).await;
        metrics::histogram!("jobgate_store_pool_wait_seconds", "pool" => name).record(asked.elapsed());
        match acquired {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Fault::from(error)),
            Err(_) => Err(Fault::Away(anyhow!("no connection in time"))),
        }
    }
}

/// A connection outside any pool, for the start; gives up where the pool would.
pub(super) async fn reach(
    options: &PgConnectOptions,
    config: &PostgresConfig,
    operation: &'static str,
) -> StoreResult<PgConnection> {
    match timeout(*config.acquire_timeout, PgConnection::connect_with(options)).await {
        Ok(connected) => connected.map_err(|fault| error(fault, operation)),
        Err(_) => Err(Fault::Away(anyhow!("no connection in time")).into_error(operation)),
    }
}

/// An error from outside any pool.
pub(super) fn error(error: sqlx::Error, operation: &'static str) -> StoreError {
    Fault::from(error).into_error(operation)
}
