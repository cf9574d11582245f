//! Where in a configuration file something stands: the line and the key an error is about.
//!
//! The parser tells a byte span; people want `worker.slots` and a line number.

use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// A key and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Line, from 1.
    pub(super) line: usize,
    /// Path of the key, such as `clusters.local.slots`; empty for what belongs to no key.
    pub(super) key: String,
}

/// One key of the file.
struct Entry {
    path: String,
    key: Range<usize>,
    value: Range<usize>,
}

/// The place a span of the text lies in. A text that does not parse has lines only.
pub(super) fn of_span(text: &str, span: Range<usize>) -> Place {
    let line = line_at(text, span.start);
    let holds = |range: &Range<usize>| range.start <= span.start && span.end <= range.end;
    let entries = entries(text);
    let innermost = entries
        .iter()
        .filter(|e| holds(&e.key) || holds(&e.value))
        .min_by_key(|e| if holds(&e.key) { e.key.len() } else { e.value.len() });
    Place { line, key: innermost.map(|e| e.path.clone()).unwrap_or_default() }
}

/// The line a key stands in, if the file has it.
pub(super) fn of_key(text: &str, path: &str) -> Option<usize> {
    entries(text).into_iter().find(|e| e.path == path).map(|e| line_at(text, e.key.start))
}

/// Paths of the keys directly below `section`.
pub(super) fn keys_below(text: &str, section: &str) -> Vec<String> {
    let prefix = format!("{section}.");
    let below =
        |e: Entry| e.path.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('.')).then_some(e.path);
    entries(text).into_iter().filter_map(below).collect()
}

/// The key of a cluster's section that an engine's words about its settings begin with: `umask must be …`, `create: argv:
/// names …`. Nothing when they begin with no key of the file.
pub(super) fn told_key(text: &str, section: &str, message: &str) -> Option<String> {
    if !section.starts_with("clusters.") {
        return None;
    }
    let (mut found, mut rest) = (section.to_owned(), message);
    loop {
        let word = rest.split([' ', ':', ',']).next().unwrap_or_default();
        let key = format!("{found}.{word}");
        if word.is_empty() || of_key(text, &key).is_none() {
            return (found != section).then_some(found);
        }
        found = key;
        rest = rest[word.len()..].trim_start_matches([':', ' ']);
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

fn entries(text: &str) -> Vec<Entry> {
    let mut found = Vec::new();
    if let Ok(table) = DeTable::parse(text) {
        collect(table.get_ref(), "", &mut found);
    }
    found
}

fn collect(table: &DeTable<'_>, prefix: &str, found: &mut Vec<Entry>) {
    for (key, value) in table {
        let path =
            if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        if let DeValue::Table(inner) = value.get_ref() {
            collect(inner, &path, found);
        }
        found.push(Entry { path, key: key.span(), value: value.span() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "data_dir = \"d\"\n\n[api]\nlisten = \"x\"\n\n[clusters.local]\nengine = \"local\"\nslots = 0\n";

    #[test]
    fn a_span_is_told_as_line_and_key() {
        let at = |needle: &str| TEXT.find(needle).unwrap();
        let place = |needle: &str| of_span(TEXT, at(needle)..at(needle) + needle.len());
        assert_eq!(place("\"x\""), Place { line: 4, key: "api.listen".into() });
        assert_eq!(place("slots"), Place { line: 8, key: "clusters.local.slots".into() });
        assert_eq!(place("\"d\""), Place { line: 1, key: "data_dir".into() });
        assert_eq!(of_span("= =", 2..3), Place { line: 1, key: String::new() });
    }

    #[test]
    fn keys_are_found_by_their_path() {
        assert_eq!(of_key(TEXT, "clusters.local.slots"), Some(8));
        assert_eq!(of_key(TEXT, "clusters.local.slot"), None);
        assert_eq!(keys_below(TEXT, "clusters.local"), ["clusters.local.engine", "clusters.local.slots"]);
    }
}
