//! Per-CPU page lists: small blocks that a CPU keeps for itself, so that most calls take no lock of a zone.
//!
//! Each CPU has, for each zone, a list for each order up to [`PCP_MAX_ORDER`]. What it frees goes on top and is the
//! first to be handed out again; an empty list is filled with a batch from the zone, and once a zone's lists hold
//! `high` pages the oldest go back, more of them each time as long as nothing is allocated in between. Pages on these
//! lists are not free to the zone: `/proc/buddyinfo` does not show them, they merge with nothing, and another CPU
//! gets them only when they are drained. A switch of the machine, off unless asked for.
//!
//! The watermark is tested before a list is looked at, with the zone's own free pages, as in Linux: a request may
//! fail while the CPU's list holds what it asks for.
//!
//! Mirrors `rmqueue_pcplist`, `free_unref_page_commit`, `nr_pcp_free` and `free_pcppages_bulk` of `mm/page_alloc.c`,
//! 6.1. Neighbours: [`crate::zone`] fills and takes back, `page` asks. Lock order: a CPU's lists, then the zones.
//! Left out: one list for each migrate type, the list of huge pages, `ZONE_RECLAIM_ACTIVE`, counters that lag.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::frame::{Frame, Kind};
use crate::kernel::Memory;
use crate::lock::{Locked, LockedGuard};
use crate::site::Owner;
use crate::zone::{Pass, Shared, ZoneKind, Zones};

#[cfg(test)]
mod tests;

/// The largest order that has lists (`PAGE_ALLOC_COSTLY_ORDER`).
pub const PCP_MAX_ORDER: u8 = 3;
const LISTS: usize = 4;
/// Pages of a batch at most, before it is rounded (1 MiB of them).
const BATCH_MOST: u64 = 256;
/// `vm.percpu_pagelist_high_fraction`: the part of a zone that all CPUs' lists may hold; 0 = its low mark.
pub(crate) const HIGH_FRACTION: u64 = 0;
const ZONES: usize = ZoneKind::ALL.len();

/// How many pages of a zone a CPU keeps, and how many move at once (`pcp->high`, `pcp->batch`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcpSettings {
    /// Pages from which on some go back.
    pub high: u32,
    /// Pages of order 0 that a refill takes; of higher orders fewer blocks.
    pub batch: u32,
}

impl PcpSettings {
    /// Those of a zone with so many managed pages and this low watermark, on a machine with so many CPUs
    /// (`zone_batchsize`, `zone_highsize`).
    ///
    /// ```
    /// use lowzone_guest_mem::pcp::PcpSettings;
    /// assert_eq!(PcpSettings::new(760_594, 1990, 2), PcpSettings { high: 995, batch: 63 });
    /// assert_eq!(PcpSettings::new(3840, 9, 2), PcpSettings { high: 4, batch: 1 });
    /// ```
    pub fn new(managed: u64, low: u64, cpus: u32) -> Self {
        let quarter = ((managed >> 10).min(altered!(BATCH_MOST)) / 4).max(1);
        let half_more = quarter + quarter / 2;
        let batch = ((1 << half_more.ilog2()) - 1).max(1);
        let high = managed.checked_div(HIGH_FRACTION).unwrap_or(low) / u64::from(cpus.max(1));
        Self { high: u32::try_from(high).unwrap_or(u32::MAX).max(batch * 4), batch }
    }

    /// How many blocks a refill takes: fewer of higher orders, but two at least where lists are of use at all.
    const fn refill(self, order: u8) -> u32 {
        let scaled = self.batch >> order;
        if self.batch == 1 || scaled >= 2 { if scaled == 0 { 1 } else { scaled } } else { 2 }
    }
}

/// One CPU's lists of one zone.
#[derive(Default)]
struct Lists {
    /// By order; the front is the next to be handed out.
    blocks: [VecDeque<u32>; LISTS],
    /// Pages on all of them.
    count: u32,
    /// How often the batch was doubled by freeing without allocating.
    free_factor: u32,
}

impl Lists {
    /// Puts a block on top; tells how many pages should go back to the zone.
    fn push(&mut self, pfn: u32, order: u8, settings: PcpSettings) -> u32 {
        self.blocks[usize::from(order)].push_front(pfn);
        self.count += 1 << order;
        // Blocks larger than a page are all given back in a long run of frees: they fragment the zone.
        if self.free_factor > 0 && order > 0 {
            return self.count;
        }
        if self.count < settings.high { 0 } else { self.surplus(settings) }
    }

