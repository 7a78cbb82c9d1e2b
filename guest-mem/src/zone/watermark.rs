//! How far a request may empty a zone: watermarks and the reserve kept from requests that could go higher.
//!
//! [`Marks`] are computed once from the sizes of the zones. A first attempt must leave the low mark, a second one
//! the minimum mark, lowered for urgent requests ([`Pass`]); a request that a higher zone could have served must
//! leave a lower zone's reserve on top.
//!
//! Mirrors `calculate_min_free_kbytes`, `__setup_per_zone_wmarks`, `setup_per_zone_lowmem_reserve` and
//! `__zone_watermark_ok` of `mm/page_alloc.c`, 6.1.192. Neighbours: [`super::Zones`] asks before it takes. Left out:
//! boosting, the high-atomic reserve, victims of the OOM killer. Zone Movable, always empty, has
//! the marks and the reserve of an empty HighMem.

use super::{ZONES, ZoneKind};
use crate::addr::PAGE_SIZE;
use crate::gfp::Gfp;

/// `vm.lowmem_reserve_ratio`; 0 = none.
pub(super) const RESERVE_RATIO: [u64; ZONES] = [256, 256, 32, 0];
/// Bounds of the minimum mark of HighMem, which needs none for the kernel's sake.
const HIGHMEM_MIN: std::ops::RangeInclusive<u64> = 32..=128;
const HIGHMEM: usize = ZoneKind::HighMem.index();
/// `vm.watermark_scale_factor`, in ten-thousandths of a zone.
pub(super) const SCALE_FACTOR: u64 = 10;
/// What of the minimum mark the others lie apart at least: a quarter.
const LOW_SHARE: u64 = 4;
/// What of an urgent request's mark one that can't sleep may use as well (`ALLOC_HARDER`): a quarter.
const ATOMIC_SHARE: u64 = 4;
/// Bounds of `vm.min_free_kbytes` as computed.
const MIN_FREE_KBYTES: std::ops::RangeInclusive<u64> = 128..=262_144;

/// What raises a zone's marks for a while: nothing, since pages of different migrate types, whose mixing does, are not told
/// apart here.
pub const BOOST: u64 = 0;
/// `vm.watermark_boost_factor`, in ten-thousandths of the high mark: how far one could raise them. Without effect here.
pub(super) const BOOST_FACTOR: u64 = 15_000;
/// Pages of a zone that are kept for urgent requests of high order: none.
pub const HIGHATOMIC: u64 = 0;

/// A zone's watermarks, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Watermarks {
    /// What only urgent requests may go below.
    pub min: u64,
    /// What a first attempt must leave.
    pub low: u64,
    /// What background reclaim restores.
    pub high: u64,
}

/// Watermarks and reserves of all zones, DMA to HighMem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// `vm.min_free_kbytes`.
    pub min_free_kbytes: u64,
    /// Watermarks of each zone.
    pub zones: [Watermarks; ZONES],
    /// `protection[zone][highest]`: pages a zone keeps from requests whose highest zone is `highest`.
    pub protection: [[u64; ZONES]; ZONES],
}

impl Marks {
    /// The marks of zones with so many managed pages.
    ///
    /// `early` is what was managed when watermarks were set: less than `managed` on a real machine, which frees its
    /// boot memory later.
    pub fn new(managed: [u64; ZONES], early: [u64; ZONES]) -> Self {
        let total = early[..HIGHMEM].iter().sum::<u64>().max(1);
        let min_free_kbytes = (total * (PAGE_SIZE / 1024) * 16).isqrt();
        let min_free_kbytes = min_free_kbytes.clamp(*MIN_FREE_KBYTES.start(), *MIN_FREE_KBYTES.end());
        let pages_min = min_free_kbytes / (PAGE_SIZE / 1024);
        let mut zones = early.map(|pages| {
            let min = pages_min * pages / total;
            let delta = (min / altered!(LOW_SHARE)).max(pages * altered!(SCALE_FACTOR) / 10_000);
            Watermarks { min, low: min + delta, high: min + 2 * delta }
        });
        if early[HIGHMEM] > 0 {
            // Its distances follow from its share like any other's; only the minimum is its own.
            let Watermarks { min: share, low, high } = zones[HIGHMEM];
            let min = (early[HIGHMEM] / 1024).clamp(*HIGHMEM_MIN.start(), *HIGHMEM_MIN.end());
            zones[HIGHMEM] = Watermarks { min, low: min + low - share, high: min + high - share };
        }
        Self { min_free_kbytes, zones, protection: protection(managed) }
    }
}

