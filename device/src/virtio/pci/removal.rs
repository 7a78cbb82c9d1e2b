//! How a virtio function leaves its slot while it runs, and how it comes back.
//!
//! The bus-master gate is the one place that knows whether the function is in: closed for good, it silences registers,
//! DMA and interrupts at once, and a device reset makes the workers let go. Neighbour: [`super::VirtioPci`], whose
//! accesses all look at the gate. Mirrors surprise removal (PCI Express 6.7.2; `pci_dev_is_disconnected` in Linux).
//! Left out: presence and link events, which are a slot's of the bus.

use super::VirtioPci;
use crate::lock;
use crate::pci::Removable;

impl Removable for VirtioPci {
    fn unplug(&self) {
        let mut state = lock(&self.state);
        if self.gate.is_gone() {
            return;
        }
        self.gate.remove();
        state.config.reset();
        state.msix.reset();
        state.isr = 0;
        if std::mem::take(&mut state.pin) {
            self.irq.intx(false);
        }
        self.begin_reset(&mut state);
    }

    fn replug(&self) {
        let mut state = lock(&self.state);
        if !self.gate.is_gone() {
            return;
        }
        // An access that was under way when the function left may have come after that reset.
        state.msix.reset();
        self.begin_reset(&mut state);
        self.gate.restore();
    }

    fn plugged(&self) -> bool {
        !self.gate.is_gone()
    }
}

#[cfg(test)]
mod tests;
