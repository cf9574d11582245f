//! What every role serves to its operators: `/livez`, `/readyz` and `/metrics`.
//!
//! `/livez` says that the process answers at all. `/readyz` says whether it can do its work: 503 when it cannot, 200 with
//! the word `degraded` when it can and something needs care.

use super::{
    envelope::Hosts,
    problem::{Kind, Problem},
};
use async_trait::async_trait;
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use std::{fmt, sync::Arc};

/// How a role stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Readiness {
    /// All is well.
    Ready,
    /// It works; something needs care.
    Degraded {
        /// What.
        reason: String,
    },
    /// It cannot do its work now.
    Unready {
        /// Why.
        reason: String,
    },
}

/// Tells how a role stands. Asked by anyone, so it must be cheap and bounded in time.
#[async_trait]
pub trait Probe: Send + Sync + fmt::Debug {
    /// How it stands now.
    async fn readiness(&self) -> Readiness;
}

/// What the operators' paths of a role need.
#[derive(Clone)]
pub struct Ops {
    probe: Arc<dyn Probe>,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl fmt::Debug for Ops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ops").field("probe", &self.probe).finish_non_exhaustive()
    }
}

impl Ops {
    /// `metrics` renders them in Prometheus' text format.
    pub fn new(probe: Arc<dyn Probe>, metrics: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self { probe, metrics: Arc::new(metrics) }
    }

    pub(super) async fn readyz(&self) -> Response {
        let readiness = self.probe.readiness().await;
        let status = match readiness {
            Readiness::Ready | Readiness::Degraded { .. } => StatusCode::OK,
            Readiness::Unready { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, axum::Json(readiness)).into_response()
    }

    pub(super) fn metrics(&self) -> Response {
        let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        ([(header::CONTENT_TYPE, text)], (self.metrics)()).into_response()
    }
}

/// The operators' paths, for a role that serves nothing else. Its address is for operators only: nobody is asked who
/// they are, and metrics are told to whoever calls it by one of `hosts`, if there are any to call it by.
pub fn router(ops: Ops, hosts: Option<Hosts>) -> Router {
    let metrics = get(|State(ops): State<Ops>| async move { ops.metrics() });
    Router::new()
        .route("/metrics", metrics.layer(from_fn_with_state(Arc::new(hosts), called_by_name)))
        // Probes call a server by whatever address it has.
        .route("/livez", get(livez))
        .route("/readyz", get(|State(ops): State<Ops>| async move { ops.readyz().await }))
        .fallback(|| async {
            Problem::new(Kind::NoSuchPath, "this address serves /livez, /readyz and /metrics")
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(Kind::MethodNotAllowed, "see the header `Allow` for the methods it takes")
        })
        .with_state(ops)
}

async fn called_by_name(State(hosts): State<Arc<Option<Hosts>>>, request: Request, next: Next) -> Response {
    match hosts.as_ref().as_ref().map_or(Ok(()), |hosts| hosts.check(&request)) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Says that the process answers.
#[utoipa::path(get, path = "/livez", tag = "probes", operation_id = "livez", security(()),
    responses((status = 200, description = "It does", content_type = "text/plain", body = String)))]
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, http::Method};
    use tower::ServiceExt as _;

    #[derive(Debug)]
    struct Stands(Readiness);

    #[async_trait]
    impl Probe for Stands {
        async fn readiness(&self) -> Readiness {
            self.0.clone()
        }
    }

    #[tokio::test]
    async fn only_a_role_that_cannot_work_is_unready() {
        let reason = || "the broker is down".to_owned();
        for (readiness, status) in [
            (Readiness::Ready, StatusCode::OK),
            (Readiness::Degraded { reason: reason() }, StatusCode::OK),
            (Readiness::Unready { reason: reason() }, StatusCode::SERVICE_UNAVAILABLE),
        ] {
            let router = router(Ops::new(Arc::new(Stands(readiness)), || "a_metric 1\n".to_owned()), None);
            for (path, expected) in [
                ("/readyz", status),
                ("/livez", StatusCode::OK),
                ("/metrics", StatusCode::OK),
                ("/", StatusCode::NOT_FOUND),
            ] {
                let request = Request::get(path).body(Body::empty()).unwrap();
                assert_eq!(router.clone().oneshot(request).await.unwrap().status(), expected, "{path}");
            }
        }
    }

    #[tokio::test]
    async fn metrics_are_told_to_whoever_calls_the_process_by_its_name_and_every_refusal_is_a_problem() {
        let ops = Ops::new(Arc::new(Stands(Readiness::Ready)), String::new);
        let hosts = Hosts::new("127.0.0.1:7071".parse().unwrap(), &[]);
        let (own, any) = (router(ops.clone(), Some(hosts)), router(ops, None));
        for (router, method, path, host, status) in [
            (&own, Method::GET, "/metrics", "127.0.0.1:7071", 200),
            (&own, Method::GET, "/metrics", "localhost:7071", 200),
            (&own, Method::GET, "/metrics", "rebound.example", 421),
            (&own, Method::GET, "/livez", "10.1.2.3:7071", 200),
            (&own, Method::GET, "/readyz", "10.1.2.3:7071", 200),
            (&own, Method::POST, "/metrics", "localhost", 405),
            (&own, Method::DELETE, "/livez", "localhost", 405),
            (&any, Method::GET, "/metrics", "worker-0.jobgate", 200),
            (&any, Method::POST, "/metrics", "worker-0.jobgate", 405),
        ] {
            let request = Request::builder().method(&method).uri(path).header(header::HOST, host);
            let answer = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "{method} {path} at {host}");
            let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            assert_eq!(status >= 400, kind == Some("application/problem+json"), "{method} {path}: {kind:?}");
        }
    }
}
