//! `KBuf`: bytes of kernel memory, from kmalloc or whole pages, as a buffer that owns itself.
//!
//! The only way to its bytes is copying, since a device may share them. It frees itself when dropped. It is
//! physically contiguous and has a direct-map address, so it may be mapped for DMA; where it lies follows from the
//! mask: kmalloc with `GFP_KERNEL` prefers pages above 4 GiB and drops `GFP_DMA32`, whole pages honour it.
//!
//! Mirrors `kmalloc`, `__get_free_pages`, `kfree`. Neighbours: `kmalloc` has the rest of
//! the family, `kmem_cache` gives its objects as such buffers, `page`, `dma`. Left out: vmalloc.

use std::panic::Location;

use thiserror::Error;

use crate::addr::{PhysAddr, VirtAddr};
use crate::cpu::Cpu;
use crate::dma::cache::ARCH_DMA_MINALIGN;
use crate::dma::ownership::cpu_touches;
use crate::fault::Request;
use crate::finding::FindingKind;
use crate::gfp::Gfp;
use crate::kernel::{Kernel, KernelRef, Sanitize};
use crate::kmalloc::PORTABLE_SIZE;
use crate::kmalloc::object::{Placed, large, release, small};
use crate::page::{Pages, alloc_pages, give_block};
use crate::site::Owner;
use crate::slab::{CacheId, ZERO_SIZE_PTR};
use crate::trace::{Kind, owner_word};
use crate::zone::{AllocError, ZoneKind};

/// A copy that would leave its buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{len} bytes at offset {offset} of a buffer of {size}")]
pub struct OutOfBounds {
    /// The first byte.
    pub offset: usize,
    /// How many bytes.
    pub len: usize,
    /// The buffer's size.
    pub size: usize,
}

enum Backing {
    ZeroSize,
    Slab { kernel: KernelRef, phys: PhysAddr, zone: ZoneKind, cached: bool },
    Pages(Pages),
}

/// A buffer of kernel memory.
#[must_use = "the memory is freed when this is dropped"]
pub struct KBuf {
    backing: Backing,
    len: usize,
    owner: Owner,
}

impl std::fmt::Debug for KBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KBuf({} + {:#x})", self.phys(), self.len)
    }
}

impl KBuf {
    /// Allocates `len` bytes (`kmalloc`). With a mask that may sleep: process context only.
    ///
    /// # Errors
    /// [`AllocError`]: more than 4 MiB, or no memory.
    #[track_caller]
    pub fn kmalloc(cpu: &Cpu<'_>, len: usize, gfp: Gfp) -> Result<Self, AllocError> {
        let owner = cpu.owner();
        if len == 0 {
            return Ok(Self { backing: Backing::ZeroSize, len, owner });
        }
        if gfp.may_sleep() {
            cpu.might_sleep("kmalloc");
        }
        if len > PORTABLE_SIZE && cpu.kernel().config().sanitize.contains(Sanitize::PORTABLE) {
            cpu.emit(FindingKind::BeyondPortable { bytes: len as u64 }, None, vec![("allocated at", owner)]);
        }
        // Two objects of kmalloc's never share a cache line that a device may not see.
        let wanted = if cpu.kernel().config().coherent { len } else { len.next_multiple_of(ARCH_DMA_MINALIGN) };
        let placed = match CacheId::serving(wanted, gfp) {
            Some(id) => small(cpu, id.number(), Request::object_of(id, gfp), len, owner),
            None => large(cpu, len, gfp, owner),
        };
        Self::of_object(cpu, placed, Kind::Kmalloc, len, gfp, owner)
    }

    /// The buffer of an object that was asked for, with its event and what the mask says of it.
    pub(crate) fn of_object(
        cpu: &Cpu<'_>,
        placed: Result<(Placed, bool), AllocError>,
        kind: Kind,
        len: usize,
        gfp: Gfp,
        owner: Owner,
    ) -> Result<Self, AllocError> {
        let placed = placed.inspect_err(|why| {
            cpu.trace(kind, 0, len, 0, owner_word(owner));
            cpu.trace_refused(0, || why.to_string());
        });
        let (object, fixed_up) = placed?;
        cpu.trace(kind, object.phys.get(), len, 0, owner_word(owner));
        if fixed_up {
            let bad = gfp & (Gfp::DMA32 | Gfp::HIGHMEM);
            cpu.emit(FindingKind::GfpFixup { bad, fixed: gfp - bad }, None, vec![("allocated at", owner)]);
        }
        Ok(Self::zeroed_object(cpu, object, kind, len, gfp, owner))
    }

    /// The buffer of an object, cleared if the mask says so.
    pub(crate) fn zeroed_object(cpu: &Cpu<'_>, object: Placed, kind: Kind, len: usize, gfp: Gfp, owner: Owner) -> Self {
        let (Placed { phys, zone }, cached) = (object, kind == Kind::KmemCacheAlloc);
        if gfp.contains(Gfp::ZERO) {
            // The object came from a zone, so all of it is RAM.
            let _ = cpu.kernel().ram().zero(phys, len as u64);
        }
        Self { backing: Backing::Slab { kernel: cpu.kernel_ref(), phys, zone, cached }, len, owner }
    }

    /// Allocates 2^`order` whole pages as bytes (`__get_free_pages`). Context as [`alloc_pages`].
    ///
    /// They have an address: `__GFP_HIGHMEM` is dropped, silently as in Linux.
    ///
    /// # Errors
    /// As [`alloc_pages`].
    #[track_caller]
    pub fn pages(cpu: &Cpu<'_>, order: u8, gfp: Gfp) -> Result<Self, AllocError> {
        let pages = alloc_pages(cpu, order, gfp - Gfp::HIGHMEM)?;
        Ok(Self { len: 4096 << order, owner: pages.owner(), backing: Backing::Pages(pages) })
    }

