//! What an `edu` driver knows of its device (QEMU's docs/specs/edu.rst).
//!
//! Registers are 32 bits wide; the four of the DMA engine have 64.

/// Bytes of registers that the driver uses.
pub(super) const BYTES: u64 = 0x100;
pub(super) const ID: u64 = 0x00;
pub(super) const LIVENESS: u64 = 0x04;
pub(super) const FACTORIAL: u64 = 0x08;
pub(super) const STATUS: u64 = 0x20;
pub(super) const CAUSES: u64 = 0x24;
pub(super) const ACKNOWLEDGE: u64 = 0x64;
pub(super) const DMA_SOURCE: u64 = 0x80;
pub(super) const DMA_DESTINATION: u64 = 0x88;
pub(super) const DMA_COUNT: u64 = 0x90;
pub(super) const DMA_COMMAND: u64 = 0x98;

/// In the two low bytes of the id; version numbers are above.
pub(super) const ID_MARK: u32 = 0x00ed;
pub(super) const ID_MASK: u32 = 0xffff;
/// Status: computing.
pub(super) const BUSY: u32 = 1;
/// Status: interrupt when computed.
pub(super) const INTERRUPT: u32 = 1 << 7;
/// Cause of an interrupt: computed.
pub(super) const COMPUTED: u32 = 1;
/// Cause of an interrupt: a transfer is over.
pub(super) const MOVED: u32 = 0x100;
/// Command: start; running.
pub(super) const RUN: u64 = 1;
/// Command: into memory.
pub(super) const TO_MEMORY: u64 = 2;
/// Command: interrupt at the end.
pub(super) const WITH_INTERRUPT: u64 = 4;
/// The device's address of its own buffer.
pub(super) const BUFFER: u64 = 0x40000;
