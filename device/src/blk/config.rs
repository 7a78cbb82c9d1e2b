//! What a block device is told at its birth, and the features and configuration space that follow from it.
//!
//! Neighbours: [`super::blk`] builds the device from it. Mirrors virtio 1.2, 5.2.3 and 5.2.4. Left out: size_max,
//! geometry, topology, write-back, secure erase and zones; their fields read zero.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::store::{SECTOR, Store};
use crate::virtio::{ACCESS_PLATFORM, EVENT_IDX, INDIRECT_DESC, VERSION_1};

/// Bytes of the configuration space: up to and including the zoned fields.
pub const LEN: usize = 96;

/// Sectors that one range of DISCARD or WRITE_ZEROES may have: 16 MiB.
pub const RANGE_SECTORS: u32 = 32768;
/// Ranges that one such request may have.
pub const RANGES: u32 = 64;

/// How a block device is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlkOptions {
    /// What GET_ID answers.
    pub id: [u8; 20],
    /// Queues, 1 to 511; more than one offers MQ.
    pub queues: u16,
    /// The largest size of a queue: a power of two up to 32768.
    pub queue_size: u16,
    /// Data segments a request may have; what is offered leaves room in the queue for header and status. Zero:
    /// not offered.
    pub seg_max: u32,
    /// The preferred block in bytes, a power of two from 512 up. 512 is offered too; zero: not offered.
    pub blk_size: u32,
    /// Refuse writes. A read-only store makes the device so, whatever is said here.
    pub read_only: bool,
    /// Offer EVENT_IDX.
    pub event_idx: bool,
    /// Offer INDIRECT_DESC.
    pub indirect: bool,
    /// Offer ACCESS_PLATFORM: the driver shall use its DMA API.
    pub access_platform: bool,
    /// Offer DISCARD and WRITE_ZEROES; a read-only device never does.
    pub discard: bool,
    /// Requests that a queue works on at once, 1 or more.
    pub depth: usize,
}

/// One queue of 128, everything offered.
impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            id: *b"lowzone-blk\0\0\0\0\0\0\0\0\0",
            queues: 1,
            queue_size: 128,
            seg_max: 126,
            blk_size: 512,
            read_only: false,
            event_idx: true,
            indirect: true,
            access_platform: true,
            discard: true,
            depth: 16,
        }
    }
}

impl BlkOptions {
    /// The segments offered: what was asked for, less what the queue can't hold.
    pub(crate) fn segments(&self) -> u32 {
        self.seg_max.min(u32::from(self.queue_size).saturating_sub(2))
    }

    /// Whether it refuses writes over `store`.
    pub(crate) fn refuses_writes(&self, store: &Store) -> bool {
        self.read_only || store.read_only()
    }

    /// Whether it knows DISCARD and WRITE_ZEROES over `store`.
    pub(crate) fn clears(&self, store: &Store) -> bool {
        self.discard && !self.refuses_writes(store)
    }

    /// The features offered over `store`.
    pub fn features(&self, store: &Store) -> u64 {
        let bit = |on: bool, feature: u32| u64::from(on) << feature;
        let flag = |on: bool, feature: u64| if on { feature } else { 0 };
        VERSION_1
            | flag(self.access_platform, ACCESS_PLATFORM)
            | flag(self.event_idx, EVENT_IDX)
            | flag(self.indirect, INDIRECT_DESC)
            | bit(self.segments() > 0, VIRTIO_BLK_F_SEG_MAX)
            | bit(self.blk_size > 0, VIRTIO_BLK_F_BLK_SIZE)
            | bit(true, VIRTIO_BLK_F_FLUSH)
            | bit(self.refuses_writes(store), VIRTIO_BLK_F_RO)
            | bit(self.queues > 1, VIRTIO_BLK_F_MQ)
            | bit(self.clears(store), VIRTIO_BLK_F_DISCARD)
            | bit(self.clears(store), VIRTIO_BLK_F_WRITE_ZEROES)
    }

    /// The configuration space over `store`.
    pub fn space(&self, store: &Store) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0..8].copy_from_slice(&(store.capacity() / SECTOR).to_le_bytes());
        bytes[12..16].copy_from_slice(&self.segments().to_le_bytes());
        bytes[20..24].copy_from_slice(&self.blk_size.to_le_bytes());
        if self.queues > 1 {
            bytes[34..36].copy_from_slice(&self.queues.to_le_bytes());
        }
        if self.clears(store) {
            let block = self.blk_size.max(512) / 512;
            let words = [RANGE_SECTORS, RANGES, block, RANGE_SECTORS, RANGES];
            for (to, word) in bytes[36..56].chunks_exact_mut(4).zip(words) {
                to.copy_from_slice(&word.to_le_bytes());
            }
            // Zeros of ours may be a hole.
            bytes[56] = 1;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn disk() -> Store {
        Store::Memory(MemoryStore::zeroed(1 << 20).unwrap())
    }

    #[test]
    fn each_option_offers_its_bit_and_no_other() {
        let none = BlkOptions {
            seg_max: 0,
            blk_size: 0,
            event_idx: false,
            indirect: false,
            access_platform: false,
            discard: false,
            ..BlkOptions::default()
        };
        let bare = 1 << 32 | 1 << 9;
        assert_eq!(none.features(&disk()), bare);
        let with = |options: BlkOptions| options.features(&disk()) ^ bare;
        assert_eq!(with(BlkOptions { seg_max: 1, ..none }), 1 << 2);
        assert_eq!(with(BlkOptions { read_only: true, ..none }), 1 << 5);
        assert_eq!(with(BlkOptions { blk_size: 4096, ..none }), 1 << 6);
        assert_eq!(with(BlkOptions { queues: 2, ..none }), 1 << 12);
        assert_eq!(with(BlkOptions { indirect: true, ..none }), 1 << 28);
        assert_eq!(with(BlkOptions { event_idx: true, ..none }), 1 << 29);
        assert_eq!(with(BlkOptions { access_platform: true, ..none }), 1 << 33);
        assert_eq!(with(BlkOptions { discard: true, ..none }), 1 << 13 | 1 << 14);
        assert_eq!(with(BlkOptions { discard: true, read_only: true, ..none }), 1 << 5, "nothing to clear");
    }

    #[test]
    fn configuration_lies_where_linux_reads_it_and_segments_fit_the_queue() {
        let options = BlkOptions { queues: 4, queue_size: 64, seg_max: 126, blk_size: 4096, ..BlkOptions::default() };
        let space = options.space(&disk());
        assert_eq!(space[0..8], 2048u64.to_le_bytes());
        assert_eq!(space[12..16], 62u32.to_le_bytes());
        assert_eq!(space[20..24], 4096u32.to_le_bytes());
        assert_eq!(space[34..36], 4u16.to_le_bytes());
        let words: Vec<_> = space[36..56].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!((words.as_slice(), space[56]), (&[32768, 64, 8, 32768, 64][..], 1));
        let without = BlkOptions { discard: false, ..options }.space(&disk());
        assert!(without[36..].iter().all(|byte| *byte == 0));
        assert_eq!(BlkOptions { queue_size: 1, ..options }.segments(), 0);
    }
}
