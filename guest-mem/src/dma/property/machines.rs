//! The nine machines, each with little memory: 64 MiB low, 32 MiB above 4 GiB, 1 MiB to bounce in.

use crate::arch::Arch;
use crate::dma::iommu::IommuMode;
use crate::kernel::MachineConfig;

/// A machine and its name.
pub(super) type Named = (&'static str, MachineConfig);

fn plain() -> MachineConfig {
    MachineConfig { ram: 96 << 20, low: 64 << 20, swiotlb: 1 << 20, ..MachineConfig::default() }
}

/// All of them.
pub(super) fn all() -> [Named; 9] {
    [
        ("identity", plain()),
        ("bridge-offset", MachineConfig { dma_offset: 64 << 20, ..plain() }),
        ("iommu-strict", MachineConfig { iommu: Some(IommuMode::Strict), ..plain() }),
        ("iommu-lazy", MachineConfig { iommu: Some(IommuMode::Lazy), ..plain() }),
        ("swiotlb-force", MachineConfig { swiotlb_force: true, ..plain() }),
        ("non-coherent", MachineConfig { coherent: false, ..plain() }),
        ("highmem", MachineConfig { arch: Arch::X86_32, ..plain() }),
        ("ram1g", MachineConfig { ram: 1 << 30, low: 1 << 30, ..plain() }),
        ("no-swiotlb", MachineConfig { swiotlb: 0, ..plain() }),
    ]
}

/// One of them.
pub(super) fn named(name: &str) -> MachineConfig {
    let found = all().into_iter().find(|machine| machine.0 == name);
    found.unwrap_or_else(|| panic!("no machine {name}")).1
}
