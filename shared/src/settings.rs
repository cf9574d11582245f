//! Pieces of a configuration file, as values that cannot be wrong.
//!
//! A range belongs to the type, so that a value outside it is refused by the parser, which knows its line. Durations are
//! written `"10s"`, sizes `"64 MiB"`. Nothing here reads a file or the environment; that is the command line's business.

use serde::{Deserialize, Serialize};
use std::{fmt, ops::Deref, str::FromStr, time::Duration};

/// For a `Duration` field: `#[serde(with = "settings::duration")]`, written `"1m 30s"`.
pub mod duration {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};
    use std::time::Duration;

    /// Reads `"10s"`.
    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(input)?;
        super::parse_duration(&text).map_err(D::Error::custom)
    }

    /// Writes `10s`.
    pub fn serialize<S: Serializer>(duration: &Duration, output: S) -> Result<S::Ok, S::Error> {
        output.collect_str(&humantime::format_duration(*duration))
    }
}

/// For a `u64` field that counts bytes: `#[serde(with = "settings::bytes")]`, written `"64 MiB"`.
pub mod bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    /// Reads `"64 MiB"`.
    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
        let text = String::deserialize(input)?;
        super::parse_bytes(&text).map_err(D::Error::custom)
    }

    /// Writes `64 MiB`.
    pub fn serialize<S: Serializer>(bytes: &u64, output: S) -> Result<S::Ok, S::Error> {
        output.collect_str(&super::ByteSize(*bytes))
    }
}

/// A text that is no value of the setting it stands in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingError(String);

fn parse_duration(text: &str) -> Result<Duration, SettingError> {
    humantime::parse_duration(text).map_err(|_| {
        SettingError(format!("{text:?} is not a duration such as \"10s\", \"1m 30s\" or \"7days\""))
    })
}

fn parse_bytes(text: &str) -> Result<u64, SettingError> {
    let digits = text.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let shift = match text.trim()[digits.len()..].trim() {
        "B" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        "TiB" => Some(40),
        _ => None,
    };
    let bytes = digits.parse::<u64>().ok().zip(shift).and_then(|(n, shift)| n.checked_mul(1 << shift));
    bytes.ok_or_else(|| {
        SettingError(format!("{text:?} is not a size such as \"512 B\", \"64 KiB\", \"16 MiB\" or \"2 GiB\""))
    })
}

