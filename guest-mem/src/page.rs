//! Pages: `alloc_pages` and the block that it gives.
//!
//! A [`Pages`] owns 2^order contiguous frames and frees them when it drops. The mask decides the zone (`GFP_DMA32`
//! for pages that a 32-bit device reaches), whether the call may sleep, and what it may dip into. Mirrors
//! mm/page_alloc.c. Neighbours: `zone` (who has memory), `kbuf` (bytes). Left out here: reclaim, per-CPU lists,
//! high memory.

use crate::addr::{PAGE_SIZE, Pfn, PhysAddr};
use crate::buddy::MAX_ORDER;
use crate::cpu::Cpu;
use crate::dma::ownership::freed as freed_for_dma;
use crate::env::{Class, Verdict};
use crate::fault::Request;
use crate::finding::{BadFree, Finding, FindingKind};
use crate::gfp::Gfp;
use crate::kernel::{Kernel, KernelRef};
use crate::reclaim::{Short, slowpath};
use crate::refusal::{Refusal, Refused};
use crate::site::Owner;
use crate::trace::{Kind, Record, owner_word};
use crate::zone::{AllocError, Block, FreeError, Pass, ZoneKind, block};

mod api;
pub mod misuse;
mod report;
mod warning;

pub use api::{
    __get_dma_pages, __get_free_page, __get_free_pages, ExactPages, PageRef, alloc_pages_bulk, alloc_pages_exact,
    get_page, get_zeroed_page, page_count, split_page,
};

pub use crate::zone::{BadReason, PageFlags, PageState};
pub use warning::GfpWarning;

/// 2^order contiguous page frames, freed when dropped.
#[must_use = "the pages are freed when this is dropped"]
pub struct Pages {
    kernel: KernelRef,
    block: Block,
    owner: Owner,
}

/// Allocates 2^`order` contiguous pages (`alloc_pages`). With a mask that may sleep: process context only.
///
/// # Errors
/// [`AllocError::TooLarge`] above order 10, [`AllocError::NoMemory`] when no allowed zone has the block.
#[track_caller]
pub fn alloc_pages(cpu: &Cpu<'_>, order: u8, gfp: Gfp) -> Result<Pages, AllocError> {
    let owner = cpu.owner();
    let block = take_block(cpu, order, gfp, Class::Page, owner)?;
    Ok(Pages::own(cpu, block, owner))
}

impl Pages {
    /// Takes over a block that [`take_block`] gave.
    pub(crate) fn own(cpu: &Cpu<'_>, block: Block, owner: Owner) -> Self {
        Self { kernel: cpu.kernel_ref(), block, owner }
    }
}

/// The page allocator's front door, for every allocator above it.
#[track_caller]
pub(crate) fn take_block(cpu: &Cpu<'_>, order: u8, gfp: Gfp, class: Class, owner: Owner) -> Result<Block, AllocError> {
    check_order(cpu, order, gfp, owner)?;
    if gfp.may_sleep() {
        cpu.might_sleep("alloc_pages");
    }
    take_block_quietly(cpu, order, gfp, class, owner)
}

/// Refuses what is larger than the largest block, and warns of it.
pub(crate) fn check_order(cpu: &Cpu<'_>, order: u8, gfp: Gfp, owner: Owner) -> Result<(), AllocError> {
    if order > altered!(MAX_ORDER) {
        GfpWarning::OrderTooLarge { order }.report(cpu, gfp, owner);
        return Err(AllocError::TooLarge { order });
    }
    Ok(())
}

/// As [`take_block`], for who has complained about the context already.
pub(crate) fn take_block_quietly(
    cpu: &Cpu<'_>,
    order: u8,
    gfp: Gfp,
    class: Class,
    owner: Owner,
) -> Result<Block, AllocError> {
    let block = ask_for_pages(cpu, Request { class, ..Request::pages(order, gfp) }, owner, |_, gfp| {
        get_pages(cpu, order, gfp, (crate::frame::Kind::Pages, owner)).map(|block| (block.pfn.phys(), block))
    })?;
    if gfp.contains(Gfp::ZERO) {
        // The block came from a zone, so all of it is RAM.
        let _ = cpu.kernel().ram().zero(block.pfn.phys(), PAGE_SIZE << order);
    }
    Ok(block)
}

