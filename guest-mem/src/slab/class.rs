//! Size classes of `kmalloc`: which cache serves a request.
//!
//! There are thirteen classes and three families of caches over them; which family follows from the mask. Beyond the
//! largest class whole pages serve a request.
//!
//! Mirrors `kmalloc_index` and `kmalloc_type` of `include/linux/slab.h`, x86-64. Neighbours: [`super::SlabCaches`] holds
//! the caches, `geometry` cuts their slabs. Left out: `kmalloc-cg-*` (they exist with memory cgroups only; the measured
//! kernel uses the ordinary caches), larger minimum alignments of other machines.

use std::fmt;

use crate::gfp::Gfp;

/// Object sizes of the caches, in bytes.
pub const CLASSES: [u16; 13] = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];
/// The largest request a cache serves, in bytes.
pub const KMALLOC_MAX_CACHE_SIZE: usize = 8192;
/// The largest request at all, in bytes.
pub const KMALLOC_MAX_SIZE: usize = 4 << 20;
/// How many caches there are.
pub const CACHES: usize = CLASSES.len() * 3;

/// What each family adds to the mask of its slabs.
const FAMILIES: [Gfp; 3] = [Gfp::empty(), Gfp::RECLAIMABLE, Gfp::DMA];

macro_rules! names {
    ($($family:literal),*) => {
        [$([
            concat!($family, "-8"),
            concat!($family, "-16"),
            concat!($family, "-32"),
            concat!($family, "-64"),
            concat!($family, "-96"),
            concat!($family, "-128"),
            concat!($family, "-192"),
            concat!($family, "-256"),
            concat!($family, "-512"),
            concat!($family, "-1k"),
            concat!($family, "-2k"),
            concat!($family, "-4k"),
            concat!($family, "-8k"),
        ]),*]
    };
}

const NAMES: [[&str; CLASSES.len()]; FAMILIES.len()] = names!("kmalloc", "kmalloc-rcl", "dma-kmalloc");

/// One of the `kmalloc` caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheId {
    family: u8,
    class: u8,
}

impl CacheId {
    /// All caches, ordinary ones first, by size.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..3).flat_map(|family| (0..13).map(move |class| Self { family, class }))
    }

    /// The cache that serves a request, or `None` if pages do.
    ///
    /// `__GFP_DMA` wins over `__GFP_RECLAIMABLE`; `__GFP_DMA32` and `__GFP_HIGHMEM` have no caches.
    ///
    /// ```
    /// use lowzone_guest_mem::gfp::{GFP_ATOMIC, GFP_DMA};
    /// use lowzone_guest_mem::slab::CacheId;
    /// let cache = CacheId::serving(1000, GFP_ATOMIC | GFP_DMA);
    /// assert_eq!(cache.map(|cache| cache.to_string()).as_deref(), Some("dma-kmalloc-1k"));
    /// assert_eq!(CacheId::serving(8193, GFP_ATOMIC), None);
    /// ```
    pub fn serving(size: usize, gfp: Gfp) -> Option<Self> {
        let size = u16::try_from(size).ok()?;
        let class = u8::try_from(altered!(CLASSES).partition_point(|&class| class < size)).ok()?;
        let family = match gfp {
            _ if gfp.contains(Gfp::DMA) => 2,
            _ if gfp.contains(Gfp::RECLAIMABLE) => 1,
            _ => 0,
        };
        (usize::from(class) < CLASSES.len()).then_some(Self { family, class })
    }

    /// Bytes of an object.
    pub fn size(self) -> u16 {
        altered!(CLASSES)[usize::from(self.class)]
    }

    /// What the cache adds to the mask of each slab (`allocflags`).
    pub const fn gfp(self) -> Gfp {
        FAMILIES[self.family as usize]
    }

    /// Its name as `/proc/slabinfo` and `cache-filter` have it.
    ///
    /// ```
    /// use lowzone_guest_mem::slab::CacheId;
    /// let names: Vec<_> = CacheId::all().map(CacheId::name).collect();
    /// assert_eq!((names[3], names[14], names[38]), ("kmalloc-64", "kmalloc-rcl-16", "dma-kmalloc-8k"));
    /// ```
    pub const fn name(self) -> &'static str {
        NAMES[self.family as usize][self.class as usize]
    }

    /// The cache's place in [`CacheId::all`], which is its number among all caches.
    pub(crate) fn number(self) -> u32 {
        u32::from(self.family) * 13 + u32::from(self.class)
    }
}

impl fmt::Display for CacheId {
    /// `kmalloc-64`, `dma-kmalloc-1k`, `kmalloc-rcl-8`; obeys a width.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The bytes that a request of so many would really get (`kmalloc_size_roundup`), even if it is too large to succeed.
pub fn kmalloc_size_roundup(size: usize) -> usize {
    match CacheId::serving(size, Gfp::empty()) {
        _ if size == 0 => 0,
        Some(cache) => usize::from(cache.size()),
        None => size.checked_next_power_of_two().unwrap_or(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gfp::{__GFP_RECLAIMABLE, GFP_DMA, GFP_DMA32, GFP_KERNEL, GFP_KERNEL_ACCOUNT};

    #[test]
    fn each_size_has_the_measured_class() {
        let first = [1, 9, 17, 33, 65, 97, 129, 193, 257, 513, 1025, 2049, 4097];
        for ((first, last), class) in first.iter().zip(CLASSES).zip(CLASSES) {
            for size in [*first, last] {
                assert_eq!(CacheId::serving(size.into(), GFP_KERNEL).unwrap().size(), class, "{size}");
            }
        }
        assert_eq!(CacheId::serving(8193, GFP_KERNEL), None);
        assert_eq!(CacheId::serving(usize::MAX, GFP_KERNEL), None);
    }

    #[test]
    fn the_mask_chooses_the_family() {
        let name = |gfp| CacheId::serving(2000, gfp).unwrap().to_string();
        assert_eq!(name(GFP_KERNEL), "kmalloc-2k");
        assert_eq!(name(GFP_KERNEL_ACCOUNT), "kmalloc-2k");
        assert_eq!(name(GFP_KERNEL | GFP_DMA32), "kmalloc-2k");
        assert_eq!(name(GFP_KERNEL | __GFP_RECLAIMABLE), "kmalloc-rcl-2k");
        assert_eq!(name(GFP_KERNEL | __GFP_RECLAIMABLE | GFP_DMA), "dma-kmalloc-2k");
        assert_eq!(CacheId::all().count(), CACHES);
        assert!(CacheId::all().enumerate().all(|(at, cache)| cache.number() as usize == at));
        let told = |cache: CacheId| match cache.size() {
            size @ ..1024 => cache.name().ends_with(&format!("-{size}")),
            size => cache.name().ends_with(&format!("-{}k", size / 1024)),
        };
        assert!(CacheId::all().all(told), "a name says another size");
    }

    #[test]
    fn sizes_round_up_as_measured() {
        let rounded = [0, 8, 96, 8192, 16384, 16384, 4 << 20, 8_388_608];
        let asked = [0, 1, 65, 8192, 8193, 12289, 4 << 20, (4 << 20) + 1];
        assert_eq!(asked.map(kmalloc_size_roundup), rounded);
    }
}
