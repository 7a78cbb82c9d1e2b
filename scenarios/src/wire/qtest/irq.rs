//! Interrupts of QEMU's devices: messages as words in RAM, pins as lines that QEMU tells of.
//!
//! A vector is a word of the page at [`MAILBOX`], which lies in the first megabyte and is never managed by the kernel.
//! Whoever looks ([`Interrupts::sweep`]) clears a word before it queues the interrupt: a message that comes in between
//! is covered by the handler that has yet to run. Pins go through the PC's four PCI lines to inputs of its I/O APIC.
//! Neighbours: `bus`, which sweeps; `wire::inproc`, whose vectors have addresses that only a real APIC decodes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowzone_driver::bus::{Bdf, Vector};
use lowzone_guest_mem::PhysAddr;
use lowzone_guest_mem::env::IrqHandler;
use lowzone_guest_mem::kernel::KernelRef;

use super::protocol::Line;

/// The page whose words stand for vectors.
const MAILBOX: u64 = 0x1000;
/// Words in it.
const VECTORS: usize = 1024;
/// The first interrupt number of a message, as in process.
const MSI_FIRST: u32 = 64;
/// The first interrupt number of a PCI line.
const LINE_FIRST: u32 = 16;
/// The I/O APIC input of each of the PC's PCI lines: its ISA bridge is told so.
pub(super) const INPUTS: [u8; 4] = [5, 7, 10, 11];

/// What is allocated, high and pending.
pub(super) struct Interrupts {
    kernel: KernelRef,
    state: Mutex<State>,
}

struct State {
    /// Pending messages by CPU, oldest first; one that is pending already is not queued twice.
    pending: Vec<VecDeque<u32>>,
    /// The CPU of each vector that is allocated.
    vectors: Vec<Option<u32>>,
    levels: [bool; INPUTS.len()],
    /// Whether anything came since the keeper last looked.
    news: bool,
}

impl Interrupts {
    /// None yet, on a machine of `cpus` CPUs.
    pub(super) fn new(kernel: KernelRef, cpus: u32) -> Self {
        let pending = (0..cpus).map(|_| VecDeque::new()).collect();
        let state = State { pending, vectors: Vec::new(), levels: [false; INPUTS.len()], news: false };
        Self { kernel, state: Mutex::new(state) }
    }

    /// A vector that interrupts `cpu`, its word cleared.
    pub(super) fn alloc(&self, cpu: u32) -> Option<Vector> {
        let mut state = self.lock();
        let free = state.vectors.iter().position(Option::is_none).unwrap_or(state.vectors.len());
        let irq = MSI_FIRST + u32::try_from(free).ok().filter(|_| free < VECTORS)?;
        if free == state.vectors.len() {
            state.vectors.push(None);
        }
        state.vectors[free] = Some(cpu);
        self.clear(free);
        Some(Vector { irq, addr: word(free).get(), data: irq })
    }

    /// Gives a vector back; one still pending is dropped.
    pub(super) fn free(&self, irq: u32) {
        let mut state = self.lock();
        let index = irq.checked_sub(MSI_FIRST).and_then(|index| usize::try_from(index).ok());
        if let Some(vector) = index.and_then(|index| state.vectors.get_mut(index)) {
            *vector = None;
        }
        state.pending.iter_mut().for_each(|queue| queue.retain(|&pending| pending != irq));
    }

    /// The interrupt number of pin `pin` (0 = INTA) of a function: boards rotate the lines by slot.
    pub(super) fn line_of(at: Bdf, pin: u32) -> u32 {
        LINE_FIRST + (pin + u32::from(at.device) + 3) % 4
    }

    /// Notes a change of an I/O APIC input; those that no PCI line reaches, such as the timer's, are ignored.
    pub(super) fn set_line(&self, line: Line) {
        if let Some(at) = INPUTS.iter().position(|&input| usize::from(input) == line.number) {
            let mut state = self.lock();
            state.levels[at] = line.high;
            state.news |= line.high;
        }
    }

    /// Queues the messages that have come; whether any came, or any line went high, since the last call.
    pub(super) fn sweep(&self) -> bool {
        let mut state = self.lock();
        self.sweep_locked(&mut state);
        std::mem::take(&mut state.news)
    }

    /// Whether an interrupt waits for `cpu`.
    pub(super) fn pending(&self, cpu: u32) -> bool {
        let mut state = self.lock();
        self.sweep_locked(&mut state);
        let queued = usize::try_from(cpu).ok().and_then(|at| state.pending.get(at));
        queued.is_some_and(|queue| !queue.is_empty()) || self.line(&state, cpu).is_some()
    }

