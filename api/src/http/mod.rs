//! HTTP: the one place that knows axum.
//!
//! One file per resource, each holding its routes' handlers and documents. Handlers read a request, ask the ports, and
//! shape an answer; they decide nothing about jobs. Every failure, of ours or of axum's, is a [`problem::Problem`].

mod batch;
mod claims;
mod clusters;
mod commands;
mod document;
mod envelope;
mod events;
mod extract;
mod filter;
mod jobs;
mod json;
mod limits;
mod logs;
mod openapi;
mod opening;
pub mod ops;
pub mod problem;
mod readiness;
mod reports;
mod request;
mod server;
#[cfg(test)]
mod tests;
mod tokens;
mod turns;

pub use document::JobDocument;
pub use envelope::{Hosts, REQUEST_ID};
pub use extract::PROJECT_HEADER;
pub use limits::HttpConfig;
pub use logs::{COMPLETE, NEXT_OFFSET};
pub use opening::Opening;
pub use readiness::StoreProbe;
pub use request::{JobRequest, Posting};
pub use server::serve;

use crate::{
    accept::{AcceptSettings, Acceptor},
    auth::{Authority, TooShort},
    claims::Claims,
    clusters::SpecValidator,
    dispatcher::HintBudget,
    feed::Feed,
    waiting::Lookout,
};
use axum::{
    Router,
    extract::State,
    http::request::Parts,
    middleware::from_fn_with_state,
    response::Response,
    routing::{delete, get, patch, post},
};
use extract::Watcher;
use jobgate_shared::{
    broker::Broker,
    clock::Clock,
    logs::LogStore,
    reporting::{ReportKey, Reporting},
    store::{Leases, Store},
    supervise::Tasks,
    wire::Nudge,
};
use ops::Ops;
use problem::{Answer, Kind, Problem};
use std::{fmt, sync::Arc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What the API is made of.
pub struct ApiParts {
    /// The rows.
    pub store: Arc<dyn Store>,
    /// The rows as workers see them, for services outside that are some.
    pub leases: Arc<dyn Leases>,
    /// The bells.
    pub broker: Arc<dyn Broker>,
    /// What jobs print.
    pub logs: LogStore,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The configured clusters and what their engines take.
    pub clusters: Arc<dyn SpecValidator>,
    /// The room for hints, shared with the dispatcher of this process.
    pub budget: Arc<HintBudget>,
    /// Renders the process's metrics in Prometheus' text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// A token that may do everything, beside those in the store.
    pub admin_token: Option<String>,
    /// What the tokens are made of that jobs report with; without it no such token opens anything.
    pub report_key: Option<ReportKey>,
    /// Where jobs reach this API, for those who give jobs what they report with.
    pub report_url: Option<String>,
    /// How jobs are accepted.
    pub accept: AcceptSettings,
    /// Limits.
    pub config: HttpConfig,
    /// What everything runs on; its shutdown ends streams and waiting requests.
    pub tasks: Tasks,
}

impl fmt::Debug for ApiParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiParts").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The API of one process.
pub struct Api {
    store: Arc<dyn Store>,
    broker: Arc<dyn Broker>,
    logs: LogStore,
    clock: Arc<dyn Clock>,
    clusters: Arc<dyn SpecValidator>,
    budget: Arc<HintBudget>,
    config: HttpConfig,
    tasks: Tasks,
    acceptor: Arc<Acceptor>,
    authority: Arc<Authority>,
    report_key: Option<ReportKey>,
    /// What jobs that claimants run report with.
    reporting: Option<Reporting>,
    feed: Arc<Feed>,
    lookout: Lookout,
    ops: Ops,
    claims: Claims,
    /// Event streams and followed logs.
    streams: Arc<Semaphore>,
    /// Batches being read.
    batches: Semaphore,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Api {
    /// Puts the API together and begins to listen for nudges. Refuses an administrator's token that is easy to guess.
    pub fn start(parts: ApiParts) -> Result<Arc<Self>, TooShort> {
        let ApiParts {
            store,
            leases,
            broker,
            logs,
            clock,
            clusters,
            budget,
            metrics,
            admin_token,
            report_key,
            report_url,
            accept,
            config,
            tasks,
        } = parts;
        let authority = Arc::new(Authority::new(store.clone(), clock.clone(), admin_token.as_deref())?);
        let feed = Feed::new(store.clone(), tasks.clone());
        let acceptor =
            Acceptor::new(store.clone(), broker.clone(), budget.clone(), feed.clone(), tasks.clone(), accept);
        let probe = Arc::new(StoreProbe::new(store.clone(), broker.health()));
        listen_for_nudges(&tasks, &broker, &feed, &authority);
        Ok(Arc::new(Self {
            lookout: Lookout::new(store.clone(), clock.clone()),
            claims: Claims::new(store.clone(), leases),
            streams: Arc::new(Semaphore::new(config.max_streams.get() as usize)),
            batches: Semaphore::new(config.max_batches.get() as usize),
            ops: Ops::new(probe, move || metrics()),
            store,
            broker,
            logs,
            clock,
            clusters,
            budget,
            config,
            tasks,
            acceptor,
            authority,
            reporting: report_url.zip(report_key.clone()).map(|(url, key)| Reporting { url, key }),
            report_key,
            feed,
        }))
    }

    /// What tells operators how this process stands.
    pub fn ops(&self) -> &Ops {
        &self.ops
    }

    /// Taps other processes on the shoulder; nobody waits for it, and a lost tap costs latency only.
    fn nudge(&self, nudges: Vec<Nudge>) {
        let broker = self.broker.clone();
        self.tasks.spawn("nudges", async move {
            for nudge in nudges {
                if let Err(error) = broker.nudge(nudge).await {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::debug!(error, "a nudge was not sent");
                }
            }
        });
    }

    /// A place for a stream that may be open for long.
    fn stream_turn(&self) -> Answer<OwnedSemaphorePermit> {
        let full = |_| Problem::new(Kind::Overloaded, "too many streams are open; try again");
        self.streams.clone().try_acquire_owned().map_err(full)
    }

    /// When a stream opened with this token must end, whatever it still has to tell.
    fn end_of_stream(&self, token: &str) -> impl Future<Output = ()> + Send + use<> {
        let (authority, token) = (self.authority.clone(), token.to_owned());
        let shutdown = self.tasks.shutdown().clone();
        async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = authority.until_invalid(&token) => {}
            }
        }
    }
}