/// Bytes, shown in the largest unit that keeps them whole.
struct ByteSize(u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let whole = |shift: u32| self.0 > 0 && self.0.trailing_zeros() >= shift;
        match units.into_iter().find(|(shift, _)| whole(*shift)) {
            Some((shift, unit)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "u32")]
pub struct Number<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> Number<MIN, MAX> {
    /// A number known when this is compiled; outside the range it does not compile in a `const`.
    pub const fn new(value: u32) -> Self {
        assert!(value >= MIN && value <= MAX, "outside the range of the setting");
        Self(value)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl<const MIN: u32, const MAX: u32> TryFrom<i64> for Number<MIN, MAX> {
    type Error = SettingError;
    fn try_from(value: i64) -> Result<Self, SettingError> {
        let number = u32::try_from(value).ok().filter(|n| (MIN..=MAX).contains(n));
        number.map(Self).ok_or_else(|| SettingError(format!("{value} is not within {MIN} to {MAX}")))
    }
}

impl<const MIN: u32, const MAX: u32> FromStr for Number<MIN, MAX> {
    type Err = SettingError;
    fn from_str(text: &str) -> Result<Self, SettingError> {
        let value =
            text.parse::<i64>().map_err(|_| SettingError(format!("{text:?} is not a whole number")))?;
        Self::try_from(value)
    }
}

impl<const MIN: u32, const MAX: u32> From<Number<MIN, MAX>> for u32 {
    fn from(number: Number<MIN, MAX>) -> Self {
        number.0
    }
}

/// A duration from `MIN` to `MAX` milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Period<const MIN: u64, const MAX: u64>(Duration);

impl<const MIN: u64, const MAX: u64> Period<MIN, MAX> {
    /// A duration known when this is compiled; outside the range it does not compile in a `const`.
    pub const fn new(value: Duration) -> Self {
        let millis = value.as_millis();
        assert!(millis >= MIN as u128 && millis <= MAX as u128, "outside the range of the setting");
        Self(value)
    }
}

impl<const MIN: u64, const MAX: u64> Deref for Period<MIN, MAX> {
    type Target = Duration;
    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl<const MIN: u64, const MAX: u64> TryFrom<String> for Period<MIN, MAX> {
    type Error = SettingError;
    fn try_from(text: String) -> Result<Self, SettingError> {
        let value = parse_duration(&text)?;
        if value.as_millis() >= u128::from(MIN) && value.as_millis() <= u128::from(MAX) {
            return Ok(Self(value));
        }
        let shown = |millis| humantime::format_duration(Duration::from_millis(millis));
        Err(SettingError(format!("{text:?} is not within {} to {}", shown(MIN), shown(MAX))))
    }
}

impl<const MIN: u64, const MAX: u64> From<Period<MIN, MAX>> for String {
    fn from(period: Period<MIN, MAX>) -> Self {
        humantime::format_duration(period.0).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Slots = Number<1, 1000>;
    type Ttl = Period<1_000, 60_000>;

    fn read<T: for<'de> Deserialize<'de>>(json: &str) -> Result<T, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn a_number_outside_its_range_is_refused_with_the_range() {
        assert_eq!(read::<Slots>("1000").map(Slots::get), Ok(1000));
        for bad in ["0", "1001", "-1"] {
            assert!(read::<Slots>(bad).unwrap_err().contains("is not within 1 to 1000"), "{bad}");
        }
        assert_eq!("7".parse::<Slots>(), Ok(Slots::new(7)));
    }

    #[test]
    fn a_duration_is_words_and_stays_within_its_range() {
        assert_eq!(read::<Ttl>(r#""10s""#), Ok(Ttl::new(Duration::from_secs(10))));
        assert!(read::<Ttl>(r#""2m""#).unwrap_err().contains("is not within 1s to 1m"));
        assert!(read::<Ttl>(r#""soon""#).unwrap_err().contains("is not a duration such as"));
        let shown = serde_json::to_string(&Ttl::new(Duration::from_millis(1500))).unwrap();
        assert_eq!(shown, r#""1s 500ms""#);
    }

    proptest! {
        #[test]
        fn any_text_is_a_setting_or_is_told_not_to_be(text in ".{0,12}|[0-9]{1,20} ?[KMGT]?i?B|-?[0-9]{1,22}|[0-9]{1,20}(ms|s|m|h|days)") {
            if let Ok(slots) = text.parse::<Slots>() {
                prop_assert!((1..=1000).contains(&slots.get()));
            }
            let quoted = serde_json::to_string(&text).unwrap();
            match read::<Ttl>(&quoted) {
                Ok(ttl) => prop_assert!((1..=60).contains(&ttl.as_secs()) && ttl.as_millis() <= 60_000),
                Err(said) => prop_assert!(said.contains("is not"), "{}", said),
            }
            if let Ok(bytes) = parse_bytes(&text) {
                prop_assert_eq!(parse_bytes(&ByteSize(bytes).to_string()), Ok(bytes));
            }
        }

        #[test]
        fn what_a_setting_shows_is_read_as_the_same(millis in 1_000..=60_000_u64, bytes: u64, slots in 1..=1000_u32) {
            let ttl = Ttl::new(Duration::from_millis(millis));
            prop_assert_eq!(read::<Ttl>(&serde_json::to_string(&ttl).unwrap()), Ok(ttl));
            prop_assert_eq!(parse_bytes(&ByteSize(bytes).to_string()), Ok(bytes));
            prop_assert_eq!(slots.to_string().parse(), Ok(Slots::new(slots)));
        }
    }

    #[test]
    fn a_size_has_a_unit_and_reads_back_as_itself() {
        for (text, bytes) in [("0 B", 0), ("512 B", 512), ("64 KiB", 65_536), ("3 GiB", 3 << 30)] {
            assert_eq!(parse_bytes(text), Ok(bytes));
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert_eq!(parse_bytes("64KiB"), Ok(65_536));
        for bad in ["", "64", "64 MB", "MiB", "-1 B", "1.5 GiB", "99999999999 TiB", "é"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
