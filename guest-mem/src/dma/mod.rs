//! DMA: what a driver promises, where its memory lies, and what the device may touch.
//!
//! `device` has the masks; `coherent` and `streaming` are the two ways to share memory; `swiotlb` bounces what the
//! mask can't reach; `ledger` books every mapping; `port` is the device's only way in. `misuse` commits, on purpose,
//! what the types forbid. `iommu` and `cache` are what other machines put between device and RAM. Mirrors kernel/dma/.
//! Left out until asked for: scatter-gather, pools.

pub mod cache;
pub mod coherent;
pub mod device;
pub mod direction;
pub mod iommu;
pub mod ledger;
pub mod mapping;
pub mod misuse;
pub mod port;
pub mod streaming;
pub mod swiotlb;

pub use coherent::{Coherent, CoherentError};
pub use device::{DmaCounters, DmaDevice, MaskError, dma_bit_mask};
pub use direction::{Bidirectional, DeviceReads, DeviceWrites, Dir, Direction, FromDevice, ToDevice};
pub use port::DmaPort;
pub use streaming::{MapError, MapFailure, Mapped, RawMapping, Window};
