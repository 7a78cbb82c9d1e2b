//! Coherent DMA memory: rings, headers, status bytes that CPU and device both see at once.
//!
//! The zone follows the device's coherent mask, as in dma_direct_alloc: the caller's zone bits are dropped, the
//! mask's are used, and a block beyond the mask is retried lower. Always zeroed, whole pages, aligned to its order.
//! Access is by accessors that take `&Cpu`, in bounds, with the barriers as `Cpu`'s methods. Freed when dropped.
//! Mirrors kernel/dma/direct.c. Neighbours: `device`, `page`, `ledger`, `atomic`. On a
//! non-coherent machine it is an uncached alias; behind an IOMMU it lies anywhere, in one piece.

use thiserror::Error;

use crate::addr::{DmaAddr, PAGE_SHIFT, PAGE_SIZE, PhysAddr};
use crate::cpu::Cpu;
use crate::dma::device::DmaDevice;
use crate::dma::direction::Dir;
use crate::dma::iommu::IovaError;
use crate::dma::mapping::{Entries, Kind as MappingKind, NewMapping};
use crate::env::Class;
use crate::finding::FindingKind;
use crate::gfp::{GFP_DMA, GFP_DMA32, GFP_ZONEMASK, Gfp};
use crate::kernel::Kernel;
use crate::page::{check_order, give_block, take_block_quietly};
use crate::site::{Owner, Site};
use crate::trace::Kind;
use crate::zone::{AllocError, Block, ZoneKind};

/// Why coherent memory could not be had; Linux's NULL in each case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum CoherentError {
    /// No bytes asked for, which Linux takes for an order beyond all blocks.
    #[error("coherent allocation of 0 bytes")]
    ZeroSize,
    /// More than the largest block.
    #[error("coherent allocation of {len} bytes: the most is 4 MiB")]
    TooLarge {
        /// How many.
        len: usize,
    },
    /// The device has no coherent mask, because no bus gave it one.
    #[error("WARNING: kernel/dma/mapping.c {call}: the device has no coherent mask")]
    NoMask {
        /// Linux's function that warns.
        call: &'static str,
    },
    /// The device is of a machine that was recycled.
    #[error("the device is of an earlier machine")]
    Stale,
    /// The IOMMU has no addresses left.
    #[error(transparent)]
    Iova(#[from] IovaError),
    /// No atomic pool has so much within the mask.
    #[error("coherent allocation of {len} bytes that can't wait: no atomic pool has them")]
    NoPool {
        /// How many bytes.
        len: usize,
    },
    /// No memory within the mask.
    #[error("no coherent memory of {len} bytes within mask {mask:#x}: {source}")]
    NoMemory {
        /// How many bytes.
        len: usize,
        /// The coherent mask.
        mask: u64,
        /// The page allocator's last word.
        source: AllocError,
    },
}

/// Coherent DMA memory, freed when dropped.
#[must_use = "the memory is freed when this is dropped"]
#[derive(Debug)]
pub struct Coherent {
    device: DmaDevice,
    phys: PhysAddr,
    dma: DmaAddr,
    zone: ZoneKind,
    order: u8,
    len: usize,
    id: u64,
    owner: Owner,
    /// Who frees it, for a device that comes too late.
    freed_by: Owner,
}

