//! Logs of this process: text for people on a terminal, one JSON object a line for collectors.
//!
//! Secrets never reach it: they are types that do not print themselves. While bars are drawn, what is logged goes above
//! them.

use crate::config::{ConfigError, LogFormat, TelemetrySection};
use indicatif::MultiProgress;
use jobgate_shared::broker::rabbitmq;
use std::{
    io::{self, IsTerminal as _, Write},
    sync::{Mutex, PoisonError},
};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// What client commands log when nothing else is asked for: what went wrong.
pub(crate) const QUIET: &str = "warn";

/// Who in the libraries warns of everyday life: of a kept-alive connection that had nothing more to say, of a message
/// without a queue. Only their errors are logged, unless a filter names them.
const HUSHED: [&str; 2] = ["hyper", rabbitmq::RETURNED_MESSAGES];

/// Sends this process's log to standard error. Called once.
pub(crate) fn begin(settings: &TelemetrySection, log: &str) -> Result<(), ConfigError> {
    let terminal = io::stderr().is_terminal();
    let json = match settings.log_format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let wrong = |message| ConfigError::Impossible { key: "telemetry.log".to_owned(), message };
    let registry = tracing_subscriber::registry().with(filter(log).map_err(wrong)?);
    let writer = || AboveBars(io::stderr());
    let begun = if json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(writer)).try_init()
    } else {
        registry.with(fmt::layer().with_ansi(terminal).with_writer(writer)).try_init()
    };
    // Only a second call can fail, and then logging is set up already.
    begun.or(Ok(()))
}

/// What is logged; an error says why `log` means nothing.
pub(crate) fn filter(log: &str) -> Result<EnvFilter, String> {
    let hushed = HUSHED.map(|target| format!("{target}=error,")).concat();
    let parsed = EnvFilter::builder().parse(hushed + log);
    parsed.map_err(|error| format!("{log:?} is neither a level nor a filter: {error}"))
}

/// The bars on standard error, while there are any.
static BARS: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// From now on logs go above these bars; `None`: there are none any more.
pub(crate) fn keep_above(bars: Option<MultiProgress>) {
    *BARS.lock().unwrap_or_else(PoisonError::into_inner) = bars;
}

/// Writes with the bars out of the way; they are drawn again below.
struct AboveBars<W>(W);

impl<W: Write> Write for AboveBars<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Cloned, so that whoever draws never waits for whoever logs.
        let bars = BARS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match bars {
            // A line whole: what is written in pieces would leave bars between them.
            Some(bars) => bars.suspend(|| self.0.write_all(line)).map(|()| line.len()),
            None => self.0.write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::{ProgressBar, ProgressDrawTarget, TermLike};
    use std::sync::Arc;

    /// What came to standard error, in order.
    #[derive(Debug, Clone, Default)]
    struct Journal(Arc<Mutex<Vec<String>>>);

    impl Journal {
        fn add(&self, what: &str) {
            self.0.lock().unwrap().push(what.trim().to_owned());
        }
    }

    impl Write for Journal {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.add(&String::from_utf8_lossy(bytes));
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl TermLike for Journal {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, line: &str) -> io::Result<()> {
            self.add(line);
            Ok(())
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.add(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.add("cleared");
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_of_the_log_is_written_with_the_bars_out_of_the_way() {
        let journal = Journal::default();
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::term_like(Box::new(journal.clone())));
        let style = indicatif::ProgressStyle::with_template("{prefix}").unwrap();
        let bar = bars.add(ProgressBar::new(3).with_style(style).with_prefix("a bar"));
        bar.tick();
        keep_above(Some(bars));
        journal.0.lock().unwrap().clear();
        AboveBars(journal.clone()).write_all(b"a line\n").unwrap();
        keep_above(None);
        AboveBars(journal.clone()).write_all(b"the last\n").unwrap();
        let came =
            journal.0.lock().unwrap().iter().filter(|what| !what.is_empty()).cloned().collect::<Vec<_>>();
        assert_eq!(came, ["cleared", "a line", "a bar", "the last"]);
    }

    #[test]
    fn everyday_warnings_of_libraries_are_hushed_unless_somebody_asks_for_them() {
        let logged = |log: &str| {
            let journal = Journal::default();
            let kept = journal.clone();
            let layer = fmt::layer().with_ansi(false).with_writer(move || kept.clone());
            let subscriber = tracing_subscriber::registry().with(filter(log).unwrap()).with(layer);
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(target: "hyper::proto::h1::conn", "idle");
                tracing::warn!(target: rabbitmq::RETURNED_MESSAGES, "returned");
                tracing::warn!(target: "lapin", "closed");
                tracing::error!(target: "hyper::proto::h1::conn", "broken");
                tracing::info!(target: "jobgate", "ours");
            });
            let lines = journal.0.lock().unwrap().clone();
            lines.iter().filter_map(|line| line.rsplit(' ').next().map(str::to_owned)).collect::<Vec<_>>()
        };
        assert_eq!(logged("info"), ["closed", "broken", "ours"]);
        assert_eq!(logged(QUIET), ["closed", "broken"]);
        assert_eq!(logged("info,hyper=warn"), ["idle", "closed", "broken", "ours"]);
        assert!(filter("jobgate=loud").unwrap_err().contains("\"jobgate=loud\""));
    }
}
