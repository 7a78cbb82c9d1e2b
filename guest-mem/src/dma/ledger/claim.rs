//! What an unmap or free says about a mapping, and how that compares with the truth.
//!
//! Neighbours: [`super::Ledger`] finds the mapping.

use super::{Misuse, Misuses};
use crate::addr::PhysAddr;
use crate::dma::direction::Dir;
use crate::dma::mapping::{Kind, Mapping};

/// What a call says about a mapping.
pub(super) struct Claim {
    pub(super) len: u64,
    pub(super) dir: Dir,
    pub(super) kind: Kind,
    /// Entries of the scatterlist; 0 for none.
    pub(super) entries: u32,
    /// Where a `dma_free_coherent` says that the memory lies.
    pub(super) cpu: Option<PhysAddr>,
}

impl Claim {
    /// Whether nothing is wrong that a lookup looks at.
    pub(super) fn is_perfect(&self, mapping: &Mapping) -> bool {
        mapping.len == self.len
            && mapping.dir == self.dir
            && mapping.kind == self.kind
            && mapping.entries.called == self.entries
    }

    /// What an unmap has wrong about a mapping (`check_unmap`).
    pub(super) fn compare(&self, mapping: &Mapping) -> Misuses {
        let mut misuses = Misuses::default();
        let (dma, len) = (mapping.dma, self.len);
        if mapping.len != len {
            misuses.push(Misuse::Size { dma, mapped: mapping.len, unmapped: len });
        }
        if mapping.kind != self.kind {
            misuses.push(Misuse::Function { dma, len, mapped: mapping.kind, unmapped: self.kind });
        } else if let Some(freed) = self.cpu.filter(|&cpu| cpu != mapping.orig) {
            misuses.push(Misuse::CpuAddress { dma, len, allocated: mapping.orig, freed });
        }
        self.compare_entries(mapping, |mapped, unmapped| misuses.push(Misuse::Entries { mapped, unmapped }));
        if mapping.dir != self.dir {
            misuses.push(Misuse::Direction { dma, len, mapped: mapping.dir, unmapped: self.dir });
        }
        if matches!(mapping.kind, Kind::Single | Kind::Resource) && !mapping.checked {
            misuses.push(Misuse::Unchecked { dma, len, kind: mapping.kind });
        }
        misuses
    }

    /// Tells a count of entries that is not that of the map call.
    pub(super) fn compare_entries(&self, mapping: &Mapping, tell: impl FnOnce(u32, u32)) {
        if self.kind == Kind::Sg && self.entries != 0 && self.entries != mapping.entries.called {
            tell(mapping.entries.called, self.entries);
        }
    }
}