impl DmaDevice {
    /// Allocates zeroed memory that device and CPU share (`dma_alloc_coherent`).
    ///
    /// With a mask that may sleep: process context only; else any.
    ///
    /// # Errors
    /// [`CoherentError`].
    #[track_caller]
    pub fn alloc_coherent(&self, cpu: &Cpu<'_>, len: usize, gfp: Gfp) -> Result<Coherent, CoherentError> {
        let owner = cpu.owner();
        if self.coherent_mask() == 0 {
            return Err(self.warn_no_coherent_mask(cpu, "dma_alloc_attrs"));
        }
        let block = if Self::uses_atomic_pool(cpu, gfp) {
            self.take_from_atomic_pool(cpu, len, gfp, owner)?
        } else {
            self.zeroed_block(cpu, len, gfp, "dma_alloc_coherent", owner)?
        };
        let (phys, order) = (block.pfn.phys(), block.order);
        let dma = self.enter(phys, len as u64, Dir::Bidirectional, self.coherent_mask());
        let dma = dma.inspect_err(|_| give_pages(cpu.kernel(), phys, order))?;
        let id = cpu.kernel().next_transaction();
        let mapping = NewMapping {
            id,
            dma,
            phys,
            orig: phys,
            len: len as u64,
            dir: Dir::Bidirectional,
            kind: MappingKind::Coherent,
            entries: Entries::default(),
            bounced: false,
            map_owner: owner,
            alloc_owner: owner,
            mapped_at: cpu.now(),
            checked: true,
        };
        self.state.ledger.lock().map(mapping);
        self.state.counters.lock().coherent += 1;
        self.trace_mapping(cpu, Kind::DmaAlloc, &mapping);
        Ok(Coherent {
            device: self.clone(),
            phys,
            dma,
            zone: block.zone,
            order,
            len,
            id,
            owner,
            freed_by: Owner::default(),
        })
    }

    /// WARN_ON_ONCE of each family's allocation, which then finds nothing within the mask.
    #[track_caller]
    pub(crate) fn warn_no_coherent_mask(&self, cpu: &Cpu<'_>, call: &'static str) -> CoherentError {
        let failure = CoherentError::NoMask { call };
        cpu.kernel().log().once(cpu.now(), Site::caller(), format!("{}: {failure}", self.name()));
        failure
    }

    /// A zeroed block within the coherent mask, whatever becomes of it.
    #[track_caller]
    pub(crate) fn zeroed_block(
        &self,
        cpu: &Cpu<'_>,
        len: usize,
        gfp: Gfp,
        what: &'static str,
        owner: Owner,
    ) -> Result<Block, CoherentError> {
        let kernel = self.live_for(cpu, None).ok_or(CoherentError::Stale)?;
        let order = get_order(len);
        check_order(cpu, order, gfp, owner).map_err(|_| match len {
            0 => CoherentError::ZeroSize,
            _ => CoherentError::TooLarge { len },
        })?;
        if gfp.may_sleep() {
            cpu.might_sleep(what);
        }
        let mask = self.coherent_mask();
        // Zeroed once, at the end: a block beyond the mask goes back as it is.
        let block = self.block_within(cpu, len, order, gfp - Gfp::ZERO, owner);
        let block = block.map_err(|source| CoherentError::NoMemory { len, mask, source })?;
        // The block came from a zone, so all of it is RAM.
        if !planted!(NotZeroed) {
            let _ = kernel.ram().zero_uncached(block.pfn.phys(), PAGE_SIZE << order);
        }
        Ok(block)
    }

    /// A block within the mask: by the mask's zone first, then lower ones if what came lies beyond.
    fn block_within(&self, cpu: &Cpu<'_>, len: usize, order: u8, gfp: Gfp, owner: Owner) -> Result<Block, AllocError> {
        let mask = self.coherent_mask();
        // The pages asked for must be in reach; the rest of the block need not be.
        let size = (len as u64).next_multiple_of(PAGE_SIZE);
        let plain = gfp - GFP_ZONEMASK;
        if self.domain().is_some() {
            return take_block_quietly(cpu, order, plain, Class::Coherent, owner);
        }
        let mut zone = self.zone_bits(mask);
        loop {
            let block = take_block_quietly(cpu, order, plain | zone, Class::Coherent, owner)?;
            let addr = self.bus_address(block.pfn.phys());
            if Self::capable(addr, size, mask) {
                return Ok(block);
            }
            give_block(cpu.kernel(), block.pfn.phys(), order);
            zone = match zone {
                zone if zone == GFP_DMA => {
                    return Err(AllocError::NoMemory { order, gfp: plain | zone, zone: ZoneKind::Dma });
                }
                zone if zone == GFP_DMA32 => GFP_DMA,
                _ => GFP_DMA32,
            };
        }
    }
}

