//! `/v1/events` and `/v1/jobs/{id}/events`: committed changes as server-sent events.
//!
//! Every event carries the cursor behind it as its id; a client that reconnects sends the last one back and misses
//! nothing that is still kept. A stretch that is not kept any more is told as an event `gap`. Events can come twice.

use super::{
    Api,
    extract::{Caller, JobPath, Params, Reading, accepts, bearer},
    jobs::one,
    problem::{Answer, Kind, Problem},
};
use crate::feed::{Heard, Listener};
use axum::{
    extract::State,
    http::HeaderMap,
    response::sse::{Event, Sse},
};
use futures::{Stream, StreamExt as _, stream};
use jobgate_shared::{
    domain::{HistoryEntry, JobId, Project},
    store::{FeedCursor, JobChange, Scope},
};
use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::OwnedSemaphorePermit;

/// How long a stream may be silent; also how often a client that hears nothing learns how far it has come.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long to rest when the store is away.
const REST: Duration = Duration::from_secs(1);

/// A change of a job, as an event tells it.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub(super) struct ChangeEvent<'a> {
    /// The job.
    job: JobId,
    /// Whose it is.
    #[schema(value_type = String)]
    project: &'a Project,
    /// The change.
    #[serde(flatten)]
    entry: &'a HistoryEntry,
}

/// An event, as its fields stand in the stream.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "what the document says of a stream")]
pub(super) struct StreamedEvent {
    /// What kind it is.
    event: StreamedKind,
    /// Where the stream stands behind it, for `Last-Event-ID`; history that is told first has none.
    #[schema(nullable = false)]
    id: Option<String>,
    /// JSON: a `ChangeEvent`; for a gap `{"after":"<id>"}`.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// What an event tells of.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "what the document says of a stream")]
enum StreamedKind {
    /// A change of a job.
    Change,
    /// Changes that are not kept any more.
    Gap,
}

/// Streams the changes of every job in sight.
///
/// Events of the type `change` hold a change of one job; one of the type `gap` says that changes were missed. Send
/// `Last-Event-ID` to go on where a stream ended.
#[utoipa::path(get, path = "/v1/events", tag = "events", operation_id = "stream_events",
    params(("Last-Event-ID" = Option<String>, Header, pattern = "^[0-9]{1,18}-[0-9]{1,9}$", description = "Id of the last event heard")),
    responses((status = 200, description = "Changes, until the client leaves", content_type = "text/event-stream", body = StreamedEvent)))]
pub(super) async fn all(
    State(api): State<Arc<Api>>,
    caller: Caller<Reading>,
    params: Params,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    accepts(&headers, "text/event-stream")?;
    params.end()?;
    let turn = api.stream_turn()?;
    let listener = api.feed.listen(last_event_id(&headers)?).await?;
    let told = Telling { scope: caller.scope(), job: None, listener, past: VecDeque::new(), _turn: turn };
    Ok(told.into_events(api.end_of_stream(bearer(&headers)?)))
}

/// Streams the changes of one job, its history first.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", tag = "events", operation_id = "stream_job_events",
    params(
        ("id" = Uuid, Path, description = "The job"),
        ("Last-Event-ID" = Option<String>, Header, pattern = "^[0-9]{1,18}-[0-9]{1,9}$", description = "Id of the last event heard"),
    ),
    responses((status = 200, description = "Changes, until the client leaves", content_type = "text/event-stream", body = StreamedEvent)))]
pub(super) async fn of_job(
    State(api): State<Arc<Api>>,
    caller: Caller<Reading>,
    JobPath(id): JobPath,
    params: Params,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    accepts(&headers, "text/event-stream")?;
    params.end()?;
    let scope = caller.scope();
    let turn = api.stream_turn()?;
    let last = last_event_id(&headers)?;
    // Listening first: what happens while the history is read comes twice rather than not at all.
    let listener = api.feed.listen(last).await?;
    let job = one(&api, &scope, id).await?;
    let mut past = VecDeque::new();
    if last.is_none() {
        let history = api.store.history(&scope, id).await?.ok_or_else(Problem::no_such_job)?;
        past.extend(history.into_iter().map(|entry| JobChange {
            job: id,
            project: job.project.clone(),
            entry,
        }));
    }
    let told = Telling { scope, job: Some(id), listener, past, _turn: turn };
    Ok(told.into_events(api.end_of_stream(bearer(&headers)?)))
}

fn last_event_id(headers: &HeaderMap) -> Answer<Option<FeedCursor>> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.split_once('-')).and_then(|(batch, index)| {
        Some(FeedCursor { batch: batch.parse().ok()?, index: index.parse().ok()? })
    });
    let problem =
        || Problem::new(Kind::InvalidCursor, "send the id of an event of this stream").at("Last-Event-ID");
    parsed.map(Some).ok_or_else(problem)
}

fn id_text(cursor: FeedCursor) -> String {
    format!("{}-{}", cursor.batch, cursor.index)
}

/// One client's stream.
struct Telling {
    scope: Scope,
    job: Option<JobId>,
    listener: Listener,
    /// History told before what is heard.
    past: VecDeque<JobChange>,
    _turn: OwnedSemaphorePermit,
}

impl Telling {
    fn into_events(
        self,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
        let begin = stream::once(async { Event::default().retry(Duration::from_secs(2)).comment("jobgate") });
        let events = stream::unfold(self, |mut telling| async move { Some((telling.next().await, telling)) });
        Sse::new(begin.chain(events).take_until(end).map(Ok))
    }

    /// The next event, or after a silence how far the listener has come.
    async fn next(&mut self) -> Event {
        if let Some(change) = self.past.pop_front() {
            return change_event(&change);
        }
        let silence = tokio::time::sleep(HEARTBEAT);
        tokio::pin!(silence);
        loop {
            let heard = tokio::select! {
                heard = self.listener.next() => heard,
                () = &mut silence => {
                    return Event::default().id(id_text(self.listener.at())).comment("still here");
                }
            };
            match heard {
                Ok(Heard::Change(cursor, change)) if self.means(&change) => {
                    return change_event(&change).id(id_text(cursor));
                }
                Ok(Heard::Change(..)) => {}
                Ok(Heard::Gap(after)) => {
                    return Event::default()
                        .event("gap")
                        .data(format!("{{\"after\":\"{}\"}}", id_text(after)));
                }
                Err(error) => {
                    tracing::debug!(
                        error = format!("{:#}", anyhow::Error::from(error)),
                        "a stream waits for the store"
                    );
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    fn means(&self, change: &JobChange) -> bool {
        self.scope.covers(&change.project) && self.job.is_none_or(|job| job == change.job)
    }
}

fn change_event(change: &JobChange) -> Event {
    let told = ChangeEvent { job: change.job, project: &change.project, entry: &change.entry };
    // Names, numbers and times: nothing to fail on. JSON has no bare line ends, which is all an event cannot hold.
    Event::default().event("change").data(serde_json::to_string(&told).unwrap_or_default())
}
