//! `/openapi.json`, generated from the handlers and documents themselves.

use super::{
    batch, claims, clusters, commands, document, events,
    extract::PROJECT_HEADER,
    jobs, logs, ops,
    problem::{Kind, Problem},
    reports, request,
    tokens::{self, TokenKinds},
};
use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use jobgate_shared::{domain::Project, logs::LogStream};
use serde_json::json;
use std::sync::LazyLock;
use utoipa::{
    Modify, OpenApi, PartialSchema as _,
    openapi::{
        ContentBuilder, PathItem, Ref, RefOr, Required, ResponseBuilder,
        link::Link,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn},
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

#[derive(OpenApi)]
#[openapi(
    info(title = "jobgate", description = "A batch-job gateway: HTTP in front, any resource manager behind."),
    paths(
        jobs::post, jobs::list, jobs::get, jobs::history, jobs::patch, jobs::remove, batch::post, logs::get,
        reports::post,
        commands::cancel, commands::hold, commands::release, commands::retry,
        commands::cancel_many, commands::hold_many, commands::release_many, commands::retry_many,
        events::all, events::of_job,
        clusters::queues, clusters::clusters, clusters::change, clusters::pause, clusters::resume, clusters::workers,
        claims::claim, claims::list, claims::renew, claims::report, claims::give_up,
        tokens::create, tokens::list, tokens::revoke,
        get, ops::livez, super::readyz, super::metrics,
    ),
    components(schemas(Problem, ops::Readiness, document::JobDocument, request::JobRequest, LogStream, events::ChangeEvent)),
    tags(
        (name = "jobs", description = "Posting, finding and reading jobs"),
        (name = "commands", description = "Cancel, hold, release, retry"),
        (name = "events", description = "Committed changes as they happen"),
        (name = "operations", description = "Queues, clusters and workers"),
        (name = "claims", description = "Working off a cluster's jobs from outside"),
        (name = "tokens", description = "Who may do what"),
        (name = "probes", description = "How the process stands"),
    ),
    security(("token" = [])),
    modifiers(&Token, &Projects, &Problems, &Links, &ClaimLinks, &TokenKinds),
)]
struct Documentation;

/// How callers say who they are.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let mut bearer = Http::new(HttpAuthScheme::Bearer);
        bearer.description =
            Some("A token of the form `jgt_…`; for a report also a job's own, `jgj_…`".to_owned());
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// A token of every project chooses one for each request, by a header or a parameter.
struct Projects;

impl Modify for Projects {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let places = [("ProjectParameter", "project", ParameterIn::Query)];
        let places = places.into_iter().chain([("ProjectHeader", PROJECT_HEADER, ParameterIn::Header)]);
        let components = document.components.get_or_insert_default();
        for (component, name, place) in places {
            components.parameters.insert(component.to_owned(), RefOr::T(project_parameter(name, place)));
            let paths = document.paths.paths.values_mut();
            for operation in paths.flat_map(operations).filter(|operation| asks_who(operation)) {
                let parameter = Ref::new(format!("#/components/parameters/{component}"));
                operation.parameters.get_or_insert_default().push(RefOr::Ref(parameter));
            }
        }
    }
}

fn project_parameter(name: &str, place: ParameterIn) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(Required::False)
        .description(Some("For a token of every project: the one meant"))
        .schema(Some(Project::schema()))
        .build()
}

/// Every failure is a problem document, and each operation says by which statuses it fails.
struct Problems;

impl Modify for Problems {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let schema = || ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let problem = ResponseBuilder::new()
            .description("What went wrong")
            .content("application/problem+json", schema())
            .build();
        let components = document.components.get_or_insert_default();
        components.responses.insert("Problem".to_owned(), RefOr::T(problem));
        for operation in document.paths.paths.values_mut().flat_map(operations) {
            for kind in Kind::ALL {
                if !can_tell(kind, operation) {
                    continue;
                }
                let told = operation.responses.responses.entry(kind.status().as_str().to_owned());
                told.or_insert(RefOr::Ref(Ref::from_response_name("Problem")));
            }
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response
                    && status.starts_with('4')
                {
                    response.content.insert("application/problem+json".to_owned(), RefOr::T(schema()));
                }
            }
        }
    }
}

