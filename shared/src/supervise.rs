//! Tasks that do not die unnoticed. The only place that spawns.
//!
//! A one-shot task that panics is logged and counted; a loop that ends while it should run is logged, counted and begun
//! again after a delay. Shutdown is a token every task watches, then a wait for all of them.

use crate::retry::Delays;
use futures::FutureExt as _;
use metrics::Counter;
use std::{future::Future, panic::AssertUnwindSafe, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The tasks of one role.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    /// Cancelled when a one-shot task has panicked.
    panicked: CancellationToken,
}

impl Tasks {
    /// Tasks that stop when `shutdown` is cancelled.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { shutdown, ..Self::default() }
    }

    /// Tasks that make no sense without one another: when one of them has panicked, `over` is cancelled.
    pub fn of_one_fate(over: &CancellationToken) -> Self {
        Self { panicked: over.clone(), ..Self::default() }
    }

    /// Cancelled when the tasks should stop.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Runs `task` once, to its end even during a shutdown.
    #[allow(clippy::disallowed_methods, reason = "this is the tracker the rule points to")]
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let panicked = self.panicked.clone();
        // There from now on, at 0: whoever watches increases is to see the first panic as one.
        panics(name).increment(0);
        self.tracker.spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                panics(name).increment(1);
                tracing::error!(task = name, "a task panicked");
                panicked.cancel();
            }
        });
    }

    /// Keeps `make()` running until shutdown: an error, a panic or an early end is logged and it is begun again.
    pub fn supervise<M, F>(&self, name: &'static str, mut make: M)
    where
        M: FnMut() -> F + Send + 'static,
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let shutdown = self.shutdown.clone();
        restarts(name).increment(0);
        self.spawn(name, async move {
            let mut delays = Delays::new(Duration::from_millis(50), Duration::from_secs(5));
            while !shutdown.is_cancelled() {
                let began = tokio::time::Instant::now();
                let ended = AssertUnwindSafe(make()).catch_unwind().await;
                if shutdown.is_cancelled() {
                    break;
                }
                match ended {
                    Ok(Ok(())) => tracing::warn!(task = name, "a loop ended early; it begins again"),
                    Ok(Err(error)) => tracing::error!(
                        task = name,
                        error = format!("{error:#}"),
                        "a loop failed; it begins again"
                    ),
                    Err(_) => tracing::error!(task = name, "a loop panicked; it begins again"),
                }
                restarts(name).increment(1);
                if began.elapsed() > Duration::from_mins(1) {
                    delays.reset();
                }
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(delays.next_delay()) => {}
                }
            }
        });
    }

    /// Asks every task to stop and waits until they have.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.wait().await;
    }

    /// Waits until every task has ended; whoever asked for the shutdown did so through the token.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

fn panics(task: &'static str) -> Counter {
    metrics::counter!("jobgate_task_panics_total", "task" => task)
}

fn restarts(name: &'static str) -> Counter {
    metrics::counter!("jobgate_loop_restarts_total", "loop" => name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_fails_or_panics_is_begun_again_until_shutdown() {
        let tasks = Tasks::default();
        let runs = Arc::new(AtomicU32::new(0));
        let (seen, shutdown) = (runs.clone(), tasks.shutdown().clone());
        tasks.supervise("test", move || {
            let (seen, shutdown) = (seen.clone(), shutdown.clone());
            async move {
                match seen.fetch_add(1, Ordering::SeqCst) {
                    0 => anyhow::bail!("an error"),
                    1 => panic!("a panic"),
                    2 => Ok(()),
                    _ => {
                        shutdown.cancel();
                        Ok(())
                    }
                }
            }
        });
        tasks.wait().await;
        assert_eq!(runs.load(Ordering::SeqCst), 4);
    }
}
