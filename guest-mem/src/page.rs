//! Pages: `alloc_pages` and the block that it gives.
//!
//! A [`Pages`] owns 2^order contiguous frames and frees them when it drops. The mask decides the zone (`GFP_DMA32`
//! for pages that a 32-bit device reaches), whether the call may sleep, and what it may dip into. Mirrors
//! mm/page_alloc.c. Neighbours: `zone` (who has memory), `kbuf` (bytes). Left out here: reclaim, per-CPU lists,
//! high memory.

use crate::addr::{PAGE_SIZE, Pfn, PhysAddr};
use crate::buddy::MAX_ORDER;
use crate::cpu::Cpu;
use crate::env::{Class, Verdict};
use crate::fault::Request;
use crate::finding::{BadFree, Finding, FindingKind};
use crate::gfp::Gfp;
use crate::kernel::{Kernel, KernelRef};
use crate::site::Owner;
use crate::trace::{Kind, Record, owner_word};
use crate::zone::{AllocError, Block, FreeError, Pass, ZoneKind, block};

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
    if order > MAX_ORDER {
        return Err(AllocError::TooLarge { order });
    }
    if gfp.may_sleep() {
        cpu.might_sleep("alloc_pages");
    }
    take_block_quietly(cpu, order, gfp, class, owner)
}

/// As [`take_block`], for who has complained about the context already.
pub(crate) fn take_block_quietly(
    cpu: &Cpu<'_>,
    order: u8,
    gfp: Gfp,
    class: Class,
    owner: Owner,
) -> Result<Block, AllocError> {
    let block = ask_for_pages(cpu, Request { class, ..Request::pages(order, gfp) }, owner, |kernel| {
        get_pages(kernel, cpu.producer().0, order, gfp, owner).map(|block| (block.pfn.phys(), block))
    })?;
    if gfp.contains(Gfp::ZERO) {
        // The block came from a zone, so all of it is RAM.
        let _ = cpu.kernel().ram().zero(block.pfn.phys(), PAGE_SIZE << order);
    }
    Ok(block)
}

/// A block from the CPU's own lists or the zones.
fn get_pages(kernel: &Kernel, cpu: u16, order: u8, gfp: Gfp, owner: Owner) -> Result<Block, AllocError> {
    if !kernel.pcp.serves(order) {
        return kernel.memory.lock().zones.alloc(order, gfp, owner);
    }
    let zone = gfp.highest_zone(kernel.config().arch);
    let mut taken = Pass::all(gfp).filter_map(|pass| {
        kernel.pcp.take(&kernel.memory, cpu, (order, zone, pass), (crate::frame::Kind::Pages, owner))
    });
    let (pfn, zone) = taken.next().ok_or(AllocError::NoMemory { order, gfp, zone })?;
    Ok(block(pfn, order, zone))
}

/// Gives a block to the CPU's own list or back to its zone; tells who had it.
fn put_pages(kernel: &Kernel, pfn: Pfn, order: u8) -> Result<Owner, FreeError> {
    if kernel.pcp.serves(order)
        && let Ok(raw) = u32::try_from(pfn.get())
        && let Some(owner) = kernel.pcp.put(&kernel.memory, crate::cpu::current().0, raw, order)
    {
        return Ok(owner);
    }
    // Not a block of pages of this order: the zones say what it is.
    kernel.memory.lock().zones.free(pfn, order)
}

/// The page allocator as all its callers meet it: the point, then `take`, then the event.
///
/// As in Linux, an injected failure leaves no event, and one of the allocator's own leaves one without an address.
pub(crate) fn ask_for_pages<T>(
    cpu: &Cpu<'_>,
    request: Request,
    owner: Owner,
    take: impl FnOnce(&Kernel) -> Result<(PhysAddr, T), AllocError>,
) -> Result<T, AllocError> {
    let Request { order, gfp, .. } = request;
    let arch = cpu.kernel().config().arch;
    let failed = cpu.pass(request, owner, gfp.can_fail(order, arch)) == Verdict::Fail;
    if failed && !gfp.contains(Gfp::NOFAIL) {
        return Err(AllocError::NoMemory { order, gfp, zone: gfp.highest_zone(arch) });
    }
    let taken = take(cpu.kernel());
    let at = taken.as_ref().map_or(0, |(at, _)| at.get());
    cpu.trace(Kind::MmPageAlloc, at, block_bytes(order), 0, owner_word(owner));
    taken.map(|(_, taken)| taken)
}

/// Gives a block back; `Drop` calls this, so it has no CPU and no point.
pub(crate) fn give_block(kernel: &Kernel, at: PhysAddr, order: u8) {
    let freed = put_pages(kernel, at.pfn(), order);
    trace_page_free(kernel, at, order, Owner::default());
    if let Err(error) = freed {
        report_bad_free(kernel, error.into(), Owner::default());
    }
}

pub(crate) fn trace_page_free(kernel: &Kernel, at: PhysAddr, order: u8, by: Owner) {
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
    4096 << order
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
mod tests;
