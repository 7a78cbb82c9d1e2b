//! Emulated, DMA-capable PCI devices that do no I/O of their own beyond a [`store::Store`].
//!
//! A device here is two halves. The control half, [`pci::PciFunction`], answers config space and registers; a
//! doorbell sets a flag and returns. The data half is one [`worker::Worker`] per queue, which the world calls and
//! which does one phase per call. Both halves reach memory and interrupts only through what they were given:
//! [`pci::BusMaster`] over any `vm_memory::GuestMemory`, and [`pci::IrqSink`].
//!
//! The crate knows neither the driver nor the kernel on the other side, and trusts nothing they write: registers,
//! rings and descriptors are bounded and checked, errors are values.
//!
//! [`misbehave`] makes a device lie on purpose.
//!
//! A device written elsewhere brings its registers and its workers: [`pci::Endpoint`] makes a function of them.
//!
//! Left out: migration, live change of the configuration.
#![forbid(unsafe_code)]

pub mod blk;
pub mod counters;
pub mod edu;
pub mod misbehave;
pub mod net;
pub mod pci;
pub mod store;
pub mod tap;
#[cfg(test)]
mod testing;
pub mod virtio;
pub mod worker;

pub use counters::{Counters, Totals};
pub use misbehave::{Mishap, Script};
pub use tap::Tap;
/// Memory as devices see it: the traits that [`pci::BusMaster`] implements, for devices written elsewhere.
pub use vm_memory;
pub use worker::{Next, Worker};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex` even after a panic elsewhere: every critical section here leaves its data whole.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
