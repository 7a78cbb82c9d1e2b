//! `IoSpace`: the physical address space of device registers, as the driver's side consumes it.
//!
//! The wire implements it: it decodes the *current* BARs and the memory-enable bit, so a stale BAR, a hole or a
//! removed device reads all-ones and swallows writes, as on a PC. Neighbours: `iomem`, wires in `scenarios`.

use crate::addr::PhysAddr;

/// The width of one register access.
///
/// ```
/// use lowzone_guest_mem::iospace::Width;
///
/// assert_eq!((Width::B2.bytes(), Width::B2.ones()), (2, 0xffff));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// One byte.
    B1,
    /// Two bytes.
    B2,
    /// Four bytes.
    B4,
    /// Eight bytes.
    B8,
}

impl Width {
    /// How many bytes.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::B1 => 1,
            Self::B2 => 2,
            Self::B4 => 4,
            Self::B8 => 8,
        }
    }

    /// What a read of nothing returns.
    pub const fn ones(self) -> u64 {
        match self {
            Self::B8 => u64::MAX,
            _ => (1 << (self.bytes() * 8)) - 1,
        }
    }
}

/// Where register accesses go.
pub trait IoSpace: Send + Sync {
    /// Reads a register; all-ones where nothing answers.
    fn read(&self, at: PhysAddr, width: Width) -> u64;

    /// Writes a register; lost where nothing answers.
    fn write(&self, at: PhysAddr, width: Width, value: u64);

    /// The number of the function whose registers answer there. Posted writes to one function stay in order, and a
    /// read from it pushes them; of a bus that doesn't tell, all count as one.
    fn function(&self, at: PhysAddr) -> u64 {
        let _ = at;
        0
    }
}
