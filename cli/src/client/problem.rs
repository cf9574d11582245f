//! What a gateway says when it says no: an RFC 9457 problem document, read with tolerance.
//!
//! A proxy in between answers with whatever it likes, so nothing here is required.

use crate::render::clean;
use serde::Deserialize;
use serde_json::Value;
use std::fmt;

/// A refusal.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Problem {
    /// The HTTP status; taken from the response, whatever the document says.
    pub(crate) status: u16,
    /// The kind, in few words.
    pub(crate) title: String,
    /// This case, in a sentence.
    pub(crate) detail: String,
    /// The field of the request it is about.
    pub(crate) field: Option<String>,
    /// What the gateway's log knows the request by; a header of the response.
    #[serde(skip)]
    pub(crate) request_id: Option<String>,
}

impl Problem {
    /// The problem in a response; a body that is none is shown in short.
    pub(crate) fn from_response(status: u16, request_id: Option<String>, body: &[u8]) -> Self {
        let problem = serde_json::from_slice::<Self>(body).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(body);
            let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
            Self { detail: line.chars().take(200).collect(), ..Self::default() }
        });
        Self { status, request_id, ..problem }
    }

    /// The problem in an item of a batch's answer.
    pub(crate) fn from_item(item: &Value) -> Self {
        serde_json::from_value(item.clone())
            .unwrap_or_else(|_| Self { detail: item.to_string(), ..Self::default() })
    }

    /// The same request may be taken later.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self.status, 429 | 502 | 503 | 504)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = if self.detail.is_empty() { self.title.clone() } else { self.detail.clone() };
        if said.is_empty() {
            said = format!("the gateway answered {}", self.status);
        }
        if let Some(field) = self.field.as_ref().filter(|field| !said.contains(field.as_str())) {
            said = format!("{field}: {said}");
        }
        if let (500, Some(id)) = (self.status, &self.request_id) {
            said = format!("{said} (request {id})");
        }
        f.write_str(&clean(&said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: u16, body: &str) -> String {
        Problem::from_response(status, Some("r-1".to_owned()), body.as_bytes()).to_string()
    }

    #[test]
    fn a_problem_names_the_field_once() {
        let body = r#"{"type":"about:blank","title":"Bad Request","status":400,"detail":"must be absolute","field":"spec.working_dir"}"#;
        assert_eq!(said(400, body), "spec.working_dir: must be absolute");
        let body =
            r#"{"title":"Bad Request","detail":"spec.command: must hold a program","field":"spec.command"}"#;
        assert_eq!(said(400, body), "spec.command: must hold a program");
    }

    #[test]
    fn a_body_that_is_no_problem_is_shown_in_short() {
        assert_eq!(said(502, "\n<html>Bad gateway</html>\n"), "<html>Bad gateway</html>");
        assert_eq!(said(404, ""), "the gateway answered 404");
        assert_eq!(said(400, "evil\u{1b}[2Jtext"), "evil[2Jtext");
    }
}
