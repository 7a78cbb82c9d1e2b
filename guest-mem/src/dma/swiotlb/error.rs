//! What can be wrong with a call to the bounce pool, in Linux's words where it has some.
//!
//! Neighbours: [`super::Pool`]; what is wrong with a pool itself is [`super::PoolError`]. Left out: `swiotlb addr …
//! overflow`, which is the mapping layer's, as it knows the device's mask.

use thiserror::Error;

use crate::addr::PhysAddr;

/// Why slots can't be had, or an address is not what it was taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SwiotlbError {
    /// No run of free slots fits.
    #[error("swiotlb buffer is full (sz: {size} bytes), total {total} (slots), used {used} (slots)")]
    Full {
        /// Bytes asked for.
        size: u64,
        /// Slots of the pool.
        total: u32,
        /// Slots taken.
        used: u32,
    },
    /// More than a segment, so that it can never fit; Linux says that the buffer is full.
    #[error("swiotlb buffer is full (sz: {size} bytes), total {total} (slots), used {used} (slots)")]
    TooLarge {
        /// Bytes asked for.
        size: u64,
        /// Slots of the pool.
        total: u32,
        /// Slots taken.
        used: u32,
    },
    /// A mapping of 0 bytes at offset 0, which Linux does not survive.
    #[error("kernel BUG at kernel/dma/swiotlb.c: a bounced mapping of 0 bytes at {orig}")]
    ZeroSize {
        /// The buffer's address.
        orig: PhysAddr,
    },
    /// A segment boundary that is not a power of two, which Linux does not survive.
    #[error("kernel BUG at include/linux/iommu-helper.h: segment boundary mask {mask:#x}")]
    Boundary {
        /// The device's mask.
        mask: u64,
    },
    /// No mapping holds this address; Linux goes on silently.
    #[error("no bounce slot is mapped at {phys}")]
    NotMapped {
        /// The address given.
        phys: PhysAddr,
    },
    /// A sync or unmap is longer than what was mapped there; Linux copies only what was mapped, and warns once.
    #[error("Buffer overflow detected. Allocation size: {allocation}. Mapping size: {mapping}.")]
    Overflow {
        /// Bytes mapped from the address on.
        allocation: u64,
        /// Bytes asked for.
        mapping: u64,
    },
}
