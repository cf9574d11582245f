//! What a cluster's settings tell of its engine before there is one. The API knows engines by this alone: nothing here
//! opens, asks or waits for anything.
//!
//! No method has a body: what an engine does not say would be said of it by somebody who does not know it.

use super::EngineContext;
use crate::engine::{Capabilities, Engine};
use jobgate_shared::domain::{JobSpec, SpecError};
use std::{collections::BTreeMap, fmt::Debug, num::NonZeroU32, sync::Arc};

/// The settings of one engine.
pub trait EngineSettings: Debug + Send + Sync {
    /// Checks them; an error names the one that is wrong.
    fn check(&self) -> anyhow::Result<()>;

    /// What the engine can do: all but the name of its reach, which only the opened one knows.
    fn capabilities(&self) -> Capabilities;

    /// It acts only where it submitted: once opened, it names a reach.
    fn is_bound_to_its_host(&self) -> bool;

    /// Who works off the cluster's jobs.
    fn served_by(&self) -> ServedBy;

    /// Checks what a job asks for; an error names the field.
    fn validate(&self, spec: &JobSpec) -> Result<(), SpecError>;

    /// What a job may say in `spec.engine`.
    fn options(&self) -> Options;

    /// Opens the engine, for a worker. Called with settings that were checked; an error names what could not be opened.
    fn open(&self, context: &EngineContext) -> anyhow::Result<Arc<dyn Engine>>;
}

/// Options of `spec.engine`, each with the values it takes where they are few; any at all where this is absent.
pub type Options = Option<BTreeMap<String, Option<Vec<String>>>>;

/// Who works off a cluster's jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedBy {
    /// Workers, through the engine.
    Workers {
        /// How many jobs one of them holds at once, unless configured.
        jobs: NonZeroU32,
    },
    /// A service outside; there is nothing for a worker to open.
    Claimants,
}

impl ServedBy {
    /// Workers, of a manager that has a queue of its own, on other hosts.
    pub(super) const FAR: Self = Self::Workers { jobs: NonZeroU32::new(10_000).expect("not zero") };
}

/// What a job of a cluster may ask for, beside a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takes {
    /// Fields of its spec.
    pub fields: Vec<&'static str>,
    /// Options of its engine.
    pub options: Options,
}

/// Asks for something in a spec.
type Ask = fn(&mut JobSpec);

/// The fields of a spec not every engine takes, each with the least that shows.
pub(super) const FIELDS: &[(&str, Ask)] = &[
    ("env", |spec| drop(spec.env.insert("A".to_owned(), "a".to_owned()))),
    ("working_dir", |spec| spec.working_dir = Some("/".to_owned())),
    ("stdin", |spec| spec.stdin = Some("a".to_owned())),
    ("script", |spec| spec.script = Some("a".to_owned())),
    ("image", |spec| spec.image = Some("a".to_owned())),
    ("time_limit_seconds", |spec| spec.time_limit_seconds = Some(1)),
    ("resources.cpus", |spec| spec.resources.cpus = Some(1)),
    ("resources.memory_mib", |spec| spec.resources.memory_mib = Some(1)),
    ("resources.gpus", |spec| spec.resources.gpus = Some(1)),
    // One is where any job runs.
    ("resources.nodes", |spec| spec.resources.nodes = Some(2)),
];

impl dyn EngineSettings {
    /// What a job may ask for. Told by the very check that refuses the rest.
    pub fn takes(&self) -> Takes {
        let is_taken = |ask: &Ask| {
            let mut spec = JobSpec { command: vec!["true".to_owned()], ..JobSpec::default() };
            ask(&mut spec);
            self.validate(&spec).is_ok()
        };
        let fields = FIELDS.iter().filter(|(_, ask)| is_taken(ask)).map(|(name, _)| *name).collect();
        Takes { fields, options: self.options() }
    }
}

/// Refuses any option of `spec.engine` that is not `known`.
pub(super) fn refuse_unknown_options(spec: &JobSpec, known: &[&str]) -> Result<(), SpecError> {
    match spec.engine.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let field = format!("spec.engine.{}", key.escape_debug());
            Err(SpecError::new(field, "is no option of this cluster's engine"))
        }
    }
}
