//! `POST /v1/jobs/batch`: many jobs in one request, each with an answer of its own.
//!
//! A JSON array is read whole before anything is accepted, so a syntax error in it accepts nothing. NDJSON is accepted
//! as it arrives, in parts that share commits with everybody else's; what is wrong with a line is told at its index.
//! Parsed jobs are held for a few parts only: what is stored is kept as the text of its answer.

use super::{
    Api,
    document::JobDocument,
    extract::{Caller, Params, Submitting, accepts, media_type, whole, wrong_media_type},
    jobs::{digest, idempotency_key, not_accepted},
    json,
    limits::{MAX_BATCH, MAX_BATCH_ITEMS, MAX_JOB},
    problem::{Answer, Kind, Problem},
    request::{JobRequest, Posting},
};
use crate::accept::{Accepted, MAX_ROWS};
use axum::{
    Json,
    body::{Body, BodyDataStream},
    extract::{Request, State},
    http::HeaderMap,
};
use bytes::{Buf as _, Bytes, BytesMut};
use futures::{StreamExt as _, stream::FuturesOrdered};
use jobgate_shared::domain::{IdempotencyKey, JobId, JobState, NewJob, Project};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::{RawValue, to_raw_value};
use std::{fmt, pin::Pin, sync::Arc, task::Poll};

/// Parts of one batch that wait for their commit at once.
const PARTS: usize = 4;
/// A part ends with the job that brings it to so many bytes of memory.
const PART_BYTES: usize = 4 * 1024 * 1024;

/// What became of a batch, by index.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct BatchOutcome {
    /// One for each job posted, in order.
    #[schema(value_type = Vec<ItemOutcome>)]
    items: Vec<Box<RawValue>>,
}

/// What became of one job of a batch.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ItemOutcome {
    /// Stored, now or before under the same key.
    Job(Box<JobDocument>),
    /// Stored; told in short, as asked by `Prefer: return=minimal`.
    #[serde(rename = "job")]
    Minimal(MinimalJob),
    /// Not stored; with the status 503, not known to be.
    Error(Problem),
}

/// As little of a job as there can be told.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MinimalJob {
    /// The job.
    id: JobId,
    /// Where it stands.
    state: JobState,
}

/// Posts many jobs.
///
/// Send a JSON array, or NDJSON as `application/x-ndjson`: at most 10 000 jobs, 32 MiB. Good jobs are stored whatever is
/// wrong with others. Under an `Idempotency-Key`, each job has the key `key#index`.
#[utoipa::path(post, path = "/v1/jobs/batch", tag = "jobs", operation_id = "post_batch",
    params(
        ("Idempotency-Key" = Option<String>, Header, pattern = "^[!-~]{1,200}$", description = "Your own name for this batch"),
        ("Prefer" = Option<String>, Header, description = "`return=minimal` answers ids and states only"),
    ),
    request_body(content(
        (Vec<JobRequest> = "application/json"),
        (String = "application/x-ndjson"),
    )),
    responses((status = 200, description = "What became of each", body = BatchOutcome)))]
pub(super) async fn post(
    State(api): State<Arc<Api>>,
    caller: Caller<Submitting>,
    params: Params,
    request: Request,
) -> Answer<Json<BatchOutcome>> {
    let (parts, body) = request.into_parts();
    accepts(&parts.headers, "application/json")?;
    params.end()?;
    let _turn = api
        .batches
        .try_acquire()
        .map_err(|_| Problem::new(Kind::Overloaded, "too many batches are being read; try again"))?;
    let mut batch = Batch {
        api: &api,
        project: caller.home(),
        by: caller.principal.by.clone(),
        key: idempotency_key(&parts.headers)?,
        minimal: prefers_minimal(&parts.headers),
        part: Part::default(),
        count: 0,
        waiting: FuturesOrdered::new(),
        items: Vec::new(),
    };
    match media_type(&parts.headers).as_deref() {
        Some("application/json") => batch.read_array(&whole(body, MAX_BATCH).await?).await?,
        Some("application/x-ndjson" | "application/jsonl" | "application/ndjson") => {
            batch.read_lines(body).await;
        }
        Some(_) | None => return Err(wrong_media_type("application/json, or application/x-ndjson")),
    }
    Ok(Json(BatchOutcome { items: batch.finish().await }))
}

