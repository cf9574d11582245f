//! `jobgate logs`: what a job printed, and with `-f` what it prints.
//!
//! Standard output of the job goes to standard output, its standard error to standard error. What a terminal would obey
//! is taken out, unless the output goes to a file or `--raw` is given: it was written by somebody else's program.

use super::{Connection, Session, is_transient, read};
use crate::{
    client::{Client, JobDoc, Request},
    config::Config,
    exit::Exit,
    render::is_hostile,
};
use futures::StreamExt as _;
use jobgate_shared::{domain::JobId, retry::Delays};
use std::{
    io::{self, IsTerminal as _, Write},
    str,
    time::Duration,
};

/// The header that says whether nothing can follow what was read.
const COMPLETE: &str = "x-jobgate-complete";

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
        let strip = |terminal: bool| (terminal && !self.raw).then(Stripper::default);
        let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
        let (strip_out, strip_err) = (strip(stdout.is_terminal()), strip(stderr.is_terminal()));
        let out = async {
            match self.stream {
                Some(Stream::Stderr) => Ok(()),
                Some(Stream::Stdout) | None => self.show(&client, "stdout", &mut stdout, strip_out).await,
            }
        };
        let err = async {
            match self.stream {
                Some(Stream::Stdout) => Ok(()),
                Some(Stream::Stderr) | None => self.show(&client, "stderr", &mut stderr, strip_err).await,
            }
        };
        let (out, err) = futures::future::join(out, err).await;
        out.and(err)?;
        Ok(Exit::Done)
    }

    async fn show(
        &self,
        client: &Client,
        stream: &'static str,
        to: &mut impl Write,
        stripper: Option<Stripper>,
    ) -> anyhow::Result<()> {
        let (job, attempt, offset) = (self.job, self.attempt, self.offset);
        let mut reading = Reading { client, job, stream, attempt, offset, to, stripper };
        if self.follow {
            reading.follow().await?;
        } else {
            reading.copy(false).await?;
        }
        reading.end()
    }
}

/// A stream of a job as far as it was shown.
struct Reading<'a, W> {
    client: &'a Client,
    job: JobId,
    stream: &'static str,
    attempt: Option<u32>,
    /// Where to go on.
    offset: u64,
    to: &'a mut W,
    stripper: Option<Stripper>,
}

impl<W: Write> Reading<'_, W> {
    /// Shows everything there is and will be. Once it has begun, however often the gateway goes away meanwhile.
    async fn follow(&mut self) -> anyhow::Result<()> {
        let job = self.look().await?;
        // Where to go on is a place in one attempt's log.
        let attempt = *self.attempt.get_or_insert(job.attempt);
        let mut over = is_over(&job, attempt);
        let mut delays = Delays::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let before = self.offset;
            match self.turn(attempt, &mut over).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if is_transient(&error) => {
                    tracing::warn!(error = format!("{error:#}"), "still following");
                }
                Err(error) => return Err(error),
            }
            if self.offset > before {
                delays.reset();
            }
            tokio::time::sleep(delays.next_delay()).await;
        }
    }

    /// Follows until the gateway ends it; whether nothing will come any more.
    async fn turn(&mut self, attempt: u32, over: &mut bool) -> anyhow::Result<bool> {
        self.copy(true).await?;
        if self.copy(false).await? {
            return Ok(true);
        }
        // The gateway stopped, or gave up waiting for the end of an ended job's log. If the job ended meanwhile nobody
        // knows which, so its log is followed once more.
        let ended = is_over(&self.look().await?, attempt);
        Ok(std::mem::replace(over, ended))
    }

    /// Shows what the gateway sends; whether it says that nothing can follow.
    async fn copy(&mut self, follow: bool) -> anyhow::Result<bool> {
        let query = [("offset", self.offset.to_string()), ("follow", follow.to_string())];
        let attempt = self.attempt.map(|attempt| ("attempt", attempt.to_string()));
        let request = Request::get(format!("/v1/jobs/{}/logs/{}", self.job, self.stream));
        let (headers, mut body) = self.client.stream(request.query(query).query(attempt)).await?;
        while let Some(bytes) = body.next().await {
            let bytes = bytes?;
            match &mut self.stripper {
                Some(stripper) => self.to.write_all(stripper.strip(&bytes).as_bytes())?,
                None => self.to.write_all(&bytes)?,
            }
            self.to.flush()?;
            self.offset += bytes.len() as u64;
        }
        Ok(headers.get(COMPLETE).is_some_and(|complete| complete == "true"))
    }

    async fn look(&self) -> anyhow::Result<JobDoc> {
        read(&self.client.send(Request::get(format!("/v1/jobs/{}", self.job))).await?)
    }

    fn end(self) -> anyhow::Result<()> {
        let rest = self.stripper.as_ref().map(Stripper::rest).unwrap_or_default();
        self.to.write_all(rest.as_bytes())?;
        Ok(self.to.flush()?)
    }
}

