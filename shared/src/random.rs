//! Chance where it may be guessed: identities and the jitter of delays. Secrets never come from here.
//!
//! The simulation seeds its threads, and then everything drawn here follows from the seed; no other thread notices.

use std::cell::Cell;
use uuid::{Builder, Uuid};

thread_local! {
    static SEEDED: Cell<Option<Stream>> = const { Cell::new(None) };
}

/// A reproducible stream of numbers (splitmix64).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(u64);

impl Stream {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

/// Until it is dropped, what this thread draws follows from the seed.
#[derive(Debug)]
#[must_use]
pub struct Seeded(());

/// Seeds this thread. For tests.
pub fn seed_this_thread(seed: u64) -> Seeded {
    SEEDED.set(Some(Stream::new(seed)));
    Seeded(())
}

impl Drop for Seeded {
    fn drop(&mut self) {
        SEEDED.set(None);
    }
}

/// The next bits of the thread's own stream, if it has one.
fn seeded_bits() -> Option<u64> {
    let mut stream = SEEDED.get()?;
    let bits = stream.bits();
    SEEDED.set(Some(stream));
    Some(bits)
}

/// A time-ordered identity (UUIDv7).
pub fn uuid() -> Uuid {
    let Some((high, low)) = seeded_bits().zip(seeded_bits()) else { return Uuid::now_v7() };
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&high.to_be_bytes()[..2]);
    bytes[2..].copy_from_slice(&low.to_be_bytes());
    // Any order of creation will do: nothing that is decided looks at it.
    Builder::from_unix_timestamp_millis(high >> 24, &bytes).into_uuid()
}

/// A number from 0 up to, and not including, 1.
pub fn share() -> f64 {
    let Some(bits) = seeded_bits() else { return rand::random() };
    f64::from(u32::try_from(bits >> 32).unwrap_or(u32::MAX)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_thread_draws_the_same_again_and_an_unseeded_one_never_does() {
        let draw = || (uuid(), uuid(), share().to_bits());
        let seeded = seed_this_thread(7);
        let first = draw();
        drop(seeded);
        assert_ne!(draw(), draw());
        let _seeded = seed_this_thread(7);
        assert_eq!(draw(), first);
        assert_eq!(first.0.get_version_num(), 7);
    }

    #[test]
    fn a_share_is_below_one_and_falls_into_every_tenth() {
        let _seeded = seed_this_thread(1);
        let mut tenths = [0; 10];
        for _ in 0..1_000 {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 9")]
            let tenth = (share() * 10.0) as usize;
            tenths[tenth] += 1;
        }
        assert!(tenths.iter().all(|n| *n > 50), "{tenths:?}");
    }
}
