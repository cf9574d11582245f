//! Reading posted JSON: what is wrong is told by the path of its field.

use super::problem::{Answer, Kind, Problem};
use jobgate_shared::domain::object;
use serde::{Deserialize, de::DeserializeOwned};

/// A posted document: an object, never a list.
#[derive(Deserialize)]
#[serde(transparent, bound = "T: DeserializeOwned")]
struct Whole<T>(#[serde(deserialize_with = "object")] T);

/// Reads a posted document; a fault names its field.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Answer<T> {
    match serde_json::from_slice(bytes) {
        Ok(Whole(document)) => Ok(document),
        Err(_) => Err(read_again::<T>(bytes)),
    }
}

/// Finds out where a document is wrong. Apart from the first reading, which good documents alone take, because keeping
/// the path costs time.
#[cold]
fn read_again<T: DeserializeOwned>(bytes: &[u8]) -> Problem {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let (path, error) = match serde_path_to_error::deserialize::<_, Whole<T>>(&mut json) {
        Ok(_) => (None, json.end().err()),
        Err(error) => (Some(error.path().to_string()), Some(error.into_inner())),
    };
    let Some(error) = error else { return Problem::new(Kind::MalformedJson, "the body is not JSON") };
    match error.classify() {
        serde_json::error::Category::Data => {
            let detail = error.to_string();
            let detail = detail.split(" at line ").next().unwrap_or_default().to_owned();
            let path = path.unwrap_or_default();
            let field = match (unquoted(&detail, "unknown field `"), unquoted(&detail, "missing field `")) {
                // The path ends at the object; the field is told in the words.
                (Some(name), _) | (_, Some(name)) => join(&path, name),
                (None, None) => path,
            };
            if field == "." || field.is_empty() {
                Problem::new(Kind::MalformedJson, detail)
            } else {
                Problem::invalid(field, detail)
            }
        }
        serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof
        | serde_json::error::Category::Io => Problem::new(Kind::MalformedJson, error.to_string()),
    }
}

fn unquoted<'a>(detail: &'a str, before: &str) -> Option<&'a str> {
    detail.strip_prefix(before)?.split('`').next()
}

/// `path` and, unless it ends with it already, `name`.
fn join(path: &str, name: &str) -> String {
    if path == "." || path.is_empty() {
        name.to_owned()
    } else if path == name || path.ends_with(&format!(".{name}")) {
        path.to_owned()
    } else {
        format!("{path}.{name}")
    }
}
