//! `ioremap` and the register window it gives.
//!
//! Accessors keep C's names and widths (`readl`, `writew`); every access is a point and a record. RAM can't be
//! mapped, size 0 and wrap-around neither, as in arch/x86/mm/ioremap.c. An access outside the window is a finding
//! and reads all-ones. Neighbours: `iospace`. Left out: memory types, posted writes, port I/O.

use std::sync::Arc;

use thiserror::Error;

use crate::addr::PhysAddr;
use crate::cpu::Cpu;
use crate::env::{Class, Verdict};
use crate::finding::{FindingKind, Resource};
use crate::iospace::{IoSpace, Width};
use crate::kernel::KernelRef;
use crate::site::Site;
use crate::trace::Kind;

/// The end of the physical address space of x86-64 (52 bits).
const PHYS_LIMIT: u64 = 1 << 52;

/// Why a window could not be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum IoremapError {
    /// No bytes, or past the end of the address space: Linux returns NULL and says nothing.
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
    /// No device registers are joined to this machine.
    #[error("no bus is joined to this machine")]
    NoBus,
}

/// A mapped register window; `iounmap` happens when it drops.
#[must_use = "the window is unmapped when this is dropped"]
pub struct IoMem {
    kernel: KernelRef,
    io: Arc<dyn IoSpace>,
    at: PhysAddr,
    len: u64,
    id: u64,
}

impl std::fmt::Debug for IoMem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoMem({} + {:#x})", self.at, self.len)
    }
}

/// Maps `len` bytes of device registers (`ioremap`). Process context.
///
/// # Errors
/// [`IoremapError`]; Linux's NULL in each case.
#[track_caller]
pub fn ioremap(cpu: &Cpu<'_>, at: PhysAddr, len: u64) -> Result<IoMem, IoremapError> {
    cpu.might_sleep("ioremap");
    let owner = cpu.owner();
    let end = at.get().checked_add(len).filter(|_| len > 0).ok_or(IoremapError::BadRange { at, len })?;
    if cpu.point_for(Class::Ioremap, len, owner) == Verdict::Fail {
        return Err(IoremapError::NoMemory { len });
    }
    let kernel = cpu.kernel();
    if end > PHYS_LIMIT {
        return Err(warned(cpu, IoremapError::Invalid { at }));
    }
    if kernel.ram().overlaps(at, len) {
        return Err(warned_once(cpu, IoremapError::Ram { at, end: end - 1 }));
    }
    let io = kernel.io_space().ok_or(IoremapError::NoBus)?;
    let id = kernel.register(Resource::IoMem, at, len, owner);
    Ok(IoMem { kernel: cpu.kernel_ref(), io, at, len, id })
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

macro_rules! accessors {
    ($($read:ident $write:ident $type:ty, $width:expr, $bits:literal;)*) => {$(
        #[doc = concat!("Reads ", $bits, " bits at `offset`; all-ones outside the window. Any context.")]
        #[track_caller]
        pub fn $read(&self, cpu: &Cpu<'_>, offset: u64) -> $type {
            // A wire that answers with more than it was asked for answers nothing.
            <$type>::try_from(self.read(cpu, offset, $width)).unwrap_or(<$type>::MAX)
        }

        #[doc = concat!("Writes ", $bits, " bits at `offset`; lost outside the window. Any context.")]
        #[track_caller]
        pub fn $write(&self, cpu: &Cpu<'_>, offset: u64, value: $type) {
            self.write(cpu, offset, $width, u64::from(value));
        }
    )*};
}

impl IoMem {
    accessors! {
        readb writeb u8, Width::B1, "8";
        readw writew u16, Width::B2, "16";
        readl writel u32, Width::B4, "32";
        readq writeq u64, Width::B8, "64";
    }

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

    #[track_caller]
    fn place(&self, cpu: &Cpu<'_>, offset: u64, width: Width) -> Option<PhysAddr> {
        if self.kernel.get().is_none() {
            cpu.stale("register window");
            return None;
        }
        let bytes = u64::from(width.bytes());
        if offset.checked_add(bytes).is_some_and(|end| end <= self.len) {
            return self.at.checked_add(offset);
        }
        let kind = FindingKind::OutOfBounds { what: "register window", offset, len: bytes, size: self.len };
        cpu.emit(kind, None, vec![("accessed at", cpu.owner())]);
        None
    }

    #[track_caller]
    fn read(&self, cpu: &Cpu<'_>, offset: u64, width: Width) -> u64 {
        let Some(at) = self.place(cpu, offset, width) else { return width.ones() };
        if cpu.point(Class::Mmio, width.bytes().into()) == Verdict::Fail {
            return width.ones();
        }
        let value = self.io.read(at, width);
        cpu.trace(Kind::MmioRead, at.get(), usize::from(width.bytes()), 0, value);
        value
    }

    #[track_caller]
    fn write(&self, cpu: &Cpu<'_>, offset: u64, width: Width, value: u64) {
        let Some(at) = self.place(cpu, offset, width) else { return };
        // A write can't fail in a way its issuer sees.
        let _ = cpu.point(Class::MmioWrite, width.bytes().into());
        cpu.trace(Kind::MmioWrite, at.get(), usize::from(width.bytes()), 0, value);
        self.io.write(at, width, value);
    }
}

impl Drop for IoMem {
    fn drop(&mut self) {
        if let Some(kernel) = self.kernel.get() {
            kernel.unregister(self.id);
        }
    }
}

#[cfg(test)]
mod tests;
