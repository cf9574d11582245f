//! The shape of the tree: which crate may know which, which library is used where, how a file begins and is named.
//! Reads the sources as text, so a rule holds for code no test calls. Every rule is shown an offence of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use jobgate_shared::failpoint;

/// Each crate of the product, what its package is called, and the packages of ours it may depend on.
const CRATES: [(&str, &str, &[&str]); 7] = [
    ("shared", "jobgate-shared", &[]),
    ("shared/conformance", "jobgate-conformance", &["jobgate-shared"]),
    ("api", "jobgate-api", &["jobgate-shared"]),
    ("worker", "jobgate-worker", &["jobgate-shared"]),
    ("cli", "jobgate", &["jobgate-shared", "jobgate-api", "jobgate-worker"]),
    (
        "tests",
        "jobgate-tests",
        &["jobgate-shared", "jobgate-conformance", "jobgate-api", "jobgate-worker", "jobgate"],
    ),
    ("tests/model", "jobgate-model", &["jobgate-shared", "jobgate-worker"]),
];

/// A library, and the beginnings of the paths whose code may name it. The `tests` crate may name any.
const CONFINED: [(&str, &[&str]); 5] = [
    ("sqlx", &["shared/src/store/postgres", "shared/src/store/sqlite"]),
    ("lapin", &["shared/src/broker/rabbitmq"]),
    ("axum", &["api/src/http", "api/src/testing"]),
    ("backoff", &["shared/src/retry.rs"]),
    ("reqwest", &["worker/src/engines/slurm", "cli/src/client"]),
];

/// Names that say nothing about what a module owns, whole or as a word of a longer one.
const EMPTY_NAMES: [&str; 8] =
    ["common", "util", "utils", "helper", "helpers", "manager", "managers", "misc"];

/// A source file: its path below the root of the workspace, and its text.
type Source = (PathBuf, String);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the workspace")
}

fn sources() -> Result<Vec<Source>> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = CRATES.iter().map(|(folder, ..)| root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.strip_prefix(root())?.to_owned(), fs::read_to_string(&path)?));
            }
        }
    }
    // A crate may lie in another's folder.
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Whether `line` is code that names the crate `library`, as `library::…`, `use library…` or `extern crate library`.
fn names(line: &str, library: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices(library).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + library.len()..]);
        let starts = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '-');
        let imports = before.trim_end().ends_with("use") || before.trim_end().ends_with("extern crate");
        starts && (after.starts_with("::") || imports && after.starts_with([';', ' ', ',']))
    })
}

fn strayed(sources: &[Source], library: &str, homes: &[&str]) -> Vec<String> {
    let stranger = |path: &Path| {
        let path = path.to_string_lossy();
        !path.starts_with("tests/") && !homes.iter().any(|home| path.starts_with(home))
    };
    let outside = sources.iter().filter(|(path, _)| stranger(path));
    let lines =
        outside.flat_map(|(path, text)| text.lines().enumerate().map(move |(at, line)| (path, at, line)));
    lines
        .filter(|(.., line)| names(line, library))
        .map(|(path, at, line)| format!("{}:{}: {}", path.display(), at + 1, line.trim()))
        .collect()
}

fn headless(sources: &[Source]) -> Vec<String> {
    let without = sources.iter().filter(|(_, text)| !text.starts_with("//!"));
    without.map(|(path, _)| path.display().to_string()).collect()
}

fn empty_names(sources: &[Source]) -> Vec<String> {
    let empty = |name: &str| name.split(['_', '-']).any(|word| EMPTY_NAMES.contains(&word));
    let mut found = Vec::new();
    for (path, text) in sources {
        let parts = path.with_extension("");
        if parts.components().any(|part| empty(&part.as_os_str().to_string_lossy())) {
            found.push(path.display().to_string());
        }
        for line in text.lines().map(str::trim).filter(|line| line.ends_with('{')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let inline = words.windows(2).find(|pair| pair[0] == "mod");
            if inline.is_some_and(|pair| empty(pair[1])) {
                found.push(format!("{}: {line}", path.display()));
            }
        }
    }
    found
}

