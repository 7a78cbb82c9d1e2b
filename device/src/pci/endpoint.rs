//! `Endpoint`: a whole PCI function made of nothing but its registers, for devices with an interface of their own.
//!
//! An author writes [`Registers`] (what lies behind BAR 0) and workers; the rest is here: config space, BARs, MSI-X
//! or MSI with the interrupt pin as fallback, the bus-master bit, function reset, surprise removal. [`Signals`] is what the
//! registers and the workers share with the function: their way to interrupt. MSI-X table and pending bits lie in a
//! BAR of their own, BAR 2. Neighbours: `config`, `msix`, `busmaster`; virtio functions have [`crate::virtio::VirtioPci`].
//! Left out: other capabilities, several windows.

use std::sync::{Arc, Mutex};

use thiserror::Error;

use super::caps::{self, CapabilityList, CapsError};
use super::config::{self, BarSpec, ConfigError, ConfigSpace, Identity};
use super::msi::Msi;
use super::msix::{ENTRY, Message, Msix};
use super::{AccessError, BusMasterGate, IrqSink, PciFunction, Removable, Width};
use crate::counters::Counters;
use crate::lock;

/// The window of the registers.
const REGISTERS: u8 = 0;
/// The window of the MSI-X table; the window before it may be a 64-bit one.
const TABLE: u8 = 2;
/// What a table has at most (PCI 3.0, 6.8.2.3).
const MAX_VECTORS: u16 = 2048;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;

/// A function that can't be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// More vectors than a table has room for.
    #[error("{vectors} MSI-X vectors: at most {MAX_VECTORS}")]
    Vectors {
        /// What was asked for.
        vectors: u16,
    },
    /// The capability doesn't fit.
    #[error(transparent)]
    Caps(#[from] CapsError),
    /// The header can't be laid out.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// What a function says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Who it is.
    pub identity: Identity,
    /// Bytes of registers in BAR 0, a power of two from 16 up.
    pub registers: u64,
    /// Whether BAR 0 may lie above 4 GiB.
    pub wide: bool,
    /// MSI-X vectors, up to 2048; 0 for a function without.
    pub vectors: u16,
    /// Whether it has MSI, with one vector.
    pub msi: bool,
}

/// The registers behind BAR 0. Any thread may call; state sits behind a lock of the implementor's own, and
/// [`Signals`] may be called with it held.
pub trait Registers: Send + Sync {
    /// Reads the register at `offset`; `None` where none answers an access of this width.
    fn read(&self, offset: u64, width: Width) -> Option<u64>;

    /// Writes it; `None` where none answers. A doorbell sets a flag and returns.
    fn write(&self, offset: u64, width: Width, value: u64) -> Option<()>;

    /// Back to power-on. Once it returns nothing reaches memory any more on behalf of what was started before.
    fn reset(&self);
}

struct State {
    config: ConfigSpace,
    msix: Msix,
    /// Where the MSI-X capability lies.
    msix_at: Option<u8>,
    msi: Option<Msi>,
    raised: bool,
    pin: bool,
}

impl State {
    /// The message that MSI sends now, if MSI is on.
    fn msi(&self) -> Option<Message> {
        self.msi.as_ref()?.message(&self.config)
    }
}

/// A function's way to interrupt, with the bus-master bit that its DMA depends on.
pub struct Signals {
    gate: Arc<BusMasterGate>,
    irq: Arc<dyn IrqSink>,
    counters: Arc<Counters>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("Signals").field("raised", &state.raised).field("pin", &state.pin).finish_non_exhaustive()
    }
}

/// Where the pending bits lie: right after the table.
const fn pending_at(vectors: u16) -> u64 {
    vectors as u64 * ENTRY
}

