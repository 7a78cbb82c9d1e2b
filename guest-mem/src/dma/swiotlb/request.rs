//! What a mapping asks of the bounce pool, worked out once for the search through all areas.
//!
//! Neighbours: [`super::Pool::map`] is the only user. Left out: `alloc_align_mask`, which streaming maps don't use.

use super::geometry::{max_mapping, slot_shift, slot_size};
use super::{Stats, SwiotlbError};
use crate::addr::{PAGE_SIZE, PhysAddr};

/// What the device wants of the addresses it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constraints {
    /// Bits of the buffer's address that the slot keeps (`dma_set_min_align_mask`).
    pub min_align_mask: u64,
    /// Mask of the stretch that no mapping crosses (`dma_set_seg_boundary`), a power of two less one.
    pub boundary_mask: u64,
}

impl Default for Constraints {
    /// A PCI device that has asked for nothing.
    fn default() -> Self {
        Self { min_align_mask: 0, boundary_mask: 0xffff_ffff }
    }
}

/// A request, worked out once for all areas.
pub(super) struct Search {
    /// Bytes with the kept offset.
    pub(super) alloc: u32,
    pub(super) offset: u16,
    pub(super) slots: u32,
    pub(super) orig: u64,
    /// Bits of the slot's address that must be 0.
    pub(super) aligned: u64,
    /// Bits of the slot's address that must be those of `orig`.
    pub(super) alike: u64,
    pub(super) stride: u64,
    pub(super) base: u64,
    pub(super) boundary_slots: u64,
}

impl Search {
    /// Works a request out for a pool at `base`; `stats` is what an error reports.
    pub(super) fn new(
        base: u64,
        stats: Stats,
        orig: PhysAddr,
        size: u64,
        req: Constraints,
    ) -> Result<Self, SwiotlbError> {
        let offset = orig.get() & req.min_align_mask & (slot_size() - 1);
        let too_large = SwiotlbError::TooLarge { size, total: stats.total, used: stats.used };
        let alloc = size.checked_add(offset).filter(|&alloc| alloc <= max_mapping()).ok_or(too_large)?;
        if alloc == 0 {
            return Err(SwiotlbError::ZeroSize { orig });
        }
        let page = req.min_align_mask == 0 && alloc >= PAGE_SIZE;
        let aligned = if page { PAGE_SIZE - 1 } else { slot_size() - 1 };
        let alike = req.min_align_mask & !aligned;
        let alloc = u32::try_from(alloc).map_err(|_| too_large)?;
        Ok(Self {
            alloc,
            offset: u16::try_from(offset).map_err(|_| too_large)?,
            slots: alloc.div_ceil(1 << slot_shift()),
            orig: orig.get(),
            aligned,
            alike,
            stride: (aligned.max(alike) >> slot_shift()) + 1,
            base: base & req.boundary_mask,
            boundary_slots: boundary_slots(req.boundary_mask)?,
        })
    }

    /// Whether the slot has the alignment that the request wants, and shares the buffer's bits under the mask.
    pub(super) fn fits_at(&self, index: u32) -> bool {
        let at = self.base + (u64::from(index) << slot_shift());
        at & self.aligned == 0 && (self.orig == 0 || at & self.alike == self.orig & self.alike)
    }

    /// `iommu_is_span_boundary`.
    pub(super) fn crosses(&self, index: u32) -> bool {
        let first = (self.base.div_ceil(slot_size()) + u64::from(index)) & (self.boundary_slots - 1);
        first + u64::from(self.slots) > self.boundary_slots
    }
}

/// `get_max_slots`: slots from one boundary to the next.
fn boundary_slots(mask: u64) -> Result<u64, SwiotlbError> {
    match mask.checked_add(1) {
        Some(boundary) if !boundary.is_power_of_two() => Err(SwiotlbError::Boundary { mask }),
        Some(boundary) => Ok(boundary.div_ceil(slot_size())),
        None => Ok(1 << (u64::BITS - slot_shift())),
    }
}
