//! The accept loop: connections with every limit hyper has, and an orderly end.
//!
//! axum's own loop sets no timer, which leaves hyper's header timeout without effect, so this one is ours. A client that
//! connects and says nothing, or says it a byte at a time, is cut off; so is one that is still there when the time to
//! finish after a stop is over.

use super::limits::HttpConfig;
use axum::{Router, body::Body};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
};
use jobgate_shared::supervise::Tasks;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::Sleep,
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

/// Serves `router` until the shutdown of `tasks`, then lets requests under way finish within `config.drain_timeout`.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    config: &HttpConfig,
    tasks: &Tasks,
) {
    let connections = Arc::new(Semaphore::new(config.max_connections.get() as usize));
    let graceful = GracefulShutdown::new();
    let serving = Serving {
        builder: builder(tasks, *config.header_timeout),
        tls: tls.map(TlsAcceptor::from),
        router,
        header_timeout: *config.header_timeout,
        cut: CancellationToken::new(),
    };
    let serving = Arc::new(serving);
    loop {
        let accepted = tokio::select! {
            () = tasks.shutdown().cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let Some((stream, permit)) = accepted else { continue };
        let (serving, watcher) = (serving.clone(), graceful.watcher());
        tasks.spawn("http connection", async move {
            serving.connection(stream, watcher).await;
            drop(permit);
        });
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
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

struct Serving {
    builder: Builder<Streams>,
    tls: Option<TlsAcceptor>,
    router: Router,
    header_timeout: Duration,
    /// Time is up for everybody.
    cut: CancellationToken,
}

impl Serving {
    async fn connection(&self, stream: TcpStream, watcher: Watcher) {
        // Answers are small and complete; waiting to fill a packet only delays them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection ended at once");
            return;
        }
        let Some(tls) = &self.tls else { return self.requests(stream, watcher).await };
        match tokio::time::timeout(self.header_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.requests(stream, watcher).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn requests<S>(&self, stream: S, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let begun = Arc::new(AtomicBool::new(false));
        let deadline = Box::pin(tokio::time::sleep(self.header_timeout));
        let io = TokioIo::new(Impatient { stream, deadline, begun: begun.clone() });
        let router = self.router.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            begun.store(true, Ordering::Relaxed);
            router.clone().oneshot(request.map(Body::new))
        });
        let connection = watcher.watch(self.builder.serve_connection(io, service).into_owned());
        let ended = tokio::select! {
            ended = connection => ended,
            () = self.cut.cancelled() => Ok(()),
        };
        if let Err(error) = ended {
            // A client that leaves, or is cut off for what it sent: nobody's failure here.
            tracing::debug!(error, "a connection ended early");
        }
    }
}

/// A connection that must bring its first request in time. hyper's own timeout begins only once it knows which protocol
/// is spoken, which a silent client never tells.
struct Impatient<S> {
    stream: S,
    deadline: Pin<Box<Sleep>>,
    begun: Arc<AtomicBool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_pending() && !self.begun.load(Ordering::Relaxed) {
            ready!(self.deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
