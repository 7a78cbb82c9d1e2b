//! The address space of vmalloc and ioremap: which addresses are taken, by what, and which are not reused yet.
//!
//! [`Areas`] gives the lowest hole that fits, an area and one unmapped guard page behind it. What is freed is unmapped
//! at once but stays out of use until enough has gathered (the lazy purge), so that a stale pointer faults for a while
//! instead of hitting somebody else's area. Who freed it is kept as long.
//!
//! A pure data structure: no lock, no CPU, no page is touched. Mirrors the `vmap_area` half of mm/vmalloc.c. Neighbours:
//! [`super`] backs areas with pages, [`crate::iomem`] with registers. Left out: `vm_map_ram` blocks, huge mappings, the
//! `VM_NO_GUARD` flag.

use std::collections::BTreeMap;
use std::ops::Range;

use super::VmArea;
use crate::addr::{PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
use crate::site::Owner;

/// Freed pages of address space that gather before any are reused, for each binary digit of the number of CPUs.
const LAZY_UNIT: u64 = (32 << 20) / PAGE_SIZE;
/// Bytes behind an area that are never mapped.
const GUARD: u64 = PAGE_SIZE;

/// What lies behind an area's addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Backing {
    /// Pages of its own; none while it is being made.
    Alloc(Box<[Pfn]>),
    /// Pages of somebody else's.
    Map(Box<[Pfn]>),
    /// Registers, from this page on.
    Io(PhysAddr),
}

impl Backing {
    /// `vm_struct.flags`.
    pub(crate) const fn flags(&self) -> u32 {
        match self {
            Self::Io(_) => 0x1,
            Self::Alloc(_) => 0x2,
            Self::Map(_) => 0x4,
        }
    }

    pub(crate) fn pages(&self) -> &[Pfn] {
        match self {
            Self::Alloc(pages) | Self::Map(pages) => pages,
            Self::Io(_) => &[],
        }
    }
}

/// One area.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Area {
    /// Bytes that are mapped; the guard page comes on top.
    pub bytes: u64,
    pub backing: Backing,
    pub owner: Owner,
}

impl Area {
    /// Bytes of address space, guard included (`vm_struct.size`).
    pub(crate) fn size(&self) -> u64 {
        self.bytes + altered!(GUARD)
    }
}

/// Addresses that were freed and are not reused yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Freed {
    pub start: u64,
    pub size: u64,
    /// Who had made the area.
    pub owner: Owner,
    /// Who freed it.
    pub by: Owner,
}

/// What an address means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// A byte of RAM, and how many bytes are left in its page.
    Ram(PhysAddr, u64),
    /// A register.
    Io,
    /// The guard page behind this area, or a page that an area being made doesn't have yet.
    Guard { start: VirtAddr, owner: Owner },
    /// Freed, and not reused since.
    Freed(Freed),
    /// Never used, or purged.
    Nothing,
}

/// All areas of a kernel.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Areas {
    pub(super) range: Range<u64>,
    pub(super) live: BTreeMap<u64, Area>,
    /// Start to end of what is free; no two touch.
    pub(super) holes: BTreeMap<u64, u64>,
    pub(super) lazy: Vec<Freed>,
    pub(super) lazy_pages: u64,
    lazy_max: u64,
    /// `vfree` of an interrupt handler: what a worker frees later, and who asked.
    pub(super) deferred: Vec<(VirtAddr, Owner)>,
}

impl Areas {
    /// An empty space of a machine with so many CPUs.
    pub(crate) fn new(range: Range<u64>, cpus: u32) -> Self {
        // fls(CPUs) * 32 MiB (`lazy_max_pages`).
        let lazy_max = u64::from(u32::BITS - cpus.leading_zeros()) * LAZY_UNIT;
        let holes = BTreeMap::from([(range.start, range.end)]);
        let (live, lazy, deferred) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { range, live, holes, lazy, lazy_pages: 0, lazy_max, deferred }
    }

    /// Forgets everything, as new.
    pub(crate) fn reset(&mut self) {
        self.live.clear();
        self.lazy.clear();
        self.deferred.clear();
        self.lazy_pages = 0;
        self.holes.clear();
        self.holes.insert(self.range.start, self.range.end);
    }

