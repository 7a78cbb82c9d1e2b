//! `DmaDevice`: a device as the DMA API sees it: its masks, its ledger, its counters.
//!
//! The bus makes one for each function it finds, with the 32-bit masks that PCI gives; the masks belong to the device
//! and survive unbind and rebind. [`DmaDevice::set_mask`] has `dma_set_mask`'s return codes. Mirrors
//! kernel/dma/mapping.c and direct.c. Neighbours: `coherent`, `streaming`, `port`, all of which hang on it.
//! `parms` has what a device says of its segments. Left out: per-device pools.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::addr::{DmaAddr, PAGE_SIZE, PhysAddr};
use crate::cpu::Cpu;
use crate::dma::direction::Dir;
use crate::dma::iommu::{Domain, IovaError, ListPart};
use crate::dma::ledger::{Ledger, Misuse};
use crate::dma::mapping::{Kind as MappingKind, Mapping, NewMapping};
use crate::dma::parms::Parms;
use crate::dma::posted::Heads;
use crate::dma::swiotlb::Pool;
use crate::env::{Class, Verdict};
use crate::finding::{Finding, FindingKind};
use crate::gfp::{GFP_DMA, GFP_DMA32, Gfp};
use crate::kbuf::KBuf;
use crate::kernel::{Kernel, KernelRef};
use crate::lock::Locked;
use crate::site::Owner;
use crate::trace::{Kind, Producer, Record, Shape, owner_word};

/// Highest address of ZONE_DMA: the smallest mask that the direct mapping serves.
const ZONE_DMA_LAST: u64 = (1 << 24) - 1;
/// The longest range of addresses that is cached (`iova_rcache_range`).
const IOVA_CACHED: u64 = PAGE_SIZE << 5;

/// A mask of the lowest `bits` bits (`DMA_BIT_MASK`).
///
/// ```
/// use lowzone_guest_mem::dma::dma_bit_mask;
///
/// assert_eq!((dma_bit_mask(32), dma_bit_mask(64)), (0xffff_ffff, u64::MAX));
/// ```
pub const fn dma_bit_mask(bits: u8) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// A mask that the platform can't serve (`-EIO`); the old one stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("DMA mask {mask:#x} is not supported (-EIO)")]
pub struct MaskError {
    /// The mask asked for.
    pub mask: u64,
}

/// What a device cost and moved, since the machine began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DmaCounters {
    /// Streaming mappings made.
    pub maps: u64,
    /// Of them, bounced.
    pub bounces: u64,
    /// Mappings refused.
    pub map_failures: u64,
    /// Bytes that the bounce pool copied, both ways.
    pub bounced_bytes: u64,
    /// Slots that bounced mappings took, added up.
    pub bounced_slots: u64,
    /// Coherent allocations made.
    pub coherent: u64,
    /// The most mappings that were live after a map call, coherent memory among them.
    pub peak: u64,
}

/// What lies between a device and RAM.
#[derive(Debug)]
pub(crate) enum Platform {
    /// Bus addresses are physical ones, or lie a fixed distance from them.
    Direct,
    /// The device has a space of addresses of its own.
    Iommu(Box<Locked<Domain>>),
}

/// The shared half of a [`DmaDevice`].
#[derive(Debug)]
pub struct DeviceState {
    kernel: KernelRefDebug,
    name: String,
    index: u16,
    mask: AtomicU64,
    coherent_mask: AtomicU64,
    pub(crate) platform: Platform,
    /// What a bus sets up for its functions: a mask to set (`dev->dma_mask`), and `dma_parms`.
    pub(crate) parms: Option<Parms>,
    pub(crate) ledger: Locked<Ledger>,
    /// The queues of its driver, for the port.
    pub(crate) rings: Locked<Vec<Arc<Heads>>>,
    pub(crate) counters: Locked<DmaCounters>,
}

/// `KernelRef` prints as nothing useful; this keeps `DeviceState: Debug` without showing host addresses.
struct KernelRefDebug(KernelRef);

impl std::fmt::Debug for KernelRefDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("kernel")
    }
}