/// The order of a block of `len` bytes (`get_order`); of none, the highest there is.
pub(super) fn get_order(len: usize) -> u8 {
    let last = (len as u64).wrapping_sub(1) >> PAGE_SHIFT;
    // At most 52.
    u8::try_from(u64::BITS - last.leading_zeros()).unwrap_or(u8::MAX)
}

macro_rules! accessors {
    ($($read:ident $write:ident $type:ty, $bits:literal;)*) => {$(
        #[doc = concat!("Reads ", $bits, " bits, little-endian, all-ones outside. In one access if aligned. Any context.")]
        #[track_caller]
        #[inline]
        pub fn $read(&self, cpu: &Cpu<'_>, offset: usize) -> $type {
            match self.place(cpu, offset, size_of::<$type>()) {
                Some(at) if cpu.kernel().weak().is_some() => {
                    let mut bytes = [0; size_of::<$type>()];
                    load(cpu, at, &mut bytes);
                    <$type>::from_le_bytes(bytes)
                }
                Some(at) => match cpu.kernel().ram().load::<$type>(at) {
                    Ok(value) => <$type>::from_le(value),
                    Err(_) => {
                        let mut bytes = [0; size_of::<$type>()];
                        let _ = cpu.kernel().ram().read_uncached(at, &mut bytes);
                        <$type>::from_le_bytes(bytes)
                    }
                },
                None => <$type>::MAX,
            }
        }

        #[doc = concat!("Writes ", $bits, " bits, little-endian, lost outside. In one access if aligned. Any context.")]
        #[track_caller]
        #[inline]
        pub fn $write(&self, cpu: &Cpu<'_>, offset: usize, value: $type) {
            if let Some(at) = self.place(cpu, offset, size_of::<$type>()) {
                if cpu.kernel().weak().is_some() {
                    return store(cpu, at, &value.to_le_bytes());
                }
                // In bounds, hence RAM; only an unaligned place can fail, and x86 takes that as several accesses.
                if cpu.kernel().ram().store::<$type>(at, value.to_le()).is_err() {
                    let _ = cpu.kernel().ram().write_uncached(at, &value.to_le_bytes());
                }
            }
        }
    )*};
}

/// Copies bytes of coherent memory out.
#[track_caller]
#[inline]
pub(super) fn load(cpu: &Cpu<'_>, at: PhysAddr, to: &mut [u8]) {
    match cpu.kernel().weak() {
        Some(weak) => cpu.weak_load(weak, at, to, cpu.owner()),
        // In bounds, hence RAM.
        None => drop(cpu.kernel().ram().read_uncached(at, to)),
    }
}

/// Copies bytes into coherent memory.
#[track_caller]
#[inline]
pub(super) fn store(cpu: &Cpu<'_>, at: PhysAddr, from: &[u8]) {
    match cpu.kernel().weak() {
        Some(weak) => cpu.weak_store(weak, at, from, cpu.owner()),
        None => drop(cpu.kernel().ram().write_uncached(at, from)),
    }
}

/// The memory changes hands: nothing is under way to it any more.
pub(super) fn settle(kernel: &Kernel, at: PhysAddr, len: u64) {
    if let Some(weak) = kernel.weak() {
        weak.lock().forget(kernel.ram(), at, len);
    }
}

impl Coherent {
    accessors! {
        read_u8 write_u8 u8, "8";
        read_u16 write_u16 u16, "16";
        read_u32 write_u32 u32, "32";
        read_u64 write_u64 u64, "64";
    }

    /// What the device must be told.
    pub fn dma_addr(&self) -> DmaAddr {
        self.dma
    }

    /// Where it lies.
    pub fn phys(&self) -> PhysAddr {
        self.phys
    }

