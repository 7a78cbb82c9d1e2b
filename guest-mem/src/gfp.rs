//! Allocation masks: what a caller of the allocators allows and asks for, with Linux 6.1's numbers and names.
//!
//! A [`Gfp`] says from which zone downwards pages may come, whether the caller may sleep, and how deep into the
//! reserves it may reach. The C names are constants of this module (`GFP_KERNEL`, `__GFP_ZERO`), so that what a
//! driver author greps for is found.
//!
//! Mirrors `include/linux/gfp_types.h` and `include/linux/gfp.h`; texts are those of `%pGg`. Neighbours:
//! [`crate::zone`] obeys the zone and reserve bits, [`crate::slab`] the cache bits. Left out: bits that are zero
//! without their config option (`__GFP_NOLOCKDEP`, the KASAN ones); node policies (one node); what `NOFAIL`,
//! `NORETRY` and `RETRY_MAYFAIL` do, which is for those who wait and retry.

use std::fmt;

use bitflags::bitflags;

use crate::arch::Arch;
use crate::zone::ZoneKind;

bitflags! {
    /// An allocation mask; numbers are those of 6.1.
    ///
    /// ```
    /// use lowzone_guest_mem::gfp::{GFP_KERNEL, GFP_DMA32, __GFP_ZERO};
    /// let mask = GFP_KERNEL | GFP_DMA32 | __GFP_ZERO;
    /// assert_eq!(mask.bits(), 0xdc4);
    /// assert_eq!(mask.to_string(), "GFP_KERNEL|GFP_DMA32|__GFP_ZERO");
    /// assert!(mask.may_sleep());
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Gfp: u32 {
        /// Pages from zone DMA only.
        const DMA = 0x1;
        /// Pages may come from high memory, which has no address; means nothing on x86-64.
        const HIGHMEM = 0x2;
        /// Pages from zone DMA32 or below.
        const DMA32 = 0x4;
        /// The pages may be migrated.
        const MOVABLE = 0x8;
        /// The pages can be reclaimed by a shrinker; selects `kmalloc-rcl-*`.
        const RECLAIMABLE = 0x10;
        /// May use half of the minimum watermark.
        const HIGH = 0x20;
        /// Reclaim may start I/O.
        const IO = 0x40;
        /// Reclaim may call into file systems.
        const FS = 0x80;
        /// The memory is zeroed.
        const ZERO = 0x100;
        /// A part of `GFP_ATOMIC`, gone in 6.3; its one effect left is on boosted watermarks.
        const ATOMIC = 0x200;
        /// The caller may sleep.
        const DIRECT_RECLAIM = 0x400;
        /// Background reclaim is woken when memory is low.
        const KSWAPD_RECLAIM = 0x800;
        /// The caller will dirty the page.
        const WRITE = 0x1000;
        /// No failure report.
        const NOWARN = 0x2000;
        /// Retry while there is progress, then fail.
        const RETRY_MAYFAIL = 0x4000;
        /// Never fail.
        const NOFAIL = 0x8000;
        /// One round of reclaim at most.
        const NORETRY = 0x1_0000;
        /// Ignore all watermarks.
        const MEMALLOC = 0x2_0000;
        /// A compound page.
        const COMP = 0x4_0000;
        /// Never touch the reserves; wins over `MEMALLOC`.
        const NOMEMALLOC = 0x8_0000;
        /// Obey the cpuset's nodes.
        const HARDWALL = 0x10_0000;
        /// This node only.
        const THISNODE = 0x20_0000;
        /// Charge to the memory cgroup.
        const ACCOUNT = 0x40_0000;
        /// Zero the memory tags too.
        const ZEROTAGS = 0x80_0000;
    }
}

macro_rules! c_names {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$doc])* pub const $name: Gfp = Gfp::from_bits_retain($value);)*
    };
}

