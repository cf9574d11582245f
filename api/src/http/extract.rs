//! What handlers take from a request: who asks, which job is meant, parameters, a body. Each refusal is a problem
//! document.

use super::{
    Api,
    problem::{Answer, Kind, Problem},
};
use crate::auth::{AuthError, Principal};
use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{HeaderMap, header, request::Parts},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use jobgate_shared::{
    domain::{JobId, NameError, Project, SubmissionTag},
    reporting::is_jobs_own,
    store::{Role, Scope},
};
use std::{borrow::Cow, marker::PhantomData, str::FromStr, sync::Arc, time::Duration};

/// Header by which a token of every project chooses one.
pub const PROJECT_HEADER: &str = "x-jobgate-project";

/// What a handler needs its caller to be allowed.
pub(super) trait Needs: Send + Sync + 'static {
    /// The role.
    const ROLE: Role;
}

macro_rules! needs {
    ($($(#[$doc:meta])* $name:ident = $role:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub(super) struct $name;
        impl Needs for $name {
            const ROLE: Role = Role::$role;
        }
    )*};
}

needs! {
    /// See jobs.
    Reading = Read;
    /// Post jobs and act on them.
    Submitting = Submit;
    /// Cancel jobs.
    Canceling = Cancel;
    /// Administer a project.
    Administering = Admin;
    /// Claim and drive a cluster's jobs.
    Working = Work;
}

/// Whoever makes the request, allowed to do what `N` stands for.
#[derive(Debug, Clone)]
pub(super) struct Caller<N> {
    /// Who.
    pub principal: Arc<Principal>,
    /// The project chosen, or the token's only one.
    pub project: Option<Project>,
    needs: PhantomData<N>,
}

impl<N> Caller<N> {
    /// What the caller sees.
    pub(super) fn scope(&self) -> Scope {
        self.project.clone().map_or(Scope::All, Scope::Project)
    }

    /// Where what the caller posts belongs.
    pub(super) fn home(&self) -> Project {
        self.project.clone().unwrap_or_else(Project::default_project)
    }
}

impl<N: Needs> FromRequestParts<Arc<Api>> for Caller<N> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Answer<Self> {
        let token = no_jobs_own(api, parts)?;
        let principal = api.authority.authenticate(token).await.map_err(unknown)?;
        let project = choose_project(parts, &principal)?;
        if !principal.may(N::ROLE) {
            return Err(Problem::lacks(N::ROLE));
        }
        Ok(Self { principal, project, needs: PhantomData })
    }
}

/// Whoever watches the whole gateway, by a token that reads every project; known even while the store is away.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watcher;

impl FromRequestParts<Arc<Api>> for Watcher {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Answer<Self> {
        let token = no_jobs_own(api, parts)?;
        let principal = api.authority.authenticate_watcher(token).await.map_err(unknown)?;
        choose_project(parts, &principal)?;
        if !principal.may(Role::Read) {
            return Err(Problem::lacks(Role::Read));
        }
        if principal.project.is_some() {
            return Err(Problem::new(Kind::Forbidden, "a token of every project is needed"));
        }
        Ok(Self)
    }
}

/// An administrator of every project.
#[derive(Debug, Clone)]
pub(super) struct Operator(pub Caller<Administering>);

impl FromRequestParts<Arc<Api>> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Answer<Self> {
        let caller = Caller::<Administering>::from_request_parts(parts, api).await?;
        if caller.principal.is_operator() {
            Ok(Self(caller))
        } else {
            Err(Problem::new(Kind::Forbidden, "a token with the role `admin` for every project is needed"))
        }
    }
}

/// Whoever reports on a job.
#[derive(Debug, Clone)]
pub(super) enum Reporter {
    /// An attempt of a job, by its own token.
    Attempt(SubmissionTag),
    /// Somebody who may act on it.
    Caller(Caller<Submitting>),
}

impl FromRequestParts<Arc<Api>> for Reporter {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Answer<Self> {
        let token = bearer(&parts.headers)?;
        if is_jobs_own(token) {
            return whose(api, token).map(Self::Attempt);
        }
        Caller::from_request_parts(parts, api).await.map(Self::Caller)
    }
}

