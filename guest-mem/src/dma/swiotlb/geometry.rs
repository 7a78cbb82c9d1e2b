//! How a bounce pool is cut: slots, segments, areas, and the rounding of a wish to them.
//!
//! Neighbours: [`super::Pool`] is made of one. Left out: `swiotlb=` on the boot command line and its minimum of 1 MiB.

use thiserror::Error;

use crate::addr::PhysAddr;

/// Bytes in a slot (`IO_TLB_SIZE`).
pub const SLOT_SIZE: u64 = 1 << SLOT_SHIFT;
/// Slots in a segment (`IO_TLB_SEGSIZE`), and so in the longest mapping.
pub const SEGMENT_SLOTS: u32 = 128;
/// Bytes in the longest mapping.
pub const MAX_MAPPING: u64 = SEGMENT_SLOTS as u64 * SLOT_SIZE;
const SLOT_SHIFT: u32 = 11;

/// Binary logarithm of a slot's bytes.
pub(super) fn slot_shift() -> u32 {
    altered!(SLOT_SHIFT)
}

/// [`SLOT_SIZE`], as the pool reckons with it.
pub(super) fn slot_size() -> u64 {
    1 << slot_shift()
}

/// [`MAX_MAPPING`], as the pool reckons with it.
pub(super) fn max_mapping() -> u64 {
    u64::from(SEGMENT_SLOTS) << slot_shift()
}

/// Why a pool can't be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// Nothing to cut into slots.
    #[error("a bounce pool of 0 bytes")]
    Empty,
    /// No CPU, or more than there can be areas.
    #[error("a bounce pool for {cpus} CPUs")]
    Cpus {
        /// The number asked for.
        cpus: u32,
    },
    /// The pool does not begin on a page.
    #[error("a bounce pool at {base}, which is not on a page boundary")]
    Unaligned {
        /// The address asked for.
        base: PhysAddr,
    },
    /// The pool ends beyond the address space, or has more slots than can be numbered.
    #[error("a bounce pool of {bytes} bytes is too large")]
    TooLarge {
        /// The size asked for.
        bytes: u64,
    },
    /// Of [`super::Pool::validate`]: a slot's numbers disagree with its neighbours'.
    #[error("bounce slot {index} is inconsistent")]
    Slot {
        /// The slot.
        index: usize,
    },
    /// Of [`super::Pool::validate`]: an area's numbers disagree with its slots.
    #[error("bounce area {area} is inconsistent")]
    Area {
        /// The area.
        area: usize,
    },
    /// Of [`super::Pool::validate`]: the areas do not sum up to the pool.
    #[error("the bounce pool counts {used} slots, its areas do not")]
    Total {
        /// Slots taken, by the pool's own count.
        used: u32,
    },
}

/// Slots and areas of a pool, rounded as Linux rounds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Slots in all: a power of two.
    pub slots: u32,
    /// Areas: a power of two; each has at least one segment.
    pub areas: u32,
}

impl Geometry {
    /// Rounds a wish: CPUs up to a power of two, bytes up to a power of two that gives each area a segment.
    ///
    /// # Errors
    /// [`PoolError::Empty`], [`PoolError::Cpus`], [`PoolError::TooLarge`].
    ///
    /// ```
    /// use lowzone_guest_mem::dma::swiotlb::Geometry;
    ///
    /// assert_eq!(Geometry::of(64 << 20, 3)?, Geometry { slots: 32768, areas: 4 });
    /// assert_eq!(Geometry::of(1, 4)?.bytes(), 1 << 20);
    /// # Ok::<(), lowzone_guest_mem::dma::swiotlb::PoolError>(())
    /// ```
    pub fn of(bytes: u64, cpus: u32) -> Result<Self, PoolError> {
        if bytes == 0 {
            return Err(PoolError::Empty);
        }
        let areas = cpus.checked_next_power_of_two().filter(|_| cpus > 0).ok_or(PoolError::Cpus { cpus })?;
        let least = areas.checked_mul(SEGMENT_SLOTS).ok_or(PoolError::Cpus { cpus })?;
        let slots = u32::try_from(bytes.div_ceil(slot_size())).ok();
        let slots = slots.and_then(|slots| slots.max(least).checked_next_power_of_two());
        Ok(Self { slots: slots.ok_or(PoolError::TooLarge { bytes })?, areas })
    }

    /// Bytes of the pool, to be reserved for it.
    pub fn bytes(&self) -> u64 {
        u64::from(self.slots) << slot_shift()
    }
}
