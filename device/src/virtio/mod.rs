//! The virtio half of the crate: transport, registers, queues, rings.
//!
//! [`pci`] is the function a driver probes, [`common`] its common configuration, [`queue`] what control half and
//! worker share for each queue, [`ring`] the worker's side of a split ring, [`device`] what a device type fills in.
//! Mirrors virtio 1.2. Left out: packed rings, legacy and transitional devices, shared memory regions.

pub mod common;
pub mod device;
mod layout;
pub mod pci;
pub mod queue;
pub mod ring;

pub use device::{QueueHost, VirtioDevice};
pub use pci::VirtioPci;
pub use queue::{QueueConfig, QueueShared};
pub use ring::{Chain, Ring, RingError, Segment};

use virtio_bindings::{virtio_config, virtio_ring};

/// The device uses the ring layout and rules of virtio 1.
pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
/// Addresses go through the platform: the driver must use its DMA API.
pub const ACCESS_PLATFORM: u64 = 1 << virtio_config::VIRTIO_F_ACCESS_PLATFORM;
/// Each side says at which index it wants to be told.
pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
/// A descriptor may point at a table of descriptors.
pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