/// The packages of ours that the manifest depends on, in any section, and that `allowed` does not hold.
fn forbidden_edges(manifest: &str, allowed: &[&str]) -> Result<Vec<String>> {
    let manifest: toml::Table = toml::from_str(manifest)?;
    let is_ours = |package: &str| CRATES.iter().any(|(_, ours, _)| *ours == package);
    let mut found = Vec::new();
    let mut tables = vec![&manifest];
    while let Some(table) = tables.pop() {
        for (key, value) in table {
            let Some(value) = value.as_table() else { continue };
            if !key.ends_with("dependencies") {
                tables.push(value);
                continue;
            }
            for (name, dependency) in value {
                let package = dependency.get("package").and_then(toml::Value::as_str).unwrap_or(name);
                let by_path = dependency.get("path").is_some();
                if (is_ours(package) || by_path) && !allowed.contains(&package) {
                    found.push(format!("[{key}] {package}"));
                }
            }
        }
    }
    Ok(found)
}

#[test]
fn a_crate_depends_only_on_the_crates_below_it() -> Result<()> {
    for (folder, package, allowed) in CRATES {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml"))?;
        assert!(manifest.contains(&format!("name = \"{package}\"")), "{folder} is not {package}");
        assert_eq!(forbidden_edges(&manifest, allowed)?, Vec::<String>::new(), "of {folder}");
    }
    let crates: toml::Table = toml::from_str(&fs::read_to_string(root().join("Cargo.toml"))?)?;
    let members = crates["workspace"]["members"].as_array().context("members")?;
    assert_eq!(members.len(), CRATES.len(), "a new crate needs its place in CRATES: {members:?}");
    Ok(())
}

#[test]
fn a_library_is_named_only_where_it_belongs() -> Result<()> {
    let sources = sources()?;
    for (library, homes) in CONFINED {
        assert_eq!(
            strayed(&sources, library, homes),
            Vec::<String>::new(),
            "{library} belongs into {homes:?}"
        );
    }
    Ok(())
}

#[test]
fn every_failpoint_stands_in_one_gap() -> Result<()> {
    let table = Path::new("shared/src/failpoint.rs");
    let product = sources()?.into_iter().filter(|(path, _)| path != table && !path.starts_with("tests"));
    let text: String = product.map(|(_, text)| text).collect();
    for (name, _) in failpoint::POINTS {
        // Each database commits in a place of its own.
        let places = if name.starts_with("store.") { 2 } else { 1 };
        assert_eq!(text.matches(&format!("\"{name}\"")).count(), places, "{name}");
    }
    Ok(())
}

/// A program around the failpoints alone, as a build with these flags has them: it says whether there are any, and passes a
/// point at which it was ordered to end.
const PASSING: &str = r#"
#[path = "FILE"]
mod failpoint;

fn main() {
    failpoint::watch(std::env::args().nth(1).unwrap().into());
    failpoint::hand_down(&mut std::process::Command::new("true"));
    println!("{} {}", failpoint::COMPILED_IN, failpoint::POINTS.len());
    failpoint::pass("create.done");
}
"#;

#[test]
fn neither_a_release_build_nor_one_without_the_feature_obeys_a_failpoint() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (source, orders) = (dir.path().join("passing.rs"), dir.path().join("orders"));
    let file = root().join("shared/src/failpoint.rs");
    fs::write(&source, PASSING.replace("FILE", &file.to_string_lossy()))?;
    fs::create_dir_all(orders.join("create.done"))?;
    fs::write(orders.join("create.done/000"), "abort")?;
    for (name, flags) in [
        ("release", ["--cfg", "feature=\"failpoints\"", "-C", "debug-assertions=off"].as_slice()),
        ("debug", &["-C", "debug-assertions=on"]),
    ] {
        let program = dir.path().join(name);
        let mut rustc = Command::new("rustc");
        rustc.args(["--edition", "2024", "-A", "warnings"]).args(flags).arg(&source).arg("-o").arg(&program);
        let compiled = rustc.output().context("rustc, which compiled this test")?;
        assert!(compiled.status.success(), "{name}: {}", String::from_utf8_lossy(&compiled.stderr));
        let passed = Command::new(&program).arg(&orders).output()?;
        assert!(passed.status.success(), "{name} obeyed: {}", passed.status);
        let said = String::from_utf8_lossy(&passed.stdout).into_owned();
        assert_eq!(said, format!("false {}\n", failpoint::POINTS.len()), "{name}");
    }
    assert!(orders.join("create.done/000").exists(), "the order was taken");
    // And these tests do have them.
    assert_eq!(failpoint::COMPILED_IN, cfg!(debug_assertions));
    Ok(())
}

