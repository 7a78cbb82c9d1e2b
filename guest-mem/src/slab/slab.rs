//! One slab: a block of pages cut into objects, and who holds which.
//!
//! What is free and who has what is kept here and never in the objects, so that no stray write of a driver can break it
//! and a second free is told from a first. A fresh slab hands out its objects in ascending order, a freed one is handed
//! out first.
//!
//! Neighbours: [`super::cache`] keeps the slabs of one cache. Left out: random free lists.

use crate::addr::{Pfn, PhysAddr};
use crate::frame::NIL;
use crate::site::Owner;
use crate::slab::SlabFlags;
use crate::slab::cache::Cache;
use crate::zone::{Block, ZoneKind};

/// Where a slab is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// Not in use; its number may be given again.
    #[default]
    Spare,
    /// Its pages are there, its objects are still being made.
    New,
    /// A CPU takes from it.
    Current,
    /// On its cache's list: objects are free.
    Partial,
    /// On no list: no object is free.
    Full,
}

/// What is known about one object that was handed out at least once.
#[derive(Clone, Copy)]
pub(super) struct Note {
    /// Who has it, or had it last.
    pub owner: Owner,
    /// Bytes asked for, up to 8192, and two marks.
    requested: u16,
}

/// Its holder freed it.
const FREED: u16 = 0x8000;
/// It was freed, and is not on the free list: held back for a while or, if it was overwritten, for ever.
const HELD: u16 = 0x4000;

impl Note {
    pub(super) const fn is_live(self) -> bool {
        self.requested & FREED == 0
    }

    pub(super) const fn is_held(self) -> bool {
        self.requested & HELD != 0
    }

    /// Bytes its owner, or last owner, asked for.
    pub(super) const fn requested(self) -> u16 {
        self.requested & !(FREED | HELD)
    }
}

/// A block of pages cut into objects.
pub(super) struct Slab {
    pub block: Block,
    /// Its cache's number.
    pub cache: u32,
    pub objects: u16,
    /// From one object to the next, and from a place's start to its object.
    stride: u32,
    left: u32,
    pub place: Place,
    /// Objects that are not on the free list: live ones and those held back.
    pub used: u16,
    /// Freed objects, the last one on top.
    pub free: Vec<u16>,
    /// One for each object that was ever handed out: these are the first ones.
    pub notes: Vec<Note>,
    /// Who freed each of them last; empty unless its cache keeps users.
    pub freed_by: Vec<Owner>,
    /// Who had the object that was handed out last before.
    pub previous: Owner,
    /// Links of the list of partial slabs.
    pub next: u32,
    pub prev: u32,
    /// The CPU that takes from it while it is a current one.
    pub cpu: u32,
    /// Bytes of each object of a driver's own cache; 0 for kmalloc's, where the request counts.
    pub fixed: u32,
    /// Bytes of an object that may be used.
    pub class_size: u32,
    /// Whether nobody watches its objects: no marks, no users, no quarantine.
    pub plain: bool,
}

impl Default for Slab {
    /// One that is not in use.
    fn default() -> Self {
        Self {
            block: Block { pfn: Pfn::new(0), order: 0, zone: ZoneKind::Dma },
            cache: NIL,
            objects: 0,
            stride: 1,
            left: 0,
            place: Place::Spare,
            used: 0,
            free: Vec::new(),
            notes: Vec::new(),
            freed_by: Vec::new(),
            previous: Owner::default(),
            next: NIL,
            prev: NIL,
            cpu: NIL,
            fixed: 0,
            class_size: 0,
            plain: false,
        }
    }
}

impl Slab {
    /// Begins on other pages, keeping its buffers.
    pub(super) fn start(&mut self, block: Block, number: u32, objects: u16, cache: &Cache, held: bool) {
        let geometry = &cache.geometry;
        (self.block, self.cache, self.objects) = (block, number, objects);
        (self.stride, self.left) = (geometry.size, geometry.red_left);
        (self.place, self.used, self.next, self.prev) = (Place::New, 0, NIL, NIL);
        (self.fixed, self.class_size) = (cache.fixed, geometry.ksize());
        self.plain = !held && !geometry.is_watched() && !geometry.flags.contains(SlabFlags::STORE_USER);
        self.free.clear();
        self.free.reserve_exact(objects.into());
        self.notes.clear();
        self.notes.reserve_exact(objects.into());
        self.freed_by.clear();
    }

    pub(super) const fn is_full(&self) -> bool {
        self.used == self.objects
    }

    /// The address of an object.
    #[inline]
    pub(super) fn object(&self, slot: u16) -> PhysAddr {
        self.block.pfn.phys().wrapping_add(u64::from(slot) * u64::from(self.stride) + u64::from(self.left))
    }

    /// The object in whose place a byte of the block lies; may be one that was never handed out, or beyond the last.
    #[inline]
    pub(super) fn slot_of(&self, phys: PhysAddr) -> Option<u16> {
        // Within a block, so 32 bits hold it, and divide in half the time.
        let offset = u32::try_from(phys.offset_from(self.block.pfn.phys())?).ok()?;
        u16::try_from(offset / self.stride).ok()
    }

    /// Hands out an object, if there is one.
    #[inline]
    pub(super) fn take(&mut self, size: usize, owner: Owner) -> Option<u16> {
        // Where the size is fixed the note need not hold it.
        let requested = if self.fixed == 0 { u16::try_from(size).unwrap_or(0) } else { 0 };
        let note = Note { owner, requested };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.previous = std::mem::replace(self.notes.get_mut(usize::from(slot))?, note).owner;
                slot
            }
            None => {
                let slot = u16::try_from(self.notes.len()).ok().filter(|slot| *slot < self.objects)?;
                self.notes.push(note);
                self.previous = Owner::default();
                slot
            }
        };
        self.used += 1;
        Some(slot)
    }

    /// Its holder let go of an object; it is held back until [`Slab::give`].
    pub(super) fn hold(&mut self, slot: u16) {
        if let Some(note) = self.notes.get_mut(usize::from(slot)) {
            note.requested |= FREED | HELD;
        }
    }

    /// Takes an object back that is live or held; any other, that somebody else gave back just now, stays as it is.
    #[inline]
    pub(super) fn give(&mut self, slot: u16) {
        if let Some(note) = self.notes.get_mut(usize::from(slot)).filter(|note| note.is_live() || note.is_held()) {
            note.requested = (note.requested | FREED) & !HELD;
            self.free.push(slot);
            self.used -= 1;
        }
    }

    /// Notes who freed an object.
    pub(super) fn freed_by(&mut self, slot: u16, by: Owner) {
        let at = usize::from(slot);
        if self.freed_by.len() <= at {
            self.freed_by.resize(at + 1, Owner::default());
        }
        if let Some(freed_by) = self.freed_by.get_mut(at) {
            *freed_by = by;
        }
    }

    /// Hands out no object of this slab ever again (`FIX: Marking all objects used`).
    pub(super) fn hold_all(&mut self) {
        let never = Note { owner: Owner::default(), requested: FREED | HELD };
        self.notes.resize(self.objects.into(), never);
        for slot in std::mem::take(&mut self.free) {
            self.hold(slot);
        }
        self.used = self.objects;
    }
}
