//! Identities and names, each its own type so that one cannot stand in for another.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        #[schema(value_type = Uuid)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new identity; time-ordered, so that new rows land together in an index.
            pub fn generate() -> Self {
                Self(crate::random::uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(s).map(Self)
            }
        }
    };
}

uuid_id! {
    /// A job, for its whole life: UUIDv7, made by the API instance that accepts it.
    JobId
}
uuid_id! {
    /// One worker process. Never reused: a restarted worker is another worker.
    WorkerId
}
uuid_id! {
    /// An API token's public half.
    TokenId
}

impl WorkerId {
    /// Owns what was handed back while its resource manager still has it: nobody, so anyone may adopt it.
    pub const NOBODY: Self = Self(Uuid::nil());
}

/// A name that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 63 of a–z, 0–9, '.', '_' or '-', beginning with a letter or digit")]
pub struct NameError;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, pattern = r"^[a-z0-9][a-z0-9._-]{0,62}$")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(value: String) -> Result<Self, NameError> {
                let first = value.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                let rest = value.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')
                });
                if first && rest && value.len() <= 63 { Ok(Self(value)) } else { Err(NameError) }
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                Self::try_from(s.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// Whose job it is; every query carries it.
    Project
}
name! {
    /// A configured resource-manager instance, such as `local` or `slurm-a`.
    ClusterName
}

impl Project {
    /// The project of a deployment that has only one.
    pub fn default_project() -> Self {
        Self("default".to_owned())
    }
}

/// Which part of the world an engine instance can act on, when that is less than everything: a host's spool directory,
/// for `local`. A submission made inside a reach can only be started, watched or cancelled inside it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reach(pub String);

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the resource manager knows an attempt by: deterministic, so that a second create finds the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubmissionTag {
    /// The job.
    pub job: JobId,
    /// Its attempt, from 1.
    pub attempt: u32,
}

impl SubmissionTag {
    /// Every tag of ours begins so; a sweep looks for nothing else.
    pub const PREFIX: &'static str = "jobgate-";
}

impl fmt::Display for SubmissionTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}-{}", Self::PREFIX, self.job, self.attempt)
    }
}

/// A name that is no tag of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a submission tag")]
pub struct NotATag;

impl FromStr for SubmissionTag {
    type Err = NotATag;
    fn from_str(s: &str) -> Result<Self, NotATag> {
        let (job, attempt) = s.strip_prefix(Self::PREFIX).and_then(|s| s.rsplit_once('-')).ok_or(NotATag)?;
        let tag =
            Self { job: job.parse().map_err(|_| NotATag)?, attempt: attempt.parse().map_err(|_| NotATag)? };
        // One spelling only: a sweep that removes by name must not match "jobgate-<id>-01".
        if tag.to_string() == s { Ok(tag) } else { Err(NotATag) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tag_reads_back_as_itself(id: u128, attempt in 1u32..) {
            let tag = SubmissionTag { job: JobId(Uuid::from_u128(id)), attempt };
            prop_assert_eq!(tag.to_string().parse(), Ok(tag));
        }

        #[test]
        fn any_text_that_parses_as_a_tag_is_spelled_as_that_tag(text in "jobgate-.*") {
            if let Ok(tag) = text.parse::<SubmissionTag>() {
                prop_assert_eq!(tag.to_string(), text);
            }
        }
    }

    #[test]
    fn names_are_short_lower_case_and_begin_with_a_letter_or_digit() {
        for good in ["local", "slurm-a", "0.x_y"] {
            assert!(good.parse::<ClusterName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }
}
