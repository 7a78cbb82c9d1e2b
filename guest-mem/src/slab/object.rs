//! What `kmalloc` gives, and a cache's numbers as `/proc/slabinfo` shows them.
//!
//! Neighbours: [`super::SlabCaches`] makes them.

use std::fmt;

use super::Geometry;
use crate::addr::{PAGE_SHIFT, PhysAddr, VirtAddr};
use crate::frame::Kind;
use crate::site::Owner;
use crate::zone::{Allocated, Block, ZoneKind};

/// What `kmalloc(0)` returns: not NULL, may be freed, must not be used.
pub const ZERO_SIZE_PTR: VirtAddr = VirtAddr::new(16);

/// A piece of memory from `kmalloc` or a slab cache.
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
    /// The cache it is from, unless it is a block of pages of its own.
    pub cache: Option<&'static str>,
    /// Whether that is a driver's own, not one of `kmalloc`'s.
    pub own: bool,
    /// Who allocated it.
    pub owner: Owner,
}

impl Object {
    /// The object that is a block of pages.
    pub(super) fn large(found: &Allocated) -> Self {
        let Block { pfn, order, zone } = found.block;
        let class_size = 1 << (PAGE_SHIFT + u32::from(order));
        let requested = match found.kind {
            Kind::Large { requested } | Kind::Held { requested } => requested,
            _ => class_size,
        };
        Self {
            phys: pfn.phys(),
            class_size,
            requested,
            zone,
            large_order: Some(order),
            cache: None,
            own: false,
            owner: found.owner,
        }
    }

    /// Its own block of pages, if it has one.
    pub(crate) fn block(&self) -> Option<Block> {
        self.large_order.map(|order| Block { pfn: self.phys.pfn(), order, zone: self.zone })
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

/// What stands above the lines of `/proc/slabinfo`.
pub const SLABINFO_HEAD: &str = "slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> \
: tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>
";

/// One cache's numbers; prints as a line of `/proc/slabinfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStats {
    /// The cache's name.
    pub cache: &'static str,
    /// Objects in use. (Linux counts all of a current slab.)
    pub active: u64,
    /// Objects in all its slabs.
    pub total: u64,
    /// How it lays out objects and cuts slabs.
    pub geometry: Geometry,
    /// Slabs.
    pub slabs: u32,
}

impl fmt::Display for CacheStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cache, active, total, geometry, slabs } = self;
        let (size, objects, pages) = (geometry.size, geometry.shape.objects, 1 << geometry.shape.order);
        write!(f, "{cache:<17} {active:>6} {total:>6} {size:>6} {objects:>4} {pages:>4}")?;
        write!(f, " : tunables {:>4} {:>4} {:>4} : slabdata {slabs:>6} {slabs:>6} {:>6}", 0, 0, 0, 0)
    }
}
