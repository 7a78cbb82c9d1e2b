//! The modern virtio transport over PCI: one memory BAR, its capabilities, and the two ways to interrupt.
//!
//! [`VirtioPci`] joins [`crate::pci::config`], [`crate::pci::msix`] and [`super::common`] under one lock and is
//! both the [`PciFunction`] a bus sees and the [`QueueHost`] its workers report to. Mirrors virtio 1.2 section 4.1.
//! Left out: the PCI configuration access capability (type 5), shared memory, legacy registers.
//! `layout` beside this says what lies where in the BAR, `removal` below it how a function leaves its slot.

use std::sync::{Arc, Mutex};

use thiserror::Error;

use super::common::{CommonConfig, Effect};
use super::device::{QueueHost, VirtioDevice};
use super::layout::{BAR, BAR_SIZE, MSIX_ENABLE, MSIX_MASK, NOTIFY, NOTIFY_MULTIPLIER, Region, capabilities};
use super::queue::QueueShared;
use crate::counters::Counters;
use crate::lock;
use crate::pci::caps::CapsError;
use crate::pci::config::{self, BarSpec, ConfigError, ConfigSpace, Identity};
use crate::pci::msix::{Message, Msix};
use crate::pci::{AccessError, BusMasterGate, IrqSink, PciFunction, Width};

mod removal;

/// Vendor id of virtio devices.
pub const VENDOR_ID: u16 = 0x1af4;
/// What a device type is added to.
pub const DEVICE_ID_BASE: u16 = 0x1040;
pub use super::layout::MAX_QUEUES;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;
/// A function that can't be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum VirtioPciError {
    /// The BAR has room for 1 to 511 queues.
    #[error("{queues} queues: a function has 1 to {MAX_QUEUES}")]
    Queues {
        /// What was asked for.
        queues: u16,
    },
    /// A queue's size is a power of two up to 32768.
    #[error("a queue of {size} entries: a power of two from 1 to 32768")]
    QueueSize {
        /// What was asked for.
        size: u16,
    },
    /// The capabilities don't fit.
    #[error(transparent)]
    Caps(#[from] CapsError),
    /// The header can't be laid out.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

struct State {
    config: ConfigSpace,
    msix: Msix,
    common: CommonConfig,
    isr: u8,
    pin: bool,
    /// Queues whose workers have not yet dropped what they hold.
    awaited: Vec<bool>,
}

/// One virtio function on a PCI bus.
pub struct VirtioPci {
    device: Box<dyn VirtioDevice>,
    queues: Vec<Arc<QueueShared>>,
    gate: Arc<BusMasterGate>,
    irq: Arc<dyn IrqSink>,
    counters: Arc<Counters>,
    msix_at: u8,
    state: Mutex<State>,
}

impl std::fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = lock(&self.state).common.status();
        f.debug_struct("VirtioPci").field("queues", &self.queues.len()).field("status", &status).finish()
    }
}

