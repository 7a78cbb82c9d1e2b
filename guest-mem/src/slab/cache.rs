//! One cache: its name and layout, and which of its slabs the next object comes from.
//!
//! A CPU takes from its current slab until that is full, then from the slab that became partial last. An object that is
//! freed goes back to its own slab.
//!
//! Mirrors the order of SLUB (`mm/slub.c`). Neighbours: `slab` holds the objects, [`super::SlabCaches`] gets and returns
//! the pages. Left out: per-CPU partial lists and their limits.

use std::sync::Arc;

use crate::addr::PhysAddr;
use crate::frame::NIL;
use crate::gfp::Gfp;
use crate::ram::Ram;
use crate::site::Owner;
use crate::slab::front::Front;
use crate::slab::geometry::Geometry;
use crate::slab::object::CacheStats;
use crate::slab::slab::Place;

/// Makes an object of a new slab, by its bytes; runs once for each object when the slab is made.
pub type Ctor = Arc<dyn Fn(&mut Construct<'_>) + Send + Sync>;

/// The bytes of an object under construction.
pub struct Construct<'a> {
    pub(crate) ram: &'a Ram,
    pub(crate) phys: PhysAddr,
    pub(crate) len: usize,
}

impl Construct<'_> {
    /// Writes bytes of the object; what lies beyond its end is not written.
    pub fn write_at(&mut self, offset: usize, from: &[u8]) {
        let room = self.len.saturating_sub(offset);
        let from = &from[..from.len().min(room)];
        // Within an object, hence RAM.
        let _ = self.ram.write(self.phys.wrapping_add(offset as u64), from);
    }

    /// The object's size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none; no cache has such objects.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Whether a cache is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is.
    Alive,
    /// Destroyed while objects were live: these may still be freed.
    Zombie,
    /// Destroyed; its number may be given again.
    Gone,
}

/// One cache.
pub(super) struct Cache {
    pub name: &'static str,
    pub geometry: Geometry,
    /// What is added to the mask of each slab (`allocflags`).
    pub gfp: Gfp,
    /// Bytes of each object of a driver's own cache; 0 for kmalloc's, where the request counts.
    pub fixed: u32,
    pub ctor: Option<Ctor>,
    /// Who created it; nobody for kmalloc's.
    pub owner: Owner,
    pub state: State,
    /// The slab that each CPU's objects come from, or `NIL`.
    pub current: Vec<u32>,
    /// The partial slab that is taken next, or `NIL`.
    pub partial: u32,
    /// Partial slabs without a used object.
    pub empty: u32,
    /// Slabs, and objects in them. Used ones are counted by each slab.
    pub slabs: u32,
    pub total: u64,
}

impl Cache {
    pub(super) fn new(name: &'static str, geometry: Geometry, gfp: Gfp, cpus: u32) -> Self {
        Self {
            name,
            geometry,
            gfp,
            fixed: 0,
            ctor: None,
            owner: Owner::default(),
            state: State::Alive,
            current: vec![NIL; cpus as usize],
            partial: NIL,
            empty: 0,
            slabs: 0,
            total: 0,
        }
    }

    /// Its numbers, with so many objects in use.
    pub(super) fn stats(&self, active: u64) -> CacheStats {
        let Self { name, total, geometry, slabs, .. } = *self;
        CacheStats { cache: name, active, total, geometry, slabs }
    }

    /// Forgets all slabs.
    pub(super) fn reset(&mut self) {
        self.current.fill(NIL);
        (self.partial, self.empty) = (NIL, 0);
        (self.slabs, self.total) = (0, 0);
    }

    /// Hands out an object of the CPU's current slab or, once that is full, of a partial one; `None` if both are full.
    pub(super) fn take(&mut self, slabs: &Front, cpu: usize, size: usize, owner: Owner) -> Option<(u32, u16)> {
        let current = self.current.get(cpu).copied()?;
        if let Some(slot) = slabs.slab(current).and_then(|mut slab| slab.take(size, owner)) {
            return Some((current, slot));
        }
        self.retire(slabs, cpu);
        let next = self.partial;
        let empty = slabs.slab(next).map(|slab| slab.used == 0);
        self.empty -= u32::from(empty?);
        self.unlink(slabs, next);
        self.install(slabs, cpu, next);
        let slot = slabs.slab(next)?.take(size, owner)?;
        Some((next, slot))
    }

    /// Adds a fresh slab: as the CPU's current one, or as a partial one if that has objects again.
    pub(super) fn add(&mut self, slabs: &Front, cpu: usize, index: u32) {
        self.slabs += 1;
        self.total += slabs.slab(index).map_or(0, |slab| u64::from(slab.objects));
        let current = self.current.get(cpu).copied().unwrap_or(NIL);
        if slabs.slab(current).is_none_or(|slab| slab.is_full()) {
            self.retire(slabs, cpu);
            self.install(slabs, cpu, index);
        } else {
            self.link(slabs, index);
            self.empty += 1;
        }
    }

