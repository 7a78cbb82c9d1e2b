//! Whose turn it is with a mapped byte, asked of the CPU: what dma-debug can't see.
//!
//! The types keep an honest driver from its mapped buffers, so the books here have only what can go wrong all the same:
//! mappings made by numbers, as C code makes them (`misuse`), and, where caches lie between CPUs and devices, all
//! streaming mappings, since a CPU's write to a neighbour in the same line undoes the device's. On other machines an
//! access costs one load and a branch that is never taken.
//!
//! Each access of a driver to a buffer, and each free, comes here by the physical address. Neighbours: `ledger` knows
//! the bytes that were synced for the CPU and whether the device has written; `kbuf` and `vmalloc` ask. Left out: reads
//! of a line's neighbours, which spoil nothing; pages of high memory through `kmap`; wild writes.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::addr::PhysAddr;
use crate::dma::cache::CACHE_LINE;
use crate::dma::direction::Dir;
use crate::dma::ledger::MapId;
use crate::dma::mapping::Mapping;
use crate::finding::{Finding, FindingKind};
use crate::kernel::Kernel;
use crate::lock::Locked;
use crate::site::{Owner, Scope, Site};

#[cfg(test)]
mod tests;

/// What a CPU did to memory that is the device's for now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Breach {
    /// It wrote bytes that the device owns: a bounced device never sees them, or they overwrite what it wrote.
    #[error("CPU writes DMA memory that the device owns [cpu address={:#018x}] [size={len} bytes] [mapped with {dir}]", .at.get())]
    Writes {
        /// The first byte.
        at: PhysAddr,
        /// How many bytes.
        len: u64,
        /// Direction of the mapping.
        dir: Dir,
    },
    /// It read bytes that the device owns and may be writing.
    #[error("CPU reads DMA memory that the device owns [cpu address={:#018x}] [size={len} bytes] [mapped with {dir}]", .at.get())]
    Reads {
        /// The first byte.
        at: PhysAddr,
        /// How many bytes.
        len: u64,
        /// Direction of the mapping.
        dir: Dir,
    },
    /// It read bytes that the device owns and has written since the CPU last had them: what it sees may be old.
    #[error(
        "CPU reads DMA memory that the device has written, without a sync \
         [cpu address={:#018x}] [size={len} bytes] [mapped with {dir}]", .at.get()
    )]
    MissingSync {
        /// The first byte.
        at: PhysAddr,
        /// How many bytes.
        len: u64,
        /// Direction of the mapping.
        dir: Dir,
    },
    /// It wrote into a cache line of which the device writes other bytes: when the line is cleaned these are lost.
    #[error(
        "CPU writes to a cache line that a DMA mapping shares \
         [cpu address={:#018x}] [size={len} bytes] [mapping at={:#018x}] [map size={size} bytes] [mapped with {dir}]",
        .at.get(), .mapped.get()
    )]
    LineShared {
        /// The first byte.
        at: PhysAddr,
        /// How many bytes.
        len: u64,
        /// Where the mapped memory begins.
        mapped: PhysAddr,
        /// How many bytes are mapped.
        size: u64,
        /// Direction of the mapping.
        dir: Dir,
    },
    /// The memory was given back to the allocator while the device may still reach it.
    #[error(
        "memory freed while it is mapped for DMA \
         [cpu address={:#018x}] [device address={:#018x}] [map size={size} bytes] [mapped with {dir}]",
        .at.get(), .dma.get()
    )]
    Freed {
        /// The first byte that was freed.
        at: PhysAddr,
        /// Where the device sees the mapping.
        dma: crate::addr::DmaAddr,
        /// How many bytes are mapped.
        size: u64,
        /// Direction of the mapping.
        dir: Dir,
    },
}

impl Breach {
    /// The name that scenario files expect.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Writes { .. } => "cpu-writes-mapped",
            Self::Reads { .. } => "cpu-reads-mapped",
            Self::MissingSync { .. } => "missing-sync",
            Self::LineShared { .. } => "line-shared",
            Self::Freed { .. } => "freed-while-mapped",
        }
    }
}

