//! Slabs, and the lists of one cache over them: which object is handed out next.
//!
//! A fresh slab hands out its objects in ascending order, a freed one is handed out first. A cache takes from its
//! current slab until that is full, then from the slab that became partial last. Who holds which object and what is
//! free is kept here and never in the objects, so that no stray write of a driver can break it and a second free is
//! told from a first.
//!
//! Mirrors the order of SLUB (`mm/slub.c`) on one CPU. Neighbours: [`super::Kmalloc`] gets and returns the pages.
//! Left out: one current slab for each CPU, per-CPU partial lists and their limits, random free lists, debug layouts.

use crate::addr::PhysAddr;
use crate::frame::NIL;
use crate::site::Owner;
use crate::slab::class::{CacheId, Shape};
use crate::zone::Block;

/// Where a slab is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Not in use; its number may be given again.
    Spare,
    /// Its cache takes from it.
    Current,
    /// On its cache's list: objects are free.
    Partial,
    /// On no list: no object is free.
    Full,
}

/// What is known about one object.
#[derive(Clone, Copy)]
pub(super) struct Note {
    pub owner: Owner,
    /// Bytes asked for, 1 to 8192; `FREED` is set once it is freed.
    requested: u16,
}

const FREED: u16 = 0x8000;

impl Note {
    pub(super) const fn is_live(self) -> bool {
        self.requested & FREED == 0
    }

    /// Bytes its owner, or last owner, asked for.
    pub(super) const fn requested(self) -> u16 {
        self.requested & !FREED
    }
}

/// A block of pages cut into objects.
pub(super) struct Slab {
    pub block: Block,
    pub cache: CacheId,
    pub objects: u16,
    pub place: Place,
    /// Objects handed out.
    pub used: u16,
    /// Freed objects, the last one on top.
    pub free: Vec<u16>,
    /// One for each object that was ever handed out: these are the first ones.
    pub notes: Vec<Note>,
    /// Links of the list of partial slabs.
    pub next: u32,
    pub prev: u32,
}

impl Slab {
    pub(super) fn new(block: Block, cache: CacheId, objects: u16) -> Self {
        let mut slab = Self {
            block,
            cache,
            objects,
            place: Place::Spare,
            used: 0,
            free: Vec::new(),
            notes: Vec::new(),
            next: NIL,
            prev: NIL,
        };
        slab.start(block, cache, objects);
        slab
    }

    /// Begins anew on other pages, keeping its buffers.
    pub(super) fn start(&mut self, block: Block, cache: CacheId, objects: u16) {
        (self.block, self.cache, self.objects) = (block, cache, objects);
        (self.place, self.used, self.next, self.prev) = (Place::Spare, 0, NIL, NIL);
        self.free.clear();
        self.free.reserve_exact(objects.into());
        self.notes.clear();
        self.notes.reserve_exact(objects.into());
    }

    pub(super) const fn is_full(&self) -> bool {
        self.used == self.objects
    }

    /// The address of an object.
    pub(super) fn object(&self, slot: u16) -> PhysAddr {
        self.block.pfn.phys().wrapping_add(u64::from(slot) * u64::from(self.cache.size()))
    }

    /// Hands out an object; there must be one.
    fn take(&mut self, requested: u16, owner: Owner) -> Option<u16> {
        let note = Note { owner, requested };
        let slot = match self.free.pop() {
            Some(slot) => {
                *self.notes.get_mut(usize::from(slot))? = note;
                slot
            }
            None => {
                let slot = u16::try_from(self.notes.len()).ok().filter(|slot| *slot < self.objects)?;
                self.notes.push(note);
                slot
            }
        };
        self.used += 1;
        Some(slot)
    }

    /// Takes an object back that is live.
    fn give(&mut self, slot: u16) {
        if let Some(note) = self.notes.get_mut(usize::from(slot)) {
            note.requested |= FREED;
            self.free.push(slot);
            self.used -= 1;
        }
    }
}

/// One `kmalloc` cache.
pub(super) struct Cache {
    pub id: CacheId,
    pub shape: Shape,
    pub smallest: Shape,
    /// The slab that objects come from, or `NIL`.
    pub current: u32,
    /// The partial slab that is taken next, or `NIL`.
    pub partial: u32,
    /// Partial slabs without a live object.
    pub empty: u32,
    /// Slabs, objects in them, live objects.
    pub slabs: u32,
    pub total: u64,
    pub active: u64,
}

