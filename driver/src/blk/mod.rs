//! The virtio block driver.
//!
//! [`BlkDriver`] binds to every virtio block function, or to a device over another transport, and makes a [`Disk`] of
//! each. Rings, headers and status bytes are coherent, data is streaming (or whatever the caller shares). Mirrors drivers/block/virtio_blk.c; virtio 1.2,
//! 5.2. Neighbours: `virtio`, `pci`. Left out: partitions, request merging, recovery after NEEDS_RESET.

pub mod clear;
pub mod disk;
mod host;
pub mod queue;
pub mod request;

use std::sync::Arc;

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::lock::Locked;

pub use clear::{ClearError, ClearLimits, SectorRange};
pub use disk::{BlkOptions, Disk, RingPlace};
pub use queue::{BlkQueue, Pending, QueueStats};
pub use request::{BlkError, Completed, Data, Op, Request, SECTOR, SubmitError, SubmitFailure};

use crate::bus::Bdf;
use crate::driver::{Driver, ProbeError};
use crate::pci::{PciDevice, PciId};
use crate::virtio::VirtioDevice;

/// The driver, with the disks it serves.
pub struct BlkDriver {
    options: BlkOptions,
    disks: Locked<Vec<(Bdf, Arc<Disk>)>>,
}

impl BlkDriver {
    /// A driver that probes with these options.
    pub fn new(options: BlkOptions) -> Self {
        Self { options, disks: Locked::default() }
    }

    /// The disk made of the function at `at`.
    pub fn disk(&self, at: Bdf) -> Option<Arc<Disk>> {
        self.disks.lock().iter().find(|(place, _)| *place == at).map(|(_, disk)| disk.clone())
    }

    /// Takes a device into service that no PCI bus found; its disk is known by `at`. Process context.
    ///
    /// # Errors
    /// [`ProbeError`]; nothing is left behind then.
    #[track_caller]
    pub fn probe_virtio(&self, cpu: &Cpu<'_>, at: Bdf, device: &VirtioDevice) -> Result<(), ProbeError> {
        let _span = cpu.span("probe");
        match Disk::probe_virtio(cpu, device, &self.options) {
            Ok(disk) => {
                self.disks.lock().push((at, Arc::new(disk)));
                Ok(())
            }
            Err(error) => {
                device.dma.released(cpu);
                Err(error)
            }
        }
    }

    /// Takes it out of service again; mappings left live are reported. Process context.
    #[track_caller]
    pub fn remove_virtio(&self, cpu: &Cpu<'_>, at: Bdf, device: &VirtioDevice) {
        {
            let _span = cpu.span("remove");
            if let Some(disk) = self.take(at) {
                disk.tear_down(cpu);
            }
        }
        device.dma.released(cpu);
    }

    fn take(&self, at: Bdf) -> Option<Arc<Disk>> {
        let mut disks = self.disks.lock();
        let index = disks.iter().position(|(place, _)| *place == at)?;
        Some(disks.remove(index).1)
    }
}

impl Driver for BlkDriver {
    fn name(&self) -> &'static str {
        "virtio_blk"
    }

    fn ids(&self) -> &'static [PciId] {
        &[PciId { vendor: 0x1af4, device: 0x1042 }]
    }

    fn probe(&self, cpu: &Cpu<'_>, device: &Arc<PciDevice>) -> Result<(), ProbeError> {
        let disk = Disk::probe(cpu, device, &self.options)?;
        self.disks.lock().push((device.at(), Arc::new(disk)));
        Ok(())
    }

    fn remove(&self, cpu: &Cpu<'_>, device: &PciDevice) {
        if let Some(disk) = self.take(device.at()) {
            disk.tear_down(cpu);
        }
    }

    fn shutdown(&self, cpu: &Cpu<'_>, device: &PciDevice) {
        #[cfg(lowzone_mutants)]
        if crate::mutant::is(crate::mutant::Mutant::NoResetAtShutdown) {
            return;
        }
        if let Some(disk) = self.disk(device.at()) {
            disk.quiesce(cpu);
        }
    }
}
