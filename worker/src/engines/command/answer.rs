//! What a scheduler's command printed, read as jobs. Output that is not understood is no answer: nothing is concluded from
//! what is missing in it.

use super::config::{Call, Pointers, State};
use anyhow::{Context as _, ensure};
use serde_json::Value;

/// A job, as a command told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) name: String,
    /// `None`: a word without a meaning.
    pub(super) state: Option<State>,
    pub(super) word: String,
    pub(super) exit: Option<i32>,
    pub(super) reason: Option<String>,
}

/// Every job in an output.
pub(super) fn rows(call: &Call, output: &str) -> anyhow::Result<Vec<Row>> {
    if let Some(complete) = &call.complete {
        ensure!(complete.regex.is_match(output), "an output that is not complete: {}", shown(output));
    }
    match (&call.row, &call.json) {
        (_, Some(pointers)) => from_json(call, pointers, output),
        (Some(row), None) if call.whole => {
            Ok(row.regex.captures_iter(output).filter_map(|found| from_captures(call, &found)).collect())
        }
        (Some(row), None) => {
            let skipped = |line: &str| call.skip.as_ref().is_some_and(|skip| skip.whole.is_match(line));
            let mut rows = Vec::new();
            for line in output.lines().filter(|line| !line.trim().is_empty() && !skipped(line)) {
                let found = row.whole.captures(line).and_then(|found| from_captures(call, &found));
                rows.push(found.with_context(|| format!("a line it cannot read: {}", shown(line)))?);
            }
            Ok(rows)
        }
        (None, None) => Ok(Vec::new()),
    }
}

/// The id a submission was given.
pub(super) fn new_id(call: &Call, output: &str) -> anyhow::Result<String> {
    let told = rows(call, output)?;
    let [row] = told.as_slice() else {
        anyhow::bail!("{} ids in {}", told.len(), shown(output));
    };
    let plain = |c: char| c.is_ascii_graphic() && c != '/';
    let fit = row.id.len() <= 128 && !row.id.starts_with('-') && row.id.chars().all(plain);
    ensure!(fit && !row.id.is_empty(), "no id: {}", shown(&row.id));
    Ok(row.id.clone())
}

fn from_captures(call: &Call, found: &regex::Captures<'_>) -> Option<Row> {
    let group = |name: &str| found.name(name).map(|text| text.as_str().trim().to_owned());
    Some(row(call, group("id")?, group("name"), group("state"), group("exit"), group("reason")))
}

fn from_json(call: &Call, pointers: &Pointers, output: &str) -> anyhow::Result<Vec<Row>> {
    let document: Value =
        serde_json::from_str(output).with_context(|| format!("no JSON: {}", shown(output)))?;
    let row_of = |key: Option<&String>, value: &Value| {
        let at = |pointer: &Option<String>| text(value.pointer(pointer.as_deref()?)?);
        let id = at(&pointers.id).or_else(|| key.cloned()).context("a job without an id")?;
        Ok(row(call, id, at(&pointers.name), at(&pointers.state), at(&pointers.exit), at(&pointers.reason)))
    };
    match document.pointer(&pointers.rows) {
        None => {
            ensure!(document.is_object() || document.is_array(), "no jobs in {}", shown(output));
            Ok(Vec::new())
        }
        Some(Value::Object(jobs)) => jobs.iter().map(|(key, value)| row_of(Some(key), value)).collect(),
        Some(Value::Array(jobs)) => jobs.iter().map(|value| row_of(None, value)).collect(),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
            anyhow::bail!("no jobs in {}", shown(output))
        }
    }
}

/// A value's text; a list (newer Slurms tell states so) gives its first.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(values) => text(values.first()?),
        Value::Null | Value::Bool(_) | Value::Object(_) => None,
    }
}

fn row(
    call: &Call,
    id: String,
    name: Option<String>,
    word: Option<String>,
    exit: Option<String>,
    reason: Option<String>,
) -> Row {
    let word = word.unwrap_or_default();
    let exit: Option<i32> = exit.and_then(|exit| exit.parse().ok());
    let state = match call.states.of(&word) {
        // Some schedulers call every end the same.
        Some(State::Finished) if exit.is_some_and(|code| code != 0) => Some(State::Failed),
        state => state,
    };
    let reason = reason.filter(|reason| !reason.is_empty() && reason != "None");
    Row { id, name: name.unwrap_or_default(), state, word, exit, reason }
}

/// A piece of an output, for a message.
pub(super) fn shown(output: &str) -> String {
    let text: String = output.trim().chars().take(300).collect();
    format!("{text:?}")
}
