//! `Backing`: where a scull device's quanta come from.
//!
//! Neighbours: the allocators that it asks. All quanta are zeroed: what was there before is nobody's to read.

use lowzone_guest_mem::addr::{PAGE_SHIFT, VirtAddr};
#[cfg(lowzone_mutants)]
use lowzone_guest_mem::dma::misuse;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kmem_cache::{KmemCache, SlabFlags, kmem_cache_create};
#[cfg(lowzone_mutants)]
use lowzone_guest_mem::kvmalloc::{KvBuf, kvzalloc};
#[cfg(lowzone_mutants)]
use lowzone_guest_mem::vmalloc::VmallocError;
use lowzone_guest_mem::vmalloc::{VBuf, vzalloc};
use lowzone_guest_mem::{Cpu, KBuf};

use super::ScullError;
#[cfg(lowzone_mutants)]
use crate::mutant::{self, Mutant};

/// Bytes of a quantum of `scullc`, a size that divides no page.
const SCULLC_QUANTUM: usize = 4000;

const ZEROS: [u8; 512] = [0; 512];

/// The allocator behind a device.
pub enum Backing {
    /// `scullc`: objects of a slab cache of 4000 bytes, aligned to cache lines.
    Cache(KmemCache),
    /// `scullp`: 2^order physically contiguous pages.
    Pages {
        /// Binary logarithm of the pages of a quantum.
        order: u8,
    },
    /// `scullv`: as many pages, contiguous in virtual addresses only.
    Vmalloc {
        /// Binary logarithm of the pages of a quantum.
        order: u8,
    },
}

/// One quantum.
pub(super) enum Quantum {
    Direct(KBuf),
    Mapped(VBuf),
}

impl Backing {
    /// `scullc`: creates its cache. Process context.
    ///
    /// # Errors
    /// [`ScullError::Cache`].
    #[track_caller]
    pub fn scullc(cpu: &Cpu<'_>) -> Result<Self, ScullError> {
        Ok(Self::Cache(kmem_cache_create(cpu, "scullc", SCULLC_QUANTUM, 0, SlabFlags::HWCACHE_ALIGN, None)?))
    }

    /// `scullp`: pages of order 0, the original's default.
    pub const fn scullp() -> Self {
        Self::Pages { order: 0 }
    }

    /// `scullv`: 16 pages, the original's default.
    pub const fn scullv() -> Self {
        Self::Vmalloc { order: 4 }
    }

    /// Bytes of a quantum.
    pub fn quantum(&self) -> usize {
        const PAGE: usize = 1 << PAGE_SHIFT;
        match self {
            Self::Cache(cache) => cache.object_size(),
            Self::Pages { order } | Self::Vmalloc { order } => PAGE << order,
        }
    }

    /// A zeroed quantum. Process context.
    pub(super) fn take(&self, cpu: &Cpu<'_>) -> Result<Quantum, ScullError> {
        Ok(match self {
            Self::Cache(cache) => Quantum::Direct(cache.zalloc(cpu, GFP_KERNEL)?),
            Self::Pages { order } => {
                let mut pages = KBuf::pages(cpu, *order, GFP_KERNEL)?;
                // By hand, as the original does it.
                for at in (0..pages.len()).step_by(ZEROS.len()) {
                    pages.write_at(at, &ZEROS)?;
                }
                Quantum::Direct(pages)
            }
            #[cfg(lowzone_mutants)]
            Self::Vmalloc { .. } if mutant::is(Mutant::KfreeOfKvmalloc) => {
                let size = self.quantum();
                match kvzalloc(cpu, size, GFP_KERNEL).map_err(|_| VmallocError::NoPages { size: size as u64 })? {
                    KvBuf::Kmalloc(buf) => Quantum::Direct(buf),
                    KvBuf::Vmalloc(buf) => Quantum::Mapped(buf),
                }
            }
            Self::Vmalloc { .. } => Quantum::Mapped(vzalloc(cpu, self.quantum())?),
        })
    }

    /// Gives a quantum back. Process context.
    pub(super) fn give(&self, cpu: &Cpu<'_>, quantum: Quantum) {
        match (self, quantum) {
            (Self::Cache(cache), Quantum::Direct(object)) => cache.free(cpu, object),
            #[cfg(lowzone_mutants)]
            (_, Quantum::Mapped(area)) if mutant::is(Mutant::KfreeOfKvmalloc) => {
                misuse::kfree_virt(cpu, area.virt());
                std::mem::forget(area);
            }
            (_, quantum) => drop(quantum),
        }
    }

    /// Destroys the cache, if there is one; all quanta must be back. Process context.
    pub(super) fn end(self, cpu: &Cpu<'_>) {
        if let Self::Cache(cache) = self {
            cache.destroy(cpu);
        }
    }
}

impl Quantum {
    pub(super) fn virt(&self) -> VirtAddr {
        match self {
            Self::Direct(buf) => buf.virt(),
            Self::Mapped(buf) => buf.virt(),
        }
    }

    pub(super) fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), ScullError> {
        match self {
            Self::Direct(buf) => buf.read_at(offset, to)?,
            Self::Mapped(buf) => buf.read_at(offset, to)?,
        }
        Ok(())
    }

    pub(super) fn write_at(&mut self, offset: usize, from: &[u8]) -> Result<(), ScullError> {
        match self {
            Self::Direct(buf) => buf.write_at(offset, from)?,
            Self::Mapped(buf) => buf.write_at(offset, from)?,
        }
        Ok(())
    }
}
