//! Exit codes: the part of the command line that scripts read.

use crate::{client::ClientError, config::ConfigError};
use std::{fmt, io, process::ExitCode};

/// Shown at the end of `--help` and in the documentation.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done; for `run` and `--wait`: every job FINISHED
  1    done, with a bad answer (a job did not finish well, a job could not be acted on), or any failure not named below
  2    wrong usage, or a file of jobs that cannot be read
  3    wrong configuration
  4    the gateway cannot be reached
  5    the gateway refused the request
  130  interrupted";

/// How a command that ran ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// As asked.
    Done,
    /// Done, and the answer is not what one hopes for.
    Unwell,
    /// Somebody interrupted it.
    Interrupted,
}

/// A wrong use of the command line that clap cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Unwell => Self::FAILURE,
            Exit::Interrupted => Self::from(130),
        }
    }
}

/// The exit code of an error, by what it is, however deep it lies.
pub(crate) fn code_of(error: &anyhow::Error) -> ExitCode {
    for cause in error.chain() {
        if cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            // Whoever read our output has read enough.
            return ExitCode::SUCCESS;
        }
        if cause.is::<Usage>() {
            return ExitCode::from(2);
        }
        if cause.is::<ConfigError>() {
            return ExitCode::from(3);
        }
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return match error {
                ClientError::Unreachable { .. } => ExitCode::from(4),
                ClientError::Refused(_) | ClientError::Unreadable { .. } => ExitCode::from(5),
                ClientError::Address { .. } | ClientError::Token { .. } => ExitCode::from(2),
            };
        }
    }
    ExitCode::FAILURE
}

/// An error as one line, causes behind colons, without saying anything twice.
pub(crate) struct OneLine<'a>(pub(crate) &'a anyhow::Error);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = String::new();
        for cause in self.0.chain().map(ToString::to_string) {
            if !said.contains(&cause) {
                if !said.is_empty() {
                    said.push_str(": ");
                }
                said.push_str(&cause);
            }
        }
        f.write_str(&said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn an_error_says_each_cause_once() {
        let inner: anyhow::Result<()> = Err(anyhow::anyhow!("no such file"));
        let error = inner.context("cannot open x: no such file").context("no jobs").unwrap_err();
        assert_eq!(OneLine(&error).to_string(), "no jobs: cannot open x: no such file");
    }

    #[test]
    fn the_code_is_that_of_the_cause() {
        let error = anyhow::Error::new(Usage("no".into())).context("while reading");
        assert_eq!(format!("{:?}", code_of(&error)), format!("{:?}", ExitCode::from(2)));
        let error = anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(format!("{:?}", code_of(&error)), format!("{:?}", ExitCode::SUCCESS));
    }
}
