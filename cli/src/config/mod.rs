//! The configuration of every role: one file, `jobgate.toml`, overridden by the environment and by flags.
//!
//! Whatever is wrong with it is refused at start with file, line and key: an unknown key, a wrong type, an impossible
//! value. A process never begins with half a configuration and never reads it again.

mod backends;
mod environment;
mod locate;
mod secret;
mod sections;
mod tls;
mod worker;

pub(crate) use environment::{Environment, take_orders};
pub(crate) use secret::Secret;
pub(crate) use sections::{ApiSection, Config, LogFormat, TelemetrySection, Within};
pub(crate) use tls::TlsSection;
pub(crate) use worker::ClusterSection;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Why there is no configuration to begin with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something in the file is wrong.
    #[error("{}:{line}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key and what is wrong with it.
        message: String,
    },
    /// Settings that each are fine do not go together, or what is missing has no line.
    #[error("{key}: {message}")]
    Impossible {
        /// The key to change.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// A variable is wrong.
    #[error("environment variable {variable}: {message}")]
    Variable {
        /// Its name.
        variable: String,
        /// What is wrong with it.
        message: String,
    },
}

/// What was given on the command line; beats everything.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    /// `--config`
    pub(crate) config: Option<PathBuf>,
    /// `--data-dir`
    pub(crate) data_dir: Option<PathBuf>,
    /// `--listen`
    pub(crate) listen: Option<SocketAddr>,
    /// The command serves the API.
    pub(crate) serves: bool,
}

/// A setting that does not go together with another.
pub(crate) struct Conflict {
    /// The key to change.
    pub(crate) key: String,
    /// What is wrong.
    pub(crate) message: String,
}

impl From<Conflict> for ConfigError {
    fn from(Conflict { key, message }: Conflict) -> Self {
        Self::Impossible { key, message }
    }
}

impl Config {
    /// Reads the file that is named, puts the environment and then the flags over it, and checks the whole. No file is
    /// looked for: whoever can leave one in the current directory must not decide whom a token is shown to.
    pub(crate) fn load(flags: &Flags, environment: &Environment) -> Result<Self, ConfigError> {
        let named = flags.config.clone().or_else(|| environment.get("JOBGATE_CONFIG").map(PathBuf::from));
        let text = match &named {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.clone(), source })?,
            None => String::new(),
        };
        let path = named.unwrap_or_default();
        let mut config = parse(&path, &text)?;
        environment.override_settings(&mut config)?;
        if let Some(data_dir) = &flags.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        if let Some(listen) = flags.listen {
            config.api.listen = listen;
        }
        let checked = config.check().and_then(|()| if flags.serves { config.check_files() } else { Ok(()) });
        checked.map_err(|conflict| located(&path, &text, conflict))?;
        Ok(config)
    }
}

/// The conflict with the line its key stands in, if the file has it.
fn located(path: &Path, text: &str, mut conflict: Conflict) -> ConfigError {
    if let Some(key) = locate::told_key(text, &conflict.key, &conflict.message) {
        conflict.key = key;
    }
    let Some(line) = locate::of_key(text, &conflict.key) else { return conflict.into() };
    let message = format!("{}: {}", conflict.key, conflict.message);
    ConfigError::Invalid { path: path.to_owned(), line, message }
}

fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    toml::from_str::<Config>(text).map_err(|error| {
        let message = in_our_words(error.message());
        let mut place = locate::of_span(text, error.span().unwrap_or(0..0));
        if let Some(better) = faulty_key(text, &place.key, error.message()) {
            place = better;
        }
        let message = if place.key.is_empty() { message } else { format!("{}: {message}", place.key) };
        ConfigError::Invalid { path: path.to_owned(), line: place.line, message }
    })
}

/// The parser speaks of fields and variants; a configuration has keys and values.
fn in_our_words(message: &str) -> String {
    let message = message.trim().replace('\n', "; ");
    match message.strip_prefix("unknown field") {
        Some(rest) => format!("unknown key{rest}"),
        None => message.replacen("missing field", "missing key", 1).replacen(
            "unknown variant",
            "unknown value",
            1,
        ),
    }
}

/// Inside a `[clusters.…]` section the parser has to read the engine's name first and forgets where the other keys stand.
/// The faulty key is the one without which the error is another one.
fn faulty_key(text: &str, section: &str, message: &str) -> Option<locate::Place> {
    if !section.starts_with("clusters.") {
        return None;
    }
    let mut keys = locate::keys_below(text, section);
    // Without what says how to read the others every error is another one, so it is blamed last.
    keys.sort_by_key(|key| matches!(key.rsplit('.').next(), Some("engine" | "kind")));
    let key = keys.into_iter().find(|key| is_to_blame(text, key, message) == Some(true))?;
    let line = locate::of_key(text, &key)?;
    faulty_key(text, &key, message).or(Some(locate::Place { line, key }))
}

/// The error would be another one, or none, without this key.
fn is_to_blame(text: &str, key: &str, message: &str) -> Option<bool> {
    let (section, name) = key.rsplit_once('.')?;
    let mut table: toml::Table = text.parse().ok()?;
    let mut inner = &mut table;
    for part in section.split('.') {
        inner = inner.get_mut(part)?.as_table_mut()?;
    }
    inner.remove(name)?;
    Some(table.try_into::<Config>().err().is_none_or(|error| error.message() != message))
}

/// Any text is a configuration, or is refused with the file, a line it has and, where the fault belongs to one, a key
/// that stands in it. For tests and for fuzzing.
#[cfg(any(test, fuzzing))]
pub(crate) fn is_told(text: &str) {
    let error = match parse(Path::new("jobgate.toml"), text) {
        Ok(config) => {
            // What is good by itself may not go together; that names the key to change.
            if let Err(conflict) = config.check() {
                assert!(!conflict.key.is_empty(), "{}", conflict.message);
            }
            return;
        }
        Err(error) => error.to_string(),
    };
    let (line, said) =
        error.strip_prefix("jobgate.toml:").and_then(|rest| rest.split_once(": ")).expect("a place");
    let line: usize = line.parse().expect("a number");
    assert!((1..=text.lines().count() + 1).contains(&line), "{error}");
    assert!(!said.is_empty(), "{error}");
}

#[cfg(test)]
mod tests;
