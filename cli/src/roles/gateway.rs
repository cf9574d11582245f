//! The embedded gateway: every role in one process over one data directory, on ports of the same kind the distributed
//! form has. `serve` and `run` are this, and differ in who talks to it.

use super::{
    api::{self, Composition},
    doors::{self, Doors},
    listening, metrics, recorder, worker,
};
use crate::{
    config::{Config, Secret},
    data_dir::{DataDir, DataDirLock, write_private},
};
use anyhow::Context as _;
use jobgate_api::{auth, telemetry};
use jobgate_shared::{
    reporting::{ReportKey, Reporting},
    supervise::Tasks,
};
use std::{fs, net::SocketAddr, path::Path};

/// Where a gateway is to stand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// What it is started as, for whoever finds the data directory taken.
    pub(crate) command: &'static str,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// It speaks TLS if that is configured; a gateway for its own process alone need not.
    pub(crate) tls: bool,
}

/// A gateway that runs.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// Where it serves HTTP.
    pub(crate) url: String,
    /// A token that may do everything.
    pub(crate) token: Secret,
    /// Its data directory, as an absolute path.
    pub(crate) data_dir: DataDir,
    /// What takes work on; ends first.
    front: Tasks,
    /// What writes down what happened; ends when nothing happens any more.
    back: Tasks,
    doors: Doors,
    /// Given back last: whoever has it next finds everything closed.
    _lock: DataDirLock,
}

impl Gateway {
    /// Takes the data directory and begins every role.
    pub(crate) async fn start(config: &Config, place: Place) -> anyhow::Result<Self> {
        let data_dir = DataDir::make(&config.data_dir)?;
        let mut lock = data_dir.lock(place.command).await?;
        let tls = if place.tls { listening::tls(&config.api)? } else { None };
        let listener = listening::bind(place.listen)?;
        let url = listening::url(listener.1, tls.is_some());
        let token = administrator(config, &data_dir)?;
        let report_key = report_key(config, &data_dir)?;
        let (front, back) = (Tasks::default(), Tasks::default());
        let tables = [telemetry::API, telemetry::RECORDER, jobgate_worker::telemetry::METRICS];
        let metrics = metrics::install(&back, &tables)?;
        let doors = doors::embedded(config, &data_dir).await?;
        // Nobody can have said beforehand where a gateway for its own process alone is.
        let told = config.reports.url.clone().filter(|_| place.tls);
        let report_url = told.unwrap_or_else(|| url.clone());
        let composition = Composition {
            config,
            doors: &doors,
            tasks: &front,
            metrics,
            admin_token: Some(token.clone()),
            report_key: Some(report_key.clone()),
            report_url: Some(report_url.clone()),
            sole: true,
        };
        let api = api::start(composition)?;
        recorder::start(config, &doors, &back);
        let reporting = Reporting { url: report_url, key: report_key };
        worker::start(config, &data_dir, &doors, Some(reporting), &front)?;
        api::listen(listener, tls, config, &front).open(api);
        lock.announce(&url)?;
        Ok(Self { url, token, data_dir, front, back, doors, _lock: lock })
    }

    /// Ends every role: first what takes work on, then what writes down what happened. Jobs that run go on running where
    /// their engine keeps them, and the next gateway over this directory adopts them.
    pub(crate) async fn stop(self) {
        self.front.stop().await;
        self.back.stop().await;
        self.doors.close().await;
    }
}

/// The administrator's token: the configured one, or the data directory's, made at the first start.
fn administrator(config: &Config, data_dir: &DataDir) -> anyhow::Result<Secret> {
    if let Some(token) = &config.api.admin_token {
        return Ok(token.clone());
    }
    let file = data_dir.token_file();
    let token = kept_secret(&file)?;
    anyhow::ensure!(
        token.expose().len() >= auth::MIN_BOOTSTRAP_LENGTH,
        "{} does not hold a token; remove it and another is made",
        file.display()
    );
    Ok(token)
}

/// What the tokens of jobs are made of: the configured key, or the data directory's, made at the first start. It stays,
/// because jobs that run have tokens made of it.
fn report_key(config: &Config, data_dir: &DataDir) -> anyhow::Result<ReportKey> {
    if let Some(key) = config.reports.key()? {
        return Ok(key);
    }
    let file = data_dir.report_key_file();
    ReportKey::new(kept_secret(&file)?.expose())
        .with_context(|| format!("{} does not hold a key; remove it and another is made", file.display()))
}

/// A secret in a file only its owner can read, made at random the first time.
fn kept_secret(file: &Path) -> anyhow::Result<Secret> {
    write_private(file, &format!("{}\n", auth::generate_bootstrap()))?;
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text.trim().to_owned().into())
}
