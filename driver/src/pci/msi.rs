//! MSI of a function that has no MSI-X: one vector, kept in config space.
//!
//! Neighbours: the parent, which has MSI-X; `bus`, which gives vectors. Mirrors drivers/pci/msi/msi.c; PCI 3.0
//! section 6.8.1. Left out: several vectors, masking.

use std::sync::Arc;

use lowzone_guest_mem::env::{Class, Verdict};
use lowzone_guest_mem::finding::Resource;
use lowzone_guest_mem::iospace::Width;
use lowzone_guest_mem::kernel::KernelRef;
use lowzone_guest_mem::{Cpu, PhysAddr};

use super::{PciDevice, PciError, halves};
use crate::bus::{Bdf, PciBus, Vector};

pub(super) const CAP_MSI: u8 = 0x05;
const ENABLE: u32 = 1;
const WIDE: u32 = 1 << 7;

impl PciDevice {
    /// Takes a vector of CPU 0 and turns MSI on (`pci_alloc_irq_vectors` with `PCI_IRQ_MSI`). Process context.
    ///
    /// The vector is given back when the result drops.
    ///
    /// # Errors
    /// [`PciError`]: no capability, or no vector that fits into it.
    #[track_caller]
    pub fn enable_msi(&self, cpu: &Cpu<'_>) -> Result<Msi, PciError> {
        let cap = self.find_capability(CAP_MSI)?;
        let control = self.config_read(cap + 2, Width::B2);
        let none = PciError::NoVectors { at: self.at, wanted: 1, has: 0 };
        if cpu.point(Class::IrqVector, 0) == Verdict::Fail {
            return Err(none);
        }
        let vector = self.bus.alloc_vector(0).ok_or(none)?;
        cpu.kernel().irqs().set_device(vector.irq, self.dma.index());
        let id = cpu.kernel().register(Resource::Vector, PhysAddr::new(u64::from(vector.irq)), 0, cpu.owner());
        let msi = Msi { bus: self.bus.clone(), at: self.at, kernel: cpu.kernel_ref(), cap, vector, id };
        let (low, high) = halves(vector.addr);
        let wide = control & WIDE != 0;
        // It has 16 bits for data, and without the wide form 32 for the address.
        if vector.data > 0xffff || (high != 0 && !wide) {
            return Err(none);
        }
        self.config_write(cap + 4, Width::B4, low);
        if wide {
            self.config_write(cap + 8, Width::B4, high);
        }
        self.config_write(cap + if wide { 12 } else { 8 }, Width::B2, vector.data);
        self.config_write(cap + 2, Width::B2, control | ENABLE);
        Ok(msi)
    }

    /// [`PciDevice::enable_msi`] until the driver goes, as of a device that `pcim_enable_device` enabled; its interrupt
    /// number. Process context.
    ///
    /// # Errors
    /// As [`PciDevice::enable_msi`]; for want of the note there is no vector either.
    #[track_caller]
    pub fn pcim_enable_msi(&self, cpu: &Cpu<'_>) -> Result<u32, PciError> {
        let msi = self.enable_msi(cpu)?;
        let irq = msi.irq();
        let noted = self.devres.add_action_or_reset(cpu, "pcim_msi_release", move |_| drop(msi));
        noted.map(|()| irq).map_err(|_| PciError::NoVectors { at: self.at, wanted: 1, has: 0 })
    }
}

/// MSI turned on, with its vector; off again when dropped.
#[must_use = "MSI is turned off when this is dropped"]
pub struct Msi {
    bus: Arc<dyn PciBus>,
    at: Bdf,
    kernel: KernelRef,
    cap: u16,
    vector: Vector,
    id: u64,
}

impl Msi {
    /// Its interrupt number (`pci_irq_vector`).
    pub fn irq(&self) -> u32 {
        self.vector.irq
    }
}

impl Drop for Msi {
    fn drop(&mut self) {
        let control = self.bus.config_read(self.at, self.cap + 2, Width::B2);
        self.bus.config_write(self.at, self.cap + 2, Width::B2, control & !ENABLE);
        self.bus.free_vector(self.vector.irq);
        if let Some(kernel) = self.kernel.get() {
            kernel.unregister(self.id);
        }
    }
}
