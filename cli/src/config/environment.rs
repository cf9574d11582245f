//! The environment: the only place that reads it.
//!
//! A `JOBGATE_*` variable beats the configuration file and is beaten by a flag. An unknown one is told, because a typing
//! error that changes nothing is worse than one that fails.

use super::{Config, ConfigError, Within};
use jobgate_shared::{failpoint, reporting};
use std::{collections::BTreeMap, str::FromStr};

/// Every variable that means something, and what.
pub(crate) const VARIABLES: [(&str, &str); 17] = [
    ("JOBGATE_CONFIG", "path of the configuration file, as `--config`"),
    ("JOBGATE_DATA_DIR", "`data_dir`"),
    ("JOBGATE_DATABASE_URL", "`store.url`"),
    ("JOBGATE_BROKER_URL", "`broker.url`"),
    ("JOBGATE_LISTEN", "`api.listen`"),
    ("JOBGATE_BEHIND_PROXY", "`api.behind_proxy`: `true` or `false`"),
    ("JOBGATE_ALLOWED_HOSTS", "`api.http.allowed_hosts`, with commas between"),
    ("JOBGATE_ADMIN_TOKEN", "`api.admin_token`: a token that may do everything"),
    ("JOBGATE_REPORT_URL", "`reports.url`: where the API is, as jobs reach it"),
    ("JOBGATE_REPORT_KEY", "`reports.key`: what the tokens are made of that jobs report with"),
    ("JOBGATE_OPS_LISTEN", "`telemetry.listen`"),
    ("JOBGATE_OPS_PRIVATE_NETWORK", "`telemetry.private_network`: `true` or `false`"),
    ("JOBGATE_LOG", "`telemetry.log`"),
    ("JOBGATE_LOG_FORMAT", "`telemetry.log_format`"),
    ("JOBGATE_SERVER", "`client.server`: the gateway client commands talk to"),
    ("JOBGATE_CA_CERTIFICATE", "`client.ca_certificate`: authorities client commands trust"),
    ("JOBGATE_TOKEN", "the token client commands show"),
];

/// Set for every job, so a job that calls `jobgate` has them: they tell it what it runs in.
const OF_JOBS: [&str; 5] =
    [reporting::URL_VARIABLE, "JOBGATE_JOB_ID", "JOBGATE_ATTEMPT", "JOBGATE_PROJECT", "JOBGATE_JOB_NAME"];

/// Tells the tests where their servers are.
const OF_TESTS: &str = "JOBGATE_TEST_";

/// The `JOBGATE_*` variables of this process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    values: BTreeMap<String, String>,
    /// Names that mean nothing here.
    pub(crate) unknown: Vec<String>,
}

/// Heeds what tests order, in a build made for them. Says nothing of any other variable.
pub(crate) fn take_orders() {
    if failpoint::COMPILED_IN
        && let Some(orders) = std::env::var_os(failpoint::VARIABLE)
    {
        failpoint::watch(orders.into());
    }
}

impl Environment {
    /// Reads the process's environment.
    pub(crate) fn read() -> Result<Self, ConfigError> {
        let mut found = Vec::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with("JOBGATE_")) else { continue };
            let value = value.into_string().map_err(|_| ConfigError::Variable {
                variable: name.to_owned(),
                message: "is not UTF-8".to_owned(),
            })?;
            found.push((name.to_owned(), value));
        }
        Ok(Self::from_pairs(found))
    }

    /// These variables and no others.
    pub(crate) fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut environment = Self::default();
        for (name, value) in pairs {
            if VARIABLES.iter().any(|(known, _)| *known == name) || OF_JOBS.contains(&name.as_str()) {
                // An empty variable is how people unset one in a compose file.
                if !value.is_empty() {
                    environment.values.insert(name, value);
                }
            } else if !name.starts_with(OF_TESTS) {
                environment.unknown.push(name);
            }
        }
        environment
    }

    /// One variable.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// One variable as a value of its setting. The error does not repeat it: it may hold a password.
    fn parse<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<Option<T>, ConfigError> {
        let parse = |text: &str| {
            text.parse().map_err(|error: T::Err| ConfigError::Variable {
                variable: name.to_owned(),
                message: error.to_string(),
            })
        };
        self.get(name).map(parse).transpose()
    }

    /// Puts the variables over what the file says.
    pub(super) fn override_settings(&self, config: &mut Config) -> Result<(), ConfigError> {
        fn put<T>(setting: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *setting = value;
            }
        }
        let text = |name| self.get(name).map(str::to_owned);
        put(&mut config.data_dir, text("JOBGATE_DATA_DIR").map(Into::into));
        put(&mut config.store.url, text("JOBGATE_DATABASE_URL").map(|url| Some(url.into())));
        put(&mut config.broker.url, self.parse("JOBGATE_BROKER_URL")?.map(Some));
        put(&mut config.api.listen, self.parse("JOBGATE_LISTEN")?);
        put(&mut config.api.behind_proxy, self.parse("JOBGATE_BEHIND_PROXY")?);
        let hosts = |list: String| list.split(',').map(|host| host.trim().to_owned()).collect();
        put(&mut config.api.http.allowed_hosts, text("JOBGATE_ALLOWED_HOSTS").map(hosts));
        put(&mut config.api.admin_token, text("JOBGATE_ADMIN_TOKEN").map(|token| Some(token.into())));
        put(&mut config.reports.url, text("JOBGATE_REPORT_URL").map(Some));
        put(&mut config.reports.key, text("JOBGATE_REPORT_KEY").map(|key| Some(key.into())));
        put(&mut config.telemetry.listen, self.parse("JOBGATE_OPS_LISTEN")?.map(Some));
        put(&mut config.telemetry.private_network, self.parse("JOBGATE_OPS_PRIVATE_NETWORK")?);
        put(&mut config.telemetry.log, text("JOBGATE_LOG"));
        put(&mut config.telemetry.log_format, self.parse("JOBGATE_LOG_FORMAT")?);
        put(&mut config.client.server, text("JOBGATE_SERVER").map(Some));
        put(&mut config.client.ca_certificate, text("JOBGATE_CA_CERTIFICATE").map(|file| Some(file.into())));
        put(&mut config.client.token, text("JOBGATE_TOKEN").map(|token| Some(token.into())));
        config.client.within = Within {
            url: text(reporting::URL_VARIABLE),
            job: text("JOBGATE_JOB_ID"),
            attempt: text("JOBGATE_ATTEMPT"),
        };
        Ok(())
    }
}
