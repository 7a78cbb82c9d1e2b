//! The `[[step]]` tables: what is done, in order; each holds one verb.
//!
//! A step is an externally tagged enum (`[[step]]` then `io = { … }`), because internally tagged ones lose the places
//! of their errors. Neighbours: `check` (which devices exist, what fits on them), the runner, which does them.
//! Left out: loops and conditions; a scenario is a list.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Size;

/// Bytes of one request where an `io` step doesn't say.
pub const DEFAULT_BYTES: u64 = 4096;

/// One step: a table with one key, its verb.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Binds the driver to every device.
    Probe(ProbeStep),
    /// Reads and writes one device and compares all that is read.
    Io(IoStep),
    /// Has the driver do its own piece of work with one device, again and again, and checks each result.
    Exercise(ExerciseStep),
    /// Moves bytes between memory and the buffer that a device has of its own, and compares what comes back.
    Dma(DmaStep),
    /// Sends packets through a network device, or receives those it makes, and checks each to the byte.
    Packets(PacketsStep),
    /// One packet sent by raw DMA calls, which can commit crimes a driver's types would not allow.
    RawPacket(RawPacketStep),
    /// Copies one device to another, reads the copy back and compares SHA-256.
    Copy(CopyStep),
    /// Writes blocks, clears every second one without moving its data, and reads all back.
    Clear(ClearStep),
    /// One read request by raw DMA calls, which can commit crimes a driver's types would not allow.
    RawRead(RawReadStep),
    /// One read request whose interrupt handler allocates memory.
    IrqAlloc(IrqAllocStep),
    /// Marks the low memory that a device's too-high addresses wrap to, so that a hit can be proved.
    Canary(CanaryStep),
    /// Takes low memory, as others on the machine would, and keeps it to the end.
    Hold(HoldStep),
    /// Tells a story of the allocators on the machine's CPUs and holds each fact against what must be seen.
    Story(StoryStep),
    /// Submits requests to every disk, and packets to every network device, that nobody waits for.
    InFlight(InFlightStep),
    /// Stops every device's DMA, as before a reboot; memory stays.
    Shutdown(ShutdownStep),
    /// Unbinds the driver from every device; then nothing may be left.
    Remove(RemoveStep),
    /// Ends all faults and puts pulled-out devices back: what fails from here on is the driver's fault.
    Recover(RecoverStep),
}

impl Step {
    /// The verb, as files write it.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Probe(_) => "probe",
            Self::Io(_) => "io",
            Self::Exercise(_) => "exercise",
            Self::Dma(_) => "dma",
            Self::Packets(_) => "packets",
            Self::RawPacket(_) => "raw_packet",
            Self::Copy(_) => "copy",
            Self::Clear(_) => "clear",
            Self::RawRead(_) => "raw_read",
            Self::IrqAlloc(_) => "irq_alloc",
            Self::Canary(_) => "canary",
            Self::Hold(_) => "hold",
            Self::Story(_) => "story",
            Self::InFlight(_) => "in_flight",
            Self::Shutdown(_) => "shutdown",
            Self::Remove(_) => "remove",
            Self::Recover(_) => "recover",
        }
    }
}

/// Binds the driver to every device.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct ProbeStep {}

/// Submits requests that nobody waits for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct InFlightStep {}

/// Stops every device's DMA.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct ShutdownStep {
    /// Meanwhile another CPU uses the devices. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub under_io: bool,
}

/// Unbinds the driver from every device.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct RemoveStep {
    /// Meanwhile another CPU uses the devices. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub under_io: bool,
}

/// Ends all faults.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct RecoverStep {}

/// Reads and writes one device and compares all that is read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct IoStep {
    /// The device.
    pub device: String,
    /// What the result calls this step. Default: its verb and number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Requests in all, 1 to 1000000000; even for "write-read". Default 32.
    #[serde(default = "default_requests")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub requests: u64,
    /// Bytes of each request of "write-read", a multiple of 512. Default "4K".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Size>,
    /// The shortest request of "random", a multiple of 512. Default 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_bytes: Option<Size>,
    /// The longest request of "random", a multiple of 512. Default "64K".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Size>,
    /// The most requests in flight, 1 to 65536; a full queue holds the rest back. Default 32.
    #[serde(default = "default_depth")]
    #[schemars(range(min = 1, max = 65536))]
    pub depth: u32,
    /// CPUs that make requests, 1 to 64 but no more than the machine has; those beyond the queues share them. Default: as
    /// many as there are queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub submitters: Option<u32>,
    /// Where the buffers come from. Default "high".
    #[serde(default)]
    pub memory: Memory,
    /// The flags its buffers are allocated with; "low" and "coherent" choose their zone themselves. Default
    /// "GFP_KERNEL".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gfp: Option<AllocGfp>,
    /// Which requests are made. Default "write-read".
    #[serde(default)]
    pub pattern: Pattern,
    /// Seed of "random". Default: the seed of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Offset on the device of the first byte used, a multiple of 512. Default 0.
    #[serde(default)]
    pub start: Size,
}

