//! What a store can do at best on this machine, whatever is built on it: what measurements are read against.

use std::time::Duration;
use tokio::time::Instant;

/// Rows of the batch that is inserted.
pub(super) const INSERTED: u32 = 1_000;
/// Rows of the batch that is claimed.
pub(super) const CLAIMED: u32 = 100;
/// How often each is done; the median counts.
const ROUNDS: usize = 101;

/// The floors of one store, each the median of a hundred rounds, one after another on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreFloors {
    /// A durable transaction that writes one row.
    pub commit_one_row: Duration,
    /// A durable transaction that inserts 1 000 rows with one statement.
    pub insert_thousand_rows: Duration,
    /// A durable transaction that updates 100 narrow rows, found by id, with one statement, and returns them.
    pub claim_hundred_by_id: Duration,
}

/// The median time of `step`, which is given the number of its round.
pub(super) async fn median<E>(mut step: impl AsyncFnMut(u32) -> Result<(), E>) -> Result<Duration, E> {
    let mut times = Vec::with_capacity(ROUNDS);
    for round in (0..).take(ROUNDS) {
        let began = Instant::now();
        step(round).await?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times[ROUNDS / 2])
}
