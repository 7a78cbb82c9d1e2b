//! `Driver`: what the PCI core calls, and the binding of drivers to functions.
//!
//! All entry points take `&self`; state sits in the lab's locks. `remove` must leave nothing: interrupts freed, then
//! the device reset and its reset acknowledged, then memory unmapped, then freed. Mirrors drivers/base/dd.c and
//! drivers/pci/pci-driver.c. Left out: deferred probing, module reference counts.

use std::error::Error;
use std::sync::Arc;

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::dma::{CoherentError, MaskError};
use lowzone_guest_mem::iomem::IoremapError;
use lowzone_guest_mem::irq::IrqError;
use lowzone_guest_mem::percpu::PerCpuError;
use lowzone_guest_mem::zone::AllocError;
use thiserror::Error;

use crate::pci::{PciDevice, PciError, PciId};
use crate::virtio::VirtioError;

/// Why a probe failed; everything it took is given back by then.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// Config space or BARs.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// The platform doesn't serve the mask.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// Registers could not be mapped.
    #[error(transparent)]
    Ioremap(#[from] IoremapError),
    /// No memory.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// No per-CPU memory.
    #[error(transparent)]
    PerCpu(#[from] PerCpuError),
    /// No coherent memory.
    #[error(transparent)]
    Coherent(#[from] CoherentError),
    /// An interrupt could not be requested.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// The virtio transport or device.
    #[error(transparent)]
    Virtio(#[from] VirtioError),
    /// The function has the right numbers and other registers than the driver knows (`-ENODEV`).
    #[error("its id register reads {seen:#x}")]
    WrongId {
        /// What it reads.
        seen: u32,
    },
    /// What only this driver knows of.
    #[error("{source}")]
    Own {
        /// The errno that it returns, negative.
        errno: i32,
        /// What is wrong.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl ProbeError {
    /// A driver's own reason, with the errno that Linux's probe would return for it (`-19`: ENODEV).
    ///
    /// ```
    /// use lowzone_driver::ProbeError;
    /// let error = ProbeError::own(-19, std::fmt::Error);
    /// assert_eq!((error.errno(), error.to_string()), (-19, std::fmt::Error.to_string()));
    /// ```
    pub fn own(errno: i32, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Own { errno, source: Box::new(source) }
    }

    /// The errno that Linux's probe would return.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Pci(error) => error.errno(),
            Self::Mask(_) => -5,
            Self::Ioremap(_) | Self::Alloc(_) | Self::PerCpu(_) | Self::Coherent(_) => -12,
            Self::Irq(error) => error.errno(),
            Self::Virtio(error) => error.errno(),
            Self::WrongId { .. } => -19,
            Self::Own { errno, .. } => *errno,
        }
    }
}

/// A PCI driver.
pub trait Driver: Send + Sync {
    /// Its name, as in sysfs.
    fn name(&self) -> &'static str;

    /// The functions it serves.
    fn ids(&self) -> &'static [PciId];

    /// Takes a function into service. Process context.
    ///
    /// # Errors
    /// [`ProbeError`]; nothing is left behind then but managed resources, which are released after it.
    fn probe(&self, cpu: &Cpu<'_>, device: &Arc<PciDevice>) -> Result<(), ProbeError>;

    /// Takes it out of service and gives everything back. Process context.
    fn remove(&self, cpu: &Cpu<'_>, device: &PciDevice);

    /// Stops its DMA before the machine goes down; memory may stay. Process context.
    fn shutdown(&self, cpu: &Cpu<'_>, device: &PciDevice);
}

/// Probes `device` with the driver if its id matches (`pci_device_probe`); `Ok(false)` if it doesn't.
///
/// # Errors
/// The driver's own [`ProbeError`].
#[track_caller]
pub fn bind(cpu: &Cpu<'_>, driver: &dyn Driver, device: &Arc<PciDevice>) -> Result<bool, ProbeError> {
    if !driver.ids().contains(&device.id()) {
        return Ok(false);
    }
    let _span = cpu.span("probe");
    match driver.probe(cpu, device) {
        Ok(()) => Ok(true),
        Err(error) => {
            device.devres().release_all(cpu);
            device.dma().released(cpu);
            Err(error)
        }
    }
}

/// Removes the driver from `device` (`device_release_driver`): its managed resources go after it, and mappings left live are reported.
#[track_caller]
pub fn unbind(cpu: &Cpu<'_>, driver: &dyn Driver, device: &PciDevice) {
    {
        let _span = cpu.span("remove");
        driver.remove(cpu, device);
    }
    device.devres().release_all(cpu);
    device.dma().released(cpu);
}
