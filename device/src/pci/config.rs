//! A function's 256 bytes of config space: a type-0 header with write masks, and the capability list.
//!
//! Sizing a BAR needs no case of its own: the address bits below its size are simply not writable. Neighbours:
//! [`crate::pci::caps`] builds the list, the function reacts to what a write has changed. Mirrors PCI 3.0 section
//! 6.1 to 6.2.5. Left out: I/O BARs, expansion ROM, extended config space, BIST.

use thiserror::Error;

use super::caps::{CapabilityList, END};
use super::function::{Bar, Width};

/// Offset of the command register.
pub const COMMAND: u16 = 0x04;
/// Offset of the status register.
pub const STATUS: u16 = 0x06;
/// Command: the function answers memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may master the bus.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command: the function must not assert its pin.
pub const COMMAND_INTX_OFF: u16 = 1 << 10;
/// Status: an interrupt is pending at the pin, shown even when the pin is disabled.
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// Status: there is a capability list.
const STATUS_CAPS: u16 = 1 << 4;

const BAR0: usize = 0x10;
const BARS: u8 = 6;
const MEM64: u8 = 0b100;

/// A config space that can't be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A BAR's size is not a power of two of at least 16 bytes, or too large for 32 bits.
    #[error("BAR {index} can't be {size:#x} bytes: a power of two from 16 up that its width can hold")]
    Size {
        /// The BAR.
        index: u8,
        /// Its size.
        size: u64,
    },
    /// There is no such BAR, or it or its upper half is taken.
    #[error("BAR {index} does not exist or is taken")]
    Index {
        /// The BAR.
        index: u8,
    },
}

/// Who the function says it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Base class, sub-class and interface: 24 bits.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// A memory window a function asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarSpec {
    /// 0 to 5; a 64-bit window takes the next one too.
    pub index: u8,
    /// Bytes, a power of two.
    pub size: u64,
    /// Whether it may lie above 4 GiB.
    pub wide: bool,
}

/// The registers of one function's config space.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; END],
    mask: [u8; END],
    initial: [u8; END],
    bars: [Option<BarSpec>; 6],
}

impl ConfigSpace {
    /// A config space with the given identity, windows and capabilities; its interrupt pin is INTA#.
    ///
    /// # Errors
    /// [`ConfigError`] if a window can't be described.
    pub fn new(id: &Identity, bars: &[BarSpec], caps: &CapabilityList) -> Result<Self, ConfigError> {
        let (bytes, mask) = ([0; END], [0; END]);
        let mut space = Self { bytes, mask, initial: bytes, bars: [None; 6] };
        space.put16(0x00, id.vendor);
        space.put16(0x02, id.device);
        space.bytes[0x08] = id.revision;
        space.bytes[0x09..0x0c].copy_from_slice(&id.class.to_le_bytes()[..3]);
        space.put16(0x2c, id.subsystem_vendor);
        space.put16(0x2e, id.subsystem);
        space.bytes[0x3d] = 1;
        let command = (COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_OFF).to_le_bytes();
        space.mask[0x04..0x06].copy_from_slice(&command);
        // Cache line size and interrupt line are plain storage for the driver's side.
        space.mask[0x0c] = 0xff;
        space.mask[0x3c] = 0xff;
        for spec in bars {
            space.add_bar(*spec)?;
        }
        caps.install(&mut space.bytes, &mut space.mask);
        if caps.first() != 0 {
            space.bytes[0x34] = caps.first();
            space.put16(usize::from(STATUS), STATUS_CAPS);
        }
        space.initial = space.bytes;
        Ok(space)
    }

