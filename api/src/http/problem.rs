//! What goes wrong, as clients see it: RFC 9457 problem documents, everywhere, also for what axum and hyper refuse.
//!
//! `type` is a stable URN a program can match on; `detail` is for people and may change; `field` is the path of the
//! offending field in the posted document, or the name of the parameter or header.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use jobgate_shared::store::{Role, StoreError};
use serde::Serialize;

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The body is no JSON, or nested too deeply.
    MalformedJson,
    /// A field, parameter or header has a value it cannot have.
    InvalidField,
    /// A cursor of another listing, or of none.
    InvalidCursor,
    /// No token, or none that is valid.
    Unauthenticated,
    /// The token does not allow this.
    Forbidden,
    /// There is no such thing, or it is not the caller's.
    NotFound,
    /// There is no such path.
    NoSuchPath,
    /// The path does not take this method.
    MethodNotAllowed,
    /// The response has another type than the request accepts.
    NotAcceptable,
    /// The job's state does not allow this.
    StateConflict,
    /// The claimant's lease has ended, or it never had one.
    LeaseEnded,
    /// The claim is not the claimant's any more, or another submission counts.
    ClaimLost,
    /// The body is larger than the path takes.
    TooLarge,
    /// The body is of a type the path does not take.
    UnsupportedMediaType,
    /// The request is meant for another server.
    Misdirected,
    /// The idempotency key stands for another body.
    KeyReused,
    /// A defect of the gateway.
    Internal,
    /// The store is away.
    StoreAway,
    /// There is more to do than can be taken on.
    Overloaded,
    /// It took too long.
    Timeout,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 20] = [
        Self::MalformedJson,
        Self::InvalidField,
        Self::InvalidCursor,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::NoSuchPath,
        Self::MethodNotAllowed,
        Self::NotAcceptable,
        Self::StateConflict,
        Self::LeaseEnded,
        Self::ClaimLost,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::Misdirected,
        Self::KeyReused,
        Self::Internal,
        Self::StoreAway,
        Self::Overloaded,
        Self::Timeout,
    ];

    /// The stable name.
    pub fn urn(self) -> &'static str {
        self.parts().0
    }

    /// Its HTTP status.
    pub fn status(self) -> StatusCode {
        self.parts().2
    }

    fn parts(self) -> (&'static str, &'static str, StatusCode) {
        use StatusCode as S;
        match self {
            Self::MalformedJson => {
                ("urn:jobgate:problem:malformed-json", "The body is not the JSON expected", S::BAD_REQUEST)
            }
            Self::InvalidField => {
                ("urn:jobgate:problem:invalid-field", "A value is not valid", S::BAD_REQUEST)
            }
            Self::InvalidCursor => (
                "urn:jobgate:problem:invalid-cursor",
                "The cursor does not belong to this listing",
                S::BAD_REQUEST,
            ),
            Self::Unauthenticated => {
                ("urn:jobgate:problem:unauthenticated", "A valid token is needed", S::UNAUTHORIZED)
            }
            Self::Forbidden => {
                ("urn:jobgate:problem:forbidden", "The token does not allow this", S::FORBIDDEN)
            }
            Self::NotFound => ("urn:jobgate:problem:not-found", "There is no such thing", S::NOT_FOUND),
            Self::NoSuchPath => ("urn:jobgate:problem:no-such-path", "There is no such path", S::NOT_FOUND),
            Self::MethodNotAllowed => (
                "urn:jobgate:problem:method-not-allowed",
                "The path does not take this method",
                S::METHOD_NOT_ALLOWED,
            ),
            Self::NotAcceptable => (
                "urn:jobgate:problem:not-acceptable",
                "Nothing acceptable can be answered",
                S::NOT_ACCEPTABLE,
            ),
            Self::StateConflict => {
                ("urn:jobgate:problem:state-conflict", "The job's state does not allow this", S::CONFLICT)
            }
            Self::LeaseEnded => ("urn:jobgate:problem:lease-ended", "The lease has ended", S::CONFLICT),
            Self::ClaimLost => {
                ("urn:jobgate:problem:claim-lost", "The claim does not count any more", S::CONFLICT)
            }
            Self::TooLarge => {
                ("urn:jobgate:problem:too-large", "The body is too large", S::PAYLOAD_TOO_LARGE)
            }
            Self::UnsupportedMediaType => (
                "urn:jobgate:problem:unsupported-media-type",
                "The body's type is not taken here",
                S::UNSUPPORTED_MEDIA_TYPE,
            ),
            Self::Misdirected => (
                "urn:jobgate:problem:misdirected",
                "The request is not for this server",
                S::MISDIRECTED_REQUEST,
            ),
            Self::KeyReused => (
                "urn:jobgate:problem:idempotency-key-reused",
                "The idempotency key stands for another body",
                S::UNPROCESSABLE_ENTITY,
            ),
            Self::Internal => {
                ("urn:jobgate:problem:internal", "The gateway made a mistake", S::INTERNAL_SERVER_ERROR)
            }
            Self::StoreAway => {
                ("urn:jobgate:problem:store-away", "The store cannot be reached", S::SERVICE_UNAVAILABLE)
            }
            Self::Overloaded => {
                ("urn:jobgate:problem:overloaded", "Too much is going on", S::SERVICE_UNAVAILABLE)
            }
            Self::Timeout => ("urn:jobgate:problem:timeout", "It took too long", S::SERVICE_UNAVAILABLE),
        }
    }
}

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(example = json!({
    "type": "urn:jobgate:problem:invalid-field",
    "title": "A value is not valid",
    "status": 400,
    "detail": "must hold at least the program",
    "field": "spec.command"
}))]
pub struct Problem {
    /// A URN that names the kind of problem.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    urn: &'static str,
    /// The kind of problem, for people.
    #[schema(value_type = String)]
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong this time, for people.
    detail: String,
    /// The path of the offending field, or the name of the parameter or header.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// The submission that counts instead, when a claim lost to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    submission_id: Option<String>,
    #[serde(skip)]
    #[schema(ignore)]
    kind: Kind,
}

