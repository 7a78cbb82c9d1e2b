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

use crate::addr::{DmaAddr, PhysAddr};
use crate::cpu::Cpu;
use crate::dma::device::DmaDevice;
use crate::dma::direction::{DeviceReads, DeviceWrites, Dir, Direction, ToDevice};
use crate::dma::ledger::Unmapped;
use crate::dma::mapping::{Kind as MappingKind, NewMapping};
use crate::dma::swiotlb::{Constraints, SwiotlbError};
use crate::env::{Class, Verdict};
use crate::kbuf::{KBuf, OutOfBounds};
use crate::kernel::Kernel;
use crate::site::{Owner, Site};
use crate::trace::Kind;

/// Why a mapping failed (`DMA_MAPPING_ERROR`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MapFailure {
    /// The world failed the point.
    #[error("no mapping for {len} bytes")]
    Refused {
        /// How many bytes.
        len: u64,
    },
    /// The bounce pool has no room.
    #[error(transparent)]
    Swiotlb(#[from] SwiotlbError),
    /// Out of reach, and no bounce pool, or the pool is out of reach too.
    #[error("{what} {addr}+{len} overflow (mask {mask:x}, bus limit 0).")]
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

/// A mapping by its numbers alone, as C code holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawMapping {
    /// What the device was told.
    pub dma: DmaAddr,
    /// How many bytes.
    pub len: u64,
    /// The transaction.
    pub id: u64,
    /// Whether it lies in the bounce pool.
    pub bounced: bool,
}

impl DmaDevice {
    /// Gives a buffer to the device (`dma_map_single`). Any context.
    ///
    /// # Errors
    /// [`MapError`] with the buffer and the reason.
    #[track_caller]
    pub fn map_single<D: Direction>(&self, cpu: &Cpu<'_>, buf: KBuf) -> Result<Mapped<KBuf, D>, MapError<KBuf>> {
        match self.map_raw(cpu, buf.phys(), buf.len() as u64, D::DIR, buf.owner()) {
            Ok(raw) => Ok(Mapped { device: self.clone(), raw, buf: Some(buf), direction: PhantomData }),
            Err(why) => Err(MapError { buf, why }),
        }
    }

    /// The mapping under [`DmaDevice::map_single`] and under misuse.
    #[track_caller]
    pub(crate) fn map_raw(
        &self,
        cpu: &Cpu<'_>,
        orig: PhysAddr,
        len: u64,
        dir: Dir,
        alloc_owner: Owner,
    ) -> Result<RawMapping, MapFailure> {
        let owner = cpu.owner();
        // A direct mapping always succeeds; one that bounces may find the pool full.
        let natural = !Self::capable(self.bus_address(orig), len, self.mask());
        let placed = if cpu.point_as(Class::Map, len, owner, natural) == Verdict::Fail {
            Err(MapFailure::Refused { len })
        } else {
            self.place(cpu, orig, len, owner)
        };
        let (phys, bounced) = match placed {
            Ok(placed) => placed,
            Err(why) => {
                self.state.counters.lock().map_failures += 1;
                cpu.trace(Kind::DmaMapPage, u64::MAX, usize::try_from(len).unwrap_or(0), self.index(), 0);
                return Err(why);
            }
        };
        let dma = self.bus_address(phys);
        let id = cpu.kernel().next_transaction();
        self.state.ledger.lock().map(NewMapping {
            id,
            dma,
            phys,
            orig,
            len,
            dir,
            kind: MappingKind::Single,
            bounced,
            map_owner: owner,
            alloc_owner,
            mapped_at: cpu.now(),
            checked: true,
        });
        self.state.counters.lock().maps += 1;
        cpu.trace(Kind::DmaMapPage, dma.get(), usize::try_from(len).unwrap_or(0), self.index(), id);
        Ok(RawMapping { dma, len, id, bounced })
    }

    /// Where the device will find the bytes: in place if it reaches them, else in the bounce pool.
    fn place(&self, cpu: &Cpu<'_>, orig: PhysAddr, len: u64, owner: Owner) -> Result<(PhysAddr, bool), MapFailure> {
        let mask = self.mask();
        let addr = self.bus_address(orig);
        if Self::capable(addr, len, mask) {
            return Ok((orig, false));
        }
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        let kernel = cpu.kernel();
        if kernel.swiotlb.lock().is_none() {
            warn_overflow(kernel, self, "DMA addr", addr, len);
            return Err(MapFailure::Overflow { what: "DMA addr", addr, len, mask });
        }
        cpu.trace(Kind::SwiotlbBounced, orig.get(), size, self.index(), 0);
        if cpu.point_for(Class::SwiotlbSlot, len, owner) == Verdict::Fail {
            return Err(MapFailure::Refused { len });
        }
        let slot = match kernel.swiotlb.lock().as_mut() {
            Some(pool) => pool.map(cpu.id(), orig, size, Constraints::default()),
            None => return Err(MapFailure::Overflow { what: "DMA addr", addr, len, mask }),
        };
        let slot = slot.inspect_err(|error| warn_full(kernel, self, *error))?;
        let bounce = self.bus_address(slot.phys);
        if !Self::capable(bounce, len, mask) {
            release_slots(kernel, slot.phys, len);
            warn_overflow(kernel, self, "swiotlb addr", bounce, len);
            return Err(MapFailure::Overflow { what: "swiotlb addr", addr: bounce, len, mask });
        }
        // Both lie in RAM: one is the caller's buffer, the other the pool.
        let _ = kernel.ram().copy(orig, slot.phys, size);
        let mut counters = self.state.counters.lock();
        counters.bounces += 1;
        counters.bounced_bytes += len;
        counters.bounced_slots += u64::from(slot.count);
        Ok((slot.phys, true))
    }

