//! `PciBus`: config space and interrupts, as the driver's side consumes them.
//!
//! Registers behind BARs are not here: they belong to `guest_mem::IoSpace`. A wire implements both. Neighbours:
//! `pci`, which is the only caller; wires in `scenarios`.

use std::fmt;

use lowzone_guest_mem::PhysAddr;
use lowzone_guest_mem::iospace::Width;

/// The place of a function: bus, device, function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bdf {
    /// The bus.
    pub bus: u8,
    /// The device, 0..=31.
    pub device: u8,
    /// The function, 0..=7.
    pub function: u8,
}

impl fmt::Display for Bdf {
    /// As Linux names it: `0000:00:01.0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// An interrupt number and the memory write that raises it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vector {
    /// The kernel's number for it.
    pub irq: u32,
    /// Where the device writes.
    pub addr: u64,
    /// What it writes.
    pub data: u32,
}

/// A PCI bus.
pub trait PciBus: Send + Sync {
    /// Reads config space; all-ones where no function is.
    fn config_read(&self, at: Bdf, offset: u16, width: Width) -> u32;

    /// Writes config space; lost where no function is.
    fn config_write(&self, at: Bdf, offset: u16, width: Width, value: u32);

    /// Where BARs may be placed: first address and bytes.
    fn window(&self) -> (PhysAddr, u64);

    /// A vector that interrupts `cpu`, or `None` if all are taken.
    fn alloc_vector(&self, cpu: u32) -> Option<Vector>;

    /// Gives a vector back; one still pending is dropped.
    fn free_vector(&self, irq: u32);

    /// The interrupt of the function's INTx pin.
    fn intx(&self, at: Bdf) -> Option<u32>;

    /// Takes the next interrupt pending for `cpu`.
    fn take_irq(&self, cpu: u32) -> Option<u32>;

    /// Resets the function.
    fn reset(&self, at: Bdf);
}
