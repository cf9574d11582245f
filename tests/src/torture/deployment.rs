//! What is deployed to be tortured: the clusters, and a configuration with short times, so that minutes show what takes hours.

use super::{evidence::Promise, load::Target};
use anyhow::Result;
use std::{fmt::Write as _, path::Path, time::Duration};

/// What is frozen for longer has lost its lease.
pub const LEASE: Duration = Duration::from_secs(4);

/// Where jobs go: the cluster's name, what its engine promises, how the no-op manager is told to submit (nothing: jobs are
/// processes of this host), and its share.
pub const CLUSTERS: [(&str, Promise, Option<&str>, u32); 5] = [
    ("local", Promise::Inert, None, 10),
    ("two-phase", Promise::Inert, Some("two_phase"), 6),
    ("unique-name", Promise::Eager, Some("unique_name"), 3),
    ("fenced", Promise::Inert, Some("fenced"), 3),
    ("at-most-once", Promise::AtMostOnce, Some("at_most_once"), 2),
];

/// The configuration every role reads.
pub fn config(folder: &Path) -> Result<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    let mut text = format!(
        r#"
[worker]
lease = "{}s"
heartbeat = "1s"
drain = "5s"
sweep = "15s"
sweep_older_than = "20s"
broker_patience = "5s"

[retention]
measure_every = "2s"

[clusters.local]
engine = "local"
spool_dir = "{}"
kill_grace = "1s"
max_calls = 8
regulator = {{ kind = "fixed", max_in_flight = 24 }}
"#,
        LEASE.as_secs(),
        path("spool")
    );
    for (name, _, mode, _) in CLUSTERS {
        let Some(mode) = mode else { continue };
        write!(
            text,
            r#"
[clusters.{name}]
engine = "noop"
mode = "{mode}"
state = "{}"
run_for = "300ms"
failure_ratio = 0.1
poll_interval = "100ms"
lost_after = "10s"
regulator = {{ kind = "fixed", max_in_flight = 200 }}
"#,
            path(&format!("{name}.ledger"))
        )?;
    }
    Ok(text)
}

/// Where producers send jobs.
pub fn targets(folder: &Path) -> Vec<Target> {
    let target = |(name, _, mode, weight): (&str, Promise, Option<&str>, u32)| Target {
        cluster: name.to_owned(),
        ledger: folder.join(format!("{name}.ledger")),
        local: mode.is_none(),
        weight,
    };
    CLUSTERS.into_iter().map(target).collect()
}
