//! Waiting for what gives no signal: a foreign server, a child process. Polls with growing pauses and a bound on the whole.
//! What our own code does is awaited by its own signals, not here.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::time::{sleep, timeout};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// A probe that hangs (a half-open connection) counts as one that failed.
const PROBE: Duration = Duration::from_secs(5);

/// Asks `probe` until it answers `Ok`, for at most `within`; afterwards fails with `what` and the probe's last answer.
pub async fn until<T>(what: &str, within: Duration, mut probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let answer =
            timeout(PROBE, probe()).await.unwrap_or_else(|_| Err(anyhow!("no answer within {PROBE:?}")));
        match answer {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= within => {
                return Err(error).with_context(|| format!("{what}: not within {within:?}"));
            }
            Err(_) => sleep(pause).await,
        }
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}
