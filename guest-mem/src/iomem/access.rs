//! The accessors of a register window, under C's names and with C's order.
//!
//! Every access is a point and a record. `readb` to `readq` and `writeb` to `writeq` are ordered with memory: a write
//! waits for all earlier memory writes, so that no barrier is needed before a doorbell, and a read completes before
//! later memory reads. The `_relaxed` forms are ordered among themselves only, the `_rep` forms and copies likewise.
//! `ioread` and `iowrite` are the same on x86. An access outside the window is a finding and reads all-ones, one after
//! `iounmap` too. Mirrors asm-generic/io.h. Neighbours: [`super`], [`super::posted`]. Left out: port I/O, big-endian
//! forms (a device's registers are little-endian here).

use std::sync::atomic::Ordering;

use super::posted::Write;
use super::{IoMem, IoMisuse};
use crate::addr::PhysAddr;
use crate::cpu::Cpu;
use crate::env::{Class, Verdict};
use crate::finding::FindingKind;
use crate::iospace::Width;
use crate::trace::Kind;

macro_rules! accessors {
    ($($read:ident $relaxed_read:ident $io_read:ident $rep_read:ident
       $write:ident $relaxed_write:ident $io_write:ident $rep_write:ident $type:ty, $width:expr, $bits:literal;)*) => {$(
        #[doc = concat!("Reads ", $bits, " bits at `offset`, before any later memory read. Any context.")]
        #[track_caller]
        pub fn $read(&self, cpu: &Cpu<'_>, offset: u64) -> $type {
            let value = self.$relaxed_read(cpu, offset);
            cpu.rmb();
            value
        }

        #[doc = concat!("Reads ", $bits, " bits at `offset`, in no order with memory. Any context.")]
        #[track_caller]
        pub fn $relaxed_read(&self, cpu: &Cpu<'_>, offset: u64) -> $type {
            // A wire that answers with more than it was asked for answers nothing.
            <$type>::try_from(self.read(cpu, offset, $width)).unwrap_or(<$type>::MAX)
        }

        #[doc = concat!("[`IoMem::", stringify!($read), "`], as drivers of ports and memory have it. Any context.")]
        #[track_caller]
        pub fn $io_read(&self, cpu: &Cpu<'_>, offset: u64) -> $type {
            self.$read(cpu, offset)
        }

        #[doc = concat!("Reads ", $bits, " bits at `offset` again and again, as from a FIFO. Any context.")]
        #[track_caller]
        pub fn $rep_read(&self, cpu: &Cpu<'_>, offset: u64, to: &mut [$type]) {
            for value in to {
                *value = self.$relaxed_read(cpu, offset);
            }
        }

        #[doc = concat!("Writes ", $bits, " bits at `offset`, after all earlier memory writes. Any context.")]
        #[track_caller]
        pub fn $write(&self, cpu: &Cpu<'_>, offset: u64, value: $type) {
            cpu.wmb();
            self.$relaxed_write(cpu, offset, value);
        }

        #[doc = concat!("Writes ", $bits, " bits at `offset`, in no order with memory. Any context.")]
        #[track_caller]
        pub fn $relaxed_write(&self, cpu: &Cpu<'_>, offset: u64, value: $type) {
            self.write(cpu, offset, $width, u64::from(value));
        }

        #[doc = concat!("[`IoMem::", stringify!($write), "`], as drivers of ports and memory have it. Any context.")]
        #[track_caller]
        pub fn $io_write(&self, cpu: &Cpu<'_>, offset: u64, value: $type) {
            self.$write(cpu, offset, value);
        }

        #[doc = concat!("Writes ", $bits, " bits at `offset` again and again, as to a FIFO. Any context.")]
        #[track_caller]
        pub fn $rep_write(&self, cpu: &Cpu<'_>, offset: u64, from: &[$type]) {
            for &value in from {
                self.$relaxed_write(cpu, offset, value);
            }
        }
    )*};
}

impl IoMem {
    accessors! {
        readb readb_relaxed ioread8 ioread8_rep writeb writeb_relaxed iowrite8 iowrite8_rep u8, Width::B1, "8";
        readw readw_relaxed ioread16 ioread16_rep writew writew_relaxed iowrite16 iowrite16_rep u16, Width::B2, "16";
        readl readl_relaxed ioread32 ioread32_rep writel writel_relaxed iowrite32 iowrite32_rep u32, Width::B4, "32";
        readq readq_relaxed ioread64 ioread64_rep writeq writeq_relaxed iowrite64 iowrite64_rep u64, Width::B8, "64";
    }

    /// Copies bytes out of registers that behave like memory (`memcpy_fromio`). Any context.
    #[track_caller]
    pub fn memcpy_fromio(&self, cpu: &Cpu<'_>, offset: u64, to: &mut [u8]) {
        for (at, byte) in (offset..).zip(to) {
            *byte = self.readb_relaxed(cpu, at);
        }
    }

    /// Copies bytes into registers that behave like memory (`memcpy_toio`). Any context.
    #[track_caller]
    pub fn memcpy_toio(&self, cpu: &Cpu<'_>, offset: u64, from: &[u8]) {
        for (at, &byte) in (offset..).zip(from) {
            self.writeb_relaxed(cpu, at, byte);
        }
    }

    /// Fills registers that behave like memory (`memset_io`). Any context.
    #[track_caller]
    pub fn memset_io(&self, cpu: &Cpu<'_>, offset: u64, byte: u8, len: u64) {
        for at in offset..offset.saturating_add(len) {
            self.writeb_relaxed(cpu, at, byte);
        }
    }

    #[track_caller]
    fn place(&self, cpu: &Cpu<'_>, offset: u64, width: Width) -> Option<PhysAddr> {
        if self.kernel.get().is_none() {
            cpu.stale("register window");
            return None;
        }
        let bytes = u64::from(width.bytes());
        if offset.checked_add(bytes).is_none_or(|end| end > self.len) {
            let kind = FindingKind::OutOfBounds { what: "register window", offset, len: bytes, size: self.len };
            cpu.emit(kind, None, vec![("accessed at", cpu.owner())]);
            return None;
        }
        if !self.mapped.load(Ordering::Relaxed) {
            let at = self.virt.wrapping_add(offset);
            let sites = vec![("accessed at", cpu.owner()), ("mapped at", self.owner)];
            cpu.emit(FindingKind::Io(IoMisuse::AfterUnmap { at }), None, sites);
            return None;
        }
        self.at.checked_add(offset)
    }

    #[track_caller]
    fn read(&self, cpu: &Cpu<'_>, offset: u64, width: Width) -> u64 {
        let Some(at) = self.place(cpu, offset, width) else { return width.ones() };
        let failed = cpu.point(Class::Mmio, width.bytes().into()) == Verdict::Fail;
        if cpu.kernel().posts_writes() {
            cpu.kernel().posted.push(cpu.kernel(), self.io.function(at));
        }
        if failed {
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
        if cpu.kernel().posts_writes() {
            let (io, function) = (self.io.clone(), self.io.function(at));
            let marker = cpu.kernel().weak().map_or(0, |weak| weak.lock().marker(cpu.id()));
            let write = Write { cpu: cpu.id(), io, function, at, width, value, marker };
            cpu.kernel().posted.post(cpu.kernel(), write);
        } else {
            self.io.write(at, width, value);
        }
        cpu.register_written();
    }
}
