//! What a disk hangs on: a PCI function, or a virtio device that no bus found.
//!
//! Neighbours: `disk`, which doesn't ask which; `virtio::VirtioDevice`. Left out: a device with one interrupt for all
//! its queues and no pin.

use std::sync::Arc;

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::dma::DmaDevice;

use crate::driver::ProbeError;
use crate::pci::{Msix, PciDevice};
use crate::virtio::{VirtioDevice, VirtioError};

/// What a disk hangs on.
pub(super) enum Host {
    /// A function of a PCI bus.
    Pci(Arc<PciDevice>),
    /// Something else, with interrupts of its own.
    Own(VirtioDevice),
}

/// Interrupts by vector, for as long as this lives.
pub(super) enum Held {
    /// MSI-X, turned off when this drops.
    Msix(Msix),
    /// The device's own, which stay.
    Own(Arc<[u32]>),
}

impl Held {
    /// The interrupt number of a vector.
    pub(super) fn irq(&self, vector: u16) -> Option<u32> {
        match self {
            Self::Msix(msix) => msix.irq(vector),
            Self::Own(irqs) => irqs.get(usize::from(vector)).copied(),
        }
    }
}

impl Host {
    /// The device as the DMA API sees it.
    pub(super) fn dma(&self) -> &DmaDevice {
        match self {
            Self::Pci(pci) => pci.dma(),
            Self::Own(device) => &device.dma,
        }
    }

    /// Takes `wanted` vectors. Process context.
    ///
    /// # Errors
    /// There are fewer.
    pub(super) fn vectors(&self, cpu: &Cpu<'_>, wanted: u16) -> Result<Held, ProbeError> {
        match self {
            Self::Pci(pci) => Ok(Held::Msix(pci.enable_msix(cpu, wanted)?)),
            Self::Own(device) if device.irqs.len() >= usize::from(wanted) => Ok(Held::Own(device.irqs.clone())),
            Self::Own(_) => Err(VirtioError::NoVector { index: wanted - 1, vector: wanted - 1 }.into()),
        }
    }

    /// The interrupt that everything shares where there are no vectors, and whose pin it is.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn line(&self) -> Result<(u32, Arc<PciDevice>), ProbeError> {
        match self {
            Self::Pci(pci) => Ok((pci.intx()?, pci.clone())),
            Self::Own(_) => Err(VirtioError::NoVector { index: 0, vector: 0 }.into()),
        }
    }

    /// Keeps the device from memory, whatever it does; a transport without a bus did all it can by its reset.
    pub(super) fn cut_off(&self) {
        if let Self::Pci(pci) = self {
            pci.disable();
        }
    }
}
