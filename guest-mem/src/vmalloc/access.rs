//! The CPU's way to bytes behind vmalloc addresses: page by page, and a fault where none is mapped.
//!
//! [`read`] and [`write`] take any address, as a pointer does: beyond the end they run into the guard page, after
//! `vfree` into nothing, and either is a finding (`page-fault`) that says whose area it was. Neighbours: [`super`],
//! whose types check bounds first. Left out: unwinding the CPU as an oops would; the copy ends at the fault.

use super::areas::Place;
use super::{AreaMisuse, NotMapped, report};
use crate::addr::VirtAddr;
use crate::cpu::Cpu;
use crate::dma::ownership::cpu_touches_by;
use crate::finding::{Finding, FindingKind};
use crate::kbuf::OutOfBounds;
use crate::kernel::{Kernel, KernelRef};
use crate::site::{Owner, Scope, Site};

/// Copies bytes from an address until one is not mapped; returns how many. Any context.
///
/// What follows a fault is left as it was.
#[track_caller]
pub fn read(cpu: &Cpu<'_>, at: VirtAddr, to: &mut [u8]) -> usize {
    read_bytes(cpu.kernel(), at, to, cpu.owner())
}

/// Copies bytes to an address until one is not mapped; returns how many. Any context.
#[track_caller]
pub fn write(cpu: &Cpu<'_>, at: VirtAddr, from: &[u8]) -> usize {
    write_bytes(cpu.kernel(), at, from, cpu.owner())
}

/// What a buffer's accessors know of it: machine, address, bytes.
type Buffer = (KernelRef, VirtAddr, usize);

#[track_caller]
pub(super) fn read_at(buffer: Buffer, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
    if let Some((kernel, at)) = within(buffer, offset, to.len())? {
        read_bytes(kernel, at, to, here());
    }
    Ok(())
}

#[track_caller]
pub(super) fn write_at(buffer: Buffer, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
    if let Some((kernel, at)) = within(buffer, offset, from.len())? {
        write_bytes(kernel, at, from, here());
    }
    Ok(())
}

#[track_caller]
fn here() -> Owner {
    Owner { site: Site::caller(), scope: Scope::ROOT }
}

#[track_caller]
fn within(buffer: Buffer, offset: usize, len: usize) -> Result<Option<(&'static Kernel, VirtAddr)>, OutOfBounds> {
    let (machine, at, size) = buffer;
    let error = OutOfBounds { offset, len, size };
    if offset.checked_add(len).ok_or(error)? > size {
        return Err(error);
    }
    let at = at.wrapping_add(offset as u64);
    Ok(machine.get_or_report("vmalloc buffer").map(|kernel| (kernel, at)))
}

fn read_bytes(kernel: &Kernel, at: VirtAddr, to: &mut [u8], by: Owner) -> usize {
    let mut done = 0;
    while done < to.len() {
        let Some((phys, left)) = page(kernel, at.wrapping_add(done as u64), false, by) else { break };
        let step = left.min(to.len() - done);
        cpu_touches_by(kernel, (phys, step), false, by);
        // A page of an area is RAM.
        let _ = kernel.ram().read(phys, &mut to[done..done + step]);
        done += step;
    }
    done
}

fn write_bytes(kernel: &Kernel, at: VirtAddr, from: &[u8], by: Owner) -> usize {
    let mut done = 0;
    while done < from.len() {
        let Some((phys, left)) = page(kernel, at.wrapping_add(done as u64), true, by) else { break };
        let step = left.min(from.len() - done);
        cpu_touches_by(kernel, (phys, step), true, by);
        let _ = kernel.ram().write(phys, &from[done..done + step]);
        done += step;
    }
    done
}

/// The byte of RAM behind an address and the bytes left in its page; else the fault is reported.
fn page(kernel: &Kernel, at: VirtAddr, write: bool, by: Owner) -> Option<(crate::addr::PhysAddr, usize)> {
    let place = kernel.vmalloc.lock().place(at);
    let (why, mut sites) = match place {
        Place::Ram(phys, left) => return Some((phys, usize::try_from(left).unwrap_or(usize::MAX))),
        Place::Io => {
            report(kernel, AreaMisuse::PlainIo { at }, vec![("accessed at", by)]);
            return None;
        }
        Place::Guard { start, owner } => (NotMapped::Guard { start }, vec![("allocated at", owner)]),
        Place::Freed(freed) => (NotMapped::Freed, vec![("allocated at", freed.owner), ("freed at", freed.by)]),
        Place::Nothing => (NotMapped::Nothing, Vec::new()),
    };
    sites.insert(0, ("accessed at", by));
    let kind = FindingKind::PageFault { addr: at, write, why };
    kernel.report(Finding { kind, device: None, at: kernel.clock(), sites });
    None
}
