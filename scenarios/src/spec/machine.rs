//! The `[machine]` table: RAM, CPUs, and what lies between them and devices.
//!
//! Neighbours: `check` (the limits), the runner, which builds a kernel from it; `on`, the machines that have a
//! name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use lowzone_guest_mem::dma::iommu::IommuMode;
use lowzone_guest_mem::kernel::MachineConfig;

use super::{Sanitizer, Size};

/// RAM below 4 GiB when a file doesn't say: the split of a PC whose PCI window starts at 3 GiB.
pub const DEFAULT_LOW: u64 = 3 << 30;

/// The kernel's architecture.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub enum Arch {
    /// 64 bits: all RAM has a kernel address.
    #[default]
    #[serde(rename = "x86-64")]
    X86_64,
    /// 32 bits with high memory: RAM above 896 MiB has no kernel address.
    #[serde(rename = "x86-32")]
    X86_32,
}

impl Arch {
    /// As the file says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86-64",
            Self::X86_32 => "x86-32",
        }
    }

    /// The kernel's own.
    pub fn kernel(self) -> lowzone_guest_mem::arch::Arch {
        match self {
            Self::X86_64 => lowzone_guest_mem::arch::Arch::X86_64,
            Self::X86_32 => lowzone_guest_mem::arch::Arch::X86_32,
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// An IOMMU, by when it forgets what was unmapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Iommu {
    /// At once.
    Strict,
    /// 10 ms or 256 unmaps later; until then the device may reach it.
    Lazy,
}

impl Iommu {
    /// The kernel's own.
    pub fn kernel(self) -> IommuMode {
        match self {
            Self::Strict => IommuMode::Strict,
            Self::Lazy => IommuMode::Lazy,
        }
    }
}

/// The machine: its memory and its CPUs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "a [machine] table")]
pub struct Machine {
    /// RAM in all, a multiple of 4096, at most 1T. Default "6G".
    pub ram: Size,
    /// How much of it lies below 4 GiB; the rest starts at 4 GiB. At most "3584M", where the PCI window begins.
    /// Default: "3G", or all of RAM if that is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<Size>,
    /// The kernel's architecture: "x86-64", the default, or "x86-32", where RAM above 896 MiB is high memory and PAE
    /// reaches 64 GiB.
    #[serde(skip_serializing_if = "Arch::is_default")]
    pub arch: Arch,
    /// Simulated CPUs, 1 to 64. Default 2.
    #[schemars(range(min = 1, max = 64))]
    pub cpus: u32,
    /// The swiotlb bounce pool, taken from memory below 4 GiB; 0 for none. Default "64M", as Linux's.
    pub swiotlb: Size,
    /// Whether every streaming mapping bounces, as with Linux's swiotlb=force: none may then be longer than 256 KiB.
    /// Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub swiotlb_force: bool,
    /// What the bridge adds to a physical address to make the bus address, a multiple of 4096, at most 1T. Default 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub dma_offset: Size,
    /// The IOMMU that gives each device an address space of its own, in the place of the bounce pool: "strict" or
    /// "lazy". Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu: Option<Iommu>,
    /// Whether devices see what CPUs have in their caches. Default true; without, a forgotten sync shows stale bytes.
    #[serde(skip_serializing_if = "is_true")]
    pub coherent: bool,
    /// Whether each CPU keeps lists of pages, as Linux's do: a freed page is the next one handed out, and
    /// `/proc/buddyinfo` lags. Default false.
    pub pcp: bool,
    /// What watches over kernel memory: "poison", "red-zone", "track", "quarantine", "portable-kmalloc". Default none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sanitize: Vec<Sanitizer>,
    /// Whether register writes are posted: they reach the device when a read of it, an interrupt or time pushes them,
    /// and a driver that doesn't read back is seen. Default false: they arrive at once.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub posted_writes: bool,
    /// Whether memory is weakly ordered between CPUs and devices: stores wait in store buffers, loads may give what was
    /// there before, register writes arrive later, and only barriers tell. In lockstep alone; on the command line
    /// --weak. Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub weak: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            ram: Size(6 << 30),
            low: None,
            arch: Arch::X86_64,
            cpus: 2,
            swiotlb: Size(64 << 20),
            swiotlb_force: false,
            dma_offset: Size(0),
            iommu: None,
            coherent: true,
            pcp: false,
            sanitize: Vec::new(),
            posted_writes: false,
            weak: false,
        }
    }
}

fn is_zero(size: &Size) -> bool {
    size.0 == 0
}

fn is_true(yes: &bool) -> bool {
    *yes
}

impl Machine {
    /// What the kernel is made of.
    pub(crate) fn config(&self) -> MachineConfig {
        MachineConfig {
            ram: self.ram.bytes(),
            low: self.low_bytes(),
            arch: self.arch.kernel(),
            cpus: self.cpus,
            swiotlb: self.swiotlb.bytes(),
            dma_offset: self.dma_offset.bytes(),
            swiotlb_force: self.swiotlb_force,
            iommu: self.iommu.map(Iommu::kernel),
            coherent: self.coherent,
            pcp: self.pcp,
            sanitize: Sanitizer::kernel(&self.sanitize),
            posted_writes: self.posted_writes,
            weak: self.weak,
            ..MachineConfig::default()
        }
    }

    /// Bytes of RAM below 4 GiB: what the file says, or [`DEFAULT_LOW`], or all of RAM where that is less.
    ///
    /// ```
    /// use lowzone::spec::{Machine, Size};
    /// let small = Machine { ram: Size(2 << 30), ..Machine::default() };
    /// assert_eq!(small.low_bytes(), 2 << 30);
    /// assert_eq!(Machine::default().low_bytes(), 3 << 30);
    /// ```
    pub fn low_bytes(&self) -> u64 {
        self.low.map_or(DEFAULT_LOW.min(self.ram.0), Size::bytes)
    }

    /// Bytes of RAM below 4 GiB that the kernel has addresses for, where the bounce pool must lie.
    pub(crate) fn lowmem_bytes(&self) -> u64 {
        self.low_bytes().min(self.arch.kernel().lowmem_end())
    }

    /// Bytes of RAM from 4 GiB upwards.
    pub fn high_bytes(&self) -> u64 {
        self.ram.0.saturating_sub(self.low_bytes())
    }
}
