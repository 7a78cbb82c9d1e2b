//! `DMA_ATTR_*`: what a driver says about one mapping beside its direction.
//!
//! Numbers are Linux's (include/linux/dma-mapping.h). Neighbours: `streaming` and `sg` take them. Left out: what the other
//! attributes do where coherent memory needs page tables, which it doesn't here; they are taken and change nothing.

use bitflags::bitflags;

bitflags! {
    /// Attributes of a mapping.
    ///
    /// ```
    /// use lowzone_guest_mem::dma::Attrs;
    /// assert_eq!((Attrs::SKIP_CPU_SYNC.bits(), Attrs::NO_WARN.bits()), (1 << 5, 1 << 8));
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Attrs: u32 {
        /// `DMA_ATTR_WEAK_ORDERING`: no effect.
        const WEAK_ORDERING = 1 << 1;
        /// `DMA_ATTR_WRITE_COMBINE`: no effect.
        const WRITE_COMBINE = 1 << 2;
        /// `DMA_ATTR_NO_KERNEL_MAPPING`: no effect.
        const NO_KERNEL_MAPPING = 1 << 4;
        /// `DMA_ATTR_SKIP_CPU_SYNC`: an unmap copies nothing back. A map that bounces copies in all the same.
        const SKIP_CPU_SYNC = 1 << 5;
        /// `DMA_ATTR_FORCE_CONTIGUOUS`: no effect.
        const FORCE_CONTIGUOUS = 1 << 6;
        /// `DMA_ATTR_ALLOC_SINGLE_PAGES`: no effect.
        const ALLOC_SINGLE_PAGES = 1 << 7;
        /// `DMA_ATTR_NO_WARN`: a full bounce pool is not told in the kernel's log.
        const NO_WARN = 1 << 8;
        /// `DMA_ATTR_PRIVILEGED`: no effect.
        const PRIVILEGED = 1 << 9;
    }
}
