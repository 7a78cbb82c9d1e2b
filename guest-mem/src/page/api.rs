//! The page allocator's other doors: pages with an address, exact sizes, many at once, one by one.
//!
//! Mirrors include/linux/gfp.h and mm/page_alloc.c. Neighbours: the parent, whose block each of them gives; `kbuf`,
//! which is what a block with an address is. Left out: nodes, lists of pages.

use super::{GfpWarning, Pages, alloc_pages, take_block};
use crate::KBuf;
use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::cpu::Cpu;
use crate::env::{Class, Verdict};
use crate::fault::Request;
use crate::gfp::Gfp;
use crate::kernel::KernelRef;
use crate::slab::get_order;
use crate::trace::{Kind, owner_word};
use crate::zone::{AllocError, Block, Pass, ZoneKind, block};

/// Allocates 2^`order` pages that have an address; `__GFP_HIGHMEM` is dropped silently. Context as [`alloc_pages`].
///
/// # Errors
/// As [`alloc_pages`].
#[track_caller]
pub fn __get_free_pages(cpu: &Cpu<'_>, order: u8, gfp: Gfp) -> Result<KBuf, AllocError> {
    KBuf::pages(cpu, order, gfp - Gfp::HIGHMEM)
}

/// Allocates a page that has an address. Context as [`alloc_pages`].
///
/// # Errors
/// As [`alloc_pages`].
#[track_caller]
pub fn __get_free_page(cpu: &Cpu<'_>, gfp: Gfp) -> Result<KBuf, AllocError> {
    __get_free_pages(cpu, 0, gfp)
}

/// Allocates a page of zeros that has an address. Context as [`alloc_pages`].
///
/// # Errors
/// As [`alloc_pages`].
#[track_caller]
pub fn get_zeroed_page(cpu: &Cpu<'_>, gfp: Gfp) -> Result<KBuf, AllocError> {
    __get_free_pages(cpu, 0, gfp | Gfp::ZERO)
}

/// Allocates 2^`order` pages below 16 MiB. Context as [`alloc_pages`].
///
/// # Errors
/// As [`alloc_pages`].
#[track_caller]
pub fn __get_dma_pages(cpu: &Cpu<'_>, order: u8, gfp: Gfp) -> Result<KBuf, AllocError> {
    __get_free_pages(cpu, order, gfp | Gfp::DMA)
}

/// Contiguous pages of an exact number; each is freed when this is dropped (`free_pages_exact`).
#[must_use = "the pages are freed when this is dropped"]
pub struct ExactPages {
    pages: Vec<Pages>,
}

impl ExactPages {
    /// The physical address of the first byte.
    pub fn phys(&self) -> PhysAddr {
        self.pages.first().map_or(PhysAddr::new(0), Pages::phys)
    }

