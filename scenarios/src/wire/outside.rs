//! `Outside`: a descriptor that a peer in another process writes to interrupt a CPU.
//!
//! A world whose CPUs sleep lets each sleep on its own ([`InProc::outside`](super::InProc::outside)), so that no thread
//! stands between the peer and the CPU. What the peer did shows in shared memory, so a CPU that is awake looks there: the
//! descriptor only ends a sleep. A peer lives in real time, so only the world of threads has such actors outside: lockstep
//! refuses the wires that need one, and no virtual clock can jump past what a peer is about to do. Neighbours:
//! `vhost_user`, whose call eventfds these are; `world::threads`.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use lowzone_device::pci::IrqSink;
use lowzone_driver::bus::Vector;
use vmm_sys_util::eventfd::EventFd;

/// One descriptor, with the interrupt that it stands for.
pub struct Outside {
    fd: Arc<EventFd>,
    cpu: u32,
    number: u16,
    vector: Vector,
    sink: Arc<dyn IrqSink>,
    moved: Moved,
}

/// Whether the peer has done anything since the last call.
pub type Moved = Box<dyn Fn() -> bool + Send + Sync>;

impl Outside {
    /// What `moved` is vector `number` of a device, for this CPU; the peer writes `fd` then.
    pub fn new(
        (fd, moved): (Arc<EventFd>, Moved),
        cpu: u32,
        (number, vector): (u16, Vector),
        sink: Arc<dyn IrqSink>,
    ) -> Self {
        Self { fd, cpu, number, vector, sink, moved }
    }

    /// The CPU that it interrupts.
    pub fn cpu(&self) -> u32 {
        self.cpu
    }

    /// Looks whether the peer did anything; the interrupt is pending then. No system call.
    pub fn look(&self) {
        if (self.moved)() {
            self.sink.msi(self.number, self.vector.addr, self.vector.data);
        }
    }
}

impl AsRawFd for Outside {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
