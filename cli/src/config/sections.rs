//! What can be configured, section by section, with its defaults.
//!
//! Sections that belong to another crate are that crate's own structs; what stands here is what only the composition
//! knows. Documented for users in `docs/configuration.md`, which a test holds against these structs.

use super::{
    Conflict, Secret,
    backends::{BrokerSection, StoreSection},
    tls::TlsSection,
    worker::{ClusterSection, WorkerSection},
};
use crate::logging;
use jobgate_api::{auth, dispatcher, housekeeping, http::HttpConfig, recorder};
use jobgate_shared::{
    domain::ClusterName,
    reporting::{KeyTooShort, ReportKey},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where this host keeps what must outlive a process: the embedded store, what runs here, logs, the first token.
    pub(crate) data_dir: PathBuf,
    /// Where jobs go that name no cluster; `local`, or the only cluster there is, when absent.
    pub(crate) default_cluster: Option<ClusterName>,
    /// The HTTP interface.
    pub(crate) api: ApiSection,
    /// How hints are given.
    pub(crate) dispatcher: dispatcher::Config,
    /// How status events are recorded.
    pub(crate) recorder: recorder::Config,
    /// How workers work.
    pub(crate) worker: WorkerSection,
    /// The resource managers, by the names users know them by; one called `local` when there is none.
    pub(crate) clusters: BTreeMap<ClusterName, ClusterSection>,
    /// What lets running jobs report on themselves.
    pub(crate) reports: ReportsSection,
    /// Where jobs are kept.
    pub(crate) store: StoreSection,
    /// Who rings the bells.
    pub(crate) broker: BrokerSection,
    /// Where logs of jobs are kept.
    pub(crate) logs: LogsSection,
    /// How long ended jobs are kept.
    pub(crate) retention: housekeeping::Config,
    /// What operators see.
    pub(crate) telemetry: TelemetrySection,
    /// What client commands talk to.
    pub(crate) client: ClientSection,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("jobgate-data"),
            default_cluster: None,
            api: ApiSection::default(),
            dispatcher: dispatcher::Config::default(),
            recorder: recorder::Config::default(),
            worker: WorkerSection::default(),
            clusters: BTreeMap::new(),
            reports: ReportsSection::default(),
            store: StoreSection::default(),
            broker: BrokerSection::default(),
            logs: LogsSection::default(),
            retention: housekeeping::Config::default(),
            telemetry: TelemetrySection::default(),
            client: ClientSection::default(),
        }
    }
}

impl Config {
    /// The clusters there are: the configured ones, or one on this host.
    pub(crate) fn clusters(&self) -> BTreeMap<ClusterName, ClusterSection> {
        if !self.clusters.is_empty() {
            return self.clusters.clone();
        }
        local().map(|name| (name, ClusterSection::here())).into_iter().collect()
    }

    /// Where jobs go that name no cluster, if that is clear.
    pub(crate) fn default_cluster(&self) -> Option<ClusterName> {
        let clusters = self.clusters();
        let only = || if clusters.len() == 1 { clusters.keys().next().cloned() } else { None };
        let usual = || local().filter(|name| clusters.contains_key(name));
        self.default_cluster.clone().or_else(usual).or_else(only)
    }

    /// What the types cannot tell: settings that do not go together.
    pub(super) fn check(&self) -> Result<(), Conflict> {
        if let Some(name) = &self.default_cluster
            && !self.clusters().contains_key(name)
        {
            let message = format!("there is no [clusters.{name}]");
            return Err(Conflict { key: "default_cluster".to_owned(), message });
        }
        for (name, section) in &self.clusters {
            section.engine.check().map_err(|error| Conflict {
                key: format!("clusters.{name}"),
                message: format!("{error:#}"),
            })?;
        }
        self.api.check()?;
        self.reports.check()?;
        self.store.check()?;
        self.telemetry.check()?;
        self.worker.check()
    }

    /// What only a process that serves the API needs on its host: the files of its certificate.
    pub(super) fn check_files(&self) -> Result<(), Conflict> {
        self.api.tls.as_ref().map_or(Ok(()), |tls| tls.read().map(drop))
    }
}

/// The name of the cluster on this host.
fn local() -> Option<ClusterName> {
    "local".parse().ok()
}

/// `[api]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ApiSection {
    /// Address and port to serve HTTP on; port 0 takes a free one.
    pub(crate) listen: SocketAddr,
    /// A proxy in front speaks TLS to the world; without it or TLS of our own only this host may call.
    pub(crate) behind_proxy: bool,
    /// A token that may do everything, beside those in the store; to make the first real ones with.
    pub(crate) admin_token: Option<Secret>,
    /// TLS of our own.
    pub(crate) tls: Option<TlsSection>,
    /// Limits of the HTTP interface.
    pub(crate) http: HttpConfig,
}