impl DeviceState {
    /// The device's name on its bus.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its own address space, if it has one.
    #[inline]
    pub(crate) fn domain(&self) -> Option<&Locked<Domain>> {
        match &self.platform {
            Platform::Direct => None,
            Platform::Iommu(domain) => Some(domain),
        }
    }
}

/// A device that does DMA; clones are handles to the same one.
///
/// ```
/// use lowzone_guest_mem::dma::DmaDevice;
/// use lowzone_guest_mem::kernel::{Machine, MachineConfig};
///
/// let machine = Machine::acquire(MachineConfig::default())?;
/// let device = DmaDevice::new(machine.kernel_ref(), "0000:00:04.0");
/// assert_eq!((device.mask(), device.required_mask()), (0xffff_ffff, 0x1_ffff_ffff));
/// assert!(device.addressing_limited());
/// assert_eq!(device.max_mapping_size(), 256 << 10, "what lies too high is bounced");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct DmaDevice {
    pub(crate) state: Arc<DeviceState>,
}

impl DmaDevice {
    /// Books a device that the bus found, with 32-bit masks.
    ///
    /// A handle of a recycled machine gives a device that is booked nowhere and can do nothing.
    #[track_caller]
    pub fn new(kernel: KernelRef, name: &str) -> Self {
        Self::booked(kernel, name, Some(Parms::default()), dma_bit_mask(32))
    }

    /// Books a device that no bus has prepared for DMA: it has no mask to set, no `dma_parms`, and maps nothing.
    #[track_caller]
    pub fn bare(kernel: KernelRef, name: &str) -> Self {
        Self::booked(kernel, name, None, 0)
    }

    #[track_caller]
    fn booked(kernel: KernelRef, name: &str, parms: Option<Parms>, mask: u64) -> Self {
        let live = kernel.get_or_report("machine");
        let devices = live.map_or(0, |kernel| kernel.devices.lock().len());
        let mode = live.and_then(|kernel| kernel.config().iommu);
        let state = Arc::new(DeviceState {
            kernel: KernelRefDebug(kernel),
            name: name.to_owned(),
            index: u16::try_from(devices + 1).unwrap_or(u16::MAX),
            mask: AtomicU64::new(mask),
            coherent_mask: AtomicU64::new(mask),
            parms,
            platform: mode.map_or(Platform::Direct, |mode| Platform::Iommu(Box::new(Locked::new(Domain::new(mode))))),
            ledger: Locked::default(),
            rings: Locked::default(),
            counters: Locked::default(),
        });
        if let Some(kernel) = live {
            kernel.devices.lock().push(state.clone());
        }
        Self { state }
    }

    /// Its name on its bus.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Its number in event records, from 1.
    pub fn index(&self) -> u16 {
        self.state.index
    }

    /// Who makes the records of what the device does: its own ring, after those of the CPUs.
    pub fn producer(&self) -> Producer {
        Producer(u16::try_from(self.kernel().config().cpus).unwrap_or(0) + self.index())
    }

    /// The streaming mask; 0 of a device that has none to set.
    pub fn mask(&self) -> u64 {
        self.state.mask.load(Ordering::Relaxed)
    }

    /// The coherent mask.
    pub fn coherent_mask(&self) -> u64 {
        self.state.coherent_mask.load(Ordering::Relaxed)
    }

    /// Whether it has a streaming mask (`dev->dma_mask`).
    pub(crate) fn has_mask(&self) -> bool {
        self.state.parms.is_some()
    }

    /// What it cost so far.
    pub fn counters(&self) -> DmaCounters {
        *self.state.counters.lock()
    }

    /// Promises that the device decodes `mask` in streaming mappings (`dma_set_mask`). Not in hardirq.
    ///
    /// # Errors
    /// [`MaskError`] if RAM that the mask reaches doesn't exist as a zone, or the world fails the point.
    #[track_caller]
    pub fn set_mask(&self, cpu: &Cpu<'_>, mask: u64) -> Result<(), MaskError> {
        self.check_mask(cpu, mask)?;
        if !self.has_mask() {
            return Err(MaskError { mask });
        }
        self.state.mask.store(mask, Ordering::Relaxed);
        Ok(())
    }

