//! swiotlb: which slots of the bounce pool a mapping gets (kernel/dma/swiotlb.c of 6.1).
//!
//! A pool is cut into slots of 2 KiB, 128 of which make a segment that no mapping crosses, and into areas of equal
//! size, one for each CPU, each with a next-fit index of its own. A slot's `list` is the number of free slots from it
//! to the end of its segment's run, 0 if it is taken; that is the whole of the free list.
//!
//! This is bookkeeping only: it neither locks nor touches RAM. The caller copies: into the slot after [`Pool::map`],
//! out of it **before** [`Pool::unmap`], between the addresses that [`Pool::lookup`] gives.
//!
//! Costs: `map` looks at no more slots than one area has, each area in turn; as a rule at one or two. `unmap` and the
//! marking are O(slots of the mapping). An area that goes empty is as new but for its index, so [`Pool::reset`] pays
//! only for segments that still hold something.
//!
//! Linux's search is kept with its flaw: with a mask beyond the slot size it may stop before it has looked at the last
//! slots in front of its start, and call an area full that is not.
//!
//! Where Linux corrupts itself the pool keeps the truth: a mapping freed from its middle loses its tail for good, and
//! freeing its head later frees the head, not slots that somebody else has by then. `lookup` knows every byte of a
//! mapping with a kept offset; 6.1 refuses those that lie below that offset in a later slot (`Access before mapping
//! start detected`). Left out: transient and growing pools (6.6), restricted pools, `alloc_align_mask`, and a bus
//! offset that moves the pool against the device's alignment or boundary. The minimum of 1 MiB is the boot command
//! line's, not the pool's.

mod cell;
mod error;
mod geometry;
mod request;
#[cfg(test)]
mod tests;
mod view;

pub use error::SwiotlbError;
pub use geometry::{Geometry, MAX_MAPPING, PoolError, SEGMENT_SLOTS, SLOT_SIZE};
pub use request::Constraints;
pub use view::Taken;

use crate::addr::PhysAddr;
use cell::{Cell, SEGMENT, small, wide};
use geometry::{max_mapping, slot_shift, slot_size};
use request::Search;

/// Slots given to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Where the first byte lies in the pool.
    pub phys: PhysAddr,
    /// Number of the first slot in the pool.
    pub index: u32,
    /// Number of slots.
    pub count: u32,
}

/// What lies behind a byte of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The byte of the buffer.
    pub orig: PhysAddr,
    /// Bytes mapped from there on.
    pub remaining: u64,
}

impl Origin {
    /// How much of `size` bytes may be copied; an error tells what Linux warns of before it copies `remaining`.
    ///
    /// # Errors
    /// [`SwiotlbError::Overflow`] if it is more than was mapped.
    pub fn fits(&self, size: u64) -> Result<u64, SwiotlbError> {
        if size <= self.remaining {
            return Ok(size);
        }
        Err(SwiotlbError::Overflow { allocation: self.remaining, mapping: size })
    }
}

/// What an unmap freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// Slots freed.
    pub slots: u32,
    /// Slots of the same mapping below the address, which stay taken: a leak, and silent in Linux.
    pub stranded: u32,
    /// [`SwiotlbError::Overflow`], if the size given is more than was mapped there.
    pub overflow: Option<SwiotlbError>,
}

/// How full the pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Slots (`io_tlb_nslabs`).
    pub total: u32,
    /// Slots taken (`io_tlb_used`).
    pub used: u32,
    /// The most that were ever taken (`io_tlb_used_hiwater`, which 6.1 does not have yet).
    pub high_water: u32,
}

/// How full one area is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AreaStats {
    /// Slots of the area.
    pub total: u32,
    /// Slots taken.
    pub used: u32,
    /// Where, in the area, the next search begins.
    pub next: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    used: u32,
    next: u32,
    /// First and last-but-one slot, in whole segments, outside which every slot is fresh.
    dirty: (usize, usize),
}

impl Area {
    const NEW: Self = Self { used: 0, next: 0, dirty: CLEAN };
}

const CLEAN: (usize, usize) = (usize::MAX, 0);

/// The bounce pool of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    base: u64,
    geometry: Geometry,
    cells: Vec<Cell>,
    areas: Vec<Area>,
    used: u32,
    high_water: u32,
}

impl Pool {
    /// Makes a pool at `base`; it takes [`Pool::bytes`], which may be more than `bytes`.
    ///
    /// # Errors
    /// What [`Geometry::of`] refuses, and a base that is not on a page or leaves no room below 2^64.
    pub fn new(base: PhysAddr, bytes: u64, cpus: u32) -> Result<Self, PoolError> {
        let geometry = Geometry::of(bytes, cpus)?;
        if base.page_offset() != 0 {
            return Err(PoolError::Unaligned { base });
        }
        base.checked_add(geometry.bytes()).ok_or(PoolError::TooLarge { bytes })?;
        let cells = (0..wide(geometry.slots)).map(Cell::fresh).collect();
        let areas = vec![Area::NEW; wide(geometry.areas)];
        Ok(Self { base: base.get(), geometry, cells, areas, used: 0, high_water: 0 })
    }

