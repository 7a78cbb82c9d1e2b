//! The slabs, each under a lock of its own, and what of them needs no other: most allocations and frees.
//!
//! A CPU takes from its current slab, and most frees go back to a slab that stays where it is. Neither changes what a
//! cache knows of its slabs, so neither takes the lock over all caches: two CPUs that use slabs of their own never meet.
//! All else, and every object that a sanitizer watches, goes by [`super::SlabCaches`].
//!
//! Mirrors the fast paths of `slab_alloc_node` and `do_slab_free` of `mm/slub.c`, with a lock where SLUB compares and
//! exchanges two words. Lock order: the caches, then one slab; of slabs only one at a time. Left out: a queue for frees of
//! other CPUs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::CACHES;
use super::slab::{Place, Slab};
use crate::addr::PhysAddr;
use crate::frame::{Frame, Frames, Kind, NIL};
use crate::lock::{Locked, LockedGuard};
use crate::site::Owner;
use crate::zone::ZoneKind;

/// Slabs of the first part of the table; each further one is twice as large.
const FIRST: u32 = 256;
const PARTS: usize = 17;
/// Caches whose current slabs are known here; those of later numbers always take the long way.
const KNOWN: usize = CACHES + 128;

/// A slab on cache lines of its own.
#[repr(align(64))]
#[derive(Default)]
struct Line(Locked<Slab>);

/// All slabs by number.
pub(crate) struct Front {
    parts: [OnceLock<Box<[Line]>>; PARTS],
    /// The slab that each CPU's objects of a cache come from, or came from a moment ago: by cache, then CPU.
    current: Box<[AtomicU32]>,
    cpus: usize,
}

/// An object that was given back.
pub(crate) struct Given {
    /// Bytes that were asked for.
    pub requested: u32,
    /// Bytes that it holds.
    pub class_size: u32,
}

impl Front {
    pub(super) fn new(cpus: u32) -> Self {
        let cpus = cpus as usize;
        let current = std::iter::repeat_with(|| AtomicU32::new(NIL)).take(KNOWN * cpus).collect();
        Self { parts: [const { OnceLock::new() }; PARTS], current, cpus }
    }

    /// The part of a number, and its place there.
    const fn place(index: u32) -> (usize, usize) {
        let from_first = index.saturating_add(FIRST);
        let part = (from_first / FIRST).ilog2();
        (part as usize, (from_first - (FIRST << part)) as usize)
    }

    /// A slab by number; `None` for one that there never was, and for [`NIL`].
    pub(super) fn slab(&self, index: u32) -> Option<LockedGuard<'_, Slab>> {
        let (part, at) = Self::place(index);
        Some(self.parts.get(part)?.get()?.get(at)?.0.lock())
    }

    /// Makes room for a slab of this number.
    pub(super) fn grow(&self, index: u32) {
        let (part, _) = Self::place(index);
        if let Some(lines) = self.parts.get(part) {
            lines.get_or_init(|| std::iter::repeat_with(Line::default).take((FIRST as usize) << part).collect());
        }
    }

    /// Tells which slab a CPU's objects of a cache come from.
    pub(super) fn set_current(&self, cache: u32, cpu: usize, index: u32) {
        if cpu < self.cpus
            && let Some(current) = self.current.get(cache as usize * self.cpus + cpu)
        {
            current.store(index, Ordering::Relaxed);
        }
    }

    pub(super) fn reset(&self) {
        self.current.iter().for_each(|current| current.store(NIL, Ordering::Relaxed));
    }

    /// An object of a CPU's current slab, if that has one and nobody watches its bytes.
    #[inline]
    pub(crate) fn take(&self, cache: u32, cpu: usize, size: usize, owner: Owner) -> Option<(PhysAddr, ZoneKind)> {
        let current = self.current.get(cache as usize * self.cpus + cpu)?.load(Ordering::Relaxed);
        let mut slab = self.slab(current)?;
        // The number may be an old one: what counts is what the slab says.
        if !slab.plain || slab.place != Place::Current || slab.cache != cache || slab.cpu as usize != cpu {
            return None;
        }
        let slot = slab.take(size, owner)?;
        Some((slab.object(slot), slab.block.zone))
    }

    /// Takes a live object back whose slab stays where it is and whose bytes nobody watches; with `from` only one of that
    /// cache. `None`: nothing was done.
    #[inline]
    pub(crate) fn give(&self, frames: &Frames, phys: PhysAddr, from: Option<u32>) -> Option<Given> {
        let (head, frame) = frames.head_of(u32::try_from(phys.pfn().get()).ok()?)?;
        let Frame::Used { kind: Kind::Slab { index }, .. } = frame else { return None };
        let mut slab = self.slab(index)?;
        let stays = match slab.place {
            Place::Current => true,
            Place::Partial => slab.used > 1,
            Place::Spare | Place::New | Place::Full => false,
        };
        let is_it = slab.plain && slab.block.pfn.get() == u64::from(head) && from.is_none_or(|from| from == slab.cache);
        if !stays || !is_it {
            return None;
        }
        let slot = slab.slot_of(phys)?;
        let note = *slab.notes.get(usize::from(slot))?;
        if !note.is_live() || slab.object(slot) != phys {
            return None;
        }
        slab.give(slot);
        let requested = if slab.fixed == 0 { note.requested().into() } else { slab.fixed };
        Some(Given { requested, class_size: slab.class_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_a_place_of_its_own() {
        let all: Vec<_> = [0, 255, 256, 767, 768, (1 << 24) - 1].map(Front::place).into();
        assert_eq!(all, [(0, 0), (0, 255), (1, 0), (1, 511), (2, 0), (16, 255)]);
        let front = Front::new(2);
        assert!(front.slab(0).is_none() && front.slab(NIL).is_none());
        front.grow(300);
        assert!(front.slab(300).is_some() && front.slab(0).is_none());
    }
}
