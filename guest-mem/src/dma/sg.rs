//! Scatterlists: memory in several pieces, mapped in one call.
//!
//! Any [`Scattered`] memory is cut into entries: a [`KBuf`] is one, a vmalloc area one a page (`vmalloc_to_page`: the
//! right way to give such memory to a device), a `Vec` those of all its elements. [`DmaDevice::map_sg`] maps them all or
//! none: if one fails, the earlier ones are unmapped without a copy back. Each entry is a transaction of its own and
//! bounces by itself; none are merged and no limit of the device's is enforced, so the ledger tells what dma-debug would.
//! An IOMMU merges them (`merge`): the device is told of segments, of which there may be fewer.
//! Mirrors lib/scatterlist.c and `dma_direct_map_sg` of kernel/dma/direct.c. Neighbours: `streaming` has the single
//! mapping and the copies. Left out: chained lists, peer-to-peer memory.

use std::marker::PhantomData;
use std::panic::Location;

use crate::addr::{DmaAddr, PAGE_SIZE, PhysAddr};
use crate::cpu::{Cpu, Halt};
use crate::dma::attrs::Attrs;
use crate::dma::device::DmaDevice;
use crate::dma::direction::{DeviceReads, DeviceWrites, Dir, Direction};
use crate::dma::ledger::Misuse;
use crate::dma::mapping::{Entries, Kind as MappingKind};
use crate::dma::ownership::cpu_touches;
use crate::dma::streaming::{MapError, MapFailure, Piece, Placed, Terms};
use crate::env::Class;
use crate::kbuf::{KBuf, OutOfBounds};
use crate::page::Pages;
use crate::site::Owner;
use crate::vmalloc::{VBuf, vmalloc_to_page};

#[cfg(test)]
mod golden;
mod merge;
#[cfg(test)]
mod tests;

/// One stretch of memory (`struct scatterlist`), and what the device was told of it once it is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SgEntry {
    phys: PhysAddr,
    len: u64,
    owner: Owner,
    /// Of the segment with this entry's number, if there are so many.
    dma: DmaAddr,
    dma_len: u64,
    id: u64,
    bounced: bool,
    /// The transaction that has this entry's bytes.
    of: u64,
}

impl SgEntry {
    /// An entry of `len` bytes at an address (`sg_set_page`).
    pub fn new(phys: PhysAddr, len: u64, owner: Owner) -> Self {
        Self { phys, len, owner, dma: DmaAddr::new(u64::MAX), dma_len: 0, id: 0, bounced: false, of: 0 }
    }

    /// Where it lies (`sg_phys`).
    pub fn phys(&self) -> PhysAddr {
        self.phys
    }

    /// How many bytes it has (`sg->length`).
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the device must be told of the segment with this number; all-ones if there is none (`sg_dma_address`).
    pub fn dma_addr(&self) -> DmaAddr {
        self.dma
    }

    /// How many bytes the segment with this number has; 0 if there is none (`sg_dma_len`).
    pub fn dma_len(&self) -> u64 {
        self.dma_len
    }

    /// The transaction's number, or 0.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether it lies in the bounce pool.
    pub fn bounced(&self) -> bool {
        self.bounced
    }

    fn piece(&self) -> Piece {
        Piece { orig: self.phys, len: self.len, owner: self.owner }
    }
}

/// A scatterlist (`struct sg_table`), by its numbers alone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SgTable {
    entries: Vec<SgEntry>,
    /// How many segments the device sees (`sgt->nents`).
    mapped: usize,
}

impl SgTable {
    /// The entries of some memory, which stays its owner's. Any context.
    #[track_caller]
    pub fn of<B: Scattered>(cpu: &Cpu<'_>, memory: &B) -> Self {
        let mut table = Self::default();
        memory.scatter(cpu, &mut table);
        table
    }

    /// Adds an entry at the end.
    pub fn push(&mut self, entry: SgEntry) {
        self.entries.push(entry);
    }

    /// Its entries, in order.
    pub fn entries(&self) -> &[SgEntry] {
        &self.entries
    }

    /// The segments that the device sees, told by the first entries (`for_each_sgtable_dma_sg`).
    pub fn segments(&self) -> &[SgEntry] {
        self.entries.get(..self.mapped).unwrap_or(&[])
    }
}

