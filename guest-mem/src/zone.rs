//! The page allocator: zones over one frame table, and the rules by which a request finds its zone.
//!
//! [`Zones`] hands out blocks of `1 << order` pages. A request starts at the highest zone its mask allows and falls
//! back downwards, HighMem to Normal to DMA32 to DMA, never up: first as long as a zone stays above its low mark, then above
//! its minimum mark. What was handed out, to whom and for what is kept out of band in the frame table, so that a
//! wrong free is told from a right one; Linux would corrupt its lists or stay silent.
//!
//! A pure data structure: no lock, no CPU, no waiting, and no byte of RAM is touched. It is wrapped by those who have
//! them: what blocks or retries for `GFP_KERNEL`, zeroes for `__GFP_ZERO` or reports, is theirs.
//!
//! Mirrors `get_page_from_freelist` and its surroundings in `mm/page_alloc.c`. Neighbours: [`crate::buddy`] is a
//! zone's free lists, [`watermark`] and [`layout`] its marks and its place, [`crate::slab`] a customer. Left out:
//! kswapd, reclaim, compaction and OOM, watermark boosting, per-CPU lists, migrate types, high-atomic reserve, nodes,
//! splitting a block into single pages.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::addr::Pfn;
use crate::arch::Arch;
use crate::buddy::{Buddy, MAX_ORDER, ORDERS};
use crate::frame::{Frame, Frames, Kind};
use crate::gfp::Gfp;
use crate::site::Owner;

mod bad;
mod error;
pub mod layout;
mod shared;
#[cfg(test)]
mod tests;
pub mod watermark;
pub(crate) mod zoneinfo;

pub use bad::{BadReason, PageFlags, PageState};
pub use error::{AllocError, FreeError, InvalidZones};
pub use layout::{Layout, LayoutError};
pub(crate) use shared::Shared;
pub use watermark::{Marks, Pass, Watermarks};

/// Kinds of zones.
const ZONES: usize = 4;

/// A zone of memory; ordered from low to high.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ZoneKind {
    /// Below 16 MiB.
    Dma,
    /// Below 4 GiB, on 64 bits.
    Dma32,
    /// Everything above; on 32 bits only what has a permanent address.
    Normal,
    /// What has no permanent address: on 32 bits only.
    HighMem,
}

impl ZoneKind {
    /// All zones of any machine, low to high.
    pub const ALL: [Self; ZONES] = [Self::Dma, Self::Dma32, Self::Normal, Self::HighMem];

    /// The index into arrays over zones; Linux's number on x86-64.
    pub const fn index(self) -> usize {
        match self {
            Self::Dma => 0,
            Self::Dma32 => 1,
            Self::Normal => 2,
            Self::HighMem => 3,
        }
    }
}

impl fmt::Display for ZoneKind {
    /// As every Linux report names it; obeys a width.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dma => "DMA",
            Self::Dma32 => "DMA32",
            Self::Normal => "Normal",
            Self::HighMem => "HighMem",
        })
    }
}

/// `1 << order` allocated pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The first page; a multiple of the size.
    pub pfn: Pfn,
    /// Binary logarithm of the number of pages.
    pub order: u8,
    /// The zone it lies in.
    pub zone: ZoneKind,
}

/// An allocated block and what is known about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The block; `block.pfn` is its head.
    pub block: Block,
    /// Who allocated it.
    pub owner: Owner,
    /// What it serves.
    pub kind: Kind,
}

/// One zone's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneStats {
    /// The zone.
    pub zone: ZoneKind,
    /// The first frame of its span: frame 0 is the firmware's. 0 if it has no memory.
    pub start_pfn: u32,
    /// Pages the allocator was given.
    pub managed: u64,
    /// Pages that are free.
    pub free: u64,
    /// Free blocks of each order.
    pub free_by_order: [u64; ORDERS],
    /// Watermarks in pages.
    pub marks: Watermarks,
    /// Pages kept from requests whose highest zone is DMA, DMA32, Normal, HighMem.
    pub protection: [u64; ZONES],
    /// What its marks are raised by for a while (`watermark_boost`): [`watermark::BOOST`].
    pub boost: u64,
    /// Pages kept for urgent requests of high order (`nr_reserved_highatomic`): [`watermark::HIGHATOMIC`].
    pub highatomic: u64,
}

#[derive(PartialEq, Eq)]
struct Zone {
    kind: ZoneKind,
    managed: u64,
    buddy: Buddy,
}