    /// The zone it came from.
    pub fn zone(&self) -> ZoneKind {
        self.zone
    }

    /// How many bytes were asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none; it always has some.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pages it holds.
    pub fn pages(&self) -> u64 {
        1 << self.order
    }

    /// Frees it, with the caller's line for a device that comes too late (`dma_free_coherent`). Interrupts on.
    #[track_caller]
    pub fn free(mut self, cpu: &Cpu<'_>) {
        cpu.wrong_context(cpu.irqs_disabled(), "dma_free_coherent", Some("any"));
        self.freed_by = cpu.owner();
        let _ = cpu.point_for(Class::Release, self.len as u64, self.freed_by);
    }

    /// Frees it as if it had `len` bytes, for misuse: the books are told that length, all its pages go.
    #[track_caller]
    pub(crate) fn free_as(mut self, cpu: &Cpu<'_>, len: usize) {
        self.len = len;
        self.free(cpu);
    }

    /// Copies bytes out; nothing is copied if the range leaves the memory. Any context.
    #[track_caller]
    #[inline]
    pub fn read(&self, cpu: &Cpu<'_>, offset: usize, to: &mut [u8]) {
        if let Some(at) = self.place(cpu, offset, to.len()) {
            load(cpu, at, to);
        }
    }

    /// Copies bytes in; nothing is copied if the range leaves the memory. Any context.
    #[track_caller]
    #[inline]
    pub fn write(&self, cpu: &Cpu<'_>, offset: usize, from: &[u8]) {
        if let Some(at) = self.place(cpu, offset, from.len()) {
            store(cpu, at, from);
        }
    }

    #[track_caller]
    #[inline]
    fn place(&self, cpu: &Cpu<'_>, offset: usize, len: usize) -> Option<PhysAddr> {
        let inside = len <= self.len && offset <= self.len - len;
        if inside && self.device.live_kernel().is_some() {
            // All of it lies in one zone.
            Some(self.phys.wrapping_add(offset as u64))
        } else {
            self.misplaced(cpu, offset, len);
            None
        }
    }

    /// Says what is wrong about an access.
    #[track_caller]
    #[cold]
    fn misplaced(&self, cpu: &Cpu<'_>, offset: usize, len: usize) {
        if self.device.live_kernel().is_none() {
            return cpu.stale("coherent buffer");
        }
        let kind = FindingKind::OutOfBounds {
            what: "coherent buffer",
            offset: offset as u64,
            len: len as u64,
            size: self.len as u64,
        };
        let sites = vec![("accessed at", cpu.owner()), ("allocated at", self.owner)];
        cpu.emit(kind, Some(self.device.name().to_owned()), sites);
    }
}

impl Drop for Coherent {
    fn drop(&mut self) {
        let Some(kernel) = self.device.live_kernel() else { return };
        settle(kernel, self.phys, self.pages() * PAGE_SIZE);
        free_coherent_raw(&self.device, self.dma, self.len as u64, self.freed_by);
        self.device.leave(self.dma, self.pages() * PAGE_SIZE);
        give_pages(kernel, self.phys, self.order);
        self.device.trace_release((Kind::DmaFree, self.dma, self.len as u64), self.id, 0, self.freed_by);
    }
}

/// Gives pages back to the pool or the zone that they came from.
fn give_pages(kernel: &Kernel, at: PhysAddr, order: u8) {
    if kernel.config().coherent || !kernel.atomic_pools.lock().give(at) {
        give_block(kernel, at, order);
    }
}

/// Takes coherent memory off the ledger and reports what was wrong about it.
pub(crate) fn free_coherent_raw(device: &DmaDevice, dma: DmaAddr, len: u64, by: Owner) {
    let now = device.kernel().clock();
    let unmapped = device.state.ledger.lock().unmap(dma, len, Dir::Bidirectional, MappingKind::Coherent, by, now);
    super::streaming::report_unmap(device, &unmapped, by);
}

#[cfg(test)]
mod tests;
