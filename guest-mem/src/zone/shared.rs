//! What every CPU may know of the zones without their lock: the marks, how much is free, the frame table.
//!
//! A zone's free pages are counted under its lock and published here, so that a CPU can test a watermark before it
//! looks at its own lists. Neighbours: [`super::Zones`] publishes, [`crate::pcp`] reads. Left out: counters kept by
//! each CPU and folded later, by which Linux's lag behind.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::bad::Odd;
use super::watermark::{BOOST_FACTOR, RESERVE_RATIO, SCALE_FACTOR};
use super::{Marks, Pass, ZONES, ZoneKind};
use crate::arch::Arch;
use crate::buddy::Buddy;
use crate::frame::Frames;
use crate::gfp::Gfp;
use crate::pcp::HIGH_FRACTION;

/// `vm.overcommit_memory`: how much processes are promised, of which there are none here.
const OVERCOMMIT: u64 = 0;

/// How much of a zone is free, as of its last change.
#[derive(Default)]
struct Gauge {
    pages: AtomicU64,
    /// A bit for each order of which a block is free.
    orders: AtomicU32,
}

/// The lock-free side of [`super::Zones`].
pub(crate) struct Shared {
    pub(crate) frames: Frames,
    pub(super) marks: Marks,
    arch: Arch,
    gauges: [Gauge; ZONES],
    /// How often background reclaim was woken.
    kswapd: AtomicU64,
    /// Pages whose record a driver wrote to.
    pub(crate) odd: Odd,
}

impl Shared {
    pub(super) fn new(frames: Frames, marks: Marks, arch: Arch) -> Self {
        Self { frames, marks, arch, gauges: Default::default(), kswapd: AtomicU64::new(0), odd: Odd::default() }
    }

    /// Tells how much of a zone is free now; its lock is held.
    pub(super) fn publish(&self, zone: usize, buddy: &Buddy) {
        self.gauges[zone].pages.store(buddy.free(), Ordering::Relaxed);
        self.gauges[zone].orders.store(buddy.orders(), Ordering::Relaxed);
    }

    /// Whether a zone may give a block to a request, and has one (`zone_watermark_ok`).
    pub(crate) fn admits(&self, zone: ZoneKind, highest: ZoneKind, order: u8, pass: Pass) -> bool {
        let index = zone.index();
        let reserve = self.marks.protection[index][highest.index()];
        let free = self.gauges[index].pages.load(Ordering::Relaxed);
        pass.admits(free, order, self.marks.zones[index], reserve)
            && (order == 0 || self.gauges[index].orders.load(Ordering::Relaxed) >> order != 0)
    }

    /// Whether some zone would give a block if `more` pages were free in it.
    pub(crate) fn would_admit(&self, highest: ZoneKind, order: u8, pass: Pass, more: u64) -> bool {
        (0..=highest.index()).any(|index| {
            let free = self.gauges[index].pages.load(Ordering::Relaxed);
            let reserve = self.marks.protection[index][highest.index()];
            let marks = self.marks.zones[index];
            // A zone without memory has no marks.
            marks.high > 0 && pass.admits(free + more, order, marks, reserve)
        })
    }

    /// A request found no zone above its low mark: background reclaim is woken if the mask says so.
    pub(crate) fn below_low(&self, gfp: Gfp) {
        if gfp.contains(Gfp::KSWAPD_RECLAIM) {
            self.kswapd.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often background reclaim was woken.
    pub(crate) fn kswapd_wakeups(&self) -> u64 {
        self.kswapd.load(Ordering::Relaxed)
    }

    /// Forgets what was counted.
    pub(super) fn reset(&self) {
        self.kswapd.store(0, Ordering::Relaxed);
        self.odd.reset();
    }

    /// A setting of the page allocator as `/proc/sys/vm` has it.
    pub(crate) fn sysctl(&self, name: &str) -> Option<String> {
        Some(match name {
            "min_free_kbytes" => self.marks.min_free_kbytes.to_string(),
            "lowmem_reserve_ratio" => altered!(RESERVE_RATIO).map(|ratio| ratio.to_string()).join("\t"),
            "watermark_scale_factor" => altered!(SCALE_FACTOR).to_string(),
            "watermark_boost_factor" => BOOST_FACTOR.to_string(),
            "percpu_pagelist_high_fraction" => HIGH_FRACTION.to_string(),
            "overcommit_memory" => OVERCOMMIT.to_string(),
            _ => return None,
        })
    }

    /// The zone that a managed frame lies in.
    pub(crate) const fn zone_of_frame(&self, pfn: u32) -> ZoneKind {
        self.arch.zone_of_frame(pfn)
    }
}

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        self.marks == other.marks && self.frames == other.frames
    }
}
