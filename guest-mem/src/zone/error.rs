//! Why the page allocator did not do what was asked.
//!
//! Neighbours: [`super::Zones`] returns these. Left out: what Linux prints for each; that is for whoever reports it.

use super::{BadReason, ZoneKind};
use crate::buddy::{InvalidBuddy, MAX_ORDER};
use crate::gfp::Gfp;

/// Why no pages were allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// More than [`MAX_ORDER`]: Linux warns once unless `__GFP_NOWARN`, and returns NULL.
    #[error("order {order} is above {MAX_ORDER}")]
    TooLarge {
        /// The order that was asked for.
        order: u8,
    },
    /// No allowed zone may or can give such a block.
    #[error("no block of order {order} for {gfp:?} in zone {zone} or below")]
    NoMemory {
        /// The order that was asked for.
        order: u8,
        /// The mask of the attempt that failed.
        gfp: Gfp,
        /// The highest zone it allowed.
        zone: ZoneKind,
    },
}

/// Why pages were not freed; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FreeError {
    /// The page is free: freed twice, or never allocated.
    #[error("page {pfn:#x} is not allocated")]
    NotAllocated {
        /// The page.
        pfn: u64,
    },
    /// The block has another order.
    #[error("page {pfn:#x} is freed with order {order}, was allocated with {was}")]
    WrongOrder {
        /// The block's first page.
        pfn: u64,
        /// The order that was given.
        order: u8,
        /// The order it was allocated with.
        was: u8,
    },
    /// The page is not the first of its block.
    #[error("page {pfn:#x} lies inside the block at {head:#x}")]
    Inside {
        /// The page.
        pfn: u64,
        /// The first page of its block.
        head: u64,
    },
    /// The block belongs to `kmalloc`.
    #[error(
        "BUG: Bad page state in process insmod  pfn:{pfn:05x}: page dumped because: PAGE_FLAGS_CHECK_AT_FREE flag(s) \
         set (it belongs to kmalloc)"
    )]
    Kmalloc {
        /// The block's first page.
        pfn: u64,
    },
    /// A page of the block is in a bad state; the block is never used again.
    #[error("BUG: Bad page state in process insmod  pfn:{pfn:05x}: page dumped because: {reason}")]
    BadState {
        /// The page.
        pfn: u64,
        /// What is wrong with it.
        reason: BadReason,
    },
    /// No memory that is managed lies there.
    #[error("page {pfn:#x} is not RAM")]
    NotRam {
        /// The page.
        pfn: u64,
    },
}

impl FreeError {
    /// The kernel option under which Linux prints something, or `None` where it stays silent.
    pub const fn config(&self) -> Option<&'static str> {
        match self {
            // VM_BUG_ON_PAGE(page_ref_count(page) == 0); without it the count goes negative.
            Self::NotAllocated { .. } | Self::Inside { .. } => Some("CONFIG_DEBUG_VM"),
            Self::WrongOrder { .. } => None,
            // PAGE_FLAGS_CHECK_AT_FREE, when the page leaves the CPU's list.
            Self::Kmalloc { .. } | Self::BadState { .. } => Some("any (BUG: Bad page state)"),
            Self::NotRam { .. } => Some("any (an oops)"),
        }
    }
}

/// An invariant of the page allocator that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("zone {zone}: {fault}")]
pub struct InvalidZones {
    /// The zone.
    pub zone: ZoneKind,
    /// What is wrong in it.
    #[source]
    pub fault: InvalidBuddy,
}
