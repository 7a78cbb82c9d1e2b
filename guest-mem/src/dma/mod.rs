//! DMA: what a driver promises, where its memory lies, and what the device may touch.
//!
//! `device` has the masks, `parms` what a device says of segments, `attrs` what a driver says of one mapping; `coherent`,
//! `noncoherent`, `streaming` and `sg` are the ways to share memory, `pool` cuts coherent pages into blocks; `swiotlb`
//! bounces what the mask can't reach; `ledger` books every mapping; `port` is the device's only way in. `misuse` commits,
//! on purpose, what the types forbid, and `ownership` sees what CPUs do then. `iommu` and `cache` are what other machines
//! put between device and RAM; `view` shows people what is live,
//! and `posted` whose descriptor an address was in. Mirrors kernel/dma/.

#[macro_use]
mod plant;

pub(crate) mod atomic;
pub mod attrs;
pub mod cache;
pub mod coherent;
pub mod debugfs;
pub mod device;
pub mod direction;
pub mod iommu;
pub mod ledger;
pub mod mapping;
pub mod misuse;
pub mod noncoherent;
pub mod ownership;
pub mod parms;
pub mod pool;
pub mod port;
pub mod posted;
#[cfg(test)]
mod property;
pub mod sg;
pub mod streaming;
pub mod swiotlb;
mod view;

pub use attrs::Attrs;
pub use coherent::{Coherent, CoherentError};
pub use device::{DmaCounters, DmaDevice, MaskError, dma_bit_mask};
pub use direction::{Bidirectional, DeviceReads, DeviceWrites, Dir, Direction, FromDevice, ToDevice};
pub use pool::{DmaPool, DmaPoolError, dma_pool_create};
pub use port::DmaPort;
pub use sg::{MappedSg, Scattered, SgEntry, SgTable};
pub use streaming::{MapError, MapFailure, Mapped, RawMapping, Resource, Window};
pub use view::DomainView;