impl Signals {
    /// The signals of a function as `spec` has it; interrupts go to `irq`.
    ///
    /// # Errors
    /// [`EndpointError`] if the function can't be described.
    pub fn new(spec: &EndpointSpec, irq: Arc<dyn IrqSink>) -> Result<Arc<Self>, EndpointError> {
        let vectors = spec.vectors;
        if vectors > MAX_VECTORS {
            return Err(EndpointError::Vectors { vectors });
        }
        let mut list = CapabilityList::default();
        let mut bars = vec![BarSpec { index: REGISTERS, size: spec.registers, wide: spec.wide }];
        let mut msix_at = None;
        if let Some(last) = vectors.checked_sub(1) {
            let pending = pending_at(vectors);
            let table = (pending + u64::from(vectors).div_ceil(64) * 8).next_power_of_two().max(4096);
            bars.push(BarSpec { index: TABLE, size: table, wide: false });
            let mut body = [0; 10];
            body[..2].copy_from_slice(&last.to_le_bytes());
            body[2] = TABLE;
            // A table's entries are 16 bytes, so the three low bits are free for the BAR.
            body[6..10].copy_from_slice(&(u32::from(vectors) * 16 + u32::from(TABLE)).to_le_bytes());
            let mut writable = [0; 10];
            writable[..2].copy_from_slice(&(MSIX_ENABLE | MSIX_MASK).to_le_bytes());
            msix_at = Some(list.push(caps::MSIX, &body, &writable)?);
        }
        let msi = if spec.msi { Some(Msi::push(&mut list)?) } else { None };
        let config = ConfigSpace::new(&spec.identity, &bars, &list)?;
        let state = State { config, msix: Msix::new(vectors), msix_at, msi, raised: false, pin: false };
        Ok(Arc::new(Self { gate: Arc::default(), irq, counters: Arc::default(), state: Mutex::new(state) }))
    }

    /// The bus-master bit, for the [`super::BusMaster`] of each worker.
    pub fn gate(&self) -> Arc<BusMasterGate> {
        Arc::clone(&self.gate)
    }

    /// What the device has done; the signals count its interrupts.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Interrupts: with MSI-X on by the message of `vector`, with MSI on by the one it has, else by the pin, which
    /// stays up until [`lower`](Self::lower).
    pub fn raise(&self, vector: u16) {
        let mut state = lock(&self.state);
        if state.msix.enabled() {
            if let Some(message) = state.msix.raise(vector) {
                self.send(message);
            }
        } else if let Some(message) = state.msi() {
            self.send(message);
        } else {
            state.raised = true;
            self.settle(&mut state);
        }
    }

    /// The driver has acknowledged: the pin falls.
    pub fn lower(&self) {
        let mut state = lock(&self.state);
        state.raised = false;
        self.settle(&mut state);
    }

    fn send(&self, message: Message) {
        if self.gate.is_open() {
            Counters::add(&self.counters.interrupts, 1);
            self.irq.msi(message.vector, message.addr, message.data);
        } else if !self.gate.is_gone() {
            Counters::add(&self.counters.interrupts_lost, 1);
        }
    }

    /// Sends what may be sent now, and brings pin and status bit in line with the rest.
    fn settle(&self, state: &mut State) {
        while self.gate.is_open() {
            let Some(message) = state.msix.take_pending() else { break };
            self.send(message);
        }
        let messages = state.msix.enabled() || state.msi().is_some();
        let asserted = state.raised && !messages && !self.gate.is_gone();
        state.config.set_interrupt_status(asserted);
        let pin = asserted && state.config.command() & config::COMMAND_INTX_OFF == 0;
        if pin != state.pin {
            state.pin = pin;
            Counters::add(&self.counters.interrupts, u64::from(pin));
            self.irq.intx(pin);
        }
    }

    /// Everything that the function itself keeps, back to power-on.
    fn reset(&self, state: &mut State) {
        state.config.reset();
        state.msix.reset();
        state.raised = false;
        self.settle(state);
    }
}

/// One function on a PCI bus.
#[derive(Debug)]
pub struct Endpoint<R> {
    signals: Arc<Signals>,
    registers: Arc<R>,
}

impl<R: Registers> Endpoint<R> {
    /// A function with these registers, which were given the same signals.
    ///
    /// ```
    /// use lowzone_device::pci::config::Identity;
    /// use lowzone_device::pci::{Endpoint, EndpointSpec, IrqSink, PciFunction, Registers, Signals, Width};
    /// use std::sync::Arc;
    ///
    /// struct Nobody;
    /// impl IrqSink for Nobody {
    ///     fn msi(&self, _vector: u16, _addr: u64, _data: u32) {}
    ///     fn intx(&self, _level: bool) {}
    /// }
    ///
    /// struct Answer;
    /// impl Registers for Answer {
    ///     fn read(&self, offset: u64, width: Width) -> Option<u64> {
    ///         (offset == 0 && width == Width::B4).then_some(42)
    ///     }
    ///     fn write(&self, _offset: u64, _width: Width, _value: u64) -> Option<()> {
    ///         None
    ///     }
    ///     fn reset(&self) {}
    /// }
    ///
    /// let identity = Identity { vendor: 0x1234, device: 1, class: 0xff_0000, ..Identity::default() };
    /// let signals = Signals::new(&EndpointSpec { identity, registers: 16, wide: false, vectors: 1, msi: false }, Arc::new(Nobody))?;
    /// let function = Endpoint::new(signals, Arc::new(Answer));
    /// assert_eq!(function.config_read(0, Width::B4), 0x0001_1234);
    /// assert_eq!(function.bar_read(0, 0, Width::B4), Ok(42));
    /// assert!(function.bar_read(0, 4, Width::B4).is_err());
    /// # Ok::<(), lowzone_device::pci::EndpointError>(())
    /// ```
    pub fn new(signals: Arc<Signals>, registers: Arc<R>) -> Self {
        Self { signals, registers }
    }
}