    /// Takes an object back that is live or held; tells whether its slab is now one empty slab too many, and forgotten.
    pub(super) fn give(&mut self, slabs: &Front, index: u32, slot: u16) -> bool {
        let Some(mut slab) = slabs.slab(index) else { return false };
        slab.give(slot);
        let (place, is_empty) = (slab.place, slab.used == 0);
        drop(slab);
        if place == Place::Full {
            self.link(slabs, index);
        }
        if place == Place::Current || !is_empty {
            return false;
        }
        if self.empty < self.geometry.min_partial {
            self.empty += 1;
            return false;
        }
        self.unlink(slabs, index);
        self.forget(slabs, index);
        true
    }

    /// Hands out no object of a slab again: it was found overwritten.
    pub(super) fn hold_all(&mut self, slabs: &Front, index: u32) {
        let Some(mut slab) = slabs.slab(index) else { return };
        let (place, was_empty) = (slab.place, slab.used == 0);
        slab.hold_all();
        drop(slab);
        if place == Place::Partial {
            self.empty -= u32::from(was_empty);
            self.unlink(slabs, index);
            if let Some(mut slab) = slabs.slab(index) {
                slab.place = Place::Full;
            }
        }
    }

    /// Takes every CPU's slab from it (`flush_all`); the numbers of those that are empty are forgotten and told.
    pub(super) fn flush(&mut self, slabs: &Front) -> Vec<u32> {
        let mut empty = Vec::new();
        for cpu in 0..self.current.len() {
            let index = std::mem::replace(&mut self.current[cpu], NIL);
            let is_empty = slabs.slab(index).is_some_and(|mut slab| {
                let is_empty = slab.place == Place::Current && slab.used == 0;
                if is_empty {
                    slab.place = Place::Spare;
                }
                is_empty
            });
            if is_empty {
                self.forget(slabs, index);
                empty.push(index);
            } else {
                self.leave(slabs, index);
            }
        }
        empty
    }

    /// Forgets the empty slabs of the partial list; tells their numbers.
    pub(super) fn discard(&mut self, slabs: &Front) -> Vec<u32> {
        let mut gone = Vec::new();
        let mut at = self.partial;
        while let Some((next, used)) = slabs.slab(at).map(|slab| (slab.next, slab.used)) {
            if used == 0 {
                self.unlink(slabs, at);
                self.forget(slabs, at);
                gone.push(at);
            }
            at = next;
        }
        self.empty = 0;
        gone
    }

    /// Forgets a slab with objects that are held for ever.
    pub(super) fn abandon(&mut self, slabs: &Front, index: u32) {
        if slabs.slab(index).is_some_and(|slab| slab.place == Place::Partial) {
            self.unlink(slabs, index);
        }
        self.forget(slabs, index);
    }

    fn forget(&mut self, slabs: &Front, index: u32) {
        if let Some(mut slab) = slabs.slab(index) {
            slab.place = Place::Spare;
            self.slabs -= 1;
            self.total -= u64::from(slab.objects);
        }
    }

    fn retire(&mut self, slabs: &Front, cpu: usize) {
        if let Some(current) = self.current.get_mut(cpu) {
            let index = std::mem::replace(current, NIL);
            self.leave(slabs, index);
        }
    }

    /// No CPU takes from a slab any more: it is full or, if another CPU gave an object back just now, partial.
    fn leave(&mut self, slabs: &Front, index: u32) {
        let full = slabs.slab(index).is_none_or(|mut slab| {
            slab.place = if slab.is_full() { Place::Full } else { Place::Spare };
            slab.is_full()
        });
        if !full {
            self.empty += u32::from(slabs.slab(index).is_some_and(|slab| slab.used == 0));
            self.link(slabs, index);
        }
    }

    fn install(&mut self, slabs: &Front, cpu: usize, index: u32) {
        if let (Some(mut slab), Some(current)) = (slabs.slab(index), self.current.get_mut(cpu)) {
            slab.place = Place::Current;
            slab.cpu = u32::try_from(cpu).unwrap_or(NIL);
            *current = index;
            slabs.set_current(slab.cache, cpu, index);
        }
    }

    fn link(&mut self, slabs: &Front, index: u32) {
        if let Some(mut head) = slabs.slab(self.partial) {
            head.prev = index;
        }
        if let Some(mut slab) = slabs.slab(index) {
            (slab.place, slab.next, slab.prev) = (Place::Partial, self.partial, NIL);
            self.partial = index;
        }
    }

    fn unlink(&mut self, slabs: &Front, index: u32) {
        let Some(mut slab) = slabs.slab(index) else { return };
        let (next, prev) = (slab.next, slab.prev);
        (slab.place, slab.next, slab.prev) = (Place::Spare, NIL, NIL);
        drop(slab);
        match slabs.slab(prev) {
            Some(mut before) => before.next = next,
            None => self.partial = next,
        }
        if let Some(mut after) = slabs.slab(next) {
            after.prev = prev;
        }
    }
}
