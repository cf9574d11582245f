//! The accept loop: connections with every limit hyper has, and an orderly end.
//!
//! axum's own loop sets no timer, which leaves hyper's header timeout without effect, so this one is ours. A client that
//! connects and says nothing, or says it a byte at a time, is cut off; so is one that asks for nothing more, or takes nothing
//! of its answers, and one that is still there when the time to finish after a stop is over.

use super::{
    limits::HttpConfig,
    turns::{Pieces, Turns},
};
use axum::{Router, body::Body};
use futures::TryFutureExt as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use jobgate_shared::supervise::Tasks;
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Rest after an accept that failed for want of a resource (file descriptors, memory).
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Most headers of a request, and the most bytes of its head.
const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 64 * 1024;
/// Most requests under way on one HTTP/2 connection.
const MAX_STREAMS: u32 = 64;
/// How often a quiet HTTP/2 connection is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(20);
/// A connection that is closed is cut off when its client takes nothing for so many header timeouts. To a slow reader the
/// kernel lets us write again in steps of a megabyte, which takes it a while.
const CUT_AFTER: u32 = 6;

/// Serves `router` until the shutdown of `tasks`, then lets requests under way finish within `config.drain_timeout`.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    config: &HttpConfig,
    tasks: &Tasks,
) {
    let places = config.max_connections.get();
    let connections = Arc::new(Semaphore::new(places as usize));
    let serving = Arc::new(Serving::new(tls, router, config, tasks));
    loop {
        let accepted = tokio::select! {
            () = tasks.shutdown().cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let Some((stream, permit)) = accepted else { continue };
        let serving = serving.clone();
        tasks.spawn("http connection", async move {
            serving.connection(stream).await;
            drop(permit);
        });
    }
    drop(listener);
    tokio::select! {
        // Every place is free again.
        _ = connections.acquire_many(places) => {}
        () = tokio::time::sleep(*config.drain_timeout) => {
            tracing::info!("cutting off requests that are still under way");
            serving.cut.cancel();
        }
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    // First the place, then the connection: whoever finds none waits in the kernel's line.
    let permit = connections.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            metrics::counter!("jobgate_http_accept_errors_total").increment(1);
            tracing::debug!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "a connection was not accepted"
            );
            tokio::time::sleep(ACCEPT_REST).await;
            None
        }
    }
}

/// What hyper runs HTTP/2 streams on.
#[derive(Clone)]
struct Streams(Tasks);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn("http stream", stream);
    }
}

fn builder(tasks: &Tasks, header_timeout: Duration) -> Builder<Streams> {
    let mut builder = Builder::new(Streams(tasks.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(16 * 1024)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY / 2);
    builder
}

/// What every connection is served with.
pub(super) struct Serving {
    builder: Builder<Streams>,
    tls: Option<TlsAcceptor>,
    router: Router,
    header_timeout: Duration,
    /// Nothing more may be asked for.
    stop: CancellationToken,
    /// Time is up for everybody.
    cut: CancellationToken,
}

impl Serving {
    pub(super) fn new(
        tls: Option<Arc<ServerConfig>>,
        router: Router,
        config: &HttpConfig,
        tasks: &Tasks,
    ) -> Self {
        Self {
            builder: builder(tasks, *config.header_timeout),
            tls: tls.map(TlsAcceptor::from),
            router,
            header_timeout: *config.header_timeout,
            stop: tasks.shutdown().clone(),
            cut: CancellationToken::new(),
        }
    }

    async fn connection(&self, stream: TcpStream) {
        // Answers are small and complete; waiting to fill a packet only delays them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection ended at once");
            return;
        }
        let Some(tls) = &self.tls else { return self.requests(stream).await };
        match tokio::time::timeout(self.header_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.requests(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    /// Answers what is asked on a connection until it ends.
    pub(super) async fn requests<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let turns = Turns::new();
        let (router, asked) = (self.router.clone(), turns.clone());
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (turn, turns) = (asked.take(), asked.clone());
            let answer = router.clone().oneshot(request.map(Body::new));
            answer.map_ok(move |answer| {
                drop(turn);
                answer.map(|body| Pieces::of(body, turns))
            })
        });
        let mut connection = pin!(self.builder.serve_connection(TokioIo::new(stream), service));
        let ended = async {
            tokio::select! {
                ended = connection.as_mut() => return ended,
                () = turns.silence(self.header_timeout) => {}
                () = self.stop.cancelled() => {}
            }
            // hyper's own timeout begins with the protocol, which a silent client never tells, and ends with HTTP/1.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = turns.silence(self.header_timeout * CUT_AFTER) => Ok(()),
                () = self.cut.cancelled() => Ok(()),
            }
        };
        if let Err(error) = ended.await {
            // A client that leaves, or is cut off for what it sent: nobody's failure here.
            tracing::debug!(error, "a connection ended early");
        }
    }
}
