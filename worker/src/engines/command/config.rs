//! Settings of the command engine: a preset, what is said over it, and the check of both. What a job may ask of it is
//! checked here, too, by these settings alone.

use super::{
    CommandEngine,
    template::{Argv, For},
};
use crate::{
    engine::{Capabilities, Engine, ExitCodes, MemoryLimits, SubmitMode, TimeLimits, ToCreate},
    engines::{
        EngineContext, EngineSettings, Options, ServedBy,
        local::config::{DEFAULT_PATH, MAX_EXEC_BYTES},
        settings::refuse_unknown_options,
    },
};
use anyhow::{Context as _, ensure};
use jobgate_shared::{
    domain::{JobSpec, SpecError},
    settings::{self, Number, Period},
};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

/// Settings of the engine that drives a scheduler by its command line. docs/engines/command.md explains them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct CommandConfig {
    given: Map<String, Value>,
    pub(super) settings: Settings,
}

/// What a preset and the configuration come to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// How one attempt is kept from starting twice.
    pub(super) submit_mode: Mode,
    /// A directory the worker and every host of the cluster see under this path.
    pub(super) shared_dir: PathBuf,
    /// Words before every command, such as `["sudo", "-n", "-u", "batch"]`.
    #[serde(default)]
    pub(super) prefix: Vec<String>,
    /// Environment of the scheduler's commands.
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
    /// Variables of the worker those commands get as well.
    #[serde(default)]
    pub(super) pass_env: Vec<String>,
    /// Environment of every job, below its own.
    #[serde(default)]
    pub(super) job_env: BTreeMap<String, String>,
    #[serde(default = "poll_interval")]
    pub(super) poll_interval: Period<100, 600_000>,
    /// Between SIGTERM and SIGKILL, for a job whose time is up.
    #[serde(default = "kill_grace")]
    pub(super) kill_grace: Period<0, 3_600_000>,
    /// How long an end the scheduler tells of is left to the job's own word.
    #[serde(default = "exit_settles")]
    pub(super) exit_settles: Period<0, 600_000>,
    /// The most a command may print.
    #[serde(default = "max_output", with = "settings::bytes")]
    pub(super) max_output: u64,
    /// The most ids given to one command.
    #[serde(default = "max_ids")]
    pub(super) max_ids: Number<1, 10_000>,
    pub(super) create: Call,
    #[serde(default)]
    pub(super) start: Option<Call>,
    pub(super) cancel: Call,
    /// Lists every job of ours.
    #[serde(default)]
    pub(super) find: Option<Call>,
    /// Looks at the jobs of `{ids}`; without it, `find` does.
    #[serde(default)]
    pub(super) poll: Option<Call>,
    /// Tells how jobs ended that the others no longer show.
    #[serde(default)]
    pub(super) account: Option<Call>,
    /// What a job may ask for in `spec.engine`.
    #[serde(default)]
    pub(super) options: BTreeMap<String, Choice>,
    /// The words for a job's end say that it was out of memory.
    #[serde(default)]
    tells_memory: bool,
    /// `cancel` makes the scheduler tell a running job to end, before it kills it.
    #[serde(default)]
    warns_on_cancel: bool,
}

/// How one attempt is kept from starting twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    /// Created held, released once recorded.
    TwoPhase,
    /// What is created runs.
    AtMostOnce,
}

/// One command of the scheduler and how to read its answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Call {
    pub(super) argv: Argv,
    /// The job's script is given on standard input.
    #[serde(default)]
    pub(super) stdin: bool,
    /// Said when the job will never be taken.
    #[serde(default)]
    pub(super) refused: Option<Pattern>,
    /// Said when a limit keeps it from being taken that others' ends lift: it waits.
    #[serde(default)]
    pub(super) not_now: Option<Pattern>,
    /// Said of an id that is not known.
    #[serde(default)]
    pub(super) unknown: Option<Pattern>,
    /// Said when there is nothing left to do; whatever the exit status, that is no failure.
    #[serde(default)]
    pub(super) done: Option<Pattern>,
    /// Exit statuses that mean the same, whatever is said.
    #[serde(default)]
    pub(super) not_now_status: Vec<i32>,
    #[serde(default)]
    pub(super) refused_status: Vec<i32>,
    #[serde(default)]
    pub(super) unknown_status: Vec<i32>,
    /// One job: a line, or any part of the output with `whole`. Groups: `id`, `name`, `state`, `exit`, `reason`.
    #[serde(default)]
    pub(super) row: Option<Pattern>,
    #[serde(default)]
    pub(super) whole: bool,
    /// Lines that tell of no job.
    #[serde(default)]
    pub(super) skip: Option<Pattern>,
    /// What an output that is not cut short holds.
    #[serde(default)]
    pub(super) complete: Option<Pattern>,
    /// Where the same stands in a JSON output.
    #[serde(default)]
    pub(super) json: Option<Pointers>,
    /// What the scheduler's words mean: the word itself or a pattern for all of it.
    #[serde(default)]
    pub(super) states: States,
}

