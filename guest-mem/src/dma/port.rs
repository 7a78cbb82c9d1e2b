//! `DmaPort`: the platform under a device, as a `GuestMemory`.
//!
//! Whatever the device asks for is translated from bus to physical address and held against the ledger: mapped, by
//! this device, in this direction, to the byte, and not the CPU's turn. What no live mapping allows is reported with
//! the call sites and goes through on any machine without an IOMMU: the wrong memory is really hit. An IOMMU refuses
//! what it doesn't know, and that is a finding of its own. Outside RAM nothing is reached. The port sees grants of slices,
//! not touches; it never gives out its memory whole (`physical_memory()` is `None`), and it must never be a
//! `GuestMemoryBackend`, whose default methods would bypass it. Device code runs on it unmodified: `virtio-queue` too.
//!
//! No CPU runs here: findings go to the kernel's own sink, with the kernel's clock.
//! Neighbours: `ledger`; `device::pci::BusMaster` sits on top. Left out: caches, which it goes past.

use std::iter::FusedIterator;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{GuestMemoryBackendSliceIterator, GuestMemorySliceIterator, Result as MemoryResult};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, Permissions, VolatileSlice};

use crate::addr::{DmaAddr, PhysAddr};
use crate::dma::device::DmaDevice;
use crate::dma::iommu::Pieces;
use crate::dma::ledger::{Verdict, Violation};
use crate::dma::mapping::Kind as MappingKind;
use crate::dma::posted::Posted;
use crate::finding::{Finding, FindingKind};
use crate::ram::{DirtyMap, RamMap};
use crate::site::Owner;
use crate::trace::{Kind, Producer, Record};

/// One device's way to memory; clones serve its other queues and share its ring of records.
///
/// ```
/// use lowzone_guest_mem::dma::{DmaDevice, DmaPort};
/// use lowzone_guest_mem::kernel::{Machine, MachineConfig};
/// use vm_memory::{Bytes, GuestAddress};
///
/// let machine = Machine::acquire(MachineConfig::default())?;
/// let port = DmaPort::new(&DmaDevice::new(machine.kernel_ref(), "0000:00:04.0"));
/// port.write_slice(&[1, 2, 3], GuestAddress(0x1000))?;
/// let finding = machine.kernel().findings().remove(0);
/// assert_eq!(finding.kind.name(), "not-mapped", "the memory was hit all the same");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct DmaPort {
    device: DmaDevice,
    producer: Producer,
}

impl DmaPort {
    /// The port of `device`; its records go to a ring of their own.
    pub fn new(device: &DmaDevice) -> Self {
        Self { device: device.clone(), producer: device.producer() }
    }

    /// The device it belongs to.
    pub fn device(&self) -> &DmaDevice {
        &self.device
    }

    /// Translates and checks one access; what no mapping allows is reported, and goes through all the same.
    ///
    /// Where it goes: the first piece of RAM, then others, which only an IOMMU makes. `None` below the bridge's window,
    /// after the machine was recycled, and where the IOMMU refuses.
    fn admit(&self, addr: GuestAddress, count: usize, access: Permissions) -> Option<((PhysAddr, usize), Pieces)> {
        let kernel = self.device.live_kernel()?;
        let (dma, len, now) = (DmaAddr::new(addr.0), count as u64, kernel.clock());
        let write = access.has_write();
        let weak = kernel.weak();
        if let Some(weak) = weak.filter(|_| !write) {
            weak.lock().device_reads(kernel.ram());
        }
        let (phys, id, violation) = match self.device.state.ledger.lock().admit(dma, len, write, now) {
            Verdict::Granted(mapping) => {
                let phys = mapping.translate(dma);
                if let (Some(weak), true, MappingKind::Coherent, Some(at)) = (weak, write, mapping.kind, phys) {
                    weak.lock().device_writes(kernel.ram(), at, count);
                }
                (phys, mapping.id, None)
            }
            Verdict::Refused(violation) => (None, 0, Some(violation)),
        };
        let id = violation.as_ref().and_then(Violation::mapping).map_or(id, |mapping| mapping.id);
        let kind = match (&violation, write) {
            (Some(_), _) => Kind::PortViolation,
            (None, true) => Kind::PortWrite,
            (None, false) => Kind::PortRead,
        };
        let len = u32::try_from(count).unwrap_or(u32::MAX);
        let record = Record { ts: now, addr: addr.0, len, kind, dev: self.device.index(), tag: id };
        kernel.trace().emit(self.producer, record);
        let sites = violation.map_or_else(Vec::new, |violation| self.report(violation));
        if self.device.domain().is_some() {
            return self.translate(dma, count, write, sites);
        }
        let phys = phys.or_else(|| self.device.phys_address(dma))?;
        Some(((phys, count), Pieces::new()))
    }

