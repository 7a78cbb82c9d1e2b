//! A function's registers as a resource, and the claims to them (`pci_request_regions`).
//!
//! Mirrors drivers/pci/pci.c and the flags of include/linux/ioport.h. Neighbours: [`super`], `guest_mem::iomem::region`.
//! Left out: I/O ports, exclusive claims.

use std::fmt;

use lowzone_guest_mem::iomem::{MemRegion, request_mem_region};
use lowzone_guest_mem::iospace::Width;
use lowzone_guest_mem::{Cpu, PhysAddr};

use super::{BAR0, PciDevice, PciError};

const IORESOURCE_MEM: u32 = 0x200;
const IORESOURCE_PREFETCH: u32 = 0x2000;
const IORESOURCE_SIZEALIGN: u32 = 0x4_0000;
const IORESOURCE_MEM_64: u32 = 0x10_0000;

/// A range of addresses and what it is (`struct resource`); printed as `%pR` does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciResource {
    /// The first byte.
    pub start: PhysAddr,
    /// How many bytes.
    pub len: u64,
    /// `IORESOURCE_*`.
    pub flags: u32,
}

impl fmt::Display for PciResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, end) = (self.start.get(), self.start.get() + (self.len - 1));
        write!(f, "[mem {start:#010x}-{end:#010x}")?;
        for (flag, text) in [(IORESOURCE_MEM_64, " 64bit"), (IORESOURCE_PREFETCH, " pref")] {
            f.write_str(if self.flags & flag == flag { text } else { "" })?;
        }
        f.write_str("]")
    }
}

impl PciDevice {
    /// A placed BAR as a resource (`pci_resource_start`, `_len`, `_flags`). Any context.
    ///
    /// # Errors
    /// [`PciError::NoBar`].
    pub fn resource(&self, index: u8) -> Result<PciResource, PciError> {
        let bar = self.bar(index)?;
        let marks = self.config_read(BAR0 + u16::from(index) * 4, Width::B4);
        let wide = if marks & 0b110 == 0b100 { IORESOURCE_MEM_64 } else { 0 };
        let prefetchable = if marks & 0b1000 == 0b1000 { IORESOURCE_PREFETCH } else { 0 };
        let flags = IORESOURCE_MEM | IORESOURCE_SIZEALIGN | wide | prefetchable;
        Ok(PciResource { start: bar.at, len: bar.len, flags })
    }

    /// Claims every memory BAR for a driver (`pci_request_regions`), or none. Process context.
    ///
    /// The claims are given back when they drop (`pci_release_regions`).
    ///
    /// # Errors
    /// [`PciError::Busy`] names the first BAR that somebody has; the kernel's log says so too.
    #[track_caller]
    pub fn request_regions(&self, cpu: &Cpu<'_>, driver: &str) -> Result<Vec<MemRegion>, PciError> {
        let mut claims = Vec::with_capacity(self.bars.len());
        for bar in &self.bars {
            let Ok(claim) = request_mem_region(cpu, bar.at, bar.len, driver) else {
                let (at, index) = (self.at, bar.index);
                let text = format!("{driver} {at}: BAR {index}: can't reserve {}", self.resource(index)?);
                cpu.kernel().log().print(cpu.now(), &text);
                return Err(PciError::Busy { at, bar: index });
            };
            claims.push(claim);
        }
        Ok(claims)
    }
}
