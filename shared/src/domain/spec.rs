//! What to run, in words every resource manager can be told, and the limits any spec must keep.

use super::object;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::openapi::{Array, ArrayBuilder, Object, Ref, Schema, Type};

/// What to run. Neutral of any resource manager; each engine checks further when the job is posted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// The program and its arguments; never given to a shell.
    #[schema(schema_with = command)]
    pub command: Vec<String>,
    /// Environment of the job; nothing else of the worker's environment reaches it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<VariableName, Argument>)]
    pub env: BTreeMap<String, String>,
    /// Absolute path to run in; the engine's choice when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = r"^/[^\x00]*$")]
    pub working_dir: Option<String>,
    /// Text given on standard input; empty when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Text of a program, stored in a file whose path is appended to `command` (which names its interpreter).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = r"^[^\x00]*$")]
    pub script: Option<String>,
    /// What it needs.
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// Seconds it may run; the job is `TIMED_OUT` after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31_536_000)]
    pub time_limit_seconds: Option<u64>,
    /// Container image, for engines that run one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = r"^[^\-\s\x00\x85][^\s\x00\x85]*$")]
    pub image: Option<String>,
    /// Options passed through to the cluster's engine, which checks them.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    pub engine: serde_json::Map<String, serde_json::Value>,
}

/// Any text without NUL, at most 131 071 bytes long.
#[derive(utoipa::ToSchema)]
#[schema(pattern = r"^[^\x00]*$")]
#[expect(dead_code, reason = "the schema of a string, not its type")]
struct Argument(String);

/// A letter or '_', then letters, digits or '_'.
#[derive(utoipa::ToSchema)]
#[schema(pattern = "^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
#[expect(dead_code, reason = "the schema of a string, not its type")]
struct VariableName(String);

/// The schema of a command: what its first word must be cannot be told of a list in general.
fn command() -> Array {
    let program = Object::builder().schema_type(Type::String).pattern(Some(r"^[^\x00]+$"));
    ArrayBuilder::new()
        .description(Some("The program and its arguments; never given to a shell."))
        .prefix_items([Schema::Object(program.build())])
        .items(Ref::from_schema_name("Argument"))
        .min_items(Some(1))
        .max_items(Some(MAX_ITEMS))
        .examples([serde_json::json!(["sha256sum", "data.bin"])])
        .build()
}

/// What a job needs of the place it runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Whole processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_048_576)]
    pub cpus: Option<u32>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_073_741_824)]
    pub memory_mib: Option<u64>,
    /// Whole accelerators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_048_576)]
    pub gpus: Option<u32>,
    /// Hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_048_576)]
    pub nodes: Option<u32>,
}

impl Resources {
    /// Nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Which field of a spec is wrong, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct SpecError {
    /// Path of the field in the posted document, such as `spec.command[0]`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl SpecError {
    /// An error of `field`, a path in the posted document.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// Longest of anything repeated: arguments, variables.
const MAX_ITEMS: usize = 4096;
/// Longest single argument or value: what Linux's `execve` takes for one string, less its NUL.
const MAX_STRING: usize = 128 * 1024 - 1;
/// Longest time limit: a year.
const MAX_TIME_LIMIT_SECONDS: u64 = 365 * 24 * 3600;

impl JobSpec {
    /// Checks what holds for every engine; the first fault found names its field.
    pub fn check(&self) -> Result<(), SpecError> {
        self.check_command()?;
        self.check_env()?;
        if let Some(dir) = &self.working_dir {
            no_nul("spec.working_dir", dir)?;
            if !dir.starts_with('/') {
                return Err(SpecError::new("spec.working_dir", "must be an absolute path"));
            }
        }
        if let Some(image) = &self.image {
            no_nul("spec.image", image)?;
            if image.is_empty() || image.starts_with('-') || image.contains(char::is_whitespace) {
                return Err(SpecError::new("spec.image", "must be an image name"));
            }
        }
        if let Some(script) = &self.script {
            no_nul("spec.script", script)?;
        }
        if self.time_limit_seconds.is_some_and(|s| s == 0 || s > MAX_TIME_LIMIT_SECONDS) {
            let message = format!("must be 1 to {MAX_TIME_LIMIT_SECONDS}");
            return Err(SpecError::new("spec.time_limit_seconds", message));
        }
        let Resources { cpus, memory_mib, gpus, nodes } = self.resources;
        for (field, zero, huge) in [
            ("spec.resources.cpus", cpus == Some(0), cpus > Some(1 << 20)),
            ("spec.resources.memory_mib", memory_mib == Some(0), memory_mib > Some(1 << 30)),
            ("spec.resources.gpus", gpus == Some(0), gpus > Some(1 << 20)),
            ("spec.resources.nodes", nodes == Some(0), nodes > Some(1 << 20)),
        ] {
            if zero || huge {
                let bound = if zero { "must be at least 1" } else { "is more than any machine has" };
                return Err(SpecError::new(field, bound));
            }
        }
        Ok(())
    }