fn protection(managed: [u64; ZONES]) -> [[u64; ZONES]; ZONES] {
    let mut kept = [[0; ZONES]; ZONES];
    for (zone, (row, ratio)) in kept.iter_mut().zip(altered!(RESERVE_RATIO)).enumerate() {
        if managed[zone] == 0 || ratio == 0 {
            continue;
        }
        let mut above = 0;
        for highest in zone + 1..ZONES {
            above += managed[highest];
            row[highest] = above / ratio;
        }
    }
    kept
}

/// One attempt of an allocation: which mark it obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The first attempt: the low mark.
    Low,
    /// The second: the minimum mark.
    Min {
        /// `__GFP_HIGH`: half of it.
        high: bool,
        /// The caller can't sleep and did not ask for `__GFP_NOMEMALLOC`: with `high`, a quarter less.
        atomic: bool,
    },
    /// The last, for `__GFP_MEMALLOC`: no mark, no reserve.
    NoMark,
}

impl Pass {
    /// The attempts that a request makes before anybody waits, in turn.
    pub fn all(gfp: Gfp) -> impl Iterator<Item = Self> {
        let third = Self::has_third(gfp).then_some(Self::NoMark);
        [Self::Low, Self::second(gfp)].into_iter().chain(third)
    }

    /// The second attempt of a request (`gfp_to_alloc_flags`).
    pub const fn second(gfp: Gfp) -> Self {
        let atomic = !gfp.may_sleep() && !gfp.contains(Gfp::NOMEMALLOC);
        Self::Min { high: gfp.contains(Gfp::HIGH), atomic }
    }

    /// Whether a request may try without marks (`__gfp_pfmemalloc_flags`).
    pub const fn has_third(gfp: Gfp) -> bool {
        gfp.contains(Gfp::MEMALLOC) && !gfp.contains(Gfp::NOMEMALLOC)
    }

    /// The pages that it must leave free in a zone with these marks.
    pub fn mark(self, marks: Watermarks) -> u64 {
        match self {
            Self::Low => marks.low,
            Self::Min { high: false, .. } => marks.min,
            Self::Min { high: true, atomic } => {
                let half = marks.min - marks.min / 2;
                if atomic { half - half / altered!(ATOMIC_SHARE) } else { half }
            }
            Self::NoMark => 0,
        }
    }

