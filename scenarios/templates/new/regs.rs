//! How driver and device talk: the header file of both.
//!
//! The driver writes the address of a descriptor to DESC_LO and DESC_HI, and START to CONTROL. The device reads the
//! descriptor, then the buffer, writes sum and state into the descriptor, sets DONE in STATUS and interrupts. DONE
//! written to STATUS acknowledges; RESET written to CONTROL stops whatever goes on, at once.

use lowzone::device::pci::config::Identity;

pub const IDENTITY: Identity =
    Identity { vendor: 0x1b36, device: 0x5511, class: 0x12_0000, revision: 1, subsystem_vendor: 0, subsystem: 0 };

// BAR 0: registers of 32 bits, and what is in them.
pub const REGISTERS: u64 = 0x1000;
pub const ID: u64 = 0x00;
pub const DESC_LO: u64 = 0x04;
pub const DESC_HI: u64 = 0x08;
pub const CONTROL: u64 = 0x0c;
pub const STATUS: u64 = 0x10;
pub const MAGIC: u32 = 0x4d55_5331;
pub const START: u32 = 1;
pub const RESET: u32 = 2;
pub const DONE: u32 = 1;

// The descriptor, little-endian: address and length of the buffer; state, 0 until the device is through; the sum.
pub const ADDR: usize = 0;
pub const LEN: usize = 8;
pub const STATE: usize = 12;
pub const SUM: usize = 16;
pub const DESC_BYTES: usize = 24;
pub const GOOD: u32 = 1;
pub const BAD: u32 = 2;
/// Bytes of a buffer at most.
pub const MOST: u32 = 64 << 10;
