//! DISCARD and WRITE_ZEROES: the device clears ranges of sectors by itself, and no data moves.
//!
//! What does move is the list of ranges, 16 bytes each, in a buffer that is allocated and mapped like any other: a
//! device that can't reach it costs a bounce. Neighbours: `disk`, which says what was agreed; `request`. Mirrors
//! `virtblk_setup_discard_write_zeroes_erase` of Linux; virtio 1.2, 5.2.6. Left out: SECURE_ERASE.

#[cfg(lowzone_mutants)]
use lowzone_guest_mem::dma::misuse;
use lowzone_guest_mem::gfp::GFP_ATOMIC;
use lowzone_guest_mem::kbuf::OutOfBounds;
use lowzone_guest_mem::zone::AllocError;
use lowzone_guest_mem::{Cpu, KBuf};
use thiserror::Error;

use crate::blk::disk::Disk;
use crate::blk::request::{Data, Op, Request};
#[cfg(lowzone_mutants)]
use crate::mutant::{self, Mutant};
use crate::virtio::VirtioError;
use crate::virtio::transport::Transport;

pub(crate) const F_DISCARD: u64 = 1 << 13;
pub(crate) const F_WRITE_ZEROES: u64 = 1 << 14;
/// Offset of the limits in the device's config: sectors and ranges of a discard, its alignment, sectors and ranges of zeroes.
const CONFIG_LIMITS: u64 = 36;
/// The most ranges that Linux's driver puts in one request (`MAX_DISCARD_SEGMENTS`).
const MOST_RANGES: u32 = 256;
/// Bytes of one range.
const ENTRY: usize = 16;
/// The flag by which zeroes may give space back.
const UNMAP: u32 = 1;

/// Sectors of 512 bytes, one after another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SectorRange {
    /// The first.
    pub sector: u64,
    /// How many.
    pub sectors: u32,
}

/// What one request may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClearLimits {
    /// Sectors of a range.
    pub sectors: u32,
    /// Ranges of a request.
    pub ranges: u32,
}

/// Both kinds' limits; `None` for one that was not agreed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Clearing {
    pub(crate) discard: Option<ClearLimits>,
    pub(crate) zeroes: Option<ClearLimits>,
}