    fn add_bar(&mut self, spec: BarSpec) -> Result<(), ConfigError> {
        let index = spec.index;
        let registers = if spec.wide { 2 } else { 1 };
        let free = |bar: u8| {
            self.bars.get(usize::from(bar)).is_some_and(Option::is_none)
                && !(bar > 0 && self.bars[usize::from(bar) - 1].is_some_and(|below| below.wide))
        };
        if !(0..registers).all(|next| index.checked_add(next).is_some_and(free)) {
            return Err(ConfigError::Index { index });
        }
        if !spec.size.is_power_of_two() || spec.size < 16 || (!spec.wide && spec.size > 1 << 31) {
            return Err(ConfigError::Size { index, size: spec.size });
        }
        let at = BAR0 + 4 * usize::from(index);
        let len = 4 * usize::from(registers);
        let writable = !(spec.size - 1) & !0xf;
        self.mask[at..at + len].copy_from_slice(&writable.to_le_bytes()[..len]);
        self.bytes[at] = if spec.wide { MEM64 } else { 0 };
        self.bars[usize::from(index)] = Some(spec);
        Ok(())
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// The bytes an access covers, or `None` if config space does not answer it.
    fn range(offset: u16, width: Width) -> Option<std::ops::Range<usize>> {
        let start = usize::from(offset);
        let end = start + usize::from(width.bytes());
        (width != Width::B8 && width.aligned(u64::from(offset)) && end <= END).then_some(start..end)
    }

    /// Reads a register; all-ones of that width if the access is not answered.
    pub fn read(&self, offset: u16, width: Width) -> u32 {
        let Some(range) = Self::range(offset, width) else {
            return absent(width);
        };
        self.bytes[range].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    /// Writes the writable bits of a register; nothing if the access is not answered.
    pub fn write(&mut self, offset: u16, width: Width, value: u32) {
        let Some(range) = Self::range(offset, width) else {
            return;
        };
        for (at, new) in range.zip(value.to_le_bytes()) {
            let mask = self.mask[at];
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
        }
    }

    /// The 16-bit register at `offset`, below 255.
    pub(crate) fn word(&self, offset: u8) -> u16 {
        let at = usize::from(offset).min(END - 2);
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// The 32-bit register at `offset`, a multiple of 4.
    pub(crate) fn dword(&self, offset: u8) -> u32 {
        self.read(u16::from(offset), Width::B4)
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[0x04], self.bytes[0x05]])
    }

    /// Shows or hides a pending interrupt in the status register.
    pub fn set_interrupt_status(&mut self, pending: bool) {
        let status = u16::from_le_bytes([self.bytes[0x06], self.bytes[0x07]]) & !STATUS_INTERRUPT;
        self.put16(usize::from(STATUS), if pending { status | STATUS_INTERRUPT } else { status });
    }

    /// Where window `index` lies now; `None` if there is none or it has no address. The memory-enable bit does not
    /// matter here.
    pub fn bar(&self, index: u8) -> Option<Bar> {
        let spec = self.bars.get(usize::from(index)).copied().flatten()?;
        let at = BAR0 + 4 * usize::from(index);
        let len = if spec.wide { 8 } else { 4 };
        let raw = self.bytes[at..at + len].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let base = raw & !0xf;
        // Address zero is where RAM begins: a window that was never placed decodes nothing.
        (base != 0).then_some(Bar { index, base, size: spec.size })
    }

    /// The BAR and offset that answer an access now.
    pub fn decode(&self, addr: u64, width: Width) -> Option<(u8, u64)> {
        if self.command() & COMMAND_MEMORY == 0 {
            return None;
        }
        (0..BARS).filter_map(|index| self.bar(index)).find_map(|bar| {
            let offset = addr.checked_sub(bar.base)?;
            let end = offset.checked_add(u64::from(width.bytes()))?;
            (end <= bar.size).then_some((bar.index, offset))
        })
    }

    /// Puts every register back to its value at power-on.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }
}

/// What config space reads where nothing answers.
pub const fn absent(width: Width) -> u32 {
    match width {
        Width::B1 => 0xff,
        Width::B2 => 0xffff,
        Width::B4 | Width::B8 => u32::MAX,
    }
}

#[cfg(test)]
mod tests;
