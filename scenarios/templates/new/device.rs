//! The device: it adds up the bytes of a buffer, by DMA.
//!
//! [`crate::regs`] says how a driver talks to it. It is two halves: [`Registers`], which answer at once, and a
//! [`Worker`], which the lab calls for one phase of work at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowzone::device::misbehave::{LATE, Mishap, Script};
use lowzone::device::pci::{Endpoint, EndpointSpec, Registers, Signals, Width};
use lowzone::device::vm_memory::{Bytes, GuestAddress};
use lowzone::device::{Next, Worker};
use lowzone::kit::{DeviceEnv, DeviceKind, DeviceMemory, Kind, MakeError, Plugged};

use crate::regs::*;

pub const KIND: DeviceKind = DeviceKind { kind: Kind::new("sum"), make };
/// What is to be done next. Between two phases the lab may put anything: an unmapping, a reset, a removal.
enum Job {
    Fetch,
    Add { addr: u64, len: u32 },
    Store { sum: Option<u64>, not_before: u64 },
}

#[derive(Default)]
struct State {
    desc: [u32; 2],
    status: u32,
    job: Option<Job>,
}

/// Both halves share it. The worker holds the lock for a phase: once a reset has returned, nothing reaches memory.
struct Engine {
    signals: Arc<Signals>,
    state: Mutex<State>,
}

impl Engine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The control half.
impl Registers for Engine {
    fn read(&self, offset: u64, width: Width) -> Option<u64> {
        match (offset, width) {
            (ID, Width::B4) => Some(MAGIC.into()),
            (STATUS, Width::B4) => Some(self.state().status.into()),
            _ => None,
        }
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Option<()> {
        let value = u32::try_from(value).ok().filter(|_| width == Width::B4)?;
        let mut state = self.state();
        match offset {
            DESC_LO => state.desc[0] = value,
            DESC_HI => state.desc[1] = value,
            CONTROL if value == START && state.job.is_none() => state.job = Some(Job::Fetch),
            CONTROL if value == RESET => *state = State::default(),
            STATUS => state.status &= !value,
            _ => return None,
        }
        if state.status == 0 {
            self.signals.lower();
        }
        Some(())
    }

    fn reset(&self) {
        *self.state() = State::default();
    }
}

/// The data half.
struct Adder {
    engine: Arc<Engine>,
    memory: DeviceMemory,
    script: Arc<Script>,
    bytes: Vec<u8>,
}

impl Adder {
    fn fetch(&self, desc: u64) -> Option<Job> {
        let addr = self.memory.read_obj::<u64>(GuestAddress(desc)).ok()?;
        let len = self.memory.read_obj::<u32>(GuestAddress(desc.checked_add(LEN as u64)?)).ok()?;
        // Nothing that the driver wrote is trusted.
        (len <= MOST).then_some(Job::Add { addr: u64::from_le(addr), len: u32::from_le(len) })
    }

    fn add(&mut self, addr: u64, len: u32) -> Option<u64> {
        self.bytes.resize(usize::try_from(len).ok()?, 0);
        self.memory.read_slice(&mut self.bytes, GuestAddress(addr)).ok()?;
        Some(self.bytes.iter().map(|&byte| u64::from(byte)).sum())
    }

    /// The state last: it says that the sum is there.
    fn store(&self, desc: u64, sum: Option<u64>) -> Option<()> {
        let state = if sum.is_some() { GOOD } else { BAD };
        self.memory.write_obj(sum.unwrap_or(0).to_le(), GuestAddress(desc.checked_add(SUM as u64)?)).ok()?;
        self.memory.write_obj(state.to_le(), GuestAddress(desc.checked_add(STATE as u64)?)).ok()
    }
}

impl Worker for Adder {
    fn ready(&self) -> bool {
        self.engine.state().job.is_some()
    }

    fn service(&mut self, now: u64) -> Next {
        let engine = self.engine.clone();
        let mut state = engine.state();
        let desc = u64::from(state.desc[1]) << 32 | u64::from(state.desc[0]);
        let failed = Job::Store { sum: None, not_before: now };
        let next = match state.job.take() {
            None => return Next::Idle,
            Some(Job::Fetch) => self.fetch(desc).unwrap_or(failed),
            // What a campaign plans for a completion goes wrong here.
            Some(Job::Add { addr, len }) => match self.script.draw() {
                Some(Mishap::CompletionNever) => return Next::Idle,
                Some(Mishap::IoError) => failed,
                Some(_) => Job::Store { sum: self.add(addr, len), not_before: now + LATE },
                None => Job::Store { sum: self.add(addr, len), not_before: now },
            },
            Some(Job::Store { sum, not_before }) if now >= not_before => {
                let stored = self.store(desc, sum);
                let ok = stored.and(sum).is_some();
                self.memory.take_fault().inspect(|&fault| engine.signals.counters().count_fault(fault));
                engine.signals.counters().finished(ok, 0, self.bytes.len() as u64);
                state.status |= DONE;
                engine.signals.raise(0);
                return Next::Idle;
            }
            Some(Job::Store { sum, not_before }) => {
                state.job = Some(Job::Store { sum, not_before });
                return Next::At(not_before);
            }
        };
        state.job = Some(next);
        Next::Again
    }
}

fn make(env: &DeviceEnv<'_>) -> Result<Plugged, MakeError> {
    let spec = EndpointSpec { identity: IDENTITY, registers: REGISTERS, wide: false, vectors: 1, msi: false };
    let signals = Signals::new(&spec, env.irq.clone())?;
    let engine = Arc::new(Engine { signals: signals.clone(), state: Mutex::default() });
    let script = Arc::new(Script::of(&[Mishap::CompletionLate, Mishap::CompletionNever, Mishap::IoError]));
    let (memory, counters) = (env.memory(signals.gate())?, signals.counters());
    let adder = Adder { engine: engine.clone(), memory, script: script.clone(), bytes: Vec::new() };
    let function = Arc::new(Endpoint::new(signals, engine));
    Ok(Plugged {
        function: function.clone(),
        workers: vec![Box::new(adder)],
        slot: Some(function),
        script: Some(script),
        counters: Some(counters),
    })
}
