//! Signals: the first SIGTERM or SIGINT asks for a good end, the second takes none.

use anyhow::Context as _;
use jobgate_shared::supervise::Tasks;
use std::process;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Both signals that ask a process to end.
#[derive(Debug)]
pub(crate) struct Interrupts {
    terminate: Signal,
    interrupt: Signal,
}

impl Interrupts {
    /// Takes both signals over from the system's default, which is to die at once.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    /// The name of the next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Cancels `shutdown` at the first signal and ends the process at the second. What it was doing then is found by the next
/// process, as after a crash.
pub(super) fn shut_down_on_signal(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut interrupts = Interrupts::listen()?;
    // Among tasks of its own: nobody waits for a second signal.
    Tasks::default().spawn("signals", async move {
        let name = interrupts.next().await;
        tracing::info!("{name}: shutting down; a second one ends at once");
        shutdown.cancel();
        let name = interrupts.next().await;
        tracing::warn!("{name} again: ending at once");
        process::exit(130);
    });
    Ok(())
}
