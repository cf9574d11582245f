//! Settings of the Slurm engine, and what a job may ask of it. Checking a spec needs nothing but these settings.

use super::{SlurmEngine, token::TokenSource};
use crate::{
    engine::{Capabilities, Engine, ExitCodes, MemoryLimits, SubmitMode, TimeLimits},
    engines::{EngineContext, EngineSettings, Options, ServedBy, settings::refuse_unknown_options},
};
use jobgate_shared::{
    domain::{JobSpec, Project, SpecError},
    settings::{self, Period},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Settings of the engine that submits to Slurm through slurmrestd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlurmConfig {
    /// Where slurmrestd listens: `http://host:6820`, `https://…` or `unix:/path/of/socket`. Default: `http://127.0.0.1:6820`.
    pub url: String,
    /// Versions of its API that may be spoken, the best first; the first it knows is. Default: `v0.0.42`, `v0.0.41`,
    /// `v0.0.40`, `v0.0.38`.
    pub api_versions: Vec<String>,
    /// The account jobs run as whose project `users` does not name. Default: none, they are refused.
    pub user: Option<String>,
    /// A file that holds that account's token, read whenever it is needed. Default: none.
    pub token_file: Option<PathBuf>,
    /// A program and its arguments that print that account's token; `{user}` stands for its name. Default: none.
    pub token_command: Option<Vec<String>>,
    /// Accounts of projects, by project. Default: none.
    pub users: BTreeMap<Project, SlurmUser>,
    /// Whose view of all jobs a poll takes; it must be one of the accounts above. Default: each account looks at its own.
    pub observer: Option<String>,
    /// Sets the submissions of this gateway apart from those of others that use the same accounts of the same Slurm: their
    /// sweeps must not meet. Default: the name of the cluster.
    pub scope: Option<String>,
    /// A directory that jobs and workers see under the same path, for output and exit codes of jobs; `{user}` stands for the
    /// account. Jobs must be able to write to it, workers to read it. Default: none, and jobs have no logs.
    pub log_dir: Option<PathBuf>,
    /// The directory a job runs in when its spec names none. Default: a fresh one on its first node, removed with it.
    pub working_dir: Option<PathBuf>,
    /// Environment of every job, below what its own spec sets. Default: only `PATH`, `/usr/local/bin:/usr/bin:/bin`, which
    /// also stands when this sets others.
    pub env: BTreeMap<String, String>,
    /// What a job gets that does not ask for it: values of the options below, by option. Default: none, Slurm's own.
    pub defaults: BTreeMap<String, String>,
    /// What `spec.engine` may hold: values that may be asked for, by option (`partition`, `account`, `qos`, `constraint`,
    /// `reservation`, `licenses`); `"*"` allows any. Default: none.
    pub options: BTreeMap<String, BTreeSet<String>>,
    /// The most processors one job may ask for. Default: no limit but Slurm's.
    pub max_cpus: Option<u32>,
    /// The most memory one job may ask for on each node, in MiB. Default: no limit but Slurm's.
    pub max_memory_mib: Option<u64>,
    /// The most accelerators one job may ask for on each node; v0.0.38 cannot ask for any. Default: 0.
    pub max_gpus: u32,
    /// The most nodes one job may ask for. Default: 1.
    pub max_nodes: u32,
    /// The longest batch script, which holds environment, standard input and script of a job: Slurm's `max_script_size`.
    /// Default: `4 MiB`.
    #[serde(with = "settings::bytes")]
    pub max_script_bytes: u64,
    /// slurmdbd is asked for jobs slurmctld has forgotten; slurmrestd must serve it. Default: false.
    pub slurmdb: bool,
    /// How often a worker looks, `100ms` to `10m`. Default: `2s`.
    pub poll_interval: Period<100, 600_000>,
}

/// The account of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlurmUser {
    /// Its name on the cluster.
    pub user: String,
    /// As above, of this account.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// As above, of this account.
    #[serde(default)]
    pub token_command: Option<Vec<String>>,
}

impl Default for SlurmConfig {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:6820".to_owned(),
            api_versions: ["v0.0.42", "v0.0.41", "v0.0.40", "v0.0.38"].map(str::to_owned).to_vec(),
            user: None,
            token_file: None,
            token_command: None,
            users: BTreeMap::new(),
            observer: None,
            scope: None,
            log_dir: None,
            working_dir: None,
            env: BTreeMap::new(),
            defaults: BTreeMap::new(),
            options: BTreeMap::new(),
            max_cpus: None,
            max_memory_mib: None,
            max_gpus: 0,
            max_nodes: 1,
            max_script_bytes: 4 << 20,
            slurmdb: false,
            poll_interval: Period::new(Duration::from_secs(2)),
        }
    }
}

