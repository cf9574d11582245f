//! What is shipped for operators, held against the code: a dashboard or an alert on a metric that nothing exports shows
//! nothing and wakes nobody, and looks exactly like all being well.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use jobgate_shared::telemetry::{self, Metric};

const WATCHING: [&str; 4] =
    ["deploy/prometheus-alerts.yml", "deploy/grafana/jobgate.json", "docs/deploy.md", "docs/metrics.md"];

/// Every table of metrics, under its heading in the documentation.
const TABLES: [(&str, &[Metric]); 4] = [
    ("Every role", telemetry::METRICS),
    ("`api`", jobgate_api::telemetry::API),
    ("`recorder`", jobgate_api::telemetry::RECORDER),
    ("`worker`", jobgate_worker::telemetry::METRICS),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the workspace")
}

/// Every `jobgate_…` word of a text. A histogram's series have names of their own; they count as the histogram's.
fn metrics_named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = words.filter(|word| word.starts_with("jobgate_"));
    names.map(|name| name.strip_suffix("_bucket").unwrap_or(name).to_owned()).collect()
}

/// Every string that is a metric's name and nothing else.
fn metrics_exported(source: &str) -> BTreeSet<String> {
    let named = |text: &&str| {
        text.starts_with("jobgate_") && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    source.split('"').filter(named).map(str::to_owned).collect()
}

/// Every metric the code counts, gauges or times.
fn exported() -> Result<BTreeSet<String>> {
    let mut exported = BTreeSet::new();
    for folder in ["shared/src", "api/src", "worker/src", "cli/src"] {
        read_sources(&root().join(folder), &mut exported)?;
    }
    Ok(exported)
}

fn read_sources(folder: &Path, exported: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            read_sources(&path, exported)?;
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("telemetry.rs") {
            exported.extend(metrics_exported(&fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

#[test]
fn operators_are_shown_only_metrics_that_exist() -> Result<()> {
    let exported = exported()?;
    for file in WATCHING {
        let named = metrics_named(&fs::read_to_string(root().join(file))?);
        assert!(!named.is_empty(), "{file} names no metric");
        let unknown: Vec<_> = named.difference(&exported).collect();
        assert!(unknown.is_empty(), "{file} names metrics nothing exports: {unknown:?}");
    }
    Ok(())
}

#[test]
fn what_is_measured_is_described_and_what_is_described_is_measured() -> Result<()> {
    let described = TABLES.iter().flat_map(|(_, table)| table.iter().map(|metric| metric.name.to_owned()));
    let described: Vec<String> = described.collect();
    let once: BTreeSet<String> = described.iter().cloned().collect();
    assert_eq!(once.len(), described.len(), "a metric is described twice");
    assert_eq!(once, exported()?);
    Ok(())
}

#[test]
fn the_documentation_lists_each_metric_as_it_is_described() -> Result<()> {
    let document = fs::read_to_string(root().join("docs/metrics.md"))?;
    for (heading, table) in TABLES {
        let mut expected =
            format!("## {heading}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n");
        for Metric { kind, name, labels, help } in table {
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            writeln!(expected, "| `{name}` | {} | {} | {help} |", kind.as_str(), labels.join(", "))?;
        }
        assert!(document.contains(&expected), "docs/metrics.md does not hold\n{expected}");
    }
    Ok(())
}

#[test]
fn the_check_sees_what_it_should() {
    let source = r#"metrics::counter!("jobgate_a_total", "queue" => q); self.count(
        "jobgate_b"
    ); let text = "jobgate_worker=debug";"#;
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
