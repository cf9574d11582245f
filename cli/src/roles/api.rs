//! `jobgate api`: HTTP, and the loops that publish hints, rescue jobs of dead workers and keep house.

use super::{
    clusters::{self, Clusters},
    doors::{self, Doors},
    listening, metrics,
    signals::shut_down_on_signal,
};
use crate::{
    config::{Config, Secret},
    exit::Exit,
};
use anyhow::Context as _;
use jobgate_api::{
    accept::AcceptSettings,
    dispatcher::{self, Dispatcher, HintBudget},
    housekeeping::{self, Housekeeping},
    http::{self, Api, ApiParts, Hosts, Opening},
    telemetry,
};
use jobgate_shared::{clock, reporting::ReportKey, supervise::Tasks};
use metrics_exporter_prometheus::PrometheusHandle;
use rustls::ServerConfig;
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the API of a process is composed of.
pub(super) struct Composition<'a> {
    pub(super) config: &'a Config,
    pub(super) doors: &'a Doors,
    pub(super) tasks: &'a Tasks,
    pub(super) metrics: PrometheusHandle,
    /// A token that may do everything.
    pub(super) admin_token: Option<Secret>,
    /// What the tokens of jobs are made of.
    pub(super) report_key: Option<ReportKey>,
    /// Where jobs reach it.
    pub(super) report_url: Option<String>,
    /// No other process can open the store.
    pub(super) sole: bool,
}

/// Begins everything but the listener.
pub(super) fn start(composition: Composition<'_>) -> anyhow::Result<Arc<Api>> {
    let Composition { config, doors, tasks, metrics, admin_token, report_key, report_url, sole } =
        composition;
    let (clock, budget) = (clock::system(), Arc::new(HintBudget::new()));
    let accept = AcceptSettings { hint_for: *config.dispatcher.hint_ttl, ..AcceptSettings::default() };
    let parts = ApiParts {
        store: doors.store.clone(),
        leases: doors.leases.clone(),
        broker: doors.broker.clone(),
        logs: doors.logs.clone(),
        clock: clock.clone(),
        clusters: Arc::new(Clusters::new(config)),
        budget: budget.clone(),
        metrics: Arc::new(move || metrics.render()),
        admin_token: admin_token.map(|token| token.expose().to_owned()),
        report_key,
        report_url,
        accept,
        config: config.api.http.clone(),
        tasks: tasks.clone(),
    };
    let api = Api::start(parts).context("the administrator's token is too easy to guess")?;
    dispatcher::run(
        tasks,
        Dispatcher {
            store: doors.store.clone(),
            broker: doors.broker.clone(),
            clock: clock.clone(),
            budget,
            config: config.dispatcher.clone(),
            lease: *config.worker.lease,
            sole,
            outside: clusters::outside(config),
        },
    );
    housekeeping::run(
        tasks,
        Housekeeping {
            store: doors.store.clone(),
            logs: doors.logs.clone(),
            clock,
            config: config.retention.clone(),
        },
    );
    Ok(api)
}

/// Begins to answer, that it is not ready until the API opens.
pub(super) fn listen(
    (listener, bound): (TcpListener, SocketAddr),
    tls: Option<Arc<ServerConfig>>,
    config: &Config,
    tasks: &Tasks,
) -> Opening {
    let opening = Opening::new(Hosts::new(bound, &config.api.http.allowed_hosts));
    let (router, limits, serving) = (opening.router(), config.api.http.clone(), tasks.clone());
    tasks.spawn("http", async move { http::serve(listener, tls, router, &limits, &serving).await });
    opening
}

/// Runs the role until it is told to stop.
pub(crate) async fn run(config: &Config) -> anyhow::Result<Exit> {
    let shutdown = CancellationToken::new();
    let tasks = Tasks::new(shutdown.clone());
    shut_down_on_signal(shutdown.clone())?;
    let metrics = metrics::install(&tasks, &[telemetry::API])?;
    let tls = listening::tls(&config.api)?;
    // Before the database is waited for: an address in use should be told at once, and so should whoever asks.
    let listener = listening::bind(config.api.listen)?;
    let url = listening::url(listener.1, tls.is_some());
    let opening = listen(listener, tls, config, &tasks);
    let Some(doors) = doors::distributed(config, "api", &shutdown).await? else {
        tasks.wait().await;
        return Ok(Exit::Done);
    };
    let admin_token = config.api.admin_token.clone();
    let started = config.reports.key().map_err(anyhow::Error::from).and_then(|report_key| {
        let (doors, tasks, report_url) = (&doors, &tasks, config.reports.url.clone());
        let sole = false;
        start(Composition { config, doors, tasks, metrics, admin_token, report_key, report_url, sole })
    });
    match started {
        Ok(api) => opening.open(api),
        Err(error) => {
            // A connection to the broker panics when the runtime ends before it does.
            doors.close().await;
            return Err(error);
        }
    }
    tracing::info!(url, "jobgate api serves {url}");
    tasks.wait().await;
    doors.close().await;
    Ok(Exit::Done)
}
