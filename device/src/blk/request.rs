//! One block request: what the driver's descriptors ask for, and how far the device has come with it.
//!
//! Nothing in a chain is trusted: the 16-byte header is gathered from however many readable descriptors, the status
//! is the last writable byte, lengths and sectors are checked arithmetic. Neighbour: [`super::worker`], which moves
//! the pieces. [`super::ranges`], the lists of DISCARD and WRITE_ZEROES. Mirrors virtio 1.2, 5.2.6.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::GuestMemory;

use super::ranges::{self, Kind, Range};
use crate::misbehave::Mishap;
use crate::pci::BusMaster;
use crate::store::SECTOR;
use crate::tap::Tap;
use crate::virtio::{Chain, RingError};

/// The most bytes moved in one phase.
pub const CHUNK: u32 = 16 << 10;
/// Bytes of a request's header.
const HEADER: u64 = 16;
/// Bytes of the device's name.
pub(super) const ID_LEN: u64 = 20;

/// Status of a request that went well.
pub(super) const OK: u8 = byte(VIRTIO_BLK_S_OK);
/// Status of a request that failed.
pub(super) const IOERR: u8 = byte(VIRTIO_BLK_S_IOERR);
/// Status of a request the device does not know.
pub(super) const UNSUPP: u8 = byte(VIRTIO_BLK_S_UNSUPP);

const fn byte(value: u32) -> u8 {
    assert!(value <= 0xff);
    value.to_le_bytes()[0]
}

/// What is left to do for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Move data from the store into memory.
    Read,
    /// Move data from memory into the store.
    Write,
    /// Make earlier writes durable.
    Flush,
    /// Write the device's name into memory.
    Id,
    /// Read which ranges are to be cleared out of memory.
    List(Kind),
    /// Clear them in the store, one after another.
    Clear,
    /// Nothing but the status.
    Done,
}

/// A stretch of memory to move next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub addr: u64,
    pub len: u32,
    /// Where it belongs in the store, or in the name.
    pub at: u64,
}

/// What the worker knows of the disk when it reads a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    pub capacity: u64,
    pub read_only: bool,
    /// DISCARD and WRITE_ZEROES are known.
    pub clears: bool,
}

/// A request in flight. It holds descriptors, never memory.
#[derive(Debug)]
pub(super) struct Request {
    pub chain: Chain,
    pub work: Work,
    pub status: u8,
    /// Bytes of data written into the driver's memory.
    pub written: u32,
    /// What is still to be cleared, the last first.
    pub ranges: Vec<Range>,
    /// Its place in the order in which this queue's requests were popped.
    pub number: u64,
    /// What goes wrong with its completion, once that is drawn.
    pub mishap: Option<Mishap>,
    /// Its completion was counted.
    pub drawn: bool,
    status_addr: u64,
    at: u64,
    left: u64,
    segment: usize,
    within: u32,
}

impl Request {
    /// Reads the request in `chain`; a bad one is done already, with its status set.
    ///
    /// # Errors
    /// [`RingError::NoStatus`] if there is no byte to put a status in.
    pub fn parse<M: GuestMemory, T: Tap>(
        mem: &BusMaster<M, T>,
        chain: Chain,
        disk: Disk,
        number: u64,
    ) -> Result<Self, RingError> {
        let head = chain.head;
        let last = chain.descs.last().filter(|last| last.write).ok_or(RingError::NoStatus { head })?;
        let status_addr = last.addr.wrapping_add(u64::from(last.len) - 1);
        let sum = |write| chain.descs.iter().filter(|seg| seg.write == write).map(|seg| u64::from(seg.len)).sum();
        let (readable, writable): (u64, u64) = (sum(false), sum(true));
        let (work, status) = (Work::Done, IOERR);
        let (at, left, segment, within, written) = (0, 0, 0, 0, 0);
        let (mishap, drawn, ranges) = (None, false, Vec::new());
        let mut request = Self {
            chain,
            work,
            status,
            written,
            ranges,
            number,
            mishap,
            drawn,
            status_addr,
            at,
            left,
            segment,
            within,
        };
        let mut header = [0; 16];
        if readable >= HEADER && request.gather(mem, &mut header) {
            request.plan(&header, readable - HEADER, writable - 1, disk);
        }
        Ok(request)
    }

    /// Reads bytes at the cursor and leaves it behind them. False if memory was refused.
    fn gather<M: GuestMemory, T: Tap>(&mut self, mem: &BusMaster<M, T>, to: &mut [u8]) -> bool {
        let mut rest = to;
        self.left = rest.len() as u64;
        while let Some(piece) = self.piece() {
            let len = usize::try_from(piece.len).unwrap_or(rest.len()).min(rest.len());
            let (part, behind) = rest.split_at_mut(len);
            if mem.fetch(piece.addr, part).is_err() {
                return false;
            }
            mem.moved(piece.addr, len, false);
            rest = behind;
            self.advance(piece.len);
        }
        rest.is_empty()
    }

