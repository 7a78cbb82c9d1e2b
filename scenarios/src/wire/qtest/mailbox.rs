//! Interrupts of QEMU's devices, as they reach the lab's interrupt controller.
//!
//! A message is a word of the page at [`PAGE`], which lies in the first megabyte and is never managed by the kernel:
//! the driver is given the word's address where a PC's would be that of an APIC. Whoever collects clears a word before
//! it passes the message on: one that comes in between is covered by the handler that has yet to run. Pins go through
//! the PC's four PCI lines to inputs of its I/O APIC, of whose changes QEMU tells.
//! Neighbours: `bus`, which collects; `wire::InProc`, the controller, which queues, and wakes CPUs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lowzone_device::pci::IrqSink;
use lowzone_driver::bus::{Bdf, PciBus, Vector};
use lowzone_guest_mem::PhysAddr;
use lowzone_guest_mem::kernel::KernelRef;

use super::protocol::Line;
use crate::wire::InProc;

/// The page whose words stand for vectors.
pub const PAGE: u64 = 0x1000;
/// Words in it.
const WORDS: usize = 1024;
/// The I/O APIC input of each of the PC's PCI lines: its ISA bridge is told so.
pub(super) const INPUTS: [u8; 4] = [5, 7, 10, 11];

/// Where messages and changes of lines come in.
pub(super) struct Mailbox {
    kernel: KernelRef,
    controller: Arc<InProc>,
    /// The interrupt number of each PCI line, and the way to it.
    lines: [(u32, Arc<dyn IrqSink>); INPUTS.len()],
    /// The vector that each word stands for.
    words: Mutex<Vec<Option<Vector>>>,
}

impl Mailbox {
    /// An empty one in front of a controller.
    pub(super) fn new(kernel: KernelRef, controller: Arc<InProc>) -> Self {
        let lines = std::array::from_fn(|slot| controller.line(slot));
        Self { kernel, controller, lines, words: Mutex::default() }
    }

    /// A vector that interrupts `cpu`: the controller's, at the address of a clear word.
    pub(super) fn alloc(&self, cpu: u32) -> Option<Vector> {
        let mut words = self.lock();
        let free = words.iter().position(Option::is_none).unwrap_or(words.len());
        let vector = if free < WORDS { self.controller.alloc_vector(cpu)? } else { return None };
        if free == words.len() {
            words.push(None);
        }
        words[free] = Some(vector);
        self.clear(free);
        Some(Vector { addr: word(free).get(), ..vector })
    }

    /// Gives a vector back; one still pending is dropped.
    pub(super) fn free(&self, irq: u32) {
        let mut words = self.lock();
        words.iter_mut().filter(|word| word.is_some_and(|vector| vector.irq == irq)).for_each(|word| *word = None);
        self.controller.free_vector(irq);
    }

    /// Passes on the messages that have come; whether there were any.
    pub(super) fn collect(&self) -> bool {
        let Some(kernel) = self.kernel.get() else { return false };
        let mut any = false;
        for (index, vector) in self.lock().iter().enumerate() {
            let Some(vector) = vector else { continue };
            let Ok(data @ 1..) = kernel.ram().load::<u32>(word(index)) else { continue };
            self.clear(index);
            // A message belongs to no line: any of the ways will do.
            self.lines[0].1.msi(0, vector.addr, data);
            any = true;
        }
        any
    }

    /// Passes on a change of an I/O APIC input; those that no PCI line reaches, such as the timer's, are ignored.
    pub(super) fn set_line(&self, change: Line) {
        if let Some(at) = INPUTS.iter().position(|&input| usize::from(input) == change.number) {
            self.lines[at].1.intx(change.high);
        }
    }

    /// Takes the controller's next interrupt of `cpu`.
    pub(super) fn take_irq(&self, cpu: u32) -> Option<u32> {
        self.controller.take_irq(cpu)
    }

    /// The interrupt number of pin `pin` (0 = INTA) of a function: boards rotate the lines by slot (PIIX3).
    pub(super) fn line_of(&self, at: Bdf, pin: u8) -> u32 {
        self.lines[usize::from(pin + at.device % 4 + 3) % INPUTS.len()].0
    }

    fn clear(&self, index: usize) {
        if let Some(kernel) = self.kernel.get() {
            // The page is RAM of every machine: the smallest has more than 1 MiB.
            let _ = kernel.ram().store(word(index), 0_u32);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Vector>>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn word(index: usize) -> PhysAddr {
    PhysAddr::new(PAGE + 4 * index as u64)
}

#[cfg(test)]
mod tests {
    use lowzone_guest_mem::kernel::{Machine, MachineConfig};

    use super::*;

    fn rig() -> (Machine, Arc<InProc>, Mailbox) {
        let machine = Machine::acquire(MachineConfig { ram: 64 << 20, ..MachineConfig::default() }).unwrap();
        let controller = Arc::new(InProc::new(machine.kernel_ref(), 2));
        let mailbox = Mailbox::new(machine.kernel_ref(), controller.clone());
        (machine, controller, mailbox)
    }

    fn send(machine: &Machine, vector: &Vector) {
        machine.kernel().ram().store(PhysAddr::new(vector.addr), vector.data).unwrap();
    }

    #[test]
    fn a_word_becomes_one_interrupt_of_its_cpu() {
        let (machine, controller, mailbox) = rig();
        let vectors = [0, 1, 1].map(|cpu| mailbox.alloc(cpu).unwrap());
        send(&machine, &vectors[2]);
        assert!(mailbox.collect());
        send(&machine, &vectors[1]);
        send(&machine, &vectors[2]);
        assert!(mailbox.collect());
        assert!(!controller.pending(0) && controller.pending(1));
        assert_eq!([(); 3].map(|()| controller.take_irq(1)), [Some(vectors[2].irq), Some(vectors[1].irq), None]);
        send(&machine, &vectors[0]);
        assert!(mailbox.collect());
        assert_eq!((controller.take_irq(1), controller.take_irq(0)), (None, Some(vectors[0].irq)));
        assert!(!mailbox.collect());
        send(&machine, &Vector { data: vectors[0].data + 1000, ..vectors[0] });
        assert!(mailbox.collect() && !controller.pending(0), "a number that nobody has reaches no CPU");
    }

    #[test]
    fn a_freed_vector_is_silent_and_comes_back_clear() {
        let (machine, controller, mailbox) = rig();
        let vector = mailbox.alloc(0).unwrap();
        send(&machine, &vector);
        assert!(mailbox.collect() && controller.pending(0));
        mailbox.free(vector.irq);
        send(&machine, &vector);
        assert!(!mailbox.collect() && !controller.pending(0), "neither what was queued nor what comes late");
        assert_eq!(mailbox.alloc(0), Some(vector));
        assert!(!mailbox.collect());
        let more = (1..=WORDS).map_while(|_| mailbox.alloc(0)).count();
        assert_eq!((more, controller.vectors()), (WORDS - 1, WORDS));
    }

    #[test]
    fn lines_rotate_by_slot() {
        let (_machine, _controller, mailbox) = rig();
        let at = |device| Bdf { bus: 0, device, function: 0 };
        // PIIX3: (pin + slot - 1) mod 4.
        assert_eq!([2, 3, 4, 5].map(|slot| mailbox.line_of(at(slot), 0)), [17, 18, 19, 16]);
        assert_eq!(mailbox.line_of(at(2), 3), 16);
    }
}