#[test]
fn release_builds_have_no_debug_assertions_and_only_tests_ask_for_failpoints() -> Result<()> {
    let manifest = |folder: &str| -> Result<toml::Table> {
        Ok(toml::from_str(&fs::read_to_string(root().join(folder).join("Cargo.toml"))?)?)
    };
    let profiles = manifest("")?.remove("profile").context("profiles")?;
    for (name, profile) in profiles.as_table().context("profiles")? {
        let set = profile.get("debug-assertions");
        assert!(name == "dev" || name == "test" || set.is_none(), "{name} sets debug-assertions");
    }
    for (folder, package, _) in CRATES.iter().filter(|(folder, ..)| !folder.starts_with("tests")) {
        let asks = manifest(folder)?.iter().any(|(key, table)| {
            key.ends_with("dependencies") && table.to_string().contains("\"failpoints\"")
        });
        assert!(!asks, "{package} asks for failpoints");
    }
    assert!(manifest("tests")?["dependencies"].to_string().contains("\"failpoints\""));
    Ok(())
}

#[test]
fn every_source_file_begins_with_what_it_owns() -> Result<()> {
    assert_eq!(headless(&sources()?), Vec::<String>::new(), "a module head is `//!` from the first line on");
    Ok(())
}

#[test]
fn no_module_is_named_after_nothing() -> Result<()> {
    assert_eq!(empty_names(&sources()?), Vec::<String>::new(), "say what it owns instead");
    Ok(())
}

#[test]
fn every_home_of_a_library_is_there() {
    for home in CONFINED.iter().flat_map(|(_, homes)| *homes) {
        let path = root().join(home);
        assert!(path.is_dir() || path.with_extension("rs").is_file(), "{home} allows what is not there");
    }
}

#[test]
fn the_architecture_is_told_in_150_lines() -> Result<()> {
    let lines = fs::read_to_string(root().join("ARCHITECTURE.md"))?.lines().count();
    assert!(lines <= 150, "ARCHITECTURE.md has {lines} lines: a map that long is read by nobody");
    Ok(())
}

#[test]
fn every_rule_sees_an_offence() -> Result<()> {
    let file = |path: &str, text: &str| vec![(PathBuf::from(path), text.to_owned())];
    let sql = &["shared/src/store/postgres"];
    for offence in [
        "use sqlx::Pool;",
        "use sqlx;",
        "pub use sqlx as db;",
        "let p = ::sqlx::query(q);",
        "extern crate sqlx;",
    ] {
        assert_eq!(strayed(&file("api/src/jobs.rs", offence), "sqlx", sql).len(), 1, "{offence}");
        assert_eq!(strayed(&file("shared/src/store/postgres/claim.rs", offence), "sqlx", sql).len(), 0);
        assert_eq!(strayed(&file("tests/src/x.rs", offence), "sqlx", sql).len(), 0);
    }
    for innocent in ["// sqlx::query is for the store", "my_sqlx::query()", "let sqlx = 1;"] {
        assert_eq!(strayed(&file("api/src/jobs.rs", innocent), "sqlx", sql).len(), 0, "{innocent}");
    }
    assert_eq!(headless(&file("a.rs", "use std::fs;\n//! late")), ["a.rs"]);
    for path in ["api/src/util.rs", "api/src/common/mod.rs", "tests/tests/job_helpers.rs"] {
        assert_eq!(empty_names(&file(path, "")).len(), 1, "{path}");
    }
    assert_eq!(empty_names(&file("api/src/a.rs", "pub(crate) mod manager {")).len(), 1);
    assert_eq!(empty_names(&file("api/src/commonplace.rs", "mod utilisation {")).len(), 0);
    for edge in [
        "[dependencies]\njobgate-worker.workspace = true",
        "[dev-dependencies.jobgate-worker]\npath = \"../worker\"",
        "[target.'cfg(unix)'.dependencies]\nw = { package = \"jobgate-worker\", path = \"../worker\" }",
        "[dependencies]\nnew = { path = \"../new\" }",
    ] {
        assert_eq!(forbidden_edges(edge, &["jobgate-shared"])?.len(), 1, "{edge}");
    }
    assert_eq!(
        forbidden_edges("[dependencies]\njobgate-shared.workspace = true", &["jobgate-shared"])?.len(),
        0
    );
    Ok(())
}
