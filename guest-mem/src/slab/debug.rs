//! The bytes around and in an object that nobody may write: laid down, looked at, mended.
//!
//! Patterns lie in guest RAM, so that a stray write is found whoever made it: the driver by a pointer, or a device by
//! DMA. A red zone holds `bb` while its object is free and `cc` while it is used; a free object holds `6b` and ends in
//! `a5`, and a fresh one still does, so that what reads memory it never wrote reads that; what lies between is `5a`.
//!
//! Mirrors `init_object`, `check_object`, `check_bytes_and_report` of `mm/slub.c`. Neighbours: [`Geometry`] says where
//! what lies, [`crate::kmalloc`] calls this at each allocation and free of a watched cache. Left out: the free pointer and
//! the user records, which the lab keeps out of band: their bytes are never written.

use std::fmt;

use super::Geometry;
use crate::addr::PhysAddr;
use crate::ram::Ram;

/// Red zone of a free object.
const RED_INACTIVE: u8 = 0xbb;
/// Red zone of a used object.
const RED_ACTIVE: u8 = 0xcc;
/// What lies between objects.
const POISON_INUSE: u8 = 0x5a;
/// A free object.
pub(crate) const POISON_FREE: u8 = 0x6b;
/// Its last byte.
const POISON_END: u8 = 0xa5;

/// What nobody may write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watched {
    /// Before the object.
    LeftRedzone,
    /// Behind the object.
    RightRedzone,
    /// A free object.
    Poison,
    /// The last byte of a free object.
    EndPoison,
    /// Behind the user records.
    ObjectPadding,
    /// Behind an object without red zone, to a word.
    AlignmentPadding,
    /// Behind the last object of a slab.
    SlabPadding,
    /// An object that is held back.
    Quarantine,
}

impl fmt::Display for Watched {
    /// As Linux's reports begin, `… overwritten`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeftRedzone => "Left Redzone",
            Self::RightRedzone => "Right Redzone",
            Self::Poison | Self::Quarantine => "Poison",
            Self::EndPoison => "End Poison",
            Self::ObjectPadding => "Object padding",
            Self::AlignmentPadding => "Alignment padding",
            Self::SlabPadding => "Padding",
        })
    }
}

/// Bytes that somebody overwrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Which part.
    pub what: Watched,
    /// The first wrong byte.
    pub first: PhysAddr,
    /// The last wrong byte.
    pub last: PhysAddr,
    /// What the first holds.
    pub found: u8,
    /// What it should hold.
    pub expected: u8,
}

/// A pattern: what it is, where it begins from the object, how long it is, and its byte.
type Stretch = (Watched, i64, u32, u8);

impl Geometry {
    /// The stretches around an object, and those in it if it is free.
    fn stretches(&self, used: bool) -> impl Iterator<Item = Stretch> {
        use Watched::{AlignmentPadding, EndPoison, LeftRedzone, ObjectPadding, Poison, RightRedzone};
        let red = if used { RED_ACTIVE } else { RED_INACTIVE };
        let (object, left) = (i64::from(self.object_size), i64::from(self.red_left));
        let behind = self.inuse - self.object_size;
        let poison = self.flags.contains(super::SlabFlags::POISON);
        let padding = self.size - self.red_left - self.info_end;
        let zoned = self.red_left > 0;
        [
            (zoned, (LeftRedzone, -left, self.red_left, red)),
            (zoned, (RightRedzone, object, behind, red)),
            (!zoned && poison, (AlignmentPadding, object, behind, POISON_INUSE)),
            (!used && self.poisoned, (Poison, 0, self.object_size - 1, POISON_FREE)),
            (!used && self.poisoned, (EndPoison, object - 1, 1, POISON_END)),
            (poison, (ObjectPadding, self.info_end.into(), padding, POISON_INUSE)),
        ]
        .into_iter()
        .filter(|(there, (_, _, len, _))| *there && *len > 0)
        .map(|(_, stretch)| stretch)
    }

    /// Writes what belongs around an object, and the poison into it: of a fresh one too.
    pub(crate) fn mark(&self, ram: &Ram, object: PhysAddr, used: bool) {
        for (_, at, len, byte) in self.stretches(used) {
            fill(ram, offset(object, at), len.into(), byte);
        }
        if used && self.poisoned {
            fill(ram, object, u64::from(self.object_size) - 1, POISON_FREE);
            fill(ram, offset(object, i64::from(self.object_size) - 1), 1, POISON_END);
        }
    }

    /// Looks at what lies around an object, and in it if it is free; tells the first that is wrong.
    pub(crate) fn check(&self, ram: &Ram, object: PhysAddr, used: bool) -> Option<Damage> {
        self.stretches(used).find_map(|(what, at, len, byte)| differs(ram, offset(object, at), len.into(), byte, what))
    }

    /// Looks at what lies behind the last object of a slab (`slab_pad_check`).
    pub(crate) fn check_padding(&self, ram: &Ram, (slab, bytes, objects): (PhysAddr, u64, u16)) -> Option<Damage> {
        let used = u64::from(objects) * u64::from(self.size);
        let watched = self.flags.contains(super::SlabFlags::POISON) && used < bytes;
        let differs = || differs(ram, slab.wrapping_add(used), bytes - used, POISON_INUSE, Watched::SlabPadding);
        watched.then(differs)?
    }