impl VirtioPci {
    /// A function for `device` with one MSI-X vector per queue and one for configuration changes. Its BAR is a
    /// 64-bit one if `wide`.
    ///
    /// # Errors
    /// [`VirtioPciError`] if the device has too many queues, or queues of an impossible size.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        wide: bool,
        irq: Arc<dyn IrqSink>,
        counters: Arc<Counters>,
    ) -> Result<Self, VirtioPciError> {
        let (queues, size) = (device.queues(), device.queue_size());
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(VirtioPciError::Queues { queues });
        }
        if !size.is_power_of_two() {
            return Err(VirtioPciError::QueueSize { size });
        }
        let vectors = queues + 1;
        let (list, msix_at) = capabilities(device.as_ref(), vectors)?;
        let identity = Identity {
            vendor: VENDOR_ID,
            device: DEVICE_ID_BASE + device.device_type(),
            revision: 1,
            class: device.class(),
            subsystem_vendor: VENDOR_ID,
            subsystem: 0x40 + device.device_type(),
        };
        let bar = BarSpec { index: BAR, size: BAR_SIZE, wide };
        let state = State {
            config: ConfigSpace::new(&identity, &[bar], &list)?,
            msix: Msix::new(vectors),
            common: CommonConfig::new(device.as_ref(), vectors),
            isr: 0,
            pin: false,
            awaited: vec![false; usize::from(queues)],
        };
        let queues = (0..queues).map(|_| Arc::default()).collect();
        let gate = Arc::default();
        Ok(Self { device, queues, gate, irq, counters, msix_at, state: Mutex::new(state) })
    }

    /// The bus-master bit, for the bus masters of this function's workers.
    pub fn gate(&self) -> Arc<BusMasterGate> {
        Arc::clone(&self.gate)
    }

    /// What the worker of queue `index` shares with this half.
    pub fn queue(&self, index: u16) -> Option<Arc<QueueShared>> {
        self.queues.get(usize::from(index)).cloned()
    }

    fn send(&self, message: Message) {
        if self.gate.is_open() {
            Counters::add(&self.counters.interrupts, 1);
            self.irq.msi(message.vector, message.addr, message.data);
        } else {
            Counters::add(&self.counters.interrupts_lost, 1);
        }
    }

    /// Interrupts by whichever way is on; a device that is being reset, or is gone, keeps silent.
    fn interrupt(&self, state: &mut State, vector: u16, isr: u8) {
        if state.resetting() || self.gate.is_gone() {
            return;
        }
        if state.msix.enabled() {
            if let Some(message) = state.msix.raise(vector) {
                self.send(message);
            }
        } else {
            state.isr |= isr;
            self.settle(state);
        }
    }

    /// Sends what may be sent now, and brings pin and status bit in line with the rest.
    fn settle(&self, state: &mut State) {
        while self.gate.is_open() {
            let Some(message) = state.msix.take_pending() else { break };
            self.send(message);
        }
        let asserted = state.isr != 0 && !state.msix.enabled();
        state.config.set_interrupt_status(asserted);
        let pin = asserted && state.config.command() & config::COMMAND_INTX_OFF == 0;
        if pin != state.pin {
            state.pin = pin;
            if pin {
                Counters::add(&self.counters.interrupts, 1);
            }
            self.irq.intx(pin);
        }
    }

    fn activate(&self, state: &State) {
        for (index, queue) in (0u16..).zip(&self.queues) {
            if let Some(config) = state.common.queue_config(index) {
                queue.activate(config);
            }
        }
    }

    fn begin_reset(&self, state: &mut State) {
        for (awaited, queue) in state.awaited.iter_mut().zip(&self.queues) {
            *awaited |= queue.begin_reset();
        }
        self.try_finish_reset(state);
    }

    fn try_finish_reset(&self, state: &mut State) {
        if !state.resetting() {
            state.common.reset();
            state.msix.forget_pending();
            state.isr = 0;
            self.settle(state);
        }
    }

    fn read_device(&self, offset: u32, width: Width) -> Option<u64> {
        let len = u32::from(width.bytes());
        if !width.aligned(offset.into()) || offset.checked_add(len)? > self.device.config_len() {
            return None;
        }
        let mut bytes = [0; 8];
        self.device.read_config(offset, &mut bytes[..usize::from(width.bytes())]);
        Some(u64::from_le_bytes(bytes))
    }

    fn doorbell(&self, offset: u32, width: Width, value: u64) -> Result<(), AccessError> {
        let at = u64::from(NOTIFY + offset);
        let index = offset / NOTIFY_MULTIPLIER;
        let hole = AccessError::Hole { bar: BAR, offset: at };
        let number = u16::try_from(index).map_err(|_| hole)?;
        let queue = self.queues.get(usize::from(number)).ok_or(hole)?;
        if width != Width::B2 || !offset.is_multiple_of(NOTIFY_MULTIPLIER) {
            return Err(AccessError::Width { bar: BAR, offset: at, width: width.bytes() });
        }
        if value != u64::from(number) {
            return Err(AccessError::Doorbell { queue: number, value });
        }
        queue.kick();
        Ok(())
    }

    fn write_common(&self, offset: u32, width: Width, value: u64) -> Option<()> {
        let mut state = lock(&self.state);
        if self.gate.is_gone() {
            return Some(());
        }
        if state.resetting() {
            // The old registers go when the last worker has let go; until then nothing new is taken in.
            return state.common.read(offset.into(), width).map(|_| ());
        }
        match state.common.write(offset.into(), width, value)? {
            Effect::None => {}
            Effect::Activate => self.activate(&state),
            Effect::Reset => self.begin_reset(&mut state),
        }
        Some(())
    }
}

