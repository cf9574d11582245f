//! Files of jobs: one JSON object, an array of them, or one object after another (NDJSON).
//!
//! Finds where each job stands, so that a refusal names its line. What a job must look like is the gateway's to say.

use crate::exit::Usage;
use serde_json::value::RawValue;
use std::{io::Read as _, path::Path};

/// Most jobs in one request.
pub(crate) const MAX_BATCH: usize = 1_000;
/// Most bytes in one request; well below what a gateway takes.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// A job as it stands in a file.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The line it begins in, from 1.
    pub(crate) line: usize,
    /// The document, on one line.
    pub(crate) json: String,
}

/// Reads a file, or standard input for `-`.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let cannot = |error: std::io::Error| Usage(format!("cannot read {}: {error}", path.display()));
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(cannot)?;
        text
    } else {
        std::fs::read_to_string(path).map_err(cannot)?
    };
    let entries = parse(&text).map_err(|Usage(why)| Usage(format!("{}:{why}", path.display())))?;
    if entries.is_empty() {
        return Err(Usage(format!("{} holds no job", path.display())).into());
    }
    Ok(entries)
}

fn parse(text: &str) -> Result<Vec<Entry>, Usage> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut places = Places { text, offset: 0, line: 1 };
    if text.trim_start().starts_with('[') {
        let jobs: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| fault(&error))?;
        return jobs.into_iter().map(|raw| places.entry(raw)).collect();
    }
    let jobs = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    jobs.map(|raw| places.entry(raw.map_err(|error| fault(&error))?)).collect()
}

fn fault(error: &serde_json::Error) -> Usage {
    Usage(format!("{}: {error}", error.line()))
}

/// Counts lines on the way through a text, once.
struct Places<'a> {
    text: &'a str,
    offset: usize,
    line: usize,
}

impl Places<'_> {
    fn entry(&mut self, raw: &RawValue) -> Result<Entry, Usage> {
        let json = raw.get();
        // A raw value borrowed from the text is a part of it, behind the one before.
        let offset = json.as_ptr().addr() - self.text.as_ptr().addr();
        self.line += self.text[self.offset..offset].matches('\n').count();
        self.offset = offset;
        let line = self.line;
        if !json.starts_with('{') {
            return Err(Usage(format!("{line}: a job is a JSON object")));
        }
        let json = if json.contains('\n') {
            let value: serde_json::Value = serde_json::from_str(json).map_err(|error| fault(&error))?;
            value.to_string()
        } else {
            json.to_owned()
        };
        Ok(Entry { line, json })
    }
}

/// Cuts jobs into requests. The same jobs are always cut the same way, so that a repeated request is the same request.
pub(crate) fn batches<T: AsRef<str>>(jobs: &[T]) -> Vec<&[T]> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, job) in jobs.iter().enumerate() {
        let size = job.as_ref().len() + 1;
        if i > start && (i - start == MAX_BATCH || bytes + size > MAX_BATCH_BYTES) {
            batches.push(&jobs[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    if start < jobs.len() {
        batches.push(&jobs[start..]);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(usize, String)> {
        parse(text).unwrap().into_iter().map(|e| (e.line, e.json)).collect()
    }

    #[test]
    fn one_object_an_array_and_lines_are_all_jobs() {
        let expected = vec![(1, r#"{"a":1}"#.to_owned()), (2, r#"{"b":2}"#.to_owned())];
        assert_eq!(lines("{\"a\":1}\n{\"b\":2}\n"), expected);
        assert_eq!(lines("[{\"a\":1},\n{\"b\":2}]"), expected);
        assert_eq!(lines("\u{feff}{\n  \"a\": 1\n}"), [(1, r#"{"a":1}"#.to_owned())]);
        assert_eq!(lines("\n\n{\"a\":1}"), [(3, r#"{"a":1}"#.to_owned())]);
        assert!(lines("\n").is_empty());
    }

    #[test]
    fn a_fault_names_its_line() {
        let fault = |text: &str| parse(text).unwrap_err().0;
        assert!(
            fault("{\"a\":1}\n{\"b\":}\n").starts_with("2: expected value"),
            "{}",
            fault("{\"a\":1}\n{\"b\":}\n")
        );
        assert_eq!(fault("{}\n\n7\n"), "3: a job is a JSON object");
    }

    #[test]
    fn batches_are_bounded_in_number_and_size_and_lose_nothing() {
        let many: Vec<String> = (0..2_500).map(|i| format!("{{\"n\":{i}}}")).collect();
        let sizes: Vec<usize> = batches(&many).iter().map(|b| b.len()).collect();
        assert_eq!(sizes, [1000, 1000, 500]);
        let large = vec!["x".repeat(3 * 1024 * 1024); 3];
        assert_eq!(batches(&large).len(), 3);
        assert!(batches::<String>(&[]).is_empty());
    }
}
