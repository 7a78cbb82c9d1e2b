//! Streaming DMA: a buffer goes to the device and comes back.
//!
//! [`DmaDevice::map_single`] takes the buffer and gives a [`Mapped`]; a failed map gives the buffer back. While
//! mapped the CPU has no write access at all, and read access only to what the device merely reads;
//! [`Mapped::sync_for_cpu`] opens a window that gives the buffer back to the device when it closes. What the mask
//! can't reach is bounced through the swiotlb, with its copies exactly where Linux 6.1 makes them: every map copies
//! in, whatever the direction; unmap and sync-for-cpu copy back where the device may write.
//!
//! [`DmaDevice::map_page`] does the same for part of some pages, of high memory too, and [`DmaDevice::map_resource`] for
//! another device's registers, which never bounce.
//!
//! Mapping, syncing and unmapping never sleep: any context. Mirrors kernel/dma/direct.h and swiotlb.c.
//! Neighbours: `device`, `swiotlb`, `ledger`, `sg`. Left out: `DMA_NONE`, which only `misuse` can say.

use std::marker::PhantomData;

use thiserror::Error;

use crate::addr::{DmaAddr, PAGE_SIZE, PhysAddr};
use crate::cpu::Cpu;
use crate::dma::attrs::Attrs;
use crate::dma::device::DmaDevice;
use crate::dma::direction::{DeviceReads, DeviceWrites, Direction, ToDevice};
use crate::dma::iommu::IovaError;
use crate::dma::mapping::Kind as MappingKind;
use crate::dma::ownership::cpu_reads_unsynced;
use crate::dma::swiotlb::SwiotlbError;
use crate::env::Class;
use crate::kbuf::{KBuf, OutOfBounds};
use crate::page::Pages;
use crate::site::Owner;

mod bounce;
#[cfg(test)]
mod golden;
mod raw;
#[cfg(test)]
mod tests;

pub use raw::RawMapping;
pub(crate) use raw::{Piece, Placed, Terms, report_unmap};

/// Why a mapping failed (`DMA_MAPPING_ERROR`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MapFailure {
    /// The device or the buffer is of a machine that was recycled.
    #[error("the device or the buffer is of an earlier machine")]
    Stale,
    /// The world failed the point.
    #[error("no mapping for {len} bytes")]
    Refused {
        /// How many bytes.
        len: u64,
    },
    /// The address is one of vmalloc's, whose bytes have no one physical address.
    #[error("rejecting DMA map of vmalloc memory")]
    Vmalloc {
        /// How many bytes.
        len: u64,
    },
    /// The device has no DMA mask, because no bus gave it one.
    #[error("WARNING: kernel/dma/mapping.c dma_map_page_attrs: the device has no dma_mask")]
    NoMask,
    /// The stretch does not lie in the pages.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
    /// A scatterlist without an entry, whose count is that of a failure.
    #[error("a scatterlist of no entries")]
    NoEntries,
    /// The IOMMU has no addresses left; Linux says nothing.
    #[error(transparent)]
    Iova(#[from] IovaError),
    /// The bounce pool has no room.
    #[error(transparent)]
    Swiotlb(#[from] SwiotlbError),
    /// Out of reach, and no bounce pool, or the pool is out of reach too.
    #[error("{what} {:#018x}+{len} overflow (mask {mask:x}, bus limit 0).", .addr.get())]
    Overflow {
        /// `DMA addr` or `swiotlb addr`.
        what: &'static str,
        /// The bus address.
        addr: DmaAddr,
        /// How many bytes.
        len: u64,
        /// The device's mask.
        mask: u64,
    },
}

impl MapFailure {
    /// The errno that `dma_map_sgtable` returns for an entry that failed so, negative: `-ENOMEM` is worth another try.
    pub const fn sgtable_errno(&self) -> i32 {
        match self {
            Self::Iova(_) => -12,
            _ => -5,
        }
    }
}

/// A mapping that failed; the buffer comes back.
#[derive(Debug, Error)]
#[error("{why}")]
pub struct MapError<B> {
    /// The buffer.
    pub buf: B,
    /// Why.
    pub why: MapFailure,
}

/// A buffer that belongs to the device until it is unmapped, or this drops.
#[must_use = "the buffer is unmapped when this is dropped"]
#[derive(Debug)]
pub struct Mapped<B, D: Direction> {
    device: DmaDevice,
    raw: RawMapping,
    terms: Terms,
    /// `None` only after `unmap` took it.
    buf: Option<B>,
    direction: PhantomData<D>,
}

/// Registers of another device, to be reached by this one (`dma_map_resource`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resource {
    /// Where they lie.
    pub phys: PhysAddr,
    /// How many bytes.
    pub len: u64,
}