impl IoStep {
    /// The shortest and the longest request, in bytes.
    pub fn lengths(&self) -> RangeInclusive<u64> {
        let bytes = |size: Option<Size>, default: u64| size.map_or(default, Size::bytes);
        match self.pattern {
            Pattern::WriteRead => bytes(self.bytes, DEFAULT_BYTES)..=bytes(self.bytes, DEFAULT_BYTES),
            Pattern::Random => bytes(self.min_bytes, 512)..=bytes(self.max_bytes, 64 << 10),
        }
    }
}

/// Where the buffers of a step come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// From wherever there is memory, the highest zone first, as most of a kernel's pages are (`GFP_KERNEL`).
    #[default]
    High,
    /// Low on purpose (`GFP_DMA32`, `dma_alloc_pages`): reached without a bounce.
    Low,
    /// One coherent buffer for each request in flight (`dma_alloc_coherent`): mapped once, never synced.
    Coherent,
    /// Pages from zone DMA (`GFP_DMA`): below 16 MiB, whatever the mask.
    #[serde(rename = "gfp-dma")]
    GfpDma,
    /// Pages from zone DMA32 (`GFP_DMA32`): below 4 GiB, whatever the mask.
    #[serde(rename = "gfp-dma32")]
    GfpDma32,
}

/// Which requests an [`IoStep`] step makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Half of the requests write, one block after the other; the other half read the same blocks back.
    #[default]
    WriteRead,
    /// Reads and writes of random lengths at random places, compared with a plain disk in memory.
    Random,
}

/// Has the driver do its own piece of work with one device, again and again, and checks each result.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct ExerciseStep {
    /// The device.
    pub device: String,
    /// What the result calls this step. Default: its verb and number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// How often, 1 to 1000000000. Default 4.
    #[serde(default = "default_times")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub times: u64,
}

/// Moves bytes between memory and the buffer that a device has of its own, and compares what comes back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct DmaStep {
    /// The device.
    pub device: String,
    /// What the result calls this step. Default: its verb and number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Where the memory comes from. Default "coherent".
    #[serde(default = "coherent")]
    pub memory: Memory,
    /// Which way the bytes go. Default "both".
    #[serde(default)]
    pub dir: DmaDirection,
    /// How many, 1 to 4095. Default 1024.
    #[serde(default = "default_dma_bytes")]
    pub bytes: Size,
    /// Address bits that the driver promises before it begins (`dma_set_mask_and_coherent`), 1 to 64; they stay.
    /// Default: what it has promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub mask: Option<u8>,
}

/// Sends packets through a network device, or receives those it makes: what comes is compared to the byte, and what does
/// not come is accounted for by its cause.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct PacketsStep {
    /// The device.
    pub device: String,
    /// What the result calls this step. Default: its verb and number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// How many, 1 to 1000000000; of a device with a source no more than it makes. Default 256.
    #[serde(default = "default_packets")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub count: u64,
    /// Who sends them. Default "driver".
    #[serde(default)]
    pub from: PacketsFrom,
    /// Packets that are sent before the device is told, and received before the next are sent, 1 to 1024. Default 16.
    #[serde(default = "default_burst")]
    #[schemars(range(min = 1, max = 1024))]
    pub burst: u32,
    /// Pieces of memory that each packet sent is made of, 1 to 3. Default 2.
    #[serde(default = "default_pieces")]
    #[schemars(range(min = 1, max = 3))]
    pub pieces: u32,
    /// Packets of one, two and three pieces by turns, whatever `pieces` says. Where there are several, the first is the
    /// Ethernet header, in memory that the device reaches; the rest is wherever kmalloc finds it. Default false.
    #[serde(default)]
    pub mixed: bool,
    /// The flags that packets sent are allocated with. Default "GFP_ATOMIC".
    #[serde(default)]
    pub gfp: AllocGfp,
    /// Packets may be lost, as in a network that is short of memory: they are counted by cause. Else each is a failed
    /// request. Default false.
    #[serde(default)]
    pub lossy: bool,
    /// Another CPU looks at the driver's counters meanwhile, as `ethtool -S` does. Default false.
    #[serde(default)]
    pub watched: bool,
}

/// Who sends the packets of a [`PacketsStep`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PacketsFrom {
    /// The driver; the device sends them back.
    #[default]
    Driver,
    /// The device's source.
    Source,
}

/// One packet whose buffer is mapped and unmapped by hand.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct RawPacketStep {
    /// The device.
    pub device: String,
    /// The direction the buffer is mapped with; what is sent needs "to-device". Default "to-device".
    #[serde(default = "to_device")]
    pub direction: MapDirection,
    /// When the buffer is unmapped. Default "after-completion".
    #[serde(default)]
    pub unmap: Unmap,
}

