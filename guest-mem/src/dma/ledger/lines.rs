//! Which cache lines a device's mappings begin in: dma-debug's search for overlapping mappings.
//!
//! Only what the device may write is looked at, and only the first line of each mapping. As in Linux a line counts to
//! [`MOST`] overlaps and is forgotten when the count runs out, so that beyond that its book is wrong; kept, because the
//! texts follow it. Mirrors `active_cacheline_*` of kernel/dma/debug.c. Neighbours: [`super::Ledger`]. Left out: lines
//! shared with another device's mappings, which Linux sees too.

use std::collections::HashMap;

use crate::dma::mapping::Mapping;

/// Overlaps that a line counts (`ACTIVE_CACHELINE_MAX_OVERLAP`).
pub const MOST: u32 = 7;

/// Bytes of a line.
const LINE: u64 = 64;

/// Overlaps by line; no order of them is ever looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(HashMap<u64, u32>);

/// The line that a mapping is known by, if it is tracked.
fn line_of(mapping: &Mapping) -> Option<u64> {
    (mapping.dir.device_writes() && !planted!(LinesApart)).then(|| mapping.orig.get() / LINE)
}

impl Lines {
    /// Counts a mapping; its line and the overlaps there are now, if another one has that line.
    pub(super) fn enter(&mut self, mapping: &Mapping) -> Option<(u64, u32)> {
        let line = line_of(mapping)?;
        match self.0.entry(line) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(0);
                None
            }
            std::collections::hash_map::Entry::Occupied(mut taken) => {
                let overlaps = *taken.get() + 1;
                taken.insert(overlaps.min(MOST));
                Some((line, overlaps))
            }
        }
    }

    /// Counts it off.
    pub(super) fn leave(&mut self, mapping: &Mapping) {
        let Some(line) = line_of(mapping) else { return };
        match self.0.get_mut(&line) {
            Some(overlaps) if *overlaps > 0 => *overlaps -= 1,
            _ => drop(self.0.remove(&line)),
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