/// All memory of a machine that is given out in pages.
///
/// ```
/// use lowzone_guest_mem::gfp::{GFP_DMA32, GFP_KERNEL};
/// use lowzone_guest_mem::site::Owner;
/// use lowzone_guest_mem::zone::{Layout, ZoneKind, Zones};
/// let mut zones = Zones::new(Layout::pc(6 << 30, 3 << 30)?);
/// let high = zones.alloc(0, GFP_KERNEL, Owner::default())?;
/// let low = zones.alloc(0, GFP_KERNEL | GFP_DMA32, Owner::default())?;
/// assert_eq!((high.zone, low.zone), (ZoneKind::Normal, ZoneKind::Dma32));
/// zones.free(low.pfn, 0)?;
/// assert!(zones.free(low.pfn, 0).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(PartialEq)]
pub struct Zones {
    layout: Layout,
    shared: Arc<Shared>,
    zones: [Zone; ZONES],
}

impl Zones {
    /// All of the layout's memory, free; takes time for its ragged ends only.
    pub fn new(layout: Layout) -> Self {
        Self::booted(layout, 0)
    }

    /// As [`Zones::new`], with marks set when `late` pages of DMA32 were not yet managed.
    pub(crate) fn booted(layout: Layout, late: u64) -> Self {
        let frames = Frames::new(layout.end());
        let managed = ZoneKind::ALL.map(|kind| layout.managed(kind));
        let zones = ZoneKind::ALL.map(|kind| {
            let ranges: Vec<_> = layout.zone_ranges(kind).collect();
            Zone { kind, managed: layout.managed(kind), buddy: Buddy::new(&ranges, &frames) }
        });
        let mut early = managed;
        early[ZoneKind::Dma32.index()] = early[ZoneKind::Dma32.index()].saturating_sub(late);
        let shared = Arc::new(Shared::new(frames, Marks::new(managed, early), layout.arch()));
        let this = Self { layout, shared, zones };
        this.publish_all();
        this
    }