/// Memory that can be cut into the entries of a scatterlist.
pub trait Scattered {
    /// Adds its entries to a list; says so, and adds none, if its machine was recycled.
    #[track_caller]
    fn scatter(&self, cpu: &Cpu<'_>, to: &mut SgTable) -> bool;
}

impl Scattered for KBuf {
    #[track_caller]
    fn scatter(&self, cpu: &Cpu<'_>, to: &mut SgTable) -> bool {
        if self.is_stale() {
            cpu.stale("buffer");
            return false;
        }
        to.push(SgEntry::new(self.phys(), self.len() as u64, self.owner()));
        true
    }
}

impl Scattered for Pages {
    #[track_caller]
    fn scatter(&self, cpu: &Cpu<'_>, to: &mut SgTable) -> bool {
        if self.kernel().get().is_none() {
            cpu.stale("block of pages");
            return false;
        }
        to.push(SgEntry::new(self.phys(), PAGE_SIZE << self.order(), self.owner()));
        true
    }
}

impl Scattered for VBuf {
    #[track_caller]
    fn scatter(&self, cpu: &Cpu<'_>, to: &mut SgTable) -> bool {
        if self.is_stale() {
            cpu.stale("vmalloc area");
            return false;
        }
        let mut done = 0;
        while done < self.len() as u64 {
            // What is freed under its owner has no pages any more.
            let Some(phys) = vmalloc_to_page(cpu.kernel(), self.virt().wrapping_add(done)) else { return false };
            let len = PAGE_SIZE.min(self.len() as u64 - done);
            to.push(SgEntry::new(phys, len, self.owner()));
            done += len;
        }
        true
    }
}

impl<B: Scattered> Scattered for Vec<B> {
    #[track_caller]
    fn scatter(&self, cpu: &Cpu<'_>, to: &mut SgTable) -> bool {
        for memory in self {
            if !memory.scatter(cpu, to) {
                return false;
            }
        }
        true
    }
}

/// Memory in pieces that belongs to the device until it is unmapped, or this drops.
#[must_use = "the memory is unmapped when this is dropped"]
#[derive(Debug)]
pub struct MappedSg<B, D: Direction> {
    device: DmaDevice,
    table: SgTable,
    attrs: Attrs,
    /// `None` only after `unmap` took it.
    memory: Option<B>,
    direction: PhantomData<D>,
}

impl DmaDevice {
    /// Gives memory in pieces to the device (`dma_map_sgtable`). Any context.
    ///
    /// # Errors
    /// [`MapError`] with the memory and the reason; nothing is mapped then.
    ///
    /// ```
    /// # use lowzone_guest_mem::dma::{DmaDevice, MapError, MappedSg, ToDevice};
    /// # use lowzone_guest_mem::{Cpu, KBuf};
    /// fn send(cpu: &Cpu<'_>, device: &DmaDevice, packet: Vec<KBuf>) -> Result<(), MapError<Vec<KBuf>>> {
    ///     let mapped: MappedSg<_, ToDevice> = device.map_sg(cpu, packet)?;
    ///     for segment in mapped.segments() {
    ///         let _descriptor = (segment.dma_addr(), segment.dma_len());
    ///     }
    ///     drop(mapped.unmap(cpu));
    ///     Ok(())
    /// }
    /// ```
    #[track_caller]
    pub fn map_sg<B: Scattered, D: Direction>(&self, cpu: &Cpu<'_>, memory: B) -> Result<MappedSg<B, D>, MapError<B>> {
        self.map_sg_attrs(cpu, memory, Attrs::empty())
    }

    /// [`DmaDevice::map_sg`] with attributes, which count for the unmap too (`dma_map_sg_attrs`). Any context.
    ///
    /// # Errors
    /// As [`DmaDevice::map_sg`].
    #[track_caller]
    pub fn map_sg_attrs<B: Scattered, D: Direction>(
        &self,
        cpu: &Cpu<'_>,
        memory: B,
        attrs: Attrs,
    ) -> Result<MappedSg<B, D>, MapError<B>> {
        let mut table = SgTable::default();
        if !memory.scatter(cpu, &mut table) {
            return Err(MapError { buf: memory, why: MapFailure::Stale });
        }
        match self.map_sg_raw(cpu, &mut table, (D::DIR, attrs), false) {
            Ok(()) => Ok(MappedSg { device: self.clone(), table, attrs, memory: Some(memory), direction: PhantomData }),
            Err(why) => Err(MapError { buf: memory, why }),
        }
    }