/// What other processes changed: somebody may want to see it, or what is remembered here is old.
fn listen_for_nudges(tasks: &Tasks, broker: &Arc<dyn Broker>, feed: &Arc<Feed>, authority: &Arc<Authority>) {
    let (broker, feed, authority) = (broker.clone(), feed.clone(), authority.clone());
    let shutdown = tasks.shutdown().clone();
    tasks.supervise("api nudges", move || {
        let (mut nudges, feed, authority) = (broker.nudges(), feed.clone(), authority.clone());
        let shutdown = shutdown.clone();
        async move {
            loop {
                let delivery = tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    delivery = nudges.next() => delivery,
                };
                let Some(delivery) = delivery else { return Ok(()) };
                match delivery.body {
                    Nudge::Changed => feed.poke(),
                    Nudge::Settings => authority.doubt(),
                    Nudge::Cancel { .. } => {}
                }
            }
        }
    });
}

/// Every path of the API, for a server that is called by `hosts`.
pub fn router(api: Arc<Api>, hosts: Hosts) -> Router {
    let quick = Router::new()
        .route("/v1/jobs", get(jobs::list).post(jobs::post))
        .route("/v1/jobs/{id}/history", get(jobs::history))
        .route("/v1/jobs/{id}/logs/{stream}", get(logs::get))
        .route("/v1/jobs/{id}/events", get(events::of_job))
        .route("/v1/jobs/{id}/reports", post(reports::post))
        .route("/v1/jobs/{id}/cancel", post(commands::cancel))
        .route("/v1/jobs/{id}/hold", post(commands::hold))
        .route("/v1/jobs/{id}/release", post(commands::release))
        .route("/v1/jobs/{id}/retry", post(commands::retry))
        .route("/v1/events", get(events::all))
        .route("/v1/queues", get(clusters::queues))
        .route("/v1/workers", get(clusters::workers))
        .route("/v1/clusters", get(clusters::clusters))
        .route("/v1/clusters/{name}", patch(clusters::change))
        .route("/v1/clusters/{name}/pause", post(clusters::pause))
        .route("/v1/clusters/{name}/resume", post(clusters::resume))
        .route("/v1/clusters/{name}/claims/renew", post(claims::renew))
        .route("/v1/clusters/{name}/claims/{id}", patch(claims::report).delete(claims::give_up))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{id}", delete(tokens::revoke))
        .route("/openapi.json", get(openapi::get))
        .route("/livez", get(ops::livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .layer(from_fn_with_state(limits::QUICK, envelope::bounded));
    let patient = Router::new()
        .route("/v1/jobs/{id}", get(jobs::get).patch(jobs::patch).delete(jobs::remove))
        .route("/v1/clusters/{name}/claims", get(claims::list).post(claims::claim))
        .route("/v1/jobs/cancel", post(commands::cancel_many))
        .route("/v1/jobs/hold", post(commands::hold_many))
        .route("/v1/jobs/release", post(commands::release_many))
        .route("/v1/jobs/retry", post(commands::retry_many))
        .layer(from_fn_with_state(limits::PATIENT, envelope::bounded));
    let bulk = Router::new()
        .route("/v1/jobs/batch", post(batch::post))
        .layer(from_fn_with_state(limits::BULK, envelope::bounded));
    quick
        .merge(patient)
        .merge(bulk)
        .fallback(|| async { Problem::new(Kind::NoSuchPath, "see /openapi.json for the paths there are") })
        .method_not_allowed_fallback(|| async {
            Problem::new(Kind::MethodNotAllowed, "see the header `Allow` for the methods it takes")
        })
        .layer(from_fn_with_state(Arc::new(hosts), envelope::envelope))
        .with_state(api)
}

/// Says whether the process can do its work.
#[utoipa::path(get, path = "/readyz", tag = "probes", operation_id = "readyz", security(()),
    responses(
        (status = 200, description = "It can, if perhaps with care", body = ops::Readiness),
        (status = 503, description = "It cannot", body = ops::Readiness),
    ))]
async fn readyz(State(api): State<Arc<Api>>) -> Response {
    api.ops.readyz().await
}

/// Tells what is counted and measured, in Prometheus' text format.
///
/// Needs a token that reads every project, unless `open_metrics` is set. One shown within the last day is still known while
/// the store is away.
#[utoipa::path(get, path = "/metrics", tag = "probes", operation_id = "metrics",
    responses((status = 200, description = "Every metric", content_type = "text/plain", body = String)))]
async fn metrics(State(api): State<Arc<Api>>, mut parts: Parts) -> Answer<Response> {
    use axum::extract::FromRequestParts as _;
    if !api.config.open_metrics {
        Watcher::from_request_parts(&mut parts, &api).await?;
    }
    Ok(api.ops.metrics())
}
