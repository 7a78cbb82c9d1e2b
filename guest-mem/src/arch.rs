//! The two x86 machines: which zones there are, where they part, and how much of RAM the kernel has an address for.
//!
//! On x86-64 the direct map covers all of RAM. A 32-bit kernel has 1 GiB of addresses for itself, of which the first
//! 896 MiB map RAM for good: what lies above is zone HighMem, whose frames have no address until
//! they are kmapped.
//!
//! Neighbours: `zone` and `gfp` ask for zones, `kbuf` for addresses. Left out: other architectures; 2:2 splits; the
//! width of a pointer (objects and caches are those of x86-64 on both).

use std::ops::Range;

use crate::addr::{PAGE_OFFSET, PAGE_SHIFT, PhysAddr, VirtAddr};
use crate::zone::ZoneKind;

/// Where the direct map begins on 32-bit x86 with its 3:1 split (`PAGE_OFFSET`).
pub const PAGE_OFFSET_32: u64 = 0xc000_0000;
/// The first byte of RAM without a permanent address there.
pub const LOWMEM_END_32: u64 = 896 << 20;
/// What PAE, 36 bits of physical address, can reach.
pub const PAE_LIMIT: u64 = 64 << 30;

/// Zone boundaries, in frames.
const DMA_FRAMES: u32 = 0x1000;
const DMA32_FRAMES: u32 = 0x10_0000;
const LOWMEM_FRAMES: u32 = 0x3_8000;
const _: () = assert!((DMA_FRAMES as u64) << PAGE_SHIFT == crate::zone::layout::DMA_END);
const _: () = assert!((DMA32_FRAMES as u64) << PAGE_SHIFT == crate::zone::layout::DMA32_END);
const _: () = assert!((LOWMEM_FRAMES as u64) << PAGE_SHIFT == LOWMEM_END_32);

/// The kernel's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Arch {
    /// 64 bits: all RAM has an address; zones DMA, DMA32, Normal.
    #[default]
    X86_64,
    /// 32 bits with `CONFIG_HIGHMEM`: zones DMA, Normal to 896 MiB, HighMem.
    X86_32,
}

impl Arch {
    /// The zones that exist here, low to high, empty or not.
    pub const fn zones(self) -> [ZoneKind; 3] {
        match self {
            Self::X86_64 => [ZoneKind::Dma, ZoneKind::Dma32, ZoneKind::Normal],
            Self::X86_32 => [ZoneKind::Dma, ZoneKind::Normal, ZoneKind::HighMem],
        }
    }

    /// The frames that belong to a zone if they are RAM.
    pub(crate) const fn span(self, zone: ZoneKind) -> Range<u32> {
        match (self, zone) {
            (_, ZoneKind::Dma) => 0..DMA_FRAMES,
            (Self::X86_64, ZoneKind::Dma32) => DMA_FRAMES..DMA32_FRAMES,
            (Self::X86_64, ZoneKind::Normal) => DMA32_FRAMES..u32::MAX,
            (Self::X86_64, ZoneKind::HighMem) => u32::MAX..u32::MAX,
            (Self::X86_32, ZoneKind::Dma32) => DMA_FRAMES..DMA_FRAMES,
            (Self::X86_32, ZoneKind::Normal) => DMA_FRAMES..LOWMEM_FRAMES,
            (Self::X86_32, ZoneKind::HighMem) => LOWMEM_FRAMES..u32::MAX,
        }
    }

    pub(crate) const fn zone_of_frame(self, pfn: u32) -> ZoneKind {
        match self {
            _ if pfn < DMA_FRAMES => ZoneKind::Dma,
            Self::X86_64 if pfn < DMA32_FRAMES => ZoneKind::Dma32,
            Self::X86_32 if pfn >= LOWMEM_FRAMES => ZoneKind::HighMem,
            _ => ZoneKind::Normal,
        }
    }

    /// The zone that an address of RAM belongs to: the address alone decides.
    pub fn zone_of(self, at: PhysAddr) -> ZoneKind {
        self.zone_of_frame(u32::try_from(at.get() >> PAGE_SHIFT).unwrap_or(u32::MAX))
    }

    /// The first byte of RAM that has no permanent address; no RAM reaches it on x86-64.
    pub const fn lowmem_end(self) -> u64 {
        match self {
            Self::X86_64 => u64::MAX,
            Self::X86_32 => LOWMEM_END_32,
        }
    }

    /// The addresses of vmalloc and ioremap (`VMALLOC_START` to `VMALLOC_END`): 32 TiB with 4-level paging, and what
    /// the direct map of 896 MiB leaves of a 32-bit kernel's 1 GiB, a scarce 111 MiB.
    pub const fn vmalloc(self) -> Range<u64> {
        match self {
            Self::X86_64 => 0xffff_c900_0000_0000..0xffff_e900_0000_0000,
            Self::X86_32 => 0xf880_0000..0xff7f_e000,
        }
    }

    /// A byte's address in the direct map (`__va`), or `None` for high memory.
    ///
    /// ```
    /// use lowzone_guest_mem::PhysAddr;
    /// use lowzone_guest_mem::arch::Arch;
    /// assert_eq!(Arch::X86_32.direct_map(PhysAddr::new(0x1000)).map(|at| at.get()), Some(0xc000_1000));
    /// assert_eq!(Arch::X86_32.direct_map(PhysAddr::new(896 << 20)), None);
    /// assert!(Arch::X86_64.direct_map(PhysAddr::new(896 << 20)).is_some());
    /// ```
    pub const fn direct_map(self, at: PhysAddr) -> Option<VirtAddr> {
        if at.get() >= self.lowmem_end() {
            return None;
        }
        let base = match self {
            Self::X86_64 => PAGE_OFFSET,
            Self::X86_32 => PAGE_OFFSET_32,
        };
        Some(VirtAddr::new(at.get().wrapping_add(base)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_change_where_each_machine_parts_them() {
        let zones = |arch: Arch, at: [u64; 4]| at.map(|at| arch.zone_of(PhysAddr::new(at)));
        let wide = zones(Arch::X86_64, [0xff_ffff, 0x100_0000, 0xffff_ffff, 0x1_0000_0000]);
        assert_eq!(wide, [ZoneKind::Dma, ZoneKind::Dma32, ZoneKind::Dma32, ZoneKind::Normal]);
        let narrow = zones(Arch::X86_32, [0xff_ffff, 0x100_0000, 0x37ff_ffff, 0x3800_0000]);
        assert_eq!(narrow, [ZoneKind::Dma, ZoneKind::Normal, ZoneKind::Normal, ZoneKind::HighMem]);
    }

    #[test]
    fn spans_agree_with_the_zone_of_each_frame() {
        for arch in [Arch::X86_64, Arch::X86_32] {
            for pfn in [0, DMA_FRAMES - 1, DMA_FRAMES, LOWMEM_FRAMES - 1, LOWMEM_FRAMES, DMA32_FRAMES - 1, DMA32_FRAMES]
            {
                let holders: Vec<_> =
                    ZoneKind::ALL.into_iter().filter(|&zone| arch.span(zone).contains(&pfn)).collect();
                assert_eq!(holders, [arch.zone_of_frame(pfn)], "{arch:?} {pfn:#x}");
                assert!(arch.zones().contains(&holders[0]));
            }
        }
    }
}
