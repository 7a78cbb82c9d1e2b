//! The ledger's check of itself, for tests: index, slab and free list against each other.
//!
//! Neighbours: [`super::Ledger`].

use thiserror::Error;

use super::{Entry, Ledger};
use crate::dma::mapping::Kind;

/// What [`Ledger::validate`] finds broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// The index is out of order, or its bounds are wrong.
    #[error("the index of {live} live mappings is inconsistent")]
    Index {
        /// Keys in it.
        live: usize,
    },
    /// A key and the entry it leads to differ.
    #[error("entry {slot} of the ledger is inconsistent")]
    Entry {
        /// Place in the slab.
        slot: usize,
    },
    /// Entries have been lost.
    #[error("{lost} entries of the ledger are neither live nor free")]
    Lost {
        /// How many.
        lost: usize,
    },
}

impl Ledger {
    /// Checks index, slab and free list against each other; for tests, O(n).
    ///
    /// # Errors
    /// The first [`LedgerError`] there is.
    pub fn validate(&self) -> Result<(), LedgerError> {
        let live = self.len();
        for (table, coherent) in [(&self.coherent, true), (&self.streaming, false)] {
            if !table.is_consistent() {
                return Err(LedgerError::Index { live });
            }
            for key in table.keys() {
                let fits = |entry: &Entry| {
                    let mapping = &entry.mapping;
                    entry.serial > 0
                        && (mapping.dma.get(), mapping.len) == (key.dma, key.len)
                        && (mapping.kind == Kind::Coherent) == coherent
                };
                if !self.slab.get(key.slot).is_some_and(fits) {
                    return Err(LedgerError::Entry { slot: key.slot });
                }
            }
        }
        if let Some(&slot) = self.free.iter().find(|&&slot| self.slab.get(slot).is_none_or(|entry| entry.serial > 0)) {
            return Err(LedgerError::Entry { slot });
        }
        let taken = self.slab.iter().filter(|entry| entry.serial > 0).count();
        match taken.abs_diff(live) + (self.slab.len() - taken).abs_diff(self.free.len()) {
            0 => Ok(()),
            lost => Err(LedgerError::Lost { lost }),
        }
    }
}
