//! The shadow of the bounce pool: which slots are taken, and which places a mapping may be given.

use std::collections::BTreeMap;

use super::shadow::{Check, ensure};

const SLOT: u64 = 2048;
const SEGMENT: u64 = 128;

pub(super) struct Slots {
    base: u64,
    count: u64,
    area: u64,
    /// First slot of each mapping, and how many it has.
    taken: BTreeMap<u64, u64>,
}

impl Slots {
    pub(super) fn new(base: u64, bytes: u64, cpus: u32) -> Self {
        let count = bytes / SLOT;
        Self { base, count, area: count / u64::from(cpus), taken: BTreeMap::new() }
    }

    pub(super) fn end(&self) -> u64 {
        self.base + self.count * SLOT
    }

    pub(super) fn used(&self) -> u64 {
        self.taken.values().sum()
    }

    fn is_free(&self, first: u64, slots: u64) -> bool {
        self.taken.range(..first + slots).next_back().is_none_or(|(&taken, &count)| taken + count <= first)
    }

    /// The slots of a mapping at a place, if it may lie there at all.
    fn fits(&self, phys: u64, orig: u64, len: u64, align: u64) -> Option<(u64, u64)> {
        let offset = orig & (align % SLOT);
        let at = phys.checked_sub(self.base + offset).filter(|at| at % SLOT == 0)?;
        let (first, slots) = (at / SLOT, (offset + len).div_ceil(SLOT));
        let aligned = match align {
            0 => len < 4096 || phys.is_multiple_of(4096),
            _ => phys & align == orig & align,
        };
        let inside = first + slots <= self.count && first / SEGMENT == (first + slots - 1) / SEGMENT;
        (aligned && inside).then_some((first, slots))
    }

    /// A mapping was given a place.
    pub(super) fn take(&mut self, phys: u64, orig: u64, len: u64, align: u64) -> Check {
        let Some((first, slots)) = self.fits(phys, orig, len, align) else {
            return Err(format!("{orig:#x}+{len} was bounced at {phys:#x}"));
        };
        ensure!(self.is_free(first, slots), "bounce slots {first}+{slots} were given twice");
        self.taken.insert(first, slots);
        Ok(())
    }

    pub(super) fn give(&mut self, phys: u64) {
        self.taken.remove(&((phys - self.base) / SLOT)).unwrap();
    }

    /// Whether any place was left.
    pub(super) fn has_room(&self, orig: u64, len: u64, align: u64) -> bool {
        // As in Linux the search may pass over the last places if the alignment is more than a slot's.
        let offset = orig & (align % SLOT);
        let places = (0..self.count).map(|slot| self.base + slot * SLOT + offset);
        let mut free = places.filter_map(|phys| self.fits(phys, orig, len, align));
        align < SLOT && free.any(|(first, slots)| self.is_free(first, slots))
    }

    /// Whether so many bytes in several mappings may have found no room.
    pub(super) fn is_tight(&self, bytes: u64) -> bool {
        self.used() + bytes / SLOT > self.area / 2
    }

    /// Stretches of the pool that nobody has: address and bytes.
    pub(super) fn free(&self) -> Vec<(u64, u64)> {
        let (mut free, mut at) = (Vec::new(), 0);
        for (first, slots) in self.taken.iter().map(|(&first, &slots)| (first, slots)).chain([(self.count, 0)]) {
            if first > at {
                free.push((self.base + at * SLOT, (first - at) * SLOT));
            }
            at = first + slots;
        }
        free
    }
}