impl DmaDevice {
    /// Gives a buffer to the device (`dma_map_single`). Any context.
    ///
    /// # Errors
    /// [`MapError`] with the buffer and the reason.
    #[track_caller]
    pub fn map_single<D: Direction>(&self, cpu: &Cpu<'_>, buf: KBuf) -> Result<Mapped<KBuf, D>, MapError<KBuf>> {
        self.map_single_attrs(cpu, buf, Attrs::empty())
    }

    /// [`DmaDevice::map_single`] with attributes, which count for the unmap too (`dma_map_single_attrs`). Any context.
    ///
    /// # Errors
    /// As [`DmaDevice::map_single`].
    #[track_caller]
    pub fn map_single_attrs<D: Direction>(
        &self,
        cpu: &Cpu<'_>,
        buf: KBuf,
        attrs: Attrs,
    ) -> Result<Mapped<KBuf, D>, MapError<KBuf>> {
        let terms = Terms { attrs, ..Terms::single(D::DIR) };
        match self.map_raw(cpu, &buf, terms) {
            Ok(raw) => Ok(self.mapped(raw, terms, buf)),
            Err(why) => Err(MapError { buf, why }),
        }
    }

    /// Gives `len` bytes from `offset` on of some pages to the device, of high memory too (`dma_map_page`). Any context.
    ///
    /// # Errors
    /// [`MapError`] with the pages and the reason.
    #[track_caller]
    pub fn map_page<D: Direction>(
        &self,
        cpu: &Cpu<'_>,
        pages: Pages,
        offset: u64,
        len: u64,
    ) -> Result<Mapped<Pages, D>, MapError<Pages>> {
        let terms = Terms::single(D::DIR);
        match self.map_part_of(cpu, &pages, (offset, len), terms) {
            Ok(raw) => Ok(self.mapped(raw, terms, pages)),
            Err(why) => Err(MapError { buf: pages, why }),
        }
    }

    #[track_caller]
    fn map_part_of(
        &self,
        cpu: &Cpu<'_>,
        pages: &Pages,
        (offset, len): (u64, u64),
        terms: Terms,
    ) -> Result<RawMapping, MapFailure> {
        if pages.kernel().get().is_none() {
            cpu.stale("block of pages");
            return Err(MapFailure::Stale);
        }
        let size = PAGE_SIZE << pages.order();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            let [offset, len, size] = [offset, len, size].map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
            return Err(OutOfBounds { offset, len, size }.into());
        }
        let orig = pages.phys().wrapping_add(offset);
        self.map_at(cpu, Piece { orig, len, owner: pages.owner() }, terms)
    }

    /// Lets the device reach another device's registers (`dma_map_resource`): never bounced. Any context.
    ///
    /// # Errors
    /// [`MapError`] with the reason.
    #[track_caller]
    pub fn map_resource<D: Direction>(
        &self,
        cpu: &Cpu<'_>,
        resource: Resource,
    ) -> Result<Mapped<Resource, D>, MapError<Resource>> {
        let terms = Terms { kind: MappingKind::Resource, ..Terms::single(D::DIR) };
        let piece = Piece { orig: resource.phys, len: resource.len, owner: cpu.owner() };
        match self.map_at(cpu, piece, terms) {
            Ok(raw) => Ok(self.mapped(raw, terms, resource)),
            Err(why) => Err(MapError { buf: resource, why }),
        }
    }

    /// [`DmaDevice::map_single`] for misuse: nobody asks whether it failed, and `DMA_MAPPING_ERROR` is an address.
    #[track_caller]
    pub(crate) fn map_blindly<D: Direction>(&self, cpu: &Cpu<'_>, buf: KBuf) -> Mapped<KBuf, D> {
        let failed = RawMapping { dma: DmaAddr::new(u64::MAX), len: buf.len() as u64, id: 0, bounced: false };
        let terms = Terms { checked: false, ..Terms::single(D::DIR) };
        let raw = self.map_raw(cpu, &buf, terms).unwrap_or(failed);
        self.mapped(raw, terms, buf)
    }

    pub(crate) fn mapped<B, D: Direction>(&self, raw: RawMapping, terms: Terms, buf: B) -> Mapped<B, D> {
        Mapped { device: self.clone(), raw, terms, buf: Some(buf), direction: PhantomData }
    }
}

