//! What a network device is told at its birth, and the features and configuration space that follow from it.
//!
//! Neighbours: [`super::net`] builds the device from it. Mirrors virtio 1.2, 5.1.3 and 5.1.4. Left out: status, MTU,
//! several queue pairs, receive hashing; their fields read zero.

use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;

use crate::virtio::{ACCESS_PLATFORM, EVENT_IDX, INDIRECT_DESC, VERSION_1};

/// Bytes of the configuration space: address, status, queue pairs, MTU.
pub const LEN: usize = 12;

/// Packets that the device makes itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// What their sizes and bytes follow from.
    pub seed: u64,
    /// How many, each time the driver becomes ready.
    pub packets: u64,
    /// Nanoseconds from one to the next.
    pub interval: u64,
}

/// How a network device is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetOptions {
    /// Its address.
    pub mac: [u8; 6],
    /// The largest size of a queue: a power of two up to 32768.
    pub queue_size: u16,
    /// Offer EVENT_IDX.
    pub event_idx: bool,
    /// Offer INDIRECT_DESC.
    pub indirect: bool,
    /// Offer ACCESS_PLATFORM: the driver shall use its DMA API.
    pub access_platform: bool,
    /// Where packets come from; without it what the driver sends comes back.
    pub source: Option<Source>,
}

/// Queues of 128, everything offered, loop-back.
impl Default for NetOptions {
    fn default() -> Self {
        Self {
            mac: [0x52, 0x54, 0, 0x4c, 0x5a, 1],
            queue_size: 128,
            event_idx: true,
            indirect: true,
            access_platform: true,
            source: None,
        }
    }
}

impl NetOptions {
    /// The features offered.
    pub fn features(&self) -> u64 {
        let flag = |on: bool, feature: u64| if on { feature } else { 0 };
        VERSION_1
            | 1 << VIRTIO_NET_F_MAC
            | flag(self.access_platform, ACCESS_PLATFORM)
            | flag(self.event_idx, EVENT_IDX)
            | flag(self.indirect, INDIRECT_DESC)
    }

    /// The configuration space.
    pub fn space(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..6].copy_from_slice(&self.mac);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_offers_its_bit_and_the_address_comes_first() {
        let none = NetOptions { event_idx: false, indirect: false, access_platform: false, ..NetOptions::default() };
        let bare = 1 << 32 | 1 << 5;
        assert_eq!(none.features(), bare);
        assert_eq!(NetOptions { indirect: true, ..none }.features() ^ bare, 1 << 28);
        assert_eq!(NetOptions { event_idx: true, ..none }.features() ^ bare, 1 << 29);
        assert_eq!(NetOptions { access_platform: true, ..none }.features() ^ bare, 1 << 33);
        assert_eq!((&none.space()[..6], &none.space()[6..]), (&none.mac[..], &[0; 6][..]));
    }
}