/// Options of `spec.engine`, and what slurmrestd calls them.
pub(super) const OPTIONS: [(&str, &str); 6] = [
    ("partition", "partition"),
    ("account", "account"),
    ("qos", "qos"),
    ("constraint", "constraints"),
    ("reservation", "reservation"),
    ("licenses", "licenses"),
];

/// Where commands are looked for when nobody says.
pub(super) const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// What stands for the account in paths and commands.
const USER: &str = "{user}";
/// A script without any text of a user's is shorter.
const FRAME_BYTES: usize = 8 << 10;

impl SlurmConfig {
    fn default_source(&self) -> TokenSource {
        TokenSource { token_file: self.token_file.clone(), token_command: self.token_command.clone() }
    }

    /// Every account: the setting that names it, its name, its tokens.
    fn sources(&self) -> impl Iterator<Item = (String, &String, TokenSource)> {
        let default = self.user.iter().map(|user| ("user".to_owned(), user, self.default_source()));
        let mapped = self.users.iter().map(|(project, of)| {
            let source =
                TokenSource { token_file: of.token_file.clone(), token_command: of.token_command.clone() };
            (format!("users.{project}"), &of.user, source)
        });
        default.chain(mapped)
    }

    /// Tokens by account. An account named twice keeps the first.
    pub(super) fn tokens(&self) -> HashMap<String, TokenSource> {
        let mut tokens = HashMap::new();
        for (_, user, source) in self.sources() {
            tokens.entry(user.clone()).or_insert(source);
        }
        tokens
    }

    pub(super) fn accounts(&self) -> BTreeSet<String> {
        self.sources().map(|(_, user, _)| user.clone()).collect()
    }

    /// The account a project's jobs run as.
    pub(super) fn account(&self, project: &Project) -> Option<&String> {
        self.users.get(project).map(|of| &of.user).or(self.user.as_ref())
    }

    /// Where an account's jobs leave what they print.
    pub(super) fn log_dir(&self, user: &str) -> Option<PathBuf> {
        Some(PathBuf::from(self.log_dir.as_ref()?.to_str()?.replace(USER, user)))
    }
}

