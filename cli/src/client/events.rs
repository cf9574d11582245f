//! Server-sent events: the gateway's feed of changes, followed across broken connections.

use super::{Body, Client, ClientError, Request};
use futures::StreamExt as _;
use jobgate_shared::retry::Delays;
use std::time::Duration;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    /// Where the feed stands after it.
    pub(crate) id: Option<String>,
    /// Its kind; `message` unless said otherwise.
    pub(crate) kind: String,
    /// Its document.
    pub(crate) data: String,
}

/// A feed, followed.
pub(crate) struct Events {
    client: Client,
    path: String,
    query: Vec<(&'static str, String)>,
    open: Option<(Body, Decoder)>,
    last_id: Option<String>,
    delays: Delays,
}

impl Events {
    /// Follows the feed at `path` from now on; returns once it is open, so nothing after this is missed.
    pub(crate) async fn follow(
        client: &Client,
        path: &str,
        query: Vec<(&'static str, String)>,
    ) -> Result<Self, ClientError> {
        let delays = Delays::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut events =
            Self { client: client.clone(), path: path.to_owned(), query, open: None, last_id: None, delays };
        events.open = Some(events.connect().await?);
        Ok(events)
    }

    /// The next event; reconnects where it was cut off. An error is one that trying again does not mend. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some((body, decoder)) = &mut self.open {
                if let Some(event) = decoder.next() {
                    if event.id.is_some() {
                        self.last_id.clone_from(&event.id);
                    }
                    self.delays.reset();
                    return Ok(event);
                }
                match body.next().await {
                    Some(Ok(bytes)) => decoder.push(&bytes),
                    Some(Err(_)) | None => self.open = None,
                }
                continue;
            }
            match self.connect().await {
                Ok(open) => self.open = Some(open),
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "the feed is opened again");
                    tokio::time::sleep(self.delays.next_delay()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn connect(&self) -> Result<(Body, Decoder), ClientError> {
        let request =
            Request::get(self.path.clone()).query(self.query.clone()).resume_after(self.last_id.clone());
        let (_, body) = self.client.stream(request).await?;
        Ok((body, Decoder::default()))
    }
}

/// Cuts bytes into events.
#[derive(Debug, Default)]
struct Decoder {
    bytes: Vec<u8>,
    /// How far lines have been taken.
    taken: usize,
    event: Event,
    data: Vec<String>,
}

/// Longest line; a server that sends a longer one is no gateway.
const LONGEST_LINE: usize = 4 * 1024 * 1024;

impl Decoder {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        if self.bytes.len() < LONGEST_LINE {
            self.bytes.extend_from_slice(bytes);
        } else {
            self.bytes.clear();
        }
    }

    fn next(&mut self) -> Option<Event> {
        while let Some(length) = self.bytes[self.taken..].iter().position(|b| *b == b'\n') {
            let line = &self.bytes[self.taken..self.taken + length];
            let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
            self.taken += length + 1;
            if !line.is_empty() {
                self.field(&line);
                continue;
            }
            let mut event = std::mem::take(&mut self.event);
            event.data = std::mem::take(&mut self.data).join("\n");
            if event.kind.is_empty() {
                "message".clone_into(&mut event.kind);
            }
            // Comments keep a connection alive; they end in an empty line without making an event.
            if !event.data.is_empty() {
                return Some(event);
            }
        }
        None
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => self.event.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.event.kind),
            "data" => self.data.push(value.to_owned()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_whatever_way_the_bytes_are_cut() {
        let text = ": hello\n\nid: 7.1\nevent: change\ndata: {\"a\":\ndata: 1}\n\nretry: 5\ndata:x\r\n\r\n";
        for size in [1, 3, text.len()] {
            let (mut decoder, mut events) = (Decoder::default(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                decoder.push(piece);
                while let Some(event) = decoder.next() {
                    events.push(event);
                }
            }
            let first = Event { id: Some("7.1".into()), kind: "change".into(), data: "{\"a\":\n1}".into() };
            let second = Event { id: None, kind: "message".into(), data: "x".into() };
            assert_eq!(events, [first, second]);
        }
    }
}
