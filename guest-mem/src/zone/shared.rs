//! What every CPU may know of the zones without their lock: the marks, how much is free, the frame table.
//!
//! A zone's free pages are counted under its lock and published here, so that a CPU can test a watermark before it
//! looks at its own lists. Neighbours: [`super::Zones`] publishes, [`crate::pcp`] reads. Left out: counters kept by
//! each CPU and folded later, by which Linux's lag behind.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Marks, Pass, ZONES, ZoneKind};
use crate::arch::Arch;
use crate::buddy::Buddy;
use crate::frame::Frames;

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
}

impl Shared {
    pub(super) fn new(frames: Frames, marks: Marks, arch: Arch) -> Self {
        Self { frames, marks, arch, gauges: Default::default() }
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