impl Default for ApiSection {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            behind_proxy: false,
            admin_token: None,
            tls: None,
            http: HttpConfig::default(),
        }
    }
}

impl ApiSection {
    fn check(&self) -> Result<(), Conflict> {
        if let Some(token) = &self.admin_token
            && token.expose().len() < auth::MIN_BOOTSTRAP_LENGTH
        {
            let message = auth::TooShort.to_string();
            return Err(Conflict { key: "api.admin_token".to_owned(), message });
        }
        if self.listen.ip().is_loopback() || self.tls.is_some() || self.behind_proxy {
            return Ok(());
        }
        let message = format!(
            "{} can be reached from other hosts, where tokens would travel in the open: set api.tls, or api.behind_proxy \
             if a proxy in front of it speaks TLS",
            self.listen
        );
        Err(Conflict { key: "api.listen".to_owned(), message })
    }
}

/// `[reports]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ReportsSection {
    /// Where the API is, as jobs reach it.
    pub(crate) url: Option<String>,
    /// What the tokens of jobs are made of; the same for every api and worker process.
    pub(crate) key: Option<Secret>,
}

impl ReportsSection {
    /// The key, if one is configured.
    pub(crate) fn key(&self) -> Result<Option<ReportKey>, KeyTooShort> {
        self.key.as_ref().map(|key| ReportKey::new(key.expose())).transpose()
    }

    fn check(&self) -> Result<(), Conflict> {
        let conflict = |key: &str, message: String| Conflict { key: format!("reports.{key}"), message };
        self.key().map_err(|error| conflict("key", error.to_string()))?;
        let address = |url: &String| {
            let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            let plain = |c: char| c.is_ascii_graphic();
            host.is_some_and(|host| !host.is_empty() && host.chars().all(plain))
        };
        if self.url.as_ref().is_some_and(|url| !address(url)) {
            return Err(conflict("url", "must be an address such as https://jobs.example.org".to_owned()));
        }
        Ok(())
    }
}

/// `[logs]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogsSection {
    /// A directory that every api and worker process sees; `<data_dir>/logs` when absent.
    pub(crate) directory: Option<PathBuf>,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TelemetrySection {
    /// Where `worker` and `recorder` serve `/metrics`, `/livez` and `/readyz`, to anybody who asks; when absent, each at a
    /// port of its own, so that both run on one host.
    pub(crate) listen: Option<SocketAddr>,
    /// Other hosts reach that address, and only those of operators do; without this only this host may ask.
    pub(crate) private_network: bool,
    /// What is logged: a level, or filters such as `info,jobgate_worker=debug`.
    pub(crate) log: String,
    /// How it is logged.
    pub(crate) log_format: LogFormat,
}

impl Default for TelemetrySection {
    fn default() -> Self {
        Self {
            listen: None,
            private_network: false,
            log: "info".to_owned(),
            log_format: LogFormat::default(),
        }
    }
}

impl TelemetrySection {
    fn check(&self) -> Result<(), Conflict> {
        let conflict = |key: &str, message: String| Conflict { key: format!("telemetry.{key}"), message };
        if let Some(open) = self.listen.filter(|address| !address.ip().is_loopback() && !self.private_network)
        {
            let message = format!(
                "{open} can be reached from other hosts, and whoever asks there needs no token: set \
                 telemetry.private_network if only operators reach it"
            );
            return Err(conflict("listen", message));
        }
        logging::filter(&self.log).map(drop).map_err(|message| conflict("log", message))
    }
}

/// How lines of the log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON anywhere else.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For collectors: one object a line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be auto, text or json"),
        }
    }
}

/// `[client]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ClientSection {
    /// The gateway to talk to; the one that runs over the data directory when absent.
    pub(crate) server: Option<String>,
    /// File with the token to show; `<data_dir>/token` when absent.
    pub(crate) token_file: Option<PathBuf>,
    /// PEM file of authorities to trust beside this host's own.
    pub(crate) ca_certificate: Option<PathBuf>,
    /// The token, from the environment only: a file that is passed around should hold none.
    #[serde(skip)]
    pub(crate) token: Option<Secret>,
    /// The job this process runs in, if it runs in one.
    #[serde(skip)]
    pub(crate) within: Within,
}

/// What a job finds in its environment about itself, as it stands there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Within {
    /// Where it reports to.
    pub(crate) url: Option<String>,
    /// Which job it is.
    pub(crate) job: Option<String>,
    /// Which attempt.
    pub(crate) attempt: Option<String>,
}
