//! `InProc`: driver and device in one process.
//!
//! Register accesses go to whichever function decodes the address *now*; holes read all-ones. MSI messages and INTx
//! levels are queued and taken by the CPU they are for, at its next point with interrupts enabled, so nothing is ever
//! called back from inside a call. A world whose CPUs and workers sleep asks to be told ([`InProc::on_stir`]). Vectors are the x86 ones: address 0xFEE00000 with the CPU in bits 19:12.
//! Neighbours: `driver::bus`, `guest_mem::iospace`, `device::pci`. Left out: bridges, hot-plug.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lowzone_device::pci::{IrqSink, PciFunction, Removable, Width as DeviceWidth};
use lowzone_driver::bus::{Bdf, PciBus, Vector};
use lowzone_guest_mem::PhysAddr;
use lowzone_guest_mem::env::IrqHandler;
use lowzone_guest_mem::iospace::{IoSpace, Width};
use lowzone_guest_mem::kernel::{Kernel, KernelRef};
use lowzone_guest_mem::ram::LOW_LIMIT;

use super::outside::Outside;
use crate::explore::place::IrqMishap;

/// Where MSI messages go (Intel SDM 11.11.1).
const MSI_BASE: u64 = 0xfee0_0000;
/// Where BARs may be placed: from the top of possible low RAM to the I/O APIC.
const WINDOW: (u64, u64) = (LOW_LIMIT, 0xfec0_0000 - LOW_LIMIT);
/// The first interrupt number of an INTx pin, by slot.
const INTX_FIRST: u32 = 16;
/// The first interrupt number of an MSI.
const MSI_FIRST: u32 = 64;
/// Vectors that all CPUs have together.
const MSI_COUNT: u32 = 4096;
/// How late a late message is.
const LATE_NS: u64 = 1_000_000;

/// Who may have something to do now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stir {
    /// An interrupt may be pending for this CPU.
    Cpu(usize),
    /// A register of the function in this slot was written: its workers may be ready.
    Device(usize),
}

type OnStir = Box<dyn Fn(Stir) + Send + Sync>;

/// Interrupts between devices and CPUs.
struct Interrupts {
    kernel: KernelRef,
    state: Mutex<IrqState>,
    /// Whether an INTx line is high, for a look without the lock.
    line_high: AtomicBool,
    on_stir: OnceLock<OnStir>,
}

#[derive(Default)]
struct IrqState {
    /// Pending MSIs by CPU, oldest first; one that is pending already is not queued twice.
    pending: Vec<VecDeque<u32>>,
    /// Allocated vectors and their CPU.
    vectors: BTreeMap<u32, u32>,
    /// INTx levels by slot.
    levels: Vec<bool>,
    /// Messages held back: when they are due, for which CPU, which vector.
    late: Vec<(u64, usize, u32)>,
    /// Messages sent so far, and what is to happen to which.
    sent: u64,
    mishap: Option<(IrqMishap, u64, bool)>,
}

impl IrqState {
    fn queue(&mut self, target: usize, irq: u32) {
        if let Some(queue) = self.pending.get_mut(target).filter(|queue| !queue.contains(&irq)) {
            queue.push_back(irq);
        }
    }

