//! QEMU's educational device `edu`: a factorial by interrupt, and a DMA engine with a buffer of its own.
//!
//! The register map is QEMU's (hw/misc/edu.c, docs/specs/edu.rst), so that one driver serves both. Its DMA reaches 28
//! address bits and drops the others, which is the reason to have it: a driver that doesn't say so to the kernel hits
//! the wrong memory. One noun a file, as in [`crate::blk`]: [`device`] puts it together, [`registers`] is the control
//! half, `worker` the data half.
//!
//! Unlike QEMU 7.2 this device survives what a driver asks of it: a transfer that leaves the internal buffer, on which
//! QEMU ends with `hw_error`, moves nothing and counts as a failed request. As in QEMU no register tells of it, nor of
//! memory that could not be reached.

pub mod device;
pub mod registers;
mod worker;

pub use device::{Edu, EduError, Hardware, edu};

#[cfg(test)]
mod tests;
