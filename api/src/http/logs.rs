//! `/v1/jobs/{id}/logs/{stdout|stderr}`: what a job printed, as it was shipped.
//!
//! Answered from the log store alone, so any instance serves any job. `follow` goes on until the marker says that nothing
//! will follow; a job whose logs never came to an end must not keep its readers for ever.

use super::{
    Api,
    extract::{Caller, JobPath, Params, Reading, Segments, accepts, bearer},
    jobs::one,
    problem::{Answer, Kind, Problem},
};
use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use jobgate_shared::{
    domain::{Job, JobId},
    logs::{LogError, LogStream},
    store::Scope,
};
use std::{str::FromStr as _, sync::Arc, time::Duration};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// Where to go on reading.
pub const NEXT_OFFSET: HeaderName = HeaderName::from_static("x-jobgate-next-offset");
/// Whether anything can follow.
pub const COMPLETE: HeaderName = HeaderName::from_static("x-jobgate-complete");
/// Bytes of one read.
const PIECE: usize = 256 * 1024;
/// How long to rest when there is nothing new.
const REST: Duration = Duration::from_millis(500);
/// How long after a job's end its logs may still come.
const GRACE: Duration = Duration::from_secs(30);
/// How often a silent stream asks whether its job has ended.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Reads one of a job's output streams.
///
/// Answers what is there from `offset` on, and in `X-Jobgate-Next-Offset` where to go on; `X-Jobgate-Complete` says
/// whether that is the end. With `follow`, goes on as the job prints, until its end.
#[utoipa::path(get, path = "/v1/jobs/{id}/logs/{stream}", tag = "jobs", operation_id = "get_log",
    params(
        ("id" = Uuid, Path, description = "The job"),
        ("stream" = LogStream, Path, description = "Which stream"),
        ("attempt" = Option<u32>, Query, description = "Of this attempt; of the current one when absent"),
        ("offset" = Option<u64>, Query, description = "From this byte on; 0 when absent"),
        ("limit" = Option<u64>, Query, description = "At most so many bytes; not with `follow`"),
        ("follow" = Option<bool>, Query, description = "Go on until the job's end"),
    ),
    responses((status = 200, description = "Bytes as printed", content_type = "text/plain", body = String,
        headers(("X-Jobgate-Next-Offset" = u64, description = "Without `follow`: where to go on"),
                ("X-Jobgate-Complete" = bool, description = "Without `follow`: nothing can follow")))))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller<Reading>,
    JobPath(id): JobPath,
    segments: Segments,
    mut params: Params,
    headers: HeaderMap,
) -> Answer<Response> {
    accepts(&headers, "text/plain")?;
    let stream = LogStream::from_str(segments.at(1))
        .map_err(|()| Problem::new(Kind::NotFound, "a job's logs are `stdout` and `stderr`"))?;
    let attempt: Option<u32> = params.parse("attempt", "a whole number")?;
    let offset = bytes(&mut params, "offset")?.unwrap_or(0);
    let limit = bytes(&mut params, "limit")?;
    let follow = params.flag("follow")?;
    params.end()?;
    if follow && limit.is_some() {
        return Err(Problem::invalid("limit", "means nothing with follow"));
    }
    let scope = caller.scope();
    let job = one(&api, &scope, id).await?;
    let attempt = attempt.unwrap_or(job.life.attempt);
    if !(1..=job.life.attempt).contains(&attempt) {
        return Err(Problem::new(Kind::NotFound, "the job has had no such attempt").at("attempt"));
    }
    let reading = LogReader { api: api.clone(), id, attempt, stream, at: offset };
    let mut response = if follow {
        let turn = api.stream_turn()?;
        let end = api.end_of_stream(bearer(&headers)?);
        Body::from_stream(reading.follow(scope, turn).take_until(end)).into_response()
    } else {
        let (end, complete) = api.logs.extent(id, attempt, stream, offset).await.map_err(log_store_away)?;
        let until = limit.map_or(end, |limit| end.min(offset.saturating_add(limit)));
        let mut response = Body::from_stream(reading.until(until)).into_response();
        let headers = response.headers_mut();
        headers.insert(NEXT_OFFSET, HeaderValue::from(until));
        headers.insert(
            COMPLETE,
            HeaderValue::from_static(if complete && until >= end { "true" } else { "false" }),
        );
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // Whatever a job prints is text to a browser.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Takes a number of bytes, as far as the document's `int64` goes.
fn bytes(params: &mut Params, name: &str) -> Answer<Option<u64>> {
    let number: Option<i64> = params.parse(name, "a whole number")?;
    let number = number.map(|n| u64::try_from(n).map_err(|_| Problem::invalid(name, "must not be negative")));
    number.transpose()
}

/// The log store did not do what it was asked.
pub(super) fn log_store_away(error: LogError) -> Problem {
    let error = format!("{:#}", anyhow::Error::from(error));
    tracing::warn!(error, "the log store failed a request");
    Problem::new(Kind::StoreAway, "the log store cannot be reached; try again")
}

/// One reader of one stream.
struct LogReader {
    api: Arc<Api>,
    id: JobId,
    attempt: u32,
    stream: LogStream,
    at: u64,
}

impl LogReader {
    async fn read(&mut self, limit: usize) -> Result<(Bytes, bool), LogError> {
        let piece = self.api.logs.read(self.id, self.attempt, self.stream, self.at, limit).await?;
        self.at = piece.next_offset;
        Ok((piece.bytes, piece.complete))
    }

    /// What stands before `end`.
    fn until(self, end: u64) -> impl Stream<Item = Result<Bytes, LogError>> {
        stream::try_unfold(self, move |mut reading| async move {
            while reading.at < end {
                let before = reading.at;
                let left = usize::try_from(end - reading.at).unwrap_or(PIECE).min(PIECE);
                let (bytes, _) = reading.read(left).await?;
                if !bytes.is_empty() {
                    return Ok(Some((bytes, reading)));
                }
                if reading.at == before {
                    // Removed while it was read.
                    break;
                }
            }
            Ok(None)
        })
    }

    /// Everything, until the marker.
    fn follow(self, scope: Scope, turn: OwnedSemaphorePermit) -> impl Stream<Item = Result<Bytes, LogError>> {
        let ends = Ends { scope, looked: None, over_since: None };
        stream::try_unfold((self, ends, turn, false), |(mut reading, mut ends, turn, complete)| async move {
            if complete {
                return Ok(None);
            }
            loop {
                let before = reading.at;
                let (bytes, complete) = reading.read(PIECE).await?;
                if !bytes.is_empty() {
                    return Ok(Some((bytes, (reading, ends, turn, complete))));
                }
                if complete {
                    return Ok(None);
                }
                if reading.at > before {
                    continue;
                }
                if ends.nothing_will_come(&reading).await {
                    return Ok(None);
                }
                tokio::time::sleep(REST).await;
            }
        })
    }
}

/// What a silent follower knows of the end of its job.
struct Ends {
    scope: Scope,
    looked: Option<Instant>,
    /// Since when the attempt is known to be over.
    over_since: Option<Instant>,
}

impl Ends {
    async fn nothing_will_come(&mut self, reading: &LogReader) -> bool {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return false;
        }
        let now = Instant::now();
        self.looked = Some(now);
        match reading.api.store.get(&self.scope, reading.id).await {
            Ok(None) => true,
            Ok(Some(job)) if never_ran(&job, reading.attempt) => true,
            Ok(Some(job)) => {
                let over = job.life.state.is_terminal() || job.life.attempt > reading.attempt;
                self.over_since = if over { self.over_since.or(Some(now)) } else { None };
                self.over_since.is_some_and(|since| now.duration_since(since) >= GRACE)
            }
            // An outage is no end.
            Err(_) => false,
        }
    }
}

/// The attempt ended before any resource manager had it.
fn never_ran(job: &Job, attempt: u32) -> bool {
    job.life.attempt == attempt && job.life.state.is_terminal() && job.life.submission.is_none()
}
