//! Beginning while something is away: tried again with a word about it, neither a crash loop nor an exit.

use jobgate_shared::{
    retry::Delays,
    store::{StoreError, StoreResult},
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The longest wait between two tries: whoever brings the database back should not have to wait long for us.
const LONGEST: Duration = Duration::from_secs(5);

/// Calls `connect` until it answers, is refused for good, or `shutdown`: then `None`.
pub(super) async fn until_there<T, F>(
    what: &str,
    shutdown: &CancellationToken,
    mut connect: impl FnMut() -> F,
) -> anyhow::Result<Option<T>>
where
    F: Future<Output = StoreResult<T>>,
{
    let mut delays = Delays::new(Duration::from_millis(200), LONGEST);
    let mut waited = false;
    loop {
        match shutdown.run_until_cancelled(connect()).await {
            None => return Ok(None),
            Some(Ok(there)) => {
                if waited {
                    tracing::info!("{what} is there");
                }
                return Ok(Some(there));
            }
            Some(Err(error @ StoreError::Refused { .. })) => return Err(error.into()),
            Some(Err(error @ StoreError::Away(_))) => {
                let delay = delays.next_delay();
                let cause = format!("{:#}", anyhow::Error::new(error));
                tracing::warn!(
                    error = cause,
                    "{what} is away; trying again in {}",
                    humantime::format_duration(round(delay))
                );
                waited = true;
                if shutdown.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                    return Ok(None);
                }
            }
        }
    }
}

fn round(delay: Duration) -> Duration {
    Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> StoreError {
        StoreError::Away(anyhow::anyhow!("connection refused"))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_away_is_tried_until_it_is_there() {
        let mut tries = 0;
        let shutdown = CancellationToken::new();
        let there = until_there("the database", &shutdown, || {
            tries += 1;
            let there = tries == 40;
            async move { if there { Ok("there") } else { Err(away()) } }
        });
        assert_eq!(there.await.unwrap(), Some("there"));
    }

    #[tokio::test]
    async fn what_is_refused_for_good_is_not_tried_again() {
        let shutdown = CancellationToken::new();
        let refused = until_there("the database", &shutdown, || async {
            Err::<(), _>(StoreError::Refused {
                operation: "connect",
                source: anyhow::anyhow!("no such role"),
            })
        });
        assert_eq!(refused.await.unwrap_err().to_string(), "the store refused to connect");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_ends_the_waiting() {
        let shutdown = CancellationToken::new();
        let (never, seen) = (shutdown.clone(), shutdown.clone());
        let waited = until_there::<(), _>("the database", &never, move || {
            seen.cancel();
            async { Err(away()) }
        });
        assert!(waited.await.unwrap().is_none());
    }
}
