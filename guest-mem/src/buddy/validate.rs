//! What must always hold in a zone's free lists, checked against the marks of every touched frame.
//!
//! Neighbours: [`super::Buddy`]. A fault found here is the lab's, not a driver's. Left out: frames that were never
//! touched, which are zero by construction.

use std::ops::Range;

use super::{Buddy, List, MAX_ORDER, ORDERS};
use crate::frame::{Frame, Frames, NIL};

/// An invariant of the free lists that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBuddy {
    /// A touched frame belongs to no block.
    #[error("frame {pfn:#x} belongs to no block")]
    Homeless {
        /// The frame.
        pfn: u32,
    },
    /// A block is not aligned to its size, or leaves its range.
    #[error("block {pfn:#x} of order {order} is misplaced")]
    Misplaced {
        /// The block's first frame.
        pfn: u32,
        /// The block's order.
        order: u8,
    },
    /// A frame inside a block carries marks.
    #[error("frame {pfn:#x} is marked inside a block")]
    MarkedInside {
        /// The frame.
        pfn: u32,
    },
    /// Two buddies are free side by side.
    #[error("block {pfn:#x} of order {order} was not merged with its buddy")]
    Unmerged {
        /// The lower block's first frame.
        pfn: u32,
        /// The order of both.
        order: u8,
    },
    /// A list's links do not fit each other, or a block on it is not free or of another order.
    #[error("list of order {order} is broken at {pfn:#x}")]
    BrokenList {
        /// The list.
        order: u8,
        /// Where.
        pfn: u32,
    },
    /// A list does not hold what is counted.
    #[error("list of order {order} counts {counted} blocks, {found} are free")]
    WrongCount {
        /// The list.
        order: u8,
        /// Its counter.
        counted: u64,
        /// Free blocks in the frame table.
        found: u64,
    },
    /// The summary of the orders that have free blocks does not fit the lists.
    #[error("the orders with free blocks are noted as {noted:#x}, the lists say {found:#x}")]
    WrongOrders {
        /// The summary: a bit an order.
        noted: u32,
        /// As the lists and what was never touched have it.
        found: u32,
    },
    /// The zone's free pages are not what its lists hold.
    #[error("{counted} free pages are counted, the lists hold {found}")]
    WrongFree {
        /// The counter.
        counted: u64,
        /// The sum over the lists and what was never touched.
        found: u64,
    },
}

impl Buddy {
    /// Checks lists, counters and marks of everything that was touched.
    ///
    /// # Errors
    ///
    /// The first invariant that does not hold.
    pub(crate) fn validate(&self, frames: &Frames) -> Result<(), InvalidBuddy> {
        let mut found = [0u64; ORDERS];
        for segment in &self.segments {
            for range in segment.touched() {
                validate_range(range, frames, &mut found)?;
            }
        }
        let mut free = self.untouched << MAX_ORDER;
        for (order, (list, found)) in (0..=MAX_ORDER).zip(self.lists.iter().zip(found)) {
            validate_list(list, order, frames)?;
            if list.count != found {
                return Err(InvalidBuddy::WrongCount { order, counted: list.count, found });
            }
            free += found << order;
        }
        if free != self.free {
            return Err(InvalidBuddy::WrongFree { counted: self.free, found: free });
        }
        let orders = self.free_by_order().iter().rev().fold(0, |bits, &blocks| bits << 1 | u32::from(blocks > 0));
        if orders != self.orders {
            return Err(InvalidBuddy::WrongOrders { noted: self.orders, found: orders });
        }
        Ok(())
    }
}

fn validate_range(range: Range<u32>, frames: &Frames, found: &mut [u64; ORDERS]) -> Result<(), InvalidBuddy> {
    let mut pfn = range.start;
    while pfn < range.end {
        let (order, free) = match frames.get(pfn) {
            Frame::Unmarked => return Err(InvalidBuddy::Homeless { pfn }),
            Frame::Free { order, .. } => (order, true),
            Frame::Used { order, .. } | Frame::Cached { order, .. } => (order, false),
        };
        if order > MAX_ORDER || !pfn.is_multiple_of(1 << order) || range.end - pfn < 1 << order {
            return Err(InvalidBuddy::Misplaced { pfn, order });
        }
        let next = pfn + (1 << order);
        if let Some(inside) = (pfn + 1..next).find(|&inside| frames.get(inside) != Frame::Unmarked) {
            return Err(InvalidBuddy::MarkedInside { pfn: inside });
        }
        if free {
            found[usize::from(order)] += 1;
            let lower = pfn & (1 << order) == 0;
            if lower && order < MAX_ORDER && frames.is_free(pfn ^ (1 << order), order) {
                return Err(InvalidBuddy::Unmerged { pfn, order });
            }
        }
        pfn = next;
    }
    Ok(())
}

fn validate_list(list: &List, order: u8, frames: &Frames) -> Result<(), InvalidBuddy> {
    let (mut at, mut before) = (list.head, NIL);
    for _ in 0..list.count {
        match frames.get(at) {
            Frame::Free { order: size, next, prev } if size == order && prev == before => {
                (before, at) = (at, next);
            }
            _ => return Err(InvalidBuddy::BrokenList { order, pfn: at }),
        }
    }
    if at == NIL && before == list.tail { Ok(()) } else { Err(InvalidBuddy::BrokenList { order, pfn: at }) }
}
