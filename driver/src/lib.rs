//! Drivers, and the PCI core they are written against.
//!
//! [`Driver`] is what a driver implements; [`pci`] finds functions, assigns their BARs and matches them by id;
//! [`virtio`] is the driver's half of the transport and of the split ring; [`blk`] is the virtio block driver,
//! [`net`] the virtio network driver, [`edu`] that of QEMU's educational device; [`scull`] are LDD3's memory devices, which need no device.
//! A driver reaches its device only through [`bus::PciBus`] and `guest_mem::IoSpace`, both implemented by a wire, so
//! the same driver talks to the emulated device in process and to a peer in another.
//!
//! Neighbours: `guest-mem` below; `scenarios` joins the halves. Left out: bridges, hot-plug, power management.
#![forbid(unsafe_code)]

pub mod blk;
pub mod bus;
pub mod driver;
pub mod edu;
#[cfg(lowzone_mutants)]
pub mod mutant;
pub mod net;
pub mod pci;
pub mod scull;
pub mod virtio;

pub use driver::{Driver, ProbeError, bind, unbind};