/// A mapping, or an entry of a merged list, by the memory behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    /// Its first byte.
    pub(crate) orig: PhysAddr,
    pub(crate) len: u64,
    /// Where in the mapping it begins.
    pub(crate) offset: u64,
    /// Number of its device.
    pub(crate) device: u16,
    pub(crate) id: MapId,
}

/// The mappings that a CPU may trip over.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// How many there are.
    count: AtomicU64,
    stretches: Locked<Stretches>,
}

#[derive(Debug, Default)]
struct Stretches {
    /// By first byte and transaction.
    by_place: BTreeMap<(u64, u64), Stretch>,
    /// The longest since the machine began.
    longest: u64,
}

impl Watched {
    /// Whether there is any.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn enter(&self, transaction: u64, stretch: Stretch) {
        let mut stretches = self.stretches.lock();
        stretches.longest = stretches.longest.max(stretch.len);
        if stretches.by_place.insert((stretch.orig.get(), transaction), stretch).is_none() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn leave(&self, orig: PhysAddr, transaction: u64) {
        if self.any() && self.stretches.lock().by_place.remove(&(orig.get(), transaction)).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn reset(&self) {
        let mut stretches = self.stretches.lock();
        stretches.by_place.clear();
        stretches.longest = 0;
        self.count.store(0, Ordering::Relaxed);
    }

    /// Those that have any byte of a range, by address.
    fn over(&self, from: u64, to: u64) -> Vec<Stretch> {
        let stretches = self.stretches.lock();
        let first = from.saturating_sub(stretches.longest);
        let near = stretches.by_place.range((first, 0)..(to, 0));
        near.filter(|((orig, _), stretch)| orig.saturating_add(stretch.len) > from)
            .map(|(_, &stretch)| stretch)
            .collect()
    }
}

/// A CPU copies for a driver: what it may not touch is reported, and copied all the same.
#[inline]
pub(crate) fn cpu_touches(
    kernel: &Kernel,
    (at, len): (PhysAddr, usize),
    write: bool,
    place: &'static Location<'static>,
) {
    if kernel.watched.any() && len > 0 {
        judge_access(kernel, (at, len as u64), write, Owner { site: Site::of(place), scope: Scope::ROOT });
    }
}

/// As [`cpu_touches`], by somebody who is known.
#[inline]
pub(crate) fn cpu_touches_by(kernel: &Kernel, (at, len): (PhysAddr, usize), write: bool, by: Owner) {
    if kernel.watched.any() && len > 0 {
        judge_access(kernel, (at, len as u64), write, by);
    }
}

/// A driver reads `len` bytes of a mapping through the mapping itself, which nobody need watch.
pub(crate) fn cpu_reads_unsynced(
    kernel: &Kernel,
    device: &str,
    mapping: &Mapping,
    (offset, len): (u64, usize),
    by: Owner,
) {
    let (at, len) = (mapping.orig.wrapping_add(offset), len as u64);
    let breach = direct(mapping, at, len, false);
    // Where it is watched the access itself was judged; a window to the CPU is not open, since it borrows the mapping.
    if let Some(breach) = breach.filter(|_| kernel.watched.over(at.get(), at.get().saturating_add(len)).is_empty()) {
        tell(kernel, device, breach, mapping, ("at", by));
    }
}

/// Memory goes back to its allocator: a mapping of it is reported.
#[inline]
pub(crate) fn freed(kernel: &Kernel, at: PhysAddr, len: u64, by: Owner) {
    if kernel.watched.any() && !planted!(FreedQuietly) {
        let over = kernel.watched.over(at.get(), at.get().saturating_add(len));
        if let Some((device, mapping)) = over.iter().find_map(|stretch| mapping_of(kernel, *stretch)) {
            tell_freed(kernel, at, &device, &mapping, by);
        }
    }
}

/// As [`freed`], by an address alone, of a mapping that nobody watches since its buffer belongs to it.
pub(crate) fn freed_under_mapping(kernel: &Kernel, at: PhysAddr, by: Owner) {
    if !kernel.watched.over(at.get(), at.get().saturating_add(1)).is_empty() {
        return;
    }
    let devices: Vec<_> = kernel.devices.lock().clone();
    let found = devices.iter().find_map(|device| {
        let ledger = device.ledger.lock();
        let over = ledger.live().find(|mapping| mapping.orig <= at && at.get() - mapping.orig.get() < mapping.len);
        over.map(|mapping| (device.name().to_owned(), *mapping))
    });
    if let Some((device, mapping)) = found {
        tell_freed(kernel, at, &device, &mapping, by);
    }
}

fn tell_freed(kernel: &Kernel, at: PhysAddr, device: &str, mapping: &Mapping, by: Owner) {
    let breach = Breach::Freed { at, dma: mapping.dma, size: mapping.len, dir: mapping.dir };
    tell(kernel, device, breach, mapping, ("freed at", by));
}

#[cold]
fn judge_access(kernel: &Kernel, (at, len): (PhysAddr, u64), write: bool, by: Owner) {
    if planted!(CpuUnjudged) {
        return;
    }
    let (from, to) = (at.get(), at.get().saturating_add(len));
    // With caches, a write reaches as far as its lines do.
    let lines = write && !kernel.config().coherent && !planted!(NeighbourIgnored);
    let reach = if lines { CACHE_LINE } else { 1 };
    let (low, high) = (from - from % reach, to.next_multiple_of(reach));
    for stretch in kernel.watched.over(low, high) {
        let Some((device, mapping)) = mapping_of(kernel, stretch) else { continue };
        let breach = if device_owns(&mapping, &stretch, from, to) {
            direct(&mapping, at, len, write)
        } else {
            let spoils = mapping.dir.device_writes() && !mapping.bounced && device_owns(&mapping, &stretch, low, high);
            let (mapped, size, dir) = (stretch.orig, stretch.len, mapping.dir);
            spoils.then_some(Breach::LineShared { at, len, mapped, size, dir })
        };
        if let Some(breach) = breach {
            return tell(kernel, &device, breach, &mapping, ("at", by));
        }
    }
}

/// What is wrong with an access to bytes that the device owns.
fn direct(mapping: &Mapping, at: PhysAddr, len: u64, write: bool) -> Option<Breach> {
    let dir = mapping.dir;
    match (write, mapping.unseen && !planted!(UnseenForgotten)) {
        (true, _) => Some(Breach::Writes { at, len, dir }),
        (false, true) => Some(Breach::MissingSync { at, len, dir }),
        (false, false) => dir.device_writes().then_some(Breach::Reads { at, len, dir }),
    }
}

/// Whether any byte of a stretch of RAM is mapped and not the CPU's for now.
fn device_owns(mapping: &Mapping, stretch: &Stretch, from: u64, to: u64) -> bool {
    let start = stretch.orig.get();
    let (from, to) = (from.saturating_sub(start), to.saturating_sub(start).min(stretch.len));
    let window = mapping.cpu_window.filter(|_| !planted!(WindowIgnored)).map(|window| window.from..window.to);
    let lent = |at| window.as_ref().is_some_and(|window| window.contains(&(stretch.offset + at)));
    from < to && !(lent(from) && lent(to - 1))
}

fn mapping_of(kernel: &Kernel, stretch: Stretch) -> Option<(String, Mapping)> {
    let device = kernel.devices.lock().get(usize::from(stretch.device).checked_sub(1)?)?.clone();
    let mapping = *device.ledger.lock().get(stretch.id)?;
    Some((device.name().to_owned(), mapping))
}

fn tell(kernel: &Kernel, device: &str, breach: Breach, mapping: &Mapping, by: (&'static str, Owner)) {
    let sites = vec![by, ("mapped at", mapping.map_owner), ("allocated at", mapping.alloc_owner)];
    let kind = FindingKind::Ownership { breach, transaction: mapping.id };
    let finding = Finding { kind, device: Some(device.to_owned()), at: kernel.clock(), sites };
    kernel.report_for(finding, crate::cpu::current(), mapping.id);
}