impl<B, D: Direction> Mapped<B, D> {
    /// What the device must be told.
    pub fn dma_addr(&self) -> DmaAddr {
        self.raw.dma
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.raw.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.raw.len == 0
    }

    /// The transaction's number.
    pub fn id(&self) -> u64 {
        self.raw.id
    }

    /// Whether it lies in the bounce pool.
    pub fn bounced(&self) -> bool {
        self.raw.bounced
    }

    /// Takes the memory back from the device (`dma_unmap_single` and its like). Any context.
    ///
    /// ```
    /// # use lowzone_guest_mem::dma::{Mapped, ToDevice};
    /// # use lowzone_guest_mem::{Cpu, KBuf};
    /// fn written(cpu: &Cpu<'_>, mapped: Mapped<KBuf, ToDevice>) -> KBuf {
    ///     let len = mapped.len();
    ///     let buf = mapped.unmap(cpu);
    ///     assert_eq!(buf.len() as u64, len);
    ///     buf
    /// }
    /// ```
    #[track_caller]
    pub fn unmap(mut self, cpu: &Cpu<'_>) -> B {
        let owner = cpu.owner();
        let _ = cpu.point_for(Class::Release, self.raw.len, owner);
        match self.buf.take() {
            Some(buf) => {
                self.device.unmap_raw(self.raw.dma, self.raw.len, self.terms, owner);
                buf
            }
            // Only this method empties it, and it consumes the mapping.
            None => cpu.halt(crate::cpu::Halt::Dying),
        }
    }
}

impl<B, D: Direction> Mapped<B, D> {
    /// The memory without its mapping, which stays, for misuse.
    pub(crate) fn desert(mut self, cpu: &Cpu<'_>) -> B {
        // Only this method and `unmap` empty it, and they consume the mapping.
        self.buf.take().unwrap_or_else(|| cpu.halt(crate::cpu::Halt::Dying))
    }
}

impl<D: Direction> Mapped<KBuf, D> {
    /// Copies bytes out, whoever has them now, for misuse.
    #[track_caller]
    pub(crate) fn read_unsynced(&self, cpu: &Cpu<'_>, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        let buf = self.buf.as_ref().ok_or(OutOfBounds { offset, len: to.len(), size: 0 })?;
        buf.read_at(offset, to)?;
        let mapping = self.device.state.ledger.lock().live().find(|mapping| mapping.id == self.raw.id).copied();
        if let Some(mapping) = mapping {
            cpu_reads_unsynced(cpu.kernel(), self.device.name(), &mapping, (offset as u64, to.len()), cpu.owner());
        }
        Ok(())
    }

    /// Lends the buffer to the CPU until the window closes (`dma_sync_single_for_cpu` … `_for_device`). Any context.
    #[track_caller]
    pub fn sync_for_cpu<'m, 'w>(&'m mut self, cpu: &'m Cpu<'w>) -> Window<'m, 'w, D> {
        let len = self.raw.len;
        self.window(cpu, 0, len)
    }

