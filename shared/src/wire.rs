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
    /// A cluster was paused, resumed or limited, or a token revoked: cached settings are old.
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

/// Any bytes are refused, or are a message that is written so that it is read as the same. For tests and for fuzzing.
#[cfg(any(test, fuzzing))]
pub fn is_read_or_refused(bytes: &[u8]) {
    fn read_as<M: Message + PartialEq + std::fmt::Debug + Clone>(bytes: &[u8]) {
        if let Ok(message) = M::decode(bytes) {
            assert_eq!(M::decode(&message.clone().encode()).ok(), Some(message));
        }
    }
    read_as::<Hint>(bytes);
    read_as::<Vec<StatusEvent>>(bytes);
    read_as::<Nudge>(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Ending, Observation};
    use chrono::{DateTime, Utc};
    use proptest::{collection::vec, option::of, prelude::*, sample::Index, sample::select};
    use uuid::Uuid;

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

    fn time() -> impl Strategy<Value = DateTime<Utc>> {
        (0..4_000_000_000_i64, 0..1_000_000_000_u32)
            .prop_filter_map("a time", |(seconds, nanos)| DateTime::from_timestamp(seconds, nanos))
    }

    fn observation() -> impl Strategy<Value = Observation> {
        let endings = [Ending::Finished, Ending::Failed, Ending::Canceled, Ending::TimedOut, Ending::Lost];
        let ended = (select(endings.to_vec()), any::<Option<i32>>(), any::<Option<String>>());
        let ended = (ended, of(time()), of(time())).prop_map(|((ending, exit_code, reason), began, at)| {
            Observation::Ended { ending, exit_code, reason, began, at }
        });
        prop_oneof![
            any::<Option<String>>().prop_map(|reason| Observation::Pending { reason }),
            (of(time()), any::<Option<String>>())
                .prop_map(|(since, reason)| Observation::Running { since, reason }),
            ended,
        ]
    }

    fn event() -> impl Strategy<Value = StatusEvent> {
        let ids = (any::<u128>(), any::<u128>(), any::<[u32; 3]>(), any::<Option<String>>());
        (ids, observation(), time()).prop_map(
            |((job, by, [attempt, epoch, seq], submission), observation, at)| {
                let (job, by) = (JobId(Uuid::from_u128(job)), WorkerId(Uuid::from_u128(by)));
                StatusEvent { job, attempt, epoch, seq, by, submission, observation, at }
            },
        )
    }

    /// `bytes` with some of them changed, cut or put in.
    fn damaged(bytes: &[u8], hurts: &[(Index, Option<u8>, bool)]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for (place, byte, grows) in hurts {
            let at = place.index(bytes.len() + 1);
            match byte {
                Some(byte) if *grows || at == bytes.len() => bytes.insert(at, *byte),
                Some(byte) => bytes[at] = *byte,
                None => bytes.truncate(at),
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes: Vec<u8>) {
            is_read_or_refused(&bytes);
        }

        #[test]
        fn a_message_is_read_as_it_was_written(events in vec(event(), 0..5), jobs: Vec<u128>, worker: u128) {
            let bytes = events.clone().encode();
            prop_assert_eq!(<Vec<StatusEvent>>::decode(&bytes).unwrap(), events);
            let hint = Hint { jobs: jobs.into_iter().map(|job| JobId(Uuid::from_u128(job))).collect() };
            prop_assert_eq!(Hint::decode(&hint.clone().encode()).unwrap(), hint);
            let nudge = Nudge::Cancel { worker: WorkerId(Uuid::from_u128(worker)) };
            prop_assert_eq!(Nudge::decode(&nudge.clone().encode()).unwrap(), nudge);
        }

        #[test]
        fn a_damaged_message_is_refused_or_is_another_one(
            events in vec(event(), 0..3),
            hurts in vec(any::<(Index, Option<u8>, bool)>(), 1..4),
        ) {
            is_read_or_refused(&damaged(&events.encode(), &hurts));
        }

        #[test]
        fn every_other_version_is_refused_as_one(v: u8, event in event()) {
            let mut message: serde_json::Value = serde_json::from_slice(&vec![event].encode()).unwrap();
            message["v"] = v.into();
            let read = <Vec<StatusEvent>>::decode(message.to_string().as_bytes());
            match read {
                Ok(_) => prop_assert_eq!(v, VERSION),
                Err(error) => prop_assert!(matches!(error, WireError::Version(told) if told == v), "{}", error),
            }
        }
    }
}
