//! `ioremap` and the register window it gives.
//!
//! A window lies in vmalloc's address space, offset in the page kept, a guard page behind. RAM can't be mapped, size 0
//! and wrap-around neither, as in arch/x86/mm/ioremap.c; one range may be mapped as often as wanted, with any memory
//! type (measured without PAT). Registers are touched by [`access`] alone; what goes wrong there or with `iounmap` is
//! an [`IoMisuse`]. Neighbours: `iospace` (who answers), `vmalloc`, [`region`] (who may), [`posted`] (writes on their
//! way). Left out: what memory types do beyond order, port I/O, `memremap`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use crate::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use crate::cpu::Cpu;
use crate::env::{Class, Verdict};
use crate::finding::{FindingKind, Resource};
use crate::iospace::IoSpace;
use crate::kernel::KernelRef;
use crate::site::{Owner, Site};
use crate::vmalloc::{Area, AreaMisuse, Backing, place_area, report};

pub mod access;
mod error;
pub mod misuse;
pub mod posted;
pub mod region;
#[cfg(test)]
mod tests;

pub use error::IoMisuse;
pub use region::{MemRegion, RegionError, request_mem_region};

/// The end of the physical address space of x86-64 (52 bits).
const PHYS_LIMIT: u64 = 1 << 52;
/// The largest alignment of a window's address (`IOREMAP_MAX_ORDER`).
const MAX_ALIGN: u64 = 1 << 30;

/// Why a window could not be mapped; Linux's NULL in each case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum IoremapError {
    /// No bytes, or past the end of the address space: Linux says nothing.
    #[error("ioremap of {len} bytes at {at}")]
    BadRange {
        /// The first byte.
        at: PhysAddr,
        /// How many bytes.
        len: u64,
    },
    /// Beyond what the CPU can address.
    #[error("ioremap: invalid physical address {:x}", .at.get())]
    Invalid {
        /// The first byte.
        at: PhysAddr,
    },
    /// System RAM; the text is that of the kernel's warning.
    #[error("ioremap on RAM at {:#018x} - {end:#018x}", .at.get())]
    Ram {
        /// The first byte.
        at: PhysAddr,
        /// The last byte.
        end: u64,
    },
    /// No address space or memory for it.
    #[error("no memory for an ioremap of {len} bytes")]
    NoMemory {
        /// How many bytes.
        len: u64,
    },
    /// A memory type that the platform doesn't have.
    #[error("x86 has no non-posted mappings")]
    NonPosted,
    /// Called by an interrupt handler or softirq, where Linux stops with a BUG.
    #[error("ioremap in interrupt")]
    InInterrupt,
    /// No device registers are joined to this machine.
    #[error("no bus is joined to this machine")]
    NoBus,
}

/// How the CPU treats a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MemType {
    /// Uncached, unless MTRRs say otherwise (`ioremap`).
    #[default]
    UncachedMinus,
    /// Uncached whatever MTRRs say (`ioremap_uc`).
    Uncached,
    /// Writes may be gathered and reordered (`ioremap_wc`).
    WriteCombining,
    /// Reads may be cached (`ioremap_wt`).
    WriteThrough,
    /// As memory: for what has no side effects (`ioremap_cache`).
    WriteBack,
}

/// A mapped register window; unmapped when it drops, without a look at the context: [`iounmap`] looks.
#[must_use = "the window is unmapped when this is dropped"]
pub struct IoMem {
    kernel: KernelRef,
    io: Arc<dyn IoSpace>,
    at: PhysAddr,
    virt: VirtAddr,
    len: u64,
    mem_type: MemType,
    id: u64,
    owner: Owner,
    /// Cleared by an `iounmap` under the holder's feet.
    mapped: AtomicBool,
}

impl fmt::Debug for IoMem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoMem({} + {:#x})", self.at, self.len)
    }
}

/// Maps `len` bytes of device registers (`ioremap`). Process context.
///
/// # Errors
/// [`IoremapError`]; RAM is a finding too.
#[track_caller]
pub fn ioremap(cpu: &Cpu<'_>, at: PhysAddr, len: u64) -> Result<IoMem, IoremapError> {
    ioremap_as(cpu, at, len, MemType::UncachedMinus)
}

