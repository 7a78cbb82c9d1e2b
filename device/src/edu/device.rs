//! One `edu` function, put together.
//!
//! Neighbours: `registers` and `worker`, its two halves; [`crate::pci::Endpoint`] is the rest of the function.
//! Left out: QEMU's property `dma_mask` with holes in it; a width is a number of bits.

use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestMemory;

use super::registers::{BAR, Engine};
use super::worker::{Calculator, MISHAPS, Mover};
use crate::counters::Counters;
use crate::misbehave::Script;
use crate::pci::config::Identity;
use crate::pci::{
    Beyond, BusMaster, BusMasterError, Endpoint, EndpointError, EndpointSpec, IrqSink, PciFunction, Removable, Signals,
};
use crate::tap::Tap;
use crate::worker::Worker;

/// Who QEMU's device says it is; the class is "others".
const IDENTITY: Identity = Identity {
    vendor: 0x1234,
    device: 0x11e8,
    revision: 0x10,
    class: 0x00_ff00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// A device that can't be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EduError {
    /// Its function can't.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Its way to memory can't.
    #[error(transparent)]
    BusMaster(#[from] BusMasterError),
}

/// How far its DMA reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    /// Address bits the device decodes, 1 to 64.
    pub width: u8,
    /// What happens to an address beyond them.
    pub beyond: Beyond,
}

/// QEMU's: 28 address bits, the others dropped (`EDU: clamping DMA …`).
impl Default for Hardware {
    fn default() -> Self {
        Self { width: 28, beyond: Beyond::Wrap }
    }
}

/// An `edu` device: its two halves, and what it has done.
pub struct Edu {
    /// The control half.
    pub function: Arc<dyn PciFunction>,
    /// The data half: factorials, and transfers.
    pub workers: Vec<Box<dyn Worker>>,
    /// Live counters; each factorial and each transfer is a request, each address beyond the width a tap's affair.
    pub counters: Arc<Counters>,
    /// What the device is to get wrong; nothing unless something is planned.
    pub script: Arc<Script>,
    /// The slot it sits in, to be pulled out of.
    pub slot: Arc<dyn Removable>,
}

impl std::fmt::Debug for Edu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edu").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

/// Makes an `edu` device whose DMA goes to `memory`, seen by `tap`; interrupts go to `irq`.
///
/// # Errors
/// [`EduError`] if it can't be built.
///
/// ```
/// use lowzone_device::edu::{Hardware, edu};
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
/// let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
/// let mut made = edu(Hardware::default(), Arc::new(Nobody), ram, ()).unwrap();
/// made.function.bar_write(0, 0x08, Width::B4, 5).unwrap();
/// made.workers[0].service(0);
/// assert_eq!(made.function.bar_read(0, 0x08, Width::B4), Ok(120));
/// ```
pub fn edu<M, T>(hardware: Hardware, irq: Arc<dyn IrqSink>, memory: M, tap: T) -> Result<Edu, EduError>
where
    M: GuestMemory + Send + 'static,
    T: Tap + 'static,
{
    let spec = EndpointSpec { identity: IDENTITY, registers: BAR, wide: false, vectors: 0, msi: true };
    let signals = Signals::new(&spec, irq)?;
    let memory = BusMaster::new(memory, hardware.width, hardware.beyond, signals.gate(), tap)?;
    let counters = signals.counters();
    let script = Arc::new(Script::of(MISHAPS));
    let engine = Arc::new(Engine::new(signals.clone()));
    let calculator = Calculator { engine: engine.clone(), script: script.clone() };
    let mover = Mover { engine: engine.clone(), script: script.clone(), memory };
    let function = Arc::new(Endpoint::new(signals, engine));
    Ok(Edu {
        function: function.clone(),
        workers: vec![Box::new(calculator), Box::new(mover)],
        counters,
        script,
        slot: function,
    })
}