/// The token shown, which is not a job's own.
fn no_jobs_own<'p>(api: &Api, parts: &'p Parts) -> Answer<&'p str> {
    let token = bearer(&parts.headers)?;
    if is_jobs_own(token) {
        whose(api, token)?;
        let detail = "a job's own token opens `POST /v1/jobs/{id}/reports` of that job and nothing else";
        return Err(Problem::new(Kind::Forbidden, detail));
    }
    Ok(token)
}

fn unknown(error: AuthError) -> Problem {
    match error {
        AuthError::Invalid => Problem::invalid_token(),
        AuthError::Store(error) => error.into(),
    }
}

/// Whose own token this is.
fn whose(api: &Api, token: &str) -> Answer<SubmissionTag> {
    let attempt = api.report_key.as_ref().and_then(|key| key.whose(token));
    attempt.ok_or_else(Problem::invalid_token)
}

/// The token a request shows.
pub(super) fn bearer(headers: &HeaderMap) -> Answer<&str> {
    let missing = || Problem::new(Kind::Unauthenticated, "send `Authorization: Bearer <token>`");
    let value = headers.get(header::AUTHORIZATION).ok_or_else(missing)?;
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(missing)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(missing()) }
}

/// The project named by the header or the query. Named twice it must be the same one.
fn choose_project(parts: &Parts, principal: &Principal) -> Answer<Option<Project>> {
    let headers = parts.headers.get_all(PROJECT_HEADER).into_iter();
    let headers = headers.map(|value| (PROJECT_HEADER, value.to_str().map_or("".into(), Cow::Borrowed)));
    let queried = query(parts).filter(|(key, _)| key == "project").map(|(_, value)| ("project", value));
    let mut chosen = principal.project.clone();
    let mut told = None;
    for (place, name) in headers.chain(queried) {
        let named: Project = name.parse().map_err(|e: NameError| Problem::invalid(place, e.to_string()))?;
        if told.as_ref().is_some_and(|told| *told != named) {
            return Err(Problem::invalid(place, "names another project than the request does elsewhere"));
        }
        chosen = Some(named.clone());
        told = Some(named);
    }
    if principal.project.is_some() && chosen != principal.project {
        return Err(Problem::new(Kind::NotFound, "there is no such project"));
    }
    Ok(chosen)
}

fn query(parts: &Parts) -> form_urlencoded::Parse<'_> {
    form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
}

/// The query's parameters; one nobody asked for is refused, because a mistyped filter must not mean everything.
#[derive(Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    #[cfg(test)]
    pub(super) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// Takes every value of `name`.
    pub(super) fn all(&mut self, name: &str) -> Vec<String> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(key, _)| key == name);
        self.0 = left;
        let taken: Vec<(String, String)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// Takes the only value of `name`.
    pub(super) fn one(&mut self, name: &str) -> Answer<Option<String>> {
        let mut all = self.all(name);
        if all.len() > 1 {
            return Err(Problem::invalid(name, "stands there more than once"));
        }
        Ok(all.pop())
    }

    /// Takes the only value of `name` as a `T`; `must` completes "must be …".
    pub(super) fn parse<T: FromStr>(&mut self, name: &str, must: &str) -> Answer<Option<T>> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let parsed = text.parse().ok();
        parsed.map(Some).ok_or_else(|| Problem::invalid(name, format!("must be {must}")))
    }

    /// Takes a time such as `30s`; a number alone counts seconds.
    pub(super) fn duration(&mut self, name: &str) -> Answer<Option<Duration>> {
        self.one(name)?.map(|text| duration(name, &text)).transpose()
    }

    /// Takes a yes or no; a name without a value means yes.
    pub(super) fn flag(&mut self, name: &str) -> Answer<bool> {
        match self.one(name)?.as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(_) => Err(Problem::invalid(name, "must be true or false")),
        }
    }

    /// Nothing is left.
    pub(super) fn end(self) -> Answer<()> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => Err(Problem::invalid(name, "is no parameter of this path")),
        }
    }
}

/// A time as requests tell it.
pub(super) fn duration(field: &str, text: &str) -> Answer<Duration> {
    let seconds = text.parse().map(Duration::from_secs).ok();
    let duration = seconds.or_else(|| humantime::parse_duration(text).ok());
    duration.ok_or_else(|| Problem::invalid(field, "must be a duration such as 30s"))
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        let mine = query(parts).filter(|(key, _)| key != "project");
        Ok(Self(mine.map(|(key, value)| (key.into_owned(), value.into_owned())).collect()))
    }
}

