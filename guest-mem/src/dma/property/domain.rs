//! The shadow of an IOMMU's domain: which page the device sees where, and for how long after the unmap.

use std::collections::BTreeMap;

use super::memory::{HIGH, PAGE};
use crate::dma::direction::Dir;
use crate::ram::LOW_LIMIT;

/// Unmaps until a flush, and nanoseconds.
const QUEUE: u32 = 256;
const LATEST: u64 = 10_000_000;

struct Seen {
    page: u64,
    read: bool,
    write: bool,
    stale: bool,
    /// The block of addresses that it was given with, in pages.
    block: (u64, u64),
}

pub(super) struct Domain {
    lazy: bool,
    pages: BTreeMap<u64, Seen>,
    queued: u32,
    since: u64,
}

fn pages_of(at: u64, len: u64) -> std::ops::Range<u64> {
    at / PAGE..(at + len).div_ceil(PAGE)
}

impl Domain {
    pub(super) fn new(lazy: bool) -> Self {
        Self { lazy, pages: BTreeMap::new(), queued: 0, since: 0 }
    }

    /// Time alone flushes too.
    fn at(&mut self, now: u64) {
        if self.queued > 0 && now >= self.since + LATEST {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.pages.retain(|_, seen| !seen.stale);
        self.queued = 0;
    }

    /// Enters what a map call was given; or what is wrong about the place.
    pub(super) fn map(&mut self, dma: u64, orig: u64, len: u64, dir: Dir, now: u64) -> Result<(), String> {
        self.at(now);
        let (given, behind) = (pages_of(dma, len), pages_of(orig, len));
        let window = LOW_LIMIT / PAGE..HIGH / PAGE;
        if dma % PAGE != orig % PAGE || given.start == 0 || (given.start < window.end && given.end > window.start) {
            return Err(format!("{orig:#x} was given the I/O virtual address {dma:#x}"));
        }
        let size = (given.end - given.start).next_power_of_two();
        for (page, behind) in given.clone().zip(behind) {
            let (read, write) = (dir.device_reads(), dir.device_writes());
            let seen = Seen { page: behind, read, write, stale: false, block: (given.start, size) };
            if self.pages.insert(page, seen).is_some() {
                return Err(format!("page {page:#x} of I/O virtual addresses was given twice"));
            }
        }
        Ok(())
    }

    /// Pages that were given as one range.
    pub(super) fn is_one(&mut self, range: std::ops::Range<u64>) {
        let block = (range.start, (range.end - range.start).next_power_of_two());
        self.pages.range_mut(range).for_each(|(_, seen)| seen.block = block);
    }

    pub(super) fn unmap(&mut self, dma: u64, len: u64, now: u64) {
        self.at(now);
        let range = pages_of(dma, len);
        if !self.lazy {
            return self.pages.retain(|page, _| !range.contains(page));
        }
        self.pages.range_mut(range).for_each(|(_, seen)| seen.stale = true);
        if self.queued == 0 {
            self.since = now;
        }
        self.queued += 1;
        if self.queued == QUEUE {
            self.flush();
        }
    }

    /// Where an access goes, piece by piece; `None` if a page refuses it.
    pub(super) fn reach(&mut self, dma: u64, len: u64, write: bool, now: u64) -> Option<Vec<(u64, u64)>> {
        self.at(now);
        let end = dma.checked_add(len - 1)?;
        (dma / PAGE..=end / PAGE)
            .map(|page| {
                let seen = self.pages.get(&page).filter(|seen| if write { seen.write } else { seen.read })?;
                let from = dma.max(page * PAGE);
                let to = end.min(page * PAGE + PAGE - 1);
                Some((seen.page * PAGE + from % PAGE, to - from + 1))
            })
            .collect()
    }

    /// Pages that are mapped, and those that are stale.
    pub(super) fn counts(&mut self, now: u64) -> (usize, usize) {
        self.at(now);
        let stale = self.pages.values().filter(|seen| seen.stale).count();
        (self.pages.len() - stale, stale)
    }

    /// Whether some block of addresses below the mask would have held the range.
    pub(super) fn has_room(&self, orig: u64, len: u64, mask: u64) -> bool {
        let pages = pages_of(orig, len);
        let size = (pages.end - pages.start).next_power_of_two();
        let limit = (mask / PAGE + 1).min(LOW_LIMIT / PAGE);
        let taken = |first: u64| {
            let apart = |seen: &Seen| seen.block.0 + seen.block.1 <= first || first + size <= seen.block.0;
            first == 0 || !self.pages.values().all(apart)
        };
        (0..limit / size).any(|block| !taken(block * size))
    }
}
