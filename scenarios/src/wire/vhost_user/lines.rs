//! `Lines`: doorbells to the peer and interrupts from it, by queue.
//!
//! They belong to the device, not to a connection: a peer that comes back gets the same ones. Neighbours: `front`,
//! which rings; `link`, whose thread hears.

use std::sync::Arc;

use lowzone_device::pci::IrqSink;
use lowzone_driver::bus::{PciBus, Vector};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::VhostUserError;
use crate::wire::InProc;

/// One queue's.
pub(super) struct Pair {
    /// We write it, the peer reads it.
    pub(super) kick: EventFd,
    /// The peer writes it, the link's thread reads it.
    pub(super) call: EventFd,
}

/// Those of all queues, with their interrupt vectors.
pub(super) struct Lines {
    pub(super) pairs: Vec<Pair>,
    /// That of config changes, then one a queue.
    vectors: Vec<Vector>,
    controller: Arc<InProc>,
    sink: Arc<dyn IrqSink>,
}

impl Lines {
    /// Lines of so many queues, whose interrupts are spread over `cpus` CPUs.
    ///
    /// # Errors
    /// [`VhostUserError::NoVectors`], [`VhostUserError::Host`].
    pub(super) fn new(controller: Arc<InProc>, queues: u16, cpus: u32) -> Result<Self, VhostUserError> {
        // They block neither side: the back end may set O_NONBLOCK on what both share, so nobody counts on blocking.
        let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VhostUserError::host("eventfd"));
        let pair = |_| Ok(Pair { kick: eventfd()?, call: eventfd()? });
        let pairs = (0..queues).map(pair).collect::<Result<_, VhostUserError>>()?;
        let sink = controller.next_slot().1;
        let mut lines = Self { pairs, vectors: Vec::new(), controller, sink };
        let queue_cpus = (0..u32::from(queues)).map(|queue| queue % cpus.max(1));
        for cpu in std::iter::once(0).chain(queue_cpus) {
            let vector = lines.controller.alloc_vector(cpu).ok_or(VhostUserError::NoVectors { queues })?;
            lines.vectors.push(vector);
        }
        Ok(lines)
    }

    /// The interrupt number of each vector.
    pub(super) fn irqs(&self) -> Arc<[u32]> {
        self.vectors.iter().map(|vector| vector.irq).collect()
    }

    /// Interrupts the CPU of a vector.
    pub(super) fn raise(&self, vector: u16) {
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