    fn surplus(&mut self, PcpSettings { high, batch }: PcpSettings) -> u32 {
        let most = high - batch;
        let doubled = batch.checked_shl(self.free_factor).unwrap_or(most);
        if doubled < most {
            self.free_factor += 1;
        }
        doubled.clamp(batch, most)
    }

    /// Gives the oldest blocks back, `pages` or a little more, a list after the other from `first` on.
    fn shed(&mut self, pages: u32, first: u8, zones: &mut Zones, zone: usize) {
        let mut left = i64::from(pages.min(self.count));
        let mut order = first;
        while left > 0 {
            let list = &mut self.blocks[usize::from(order)];
            while left > 0
                && let Some(pfn) = list.pop_back()
            {
                left -= 1 << order;
                self.count -= 1 << order;
                zones.take_back(zone, pfn, order);
            }
            order = (order + 1) % (PCP_MAX_ORDER + 1);
        }
    }
}

/// One CPU's lists.
#[derive(Default)]
struct Pcp {
    zones: [Lists; ZONES],
}

/// Lists of different CPUs lie on cache lines of their own.
#[repr(align(128))]
#[derive(Default)]
struct Line(Locked<Pcp>);

/// A block on a CPU's list that should not be there, or is counted wrongly: a fault of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPcp {
    /// A listed block is not marked as one, has another order or lies in another zone.
    #[error("CPU {cpu}: block {pfn:#x} on the {zone} list of order {order} is no such block")]
    Stray {
        /// The CPU.
        cpu: usize,
        /// The zone of the list.
        zone: ZoneKind,
        /// The order of the list.
        order: u8,
        /// The block.
        pfn: u32,
    },
    /// The pages on a CPU's lists of a zone are not what is counted.
    #[error("CPU {cpu}: {counted} {zone} pages are counted, the lists hold {found}")]
    WrongCount {
        /// The CPU.
        cpu: usize,
        /// The zone.
        zone: ZoneKind,
        /// The counter.
        counted: u32,
        /// The sum over the lists.
        found: u32,
    },
    /// A zone marks more or fewer pages as listed than lie on lists: one is lost, or listed twice.
    #[error("{marked} {zone} pages are marked as on a CPU's list, the lists hold {found}")]
    Lost {
        /// The zone.
        zone: ZoneKind,
        /// By the frame table.
        marked: u64,
        /// By the lists.
        found: u64,
    },
}

/// The lists of all CPUs.
pub(crate) struct PerCpuPages {
    shared: Arc<Shared>,
    settings: [PcpSettings; ZONES],
    /// None if the switch is off.
    cpus: Box<[Line]>,
}

impl PerCpuPages {
    /// Lists for so many CPUs over the zones; with `on` unset none, and the settings only.
    pub(crate) fn new(zones: &Zones, cpus: u32, on: bool) -> Self {
        let settings = zones.stats().map(|zone| PcpSettings::new(zone.managed, zone.marks.low, cpus));
        let lines = if on { cpus } else { 0 };
        Self { shared: zones.shared(), settings, cpus: (0..lines).map(|_| Line::default()).collect() }
    }

    /// Whether blocks of this order go through the lists.
    pub(crate) fn serves(&self, order: u8) -> bool {
        order <= PCP_MAX_ORDER && !self.cpus.is_empty()
    }

    /// What is known of the zones without their lock.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Each zone's settings.
    pub(crate) fn settings(&self) -> [PcpSettings; ZONES] {
        self.settings
    }

