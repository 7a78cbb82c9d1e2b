//! What the ledger finds wrong: misuse by the driver, as dma-debug words it, and violations by the device.
//!
//! A [`Misuse`] prints the text that dma-debug prints after `DMA-API: <driver> <device>: ` (kernel/dma/debug.c of 6.1).
//! A [`Violation`] has no counterpart: without an IOMMU the hardware just does it. Its text is ours.
//!
//! Neighbours: the ledger makes them, the kernel turns them into findings with both call sites. Left out: what
//! no kernel on x86-64 prints, about vmalloc's memory (refused first) and the kernel's text.

use thiserror::Error;

use super::lines::MOST;
use crate::addr::{DmaAddr, PhysAddr, VirtAddr};
use crate::dma::direction::Dir;
use crate::dma::mapping::{Dead, Kind, Mapping};

/// The option under which Linux says it.
const DEBUG: &str = "CONFIG_DMA_API_DEBUG";
/// The same of the segments of a scatterlist.
const DEBUG_SG: &str = "CONFIG_DMA_API_DEBUG_SG";

/// A wrong call by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Misuse {
    /// The error value of a failed map was unmapped.
    #[error("device driver tries to free an invalid DMA memory address")]
    FreesInvalid,
    /// No mapping begins there, or several do and none of them matches.
    #[error(
        "device driver tries to free DMA memory it has not allocated \
         [device address={:#018x}] [size={len} bytes]", .dma.get()
    )]
    FreesUnallocated {
        /// Address given.
        dma: DmaAddr,
        /// Size given.
        len: u64,
    },
    /// Unmapped with another size.
    #[error(
        "device driver frees DMA memory with different size \
         [device address={:#018x}] [map size={mapped} bytes] [unmap size={unmapped} bytes]", .dma.get()
    )]
    Size {
        /// Address.
        dma: DmaAddr,
        /// Size mapped.
        mapped: u64,
        /// Size given.
        unmapped: u64,
    },
    /// Unmapped by another family of calls.
    #[error(
        "device driver frees DMA memory with wrong function \
         [device address={:#018x}] [size={len} bytes] [mapped as {mapped}] [unmapped as {unmapped}]", .dma.get()
    )]
    Function {
        /// Address.
        dma: DmaAddr,
        /// Size given.
        len: u64,
        /// Family of the map call.
        mapped: Kind,
        /// Family of the unmap call.
        unmapped: Kind,
    },
    /// Coherent memory freed with a CPU address that is not its own.
    #[error(
        "device driver frees DMA memory with different CPU address \
         [device address={:#018x}] [size={len} bytes] [cpu alloc address={:#018x}] [cpu free address={:#018x}]",
        .dma.get(), .allocated.get(), .freed.get()
    )]
    CpuAddress {
        /// Device address.
        dma: DmaAddr,
        /// Size given.
        len: u64,
        /// Where the memory lies.
        allocated: PhysAddr,
        /// Where the address given points.
        freed: PhysAddr,
    },
    /// Unmapped with another direction.
    #[error(
        "device driver frees DMA memory with different direction \
         [device address={:#018x}] [size={len} bytes] [mapped with {mapped}] [unmapped with {unmapped}]", .dma.get()
    )]
    Direction {
        /// Address.
        dma: DmaAddr,
        /// Size given.
        len: u64,
        /// Direction mapped.
        mapped: Dir,
        /// Direction given.
        unmapped: Dir,
    },
    /// The result of the map was never looked at.
    #[error(
        "device driver failed to check map error[device address={:#018x}] [size={len} bytes] [mapped as {kind}]",
        .dma.get()
    )]
    Unchecked {
        /// Address.
        dma: DmaAddr,
        /// Size given to the unmap.
        len: u64,
        /// Family of the map call.
        kind: Kind,
    },
    /// No mapping holds the range to be synced.
    #[error(
        "device driver tries to sync DMA memory it has not allocated \
         [device address={:#018x}] [size={len} bytes]", .dma.get()
    )]
    SyncsUnallocated {
        /// Address given.
        dma: DmaAddr,
        /// Size given.
        len: u64,
    },
    /// Synced with another direction.
    #[error(
        "device driver syncs DMA memory with different direction \
         [device address={:#018x}] [size={size} bytes] [mapped with {mapped}] [synced with {synced}]", .dma.get()
    )]
    SyncDirection {
        /// Address given.
        dma: DmaAddr,
        /// Size of the mapping.
        size: u64,
        /// Direction mapped.
        mapped: Dir,
        /// Direction given.
        synced: Dir,
    },
    /// Synced for the CPU although the device can't have written it.
    #[error(
        "device driver syncs device read-only DMA memory for cpu \
         [device address={:#018x}] [size={size} bytes] [mapped with {mapped}] [synced with {synced}]", .dma.get()
    )]
    SyncsReadOnly {
        /// Address given.
        dma: DmaAddr,
        /// Size of the mapping.
        size: u64,
        /// Direction mapped.
        mapped: Dir,
        /// Direction given.
        synced: Dir,
    },
    /// Synced for the device although the device won't read it.
    #[error(
        "device driver syncs device write-only DMA memory to device \
         [device address={:#018x}] [size={size} bytes] [mapped with {mapped}] [synced with {synced}]", .dma.get()
    )]
    SyncsWriteOnly {
        /// Address given.
        dma: DmaAddr,
        /// Size of the mapping.
        size: u64,
        /// Direction mapped.
        mapped: Dir,
        /// Direction given.
        synced: Dir,
    },
    /// An entry of a scatterlist was unmapped with a list of another length.
    #[error("device driver frees DMA sg list with different entry count [map count={mapped}] [unmap count={unmapped}]")]
    Entries {
        /// Entries mapped.
        mapped: u32,
        /// Entries given.
        unmapped: u32,
    },
    /// An entry of a scatterlist was synced with a list of another length.
    #[error("device driver syncs DMA sg list with different entry count [map count={mapped}] [sync count={synced}]")]
    SyncEntries {
        /// Entries mapped.
        mapped: u32,
        /// Entries given.
        synced: u32,
    },
    /// An entry of a scatterlist is longer than the device says it takes.
    #[error("mapping sg segment longer than device claims to support [len={len}] [max={max}]")]
    SegmentLong {
        /// Its length.
        len: u64,
        /// What the device takes.
        max: u32,
    },
    /// An entry of a scatterlist lies across a boundary of the device's.
    #[error(
        "mapping sg segment across boundary [start={:#018x}] [end={:#018x}] [boundary={boundary:#018x}]",
        .start.get(), .end.get()
    )]
    SegmentBoundary {
        /// Its first byte.
        start: DmaAddr,
        /// Its last byte.
        end: DmaAddr,
        /// The boundary, as a mask.
        boundary: u64,
    },
    /// A mapping that the device may write begins in the cache line of another one.
    #[error("cacheline tracking EEXIST, overlapping mappings aren't supported")]
    Overlaps,
    /// More mappings begin in one cache line than are counted; not counted as an error of its own.
    #[error("exceeded {MOST} overlapping mappings of cacheline {line:#018x}")]
    TooManyOverlaps {
        /// The line's number.
        line: u64,
    },
    /// A variable on the caller's own stack was mapped.
    #[error("device driver maps memory from stack [{probable}addr={:016x}]", .addr.get())]
    MapsStack {
        /// Where the variable lies.
        addr: VirtAddr,
        /// `probable ` where the stack is an area of vmalloc's.
        probable: &'static str,
    },
    /// An address was mapped that belongs neither to the direct map nor to vmalloc.
    #[error("device driver maps memory from invalid area [addr={:016x}] [len={len}]", .addr.get())]
    MapsInvalid {
        /// The address.
        addr: VirtAddr,
        /// Bytes.
        len: u64,
    },
    /// Mappings are left at unbind (two lines; Linux has no driver name before them, only the device).
    #[error(
        "device driver has pending DMA allocations while released from device [count={count}]\n\
         One of leaked entries details: \
         [device address={:#018x}] [size={len} bytes] [mapped with {dir}] [mapped as {kind}]", .dma.get()
    )]
    Pending {
        /// Live mappings.
        count: usize,
        /// Address of the one that Linux names: the last of its hash table.
        dma: DmaAddr,
        /// Its size.
        len: u64,
        /// Its direction.
        dir: Dir,
        /// Its family.
        kind: Kind,
    },
}