    /// Fills the pages of a new slab, then marks each object free.
    pub(crate) fn mark_slab(&self, ram: &Ram, slab: PhysAddr, bytes: u64, objects: u16) {
        if self.flags.contains(super::SlabFlags::POISON) {
            fill(ram, slab, bytes, POISON_INUSE);
        }
        for slot in 0..u64::from(objects) {
            let at = slot * u64::from(self.size) + u64::from(self.red_left);
            self.mark(ram, slab.wrapping_add(at), false);
        }
    }
}

/// Restores what was overwritten.
pub(crate) fn mend(ram: &Ram, damage: &Damage) {
    fill(ram, damage.first, damage.last.get() - damage.first.get() + 1, damage.expected);
}

/// Fills an object that is held back.
pub(crate) fn bury(ram: &Ram, object: PhysAddr, len: u32) {
    fill(ram, object, len.into(), POISON_FREE);
}

/// Looks at an object that was held back.
pub(crate) fn exhume(ram: &Ram, object: PhysAddr, len: u32) -> Option<Damage> {
    differs(ram, object, len.into(), POISON_FREE, Watched::Quarantine)
}

fn offset(object: PhysAddr, at: i64) -> PhysAddr {
    PhysAddr::new(object.get().wrapping_add_signed(at))
}

fn fill(ram: &Ram, at: PhysAddr, len: u64, byte: u8) {
    let bytes = [byte; 256];
    for (at, len) in pieces(at, len) {
        // An object's surroundings are its slab's, hence RAM.
        let _ = ram.write(at, &bytes[..len]);
    }
}

fn differs(ram: &Ram, at: PhysAddr, len: u64, expected: u8, what: Watched) -> Option<Damage> {
    let mut damage: Option<Damage> = None;
    let (mut bytes, pattern) = ([expected; 256], [expected; 256]);
    for (at, len) in pieces(at, len) {
        let bytes = &mut bytes[..len];
        let _ = ram.read(at, bytes);
        // Nearly always, and compared a word at a time.
        if *bytes == pattern[..len] {
            continue;
        }
        let wrong = |byte: &u8| *byte != expected;
        let (Some(first), Some(last)) = (bytes.iter().position(wrong), bytes.iter().rposition(wrong)) else { continue };
        let last = at.wrapping_add(last as u64);
        let (first, found) = (at.wrapping_add(first as u64), bytes[first]);
        damage = Some(damage.map_or(Damage { what, first, last, found, expected }, |d| Damage { last, ..d }));
    }
    damage
}

/// A range in pieces of 256 bytes.
fn pieces(at: PhysAddr, len: u64) -> impl Iterator<Item = (PhysAddr, usize)> {
    (0..len).step_by(256).map(move |done| {
        let piece = usize::try_from((len - done).min(256)).unwrap_or(256);
        (at.wrapping_add(done), piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::{SlabFlags, Wish};

    fn geometry(flags: SlabFlags, object_size: u32) -> Geometry {
        Geometry::new(&Wish { object_size, align: 0, flags, ctor: false, kmalloc: false }, 2)
    }

    #[test]
    fn each_byte_that_is_watched_is_missed_when_it_changes_and_no_other() {
        let ram = Ram::new(1 << 20, 1 << 20).unwrap();
        for (flags, size) in [(SlabFlags::DEBUG, 64), (SlabFlags::DEBUG, 13), (SlabFlags::POISON, 1001)] {
            let geometry = geometry(flags, size);
            let object = PhysAddr::new(0x4000 + u64::from(geometry.red_left));
            for used in [false, true] {
                geometry.mark(&ram, object, used);
                assert_eq!(geometry.check(&ram, object, used), None);
                let mut seen = 0;
                for at in 0x4000..0x4000 + u64::from(geometry.size) {
                    let (at, mut byte) = (PhysAddr::new(at), [0]);
                    ram.read(at, &mut byte).unwrap();
                    ram.write(at, &[!byte[0]]).unwrap();
                    match geometry.check(&ram, object, used) {
                        Some(damage) => {
                            assert_eq!((damage.first, damage.last, damage.found), (at, at, !byte[0]));
                            mend(&ram, &damage);
                            seen += 1;
                        }
                        None => ram.write(at, &byte).unwrap(),
                    }
                    assert_eq!(geometry.check(&ram, object, used), None, "mended");
                }
                let watched: u32 = geometry.stretches(used).map(|(_, _, len, _)| len).sum();
                assert_eq!(seen, watched);
                assert!(used || watched >= size);
            }
        }
    }

    #[test]
    fn damage_reaches_from_the_first_wrong_byte_to_the_last() {
        let ram = Ram::new(1 << 20, 1 << 20).unwrap();
        bury(&ram, PhysAddr::new(0x1000), 1000);
        assert_eq!(exhume(&ram, PhysAddr::new(0x1000), 1000), None);
        ram.write(PhysAddr::new(0x1005), &[1]).unwrap();
        ram.write(PhysAddr::new(0x1000 + 999), &[2]).unwrap();
        let damage = exhume(&ram, PhysAddr::new(0x1000), 1000).unwrap();
        assert_eq!((damage.first.get(), damage.last.get(), damage.found), (0x1005, 0x1000 + 999, 1));
    }
}