fn prefers_minimal(headers: &HeaderMap) -> bool {
    let values = headers.get_all("prefer").into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split([',', ';'])).any(|p| p.trim().eq_ignore_ascii_case("return=minimal"))
}

type Stored = (Part, Vec<Accepted>);

/// A batch as far as it was read.
struct Batch<'a> {
    api: &'a Arc<Api>,
    project: Project,
    by: String,
    key: Option<String>,
    minimal: bool,
    part: Part,
    /// Jobs taken so far, good or bad.
    count: usize,
    waiting: FuturesOrdered<Pin<Box<dyn Future<Output = Stored> + Send + 'a>>>,
    items: Vec<Box<RawValue>>,
}

/// Neighbours that are stored together: the good ones, and what is wrong with the others.
#[derive(Default)]
struct Part {
    jobs: Vec<NewJob>,
    /// What they take in memory.
    bytes: usize,
    /// For each index in turn: nothing for a job of `jobs`, else what is wrong.
    faults: Vec<Option<Problem>>,
}

impl Batch<'_> {
    async fn read_array(&mut self, body: &Bytes) -> Answer<()> {
        let Items(items) = serde_json::from_slice(body)
            .map_err(|e| Problem::new(Kind::MalformedJson, format!("not a JSON array: {e}")))?;
        if items.len() > MAX_BATCH_ITEMS {
            return Err(Problem::new(
                Kind::TooLarge,
                format!("a batch holds {MAX_BATCH_ITEMS} jobs at most"),
            ));
        }
        for item in items {
            self.take(item.get().as_bytes()).await;
        }
        Ok(())
    }

    /// Takes line after line; what ends the reading early is told at the index it ended at.
    async fn read_lines(&mut self, body: Body) {
        let mut lines = Lines { body: body.into_data_stream(), read: BytesMut::new(), bytes: 0, searched: 0 };
        loop {
            match lines.next().await {
                Ok(Some(line)) if line.trim_ascii().is_empty() => {}
                Ok(Some(_)) if self.count == MAX_BATCH_ITEMS => {
                    let rest = format!(
                        "a batch holds {MAX_BATCH_ITEMS} jobs; this one and all after it are left out"
                    );
                    return self.fault(Problem::new(Kind::TooLarge, rest)).await;
                }
                Ok(Some(line)) => self.take(&line).await,
                Ok(None) => return,
                Err(problem) => return self.fault(problem).await,
            }
        }
    }

    async fn take(&mut self, item: &[u8]) {
        match self.check(item) {
            Ok(job) => {
                self.part.bytes += item.len() + job.parsed_weight();
                self.part.jobs.push(job);
                self.took(None).await;
            }
            Err(problem) => self.fault(problem).await,
        }
    }

    fn check(&self, item: &[u8]) -> Answer<NewJob> {
        if item.len() > MAX_JOB {
            return Err(Problem::new(Kind::TooLarge, format!("a job may hold {MAX_JOB} bytes")));
        }
        let key = self.key.as_ref().map(|key| {
            let key = format!("{key}#{}", self.count);
            IdempotencyKey { key, body: digest(item) }
        });
        let now = self.api.clock.now();
        let posting = Posting { clusters: &*self.api.clusters, project: &self.project, by: &self.by, now };
        json::read::<JobRequest>(item)?.check(&posting, key)
    }

    async fn fault(&mut self, problem: Problem) {
        self.took(Some(problem)).await;
    }

    async fn took(&mut self, fault: Option<Problem>) {
        self.part.faults.push(fault);
        self.count += 1;
        if self.part.faults.len() == MAX_ROWS || self.part.bytes >= PART_BYTES {
            self.flush();
            // A future does nothing until it is polled: this sends the part on its way while the next is read.
            if let Poll::Ready(Some(stored)) = futures::poll!(self.waiting.next()) {
                self.collect(stored);
            }
            if self.waiting.len() == PARTS
                && let Some(stored) = self.waiting.next().await
            {
                self.collect(stored);
            }
        }
    }

    fn flush(&mut self) {
        let mut part = std::mem::take(&mut self.part);
        let jobs = std::mem::take(&mut part.jobs);
        let acceptor = self.api.acceptor.clone();
        self.waiting.push_back(Box::pin(async move {
            let accepted =
                if jobs.is_empty() { Vec::new() } else { acceptor.accept_part(jobs, part.bytes).await };
            (part, accepted)
        }));
    }

    fn collect(&mut self, (part, accepted): Stored) {
        let mut accepted = accepted.into_iter();
        for fault in part.faults {
            let outcome = match fault {
                Some(problem) => ItemOutcome::Error(problem),
                None => outcome(accepted.next().unwrap_or(Accepted::Away), self.minimal),
            };
            // No key of it is anything but text, so it can always be written.
            self.items.push(to_raw_value(&outcome).unwrap_or_default());
        }
    }

    async fn finish(mut self) -> Vec<Box<RawValue>> {
        self.flush();
        while let Some(stored) = self.waiting.next().await {
            self.collect(stored);
        }
        self.items
    }
}

