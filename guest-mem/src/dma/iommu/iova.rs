//! Which I/O virtual addresses are free: buddies of pages, given from the top down.
//!
//! A range is rounded up to a power of two pages and lies on a multiple of it; of all free places below the limit the
//! highest is taken, first below 4 GiB, as `iommu_dma_alloc_iova` does for PCI devices. Page 0 and the window of device
//! registers are never given (`iova_reserve_pci_windows`). O(orders · log n) whatever is live. Neighbours: the domain.
//! Left out: Linux's caches of freed ranges a CPU (`iova_rcache`), which give the last one freed again first.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::addr::PAGE_SHIFT;
use crate::ram::{HIGH_START, LOW_LIMIT};

/// Bits of address that a domain has.
pub const APERTURE: u32 = 48;
const ORDERS: usize = 37;

/// No range of addresses is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("no I/O virtual addresses for {pages} pages within mask {mask:#x}")]
pub struct IovaError {
    /// Pages asked for.
    pub pages: u64,
    /// The device's mask.
    pub mask: u64,
}

/// The addresses of one domain, in pages.
#[derive(Debug)]
pub(super) struct Iovas {
    pub(super) free: [BTreeSet<u64>; ORDERS],
    /// Ranges given: their order, and how many of their pages are still in use.
    pub(super) given: BTreeMap<u64, (usize, u64)>,
}

impl Iovas {
    pub(super) fn new() -> Self {
        let mut iovas = Self { free: std::array::from_fn(|_| BTreeSet::new()), given: BTreeMap::new() };
        iovas.add(1, LOW_LIMIT >> PAGE_SHIFT);
        iovas.add(HIGH_START >> PAGE_SHIFT, 1 << (APERTURE - PAGE_SHIFT));
        iovas
    }

    /// Adds a range of pages as the largest blocks it has.
    fn add(&mut self, mut first: u64, end: u64) {
        while first < end {
            let order = (0..ORDERS).rev().find(|&order| first.is_multiple_of(1 << order) && end - first >= 1 << order);
            let order = order.unwrap_or(0);
            self.free[order].insert(first);
            first += 1 << order;
        }
    }

    /// The first page of a range below the mask, of which so many pages will be used.
    pub(super) fn alloc(&mut self, pages: u64, used: u64, mask: u64) -> Result<u64, IovaError> {
        let error = IovaError { pages, mask };
        let order = pages.checked_next_power_of_two().ok_or(error)?.trailing_zeros() as usize;
        let limit = (mask >> PAGE_SHIFT).saturating_add(u64::from(mask % 4096 == 4095));
        let low = limit.min(HIGH_START >> PAGE_SHIFT);
        let first = self.take(order, low).or_else(|| if low < limit { self.take(order, limit) } else { None });
        let first = first.ok_or(error)?;
        self.given.insert(first, (order, used));
        Ok(first)
    }

    /// The highest block of an order that ends at or below a limit.
    fn take(&mut self, order: usize, limit: u64) -> Option<u64> {
        let size = 1_u64 << order;
        let last = limit.checked_sub(size)? & !(size - 1);
        let highest = |from: usize| {
            let block = *self.free.get(from)?.range(..=last).next_back()?;
            Some((last.min(block + (1 << from) - size), from, block))
        };
        let (first, from, mut block) = (order..ORDERS).filter_map(highest).max()?;
        self.free[from].remove(&block);
        for half in (order..from).rev() {
            // The half that is not wanted stays free.
            let upper = block + (1 << half);
            let (kept, wanted) = if first >= upper { (block, upper) } else { (upper, block) };
            self.free[half].insert(kept);
            block = wanted;
        }
        Some(block)
    }

    /// A page is no longer in use; with its last one a range goes back.
    pub(super) fn release(&mut self, page: u64) {
        let Some((&first, range)) = self.given.range_mut(..=page).next_back() else { return };
        range.1 -= 1;
        if range.1 > 0 {
            return;
        }
        let (mut first, mut order) = (first, range.0);
        self.given.remove(&first);
        while order + 1 < ORDERS && self.free[order].remove(&(first ^ (1 << order))) {
            first &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(first);
    }

    /// Free blocks: the first page and the order of each.
    pub(super) fn blocks_free(&self) -> impl Iterator<Item = (u64, usize)> {
        self.free.iter().enumerate().flat_map(|(order, blocks)| blocks.iter().map(move |&first| (first, order)))
    }

    /// Ranges given: the first page, the order and the pages in use of each.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, usize, u64)> {
        self.given.iter().map(|(&first, &(order, used))| (first, order, used))
    }

    /// Free blocks of each order, for tests.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> Vec<usize> {
        self.free.iter().map(BTreeSet::len).collect()
    }
}