    /// Takes the lowest hole for an area of whole pages, at a multiple of `align`; `None` if there is none even after
    /// a purge.
    pub(crate) fn take(&mut self, area: Area, align: u64) -> Option<VirtAddr> {
        let size = area.size();
        let found = self.fit(size, align).or_else(|| {
            self.purge();
            self.fit(size, align)
        });
        let (hole, start) = found?;
        let (hole_end, end) = (self.holes.remove(&hole)?, start + size);
        if hole < start {
            self.holes.insert(hole, start);
        }
        if end < hole_end {
            self.holes.insert(end, hole_end);
        }
        self.live.insert(start, area);
        Some(VirtAddr::new(start))
    }

    fn fit(&self, size: u64, align: u64) -> Option<(u64, u64)> {
        self.holes.iter().find_map(|(&hole, &end)| {
            let start = hole.checked_next_multiple_of(align)?;
            start.checked_add(size).is_some_and(|needed| needed <= end).then_some((hole, start))
        })
    }

    /// Gives an area its pages.
    pub(crate) fn fill(&mut self, at: VirtAddr, pages: Box<[Pfn]>) {
        if let Some(area) = self.live.get_mut(&at.get()) {
            area.backing = Backing::Alloc(pages);
        }
    }

    /// The area that holds an address, its guard included (`find_vm_area`).
    pub(crate) fn find(&self, at: VirtAddr) -> Option<(VirtAddr, &Area)> {
        let (&start, area) = self.live.range(..=at.get()).next_back()?;
        (at.get() - start < area.size()).then_some((VirtAddr::new(start), area))
    }

    /// Unmaps an area by its first address; the address waits for the purge.
    pub(crate) fn remove(&mut self, start: VirtAddr, by: Owner) -> Option<Area> {
        let area = self.live.remove(&start.get())?;
        let size = area.size();
        self.lazy.push(Freed { start: start.get(), size, owner: area.owner, by });
        self.lazy_pages += size / PAGE_SIZE;
        if self.lazy_pages > self.lazy_max {
            self.purge();
        }
        Some(area)
    }

    /// Makes all freed addresses fit for use again (`purge_vmap_area_lazy`).
    pub(crate) fn purge(&mut self) {
        for freed in std::mem::take(&mut self.lazy) {
            let (mut start, mut end) = (freed.start, freed.start + freed.size);
            if let Some(next) = self.holes.remove(&end) {
                end = next;
            }
            if let Some((&before, _)) = self.holes.range(..start).next_back().filter(|&(_, &hole)| hole == start) {
                start = before;
            }
            self.holes.insert(start, end);
        }
        self.lazy_pages = 0;
    }

    /// What an address means.
    pub(crate) fn place(&self, at: VirtAddr) -> Place {
        if let Some((start, area)) = self.find(at) {
            let guard = Place::Guard { start, owner: area.owner };
            let offset = at.get() - start.get();
            return match &area.backing {
                Backing::Io(_) if offset < area.bytes => Place::Io,
                backing => {
                    let page = usize::try_from(offset / PAGE_SIZE).ok().and_then(|page| backing.pages().get(page));
                    let ram =
                        |pfn: &Pfn| Place::Ram(pfn.phys().wrapping_add(at.page_offset()), PAGE_SIZE - at.page_offset());
                    page.map_or(guard, ram)
                }
            };
        }
        let freed = self.lazy.iter().rev().find(|freed| (freed.start..freed.start + freed.size).contains(&at.get()));
        freed.map_or(Place::Nothing, |freed| Place::Freed(*freed))
    }

    /// Every area, by address.
    pub(crate) fn live(&self) -> impl Iterator<Item = (VirtAddr, &Area)> {
        self.live.iter().map(|(&start, area)| (VirtAddr::new(start), area))
    }

    /// What is known about the area that holds an address.
    pub(crate) fn describe(&self, at: VirtAddr) -> Option<VmArea> {
        let (start, area) = self.find(at)?;
        let (flags, pages) = (area.backing.flags(), area.backing.pages().len());
        Some(VmArea { start, size: area.size(), pages, flags, owner: area.owner })
    }

    /// Leaves a free to a worker.
    pub(crate) fn defer(&mut self, at: VirtAddr, by: Owner) {
        self.deferred.push((at, by));
    }

    /// The frees that were left to a worker.
    pub(crate) fn take_deferred(&mut self) -> Vec<(VirtAddr, Owner)> {
        std::mem::take(&mut self.deferred)
    }
}
