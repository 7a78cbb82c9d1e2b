//! The ledger's index: live mappings sorted by device address, overlaps allowed.
//!
//! Sorted runs of at most [`RUN`] keys each, the runs in order: finding is a binary search over the runs' first
//! addresses and one in a run, adding and removing a `memmove` within a run (24 bytes a key). A device with a few
//! hundred mappings has one run or two, which fit the cache; a million cost no more than the logarithm. Runs that go
//! empty are kept for later ones, so nothing is allocated in steady state. A mapping that holds an address begins at most the
//! longest live length before it; that bound, rounded up to a power of two less one, comes from a count of live
//! mappings by the bits of their length, so that it shrinks when the long ones go.
//!
//! Neighbours: the ledger has one for coherent memory and one for streaming mappings. Left out: the mappings.

use crate::addr::DmaAddr;
use crate::dma::mapping::{covers, overlaps};

/// The most keys of a run: 6 KiB of them, half of which an insertion moves.
const RUN: usize = 256;
/// A run and its neighbour with no more keys than this together become one.
const FEW: usize = RUN / 4;

/// One live mapping; `slot` is its place in the ledger's slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) dma: u64,
    pub(super) len: u64,
    pub(super) slot: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Never none; only the one run of an empty table is empty.
    runs: Vec<Vec<Key>>,
    /// The address that each run begins with; 0 of an empty one.
    firsts: Vec<u64>,
    /// Empty runs that have their room.
    spare: Vec<Vec<Key>>,
    len: usize,
    /// Live mappings by the number of significant bits of their length.
    by_bits: [u32; 65],
    /// No live mapping is longer.
    reach: u64,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { runs: vec![Vec::new()], firsts: vec![0], spare: Vec::new(), len: 0, by_bits: [0; 65], reach: 0 }
    }

    /// All keys, by address.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.runs.iter().flatten()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The run and the place in it before which the address of every key `is`, and of none after.
    #[inline]
    fn place(&self, is: impl Fn(u64) -> bool) -> (usize, usize) {
        let run = match self.firsts.len() {
            1 => 0,
            _ => self.firsts.partition_point(|&first| is(first)).saturating_sub(1),
        };
        (run, self.runs[run].partition_point(|key| is(key.dma)))
    }

    /// Keys from a place on.
    #[inline]
    fn from(&self, (run, at): (usize, usize)) -> impl Iterator<Item = &Key> {
        self.runs[run][at..].iter().chain(self.runs[run + 1..].iter().flatten())
    }

    /// Keys before a place, the nearest first.
    #[inline]
    fn before(&self, (run, at): (usize, usize)) -> impl Iterator<Item = &Key> {
        self.runs[run][..at].iter().rev().chain(self.runs[..run].iter().rev().flat_map(|run| run.iter().rev()))
    }

    /// Adds a mapping, behind those that begin at the same address.
    pub(super) fn insert(&mut self, key: Key) {
        let (mut run, mut at) = self.place(|dma| dma <= key.dma);
        if self.runs[run].len() == RUN {
            self.split(run);
            if at > RUN / 2 {
                (run, at) = (run + 1, at - RUN / 2);
            }
        }
        self.runs[run].insert(at, key);
        self.firsts[run] = self.runs[run][0].dma;
        self.len += 1;
        self.by_bits[bits(key.len)] += 1;
        self.reach = self.reach.max(longest(bits(key.len)));
    }

    /// Makes two runs of a full one.
    fn split(&mut self, run: usize) {
        let mut upper = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(RUN));
        upper.extend(self.runs[run].drain(RUN / 2..));
        self.firsts.insert(run + 1, upper[0].dma);
        self.runs.insert(run + 1, upper);
    }

    /// Removes the mapping with this slot; false if it is not there.
    pub(super) fn remove(&mut self, dma: u64, slot: usize) -> bool {
        let (mut run, mut at) = self.place(|old| old < dma);
        loop {
            match self.runs[run].get(at) {
                Some(key) if key.dma == dma && key.slot == slot => break,
                Some(key) if key.dma == dma => at += 1,
                None if run + 1 < self.runs.len() => (run, at) = (run + 1, 0),
                _ => return false,
            }
        }
        let key = self.runs[run].remove(at);
        self.len -= 1;
        self.tidy(run);
        let count = &mut self.by_bits[bits(key.len)];
        *count -= 1;
        if *count == 0 {
            self.reach = self.by_bits.iter().rposition(|&count| count > 0).map_or(0, longest);
        }
        true
    }

    /// After a removal: joins a run that has become short with the next, or the last with the one before.
    fn tidy(&mut self, run: usize) {
        if self.runs.len() > 1 && self.runs[run].len() < FEW {
            let lower = if run + 1 < self.runs.len() { run } else { run - 1 };
            if self.runs[lower].len() + self.runs[lower + 1].len() <= FEW || self.runs[run].is_empty() {
                let mut upper = self.runs.remove(lower + 1);
                self.firsts.remove(lower + 1);
                self.runs[lower].append(&mut upper);
                self.spare.push(upper);
                self.firsts[lower] = self.runs[lower].first().map_or(0, |key| key.dma);
                return;
            }
        }
        self.firsts[run] = self.runs[run].first().map_or(0, |key| key.dma);
    }

    pub(super) fn clear(&mut self) {
        let used = self.runs.drain(1..);
        self.spare.extend(used.map(|mut run| {
            run.clear();
            run
        }));
        self.runs[0].clear();
        self.firsts.truncate(1);
        self.firsts[0] = 0;
        self.len = 0;
        self.by_bits = [0; 65];
        self.reach = 0;
    }

    /// Those that begin at the address, oldest first.
    #[inline]
    pub(super) fn at(&self, dma: DmaAddr) -> impl Iterator<Item = &Key> {
        self.from(self.place(|old| old < dma.get())).take_while(move |key| key.dma == dma.get())
    }

    /// Those that hold all of the range: the nearest beginning first, of one address the newest first.
    #[inline]
    pub(super) fn covering(&self, dma: DmaAddr, len: u64) -> impl Iterator<Item = &Key> {
        let (at, reach) = (dma.get(), self.reach);
        let near = self.before(self.place(|old| old <= at)).take_while(move |key| at - key.dma <= reach);
        near.filter(move |key| covers(key.dma, key.len + u64::from(planted!(EndLate)), at, len))
    }

    /// Those that hold any of the range, by address.
    pub(super) fn overlapping(&self, dma: DmaAddr, len: u64) -> impl Iterator<Item = &Key> {
        let at = dma.get();
        let from = self.place(|old| old < at.saturating_sub(self.reach));
        let near = self.from(from).take_while(move |key| key.dma <= at || key.dma - at < len);
        near.filter(move |key| overlaps(key.dma, key.len, at, len))
    }

    /// Whether order, counts, runs and bound agree with the keys.
    pub(super) fn is_consistent(&self) -> bool {
        let mut by_bits = [0; 65];
        for key in self.keys() {
            by_bits[bits(key.len)] += 1;
        }
        let longest_live = self.keys().map(|key| key.len).max().unwrap_or(0);
        let firsts = self.runs.iter().map(|run| run.first().map_or(0, |key| key.dma));
        self.keys().is_sorted_by_key(|key| key.dma)
            && firsts.eq(self.firsts.iter().copied())
            && (self.runs.len() == 1 || self.runs.iter().all(|run| (1..=RUN).contains(&run.len())))
            && self.spare.iter().all(Vec::is_empty)
            && self.keys().count() == self.len
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

    #[test]
    fn ten_thousand_mappings_in_any_order_are_found_as_a_plain_list_finds_them() {
        let mut random = 1_u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let (mut table, mut plain) = (Table::new(), Vec::<Key>::new());
        for slot in 0..10_000 {
            // Few addresses, so that many begin alike and their runs are cut in the middle of them.
            let key = Key { dma: draw(64) * 64, len: 1 + draw(200), slot };
            plain.insert(plain.partition_point(|old| old.dma <= key.dma), key);
            table.insert(key);
        }
        assert!(table.is_consistent() && table.keys().eq(&plain) && table.runs.len() > 30);
        while !plain.is_empty() {
            let (at, len) = (draw(64 * 64), draw(100));
            let dma = DmaAddr::new(at);
            let covering: Vec<_> = plain.iter().rev().filter(|key| covers(key.dma, key.len, at, len)).collect();
            assert!(table.covering(dma, len).eq(covering));
            let overlapping: Vec<_> = plain.iter().filter(|key| overlaps(key.dma, key.len, at, len)).collect();
            assert!(table.overlapping(dma, len).eq(overlapping));
            assert!(table.at(DmaAddr::new(at & !63)).eq(plain.iter().filter(|key| key.dma == at & !63)));
            for _ in 0..plain.len().min(100) {
                let gone = plain.remove(usize::try_from(draw(plain.len() as u64)).unwrap());
                assert!(table.remove(gone.dma, gone.slot) && !table.remove(gone.dma, gone.slot));
            }
            assert!(table.is_consistent() && table.keys().eq(&plain) && table.len() == plain.len());
        }
        assert_eq!((table.runs.len(), table.spare.is_empty()), (1, false), "what they had is kept");
    }
}
