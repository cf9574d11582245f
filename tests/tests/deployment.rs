//! What is shipped for operators, held against the code: a dashboard or an alert on a metric that nothing exports shows
//! nothing and wakes nobody, and looks exactly like all being well.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};

const WATCHING: [&str; 3] = ["deploy/prometheus-alerts.yml", "deploy/grafana/jobgate.json", "docs/deploy.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the workspace")
}

/// Every `jobgate_…` word of a text. A histogram's series have names of their own; they count as the histogram's.
fn metrics_named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = words.filter(|word| word.starts_with("jobgate_"));
    names.map(|name| name.strip_suffix("_bucket").unwrap_or(name).to_owned()).collect()
}

/// The first argument of every `counter!`, `gauge!` and `histogram!`.
fn metrics_exported(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for kind in ["counter!(", "gauge!(", "histogram!("] {
        for after in source.split(kind).skip(1) {
            let name = after.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
            found.extend(name.map(str::to_owned));
        }
    }
    found
}

fn read_sources(folder: &Path, exported: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            read_sources(&path, exported)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            exported.extend(metrics_exported(&fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

#[test]
fn operators_are_shown_only_metrics_that_exist() -> Result<()> {
    let mut exported = BTreeSet::new();
    for folder in ["shared/src", "api/src", "worker/src", "cli/src"] {
        read_sources(&root().join(folder), &mut exported)?;
    }
    for file in WATCHING {
        let named = metrics_named(&fs::read_to_string(root().join(file))?);
        assert!(!named.is_empty(), "{file} names no metric");
        let unknown: Vec<_> = named.difference(&exported).collect();
        assert!(unknown.is_empty(), "{file} names metrics nothing exports: {unknown:?}");
    }
    Ok(())
}

#[test]
fn the_check_sees_what_it_should() {
    let source = r#"metrics::counter!("jobgate_a_total", "queue" => q); gauge!(
        "jobgate_b"
    ); let text = "jobgate_c";"#;
    let exported = metrics_exported(source);
    assert_eq!(exported, BTreeSet::from(["jobgate_a_total".to_owned(), "jobgate_b".to_owned()]));
    let named =
        metrics_named("rate(jobgate_a_total[5m]) / sum by (le) (jobgate_b_bucket{x=\"y\"}) jobgate-api");
    assert_eq!(named, exported);
}

#[test]
fn the_dashboard_is_json_and_each_panel_has_its_place() -> Result<()> {
    let text = fs::read_to_string(root().join("deploy/grafana/jobgate.json"))?;
    let board: serde_json::Value = serde_json::from_str(&text)?;
    let panels = board["panels"].as_array().context("panels")?;
    let places: BTreeSet<String> = panels.iter().map(|panel| panel["gridPos"].to_string()).collect();
    assert_eq!(places.len(), panels.len(), "two panels lie in one place");
    Ok(())
}
