//! Builds a block device: the function a driver probes, and a worker for each of its queues.
//!
//! [`blk`] builds both halves for PCI. Where another transport brings its own control half, [`BlkQueues`] builds the
//! workers alone.
//!
//! Neighbours: [`super::config`] says what to build, [`super::worker`] serves, [`crate::virtio::pci`] is the
//! transport. Each worker gets its own bus master, so that each has its own fault latch.

use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestMemory;

use super::config::{BlkOptions, LEN};
use super::request::Disk;
use super::worker::{BlkWorker, Common};
use crate::counters::Counters;
use crate::misbehave::Script;
use crate::pci::{Beyond, BusMaster, BusMasterError, IrqSink, PciFunction, Removable};
use crate::store::Store;
use crate::tap::Tap;
use crate::virtio::pci::VirtioPciError;
use crate::virtio::{QueueHost, QueueShared};
use crate::virtio::{VirtioDevice, VirtioPci};
use crate::worker::Worker;

/// A device that can't be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// Its transport can't.
    #[error(transparent)]
    Transport(#[from] VirtioPciError),
    /// Its way to memory can't.
    #[error(transparent)]
    BusMaster(#[from] BusMasterError),
    /// A preferred block that is not a power of two from 512 up.
    #[error("a block of {size} bytes: a power of two from 512 up")]
    BlkSize {
        /// What was asked for.
        size: u32,
    },
    /// A queue that may work on nothing.
    #[error("a depth of {depth} requests: 1 or more")]
    Depth {
        /// What was asked for.
        depth: usize,
    },
}

/// How the function sits on its bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    /// Address bits the device decodes, 1 to 64.
    pub width: u8,
    /// What happens to an address beyond them.
    pub beyond: Beyond,
    /// Whether its BAR may lie above 4 GiB.
    pub wide_bar: bool,
}

/// 32 address bits, the rest refused; a 64-bit BAR.
impl Default for Hardware {
    fn default() -> Self {
        Self { width: 32, beyond: Beyond::Refuse, wide_bar: true }
    }
}

/// A block device: its two halves, and what it has done.
pub struct Blk {
    /// The control half.
    pub function: Arc<dyn PciFunction>,
    /// The data half, one worker per queue.
    pub workers: Vec<Box<dyn Worker>>,
    /// Live counters of both.
    pub counters: Arc<Counters>,
    /// What the device is to get wrong; nothing unless something is planned.
    pub script: Arc<Script>,
    /// The slot it sits in, to be pulled out of.
    pub slot: Arc<dyn Removable>,
}

impl std::fmt::Debug for Blk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blk").field("queues", &self.workers.len()).finish_non_exhaustive()
    }
}

/// The facts of a block device.
struct BlkDevice {
    options: BlkOptions,
    features: u64,
    space: [u8; LEN],
}

impl VirtioDevice for BlkDevice {
    fn device_type(&self) -> u16 {
        2
    }

    fn class(&self) -> u32 {
        0x01_0000
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queues(&self) -> u16 {
        self.options.queues
    }

    fn queue_size(&self) -> u16 {
        self.options.queue_size
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

/// The data half of a block device, for a transport that brings its own control half.
pub struct BlkQueues(Common);

impl std::fmt::Debug for BlkQueues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlkQueues").finish_non_exhaustive()
    }
}

impl BlkQueues {
    /// What all workers of a device over `store` have in common; they report to `host` and count in `counters`.
    ///
    /// # Errors
    /// [`DeviceError::BlkSize`] or [`DeviceError::Depth`].
    pub fn new(
        options: &BlkOptions,
        store: Arc<Store>,
        host: Arc<dyn QueueHost>,
        counters: Arc<Counters>,
        script: Arc<Script>,
    ) -> Result<Self, DeviceError> {
        let size = options.blk_size;
        if size != 0 && (!size.is_power_of_two() || size < 512) {
            return Err(DeviceError::BlkSize { size });
        }
        if options.depth == 0 {
            return Err(DeviceError::Depth { depth: options.depth });
        }
        Ok(Self(Common {
            host,
            disk: Disk {
                capacity: store.capacity(),
                read_only: options.refuses_writes(&store),
                clears: options.clears(&store),
            },
            store,
            counters,
            script,
            id: options.id,
            // A queue never holds more chains than entries, whatever the driver pretends.
            depth: options.depth.min(usize::from(options.queue_size)),
            entries: usize::from(options.queue_size),
        }))
    }

    /// The worker of `queue`, which reaches memory through `mem` and is told of its ring by `shared`.
    pub fn worker<M: GuestMemory, T: Tap>(
        &self,
        queue: u16,
        shared: Arc<QueueShared>,
        mem: BusMaster<M, T>,
    ) -> BlkWorker<M, T> {
        BlkWorker::new(self.0.clone(), queue, shared, mem)
    }
}

/// Builds a block device over `store`. For each queue `port` is asked once for the memory its worker reaches, and
/// for the observer of those accesses; interrupts go to `irq`. It behaves until its [`Blk::script`] says otherwise.
///
/// # Errors
/// [`DeviceError`] if an option is out of range.
///
/// ```
/// use lowzone_device::blk::{BlkOptions, Hardware, blk};
/// use lowzone_device::pci::{IrqSink, Width};
/// use lowzone_device::store::{MemoryStore, Store};
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
/// let disk = Arc::new(Store::Memory(MemoryStore::zeroed(1 << 20)?));
/// let device = blk(&BlkOptions::default(), Hardware::default(), disk, Arc::new(Nobody), |_| (ram.clone(), ()))?;
/// assert_eq!(device.function.config_read(0, Width::B4), 0x1042_1af4);
/// assert_eq!(device.workers.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn blk<M, T>(
    options: &BlkOptions,
    hardware: Hardware,
    store: Arc<Store>,
    irq: Arc<dyn IrqSink>,
    mut port: impl FnMut(u16) -> (M, T),
) -> Result<Blk, DeviceError>
where
    M: GuestMemory + Send + 'static,
    T: Tap + 'static,
{
    let script = Arc::new(Script::new());
    let device = BlkDevice { options: *options, features: options.features(&store), space: options.space(&store) };
    let counters = Arc::new(Counters::default());
    let function = Arc::new(VirtioPci::new(Box::new(device), hardware.wide_bar, irq, Arc::clone(&counters))?);
    let host = Arc::<VirtioPci>::clone(&function);
    let queues = BlkQueues::new(options, store, host, Arc::clone(&counters), Arc::clone(&script))?;
    let mut workers: Vec<Box<dyn Worker>> = Vec::with_capacity(usize::from(options.queues));
    for index in 0..options.queues {
        let Some(shared) = function.queue(index) else { continue };
        let (memory, tap) = port(index);
        let mem = BusMaster::new(memory, hardware.width, hardware.beyond, function.gate(), tap)?;
        workers.push(Box::new(queues.worker(index, shared, mem)));
    }
    let slot = Arc::<VirtioPci>::clone(&function);
    Ok(Blk { function, workers, counters, script, slot })
}
