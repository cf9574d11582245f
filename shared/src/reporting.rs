//! What lets a running job report on itself: an address, and a token of its own.
//!
//! The token is made of a key the api and the workers share, for one attempt of one job, and stored nowhere: whoever has
//! the key makes it anew, and an attempt that is created again gets the same. What it opens is decided where it is read.

use crate::domain::{JobId, SubmissionTag};
use ring::hmac;
use std::fmt;
use uuid::Uuid;

/// The variable of a job that holds the address it reports to.
pub const URL_VARIABLE: &str = "JOBGATE_URL";
/// The variable of a job that holds its token.
pub const TOKEN_VARIABLE: &str = "JOBGATE_TOKEN";
/// Shortest key taken: 32 characters of anything random are enough for a MAC of 32 bytes.
pub const MIN_KEY_LENGTH: usize = 32;

/// How a job's own token begins. Tokens people make begin otherwise.
const PREFIX: &str = "jgj_";
/// What the key signs begins so, that no signature of it can ever mean something else.
const CONTEXT: &[u8] = b"jobgate report 1\0";

/// The text is a job's own token, or looks like one.
pub fn is_jobs_own(token: &str) -> bool {
    token.starts_with(PREFIX)
}

/// A key nobody should use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a key has at least {MIN_KEY_LENGTH} characters")]
pub struct KeyTooShort;

/// What the tokens of jobs are made of.
#[derive(Clone)]
pub struct ReportKey(hmac::Key);

impl fmt::Debug for ReportKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReportKey")
    }
}

impl ReportKey {
    /// The key of this text.
    pub fn new(text: &str) -> Result<Self, KeyTooShort> {
        if text.len() < MIN_KEY_LENGTH {
            return Err(KeyTooShort);
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes())))
    }

    /// The token of an attempt: `jgj_<job>_<attempt>_<HMAC-SHA256 of both>`.
    pub fn token(&self, tag: SubmissionTag) -> String {
        let signature = hmac::sign(&self.0, &signed(tag));
        let digit = |half: u8| char::from_digit(half.into(), 16).unwrap_or_default();
        let mut token = format!("{PREFIX}{}_{}_", tag.job.0.simple(), tag.attempt);
        token.extend(signature.as_ref().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
        token
    }

    /// Whose token this is; `None` when no attempt has it.
    pub fn whose(&self, token: &str) -> Option<SubmissionTag> {
        let mut parts = token.strip_prefix(PREFIX)?.splitn(3, '_');
        let job = JobId(Uuid::try_parse(parts.next()?).ok()?);
        let attempt = parts.next()?.parse().ok()?;
        let signature = bytes(parts.next()?)?;
        let tag = SubmissionTag { job, attempt };
        // In constant time: how much of a guess was right must not show.
        hmac::verify(&self.0, &signed(tag), &signature).ok()?;
        Some(tag)
    }
}

fn signed(tag: SubmissionTag) -> Vec<u8> {
    [CONTEXT, tag.job.0.as_bytes(), &tag.attempt.to_be_bytes()].concat()
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    if !hex.is_ascii() {
        return None;
    }
    hex.as_bytes()
        .chunks(2)
        .map(|pair| {
            let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
            u8::try_from(digit(0)? << 4 | digit(1)?).ok()
        })
        .collect()
}

/// What a worker gives every job it begins.
#[derive(Debug, Clone)]
pub struct Reporting {
    /// Where the API is, as jobs reach it.
    pub url: String,
    /// What their tokens are made of.
    pub key: ReportKey,
}

impl Reporting {
    /// The variables an attempt reports with.
    pub fn variables(&self, tag: SubmissionTag) -> [(&'static str, String); 2] {
        [(URL_VARIABLE, self.url.clone()), (TOKEN_VARIABLE, self.key.token(tag))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(text: &str) -> ReportKey {
        ReportKey::new(text).unwrap()
    }

    fn tag(job: u128, attempt: u32) -> SubmissionTag {
        SubmissionTag { job: JobId(Uuid::from_u128(job)), attempt }
    }

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_token_is_the_same_each_time_it_is_made() {
        let expected = "jgj_00000000000000000000000000000007_3_";
        let token = key(KEY).token(tag(7, 3));
        assert!(token.starts_with(expected) && token.len() == expected.len() + 64, "{token}");
        assert_eq!(token, key(KEY).token(tag(7, 3)));
        assert!(is_jobs_own(&token) && !is_jobs_own("jgt_x"));
        assert!(matches!(ReportKey::new("too short"), Err(KeyTooShort)));
    }

    #[test]
    fn neither_key_nor_token_is_printed() {
        let reporting = Reporting { url: "http://gate".into(), key: key(KEY) };
        let shown = format!("{reporting:?}");
        assert!(!shown.contains(KEY) && !shown.contains("jgj_"), "{shown}");
    }

    proptest! {
        #[test]
        fn a_token_tells_its_attempt_and_opens_under_its_key_only(job: u128, attempt: u32, other in "[!-~]{32,40}") {
            let token = key(KEY).token(tag(job, attempt));
            prop_assert_eq!(key(KEY).whose(&token), Some(tag(job, attempt)));
            prop_assert_eq!(key(&other).whose(&token), None);
        }

        #[test]
        fn no_other_text_is_a_token(job: u128, attempt in 1..20_u32, at in any::<prop::sample::Index>(), typo in "[0-9a-f_]") {
            let token = key(KEY).token(tag(job, attempt));
            let at = at.index(token.len());
            let mut mistyped = token.clone();
            mistyped.replace_range(at..=at, &typo);
            prop_assert_eq!(key(KEY).whose(&mistyped).is_some(), mistyped == token);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "(jgj_)?[0-9a-f_é+]{0,140}") {
            prop_assert_eq!(key(KEY).whose(&text), None);
        }
    }
}