    /// Whether a zone with `free` pages and these marks may give a block of `order`, at most 10.
    ///
    /// `reserve` is what it keeps from the request. Whether it has a block that large is another matter.
    pub fn admits(self, free: u64, order: u8, marks: Watermarks, reserve: u64) -> bool {
        matches!(self, Self::NoMark) || free.saturating_sub((1 << order) - 1) > self.mark(marks) + reserve
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gfp::{__GFP_HIGH, __GFP_MEMALLOC, __GFP_NOMEMALLOC, GFP_ATOMIC, GFP_KERNEL, GFP_NOWAIT};

    fn triples(marks: &Marks) -> [(u64, u64, u64); ZONES] {
        marks.zones.map(|marks| (marks.min, marks.low, marks.high))
    }

    /// 512 MiB of a machine whose Normal begins at 256 MiB.
    fn example() -> Marks {
        let managed = [4096, 61440, 65536, 0];
        Marks::new(managed, managed)
    }

    #[test]
    fn worked_example() {
        let marks = example();
        assert_eq!(marks.min_free_kbytes, 2896);
        assert_eq!(triples(&marks), [(22, 27, 32), (339, 423, 507), (362, 452, 542), (0, 0, 0)]);
        assert_eq!(marks.protection, [[0, 240, 496, 496], [0, 0, 256, 256], [0; 4], [0; 4]]);
    }

    #[test]
    fn the_measured_machines() {
        let six = Marks::new([3840, 760_594, 758_473, 0], [3840, 760_594 - 1200, 758_473, 0]);
        assert_eq!(six.min_free_kbytes, 9868);
        assert_eq!(triples(&six), [(6, 9, 12), (1231, 1990, 2749), (1229, 1987, 2745), (0, 0, 0)]);
        assert_eq!(six.protection, [[0, 2971, 5933, 5933], [0, 0, 2962, 2962], [0; 4], [0; 4]]);
        let one = Marks::new([3840, 248_094, 0, 0], [3840, 248_094 - 1200, 0, 0]);
        assert_eq!(triples(&one), [(15, 18, 21), (985, 1231, 1477), (0, 0, 0), (0, 0, 0)]);
        assert_eq!(one.protection, [[0, 969, 969, 969], [0; 4], [0; 4], [0; 4]]);
    }

    #[test]
    fn high_memory_has_marks_of_its_own_and_keeps_nothing_back() {
        // 2 GiB on 32 bits: min_free_kbytes follows from the 896 MiB below alone.
        let managed = [3840, 0, 0x3_8000 - 4096, (2 << 18) - 0x3_8000];
        let marks = Marks::new(managed, managed);
        assert_eq!(marks.min_free_kbytes, (229_120_u64 * 4 * 16).isqrt());
        assert_eq!(triples(&marks), [(16, 20, 24), (0, 0, 0), (940, 1175, 1410), (128, 435, 742)]);
        assert_eq!(marks.protection[0], [0, 0, 880, 880 + 1152]);
        assert_eq!(marks.protection[ZoneKind::Normal.index()], [0, 0, 0, 294_912 / 32]);
        assert_eq!(marks.protection[HIGHMEM], [0; 4]);
        let few = |pages| Marks::new([3840, 0, 4096, pages], [3840, 0, 4096, pages]).zones[HIGHMEM].min;
        assert_eq!((few(1), few(40 << 10), few(1 << 20)), (32, 40, 128));
    }

    #[test]
    fn min_free_kbytes_has_bounds() {
        assert_eq!(Marks::new([256, 0, 0, 0], [256, 0, 0, 0]).min_free_kbytes, 128);
        let huge = [0, 0, 1 << 32, 0];
        assert_eq!(Marks::new(huge, huge).min_free_kbytes, 262_144);
        assert_eq!(Marks::new([0; ZONES], [0; ZONES]).zones, [Watermarks::default(); ZONES]);
    }

    /// The fewest free pages with which a request passes.
    fn least(pass: Pass, order: u8, marks: Watermarks, reserve: u64) -> u64 {
        (0..).find(|&free| pass.admits(free, order, marks, reserve)).unwrap()
    }

    #[test]
    fn how_far_each_mask_may_empty_a_zone() {
        let Marks { zones: [dma, dma32, normal, _], protection, .. } = example();
        assert_eq!(least(Pass::Low, 0, normal, 0), 453);
        assert_eq!(least(Pass::second(GFP_KERNEL), 0, normal, 0), 363);
        assert_eq!(least(Pass::second(GFP_NOWAIT), 0, normal, 0), 363);
        assert_eq!(least(Pass::second(GFP_KERNEL | __GFP_HIGH), 0, normal, 0), 182);
        assert_eq!(least(Pass::second(GFP_ATOMIC), 0, normal, 0), 137);
        assert_eq!(least(Pass::second(GFP_ATOMIC | __GFP_NOMEMALLOC), 0, normal, 0), 182);
        assert_eq!(least(Pass::second(GFP_ATOMIC), 0, dma32, protection[1][2]), 128 + 256 + 1);
        assert_eq!(least(Pass::second(GFP_ATOMIC), 0, dma, protection[0][2]), 9 + 496 + 1);
        assert_eq!(least(Pass::second(GFP_KERNEL), 3, normal, 0), 363 + 7);
        assert_eq!(least(Pass::NoMark, 0, normal, 9999), 0);
        assert!(Pass::has_third(GFP_KERNEL | __GFP_MEMALLOC));
        assert!(!Pass::has_third(GFP_KERNEL | __GFP_MEMALLOC | __GFP_NOMEMALLOC));
    }
}
