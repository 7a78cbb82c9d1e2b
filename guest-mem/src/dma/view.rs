//! What lies between devices and RAM at a moment, as copies for people: live mappings, an IOMMU's domain, the pool.
//!
//! Neighbours: the ledger, [`super::iommu`] and [`super::swiotlb`], which keep it. Left out: what was and is no more,
//! which records tell.

use crate::dma::device::DmaDevice;
use crate::dma::iommu::{DomainStats, IommuMode, Run};
use crate::dma::mapping::Mapping;
use crate::dma::swiotlb::Pool;
use crate::kernel::Kernel;

/// The domain of a device behind an IOMMU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainView {
    /// When it forgets.
    pub mode: IommuMode,
    /// How much it holds.
    pub stats: DomainStats,
    /// What the device sees, by address.
    pub runs: Vec<Run>,
}

impl DmaDevice {
    /// Its live mappings by device address, coherent memory among them. Any context.
    pub fn live_mappings(&self) -> Vec<Mapping> {
        self.state.ledger.lock().live().copied().collect()
    }

    /// Its domain as time has left it by now; `None` without an IOMMU. Any context.
    pub fn domain_view(&self) -> Option<DomainView> {
        let mut domain = self.domain()?.lock();
        domain.tick(self.kernel().clock());
        Some(DomainView { mode: domain.mode(), stats: domain.stats(), runs: domain.runs() })
    }
}

impl Kernel {
    /// The bounce pool as it is now; `None` on a machine without one. Any context.
    pub fn swiotlb_view(&self) -> Option<Pool> {
        self.swiotlb.lock().clone()
    }
}
