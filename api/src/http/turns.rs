//! Whose turn it is on a connection. The server's, while a request waits for its answer or for more of it; else the client's,
//! who may ask for something, or take what there is. However long the server's may last, the client's may not.

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;

/// Most of an answer that is handed out at once: that the next piece is asked for is how a client is seen to take them.
const PIECE: usize = 16 * 1024;

/// The turns of one connection.
#[derive(Debug)]
pub(super) struct Turns(Mutex<State>);

#[derive(Debug)]
struct State {
    /// What the client waits for.
    ours: usize,
    /// When the last of it was there.
    since: Instant,
}

impl Turns {
    /// The client begins.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { ours: 0, since: Instant::now() })))
    }

    /// The server's turn begins.
    pub(super) fn take(self: &Arc<Self>) -> Turn {
        self.state().ours += 1;
        Turn(self.clone())
    }

    /// Ends when it has been the client's turn for so long.
    pub(super) async fn silence(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let silent_since = Some(self.state()).filter(|state| state.ours == 0).map(|state| state.since);
            let look_at = silent_since.unwrap_or(now) + limit;
            if look_at <= now {
                return;
            }
            tokio::time::sleep_until(look_at).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn of the server's; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Turns>);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.ours -= 1;
        state.since = Instant::now();
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Pieces {
    body: Body,
    /// What of its last part is not handed out yet.
    rest: Bytes,
    turns: Arc<Turns>,
    /// The next part was asked for and is not there.
    turn: Option<Turn>,
}

impl Pieces {
    pub(super) fn of(body: Body, turns: Arc<Turns>) -> Self {
        Self { body, rest: Bytes::new(), turns, turn: None }
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.turn.is_none() {
            this.turn = Some(this.turns.take());
        }
        if this.rest.is_empty() {
            let part = ready!(Pin::new(&mut this.body).poll_frame(cx));
            match part.map(|part| part.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => this.rest = data,
                Some(Ok(Err(trailers))) => {
                    this.turn = None;
                    return Poll::Ready(Some(Ok(trailers)));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        this.turn = None;
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Asked before the first piece; then nobody needs to know.
        if self.rest.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}