c_names! {
    /// [`Gfp::DMA`] under its C name.
    __GFP_DMA = 0x1;
    /// [`Gfp::HIGHMEM`] under its C name.
    __GFP_HIGHMEM = 0x2;
    /// [`Gfp::DMA32`] under its C name.
    __GFP_DMA32 = 0x4;
    /// [`Gfp::MOVABLE`] under its C name.
    __GFP_MOVABLE = 0x8;
    /// [`Gfp::RECLAIMABLE`] under its C name.
    __GFP_RECLAIMABLE = 0x10;
    /// [`Gfp::HIGH`] under its C name.
    __GFP_HIGH = 0x20;
    /// [`Gfp::IO`] under its C name.
    __GFP_IO = 0x40;
    /// [`Gfp::FS`] under its C name.
    __GFP_FS = 0x80;
    /// [`Gfp::ZERO`] under its C name.
    __GFP_ZERO = 0x100;
    /// [`Gfp::ATOMIC`] under its C name.
    __GFP_ATOMIC = 0x200;
    /// [`Gfp::DIRECT_RECLAIM`] under its C name.
    __GFP_DIRECT_RECLAIM = 0x400;
    /// [`Gfp::KSWAPD_RECLAIM`] under its C name.
    __GFP_KSWAPD_RECLAIM = 0x800;
    /// [`Gfp::WRITE`] under its C name.
    __GFP_WRITE = 0x1000;
    /// [`Gfp::NOWARN`] under its C name.
    __GFP_NOWARN = 0x2000;
    /// [`Gfp::RETRY_MAYFAIL`] under its C name.
    __GFP_RETRY_MAYFAIL = 0x4000;
    /// [`Gfp::NOFAIL`] under its C name.
    __GFP_NOFAIL = 0x8000;
    /// [`Gfp::NORETRY`] under its C name.
    __GFP_NORETRY = 0x1_0000;
    /// [`Gfp::MEMALLOC`] under its C name.
    __GFP_MEMALLOC = 0x2_0000;
    /// [`Gfp::COMP`] under its C name.
    __GFP_COMP = 0x4_0000;
    /// [`Gfp::NOMEMALLOC`] under its C name.
    __GFP_NOMEMALLOC = 0x8_0000;
    /// [`Gfp::HARDWALL`] under its C name.
    __GFP_HARDWALL = 0x10_0000;
    /// [`Gfp::THISNODE`] under its C name.
    __GFP_THISNODE = 0x20_0000;
    /// [`Gfp::ACCOUNT`] under its C name.
    __GFP_ACCOUNT = 0x40_0000;
    /// [`Gfp::ZEROTAGS`] under its C name.
    __GFP_ZEROTAGS = 0x80_0000;
    /// Both ways of reclaim.
    __GFP_RECLAIM = 0xc00;
    /// The four bits that choose a zone.
    GFP_ZONEMASK = 0xf;
    /// For contexts that can't sleep: may use reserves.
    GFP_ATOMIC = 0xa20;
    /// The usual mask of kernel code that may sleep.
    GFP_KERNEL = 0xcc0;
    /// [`GFP_KERNEL`] charged to the memory cgroup.
    GFP_KERNEL_ACCOUNT = 0x40_0cc0;
    /// For contexts that can't sleep, without reserves.
    GFP_NOWAIT = 0x800;
    /// May sleep but start no I/O.
    GFP_NOIO = 0xc00;
    /// May sleep but not call into file systems.
    GFP_NOFS = 0xc40;
    /// For user space, addressable by the kernel.
    GFP_USER = 0x10_0cc0;
    /// Zone DMA, below 16 MiB; combine with a mask that says whether to sleep.
    GFP_DMA = 0x1;
    /// Zone DMA32, below 4 GiB; combine with a mask that says whether to sleep.
    GFP_DMA32 = 0x4;
    /// For user space, high memory allowed.
    GFP_HIGHUSER = 0x10_0cc2;
    /// For user space, movable.
    GFP_HIGHUSER_MOVABLE = 0x10_0cca;
    /// Huge pages, without any reclaim.
    GFP_TRANSHUGE_LIGHT = 0x1c_20ca;
    /// Huge pages.
    GFP_TRANSHUGE = 0x1c_24ca;
    /// What the slab layer drops with a complaint: no `kmalloc` cache has such pages.
    GFP_SLAB_BUG_MASK = 0x6;
    /// The bits of a caller's mask that reach the page allocator when a slab grows.
    GFP_SLAB_PASS_MASK = 0x3b_eee0;
}

