//! Which frames of the machine are given to which zone.
//!
//! A [`Layout`] is made from where RAM lies and from what is reserved in it (the first 1 MiB always is: firmware,
//! vectors). The rest is managed; the architecture parts it into zones.
//!
//! Neighbours: [`super::Zones`] is made from it. Left out: nodes, hot-plugged memory, what a real kernel's image and
//! boot take.

use std::ops::Range;

use super::ZoneKind;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PhysAddr};
use crate::arch::Arch;

/// The first byte above zone DMA.
pub const DMA_END: u64 = 16 << 20;
/// The first byte above zone DMA32 of x86-64, and where RAM goes on above the hole for devices.
pub const DMA32_END: u64 = 4 << 30;
/// What is never managed at the bottom of memory, in bytes.
pub const LOW_RESERVED: u64 = 1 << 20;
/// The end of the highest address a layout can have: 1 TiB (the frame table is indexed by frame number).
pub const HIGHEST_END: u64 = 1 << 40;

/// A description of RAM that makes no machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A range of RAM is empty, or does not begin and end on a page.
    #[error("RAM range {start:#x}..{end:#x} is empty or not whole pages")]
    BadRange {
        /// Its first byte.
        start: u64,
        /// The byte after its last.
        end: u64,
    },
    /// RAM lies too high.
    #[error("RAM ends at {end:#x}, above {HIGHEST_END:#x}")]
    TooHigh {
        /// The byte after the last.
        end: u64,
    },
    /// Two ranges of RAM share bytes.
    #[error("two RAM ranges share the byte at {at:#x}")]
    Overlap {
        /// The first byte of the higher range.
        at: u64,
    },
    /// Nothing is left after the reserved ranges were taken out.
    #[error("none of the {bytes} bytes of RAM are left to manage")]
    Nothing {
        /// The RAM there was.
        bytes: u64,
    },
}

/// The managed frames of a machine: ranges that ascend and do not touch.
///
/// ```
/// use lowzone_guest_mem::zone::{Layout, ZoneKind};
/// let layout = Layout::pc(6 << 30, 3 << 30)?;
/// assert_eq!(layout.managed(ZoneKind::Dma), 3840);
/// assert_eq!(layout.managed(ZoneKind::Normal), (3 << 30) / 4096);
/// # Ok::<(), lowzone_guest_mem::zone::LayoutError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    ranges: Vec<Range<u32>>,
    arch: Arch,
}

impl Layout {
    /// All of `ram` but the `reserved` ranges and the first 1 MiB, on x86-64.
    ///
    /// A page that is reserved in part is reserved; what is reserved outside RAM has no effect.
    ///
    /// # Errors
    ///
    /// RAM ranges must be whole pages, must not overlap nor end above 1 TiB, and something must be left.
    pub fn new(ram: &[Range<PhysAddr>], reserved: &[Range<PhysAddr>]) -> Result<Self, LayoutError> {
        let mut ranges = ram.iter().map(ram_frames).collect::<Result<Vec<_>, _>>()?;
        ranges.sort_by_key(|range| range.start);
        for (low, high) in ranges.iter().zip(ranges.iter().skip(1)) {
            if high.start < low.end {
                return Err(LayoutError::Overlap { at: u64::from(high.start) << PAGE_SHIFT });
            }
        }
        let bytes = ranges.iter().map(|range| u64::from(range.end - range.start) << PAGE_SHIFT).sum();
        ranges.dedup_by(|high, low| {
            let touch = low.end == high.start;
            if touch {
                low.end = high.end;
            }
            touch
        });
        let firmware = PhysAddr::new(0)..PhysAddr::new(LOW_RESERVED);
        for hole in reserved.iter().chain([&firmware]) {
            ranges = without(&ranges, &reserved_frames(hole));
        }
        if ranges.is_empty() { Err(LayoutError::Nothing { bytes }) } else { Ok(Self { ranges, arch: Arch::X86_64 }) }
    }

    /// A PC's RAM: up to `low` bytes from address 0, the rest from 4 GiB on.
    ///
    /// # Errors
    ///
    /// As [`Layout::new`]; a `low` above 4 GiB overlaps what lies there.
    pub fn pc(bytes: u64, low: u64) -> Result<Self, LayoutError> {
        let below = PhysAddr::new(0)..PhysAddr::new(bytes.min(low));
        if bytes <= low {
            return Self::new(&[below], &[]);
        }
        let end = DMA32_END.saturating_add(bytes - low);
        Self::new(&[below, PhysAddr::new(DMA32_END)..PhysAddr::new(end)], &[])
    }

    /// The same memory in the zones of another architecture.
    pub fn on(self, arch: Arch) -> Self {
        Self { arch, ..self }
    }

    /// Whose zones these are.
    pub(crate) fn arch(&self) -> Arch {
        self.arch
    }

    /// Managed pages of a zone.
    pub fn managed(&self, zone: ZoneKind) -> u64 {
        self.zone_ranges(zone).map(|range| u64::from(range.end - range.start)).sum()
    }

    /// The zone of a managed frame.
    pub(crate) fn zone_of(&self, pfn: u32) -> Option<ZoneKind> {
        let after = self.ranges.partition_point(|range| range.end <= pfn);
        self.ranges.get(after).filter(|range| range.contains(&pfn)).map(|_| self.arch.zone_of_frame(pfn))
    }

    /// A zone's part of the managed ranges, ascending.
    pub(crate) fn zone_ranges(&self, zone: ZoneKind) -> impl Iterator<Item = Range<u32>> {
        let span = self.arch.span(zone);
        self.ranges
            .iter()
            .map(move |range| range.start.max(span.start)..range.end.min(span.end))
            .filter(|range| !range.is_empty())
    }