/// Why no request is made of some ranges.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ClearError {
    /// The device does not offer it (`-EOPNOTSUPP`).
    #[error("the device does not offer {what}")]
    NotOffered {
        /// The feature.
        what: &'static str,
    },
    /// No ranges, or more than the device takes at once.
    #[error("{ranges} ranges in one request: the device takes 1 to {most}")]
    Ranges {
        /// How many.
        ranges: usize,
        /// The most.
        most: u32,
    },
    /// A range that is longer than the device takes.
    #[error("a range of {sectors} sectors: the device takes {most}")]
    TooLong {
        /// Its sectors.
        sectors: u32,
        /// The most.
        most: u32,
    },
    /// A range that reaches beyond the disk.
    #[error("{sectors} sectors at {sector} reach beyond the disk's {capacity}")]
    Beyond {
        /// The first.
        sector: u64,
        /// How many.
        sectors: u32,
        /// Sectors of the disk.
        capacity: u64,
    },
    /// No memory for the list (`-ENOMEM`).
    #[error(transparent)]
    Memory(#[from] AllocError),
    /// The list does not fit the memory that was had for it.
    #[error(transparent)]
    List(#[from] OutOfBounds),
}

impl Clearing {
    /// Reads the limits of what was agreed.
    pub(crate) fn read(cpu: &Cpu<'_>, transport: &dyn Transport, features: u64) -> Result<Self, VirtioError> {
        if features & (F_DISCARD | F_WRITE_ZEROES) == 0 {
            return Ok(Self::default());
        }
        let mut bytes = [0; 20];
        transport.config_read(cpu, CONFIG_LIMITS, &mut bytes)?;
        Ok(Self::parse(&bytes, features))
    }

    /// Out of spec but known in the wild, so taken as Linux takes them: no sectors mean no limit, no ranges one.
    fn parse(bytes: &[u8; 20], features: u64) -> Self {
        let [discard_sectors, discard_ranges, _alignment, zero_sectors, zero_ranges] = {
            let mut words = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
            std::array::from_fn(|_| words.next().unwrap_or(0))
        };
        let limits = |feature, sectors, ranges: u32| {
            let sectors = if sectors == 0 { u32::MAX } else { sectors };
            (features & feature != 0).then_some(ClearLimits { sectors, ranges: ranges.clamp(1, MOST_RANGES) })
        };
        Self {
            discard: limits(F_DISCARD, discard_sectors, discard_ranges),
            zeroes: limits(F_WRITE_ZEROES, zero_sectors, zero_ranges),
        }
    }
}

/// The list as the device reads it.
fn list(ranges: &[SectorRange], flags: u32, limits: ClearLimits, capacity: u64) -> Result<Vec<u8>, ClearError> {
    let most = limits.ranges;
    if ranges.is_empty() || u32::try_from(ranges.len()).map_or(true, |count| count > most) {
        return Err(ClearError::Ranges { ranges: ranges.len(), most });
    }
    let mut bytes = Vec::with_capacity(ranges.len() * ENTRY);
    for &SectorRange { sector, sectors } in ranges {
        if sectors > limits.sectors {
            return Err(ClearError::TooLong { sectors, most: limits.sectors });
        }
        if sector.checked_add(sectors.into()).is_none_or(|end| end > capacity) {
            return Err(ClearError::Beyond { sector, sectors, capacity });
        }
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    Ok(bytes)
}

impl Disk {
    /// What a discard may ask for, if the device knows it.
    pub fn discard_limits(&self) -> Option<ClearLimits> {
        self.clearing().discard
    }

    /// What WRITE_ZEROES may ask for, if the device knows it.
    pub fn write_zeroes_limits(&self) -> Option<ClearLimits> {
        self.clearing().zeroes
    }

    /// A request by which nobody wants these sectors' data any more: what they read as afterwards is open. Any context.
    ///
    /// # Errors
    /// [`ClearError`].
    #[track_caller]
    pub fn discard(&self, cpu: &Cpu<'_>, ranges: &[SectorRange]) -> Result<Request, ClearError> {
        let limits = self.discard_limits().ok_or(ClearError::NotOffered { what: "DISCARD" })?;
        self.request_of(cpu, Op::Discard, list(ranges, 0, limits, self.capacity())?)
    }

    /// A request after which these sectors read as zeros; with `unmap` their space may be given back. Any context.
    ///
    /// # Errors
    /// [`ClearError`].
    #[track_caller]
    pub fn write_zeroes(&self, cpu: &Cpu<'_>, ranges: &[SectorRange], unmap: bool) -> Result<Request, ClearError> {
        let limits = self.write_zeroes_limits().ok_or(ClearError::NotOffered { what: "WRITE_ZEROES" })?;
        self.request_of(cpu, Op::WriteZeroes, list(ranges, if unmap { UNMAP } else { 0 }, limits, self.capacity())?)
    }

    #[track_caller]
    fn request_of(&self, cpu: &Cpu<'_>, op: Op, list: Vec<u8>) -> Result<Request, ClearError> {
        #[cfg(lowzone_mutants)]
        if mutant::is(Mutant::ElementUndersized) {
            let buffer = KBuf::kmalloc(cpu, list.len() / 2, GFP_ATOMIC)?;
            return Ok(Request { op, sector: 0, data: Data::Streaming(misuse::overrun(cpu, buffer, &list)) });
        }
        let buffer = KBuf::kmalloc(cpu, list.len(), GFP_ATOMIC);
        #[cfg(lowzone_mutants)]
        if buffer.is_err() && mutant::is(Mutant::MissingCheckInIoctl) {
            misuse::null_dereference(cpu, "a list of ranges");
        }
        let mut buffer = buffer?;
        buffer.write_at(0, &list)?;
        Ok(Request { op, sector: 0, data: Data::Streaming(buffer) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ClearLimits = ClearLimits { sectors: 8, ranges: 2 };

    fn range(sector: u64, sectors: u32) -> SectorRange {
        SectorRange { sector, sectors }
    }

    #[test]
    fn a_list_has_sixteen_bytes_a_range_and_its_flags() {
        let bytes = list(&[range(1, 2), range(0x1_0000_0000, 8)], UNMAP, LIMITS, u64::MAX).unwrap();
        assert_eq!(bytes[..16], [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[16..], [0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn what_the_device_would_refuse_is_not_asked_for() {
        let of = |ranges: &[SectorRange]| list(ranges, 0, LIMITS, 100).unwrap_err();
        assert_eq!(of(&[]), ClearError::Ranges { ranges: 0, most: 2 });
        assert_eq!(of(&[range(0, 1); 3]), ClearError::Ranges { ranges: 3, most: 2 });
        assert_eq!(of(&[range(0, 9)]), ClearError::TooLong { sectors: 9, most: 8 });
        for sector in [93, 101, u64::MAX] {
            assert_eq!(of(&[range(sector, 8)]), ClearError::Beyond { sector, sectors: 8, capacity: 100 });
        }
        assert!(list(&[range(92, 8)], 0, LIMITS, 100).is_ok());
    }

    #[test]
    fn limits_are_those_of_the_config_and_absent_ones_are_taken_as_linux_takes_them() {
        let words = |words: [u32; 5]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.try_into().unwrap()
        };
        let both = F_DISCARD | F_WRITE_ZEROES;
        let read = Clearing::parse(&words([32768, 1, 1, 4096, 1000]), both);
        assert_eq!(read.discard, Some(ClearLimits { sectors: 32768, ranges: 1 }));
        assert_eq!(read.zeroes, Some(ClearLimits { sectors: 4096, ranges: 256 }));
        let none = Clearing::parse(&words([0; 5]), F_DISCARD);
        assert_eq!(none, Clearing { discard: Some(ClearLimits { sectors: u32::MAX, ranges: 1 }), zeroes: None });
    }
}