/// Composites before single bits, as `%pGg` tries them.
const NAMES: [(&str, Gfp); 36] = [
    ("GFP_TRANSHUGE", GFP_TRANSHUGE),
    ("GFP_TRANSHUGE_LIGHT", GFP_TRANSHUGE_LIGHT),
    ("GFP_HIGHUSER_MOVABLE", GFP_HIGHUSER_MOVABLE),
    ("GFP_HIGHUSER", GFP_HIGHUSER),
    ("GFP_USER", GFP_USER),
    ("GFP_KERNEL_ACCOUNT", GFP_KERNEL_ACCOUNT),
    ("GFP_KERNEL", GFP_KERNEL),
    ("GFP_NOFS", GFP_NOFS),
    ("GFP_ATOMIC", GFP_ATOMIC),
    ("GFP_NOIO", GFP_NOIO),
    ("GFP_NOWAIT", GFP_NOWAIT),
    ("GFP_DMA", GFP_DMA),
    ("__GFP_HIGHMEM", Gfp::HIGHMEM),
    ("GFP_DMA32", GFP_DMA32),
    ("__GFP_HIGH", Gfp::HIGH),
    ("__GFP_ATOMIC", Gfp::ATOMIC),
    ("__GFP_IO", Gfp::IO),
    ("__GFP_FS", Gfp::FS),
    ("__GFP_NOWARN", Gfp::NOWARN),
    ("__GFP_RETRY_MAYFAIL", Gfp::RETRY_MAYFAIL),
    ("__GFP_NOFAIL", Gfp::NOFAIL),
    ("__GFP_NORETRY", Gfp::NORETRY),
    ("__GFP_COMP", Gfp::COMP),
    ("__GFP_ZERO", Gfp::ZERO),
    ("__GFP_NOMEMALLOC", Gfp::NOMEMALLOC),
    ("__GFP_MEMALLOC", Gfp::MEMALLOC),
    ("__GFP_HARDWALL", Gfp::HARDWALL),
    ("__GFP_THISNODE", Gfp::THISNODE),
    ("__GFP_RECLAIMABLE", Gfp::RECLAIMABLE),
    ("__GFP_MOVABLE", Gfp::MOVABLE),
    ("__GFP_ACCOUNT", Gfp::ACCOUNT),
    ("__GFP_WRITE", Gfp::WRITE),
    ("__GFP_RECLAIM", __GFP_RECLAIM),
    ("__GFP_DIRECT_RECLAIM", Gfp::DIRECT_RECLAIM),
    ("__GFP_KSWAPD_RECLAIM", Gfp::KSWAPD_RECLAIM),
    ("__GFP_ZEROTAGS", Gfp::ZEROTAGS),
];

impl Gfp {
    /// The highest zone the mask allows on a machine (`gfp_zone`); a zone that it lacks means Normal.
    ///
    /// Movable high memory is an always empty zone Movable, which falls back to HighMem or Normal. Pairs that make
    /// no sense give DMA silently, as 6.1 does without `CONFIG_DEBUG_VM`.
    pub const fn highest_zone(self, arch: Arch) -> ZoneKind {
        match (self.bits() & GFP_ZONEMASK.bits(), arch) {
            (0x2 | 0xa, Arch::X86_32) => ZoneKind::HighMem,
            (0x4 | 0xc, Arch::X86_64) => ZoneKind::Dma32,
            (0x0 | 0x2 | 0x4 | 0x8 | 0xa | 0xc, _) => ZoneKind::Normal,
            _ => ZoneKind::Dma,
        }
    }

    /// The number of that zone on x86-64, where zone Movable has one of its own although it is empty (`gfp_zone`).
    pub const fn zone_number(self) -> usize {
        const MOVABLE: usize = 3;
        match self.bits() & GFP_ZONEMASK.bits() {
            0xa => MOVABLE,
            _ => self.highest_zone(Arch::X86_64).index(),
        }
    }

    /// Whether a real kernel may fail such a request: atomic, large, or bound to a low zone. Any other is "too small to
    /// fail" and fails by injection only (semantics of the page allocator's slow path).
    pub const fn can_fail(self, order: u8, arch: Arch) -> bool {
        const COSTLY_ORDER: u8 = 3;
        !self.may_sleep() || order > COSTLY_ORDER || matches!(self.highest_zone(arch), ZoneKind::Dma | ZoneKind::Dma32)
    }

    /// Whether the caller may sleep (`gfpflags_allow_blocking`).
    pub const fn may_sleep(self) -> bool {
        self.contains(Self::DIRECT_RECLAIM)
    }
}

impl fmt::Display for Gfp {
    /// What `%pGg` prints; bits without a name follow as one hexadecimal number, no bits print nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = *self;
        for (name, mask) in NAMES {
            if !rest.contains(mask) {
                continue;
            }
            f.write_str(name)?;
            rest = rest.difference(mask);
            if rest.is_empty() {
                return Ok(());
            }
            f.write_str("|")?;
        }
        if rest.is_empty() { Ok(()) } else { write!(f, "{:#x}", rest.bits()) }
    }
}

