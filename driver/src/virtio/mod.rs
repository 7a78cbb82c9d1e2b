//! Virtio from the driver's side: transport, split ring, features.
//!
//! [`transport::Transport`] is how a virtio driver reaches its device; `pci` implements it over PCI, and a wire may
//! implement it over something else: a [`VirtioDevice`]. `ring` is the
//! driver's half of a split virtqueue, which trusts nothing that the device writes. Virtio 1.2.
//! Neighbours: `blk`. Left out: packed rings, legacy devices.

pub mod pci;
pub mod ring;
pub mod transport;

use std::sync::Arc;

use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::wait::WaitError;
use thiserror::Error;

use crate::pci::PciError;
use crate::virtio::transport::Transport;

/// `VIRTIO_F_INDIRECT_DESC`.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub const F_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_ACCESS_PLATFORM`: the device is behind the platform's DMA rules.
pub const F_ACCESS_PLATFORM: u64 = 1 << 33;

/// A virtio device that no PCI bus found: what a board's description says of a platform device.
#[derive(Clone)]
pub struct VirtioDevice {
    /// How it is reached.
    pub transport: Arc<dyn Transport>,
    /// The device as the DMA API sees it.
    pub dma: DmaDevice,
    /// The interrupt number of each vector: first that of config changes, then one a queue.
    pub irqs: Arc<[u32]>,
}

/// What went wrong with a virtio device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum VirtioError {
    /// A capability that the transport can't do without.
    #[error("virtio capability {kind} is missing or out of its BAR")]
    NoCapability {
        /// Its type (1 common, 2 notify, 3 ISR, 4 device).
        kind: u8,
    },
    /// The device doesn't speak virtio 1.
    #[error("device uses modern interface but does not have VIRTIO_F_VERSION_1 (features {features:#x})")]
    NotModern {
        /// What it offered.
        features: u64,
    },
    /// The device took back FEATURES_OK.
    #[error("device refuses features: {features:#x}")]
    FeaturesRefused {
        /// What was asked for.
        features: u64,
    },
    /// The device didn't acknowledge its reset.
    #[error("no reset after {waited} ns (status {status:#x})")]
    NoReset {
        /// The status it still shows.
        status: u8,
        /// How long it was waited for.
        waited: u64,
    },
    /// Registers read as all-ones: the device is gone.
    #[error("the device is gone (status 0xff)")]
    Gone,
    /// A queue that doesn't exist or is in use.
    #[error("queue {index} is not available (size {size})")]
    NoQueue {
        /// The queue.
        index: u16,
        /// The size it shows.
        size: u16,
    },
    /// A vector that the device didn't take.
    #[error("queue {index} did not take vector {vector}")]
    NoVector {
        /// The queue.
        index: u16,
        /// The vector.
        vector: u16,
    },
    /// The device's config space makes no sense.
    #[error("{field} is {value} in the device's config")]
    BadConfig {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Memory for a ring.
    #[error("no memory for a ring of {len} bytes")]
    NoRingMemory {
        /// How many bytes.
        len: usize,
    },
    /// The wait was torn down.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// Config space.
    #[error(transparent)]
    Pci(#[from] PciError),
}

impl VirtioError {
    /// Linux's errno for it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NoCapability { .. } | Self::FeaturesRefused { .. } | Self::Gone => -19,
            Self::NotModern { .. } | Self::BadConfig { .. } => -22,
            Self::NoReset { .. } | Self::NoVector { .. } => -16,
            Self::NoQueue { .. } => -2,
            Self::NoRingMemory { .. } => -12,
            Self::Wait(_) => -110,
            Self::Pci(error) => error.errno(),
        }
    }
}
