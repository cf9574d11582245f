//! Logs of this process: text for people on a terminal, one JSON object a line for collectors.
//!
//! Secrets never reach it: they are types that do not print themselves.

use crate::config::{ConfigError, LogFormat, TelemetrySection};
use std::io::{self, IsTerminal as _};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// What client commands log when nothing else is asked for: what went wrong.
pub(crate) const QUIET: &str = "warn";

/// Sends this process's log to standard error. Called once.
pub(crate) fn begin(settings: &TelemetrySection, log: &str) -> Result<(), ConfigError> {
    let filter = EnvFilter::builder().parse(log).map_err(|error| ConfigError::Impossible {
        key: "telemetry.log".to_owned(),
        message: format!("{log:?} is neither a level nor a filter: {error}"),
    })?;
    let terminal = io::stderr().is_terminal();
    let json = match settings.log_format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let registry = tracing_subscriber::registry().with(filter);
    let begun = if json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init()
    } else {
        registry.with(fmt::layer().with_ansi(terminal).with_writer(io::stderr)).try_init()
    };
    // Only a second call can fail, and then logging is set up already.
    begun.or(Ok(()))
}
