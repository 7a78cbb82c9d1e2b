//! Packets: what is handed over to be sent, and what has come.
//!
//! Neighbours: `tx`, `rx`. Left out: what a `struct sk_buff` has beside its bytes.

use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::dma::RawMapping;
use lowzone_guest_mem::kbuf::OutOfBounds;

use crate::net::HEADER;

/// Pieces that one packet may have: what an indirect table holds beside the header.
pub const FRAGS: usize = crate::virtio::ring::MAX_SEGMENTS - 1;

/// One piece of a packet to be sent.
#[derive(Debug)]
pub enum Piece {
    /// A buffer, mapped while the device has it and freed when it is done.
    Buffer(KBuf),
    /// An address that somebody else mapped: only misuse has one.
    Raw(RawMapping),
}

impl Piece {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Buffer(buf) => buf.len() as u64,
            Self::Raw(raw) => raw.len,
        }
    }
}

/// A packet to be sent, in up to [`FRAGS`] pieces.
#[derive(Debug, Default)]
pub struct Frame {
    pub(crate) pieces: [Option<Piece>; FRAGS],
}

impl Frame {
    /// A packet of no piece yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a piece behind the others.
    ///
    /// # Errors
    /// The piece, if the packet has as many as it may.
    pub fn push(&mut self, piece: Piece) -> Result<(), Piece> {
        match self.pieces.iter_mut().find(|place| place.is_none()) {
            Some(place) => {
                *place = Some(piece);
                Ok(())
            }
            None => Err(piece),
        }
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.pieces.iter().flatten().map(Piece::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A packet that has come: the buffer that was posted for it, unmapped.
#[derive(Debug)]
pub struct Packet {
    pub(crate) buf: KBuf,
    pub(crate) len: usize,
}

impl Packet {
    /// How many bytes, without the device's header.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes out of it. Any context.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        let error = OutOfBounds { offset, len: to.len(), size: self.len };
        if offset.checked_add(to.len()).is_none_or(|end| end > self.len) {
            return Err(error);
        }
        self.buf.read_at(HEADER + offset, to)
    }
}
