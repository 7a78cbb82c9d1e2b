//! Machines: what one is made of, the pool they are lent from, and the handle that outlives the loan.
//!
//! Machines are made once, pooled for ever and recycled: a fresh 8 GiB machine costs milliseconds, a reset one
//! microseconds. [`Machine`] is the loan of one; [`KernelRef`] is the handle that buffers and devices keep, which
//! knows the generation it belongs to and is dead after the reset. Neighbours: [`super::Kernel`], worlds, which borrow
//! one for a run. Left out: giving machines back to the host.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

use super::{Kernel, Sanitize};
use crate::addr::{PAGE_SHIFT, PhysAddr};
use crate::arch::{Arch, PAE_LIMIT};
use crate::dma::iommu::IommuMode;
use crate::dma::swiotlb::PoolError;
use crate::finding::{Finding, FindingKind};
use crate::ram::RamError;
use crate::site::{Owner, Scope, Site};
use crate::zone::LayoutError;
use crate::zone::layout::{DMA_END, DMA32_END};

/// The most CPUs a machine may have.
pub const MAX_CPUS: u32 = 64;

/// What a booted kernel holds of an x86-64 machine before any driver runs: its image, tables, processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Boot {
    /// Pages that are never managed at the bottom of DMA32.
    pub dma32: u32,
    /// The same of Normal.
    pub normal: u32,
    /// Pages of DMA32 that were freed only after the watermarks had been set from what was managed then.
    pub late: u32,
}

impl Boot {
    /// As on the 6 GiB machine that was measured, whose driver found 760594 pages in DMA32 and 758473 in Normal.
    pub const MEASURED: Self = Self { dma32: 5358, normal: 27959, late: 1200 };
    /// As on the measured machine of 1 GiB, with 248094 pages in DMA32.
    pub const MEASURED_1G: Self = Self { dma32: 9954, normal: 0, late: 1200 };

    /// The ranges that are not managed.
    pub(super) fn reserved(self) -> [std::ops::Range<PhysAddr>; 2] {
        [(DMA_END, self.dma32), (DMA32_END, self.normal)]
            .map(|(start, pages)| PhysAddr::new(start)..PhysAddr::new(start + (u64::from(pages) << PAGE_SHIFT)))
    }
}

/// What a machine is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MachineConfig {
    /// Bytes of RAM.
    pub ram: u64,
    /// At most this many of them below 4 GiB.
    pub low: u64,
    /// The kernel's architecture.
    pub arch: Arch,
    /// CPUs.
    pub cpus: u32,
    /// Bytes of the bounce pool; 0 = none. Like Linux on x86 it exists only if RAM reaches above 4 GiB.
    pub swiotlb: u64,
    /// What the bridge adds to a physical address to make the bus address.
    pub dma_offset: u64,
    /// Every streaming mapping bounces (`swiotlb=force`), and the pool exists whatever the RAM.
    pub swiotlb_force: bool,
    /// The IOMMU between devices and memory, which takes the place of the bounce pool; none by default.
    pub iommu: Option<IommuMode>,
    /// Whether devices see what CPUs have in their caches.
    pub coherent: bool,
    /// Whether CPUs keep lists of pages, as Linux's do; without them `/proc/buddyinfo` shows every free at once.
    pub pcp: bool,
    /// What its kernel holds from boot on; nothing unless a machine that was measured is to be matched to the page.
    pub boot: Boot,
    /// What watches over memory; nothing by default.
    pub sanitize: Sanitize,
    /// Register writes are posted: they reach the device when something pushes them, see [`crate::iomem::posted`].
    pub posted_writes: bool,
    /// Memory is weakly ordered between CPUs and devices, and register writes are posted, see [`crate::weak`].
    pub weak: bool,
}

impl Default for MachineConfig {
    /// 6 GiB, 3 of them below 4 GiB, x86-64, two CPUs, a 64 MiB bounce pool, bus addresses equal to physical ones, no
    /// lists of pages at the CPUs.
    fn default() -> Self {
        Self {
            ram: 6 << 30,
            low: 3 << 30,
            arch: Arch::X86_64,
            cpus: 2,
            swiotlb: 64 << 20,
            dma_offset: 0,
            swiotlb_force: false,
            iommu: None,
            coherent: true,
            pcp: false,
            boot: Boot::default(),
            sanitize: Sanitize::empty(),
            posted_writes: false,
            weak: false,
        }
    }
}

