//! Listeners: the address, and TLS where it is configured.

use crate::config::{ApiSection, ConfigError, TlsSection};
use anyhow::Context as _;
use jobgate_api::http::{self, HttpConfig, ops};
use jobgate_shared::supervise::Tasks;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use std::{io, net::SocketAddr, sync::Arc};
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
    let Some(TlsSection { certificate, key }) = &api.tls else { return Ok(None) };
    let wrong = |key: &str, what: &std::path::Path, why: String| ConfigError::Impossible {
        key: format!("api.tls.{key}"),
        message: format!("{}: {why}", what.display()),
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| wrong("certificate", certificate, error.to_string()))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("key", key, error.to_string()))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| wrong("certificate", certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}

/// Serves what operators look at, for a role that serves nothing else.
pub(super) fn serve_ops(address: SocketAddr, ops: ops::Ops, tasks: &Tasks) -> anyhow::Result<SocketAddr> {
    let (listener, bound) = bind(address)?;
    let serving = tasks.clone();
    tasks.spawn("ops listener", async move {
        http::serve(listener, None, ops::router(ops), &HttpConfig::default(), &serving).await;
    });
    Ok(bound)
}
