//! Builds a network device: the function a driver probes, and the one worker of its queue pair.
//!
//! Neighbours: [`super::config`] says what to build, [`super::worker`] serves, [`crate::virtio::pci`] is the transport.

use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestMemory;

use super::config::{LEN, NetOptions};
use super::worker::NetWorker;
use crate::blk::Hardware;
use crate::counters::Counters;
use crate::pci::{BusMaster, BusMasterError, IrqSink, PciFunction, Removable};
use crate::tap::Tap;
use crate::virtio::pci::VirtioPciError;
use crate::virtio::{VirtioDevice, VirtioPci};
use crate::worker::Worker;

/// Receive, then transmit.
pub(super) const QUEUES: u16 = 2;

/// A device that can't be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NetDeviceError {
    /// Its transport can't.
    #[error(transparent)]
    Transport(#[from] VirtioPciError),
    /// Its way to memory can't.
    #[error(transparent)]
    BusMaster(#[from] BusMasterError),
}

/// A network device: its two halves, and what it has done.
pub struct Net {
    /// The control half.
    pub function: Arc<dyn PciFunction>,
    /// The data half.
    pub workers: Vec<Box<dyn Worker>>,
    /// Live counters of both.
    pub counters: Arc<Counters>,
    /// The slot it sits in, to be pulled out of.
    pub slot: Arc<dyn Removable>,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("packets", &self.counters.packets()).finish_non_exhaustive()
    }
}

/// The facts of a network device.
struct NetDevice {
    queue_size: u16,
    features: u64,
    space: [u8; LEN],
}

impl VirtioDevice for NetDevice {
    fn device_type(&self) -> u16 {
        1
    }

    fn class(&self) -> u32 {
        0x02_0000
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queues(&self) -> u16 {
        QUEUES
    }

    fn queue_size(&self) -> u16 {
        self.queue_size
    }

    fn config_len(&self) -> u32 {
        u32::try_from(self.space.len()).unwrap_or(u32::MAX)
    }

    fn read_config(&self, offset: u32, to: &mut [u8]) {
        let from = usize::try_from(offset).ok().and_then(|start| self.space.get(start..start.checked_add(to.len())?));
        if let Some(from) = from {
            to.copy_from_slice(from);
        }
    }
}

/// Builds a network device. Its worker reaches memory through `port` and is observed by `tap`; interrupts go to `irq`.
///
/// # Errors
/// [`NetDeviceError`] if an option is out of range.
///
/// ```
/// use lowzone_device::blk::Hardware;
/// use lowzone_device::net::{NetOptions, net};
/// use lowzone_device::pci::{IrqSink, Width};
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// struct Nobody;
/// impl IrqSink for Nobody {
///     fn msi(&self, _vector: u16, _addr: u64, _data: u32) {}
///     fn intx(&self, _level: bool) {}
/// }
///
/// let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)])?;
/// let device = net(&NetOptions::default(), Hardware::default(), Arc::new(Nobody), (ram, ()))?;
/// assert_eq!(device.function.config_read(0, Width::B4), 0x1041_1af4);
/// assert_eq!(device.workers.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn net<M, T>(
    options: &NetOptions,
    hardware: Hardware,
    irq: Arc<dyn IrqSink>,
    (port, tap): (M, T),
) -> Result<Net, NetDeviceError>
where
    M: GuestMemory + Send + 'static,
    T: Tap + 'static,
{
    let device = NetDevice { queue_size: options.queue_size, features: options.features(), space: options.space() };
    let counters = Arc::new(Counters::default());
    let function = Arc::new(VirtioPci::new(Box::new(device), hardware.wide_bar, irq, Arc::clone(&counters))?);
    let mem = BusMaster::new(port, hardware.width, hardware.beyond, function.gate(), tap)?;
    let mut workers: Vec<Box<dyn Worker>> = Vec::new();
    if let (Some(receive), Some(transmit)) = (function.queue(0), function.queue(1)) {
        let host = Arc::<VirtioPci>::clone(&function);
        workers.push(Box::new(NetWorker::new(options.source, host, Arc::clone(&counters), [receive, transmit], mem)));
    }
    let slot = Arc::<VirtioPci>::clone(&function);
    Ok(Net { function, workers, counters, slot })
}
