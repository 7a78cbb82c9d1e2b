//! What `kmalloc` gives, and a cache's numbers as `/proc/slabinfo` shows them.
//!
//! Neighbours: [`super::Kmalloc`] makes them.

use std::fmt;

use super::class::{CacheId, Shape};
use crate::addr::{PAGE_SHIFT, PhysAddr, VirtAddr};
use crate::frame::Kind;
use crate::site::Owner;
use crate::zone::{Allocated, Block, ZoneKind};

/// What `kmalloc(0)` returns: not NULL, may be freed, must not be used.
pub const ZERO_SIZE_PTR: VirtAddr = VirtAddr::new(16);

/// A `kmalloc`ed piece of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its first byte.
    pub phys: PhysAddr,
    /// Bytes that may be used (`ksize`).
    pub class_size: u32,
    /// Bytes that were asked for.
    pub requested: u32,
    /// The zone it lies in.
    pub zone: ZoneKind,
    /// The order of its own block of pages, or `None` if it lies in a slab.
    pub large_order: Option<u8>,
    /// Who allocated it.
    pub owner: Owner,
}

impl Object {
    /// The object that is a block of pages.
    pub(super) fn large(found: &Allocated) -> Self {
        let Block { pfn, order, zone } = found.block;
        let class_size = 1 << (PAGE_SHIFT + u32::from(order));
        let requested = if let Kind::Large { requested } = found.kind { requested } else { class_size };
        Self { phys: pfn.phys(), class_size, requested, zone, large_order: Some(order), owner: found.owner }
    }
}

/// What a request was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Nothing was asked for: [`ZERO_SIZE_PTR`].
    ZeroSize,
    /// Memory.
    Object {
        /// It.
        object: Object,
        /// `__GFP_DMA32` or `__GFP_HIGHMEM` were dropped on the way to the page allocator: Linux prints
        /// `Unexpected gfp`. An object from a slab with room does not tell.
        fixed_up: bool,
    },
}

/// One cache's numbers; prints as a line of `/proc/slabinfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStats {
    /// The cache.
    pub cache: CacheId,
    /// Live objects. (Linux counts all of a current slab.)
    pub active: u64,
    /// Objects in all its slabs.
    pub total: u64,
    /// How a slab is cut that got the pages it wanted.
    pub shape: Shape,
    /// Slabs.
    pub slabs: u32,
}

impl fmt::Display for CacheStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cache, active, total, shape, slabs } = self;
        let (size, objects, pages) = (cache.size(), shape.objects, 1 << shape.order);
        write!(f, "{cache:<17} {active:>6} {total:>6} {size:>6} {objects:>4} {pages:>4}")?;
        write!(f, " : tunables {:>4} {:>4} {:>4} : slabdata {slabs:>6} {slabs:>6} {:>6}", 0, 0, 0, 0)
    }
}
