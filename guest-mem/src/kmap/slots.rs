//! The slots that high pages are mapped at: one table for all, one stack for each task.
//!
//! A slot of the common table is counted per page and stays with its page after the last unmap, until a search comes
//! round and flushes all that are idle. A pure data structure. Neighbours: [`super`] waits where it is full.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::site::Owner;

/// Slots of `kmap` without PAE (`LAST_PKMAP`).
pub const SLOTS: usize = 1024;
/// Slots of `kmap` where RAM reaches above 4 GiB, so that the kernel must use PAE.
pub const SLOTS_PAE: usize = 512;
/// Temporary mappings that a task may hold (`KM_MAX_IDX`).
pub const DEPTH: usize = 16;
/// Where the common slots begin (`PKMAP_BASE`).
const PKMAP_BASE: u64 = 0xff80_0000;
/// Where the temporary ones of CPU 0 begin (`FIX_KMAP_BEGIN`).
const FIXMAP_BASE: u64 = 0xffc0_0000;

/// A broken invariant of the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidKmap {
    /// A page is said to be at a slot that is another's or nobody's.
    #[error("page {pfn:#x} is not at its slot {slot}")]
    Slot {
        /// The page.
        pfn: u64,
        /// The slot.
        slot: usize,
    },
    /// The number of pages and of slots in use differ.
    #[error("{pages} pages at {slots} slots")]
    Count {
        /// Pages that have a slot.
        pages: usize,
        /// Slots that have a page.
        slots: usize,
    },
}

/// One slot: its page, and how often that is mapped.
#[derive(Clone, Copy)]
struct Slot {
    pfn: u64,
    users: u32,
    owner: Owner,
}

struct Local {
    id: u64,
    pfn: u64,
    owner: Owner,
}

/// All mappings of high pages.
pub(crate) struct Kmaps {
    slots: Vec<Option<Slot>>,
    by_page: BTreeMap<u64, usize>,
    last: usize,
    /// By CPU and the task on it.
    locals: BTreeMap<(u32, u32), Vec<Local>>,
    next: u64,
}

impl Kmaps {
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots: vec![None; slots], by_page: BTreeMap::new(), last: 0, locals: BTreeMap::new(), next: 0 }
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.slots.len());
    }

    fn virt(slot: usize) -> VirtAddr {
        VirtAddr::new(PKMAP_BASE + slot as u64 * PAGE_SIZE)
    }

    /// Where a page is mapped for all; not where its mapping merely was not flushed yet.
    pub(crate) fn address(&self, pfn: u64) -> Option<VirtAddr> {
        let &slot = self.by_page.get(&pfn)?;
        self.slots[slot].filter(|it| it.users > 0).map(|_| Self::virt(slot))
    }

    /// Maps a page once more; `None` while every slot is in use.
    pub(crate) fn map(&mut self, pfn: u64, owner: Owner) -> Option<VirtAddr> {
        let slot = match self.by_page.get(&pfn) {
            Some(&slot) => slot,
            None => self.free_slot()?,
        };
        let entry = self.slots[slot].get_or_insert(Slot { pfn, users: 0, owner });
        if entry.users == 0 {
            entry.owner = owner;
        }
        entry.users += 1;
        self.by_page.insert(pfn, slot);
        Some(Self::virt(slot))
    }

    /// The next free slot after the last one given; idle ones are flushed each time the search comes round.
    fn free_slot(&mut self) -> Option<usize> {
        for _ in 0..2 * self.slots.len() {
            self.last = (self.last + 1) % self.slots.len();
            if self.last == 0 {
                self.flush();
            }
            if self.slots[self.last].is_none() {
                return Some(self.last);
            }
        }
        None
    }

    /// Lets go of pages that nobody maps any more (`flush_all_zero_pkmaps`).
    fn flush(&mut self) {
        for slot in &mut self.slots {
            if let Some(idle) = slot.filter(|it| it.users == 0) {
                self.by_page.remove(&idle.pfn);
                *slot = None;
            }
        }
    }

    /// Unmaps a page once; false if it is not mapped.
    pub(crate) fn unmap(&mut self, pfn: u64) -> bool {
        let slot = self.by_page.get(&pfn).and_then(|&slot| self.slots[slot].as_mut());
        match slot {
            Some(slot) if slot.users > 0 => {
                slot.users -= 1;
                true
            }
            _ => false,
        }
    }

    /// Maps a page on top of a task's stack; `None` if that is full.
    pub(crate) fn push(&mut self, task: (u32, u32), pfn: u64, owner: Owner) -> Option<(u64, VirtAddr)> {
        let stack = self.locals.entry(task).or_default();
        if stack.len() == DEPTH {
            return None;
        }
        let place = u64::from(task.0) * DEPTH as u64 + stack.len() as u64;
        self.next += 1;
        stack.push(Local { id: self.next, pfn, owner });
        Some((self.next, VirtAddr::new(FIXMAP_BASE + place * PAGE_SIZE)))
    }

    /// Unmaps a page of a task's stack; tells its place and the top's if it was not the top.
    pub(crate) fn pop(&mut self, task: (u32, u32), id: u64) -> Option<(usize, usize)> {
        let stack = self.locals.get_mut(&task)?;
        let (place, top) = (stack.iter().position(|local| local.id == id)?, stack.len() - 1);
        stack.remove(place);
        (place != top).then_some((place, top))
    }

    /// Every page that is mapped, each with who mapped it first.
    pub(crate) fn live(&self) -> impl Iterator<Item = (u64, Owner)> {
        let common = self.slots.iter().flatten().filter(|slot| slot.users > 0).map(|slot| (slot.pfn, slot.owner));
        common.chain(self.locals.values().flatten().map(|local| (local.pfn, local.owner)))
    }

    /// Checks pages and slots against each other.
    pub(crate) fn validate(&self) -> Result<(), InvalidKmap> {
        for (&pfn, &slot) in &self.by_page {
            if self.slots.get(slot).copied().flatten().is_none_or(|it| it.pfn != pfn) {
                return Err(InvalidKmap::Slot { pfn, slot });
            }
        }
        let (pages, slots) = (self.by_page.len(), self.slots.iter().flatten().count());
        if pages != slots {
            return Err(InvalidKmap::Count { pages, slots });
        }
        Ok(())
    }

    /// Breaks an invariant, for the test that it is found.
    #[cfg(test)]
    pub(super) fn corrupt(&mut self, pfn: u64) {
        self.by_page.remove(&pfn);
    }
}
