//! The domain's check of itself, for tests: pages entered, ranges given and ranges free against each other.
//!
//! Neighbours: [`super::Domain`], whose addresses are in `iova`.

use thiserror::Error;

use super::iova::Iovas;
use super::{Domain, Entry};
use crate::addr::PAGE_SHIFT;
use crate::ram::{HIGH_START, LOW_LIMIT};

/// What [`Domain::validate`] finds broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DomainError {
    /// A range of addresses does not have the pages that it counts.
    #[error("the I/O virtual addresses from page {first:#x} on have {entered} pages, not {counted}")]
    Range {
        /// Its first page.
        first: u64,
        /// Pages entered.
        entered: u64,
        /// Pages that it counts.
        counted: u64,
    },
    /// A page is entered at an address that was not given.
    #[error("{stray} pages are entered at I/O virtual addresses that are free")]
    Stray {
        /// How many.
        stray: u64,
    },
    /// Free and given addresses overlap, or some are neither.
    #[error("I/O virtual addresses are torn or covered twice at page {page:#x}")]
    Torn {
        /// The first such page.
        page: u64,
    },
    /// Pages that were unmapped do not agree with the queue.
    #[error("{stale} pages wait for a flush, and {queued} ranges are queued")]
    Queue {
        /// Pages.
        stale: usize,
        /// Ranges.
        queued: usize,
    },
}

impl Iovas {
    /// Checks that free and given blocks cover all addresses once; for tests, O(n log n).
    pub(super) fn validate(&self) -> Result<(), DomainError> {
        let free = self.blocks_free().map(|(first, order)| (first, first + (1 << order)));
        let given = self.ranges().map(|(first, order, _)| (first, first + (1 << order)));
        let mut all: Vec<_> = free.chain(given).collect();
        all.sort_unstable();
        let mut at = 1;
        for (first, end) in all {
            if at == LOW_LIMIT >> PAGE_SHIFT {
                at = HIGH_START >> PAGE_SHIFT;
            }
            if first != at {
                return Err(DomainError::Torn { page: at.min(first) });
            }
            at = end;
        }
        Ok(())
    }
}

impl Domain {
    /// Checks entries, queue and addresses against each other; for tests, O(n log n).
    ///
    /// # Errors
    /// The first [`DomainError`] there is.
    pub fn validate(&self) -> Result<(), DomainError> {
        self.iovas.validate()?;
        let mut inside = 0;
        for (first, order, counted) in self.iovas.ranges() {
            let entered = self.entries.range(first..first + (1 << order)).count() as u64;
            inside += entered;
            if entered != counted {
                return Err(DomainError::Range { first, entered, counted });
            }
        }
        let stray = self.entries.len() as u64 - inside;
        if stray > 0 {
            return Err(DomainError::Stray { stray });
        }
        let is_queued = |page: u64| self.queue.iter().any(|&(first, end)| (first..end).contains(&page));
        let stale = |(&page, entry): (&u64, &Entry)| entry.stale && !is_queued(page);
        let (stale, queued) = (self.entries.iter().filter(|&entry| stale(entry)).count(), self.queue.len());
        if stale > 0 { Err(DomainError::Queue { stale, queued }) } else { Ok(()) }
    }
}
