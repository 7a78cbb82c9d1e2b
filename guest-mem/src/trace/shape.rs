//! What a mapping is like, in the 32 bits of a record.
//!
//! Neighbours: the map calls pack it into [`super::Kind::Mapping`], viewers unpack it. Left out: addresses and sites,
//! which have fields of their own.

use crate::dma::direction::Dir;
use crate::zone::ZoneKind;

/// Direction, kind and zones of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Direction.
    pub dir: Dir,
    /// Whether the device is given a copy in the bounce pool.
    pub bounced: bool,
    /// Whether it is coherent memory.
    pub coherent: bool,
    /// The zone of the bytes that the device reaches.
    pub zone: ZoneKind,
    /// The zone of the driver's buffer; differs only if it bounced.
    pub buffer_zone: ZoneKind,
}

impl Shape {
    /// Bits 0-1 direction, 2 bounced, 3 coherent, 4-5 zone, 6-7 the buffer's zone.
    pub fn pack(self) -> u32 {
        let dir = match self.dir {
            Dir::ToDevice => 1,
            Dir::FromDevice => 2,
            Dir::Bidirectional => 0,
        };
        let flags = u32::from(self.bounced) << 2 | u32::from(self.coherent) << 3;
        dir | flags | zone_bits(self.zone) << 4 | zone_bits(self.buffer_zone) << 6
    }

    /// The shape of a record's `len`; `None` if no [`Shape::pack`] gave it.
    pub fn unpack(bits: u32) -> Option<Self> {
        let dir = match bits & 3 {
            0 => Dir::Bidirectional,
            1 => Dir::ToDevice,
            2 => Dir::FromDevice,
            _ => return None,
        };
        if bits >> 8 != 0 {
            return None;
        }
        let (bounced, coherent) = (bits & 4 != 0, bits & 8 != 0);
        Some(Self { dir, bounced, coherent, zone: zone(bits >> 4)?, buffer_zone: zone(bits >> 6)? })
    }
}

fn zone_bits(zone: ZoneKind) -> u32 {
    match zone {
        ZoneKind::Dma => 0,
        ZoneKind::Dma32 => 1,
        ZoneKind::Normal => 2,
        ZoneKind::HighMem => 3,
    }
}

fn zone(bits: u32) -> Option<ZoneKind> {
    ZoneKind::ALL.get(usize::try_from(bits & 3).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_survives_its_bits_and_other_bits_are_none() {
        let mut seen = 0;
        for bits in 0..0x400 {
            if let Some(shape) = Shape::unpack(bits) {
                assert_eq!(shape.pack(), bits);
                seen += 1;
            }
        }
        assert_eq!(seen, 3 * 2 * 2 * 4 * 4);
    }
}