    /// Lends `len` bytes from `offset` on to the CPU; the rest stays the device's (`dma_sync_single_range_for_cpu` …
    /// `_for_device`). Any context.
    ///
    /// # Errors
    /// [`OutOfBounds`] of what was mapped; nothing is lent then.
    #[track_caller]
    pub fn sync_range_for_cpu<'m, 'w>(
        &'m mut self,
        cpu: &'m Cpu<'w>,
        offset: usize,
        len: usize,
    ) -> Result<Window<'m, 'w, D>, OutOfBounds> {
        let size = usize::try_from(self.raw.len).unwrap_or(usize::MAX);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(OutOfBounds { offset, len, size });
        }
        Ok(self.window(cpu, offset as u64, len as u64))
    }

    #[track_caller]
    fn window<'m, 'w>(&'m mut self, cpu: &'m Cpu<'w>, from: u64, len: u64) -> Window<'m, 'w, D> {
        self.device.sync_raw(cpu, self.raw.dma.wrapping_add(from), len, true, self.terms);
        Window { mapped: self, cpu, from, len }
    }
}

impl Mapped<KBuf, ToDevice> {
    /// Copies bytes out: the device only reads them, so the CPU may too.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    #[track_caller]
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        match &self.buf {
            Some(buf) => buf.read_at(offset, to),
            None => Err(OutOfBounds { offset, len: to.len(), size: 0 }),
        }
    }
}

impl<B, D: Direction> Drop for Mapped<B, D> {
    fn drop(&mut self) {
        if self.buf.is_some() {
            self.device.unmap_raw(self.raw.dma, self.raw.len, self.terms, Owner::default());
        }
    }
}

/// The CPU's turn with a mapped buffer; the device's begins again when this drops.
#[must_use = "the device gets the buffer back when this is dropped"]
pub struct Window<'m, 'w, D: Direction> {
    mapped: &'m mut Mapped<KBuf, D>,
    cpu: &'m Cpu<'w>,
    from: u64,
    len: u64,
}

impl<D: Direction> Window<'_, '_, D> {
    /// Whether the CPU was lent `len` bytes at an offset in the buffer.
    fn holds(&self, offset: usize, len: usize) -> Result<(), OutOfBounds> {
        let inside = (offset as u64).checked_sub(self.from).and_then(|at| self.len.checked_sub(at));
        if inside.is_some_and(|left| len as u64 <= left) {
            return Ok(());
        }
        let size = usize::try_from(self.from + self.len).unwrap_or(usize::MAX);
        Err(OutOfBounds { offset, len, size })
    }
}

impl<D: DeviceWrites> Window<'_, '_, D> {
    /// Copies out what the device wrote, at an offset in the buffer.
    ///
    /// # Errors
    /// [`OutOfBounds`] of what was lent.
    #[track_caller]
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        self.holds(offset, to.len())?;
        match &self.mapped.buf {
            Some(buf) => buf.read_at(offset, to),
            None => Err(OutOfBounds { offset, len: to.len(), size: 0 }),
        }
    }
}

impl<D: DeviceReads> Window<'_, '_, D> {
    /// Copies in what the device will read, at an offset in the buffer.
    ///
    /// # Errors
    /// [`OutOfBounds`] of what was lent.
    #[track_caller]
    pub fn write_at(&mut self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        self.holds(offset, from.len())?;
        match &mut self.mapped.buf {
            Some(buf) => buf.write_at(offset, from),
            None => Err(OutOfBounds { offset, len: from.len(), size: 0 }),
        }
    }
}

impl<D: Direction> Drop for Window<'_, '_, D> {
    fn drop(&mut self) {
        let dma = self.mapped.raw.dma.wrapping_add(self.from);
        self.mapped.device.sync_raw(self.cpu, dma, self.len, false, self.mapped.terms);
    }
}
