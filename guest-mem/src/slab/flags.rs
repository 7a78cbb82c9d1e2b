//! `SLAB_*`: what a cache is asked to be, with Linux 6.1's numbers.
//!
//! Neighbours: [`super::Geometry`] lays objects out by them, [`crate::kmem_cache`] takes them from a driver. Left out:
//! flags of features that the lab has not (`SLAB_MEM_SPREAD`, `SLAB_KASAN`, `SLAB_NO_USER_FLAGS`).

use bitflags::bitflags;

bitflags! {
    /// Flags of a slab cache.
    ///
    /// ```
    /// use lowzone_guest_mem::slab::SlabFlags;
    /// assert_eq!(SlabFlags::DEBUG.bits(), 0x1_0d00, "slub_debug=FZPU");
    /// assert!(!SlabFlags::PERMITTED.contains(SlabFlags::FAILSLAB), "the kernel's own");
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct SlabFlags: u32 {
        /// Check lists and pointers (`F`). The lab always does, out of band.
        const CONSISTENCY_CHECKS = 0x100;
        /// Bytes around each object that nobody may write (`Z`).
        const RED_ZONE = 0x400;
        /// Free objects hold a pattern (`P`).
        const POISON = 0x800;
        /// Objects start on a cache line, or on a fraction of one that they fit in.
        const HWCACHE_ALIGN = 0x2000;
        /// Slabs come from zone DMA.
        const CACHE_DMA = 0x4000;
        /// Slabs come from zone DMA32 or below.
        const CACHE_DMA32 = 0x8000;
        /// Who allocated and who freed each object is kept beside it (`U`).
        const STORE_USER = 0x1_0000;
        /// A shrinker can free the objects.
        const RECLAIM_ACCOUNT = 0x2_0000;
        /// A cache that can't be made stops the machine.
        const PANIC = 0x4_0000;
        /// Slabs outlive an RCU grace period. The lab has no RCU: only the layout follows.
        const TYPESAFE_BY_RCU = 0x8_0000;
        /// Every call is printed. Without effect here: traces show each.
        const TRACE = 0x20_0000;
        /// Linux's leak detector passes over its objects; the lab's check doesn't.
        const NOLEAKTRACE = 0x80_0000;
        /// `failslab` with a cache filter reaches it; set in sysfs only.
        const FAILSLAB = 0x200_0000;
        /// Objects are charged to a memory cgroup.
        const ACCOUNT = 0x400_0000;

        /// `slub_debug=FZPU`.
        const DEBUG = Self::CONSISTENCY_CHECKS.bits() | Self::RED_ZONE.bits() | Self::POISON.bits()
            | Self::STORE_USER.bits();
        /// What a driver may ask for.
        const PERMITTED = Self::DEBUG.bits() | Self::HWCACHE_ALIGN.bits() | Self::CACHE_DMA.bits()
            | Self::CACHE_DMA32.bits() | Self::RECLAIM_ACCOUNT.bits() | Self::PANIC.bits()
            | Self::TYPESAFE_BY_RCU.bits() | Self::TRACE.bits() | Self::NOLEAKTRACE.bits() | Self::ACCOUNT.bits();
    }
}
