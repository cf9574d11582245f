//! `/openapi.json`, generated from the handlers and documents themselves.

use super::{
    batch, clusters, commands, document, events, jobs, logs, ops, problem::Problem, request, tokens,
};
use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use jobgate_shared::logs::LogStream;
use std::sync::LazyLock;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        ContentBuilder, Ref, RefOr, ResponseBuilder,
        path::Operation,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

#[derive(OpenApi)]
#[openapi(
    info(title = "jobgate", description = "A batch-job gateway: HTTP in front, any resource manager behind."),
    paths(
        jobs::post, jobs::list, jobs::get, jobs::history, jobs::patch, jobs::remove, batch::post, logs::get,
        commands::cancel, commands::hold, commands::release, commands::retry,
        commands::cancel_many, commands::hold_many, commands::release_many, commands::retry_many,
        events::all, events::of_job,
        clusters::queues, clusters::clusters, clusters::pause, clusters::resume, clusters::workers,
        tokens::create, tokens::list, tokens::revoke,
    ),
    components(schemas(Problem, ops::Readiness, document::JobDocument, request::JobRequest, LogStream)),
    tags(
        (name = "jobs", description = "Posting, finding and reading jobs"),
        (name = "commands", description = "Cancel, hold, release, retry"),
        (name = "events", description = "Committed changes as they happen"),
        (name = "operations", description = "Queues, clusters and workers"),
        (name = "tokens", description = "Who may do what"),
    ),
    security(("token" = [])),
    modifiers(&Token, &Problems),
)]
struct Documentation;

/// How callers say who they are.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let mut bearer = Http::new(HttpAuthScheme::Bearer);
        bearer.description = Some("A token of the form `jgt_…`".to_owned());
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// Every failure is a problem document.
struct Problems;

impl Modify for Problems {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for item in document.paths.paths.values_mut() {
            for operation in
                [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete].into_iter().flatten()
            {
                add_problem(operation);
            }
        }
    }
}

fn add_problem(operation: &mut Operation) {
    let problem = || ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let any = ResponseBuilder::new()
        .description("What went wrong")
        .content("application/problem+json", problem())
        .build();
    operation.responses.responses.insert("default".to_owned(), RefOr::T(any));
}

static DOCUMENT: LazyLock<Bytes> =
    LazyLock::new(|| Documentation::openapi().to_pretty_json().unwrap_or_default().into());

/// The whole document.
pub(super) async fn get() -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], DOCUMENT.clone()).into_response()
}