/// Where a JSON output holds what. Pointers are those of RFC 6901, below `rows` relative to one job.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pointers {
    /// The jobs: a list, or an object by id; absent means none.
    pub(super) rows: String,
    /// Default: the key in the object.
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) state: Option<String>,
    #[serde(default)]
    pub(super) exit: Option<String>,
    #[serde(default)]
    pub(super) reason: Option<String>,
}

/// An option of `spec.engine`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Choice {
    /// What it adds to `create` in the place of `{options}`; `{value}` stands for what the job says.
    pub(super) argv: Vec<String>,
    /// What the whole value must match.
    #[serde(default = "plain_word")]
    pub(super) pattern: Pattern,
}

/// A scheduler's word, as this engine understands it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Inert,
    Pending,
    Running,
    Finished,
    Failed,
    Canceled,
    TimedOut,
    Gone,
}

/// What the scheduler's words mean.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(from = "BTreeMap<Whole, State>")]
pub(super) struct States(Vec<(Whole, State)>);

impl From<BTreeMap<Whole, State>> for States {
    fn from(map: BTreeMap<Whole, State>) -> Self {
        Self(map.into_iter().collect())
    }
}

impl States {
    /// The word itself before any pattern that matches it.
    pub(super) fn of(&self, word: &str) -> Option<State> {
        let exact = self.0.iter().find(|(key, _)| key.0.text == word);
        exact.or_else(|| self.0.iter().find(|(key, _)| key.0.regex.is_match(word))).map(|(_, state)| *state)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A regular expression.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Pattern {
    text: String,
    pub(super) regex: Regex,
    /// For all of a text or a line.
    pub(super) whole: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl TryFrom<String> for Pattern {
    type Error = regex::Error;
    fn try_from(text: String) -> Result<Self, regex::Error> {
        let (regex, whole) = (Regex::new(&text)?, Regex::new(&format!("^(?:{text})$"))?);
        Ok(Self { text, regex, whole })
    }
}

/// A pattern for all of a word, as a key.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "String")]
struct Whole(Pattern);

impl TryFrom<String> for Whole {
    type Error = regex::Error;
    fn try_from(text: String) -> Result<Self, regex::Error> {
        let mut pattern = Pattern::try_from(text)?;
        pattern.regex = pattern.whole.clone();
        Ok(Self(pattern))
    }
}

impl Eq for Whole {}

impl PartialOrd for Whole {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Whole {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.text.cmp(&other.0.text)
    }
}

fn poll_interval() -> Period<100, 600_000> {
    Period::new(Duration::from_secs(5))
}

fn kill_grace() -> Period<0, 3_600_000> {
    Period::new(Duration::from_secs(10))
}

fn exit_settles() -> Period<0, 600_000> {
    Period::new(Duration::from_secs(5))
}

fn max_output() -> u64 {
    16 << 20
}

fn max_ids() -> Number<1, 10_000> {
    Number::new(200)
}

/// What no scheduler takes for an option, a path elsewhere or more than one word.
fn plain_word() -> Pattern {
    Pattern::try_from("[A-Za-z0-9_][A-Za-z0-9_.@:+=-]*".to_owned()).expect("a regular expression")
}

const PRESETS: [(&str, &str); 3] = [
    ("slurm", include_str!("presets/slurm.json")),
    ("gridengine", include_str!("presets/gridengine.json")),
    ("pbs", include_str!("presets/pbs.json")),
];

impl TryFrom<Map<String, Value>> for CommandConfig {
    type Error = String;
    fn try_from(given: Map<String, Value>) -> Result<Self, String> {
        let mut said = given.clone();
        let settings = match said.remove("preset") {
            None => Value::Object(said),
            Some(name) => {
                let preset = PRESETS.iter().find(|(known, _)| name == *known);
                let (_, text) = preset.ok_or_else(|| {
                    format!("preset: {name} is none of {}", PRESETS.map(|(known, _)| known).join(", "))
                })?;
                let mut preset = serde_json::from_str(text).map_err(|error| error.to_string())?;
                overlay(&mut preset, Value::Object(said));
                preset
            }
        };
        let settings = serde_json::from_value(settings).map_err(|error| error.to_string())?;
        Ok(Self { given, settings })
    }
}

impl From<CommandConfig> for Map<String, Value> {
    fn from(config: CommandConfig) -> Self {
        config.given
    }
}

/// Single keys of `over` beat those of `under`; a list is replaced as a whole.
fn overlay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                overlay(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

impl CommandConfig {
    /// How it submits.
    pub(super) fn mode(&self) -> SubmitMode {
        match self.settings.submit_mode {
            Mode::TwoPhase => SubmitMode::TwoPhase,
            Mode::AtMostOnce => SubmitMode::AtMostOnce,
        }
    }
}

impl EngineSettings for CommandConfig {
    fn check(&self) -> anyhow::Result<()> {
        self.settings.check()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mode: self.mode(),
            reach: None,
            commands: true,
            // What the shell of the submitted script makes of an end.
            exit_codes: ExitCodes::Codes,
            memory_limits: match (
                self.settings.create.argv.mentions("memory_mib"),
                self.settings.tells_memory,
            ) {
                (false, _) => MemoryLimits::None,
                (true, false) => MemoryLimits::Enforced,
                (true, true) => MemoryLimits::Told,
            },
            // By the submitted script.
            time_limits: TimeLimits::ByEngine,
            warns_on_cancel: self.settings.warns_on_cancel,
            logs: true,
            poll_interval: *self.settings.poll_interval,
        }
    }

    fn is_bound_to_its_host(&self) -> bool {
        false
    }

    fn served_by(&self) -> ServedBy {
        ServedBy::FAR
    }

    /// Refuses what this engine cannot give.
    fn validate(&self, spec: &JobSpec) -> Result<(), SpecError> {
        let settings = &self.settings;
        if spec.image.is_some() {
            return Err(SpecError::new(
                "spec.image",
                "this cluster runs plain programs, no container images",
            ));
        }
        let wants = spec.resources;
        for (name, asked) in [
            ("cpus", wants.cpus.is_some()),
            ("memory_mib", wants.memory_mib.is_some()),
            ("gpus", wants.gpus.is_some()),
            ("nodes", wants.nodes.is_some_and(|nodes| nodes > 1)),
        ] {
            if asked && !settings.create.argv.mentions(name) {
                let field = format!("spec.resources.{name}");
                return Err(SpecError::new(field, "this cluster is not told of it"));
            }
        }
        if spec.command.first().is_some_and(|program| program.starts_with('-')) {
            return Err(SpecError::new("spec.command[0]", "must not begin with '-' on this cluster"));
        }
        if let Err(name) = own_variable(&spec.env) {
            return Err(SpecError::new(format!("spec.env.{name}"), "belongs to the shell on this cluster"));
        }
        let arguments: usize = spec.command.iter().map(|argument| argument.len() + 9).sum();
        let variables: usize = spec.env.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
        if arguments + variables > MAX_EXEC_BYTES {
            let message = format!("arguments and environment together are more than {MAX_EXEC_BYTES} bytes");
            return Err(SpecError::new("spec.command", message));
        }
        settings.chosen(spec).map(drop)
    }

    fn options(&self) -> Options {
        Some(self.settings.options.keys().map(|name| (name.clone(), None)).collect())
    }

    fn open(&self, context: &EngineContext) -> anyhow::Result<Arc<dyn Engine>> {
        Ok(Arc::new(CommandEngine::open(self.clone(), context.clone())?))
    }
}

impl Settings {
    fn check(&self) -> anyhow::Result<()> {
        let path = self.shared_dir.to_str().unwrap_or_default();
        // It becomes part of options in which schedulers give `%`, `$`, `:` and `,` meanings of their own.
        let plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@".contains(&b));
        ensure!(path.starts_with('/') && plain, "shared_dir must be an absolute path of plain characters");
        let as_spec =
            JobSpec { command: vec!["env".into()], env: self.job_env.clone(), ..JobSpec::default() };
        as_spec.check().map_err(|fault| anyhow::anyhow!("job_env: {fault}"))?;
        own_variable(&self.job_env)
            .map_err(|name| anyhow::anyhow!("job_env: {name} belongs to the shell"))?;
        for (name, call, purpose) in [
            ("create", Some(&self.create), For::Create),
            ("start", self.start.as_ref(), For::One),
            ("cancel", Some(&self.cancel), For::One),
            ("find", self.find.as_ref(), For::All),
            ("poll", self.poll.as_ref(), For::Many),
            ("account", self.account.as_ref(), For::Many),
        ] {
            if let Some(call) = call {
                call.check(purpose).with_context(|| name.to_owned())?;
            }
        }
        match self.submit_mode {
            Mode::TwoPhase => ensure!(
                self.start.is_some() && self.find.is_some(),
                "submit_mode: two_phase needs a command to start and one to find"
            ),
            Mode::AtMostOnce => ensure!(
                self.start.is_none(),
                "submit_mode: at_most_once has nothing to start: what is created runs"
            ),
        }
        ensure!(
            self.find.is_some() || self.poll.is_some(),
            "poll: missing, and there is no find in its place"
        );
        for (name, choice) in &self.options {
            let placed = self.create.argv.mentions("options");
            ensure!(placed, "options.{name}: create.argv has no {{options}}");
            ensure!(!choice.argv.is_empty(), "options.{name}: adds nothing");
        }
        Ok(())
    }

    /// The options of a job, as arguments.
    pub(super) fn chosen(&self, spec: &JobSpec) -> Result<Vec<String>, SpecError> {
        let known: Vec<&str> = self.options.keys().map(String::as_str).collect();
        refuse_unknown_options(spec, &known)?;
        let mut words = Vec::new();
        for (name, value) in &spec.engine {
            let Some(choice) = self.options.get(name) else { continue };
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(_) | Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
            };
            if text.contains(['\0', '\n']) || !choice.pattern.whole.is_match(&text) {
                return Err(SpecError::new(
                    format!("spec.engine.{name}"),
                    "is no value this cluster takes for it",
                ));
            }
            words.extend(choice.argv.iter().map(|word| word.replace("{value}", &text)));
        }
        Ok(words)
    }

    /// The environment of a job: its own beats the configured one, what tells it who it is beats both.
    pub(super) fn env_of(&self, job: &ToCreate) -> BTreeMap<String, String> {
        let mut env = self.job_env.clone();
        env.extend(job.spec.env.clone());
        env.extend(jobgate_shared::domain::identity_env(
            job.tag.job,
            job.tag.attempt,
            &job.project,
            &job.name,
        ));
        env
    }

    /// Where the scheduler's commands are looked for.
    pub(super) fn path(&self) -> &str {
        self.env.get("PATH").map_or(DEFAULT_PATH, String::as_str)
    }
}

impl Call {
    fn check(&self, purpose: For) -> anyhow::Result<()> {
        self.argv.check(purpose)?;
        ensure!(!self.stdin || purpose == For::Create, "stdin: only create has a script to give");
        let groups = |pattern: &Pattern| -> Vec<String> {
            pattern.regex.capture_names().flatten().map(str::to_owned).collect()
        };
        let told: Vec<String> = match (&self.row, &self.json) {
            (Some(_), Some(_)) => anyhow::bail!("row and json: one of them"),
            (Some(row), None) => groups(row),
            (None, Some(json)) => {
                let named = [("name", &json.name), ("state", &json.state)];
                let named = named.into_iter().filter(|(_, at)| at.is_some()).map(|(name, _)| name.to_owned());
                named.chain(["id".to_owned()]).collect()
            }
            (None, None) => Vec::new(),
        };
        let needed: &[&str] = match purpose {
            For::Create => &["id"],
            For::One => &[],
            For::All | For::Many => &["id", "name", "state"],
        };
        for name in needed {
            ensure!(told.iter().any(|told| told == name), "row: does not tell the {name}");
        }
        ensure!(!needed.contains(&"state") || !self.states.is_empty(), "states: none");
        Ok(())
    }
}

/// Names a POSIX shell, or bash in its place, keeps to itself: setting them fails or does something else.
const SHELLS_OWN: [&str; 15] = [
    "BASHOPTS",
    "BASHPID",
    "BASH_ARGV0",
    "BASH_VERSINFO",
    "DIRSTACK",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "EUID",
    "FUNCNAME",
    "GROUPS",
    "OPTIND",
    "PPID",
    "RANDOM",
    "SHELLOPTS",
    "UID",
];

fn own_variable(env: &BTreeMap<String, String>) -> Result<(), &str> {
    env.keys().find(|name| SHELLS_OWN.contains(&name.as_str())).map_or(Ok(()), |name| Err(name))
}