    fn plan(&mut self, header: &[u8; 16], out_len: u64, in_len: u64, disk: Disk) {
        let [a, b, c, d, _, _, _, _, s @ ..] = *header;
        let sector = u64::from_le_bytes(s);
        let (work, len) = match u32::from_le_bytes([a, b, c, d]) {
            VIRTIO_BLK_T_IN => (Work::Read, in_len),
            VIRTIO_BLK_T_OUT if disk.read_only => return,
            VIRTIO_BLK_T_OUT => (Work::Write, out_len),
            VIRTIO_BLK_T_FLUSH => (Work::Flush, 0),
            VIRTIO_BLK_T_GET_ID => (Work::Id, in_len.min(ID_LEN)),
            VIRTIO_BLK_T_DISCARD if disk.clears => (Work::List(Kind::Discard), out_len),
            VIRTIO_BLK_T_WRITE_ZEROES if disk.clears => (Work::List(Kind::WriteZeroes), out_len),
            _ => {
                self.status = UNSUPP;
                return;
            }
        };
        let mut at = 0;
        if matches!(work, Work::Read | Work::Write) {
            let Some(start) = sector.checked_mul(SECTOR) else { return };
            let fits = start.checked_add(len).is_some_and(|end| end <= disk.capacity);
            if !fits || !len.is_multiple_of(SECTOR) {
                return;
            }
            at = start;
        }
        if matches!(work, Work::List(_)) && !ranges::is_list(len) {
            return;
        }
        if matches!(work, Work::Read | Work::Id) {
            self.segment = self.chain.descs.iter().position(|seg| seg.write).unwrap_or(0);
            self.within = 0;
        }
        (self.at, self.left) = (at, len);
        self.status = OK;
        self.work = if len == 0 && work != Work::Flush { Work::Done } else { work };
    }

    /// Reads the list of ranges and checks all of it before any is cleared.
    pub fn list<M: GuestMemory, T: Tap>(&mut self, mem: &BusMaster<M, T>, kind: Kind, capacity: u64) {
        let mut bytes = vec![0; usize::try_from(self.left).unwrap_or(0)];
        if !self.gather(mem, &mut bytes) {
            return self.fail();
        }
        match ranges::parse(kind, &bytes, capacity) {
            Ok(ranges) => (self.ranges, self.work) = (ranges, Work::Clear),
            Err(status) => (self.status, self.work) = (status, Work::Done),
        }
    }

    /// The next stretch to move: within one segment, at most [`CHUNK`] bytes.
    pub fn piece(&self) -> Option<Piece> {
        let segment = self.chain.descs.get(self.segment).filter(|_| self.left > 0)?;
        let left = u32::try_from(self.left).unwrap_or(u32::MAX);
        let len = (segment.len - self.within).min(left).min(CHUNK);
        Some(Piece { addr: segment.addr.wrapping_add(self.within.into()), len, at: self.at })
    }

    /// Whether `piece`, the next one, is the last.
    pub fn ends_with(&self, piece: Piece) -> bool {
        self.left == u64::from(piece.len)
    }

    /// Goes on behind a piece of `len` bytes; done when it was the last.
    pub fn advance(&mut self, len: u32) {
        self.within += len;
        self.left -= u64::from(len);
        self.at += u64::from(len);
        if self.chain.descs.get(self.segment).is_some_and(|seg| seg.len == self.within) {
            self.segment += 1;
            self.within = 0;
        }
        if self.left == 0 {
            self.work = Work::Done;
        }
    }

    /// Whether a flush that comes after it must wait for it.
    pub fn changes_the_store(&self) -> bool {
        matches!(self.work, Work::Write | Work::List(_) | Work::Clear)
    }

    /// Whether its data goes into the driver's memory.
    pub fn fills_memory(&self) -> bool {
        matches!(self.work, Work::Read | Work::Id)
    }

    /// Bytes of the driver's memory that it may write.
    pub fn room(&self) -> u32 {
        self.chain.descs.iter().filter(|seg| seg.write).fold(0, |sum: u32, seg| sum.saturating_add(seg.len))
    }

    /// Gives up on the request.
    pub fn fail(&mut self) {
        self.work = Work::Done;
        self.status = IOERR;
    }

    /// Writes the status byte and returns what to tell the driver was written; without a status if that byte is
    /// out of reach.
    pub fn write_status<M: GuestMemory, T: Tap>(&self, mem: &BusMaster<M, T>) -> u32 {
        match mem.put(self.status_addr, &[self.status]) {
            Ok(()) => {
                mem.moved(self.status_addr, 1, true);
                self.written + 1
            }
            Err(_) => self.written,
        }
    }
}
