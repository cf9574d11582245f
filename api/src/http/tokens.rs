//! `/v1/tokens`: making, listing and revoking tokens. A secret is shown once, when it is made.

use super::{
    Api,
    claims::is_outside,
    extract::{Administering, Caller, Params, RawJson, Segments, accepts},
    json,
    limits::MAX_SMALL,
    problem::{Answer, Kind, Problem},
    request::check_text,
};
use crate::auth::{self, TokenWish};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Datelike as _, Utc};
use jobgate_shared::{
    domain::{ClusterName, Project, TokenId},
    store::{Role, Token},
    wire::Nudge,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{
    Modify, PartialSchema as _,
    openapi::{ArrayBuilder, Object, OneOfBuilder, RefOr, Schema, Type},
};

/// Longest name.
const MAX_NAME: usize = 100;
/// The project of a token that opens every one.
const EVERY_PROJECT: &str = "*";

/// A token to make.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "nightly-build", "project": "default", "roles": ["submit"]}))]
pub(super) struct TokenRequest {
    /// For people; stands in the history of what its holder does. `bootstrap` is taken.
    #[schema(
        max_length = 100,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    name: String,
    /// The project it opens, `*` for every one; the maker's own when absent.
    #[schema(pattern = r"^(\*|[a-z0-9][a-z0-9._-]{0,62})$")]
    project: Option<String>,
    /// The cluster it works for, with the role `work` and no other; such a token sees no project.
    cluster: Option<ClusterName>,
    /// What it allows.
    #[schema(min_items = 1)]
    roles: Vec<Role>,
    /// Not valid from this time on, which lies ahead.
    expires_at: Option<DateTime<Utc>>,
}

/// Says in the document that a token opens a project or works for a cluster.
pub(super) struct TokenKinds;

impl Modify for TokenKinds {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let Some(components) = &mut document.components else { return };
        let Some(RefOr::T(request)) = components.schemas.get_mut("TokenRequest") else { return };
        let Schema::Object(plain) = request else { return };
        let roles = |roles: &[&str]| {
            let role = Object::builder().schema_type(Type::String).enum_values(Some(roles.iter().copied()));
            Schema::from(ArrayBuilder::new().items(role).min_items(Some(1)).build())
        };
        let null = || Schema::from(Object::builder().schema_type(Type::Null).build());
        let (mut opens, mut works) = (plain.clone(), plain.clone());
        opens.properties.insert("roles".to_owned(), roles(&["read", "submit", "cancel", "admin"]).into());
        opens.properties.insert("cluster".to_owned(), null().into());
        works.properties.insert("roles".to_owned(), roles(&["work"]).into());
        works.properties.insert("cluster".to_owned(), ClusterName::schema());
        works.properties.insert("project".to_owned(), null().into());
        works.required.push("cluster".to_owned());
        let kinds = OneOfBuilder::new().item(Schema::Object(opens)).item(Schema::Object(works));
        *request = Schema::OneOf(kinds.description(plain.description.clone()).build());
    }
}

/// A token, without its secret.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TokenDocument {
    /// Its public half.
    id: TokenId,
    /// For people.
    name: String,
    /// The project it opens; `*` for every one.
    project: String,
    /// The cluster it works for.
    cluster: Option<ClusterName>,
    /// What it allows.
    roles: Vec<Role>,
    /// Who made it.
    created_by: String,
    /// When.
    created_at: DateTime<Utc>,
    /// Not valid from this time on.
    expires_at: Option<DateTime<Utc>>,
}

/// A token just made.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct NewTokenDocument {
    /// The token itself. It cannot be shown again.
    token: String,
    /// What it is.
    #[serde(flatten)]
    document: TokenDocument,
}

/// Every token in sight.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Tokens {
    /// The newest first.
    items: Vec<TokenDocument>,
}

impl From<Token> for TokenDocument {
    fn from(token: Token) -> Self {
        let Token { id, name, project, cluster, roles, secret_sha256: _, created_by, created_at, expires_at } =
            token;
        let project = project.map_or_else(|| EVERY_PROJECT.to_owned(), String::from);
        Self { id, name, project, cluster, roles, created_by, created_at, expires_at }
    }
}