    /// `len` bytes of a block of pages that holds at least as many.
    pub(crate) fn of_pages(pages: Pages, len: usize) -> Self {
        Self { len: len.min(4096 << pages.order()), owner: pages.owner(), backing: Backing::Pages(pages) }
    }

    /// The same memory, of which the bytes from `len` on are no longer used: neither copied nor mapped.
    pub fn truncated(mut self, len: usize) -> Self {
        self.len = self.len.min(len);
        self
    }

    /// The same memory, of which `len` bytes are used: no more than its object holds, but for misuse.
    pub(crate) fn resized(mut self, len: usize) -> Self {
        self.len = len;
        self
    }

    /// Bytes that its object holds (`ksize`); a buffer of pages holds what it has.
    pub(crate) fn usable(&self) -> usize {
        let Backing::Slab { kernel, phys, .. } = &self.backing else { return self.len };
        let object = kernel.get().and_then(|kernel| {
            let memory = kernel.memory.lock();
            memory.slabs.lookup(&memory.zones, *phys)
        });
        object.map_or(self.len, |object| usize::try_from(object.class_size).unwrap_or(self.len))
    }

    /// Lets go of the buffer without freeing it; its address.
    pub(crate) fn leak(self) -> PhysAddr {
        let phys = self.phys();
        std::mem::forget(self);
        phys
    }

    /// How many bytes were asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The physical address of its first byte (`virt_to_phys`).
    pub fn phys(&self) -> PhysAddr {
        match &self.backing {
            Backing::ZeroSize => PhysAddr::new(ZERO_SIZE_PTR.get()),
            Backing::Slab { phys, .. } => *phys,
            Backing::Pages(pages) => pages.phys(),
        }
    }

    /// What the driver's pointer would hold.
    pub fn virt(&self) -> VirtAddr {
        let arch = self.machine().map(|machine| machine.get_unchecked().config().arch);
        // No buffer lies in high memory, so it has an address.
        arch.and_then(|arch| arch.direct_map(self.phys())).unwrap_or(ZERO_SIZE_PTR)
    }

    /// The zone it lies in; a buffer of no bytes counts as Normal.
    pub fn zone(&self) -> ZoneKind {
        match &self.backing {
            Backing::ZeroSize => ZoneKind::Normal,
            Backing::Slab { zone, .. } => *zone,
            Backing::Pages(pages) => pages.zone(),
        }
    }

    /// Who allocated it.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Copies bytes out of it; nothing is copied, and that reported, if its machine was recycled. Any context.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[track_caller]
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        let (at, kernel) = self.place(offset, to.len())?;
        // Within the buffer, hence RAM.
        if let Some(kernel) = kernel {
            cpu_touches(kernel, (at, to.len()), false, Location::caller());
            let _ = kernel.ram().read(at, to);
        }
        Ok(())
    }

    /// Copies bytes into it; nothing is copied, and that reported, if its machine was recycled. Any context.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[track_caller]
    pub fn write_at(&mut self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        let (at, kernel) = self.place(offset, from.len())?;
        if let Some(kernel) = kernel {
            cpu_touches(kernel, (at, from.len()), true, Location::caller());
            let _ = kernel.ram().write(at, from);
        }
        Ok(())
    }

    /// Frees its memory and leaves the buffer with its holder, for misuse: dropping it frees it again.
    pub(crate) fn free_under(&self, kernel: &Kernel, by: Owner) {
        match &self.backing {
            Backing::ZeroSize => {}
            Backing::Slab { phys, .. } => kfree_raw(kernel, *phys, by),
            Backing::Pages(pages) => give_block(kernel, pages.phys(), pages.order()),
        }
    }

    fn machine(&self) -> Option<KernelRef> {
        match &self.backing {
            Backing::ZeroSize => None,
            Backing::Slab { kernel, .. } => Some(*kernel),
            Backing::Pages(pages) => Some(pages.kernel()),
        }
    }

    /// Whether its machine was recycled: the bytes belong to somebody else now.
    pub(crate) fn is_stale(&self) -> bool {
        self.machine().is_some_and(|machine| machine.get().is_none())
    }

    #[track_caller]
    fn place(&self, offset: usize, len: usize) -> Result<(PhysAddr, Option<&'static Kernel>), OutOfBounds> {
        let error = OutOfBounds { offset, len, size: self.len };
        let end = offset.checked_add(len).ok_or(error)?;
        if end > self.len {
            return Err(error);
        }
        // A closure would hide the caller.
        let kernel = match self.machine() {
            Some(machine) => machine.get_or_report("buffer"),
            None => None,
        };
        Ok((self.phys().wrapping_add(offset as u64), kernel))
    }
}

impl Drop for KBuf {
    fn drop(&mut self) {
        if let Backing::Slab { kernel, phys, cached, .. } = &self.backing
            && let Some(kernel) = kernel.get()
        {
            let kind = if *cached { Kind::KmemCacheFree } else { Kind::Kfree };
            release(kernel, *phys, kind, None, Owner::default());
        }
    }
}

/// `kfree` of an address, for misuse: a wrong one changes nothing and is reported.
pub(crate) fn kfree_raw(kernel: &Kernel, phys: PhysAddr, by: Owner) {
    release(kernel, phys, Kind::Kfree, None, by);
}

#[cfg(test)]
mod tests;