impl State {
    fn resetting(&self) -> bool {
        self.awaited.contains(&true)
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&self, offset: u16, width: Width) -> u32 {
        let state = lock(&self.state);
        if self.gate.is_gone() { config::absent(width) } else { state.config.read(offset, width) }
    }

    fn config_write(&self, offset: u16, width: Width, value: u32) {
        let mut state = lock(&self.state);
        if self.gate.is_gone() {
            return;
        }
        state.config.write(offset, width, value);
        self.gate.set(state.config.command() & config::COMMAND_MASTER != 0);
        let control = state.config.word(self.msix_at + 2);
        state.msix.set_control(control & MSIX_ENABLE != 0, control & MSIX_MASK != 0);
        self.settle(&mut state);
    }

    fn decode(&self, addr: u64, width: Width) -> Option<(u8, u64)> {
        let state = lock(&self.state);
        if self.gate.is_gone() { None } else { state.config.decode(addr, width) }
    }

    fn bar_read(&self, bar: u8, offset: u64, width: Width) -> Result<u64, AccessError> {
        if self.gate.is_gone() {
            return Ok(width.all_ones());
        }
        if bar != BAR {
            return Err(AccessError::NoBar { bar });
        }
        let (region, within) = Region::find(offset).ok_or(AccessError::Hole { bar, offset })?;
        let mut state = lock(&self.state);
        let value = match region {
            Region::Common => state.common.read(within.into(), width).map(u64::from),
            Region::Isr if within == 0 && width == Width::B1 => {
                let isr = std::mem::take(&mut state.isr);
                self.settle(&mut state);
                Some(u64::from(isr))
            }
            Region::Isr => None,
            Region::Device => self.read_device(within, width),
            // Doorbells are written only; what they read is not specified.
            Region::Notify => Some(0),
            Region::Table => state.msix.read_table(within.into(), width),
            Region::Pending => state.msix.read_pending(within.into(), width),
        };
        value.ok_or(AccessError::Width { bar, offset, width: width.bytes() })
    }

    fn bar_write(&self, bar: u8, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        if self.gate.is_gone() {
            return Ok(());
        }
        if bar != BAR {
            return Err(AccessError::NoBar { bar });
        }
        let (region, within) = Region::find(offset).ok_or(AccessError::Hole { bar, offset })?;
        let value = value & width.all_ones();
        let done = match region {
            Region::Common => self.write_common(within, width, value),
            Region::Notify => return self.doorbell(within, width, value),
            Region::Table => {
                let mut state = lock(&self.state);
                let done = state.msix.write_table(within.into(), width, value);
                self.settle(&mut state);
                done
            }
            // Read-only: the write has no effect.
            Region::Isr | Region::Device | Region::Pending => Some(()),
        };
        done.ok_or(AccessError::Width { bar, offset, width: width.bytes() })
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        if self.gate.is_gone() {
            return;
        }
        self.gate.set(false);
        state.config.reset();
        state.msix.reset();
        state.isr = 0;
        self.begin_reset(&mut state);
        self.settle(&mut state);
    }
}

impl QueueHost for VirtioPci {
    fn used_buffers(&self, queue: u16) {
        let mut state = lock(&self.state);
        let vector = state.common.queue_vector(queue);
        self.interrupt(&mut state, vector, ISR_QUEUE);
    }

    fn needs_reset(&self) {
        let mut state = lock(&self.state);
        if !state.resetting() && state.common.set_needs_reset() {
            let vector = state.common.config_vector();
            self.interrupt(&mut state, vector, ISR_CONFIG);
        }
    }

    fn reset_done(&self, queue: u16) {
        let mut state = lock(&self.state);
        if let Some(awaited) = state.awaited.get_mut(usize::from(queue)).filter(|awaited| **awaited) {
            *awaited = false;
            self.try_finish_reset(&mut state);
        }
    }
}

#[cfg(test)]
mod tests;