    /// Takes slots for `size` bytes of the buffer at `orig`; the caller then copies the buffer in, in any direction.
    ///
    /// The areas are tried from `cpu`'s own on. From a page on, the slot begins on a page unless
    /// [`Constraints::min_align_mask`] is set. As in Linux, a buffer at address 0 is exempt from that mask.
    ///
    /// # Errors
    /// [`SwiotlbError::Full`], [`SwiotlbError::TooLarge`] (both of them Linux's one text), or one of the two that
    /// Linux answers with a BUG: [`SwiotlbError::ZeroSize`], [`SwiotlbError::Boundary`].
    pub fn map(&mut self, cpu: u32, orig: PhysAddr, size: usize, req: Constraints) -> Result<Slot, SwiotlbError> {
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        let search = Search::new(self.base, self.stats(), orig, size, req)?;
        let mask = self.geometry.areas - 1;
        for step in 0..self.geometry.areas {
            let area = (cpu.wrapping_add(step)) & mask;
            if let Some(index) = self.find(area, &search) {
                return Ok(self.take(area, index, &search));
            }
        }
        Err(SwiotlbError::Full { size, total: self.geometry.slots, used: self.used })
    }

    fn area_slots(&self) -> u32 {
        self.geometry.slots / self.geometry.areas
    }

    /// The first slot that does, in the area, from its next-fit index on: `swiotlb_do_find_slots`.
    fn find(&self, area: u32, search: &Search) -> Option<u32> {
        let size = self.area_slots();
        let state = self.areas.get(wide(area))?;
        if search.slots > size - state.used {
            return None;
        }
        let (first, mut index, mut looked) = (area * size, state.next, 0);
        while looked < u64::from(size) {
            let at = first + index;
            let mut step = 1;
            if search.fits_at(at) {
                if !search.crosses(at) && u32::from(self.cells[wide(at)].list) >= search.slots {
                    return Some(at);
                }
                step = search.stride;
            }
            index = u32::try_from(u64::from(index) + step).ok().filter(|&index| index < size).unwrap_or(0);
            looked = looked.saturating_add(step);
        }
        None
    }

    fn take(&mut self, area: u32, index: u32, search: &Search) -> Slot {
        let (first, slots) = (wide(index), wide(search.slots));
        let mut span = search.alloc;
        let mut orig = search.orig - u64::from(search.offset);
        for (back, cell) in self.cells[first..first + slots].iter_mut().enumerate() {
            *cell = Cell { orig, span, offset: search.offset, list: 0, back: small(back) };
            span = span.saturating_sub(1 << slot_shift());
            orig = orig.wrapping_add(slot_size());
        }
        self.renumber_before(first, 0);
        let size = self.area_slots();
        let state = &mut self.areas[wide(area)];
        let next = index - area * size + search.slots;
        state.next = if next < size { next } else { 0 };
        state.used += search.slots;
        let segment = first - first % SEGMENT;
        state.dirty = (state.dirty.0.min(segment), state.dirty.1.max(segment + SEGMENT));
        self.used += search.slots;
        self.high_water = self.high_water.max(self.used);
        let phys = self.base + (u64::from(index) << slot_shift()) + u64::from(search.offset);
        Slot { phys: PhysAddr::new(phys), index, count: search.slots }
    }

    /// Counts on, down the run of free slots that ends before `first`, within its segment.
    fn renumber_before(&mut self, first: usize, mut count: u8) {
        let segment = first - first % SEGMENT;
        for cell in self.cells[segment..first].iter_mut().rev().take_while(|cell| cell.list != 0) {
            count += 1;
            cell.list = count;
        }
    }