    /// The side of it that needs no lock.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    fn publish_all(&self) {
        for (index, zone) in self.zones.iter().enumerate() {
            self.shared.publish(index, &zone.buddy);
        }
    }

    /// Makes all memory free again, as new; takes time for what was touched only.
    pub fn reset(&mut self) {
        for zone in &mut self.zones {
            zone.buddy.reset(&self.shared.frames);
        }
        self.publish_all();
        self.shared.reset();
    }

    /// Allocates `1 << order` pages (`__alloc_pages`, without its waiting).
    ///
    /// # Errors
    ///
    /// [`AllocError::TooLarge`] above order 10; [`AllocError::NoMemory`] if no allowed zone may give a block.
    pub fn alloc(&mut self, order: u8, gfp: Gfp, owner: Owner) -> Result<Block, AllocError> {
        self.alloc_as(order, gfp, owner, Kind::Pages)
    }

    /// As [`Zones::alloc`], for a purpose.
    pub(crate) fn alloc_as(&mut self, order: u8, gfp: Gfp, owner: Owner, kind: Kind) -> Result<Block, AllocError> {
        if order > altered!(MAX_ORDER) {
            return Err(AllocError::TooLarge { order });
        }
        let zone = gfp.highest_zone(self.arch());
        for pass in Pass::all(gfp) {
            if let Some((pfn, zone)) = self.take(order, zone, pass) {
                self.shared.frames.set_used(pfn, order, kind, owner);
                return Ok(block(pfn, order, zone));
            }
            if pass == Pass::Low {
                self.shared.below_low(gfp);
            }
        }
        Err(AllocError::NoMemory { order, gfp, zone })
    }

    /// One attempt of a request for pages.
    pub(crate) fn take_for(
        &mut self,
        (order, highest, pass): (u8, ZoneKind, Pass),
        (kind, owner): (Kind, Owner),
    ) -> Option<Block> {
        let (pfn, zone) = self.take(order, highest, pass)?;
        self.shared.frames.set_used(pfn, order, kind, owner);
        Some(block(pfn, order, zone))
    }

    /// Says what an allocated block serves from now on.
    pub(crate) fn assign(&mut self, block: Block, kind: Kind, owner: Owner) {
        if let Ok(pfn) = u32::try_from(block.pfn.get()) {
            self.shared.frames.set_used(pfn, block.order, kind, owner);
        }
    }

    fn take(&mut self, order: u8, highest: ZoneKind, pass: Pass) -> Option<(u32, ZoneKind)> {
        let Self { shared, zones, .. } = self;
        for (index, zone) in zones.iter_mut().enumerate().take(highest.index() + 1).rev() {
            if shared.admits(zone.kind, highest, order, pass)
                && let Some(pfn) = zone.buddy.take(order, &shared.frames)
            {
                shared.publish(index, &zone.buddy);
                return Some((pfn, zone.kind));
            }
        }
        None
    }

    /// Puts up to `blocks` blocks of a zone on a CPU's list, in the order in which it will hand them out; tells how
    /// many (`rmqueue_bulk`).
    pub(crate) fn fill(&mut self, zone: usize, order: u8, blocks: u32, list: &mut VecDeque<u32>) -> u32 {
        let (shared, buddy) = (&self.shared, &mut self.zones[zone].buddy);
        let mut taken = 0;
        while taken < blocks
            && let Some(pfn) = buddy.take(order, &shared.frames)
        {
            shared.frames.set_cached(pfn, order);
            list.push_back(pfn);
            taken += 1;
        }
        shared.publish(zone, buddy);
        taken
    }

    /// Takes a block back from a CPU's list, unless its first page is in a bad state: then it is never used again.
    pub(crate) fn take_back(&mut self, zone: usize, pfn: u32, order: u8) {
        if self.shared.odd.strike(pfn..pfn + 1) {
            self.shared.frames.set_used(pfn, order, Kind::Bad, Owner::default());
        } else {
            self.put_back(zone, pfn, order);
        }
    }

    /// Looks at the pages of a block that is about to be freed with this order: at its first one only if no CPU's list
    /// takes the block, which looks later. A bad one keeps the whole block from ever being used again; tells who had it.
    pub(crate) fn condemn(&mut self, pfn: Pfn, order: u8, listed: bool) -> Option<Owner> {
        let found = self.lookup(pfn).filter(|found| found.block.pfn == pfn && found.block.order == order)?;
        let first = u32::try_from(pfn.get()).ok()?;
        let is_last = found.kind == Kind::Pages && self.shared.frames.refs(first) == 1;
        if is_last && self.shared.odd.strike(first + u32::from(listed)..first + (1 << order)) {
            self.shared.frames.set_used(first, order, Kind::Bad, found.owner);
            return Some(found.owner);
        }
        None
    }

    /// Gives a block to its zone.
    fn put_back(&mut self, zone: usize, pfn: u32, order: u8) {
        self.zones[zone].buddy.give(pfn, order, &self.shared.frames);
        self.shared.publish(zone, &self.zones[zone].buddy);
    }

    /// Makes single pages of an allocated block.
    pub(crate) fn split(&mut self, block: Block, owner: Owner) {
        let first = block.pfn.get();
        for pfn in (first..first + (1 << block.order)).rev() {
            if let Ok(pfn) = u32::try_from(pfn) {
                self.shared.frames.set_used(pfn, 0, Kind::Pages, owner);
            }
        }
    }

    /// Gives an allocated page back as the last of its list to be handed out.
    pub(crate) fn release_last(&mut self, block: Block) {
        if let Ok(pfn) = u32::try_from(block.pfn.get()) {
            let zone = block.zone.index();
            self.zones[zone].buddy.give_at(pfn, block.order, true, &self.shared.frames);
            self.shared.publish(zone, &self.zones[zone].buddy);
        }
    }

    /// The pages of a zone that are marked as lying on a CPU's list; takes time for what was touched.
    pub(crate) fn cached(&self, zone: ZoneKind) -> u64 {
        self.zones[zone.index()].buddy.cached(&self.shared.frames)
    }

    /// Frees a block by its first page, with the order it was allocated with; tells who had allocated it.
    ///
    /// # Errors
    ///
    /// A wrong free changes nothing. Linux 6.1 says nothing to most of these and corrupts its lists.
    pub fn free(&mut self, pfn: Pfn, order: u8) -> Result<Owner, FreeError> {
        let raw = pfn.get();
        let found = self.lookup(pfn).ok_or_else(|| match self.zone_of(pfn) {
            Some(_) => FreeError::NotAllocated { pfn: raw },
            None => FreeError::NotRam { pfn: raw },
        })?;
        let Block { pfn: head, order: was, .. } = found.block;
        if head != pfn {
            return Err(FreeError::Inside { pfn: raw, head: head.get() });
        }
        match found.kind {
            Kind::Pages => {}
            Kind::Large { .. } | Kind::Slab { .. } => return Err(FreeError::Kmalloc { pfn: raw }),
            Kind::Held { .. } | Kind::Bad => return Err(FreeError::NotAllocated { pfn: raw }),
        }
        if was != order {
            return Err(FreeError::WrongOrder { pfn: raw, order, was });
        }
        if self.put_ref(found.block, found.owner) {
            return Ok(found.owner);
        }
        self.release(found.block);
        Ok(found.owner)
    }

    /// Gives back a reference that was not the last: the first page stays, the others of its block are free
    /// (`__free_pages`).
    fn put_ref(&mut self, whole: Block, owner: Owner) -> bool {
        let Ok(pfn) = u32::try_from(whole.pfn.get()) else { return false };
        if self.shared.frames.put_ref(pfn).is_none() {
            return false;
        }
        let more = self.shared.frames.refs(pfn) - 1;
        if whole.order > 0 {
            self.shared.frames.set_used(pfn, 0, Kind::Pages, owner);
            (0..more).for_each(|_| self.shared.frames.get_ref(pfn));
        }
        for order in (0..whole.order).rev() {
            self.put_back(whole.zone.index(), pfn + (1 << order), order);
        }
        true
    }

    /// Frees a block that was allocated and is not freed yet.
    pub(crate) fn release(&mut self, block: Block) {
        if let Ok(pfn) = u32::try_from(block.pfn.get()) {
            self.put_back(block.zone.index(), pfn, block.order);
        }
    }

    /// The allocated block that holds a page.
    pub fn lookup(&self, pfn: Pfn) -> Option<Allocated> {
        let (head, frame) = self.shared.frames.head_of(u32::try_from(pfn.get()).ok()?)?;
        match frame {
            Frame::Used { order, kind, owner } => Some(self.allocated(head, order, kind, owner)),
            Frame::Free { .. } | Frame::Cached { .. } | Frame::Unmarked => None,
        }
    }

    /// The machine's architecture, which decides the zones of masks and frames.
    pub fn arch(&self) -> Arch {
        self.layout.arch()
    }

    fn allocated(&self, pfn: u32, order: u8, kind: Kind, owner: Owner) -> Allocated {
        Allocated { block: block(pfn, order, self.arch().zone_of_frame(pfn)), owner, kind }
    }

    /// Where its memory lies.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The zone of a page, or `None` if it is not managed.
    pub fn zone_of(&self, pfn: Pfn) -> Option<ZoneKind> {
        self.layout.zone_of(u32::try_from(pfn.get()).ok()?)
    }

    /// Every allocated block in the order of addresses; takes time for what was touched only.
    pub fn live(&self) -> impl Iterator<Item = Allocated> {
        self.zones
            .iter()
            .flat_map(|zone| zone.buddy.used(&self.shared.frames))
            .map(|(pfn, order, kind, owner)| self.allocated(pfn, order, kind, owner))
    }

    /// The numbers of all zones, DMA to HighMem, empty ones and those the machine lacks included (`/proc/zoneinfo`).
    pub fn stats(&self) -> [ZoneStats; ZONES] {
        ZoneKind::ALL.map(|kind| {
            let zone = &self.zones[kind.index()];
            ZoneStats {
                zone: kind,
                start_pfn: if zone.managed > 0 { self.arch().span(kind).start.max(1) } else { 0 },
                managed: zone.managed,
                free: zone.buddy.free(),
                free_by_order: zone.buddy.free_by_order(),
                marks: self.shared.marks.zones[kind.index()],
                protection: self.shared.marks.protection[kind.index()],
                boost: watermark::BOOST,
                highatomic: watermark::HIGHATOMIC,
            }
        })
    }

    /// The text of `/proc/buddyinfo`: free blocks of each order, a line for each zone that has memory.
    pub fn buddyinfo(&self) -> String {
        let mut text = String::new();
        for stats in self.stats().iter().filter(|stats| stats.managed > 0) {
            text += &format!("Node 0, zone {:>8} ", stats.zone);
            text.extend(stats.free_by_order.iter().map(|blocks| format!("{blocks:>6} ")));
            text.push('\n');
        }
        text
    }

    /// Checks every invariant of the lists, counters and marks of what was touched.
    ///
    /// # Errors
    ///
    /// The first that does not hold; it would be a fault of the lab.
    pub fn validate(&self) -> Result<(), InvalidZones> {
        for zone in &self.zones {
            zone.buddy.validate(&self.shared.frames).map_err(|fault| InvalidZones { zone: zone.kind, fault })?;
        }
        Ok(())
    }
}

pub(crate) fn block(pfn: u32, order: u8, zone: ZoneKind) -> Block {
    Block { pfn: Pfn::new(u64::from(pfn)), order, zone }
}
