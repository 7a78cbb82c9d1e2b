//! High memory: page frames without a kernel address, and the addresses they are lent.
//!
//! On a 32-bit machine pages above 896 MiB ([`crate::arch::Arch`]) come only to masks with `__GFP_HIGHMEM`, and
//! [`page_address`] has none for them. [`kmap`] lends one of 512 or 1024 slots that all CPUs see, and sleeps while none
//! is free; [`kmap_local_page`] lends one of the task's own, last in first out, in any context; [`kmap_atomic`] is its
//! old form, which turns preemption off. Touching a high page that has no address is an oops, here a finding. For a page
//! with a permanent address all of them give just that.
//!
//! Mirrors mm/highmem.c and Documentation/mm/highmem.rst of 6.1. Neighbours: `slots`, the table; `page`. Left out: TLB
//! flushes (an address of a slot is stale at once), the map of a task being switched.

use thiserror::Error;

use crate::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use crate::cpu::{Cpu, PreemptOff};
use crate::env::{Class, Wake};
use crate::finding::{Finding, FindingKind};
use crate::kernel::{Kernel, KernelRef};
use crate::page::Pages;
use crate::site::Owner;

pub mod misuse;
mod slots;
#[cfg(test)]
mod tests;

pub(crate) use slots::Kmaps;
pub use slots::{DEPTH, InvalidKmap, SLOTS, SLOTS_PAE};

/// How often a waiter looks for a slot that was given back without a word: by a drop, which can't wake anybody.
const LOOK_NS: u64 = 10_000_000;

/// Why a page was not mapped or reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KmapError {
    /// The block has fewer pages.
    #[error("page {index} of a block of {pages}")]
    NoPage {
        /// The page asked for.
        index: u64,
        /// Pages of the block.
        pages: u64,
    },
    /// Bytes beyond the page or block.
    #[error("{len} bytes at offset {offset:#x} of {size}")]
    OutOfBounds {
        /// The first byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Bytes there are.
        size: u64,
    },
    /// A page of high memory was touched while it has no address.
    #[error("page {pfn:#x} of high memory has no kernel address")]
    NoAddress {
        /// The page.
        pfn: u64,
    },
    /// The task holds as many temporary mappings as it has slots for.
    #[error("{DEPTH} temporary mappings are held")]
    Depth,
    /// The CPU is being torn down.
    #[error("the CPU is being torn down")]
    Dying,
}

fn frame_of(pages: &Pages, index: u64) -> Result<PhysAddr, KmapError> {
    let count = 1 << pages.order();
    if index >= count {
        return Err(KmapError::NoPage { index, pages: count });
    }
    Ok(pages.phys().wrapping_add(index * PAGE_SIZE))
}

/// Where the kernel sees a page now (`page_address`): `None` for high memory that nobody maps with [`kmap`]. Any
/// context.
///
/// # Errors
/// [`KmapError::NoPage`].
pub fn page_address(cpu: &Cpu<'_>, pages: &Pages, index: u64) -> Result<Option<VirtAddr>, KmapError> {
    let at = frame_of(pages, index)?;
    Ok(address(cpu.kernel(), at))
}

fn address(kernel: &Kernel, at: PhysAddr) -> Option<VirtAddr> {
    kernel.config().arch.direct_map(at).or_else(|| kernel.kmaps.lock().address(at.pfn().get()))
}

/// Maps a page for all CPUs (`kmap`) until the guard goes. Sleeps while every slot is in use: process context only.
///
/// # Errors
/// [`KmapError::NoPage`], [`KmapError::Dying`].
#[track_caller]
pub fn kmap<'p>(cpu: &Cpu<'_>, pages: &'p Pages, index: u64) -> Result<Kmap<'p>, KmapError> {
    cpu.might_sleep("kmap");
    let (owner, kernel) = (cpu.owner(), cpu.kernel());
    let at = frame_of(pages, index)?;
    let virt = match kernel.config().arch.direct_map(at) {
        Some(virt) => virt,
        None => map_high(cpu, at.pfn().get(), owner)?,
    };
    Ok(Kmap { pages, at, virt })
}

/// A slot for a page; waits for one (`kmap_high`).
fn map_high(cpu: &Cpu<'_>, pfn: u64, owner: Owner) -> Result<VirtAddr, KmapError> {
    let kernel = cpu.kernel();
    loop {
        if let Some(virt) = kernel.kmaps.lock().map(pfn, owner) {
            return Ok(virt);
        }
        let _ = cpu.point(Class::Wait, 0);
        let ticket = cpu.prepare(kernel.kmap_waiters);
        if let Some(virt) = kernel.kmaps.lock().map(pfn, owner) {
            cpu.cancel(ticket);
            return Ok(virt);
        }
        if cpu.park(ticket, Some(cpu.now().saturating_add(LOOK_NS))) == Wake::Dying {
            return Err(KmapError::Dying);
        }
    }
}

