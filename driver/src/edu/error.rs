//! Why a piece of work for `edu` failed.

use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::dma::MapFailure;
use lowzone_guest_mem::wait::WaitError;
use thiserror::Error;

use super::MOST;

/// Why the device could not be put to work, or did not do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum EduError {
    /// The register that inverts doesn't.
    #[error("the device is not alive: {wrote:#x} reads back as {read:#x}")]
    NotAlive {
        /// What was written.
        wrote: u32,
        /// What was read.
        read: u32,
    },
    /// Not a length that a transfer may have.
    #[error("a transfer of {len} bytes: 1 to {MOST}, and no more than its buffer has")]
    Length {
        /// How many bytes were asked for.
        len: usize,
    },
    /// The buffer could not be mapped.
    #[error(transparent)]
    Map(#[from] MapFailure),
    /// It did not end in time; the device was reset.
    #[error("{what}: {why}")]
    NoEnd {
        /// What the device was to do.
        what: &'static str,
        /// How the wait ended.
        why: WaitError,
    },
    /// The device is at work that nobody asked for.
    #[error("{what}: the device is busy with something else")]
    Busy {
        /// What the device was to do.
        what: &'static str,
    },
    /// A register reads all-ones: the device has left.
    #[error("{what}: the device does not answer")]
    Gone {
        /// What the device was to do.
        what: &'static str,
    },
}

/// A transfer that failed; the buffer comes back.
#[derive(Debug, Error)]
#[error("{why}")]
pub struct TransferError {
    /// The buffer.
    pub buf: KBuf,
    /// Why.
    pub why: EduError,
}