impl Cache {
    pub(super) fn new(id: CacheId, cpus: u32) -> Self {
        let (shape, smallest) = (Shape::preferred(id.size(), cpus), Shape::smallest(id.size()));
        Self { id, shape, smallest, current: NIL, partial: NIL, empty: 0, slabs: 0, total: 0, active: 0 }
    }

    /// Forgets all slabs.
    pub(super) fn reset(&mut self) {
        (self.current, self.partial, self.empty) = (NIL, NIL, 0);
        (self.slabs, self.total, self.active) = (0, 0, 0);
    }

    /// Empty slabs that are kept (`min_partial`).
    const fn empties_kept(&self) -> u32 {
        let half = self.id.size().ilog2() / 2;
        if half > 5 { half } else { 5 }
    }

    /// Hands out an object of the current slab or, once that is full, of a partial one; `None` if both are full.
    pub(super) fn take(&mut self, slabs: &mut [Slab], requested: u16, owner: Owner) -> Option<(u32, u16)> {
        if slabs.get(self.current as usize).is_none_or(Slab::is_full) {
            self.retire(slabs);
            let next = self.partial;
            self.empty -= u32::from(slabs.get(next as usize)?.used == 0);
            self.unlink(slabs, next);
            self.install(slabs, next);
        }
        let slot = slabs.get_mut(self.current as usize)?.take(requested, owner)?;
        self.active += 1;
        Some((self.current, slot))
    }

    /// Adds a fresh slab: as the current one, or as a partial one if another CPU has brought one meanwhile.
    pub(super) fn add(&mut self, slabs: &mut [Slab], index: u32) {
        self.slabs += 1;
        self.total += slabs.get(index as usize).map_or(0, |slab| u64::from(slab.objects));
        if slabs.get(self.current as usize).is_none_or(Slab::is_full) {
            self.retire(slabs);
            self.install(slabs, index);
        } else {
            self.link(slabs, index);
            self.empty += 1;
        }
    }

    /// Takes an object back that is live; tells whether its slab is now one empty slab too many, and forgotten.
    pub(super) fn give(&mut self, slabs: &mut [Slab], index: u32, slot: u16) -> bool {
        let Some(slab) = slabs.get_mut(index as usize) else { return false };
        slab.give(slot);
        self.active -= 1;
        let (place, objects, is_empty) = (slab.place, slab.objects, slab.used == 0);
        if place == Place::Full {
            self.link(slabs, index);
        }
        if place == Place::Current || !is_empty {
            return false;
        }
        if self.empty < self.empties_kept() {
            self.empty += 1;
            return false;
        }
        self.unlink(slabs, index);
        self.slabs -= 1;
        self.total -= u64::from(objects);
        true
    }

    fn retire(&mut self, slabs: &mut [Slab]) {
        if let Some(slab) = slabs.get_mut(self.current as usize) {
            slab.place = Place::Full;
        }
        self.current = NIL;
    }

    fn install(&mut self, slabs: &mut [Slab], index: u32) {
        if let Some(slab) = slabs.get_mut(index as usize) {
            slab.place = Place::Current;
            self.current = index;
        }
    }

    fn link(&mut self, slabs: &mut [Slab], index: u32) {
        if let Some(head) = slabs.get_mut(self.partial as usize) {
            head.prev = index;
        }
        if let Some(slab) = slabs.get_mut(index as usize) {
            (slab.place, slab.next, slab.prev) = (Place::Partial, self.partial, NIL);
            self.partial = index;
        }
    }

    fn unlink(&mut self, slabs: &mut [Slab], index: u32) {
        let Some(slab) = slabs.get_mut(index as usize) else { return };
        let (next, prev) = (slab.next, slab.prev);
        (slab.place, slab.next, slab.prev) = (Place::Spare, NIL, NIL);
        match slabs.get_mut(prev as usize) {
            Some(before) => before.next = next,
            None => self.partial = next,
        }
        if let Some(after) = slabs.get_mut(next as usize) {
            after.prev = prev;
        }
    }
}
