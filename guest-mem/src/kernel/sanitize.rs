//! What a machine watches: Linux's debugging of slabs, and a quarantine beside it.
//!
//! Each finds what a plain kernel passes over in silence, at a price in memory and time; without any there is none.
//! Neighbours: [`crate::slab`] lays out what is watched. Left out: KASAN's check of each access of the CPU's, which needs
//! the compiler.

use bitflags::bitflags;

use crate::slab::SlabFlags;

/// Bytes that the quarantine holds back.
const QUARANTINE: u64 = 1 << 20;

bitflags! {
    /// Options of a machine.
    ///
    /// ```
    /// use lowzone_guest_mem::kernel::Sanitize;
    /// use lowzone_guest_mem::slab::SlabFlags;
    /// let sanitize = Sanitize::POISON | Sanitize::RED_ZONE | Sanitize::TRACK;
    /// assert_eq!(sanitize.slub_debug(), SlabFlags::DEBUG, "slub_debug=FZPU");
    /// assert_eq!(Sanitize::QUARANTINE.slub_debug(), SlabFlags::empty());
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Sanitize: u8 {
        /// Free objects hold a pattern that is looked at when they are used again (`slub_debug=FP`).
        const POISON = 1;
        /// Objects lie between bytes that are looked at when they are freed (`slub_debug=FZ`).
        const RED_ZONE = 2;
        /// Who freed an object is remembered (`slub_debug=U`).
        const TRACK = 4;
        /// Freed objects are held back, large ones too, filled, and looked at when they leave.
        const QUARANTINE = 8;
        /// A `kmalloc` beyond the 128 KiB that *Linux Device Drivers* calls portable is a finding.
        const PORTABLE = 16;
    }
}

impl Sanitize {
    /// What it adds to the flags of every cache.
    pub fn slub_debug(self) -> SlabFlags {
        let all = [
            (Self::POISON, SlabFlags::POISON | SlabFlags::CONSISTENCY_CHECKS),
            (Self::RED_ZONE, SlabFlags::RED_ZONE | SlabFlags::CONSISTENCY_CHECKS),
            (Self::TRACK, SlabFlags::STORE_USER),
        ];
        all.into_iter().filter(|(on, _)| self.contains(*on)).fold(SlabFlags::empty(), |flags, (_, add)| flags | add)
    }

    /// Bytes of freed objects that are held back.
    pub const fn quarantine(self) -> u64 {
        if self.contains(Self::QUARANTINE) { QUARANTINE } else { 0 }
    }
}
