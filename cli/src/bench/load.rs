//! Load: HTTP requests at a rate, or as fast as they are answered, over connections kept open. Leaner than the client of the
//! commands, because it shares the machine with what it measures.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use jobgate_shared::supervise::Tasks;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};

/// A request that is made many times.
#[derive(Debug, Clone)]
pub(super) struct Template {
    pub(super) path: &'static str,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
    pub(super) token: String,
}

/// One connection.
#[derive(Debug)]
struct Caller {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
}

impl Caller {
    async fn connect(address: &str, tasks: &Tasks) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tasks.spawn("load connection", async move {
            // What broke it is told to whoever waits for an answer.
            connection.await.ok();
        });
        Ok(Self { sender, host: address.to_owned() })
    }

    /// Posts once; the answer's body. Anything but success is an error.
    async fn post(&mut self, template: &Template) -> anyhow::Result<Bytes> {
        let request = Request::post(template.path)
            .header("host", &self.host)
            .header("authorization", format!("Bearer {}", template.token))
            .header("content-type", template.content_type)
            .header("prefer", "return=minimal")
            .body(Full::new(template.body.clone()))?;
        self.sender.ready().await?;
        let response: Response<Incoming> = self.sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(
            status.is_success(),
            "POST {} was answered {status}: {}",
            template.path,
            String::from_utf8_lossy(&body)
        );
        Ok(body)
    }
}

/// How long requests took.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// Each, sorted.
    pub(super) times: Vec<Duration>,
    /// From the first request to the last answer.
    pub(super) over: Duration,
}

impl Answered {
    fn collect(parts: Vec<Vec<Duration>>, over: Duration) -> Self {
        let mut times: Vec<Duration> = parts.into_iter().flatten().collect();
        times.sort_unstable();
        Self { times, over }
    }

    /// Answers in a second.
    pub(super) fn rate(&self) -> f64 {
        number(self.times.len() as u64) / self.over.as_secs_f64()
    }

    /// The time that `percent` of the answers came within.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        percentile(&self.times, percent)
    }
}

/// The value that `percent` of these sorted times lie at or below.
pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// A count as a number to divide with.
pub(super) fn number(count: u64) -> f64 {
    let [high, low] =
        [count >> 32, count & u64::from(u32::MAX)].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

async fn connect(addresses: &[String], connections: usize, tasks: &Tasks) -> anyhow::Result<Vec<Caller>> {
    let spread = addresses.iter().cycle().take(connections);
    try_join_all(spread.map(|address| Caller::connect(address, tasks))).await
}

/// Closed loop: every connection posts again as soon as it is answered, `requests` times in all.
pub(super) async fn as_fast_as_answered(
    addresses: &[String],
    template: &Template,
    connections: usize,
    requests: u64,
) -> anyhow::Result<Answered> {
    let tasks = Tasks::default();
    let callers = connect(addresses, connections, &tasks).await?;
    let next = AtomicU64::new(0);
    let began = Instant::now();
    let call = async |mut caller: Caller| {
        let mut times = Vec::new();
        while next.fetch_add(1, Ordering::Relaxed) < requests {
            let sent = Instant::now();
            caller.post(template).await?;
            times.push(sent.elapsed());
        }
        anyhow::Ok(times)
    };
    let parts = try_join_all(callers.into_iter().map(call)).await?;
    Ok(Answered::collect(parts, began.elapsed()))
}

/// Open loop: request `n` is due `n / rate` seconds after the first, whether or not those before it are answered; its time
/// counts from then, so a server that falls behind is seen to. The timer's grain is a millisecond, which counts as well.
pub(super) async fn at_a_rate(
    addresses: &[String],
    template: &Template,
    connections: usize,
    rate: u32,
    over: Duration,
) -> anyhow::Result<Answered> {
    let tasks = Tasks::default();
    let callers = connect(addresses, connections, &tasks).await?;
    let requests = u64::from(rate) * over.as_secs();
    let next = AtomicU64::new(0);
    let began = Instant::now();
    let call = async |mut caller: Caller| {
        let mut times = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= requests {
                return anyhow::Ok(times);
            }
            let due = began + Duration::from_nanos(n * 1_000_000_000 / u64::from(rate));
            sleep_until(due).await;
            caller.post(template).await?;
            times.push(due.elapsed());
        }
    };
    let parts = try_join_all(callers.into_iter().map(call)).await?;
    Ok(Answered::collect(parts, began.elapsed()))
}

/// Posts one after another, `gap` apart; each answer's body, with when it was asked for and when it came.
pub(super) async fn one_by_one(
    address: &str,
    template: &Template,
    requests: u32,
    gap: Duration,
    mut answered: impl FnMut(&Bytes) -> anyhow::Result<()>,
) -> anyhow::Result<Answered> {
    let tasks = Tasks::default();
    let mut caller = Caller::connect(address, &tasks).await?;
    let (began, mut times) = (Instant::now(), Vec::new());
    for _ in 0..requests {
        let sent = Instant::now();
        let body = caller.post(template).await?;
        times.push(sent.elapsed());
        answered(&body)?;
        sleep_until(sent + gap).await;
    }
    Ok(Answered::collect(vec![times], began.elapsed()))
}