/// The attempt prints no more.
fn is_over(job: &JobDoc, attempt: u32) -> bool {
    job.attempt > attempt || job.has_ended()
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
    use crate::client::canned::{Canned, answer};

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

    /// What is shown of a followed log, and what was asked for after the first look at the job.
    async fn followed(answers: impl IntoIterator<Item = Option<String>>) -> (String, Vec<String>) {
        let running = answer("200 OK", r#"{"id":"1","state":"RUNNING","attempt":3}"#);
        let server = Canned::answering([Some(running)].into_iter().chain(answers).collect()).await;
        let (client, mut shown) = (server.client(), Vec::new());
        let job = JobId::generate();
        let (stream, attempt, stripper) = ("stdout", None, None);
        let mut reading =
            Reading { client: &client, job, stream, attempt, offset: 0, to: &mut shown, stripper };
        reading.follow().await.unwrap();
        let lines = server.asked().into_iter().skip(1).map(|asked| {
            let line = asked.lines().next().unwrap().replace(&job.to_string(), "JOB");
            line.trim_start_matches("GET /v1/jobs/JOB").trim_end_matches(" HTTP/1.1").to_owned()
        });
        (String::from_utf8(shown).unwrap(), lines.collect())
    }

    fn so_far(text: &str) -> String {
        answer("200 OK\r\nx-jobgate-complete: false", text)
    }

    fn all(text: &str) -> String {
        answer("200 OK\r\nx-jobgate-complete: true", text)
    }

    fn job(state: &str) -> String {
        answer("200 OK", &format!(r#"{{"id":"1","state":"{state}","attempt":3}}"#))
    }

    #[tokio::test]
    async fn following_goes_on_where_a_gateway_that_stops_left_off() {
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nthree ".to_owned();
        let answers = [
            // Ends as if that were all.
            Some(answer("200 OK", "one ")),
            Some(so_far("two ")),
            Some(job("RUNNING")),
            // Breaks off.
            Some(cut),
            // Hangs up.
            None,
            Some(answer("200 OK", "four")),
            Some(all("")),
        ];
        let (shown, asked) = followed(answers).await;
        assert_eq!(shown, "one two three four");
        let expected = [
            "/logs/stdout?offset=0&follow=true&attempt=3",
            "/logs/stdout?offset=4&follow=false&attempt=3",
            "",
            "/logs/stdout?offset=8&follow=true&attempt=3",
            "/logs/stdout?offset=14&follow=true&attempt=3",
            "/logs/stdout?offset=14&follow=true&attempt=3",
            "/logs/stdout?offset=18&follow=false&attempt=3",
        ];
        assert_eq!(asked, expected);
    }

    #[tokio::test]
    async fn a_log_that_never_comes_to_its_end_is_followed_once_more_when_its_job_has_ended() {
        let empty = || answer("200 OK", "");
        let answers = [empty(), so_far(""), job("LOST"), empty(), so_far(""), job("LOST")];
        let (shown, asked) = followed(answers.map(Some)).await;
        assert_eq!((shown.as_str(), asked.len()), ("", 6));
    }
}
