//! The driver of QEMU's educational device `edu`.
//!
//! [`EduDriver`] binds to every such function and makes an [`Edu`] of each, which computes factorials by interrupt and
//! moves bytes to and from the device's own buffer. It reaches the device through `PciBus` and `IoSpace` alone, and
//! keeps to what QEMU's device can take (see [`MOST`]), so the same driver serves both. Neighbours: `pci`; `card` is
//! one device in service. Left out: two transfers at once, for the device has one engine.

mod card;
mod error;
mod registers;

use std::sync::Arc;

use lowzone_guest_mem::Cpu;
#[cfg(lowzone_mutants)]
use lowzone_guest_mem::dma::pool::dma_pool_create;
use lowzone_guest_mem::lock::Locked;

pub use card::{Edu, Moved, Way};
pub use error::{EduError, TransferError};

use crate::bus::Bdf;
use crate::driver::{Driver, ProbeError};
#[cfg(lowzone_mutants)]
use crate::mutant::{self, Mutant};
use crate::pci::{PciDevice, PciId};

/// Bytes that one transfer moves at most.
///
/// The device's buffer has one more, but QEMU up to 7.2 at least takes a transfer that ends exactly where its buffer
/// does for one that leaves it, and aborts the whole emulator.
pub const MOST: usize = 4095;

/// How to probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EduOptions {
    /// Bits of the streaming mask that the driver promises. QEMU's device decodes 28 unless told otherwise.
    pub dma_mask: u8,
    /// Bits of the coherent mask.
    pub coherent_mask: u8,
    /// Whether to become bus master; a driver that forgets is a classic.
    pub bus_master: bool,
    /// Whether to take MSI if there is any; else the pin.
    pub msi: bool,
    /// Nanoseconds that a piece of work may take; a transfer takes 100 ms.
    pub timeout: u64,
}

impl Default for EduOptions {
    /// 28 bits, MSI, ten seconds.
    fn default() -> Self {
        Self { dma_mask: 28, coherent_mask: 28, bus_master: true, msi: true, timeout: 10_000_000_000 }
    }
}

/// The driver, with the devices it serves.
pub struct EduDriver {
    options: EduOptions,
    cards: Locked<Vec<(Bdf, Arc<Edu>)>>,
}

impl EduDriver {
    /// A driver that probes with these options.
    pub fn new(options: EduOptions) -> Self {
        Self { options, cards: Locked::default() }
    }

    /// The device made of the function at `at`.
    pub fn card(&self, at: Bdf) -> Option<Arc<Edu>> {
        self.cards.lock().iter().find(|(place, _)| *place == at).map(|(_, card)| card.clone())
    }

    /// The bug [`DmaPoolLeak`](Mutant::DmaPoolLeak): nobody destroys the pool of a probe that fails.
    #[cfg(lowzone_mutants)]
    fn probe_with_pool(&self, cpu: &Cpu<'_>, device: &Arc<PciDevice>) -> Result<(), ProbeError> {
        let pool = dma_pool_create(cpu, "edu", device.dma(), 64, 64, 0).map_err(|error| ProbeError::own(-12, error))?;
        let pool = std::mem::ManuallyDrop::new(pool);
        let card = Edu::probe(cpu, device, &self.options)?;
        let destroy = move |cpu: &Cpu<'_>| std::mem::ManuallyDrop::into_inner(pool).destroy(cpu);
        device.devres().add_action(cpu, "dma_pool_destroy", destroy)?;
        self.cards.lock().push((device.at(), Arc::new(card)));
        Ok(())
    }

    fn take(&self, at: Bdf) -> Option<Arc<Edu>> {
        let mut cards = self.cards.lock();
        let index = cards.iter().position(|(place, _)| *place == at)?;
        Some(cards.remove(index).1)
    }
}

impl Driver for EduDriver {
    fn name(&self) -> &'static str {
        "edu"
    }

    fn ids(&self) -> &'static [PciId] {
        &[PciId { vendor: 0x1234, device: 0x11e8 }]
    }

    fn probe(&self, cpu: &Cpu<'_>, device: &Arc<PciDevice>) -> Result<(), ProbeError> {
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::DmaPoolLeak) {
            return self.probe_with_pool(cpu, device);
        }
        let card = Edu::probe(cpu, device, &self.options)?;
        self.cards.lock().push((device.at(), Arc::new(card)));
        Ok(())
    }

    fn remove(&self, cpu: &Cpu<'_>, device: &PciDevice) {
        if let Some(card) = self.take(device.at()) {
            #[cfg(lowzone_mutants)]
            if mutant::is(Mutant::IounmapBeforeStop) {
                card.unmap_registers(cpu);
            }
            card.quiesce(cpu);
            #[cfg(lowzone_mutants)]
            card.free_private(cpu);
        }
    }

    fn shutdown(&self, cpu: &Cpu<'_>, device: &PciDevice) {
        if let Some(card) = self.card(device.at()) {
            card.quiesce(cpu);
        }
    }
}
