//! How the adapter is configured, as values that cannot be wrong; the command line's configuration embeds it.

use crate::settings::{Number, Period};
use lapin::{types::ShortString, uri::AMQPUri};
use serde::{Deserialize, Serialize, Serializer};
use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

/// Seconds between heartbeats when the address sets none: a peer that is silent for twice as long is given up.
const HEARTBEAT: u16 = 15;

/// The RabbitMQ to use, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RabbitMqConfig {
    /// `amqp://user:password@host:5672/vhost`, or `amqps://` for TLS. The vhost `/` is written `%2f`, or left out with
    /// its slash. Heartbeats are 15 s apart unless `?heartbeat=` says otherwise.
    pub url: AmqpUrl,
    /// For `amqps`: a PEM file of certificate authorities to trust beside the public ones. Read at every connect.
    pub ca_certificate: Option<PathBuf>,
    /// Begins the name of every queue and exchange, so that several deployments can share a vhost.
    pub prefix: Prefix,
    /// What dispatch queues are made as. One that exists already is used as it is.
    pub dispatch_queue: QueueKind,
    /// Most messages of this process written and not confirmed; more wait their turn.
    pub publish_window: Number<1, 10_000>,
    /// How long a message may wait for its confirm before its publisher hears that it is not known to have arrived.
    pub publish_timeout: Period<100, 60_000>,
    /// How long reaching the broker and its greeting may take each.
    pub connect_timeout: Period<100, 60_000>,
}

impl Default for RabbitMqConfig {
    fn default() -> Self {
        Self {
            url: AmqpUrl::default(),
            ca_certificate: None,
            prefix: Prefix::default(),
            dispatch_queue: QueueKind::default(),
            publish_window: Number::new(1_000),
            publish_timeout: Period::new(Duration::from_secs(5)),
            connect_timeout: Period::new(Duration::from_secs(10)),
        }
    }
}

/// The type of a dispatch queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueKind {
    /// Replicated: outlives a node.
    #[default]
    Quorum,
    /// Durable on one node: cheaper, and away while its node is.
    Classic,
}

impl QueueKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

/// The address of a broker. Shown without its password.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AmqpUrl {
    text: String,
    uri: AMQPUri,
}

/// An address that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an address of RabbitMQ such as amqp://user:password@host:5672/vhost: {0}")]
pub struct UrlError(String);

impl AmqpUrl {
    /// The address with its password, for whoever hands it on.
    pub fn expose(&self) -> &str {
        &self.text
    }

    pub(super) fn uri(&self) -> &AMQPUri {
        &self.uri
    }
}

impl Default for AmqpUrl {
    fn default() -> Self {
        let mut uri = AMQPUri::default();
        uri.query.heartbeat = Some(HEARTBEAT);
        Self { text: "amqp://localhost".to_owned(), uri }
    }
}

impl FromStr for AmqpUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let mut uri: AMQPUri = text.parse().map_err(UrlError)?;
        if uri.vhost.is_empty() {
            return Err(UrlError("an empty vhost; the vhost \"/\" is written %2f".to_owned()));
        }
        if ShortString::try_new(uri.vhost.as_str()).is_err() {
            return Err(UrlError("the vhost is longer than 255 bytes".to_owned()));
        }
        // The parser takes an address in brackets for no host at all, and would go to localhost.
        if let Some(v6) = bracketed(text) {
            v6.clone_into(&mut uri.authority.host);
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        Ok(Self { text: text.to_owned(), uri })
    }
}

/// The IPv6 address in the host's place.
fn bracketed(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.strip_prefix('[')?.split_once(']').map(|(v6, _)| v6)
}

impl TryFrom<String> for AmqpUrl {
    type Error = UrlError;

    fn try_from(text: String) -> Result<Self, UrlError> {
        text.parse()
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, query: _ } = &self.uri;
        let (user, host, port) = (&authority.userinfo.username, &authority.host, authority.port);
        write!(f, "{scheme}://{user}:***@{host}:{port}/{vhost}")
    }
}

impl Serialize for AmqpUrl {
    /// Without its password.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How the names of queues and exchanges begin: 1 to 60 letters, digits, `.`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Prefix(String);

/// A prefix that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be 1 to 60 letters, digits, '.', '_' or '-', and not begin with \"amq.\", which RabbitMQ keeps"
)]
pub struct PrefixError;

impl Prefix {
    /// One that nobody else has.
    pub(super) fn scratch(id: uuid::Uuid) -> Self {
        Self(format!("jobgate-scratch-{}", id.simple()))
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self("jobgate".to_owned())
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;

    fn try_from(text: String) -> Result<Self, PrefixError> {
        let letters = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        let good = letters && (1..=60).contains(&text.len()) && !text.starts_with("amq.");
        if good { Ok(Self(text)) } else { Err(PrefixError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        let config: RabbitMqConfig =
            serde_json::from_str(r#"{"url":"amqp://gate:hunter2@mq.example:5673/jobs"}"#).unwrap();
        let shown = format!("{config:?} {}", config.url);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("amqp://gate:***@mq.example:5673/jobs"), "{shown}");
        assert_eq!(config.url.uri().authority.userinfo.password, "hunter2");
    }

    #[test]
    fn a_wrong_address_is_refused_without_repeating_it() {
        for bad in ["", "mq.example", "http://h/%2f", "amqp://u:hunter2@h:x/v", "amqp://u:hunter2@h/"] {
            let error = bad.parse::<AmqpUrl>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let empty = "amqp://h/".parse::<AmqpUrl>().unwrap_err();
        assert!(empty.to_string().contains("%2f"), "{empty}");
    }

    #[test]
    fn heartbeats_come_every_15_s_unless_the_address_says_otherwise() {
        let heartbeat = |url: &str| url.parse::<AmqpUrl>().unwrap().uri().query.heartbeat;
        assert_eq!(heartbeat("amqp://h"), Some(15));
        assert_eq!(heartbeat("amqp://h/%2f?heartbeat=60"), Some(60));
        assert_eq!(AmqpUrl::default().uri().query.heartbeat, Some(15));
    }

    #[test]
    fn an_ipv6_address_is_the_host() {
        let host = |url: &str| url.parse::<AmqpUrl>().unwrap().uri().authority.host.clone();
        assert_eq!(host("amqp://u:p@[2001:db8::7]:5672/%2f"), "2001:db8::7");
        assert_eq!(host("amqp://[::1]"), "::1");
        assert_eq!(host("amqp://u:p[1]@mq.example/v[2]"), "mq.example");
    }

    #[test]
    fn unknown_fields_and_strange_prefixes_are_refused() {
        let read = |json: &str| serde_json::from_str::<RabbitMqConfig>(json).map_err(|e| e.to_string());
        assert!(read(r#"{"uri":"amqp://h"}"#).unwrap_err().contains("unknown field"));
        for bad in ["", "a b", "amq.x", "ä", &"x".repeat(61)] {
            assert!(read(&format!(r#"{{"prefix":"{bad}"}}"#)).is_err(), "{bad}");
        }
        assert_eq!(read(r#"{"dispatch_queue":"classic"}"#).unwrap().dispatch_queue, QueueKind::Classic);
        assert_eq!(read("{}").unwrap().prefix.as_str(), "jobgate");
    }
}