impl Misuse {
    /// The option under which Linux prints this; `None` where a kernel stays silent whatever its options.
    pub const fn linux(&self) -> Option<&'static str> {
        match self {
            Self::SegmentLong { .. } | Self::SegmentBoundary { .. } => Some(DEBUG_SG),
            _ => Some(DEBUG),
        }
    }

    /// Whether dma-debug counts it (`error_count`).
    pub const fn counts(&self) -> bool {
        !matches!(self, Self::TooManyOverlaps { .. })
    }
}

/// All that was wrong with one call, in the order in which Linux prints it; five at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Misuses([Option<Misuse>; 5]);

impl Misuses {
    pub(super) fn push(&mut self, misuse: Misuse) {
        if let Some(free) = self.0.iter_mut().find(|entry| entry.is_none()) {
            *free = Some(misuse);
        }
    }

    /// Whether the call was right.
    pub const fn is_empty(&self) -> bool {
        self.0[0].is_none()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Misuse> {
        self.0.iter().flatten()
    }
}

/// What the device asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// First byte.
    pub dma: DmaAddr,
    /// Bytes.
    pub len: u64,
    /// Whether it writes.
    pub write: bool,
}

impl Access {
    const fn verb(&self) -> &'static str {
        if self.write { "writes" } else { "reads" }
    }
}

