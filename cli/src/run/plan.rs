//! What a file of jobs becomes: documents to post, and the names a later run of the same file finds them by.

use crate::{exit::Usage, job_file::Entry};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::{fmt::Write as _, path::Path};

/// The jobs of one file, ready to be posted in any generation.
#[derive(Debug)]
pub(super) struct Plan {
    /// Knows the same jobs, run from the same directory, again.
    pub(super) digest: String,
    jobs: Vec<Planned>,
}

/// One job of the file.
#[derive(Debug)]
struct Planned {
    line: usize,
    document: Map<String, Value>,
}

impl Plan {
    /// The jobs of `entries` as they run when started from `here`: a job runs where `run` was called, as if its command
    /// had been typed there. A relative working directory is below it, an absolute one stands, and a job in a container
    /// image sees no directory of this host.
    pub(super) fn new(entries: &[Entry], here: &Path) -> Result<Self, Usage> {
        let here = here.to_str().ok_or_else(|| Usage(format!("{} is not UTF-8", here.display())))?;
        let (mut hash, mut jobs) = (Sha256::new(), Vec::with_capacity(entries.len()));
        for Entry { line, json } in entries {
            let mut document: Map<String, Value> =
                serde_json::from_str(json).map_err(|error| Usage(format!("line {line}: {error}")))?;
            place(&mut document, here);
            // Keys are sorted in a map of this type, so the same job always hashes alike.
            hash.update(Value::Object(document.clone()).to_string());
            hash.update("\n");
            jobs.push(Planned { line: *line, document });
        }
        let mut digest = String::with_capacity(16);
        for byte in &hash.finalize()[..8] {
            write!(digest, "{byte:02x}").map_err(|error| Usage(error.to_string()))?;
        }
        Ok(Self { digest, jobs })
    }

    /// The line the job at `index` begins in.
    pub(super) fn line(&self, index: usize) -> usize {
        self.jobs[index].line
    }

    /// The label that every job of one generation carries beside its own: what is run, listed and cancelled together.
    pub(super) fn label(&self, generation: u32) -> String {
        format!("run-{}-{generation}", self.digest)
    }

    /// The documents of one generation, one line each.
    pub(super) fn documents(&self, generation: u32) -> Vec<String> {
        let label = json!(self.label(generation));
        let labelled = |planned: &Planned| {
            let mut document = planned.document.clone();
            let labels = document.entry("labels").or_insert_with(|| json!([]));
            // Labels that are no list are the gateway's to refuse.
            if let Some(labels) = labels.as_array_mut() {
                labels.push(label.clone());
            }
            Value::Object(document).to_string()
        };
        self.jobs.iter().map(labelled).collect()
    }
}

fn place(document: &mut Map<String, Value>, here: &str) {
    let Some(spec) = document.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if spec.get("image").is_some_and(|image| !image.is_null()) {
        return;
    }
    let given = match spec.get("working_dir") {
        None | Some(Value::Null) => "",
        Some(Value::String(given)) => given,
        // The gateway says what is wrong with it.
        Some(_) => return,
    };
    let placed = Path::new(here).join(given);
    let placed = placed.to_string_lossy();
    let placed = if given.is_empty() { here } else { placed.as_ref() };
    spec.insert("working_dir".to_owned(), json!(placed));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(jobs: &[&str], here: &str) -> Plan {
        let entry = |(i, json): (usize, &&str)| Entry { line: i + 1, json: (*json).to_owned() };
        let entries: Vec<Entry> = jobs.iter().enumerate().map(entry).collect();
        Plan::new(&entries, Path::new(here)).unwrap()
    }

    fn working_dir(spec: &str) -> Value {
        let documents = plan(&[&format!(r#"{{"spec":{spec}}}"#)], "/here").documents(1);
        serde_json::from_str::<Value>(&documents[0]).unwrap()["spec"]["working_dir"].clone()
    }

    #[test]
    fn a_job_runs_where_run_was_called_unless_it_says_otherwise() {
        assert_eq!(working_dir(r#"{"command":["true"]}"#), "/here");
        assert_eq!(working_dir(r#"{"command":["true"],"working_dir":null}"#), "/here");
        assert_eq!(working_dir(r#"{"command":["true"],"working_dir":"data/x"}"#), "/here/data/x");
        assert_eq!(working_dir(r#"{"command":["true"],"working_dir":"/data"}"#), "/data");
        assert_eq!(working_dir(r#"{"command":["true"],"image":"alpine"}"#), Value::Null);
        assert_eq!(working_dir(r#"{"command":["true"],"working_dir":7}"#), 7);
    }

    #[test]
    fn the_same_jobs_in_the_same_place_are_the_same_plan() {
        let (a, b) = (r#"{"spec":{"command":["a"]},"name":"n"}"#, r#"{"spec":{"command":["b"]}}"#);
        let reordered = r#"{"name":"n","spec":{"command":["a"]}}"#;
        assert_eq!(plan(&[a, b], "/x").digest, plan(&[reordered, b], "/x").digest);
        for other in [plan(&[b, a], "/x"), plan(&[a, b], "/y"), plan(&[a], "/x")] {
            assert_ne!(plan(&[a, b], "/x").digest, other.digest);
        }
    }

    #[test]
    fn every_job_carries_the_label_of_its_generation_beside_its_own() {
        let plan = plan(&[r#"{"labels":["mine"],"spec":{"command":["a"]}}"#], "/");
        let document: Value = serde_json::from_str(&plan.documents(2)[0]).unwrap();
        assert_eq!(document["labels"], json!(["mine", format!("run-{}-2", plan.digest)]));
        assert_ne!(plan.documents(1), plan.documents(2));
    }

    #[test]
    fn the_examples_are_jobs_and_what_they_name_is_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for name in ["checksums", "wordcounts", "failures", "retries"] {
            let text = std::fs::read_to_string(root.join(format!("examples/{name}.jsonl"))).unwrap();
            for (i, line) in text.lines().enumerate() {
                let place = format!("{name}.jsonl:{}", i + 1);
                serde_json::from_str::<jobgate_api::http::JobRequest>(line)
                    .unwrap_or_else(|e| panic!("{place}: {e}"));
                let job: Value = serde_json::from_str(line).unwrap();
                let spec: jobgate_shared::domain::JobSpec =
                    serde_json::from_value(job["spec"].clone()).unwrap();
                spec.check().unwrap_or_else(|e| panic!("{place}: {e}"));
                let is_path = |word: &&String| word.contains('/') && !word.contains(' ');
                for path in spec.command.iter().filter(is_path) {
                    assert!(root.join(path).exists(), "{place}: {path} is gone");
                }
            }
        }
    }
}
