//! Ships what jobs print to the log store, as it grows, so that any API instance can serve it. A job's end never waits
//! for its logs; only what the engine keeps of it does.

use super::{Worker, drive::Message, lease::Lease};
use crate::{
    core::{Hold, Input},
    engine::{Engine, EngineError, LogChunk},
};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use jobgate_shared::{
    domain::{JobId, Submission, SubmissionTag},
    failpoint,
    logs::LogStream,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};

/// Most bytes read at once.
const CHUNK: usize = 256 * 1024;
/// Most of them in one look at a stream: what prints faster than it is shipped keeps no other's logs waiting.
const CHUNKS: u32 = 16;
/// Jobs looked at side by side.
const WIDTH: usize = 8;
/// A quiet log is looked at ever more rarely, up to so many intervals apart.
const RAREST: u32 = 8;

/// What the shipper is told.
pub(super) enum Order {
    /// Ship this one's logs from now on.
    Begin(Hold, Submission),
    /// It ended: look now.
    Look(JobId),
    /// It is somebody else's now.
    Stop(JobId),
}

/// One job's logs under way.
struct Shipment {
    hold: Hold,
    submission: Submission,
    offsets: [Option<u64>; 2],
    done: [bool; 2],
    look_at: Instant,
    quiet: u32,
    /// The last look left some.
    more: bool,
}

/// Ships until the channel closes or the lease is over.
pub(super) async fn run(
    worker: Arc<Worker>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    inbox: mpsc::Sender<Message>,
    lease: Arc<Lease>,
) {
    let mut shipments: BTreeMap<JobId, Shipment> = BTreeMap::new();
    let every = worker.timing.ship;
    loop {
        let next = shipments.values().map(|s| s.look_at).min();
        let due = next.unwrap_or_else(|| Instant::now() + Duration::from_hours(1));
        tokio::select! {
            // Orders before looks: an order is done at once, and there are only a few for each job.
            biased;
            () = lease.over().cancelled() => return,
            order = orders.recv() => match order {
                None => return,
                Some(Order::Begin(hold, submission)) => {
                    let (offsets, done, look_at) = ([None; 2], [false; 2], Instant::now() + every);
                    let (quiet, more) = (0, false);
                    let shipment = Shipment { hold, submission, offsets, done, look_at, quiet, more };
                    shipments.insert(hold.tag.job, shipment);
                }
                Some(Order::Look(job)) => {
                    if let Some(shipment) = shipments.get_mut(&job) {
                        shipment.look_at = Instant::now();
                    }
                }
                Some(Order::Stop(job)) => drop(shipments.remove(&job)),
            },
            () = tokio::time::sleep_until(due), if next.is_some() => {
                let now = Instant::now();
                let ready: Vec<JobId> =
                    shipments.iter().filter(|(_, s)| s.look_at <= now).map(|(job, _)| *job).collect();
                let looked = ready.into_iter().filter_map(|job| shipments.remove(&job));
                let looked: Vec<Shipment> =
                    stream::iter(looked).map(|s| look(&worker, s)).buffer_unordered(WIDTH).collect().await;
                let mut shipped = Vec::new();
                for mut shipment in looked {
                    if shipment.done == [true; 2] {
                        shipped.push(Input::LogsShipped(shipment.hold));
                    } else {
                        let quiet = every * shipment.quiet.clamp(1, RAREST);
                        shipment.look_at = Instant::now() + if shipment.more { Duration::ZERO } else { quiet };
                        shipments.insert(shipment.hold.tag.job, shipment);
                    }
                }
                if !shipped.is_empty() && inbox.send(Message::Inputs(shipped)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Ships what has grown since the last look.
async fn look(worker: &Worker, mut shipment: Shipment) -> Shipment {
    let mut grew = false;
    shipment.more = false;
    for (place, stream) in LogStream::ALL.into_iter().enumerate() {
        if shipment.done[place] {
            continue;
        }
        match ship(worker, &mut shipment, place, stream).await {
            Ok(shipped) => grew |= shipped,
            Err(error) => {
                tracing::warn!(job = %shipment.hold.tag.job, stream = stream.as_str(), error = format!("{error:#}"), "logs not shipped; trying again");
                metrics::counter!("jobgate_log_ship_errors_total").increment(1);
            }
        }
    }
    shipment.quiet = if grew { 0 } else { shipment.quiet.saturating_add(1) };
    shipment
}

async fn ship(
    worker: &Worker,
    shipment: &mut Shipment,
    place: usize,
    stream: LogStream,
) -> anyhow::Result<bool> {
    let engine = &worker.clusters[usize::from(shipment.hold.cluster)].engine;
    let from = shipment.offsets[place];
    let (tag, submission) = (shipment.hold.tag, &shipment.submission);
    let shipped = ship_stream(worker, engine.as_ref(), tag, submission, stream, from, CHUNKS).await?;
    shipment.offsets[place] = Some(shipped.to);
    shipment.done[place] = shipped.done;
    shipment.more |= shipped.more;
    Ok(shipped.done || from != Some(shipped.to))
}

/// How far a stream has been shipped.
pub(super) struct Shipped {
    to: u64,
    /// To its end, and the end is marked.
    pub(super) done: bool,
    /// Not as far as it went.
    more: bool,
}

/// Ships what a stream holds behind `from`, or behind what the log store holds already, up to so many chunks.
pub(super) async fn ship_stream(
    worker: &Worker,
    engine: &dyn Engine,
    tag: SubmissionTag,
    submission: &Submission,
    stream: LogStream,
    from: Option<u64>,
    chunks: u32,
) -> anyhow::Result<Shipped> {
    let logs = &worker.logs;
    let mut to = match from {
        Some(offset) => offset,
        // Whoever had it before may have shipped some already.
        None => logs.resume(tag.job, tag.attempt, stream).await?,
    };
    for _ in 0..chunks {
        let chunk = match engine.read_log(tag, submission, stream, to, CHUNK).await {
            Ok(chunk) => chunk,
            // Forgotten already: whoever shares this reach shipped it to its end before letting it go.
            Err(EngineError::Refused(_)) => LogChunk { bytes: Bytes::new(), last: true },
            Err(error) => return Err(error.into()),
        };
        let grew = !chunk.bytes.is_empty();
        if grew {
            metrics::counter!("jobgate_log_bytes_total").increment(chunk.bytes.len() as u64);
            to = logs.append(tag.job, tag.attempt, stream, to, chunk.bytes).await?;
            failpoint::pass("logs.appended");
        }
        if chunk.last {
            logs.finish(tag.job, tag.attempt, stream, to).await?;
            failpoint::pass("logs.finished");
            return Ok(Shipped { to, done: true, more: false });
        }
        if !grew {
            return Ok(Shipped { to, done: false, more: false });
        }
    }
    Ok(Shipped { to, done: false, more: true })
}
