//! The boundary between a bus and a function: config space, register windows, reset, interrupts.
//!
//! The wire that joins a driver to a device calls [`PciFunction`]; the world behind it implements [`IrqSink`].
//! Neither calls back from within a call of the other.

use thiserror::Error;

/// The width of one register access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// One byte.
    B1,
    /// Two bytes.
    B2,
    /// Four bytes.
    B4,
    /// Eight bytes; config space has none.
    B8,
}

impl Width {
    /// The number of bytes.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::B1 => 1,
            Self::B2 => 2,
            Self::B4 => 4,
            Self::B8 => 8,
        }
    }

    /// The width of `bytes` bytes, or `None` if no access is that wide.
    ///
    /// ```
    /// use lowzone_device::pci::Width;
    /// assert_eq!(Width::from_bytes(4), Some(Width::B4));
    /// assert_eq!(Width::from_bytes(3), None);
    /// ```
    pub const fn from_bytes(bytes: u8) -> Option<Self> {
        match bytes {
            1 => Some(Self::B1),
            2 => Some(Self::B2),
            4 => Some(Self::B4),
            8 => Some(Self::B8),
            _ => None,
        }
    }

    /// The value an access of this width reads where nothing answers.
    pub const fn all_ones(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes() as u32)
    }

    /// Whether `offset` is a multiple of the width.
    pub const fn aligned(self, offset: u64) -> bool {
        offset & (self.bytes() as u64 - 1) == 0
    }
}

/// A window of the address space that a function decodes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// The base address register, 0 to 5; of a 64-bit pair the lower one.
    pub index: u8,
    /// The first address.
    pub base: u64,
    /// Bytes, a power of two.
    pub size: u64,
}

/// A register access that no register answers. The wire reads all-ones for it and drops the write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AccessError {
    /// The function has no such window.
    #[error("no window behind BAR {bar}")]
    NoBar {
        /// The index asked for.
        bar: u8,
    },
    /// Nothing lies at this offset.
    #[error("BAR {bar} has no register at {offset:#x}")]
    Hole {
        /// The window.
        bar: u8,
        /// The offset within it.
        offset: u64,
    },
    /// The register exists but not for an access of this width or alignment.
    #[error("BAR {bar}: an access of {width} bytes at {offset:#x} does not fit the register there")]
    Width {
        /// The window.
        bar: u8,
        /// The offset within it.
        offset: u64,
        /// The width in bytes.
        width: u8,
    },
    /// A doorbell was rung with the index of another queue.
    #[error("the doorbell of queue {queue} was written {value:#x}")]
    Doorbell {
        /// The queue whose doorbell it is.
        queue: u16,
        /// What was written.
        value: u64,
    },
}

/// The control half of one PCI function.
///
/// All state sits behind a lock of the function's own: any thread may call, calls never wait for a worker, and a
/// doorbell sets a flag and returns.
pub trait PciFunction: Send + Sync {
    /// Reads config space; all-ones of that width where it is not implemented, misaligned or eight bytes wide.
    fn config_read(&self, offset: u16, width: Width) -> u32;

    /// Writes config space; read-only bits stay, an access that would read all-ones does nothing.
    fn config_write(&self, offset: u16, width: Width, value: u32);

    /// The BAR and the offset in it that the *current* BARs and memory-enable bit give `addr`; `None` if it is not
    /// this function's, or if the access straddles the end of the window.
    fn decode(&self, addr: u64, width: Width) -> Option<(u8, u64)>;

    /// Reads a register.
    ///
    /// # Errors
    /// [`AccessError`] where no register answers; reads as all-ones on a real bus.
    fn bar_read(&self, bar: u8, offset: u64, width: Width) -> Result<u64, AccessError>;

    /// Writes a register.
    ///
    /// # Errors
    /// [`AccessError`] where no register answers; has no effect on a real bus.
    fn bar_write(&self, bar: u8, offset: u64, width: Width, value: u64) -> Result<(), AccessError>;

    /// Resets the function: config space, MSI-X and the device behind it. DMA stops at once, since bus mastering is
    /// off; the workers drop what they hold at their next call.
    fn reset(&self);
}

/// A slot that its function can be pulled out of, and put back into, at any moment.
pub trait Removable: Send + Sync {
    /// Pulls the function out. At once every read is all-ones, writes are lost, no address is decoded, DMA and
    /// interrupts are over; an interrupt pin that was high falls. Its workers drop what they hold at their next call
    /// and are not ready then. A second time it does nothing.
    fn unplug(&self);

    /// Puts the function back, as after power-on: no BAR placed, no bit of the command register set, the device
    /// reset as soon as every worker has let go of its former life. Does nothing if it is in.
    fn replug(&self);

    /// Whether the function is in its slot.
    fn plugged(&self) -> bool;
}

/// Where a function's interrupts go. The sink queues, it never calls back.
pub trait IrqSink: Send + Sync {
    /// The function has sent the message of `vector`, 0 with MSI: `data` to `addr`.
    fn msi(&self, vector: u16, addr: u64, data: u32);

    /// The function's interrupt pin has changed to `level`.
    fn intx(&self, level: bool);
}
