//! What this workspace measures: each crate keeps one table of its metrics, and whoever renders them describes them first.
//!
//! A metric that is in no table has no help text; `tests/tests/deployment.rs` holds the tables against the code and
//! `docs/metrics.md` against the tables.

use metrics::Unit;

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only up, from 0 at the start of the process.
    Counter,
    /// Up and down.
    Gauge,
    /// Many values, in buckets.
    Histogram,
}

impl Kind {
    /// As Prometheus writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// How it moves.
    pub kind: Kind,
    /// Its name; what it ends in is its unit.
    pub name: &'static str,
    /// What it is told apart by.
    pub labels: &'static [&'static str],
    /// What it says, in a sentence without a full stop inside.
    pub help: &'static str,
}

impl Metric {
    /// A counter.
    pub const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { kind: Kind::Counter, name, labels, help }
    }

    /// A gauge.
    pub const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { kind: Kind::Gauge, name, labels, help }
    }

    /// A histogram.
    pub const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { kind: Kind::Histogram, name, labels, help }
    }

    /// The unit its name ends in.
    pub fn unit(&self) -> Unit {
        let name = self.name.trim_end_matches("_total");
        if name.ends_with("_seconds") {
            Unit::Seconds
        } else if name.ends_with("_bytes") {
            Unit::Bytes
        } else {
            Unit::Count
        }
    }
}

/// Gives every metric its unit and help. A counter without labels is there from now on, at 0: the first increment of one
/// that was not there before would be seen by nobody who watches increases.
pub fn describe(tables: &[&[Metric]]) {
    for metric in tables.iter().copied().flatten() {
        let Metric { kind, name, labels, help } = *metric;
        match kind {
            Kind::Counter => {
                metrics::describe_counter!(name, metric.unit(), help);
                if labels.is_empty() {
                    metrics::counter!(name).increment(0);
                }
            }
            Kind::Gauge => metrics::describe_gauge!(name, metric.unit(), help),
            Kind::Histogram => metrics::describe_histogram!(name, metric.unit(), help),
        }
    }
}

/// Metrics of what every role stands on: tasks, the store, the broker.
pub const METRICS: &[Metric] = &[
    Metric::counter("jobgate_task_panics_total", &["task"], "Tasks that panicked; a defect."),
    Metric::counter("jobgate_loop_restarts_total", &["loop"], "Loops that ended early and were begun again."),
    Metric::gauge("jobgate_broker_up", &[], "The broker: 2 works, 1 takes no messages, 0 cannot be reached."),
    Metric::histogram(
        "jobgate_broker_publish_seconds",
        &["kind"],
        "From handing a message to RabbitMQ to its confirm.",
    ),
    Metric::counter("jobgate_broker_published_total", &["kind", "outcome"], "Messages handed to RabbitMQ."),
    Metric::counter("jobgate_broker_poison_total", &["queue"], "Messages moved to the dead letters."),
    Metric::counter(
        "jobgate_broker_reconnects_total",
        &["connection"],
        "Connections to RabbitMQ made again after one was lost.",
    ),
    Metric::counter(
        "jobgate_broker_settles_lost_total",
        &[],
        "Acknowledgements that did not reach RabbitMQ; their messages come again.",
    ),
    Metric::counter(
        "jobgate_store_away_total",
        &[],
        "Operations given up because the store could not be reached, had no room or did not answer in time.",
    ),
    Metric::histogram("jobgate_store_seconds", &["operation"], "Operations of the PostgreSQL store, whole."),
    Metric::histogram("jobgate_store_pool_wait_seconds", &["pool"], "Waits for a connection to PostgreSQL."),
    Metric::counter(
        "jobgate_store_retries_total",
        &["reason"],
        "Transactions of the PostgreSQL store made again.",
    ),
    Metric::histogram("jobgate_store_merged_writes", &[], "Writes in one transaction of the SQLite store."),
];
