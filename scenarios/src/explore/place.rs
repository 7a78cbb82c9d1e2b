//! Where a fault strikes, and what it is: stable names, so that a token outlives the line it was found at.
//!
//! A point is named by its class, the path of spans that was open (drivers open one for each phase and function that
//! matters), and how many of the same there were before it. Source lines are shown, never part of the name.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use lowzone_device::misbehave::Mishap;
use lowzone_guest_mem::env::Class;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::world::Exception;

/// What happens to an interrupt message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum IrqMishap {
    /// It never arrives.
    Lost,
    /// It arrives a millisecond later.
    Late,
    /// It arrives twice.
    Spurious,
}

impl IrqMishap {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Lost, Self::Late, Self::Spurious];

    /// Its name in tokens and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lost => "irq-lost",
            Self::Late => "irq-late",
            Self::Spurious => "irq-spurious",
        }
    }
}

/// A point by its stable name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Place {
    /// The class.
    pub class: Class,
    /// The path of open spans, `-` for none.
    pub scope: String,
    /// How many of the same class and scope were passed before.
    pub occurrence: u32,
}

/// One fault.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Strike {
    /// A point fails: an allocation returns nothing, a register reads all-ones.
    Fail {
        /// Which.
        place: Place,
        /// Whether all later points of the class fail too.
        persistent: bool,
    },
    /// The device is pulled out at a register access.
    Remove {
        /// Which.
        place: Place,
    },
    /// Something happens to an interrupt message.
    Irq {
        /// What.
        what: IrqMishap,
        /// Which, counted from 0.
        nth: u64,
        /// Whether it happens to all later ones too.
        persistent: bool,
    },
    /// The device misbehaves at a completion.
    Completion {
        /// How.
        what: Mishap,
        /// Which, counted from 0.
        nth: u64,
        /// Whether it does so at all later ones too.
        persistent: bool,
    },
    /// No fault: events come in the order of a random schedule.
    Schedule {
        /// Which of the seed's schedules.
        nth: u64,
    },
    /// No fault: events come in order, but for these exceptions.
    Order {
        /// At which choice point which other actor goes on.
        exceptions: Vec<Exception>,
    },
}

/// The class of [`Strike::Schedule`].
const SCHEDULE: &str = "schedule";
/// The class of [`Strike::Order`].
const ORDER: &str = "order";

impl Strike {
    /// The row it belongs to: its class, by the name that tables and tokens use.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Fail { place, .. } => place.class.name(),
            Self::Remove { .. } => "removal",
            Self::Irq { what, .. } => what.name(),
            Self::Completion { what, .. } => what.name(),
            Self::Schedule { .. } => SCHEDULE,
            Self::Order { .. } => ORDER,
        }
    }

    /// Whether it is a fault, and not an order of events.
    pub const fn is_fault(&self) -> bool {
        !matches!(self, Self::Schedule { .. } | Self::Order { .. })
    }

    /// Whether a real machine can do this; for allocations and mappings the point itself knows better.
    pub const fn is_hardware(&self) -> bool {
        !matches!(self, Self::Fail { .. })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}#{}", self.class.name(), self.scope, self.occurrence)
    }
}

fn star(persistent: bool) -> &'static str {
    if persistent { "*" } else { "" }
}

impl fmt::Display for Strike {
    /// `slab:io/write#3`, with `*` where all later ones are hit too; `removal@mmio:probe#7`; `irq-lost#2`; the orders
    /// `schedule#17` and `order#12=1,40=2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fail { place, persistent } => write!(f, "{place}{}", star(*persistent)),
            Self::Remove { place } => write!(f, "removal@{place}"),
            Self::Irq { what, nth, persistent } => write!(f, "{}#{nth}{}", what.name(), star(*persistent)),
            Self::Completion { what, nth, persistent } => write!(f, "{}#{nth}{}", what.name(), star(*persistent)),
            Self::Schedule { nth } => write!(f, "{SCHEDULE}#{nth}"),
            Self::Order { exceptions } => {
                let exceptions: Vec<_> = exceptions.iter().map(|(at, other)| format!("{at}={other}")).collect();
                write!(f, "{ORDER}#{}", exceptions.join(","))
            }
        }
    }
}

