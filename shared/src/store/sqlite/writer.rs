//! The one connection that writes.
//!
//! Operations queue; whatever is there when the last commit ends shares the next transaction, each behind its own savepoint,
//! and everybody is answered once it is on the disk. An operation that fails takes nothing of the others with it.

use crate::{
    clock::Clock,
    failpoint,
    store::{StoreError, StoreResult},
};
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use sqlx::{Connection as _, SqliteConnection};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Most operations in one transaction.
const MERGED: usize = 256;

/// Answers the caller once it is known whether the transaction was committed.
type Answer = Box<dyn FnOnce(Option<StoreError>) + Send>;
/// An operation: runs inside the transaction and says how to answer, or fails and has been answered.
type Work = Box<dyn for<'c> FnOnce(&'c mut Transaction) -> BoxFuture<'c, Result<Answer, ()>> + Send>;

/// What an operation works with.
pub(super) struct Transaction {
    pub(super) connection: SqliteConnection,
    /// The store's time, the same for everything of one transaction.
    pub(super) now: DateTime<Utc>,
}

/// The door to the writing connection.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Mutex<Option<mpsc::UnboundedSender<Work>>>,
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
}

impl Writer {
    pub(super) fn spawn(connection: SqliteConnection, clock: Arc<dyn Clock>) -> Self {
        let (queue, waiting) = mpsc::unbounded_channel();
        let (over, ended) = oneshot::channel();
        let tasks = crate::supervise::Tasks::default();
        tasks.spawn("sqlite-writer", async move {
            serve(connection, clock, waiting).await;
            over.send(()).unwrap_or_default();
        });
        Self { queue: Mutex::new(Some(queue)), ended: tokio::sync::Mutex::new(Some(ended)) }
    }

    /// Runs `operation` inside the next transaction; its answer is given when that is durable.
    pub(super) async fn run<T, F>(&self, operation: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Transaction) -> BoxFuture<'c, StoreResult<T>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel::<StoreResult<T>>();
        let work: Work = Box::new(move |transaction| {
            Box::pin(async move {
                match operation(transaction).await {
                    Ok(value) => Ok(Box::new(move |failed: Option<StoreError>| {
                        reply.send(failed.map_or(Ok(value), Err)).unwrap_or_default();
                    }) as Answer),
                    Err(error) => {
                        reply.send(Err(error)).unwrap_or_default();
                        Err(())
                    }
                }
            })
        });
        let closed = || StoreError::Away(anyhow::anyhow!("the store is closed"));
        {
            let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.as_ref().ok_or_else(closed)?.send(work).map_err(|_| closed())?;
        }
        answer.await.map_err(|_| closed())?
    }

    /// Lets what is queued be written, then closes the connection.
    pub(super) async fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(ended) = self.ended.lock().await.take() {
            ended.await.unwrap_or_default();
        }
    }
}

async fn serve(
    connection: SqliteConnection,
    clock: Arc<dyn Clock>,
    mut waiting: mpsc::UnboundedReceiver<Work>,
) {
    let mut transaction = Transaction { connection, now: clock.now() };
    let mut batch = Vec::with_capacity(MERGED);
    while waiting.recv_many(&mut batch, MERGED).await > 0 {
        transaction.now = clock.now();
        metrics::histogram!("jobgate_store_merged_writes")
            .record(u32::try_from(batch.len()).unwrap_or(u32::MAX));
        merge(&mut transaction, batch.drain(..)).await;
    }
    if let Err(error) = transaction.connection.close().await {
        tracing::warn!(%error, "the store's file was not closed in good order; it is recovered at the next start");
    }
}

/// One transaction with all of these in it.
async fn merge(transaction: &mut Transaction, batch: impl Iterator<Item = Work>) {
    let mut answers = Vec::new();
    // IMMEDIATE: a read that turns into a write later could not wait for anybody.
    let mut failed = execute(transaction, "-- begin\nBEGIN IMMEDIATE").await.err();
    for work in batch {
        if failed.is_some() {
            // Dropped: its caller hears that the store is away, and nothing of it was done.
            continue;
        }
        if let Err(error) = execute(transaction, "-- savepoint\nSAVEPOINT operation").await {
            failed = Some(error);
            continue;
        }
        let statement = match work(transaction).await {
            Ok(answer) => {
                answers.push(answer);
                "-- release\nRELEASE operation"
            }
            Err(()) => "-- undo\nROLLBACK TO operation; RELEASE operation",
        };
        failed = execute(transaction, statement).await.err();
    }
    if failed.is_none() {
        failpoint::pass("store.writing");
        failed = execute(transaction, "-- commit\nCOMMIT").await.err();
        failpoint::pass("store.written");
    }
    if let Some(error) = &failed {
        metrics::counter!("jobgate_store_away_total").increment(1);
        tracing::error!(%error, operations = answers.len(), "a transaction failed; its callers try again");
        // A failed COMMIT (a full disk) leaves the transaction open; a failed BEGIN left none.
        if let Err(error) = execute(transaction, "-- rollback\nROLLBACK").await {
            tracing::debug!(%error, "nothing to roll back");
        }
    }
    for answer in answers {
        answer(failed.as_ref().map(|error| StoreError::Away(anyhow::anyhow!("{error}"))));
    }
}

async fn execute(transaction: &mut Transaction, statement: &'static str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(statement).execute(&mut transaction.connection).await?;
    Ok(())
}

/// What an error of SQLite means for the port. The only place that decides.
#[allow(clippy::wildcard_enum_match_arm, reason = "the library's own list, which grows")]
pub(super) fn fault(error: sqlx::Error, operation: &'static str) -> StoreError {
    let refused = match &error {
        // SQLITE_CONSTRAINT (19) and SQLITE_ERROR (1), SQLITE_TOOBIG (18), SQLITE_MISMATCH (20): it will never work. All else
        // (busy, full, read-only, I/O) may work again.
        sqlx::Error::Database(source) => source
            .code()
            .and_then(|code| code.parse::<u32>().ok())
            .is_some_and(|code| matches!(code & 0xff, 1 | 18 | 19 | 20)),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => true,
        _ => false,
    };
    if refused {
        StoreError::Refused { operation, source: error.into() }
    } else {
        StoreError::Away(error.into())
    }
}
