//! `Lines`: doorbells to the peer and interrupts from it, by queue.
//!
//! They belong to the device, not to a connection: a peer that comes back gets the same ones. The CPU that a queue
//! interrupts hears its call itself. Neighbours: `front`, which rings; `wire::Outside`, by which the world hears.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use lowzone_device::pci::IrqSink;
use lowzone_driver::bus::{PciBus, Vector};
use lowzone_guest_mem::PhysAddr;
use lowzone_guest_mem::kernel::KernelRef;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::VhostUserError;
use crate::wire::outside::Moved;
use crate::wire::{InProc, Outside};

/// One queue's.
pub(super) struct Pair {
    /// We write it, the peer reads it.
    pub(super) kick: EventFd,
    /// The peer writes it, a CPU sleeps on it; nobody reads it.
    pub(super) call: Arc<EventFd>,
    /// How far the peer is.
    pub(super) used: Arc<Used>,
}

/// The used index of a queue: what the peer has done since somebody looked.
pub(super) struct Used {
    kernel: KernelRef,
    /// Where the index lies; [`NOWHERE`] while the queue is not set up.
    at: AtomicU64,
    seen: AtomicU16,
}

const NOWHERE: u64 = u64::MAX;

impl Used {
    /// The queue begins, with its used ring here.
    pub(super) fn begins(&self, ring: PhysAddr) {
        self.seen.store(0, Ordering::Relaxed);
        self.at.store(ring.get() + 2, Ordering::Release);
    }

    /// The queue is stopped; its memory may become something else.
    pub(super) fn ends(&self) {
        self.at.store(NOWHERE, Ordering::Release);
    }

    /// Whether the peer moved on since the last call; only the CPU that it interrupts asks.
    fn moved(&self) -> bool {
        let at = self.at.load(Ordering::Acquire);
        let ram = self.kernel.get().filter(|_| at != NOWHERE).map(|kernel| kernel.ram());
        let index = ram.and_then(|ram| ram.load::<u16>(PhysAddr::new(at)).ok()).map(u16::from_le);
        index.is_some_and(|index| self.seen.swap(index, Ordering::Relaxed) != index)
    }
}

/// Those of all queues, with their interrupt vectors.
pub(super) struct Lines {
    pub(super) pairs: Vec<Pair>,
    /// That of config changes, then one a queue.
    vectors: Vec<Vector>,
    controller: Arc<InProc>,
    sink: Arc<dyn IrqSink>,
    /// Who else wants to know that a connection ended.
    on_end: OnceLock<OnEnd>,
}

/// What is called then.
pub(super) type OnEnd = Box<dyn Fn() + Send + Sync>;

impl Lines {
    /// Lines of so many queues, whose interrupts are spread over the CPUs.
    ///
    /// # Errors
    /// [`VhostUserError::NoVectors`], [`VhostUserError::Host`].
    pub(super) fn new(kernel: KernelRef, controller: Arc<InProc>, queues: u16) -> Result<Self, VhostUserError> {
        let cpus = kernel.get().map_or(1, |kernel| kernel.config().cpus);
        // They block neither side: the back end may set O_NONBLOCK on what both share, so nobody counts on blocking.
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VhostUserError::host("eventfd"));
        let used = || Used { kernel, at: AtomicU64::new(NOWHERE), seen: AtomicU16::new(0) };
        let pair = |_| Ok(Pair { kick: eventfd()?, call: Arc::new(eventfd()?), used: Arc::new(used()) });
        let pairs = (0..queues).map(pair).collect::<Result<_, VhostUserError>>()?;
        let sink = controller.next_slot().1;
        let mut lines = Self { pairs, vectors: Vec::new(), controller, sink, on_end: OnceLock::new() };
        let queue_cpus = (0..u32::from(queues)).map(|queue| queue % cpus.max(1));
        for cpu in std::iter::once(0).chain(queue_cpus) {
            let vector = lines.controller.alloc_vector(cpu).ok_or(VhostUserError::NoVectors { queues })?;
            lines.vectors.push(vector);
            if let Some(queue) = lines.vectors.len().checked_sub(2) {
                let number = u16::try_from(queue + 1).unwrap_or(u16::MAX);
                let Pair { call, used, .. } = &lines.pairs[queue];
                let used = used.clone();
                let word = (call.clone(), Box::new(move || used.moved()) as Moved);
                lines.controller.add_outside(Outside::new(word, cpu, (number, vector), lines.sink.clone()));
            }
        }
        Ok(lines)
    }

    /// The interrupt number of each vector.
    pub(super) fn irqs(&self) -> Arc<[u32]> {
        self.vectors.iter().map(|vector| vector.irq).collect()
    }

    /// Every queue is about to be stopped.
    pub(super) fn end(&self) {
        self.pairs.iter().for_each(|pair| pair.used.ends());
    }

    /// Has `told` called when a connection ends; the first one that asks is told.
    pub(super) fn on_end(&self, told: OnEnd) {
        self.on_end.get_or_init(|| told);
    }

    /// A connection has ended: the driver should look.
    pub(super) fn ended(&self) {
        self.raise(0);
        if let Some(told) = self.on_end.get() {
            told();
        }
    }

    /// Interrupts the CPU of a vector.
    fn raise(&self, vector: u16) {
        if let Some(to) = self.vectors.get(usize::from(vector)) {
            self.sink.msi(vector, to.addr, to.data);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.vectors.iter().for_each(|vector| self.controller.free_vector(vector.irq));
    }
}

#[cfg(test)]
mod tests {
    use lowzone_guest_mem::kernel::{Machine, MachineConfig};

    use super::*;

    #[test]
    fn a_peer_that_moved_on_is_seen_once_and_only_while_the_queue_runs() {
        let machine = Machine::acquire(MachineConfig::default()).unwrap();
        let (at, seen) = (AtomicU64::new(NOWHERE), AtomicU16::new(7));
        let used = Used { kernel: machine.kernel_ref(), at, seen };
        let index = |value: u16| machine.kernel().ram().store(PhysAddr::new(0x1002), value.to_le()).unwrap();
        index(1);
        assert!(!used.moved(), "no queue yet");
        used.begins(PhysAddr::new(0x1000));
        assert!(used.moved() && !used.moved());
        index(0);
        assert!(used.moved(), "past the end of its range it goes on from 0");
        index(9);
        used.ends();
        assert!(!used.moved(), "the memory may be something else by now");
    }
}
