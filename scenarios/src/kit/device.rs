//! Kinds of devices: what a device is made from, and what it is made of.
//!
//! Neighbours: `lab`, which plugs what a kind makes into the bus; `device::pci::Endpoint`, of which most devices of
//! one's own are made. Left out: devices in other processes.

use std::error::Error;
use std::sync::Arc;

use lowzone_device::misbehave::Script;
use lowzone_device::pci::{Beyond, BusMaster, BusMasterError, BusMasterGate, IrqSink, PciFunction, Removable};
use lowzone_device::store::Store;
use lowzone_device::{Counters, Worker};
use lowzone_guest_mem::dma::{DmaDevice, DmaPort};
use lowzone_guest_mem::kernel::KernelRef;

use crate::spec::{self, Kind};
use crate::wire::LabTap;

/// Why a driver or device can't be made as the scenario says, in the words of its own.
pub type MakeError = Box<dyn Error + Send + Sync>;

/// A device's way to memory in the lab: as many address bits as the scenario gives it, over a port that checks each
/// access against the driver's mappings.
pub type DeviceMemory = BusMaster<DmaPort, LabTap>;

/// What a device is made from.
pub struct DeviceEnv<'a> {
    /// The `[[device]]` table.
    pub spec: &'a spec::Device,
    /// Where its interrupts go.
    pub irq: Arc<dyn IrqSink>,
    /// What it stores its data in, if its kind does so.
    pub store: Option<Arc<Store>>,
    pub(crate) dma: &'a DmaDevice,
    pub(crate) kernel: KernelRef,
}

impl DeviceEnv<'_> {
    /// The platform's half of its way to memory.
    pub fn port(&self) -> DmaPort {
        DmaPort::new(self.dma)
    }

    /// Who makes findings of the accesses that its bus master refuses.
    pub fn tap(&self) -> LabTap {
        LabTap::new(self.kernel, self.dma)
    }

    /// What happens to an address beyond its width.
    pub fn beyond(&self) -> Beyond {
        match self.spec.beyond {
            spec::Beyond::Refuse => Beyond::Refuse,
            spec::Beyond::Wrap => Beyond::Wrap,
        }
    }

    /// A way to memory for one worker, open while the function may master the bus.
    ///
    /// # Errors
    /// [`BusMasterError`] of a width that no device has, which the scenario's check refuses before.
    pub fn memory(&self, gate: Arc<BusMasterGate>) -> Result<DeviceMemory, BusMasterError> {
        BusMaster::new(self.port(), self.spec.width, self.beyond(), gate, self.tap())
    }
}

/// What a device is made of.
pub struct Plugged {
    /// The control half.
    pub function: Arc<dyn PciFunction>,
    /// The data half.
    pub workers: Vec<Box<dyn Worker>>,
    /// How it is pulled out of its slot; without it no campaign does so.
    pub slot: Option<Arc<dyn Removable>>,
    /// What it gets wrong on demand; without it no campaign asks.
    pub script: Option<Arc<Script>>,
    /// What it has done.
    pub counters: Option<Arc<Counters>>,
}

/// A kind of device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceKind {
    /// What scenarios call it, and which options it takes.
    pub kind: Kind,
    /// Makes one.
    pub make: fn(&DeviceEnv<'_>) -> Result<Plugged, MakeError>,
}
