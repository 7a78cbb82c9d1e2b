//! One block request: what is asked, with which data, and how it ended.
//!
//! Neighbours: `queue` carries it out. Virtio 1.2, 5.2.6. What a discard and zeroes are made of is in `clear`. Left out: secure erase, zones.

use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::dma::{Coherent, FromDevice, MapFailure, Mapped, RawMapping, ToDevice};
use lowzone_guest_mem::wait::WaitError;
use thiserror::Error;

use crate::virtio::ring::RingError;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// What is asked of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Read sectors into the data.
    Read,
    /// Write the data to sectors.
    Write,
    /// Make earlier completed writes durable.
    Flush,
    /// Read the 20-byte serial.
    GetId,
    /// Forget the ranges that the data names.
    Discard,
    /// Make the ranges that the data names read as zeros.
    WriteZeroes,
}

impl Op {
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush => 4,
            Self::GetId => 8,
            Self::Discard => 11,
            Self::WriteZeroes => 13,
        }
    }

    /// Whether the device writes the data.
    pub fn device_writes(self) -> bool {
        matches!(self, Self::Read | Self::GetId)
    }
}

/// The data of a request, by how it is shared with the device.
#[derive(Debug)]
pub enum Data {
    /// None (a flush).
    None,
    /// A buffer that is mapped for the time of the request.
    Streaming(KBuf),
    /// Memory that is shared all the time.
    Shared(Coherent),
    /// An address that somebody else mapped: only misuse has one.
    Raw(RawMapping),
}

impl Data {
    /// How many bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Streaming(buf) => buf.len() as u64,
            Self::Shared(memory) => memory.len() as u64,
            Self::Raw(raw) => raw.len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One request.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// The first sector, of 512 bytes.
    pub sector: u64,
    /// The data.
    pub data: Data,
}

impl Request {
    /// Reads sectors into `data`.
    pub fn read(sector: u64, data: Data) -> Self {
        Self { op: Op::Read, sector, data }
    }

    /// Writes `data` to sectors.
    pub fn write(sector: u64, data: Data) -> Self {
        Self { op: Op::Write, sector, data }
    }

    /// Makes earlier completed writes durable.
    pub fn flush() -> Self {
        Self { op: Op::Flush, sector: 0, data: Data::None }
    }
}

/// Why a request was not taken; its data comes back.
#[derive(Debug, Error)]
#[error("{why}")]
pub struct SubmitError {
    /// The data.
    pub data: Data,
    /// Why.
    pub why: SubmitFailure,
}

/// Why a request was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SubmitFailure {
    /// No room on the ring: try again after a completion.
    #[error("the ring is full")]
    Full,
    /// The data could not be mapped: see [`SubmitFailure::is_temporary`].
    #[error(transparent)]
    Map(#[from] MapFailure),
    /// The ring refused it for another reason.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// No such queue.
    #[error("no queue {0}")]
    NoQueue(u16),
    /// More data than a descriptor can name.
    #[error("{0} bytes in one request")]
    TooLarge(u64),
    /// Too long ever to be bounced (`dma_max_mapping_size`), and out of the device's reach: trying again is of no use.
    #[error("{len} bytes out of the device's reach, and a bounce holds {most}")]
    TooLong {
        /// Bytes of the data.
        len: u64,
        /// The longest mapping.
        most: u64,
    },
    /// The device is broken, gone or being removed.
    #[error("the device is no longer in service")]
    Dead,
}

impl SubmitFailure {
    /// Whether waiting for a completion may help: not where memory is out of reach and there is nothing to bounce through.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Full => true,
            Self::Map(why) => {
                !matches!(why, MapFailure::Overflow { .. } | MapFailure::Stale | MapFailure::Vmalloc { .. })
            }
            _ => false,
        }
    }
}

/// How a request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BlkError {
    /// The device says so (`-EIO`).
    #[error("the device reports an I/O error")]
    Io,
    /// The device doesn't know the request (`-EOPNOTSUPP`).
    #[error("the device does not support the request")]
    Unsupported,
    /// A status that no device may write, or none at all (`-EIO`).
    #[error("the device left status {0:#04x}")]
    BadStatus(u8),
    /// Success claimed, but not all bytes written (`-EIO`).
    #[error("the device wrote {wrote} of {wanted} bytes")]
    Short {
        /// What it says it wrote, the status byte included.
        wrote: u32,
        /// What it should have written.
        wanted: u64,
    },
    /// The device broke before the request was done (`-ENODEV`).
    #[error("the device went out of service")]
    Dead,
    /// Nothing came back in time (`-ETIMEDOUT`).
    #[error(transparent)]
    Wait(#[from] WaitError),
}

/// A request that is over.
#[derive(Debug)]
pub struct Completed {
    /// The data, back with the caller; `None` if the device may still reach it.
    pub data: Option<Data>,
    /// How it went.
    pub result: Result<(), BlkError>,
}

/// The data while the device has it.
#[derive(Debug)]
pub(crate) enum Payload {
    None,
    Out(Mapped<KBuf, ToDevice>),
    In(Mapped<KBuf, FromDevice>),
    Shared(Coherent),
    Raw(RawMapping),
}

/// What the status byte and the written length say together.
pub(crate) fn verdict(op: Op, status: u8, wrote: u32, data: u64) -> Result<(), BlkError> {
    let wanted = 1 + if op.device_writes() { data } else { 0 };
    match status {
        0 if u64::from(wrote) < wanted => Err(BlkError::Short { wrote, wanted }),
        0 => Ok(()),
        1 => Err(BlkError::Io),
        2 => Err(BlkError::Unsupported),
        other => Err(BlkError::BadStatus(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_needs_the_status_and_every_byte() {
        assert_eq!(verdict(Op::Read, 0, 513, 512), Ok(()));
        assert_eq!(verdict(Op::Write, 0, 1, 512), Ok(()));
        assert_eq!(verdict(Op::Read, 0, 512, 512), Err(BlkError::Short { wrote: 512, wanted: 513 }));
        assert_eq!(verdict(Op::Write, 0, 0, 512), Err(BlkError::Short { wrote: 0, wanted: 1 }));
        assert_eq!(verdict(Op::Write, 0xff, 1, 512), Err(BlkError::BadStatus(0xff)));
        assert_eq!(verdict(Op::Flush, 2, 1, 0), Err(BlkError::Unsupported));
    }
}
