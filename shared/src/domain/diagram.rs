//! The state diagram, drawn by asking the transition function. `ARCHITECTURE.md` shows it; a test keeps the two equal.

use super::samples::{Sample, facts, lives, now, retry_all};
use super::{JobState, Outcome, RetryPolicy, transition};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

const BEGIN: &str = "<!-- states -->";
const END: &str = "<!-- /states -->";

/// Every change of state some fact makes, as a mermaid diagram.
fn state_diagram() -> String {
    let mut edges: BTreeMap<(JobState, JobState), BTreeSet<&str>> = BTreeMap::new();
    for (_, life) in lives() {
        for policy in [RetryPolicy::default(), retry_all(), RetryPolicy { retry_on: vec![], ..retry_all() }] {
            for Sample { told, .. } in facts(life.attempt) {
                let outcome = transition(&life, 3, &policy, &told.fact(), now());
                if let Outcome::Advanced { life: next, .. } = outcome
                    && next.state != life.state
                {
                    edges.entry((life.state, next.state)).or_default().insert(told.kind());
                }
            }
        }
    }
    let mut diagram =
        String::from("stateDiagram-v2\n    [*] --> HELD : accept\n    [*] --> INITIALIZED : accept\n");
    for ((from, to), kinds) in edges {
        let kinds: Vec<_> = kinds.into_iter().collect();
        writeln!(diagram, "    {from} --> {to} : {}", kinds.join(", ")).unwrap();
    }
    diagram
}

#[test]
fn the_architecture_shows_the_states_as_they_are() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let text = fs::read_to_string(&file).unwrap();
    let shown = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).map(|(shown, _)| shown);
    let drawn = format!("\n```mermaid\n{}```\n", state_diagram());
    assert_eq!(
        shown,
        Some(drawn.as_str()),
        "put this between {BEGIN} and {END} in ARCHITECTURE.md:\n{drawn}"
    );
}
