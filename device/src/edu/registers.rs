//! The registers of `edu`, which answer at once.
//!
//! Below [`DMA_SOURCE`] accesses are 4 bytes wide, from there on 4 or 8; narrower ones read as zero, as they do in
//! QEMU, whose memory core refuses them before the device sees them. Neighbours: `worker` does what a write starts.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::lock;
use crate::pci::{Registers, Signals, Width};

/// Bytes of BAR 0.
pub const BAR: u64 = 1 << 20;
/// Identification: [`ID_VALUE`].
pub const ID: u64 = 0x00;
/// Reads as what was last written, inverted.
pub const LIVENESS: u64 = 0x04;
/// An operand in, its factorial modulo 2^32 out; writes are ignored while it computes.
pub const FACTORIAL: u64 = 0x08;
/// [`BUSY`], and [`INTERRUPT`], which can be written.
pub const STATUS: u64 = 0x20;
/// Pending causes of interrupts.
pub const CAUSES: u64 = 0x24;
/// Adds causes and interrupts.
pub const RAISE: u64 = 0x60;
/// Takes causes away; the pin falls with the last.
pub const ACKNOWLEDGE: u64 = 0x64;
/// Where a transfer reads from. This and the next three can't be written during a transfer.
pub const DMA_SOURCE: u64 = 0x80;
/// Where a transfer writes to.
pub const DMA_DESTINATION: u64 = 0x88;
/// Bytes of a transfer.
pub const DMA_COUNT: u64 = 0x90;
/// [`RUN`], [`TO_MEMORY`], [`DONE_INTERRUPT`].
pub const DMA_COMMAND: u64 = 0x98;

/// What [`ID`] reads: version 1.0.
pub const ID_VALUE: u32 = 0x0100_00ed;
/// Status: a factorial is being computed.
pub const BUSY: u32 = 1;
/// Status: interrupt when it is computed.
pub const INTERRUPT: u32 = 1 << 7;
/// Cause: a factorial was computed.
pub const FACTORIAL_CAUSE: u32 = 1;
/// Cause: a transfer is over.
pub const DMA_CAUSE: u32 = 0x100;
/// Command: starts a transfer; reads as 1 until it is over.
pub const RUN: u64 = 1;
/// Command: from the internal buffer into memory, not the other way.
pub const TO_MEMORY: u64 = 2;
/// Command: interrupt when the transfer is over.
pub const DONE_INTERRUPT: u64 = 4;

/// The device's own address of its internal buffer.
pub const BUFFER: u64 = 0x40000;
/// Bytes of it.
pub const BUFFER_BYTES: usize = 4096;

/// How far a transfer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// There is none, or it was forgotten on purpose.
    #[default]
    Idle,
    /// Commanded; its clock doesn't run yet.
    Commanded,
    /// Due at this time; `held` if it was put off on purpose.
    Due { at: u64, held: bool },
    /// The bytes have moved, or could not be.
    Moved { ok: bool },
}

/// The four registers of the DMA engine.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Dma {
    pub(super) source: u64,
    pub(super) destination: u64,
    pub(super) count: u64,
    pub(super) command: u64,
    pub(super) stage: Stage,
}

/// A computation that was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Computing {
    /// None is due.
    #[default]
    Idle,
    /// Due at this time, 0 for at once; `held` if it was put off on purpose.
    Due { at: u64, held: bool },
}

/// All that the device keeps.
#[derive(Debug)]
pub(super) struct State {
    liveness: u32,
    pub(super) factorial: u32,
    pub(super) status: u32,
    pub(super) causes: u32,
    pub(super) computing: Computing,
    pub(super) dma: Dma,
    pub(super) buffer: Box<[u8; BUFFER_BYTES]>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            liveness: 0,
            factorial: 0,
            status: 0,
            causes: 0,
            computing: Computing::Idle,
            dma: Dma::default(),
            buffer: Box::new([0; BUFFER_BYTES]),
        }
    }
}

/// What registers and workers share. A worker holds the lock for a phase: once a reset has returned, nothing reaches
/// memory any more.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) signals: Arc<Signals>,
    state: Mutex<State>,
}

impl Engine {
    pub(super) fn new(signals: Arc<Signals>) -> Self {
        Self { signals, state: Mutex::default() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Adds causes; interrupts if any is pending then, also one that was before.
    pub(super) fn raise(&self, state: &mut State, causes: u32) {
        state.causes |= causes;
        if state.causes != 0 {
            self.signals.raise(0);
        }
    }
}

impl State {
    fn compute(&mut self, operand: u32) {
        if self.status & BUSY == 0 {
            self.factorial = operand;
            self.status |= BUSY;
            self.computing = Computing::Due { at: 0, held: false };
        }
    }

    fn set_dma(&mut self, offset: u64, value: u64) {
        if self.dma.command & RUN != 0 {
            return;
        }
        match offset {
            DMA_SOURCE => self.dma.source = value,
            DMA_DESTINATION => self.dma.destination = value,
            DMA_COUNT => self.dma.count = value,
            _ if value & RUN == 0 => {}
            _ => {
                self.dma.command = value;
                self.dma.stage = Stage::Commanded;
            }
        }
    }
}

impl Registers for Engine {
    fn read(&self, offset: u64, width: Width) -> Option<u64> {
        let state = self.state();
        match (offset, width) {
            (_, Width::B1 | Width::B2) => Some(0),
            (DMA_SOURCE, _) => Some(state.dma.source),
            (DMA_DESTINATION, _) => Some(state.dma.destination),
            (DMA_COUNT, _) => Some(state.dma.count),
            (DMA_COMMAND, _) => Some(state.dma.command),
            (_, Width::B8) => None,
            (ID, _) => Some(ID_VALUE.into()),
            (LIVENESS, _) => Some(state.liveness.into()),
            (FACTORIAL, _) => Some(state.factorial.into()),
            (STATUS, _) => Some(state.status.into()),
            (CAUSES, _) => Some(state.causes.into()),
            _ => None,
        }
        .map(|value| value & width.all_ones())
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Option<()> {
        let mut state = self.state();
        if let (DMA_SOURCE | DMA_DESTINATION | DMA_COUNT | DMA_COMMAND, Width::B4 | Width::B8) = (offset, width) {
            state.set_dma(offset, value);
            return Some(());
        }
        let value = u32::try_from(value).ok().filter(|_| width == Width::B4)?;
        match offset {
            LIVENESS => state.liveness = !value,
            FACTORIAL => state.compute(value),
            STATUS => state.status = state.status & !INTERRUPT | value & INTERRUPT,
            RAISE => self.raise(&mut state, value),
            ACKNOWLEDGE => {
                state.causes &= !value;
                if state.causes == 0 {
                    self.signals.lower();
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn reset(&self) {
        *self.state() = State::default();
    }
}