impl EngineSettings for SlurmConfig {
    fn check(&self) -> anyhow::Result<()> {
        let socket = self.url.strip_prefix("unix:");
        let http = self.url.starts_with("http://") || self.url.starts_with("https://");
        let known = socket.map_or(http, |socket| Path::new(socket).is_absolute());
        anyhow::ensure!(known, "url must begin with http://, https:// or unix:/");
        anyhow::ensure!(!self.api_versions.is_empty(), "api_versions must hold a version");
        let version = |text: &String| {
            text.strip_prefix('v').is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
        };
        anyhow::ensure!(self.api_versions.iter().all(version), "api_versions must be such as v0.0.40");
        anyhow::ensure!(self.user.is_some() || !self.users.is_empty(), "user or users must name an account");
        for (setting, user, source) in self.sources() {
            anyhow::ensure!(is_account(user), "{setting}: {user:?} is no name of an account");
            source.check(&setting)?;
        }
        if let Some(observer) = &self.observer {
            let known = self.sources().any(|(_, user, _)| user == observer);
            anyhow::ensure!(known, "observer must be one of the accounts");
        }
        if let Some(scope) = &self.scope {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            let short = (1..=64).contains(&scope.len());
            anyhow::ensure!(
                short && scope.bytes().all(plain),
                "scope must be 1 to 64 letters, digits, '-', '_', '.'"
            );
        }
        for (name, path) in [("log_dir", &self.log_dir), ("working_dir", &self.working_dir)] {
            let absolute = path.as_ref().is_none_or(|path| path.is_absolute());
            anyhow::ensure!(absolute, "{name} must be an absolute path");
        }
        // Slurm expands '%' in the names of outputs, and '\' keeps it from doing so.
        let literal = self
            .log_dir
            .as_ref()
            .is_none_or(|dir| dir.to_str().is_some_and(|dir| !dir.contains(['%', '\\'])));
        anyhow::ensure!(literal, "log_dir must be text without '%' and '\\'");
        for (option, values) in &self.options {
            anyhow::ensure!(is_option(option), "options.{option} is no option");
            let plain = values.iter().all(|value| value == "*" || is_plain(value));
            anyhow::ensure!(plain, "options.{option} holds a value Slurm would not take");
        }
        for (option, value) in &self.defaults {
            anyhow::ensure!(
                is_option(option) && is_plain(value),
                "defaults.{option} is no option or no value"
            );
        }
        let as_spec = JobSpec { command: vec!["env".into()], env: self.env.clone(), ..JobSpec::default() };
        as_spec.check().map_err(|fault| anyhow::anyhow!("env: {fault}"))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mode: SubmitMode::TwoPhase,
            reach: None,
            commands: true,
            // What the shell of the batch script makes of an end.
            exit_codes: ExitCodes::Codes,
            memory_limits: MemoryLimits::Told,
            time_limits: TimeLimits::ByEngine,
            // By the batch script, which Slurm tells.
            warns_on_cancel: true,
            logs: self.log_dir.is_some(),
            poll_interval: *self.poll_interval,
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
        let wants = spec.resources;
        if spec.image.is_some() {
            return Err(SpecError::new(
                "spec.image",
                "this cluster runs plain processes, no container images",
            ));
        }
        let limits = [
            ("spec.resources.cpus", wants.cpus.map(u64::from), self.max_cpus.map(u64::from)),
            ("spec.resources.memory_mib", wants.memory_mib, self.max_memory_mib),
            ("spec.resources.gpus", wants.gpus.map(u64::from), Some(u64::from(self.max_gpus))),
            ("spec.resources.nodes", wants.nodes.map(u64::from), Some(u64::from(self.max_nodes))),
        ];
        for (field, wanted, most) in limits {
            if let Some(most) = most.filter(|most| wanted.is_some_and(|wanted| wanted > *most)) {
                return Err(SpecError::new(field, format!("this cluster gives a job {most} at most")));
            }
        }
        if wants.cpus.is_some_and(|cpus| cpus > u32::from(u16::MAX)) {
            return Err(SpecError::new("spec.resources.cpus", "is more than Slurm counts"));
        }
        // Both are read by env(1), which begins the job.
        if spec.command.first().is_some_and(|program| program.starts_with('-') || program.contains('=')) {
            return Err(SpecError::new("spec.command[0]", "must not begin with '-' nor hold '='"));
        }
        let texts = spec.command.iter().chain(spec.env.values()).chain(self.env.values());
        // A quote becomes four bytes and a newline five; base64 makes four of three.
        let quoted: usize = texts.map(|text| text.len() + 4 * text.matches(['\'', '\n']).count() + 4).sum();
        let names: usize = spec.env.keys().chain(self.env.keys()).map(|name| name.len() + 4).sum();
        let encoded =
            |text: &Option<String>| text.as_ref().map_or(0, |text| text.len() / 3 * 4 + text.len() / 50 + 8);
        let script = FRAME_BYTES + quoted + names + encoded(&spec.stdin) + encoded(&spec.script);
        if script as u64 > self.max_script_bytes {
            let message = format!(
                "command, environment, standard input and script together are more than the {} bytes of a batch script",
                self.max_script_bytes
            );
            return Err(SpecError::new("spec", message));
        }
        let known: Vec<&str> = OPTIONS.map(|(option, _)| option).to_vec();
        refuse_unknown_options(spec, &known)?;
        for (option, value) in &spec.engine {
            let field = format!("spec.engine.{option}");
            let Some(value) = value.as_str().filter(|value| is_plain(value)) else {
                return Err(SpecError::new(field, "must be a text Slurm takes"));
            };
            let allowed = self.options.get(option);
            if !allowed.is_some_and(|allowed| allowed.contains(value) || allowed.contains("*")) {
                return Err(SpecError::new(field, format!("{value} is not open to jobs of this cluster")));
            }
        }
        Ok(())
    }

    /// Of options any value is open to, none is listed.
    fn options(&self) -> Options {
        let listed = |values: &BTreeSet<String>| {
            (!values.contains("*")).then(|| values.iter().cloned().collect::<Vec<_>>())
        };
        Some(self.options.iter().map(|(name, values)| (name.clone(), listed(values))).collect())
    }

    fn open(&self, context: &EngineContext) -> anyhow::Result<Arc<dyn Engine>> {
        Ok(Arc::new(SlurmEngine::new(self.clone(), context)?))
    }
}

fn is_account(user: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.@$".contains(&b);
    !user.is_empty() && user.len() <= 128 && user.bytes().all(plain) && !user.starts_with(['-', '.'])
}

fn is_option(name: &str) -> bool {
    OPTIONS.iter().any(|(option, _)| *option == name)
}

/// What Slurm's options are made of: names, and the signs that join them.
fn is_plain(value: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.,:&|[]*()@/+=".contains(&b);
    (1..=256).contains(&value.len()) && value.bytes().all(plain) && !value.starts_with('-')
}