    fn check_command(&self) -> Result<(), SpecError> {
        match self.command.first() {
            None => return Err(SpecError::new("spec.command", "must hold at least the program")),
            Some(program) if program.is_empty() => {
                return Err(SpecError::new("spec.command[0]", "must name a program"));
            }
            Some(_) => {}
        }
        if self.command.len() > MAX_ITEMS {
            return Err(SpecError::new("spec.command", format!("holds more than {MAX_ITEMS} arguments")));
        }
        for (i, argument) in self.command.iter().enumerate() {
            let field = format!("spec.command[{i}]");
            no_nul(&field, argument)?;
            not_too_long(&field, argument)?;
        }
        Ok(())
    }

    fn check_env(&self) -> Result<(), SpecError> {
        if self.env.len() > MAX_ITEMS {
            return Err(SpecError::new("spec.env", format!("holds more than {MAX_ITEMS} variables")));
        }
        for (name, value) in &self.env {
            let field = format!("spec.env.{}", name.escape_debug());
            let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
            let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !first || !rest || name.len() > 128 {
                let rule = "a name is a letter or '_', then letters, digits or '_', 128 at most";
                return Err(SpecError::new(field, rule));
            }
            no_nul(&field, value)?;
            not_too_long(&field, value)?;
        }
        Ok(())
    }
}

fn no_nul(field: &str, value: &str) -> Result<(), SpecError> {
    if value.contains('\0') { Err(SpecError::new(field, "must not contain NUL")) } else { Ok(()) }
}

fn not_too_long(field: &str, value: &str) -> Result<(), SpecError> {
    if value.len() > MAX_STRING {
        Err(SpecError::new(field, format!("is longer than {MAX_STRING} bytes")))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(change: impl FnOnce(&mut JobSpec)) -> Option<String> {
        let mut spec = JobSpec { command: vec!["true".into()], ..JobSpec::default() };
        change(&mut spec);
        spec.check().err().map(|e| e.field)
    }

    #[test]
    fn a_fault_names_its_field() {
        assert_eq!(fault(|_| {}), None);
        assert_eq!(fault(|s| s.command.clear()).as_deref(), Some("spec.command"));
        assert_eq!(fault(|s| s.command[0].clear()).as_deref(), Some("spec.command[0]"));
        assert_eq!(fault(|s| s.command.push("a\0b".into())).as_deref(), Some("spec.command[1]"));
        assert_eq!(fault(|s| drop(s.env.insert("1A".into(), String::new()))).as_deref(), Some("spec.env.1A"));
        assert_eq!(fault(|s| drop(s.env.insert("A".into(), "\0".into()))).as_deref(), Some("spec.env.A"));
        assert_eq!(fault(|s| s.working_dir = Some("here".into())).as_deref(), Some("spec.working_dir"));
        assert_eq!(fault(|s| s.time_limit_seconds = Some(0)).as_deref(), Some("spec.time_limit_seconds"));
        assert_eq!(fault(|s| s.resources.cpus = Some(0)).as_deref(), Some("spec.resources.cpus"));
        assert_eq!(fault(|s| s.image = Some("-v".into())).as_deref(), Some("spec.image"));
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = serde_json::from_str::<JobSpec>(r#"{"command":["true"],"comand":[]}"#).unwrap_err();
        assert!(error.to_string().contains("comand"), "{error}");
    }
}