    /// What the IOMMU makes of an access.
    fn translate(&self, dma: DmaAddr, count: usize, write: bool, sites: Sites) -> Option<((PhysAddr, usize), Pieces)> {
        let kernel = self.device.kernel();
        let translated = self.device.domain()?.lock().translate(dma, count, write, kernel.clock());
        match translated {
            Ok(mut pieces) if pieces.is_empty() => Some(((PhysAddr::new(0), 0), std::mem::take(&mut pieces))),
            Ok(mut pieces) => Some((pieces.remove(0), pieces)),
            Err(fault) => {
                let device = Some(self.device.name().to_owned());
                let kind = FindingKind::IommuFault(fault);
                let finding = Finding { kind, device, at: kernel.clock(), sites };
                kernel.report_for(finding, self.producer, 0);
                None
            }
        }
    }

    /// Reports what no mapping allows; the call sites it named.
    #[cold]
    fn report(&self, violation: Violation) -> Sites {
        let kernel = self.device.kernel();
        let device = Some(self.device.name().to_owned());
        let posted = self.device.posted(violation.access().dma);
        let mut sites = sites(&violation);
        if let Posted::In(descriptor) = posted {
            sites.push(("posted at", descriptor.owner));
        }
        let kind = FindingKind::Port { violation, posted };
        let transaction = kind.transaction();
        kernel.report_for(
            Finding { kind, device, at: kernel.clock(), sites: sites.clone() },
            self.producer,
            transaction,
        );
        sites
    }
}

/// The call sites of a finding.
type Sites = Vec<(&'static str, Owner)>;

/// Those of the mapping that an access missed.
fn sites(violation: &Violation) -> Sites {
    let mut sites = Vec::new();
    if let Some(mapping) = violation.mapping() {
        sites.push(("mapped at", mapping.map_owner));
        if let Violation::AfterUnmap { dead, .. } = violation {
            sites.push(("unmapped at", dead.unmap_owner));
        }
        sites.push(("allocated at", mapping.alloc_owner));
    }
    sites
}

impl GuestMemory for DmaPort {
    type PhysicalMemory = RamMap;
    type Bitmap = DirtyMap;

    /// Whether memory is there: a question, not an access, so nothing is judged or recorded.
    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        let Some(kernel) = self.device.live_kernel() else { return false };
        let dma = DmaAddr::new(addr.0);
        if let Some(domain) = self.device.domain() {
            return domain.lock().translate(dma, count, access.has_write(), kernel.clock()).is_ok();
        }
        let phys = self.device.phys_address(dma);
        phys.is_some_and(|phys| kernel.ram().contains(phys, count as u64))
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> vm_memory::guest_memory::Result<impl GuestMemorySliceIterator<'a, BS<'a, DirtyMap>>> {
        let admitted = self.admit(addr, count, access).ok_or(GuestMemoryError::InvalidGuestAddress(addr))?;
        let ((phys, len), rest) = admitted;
        let ram = self.device.kernel().ram().map();
        let now = GuestMemoryBackend::get_slices(ram, GuestAddress(phys.get()), len);
        Ok(Slices { ram, now, rest: rest.into_iter() })
    }
}

/// The slices of one access: piece after piece, of which there is one but behind an IOMMU.
struct Slices<'a> {
    ram: &'a RamMap,
    now: GuestMemoryBackendSliceIterator<'a, RamMap>,
    rest: std::vec::IntoIter<(PhysAddr, usize)>,
}

impl<'a> Iterator for Slices<'a> {
    type Item = MemoryResult<VolatileSlice<'a, BS<'a, DirtyMap>>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(slice) = self.now.next() {
                if slice.is_err() {
                    // Registers: nothing beyond them is reached, or it would be taken for what lies there.
                    self.rest = Vec::new().into_iter();
                }
                return Some(slice);
            }
            let (phys, len) = self.rest.next()?;
            self.now = GuestMemoryBackend::get_slices(self.ram, GuestAddress(phys.get()), len);
        }
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, BS<'a, DirtyMap>> for Slices<'a> {}

#[cfg(test)]
mod tests;