/// What a path holds in its places, in order. What is no text is no name of anything.
#[derive(Debug, Clone)]
pub(super) struct Segments(pub Vec<String>);

impl<S: Send + Sync> FromRequestParts<S> for Segments {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let path = Path::<Vec<String>>::from_request_parts(parts, state).await;
        path.map(|Path(all)| Self(all)).map_err(|_| Problem::new(Kind::NotFound, "there is no such thing"))
    }
}

impl Segments {
    /// The text in one place; empty when there is no such place.
    pub(super) fn at(&self, place: usize) -> &str {
        self.0.get(place).map_or("", String::as_str)
    }
}

/// The job a path means: its first place. What is no id is no job's id.
#[derive(Debug, Clone, Copy)]
pub(super) struct JobPath(pub JobId);

impl<S: Send + Sync> FromRequestParts<S> for JobPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let segments = Segments::from_request_parts(parts, state).await;
        let id = segments.ok().and_then(|segments| segments.at(0).parse().ok());
        id.map(Self).ok_or_else(Problem::no_such_job)
    }
}

/// A JSON body of at most `LIMIT` bytes, not parsed yet.
#[derive(Debug, Clone)]
pub(super) struct RawJson<const LIMIT: usize>(pub Bytes);

impl<S: Sync, const LIMIT: usize> FromRequest<S> for RawJson<LIMIT> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Answer<Self> {
        let (parts, body) = request.into_parts();
        match media_type(&parts.headers).as_deref() {
            Some("application/json") => whole(body, LIMIT).await.map(Self),
            Some(_) | None => Err(wrong_media_type("application/json")),
        }
    }
}

/// The body's type is not among those a path takes.
pub(super) fn wrong_media_type(taken: &str) -> Problem {
    Problem::new(Kind::UnsupportedMediaType, format!("send `Content-Type: {taken}`")).at("Content-Type")
}

/// The body's type, without parameters, in lower case.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// The whole of a body.
pub(super) async fn whole(body: Body, limit: usize) -> Answer<Bytes> {
    let too_large = || Problem::new(Kind::TooLarge, format!("the body may hold {limit} bytes"));
    if axum::body::HttpBody::size_hint(&body).lower() > limit as u64 {
        return Err(too_large());
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(_) => Err(Problem::new(Kind::MalformedJson, "the body ended before it was complete")),
    }
}

/// Refuses when the request accepts none of `offered`.
pub(super) fn accepts(headers: &HeaderMap, offered: &str) -> Answer<()> {
    let mut values = headers.get_all(header::ACCEPT).into_iter().peekable();
    if values.peek().is_none() {
        return Ok(());
    }
    let family = offered.split('/').next().unwrap_or_default();
    let takes = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let refused = parts.any(|p| matches!(p, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
        !refused && (name == "*/*" || name == offered || name.strip_suffix("/*") == Some(family))
    };
    if values.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(takes) {
        return Ok(());
    }
    Err(Problem::new(Kind::NotAcceptable, format!("this path answers with {offered}")).at("Accept"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn accept(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))])
    }

    #[test]
    fn what_is_offered_must_be_accepted_by_some_range() {
        for good in ["*/*", "text/html, application/*;q=0.8", "APPLICATION/JSON", "application/json; q=1"] {
            assert!(accepts(&accept(good), "application/json").is_ok(), "{good}");
        }
        for bad in ["text/html", "application/json;q=0", "text/*, image/png"] {
            assert!(accepts(&accept(bad), "application/json").is_err(), "{bad}");
        }
        assert!(accepts(&HeaderMap::new(), "application/json").is_ok());
    }

    #[test]
    fn parameters_are_taken_one_by_one_and_what_is_left_is_refused() {
        let pairs = [("label", "a"), ("limit", "5"), ("label", "b"), ("stat", "FAILED")];
        let mut params = Params::of(&pairs);
        assert_eq!(params.all("label"), ["a", "b"]);
        assert_eq!(params.parse::<u32>("limit", "a number"), Ok(Some(5)));
        assert_eq!(params.one("absent"), Ok(None));
        let problem = serde_json::to_value(params.end().unwrap_err()).unwrap();
        assert_eq!(problem["field"], "stat");
    }
}