    /// Promises that the device decodes `mask` in coherent memory (`dma_set_coherent_mask`). Not in hardirq.
    ///
    /// # Errors
    /// As [`DmaDevice::set_mask`].
    #[track_caller]
    pub fn set_coherent_mask(&self, cpu: &Cpu<'_>, mask: u64) -> Result<(), MaskError> {
        self.check_mask(cpu, mask)?;
        self.state.coherent_mask.store(mask, Ordering::Relaxed);
        Ok(())
    }

    /// Both masks (`dma_set_mask_and_coherent`): the first's result counts. Context as [`DmaDevice::set_mask`].
    ///
    /// # Errors
    /// As [`DmaDevice::set_mask`].
    #[track_caller]
    pub fn set_mask_and_coherent(&self, cpu: &Cpu<'_>, mask: u64) -> Result<(), MaskError> {
        self.set_mask(cpu, mask)?;
        // What serves one mask serves the other; Linux ignores this result too.
        let _ = self.set_coherent_mask(cpu, mask);
        Ok(())
    }

    #[track_caller]
    fn check_mask(&self, cpu: &Cpu<'_>, mask: u64) -> Result<(), MaskError> {
        cpu.wrong_context(cpu.in_hardirq(), "dma_set_mask", None);
        if cpu.point(Class::Mask, mask) == Verdict::Fail {
            return Err(MaskError { mask });
        }
        if self.domain().is_some() {
            return Ok(());
        }
        let last = self.kernel().ram().end() - PAGE_SIZE;
        let least = self.bus_address(PhysAddr::new(last.min(ZONE_DMA_LAST)));
        if mask >= dma_bit_mask(32) || mask >= least.get() { Ok(()) } else { Err(MaskError { mask }) }
    }

    /// All ones up to the highest RAM address (`dma_get_required_mask`); 32 bits behind an IOMMU.
    pub fn required_mask(&self) -> u64 {
        if self.domain().is_some() {
            return dma_bit_mask(32);
        }
        let last = self.bus_address(PhysAddr::new(self.kernel().ram().end() - 1)).get();
        u64::MAX.checked_shr(last.leading_zeros()).unwrap_or(0)
    }

    /// Whether some RAM is out of the device's reach (`dma_addressing_limited`).
    pub fn addressing_limited(&self) -> bool {
        self.mask() < self.required_mask()
    }

    /// The largest streaming mapping (`dma_max_mapping_size`): 256 KiB where a bounce may be needed, less what
    /// `min_align_mask` may take.
    pub fn max_mapping_size(&self) -> u64 {
        let pool = self.kernel().swiotlb.lock().is_some();
        let bounces = pool && (self.addressing_limited() || self.bounces_all());
        if bounces { Pool::max_mapping_size(self.min_align_mask().into()) } else { u64::MAX }
    }

    /// The largest mapping that is worth its price (`dma_opt_mapping_size`): the largest there is, or what an IOMMU's
    /// allocator of addresses caches.
    pub fn opt_mapping_size(&self) -> u64 {
        let worth = if self.domain().is_some() { IOVA_CACHED } else { u64::MAX };
        self.max_mapping_size().min(worth)
    }

    /// Whether syncs do anything for what is mapped at a bus address (`dma_need_sync`): where it bounced, where there
    /// are caches that the device doesn't see, and behind an IOMMU, which isn't asked.
    pub fn need_sync(&self, addr: DmaAddr) -> bool {
        if self.domain().is_some() || !self.kernel().config().coherent {
            return true;
        }
        let pool = self.kernel().swiotlb.lock();
        self.phys_address(addr).is_some_and(|phys| pool.as_ref().is_some_and(|pool| pool.holds(phys)))
    }

    /// Whether every mapping bounces (`is_swiotlb_force_bounce`).
    pub(crate) fn bounces_all(&self) -> bool {
        self.kernel().config().swiotlb_force
    }