    /// The unmapping under [`Mapped::unmap`], its `Drop` and misuse.
    pub(crate) fn unmap_raw(&self, dma: DmaAddr, len: u64, dir: Dir, by: Owner) {
        let Some(kernel) = self.live_kernel() else { return };
        let unmapped = self.state.ledger.lock().unmap(dma, len, dir, MappingKind::Single, by, kernel.clock());
        if let Some(mapping) = &unmapped.mapping {
            if mapping.bounced {
                if dir.device_writes() {
                    self.copy(kernel, mapping.phys, mapping.orig, len.min(mapping.len));
                }
                release_slots(kernel, mapping.phys, len);
            }
            self.trace_release(Kind::DmaUnmapPage, dma, usize::try_from(len).unwrap_or(0), mapping.id);
        }
        report_unmap(self, &unmapped, by);
    }

    fn copy(&self, kernel: &Kernel, from: PhysAddr, to: PhysAddr, len: u64) {
        // Both lie in RAM: one is the caller's buffer, the other the pool.
        let _ = kernel.ram().copy(from, to, usize::try_from(len).unwrap_or(0));
        self.state.counters.lock().bounced_bytes += len;
    }

    /// Moves ownership of part of a mapping, with the copies that a bounce needs (`dma_sync_single_for_*`).
    #[track_caller]
    pub(crate) fn sync_raw(&self, cpu: &Cpu<'_>, dma: DmaAddr, len: u64, for_cpu: bool, dir: Dir) {
        let owner = cpu.owner();
        let (misuses, mapping) = {
            let mut ledger = self.state.ledger.lock();
            let synced = ledger.sync(dma, len, for_cpu, dir);
            (synced.misuses, synced.mapping.and_then(|id| ledger.get(id).copied()))
        };
        let kind = if for_cpu { Kind::DmaSyncForCpu } else { Kind::DmaSyncForDevice };
        let id = mapping.map_or(0, |m| m.id);
        cpu.trace(kind, dma.get(), usize::try_from(len).unwrap_or(0), self.index(), id);
        let copies = if for_cpu { dir.device_writes() } else { dir.device_reads() };
        if let Some(bounce) = mapping.filter(|m| m.bounced && copies).and_then(|m| m.translate(dma)) {
            self.sync_bounce(cpu.kernel(), bounce, len, for_cpu);
        }
        for misuse in misuses.iter() {
            let sites = mapping.map_or_else(Vec::new, |m| vec![("mapped at", m.map_owner)]);
            self.report(*misuse, sites, owner);
        }
    }

    /// Copies what a sync asks for, and no more than was mapped there.
    fn sync_bounce(&self, kernel: &Kernel, bounce: PhysAddr, len: u64, for_cpu: bool) {
        let origin = kernel.swiotlb.lock().as_ref().and_then(|pool| pool.lookup(bounce));
        let Some(origin) = origin else { return };
        let len = origin.fits(len).unwrap_or(origin.remaining);
        let (from, to) = if for_cpu { (bounce, origin.orig) } else { (origin.orig, bounce) };
        self.copy(kernel, from, to, len);
    }
}

fn release_slots(kernel: &Kernel, at: PhysAddr, len: u64) {
    if let Some(pool) = kernel.swiotlb.lock().as_mut() {
        // The ledger knew the mapping as bounced, so the pool knows it too; a wrong length is the ledger's to report.
        let _ = pool.unmap(at, len);
    }
}

pub(crate) fn report_unmap(device: &DmaDevice, unmapped: &Unmapped, by: Owner) {
    for misuse in unmapped.misuses.iter() {
        let sites = unmapped.mapping.as_ref().map_or_else(Vec::new, |m| vec![("mapped at", m.map_owner)]);
        device.report(*misuse, sites, by);
    }
}

/// `dev_warn_ratelimited`: not tracked, so that its place is this line for every caller.
fn warn_full(kernel: &Kernel, device: &DmaDevice, error: SwiotlbError) {
    kernel.log().ratelimited(kernel.clock(), Site::caller(), || format!("{}: {error}", device.name()));
}

/// WARN_ONCE for the whole kernel.
fn warn_overflow(kernel: &Kernel, device: &DmaDevice, what: &'static str, addr: DmaAddr, len: u64) {
    let failure = MapFailure::Overflow { what, addr, len, mask: device.mask() };
    kernel.log().once(kernel.clock(), Site::caller(), format!("{}: {failure}", device.name()));
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

    /// Lends the buffer to the CPU until the window closes (`dma_sync_single_for_cpu` … `_for_device`).
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
