//! Texts that packets name by number: each is written once, in the packet that first needs it.
//!
//! Neighbours: `perfetto`. Left out: forgetting; past [`MOST`] texts the others are written out each time.

use std::collections::BTreeMap;

use super::proto::Message;

/// The most texts of one table.
const MOST: usize = 1 << 16;

/// What a table of `InternedData` holds: its field's number there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Table {
    Category = 1,
    EventName = 2,
    AnnotationName = 3,
    AnnotationText = 29,
}

/// All tables.
#[derive(Debug, Default)]
pub(super) struct Interned {
    known: BTreeMap<Table, BTreeMap<String, u64>>,
    /// The `InternedData` that the next packet has to carry.
    pub(super) fresh: Message,
}

impl Interned {
    /// A text's number, from 1; `None` if there are too many.
    pub(super) fn of(&mut self, table: Table, text: &str) -> Option<u64> {
        let known = self.known.entry(table).or_default();
        if let Some(&number) = known.get(text) {
            return Some(number);
        }
        if known.len() >= MOST {
            return None;
        }
        let number = known.len() as u64 + 1;
        known.insert(text.to_owned(), number);
        self.fresh.nested(table as u32, |entry| {
            entry.number(1, number).text(2, text);
        });
        Some(number)
    }
}
