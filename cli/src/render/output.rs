//! Where results go: standard output, as tables for people or as JSON for programs.
//!
//! Written with errors, not with `println!`: a reader that has read enough ends the command quietly.

use serde_json::Value;
use std::io::{self, Write};

/// What results look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// Tables.
    #[default]
    Table,
    /// The gateway's documents, one a line.
    Json,
}

/// Standard output, or a buffer in tests.
pub(crate) struct Output {
    format: Format,
    to: Box<dyn Write + Send>,
}

impl Output {
    /// Standard output.
    pub(crate) fn stdout(format: Format) -> Self {
        Self { format, to: Box::new(io::stdout()) }
    }

    /// Anything else.
    #[cfg(test)]
    pub(crate) fn to(format: Format, to: impl Write + Send + 'static) -> Self {
        Self { format, to: Box::new(to) }
    }

    /// Programs read it.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// A document on a line of its own.
    pub(crate) fn document(&mut self, document: &Value) -> io::Result<()> {
        writeln!(self.to, "{document}")
    }

    /// A line for people; the caller has cleaned what comes from others.
    pub(crate) fn line(&mut self, line: impl std::fmt::Display) -> io::Result<()> {
        writeln!(self.to, "{line}")
    }

    /// Bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.to.flush()
    }
}