    pub(crate) fn kernel(&self) -> &'static Kernel {
        self.state.kernel.0.get_unchecked()
    }

    /// The kernel, unless its machine was recycled since.
    #[inline]
    pub(crate) fn live_kernel(&self) -> Option<&'static Kernel> {
        self.state.kernel.0.get()
    }

    /// The kernel, if neither the device nor `buf` is of an earlier machine; else a finding.
    #[track_caller]
    pub(crate) fn live_for(&self, cpu: &Cpu<'_>, buf: Option<&KBuf>) -> Option<&'static Kernel> {
        let kernel = self.live_kernel();
        if kernel.is_none() {
            cpu.stale("DMA device");
        } else if buf.is_some_and(KBuf::is_stale) {
            cpu.stale("buffer");
            return None;
        }
        kernel
    }

    /// What the device must put on its bus to reach `phys` (`phys_to_dma`).
    pub(crate) fn bus_address(&self, phys: PhysAddr) -> DmaAddr {
        DmaAddr::new(phys.get().wrapping_add(self.kernel().config().dma_offset))
    }

    /// What a bus address reaches, or `None` below the bridge's window (`dma_to_phys`).
    pub(crate) fn phys_address(&self, addr: DmaAddr) -> Option<PhysAddr> {
        addr.get().checked_sub(self.kernel().config().dma_offset).map(PhysAddr::new)
    }

    /// The device's own address space, if it has one.
    #[inline]
    pub(crate) fn domain(&self) -> Option<&Locked<Domain>> {
        self.state.domain()
    }

    /// Makes memory that the device reaches visible to it: its bus address.
    pub(crate) fn enter(&self, phys: PhysAddr, len: u64, dir: Dir, mask: u64) -> Result<DmaAddr, IovaError> {
        match self.domain() {
            None => Ok(self.bus_address(phys)),
            Some(domain) => domain.lock().map(phys, len, dir, mask, self.kernel().clock()),
        }
    }

    /// Makes a list visible in one range of so many bytes, of an IOMMU only: where it begins.
    pub(crate) fn enter_list(&self, parts: &[ListPart], range: u64, dir: Dir) -> Result<DmaAddr, IovaError> {
        let (pages, mask) = (range / PAGE_SIZE, self.mask());
        let domain = self.domain().ok_or(IovaError { pages, mask })?;
        domain.lock().map_list(parts, pages, dir, mask, self.kernel().clock())
    }

    /// What lies behind a range, where that may be several pieces and anybody asks: behind an IOMMU, under caches.
    pub(crate) fn scattered(&self, kernel: &Kernel, dma: DmaAddr, len: u64) -> Vec<(PhysAddr, u64)> {
        match self.domain() {
            Some(domain) if !kernel.config().coherent => domain.lock().pieces(dma, len),
            _ => Vec::new(),
        }
    }

    /// Ends what [`DmaDevice::enter`] began.
    pub(crate) fn leave(&self, dma: DmaAddr, len: u64) {
        if let Some(domain) = self.domain() {
            domain.lock().unmap(dma, len, self.kernel().clock());
        }
    }

    /// What lies behind a bus address that was mapped.
    pub(crate) fn behind(&self, dma: DmaAddr) -> Option<PhysAddr> {
        match self.domain() {
            None => self.phys_address(dma),
            Some(domain) => domain.lock().lookup(dma),
        }
    }

    /// Whether `len` bytes at `addr` are within `mask` (`dma_capable`).
    pub(crate) fn capable(addr: DmaAddr, len: u64, mask: u64) -> bool {
        addr.get().checked_add(len.saturating_sub(1)).is_some_and(|last| last <= mask)
    }

    /// The zone bit that memory within `mask` needs (`dma_direct_optimal_gfp_mask`).
    pub(crate) fn zone_bits(&self, mask: u64) -> Gfp {
        let limit = mask.saturating_sub(self.kernel().config().dma_offset);
        if limit <= ZONE_DMA_LAST {
            GFP_DMA
        } else if limit <= dma_bit_mask(32) {
            GFP_DMA32
        } else {
            Gfp::empty()
        }
    }

    /// Reports misuse of this device's mappings.
    pub(crate) fn report(&self, misuse: Misuse, of: Option<&Mapping>, by: Owner) {
        let mut sites = of.map_or_else(Vec::new, |mapping| vec![("mapped at", mapping.map_owner)]);
        sites.insert(0, ("at", by));
        let at = self.kernel().clock();
        let device = Some(self.name().to_owned());
        let finding = Finding { kind: FindingKind::Dma(misuse), device, at, sites };
        self.kernel().report_for(finding, crate::cpu::current(), of.map_or(0, |mapping| mapping.id));
    }

    /// Writes a record for a release, which may come from `Drop` and so has no CPU; `copied` bytes bounced for it.
    pub(crate) fn trace_release(&self, event: (Kind, DmaAddr, u64), id: u64, copied: u64, by: Owner) {
        let (kind, dma, len) = event;
        let (trace, who) = (self.kernel().trace(), crate::cpu::current());
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let record = Record { ts: self.kernel().clock(), addr: dma.get(), len, kind, dev: self.index(), tag: id };
        let bounced = u32::try_from(copied).unwrap_or(u32::MAX);
        let caller = Record { addr: 0, len: bounced, kind: Kind::By, tag: owner_word(by), ..record };
        trace.emit_with(who, record, (by != Owner::default() || copied > 0).then_some(caller));
    }

    /// Writes the records of a map call: the event, then what the device reaches and the buffer behind it.
    pub(crate) fn trace_mapping(&self, cpu: &Cpu<'_>, kind: Kind, mapping: &NewMapping) {
        let arch = self.kernel().config().arch;
        let shape = Shape {
            dir: mapping.dir,
            bounced: mapping.bounced,
            coherent: mapping.kind == MappingKind::Coherent,
            zone: arch.zone_of(mapping.phys),
            buffer_zone: arch.zone_of(mapping.orig),
        };
        let (dev, len) = (self.index(), usize::try_from(mapping.len).unwrap_or(usize::MAX));
        let reached = (Kind::Mapping, mapping.phys.get(), shape.pack(), mapping.map_owner);
        let behind = (Kind::Buffer, mapping.orig.get(), 0, mapping.alloc_owner);
        cpu.trace_with((kind, mapping.dma.get(), len), dev, mapping.id, &[reached, behind]);
    }

    /// The driver was shut down for the next kernel, whose memory this is from now on (`device_shutdown`): each access of
    /// the device is reported until the driver lets go of it. Any context.
    pub fn shut_down(&self) {
        self.state.ledger.lock().set_shut_down(true);
    }

    /// The driver lets go of the device: what is still mapped is reported (`dma_debug_device_change`). Any context.
    #[track_caller]
    pub fn released(&self, cpu: &Cpu<'_>) {
        let (pending, owners) = {
            let mut ledger = self.state.ledger.lock();
            ledger.set_shut_down(false);
            (ledger.pending(), ledger.live().next().map(|m| (m.map_owner, m.alloc_owner)))
        };
        if let (Some(pending), Some((mapped, allocated))) = (pending, owners) {
            let sites = vec![("mapped at", mapped), ("allocated at", allocated), ("released at", cpu.owner())];
            cpu.emit(FindingKind::Dma(pending), Some(self.name().to_owned()), sites);
        }
    }

    /// The live transaction that a bus address belongs to, or 0.
    pub fn transaction_at(&self, addr: DmaAddr) -> u64 {
        let ledger = self.state.ledger.lock();
        ledger.live().find(|m| m.covers(addr, 1)).map_or(0, |m| m.id)
    }

    /// Who mapped the memory that a bus address belongs to, for attribution: `(mapped at, allocated at)`.
    pub fn mapped_by(&self, addr: DmaAddr) -> Option<(Owner, Owner)> {
        let ledger = self.state.ledger.lock();
        ledger.live().find(|m| m.covers(addr, 1)).map(|m| (m.map_owner, m.alloc_owner))
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