    /// Takes the next interrupt of `cpu`; a line that is high is not used up by that.
    pub(super) fn take(&self, cpu: u32) -> Option<u32> {
        let mut state = self.lock();
        self.sweep_locked(&mut state);
        let queued = usize::try_from(cpu).ok().and_then(|at| state.pending.get_mut(at)?.pop_front());
        queued.or_else(|| self.line(&state, cpu))
    }

    /// Takes the next interrupt of `cpu` that has a handler; one that has none is dropped.
    pub(super) fn take_handler(&self, cpu: u32) -> Option<Arc<dyn IrqHandler>> {
        loop {
            let irq = self.take(cpu)?;
            if let Some(handler) = self.kernel.get()?.irqs().handler(irq) {
                return Some(handler);
            }
        }
    }

    /// How many vectors are allocated.
    pub(super) fn allocated(&self) -> usize {
        self.lock().vectors.iter().flatten().count()
    }

    fn sweep_locked(&self, state: &mut State) {
        let Some(kernel) = self.kernel.get() else { return };
        let State { pending, vectors, news, .. } = state;
        for (index, cpu) in vectors.iter().enumerate() {
            let Some(cpu) = *cpu else { continue };
            let Ok(irq @ 1..) = kernel.ram().load::<u32>(word(index)) else { continue };
            *news = true;
            self.clear(index);
            let queue = usize::try_from(cpu).ok().and_then(|at| pending.get_mut(at));
            if let Some(queue) = queue.filter(|queue| !queue.contains(&irq)) {
                queue.push_back(irq);
            }
        }
    }

    /// The line that is high and has a handler; all lines go to CPU 0, as a PC's legacy lines do.
    fn line(&self, state: &State, cpu: u32) -> Option<u32> {
        let kernel = self.kernel.get()?;
        let high = (LINE_FIRST..).zip(state.levels).filter(|&(_, high)| cpu == 0 && high);
        high.map(|(irq, _)| irq).find(|&irq| kernel.irqs().handler(irq).is_some())
    }

    fn clear(&self, index: usize) {
        if let Some(kernel) = self.kernel.get() {
            // The page is RAM of every machine: the smallest has more than 1 MiB.
            let _ = kernel.ram().store(word(index), 0_u32);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn word(index: usize) -> PhysAddr {
    PhysAddr::new(MAILBOX + 4 * index as u64)
}

#[cfg(test)]
mod tests {
    use lowzone_guest_mem::kernel::{Machine, MachineConfig};

    use super::*;

    fn machine() -> Machine {
        Machine::acquire(MachineConfig { ram: 64 << 20, ..MachineConfig::default() }).unwrap()
    }

    #[test]
    fn a_word_becomes_one_interrupt_of_its_cpu() {
        let machine = machine();
        let interrupts = Interrupts::new(machine.kernel_ref(), 2);
        let vectors = [0, 1, 1].map(|cpu| interrupts.alloc(cpu).unwrap());
        let send = |vector: &Vector| machine.kernel().ram().store(PhysAddr::new(vector.addr), vector.data).unwrap();
        send(&vectors[2]);
        send(&vectors[1]);
        assert!(interrupts.sweep());
        send(&vectors[2]);
        assert!(!interrupts.pending(0) && interrupts.pending(1));
        assert_eq!([(); 3].map(|()| interrupts.take(1)), [Some(vectors[1].irq), Some(vectors[2].irq), None]);
        send(&vectors[0]);
        assert_eq!((interrupts.take(1), interrupts.take(0)), (None, Some(vectors[0].irq)));
        assert!(interrupts.sweep(), "the keeper is told of what a CPU found first");
        assert!(!interrupts.sweep());
    }

    #[test]
    fn a_freed_vector_is_silent_and_comes_back_clear() {
        let machine = machine();
        let interrupts = Interrupts::new(machine.kernel_ref(), 1);
        let vector = interrupts.alloc(0).unwrap();
        let ram = machine.kernel().ram();
        ram.store(PhysAddr::new(vector.addr), vector.data).unwrap();
        assert!(interrupts.pending(0));
        interrupts.free(vector.irq);
        ram.store(PhysAddr::new(vector.addr), vector.data).unwrap();
        assert!(!interrupts.pending(0), "neither what was queued nor what comes late");
        assert_eq!(interrupts.alloc(0), Some(vector));
        assert!(!interrupts.pending(0));
        let more = (1..=VECTORS).map_while(|_| interrupts.alloc(0)).count();
        assert_eq!((more, interrupts.allocated()), (VECTORS - 1, VECTORS));
    }

    #[test]
    fn lines_rotate_by_slot() {
        let at = |device| Bdf { bus: 0, device, function: 0 };
        // PIIX3: (pin + slot - 1) mod 4.
        assert_eq!([2, 3, 4, 5].map(|slot| Interrupts::line_of(at(slot), 0)), [17, 18, 19, 16]);
        assert_eq!(Interrupts::line_of(at(2), 3), 16);
    }
}