/// A page that is mapped for all CPUs.
#[must_use = "the page is unmapped when this is dropped"]
pub struct Kmap<'p> {
    pages: &'p Pages,
    at: PhysAddr,
    virt: VirtAddr,
}

impl Kmap<'_> {
    /// Its address.
    pub fn virt(&self) -> VirtAddr {
        self.virt
    }

    /// Unmaps it and wakes who waits for a slot (`kunmap`). Process context; a drop does the same, but wakes nobody.
    #[track_caller]
    pub fn kunmap(self, cpu: &Cpu<'_>) {
        cpu.might_sleep("kunmap");
        drop(self);
        cpu.wake(cpu.kernel().kmap_waiters, 1);
    }

    /// Copies bytes of the page out. Any context.
    ///
    /// # Errors
    /// [`KmapError::OutOfBounds`].
    pub fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<(), KmapError> {
        copy(self.pages.kernel(), self.at, offset, Bytes::Out(to))
    }

    /// Copies bytes into the page. Any context.
    ///
    /// # Errors
    /// [`KmapError::OutOfBounds`].
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), KmapError> {
        copy(self.pages.kernel(), self.at, offset, Bytes::In(from))
    }
}

impl Drop for Kmap<'_> {
    fn drop(&mut self) {
        if let Some(kernel) = self.pages.kernel().get() {
            unmap(kernel, self.at, Owner::default());
        }
    }
}

/// Takes back one `kmap` of a page; too many of them are `BUG()` in Linux.
fn unmap(kernel: &Kernel, at: PhysAddr, by: Owner) {
    if kernel.config().arch.direct_map(at).is_some() {
        return;
    }
    let pfn = at.pfn().get();
    let unmapped = kernel.kmaps.lock().unmap(pfn);
    if !unmapped {
        let kind = FindingKind::KunmapUnbalanced { pfn };
        kernel.report(Finding { kind, device: None, at: kernel.clock(), sites: vec![("unmapped at", by)] });
    }
}

enum Bytes<'b> {
    Out(&'b mut [u8]),
    In(&'b [u8]),
}

impl Bytes<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Out(to) => to.len() as u64,
            Self::In(from) => from.len() as u64,
        }
    }
}

/// Copies within one page.
fn copy(kernel: KernelRef, at: PhysAddr, offset: u64, bytes: Bytes<'_>) -> Result<(), KmapError> {
    let len = bytes.len();
    if offset.checked_add(len).is_none_or(|end| end > PAGE_SIZE) {
        return Err(KmapError::OutOfBounds { offset, len, size: PAGE_SIZE });
    }
    let Some(kernel) = kernel.get() else { return Ok(()) };
    // A page that was allocated is RAM.
    let _ = match bytes {
        Bytes::Out(to) => kernel.ram().read(at.wrapping_add(offset), to),
        Bytes::In(from) => kernel.ram().write(at.wrapping_add(offset), from),
    };
    Ok(())
}

/// Maps a page for this task (`kmap_local_page`) until the guard goes; the last one first. Any context, and the task may
/// sleep meanwhile.
///
/// # Errors
/// [`KmapError::NoPage`]; [`KmapError::Depth`], which is `BUG()` in Linux and a finding here.
#[track_caller]
pub fn kmap_local_page<'p>(cpu: &Cpu<'_>, pages: &'p Pages, index: u64) -> Result<KmapLocal<'p>, KmapError> {
    let (owner, kernel) = (cpu.owner(), cpu.kernel());
    let at = frame_of(pages, index)?;
    if let Some(virt) = kernel.config().arch.direct_map(at) {
        return Ok(KmapLocal { pages, at, virt, slot: None, owner });
    }
    let pushed = kernel.kmaps.lock().push((cpu.id(), cpu.task()), at.pfn().get(), owner);
    let Some((id, virt)) = pushed else {
        cpu.emit(FindingKind::KmapDepth { depth: DEPTH + 1 }, None, vec![("mapped at", owner)]);
        return Err(KmapError::Depth);
    };
    Ok(KmapLocal { pages, at, virt, slot: Some(((cpu.id(), cpu.task()), id)), owner })
}

/// A page that is mapped for one task.
#[must_use = "the page is unmapped when this is dropped"]
pub struct KmapLocal<'p> {
    pages: &'p Pages,
    at: PhysAddr,
    virt: VirtAddr,
    slot: Option<((u32, u32), u64)>,
    owner: Owner,
}

impl KmapLocal<'_> {
    /// Its address, of use to this task only.
    pub fn virt(&self) -> VirtAddr {
        self.virt
    }

    /// As [`Kmap::read_at`].
    ///
    /// # Errors
    /// [`KmapError::OutOfBounds`].
    pub fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<(), KmapError> {
        copy(self.pages.kernel(), self.at, offset, Bytes::Out(to))
    }

    /// As [`Kmap::write_at`].
    ///
    /// # Errors
    /// [`KmapError::OutOfBounds`].
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), KmapError> {
        copy(self.pages.kernel(), self.at, offset, Bytes::In(from))
    }
}

