//! Command lines with places for values. Every word stays one argument, whatever a value holds; no shell reads any of it.

use anyhow::{bail, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;

/// A command line: words, and groups of words that go together when a value they name is absent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Argv(Vec<Item>);

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Item {
    Word(String),
    Group(Vec<String>),
}

/// What a command line is for, which says what it can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// A job that is to be submitted.
    Create,
    /// One submitted job.
    One,
    /// Submitted jobs by their ids; with `{id}` in place of `{ids}`, one at a time.
    Many,
    /// Whatever there is.
    All,
}

/// Always known, of any job.
const OF_A_JOB: [&str; 7] = ["tag", "name", "project", "attempt_dir", "output", "error", "script"];
/// Known if the job asks for it.
const ASKED_FOR: [&str; 7] =
    ["cpus", "memory_mib", "gpus", "nodes", "time_limit_seconds", "time_limit_minutes", "working_dir"];

/// The values of one command.
#[derive(Debug, Default)]
pub(super) struct Values<'a> {
    pub(super) words: BTreeMap<&'static str, String>,
    pub(super) ids: &'a [String],
    pub(super) options: Vec<String>,
}

impl Argv {
    /// Whether the place is anywhere in it.
    pub(super) fn mentions(&self, name: &str) -> bool {
        let words = self.0.iter().flat_map(|item| match item {
            Item::Word(word) => std::slice::from_ref(word),
            Item::Group(words) => words,
        });
        words.flat_map(|word| places(word)).any(|place| place == name)
    }

    /// It is called for each id.
    pub(super) fn takes_one(&self) -> bool {
        self.mentions("id")
    }

    pub(super) fn check(&self, purpose: For) -> anyhow::Result<()> {
        ensure!(
            matches!(self.0.first(), Some(Item::Word(word)) if !word.is_empty() && places(word).next().is_none()),
            "argv: must begin with a program"
        );
        for item in &self.0 {
            let (words, optional) = match item {
                Item::Word(word) => (std::slice::from_ref(word), false),
                Item::Group(words) => (words.as_slice(), true),
            };
            for word in words {
                for place in places(word) {
                    let asked = ASKED_FOR.contains(&place);
                    let known = match purpose {
                        For::Create => OF_A_JOB.contains(&place) || asked || place == "options",
                        For::One => ["id", "tag", "name"].contains(&place),
                        For::Many => ["id", "ids", "ids:,"].contains(&place),
                        For::All => false,
                    };
                    ensure!(known, "argv: {{{place}}} is nothing that can stand here");
                    ensure!(
                        !asked || optional,
                        "argv: {{{place}}} may be absent, so it stands in a list of its own"
                    );
                    let alone = word.len() == place.len() + 2;
                    ensure!(
                        alone || !["ids", "options"].contains(&place),
                        "argv: {{{place}}} is a word of its own"
                    );
                }
            }
        }
        if purpose == For::Many && !["id", "ids", "ids:,"].iter().any(|place| self.mentions(place)) {
            bail!("argv: names no {{ids}}");
        }
        if purpose == For::One && !self.mentions("id") {
            bail!("argv: names no {{id}}");
        }
        Ok(())
    }

    /// The words, with their values.
    pub(super) fn render(&self, values: &Values<'_>) -> Vec<String> {
        let mut argv = Vec::new();
        for item in &self.0 {
            match item {
                Item::Word(word) if word == "{ids}" => argv.extend(values.ids.iter().cloned()),
                Item::Word(word) if word == "{options}" => argv.extend(values.options.iter().cloned()),
                Item::Word(word) => argv.extend(filled(word, values)),
                Item::Group(words) => {
                    let words: Option<Vec<String>> = words.iter().map(|word| filled(word, values)).collect();
                    argv.extend(words.into_iter().flatten());
                }
            }
        }
        argv
    }
}

/// `None`: a value is absent. A value is put in once; braces in it mean nothing.
fn filled(word: &str, values: &Values<'_>) -> Option<String> {
    let (mut text, mut rest) = (String::new(), word);
    while let Some((before, place, after)) = next_place(rest) {
        text.push_str(before);
        match place {
            "ids:," => text.push_str(&values.ids.join(",")),
            name => text.push_str(values.words.get(name)?),
        }
        rest = after;
    }
    text.push_str(rest);
    Some(text)
}

fn places(word: &str) -> impl Iterator<Item = &str> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let (_, place, after) = next_place(rest)?;
        rest = after;
        Some(place)
    })
}

/// What stands before the next place, its name and what stands after it.
fn next_place(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('{')?;
    let (place, after) = rest.split_once('}')?;
    Some((before, place, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(json: &str) -> Argv {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_value_is_one_argument_whatever_it_holds() {
        let line = argv(
            r#"["q", "-N", "{name}", ["-c", "{cpus}"], ["-m", "{memory_mib}M"], "{options}", "{ids}", "j={ids:,}"]"#,
        );
        let words = BTreeMap::from([("name", "a b; {cpus} $(id)".to_owned()), ("cpus", "2".to_owned())]);
        let ids = ["1".to_owned(), "2".to_owned()];
        let values = Values { words, ids: &ids, options: vec!["-q".into(), "x y".into()] };
        let expected = ["q", "-N", "a b; {cpus} $(id)", "-c", "2", "-q", "x y", "1", "2", "j=1,2"];
        assert_eq!(line.render(&values), expected);
    }

    #[test]
    fn what_cannot_stand_in_a_command_line_is_named() {
        for (json, purpose, word) in [
            (r#"["{id}"]"#, For::One, "program"),
            (r#"["q"]"#, For::One, "{id}"),
            (r#"["q", "{nmae}"]"#, For::Create, "{nmae}"),
            (r#"["q", "-c{cpus}"]"#, For::Create, "{cpus}"),
            (r#"["q", "x{options}"]"#, For::Create, "{options}"),
            (r#"["q"]"#, For::Many, "{ids}"),
            (r#"["q", "{ids}"]"#, For::All, "{ids}"),
        ] {
            let fault = argv(json).check(purpose).unwrap_err().to_string();
            assert!(fault.contains(word), "{json}: {fault}");
        }
        argv(r#"["q", ["-c", "{cpus}"], "{options}", "{script}"]"#).check(For::Create).unwrap();
    }
}