    /// The mapping under [`DmaDevice::map_sg`] and under misuse: all entries or none.
    #[track_caller]
    pub(crate) fn map_sg_raw(
        &self,
        cpu: &Cpu<'_>,
        table: &mut SgTable,
        (dir, attrs): (Dir, Attrs),
        lent: bool,
    ) -> Result<(), MapFailure> {
        let kernel = self.live_for(cpu, None).ok_or(MapFailure::Stale)?;
        let owner = cpu.owner();
        let terms = Terms { lent, ..terms(dir, attrs, table.entries.len()) };
        if table.entries.is_empty() {
            return Err(MapFailure::NoEntries);
        }
        if self.domain().is_some() {
            return self.map_merged(cpu, table, terms, owner);
        }
        let mut placed: Vec<Placed> = Vec::with_capacity(table.entries.len());
        for entry in &table.entries {
            match self.ask_and_place(cpu, entry.piece(), terms, owner) {
                Ok(place) => placed.push(place),
                Err(why) => {
                    // Unmapped with DMA_ATTR_SKIP_CPU_SYNC: nothing has been written yet.
                    for (place, entry) in placed.iter().zip(&table.entries).skip(usize::from(planted!(RollbackShort))) {
                        self.unplace(kernel, *place, entry.len);
                    }
                    let asked = table.entries.iter().take(placed.len() + 1);
                    asked.for_each(|entry| self.book_failure(cpu, (entry.len, &why), terms, owner));
                    return Err(why);
                }
            }
        }
        for (entry, place) in table.entries.iter_mut().zip(placed) {
            let raw = self.book(cpu, entry.piece(), place, terms, owner);
            (entry.dma, entry.dma_len, entry.id) = (raw.dma, raw.len, raw.id);
            (entry.of, entry.bounced) = (raw.id, raw.bounced);
            self.check_segment(entry, owner);
        }
        table.mapped = table.entries.len();
        Ok(())
    }

    /// What dma-debug says of a segment that breaks what the device told (`check_sg_segment`).
    fn check_segment(&self, entry: &SgEntry, owner: Owner) {
        let (max, boundary) = (self.max_seg_size(), self.seg_boundary());
        if entry.len > max.into() {
            self.report(Misuse::SegmentLong { len: entry.len, max }, None, owner);
        }
        let start = entry.dma;
        let end = start.wrapping_add(entry.dma_len.wrapping_sub(1));
        if (start.get() ^ end.get()) & !boundary != 0 {
            self.report(Misuse::SegmentBoundary { start, end, boundary }, None, owner);
        }
    }

    /// The unmapping under [`MappedSg::unmap`], its `Drop` and misuse: `count` is what the caller says the list has.
    pub(crate) fn unmap_sg_raw(&self, table: &SgTable, count: usize, dir: Dir, attrs: Attrs, by: Owner) {
        let terms = terms(dir, attrs, count);
        for segment in self.looked_at(table, count, dir) {
            self.unmap_raw(segment.dma, segment.dma_len, terms, by);
        }
        if let Some(kernel) = self.live_kernel().filter(|kernel| kernel.watched.any()) {
            table.entries.iter().for_each(|entry| kernel.watched.leave(entry.phys, entry.of));
        }
    }

    /// The syncing under [`MappedSg::sync_for_cpu`] and misuse.
    #[track_caller]
    pub(crate) fn sync_sg_raw(&self, cpu: &Cpu<'_>, table: &SgTable, count: usize, for_cpu: bool, dir: Dir) {
        let terms = terms(dir, Attrs::empty(), count);
        for segment in self.looked_at(table, count, dir) {
            self.sync_raw(cpu, segment.dma, segment.dma_len, for_cpu, terms);
        }
    }

    /// The entries of the list that a sync or unmap of `count` comes to.
    fn looked_at<'t>(&self, table: &'t SgTable, count: usize, dir: Dir) -> impl Iterator<Item = &'t SgEntry> + use<'t> {
        let called = u32::try_from(count).unwrap_or(u32::MAX);
        let first = table.entries.first();
        let mapped =
            first.map_or(0, |first| self.state.ledger.lock().mapped_entries(first.dma, first.dma_len, dir, called));
        let most = if mapped == 0 { usize::MAX } else { usize::try_from(mapped).unwrap_or(usize::MAX) };
        table.entries.iter().take(count.min(most))
    }
}

fn terms(dir: Dir, attrs: Attrs, count: usize) -> Terms {
    let called = u32::try_from(count).unwrap_or(u32::MAX);
    let entries = Entries { called, mapped: called };
    Terms { kind: MappingKind::Sg, attrs, entries, ..Terms::single(dir) }
}

