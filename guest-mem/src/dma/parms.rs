//! `dma_parms`: how long a segment the device takes, what it must not cross, which address bits it wants kept.
//!
//! A PCI function has them; a bare device has none, reads the defaults and can't set any (`-EIO` in 6.1). On a machine
//! without an IOMMU nothing enforces the first two: the ledger reports a scatterlist that breaks them, as dma-debug
//! does. The alignment mask and the boundary steer the bounce pool. Mirrors include/linux/dma-mapping.h. Neighbours:
//! `device`, `sg`, `swiotlb`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use thiserror::Error;

use crate::dma::device::DmaDevice;
use crate::dma::swiotlb::Constraints;

/// The device has no `dma_parms` to set (`-EIO`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the device has no dma_parms to take {value:#x} (-EIO)")]
pub struct NoParms {
    /// What was to be set.
    pub value: u64,
}

/// `struct device_dma_parameters`.
#[derive(Debug)]
pub(crate) struct Parms {
    max_seg_size: AtomicU32,
    seg_boundary: AtomicU64,
    min_align_mask: AtomicU32,
}

const MAX_SEG_SIZE: u32 = 65536;

impl Default for Parms {
    /// As `pci_device_add` sets them.
    fn default() -> Self {
        let (max_seg_size, seg_boundary) = (AtomicU32::new(MAX_SEG_SIZE), AtomicU64::new(0xffff_ffff));
        Self { max_seg_size, seg_boundary, min_align_mask: AtomicU32::new(0) }
    }
}

impl DmaDevice {
    fn parms(&self, value: u64) -> Result<&Parms, NoParms> {
        self.state.parms.as_ref().ok_or(NoParms { value })
    }

    /// The longest segment of a scatterlist that the device takes (`dma_get_max_seg_size`).
    pub fn max_seg_size(&self) -> u32 {
        self.state.parms.as_ref().map_or(MAX_SEG_SIZE, |parms| parms.max_seg_size.load(Ordering::Relaxed))
    }

    /// Says how long a segment may be (`dma_set_max_seg_size`). Any context.
    ///
    /// # Errors
    /// [`NoParms`].
    pub fn set_max_seg_size(&self, bytes: u32) -> Result<(), NoParms> {
        self.parms(bytes.into())?.max_seg_size.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The mask of the stretch that no segment may leave (`dma_get_seg_boundary`).
    pub fn seg_boundary(&self) -> u64 {
        self.state.parms.as_ref().map_or(u64::MAX, |parms| parms.seg_boundary.load(Ordering::Relaxed))
    }

    /// Says what no segment may cross, as a mask (`dma_set_seg_boundary`). Any context.
    ///
    /// # Errors
    /// [`NoParms`].
    pub fn set_seg_boundary(&self, mask: u64) -> Result<(), NoParms> {
        self.parms(mask)?.seg_boundary.store(mask, Ordering::Relaxed);
        Ok(())
    }

    /// The bits of a buffer's address that a bounce keeps (`dma_get_min_align_mask`).
    pub fn min_align_mask(&self) -> u32 {
        self.state.parms.as_ref().map_or(0, |parms| parms.min_align_mask.load(Ordering::Relaxed))
    }

    /// Says which bits of a buffer's address a bounce must keep (`dma_set_min_align_mask`). Any context.
    ///
    /// # Errors
    /// [`NoParms`].
    pub fn set_min_align_mask(&self, mask: u32) -> Result<(), NoParms> {
        self.parms(mask.into())?.min_align_mask.store(mask, Ordering::Relaxed);
        Ok(())
    }

    /// What the bounce pool has to heed.
    pub(crate) fn constraints(&self) -> Constraints {
        Constraints { min_align_mask: self.min_align_mask().into(), boundary_mask: self.seg_boundary() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Lab;

    #[test]
    fn a_pci_function_has_parameters_and_a_bare_device_has_defaults_only() {
        let lab = Lab::new();
        let device = lab.device(32);
        let all = |device: &DmaDevice| (device.max_seg_size(), device.seg_boundary(), device.min_align_mask());
        assert_eq!(all(&device), (65536, 0xffff_ffff, 0));
        device.set_max_seg_size(4096).unwrap();
        device.set_seg_boundary(0xfff).unwrap();
        device.set_min_align_mask(0x7ff).unwrap();
        assert_eq!(all(&device), (4096, 0xfff, 0x7ff));
        let bare = DmaDevice::bare(lab.machine.kernel_ref(), "bare");
        assert_eq!(all(&bare), (65536, u64::MAX, 0));
        assert_eq!(bare.set_max_seg_size(1), Err(NoParms { value: 1 }));
        assert_eq!(bare.set_seg_boundary(2), Err(NoParms { value: 2 }));
        assert_eq!(bare.set_min_align_mask(3), Err(NoParms { value: 3 }));
        assert_eq!(all(&bare), (65536, u64::MAX, 0));
    }
}