    /// Frees the slots from `phys` to the end of its mapping, whatever `size` says, and merges the free runs.
    ///
    /// # Errors
    /// [`SwiotlbError::NotMapped`], with nothing changed, if no mapping holds the address.
    pub fn unmap(&mut self, phys: PhysAddr, size: u64) -> Result<Released, SwiotlbError> {
        let (first, within) = self.place(phys).ok_or(SwiotlbError::NotMapped { phys })?;
        let cell = self.cells[first];
        let (slots, back) = (cell.slots(), usize::from(cell.back));
        let origin = cell.origin(within.max(cell.start()));
        let overflow = origin.fits(size).err();
        let end = first + slots;
        let after = if end % SEGMENT == 0 { 0 } else { self.cells[end].list };
        let mut count = after;
        for cell in self.cells[first..end].iter_mut().rev() {
            count += 1;
            *cell = Cell::free(count);
        }
        self.renumber_before(first, count);
        for (kept, cell) in self.cells[first - back..first].iter_mut().rev().enumerate() {
            cell.span = (u32::from(small(kept)) + 1) << slot_shift();
        }
        let size = wide(self.area_slots());
        let freed = u32::from(count - after);
        let state = &mut self.areas[first / size];
        state.used -= freed;
        if state.used == 0 {
            state.dirty = CLEAN;
        }
        self.used -= freed;
        Ok(Released { slots: freed, stranded: u32::from(cell.back), overflow })
    }

    /// The taken slot that holds the address, and the offset in it.
    fn place(&self, phys: PhysAddr) -> Option<(usize, u64)> {
        let offset = phys.get().checked_sub(self.base)?;
        let index = usize::try_from(offset >> slot_shift()).ok()?;
        self.cells.get(index).filter(|cell| cell.list == 0)?;
        Some((index, offset & (slot_size() - 1)))
    }

    /// The byte of the buffer behind a byte of the pool, for a sync of any part of a mapping; `None` where none is.
    pub fn lookup(&self, phys: PhysAddr) -> Option<Origin> {
        let (index, within) = self.place(phys)?;
        let cell = self.cells[index];
        let origin = cell.origin(within);
        (within >= cell.start() && origin.remaining > 0).then_some(origin)
    }

    /// Whether an address lies in the pool, mapped or not (`is_swiotlb_buffer`).
    pub fn holds(&self, phys: PhysAddr) -> bool {
        phys.get().checked_sub(self.base).is_some_and(|offset| offset < self.bytes())
    }

    /// The longest mapping, in bytes, for a device with this mask (`swiotlb_max_mapping_size`).
    pub fn max_mapping_size(min_align_mask: u64) -> u64 {
        let lost = min_align_mask.checked_next_multiple_of(slot_size()).unwrap_or(u64::MAX);
        max_mapping().saturating_sub(lost)
    }

    /// Where the pool begins.
    pub fn base(&self) -> PhysAddr {
        PhysAddr::new(self.base)
    }

    /// Bytes of the pool.
    pub fn bytes(&self) -> u64 {
        self.geometry.bytes()
    }

    /// How full the pool is.
    pub fn stats(&self) -> Stats {
        Stats { total: self.geometry.slots, used: self.used, high_water: self.high_water }
    }

    /// How full each area is, in order.
    pub fn areas(&self) -> impl Iterator<Item = AreaStats> + '_ {
        let total = self.area_slots();
        self.areas.iter().map(move |area| AreaStats { total, used: area.used, next: area.next })
    }

    /// Makes the pool as new; costs what is still mapped, in whole segments, not what the pool could hold.
    pub fn reset(&mut self) {
        for area in &mut self.areas {
            let (from, to) = area.dirty;
            for index in from..to {
                self.cells[index] = Cell::fresh(index);
            }
            *area = Area::NEW;
        }
        (self.used, self.high_water) = (0, 0);
    }

    /// Checks every number against the others; for tests, O(slots).
    ///
    /// # Errors
    /// [`PoolError::Slot`], [`PoolError::Area`] or [`PoolError::Total`], the first that is wrong.
    pub fn validate(&self) -> Result<(), PoolError> {
        let size = wide(self.area_slots());
        for (area, (state, cells)) in self.areas.iter().zip(self.cells.chunks(size)).enumerate() {
            let taken = cells.iter().filter(|cell| cell.list == 0).count();
            if taken != wide(state.used) || wide(state.next) >= size {
                return Err(PoolError::Area { area });
            }
        }
        let mut run: u8 = 0;
        for (index, cell) in self.cells.iter().enumerate().rev() {
            let last = index % SEGMENT == SEGMENT - 1;
            let follower = self.cells.get(index + 1).filter(|_| !last);
            run = if cell.list == 0 {
                0
            } else if last {
                1
            } else {
                run + 1
            };
            if cell.list != run || !cell.agrees(follower) || (!self.is_dirty(index) && *cell != Cell::fresh(index)) {
                return Err(PoolError::Slot { index });
            }
        }
        let sum: u32 = self.areas.iter().map(|area| area.used).sum();
        if sum != self.used || self.high_water < self.used {
            return Err(PoolError::Total { used: self.used });
        }
        Ok(())
    }

    fn is_dirty(&self, index: usize) -> bool {
        let size = wide(self.area_slots());
        self.areas.get(index / size).is_some_and(|area| (area.dirty.0..area.dirty.1).contains(&index))
    }
}
