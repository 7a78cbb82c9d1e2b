//! Guest RAM: a sparse memfd, mapped once, reached only by volatile copies and atomic loads and stores.
//!
//! The machine's memory is split as on a PC: `low` bytes from address 0, the rest from 4 GiB up, with the hole
//! between them left to device registers. Pages that were never written cost nothing. Every write, by CPU or
//! device, marks its page in a dirty map, so that [`Ram::reset`] touches only what was touched.
//!
//! No reference into RAM exists anywhere: whoever holds one could not share the page with a device.
//! Neighbours: the kernel's copies (`KBuf`, `Coherent`), `dma::DmaPort`. Left out: hot-plug, NUMA.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags};
use thiserror::Error;
use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};
use vm_memory::{
    AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress, VolatileSlice,
};

use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::dma::cache::CpuCache;
use crate::lock::Locked;

/// Where RAM above the device window begins.
pub const HIGH_START: u64 = 1 << 32;
/// The lowest address that device windows may take, hence the most RAM below 4 GiB.
pub const LOW_LIMIT: u64 = 0xe000_0000;
/// The most RAM a machine may have: beyond it the page tables of this model make no sense.
pub const RAM_LIMIT: u64 = 1 << 40;
/// A dirty run of this many pages is given back to the host; shorter ones are written over, which is faster.
const PUNCH_PAGES: u64 = 512;

/// Why RAM could not be made or reached.
#[derive(Debug, Error)]
pub enum RamError {
    /// A size of zero.
    #[error("RAM of 0 bytes")]
    Zero,
    /// A size that is no whole number of pages.
    #[error("{what} of {bytes} bytes is not a multiple of {PAGE_SIZE}")]
    Unaligned {
        /// Which size.
        what: &'static str,
        /// The size.
        bytes: u64,
    },
    /// A size past the model's limit.
    #[error("RAM of {bytes} bytes is beyond the limit of {RAM_LIMIT}")]
    TooLarge {
        /// The size.
        bytes: u64,
    },
    /// More low RAM than fits under the device window.
    #[error("{bytes} bytes of RAM below 4 GiB reach into the device window at {LOW_LIMIT:#x}")]
    LowTooLarge {
        /// The size.
        bytes: u64,
    },
    /// The host refused the memory.
    #[error("the host cannot map {bytes} bytes of guest RAM: {source}")]
    Host {
        /// The size.
        bytes: u64,
        /// The host's reason.
        source: std::io::Error,
    },
    /// An access outside RAM.
    #[error("no RAM at {addr:#x}, length {len}")]
    NotRam {
        /// The first byte asked for.
        addr: u64,
        /// How many bytes.
        len: usize,
    },
}

/// Which pages were written: one bit a page, and one summary bit for each 64 pages.
#[derive(Debug, Default)]
pub struct DirtyMap {
    words: Vec<AtomicU64>,
    summary: Vec<AtomicU64>,
}

fn zeroed(len: usize) -> Vec<AtomicU64> {
    std::iter::repeat_with(|| AtomicU64::new(0)).take(len).collect()
}

impl DirtyMap {
    #[inline]
    fn set(&self, page: usize) {
        let (word, bit) = (page / 64, 1_u64 << (page % 64));
        let Some(cell) = self.words.get(word) else { return };
        if cell.load(Ordering::Relaxed) & bit == 0 {
            self.set_first(cell, word, bit);
        }
    }

    #[cold]
    fn set_first(&self, cell: &AtomicU64, word: usize, bit: u64) {
        cell.fetch_or(bit, Ordering::Relaxed);
        if let Some(top) = self.summary.get(word / 64) {
            top.fetch_or(1 << (word % 64), Ordering::Relaxed);
        }
    }

