//! Before the store is there: the process lives, is not ready and takes nothing, and says so to whoever asks.

use super::{
    Api, Hosts, envelope,
    ops::{self, Readiness},
    problem::{Kind, Problem},
};
use axum::{Router, extract::Request, http::StatusCode, middleware::from_fn_with_state, routing::get};
use std::{
    fmt,
    sync::{Arc, OnceLock},
};
use tower::{ServiceExt as _, service_fn};

/// Stands where the API will be, and lets requests through to it from its opening on.
#[derive(Clone)]
pub struct Opening {
    hosts: Hosts,
    opened: Arc<OnceLock<Router>>,
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").field("open", &self.opened.get().is_some()).finish_non_exhaustive()
    }
}

impl Opening {
    /// Closed, on a server that is called by `hosts`.
    pub fn new(hosts: Hosts) -> Self {
        Self { hosts, opened: Arc::default() }
    }

    /// From now on every request is the API's.
    pub fn open(&self, api: Arc<Api>) {
        // A process has one API; a second would change nothing.
        self.opened.get_or_init(|| super::router(api, self.hosts.clone()));
    }

    /// What to serve, before and after.
    pub fn router(&self) -> Router {
        let (opened, closed) = (self.opened.clone(), closed(self.hosts.clone()));
        Router::new().fallback_service(service_fn(move |request: Request| {
            opened.get().unwrap_or(&closed).clone().oneshot(request)
        }))
    }
}

/// What is waited for, in the words of every role.
const WAITING: &str = "the database is waited for";

fn closed(hosts: Hosts) -> Router {
    let unready = || async {
        (StatusCode::SERVICE_UNAVAILABLE, axum::Json(Readiness::Unready { reason: WAITING.to_owned() }))
    };
    Router::new()
        .route("/livez", get(ops::livez))
        .route("/readyz", get(unready))
        .fallback(|| async { Problem::new(Kind::StoreAway, format!("{WAITING}; try again")) })
        .layer(from_fn_with_state(Arc::new(hosts), envelope::envelope))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;
    use axum::{body::Body, http::header};

    async fn status(router: &Router, path: &str) -> (u16, Option<String>) {
        let request = Request::get(path).header(header::HOST, "localhost").body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let retry =
            response.headers().get(header::RETRY_AFTER).map(|after| after.to_str().unwrap().to_owned());
        (response.status().as_u16(), retry)
    }

    #[tokio::test]
    async fn until_it_opens_it_lives_and_takes_nothing_and_then_it_is_the_api() {
        let opening = Opening::new(Hosts::new("127.0.0.1:7070".parse().unwrap(), &[]));
        let router = opening.router();
        assert_eq!(status(&router, "/livez").await, (200, None));
        assert_eq!(status(&router, "/readyz").await, (503, None));
        for path in ["/v1/jobs", "/metrics", "/openapi.json", "/no/such/path"] {
            assert_eq!(status(&router, path).await, (503, Some("2".to_owned())), "{path}");
        }
        opening.open(Bench::new().api.clone());
        for (path, expected) in [("/livez", 200), ("/readyz", 200), ("/v1/jobs", 401), ("/no/such/path", 404)]
        {
            assert_eq!(status(&router, path).await, (expected, None), "{path}");
        }
    }
}
