//! A choice among the kinds of events, as `--trace-kinds` has it.
//!
//! Neighbours: `lab` masks the others out. Left out: details, which go with their event.

use std::str::FromStr;

use lowzone_guest_mem::trace::Kind;
use thiserror::Error;

/// Some kinds of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kinds(Vec<Kind>);

/// A name that belongs to no kind.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no kind or system of events is called '{name}'; systems are {}", systems().join(", "))]
pub struct UnknownKind {
    /// The name.
    pub name: String,
}

fn events() -> impl Iterator<Item = Kind> {
    Kind::ALL.iter().copied().filter(|kind| !kind.is_detail())
}

fn system(kind: Kind) -> &'static str {
    kind.name().split_once(':').map_or(kind.name(), |(system, _)| system)
}

fn systems() -> Vec<&'static str> {
    let mut systems: Vec<_> = events().map(system).collect();
    systems.dedup();
    systems.sort_unstable();
    systems.dedup();
    systems
}

impl Kinds {
    /// Each of them.
    pub fn all(&self) -> impl Iterator<Item = Kind> {
        self.0.iter().copied()
    }
}

impl FromStr for Kinds {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let mut kinds = Vec::new();
        for name in text.split(',').map(str::trim) {
            let before = kinds.len();
            kinds.extend(events().filter(|kind| kind.name() == name || system(*kind) == name));
            if kinds.len() == before {
                return Err(UnknownKind { name: name.to_owned() });
            }
        }
        Ok(Self(kinds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_by_themselves_or_by_their_system() {
        let of = |text: &str| text.parse::<Kinds>();
        let port = [Kind::PortRead, Kind::PortWrite, Kind::PortViolation];
        assert_eq!(of("port").unwrap().all().collect::<Vec<_>>(), port);
        assert_eq!(of("virtq:add, port").unwrap().all().collect::<Vec<_>>(), [&[Kind::VirtqAdd][..], &port].concat());
        let error = of("dma,prot").unwrap_err().to_string();
        assert!(error.contains("'prot'") && error.contains("dma, irq, kmem"), "{error}");
        assert!(of("detail").is_err() && of("").is_err());
    }
}