    /// Takes all dirty pages out, as ascending runs `(first page, pages)`.
    fn drain(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let bits = |mut set: u64| {
            std::iter::from_fn(move || {
                let bit = (set != 0).then(|| set.trailing_zeros())?;
                set &= set - 1;
                Some(u64::from(bit))
            })
        };
        for (i, top) in (0_u64..).zip(&self.summary) {
            for word in bits(top.swap(0, Ordering::Relaxed)).map(|bit| i * 64 + bit) {
                let Some(cell) = usize::try_from(word).ok().and_then(|w| self.words.get(w)) else { continue };
                for page in bits(cell.swap(0, Ordering::Relaxed)).map(|bit| word * 64 + bit) {
                    match runs.last_mut() {
                        Some((first, len)) if *first + *len == page => *len += 1,
                        _ => runs.push((page, 1)),
                    }
                }
            }
        }
        runs
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyMap {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyMap {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        const PAGE: usize = 4096;
        let Some(more) = len.checked_sub(1) else { return };
        let (first, last) = (offset / PAGE, offset.saturating_add(more) / PAGE);
        self.set(first);
        // Nearly every write is a short one.
        (first + 1..=last).for_each(|page| self.set(page));
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / 4096;
        self.words.get(page / 64).is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (page % 64)) != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DirtyMap {
    fn with_len(len: usize) -> Self {
        let words = len.div_ceil(4096).div_ceil(64);
        Self { words: zeroed(words), summary: zeroed(words.div_ceil(64)) }
    }
}

/// The memory type that the DMA port hands slices of.
pub type RamMap = GuestMemoryMmap<DirtyMap>;

/// All RAM of one machine.
#[derive(Debug)]
pub struct Ram {
    map: RamMap,
    /// The regions of `map`, below the hole and above it: most accesses are short, and to walk the map costs more than
    /// they do.
    regions: [Option<Arc<GuestRegionMmap<DirtyMap>>>; 2],
    file: File,
    /// Whether another process may have written pages that the dirty map knows nothing of.
    lent: AtomicBool,
    low: u64,
    total: u64,
    /// What stands between the CPUs and RAM on a non-coherent machine.
    cache: Option<Box<Locked<CpuCache>>>,
}

impl Ram {
    /// Makes `total` bytes of RAM, at most `low` of them below 4 GiB.
    ///
    /// # Errors
    /// [`RamError`] names the size that is zero, unaligned, beyond a limit, or refused by the host.
    pub fn new(total: u64, low: u64) -> Result<Self, RamError> {
        check_sizes(total, low)?;
        let low = low.min(total);
        let host = |source| RamError::Host { bytes: total, source };
        let fd = rustix::fs::memfd_create("lowzone-ram", MemfdFlags::CLOEXEC).map_err(|e| host(e.into()))?;
        let file = File::from(fd);
        file.set_len(total).map_err(host)?;
        let below = Some(Arc::new(region(&file, 0, 0, low, total)?));
        let above = (total > low).then(|| region(&file, HIGH_START, low, total - low, total)).transpose()?;
        let regions = [below, above.map(Arc::new)];
        let map = GuestMemoryMmap::from_arc_regions(regions.iter().flatten().cloned().collect());
        let map = map.map_err(|e| host(std::io::Error::other(e)))?;
        Ok(Self { map, regions, file, lent: AtomicBool::new(false), low, total, cache: None })
    }

    /// The same with caches before it that no device looks into.
    pub(crate) fn non_coherent(self) -> Self {
        Self { cache: Some(Box::default()), ..self }
    }

    /// The mapped memory, for the DMA port.
    pub fn map(&self) -> &RamMap {
        &self.map
    }

    /// The file behind it, for a process that maps RAM itself; the next [`Ram::reset`] gives every page back.
    ///
    /// Low RAM is at offset 0, RAM from 4 GiB up follows at offset [`Ram::low`]; its length is [`Ram::total`].
    pub fn file(&self) -> &File {
        self.lent.store(true, Ordering::Relaxed);
        &self.file
    }

    /// Bytes of RAM.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of RAM below 4 GiB.
    pub fn low(&self) -> u64 {
        self.low
    }

    /// The address after the last byte of RAM.
    pub fn end(&self) -> u64 {
        if self.total > self.low { HIGH_START + (self.total - self.low) } else { self.low }
    }

    /// Whether all of `len` bytes from `at` are RAM.
    pub fn contains(&self, at: PhysAddr, len: u64) -> bool {
        let Some(end) = at.get().checked_add(len) else { return false };
        end <= self.low || (at.get() >= HIGH_START && end <= self.end())
    }

    /// Whether any of `len` bytes from `at` is RAM.
    pub fn overlaps(&self, at: PhysAddr, len: u64) -> bool {
        let (start, end) = (at.get(), at.get().saturating_add(len));
        start < end && (start < self.low || (end > HIGH_START && start < self.end() && self.end() > HIGH_START))
    }

    /// The bytes themselves, for a copy or one access; all of them lie in RAM.
    #[inline]
    fn slice(&self, at: PhysAddr, len: usize) -> Result<VolatileSlice<'_, RefSlice<'_, DirtyMap>>, RamError> {
        let [below, above] = &self.regions;
        let (region, start) = if at.get() < HIGH_START { (below, 0) } else { (above, HIGH_START) };
        let found = region.as_ref().and_then(|region| {
            let offset = MemoryRegionAddress(at.get() - start);
            region.get_slice(offset, len).ok()
        });
        found.ok_or(RamError::NotRam { addr: at.get(), len })
    }

    /// Copies bytes out of RAM, as a CPU sees it.
    ///
    /// # Errors
    /// [`RamError::NotRam`] if any byte lies outside; nothing is copied then.
    #[inline]
    pub fn read(&self, at: PhysAddr, to: &mut [u8]) -> Result<(), RamError> {
        let slice = self.slice(at, to.len())?;
        if let Some(cache) = &self.cache {
            return cache.lock().read(self, at, to);
        }
        slice.copy_to(to);
        Ok(())
    }

    /// Copies bytes into RAM, as a CPU does.
    ///
    /// # Errors
    /// [`RamError::NotRam`] if any byte lies outside.
    #[inline]
    pub fn write(&self, at: PhysAddr, from: &[u8]) -> Result<(), RamError> {
        let slice = self.slice(at, from.len())?;
        if let Some(cache) = &self.cache {
            return cache.lock().write(self, at, from);
        }
        slice.copy_from(from);
        Ok(())
    }

    /// Copies bytes out of RAM itself, past any cache: what a device sees, and a CPU in coherent memory.
    ///
    /// # Errors
    /// As [`Ram::read`].
    #[inline]
    pub fn read_uncached(&self, at: PhysAddr, to: &mut [u8]) -> Result<(), RamError> {
        self.slice(at, to.len())?.copy_to(to);
        Ok(())
    }

    /// Copies bytes into RAM itself, past any cache.
    ///
    /// # Errors
    /// As [`Ram::write`].
    #[inline]
    pub fn write_uncached(&self, at: PhysAddr, from: &[u8]) -> Result<(), RamError> {
        self.slice(at, from.len())?.copy_from(from);
        Ok(())
    }

    /// Writes back what CPUs wrote, before a device looks; nothing to do on a coherent machine.
    pub(crate) fn clean(&self, at: PhysAddr, len: u64) {
        if let Some(cache) = &self.cache {
            cache.lock().clean(self, at, usize::try_from(len).unwrap_or(0));
        }
    }

    /// Drops what CPUs have cached, after a device wrote; nothing to do on a coherent machine.
    pub(crate) fn invalidate(&self, at: PhysAddr, len: u64) {
        if let Some(cache) = &self.cache {
            cache.lock().invalidate(self, at, usize::try_from(len).unwrap_or(0));
        }
    }

    /// Clears bytes for an uncached alias: no line of theirs is left (`arch_dma_prep_coherent`).
    ///
    /// # Errors
    /// As [`Ram::zero`].
    pub(crate) fn zero_uncached(&self, at: PhysAddr, len: u64) -> Result<(), RamError> {
        if self.cache.is_some() {
            self.zero(at, len)?;
            self.clean(at, len);
            self.invalidate(at, len);
            return Ok(());
        }
        self.zero(at, len)
    }

    /// Loads one aligned number in one access, as a ring index must be, past any cache.
    ///
    /// # Errors
    /// [`RamError::NotRam`] outside RAM or unaligned.
    #[inline]
    pub fn load<T: AtomicAccess>(&self, at: PhysAddr) -> Result<T, RamError> {
        let len = size_of::<T>();
        self.slice(at, len)?.load(0, Ordering::Acquire).map_err(|_| RamError::NotRam { addr: at.get(), len })
    }

    /// Stores one aligned number in one access, past any cache.
    ///
    /// # Errors
    /// [`RamError::NotRam`] outside RAM or unaligned.
    #[inline]
    pub fn store<T: AtomicAccess>(&self, at: PhysAddr, value: T) -> Result<(), RamError> {
        let len = size_of::<T>();
        self.slice(at, len)?.store(value, 0, Ordering::Release).map_err(|_| RamError::NotRam { addr: at.get(), len })
    }

    /// Copies RAM to RAM, as the swiotlb does; the ranges don't overlap.
    ///
    /// # Errors
    /// [`RamError::NotRam`] if either range leaves RAM.
    pub fn copy(&self, from: PhysAddr, to: PhysAddr, len: usize) -> Result<(), RamError> {
        if self.cache.is_some() {
            let mut bytes = vec![0; len];
            self.read(from, &mut bytes)?;
            return self.write(to, &bytes);
        }
        self.slice(from, len)?.copy_to_volatile_slice(self.slice(to, len)?);
        Ok(())
    }

    /// Clears bytes.
    ///
    /// # Errors
    /// [`RamError::NotRam`] if the range leaves RAM.
    pub fn zero(&self, at: PhysAddr, len: u64) -> Result<(), RamError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < len {
            let step = usize::try_from((len - done).min(PAGE_SIZE)).unwrap_or(ZEROS.len());
            self.write(at.wrapping_add(done), &ZEROS[..step])?;
            done += step as u64;
        }
        Ok(())
    }

    /// Clears every page that was ever written; afterwards RAM equals fresh RAM. Returns how many there were, but all
    /// pages if another process had the file: it must have let go of it.
    ///
    /// # Errors
    /// [`RamError::Host`] if the host will not take pages back.
    pub fn reset(&self) -> Result<u64, RamError> {
        if let Some(cache) = &self.cache {
            cache.lock().reset();
        }
        let lent = self.lent.swap(false, Ordering::Relaxed);
        if lent {
            self.punch(0, self.total)?;
        }
        let mut pages = if lent { self.total / PAGE_SIZE } else { 0 };
        for (start, offset) in [(0, 0), (HIGH_START, self.low)] {
            let Some(region) = self.map.find_region(GuestAddress(start)) else { continue };
            let dirty = region.bitmap_map().drain();
            if lent {
                continue;
            }
            for (first, len) in dirty {
                pages += len;
                let at = first * PAGE_SIZE;
                if len >= PUNCH_PAGES {
                    self.punch(offset + at, len * PAGE_SIZE)?;
                } else {
                    self.zero_uncached(PhysAddr::new(start + at), len * PAGE_SIZE)?;
                }
            }
            region.bitmap_map().drain();
        }
        Ok(pages)
    }

    /// Gives part of the file back to the host; it reads as zeros from then on.
    fn punch(&self, offset: u64, bytes: u64) -> Result<(), RamError> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, mode, offset, bytes).map_err(|e| RamError::Host { bytes, source: e.into() })
    }
}

