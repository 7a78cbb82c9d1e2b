//! Streaming DMA: a buffer goes to the device and comes back.
//!
//! [`DmaDevice::map_single`] takes the buffer and gives a [`Mapped`]; a failed map gives the buffer back. While
//! mapped the CPU has no write access at all, and read access only to what the device merely reads;
//! [`Mapped::sync_for_cpu`] opens a window that gives the buffer back to the device when it closes. What the mask
//! can't reach is bounced through the swiotlb, with its copies exactly where Linux 6.1 makes them: every map copies
//! in, whatever the direction; unmap and sync-for-cpu copy back where the device may write.
//!
//! Mapping, syncing and unmapping never sleep: any context. Mirrors kernel/dma/direct.h and swiotlb.c.
//! Neighbours: `device`, `swiotlb`, `ledger`. Left out: pages of high memory, scatter-gather, attributes.

use std::marker::PhantomData;

use thiserror::Error;

use crate::addr::DmaAddr;
use crate::cpu::Cpu;
use crate::dma::device::DmaDevice;
use crate::dma::direction::{DeviceReads, DeviceWrites, Direction, ToDevice};
use crate::dma::iommu::IovaError;
use crate::dma::swiotlb::SwiotlbError;
use crate::env::Class;
use crate::kbuf::{KBuf, OutOfBounds};
use crate::site::Owner;

mod raw;
#[cfg(test)]
mod tests;

pub use raw::RawMapping;
pub(crate) use raw::report_unmap;

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
    /// `None` only after `unmap` took it.
    buf: Option<B>,
    direction: PhantomData<D>,
}

impl DmaDevice {
    /// Gives a buffer to the device (`dma_map_single`). Any context.
    ///
    /// # Errors
    /// [`MapError`] with the buffer and the reason.
    #[track_caller]
    pub fn map_single<D: Direction>(&self, cpu: &Cpu<'_>, buf: KBuf) -> Result<Mapped<KBuf, D>, MapError<KBuf>> {
        match self.map_raw(cpu, &buf, D::DIR, true) {
            Ok(raw) => Ok(Mapped { device: self.clone(), raw, buf: Some(buf), direction: PhantomData }),
            Err(why) => Err(MapError { buf, why }),
        }
    }

    /// [`DmaDevice::map_single`] for misuse: nobody asks whether it failed, and `DMA_MAPPING_ERROR` is an address.
    #[track_caller]
    pub(crate) fn map_blindly<D: Direction>(&self, cpu: &Cpu<'_>, buf: KBuf) -> Mapped<KBuf, D> {
        let failed = RawMapping { dma: DmaAddr::new(u64::MAX), len: buf.len() as u64, id: 0, bounced: false };
        let raw = self.map_raw(cpu, &buf, D::DIR, false).unwrap_or(failed);
        Mapped { device: self.clone(), raw, buf: Some(buf), direction: PhantomData }
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
}

impl<D: Direction> Mapped<KBuf, D> {
    /// Takes the buffer back from the device (`dma_unmap_single`). Any context.
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
    pub fn unmap(mut self, cpu: &Cpu<'_>) -> KBuf {
        let owner = cpu.owner();
        let _ = cpu.point_for(Class::Release, self.raw.len, owner);
        match self.buf.take() {
            Some(buf) => {
                self.device.unmap_raw(self.raw.dma, self.raw.len, D::DIR, owner);
                buf
            }
            // Only this method empties it, and it consumes the mapping.
            None => cpu.halt(crate::cpu::Halt::Dying),
        }
    }

    /// Lends the buffer to the CPU until the window closes (`dma_sync_single_for_cpu` … `_for_device`). Any context.
    #[track_caller]
    pub fn sync_for_cpu<'m, 'w>(&'m mut self, cpu: &'m Cpu<'w>) -> Window<'m, 'w, D> {
        self.device.sync_raw(cpu, self.raw.dma, self.raw.len, true, D::DIR);
        Window { mapped: self, cpu }
    }
}

impl Mapped<KBuf, ToDevice> {
    /// Copies bytes out: the device only reads them, so the CPU may too.
    ///
    /// # Errors
    /// [`OutOfBounds`].
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
            self.device.unmap_raw(self.raw.dma, self.raw.len, D::DIR, Owner::default());
        }
    }
}

/// The CPU's turn with a mapped buffer; the device's begins again when this drops.
#[must_use = "the device gets the buffer back when this is dropped"]
pub struct Window<'m, 'w, D: Direction> {
    mapped: &'m mut Mapped<KBuf, D>,
    cpu: &'m Cpu<'w>,
}

impl<D: DeviceWrites> Window<'_, '_, D> {
    /// Copies out what the device wrote.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        match &self.mapped.buf {
            Some(buf) => buf.read_at(offset, to),
            None => Err(OutOfBounds { offset, len: to.len(), size: 0 }),
        }
    }
}

impl<D: DeviceReads> Window<'_, '_, D> {
    /// Copies in what the device will read.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn write_at(&mut self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        match &mut self.mapped.buf {
            Some(buf) => buf.write_at(offset, from),
            None => Err(OutOfBounds { offset, len: from.len(), size: 0 }),
        }
    }
}

impl<D: Direction> Drop for Window<'_, '_, D> {
    fn drop(&mut self) {
        let (dma, len) = (self.mapped.raw.dma, self.mapped.raw.len);
        self.mapped.device.sync_raw(self.cpu, dma, len, false, D::DIR);
    }
}
