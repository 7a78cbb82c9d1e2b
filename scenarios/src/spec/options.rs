//! `options = { … }`: what a driver or device of the user's own reads, and the lab doesn't.
//!
//! Keys are checked against the kind's when a scenario is loaded; types when they are read, by [`Options::number`] and
//! its like. Neighbours: `driver` and `device`, which have such a table. Left out: lists, tables, fractions.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum OptionValue {
    /// `true` or `false`.
    Flag(bool),
    /// A whole number from 0.
    Number(u64),
    /// A text.
    Text(String),
}

/// An option of another type than its reader wants.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("option '{key}' is {found}; it must be {wanted}")]
pub struct OptionError {
    /// The option.
    pub key: String,
    /// Its value.
    pub found: OptionValue,
    /// What it must be.
    pub wanted: &'static str,
}

/// Options by name.
///
/// ```
/// use lowzone::spec::Options;
/// let options: Options = toml::from_str("bytes = 512\nname = 'x'").unwrap();
/// assert_eq!(options.number("bytes", 64), Ok(512));
/// assert_eq!(options.number("other", 64), Ok(64));
/// assert_eq!(
///     options.flag("name", true).unwrap_err().to_string(),
///     "option 'name' is \"x\"; it must be true or false"
/// );
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Options(BTreeMap<String, OptionValue>);

impl Options {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The option of this name.
    pub fn get(&self, key: &str) -> Option<&OptionValue> {
        self.0.get(key)
    }

    /// A number, or `default` if the option isn't given.
    ///
    /// # Errors
    /// [`OptionError`] if it is no number.
    pub fn number(&self, key: &str, default: u64) -> Result<u64, OptionError> {
        match self.get(key) {
            None => Ok(default),
            Some(OptionValue::Number(number)) => Ok(*number),
            Some(other) => Err(wrong(key, other, "a whole number")),
        }
    }

    /// `true` or `false`, or `default` if the option isn't given.
    ///
    /// # Errors
    /// [`OptionError`] if it is neither.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, OptionError> {
        match self.get(key) {
            None => Ok(default),
            Some(OptionValue::Flag(flag)) => Ok(*flag),
            Some(other) => Err(wrong(key, other, "true or false")),
        }
    }

    /// A text, or `default` if the option isn't given.
    ///
    /// # Errors
    /// [`OptionError`] if it is no text.
    pub fn text<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, OptionError> {
        match self.get(key) {
            None => Ok(default),
            Some(OptionValue::Text(text)) => Ok(text),
            Some(other) => Err(wrong(key, other, "a text in quotes")),
        }
    }
}

fn wrong(key: &str, found: &OptionValue, wanted: &'static str) -> OptionError {
    OptionError { key: key.to_owned(), found: found.clone(), wanted }
}

impl fmt::Display for OptionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl<'de> Deserialize<'de> for OptionValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = OptionValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 0, a text in quotes, true or false")
            }

            fn visit_bool<E: de::Error>(self, flag: bool) -> Result<OptionValue, E> {
                Ok(OptionValue::Flag(flag))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<OptionValue, E> {
                Ok(OptionValue::Number(number))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<OptionValue, E> {
                let wrong = |_| E::invalid_value(de::Unexpected::Signed(number), &self);
                u64::try_from(number).map(OptionValue::Number).map_err(wrong)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OptionValue, E> {
                Ok(OptionValue::Text(text.to_owned()))
            }
        }
        from.deserialize_any(Any)
    }
}

impl JsonSchema for Options {
    fn schema_name() -> Cow<'static, str> {
        "Options".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Options of the user's own driver or device, by name.",
            "type": "object",
            "additionalProperties": {
                "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string" }, { "type": "boolean" }],
            },
        })
    }
}
