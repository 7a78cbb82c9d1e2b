//! Places in a scenario: `machine.ram`, `device[0].width`, `step[1].io.requests`.
//!
//! Neighbours: `locate` (path to place in the text), `set` (path to value), `check`, which names what it refuses by
//! its path. Left out: quoted keys with dots in them; no key of a scenario needs quotes.

use std::fmt;

/// One part of a [`KeyPath`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Part {
    /// A key of a table.
    Key(String),
    /// An element of an array, from 0.
    Index(usize),
}

/// The way from the root of a scenario to one value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct KeyPath(Vec<Part>);

impl KeyPath {
    /// The value of a key in the table that this leads to.
    pub(super) fn key(&self, name: &str) -> Self {
        self.with(Part::Key(name.to_owned()))
    }

    /// An element of the array that this leads to.
    pub(super) fn index(&self, at: usize) -> Self {
        self.with(Part::Index(at))
    }

    fn with(&self, part: Part) -> Self {
        let mut parts = self.0.clone();
        parts.push(part);
        Self(parts)
    }

    /// The parts, root first.
    pub(super) fn parts(&self) -> &[Part] {
        &self.0
    }

    /// The path without its last part; `None` of the root.
    pub(super) fn parent(&self) -> Option<Self> {
        self.0.split_last().map(|(_, rest)| Self(rest.to_vec()))
    }

    /// The last key in it, which is what a person calls the value; empty for the root.
    pub(crate) fn leaf(&self) -> &str {
        self.0.iter().rev().find_map(Part::name).unwrap_or_default()
    }

    /// Whether one of the two lies in the other, or they are the same.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a == b)
    }

    /// Reads a path as a person writes it; `None` if it is not one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        for piece in text.split('.') {
            let (name, mut rest) = piece.split_at(piece.find('[').unwrap_or(piece.len()));
            if name.is_empty() || name.chars().any(|c| c.is_whitespace() || matches!(c, ']' | '"' | '\'')) {
                return None;
            }
            parts.push(Part::Key(name.to_owned()));
            while !rest.is_empty() {
                let (number, after) = rest.strip_prefix('[')?.split_once(']')?;
                if !number.bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                parts.push(Part::Index(number.parse().ok()?));
                rest = after;
            }
        }
        Some(Self(parts))
    }
}

impl Part {
    /// The key, if it is one.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Key(name) => Some(name),
            Self::Index(_) => None,
        }
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.0.iter().enumerate() {
            match part {
                Part::Key(name) if i == 0 => f.write_str(name)?,
                Part::Key(name) => write!(f, ".{name}")?,
                Part::Index(at) => write!(f, "[{at}]")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_back() {
        for text in ["story", "machine.ram", "device[0].width", "device.vda.width", "step[12].io.requests", "a[0][1]"] {
            assert_eq!(KeyPath::parse(text).map(|path| path.to_string()).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in ["", ".", "a.", ".a", "a..b", "[0]", "a[", "a[]x", "a[-1]", "a[+1]", "a[0]b", "a b", "a]", "\"a\""]
        {
            assert_eq!(KeyPath::parse(text), None, "{text}");
        }
        assert_eq!(KeyPath::parse("a[99999999999999999999]"), None);
    }

    #[test]
    fn overlap_is_to_be_on_one_branch() {
        let path = |text| KeyPath::parse(text).unwrap();
        assert!(path("machine.ram").overlaps(&path("machine")));
        assert!(path("machine").overlaps(&path("machine.ram")));
        assert!(!path("machine.ram").overlaps(&path("machine.low")));
        assert!(!path("device[0].width").overlaps(&path("device[1].width")));
    }
}