/// An operation can fail so without saying it itself.
fn can_tell(kind: Kind, operation: &Operation) -> bool {
    match kind {
        Kind::Internal | Kind::Misdirected => true,
        Kind::MalformedJson | Kind::TooLarge | Kind::UnsupportedMediaType => operation.request_body.is_some(),
        Kind::InvalidField
        | Kind::InvalidCursor
        | Kind::Unauthenticated
        | Kind::Forbidden
        | Kind::NotFound
        | Kind::NotAcceptable
        | Kind::StoreAway
        | Kind::Overloaded
        | Kind::Timeout => asks_who(operation),
        // What is told of a state or a key, an operation tells; these are told where there is no operation.
        Kind::StateConflict
        | Kind::LeaseEnded
        | Kind::ClaimLost
        | Kind::KeyReused
        | Kind::NoSuchPath
        | Kind::MethodNotAllowed => false,
    }
}

/// Its caller needs a token.
fn asks_who(operation: &Operation) -> bool {
    operation.security.is_none()
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete].into_iter().flatten()
}

/// What was made leads to everything that can be done with it.
struct Links;

impl Modify for Links {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for (maker, status, below, parameter, value) in [
            ("/v1/jobs", "201", "/v1/jobs/{id}", "id", "$response.body#/id"),
            ("/v1/tokens", "201", "/v1/tokens/{id}", "id", "$response.body#/id"),
            ("/v1/clusters", "200", "/v1/clusters/{name}", "name", "$response.body#/items/0/name"),
        ] {
            let made = document.paths.paths.iter_mut().filter(|(path, _)| path.starts_with(below));
            let ids = made.flat_map(|(_, item)| operations(item)).filter_map(|o| o.operation_id.clone());
            let ids: Vec<String> = ids.collect();
            let makers = document.paths.paths.get_mut(maker).into_iter().flat_map(operations);
            for response in makers.filter_map(|operation| operation.responses.responses.get_mut(status)) {
                let RefOr::T(response) = response else { continue };
                for id in &ids {
                    let link = Link::builder().operation_id(id).parameter(parameter, value).build();
                    response.links.insert(id.clone(), RefOr::T(link));
                }
            }
        }
    }
}

/// What was claimed leads to its lease, to reports of the first job, and to giving it up.
struct ClaimLinks;

impl Modify for ClaimLinks {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        const CLAIMANT: &str = "$response.body#/claimant";
        const JOB: &str = "$response.body#/jobs/0/id";
        const EPOCH: &str = "$response.body#/jobs/0/epoch";
        let link = |id: &str| Link::builder().operation_id(id).parameter("name", "$request.path.name");
        let report = json!({"claimant": CLAIMANT, "attempt": "$response.body#/jobs/0/attempt", "epoch": EPOCH,
            "state": "RUNNING", "submission_id": "$response.body#/jobs/0/tag"});
        let links = [
            ("claim_jobs", link("claim_jobs").request_body(Some(json!({"claimant": CLAIMANT})))),
            ("renew_claims", link("renew_claims").request_body(Some(json!({"claimant": CLAIMANT})))),
            ("list_claims", link("list_claims").parameter("claimant", CLAIMANT)),
            ("report_claim", link("report_claim").parameter("id", JOB).request_body(Some(report))),
            (
                "give_up_claim",
                link("give_up_claim")
                    .parameter("id", JOB)
                    .parameter("claimant", CLAIMANT)
                    .parameter("epoch", EPOCH),
            ),
        ];
        let claims = document.paths.paths.get_mut("/v1/clusters/{name}/claims");
        let made = claims.and_then(|item| item.post.as_mut()?.responses.responses.get_mut("200"));
        if let Some(RefOr::T(response)) = made {
            response.links.extend(links.map(|(id, link)| (id.to_owned(), RefOr::T(link.build()))));
        }
    }
}

static DOCUMENT: LazyLock<Bytes> =
    LazyLock::new(|| Documentation::openapi().to_pretty_json().unwrap_or_default().into());

/// Tells how to speak to this API.
#[utoipa::path(get, path = "/openapi.json", tag = "probes", operation_id = "openapi", security(()),
    responses((status = 200, description = "This document", content_type = "application/json", body = Object)))]
pub(super) async fn get() -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], DOCUMENT.clone()).into_response()
}