/// The answer of a handler.
pub type Answer<T> = Result<T, Problem>;

impl Problem {
    /// A problem of `kind`; `detail` tells people more.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let (urn, title, status) = kind.parts();
        Self {
            urn,
            title,
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
            submission_id: None,
            kind,
        }
    }

    /// A wrong value in `field`.
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Kind::InvalidField, detail).at(field)
    }

    /// The same problem, about `field`.
    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The same problem, because this submission counts.
    #[must_use]
    pub fn because_of(mut self, submission_id: Option<String>) -> Self {
        self.submission_id = submission_id;
        self
    }

    /// There is no such job in the caller's sight.
    pub fn no_such_job() -> Self {
        Self::new(Kind::NotFound, "there is no such job")
    }

    /// A token that opens nothing.
    pub fn invalid_token() -> Self {
        Self::new(Kind::Unauthenticated, "the token is not valid")
    }

    /// A token that lacks `role`.
    pub fn lacks(role: Role) -> Self {
        let role = match role {
            Role::Read => "read",
            Role::Submit => "submit",
            Role::Cancel => "cancel",
            Role::Admin => "admin",
            Role::Work => "work",
        };
        Self::new(Kind::Forbidden, format!("a token with the role `{role}` is needed"))
    }

    /// What kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// Seconds after which trying again makes sense.
const RETRY_AFTER: &str = "2";

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // Strings and numbers only: nothing to fail on.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.kind.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self.kind {
            Kind::Unauthenticated => {
                headers
                    .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"jobgate\""));
            }
            Kind::StoreAway | Kind::Overloaded | Kind::Timeout => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
            }
            Kind::MalformedJson
            | Kind::InvalidField
            | Kind::InvalidCursor
            | Kind::Forbidden
            | Kind::NotFound
            | Kind::NoSuchPath
            | Kind::MethodNotAllowed
            | Kind::NotAcceptable
            | Kind::StateConflict
            | Kind::LeaseEnded
            | Kind::ClaimLost
            | Kind::TooLarge
            | Kind::UnsupportedMediaType
            | Kind::Misdirected
            | Kind::KeyReused
            | Kind::Internal => {}
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let away = error.is_transient();
        let error = format!("{:#}", anyhow::Error::from(error));
        if away {
            // An outage is told once by whoever keeps asking, not by every request that meets it.
            tracing::debug!(error, "a request met a store that is away");
            Self::new(Kind::StoreAway, "the store cannot be reached; try again")
        } else {
            tracing::error!(error, "the store refused a request");
            Self::new(Kind::Internal, "the store refused; the log of the gateway tells why")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_has_a_name_of_its_own_and_an_error_status() {
        let urns: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.urn()).collect();
        assert_eq!(urns.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert!(kind.urn().starts_with("urn:jobgate:problem:"));
            assert!(kind.status().is_client_error() || kind.status().is_server_error());
        }
    }

    #[test]
    fn a_problem_names_type_status_and_field() {
        let problem = Problem::invalid("spec.command", "must hold at least the program");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "type": "urn:jobgate:problem:invalid-field",
                "title": "A value is not valid",
                "status": 400,
                "detail": "must hold at least the program",
                "field": "spec.command"
            })
        );
    }
}
