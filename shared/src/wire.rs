//! What travels through the broker: ids, states, numbers and reasons; never a spec, an environment or an output.
//!
//! Every message is an envelope `{"v":1,"kind":…}`. A reader that meets a version or kind it does not know gives the
//! message to the dead-letter queue: the row is the truth, a message only saves time.

use crate::domain::{JobId, StatusEvent, WorkerId};
use serde::{Deserialize, Serialize};

/// The version this build writes and reads.
pub const VERSION: u8 = 1;

/// Most job ids in one hint.
pub const MAX_HINT: usize = 200;
/// Most events in one message.
pub const MAX_EVENTS: usize = 200;

/// "These jobs may be there for the taking": fresh ones, or ones whose worker is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// The jobs, most urgent first.
    pub jobs: Vec<JobId>,
}

/// A tap on the shoulder: something may be worth reading. Losing one costs latency only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "nudge", rename_all = "snake_case")]
pub enum Nudge {
    /// The store holds changes that feeds and waiting requests want to see.
    Changed,
    /// A cancel was asked for; the worker named should send its heartbeat now.
    Cancel {
        /// Who has the jobs.
        worker: WorkerId,
    },
    /// A cluster was paused or resumed, or a token revoked: cached settings are old.
    Settings,
}

/// A message body with its version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Body {
    Hint(Hint),
    Events { events: Vec<StatusEvent> },
    Nudge(Nudge),
}

#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    v: u8,
    #[serde(flatten)]
    body: Body,
}

/// A message nobody here can read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not JSON, or not of the shape its kind has.
    #[error("malformed message")]
    Malformed(#[from] serde_json::Error),
    /// Written by a newer version.
    #[error("message version {0} is not {VERSION}")]
    Version(u8),
    /// A good message in the wrong queue.
    #[error("expected {expected}")]
    Kind {
        /// What this queue carries.
        expected: &'static str,
    },
}

fn decode(bytes: &[u8]) -> Result<Body, WireError> {
    #[derive(Deserialize)]
    struct Version {
        v: u8,
    }
    let Version { v } = serde_json::from_slice(bytes)?;
    if v != VERSION {
        return Err(WireError::Version(v));
    }
    Ok(serde_json::from_slice::<Envelope>(bytes)?.body)
}

fn encode(body: Body) -> Vec<u8> {
    // Maps with string keys, numbers and strings only: serialisation has nothing to fail on.
    serde_json::to_vec(&Envelope { v: VERSION, body }).unwrap_or_default()
}

/// What a queue carries: knows its own bytes.
pub trait Message: Sized + Send + 'static {
    /// As sent.
    fn encode(self) -> Vec<u8>;
    /// As received.
    fn decode(bytes: &[u8]) -> Result<Self, WireError>;
}

impl Message for Hint {
    fn encode(self) -> Vec<u8> {
        encode(Body::Hint(self))
    }

    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        match decode(bytes)? {
            Body::Hint(hint) => Ok(hint),
            Body::Events { .. } | Body::Nudge(_) => Err(WireError::Kind { expected: "a hint" }),
        }
    }
}

impl Message for Vec<StatusEvent> {
    fn encode(self) -> Vec<u8> {
        encode(Body::Events { events: self })
    }

    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        match decode(bytes)? {
            Body::Events { events } => Ok(events),
            Body::Hint(_) | Body::Nudge(_) => Err(WireError::Kind { expected: "status events" }),
        }
    }
}

impl Message for Nudge {
    fn encode(self) -> Vec<u8> {
        encode(Body::Nudge(self))
    }

    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        match decode(bytes)? {
            Body::Nudge(nudge) => Ok(nudge),
            Body::Hint(_) | Body::Events { .. } => Err(WireError::Kind { expected: "a nudge" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_reads_back_as_itself_and_only_as_itself() {
        let hint = Hint { jobs: vec![JobId::generate()] };
        let bytes = hint.clone().encode();
        assert_eq!(Hint::decode(&bytes).unwrap(), hint);
        assert!(matches!(Nudge::decode(&bytes), Err(WireError::Kind { .. })));
        let nudge = Nudge::Cancel { worker: WorkerId::generate() };
        assert_eq!(Nudge::decode(&nudge.clone().encode()).unwrap(), nudge);
    }

    #[test]
    fn a_newer_version_is_named_as_such() {
        let bytes = br#"{"v":2,"kind":"something new"}"#;
        assert!(matches!(Hint::decode(bytes), Err(WireError::Version(2))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes: Vec<u8>) {
            drop(Hint::decode(&bytes));
            drop(<Vec<StatusEvent>>::decode(&bytes));
        }
    }
}