/// What a block is to serve, and for whom.
type Purpose = (crate::frame::Kind, Owner);

/// One attempt: a block from the CPU's own lists or the zones (`get_page_from_freelist`).
fn attempt(cpu: &Cpu<'_>, what: (u8, ZoneKind, Pass), purpose: Purpose) -> Option<Block> {
    let (kernel, order) = (cpu.kernel(), what.0);
    if kernel.pcp.serves(order) {
        let taken = kernel.pcp.take(&kernel.memory, cpu.producer().0, what, purpose);
        return taken.map(|(pfn, zone)| block(pfn, order, zone));
    }
    kernel.memory.lock().zones.take_for(what, purpose)
}

/// Every attempt that needs no waiting.
pub(crate) fn get_pages(cpu: &Cpu<'_>, order: u8, gfp: Gfp, purpose: Purpose) -> Result<Block, AllocError> {
    let highest = gfp.highest_zone(cpu.kernel().config().arch);
    for pass in Pass::all(gfp) {
        if let Some(block) = attempt(cpu, (order, highest, pass), purpose) {
            return Ok(block);
        }
        if pass == Pass::Low {
            cpu.kernel().pcp.shared().below_low(gfp);
        }
    }
    Err(AllocError::NoMemory { order, gfp, zone: highest })
}

/// Gives a block to the CPU's own list or back to its zone; tells who had it.
fn put_pages(kernel: &Kernel, pfn: Pfn, order: u8) -> Result<Owner, FreeError> {
    if kernel.pcp.shared().odd.any()
        && let Some(owner) = kernel.memory.lock().zones.condemn(pfn, order, kernel.pcp.serves(order))
    {
        return Ok(owner);
    }
    if kernel.pcp.serves(order)
        && let Ok(raw) = u32::try_from(pfn.get())
        && let Some(owner) = kernel.pcp.put(&kernel.memory, crate::cpu::current().0, raw, order)
    {
        return Ok(owner);
    }
    // Not a block of pages of this order: the zones say what it is.
    kernel.memory.lock().zones.free(pfn, order)
}

/// The page allocator as all its callers meet it: the point, then `take`, reclaim if it finds nothing, then the event.
///
/// `take` tries once with the mask that it is given. As in Linux, an injected failure leaves no event, and one of the
/// allocator's own leaves one without an address.
pub(crate) fn ask_for_pages<T>(
    cpu: &Cpu<'_>,
    request: Request,
    owner: Owner,
    mut take: impl FnMut(&Kernel, Gfp) -> Result<(PhysAddr, T), AllocError>,
) -> Result<T, AllocError> {
    let (order, gfp) = (request.order, cpu.gfp_context(request.gfp));
    let arch = cpu.kernel().config().arch;
    let highest = gfp.highest_zone(arch);
    let failed = cpu.pass(Request { gfp, ..request }, owner, gfp.can_fail(order, arch)) == Verdict::Fail;
    if failed && !gfp.contains(Gfp::NOFAIL) {
        cpu.injected(request.class);
        cpu.trace(Kind::MmPageAlloc, 0, block_bytes(order), 0, owner_word(owner));
        cpu.trace_refused(0, String::new);
        return Err(AllocError::NoMemory { order, gfp, zone: highest });
    }
    if gfp.contains(Gfp::NOFAIL) && order > 1 {
        GfpWarning::NofailOrder { order }.report(cpu, gfp, owner);
    }
    let kernel = cpu.kernel();
    let mut attempt = |gfp| take(kernel, if cpu.is_memalloc() { gfp | Gfp::MEMALLOC } else { gfp });
    let taken = attempt(gfp).or_else(|_| {
        let found = slowpath(cpu, Short { order, gfp, highest, owner }, &mut attempt);
        found.inspect_err(|_| refused(cpu, order, gfp, owner))
    });
    let at = taken.as_ref().map_or(0, |(at, _)| at.get());
    cpu.trace(Kind::MmPageAlloc, at, block_bytes(order), 0, owner_word(owner));
    if taken.is_err() {
        cpu.trace_refused(0, || refusal(cpu, order, gfp).to_string());
    }
    taken.map(|(_, taken)| taken)
}