    /// Queues the messages that were held back and are due; the CPUs that they are for.
    fn release_late(&mut self, now: u64) -> Vec<usize> {
        let mut targets = Vec::new();
        while let Some(at) = self.late.iter().position(|&(due, _, _)| due <= now) {
            let (_, target, irq) = self.late.remove(at);
            self.queue(target, irq);
            targets.push(target);
        }
        targets
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interrupts {
    fn stir(&self, who: Stir) {
        if let Some(on_stir) = self.on_stir.get() {
            on_stir(who);
        }
    }

    /// The INTx line that is high and has a handler; all lines go to CPU 0, as a PC's legacy lines do.
    fn line(&self, state: &IrqState, cpu: u32) -> Option<u32> {
        let high = (INTX_FIRST..).zip(&state.levels).filter(|(_, high)| cpu == 0 && **high);
        let kernel = self.kernel.get()?;
        high.map(|(irq, _)| irq).find(|&irq| kernel.irqs().handler(irq).is_some())
    }
}

/// One function's way to the interrupt controller.
struct FunctionIrq {
    interrupts: Arc<Interrupts>,
    slot: usize,
}

impl IrqSink for FunctionIrq {
    fn msi(&self, _vector: u16, addr: u64, data: u32) {
        let mut state = lock(&self.interrupts.state);
        let target = usize::try_from((addr >> 12) & 0xff).unwrap_or(usize::MAX);
        // A message elsewhere, or with a vector that nobody has, reaches no CPU, as on a PC.
        if addr & !0xff_ffff != MSI_BASE & !0xff_ffff || !state.vectors.contains_key(&data) {
            return;
        }
        let number = state.sent;
        state.sent += 1;
        let mishap = state.mishap.filter(|&(_, nth, persistent)| number == nth || (persistent && number > nth));
        let due = self.interrupts.kernel.get().map_or(0, Kernel::clock) + LATE_NS;
        match mishap.map(|(what, _, _)| what) {
            Some(IrqMishap::Lost) => {}
            Some(IrqMishap::Late) => state.late.push((due, target, data)),
            Some(IrqMishap::Spurious) => {
                state.queue(target, data);
                state.late.push((due, target, data));
            }
            None => state.queue(target, data),
        }
        drop(state);
        self.interrupts.stir(Stir::Cpu(target));
    }

    fn intx(&self, level: bool) {
        {
            let mut state = lock(&self.interrupts.state);
            if let Some(line) = state.levels.get_mut(self.slot) {
                *line = level;
            }
            self.interrupts.line_high.store(state.levels.contains(&true), Ordering::Release);
        }
        if level {
            self.interrupts.stir(Stir::Cpu(0));
        }
    }
}

/// A PCI bus whose functions live in this process.
pub struct InProc {
    interrupts: Arc<Interrupts>,
    functions: Mutex<Vec<Arc<dyn PciFunction>>>,
    slots: Mutex<Vec<Arc<dyn Removable>>>,
    outside: Mutex<Vec<Arc<Outside>>>,
}

impl InProc {
    /// An empty bus on a machine of `cpus` CPUs.
    pub fn new(kernel: KernelRef, cpus: u32) -> Self {
        let pending = (0..cpus).map(|_| VecDeque::new()).collect();
        let state = Mutex::new(IrqState { pending, ..IrqState::default() });
        Self {
            interrupts: Arc::new(Interrupts {
                kernel,
                state,
                line_high: AtomicBool::new(false),
                on_stir: OnceLock::new(),
            }),
            functions: Mutex::default(),
            slots: Mutex::default(),
            outside: Mutex::default(),
        }
    }

    /// From now on `told` hears who may have something to do; the first one that asks is told. It must not call back.
    pub fn on_stir(&self, told: impl Fn(Stir) + Send + Sync + 'static) {
        self.interrupts.on_stir.get_or_init(|| Box::new(told));
    }

    /// From now on a peer interrupts a CPU by this descriptor; a world that is made later hears it.
    pub fn add_outside(&self, line: Outside) {
        lock(&self.outside).push(Arc::new(line));
    }

    /// The descriptors by which peers interrupt a CPU.
    pub fn outside(&self, cpu: u32) -> Vec<Arc<Outside>> {
        lock(&self.outside).iter().filter(|line| line.cpu() == cpu).cloned().collect()
    }

    /// Whether an INTx line is high: one load.
    pub fn line_high(&self) -> bool {
        self.interrupts.line_high.load(Ordering::Acquire)
    }

    fn stir_all(&self) {
        (0..lock(&self.functions).len()).for_each(|slot| self.interrupts.stir(Stir::Device(slot)));
    }

    /// The place that the next function will have, and its way to interrupts.
    pub fn next_slot(&self) -> (Bdf, Arc<dyn IrqSink>) {
        let slot = lock(&self.functions).len();
        (place(slot), self.line(slot).1)
    }

    /// The interrupt line of a slot, whose function may be elsewhere: its number, and the way to it and to vectors.
    pub fn line(&self, slot: usize) -> (u32, Arc<dyn IrqSink>) {
        let mut state = lock(&self.interrupts.state);
        let lines = state.levels.len().max(slot + 1);
        state.levels.resize(lines, false);
        let sink = FunctionIrq { interrupts: self.interrupts.clone(), slot };
        (INTX_FIRST + u32::try_from(slot).unwrap_or(0), Arc::new(sink))
    }

    /// Plugs a function into the next slot; without a `slot` it can't be pulled out of it.
    pub fn plug(&self, function: Arc<dyn PciFunction>, slot: Option<Arc<dyn Removable>>) {
        lock(&self.functions).push(function);
        lock(&self.slots).extend(slot);
    }

    /// Whether any device can be pulled out.
    pub fn removable(&self) -> bool {
        !lock(&self.slots).is_empty()
    }

    /// Pulls every device out: registers and config space read all-ones, DMA and interrupts stop.
    pub fn unplug_all(&self) {
        lock(&self.slots).iter().for_each(|slot| slot.unplug());
        lock(&self.interrupts.state).late.clear();
        self.stir_all();
    }

    /// Puts the devices back, as after power-on; whether they had been pulled out.
    pub fn replug_all(&self) -> bool {
        let slots = lock(&self.slots);
        let pulled = slots.iter().any(|slot| !slot.plugged());
        slots.iter().for_each(|slot| slot.replug());
        drop(slots);
        self.stir_all();
        pulled
    }

    /// From now on `what` happens to the `nth` message, counted from 0, and to all later ones if `persistent`.
    pub fn plan_mishap(&self, mishap: Option<(IrqMishap, u64, bool)>) {
        let mut state = lock(&self.interrupts.state);
        (state.mishap, state.sent) = (mishap, 0);
    }

    /// Messages sent since the last [`InProc::plan_mishap`].
    pub fn messages(&self) -> u64 {
        lock(&self.interrupts.state).sent
    }

    /// When the next message that was held back is due.
    pub fn next_late(&self) -> Option<u64> {
        lock(&self.interrupts.state).late.iter().map(|&(due, _, _)| due).min()
    }

    /// Whether an interrupt waits for `cpu`.
    pub fn pending(&self, cpu: u32) -> bool {
        let mut state = lock(&self.interrupts.state);
        if !state.late.is_empty() {
            drop(state);
            self.release_late();
            state = lock(&self.interrupts.state);
        }
        let queued = usize::try_from(cpu).ok().and_then(|at| state.pending.get(at));
        queued.is_some_and(|queue| !queue.is_empty()) || self.interrupts.line(&state, cpu).is_some()
    }

    /// Sends the messages that were held back and are due.
    #[cold]
    pub fn release_late(&self) {
        let now = self.interrupts.kernel.get().map_or(0, Kernel::clock);
        let targets = lock(&self.interrupts.state).release_late(now);
        targets.into_iter().for_each(|target| self.interrupts.stir(Stir::Cpu(target)));
    }

    /// Takes the next interrupt of `cpu` that has a handler; one that has none is dropped.
    pub fn take_handler(&self, cpu: u32) -> Option<Arc<dyn IrqHandler>> {
        loop {
            let irq = self.take_irq(cpu)?;
            let kernel = self.interrupts.kernel.get()?;
            if irq >= MSI_FIRST {
                kernel.message_arrived(cpu);
            }
            if let Some(handler) = kernel.irqs().handler(irq) {
                return Some(handler);
            }
        }
    }

    /// How many vectors are allocated.
    pub fn vectors(&self) -> usize {
        lock(&self.interrupts.state).vectors.len()
    }

    /// A configuration access doesn't pass the register writes before it.
    fn push_posted(&self, slot: usize) {
        if let Some(kernel) = self.interrupts.kernel.get() {
            kernel.push_posted(slot as u64);
        }
    }

    fn function(&self, at: Bdf) -> Option<(usize, Arc<dyn PciFunction>)> {
        let slot = usize::from(at.device).checked_sub(1).filter(|_| at.bus == 0 && at.function == 0)?;
        Some((slot, lock(&self.functions).get(slot)?.clone()))
    }

    fn decode(&self, at: PhysAddr, width: Width) -> Option<(usize, Arc<dyn PciFunction>, u8, u64)> {
        let functions = lock(&self.functions);
        functions.iter().enumerate().find_map(|(slot, function)| {
            let (bar, offset) = function.decode(at.get(), device_width(width))?;
            Some((slot, function.clone(), bar, offset))
        })
    }
}

/// The place of the device with this number: the first is the host bridge's, as on a PC.
pub(crate) fn place(slot: usize) -> Bdf {
    Bdf { bus: 0, device: u8::try_from(slot + 1).unwrap_or(u8::MAX), function: 0 }
}

fn device_width(width: Width) -> DeviceWidth {
    match width {
        Width::B1 => DeviceWidth::B1,
        Width::B2 => DeviceWidth::B2,
        Width::B4 => DeviceWidth::B4,
        Width::B8 => DeviceWidth::B8,
    }
}

impl PciBus for InProc {
    fn config_read(&self, at: Bdf, offset: u16, width: Width) -> u32 {
        let absent = u32::try_from(width.ones()).unwrap_or(u32::MAX);
        self.function(at).map_or(absent, |(slot, function)| {
            self.push_posted(slot);
            function.config_read(offset, device_width(width))
        })
    }

    fn config_write(&self, at: Bdf, offset: u16, width: Width, value: u32) {
        if let Some((slot, function)) = self.function(at) {
            self.push_posted(slot);
            function.config_write(offset, device_width(width), value);
            self.interrupts.stir(Stir::Device(slot));
        }
    }

    fn window(&self) -> (PhysAddr, u64) {
        (PhysAddr::new(WINDOW.0), WINDOW.1)
    }

    fn alloc_vector(&self, cpu: u32) -> Option<Vector> {
        let mut state = lock(&self.interrupts.state);
        let irq = (MSI_FIRST..MSI_FIRST + MSI_COUNT).find(|irq| !state.vectors.contains_key(irq))?;
        state.vectors.insert(irq, cpu);
        if let Some(kernel) = self.interrupts.kernel.get() {
            kernel.irqs().add_vector(irq, cpu);
        }
        Some(Vector { irq, addr: MSI_BASE | u64::from(cpu & 0xff) << 12, data: irq })
    }

    fn free_vector(&self, irq: u32) {
        let mut state = lock(&self.interrupts.state);
        state.vectors.remove(&irq);
        if let Some(kernel) = self.interrupts.kernel.get() {
            kernel.irqs().remove_vector(irq);
        }
        state.pending.iter_mut().for_each(|queue| queue.retain(|&pending| pending != irq));
    }

    fn intx(&self, at: Bdf) -> Option<u32> {
        self.function(at)?;
        u32::from(at.device).checked_sub(1).map(|slot| INTX_FIRST + slot)
    }

    fn take_irq(&self, cpu: u32) -> Option<u32> {
        let mut state = lock(&self.interrupts.state);
        let queued = usize::try_from(cpu).ok().and_then(|at| state.pending.get_mut(at)?.pop_front());
        queued.or_else(|| self.interrupts.line(&state, cpu))
    }

    fn reset(&self, at: Bdf) {
        if let Some((slot, function)) = self.function(at) {
            function.reset();
            self.interrupts.stir(Stir::Device(slot));
        }
    }
}

impl IoSpace for InProc {
    fn read(&self, at: PhysAddr, width: Width) -> u64 {
        let answer = self
            .decode(at, width)
            .and_then(|(_, function, bar, offset)| function.bar_read(bar, offset, device_width(width)).ok());
        answer.unwrap_or_else(|| width.ones())
    }

    fn write(&self, at: PhysAddr, width: Width, value: u64) {
        if let Some((slot, function, bar, offset)) = self.decode(at, width) {
            // A register that isn't there swallows the write, as on a real bus.
            let _ = function.bar_write(bar, offset, device_width(width), value);
            self.interrupts.stir(Stir::Device(slot));
        }
    }

    fn function(&self, at: PhysAddr) -> u64 {
        self.decode(at, Width::B1).map_or(u64::MAX, |(slot, ..)| slot as u64)
    }
}
