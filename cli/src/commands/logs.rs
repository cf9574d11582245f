//! `jobgate logs`: what a job printed, and with `-f` what it prints.
//!
//! Standard output of the job goes to standard output, its standard error to standard error. What a terminal would obey
//! is taken out, unless the output goes to a file or `--raw` is given: it was written by somebody else's program.

use super::{Connection, Session};
use crate::{
    client::{Body, Request},
    config::Config,
    exit::Exit,
    render::is_hostile,
};
use futures::StreamExt as _;
use jobgate_shared::domain::JobId;
use std::{
    io::{self, IsTerminal as _, Write},
    str,
};

/// Shows what a job printed
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// The job
    job: JobId,
    /// Go on until the job has ended and everything is shown
    #[arg(long, short)]
    follow: bool,
    /// Only this stream
    #[arg(long, value_enum, value_name = "STREAM")]
    stream: Option<Stream>,
    /// Of this attempt [default: the current one]
    #[arg(long, value_name = "N")]
    attempt: Option<u32>,
    /// Begin at this byte
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    offset: u64,
    /// Leave control characters in, even on a terminal
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    connection: Connection,
}

/// One of a job's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Stream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

impl Logs {
    pub(crate) async fn run(self, config: &Config) -> anyhow::Result<Exit> {
        let Session { client, .. } = self.connection.open(config)?;
        let request = |stream: &str| {
            let query = [("offset", self.offset.to_string()), ("follow", self.follow.to_string())];
            let attempt = self.attempt.map(|attempt| ("attempt", attempt.to_string()));
            client.stream(
                Request::get(format!("/v1/jobs/{}/logs/{stream}", self.job)).query(query).query(attempt),
            )
        };
        let strip = |terminal: bool| terminal && !self.raw;
        let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
        let (strip_out, strip_err) = (strip(stdout.is_terminal()), strip(stderr.is_terminal()));
        let out = async {
            match self.stream {
                Some(Stream::Stderr) => Ok(()),
                Some(Stream::Stdout) | None => copy(request("stdout").await?, &mut stdout, strip_out).await,
            }
        };
        let err = async {
            match self.stream {
                Some(Stream::Stdout) => Ok(()),
                Some(Stream::Stderr) | None => copy(request("stderr").await?, &mut stderr, strip_err).await,
            }
        };
        let (out, err) = futures::future::join(out, err).await;
        out.and(err)?;
        Ok(Exit::Done)
    }
}

async fn copy(mut body: Body, to: &mut impl Write, strip: bool) -> anyhow::Result<()> {
    let mut stripper = Stripper::default();
    while let Some(bytes) = body.next().await {
        let bytes = bytes?;
        if strip {
            to.write_all(stripper.strip(&bytes).as_bytes())?;
        } else {
            to.write_all(&bytes)?;
        }
        to.flush()?;
    }
    to.write_all(stripper.rest().as_bytes())?;
    Ok(to.flush()?)
}

/// Makes text of bytes that come in pieces, without what a terminal would obey.
#[derive(Debug, Default)]
struct Stripper {
    /// The beginning of a character whose end has not come yet.
    unfinished: Vec<u8>,
}

impl Stripper {
    fn strip(&mut self, bytes: &[u8]) -> String {
        let mut pending = std::mem::take(&mut self.unfinished);
        pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(pending.len());
        for chunk in pending.utf8_chunks() {
            text.extend(chunk.valid().chars().filter(|c| !is_hostile(*c)));
            let invalid = chunk.invalid();
            let at_end = pending.as_ptr_range().end == invalid.as_ptr_range().end;
            if at_end && !invalid.is_empty() && is_unfinished(invalid) {
                self.unfinished = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    fn rest(&self) -> &'static str {
        if self.unfinished.is_empty() { "" } else { "\u{fffd}" }
    }
}

/// More bytes could make a character of these.
fn is_unfinished(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_cut_in_two_is_put_together_and_an_escape_is_taken_out() {
        let mut stripper = Stripper::default();
        let bytes = "a\u{1b}[1mä€\n".as_bytes();
        let mut text = String::new();
        for byte in bytes {
            text.push_str(&stripper.strip(&[*byte]));
        }
        assert_eq!(text, "a[1mä€\n");
        assert_eq!(stripper.rest(), "");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_such() {
        let mut stripper = Stripper::default();
        assert_eq!(stripper.strip(b"a\xffb\xe2\x82"), "a\u{fffd}b");
        assert_eq!(stripper.rest(), "\u{fffd}");
    }
}