/// What the zones say to a request that found nothing.
fn refusal(cpu: &Cpu<'_>, order: u8, gfp: Gfp) -> Refusal {
    let kernel = cpu.kernel();
    let asked = if cpu.is_memalloc() { gfp | Gfp::MEMALLOC } else { gfp };
    let listed = kernel.pcp_stats().map(|(_, pages)| pages);
    Refusal::pages(order, asked, gfp.highest_zone(kernel.config().arch), &kernel.zone_stats(), &listed)
}

/// Books why a request found nothing, and prints what Linux would.
fn refused(cpu: &Cpu<'_>, order: u8, gfp: Gfp, owner: Owner) {
    let (kernel, refusal) = (cpu.kernel(), refusal(cpu, order, gfp));
    kernel.refusals.book(Refused { at: cpu.now(), owner, device: None, refusal });
    report::warn_alloc(cpu, order, gfp);
}

/// Gives a block back; `Drop` calls this, so it has no CPU and no point.
pub(crate) fn give_block(kernel: &Kernel, at: PhysAddr, order: u8) {
    freed_for_dma(kernel, at, PAGE_SIZE << order.min(MAX_ORDER), Owner::default());
    give_block_by(kernel, at, order, Owner::default());
}

/// As [`give_block`], by somebody who is known.
pub(crate) fn give_block_by(kernel: &Kernel, at: PhysAddr, order: u8, by: Owner) {
    let freed = put_pages(kernel, at.pfn(), order);
    trace_page_free(kernel, at, order, by);
    if let Err(error) = freed {
        report_bad_free(kernel, error.into(), by);
    }
    tell_bad_pages(kernel, by);
}

/// Prints and reports the pages that were found in a bad state (`bad_page`).
pub(crate) fn tell_bad_pages(kernel: &Kernel, by: Owner) {
    for (pfn, reason) in kernel.pcp.shared().odd.take_found() {
        let head = format!("BUG: Bad page state in process insmod  pfn:{pfn:05x}");
        kernel.log().print(kernel.clock(), &format!("{head}\npage dumped because: {reason}"));
        report_bad_free(kernel, FreeError::BadState { pfn: pfn.into(), reason }.into(), by);
    }
}

fn trace_page_free(kernel: &Kernel, at: PhysAddr, order: u8, by: Owner) {
    trace_release(kernel, Kind::MmPageFree, at, block_bytes(order), by);
}

pub(crate) fn trace_release(kernel: &Kernel, kind: Kind, at: PhysAddr, len: usize, by: Owner) {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let record = Record { ts: kernel.clock(), addr: at.get(), len, kind, dev: 0, tag: owner_word(by) };
    kernel.trace().emit(crate::cpu::current(), record);
}

pub(crate) fn report_bad_free(kernel: &Kernel, error: BadFree, by: Owner) {
    kernel.report(Finding {
        kind: FindingKind::BadFree(error),
        device: None,
        at: kernel.clock(),
        sites: vec![("freed at", by)],
    });
}

fn block_bytes(order: u8) -> usize {
    4096 << order.min(MAX_ORDER)
}

impl Pages {
    /// The physical address of the first byte.
    pub fn phys(&self) -> PhysAddr {
        self.block.pfn.phys()
    }

    /// The zone the block came from.
    pub fn zone(&self) -> ZoneKind {
        self.block.zone
    }

    /// The order it was asked for.
    pub fn order(&self) -> u8 {
        self.block.order
    }

    /// Who allocated it.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Its block and owner, not to be freed by this any more.
    fn into_block(self) -> (Block, Owner) {
        let Self { block, owner, .. } = *std::mem::ManuallyDrop::new(self);
        (block, owner)
    }

    /// Frees it to the far end of its list, past the CPU's own.
    fn free_to_tail(self) {
        let kernel = self.kernel;
        let (block, _) = self.into_block();
        if let Some(kernel) = kernel.get() {
            kernel.memory.lock().zones.release_last(block);
            trace_page_free(kernel, block.pfn.phys(), block.order, Owner::default());
        }
    }

    /// The machine it belongs to.
    pub(crate) fn kernel(&self) -> KernelRef {
        self.kernel
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Some(kernel) = self.kernel.get() {
            give_block(kernel, self.phys(), self.block.order);
        }
    }
}

#[cfg(test)]
mod million;
#[cfg(test)]
mod tests;
