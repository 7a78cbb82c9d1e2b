//! The data half of `edu`: one worker computes, one moves bytes.
//!
//! A transfer comes 100 ms after its command, as in QEMU, in two phases: the bytes, then the end of it with its
//! interrupt. Neighbours: `registers`, which start both. Left out: errors, which the hardware can't tell.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::registers::{
    BUFFER, BUFFER_BYTES, BUSY, Computing, DMA_CAUSE, DONE_INTERRUPT, Dma, Engine, FACTORIAL_CAUSE, INTERRUPT, RUN,
    Stage, State, TO_MEMORY,
};
use crate::misbehave::{Mishap, Script};
use crate::pci::BusMaster;
use crate::tap::Tap;
use crate::worker::{Next, Worker};

/// Nanoseconds from a command to its transfer.
pub const DMA_DELAY: u64 = 100_000_000;
/// How much later a late end comes: just after the half minute that drivers wait, when they have given it up.
pub const LATE: u64 = 30_050_000_000;
/// What the device can get wrong. It has no register that could tell of an error.
pub(super) const MISHAPS: &[Mishap] = &[Mishap::CompletionLate, Mishap::CompletionNever];

/// Computes factorials.
pub(super) struct Calculator {
    pub(super) engine: Arc<Engine>,
    pub(super) script: Arc<Script>,
}

/// `n!` modulo 2^32. From 34 on it has 32 factors of 2: zero.
fn factorial(n: u32) -> u32 {
    if n >= 34 { 0 } else { (1..=n).fold(1, u32::wrapping_mul) }
}

impl Worker for Calculator {
    fn ready(&self) -> bool {
        self.engine.state().computing == Computing::Due { at: 0, held: false }
    }

    fn service(&mut self, now: u64) -> Next {
        let mut state = self.engine.state();
        let Computing::Due { at, held } = state.computing else { return Next::Idle };
        if now < at {
            return Next::At(at);
        }
        match if held { None } else { self.script.draw() } {
            Some(Mishap::CompletionNever) => state.computing = Computing::Idle,
            Some(_) => {
                state.computing = Computing::Due { at: now + LATE, held: true };
                return Next::At(now + LATE);
            }
            None => {
                state.factorial = factorial(state.factorial);
                state.status &= !BUSY;
                state.computing = Computing::Idle;
                self.engine.signals.counters().finished(true, 0, 0);
                if state.status & INTERRUPT != 0 {
                    self.engine.raise(&mut state, FACTORIAL_CAUSE);
                }
            }
        }
        Next::Idle
    }
}

/// Moves bytes between memory and the internal buffer.
pub(super) struct Mover<M: GuestMemory, T: Tap> {
    pub(super) engine: Arc<Engine>,
    pub(super) script: Arc<Script>,
    pub(super) memory: BusMaster<M, T>,
}

/// The part of the internal buffer that a transfer means, or `None` if it is empty or leaves the buffer.
fn inside(dma: &Dma) -> Option<std::ops::Range<usize>> {
    let device = if dma.command & TO_MEMORY != 0 { dma.source } else { dma.destination };
    let start = usize::try_from(device.checked_sub(BUFFER)?).ok()?;
    let end = start.checked_add(usize::try_from(dma.count).ok()?)?;
    (start < end && end <= BUFFER_BYTES).then_some(start..end)
}

impl<M: GuestMemory, T: Tap> Mover<M, T> {
    /// Whether all bytes moved.
    fn transfer(&self, state: &mut State) -> bool {
        let dma = state.dma;
        let Some(part) = inside(&dma).and_then(|part| state.buffer.get_mut(part)) else { return false };
        let write = dma.command & TO_MEMORY != 0;
        let (at, len) = (if write { dma.destination } else { dma.source }, part.len());
        let moved = if write {
            self.memory.write_slice(part, GuestAddress(at))
        } else {
            self.memory.read_slice(part, GuestAddress(at))
        };
        if moved.is_ok() {
            self.memory.moved(at, len, write);
        }
        moved.is_ok()
    }

    fn finish(&self, state: &mut State, ok: bool) {
        let (command, bytes) = (state.dma.command, if ok { state.dma.count } else { 0 });
        let counters = self.engine.signals.counters();
        self.memory.take_fault().inspect(|&fault| counters.count_fault(fault));
        let [into_memory, out_of_memory] = if command & TO_MEMORY != 0 { [bytes, 0] } else { [0, bytes] };
        counters.finished(ok, into_memory, out_of_memory);
        state.dma.command &= !RUN;
        state.dma.stage = Stage::Idle;
        if command & DONE_INTERRUPT != 0 {
            self.engine.raise(state, DMA_CAUSE);
        }
    }
}

impl<M: GuestMemory + Send, T: Tap> Worker for Mover<M, T> {
    fn ready(&self) -> bool {
        matches!(self.engine.state().dma.stage, Stage::Commanded | Stage::Moved { .. })
    }

    fn service(&mut self, now: u64) -> Next {
        let mut state = self.engine.state();
        match state.dma.stage {
            Stage::Idle => return Next::Idle,
            Stage::Commanded => state.dma.stage = Stage::Due { at: now + DMA_DELAY, held: false },
            Stage::Due { at, .. } if now < at => {}
            Stage::Due { held, .. } => match if held { None } else { self.script.draw() } {
                Some(Mishap::CompletionNever) => state.dma.stage = Stage::Idle,
                Some(_) => state.dma.stage = Stage::Due { at: now + LATE, held: true },
                None => state.dma.stage = Stage::Moved { ok: self.transfer(&mut state) },
            },
            Stage::Moved { ok } => self.finish(&mut state, ok),
        }
        match state.dma.stage {
            Stage::Idle => Next::Idle,
            Stage::Due { at, .. } => Next::At(at),
            Stage::Commanded | Stage::Moved { .. } => Next::Again,
        }
    }
}