macro_rules! variants {
    ($($name:ident $mem_type:ident;)*) => {$(
        #[doc = concat!("[`ioremap`] as [`MemType::", stringify!($mem_type), "`] (`", stringify!($name), "`). Process context.")]
        ///
        /// # Errors
        /// [`IoremapError`].
        #[track_caller]
        pub fn $name(cpu: &Cpu<'_>, at: PhysAddr, len: u64) -> Result<IoMem, IoremapError> {
            ioremap_as(cpu, at, len, MemType::$mem_type)
        }
    )*};
}
variants! {
    ioremap_uc Uncached;
    ioremap_wc WriteCombining;
    ioremap_wt WriteThrough;
    ioremap_cache WriteBack;
}

/// Maps registers so that no write is posted (`ioremap_np`).
///
/// # Errors
/// [`IoremapError::NonPosted`], always: x86 can't.
pub const fn ioremap_np(_: &Cpu<'_>, _: PhysAddr, _: u64) -> Result<IoMem, IoremapError> {
    Err(IoremapError::NonPosted)
}

#[track_caller]
fn ioremap_as(cpu: &Cpu<'_>, at: PhysAddr, len: u64, mem_type: MemType) -> Result<IoMem, IoremapError> {
    let owner = cpu.owner();
    if !cpu.in_task() {
        report(cpu.kernel(), AreaMisuse::InInterrupt { call: "ioremap" }, vec![("called at", owner)]);
        return Err(IoremapError::InInterrupt);
    }
    cpu.might_sleep("ioremap");
    let end = at.get().checked_add(len).filter(|_| len > 0).ok_or(IoremapError::BadRange { at, len })?;
    if cpu.point_for(Class::Ioremap, len, owner) == Verdict::Fail {
        return Err(IoremapError::NoMemory { len });
    }
    let kernel = cpu.kernel();
    if end > PHYS_LIMIT {
        return Err(warned(cpu, IoremapError::Invalid { at }));
    }
    if kernel.ram().overlaps(at, len) {
        let error = warned_once(cpu, IoremapError::Ram { at, end: end - 1 });
        cpu.emit(FindingKind::Io(IoMisuse::Refused(error)), None, vec![("mapped at", owner)]);
        return Err(error);
    }
    let io = kernel.io_space().ok_or(IoremapError::NoBus)?;
    let bytes = (at.page_offset() + len).next_multiple_of(PAGE_SIZE);
    let area = Area { bytes, backing: Backing::Io(at.pfn().phys()), owner };
    let align = bytes.checked_next_power_of_two().map_or(MAX_ALIGN, |align| align.min(MAX_ALIGN));
    let virt = place_area(cpu, area, align).map_err(|_| IoremapError::NoMemory { len })?;
    let id = kernel.register(Resource::IoMem, at, len, owner);
    let (virt, mapped) = (virt.wrapping_add(at.page_offset()), AtomicBool::new(true));
    Ok(IoMem { kernel: cpu.kernel_ref(), io, at, virt, len, mem_type, id, owner, mapped })
}

/// Unmaps a window (`iounmap`). Process context.
#[track_caller]
pub fn iounmap(cpu: &Cpu<'_>, window: IoMem) {
    misuse::iounmap(cpu, &window);
}

/// Printed each time, if not too often: not tracked, so that its place is this line.
fn warned(cpu: &Cpu<'_>, error: IoremapError) -> IoremapError {
    cpu.kernel().log().ratelimited(cpu.now(), Site::caller(), || error.to_string());
    error
}

/// WARN_ONCE, for the whole kernel: not tracked, so that its place is this line.
fn warned_once(cpu: &Cpu<'_>, error: IoremapError) -> IoremapError {
    cpu.kernel().log().once(cpu.now(), Site::caller(), error.to_string());
    error
}

impl IoMem {
    /// How many bytes the window has.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none; a mapped window always has some.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The physical address of its first byte.
    pub fn phys(&self) -> PhysAddr {
        self.at
    }

    /// What the driver's `void __iomem *` would hold.
    pub fn virt(&self) -> VirtAddr {
        self.virt
    }

    /// How the CPU treats it.
    pub fn mem_type(&self) -> MemType {
        self.mem_type
    }

    /// Takes it out of the address space; whether it was there.
    fn unmap(&self, by: Owner) -> bool {
        if !self.mapped.swap(false, Ordering::Relaxed) {
            return false;
        }
        if let Some(kernel) = self.kernel.get() {
            kernel.unregister(self.id);
            let start = VirtAddr::new(self.virt.get() - self.virt.page_offset());
            kernel.vmalloc.lock().remove(start, by);
        }
        true
    }
}

impl Drop for IoMem {
    fn drop(&mut self) {
        self.unmap(Owner::default());
    }
}
