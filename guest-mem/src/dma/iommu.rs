//! An IOMMU: each device sees a space of addresses of its own, page by page.
//!
//! A map call takes an I/O virtual address and enters the pages around the buffer, in the direction of the mapping; what
//! else lies in those pages is exposed, and only the ledger sees an access to it. An access to what is not entered, or
//! against the direction, is a fault: it is refused. A strict domain forgets a page as it is unmapped. A lazy one queues
//! it ([`FLUSH_QUEUE`] at most, [`FLUSH_NS`] at most), and until the flush the device's IOTLB may still know the page:
//! here it always does, so an access after the unmap hits. The address is not given out again before that.
//!
//! It needs no bounce pool and reaches all RAM. Mirrors drivers/iommu/dma-iommu.c and iova.c of 6.1; the text of a fault
//! is ours, each driver of an IOMMU having its own. Neighbours: `iova` gives addresses; the map calls and the port.
//! Left out: one flush queue a CPU (here one a domain), one entry of it for a list, scattered coherent memory,
//! untrusted devices' bounces.

mod iova;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeMap;

use thiserror::Error;

use crate::addr::{DmaAddr, PAGE_SHIFT, PAGE_SIZE, PhysAddr};
use crate::dma::direction::Dir;
use iova::Iovas;
pub use iova::{APERTURE, IovaError};
pub use validate::DomainError;

/// When pages are forgotten that were unmapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IommuMode {
    /// As they are unmapped (`iommu.strict=1`).
    Strict,
    /// Some time later, many at once (`iommu.strict=0`).
    Lazy,
}

/// Unmapped ranges that a lazy domain queues (`IOVA_FQ_SIZE`).
pub const FLUSH_QUEUE: usize = 256;
/// How long it queues them, in nanoseconds (`IOVA_FQ_TIMEOUT`).
pub const FLUSH_NS: u64 = 10_000_000;

/// An access that the IOMMU refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("IOMMU fault: device {} of {len} bytes at {:#018x}: {why}", if *.write { "write" } else { "read" }, .dma.get())]
pub struct IommuFault {
    /// The first byte.
    pub dma: DmaAddr,
    /// How many bytes.
    pub len: u64,
    /// Whether it writes.
    pub write: bool,
    /// What is wrong with a page of it.
    pub why: FaultReason,
}

/// Why a page refuses an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FaultReason {
    /// Nothing is mapped there.
    #[error("page {page:#x} is not mapped")]
    NotMapped {
        /// Number of the page.
        page: u64,
    },
    /// It is mapped for the other direction.
    #[error("page {page:#x} is mapped for the other direction")]
    Direction {
        /// Number of the page.
        page: u64,
    },
    /// The access ends beyond the address space.
    #[error("it ends beyond 2^64")]
    Wraps,
}

/// A page as the device sees it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    page: u64,
    read: bool,
    write: bool,
    /// Unmapped, and not flushed yet.
    stale: bool,
}

/// What a domain holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DomainStats {
    /// Pages that are mapped.
    pub mapped: usize,
    /// Pages that are unmapped and still reached.
    pub stale: usize,
    /// How often the queue was flushed.
    pub flushes: u64,
}

/// A run of pages as the device sees it, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Where the device sees it.
    pub dma: DmaAddr,
    /// Where it lies.
    pub phys: PhysAddr,
    /// Bytes.
    pub len: u64,
    /// Whether the device may read it.
    pub read: bool,
    /// Whether the device may write it.
    pub write: bool,
    /// Whether it is unmapped and only waits for the flush.
    pub stale: bool,
}

/// The address space of one device.
#[derive(Debug)]
pub struct Domain {
    mode: IommuMode,
    iovas: Iovas,
    entries: BTreeMap<u64, Entry>,
    queue: Vec<(u64, u64)>,
    /// When the queue is flushed at the latest; without meaning while it is empty.
    flush_at: u64,
    flushes: u64,
}