/// A text that names no fault.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "'{0}' is no fault: want CLASS:SCOPE#N, CLASS#N or removal@CLASS:SCOPE#N, with * at the end for all later ones, or \
     an order of events: schedule#N or order#AT=OTHER,..."
)]
pub struct StrikeError(pub String);

impl FromStr for Place {
    type Err = StrikeError;

    fn from_str(text: &str) -> Result<Self, StrikeError> {
        let bad = || StrikeError(text.to_owned());
        let (class, rest) = text.split_once(':').ok_or_else(bad)?;
        let (scope, occurrence) = rest.rsplit_once('#').ok_or_else(bad)?;
        Ok(Self {
            class: Class::from_str(class).map_err(|_| bad())?,
            scope: scope.to_owned(),
            occurrence: occurrence.parse().map_err(|_| bad())?,
        })
    }
}

/// The exceptions of an order, as tokens have them.
fn exceptions(text: &str) -> Option<Vec<Exception>> {
    let parts = text.split(',').filter(|_| !text.is_empty());
    parts
        .map(|part| part.split_once('=').and_then(|(at, other)| Some((at.parse().ok()?, other.parse().ok()?))))
        .collect()
}

impl FromStr for Strike {
    type Err = StrikeError;

    fn from_str(text: &str) -> Result<Self, StrikeError> {
        let bad = || StrikeError(text.to_owned());
        if let Some(place) = text.strip_prefix("removal@") {
            return Ok(Self::Remove { place: place.parse()? });
        }
        if let Some((ORDER, list)) = text.split_once('#') {
            return exceptions(list).map(|exceptions| Self::Order { exceptions }).ok_or_else(bad);
        }
        let (name, persistent) = text.strip_suffix('*').map_or((text, false), |name| (name, true));
        if name.contains(':') {
            return Ok(Self::Fail { place: name.parse()?, persistent });
        }
        let (class, nth) = name.split_once('#').ok_or_else(bad)?;
        let nth = nth.parse().map_err(|_| bad())?;
        if class == SCHEDULE && !persistent {
            return Ok(Self::Schedule { nth });
        }
        if let Some(what) = IrqMishap::ALL.into_iter().find(|what| what.name() == class) {
            return Ok(Self::Irq { what, nth, persistent });
        }
        let what = Mishap::ALL.into_iter().find(|what| what.name() == class).ok_or_else(bad)?;
        Ok(Self::Completion { what, nth, persistent })
    }
}

impl Serialize for Strike {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Strike {
    fn schema_name() -> Cow<'static, str> {
        "Strike".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A fault or an order of events, as tokens have them: CLASS:SCOPE#N, CLASS#N or removal@CLASS:SCOPE#N, with * at the end for all later ones, schedule#N, order#AT=OTHER,...",
            "type": "string",
        })
    }
}

impl<'de> Deserialize<'de> for Strike {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_what_they_name() {
        for text in [
            "slab:io/write#3",
            "slab:-#0*",
            "removal@mmio:probe/init_vqs#12",
            "irq-lost#2",
            "completion-twice#0*",
            "schedule#17",
            "order#",
            "order#3=1,40=2",
        ] {
            assert_eq!(text.parse::<Strike>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "slab",
            "slab:io",
            "slab:io#x",
            "nothing#1",
            "nothing:io#1",
            "removal@irq-lost#1",
            "schedule#1*",
            "schedule#",
            "order#1",
            "order#1=",
            "order",
        ] {
            assert!(text.parse::<Strike>().is_err(), "{text}");
        }
    }
}
