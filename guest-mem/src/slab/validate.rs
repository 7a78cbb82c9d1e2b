//! What must always hold in the slab caches, checked from the outside.
//!
//! Neighbours: [`super::SlabCaches::validate`] is for tests and for a campaign's oracle: a fault found here is the
//! lab's, not a driver's. Left out: pages no slab knows of are the page allocator's to check.

use super::cache::Cache;
use super::slab::{Note, Place, Slab};
use super::{Kind, NIL, SlabCaches, Zones};

/// An invariant of the slab caches that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSlab {
    /// Live, freed and never used objects of a slab do not add up, or one is free twice.
    #[error("slab {index}: its free objects are wrong")]
    Objects {
        /// The slab.
        index: u32,
    },
    /// A slab is not where its use says it should be.
    #[error("slab {index} is in the wrong place")]
    Place {
        /// The slab.
        index: u32,
    },
    /// A block of the page allocator and a slab do not belong together.
    #[error("slab {index} and the block at page {pfn:#x} do not fit")]
    Block {
        /// The slab the block names.
        index: u32,
        /// The block's first page.
        pfn: u64,
    },
    /// The list of partial slabs is broken or does not hold all of them.
    #[error("{cache}: the list of partial slabs is broken at {index}")]
    List {
        /// The cache.
        cache: &'static str,
        /// The slab, or the largest number at its end.
        index: u32,
    },
    /// A counter is wrong.
    #[error("{cache} counts {counted}, there are {found}")]
    Count {
        /// The cache.
        cache: &'static str,
        /// The counter of slabs, objects or empty slabs.
        counted: u64,
        /// What was found.
        found: u64,
    },
}

impl SlabCaches {
    /// Checks every slab, list and counter against each other and against the page allocator.
    ///
    /// # Errors
    ///
    /// The first invariant that does not hold.
    pub fn validate(&self, zones: &Zones) -> Result<(), InvalidSlab> {
        let mut slabs = vec![0u64; self.caches.len()];
        for found in zones.live() {
            let Kind::Slab { index } = found.kind else { continue };
            let wrong = InvalidSlab::Block { index, pfn: found.block.pfn.get() };
            let used = self.slabs.slab(index).filter(|_| index < self.fresh && !self.spare.contains(&index));
            let slab = used.filter(|slab| slab.block == found.block).ok_or(wrong)?;
            check_objects(index, &slab)?;
            self.check_place(index, &slab)?;
            let counted = slabs.get_mut(slab.cache as usize).ok_or(wrong)?;
            *counted += u64::from(slab.place != Place::New);
        }
        for ((number, cache), slabs) in (0..).zip(&self.caches).zip(slabs) {
            equal(cache.name, cache.slabs.into(), slabs)?;
            self.check_cache(number, cache, zones)?;
        }
        Ok(())
    }

    /// Breaks an invariant, for the test that it is found: a live object is on its slab's free list.
    #[cfg(test)]
    pub(crate) fn corrupt(&mut self, spot: super::Spot) {
        if let Some(mut slab) = self.slabs.slab(spot.index) {
            slab.free.push(spot.slot);
        }
    }

    fn check_place(&self, index: u32, slab: &Slab) -> Result<(), InvalidSlab> {
        let cache = self.cache_of(slab.cache);
        let currents = cache.map_or(0, |cache| cache.current.iter().filter(|current| **current == index).count());
        let right = match slab.place {
            Place::Spare => false,
            Place::New => currents == 0,
            Place::Current => currents == 1,
            Place::Partial => currents == 0 && !slab.is_full(),
            Place::Full => currents == 0 && slab.is_full(),
        };
        if right { Ok(()) } else { Err(InvalidSlab::Place { index }) }
    }

    fn check_cache(&self, number: u32, cache: &Cache, zones: &Zones) -> Result<(), InvalidSlab> {
        let id = cache.name;
        let (mut at, mut before, mut listed, mut empty) = (cache.partial, NIL, 0u64, 0u64);
        while at != NIL {
            let broken = InvalidSlab::List { cache: id, index: at };
            let slab = self.slabs.slab(at).ok_or(broken)?;
            if slab.place != Place::Partial
                || slab.cache != number
                || slab.prev != before
                || listed > cache.slabs.into()
            {
                return Err(broken);
            }
            listed += 1;
            empty += u64::from(slab.used == 0);
            (before, at) = (at, slab.next);
        }
        equal(id, cache.empty.into(), empty)?;
        let (mut partial, mut total) = (0, 0);
        for slab in zones.live().filter_map(|found| match found.kind {
            Kind::Slab { index } => {
                self.slabs.slab(index).filter(|slab| slab.cache == number && slab.place != Place::New)
            }
            _ => None,
        }) {
            partial += u64::from(slab.place == Place::Partial);
            total += u64::from(slab.objects);
        }
        if partial != listed {
            return Err(InvalidSlab::List { cache: id, index: NIL });
        }
        equal(id, cache.total, total)
    }
}

fn check_objects(index: u32, slab: &Slab) -> Result<(), InvalidSlab> {
    let count = |what: fn(&Note) -> bool| slab.notes.iter().filter(|note| what(note)).count();
    let used = count(|note| note.is_live()) + count(|note| note.is_held());
    let mut free = slab.free.clone();
    free.sort_unstable();
    free.dedup();
    let is_free = |note: &Note| !note.is_live() && !note.is_held();
    let all_free = free.iter().all(|&slot| slab.notes.get(usize::from(slot)).is_some_and(is_free));
    let adds_up = used == usize::from(slab.used) && used + free.len() == slab.notes.len();
    let fits = slab.free.len() == free.len() && slab.notes.len() <= usize::from(slab.objects);
    if all_free && adds_up && fits { Ok(()) } else { Err(InvalidSlab::Objects { index }) }
}

fn equal(cache: &'static str, counted: u64, found: u64) -> Result<(), InvalidSlab> {
    if counted == found { Ok(()) } else { Err(InvalidSlab::Count { cache, counted, found }) }
}