/// One entry of a list that is mapped in one range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ListPart {
    /// Where in the range its first page lies, in bytes.
    pub(crate) at: u64,
    /// Its first byte, and how many there are.
    pub(crate) phys: PhysAddr,
    pub(crate) len: u64,
}

/// Ranges of RAM behind a range of device addresses, in order.
pub type Pieces = Vec<(PhysAddr, usize)>;

fn pages_of(dma: DmaAddr, len: u64) -> (u64, u64) {
    let first = dma.get() >> PAGE_SHIFT;
    let bytes = dma.page_offset().saturating_add(len.max(1));
    (first, bytes.div_ceil(PAGE_SIZE))
}

impl Domain {
    /// An empty domain.
    pub fn new(mode: IommuMode) -> Self {
        let (iovas, entries) = (Iovas::new(), BTreeMap::new());
        Self { mode, iovas, entries, queue: Vec::new(), flush_at: 0, flushes: 0 }
    }

    /// Enters the pages around `len` bytes at `phys`; the device finds them below `mask`, below 4 GiB if there is room.
    ///
    /// # Errors
    /// [`IovaError`]: no addresses left there.
    pub fn map(&mut self, phys: PhysAddr, len: u64, dir: Dir, mask: u64, now: u64) -> Result<DmaAddr, IovaError> {
        let (_, pages) = pages_of(DmaAddr::new(phys.get()), len);
        let base = self.map_list(&[ListPart { at: 0, phys, len }], pages, dir, mask, now)?;
        Ok(base.wrapping_add(phys.page_offset()))
    }

    /// Enters the pages around each part in one range of so many pages; where it begins. Gaps stay unmapped.
    pub(crate) fn map_list(
        &mut self,
        parts: &[ListPart],
        pages: u64,
        dir: Dir,
        mask: u64,
        now: u64,
    ) -> Result<DmaAddr, IovaError> {
        self.tick(now);
        let paged = |part: &ListPart| pages_of(DmaAddr::new(part.phys.get()), part.len);
        let first = self.iovas.alloc(pages, parts.iter().map(|part| paged(part).1).sum(), mask)?;
        let (read, write) = (dir.device_reads(), dir.device_writes());
        for part in parts {
            let (page, count) = paged(part);
            let from = first + (part.at >> PAGE_SHIFT);
            let entry = |at| Entry { page: page + at, read, write, stale: false };
            self.entries.extend((0..count).map(|at| (from + at, entry(at))));
        }
        Ok(DmaAddr::new(first << PAGE_SHIFT))
    }

    /// What lies behind a range, page by page; what is not mapped is passed over.
    pub(crate) fn pieces(&self, dma: DmaAddr, len: u64) -> Vec<(PhysAddr, u64)> {
        let (mut pieces, mut done) = (Vec::new(), 0);
        while done < len {
            let at = dma.wrapping_add(done);
            let step = (PAGE_SIZE - at.page_offset()).min(len - done);
            pieces.extend(self.lookup(at).map(|phys| (phys, step)));
            done += step;
        }
        pieces
    }

    /// Takes back the pages around `len` bytes at `dma`, at once or at the next flush; those not entered are passed over.
    pub fn unmap(&mut self, dma: DmaAddr, len: u64, now: u64) {
        self.tick(now);
        let (first, pages) = pages_of(dma, len);
        let pages = if planted!(PageKept) { (pages - 1).max(1) } else { pages };
        let range = first..first.saturating_add(pages);
        match self.mode {
            IommuMode::Strict => self.forget(range.start, range.end),
            IommuMode::Lazy => {
                let live = self.entries.range_mut(range.clone()).filter(|(_, entry)| !entry.stale);
                let marked = live.map(|(_, entry)| entry.stale = true).count();
                if marked > 0 {
                    self.enqueue(range.start, range.end, now);
                }
            }
        }
    }

