//! What every request goes through, whatever it asks for: the Host check, an id, a bound in time, a count; and what
//! becomes of a handler that panics.

use super::problem::{Kind, Problem};
use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt as _;
use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tracing::Instrument as _;
use uuid::Uuid;

/// Names a request in the log; a client's own is kept.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id taken from a client.
const MAX_REQUEST_ID: usize = 64;

/// By which names this server may be called. A page of a foreign site can make a browser resolve that site's name to
/// this server's address, but not send another Host.
#[derive(Debug, Clone)]
pub struct Hosts {
    listen: IpAddr,
    names: HashSet<String>,
}

impl Hosts {
    /// The address listened on, and names configured beside it.
    pub fn new(listen: SocketAddr, names: &[String]) -> Self {
        let names = names.iter().map(|name| name.trim_end_matches('.').to_ascii_lowercase()).collect();
        Self { listen: listen.ip(), names }
    }

    /// `host`, without a port, is one of them.
    fn covers(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if self.names.contains(&host) {
            return true;
        }
        let local = self.listen.is_loopback() || self.listen.is_unspecified();
        if host == "localhost" {
            return local;
        }
        let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(&host);
        match literal.parse::<IpAddr>() {
            // Nobody can make a browser believe that an address is a name.
            Ok(ip) => ip == self.listen || self.listen.is_unspecified() || local && ip.is_loopback(),
            Err(_) => false,
        }
    }

    /// The request calls this server by one of them.
    pub(super) fn check(&self, request: &Request) -> Result<(), Problem> {
        let named = |authority: &str| authority.parse::<Authority>().ok().map(|a| a.host().to_owned());
        let header = request.headers().get(header::HOST);
        // Where a request names its server twice, both must be this one.
        let told = [
            request.uri().authority().map(|authority| Some(authority.host().to_owned())),
            header.map(|host| host.to_str().ok().and_then(named)),
        ];
        let mut told = told.into_iter().flatten().peekable();
        if told.peek().is_none() {
            return Err(Problem::new(Kind::Misdirected, "the request has no Host").at("Host"));
        }
        if told.all(|host| host.is_some_and(|host| self.covers(&host))) {
            return Ok(());
        }
        Err(Problem::new(Kind::Misdirected, "this server is not called so; see `allowed_hosts`").at("Host"))
    }
}

/// Around every request.
pub(super) async fn envelope(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(&request);
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let probe = matches!(route.as_deref(), Some("/livez" | "/readyz"));
    let method = request.method().clone();
    let span = tracing::debug_span!("request", id = id.to_str().unwrap_or_default(), %method, path = request.uri().path());
    let mut response = async {
        // Probes call a server by whatever address it has.
        if !probe && let Err(problem) = hosts.check(&request) {
            return problem.into_response();
        }
        AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
            metrics::counter!("jobgate_http_panics_total").increment(1);
            tracing::error!("a request handler panicked");
            Problem::new(Kind::Internal, "the log of the gateway tells why").into_response()
        })
    }
    .instrument(span)
    .await;
    response.headers_mut().insert(REQUEST_ID, id);
    let status = response.status().as_str().to_owned();
    let route = route.unwrap_or_else(|| "none".to_owned());
    metrics::counter!("jobgate_http_requests_total", "route" => route.clone(), "method" => label(&method), "status" => status)
        .increment(1);
    metrics::histogram!("jobgate_http_request_seconds", "route" => route)
        .record(began.elapsed().as_secs_f64());
    response
}

/// A method as a metric tells it: anybody can make up others, and each value of a label is kept for good.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn request_id(request: &Request) -> HeaderValue {
    let own = request.headers().get(REQUEST_ID).filter(|id| {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.as_bytes().iter().all(plain)
    });
    let made = || {
        let mut text = Uuid::encode_buffer();
        // Hexadecimal digits and hyphens always are a header's value.
        HeaderValue::from_str(Uuid::now_v7().simple().encode_lower(&mut text))
            .unwrap_or(HeaderValue::from_static("-"))
    };
    own.cloned().unwrap_or_else(made)
}

/// Around the requests of one kind: how long each may take.
pub(super) async fn bounded(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            Problem::new(Kind::Timeout, format!("not done within {} s", limit.as_secs())).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(listen: &str) -> Hosts {
        Hosts::new(listen.parse().unwrap(), &["Jobs.Example.org".to_owned()])
    }

    #[test]
    fn a_server_answers_to_its_address_and_its_configured_names_only() {
        let table = [
            (
                "127.0.0.1:1",
                vec!["127.0.0.1", "localhost", "[::1]", "jobs.example.org"],
                vec!["10.0.0.1", "evil.example", "127.0.0.1.evil.example"],
            ),
            ("10.0.0.1:1", vec!["10.0.0.1", "JOBS.example.org."], vec!["localhost", "127.0.0.1", "10.0.0.2"]),
            (
                "0.0.0.0:1",
                vec!["10.0.0.1", "localhost", "127.0.0.1"],
                vec!["evil.example", "localhost.evil.example", ""],
            ),
            ("[::]:1", vec!["[::1]", "[2001:db8::1]"], vec!["evil.example"]),
        ];
        for (listen, good, bad) in table {
            for host in good {
                assert!(hosts(listen).covers(host), "{host} at {listen}");
            }
            for host in bad {
                assert!(!hosts(listen).covers(host), "{host} at {listen}");
            }
        }
    }
}
