//! The `[[device]]` tables: what is plugged in, and how far its DMA reaches.
//!
//! Neighbours: `check` (the limits), `kind`, the runner, which builds a PCI function from each. Left out: devices that
//! lie.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Options, Size};

/// One PCI device. Of a kind that stores data exactly one of `size`, `image` and `size_of` says where; a kind of the
/// user's own reads of the other keys what it likes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a [[device]] table")]
pub struct Device {
    /// What steps call it, such as "vda": letters, digits, `-` and `_`. No two devices share one.
    pub name: String,
    /// What it is: "virtio-blk", a virtio 1.x block device on virtio-pci; "edu", QEMU's educational device, which
    /// decodes 28 address bits there (`width`) and drops the others (`beyond`); "virtio-net", a virtio 1.x network
    /// device that sends back what it is sent, or with options.source = N makes N packets itself (seed, interval_ns); or a kind that the program brings.
    pub kind: String,
    /// What a kind of the user's own wants to know. Default {}.
    #[serde(default, skip_serializing_if = "Options::is_empty")]
    pub options: Options,
    /// Capacity of a store in memory, a multiple of 512; it starts as zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// A raw image file, opened relative to the current directory. Empty where the user must name one:
    /// `--set image=FILE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// A store in memory, as large as that of the device of this name, which comes earlier in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_of: Option<String>,
    /// The store takes no writes, and the device says so (VIRTIO_BLK_F_RO). Default false.
    #[serde(default)]
    pub read_only: bool,
    /// Address bits the device really decodes, 1 to 64. Default 32.
    #[serde(default = "default_width")]
    #[schemars(range(min = 1, max = 64))]
    pub width: u8,
    /// What happens to an access beyond `width`. Default "refuse".
    #[serde(default)]
    pub beyond: Beyond,
    /// Request queues, 1 to 64; more than one offers VIRTIO_BLK_F_MQ. Default 1.
    #[serde(default = "default_queues")]
    #[schemars(range(min = 1, max = 64))]
    pub queues: u16,
    /// The largest size of each queue, a power of two up to 32768. Default 128.
    #[serde(default = "default_queue_size")]
    #[schemars(range(min = 1, max = 32768))]
    pub queue_size: u16,
    /// Offers VIRTIO_F_EVENT_IDX. Default true.
    #[serde(default = "yes")]
    pub event_idx: bool,
    /// Offers VIRTIO_F_INDIRECT_DESC. Default true.
    #[serde(default = "yes")]
    pub indirect: bool,
    /// Segments of one request (VIRTIO_BLK_F_SEG_MAX), 1 to 32766. Default 126.
    #[serde(default = "default_seg_max")]
    #[schemars(range(min = 1, max = 32766))]
    pub seg_max: u32,
    /// Offers VIRTIO_F_ACCESS_PLATFORM, without which a driver hands it physical addresses. Default true.
    #[serde(default = "yes")]
    pub access_platform: bool,
    /// Offers VIRTIO_BLK_F_DISCARD and VIRTIO_BLK_F_WRITE_ZEROES. Default false: a driver that finds them reads more
    /// registers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discard: bool,
    /// Logical block size it advertises, a power of two from 512 to 4096. Default 512.
    #[serde(default = "default_blk_size")]
    #[schemars(range(min = 512, max = 4096))]
    pub blk_size: u32,
}

/// What a device does with an address beyond its width.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Beyond {
    /// The access fails and is a finding: the lab's default.
    #[default]
    Refuse,
    /// The address loses its upper bits and the wrong memory is hit: what hardware does.
    Wrap,
}

/// What a [`Device`] stores its data in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreSpec<'a> {
    /// Memory of this many bytes.
    Memory(u64),
    /// A raw image file.
    Image(&'a str),
    /// Memory as large as the store of the device of this name.
    SizeOf(&'a str),
}

impl Device {
    /// What it stores its data in; `None` unless exactly one of the three keys is there, which `load` has checked.
    pub fn store(&self) -> Option<StoreSpec<'_>> {
        match (self.size, self.image.as_deref(), self.size_of.as_deref()) {
            (Some(size), None, None) => Some(StoreSpec::Memory(size.0)),
            (None, Some(path), None) => Some(StoreSpec::Image(path)),
            (None, None, Some(name)) => Some(StoreSpec::SizeOf(name)),
            _ => None,
        }
    }
}

const fn yes() -> bool {
    true
}

const fn default_width() -> u8 {
    32
}

const fn default_queues() -> u16 {
    1
}

const fn default_queue_size() -> u16 {
    128
}

const fn default_seg_max() -> u32 {
    126
}

const fn default_blk_size() -> u32 {
    512
}