    /// From a zone's first managed frame to behind its last; `None` if it has none.
    pub(crate) fn span_of(&self, zone: ZoneKind) -> Option<Range<u32>> {
        let (mut first, mut end) = (None, 0);
        for range in self.zone_ranges(zone) {
            first = first.or(Some(range.start));
            end = range.end;
        }
        first.map(|first| first..end)
    }

    /// One more than the highest managed frame.
    pub(crate) fn end(&self) -> u32 {
        self.ranges.last().map_or(0, |range| range.end)
    }
}

fn ram_frames(range: &Range<PhysAddr>) -> Result<Range<u32>, LayoutError> {
    let (start, end) = (range.start.get(), range.end.get());
    if end > HIGHEST_END {
        return Err(LayoutError::TooHigh { end });
    }
    if start >= end || range.start.page_offset() != 0 || range.end.page_offset() != 0 {
        return Err(LayoutError::BadRange { start, end });
    }
    Ok(frame(start)..frame(end))
}

fn reserved_frames(range: &Range<PhysAddr>) -> Range<u32> {
    let end = range.end.get().min(HIGHEST_END);
    frame(range.start.get().min(end))..frame(end.next_multiple_of(PAGE_SIZE))
}

/// The frame of an address that is at most [`HIGHEST_END`].
fn frame(address: u64) -> u32 {
    u32::try_from(address >> PAGE_SHIFT).unwrap_or(u32::MAX)
}

fn without(ranges: &[Range<u32>], hole: &Range<u32>) -> Vec<Range<u32>> {
    let parts = |range: &Range<u32>| {
        if hole.is_empty() {
            return [range.clone(), range.end..range.end];
        }
        [range.start..range.end.min(hole.start), range.start.max(hole.end)..range.end]
    };
    ranges.iter().flat_map(parts).filter(|range| !range.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> Range<PhysAddr> {
        PhysAddr::new(start)..PhysAddr::new(end)
    }

    #[test]
    fn zones_of_the_measured_machines() {
        let zones = |layout: &Layout| ZoneKind::ALL.map(|zone| layout.managed(zone));
        assert_eq!(zones(&Layout::pc(6 << 30, 3 << 30).unwrap()), [3840, (3 << 18) - 4096, 3 << 18, 0]);
        assert_eq!(zones(&Layout::pc(1 << 30, 3 << 30).unwrap()), [3840, (1 << 18) - 4096, 0, 0]);
        assert_eq!(zones(&Layout::pc(8 << 20, 3 << 30).unwrap()), [1792, 0, 0, 0]);
        let narrow = Layout::pc(5 << 30, 3 << 30).unwrap().on(Arch::X86_32);
        assert_eq!(zones(&narrow), [3840, 0, 0x3_8000 - 4096, (5 << 18) - 0x3_8000]);
    }

    #[test]
    fn reserved_ranges_cut_holes_of_whole_pages() {
        let layout = Layout::new(
            &[range(0x20_0000, 0x40_0000), range(0, 0x20_0000)],
            &[range(0x10_1800, 0x10_2001), range(0x3f_f000, 0x50_0000), range(5, 5)],
        )
        .unwrap();
        assert_eq!(layout.ranges, [0x100..0x101, 0x103..0x3ff]);
        let zone = |pfn| layout.zone_of(pfn);
        assert_eq!([zone(0xff), zone(0x100), zone(0x102)], [None, Some(ZoneKind::Dma), None]);
        assert_eq!((zone(0x3fe), zone(0x3ff)), (Some(ZoneKind::Dma), None));
    }

    #[test]
    fn ranges_that_touch_are_one_and_zones_part_them() {
        let layout = Layout::new(&[range(0x10_0000, 0x200_0000), range(0x200_0000, DMA32_END + 0x1000)], &[]).unwrap();
        assert_eq!(layout.ranges.as_slice(), std::slice::from_ref(&(0x100..0x10_0001)));
        assert_eq!(layout.zone_ranges(ZoneKind::Normal).last(), Some(0x10_0000..0x10_0001));
        assert_eq!(layout.zone_of(0xf_ffff), Some(ZoneKind::Dma32));
        assert_eq!(layout.end(), 0x10_0001);
    }

    #[test]
    fn ram_that_makes_no_machine_is_refused() {
        let highest = u64::MAX - 4095;
        let of = |ram: &[Range<PhysAddr>]| Layout::new(ram, &[]).unwrap_err();
        assert_eq!(of(&[range(0, 0)]), LayoutError::BadRange { start: 0, end: 0 });
        assert_eq!(of(&[range(0, 0x1800)]), LayoutError::BadRange { start: 0, end: 0x1800 });
        assert_eq!(of(&[range(0, HIGHEST_END + 4096)]), LayoutError::TooHigh { end: HIGHEST_END + 4096 });
        assert_eq!(of(&[range(0, 0x3000), range(0x2000, 0x4000)]), LayoutError::Overlap { at: 0x2000 });
        assert_eq!(of(&[range(0, 0x10_0000)]), LayoutError::Nothing { bytes: 0x10_0000 });
        assert_eq!(of(&[]), LayoutError::Nothing { bytes: 0 });
        assert_eq!(Layout::pc(6 << 30, 5 << 30), Err(LayoutError::Overlap { at: DMA32_END }));
        assert_eq!(Layout::pc(highest, 1 << 30), Err(LayoutError::TooHigh { end: u64::MAX }));
    }
}
