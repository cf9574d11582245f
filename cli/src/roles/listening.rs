//! Listeners: the address, and TLS where it is configured.

use crate::config::{ApiSection, ConfigError, TelemetrySection, TlsSection};
use anyhow::Context as _;
use jobgate_api::http::{self, Hosts, HttpConfig, ops};
use jobgate_shared::supervise::Tasks;
use rustls::ServerConfig;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted. Of a crowd that comes at once the usual 128 lose some, and whoever is lost
/// tries again after a second at the earliest.
const BACKLOG: u32 = 4096;

/// Takes an address; an error names it.
pub(super) fn bind(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = listen(address).with_context(|| format!("cannot listen on {address}"))?;
    let bound = listener.local_addr().context("a listener without an address")?;
    Ok((listener, bound))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A successor begins while connections of its predecessor are still remembered.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How clients on this host write the address.
pub(super) fn url(bound: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    let mut reachable = bound;
    if bound.ip().is_unspecified() {
        reachable.set_ip(match bound {
            SocketAddr::V4(_) => [127, 0, 0, 1].into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("{scheme}://{reachable}")
}

/// The TLS a listener speaks, if it is configured to.
pub(super) fn tls(api: &ApiSection) -> anyhow::Result<Option<Arc<ServerConfig>>> {
    let read = api.tls.as_ref().map(TlsSection::read).transpose().map_err(ConfigError::from)?;
    Ok(read.map(Arc::new))
}

/// Serves what operators look at, for a role that serves nothing else: at `port` of this host unless an address is configured.
pub(super) fn serve_ops(
    telemetry: &TelemetrySection,
    port: u16,
    ops: ops::Ops,
    tasks: &Tasks,
) -> anyhow::Result<SocketAddr> {
    let (listener, bound) = bind(telemetry.listen.unwrap_or((Ipv4Addr::LOCALHOST, port).into()))?;
    // Who is let into a network of operators calls each process by whatever name it has there.
    let hosts = (!telemetry.private_network).then(|| Hosts::new(bound, &[]));
    let (router, serving) = (ops::router(ops, hosts), tasks.clone());
    tasks.spawn("ops listener", async move {
        http::serve(listener, None, router, &HttpConfig::default(), &serving).await;
    });
    Ok(bound)
}
