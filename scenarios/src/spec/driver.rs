//! The `[driver]` table: what the driver promises, asks for and accepts.
//!
//! Neighbours: `check` (the limits), the runner, which hands it to the driver under test. Left out: limits that need
//! the machine, such as the smallest mask Linux takes; `dma_set_mask` refuses those at run time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Options;
use super::kind::VIRTIO_BLK;

/// The driver and its options, the same for every device it binds to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "a [driver] table")]
pub struct Driver {
    /// Which driver: "virtio-blk", "virtio-net", "edu", or a kind that the program brings. Default "virtio-blk".
    pub kind: String,
    /// What a driver of the user's own wants to know. Default {}.
    #[serde(skip_serializing_if = "Options::is_empty")]
    pub options: Options,
    /// Address bits the driver promises with `dma_set_mask`, 1 to 64. Default 32.
    #[schemars(range(min = 1, max = 64))]
    pub dma_mask: u8,
    /// Address bits for coherent memory (`dma_set_coherent_mask`), 1 to 64. Default: `dma_mask`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub coherent_mask: Option<u8>,
    /// Calls `pci_set_master`, without which the device may neither access memory nor send MSI. Default true.
    pub bus_master: bool,
    /// Queues to use, up to 64; 0 for as many as the device has. Default 0.
    #[schemars(range(max = 64))]
    pub queues: u16,
    /// Size of each queue, a power of two up to 32768; 0 for the device's. Default 0.
    #[schemars(range(max = 32768))]
    pub queue_size: u16,
    /// Uses MSI-X, or MSI where that is all the device has; else INTx. Default true.
    pub msix: bool,
    /// Looks at the rings itself while it waits, with no queue interrupting (Linux's `poll_queues`). Default false.
    pub polled: bool,
    /// Accepts VIRTIO_F_INDIRECT_DESC. Default true.
    pub indirect: bool,
    /// Accepts VIRTIO_F_EVENT_IDX. Default true.
    pub event_idx: bool,
    /// Longest wait for one request, in milliseconds of the world's clock, 1 to 3600000. Default 30000, as Linux's
    /// block layer.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub deadline_ms: u32,
}

impl Default for Driver {
    fn default() -> Self {
        Self {
            kind: VIRTIO_BLK.to_owned(),
            options: Options::default(),
            dma_mask: 32,
            coherent_mask: None,
            bus_master: true,
            queues: 0,
            queue_size: 0,
            msix: true,
            polled: false,
            indirect: true,
            event_idx: true,
            deadline_ms: 30_000,
        }
    }
}

impl Driver {
    /// Address bits for coherent memory: what the file says, else the streaming mask.
    pub fn coherent_bits(&self) -> u8 {
        self.coherent_mask.unwrap_or(self.dma_mask)
    }
}