/// Makes a token. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", operation_id = "create_token",
    request_body = TokenRequest,
    responses((status = 201, description = "The token", body = NewTokenDocument)))]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller<Administering>,
    params: Params,
    headers: HeaderMap,
    RawJson(body): RawJson<MAX_SMALL>,
) -> Answer<Response> {
    accepts(&headers, "application/json")?;
    params.end()?;
    let TokenRequest { name, project, cluster, mut roles, expires_at } = json::read(&body)?;
    check_text("name", &name, MAX_NAME)?;
    if name.trim().is_empty() {
        return Err(Problem::invalid("name", "must not be empty"));
    }
    if name.trim().eq_ignore_ascii_case(auth::BOOTSTRAP) {
        let whose = format!("`{}` is what histories call the configured administrator", auth::BOOTSTRAP);
        return Err(Problem::invalid("name", whose));
    }
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() {
        return Err(Problem::invalid("roles", "must hold at least one"));
    }
    let project = match check_work(&api, &caller, cluster.as_ref(), &roles, project.as_deref())? {
        Bound::ToCluster => None,
        Bound::ToProject => opened(&caller, project)?,
    };
    let now = api.clock.now();
    if expires_at.is_some_and(|end| end <= now) {
        return Err(Problem::invalid("expires_at", "has passed"));
    }
    if expires_at.is_some_and(|end| end.year() > 9999) {
        return Err(Problem::invalid("expires_at", "has a year of more than four digits"));
    }
    let expires_at = expires_at.and_then(|end| DateTime::from_timestamp_micros(end.timestamp_micros()));
    let minted =
        auth::mint(TokenWish { name, project, cluster, roles, expires_at }, &caller.principal.by, now);
    api.store.create_token(&minted.token).await?;
    tracing::info!(token = %minted.token.id, by = caller.principal.by, "token {} was made", minted.token.id);
    let document = NewTokenDocument { token: minted.text, document: minted.token.into() };
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((StatusCode::CREATED, no_store, Json(document)).into_response())
}

/// What a token opens.
enum Bound {
    ToProject,
    ToCluster,
}

/// The role `work` and a cluster come together and alone: whoever works for a cluster gets jobs of every project, and
/// should be able to do nothing else with them.
fn check_work(
    api: &Api,
    caller: &Caller<Administering>,
    cluster: Option<&ClusterName>,
    roles: &[Role],
    project: Option<&str>,
) -> Answer<Bound> {
    let Some(cluster) = cluster else {
        if roles.contains(&Role::Work) {
            return Err(Problem::invalid("cluster", "must name the one to work for, with the role `work`"));
        }
        return Ok(Bound::ToProject);
    };
    if roles != [Role::Work] {
        return Err(Problem::invalid("roles", "must be `work` alone for a token of a cluster"));
    }
    if project.is_some() {
        return Err(Problem::invalid("project", "must be absent: whoever works for a cluster works for all"));
    }
    let served = api.clusters.clusters().iter().any(|info| info.name == *cluster && is_outside(info));
    if !served {
        return Err(Problem::invalid("cluster", "must be a configured one that is served from outside"));
    }
    if caller.principal.is_operator() {
        return Ok(Bound::ToCluster);
    }
    Err(Problem::new(Kind::Forbidden, "a token with the role `admin` for every project is needed"))
}

/// The project a new token opens: never more than its maker's own.
fn opened(caller: &Caller<Administering>, asked: Option<String>) -> Answer<Option<Project>> {
    let own = &caller.project;
    let Some(asked) = asked else {
        let named = own.clone().map(Some);
        return named.ok_or_else(|| Problem::invalid("project", "name one, or `*` for every one"));
    };
    let project = if asked == EVERY_PROJECT {
        None
    } else {
        let invalid = |e: jobgate_shared::domain::NameError| Problem::invalid("project", e.to_string());
        Some(asked.parse().map_err(invalid)?)
    };
    if own.is_some() && *own != project {
        return Err(
            Problem::new(Kind::Forbidden, "a token opens no more than its maker's own project").at("project")
        );
    }
    Ok(project)
}

/// Lists tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", operation_id = "list_tokens",
    responses((status = 200, description = "Every token in sight", body = Tokens)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller<Administering>,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<Tokens>> {
    accepts(&headers, "application/json")?;
    params.end()?;
    let tokens = api.store.tokens(&caller.scope()).await?;
    Ok(Json(Tokens { items: tokens.into_iter().map(TokenDocument::from).collect() }))
}

/// Revokes a token; it opens nothing any more within five seconds, at once on this instance.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", operation_id = "revoke_token",
    params(("id" = Uuid, Path, description = "The token's id, not its text")),
    responses((status = 204, description = "Revoked")))]
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    caller: Caller<Administering>,
    segments: Segments,
    params: Params,
) -> Answer<StatusCode> {
    params.end()?;
    let absent = || Problem::new(Kind::NotFound, "there is no such token");
    let id: TokenId = segments.at(0).parse().map_err(|_| absent())?;
    if !api.store.revoke_token(&caller.scope(), id).await? {
        return Err(absent());
    }
    tracing::info!(token = %id, by = caller.principal.by, "token {id} was revoked");
    api.authority.forget(id);
    api.nudge(vec![Nudge::Settings]);
    Ok(StatusCode::NO_CONTENT)
}
