//! Which gateway to talk to, which token to show it, and whom to believe that it is the one.
//!
//! The address: `--server`, `JOBGATE_SERVER`, `client.server`, the gateway that runs over the data directory, the default
//! address. The token: `JOBGATE_TOKEN`, `client.token_file`, `<data_dir>/token`. The last one is shown to this host only:
//! a local token must not travel to whatever address was given.
//!
//! A job finds an address and a token of its own in its environment. They are for its reports: any other command it
//! calls goes by what else is there, as if they were not.

use super::ClientError;
use crate::{
    config::{Config, Secret},
    data_dir::DataDir,
};
use jobgate_shared::reporting::is_jobs_own;
use reqwest::Url;
use std::path::{Path, PathBuf};

/// Where the gateway is, and what opens it.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Its address.
    pub(crate) url: Url,
    /// The token to show, if there is one.
    pub(crate) token: Option<Secret>,
    /// A PEM file of authorities to believe beside those of this host.
    pub(crate) ca_certificate: Option<PathBuf>,
}

impl Target {
    /// The gateway the flag, the configuration or the data directory means.
    pub(crate) fn find(server: Option<&str>, config: &Config) -> Result<Self, ClientError> {
        let token = config.client.token.clone().filter(|token| !is_jobs_own(token.expose()));
        Self::with(server, token, config)
    }

    /// The gateway a report goes to: the one the flag names, or the job's own.
    pub(crate) fn of_reports(server: Option<&str>, config: &Config) -> Result<Self, ClientError> {
        let server = server.or(config.client.within.url.as_deref());
        Self::with(server, config.client.token.clone(), config)
    }

    fn with(server: Option<&str>, token: Option<Secret>, config: &Config) -> Result<Self, ClientError> {
        let data_dir = DataDir::at(&config.data_dir);
        let address = server
            .map(str::to_owned)
            .or_else(|| config.client.server.clone())
            .or_else(|| data_dir.holder().and_then(|holder| holder.url))
            .unwrap_or_else(|| format!("http://{}", config.api.listen));
        let url = parse(&address)?;
        let token = match (token, &config.client.token_file) {
            (Some(token), _) => Some(token),
            (None, Some(file)) => Some(read(file)?),
            (None, None) if is_this_host(&url) && data_dir.token_file().exists() => {
                Some(read(&data_dir.token_file())?)
            }
            (None, None) => None,
        };
        Ok(Self { url, token, ca_certificate: config.client.ca_certificate.clone() })
    }

    /// The same, believing these authorities if any are named.
    pub(crate) fn trusting(self, ca_certificate: Option<PathBuf>) -> Self {
        Self { ca_certificate: ca_certificate.or(self.ca_certificate), ..self }
    }

    /// A gateway whose address and token are known.
    pub(crate) fn known(address: &str, token: Option<Secret>) -> Result<Self, ClientError> {
        Ok(Self { url: parse(address)?, token, ca_certificate: None })
    }
}

fn parse(address: &str) -> Result<Url, ClientError> {
    let wrong = |why: String| ClientError::Address { address: address.to_owned(), why };
    let given = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let url: Url = given.parse().map_err(|error| wrong(format!("{error}")))?;
    match url.scheme() {
        "http" | "https" => {}
        scheme => return Err(wrong(format!("{scheme} is neither http nor https"))),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("it holds credentials; give a token instead".to_owned()));
    }
    Ok(url)
}

fn is_this_host(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn read(file: &Path) -> Result<Secret, ClientError> {
    let text = std::fs::read_to_string(file).map_err(|error| ClientError::Token {
        why: format!("cannot read the token in {}: {error}", file.display()),
    })?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) || !token.is_ascii() {
        return Err(ClientError::Token { why: format!("{} holds no token", file.display()) });
    }
    Ok(token.to_owned().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &Path) -> Config {
        Config { data_dir: directory.to_owned(), ..Config::default() }
    }

    #[test]
    fn an_address_may_lack_its_scheme_and_holds_no_credentials() {
        assert_eq!(parse("127.0.0.1:7070").unwrap().as_str(), "http://127.0.0.1:7070/");
        assert_eq!(parse("https://gate.example/batch").unwrap().as_str(), "https://gate.example/batch");
        for bad in ["ftp://x", "http://user:pw@x", "http://"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_token_of_the_data_directory_is_shown_to_this_host_only() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "jgt_local\n").unwrap();
        let config = config(directory.path());
        let token =
            |server| Target::find(Some(server), &config).unwrap().token.map(|t| t.expose().to_owned());
        assert_eq!(token("http://127.0.0.1:1").as_deref(), Some("jgt_local"));
        assert_eq!(token("http://[::1]:1").as_deref(), Some("jgt_local"));
        assert_eq!(token("localhost:1").as_deref(), Some("jgt_local"));
        assert_eq!(token("https://gate.example"), None);
        assert_eq!(token("http://127.0.0.1.gate.example"), None);
    }

    #[test]
    fn a_token_from_the_environment_beats_files() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        config.client.token_file = Some(directory.path().join("absent"));
        assert!(matches!(Target::find(None, &config), Err(ClientError::Token { .. })));
        config.client.token = Some("jgt_given".to_owned().into());
        let target = Target::find(None, &config).unwrap();
        assert_eq!(target.token.unwrap().expose(), "jgt_given");
        assert_eq!(target.url.as_str(), "http://127.0.0.1:7070/");
    }

    #[test]
    fn what_a_job_has_for_its_reports_is_used_for_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "jgt_local\n").unwrap();
        let mut config = config(directory.path());
        config.client.token = Some("jgj_own".to_owned().into());
        config.client.within.url = Some("https://gate.example".to_owned());
        let told = |target: Result<Target, ClientError>| {
            let target = target.unwrap();
            (target.url.to_string(), target.token.map(|token| token.expose().to_owned()))
        };
        let own = ("https://gate.example/".to_owned(), Some("jgj_own".to_owned()));
        assert_eq!(told(Target::of_reports(None, &config)), own);
        let any = ("http://127.0.0.1:7070/".to_owned(), Some("jgt_local".to_owned()));
        assert_eq!(told(Target::find(None, &config)), any);
        let named = ("http://127.0.0.1:9/".to_owned(), Some("jgj_own".to_owned()));
        assert_eq!(told(Target::of_reports(Some("127.0.0.1:9"), &config)), named);
    }
}