/// Gives the whole dirty map of a region: vm-memory's own accessor hands out slices of it only.
trait DirtyRegion {
    fn bitmap_map(&self) -> &DirtyMap;
}

impl DirtyRegion for GuestRegionMmap<DirtyMap> {
    fn bitmap_map(&self) -> &DirtyMap {
        // `GuestRegionMmap` derefs to its `MmapRegion`, whose accessor returns the map itself.
        std::ops::Deref::deref(self).bitmap()
    }
}

fn check_sizes(total: u64, low: u64) -> Result<(), RamError> {
    if total == 0 || low == 0 {
        return Err(RamError::Zero);
    }
    for (what, bytes) in [("RAM", total), ("low RAM", low)] {
        if !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(RamError::Unaligned { what, bytes });
        }
    }
    if total > RAM_LIMIT {
        return Err(RamError::TooLarge { bytes: total });
    }
    if low.min(total) > LOW_LIMIT {
        return Err(RamError::LowTooLarge { bytes: low.min(total) });
    }
    Ok(())
}

fn region(file: &File, at: u64, offset: u64, len: u64, total: u64) -> Result<GuestRegionMmap<DirtyMap>, RamError> {
    let host = |source| RamError::Host { bytes: total, source };
    let file = file.try_clone().map_err(host)?;
    let size = usize::try_from(len).map_err(|_| RamError::TooLarge { bytes: len })?;
    GuestRegionMmap::from_range(GuestAddress(at), size, Some(FileOffset::new(file, offset)))
        .map_err(|e| host(std::io::Error::other(e)))
}

#[cfg(test)]
mod tests;
