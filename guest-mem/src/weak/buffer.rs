//! One CPU's store buffer: what it has written and devices don't see yet.
//!
//! Stores leave in any order, but none before one that it overlaps or that lies before a marker, which a write barrier
//! puts behind all stores so far. Neighbours: [`super`], which says when. Left out: merging of neighbours.

use std::collections::VecDeque;

use super::chance::Chance;
use crate::addr::PhysAddr;

/// Bytes that leave together: what a CPU stores at once.
const BYTES: usize = 8;
/// The same, as addresses are counted.
const PIECE: u64 = BYTES as u64;
/// Stores that are held at most; beyond it the oldest leaves.
pub(super) const DEPTH: usize = 32;
/// Bytes written at once from which on nothing is held: a copy, which no one takes for a message.
pub(super) const LONG: usize = 256;

/// Some bytes under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Store {
    pub(super) at: PhysAddr,
    bytes: [u8; BYTES],
    len: usize,
    /// The number of markers before it.
    marker: u64,
}

impl Store {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn overlaps(&self, at: PhysAddr, len: usize) -> bool {
        overlap(self.at, self.len, at, len).is_some()
    }
}

/// The common part of two ranges: where it begins in either, and its length.
pub(super) fn overlap(a: PhysAddr, a_len: usize, b: PhysAddr, b_len: usize) -> Option<(usize, usize, usize)> {
    let start = a.get().max(b.get());
    let end = a.get().saturating_add(a_len as u64).min(b.get().saturating_add(b_len as u64));
    let within = |first: PhysAddr| usize::try_from(start - first.get()).ok();
    (start < end).then_some(())?;
    Some((within(a)?, within(b)?, usize::try_from(end - start).ok()?))
}

/// The stores of one CPU, oldest first.
#[derive(Debug, Default)]
pub(super) struct StoreBuffer {
    stores: VecDeque<Store>,
    marker: u64,
}

impl StoreBuffer {
    pub(super) fn is_empty(&self) -> bool {
        self.stores.is_empty()
    }

    /// Whether any of these bytes is in it.
    pub(super) fn holds(&self, at: PhysAddr, len: usize) -> bool {
        self.stores.iter().any(|store| store.overlaps(at, len))
    }

    /// Takes bytes in, cut where a CPU's stores would be.
    pub(super) fn push(&mut self, at: PhysAddr, bytes: &[u8]) {
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let room = usize::try_from(PIECE - at.get() % PIECE).unwrap_or(1);
            let (now, later) = rest.split_at(room.min(rest.len()));
            let mut piece = [0; BYTES];
            piece[..now.len()].copy_from_slice(now);
            self.stores.push_back(Store { at, bytes: piece, len: now.len(), marker: self.marker });
            (at, rest) = (at.wrapping_add(now.len() as u64), later);
        }
    }

    /// The oldest store, if there are more than are held.
    pub(super) fn overflow(&mut self) -> Option<Store> {
        if self.stores.len() > DEPTH { self.stores.pop_front() } else { None }
    }

    /// Nothing stored from now on leaves before what is in it now.
    pub(super) fn mark(&mut self) {
        self.marker += 1;
    }

    /// The number of markers so far.
    pub(super) fn marker(&self) -> u64 {
        self.marker
    }

    /// Puts its bytes over those that memory has: its own CPU sees them.
    pub(super) fn overlay(&self, at: PhysAddr, to: &mut [u8]) {
        for store in &self.stores {
            if let Some((from, into, len)) = overlap(store.at, store.len, at, to.len()) {
                to[into..into + len].copy_from_slice(&store.bytes[from..from + len]);
            }
        }
    }

    /// The oldest store that is before so many markers.
    pub(super) fn take_before(&mut self, marker: u64) -> Option<Store> {
        if self.stores.front()?.marker < marker { self.stores.pop_front() } else { None }
    }

    /// The oldest store.
    pub(super) fn take(&mut self) -> Option<Store> {
        self.stores.pop_front()
    }

    /// One of those that may leave now.
    pub(super) fn take_any(&mut self, chance: &mut Chance) -> Option<Store> {
        let first = self.stores.front()?.marker;
        let free: Vec<usize> = (0..self.stores.len())
            .take_while(|&index| self.stores[index].marker == first)
            .filter(|&index| {
                let Store { at, len, .. } = self.stores[index];
                !self.stores.iter().take(index).any(|earlier| earlier.overlaps(at, len))
            })
            .collect();
        let pick = usize::try_from(chance.below(free.len() as u64)).unwrap_or(0);
        self.stores.remove(*free.get(pick)?)
    }

    /// How many are in it.
    pub(super) fn len(&self) -> usize {
        self.stores.len()
    }
}