    /// How many bytes: whole pages.
    pub fn len(&self) -> usize {
        self.pages.len() * 4096
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The pages, ascending.
    pub fn pages(&self) -> &[Pages] {
        &self.pages
    }
}

/// Allocates `size` bytes of whole pages without rounding up to a power of two: the rest of the block goes back.
///
/// It must be one block for a moment, so 4 MiB is the limit, and a size just above a power of two is as hard to get as
/// the next one. `__GFP_COMP` and `__GFP_HIGHMEM` are warned of and dropped. Context as [`alloc_pages`].
///
/// # Errors
/// As [`alloc_pages`].
#[track_caller]
pub fn alloc_pages_exact(cpu: &Cpu<'_>, size: usize, gfp: Gfp) -> Result<ExactPages, AllocError> {
    let bits = gfp & (Gfp::COMP | Gfp::HIGHMEM);
    if !bits.is_empty() {
        GfpWarning::Exact { bits }.report(cpu, gfp, cpu.owner());
    }
    let whole = alloc_pages(cpu, get_order(size as u64), gfp - bits)?;
    let mut pages = split_page(cpu, whole);
    let tail = pages.split_off(size.div_ceil(4096).min(pages.len()));
    for page in tail.into_iter().rev() {
        page.free_to_tail();
    }
    Ok(ExactPages { pages })
}

/// Makes of a block as many blocks of one page, ascending, each freed on its own (`split_page`). Any context.
pub fn split_page(cpu: &Cpu<'_>, pages: Pages) -> Vec<Pages> {
    let (whole, owner) = pages.into_block();
    cpu.kernel().memory.lock().zones.split(whole, owner);
    let first = whole.pfn.get();
    let singles = (first..first + (1 << whole.order)).map(|pfn| block(u32::try_from(pfn).unwrap_or(0), 0, whole.zone));
    singles.map(|single| Pages::own(cpu, single, owner)).collect()
}

/// Allocates up to `count` single pages at once; may give fewer (`alloc_pages_bulk_array`). Context as [`alloc_pages`].
///
/// Only a zone that keeps its low mark with all of them gives many; else it is one page, by the long way.
#[track_caller]
pub fn alloc_pages_bulk(cpu: &Cpu<'_>, count: usize, gfp: Gfp) -> Vec<Pages> {
    let owner = cpu.owner();
    let single = |cpu| take_block(cpu, 0, gfp, Class::Page, owner).map(|block| Pages::own(cpu, block, owner));
    let Some(zone) = bulk_zone(cpu, count, gfp) else { return single(cpu).into_iter().take(count).collect() };
    if gfp.may_sleep() {
        cpu.might_sleep("alloc_pages_bulk");
    }
    let natural = gfp.can_fail(0, cpu.kernel().config().arch);
    if cpu.pass(Request::pages(0, gfp), owner, natural) == Verdict::Fail {
        return Vec::new();
    }
    let mut pages = Vec::with_capacity(count);
    while pages.len() < count
        && let Some(block) = super::attempt(cpu, (0, zone, Pass::Low), (crate::frame::Kind::Pages, owner))
    {
        cpu.trace(Kind::MmPageAlloc, block.pfn.phys().get(), 4096, 0, owner_word(owner));
        if gfp.contains(Gfp::ZERO) {
            // The block came from a zone, so all of it is RAM.
            let _ = cpu.kernel().ram().zero(block.pfn.phys(), PAGE_SIZE);
        }
        pages.push(Pages::own(cpu, block, owner));
    }
    pages
}

/// The highest zone if it has so many pages above its low mark.
fn bulk_zone(cpu: &Cpu<'_>, count: usize, gfp: Gfp) -> Option<ZoneKind> {
    let highest = gfp.highest_zone(cpu.kernel().config().arch);
    let stats = cpu.kernel().zone_stats();
    let zone = stats.iter().take(highest.index() + 1).rev().find(|zone| zone.managed > 0)?;
    let needed = zone.marks.low + zone.protection[highest.index()] + count as u64;
    (count > 1 && zone.free > needed).then_some(highest)
}

/// A further reference to the first page of a block: it stays when the block is freed, and is freed with the last.
#[must_use = "the reference is given back when this is dropped"]
pub struct PageRef {
    kernel: KernelRef,
    block: Block,
}

/// Takes a further reference to a block's first page (`get_page`). Any context.
pub fn get_page(pages: &Pages) -> Option<PageRef> {
    let kernel = pages.kernel().get()?;
    kernel.pcp.shared().frames.get_ref(u32::try_from(pages.block.pfn.get()).ok()?);
    Some(PageRef { kernel: pages.kernel(), block: pages.block })
}

impl PageRef {
    /// The page's physical address.
    pub fn phys(&self) -> PhysAddr {
        self.block.pfn.phys()
    }
}

impl Drop for PageRef {
    fn drop(&mut self) {
        let Some(kernel) = self.kernel.get() else { return };
        let Ok(pfn) = u32::try_from(self.block.pfn.get()) else { return };
        if kernel.pcp.shared().frames.put_ref(pfn).is_none() {
            // The block is gone but for this page.
            super::give_block(kernel, self.phys(), 0);
        }
    }
}

/// How many references a page has: 0 if it is free, or not the first of its block (`page_ref_count`). Any
/// context.
pub fn page_count(cpu: &Cpu<'_>, at: PhysAddr) -> u32 {
    u32::try_from(at.pfn().get()).map_or(0, |pfn| cpu.kernel().pcp.shared().frames.refs(pfn))
}