fn outcome(accepted: Accepted, minimal: bool) -> ItemOutcome {
    match accepted {
        Accepted::Created(job) | Accepted::Existing(job) if minimal => {
            ItemOutcome::Minimal(MinimalJob { id: job.id, state: job.life.state })
        }
        Accepted::Created(job) | Accepted::Existing(job) => ItemOutcome::Job(Box::new((*job).into())),
        other @ (Accepted::KeyReused | Accepted::Refused | Accepted::Away) => {
            ItemOutcome::Error(not_accepted(&other))
        }
    }
}

/// The items of an array, one more at most than a batch holds: a body has room for millions.
struct Items<'a>(Vec<&'a RawValue>);

impl<'a> Deserialize<'a> for Items<'a> {
    fn deserialize<D: Deserializer<'a>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_seq(ReadItems)
    }
}

struct ReadItems;

impl<'a> Visitor<'a> for ReadItems {
    type Value = Items<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Items<'a>, A::Error> {
        let mut items = Vec::new();
        while items.len() <= MAX_BATCH_ITEMS
            && let Some(item) = seq.next_element()?
        {
            items.push(item);
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Items(items))
    }
}

/// A body, line by line.
struct Lines {
    body: BodyDataStream,
    read: BytesMut,
    /// Bytes read in all.
    bytes: usize,
    /// Bytes of `read` known to hold no line's end.
    searched: usize,
}

impl Lines {
    /// The next line without its end; nothing at the end of the body.
    async fn next(&mut self) -> Answer<Option<Bytes>> {
        loop {
            if let Some(at) = self.read[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(self.searched + at).freeze();
                self.read.advance(1);
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.read.len();
            if self.searched > MAX_JOB {
                return Err(Problem::new(Kind::TooLarge, format!("a job may hold {MAX_JOB} bytes")));
            }
            match self.body.next().await {
                Some(Ok(bytes)) => {
                    self.bytes += bytes.len();
                    if self.bytes > MAX_BATCH {
                        let rest = format!(
                            "a batch holds {MAX_BATCH} bytes; this job and all after it are left out"
                        );
                        return Err(Problem::new(Kind::TooLarge, rest));
                    }
                    self.read.extend_from_slice(&bytes);
                }
                Some(Err(_)) => {
                    let cut = "the body ended before it was complete; this job and all after it are left out";
                    return Err(Problem::new(Kind::MalformedJson, cut));
                }
                None if self.read.is_empty() => return Ok(None),
                None => {
                    self.searched = 0;
                    return Ok(Some(self.read.split().freeze()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_items_are_kept_than_tell_that_there_are_too_many() {
        let array = format!("[{}]", vec!["0"; 3 * MAX_BATCH_ITEMS].join(","));
        let Items(items) = serde_json::from_str(&array).unwrap();
        assert_eq!(items.len(), MAX_BATCH_ITEMS + 1);
        assert!(serde_json::from_str::<Items>(&array[..array.len() - 1]).is_err(), "it is read to its end");
    }
}