    fn enqueue(&mut self, first: u64, end: u64, now: u64) {
        if self.queue.is_empty() {
            self.flush_at = now.saturating_add(FLUSH_NS);
        }
        self.queue.push((first, end));
        if self.queue.len() >= FLUSH_QUEUE {
            self.flush();
        }
    }

    /// When it forgets.
    pub fn mode(&self) -> IommuMode {
        self.mode
    }

    /// What time alone does: the timer of the queue.
    pub(super) fn tick(&mut self, now: u64) {
        if !self.queue.is_empty() && now >= self.flush_at {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if planted!(NeverFlushed) {
            return;
        }
        self.flushes += 1;
        for (first, end) in std::mem::take(&mut self.queue) {
            self.forget(first, end);
        }
    }

    fn forget(&mut self, first: u64, end: u64) {
        let gone: Vec<u64> = self.entries.range(first..end).map(|(&page, _)| page).collect();
        for page in gone {
            self.entries.remove(&page);
            self.iovas.release(page);
        }
    }

    /// Where an access of the device goes.
    ///
    /// # Errors
    /// [`IommuFault`]; then no byte of it goes anywhere.
    pub fn translate(&mut self, dma: DmaAddr, len: usize, write: bool, now: u64) -> Result<Pieces, IommuFault> {
        self.tick(now);
        let fault = |why| IommuFault { dma, len: len as u64, write, why };
        if dma.get().checked_add((len as u64).saturating_sub(1)).is_none() {
            return Err(fault(FaultReason::Wraps));
        }
        let (mut pieces, mut at, mut left) = (Pieces::new(), dma, len);
        while left > 0 {
            let page = at.get() >> PAGE_SHIFT;
            let entry = self.entries.get(&page).ok_or_else(|| fault(FaultReason::NotMapped { page }))?;
            if !(if write { entry.write } else { entry.read } || planted!(AnyAccess)) {
                return Err(fault(FaultReason::Direction { page }));
            }
            let step = left.min(usize::try_from(PAGE_SIZE - at.page_offset()).unwrap_or(left));
            let phys = PhysAddr::new((entry.page << PAGE_SHIFT) + at.page_offset());
            match pieces.last_mut() {
                Some((start, had)) if start.wrapping_add(*had as u64) == phys || planted!(OnePiece) => *had += step,
                _ => pieces.push((phys, step)),
            }
            left -= step;
            at = at.wrapping_add(step as u64);
        }
        Ok(pieces)
    }

    /// What lies behind one address (`iommu_iova_to_phys`).
    pub fn lookup(&self, dma: DmaAddr) -> Option<PhysAddr> {
        let entry = self.entries.get(&(dma.get() >> PAGE_SHIFT)).filter(|entry| !entry.stale)?;
        Some(PhysAddr::new((entry.page << PAGE_SHIFT) + dma.page_offset()))
    }

    /// What it holds.
    pub fn stats(&self) -> DomainStats {
        let stale = self.entries.values().filter(|entry| entry.stale).count();
        DomainStats { mapped: self.entries.len() - stale, stale, flushes: self.flushes }
    }

    /// What it holds at a time.
    #[cfg(test)]
    pub(crate) fn stats_at(&mut self, now: u64) -> DomainStats {
        self.tick(now);
        self.stats()
    }

    /// What the device sees, by address.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (&page, &Entry { page: frame, read, write, stale }) in &self.entries {
            let (dma, phys) = (DmaAddr::new(page << PAGE_SHIFT), PhysAddr::new(frame << PAGE_SHIFT));
            match runs.last_mut() {
                Some(run)
                    if (run.read, run.write, run.stale) == (read, write, stale)
                        && run.dma.wrapping_add(run.len) == dma
                        && run.phys.wrapping_add(run.len) == phys =>
                {
                    run.len += PAGE_SIZE;
                }
                _ => runs.push(Run { dma, phys, len: PAGE_SIZE, read, write, stale }),
            }
        }
        runs
    }
}
