//! What a `[machine]` watches: the words of `sanitize = […]`.
//!
//! Neighbours: `machine`, whose key it is; the kernel's [`Sanitize`], which says what each does. Left out: budgets.

use std::fmt;

use lowzone_guest_mem::kernel::Sanitize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A watch over kernel memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sanitizer {
    /// Free objects hold a pattern that is looked at when they are used again (slub_debug=FP).
    Poison,
    /// Objects lie between bytes that are looked at when they are freed (slub_debug=FZ).
    RedZone,
    /// Who freed an object is remembered (slub_debug=U).
    Track,
    /// Freed objects are held back, filled, and looked at when they leave.
    Quarantine,
    /// A kmalloc beyond the 128 KiB that "Linux Device Drivers" calls portable is a finding.
    PortableKmalloc,
}

impl Sanitizer {
    const ALL: [(Self, &'static str, Sanitize); 5] = [
        (Self::Poison, "poison", Sanitize::POISON),
        (Self::RedZone, "red-zone", Sanitize::RED_ZONE),
        (Self::Track, "track", Sanitize::TRACK),
        (Self::Quarantine, "quarantine", Sanitize::QUARANTINE),
        (Self::PortableKmalloc, "portable-kmalloc", Sanitize::PORTABLE),
    ];

    /// The kernel's option for all of them.
    pub fn kernel(all: &[Self]) -> Sanitize {
        let chosen = Self::ALL.iter().filter(|(one, ..)| all.contains(one));
        chosen.fold(Sanitize::empty(), |options, (.., option)| options | *option)
    }
}

impl fmt::Display for Sanitizer {
    /// As the file says it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(one, ..)| one == self).map_or("", |(_, name, _)| name);
        f.pad(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_written_as_it_prints_and_has_an_option_of_its_own() {
        for (one, name, option) in Sanitizer::ALL {
            assert_eq!(serde_json::to_value(one).unwrap(), name);
            assert_eq!((one.to_string().as_str(), Sanitizer::kernel(&[one])), (name, option));
        }
        let all: Vec<_> = Sanitizer::ALL.iter().map(|(one, ..)| *one).collect();
        assert_eq!(Sanitizer::kernel(&all), Sanitize::all());
    }
}
