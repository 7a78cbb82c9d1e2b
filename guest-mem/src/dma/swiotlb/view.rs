//! The pool as people want to see it: who holds which slots, and how the free ones lie.
//!
//! Neighbours: [`super::Pool`], whose cells it walks. O(slots).

use std::collections::BTreeMap;

use super::cell::{SEGMENT, wide};
use super::geometry::slot_shift;
use super::{Pool, Slot};
use crate::addr::PhysAddr;

/// Slots that a mapping holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Which slots.
    pub slot: Slot,
    /// Where the buffer's first byte lies.
    pub orig: PhysAddr,
    /// Bytes that were mapped.
    pub len: u64,
}

impl Pool {
    /// What is mapped, by slot.
    pub fn taken(&self) -> impl Iterator<Item = Taken> + '_ {
        let firsts = (0_u32..).zip(&self.cells).filter(|(_, cell)| cell.list == 0 && cell.back == 0);
        firsts.map(|(index, cell)| {
            let phys = PhysAddr::new(self.base + (u64::from(index) << slot_shift()) + cell.start());
            let count = u32::try_from(cell.slots()).unwrap_or(u32::MAX);
            let origin = cell.origin(cell.start());
            Taken { slot: Slot { phys, index, count }, orig: origin.orig, len: origin.remaining }
        })
    }

    /// How many runs of free slots there are of each length, in each area. No run crosses a segment, as no mapping does.
    pub fn free_runs(&self) -> Vec<BTreeMap<u32, u32>> {
        let areas = self.cells.chunks(wide(self.area_slots()));
        let begins = |cells: &[super::Cell], at: usize| at.is_multiple_of(SEGMENT) || cells[at - 1].list == 0;
        areas
            .map(|cells| {
                let mut runs = BTreeMap::new();
                for (at, cell) in cells.iter().enumerate() {
                    if cell.list > 0 && begins(cells, at) {
                        *runs.entry(cell.list.into()).or_default() += 1;
                    }
                }
                runs
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::swiotlb::Constraints;

    #[test]
    fn taken_slots_and_free_runs_make_up_the_pool() {
        let mut pool = Pool::new(PhysAddr::new(0x10_0000), 1 << 20, 2).unwrap();
        let whole = BTreeMap::from([(128, 2)]);
        assert_eq!((pool.taken().count(), pool.free_runs()), (0, vec![whole.clone(), whole.clone()]));
        let orig = PhysAddr::new(0x1_2345_6789);
        let kept = Constraints { min_align_mask: 0xfff, ..Constraints::default() };
        let first = pool.map(1, orig, 5000, kept).unwrap();
        let second = pool.map(1, orig, 100, Constraints::default()).unwrap();
        let third = pool.map(1, orig, 100, Constraints::default()).unwrap();
        pool.unmap(second.phys, 100).unwrap();
        let taken: Vec<_> = pool.taken().collect();
        assert_eq!(taken, [Taken { slot: first, orig, len: 5000 }, Taken { slot: third, orig, len: 100 }]);
        let free = pool.stats().total - first.count - third.count;
        let summed: u32 = pool.free_runs().iter().flatten().map(|(length, count)| length * count).sum();
        assert_eq!((summed, pool.free_runs()[0].clone()), (free, whole));
        assert_eq!(pool.free_runs()[1].get(&1), Some(&1), "{:?}", pool.free_runs());
    }
}
