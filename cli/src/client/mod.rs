//! The HTTP client every client command and `run` use: an ordinary client of the gateway, with no door of its own.
//!
//! Requests that can be made again are made again for a while when the gateway is away; everything else fails at once.

mod address;
#[cfg(test)]
pub(crate) mod canned;
mod documents;
mod events;
mod problem;

pub(crate) use address::Target;
pub(crate) use documents::{
    ClusterDoc, HistoryDoc, JobDoc, PageDoc, QueueDoc, ServedDoc, TokenDoc, WorkerDoc,
};
pub(crate) use events::Events;
pub(crate) use problem::Problem;

use crate::{config::Secret, exit::Usage};
use anyhow::Context as _;
use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use jobgate_shared::{domain::Project, retry::Delays};
use reqwest::{
    Method, Url,
    header::{self, HeaderMap},
};
use serde_json::Value;
use std::{path::Path, pin::Pin, time::Duration};
use tokio::time::Instant;

/// How long an answer may take, beyond the time the request itself asks to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long a request that can be made again is made again.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same while nobody listens there at all: most often there is no gateway, and somebody waits to hear so.
const NOBODY_THERE: Duration = Duration::from_secs(2);

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody answers there, or the connection broke.
    #[error("cannot reach the gateway at {url}")]
    Unreachable {
        /// Where.
        url: String,
        /// How it failed.
        #[source]
        source: reqwest::Error,
    },
    /// The gateway said no.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The answer is none of a gateway.
    #[error("the answer of {url} is not what a gateway answers")]
    Unreadable {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        #[source]
        source: anyhow::Error,
    },
    /// The address is none.
    #[error("{address:?} is not the address of a gateway: {why}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no token to show.
    #[error("{why}")]
    Token {
        /// What was tried.
        why: String,
    },
}

impl ClientError {
    /// The same request may succeed later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !source.is_builder(),
            Self::Refused(problem) => problem.is_transient(),
            Self::Unreadable { .. } | Self::Address { .. } | Self::Token { .. } => false,
        }
    }

    /// What was asked for may have been done all the same.
    pub(crate) fn is_in_doubt(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !(source.is_builder() || source.is_connect()),
            Self::Refused(problem) => problem.is_transient(),
            Self::Unreadable { .. } => true,
            Self::Address { .. } | Self::Token { .. } => false,
        }
    }
}

/// A body as it comes in.
pub(crate) type Body = Pin<Box<dyn Stream<Item = Result<Bytes, ClientError>> + Send>>;

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    body: Option<Bytes>,
    content_type: &'static str,
    key: Option<String>,
    last_event: Option<String>,
    patience: Duration,
    answer_within: Duration,
}

impl Request {
    fn new(method: Method, path: impl Into<String>, patience: Duration) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            body: None,
            content_type: "application/json",
            key: None,
            last_event: None,
            patience,
            answer_within: ANSWER_WITHIN,
        }
    }

    /// Reads something; made again while the gateway is away.
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, PATIENCE)
    }

    /// Changes something; made once.
    pub(crate) fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path, Duration::ZERO)
    }

    /// Changes something in part; made once.
    pub(crate) fn patch(path: impl Into<String>) -> Self {
        Self::new(Method::PATCH, path, Duration::ZERO)
    }

    /// Removes something; made once.
    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path, Duration::ZERO)
    }

    /// With these parameters.
    pub(crate) fn query(mut self, query: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        self.query.extend(query.into_iter().map(|(k, v)| (k.to_owned(), v)));
        self
    }

    /// With this document.
    pub(crate) fn json(mut self, body: &Value) -> Self {
        self.body = Some(Bytes::from(body.to_string()));
        self
    }

    /// With these documents, one a line.
    pub(crate) fn ndjson(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self.content_type = "application/x-ndjson";
        self
    }

    /// Under an idempotency key: it can be made again, and is.
    pub(crate) fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self.patience = PATIENCE;
        self
    }

    /// Harmless when made twice: it is made again while the gateway is away.
    pub(crate) fn repeatable(mut self) -> Self {
        self.patience = PATIENCE;
        self
    }

    /// Of a feed: what comes after this event.
    fn resume_after(mut self, id: Option<String>) -> Self {
        self.last_event = id;
        self
    }

    /// How long it is made again after this error.
    fn patience_with(&self, error: &ClientError) -> Duration {
        match error {
            ClientError::Unreachable { source, .. } if source.is_connect() => self.patience.min(NOBODY_THERE),
            ClientError::Unreachable { .. }
            | ClientError::Refused(_)
            | ClientError::Unreadable { .. }
            | ClientError::Address { .. }
            | ClientError::Token { .. } => self.patience,
        }
    }

    /// The gateway is asked to wait so long before it answers.
    pub(crate) fn waiting(mut self, time: Duration) -> Self {
        self.answer_within = ANSWER_WITHIN + time;
        self.query.push(("wait".to_owned(), format!("{}s", time.as_secs())));
        self
    }
}