impl<R: Registers> PciFunction for Endpoint<R> {
    fn config_read(&self, offset: u16, width: Width) -> u32 {
        let state = lock(&self.signals.state);
        if self.signals.gate.is_gone() { config::absent(width) } else { state.config.read(offset, width) }
    }

    fn config_write(&self, offset: u16, width: Width, value: u32) {
        let mut state = lock(&self.signals.state);
        if self.signals.gate.is_gone() {
            return;
        }
        state.config.write(offset, width, value);
        self.signals.gate.set(state.config.command() & config::COMMAND_MASTER != 0);
        if let Some(at) = state.msix_at {
            let control = state.config.word(at + 2);
            state.msix.set_control(control & MSIX_ENABLE != 0, control & MSIX_MASK != 0);
        }
        self.signals.settle(&mut state);
    }

    fn decode(&self, addr: u64, width: Width) -> Option<(u8, u64)> {
        let state = lock(&self.signals.state);
        if self.signals.gate.is_gone() { None } else { state.config.decode(addr, width) }
    }

    fn bar_read(&self, bar: u8, offset: u64, width: Width) -> Result<u64, AccessError> {
        if self.signals.gate.is_gone() {
            return Ok(width.all_ones());
        }
        let state = lock(&self.signals.state);
        let value = match bar {
            REGISTERS => {
                drop(state);
                self.registers.read(offset, width)
            }
            TABLE if state.msix_at.is_some() => match offset.checked_sub(pending_at(state.msix.vectors())) {
                Some(pending) => state.msix.read_pending(pending, width),
                None => state.msix.read_table(offset, width),
            },
            _ => return Err(AccessError::NoBar { bar }),
        };
        value.ok_or(AccessError::Width { bar, offset, width: width.bytes() })
    }

    fn bar_write(&self, bar: u8, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        if self.signals.gate.is_gone() {
            return Ok(());
        }
        let value = value & width.all_ones();
        let mut state = lock(&self.signals.state);
        let done = match bar {
            REGISTERS => {
                drop(state);
                self.registers.write(offset, width, value)
            }
            // Pending bits are read-only: the write has no effect.
            TABLE if state.msix_at.is_some() && offset >= pending_at(state.msix.vectors()) => Some(()),
            TABLE if state.msix_at.is_some() => {
                let done = state.msix.write_table(offset, width, value);
                self.signals.settle(&mut state);
                done
            }
            _ => return Err(AccessError::NoBar { bar }),
        };
        done.ok_or(AccessError::Width { bar, offset, width: width.bytes() })
    }

    fn reset(&self) {
        {
            let mut state = lock(&self.signals.state);
            if self.signals.gate.is_gone() {
                return;
            }
            self.signals.gate.set(false);
            self.signals.reset(&mut state);
        }
        self.registers.reset();
    }
}

impl<R: Registers> Removable for Endpoint<R> {
    fn unplug(&self) {
        {
            let mut state = lock(&self.signals.state);
            if self.signals.gate.is_gone() {
                return;
            }
            self.signals.gate.remove();
            self.signals.reset(&mut state);
        }
        self.registers.reset();
    }

    fn replug(&self) {
        if !self.signals.gate.is_gone() {
            return;
        }
        // An access that was under way when the function left may have come after that reset.
        self.registers.reset();
        self.signals.reset(&mut lock(&self.signals.state));
        self.signals.gate.restore();
    }

    fn plugged(&self) -> bool {
        !self.signals.gate.is_gone()
    }
}

#[cfg(test)]
mod tests;
