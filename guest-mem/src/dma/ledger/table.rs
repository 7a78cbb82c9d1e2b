//! The ledger's index: live mappings sorted by device address, overlaps allowed.
//!
//! A sorted vector, because the few hundred to few thousand keys of a device fit the cache and need no allocation in
//! steady state: finding is a binary search, adding and removing one `memmove` (24 bytes a key). A mapping that holds
//! an address begins at most the longest live length before it; that bound, rounded up to a power of two less one,
//! comes from a count of live mappings by the bits of their length, so that it shrinks when the long ones go.
//!
//! Neighbours: the ledger has one for coherent memory and one for streaming mappings. Left out: the mappings.

use crate::addr::DmaAddr;
use crate::dma::mapping::{covers, overlaps};

/// One live mapping; `slot` is its place in the ledger's slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) dma: u64,
    pub(super) len: u64,
    pub(super) slot: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    keys: Vec<Key>,
    /// Live mappings by the number of significant bits of their length.
    by_bits: [u32; 65],
    /// No live mapping is longer.
    reach: u64,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { keys: Vec::new(), by_bits: [0; 65], reach: 0 }
    }

    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Adds a mapping, behind those that begin at the same address.
    pub(super) fn insert(&mut self, key: Key) {
        let at = self.keys.partition_point(|old| old.dma <= key.dma);
        self.keys.insert(at, key);
        self.by_bits[bits(key.len)] += 1;
        self.reach = self.reach.max(longest(bits(key.len)));
    }

    /// Removes the mapping with this slot; false if it is not there.
    pub(super) fn remove(&mut self, dma: u64, slot: usize) -> bool {
        let from = self.keys.partition_point(|key| key.dma < dma);
        let here = self.keys[from..].iter().take_while(|key| key.dma == dma).position(|key| key.slot == slot);
        let Some(offset) = here else { return false };
        let key = self.keys.remove(from + offset);
        let count = &mut self.by_bits[bits(key.len)];
        *count -= 1;
        if *count == 0 {
            self.reach = self.by_bits.iter().rposition(|&count| count > 0).map_or(0, longest);
        }
        true
    }

    pub(super) fn clear(&mut self) {
        self.keys.clear();
        self.by_bits = [0; 65];
        self.reach = 0;
    }

    /// Those that begin at the address, oldest first.
    pub(super) fn at(&self, dma: DmaAddr) -> &[Key] {
        let from = self.keys.partition_point(|key| key.dma < dma.get());
        let count = self.keys[from..].iter().take_while(|key| key.dma == dma.get()).count();
        &self.keys[from..from + count]
    }

    /// Those that hold all of the range: the nearest beginning first, of one address the newest first.
    #[inline]
    pub(super) fn covering(&self, dma: DmaAddr, len: u64) -> impl Iterator<Item = &Key> {
        let (at, reach) = (dma.get(), self.reach);
        let end = self.keys.partition_point(|key| key.dma <= at);
        let near = self.keys[..end].iter().rev().take_while(move |key| at - key.dma <= reach);
        near.filter(move |key| covers(key.dma, key.len, at, len))
    }

    /// Those that hold any of the range, by address.
    pub(super) fn overlapping(&self, dma: DmaAddr, len: u64) -> impl Iterator<Item = &Key> {
        let at = dma.get();
        let from = self.keys.partition_point(|key| key.dma < at.saturating_sub(self.reach));
        let near = self.keys[from..].iter().take_while(move |key| key.dma <= at || key.dma - at < len);
        near.filter(move |key| overlaps(key.dma, key.len, at, len))
    }

    /// Whether order, counts and bound agree with the keys.
    pub(super) fn is_consistent(&self) -> bool {
        let mut by_bits = [0; 65];
        for key in &self.keys {
            by_bits[bits(key.len)] += 1;
        }
        let longest_live = self.keys.iter().map(|key| key.len).max().unwrap_or(0);
        self.keys.is_sorted_by_key(|key| key.dma)
            && by_bits == self.by_bits
            && longest_live <= self.reach
            && self.reach <= longest(bits(longest_live))
    }
}

fn bits(len: u64) -> usize {
    usize::try_from(u64::BITS - len.leading_zeros()).unwrap_or(0)
}

/// The longest length of so many bits.
fn longest(bits: usize) -> u64 {
    u32::try_from(bits).ok().and_then(|bits| u64::MAX.checked_shr(u64::BITS.saturating_sub(bits))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_follows_the_longest_mapping_up_and_down() {
        let mut table = Table::new();
        for (slot, len) in [4096, 0, 300, u64::MAX].into_iter().enumerate() {
            table.insert(Key { dma: 64, len, slot });
            assert!(table.is_consistent());
        }
        assert_eq!(table.reach, u64::MAX);
        assert!(table.remove(64, 3) && !table.remove(64, 3) && !table.remove(65, 0));
        assert_eq!(table.reach, 8191);
        assert!(table.remove(64, 0) && table.remove(64, 2));
        assert_eq!(table.reach, 0, "only the empty one is left");
        assert!(table.is_consistent());
    }

    #[test]
    fn a_long_mapping_is_found_behind_many_short_ones() {
        let mut table = Table::new();
        table.insert(Key { dma: 0, len: 4096, slot: 99 });
        for slot in 0..64 {
            table.insert(Key { dma: 16 * slot as u64, len: 8, slot });
        }
        let slots = |dma, len| table.covering(DmaAddr::new(dma), len).map(|key| key.slot).collect::<Vec<_>>();
        assert_eq!(slots(16 * 63, 8), [63, 99]);
        assert_eq!(slots(16 * 63 + 8, 8), [99]);
        assert_eq!(slots(4096, 1), [0; 0]);
        let touched: Vec<_> = table.overlapping(DmaAddr::new(20), 20).map(|key| key.slot).collect();
        assert_eq!(touched, [99, 1, 2]);
    }
}