/// A gateway, as a client sees it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Secret>,
    project: Option<Project>,
}

impl Client {
    /// A client of the gateway at `target`.
    pub(crate) fn new(target: Target) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("jobgate/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(5))
            // A redirect would carry the token to wherever it points.
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_merge(authorities(target.ca_certificate.as_deref())?)
            .build()
            .context("cannot set up the HTTP client")?;
        Ok(Self { http, base: target.url, token: target.token, project: None })
    }

    /// The same, acting on one project only; for a token that opens several.
    pub(crate) fn for_project(self, project: Option<Project>) -> Self {
        Self { project, ..self }
    }

    /// Where the gateway is.
    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// Makes the request, again while that helps; a document as answered.
    pub(crate) async fn send(&self, request: Request) -> Result<Value, ClientError> {
        self.send_checked(request, |_| Ok(())).await
    }

    /// The same for what an answer alone does not settle: an error `check` finds in it is one of the request.
    pub(crate) async fn send_checked(
        &self,
        request: Request,
        check: impl Fn(&Value) -> Result<(), ClientError>,
    ) -> Result<Value, ClientError> {
        let began = Instant::now();
        let mut delays = Delays::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let answer = self.send_once(&request).await.and_then(|answer| check(&answer).map(|()| answer));
            let delay = delays.next_delay();
            match answer {
                Err(error)
                    if error.is_transient() && began.elapsed() + delay < request.patience_with(&error) =>
                {
                    tracing::debug!(%error, "the request is made again");
                    tokio::time::sleep(delay).await;
                }
                answer => return answer,
            }
        }
    }

    async fn send_once(&self, request: &Request) -> Result<Value, ClientError> {
        let response = self.begin(request, Some(request.answer_within)).await?;
        let url = response.url().to_string();
        let body = response.bytes().await.map_err(|source| self.unreachable(source))?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|error| ClientError::Unreadable { url, source: error.into() })
    }

    /// Makes the request once; the headers, and the body as it comes, however long that takes.
    pub(crate) async fn stream(&self, request: Request) -> Result<(HeaderMap, Body), ClientError> {
        let response = self.begin(&request, None).await?;
        let (client, headers) = (self.clone(), response.headers().clone());
        let body = response.bytes_stream().map_err(move |source| client.unreachable(source));
        Ok((headers, Box::pin(body)))
    }

    async fn begin(
        &self,
        request: &Request,
        within: Option<Duration>,
    ) -> Result<reqwest::Response, ClientError> {
        let mut builder =
            self.http.request(request.method.clone(), self.url(&request.path)).query(&request.query);
        if let Some(within) = within {
            builder = builder.timeout(within);
        }
        if let Some(token) = &self.token {
            builder = builder.bearer_auth(token.expose());
        }
        if let Some(project) = &self.project {
            builder = builder.header("x-jobgate-project", project.as_str());
        }
        if let Some(key) = &request.key {
            builder = builder.header("idempotency-key", key);
        }
        if let Some(id) = &request.last_event {
            builder = builder.header("last-event-id", id);
        }
        if let Some(body) = &request.body {
            builder = builder.header(header::CONTENT_TYPE, request.content_type).body(body.clone());
        }
        let response = builder.send().await.map_err(|source| self.unreachable(source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let id = response.headers().get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let body = response.bytes().await.unwrap_or_default();
        Err(ClientError::Refused(Box::new(Problem::from_response(status.as_u16(), id, &body))))
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        // Every segment is ours or an id that parsed; a base with a path of its own keeps it.
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }

    fn unreachable(&self, source: reqwest::Error) -> ClientError {
        ClientError::Unreachable { url: self.base.to_string(), source: source.without_url() }
    }
}

/// The certificates in a PEM file; none without one.
fn authorities(file: Option<&Path>) -> anyhow::Result<Vec<reqwest::Certificate>> {
    let Some(file) = file else { return Ok(Vec::new()) };
    let wrong = |why: &dyn std::fmt::Display| Usage(format!("the CA certificate {}: {why}", file.display()));
    let pem = std::fs::read(file).map_err(|error| wrong(&error))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| wrong(&error))?;
    if found.is_empty() {
        return Err(wrong(&"there is no certificate in it").into());
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
