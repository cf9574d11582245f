//! What was measured, beside what the machine can do and what we want; as tables or as one JSON document.

use crate::render::{Output, Table};
use serde::Serialize;
use serde_json::json;
use std::{thread, time::Duration};

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Unit {
    #[serde(rename = "jobs/s")]
    JobsPerSecond,
    #[serde(rename = "messages/s")]
    MessagesPerSecond,
    #[serde(rename = "rows/s")]
    RowsPerSecond,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "bytes/job")]
    BytesPerJob,
    #[serde(rename = "MB")]
    Megabytes,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::JobsPerSecond => format!("{value:.0} jobs/s"),
            Self::MessagesPerSecond => format!("{value:.0} messages/s"),
            Self::RowsPerSecond => format!("{value:.0} rows/s"),
            Self::Milliseconds => format!("{value:.2} ms"),
            Self::BytesPerJob => format!("{value:.0} B/job"),
            Self::Megabytes => format!("{value:.1} MB"),
        }
    }
}

/// One measured number.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figure {
    name: String,
    value: f64,
    unit: Unit,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<Goal>,
}

impl Figure {
    pub(super) fn new(name: impl Into<String>, value: f64, unit: Unit) -> Self {
        Self { name: name.into(), value, unit, goal: None }
    }

    pub(super) fn time(name: impl Into<String>, time: Duration) -> Self {
        Self::new(name, time.as_secs_f64() * 1_000.0, Unit::Milliseconds)
    }

    pub(super) fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }
}

/// Everything of one run.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    form: &'static str,
    processors: usize,
    version: &'static str,
    debug_build: bool,
    pub(super) floors: Vec<Figure>,
    pub(super) figures: Vec<Figure>,
}

impl Report {
    pub(super) fn new(form: &'static str) -> Self {
        Self {
            form,
            processors: thread::available_parallelism().map_or(0, usize::from),
            version: env!("CARGO_PKG_VERSION"),
            debug_build: cfg!(debug_assertions),
            ..Self::default()
        }
    }

    pub(super) fn show(&self, output: &mut Output) -> anyhow::Result<()> {
        if output.is_json() {
            return Ok(output.document(&json!(self))?);
        }
        let build = if self.debug_build { ", a DEBUG build" } else { "" };
        output.line(format_args!("{}, {} processors{build}\n", self.form, self.processors))?;
        let mut floors = Table::new(["FLOOR OF THIS MACHINE", "VALUE"]).right(&[1]);
        for figure in &self.floors {
            floors.row(&[figure.name.clone(), figure.unit.show(figure.value)]);
        }
        output.line(&floors)?;
        let mut figures = Table::new(["MEASURED", "VALUE", "GOAL", ""]).right(&[1, 2]);
        for figure in &self.figures {
            let (goal, met) = match figure.goal {
                None => (String::new(), ""),
                Some(goal) => {
                    let shown = match goal {
                        Goal::AtLeast(least) => format!("≥ {}", figure.unit.show(least)),
                        Goal::AtMost(most) => format!("≤ {}", figure.unit.show(most)),
                    };
                    (shown, if goal.is_met_by(figure.value) { "met" } else { "missed" })
                }
            };
            figures.row(&[figure.name.clone(), figure.unit.show(figure.value), goal, met.to_owned()]);
        }
        Ok(output.line(format_args!("\n{figures}"))?)
    }
}