/// An access that no live mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// The memory was mapped, and is no longer.
    #[error(
        "device {} DMA memory after its unmap [device address={:#018x}] [size={} bytes] \
         [mapping address={:#018x}] [map size={} bytes] [mapped with {}] [mapped as {}]",
        .access.verb(), .access.dma.get(), .access.len,
        .dead.mapping.dma.get(), .dead.mapping.len, .dead.mapping.dir, .dead.mapping.kind
    )]
    AfterUnmap {
        /// What was asked.
        access: Access,
        /// The mapping that was, and who ended it.
        dead: Dead,
    },
    /// The mapping is for the other direction.
    #[error(
        "device {} DMA memory against its direction [device address={:#018x}] [size={} bytes] [mapped with {}]",
        .access.verb(), .access.dma.get(), .access.len, .mapping.dir
    )]
    WrongDirection {
        /// What was asked.
        access: Access,
        /// The mapping that holds the range.
        mapping: Mapping,
    },
    /// Part of the range lies in a mapping and part of it does not.
    #[error(
        "device {} outside a DMA mapping [device address={:#018x}] [size={} bytes] \
         [mapping address={:#018x}] [map size={} bytes] [before={before} bytes] [past={past} bytes]",
        .access.verb(), .access.dma.get(), .access.len, .mapping.dma.get(), .mapping.len
    )]
    Outside {
        /// What was asked.
        access: Access,
        /// The mapping that fits best.
        mapping: Mapping,
        /// Bytes below its first.
        before: u64,
        /// Bytes beyond its last.
        past: u64,
    },
    /// Nothing is mapped there, nor was lately.
    #[error(
        "device {} memory that is not mapped for DMA [device address={:#018x}] [size={} bytes]",
        .access.verb(), .access.dma.get(), .access.len
    )]
    Unmapped {
        /// What was asked.
        access: Access,
    },
    /// The driver has synced the memory for the CPU and not given it back.
    ///
    /// The kernel's own documents let a driver that has only looked at a `DMA_FROM_DEVICE` buffer give it back without
    /// a sync; the lab wants the sync, because an owner that changes silently can't be checked.
    #[error(
        "device {} DMA memory that the CPU owns [device address={:#018x}] [size={} bytes] [mapped with {}]",
        .access.verb(), .access.dma.get(), .access.len, .mapping.dir
    )]
    WhileCpuOwns {
        /// What was asked.
        access: Access,
        /// The mapping that holds the range.
        mapping: Mapping,
    },
    /// The driver was shut down: the memory is the next kernel's.
    #[error(
        "device {} DMA memory after its driver's shutdown [device address={:#018x}] [size={} bytes] [mapped with {}]",
        .access.verb(), .access.dma.get(), .access.len, .mapping.dir
    )]
    AfterShutdown {
        /// What was asked.
        access: Access,
        /// The mapping that held the range before.
        mapping: Mapping,
    },
}

impl Violation {
    /// What was asked.
    pub const fn access(&self) -> Access {
        match self {
            Self::AfterUnmap { access, .. }
            | Self::WrongDirection { access, .. }
            | Self::Outside { access, .. }
            | Self::Unmapped { access }
            | Self::WhileCpuOwns { access, .. }
            | Self::AfterShutdown { access, .. } => *access,
        }
    }

    /// The mapping it concerns, live or dead.
    pub const fn mapping(&self) -> Option<&Mapping> {
        match self {
            Self::AfterUnmap { dead, .. } => Some(&dead.mapping),
            Self::WrongDirection { mapping, .. }
            | Self::Outside { mapping, .. }
            | Self::WhileCpuOwns { mapping, .. }
            | Self::AfterShutdown { mapping, .. } => Some(mapping),
            Self::Unmapped { .. } => None,
        }
    }

    /// The option under which Linux would print it: none does, the memory is just hit.
    pub const fn linux(&self) -> Option<&'static str> {
        None
    }
}
