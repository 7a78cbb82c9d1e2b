//! Amounts of memory, as scenario files write them: `512`, `"8K"`, `"64M"`, `"6G"`.
//!
//! Neighbours: every table of a scenario that holds bytes. Left out: fractions (`"1.5G"`) and decimal units, since
//! nothing here is measured in them.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};
use thiserror::Error;

/// A number of bytes.
///
/// Written as an integer or as digits and one of `K`, `M`, `G`, `T` (powers of 1024).
///
/// ```
/// use lowzone::spec::Size;
/// assert_eq!("8K".parse(), Ok(Size(8192)));
/// assert_eq!(Size(6 << 30).to_string(), "6G");
/// assert!("8 KiB".parse::<Size>().unwrap_err().to_string().starts_with("'8 KiB' is not a size"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Size(pub u64);

/// Why a text is not a [`Size`].
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SizeError {
    /// Not digits with at most one of `K M G T` behind them.
    #[error("'{0}' is not a size such as 512, \"64K\" or \"6G\"")]
    Form(String),
    /// More bytes than 64 bits count.
    #[error("'{0}' is more than 64 bits can count")]
    TooLarge(String),
}

/// Suffixes and their shifts, smallest first.
const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// What the JSON Schema accepts, and [`FromStr`] with it.
const PATTERN: &str = "^[0-9]+[KMGT]?$";

impl Size {
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let (digits, shift) = UNITS
            .iter()
            .find_map(|&(unit, shift)| text.strip_suffix(unit).map(|digits| (digits, shift)))
            .unwrap_or((text, 0));
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(SizeError::Form(text.to_owned()));
        }
        let too_large = || SizeError::TooLarge(text.to_owned());
        let number: u64 = digits.parse().map_err(|_| too_large())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(too_large)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match UNITS.iter().rev().find(|&&(_, shift)| fits(shift)) {
            Some(&(unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 512, \"64K\" or \"6G\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Text)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Bytes: an integer, or digits and one of K, M, G, T (powers of 1024).",
            "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string", "pattern": PATTERN }],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [("0", 0), ("512", 512), ("4K", 4096), ("64M", 64 << 20), ("6G", 6 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_named() {
        for text in ["", "K", "4k", "4KB", "4 K", "-1", "+1", "1.5G", "0x10", "١K", "K4"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::Form(text.to_owned())));
        }
        for text in ["18446744073709551616", "16777216T", "99999999999999999999K"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::TooLarge(text.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn printed_and_read_back_is_the_same(odd in any::<u32>(), shift in 0u32..32) {
            let size = Size(u64::from(odd) << shift);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}
