//! The bytes of an `.lzt` file: prefix, blocks, checksum, and the first and last block's contents.
//!
//! 16 bytes of prefix, then blocks of {kind, length, number, checksum, payload} until the end block; all numbers
//! little-endian. Neighbours: `writer` and `reader`, which alone use it; `docs/trace-format.md` says it for people.

use serde::{Deserialize, Serialize};

/// The first 8 bytes.
pub const MAGIC: [u8; 8] = *b"LZTRACE1";
/// What follows them: 1, 2, 3, 4 as bytes in a little-endian file.
pub const ORDER_MARK: u32 = 0x0403_0201;
/// The version of the format that this program writes, and the highest that it reads.
pub const VERSION: u16 = 1;
/// Bytes of the prefix: magic, byte-order mark, version, two zero bytes.
pub const PREFIX: usize = 16;
/// Bytes of a block's header.
pub const BLOCK_HEADER: usize = 16;
/// The longest payload; what claims to be longer is damaged.
pub const MAX_PAYLOAD: u32 = 1 << 20;
/// Bytes of one record: ts, addr, tag, len, kind, device, producer.
pub const RECORD: usize = 34;
/// Bytes of an entry of the lost: producer and events.
pub const LOSS: usize = 10;
/// Bytes before the records of a page: the number of its first event.
pub const PAGE_HEADER: usize = 8;

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockKind {
    /// A [`Header`] as JSON.
    Head,
    /// Entries of tables: what numbers in later records mean.
    Table,
    /// Records in the order they were made.
    Events,
    /// Who lost how many events: {producer 2 bytes, events 8 bytes} each.
    Lost,
    /// An [`End`].
    End,
    /// Something of a later version, to be skipped.
    Unknown,
}

impl BlockKind {
    /// The four letters in the file.
    pub const fn letters(self) -> [u8; 4] {
        match self {
            Self::Head => *b"HEAD",
            Self::Table => *b"TABL",
            Self::Events => *b"EVTS",
            Self::Lost => *b"LOST",
            Self::End => *b"END.",
            Self::Unknown => *b"????",
        }
    }

    /// The kind with these letters.
    pub fn of(letters: [u8; 4]) -> Self {
        let known = [Self::Head, Self::Table, Self::Events, Self::Lost, Self::End];
        known.into_iter().find(|kind| kind.letters() == letters).unwrap_or(Self::Unknown)
    }
}

/// A table that records point into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Table {
    /// Source lines: `file:line`.
    Site = 1,
    /// Paths of spans: `probe/virtqueue`.
    Scope = 2,
    /// Devices: the place on the bus, a newline, the scenario's name.
    Device = 3,
    /// Findings, numbered from 1: the name, a newline, the text.
    Finding = 4,
    /// Why requests were refused, numbered from 1: a line that says it all, then details a line each.
    Refusal = 5,
}

/// What the first block says about the whole file, as JSON; a reader ignores keys it doesn't know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Program and version that wrote it.
    pub program: String,
    /// The scenario.
    pub scenario: String,
    /// The world's seed.
    pub seed: u64,
    /// What `ts` counts: `virtual-ns`, or `monotonic-ns` in the threads world and of a server.
    pub clock: String,
    /// Of `monotonic-ns`: what the system's monotonic clock showed, in nanoseconds, when `ts` was 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<u64>,
    /// CPUs; producers below this number are CPUs, the others are devices in the order of their table.
    pub cpus: u32,
    /// Every kind's number and name.
    #[serde(default)]
    pub kinds: Vec<(u16, String)>,
    /// The names of the kinds that were recorded; empty if all were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
}

/// What the last block says: 5 numbers of 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct End {
    /// Events in the file.
    pub events: u64,
    /// Records in the file: events and details.
    pub records: u64,
    /// Events that were made and are not in the file.
    pub lost: u64,
    /// The digest of the run.
    pub digest: u64,
    /// The clock at the end.
    pub ts: u64,
}

impl End {
    /// Its bytes.
    pub fn to_bytes(self) -> Vec<u8> {
        [self.events, self.records, self.lost, self.digest, self.ts].into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// From a payload; `None` if it is too short.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |index: usize| u64_at(bytes, index * 8);
        Some(Self { events: word(0)?, records: word(1)?, lost: word(2)?, digest: word(3)?, ts: word(4)? })
    }
}

/// The 64-bit number at an offset.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The 32-bit number at an offset.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The 16-bit number at an offset.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A block's header: letters, length, number, and the checksum of these three and the payload.
pub(super) fn block_header(kind: BlockKind, number: u32, payload: &[u8]) -> [u8; BLOCK_HEADER] {
    let mut header = [0; BLOCK_HEADER];
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let fields = kind.letters().into_iter().chain(length.to_le_bytes()).chain(number.to_le_bytes());
    header.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    let sum = checksum(&header[..12], payload).to_le_bytes();
    header.iter_mut().skip(12).zip(sum).for_each(|(to, from)| *to = from);
    header
}

/// CRC-32 as in zlib (reflected polynomial 0xedb88320) of two stretches in a row.
pub fn checksum(first: &[u8], second: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(first);
    sum.update(second);
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_zlibs() {
        assert_eq!(checksum(b"1234", b"56789"), 0xcbf4_3926);
        assert_eq!(checksum(b"", b""), 0);
    }

    #[test]
    fn an_end_survives_its_bytes() {
        let end = End { events: 1, records: 2, lost: 3, digest: u64::MAX, ts: 5 };
        assert_eq!(End::from_bytes(&end.to_bytes()), Some(end));
        assert_eq!(End::from_bytes(&end.to_bytes()[..39]), None);
    }
}
