//! What a token looks like: `jgt_<id>_<secret>_<checksum>`.
//!
//! The prefix lets scanners find leaked tokens, the checksum lets anyone refuse a mistyped one without asking the store.
//! Id (16 bytes) and secret (32 random bytes) are base 62, big-endian; the checksum is the CRC-32 of what stands before
//! it. Only the SHA-256 of the secret is ever stored.

use jobgate_shared::domain::TokenId;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

const PREFIX: &str = "jgt";
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ID_LENGTH: usize = 22;
const SECRET_LENGTH: usize = 43;
const CHECKSUM_LENGTH: usize = 6;

/// The two halves of a token as shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Presented<'a> {
    /// The public half.
    pub(super) id: TokenId,
    /// The secret half.
    pub(super) secret: Secret<'a>,
}

/// The secret half of a token; `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Secret<'a>(&'a str);

impl std::fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret<'_> {
    pub(super) fn sha256(self) -> [u8; 32] {
        sha256(self.0)
    }
}

pub(super) fn sha256(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// A new token for `id`: its text, and the digest to store.
pub(super) fn mint(id: TokenId) -> (String, [u8; 32]) {
    let secret = base62(&rand::random::<[u8; 32]>(), SECRET_LENGTH);
    let digest = sha256(&secret);
    let body = format!("{PREFIX}_{}_{secret}", base62(id.0.as_bytes(), ID_LENGTH));
    let checksum = checksum(&body);
    (format!("{body}_{checksum}"), digest)
}

/// Takes a token apart; `None` when it is none, or mistyped.
pub(super) fn parse(text: &str) -> Option<Presented<'_>> {
    let (body, sum) = text.rsplit_once('_')?;
    let mut parts = body.split('_');
    let (prefix, id, secret) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some()
        || prefix != PREFIX
        || id.len() != ID_LENGTH
        || secret.len() != SECRET_LENGTH
        || sum != checksum(body)
    {
        return None;
    }
    let id = unbase62(id)?;
    Some(Presented { id: TokenId(Uuid::from_u128(id)), secret: Secret(secret) })
}

fn checksum(body: &str) -> String {
    base62(&crc32fast::hash(body.as_bytes()).to_be_bytes(), CHECKSUM_LENGTH)
}

/// `bytes` as one big-endian number in base 62, padded to `length` digits.
fn base62(bytes: &[u8], length: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec![DIGITS[0]; length];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in &mut number {
            let value = remainder << 8 | u32::from(*byte);
            // Less than 62 × 256 / 62.
            *byte = u8::try_from(value / 62).unwrap_or(u8::MAX);
            remainder = value % 62;
        }
        *digit = DIGITS[remainder as usize];
    }
    digits.into_iter().map(char::from).collect()
}

fn unbase62(text: &str) -> Option<u128> {
    text.bytes().try_fold(0u128, |number, byte| {
        let value = match byte {
            b'0'..=b'9' => byte - b'0',
            b'A'..=b'Z' => byte - b'A' + 10,
            b'a'..=b'z' => byte - b'a' + 36,
            _ => return None,
        };
        number.checked_mul(62)?.checked_add(u128::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_reads_back_as_itself_and_no_single_typo_does(id: u128, at in 0usize..77, typo in "[0-9A-Za-z_]") {
            let (text, digest) = mint(TokenId(Uuid::from_u128(id)));
            prop_assert_eq!(text.len(), 77);
            let presented = parse(&text).unwrap();
            prop_assert_eq!(presented.id.0.as_u128(), id);
            prop_assert_eq!(presented.secret.sha256(), digest);
            let mut mistyped = text.clone();
            mistyped.replace_range(at..=at, &typo);
            prop_assert_eq!(parse(&mistyped).is_some(), mistyped == text);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(jgt_)?[0-9A-Za-z_é]{0,100}") {
            prop_assert!(parse(&text).is_none());
        }
    }

    #[test]
    fn base_62_pads_and_keeps_order() {
        assert_eq!(base62(&[0], 3), "000");
        assert_eq!(base62(&[61], 3), "00z");
        assert_eq!(base62(&[1, 0], 3), "048");
        assert_eq!(unbase62("048"), Some(256));
        assert_eq!(unbase62("0-8"), None);
    }
}