/// Why a machine could not be made.
#[derive(Debug, Error)]
pub enum MachineError {
    /// RAM could not be made.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A 32-bit machine whose RAM no page table of its kernel can name.
    #[error("RAM up to {end:#x} on a 32-bit machine: its page tables end at {PAE_LIMIT:#x}")]
    BeyondPae {
        /// The address after the last byte of RAM.
        end: u64,
    },
    /// A number of CPUs outside 1..=64.
    #[error("{0} CPUs: a machine has 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// RAM leaves nothing to allocate.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The bounce pool doesn't fit below 4 GiB, on 32 bits below 896 MiB.
    #[error("a bounce pool of {pool} bytes in {low} bytes of low RAM")]
    PoolTooLarge {
        /// Bytes of the pool.
        pool: u64,
        /// Bytes of RAM there.
        low: u64,
    },
    /// The bounce pool could not be made.
    #[error(transparent)]
    Swiotlb(#[from] PoolError),
}

/// A handle to a kernel, dead once its machine was recycled.
#[derive(Clone, Copy)]
pub struct KernelRef {
    kernel: &'static Kernel,
    generation: u64,
}

impl KernelRef {
    /// The kernel, or `None` if its machine was recycled since.
    #[inline]
    pub fn get(self) -> Option<&'static Kernel> {
        (self.kernel.generation.load(Ordering::Relaxed) == self.generation).then_some(self.kernel)
    }

    /// The kernel; if its machine was recycled, `None` and a finding on the machine that there is now.
    #[track_caller]
    pub(crate) fn get_or_report(self, what: &'static str) -> Option<&'static Kernel> {
        let live = self.get();
        if live.is_none() {
            let by = Owner { site: Site::caller(), scope: Scope::ROOT };
            let at = self.kernel.clock();
            let kind = FindingKind::Stale { what };
            self.kernel.report(Finding { kind, device: None, at, sites: vec![("used at", by)] });
        }
        live
    }

    /// The kernel, whatever its generation: for a CPU, which can't outlive its machine's loan.
    pub(crate) fn get_unchecked(self) -> &'static Kernel {
        self.kernel
    }
}

static POOL: Mutex<Vec<&'static Kernel>> = Mutex::new(Vec::new());

/// The loan of a machine; given back and reset when dropped.
///
/// ```
/// use lowzone_guest_mem::kernel::{Machine, MachineConfig};
///
/// let machine = Machine::acquire(MachineConfig { ram: 64 << 20, ..MachineConfig::default() })?;
/// machine.kernel().validate()?;
/// let handle = machine.kernel_ref();
/// assert!(handle.get().is_some());
/// drop(machine);
/// assert!(handle.get().is_none(), "the handle died with the loan");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Machine {
    kernel: &'static Kernel,
}

impl Machine {
    /// A machine in its fresh state: a recycled one if there is one of this kind, else a new one.
    ///
    /// # Errors
    /// [`MachineError`] names what can't be.
    pub fn acquire(config: MachineConfig) -> Result<Self, MachineError> {
        let pooled = {
            let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
            let found = pool.iter().position(|kernel| kernel.config == config);
            found.map(|index| pool.swap_remove(index))
        };
        let kernel = match pooled {
            Some(kernel) => kernel,
            // Leaked on purpose: handles are `&'static` plus a generation, and the pool reuses it for ever.
            None => Box::leak(Box::new(Kernel::new(config)?)),
        };
        Ok(Self { kernel })
    }

    /// The kernel on it.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// The handle that a world's CPUs get.
    pub fn kernel_ref(&self) -> KernelRef {
        KernelRef { kernel: self.kernel, generation: self.kernel.generation.load(Ordering::Relaxed) }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A machine that is still in use, or whose RAM can't be cleared, is never lent again.
        if !self.kernel.condemned.load(Ordering::Relaxed) && self.kernel.reset().is_ok() {
            POOL.lock().unwrap_or_else(PoisonError::into_inner).push(self.kernel);
        }
    }
}
