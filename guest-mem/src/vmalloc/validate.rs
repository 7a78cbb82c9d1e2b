//! What must always hold of the address space.
//!
//! Neighbours: [`super::areas`]. Left out: the contents of pages.

use std::collections::BTreeMap;

use thiserror::Error;

use super::{Areas, Backing};
use crate::addr::{PAGE_SIZE, Pfn};
use crate::zone::Zones;

/// An invariant of the vmalloc address space that does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum InvalidAreas {
    /// Areas, freed ones and holes don't cover the space exactly once.
    #[error("the address space is torn or covered twice at {at:#x}")]
    Cover {
        /// Where the next part should begin.
        at: u64,
    },
    /// Two holes touch: they should be one.
    #[error("two holes meet at {at:#x}")]
    Unmerged {
        /// Where.
        at: u64,
    },
    /// The count of freed pages is wrong.
    #[error("{counted} freed pages of address space are counted as {booked}")]
    Lazy {
        /// What is there.
        counted: u64,
        /// What the counter says.
        booked: u64,
    },
    /// An area has more or fewer pages than bytes.
    #[error("the area at {start:#x} has {pages} pages for {bytes} bytes")]
    Pages {
        /// The area.
        start: u64,
        /// Its pages.
        pages: usize,
        /// Its bytes.
        bytes: u64,
    },
    /// A page that an area owns is not allocated, or not as a single page.
    #[error("page {pfn:#x} of the area at {start:#x} is not an allocated single page")]
    NotAllocated {
        /// The area.
        start: u64,
        /// The page.
        pfn: u64,
    },
    /// Two areas own one page.
    #[error("page {pfn:#x} belongs to the areas at {one:#x} and {other:#x}")]
    Shared {
        /// The page.
        pfn: u64,
        /// One area.
        one: u64,
        /// The other.
        other: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Taken,
    Hole,
}

impl Areas {
    /// Checks the whole space, and the pages behind it.
    ///
    /// # Errors
    /// The first invariant that is broken.
    pub(crate) fn validate(&self, zones: &Zones) -> Result<(), InvalidAreas> {
        self.check_cover()?;
        let counted = self.lazy.iter().map(|freed| freed.size / PAGE_SIZE).sum();
        if counted != self.lazy_pages {
            return Err(InvalidAreas::Lazy { counted, booked: self.lazy_pages });
        }
        self.check_pages(zones)
    }

    fn check_cover(&self) -> Result<(), InvalidAreas> {
        let areas = self.live.iter().map(|(&start, area)| (start, start + area.size(), Part::Taken));
        let freed = self.lazy.iter().map(|freed| (freed.start, freed.start + freed.size, Part::Taken));
        let holes = self.holes.iter().map(|(&start, &end)| (start, end, Part::Hole));
        let mut parts: Vec<_> = areas.chain(freed).chain(holes).collect();
        parts.sort_unstable_by_key(|part| part.0);
        let (mut at, mut last) = (self.range.start, Part::Taken);
        for (start, end, part) in parts {
            if start != at || end <= start || start % PAGE_SIZE != 0 {
                return Err(InvalidAreas::Cover { at });
            }
            if (last, part) == (Part::Hole, Part::Hole) {
                return Err(InvalidAreas::Unmerged { at });
            }
            (at, last) = (end, part);
        }
        if at == self.range.end { Ok(()) } else { Err(InvalidAreas::Cover { at }) }
    }

    fn check_pages(&self, zones: &Zones) -> Result<(), InvalidAreas> {
        let mut owners: BTreeMap<Pfn, u64> = BTreeMap::new();
        for (&start, area) in &self.live {
            let (pages, bytes) = (area.backing.pages(), area.bytes);
            let registers = matches!(area.backing, Backing::Io(_));
            let being_made = pages.is_empty() && matches!(area.backing, Backing::Alloc(_));
            if !registers && !being_made && pages.len() as u64 * PAGE_SIZE != bytes {
                return Err(InvalidAreas::Pages { start, pages: pages.len(), bytes });
            }
            let Backing::Alloc(pages) = &area.backing else { continue };
            for &pfn in pages {
                let block = zones.lookup(pfn).map(|found| found.block);
                if block.is_none_or(|block| block.pfn != pfn || block.order != 0) {
                    return Err(InvalidAreas::NotAllocated { start, pfn: pfn.get() });
                }
                if let Some(one) = owners.insert(pfn, start) {
                    return Err(InvalidAreas::Shared { pfn: pfn.get(), one, other: start });
                }
            }
        }
        Ok(())
    }
}
