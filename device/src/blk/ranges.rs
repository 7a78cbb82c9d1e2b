//! The ranges that DISCARD and WRITE_ZEROES name: 16 bytes each, in a list that lies in the driver's memory.
//!
//! A list is checked as a whole before anything is cleared, so that a bad one changes nothing. Neighbours:
//! [`super::request`], which reads it; [`super::config`], which says how long it may be. Mirrors virtio 1.2, 5.2.6.
//! Left out: SECURE_ERASE.

use virtio_bindings::virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

use super::config::{RANGE_SECTORS, RANGES};
use super::request::{IOERR, UNSUPP};
use crate::store::SECTOR;

/// Bytes of one range.
const ENTRY: u64 = 16;

/// What is done to the ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nobody wants their data any more.
    Discard,
    /// They read as zeros afterwards.
    WriteZeroes,
}

/// A stretch of the store to be cleared, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub at: u64,
    pub len: u64,
    /// Its space may be given back.
    pub unmap: bool,
}

/// Whether that many bytes may be a list.
pub(super) fn is_list(bytes: u64) -> bool {
    bytes.is_multiple_of(ENTRY) && (1..=u64::from(RANGES)).contains(&(bytes / ENTRY))
}

/// The ranges of a list, the last first.
///
/// # Errors
/// The status to answer with: UNSUPP for a flag that its kind does not have, IOERR for a range that is too long or
/// reaches beyond `capacity` bytes.
pub(super) fn parse(kind: Kind, list: &[u8], capacity: u64) -> Result<Vec<Range>, u8> {
    list.as_chunks().0.iter().rev().map(|entry| range(kind, entry, capacity)).collect()
}

fn range(kind: Kind, entry: &[u8; 16], capacity: u64) -> Result<Range, u8> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = *entry;
    let (sector, sectors) =
        (u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]), u32::from_le_bytes([n0, n1, n2, n3]));
    let unmap = match (kind, u32::from_le_bytes(flags)) {
        (Kind::Discard, 0) | (Kind::WriteZeroes, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) => true,
        (Kind::WriteZeroes, 0) => false,
        _ => return Err(UNSUPP),
    };
    let (at, len) = (sector.checked_mul(SECTOR).ok_or(IOERR)?, u64::from(sectors) * SECTOR);
    let fits = at.checked_add(len).is_some_and(|end| end <= capacity);
    if sectors > RANGE_SECTORS || !fits { Err(IOERR) } else { Ok(Range { at, len, unmap }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    }

    #[test]
    fn a_list_is_one_to_sixty_four_whole_entries() {
        for (bytes, is) in [(0, false), (15, false), (16, true), (17, false), (1024, true), (1040, false)] {
            assert_eq!(is_list(bytes), is, "{bytes}");
        }
    }

    #[test]
    fn each_range_is_held_against_the_disk_the_limit_and_its_flags() {
        let disk = 64 << 20;
        let of = |kind, entry: Vec<u8>| parse(kind, &entry, disk).map(|ranges| ranges[0]);
        let range = |at, len, unmap| Ok(Range { at, len, unmap });
        assert_eq!(of(Kind::Discard, entry(1, 2, 0)), range(512, 1024, true));
        assert_eq!(of(Kind::WriteZeroes, entry(1, 2, 0)), range(512, 1024, false));
        assert_eq!(of(Kind::WriteZeroes, entry(1, 2, 1)), range(512, 1024, true));
        assert_eq!(of(Kind::WriteZeroes, entry(131_071, 1, 0)), range(disk - 512, 512, false));
        assert_eq!(of(Kind::Discard, entry(1, 2, 1)), Err(UNSUPP), "a discard unmaps as it is");
        assert_eq!(of(Kind::WriteZeroes, entry(1, 2, 2)), Err(UNSUPP), "a flag of nobody's");
        assert_eq!(of(Kind::WriteZeroes, entry(0, 32769, 0)), Err(IOERR), "longer than was offered");
        for past in [entry(131_071, 2, 0), entry(131_073, 0, 0), entry(u64::MAX, 1, 0), entry(u64::MAX / 512, 2, 0)] {
            assert_eq!(of(Kind::Discard, past), Err(IOERR));
        }
    }

    #[test]
    fn ranges_are_worked_off_from_the_first_and_one_bad_one_spoils_the_list() {
        let good = [entry(0, 1, 0), entry(8, 1, 0)].concat();
        let ats: Vec<_> = parse(Kind::Discard, &good, 1 << 20).unwrap().into_iter().rev().map(|r| r.at).collect();
        assert_eq!(ats, [0, 4096]);
        assert_eq!(parse(Kind::Discard, &[good, entry(4000, 1, 0)].concat(), 1 << 20), Err(IOERR));
    }
}