impl Drop for KmapLocal<'_> {
    /// `kunmap_local`.
    fn drop(&mut self) {
        let (Some(kernel), Some((task, id))) = (self.pages.kernel().get(), self.slot) else { return };
        let popped = kernel.kmaps.lock().pop(task, id);
        if let Some((slot, top)) = popped {
            let kind = FindingKind::KunmapOrder { slot, top };
            kernel.report(Finding { kind, device: None, at: kernel.clock(), sites: vec![("mapped at", self.owner)] });
        }
    }
}

/// [`kmap_local_page`] with preemption off, as drivers did before 5.11 (`kmap_atomic`). Any context; no sleeping
/// meanwhile.
///
/// # Errors
/// As [`kmap_local_page`].
#[track_caller]
pub fn kmap_atomic<'a>(cpu: &'a Cpu<'_>, pages: &'a Pages, index: u64) -> Result<KmapAtomic<'a>, KmapError> {
    let off = cpu.preempt_disable();
    match kmap_local_page(cpu, pages, index) {
        Ok(map) => Ok(KmapAtomic { map, _off: off }),
        Err(error) => Err(error),
    }
}

/// A page that is mapped while preemption is off.
#[must_use = "the page is unmapped when this is dropped"]
pub struct KmapAtomic<'a> {
    // Unmapped before preemption comes back on.
    map: KmapLocal<'a>,
    _off: PreemptOff<'a>,
}

impl<'a> std::ops::Deref for KmapAtomic<'a> {
    type Target = KmapLocal<'a>;

    fn deref(&self) -> &KmapLocal<'a> {
        &self.map
    }
}

/// Copies bytes out of a block page by page, each mapped for a moment (`memcpy_from_page`). Any context.
///
/// # Errors
/// [`KmapError::NoPage`] past the block's end, [`KmapError::Depth`].
#[track_caller]
pub fn memcpy_from_page(cpu: &Cpu<'_>, to: &mut [u8], pages: &Pages, offset: u64) -> Result<(), KmapError> {
    let mut at = offset;
    let mut rest = to;
    while !rest.is_empty() {
        let step = step(at, rest.len());
        let (now, later) = rest.split_at_mut(step);
        let map = kmap_local_page(cpu, pages, at / PAGE_SIZE)?;
        map.read_at(at % PAGE_SIZE, now)?;
        (rest, at) = (later, at + step as u64);
    }
    Ok(())
}

/// Copies bytes into a block page by page, each mapped for a moment (`memcpy_to_page`). Any context.
///
/// # Errors
/// As [`memcpy_from_page`].
#[track_caller]
pub fn memcpy_to_page(cpu: &Cpu<'_>, pages: &Pages, offset: u64, from: &[u8]) -> Result<(), KmapError> {
    let mut at = offset;
    let mut rest = from;
    while !rest.is_empty() {
        let step = step(at, rest.len());
        let (now, later) = rest.split_at(step);
        let map = kmap_local_page(cpu, pages, at / PAGE_SIZE)?;
        map.write_at(at % PAGE_SIZE, now)?;
        (rest, at) = (later, at + step as u64);
    }
    Ok(())
}

/// Bytes from `at` that lie in its page, `most` at most.
fn step(at: u64, most: usize) -> usize {
    usize::try_from(PAGE_SIZE - at % PAGE_SIZE).map_or(most, |left| left.min(most))
}

#[track_caller]
fn touch(cpu: &Cpu<'_>, pages: &Pages, index: u64, offset: u64, bytes: Bytes<'_>) -> Result<(), KmapError> {
    let at = frame_of(pages, index)?;
    if address(cpu.kernel(), at).is_none() {
        let pfn = at.pfn().get();
        let sites = vec![("touched at", cpu.owner()), ("allocated at", pages.owner())];
        cpu.emit(FindingKind::HighUnmapped { pfn }, None, sites);
        return Err(KmapError::NoAddress { pfn });
    }
    copy(pages.kernel(), at, offset, bytes)
}

/// Reads a page by its [`page_address`], as code does that never heard of high memory. Any context.
///
/// # Errors
/// [`KmapError::NoAddress`], which is a finding; [`KmapError::OutOfBounds`], [`KmapError::NoPage`].
#[track_caller]
pub fn read_page(cpu: &Cpu<'_>, pages: &Pages, index: u64, offset: u64, to: &mut [u8]) -> Result<(), KmapError> {
    touch(cpu, pages, index, offset, Bytes::Out(to))
}

/// Writes a page by its [`page_address`]. Any context.
///
/// # Errors
/// As [`read_page`].
#[track_caller]
pub fn write_page(cpu: &Cpu<'_>, pages: &Pages, index: u64, offset: u64, from: &[u8]) -> Result<(), KmapError> {
    touch(cpu, pages, index, offset, Bytes::In(from))
}