impl<B, D: Direction> MappedSg<B, D> {
    /// The memory, entry by entry.
    pub fn entries(&self) -> &[SgEntry] {
        &self.table.entries
    }

    /// What the device must be told, in order; behind an IOMMU fewer than there are entries.
    pub fn segments(&self) -> &[SgEntry] {
        self.table.segments()
    }

    /// How many bytes it has in all.
    pub fn len(&self) -> u64 {
        self.table.entries.iter().map(SgEntry::len).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the memory back from the device (`dma_unmap_sgtable`). Any context.
    #[track_caller]
    pub fn unmap(mut self, cpu: &Cpu<'_>) -> B {
        let owner = cpu.owner();
        let _ = cpu.point_for(Class::Release, self.len(), owner);
        match self.memory.take() {
            Some(memory) => {
                self.device.unmap_sg_raw(&self.table, self.table.entries.len(), D::DIR, self.attrs, owner);
                memory
            }
            // Only this method empties it, and it consumes the mapping.
            None => cpu.halt(Halt::Dying),
        }
    }

    /// Lends the memory to the CPU until the window closes (`dma_sync_sgtable_for_cpu` … `_for_device`). Any context.
    #[track_caller]
    pub fn sync_for_cpu<'m, 'w>(&'m mut self, cpu: &'m Cpu<'w>) -> SgWindow<'m, 'w, B, D> {
        self.device.sync_sg_raw(cpu, &self.table, self.table.entries.len(), true, D::DIR);
        SgWindow { mapped: self, cpu }
    }
}

impl<B, D: Direction> Drop for MappedSg<B, D> {
    fn drop(&mut self) {
        if self.memory.is_some() {
            let count = self.table.entries.len();
            self.device.unmap_sg_raw(&self.table, count, D::DIR, self.attrs, Owner::default());
        }
    }
}

/// The CPU's turn with memory in pieces; the device's begins again when this drops.
#[must_use = "the device gets the memory back when this is dropped"]
pub struct SgWindow<'m, 'w, B, D: Direction> {
    mapped: &'m mut MappedSg<B, D>,
    cpu: &'m Cpu<'w>,
}

impl<B, D: Direction> SgWindow<'_, '_, B, D> {
    /// The stretches of memory that hold `len` bytes at an offset, each with its place among those bytes.
    fn stretches(&self, offset: usize, len: usize) -> Result<Vec<(PhysAddr, std::ops::Range<usize>)>, OutOfBounds> {
        let size = usize::try_from(self.mapped.len()).unwrap_or(usize::MAX);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(OutOfBounds { offset, len, size });
        }
        let (mut stretches, mut skip, mut done) = (Vec::new(), offset, 0);
        for entry in self.mapped.entries() {
            let has = usize::try_from(entry.len).unwrap_or(usize::MAX);
            let from = skip.min(has);
            skip -= from;
            let take = (has - from).min(len - done);
            if take > 0 {
                stretches.push((entry.phys.wrapping_add(from as u64), done..done + take));
                done += take;
            }
        }
        Ok(stretches)
    }
}

impl<B, D: DeviceWrites> SgWindow<'_, '_, B, D> {
    /// Copies out what the device wrote; the entries count as one row of bytes.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    #[track_caller]
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        for (at, range) in self.stretches(offset, to.len())? {
            cpu_touches(self.cpu.kernel(), (at, range.len()), false, Location::caller());
            // The memory's owner is lent for as long, so it is RAM.
            let _ = self.cpu.kernel().ram().read(at, &mut to[range]);
        }
        Ok(())
    }
}

impl<B, D: DeviceReads> SgWindow<'_, '_, B, D> {
    /// Copies in what the device will read; the entries count as one row of bytes.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    #[track_caller]
    pub fn write_at(&mut self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        for (at, range) in self.stretches(offset, from.len())? {
            cpu_touches(self.cpu.kernel(), (at, range.len()), true, Location::caller());
            // The memory's owner is lent for as long, so it is RAM.
            let _ = self.cpu.kernel().ram().write(at, &from[range]);
        }
        Ok(())
    }
}

impl<B, D: Direction> Drop for SgWindow<'_, '_, B, D> {
    fn drop(&mut self) {
        let mapped = &self.mapped;
        mapped.device.sync_sg_raw(self.cpu, &mapped.table, mapped.table.entries.len(), false, D::DIR);
    }
}
