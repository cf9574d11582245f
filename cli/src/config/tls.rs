//! `[api.tls]`: a certificate and its key, read from their files.

use super::Conflict;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// `[api.tls]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsSection {
    /// PEM file with the certificate and those that lead to its authority.
    pub(crate) certificate: PathBuf,
    /// PEM file with its key.
    pub(crate) key: PathBuf,
}

impl TlsSection {
    /// The TLS a listener speaks.
    pub(crate) fn read(&self) -> Result<ServerConfig, Conflict> {
        let wrong = |key: &str, what: &Path, why: String| Conflict {
            key: format!("api.tls.{key}"),
            message: format!("{}: {why}", what.display()),
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(|error| wrong("certificate", &self.certificate, error.to_string()))?;
        let secret = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| wrong("key", &self.key, error.to_string()))?;
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(|error| wrong("certificate", &self.certificate, error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}