/// Which way the bytes of a [`DmaStep`] go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DmaDirection {
    /// To the device, then back into the same memory.
    #[default]
    Both,
    /// From memory to the device.
    ToDevice,
    /// From the device to memory; compared with what an earlier step has sent there.
    FromDevice,
}

/// Takes every free page of zone DMA32 below an address and keeps it to the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct HoldStep {
    /// The address, a multiple of 4096, at most "4G".
    pub below: Size,
}

/// Tells a story of the allocators.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct StoryStep {
    /// Which.
    pub name: String,
    /// The mistake to make on the way. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mistake: Option<String>,
}

/// Copies one device to another, reads the copy back and compares SHA-256.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct CopyStep {
    /// The device that is read.
    pub from: String,
    /// The device that is written, then read back; at least as large.
    pub to: String,
    /// Bytes of each request, a multiple of 512; the last may be shorter. Default "64K".
    #[serde(default = "default_copy_bytes")]
    pub bytes_per_request: Size,
    /// The most requests in flight, 1 to 65536. Default 16.
    #[serde(default = "default_copy_depth")]
    #[schemars(range(min = 1, max = 65536))]
    pub depth: u32,
}

/// Writes blocks, clears every second one, and reads all back: the others must be as they were.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct ClearStep {
    /// The device.
    pub device: String,
    /// What the result calls this step. Default: its verb and number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// How blocks are cleared. Default "write-zeroes".
    #[serde(default)]
    pub how: Clearing,
    /// Blocks in all, 2 to 65536; one request clears one. Default 64.
    #[serde(default = "default_blocks")]
    #[schemars(range(min = 2, max = 65536))]
    pub blocks: u64,
    /// Bytes of each, a multiple of 512. Default "64K".
    #[serde(default = "default_copy_bytes")]
    pub bytes: Size,
    /// Offset on the device of the first, a multiple of 512. Default 0.
    #[serde(default)]
    pub start: Size,
}

/// How a [`ClearStep`] clears blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Clearing {
    /// VIRTIO_BLK_T_WRITE_ZEROES: the device is told which sectors; they read as zeros.
    #[default]
    WriteZeroes,
    /// VIRTIO_BLK_T_DISCARD: the device is told which sectors; what they read as nobody promises.
    Discard,
    /// Zeros are written as data, for comparison.
    Write,
}

impl Clearing {
    /// Its name in files and results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WriteZeroes => "write-zeroes",
            Self::Discard => "discard",
            Self::Write => "write",
        }
    }
}

/// One 4096-byte read request by raw DMA calls; it fails or succeeds as one request, its data is not compared.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct RawReadStep {
    /// The device.
    pub device: String,
    /// The direction the buffer is mapped with; a read needs "from-device". Default "from-device".
    #[serde(default)]
    pub direction: MapDirection,
    /// When the buffer is unmapped. Default "after-completion".
    #[serde(default)]
    pub unmap: Unmap,
    /// Where the buffer comes from: "high" or "low", as it is mapped. Default "high".
    #[serde(default)]
    pub memory: Memory,
}

/// The direction a buffer is mapped with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MapDirection {
    /// `DMA_FROM_DEVICE`: the device writes.
    #[default]
    FromDevice,
    /// `DMA_TO_DEVICE`: the device reads.
    ToDevice,
}

/// When a [`RawReadStep`] unmaps its buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unmap {
    /// When the device is done with it.
    #[default]
    AfterCompletion,
    /// Before the device has even been told.
    BeforeDoorbell,
    /// Not at all; the mapping keeps its buffer.
    Never,
}

/// One read request whose interrupt handler allocates memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct IrqAllocStep {
    /// The device.
    pub device: String,
    /// The flags it allocates with. Default "GFP_ATOMIC".
    #[serde(default)]
    pub gfp: AllocGfp,
}

/// Flags of an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum AllocGfp {
    /// Never sleeps.
    #[default]
    #[serde(rename = "GFP_ATOMIC")]
    Atomic,
    /// May sleep, which an interrupt handler must not.
    #[serde(rename = "GFP_KERNEL")]
    Kernel,
}

/// Marks the low memory that a device's too-high addresses wrap to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of options")]
pub struct CanaryStep {
    /// The device whose width decides where the addresses wrap to.
    pub device: String,
}

const fn default_requests() -> u64 {
    32
}

const fn default_times() -> u64 {
    4
}

const fn default_packets() -> u64 {
    256
}

const fn default_burst() -> u32 {
    16
}

const fn default_pieces() -> u32 {
    2
}

const fn to_device() -> MapDirection {
    MapDirection::ToDevice
}

const fn coherent() -> Memory {
    Memory::Coherent
}

const fn default_dma_bytes() -> Size {
    Size(1024)
}

const fn default_depth() -> u32 {
    32
}

const fn default_blocks() -> u64 {
    64
}

const fn default_copy_bytes() -> Size {
    Size(64 << 10)
}

const fn default_copy_depth() -> u32 {
    16
}