impl fmt::Debug for Gfp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}({self})", self.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_are_those_measured() {
        let measured = [
            (__GFP_DMA, 0x1, "GFP_DMA"),
            (__GFP_HIGHMEM, 0x2, "__GFP_HIGHMEM"),
            (__GFP_DMA32, 0x4, "GFP_DMA32"),
            (__GFP_RECLAIMABLE, 0x10, "__GFP_RECLAIMABLE"),
            (__GFP_DIRECT_RECLAIM, 0x400, "__GFP_DIRECT_RECLAIM"),
            (__GFP_NOFAIL, 0x8000, "__GFP_NOFAIL"),
            (__GFP_MEMALLOC, 0x20000, "__GFP_MEMALLOC"),
            (GFP_KERNEL, 0xcc0, "GFP_KERNEL"),
            (GFP_HIGHUSER, 0x10_0cc2, "GFP_HIGHUSER"),
            (GFP_KERNEL_ACCOUNT, 0x40_0cc0, "GFP_KERNEL_ACCOUNT"),
            (GFP_ATOMIC, 0xa20, "GFP_ATOMIC"),
            (GFP_NOIO, 0xc00, "GFP_NOIO"),
            (GFP_NOFS, 0xc40, "GFP_NOFS"),
            (GFP_NOWAIT, 0x800, "GFP_NOWAIT"),
            (GFP_USER, 0x10_0cc0, "GFP_USER"),
            (GFP_HIGHUSER_MOVABLE, 0x10_0cca, "GFP_HIGHUSER_MOVABLE"),
            (GFP_TRANSHUGE_LIGHT, 0x1c_20ca, "GFP_TRANSHUGE_LIGHT"),
            (GFP_KERNEL | GFP_DMA, 0xcc1, "GFP_KERNEL|GFP_DMA"),
            (GFP_KERNEL | __GFP_ZERO, 0xdc0, "GFP_KERNEL|__GFP_ZERO"),
            (GFP_ATOMIC | GFP_DMA, 0xa21, "GFP_ATOMIC|GFP_DMA"),
        ];
        for (mask, bits, text) in measured {
            assert_eq!((mask.bits(), mask.to_string().as_str()), (bits, text));
        }
    }

    #[test]
    fn composites_are_made_of_their_bits() {
        assert_eq!(GFP_KERNEL, __GFP_RECLAIM | __GFP_IO | __GFP_FS);
        assert_eq!(GFP_ATOMIC, __GFP_HIGH | __GFP_ATOMIC | __GFP_KSWAPD_RECLAIM);
        assert_eq!(GFP_HIGHUSER_MOVABLE, GFP_KERNEL | __GFP_HARDWALL | __GFP_HIGHMEM | __GFP_MOVABLE);
        assert_eq!(GFP_TRANSHUGE, GFP_TRANSHUGE_LIGHT | __GFP_DIRECT_RECLAIM);
        let how = __GFP_RECLAIM | __GFP_HIGH | __GFP_ATOMIC | __GFP_IO | __GFP_FS | __GFP_NOWARN;
        let retry = __GFP_RETRY_MAYFAIL | __GFP_NOFAIL | __GFP_NORETRY | __GFP_MEMALLOC | __GFP_NOMEMALLOC;
        assert_eq!(GFP_SLAB_PASS_MASK, how | retry | __GFP_HARDWALL | __GFP_THISNODE);
    }

    #[test]
    fn a_bit_without_name_prints_as_a_number() {
        assert_eq!((GFP_NOWAIT | Gfp::from_bits_retain(0x800_0000)).to_string(), "GFP_NOWAIT|0x8000000");
        assert_eq!(Gfp::empty().to_string(), "");
        assert_eq!(format!("{GFP_ATOMIC:?}"), "0xa20(GFP_ATOMIC)");
    }

    #[test]
    fn zones_follow_the_measured_table() {
        use ZoneKind::{Dma, Dma32, Normal};
        let by_bits = [Normal, Dma, Normal, Dma, Dma32, Dma, Dma, Dma, Normal, Dma, Normal, Dma, Dma32, Dma, Dma, Dma];
        for (bits, zone) in (0u32..).zip(by_bits) {
            let mask = GFP_KERNEL | Gfp::from_bits_retain(bits);
            assert_eq!(mask.highest_zone(Arch::X86_64), zone, "{bits:#x}");
            let narrow = match (bits, zone) {
                (0x2 | 0xa, _) => ZoneKind::HighMem,
                (_, Dma) => Dma,
                _ => Normal,
            };
            assert_eq!(mask.highest_zone(Arch::X86_32), narrow, "{bits:#x}");
            assert_eq!(mask.can_fail(0, Arch::X86_32), narrow == Dma, "{bits:#x}");
        }
    }
}
