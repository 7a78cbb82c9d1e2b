//! PCI functions: the control half of a device, its config space, its interrupts and its way to memory.
//!
//! [`PciFunction`] is the boundary to a bus; [`config`], [`caps`], [`msi`] and [`msix`] are the parts a function is
//! built from; [`endpoint`] puts them together for a device with registers of its own; [`busmaster`] is the hardware side of
//! DMA. Mirrors PCI Local Bus 3.0 chapter 6 and Linux's
//! `include/uapi/linux/pci_regs.h`. Left out: PCI Express extended config space, power management, bridges.

mod access;
pub mod busmaster;
pub mod caps;
pub mod config;
pub mod endpoint;
mod function;
pub mod msi;
pub mod msix;

pub use busmaster::{Beyond, BusMaster, BusMasterError, BusMasterGate, Fault, Refusal};
pub use endpoint::{Endpoint, EndpointError, EndpointSpec, Registers, Signals};
pub use function::{AccessError, Bar, IrqSink, PciFunction, Removable, Width};
