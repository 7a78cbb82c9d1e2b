//! Scopes that bind every allocation made in them: no I/O, no file systems, no reclaim.
//!
//! A block driver that allocates on its way to writing a page out must not wait for that very page. It opens a scope,
//! and each mask below it loses `__GFP_IO` and `__GFP_FS`, however deep the call. Mirrors
//! include/linux/sched/mm.h. Neighbours: `page` and `reclaim` ask. Left out: `memalloc_pin`, suspend's
//! `gfp_allowed_mask`.

use std::cell::Cell;

use super::Cpu;
use crate::gfp::Gfp;

bitflags::bitflags! {
    /// What the code on a CPU promised about its allocations (the `PF_MEMALLOC*` flags of its task).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub(crate) struct Memalloc: u8 {
        /// `PF_MEMALLOC_NOIO`.
        const NOIO = 1;
        /// `PF_MEMALLOC_NOFS`.
        const NOFS = 2;
        /// `PF_MEMALLOC`.
        const NORECLAIM = 4;
    }
}

/// An open scope; it closes when dropped (`memalloc_*_restore`).
#[must_use = "the scope closes when this is dropped"]
pub struct MemallocScope<'a> {
    flags: &'a Cell<Memalloc>,
    outer: Memalloc,
}

impl Drop for MemallocScope<'_> {
    fn drop(&mut self) {
        self.flags.set(self.outer);
    }
}

impl Cpu<'_> {
    /// From here on no allocation starts I/O or calls into a file system (`memalloc_noio_save`). Any
    /// context.
    pub fn memalloc_noio_save(&self) -> MemallocScope<'_> {
        self.memalloc_save(Memalloc::NOIO)
    }

    /// From here on no allocation calls into a file system (`memalloc_nofs_save`). Any context.
    pub fn memalloc_nofs_save(&self) -> MemallocScope<'_> {
        self.memalloc_save(Memalloc::NOFS)
    }

    /// From here on no allocation reclaims, and each may use all reserves (`memalloc_noreclaim_save`): for code that
    /// frees memory. Any context.
    pub fn memalloc_noreclaim_save(&self) -> MemallocScope<'_> {
        self.memalloc_save(Memalloc::NORECLAIM)
    }

    fn memalloc_save(&self, flag: Memalloc) -> MemallocScope<'_> {
        let outer = self.memalloc.get();
        self.memalloc.set(outer | flag);
        MemallocScope { flags: &self.memalloc, outer }
    }

    /// A mask as the scopes leave it (`current_gfp_context`).
    pub(crate) fn gfp_context(&self, gfp: Gfp) -> Gfp {
        let flags = self.memalloc.get();
        if flags.contains(Memalloc::NOIO) {
            gfp - (Gfp::IO | Gfp::FS)
        } else if flags.contains(Memalloc::NOFS) {
            gfp - Gfp::FS
        } else {
            gfp
        }
    }

    /// Whether the task is one that frees memory (`PF_MEMALLOC`); interrupts that it is lent to are not.
    pub(crate) fn is_memalloc(&self) -> bool {
        self.memalloc.get().contains(Memalloc::NORECLAIM) && !self.in_interrupt()
    }
}

#[cfg(test)]
mod tests {
    use crate::gfp::{GFP_KERNEL, GFP_NOFS, GFP_NOIO};
    use crate::testing::Lab;

    #[test]
    fn scopes_nest_and_end() {
        let lab = Lab::new();
        let cpu = lab.cpu();
        assert_eq!((cpu.gfp_context(GFP_KERNEL), cpu.is_memalloc()), (GFP_KERNEL, false));
        let nofs = cpu.memalloc_nofs_save();
        assert_eq!(cpu.gfp_context(GFP_KERNEL), GFP_NOFS);
        {
            let _noio = cpu.memalloc_noio_save();
            let _noreclaim = cpu.memalloc_noreclaim_save();
            assert_eq!((cpu.gfp_context(GFP_KERNEL), cpu.is_memalloc()), (GFP_NOIO, true));
        }
        assert_eq!((cpu.gfp_context(GFP_KERNEL), cpu.is_memalloc()), (GFP_NOFS, false));
        drop(nofs);
        assert_eq!(cpu.gfp_context(GFP_KERNEL), GFP_KERNEL);
    }
}