    fn lists(&self, cpu: u16) -> Option<LockedGuard<'_, Pcp>> {
        Some(self.cpus.get(usize::from(cpu)).or(self.cpus.first())?.0.lock())
    }

    /// Takes a block for a CPU (`rmqueue_pcplist` in the loop of `get_page_from_freelist`) and marks it.
    pub(crate) fn take(
        &self,
        memory: &Locked<Memory>,
        cpu: u16,
        (order, highest, pass): (u8, ZoneKind, Pass),
        (kind, owner): (Kind, Owner),
    ) -> Option<(u32, ZoneKind)> {
        let mut lists = self.lists(cpu)?;
        for zone in ZoneKind::ALL.into_iter().take(highest.index() + 1).rev() {
            if !self.shared.admits(zone, highest, order, pass) {
                continue;
            }
            let of_zone = &mut lists.zones[zone.index()];
            of_zone.free_factor >>= 1;
            let list = &mut of_zone.blocks[usize::from(order)];
            if list.is_empty() {
                let blocks = self.settings[zone.index()].refill(order);
                of_zone.count += memory.lock().zones.fill(zone.index(), order, blocks, list) << order;
            }
            if let Some(pfn) = list.pop_front() {
                of_zone.count -= 1 << order;
                self.shared.frames.set_used(pfn, order, kind, owner);
                return Some((pfn, zone));
            }
        }
        None
    }

    /// Takes a block of pages back for a CPU; tells who had it. `None` if it is not that: nothing is changed then.
    pub(crate) fn put(&self, memory: &Locked<Memory>, cpu: u16, pfn: u32, order: u8) -> Option<Owner> {
        let mut lists = self.lists(cpu)?;
        let owner = self.shared.frames.retire(pfn, order)?;
        let zone = self.shared.zone_of_frame(pfn).index();
        let of_zone = &mut lists.zones[zone];
        let surplus = of_zone.push(pfn, order, self.settings[zone]);
        if surplus > 0 {
            of_zone.shed(surplus, order, &mut memory.lock().zones, zone);
        }
        Some(owner)
    }

    /// Gives back what all CPUs' lists hold (`drain_all_pages`).
    pub(crate) fn drain_all(&self, memory: &Locked<Memory>) {
        for line in &self.cpus {
            let mut lists = line.0.lock();
            let mut memory = memory.lock();
            for (zone, of_zone) in lists.zones.iter_mut().enumerate() {
                of_zone.shed(of_zone.count, 0, &mut memory.zones, zone);
            }
        }
    }

    /// The pages of each zone that lie on lists, all CPUs together.
    pub(crate) fn counts(&self) -> [u64; ZONES] {
        let mut sums = [0; ZONES];
        for line in &self.cpus {
            let lists = line.0.lock();
            sums.iter_mut().zip(&lists.zones).for_each(|(sum, lists)| *sum += u64::from(lists.count));
        }
        sums
    }

    /// Forgets all lists, as new; to be called when the zones were reset.
    pub(crate) fn reset(&self) {
        for line in &self.cpus {
            *line.0.lock() = Pcp::default();
        }
    }

    /// Checks every list against the frame table.
    ///
    /// # Errors
    ///
    /// The first invariant that does not hold.
    pub(crate) fn validate(&self, memory: &Locked<Memory>) -> Result<(), InvalidPcp> {
        let lines: Vec<_> = self.cpus.iter().map(|line| line.0.lock()).collect();
        let mut sums = [0; ZONES];
        for (cpu, lists) in lines.iter().enumerate() {
            for (zone, of_zone) in ZoneKind::ALL.into_iter().zip(&lists.zones) {
                let found = self.validate_lists(cpu, zone, of_zone)?;
                sums[zone.index()] += u64::from(found);
            }
        }
        let memory = memory.lock();
        for (zone, found) in ZoneKind::ALL.into_iter().zip(sums) {
            let marked = memory.zones.cached(zone);
            if marked != found {
                return Err(InvalidPcp::Lost { zone, marked, found });
            }
        }
        Ok(())
    }

    fn validate_lists(&self, cpu: usize, zone: ZoneKind, lists: &Lists) -> Result<u32, InvalidPcp> {
        let mut found = 0;
        for (order, list) in (0..).zip(&lists.blocks) {
            let is_right = |&pfn: &u32| {
                matches!(self.shared.frames.get(pfn), Frame::Cached { order: size, .. } if size == order)
                    && self.shared.zone_of_frame(pfn) == zone
            };
            if let Some(&pfn) = list.iter().find(|pfn| !is_right(pfn)) {
                return Err(InvalidPcp::Stray { cpu, zone, order, pfn });
            }
            found += u32::try_from(list.len()).unwrap_or(u32::MAX) << order;
        }
        if found == lists.count {
            Ok(found)
        } else {
            Err(InvalidPcp::WrongCount { cpu, zone, counted: lists.count, found })
        }
    }
}
