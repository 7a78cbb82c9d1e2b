//! The PCI core: enumeration, BARs, capabilities, bus mastering, MSI-X.
//!
//! [`enumerate`] does what firmware and kernel do at boot: it sizes each BAR and places it in the bus's window. A
//! driver then enables decoding, becomes bus master, walks capabilities (bounded: a device may lie in circles) and
//! takes interrupts. Mirrors drivers/pci/probe.c, setup-res.c and msi/msi.c; PCI 3.0 chapter 6.
//! Neighbours: `bus`, `driver`; plain MSI and function reset are modules below. Left out: bridges, I/O ports, prefetchable windows, multi-message MSI.

use std::sync::Arc;

use lowzone_guest_mem::devres::Devres;
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::env::{Class, Verdict};
use lowzone_guest_mem::finding::Resource;
use lowzone_guest_mem::iomem::{IoMem, IoremapError, ioremap};
use lowzone_guest_mem::iospace::Width;
use lowzone_guest_mem::kernel::KernelRef;
use lowzone_guest_mem::zone::AllocError;
use lowzone_guest_mem::{Cpu, PhysAddr};
use thiserror::Error;

use crate::bus::{Bdf, PciBus, Vector};

mod msi;
mod region;
mod reset;

pub use msi::Msi;
pub use region::PciResource;

const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const BAR0: u16 = 0x10;
const CAPABILITIES: u16 = 0x34;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_MASTER: u32 = 1 << 2;
const COMMAND_INTX_OFF: u32 = 1 << 10;
const STATUS_CAP_LIST: u32 = 1 << 4;
/// A capability list longer than config space can hold is a circle.
const MAX_CAPABILITIES: usize = 48;
const CAP_MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 15;

/// Vendor and device number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciId {
    /// The vendor.
    pub vendor: u16,
    /// The device.
    pub device: u16,
}

/// What went wrong with a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PciError {
    /// A BAR that the function doesn't have.
    #[error("BAR {bar} is not a memory BAR of {at}")]
    NoBar {
        /// The function.
        at: Bdf,
        /// The BAR.
        bar: u8,
    },
    /// The bus's window is full.
    #[error("no room for BAR {bar} of {at}: {len:#x} bytes")]
    NoRoom {
        /// The function.
        at: Bdf,
        /// The BAR.
        bar: u8,
        /// How many bytes.
        len: u64,
    },
    /// No capability of this kind.
    #[error("{at} has no capability {id:#04x}")]
    NoCapability {
        /// The function.
        at: Bdf,
        /// The capability.
        id: u8,
    },
    /// Fewer vectors than asked for.
    #[error("{at} wants {wanted} vectors and has {has}")]
    NoVectors {
        /// The function.
        at: Bdf,
        /// How many were asked for.
        wanted: u16,
        /// How many there are.
        has: u16,
    },
    /// The function has no interrupt pin.
    #[error("{at} has no INTx")]
    NoIntx {
        /// The function.
        at: Bdf,
    },
    /// Nobody answers where the function was.
    #[error("{at} does not answer")]
    Gone {
        /// The function.
        at: Bdf,
    },
    /// Registers that another driver has claimed.
    #[error("BAR {bar} of {at} is busy")]
    Busy {
        /// The function.
        at: Bdf,
        /// The BAR.
        bar: u8,
    },
    /// Registers could not be mapped.
    #[error(transparent)]
    Ioremap(#[from] IoremapError),
}

impl PciError {
    /// Linux's errno for it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NoRoom { .. } | Self::Ioremap(_) => -12,
            Self::Busy { .. } => -16,
            Self::NoVectors { .. } => -28,
            Self::Gone { .. } => -19,
            Self::NoBar { .. } | Self::NoCapability { .. } | Self::NoIntx { .. } => -22,
        }
    }
}

/// One placed BAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciBar {
    /// Its number.
    pub index: u8,
    /// Where it was placed.
    pub at: PhysAddr,
    /// How many bytes.
    pub len: u64,
}

/// One function, as found.
pub struct PciDevice {
    bus: Arc<dyn PciBus>,
    at: Bdf,
    id: PciId,
    bars: Vec<PciBar>,
    dma: DmaDevice,
    devres: Devres,
}

/// Finds every function 0 of bus 0 and places its BARs; `dma` gives the DMA side of each it wants.
///
/// # Errors
/// [`PciError::NoRoom`] when the window is too small.
pub fn enumerate(
    bus: &Arc<dyn PciBus>,
    dma: impl Fn(Bdf) -> Option<DmaDevice>,
) -> Result<Vec<Arc<PciDevice>>, PciError> {
    let (start, len) = bus.window();
    let mut next = start.get();
    let end = next.saturating_add(len);
    let mut found = Vec::new();
    for device in 0..32 {
        let at = Bdf { bus: 0, device, function: 0 };
        let ids = bus.config_read(at, 0, Width::B4);
        let [v0, v1, d0, d1] = ids.to_le_bytes();
        let id = PciId { vendor: u16::from_le_bytes([v0, v1]), device: u16::from_le_bytes([d0, d1]) };
        if id.vendor == 0xffff {
            continue;
        }
        let Some(dma) = dma(at) else { continue };
        let bars = place_bars(&**bus, at, &mut next, end)?;
        found.push(Arc::new(PciDevice { bus: bus.clone(), at, id, bars, dma, devres: Devres::default() }));
    }
    Ok(found)
}

fn place_bars(bus: &dyn PciBus, at: Bdf, next: &mut u64, end: u64) -> Result<Vec<PciBar>, PciError> {
    let mut bars = Vec::new();
    let mut index = 0_u8;
    while index < 6 {
        let offset = BAR0 + u16::from(index) * 4;
        let wide = bus.config_read(at, offset, Width::B4) & 0b110 == 0b100;
        let len = size_bar(bus, at, offset, wide);
        if len > 0 {
            let place = next.checked_next_multiple_of(len).unwrap_or(u64::MAX);
            if place.checked_add(len).is_none_or(|last| last > end) {
                return Err(PciError::NoRoom { at, bar: index, len });
            }
            *next = place + len;
            write_bar(bus, at, offset, wide, place);
            bars.push(PciBar { index, at: PhysAddr::new(place), len });
        }
        index += if wide { 2 } else { 1 };
    }
    Ok(bars)
}

fn halves(value: u64) -> (u32, u32) {
    let bytes = value.to_le_bytes();
    let half = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    (half(0), half(4))
}

fn write_bar(bus: &dyn PciBus, at: Bdf, offset: u16, wide: bool, value: u64) {
    let (low, high) = halves(value);
    bus.config_write(at, offset, Width::B4, low);
    if wide {
        bus.config_write(at, offset + 4, Width::B4, high);
    }
}

/// Sizes a memory BAR: write ones, read the mask back, restore. I/O BARs count as absent.
fn size_bar(bus: &dyn PciBus, at: Bdf, offset: u16, wide: bool) -> u64 {
    let old = bus.config_read(at, offset, Width::B4);
    if old & 1 == 1 {
        return 0;
    }
    let old_high = if wide { bus.config_read(at, offset + 4, Width::B4) } else { 0 };
    write_bar(bus, at, offset, wide, u64::MAX);
    let low = u64::from(bus.config_read(at, offset, Width::B4) & !0xf);
    let high = if wide { u64::from(bus.config_read(at, offset + 4, Width::B4)) } else { u64::from(u32::MAX) };
    write_bar(bus, at, offset, wide, u64::from(old) | u64::from(old_high) << 32);
    let mask = low | high << 32;
    if low == 0 && (!wide || high == 0) { 0 } else { (!mask).wrapping_add(1) }
}

impl PciDevice {
    /// Its place.
    pub fn at(&self) -> Bdf {
        self.at
    }

    /// Its numbers.
    pub fn id(&self) -> PciId {
        self.id
    }

    /// The device as the DMA API sees it.
    pub fn dma(&self) -> &DmaDevice {
        &self.dma
    }

    /// What its driver has taken that goes with the driver: undone at unbind, and when a probe fails.
    pub fn devres(&self) -> &Devres {
        &self.devres
    }

    /// [`PciDevice::enable`], undone when the driver goes (`pcim_enable_device`). Process context.
    ///
    /// # Errors
    /// [`AllocError`] for want of the note; it is not enabled then.
    #[track_caller]
    pub fn pcim_enable(self: &Arc<Self>, cpu: &Cpu<'_>) -> Result<(), AllocError> {
        let device = Arc::downgrade(self);
        let disable = move |_: &Cpu<'_>| device.upgrade().into_iter().for_each(|device| device.disable());
        self.devres.add_action(cpu, "pcim_enable_device", disable)?;
        self.enable();
        Ok(())
    }

    /// Maps the first `len` bytes of a BAR until the driver goes (`pcim_iomap`; Linux maps what there is of a shorter
    /// one). Process context.
    ///
    /// # Errors
    /// [`PciError::NoBar`] if it isn't there or shorter, [`PciError::Ioremap`].
    #[track_caller]
    pub fn pcim_iomap(&self, cpu: &Cpu<'_>, index: u8, len: u64) -> Result<Arc<IoMem>, PciError> {
        let bar = self.bar(index)?;
        if len > bar.len {
            return Err(PciError::NoBar { at: self.at, bar: index });
        }
        Ok(self.devres.ioremap(cpu, bar.at, len)?)
    }

    /// Reads its config space.
    pub fn config_read(&self, offset: u16, width: Width) -> u32 {
        self.bus.config_read(self.at, offset, width)
    }

    /// Writes its config space.
    pub fn config_write(&self, offset: u16, width: Width, value: u32) {
        self.bus.config_write(self.at, offset, width, value);
    }

    fn command(&self, set: u32, clear: u32) {
        let command = self.config_read(COMMAND, Width::B2);
        self.config_write(COMMAND, Width::B2, (command | set) & !clear);
    }

    /// Lets it decode its memory BARs and assert its pin, whatever its last driver left (`pci_enable_device_mem`).
    pub fn enable(&self) {
        self.command(COMMAND_MEMORY, COMMAND_INTX_OFF);
    }

    /// Stops decoding and DMA (`pci_disable_device`).
    pub fn disable(&self) {
        self.command(0, COMMAND_MEMORY | COMMAND_MASTER);
    }

    /// Lets it do DMA and raise MSI (`pci_set_master`).
    pub fn set_master(&self) {
        self.command(COMMAND_MASTER, 0);
    }

    /// Lets it assert its pin, or keeps it from that (`pci_intx`). Any context.
    pub fn set_intx(&self, on: bool) {
        if on { self.command(0, COMMAND_INTX_OFF) } else { self.command(COMMAND_INTX_OFF, 0) }
    }

    /// Every capability as `(id, offset)`, at most as many as config space holds.
    pub fn capabilities(&self) -> Vec<(u8, u16)> {
        let mut found = Vec::new();
        if self.config_read(STATUS, Width::B2) & STATUS_CAP_LIST == 0 {
            return found;
        }
        let mut at = self.config_read(CAPABILITIES, Width::B1) & 0xfc;
        while at >= 0x40 && found.len() < MAX_CAPABILITIES {
            let offset = u16::try_from(at).unwrap_or(0);
            let [id, next, ..] = self.config_read(offset, Width::B4).to_le_bytes();
            found.push((id, offset));
            at = u32::from(next) & 0xfc;
        }
        found
    }

    /// The offset of the first capability with this id.
    ///
    /// # Errors
    /// [`PciError::NoCapability`].
    pub fn find_capability(&self, id: u8) -> Result<u16, PciError> {
        let found = self.capabilities().into_iter().find(|&(cap, _)| cap == id);
        found.map(|(_, offset)| offset).ok_or(PciError::NoCapability { at: self.at, id })
    }

    /// A placed BAR.
    ///
    /// # Errors
    /// [`PciError::NoBar`].
    pub fn bar(&self, index: u8) -> Result<PciBar, PciError> {
        let error = PciError::NoBar { at: self.at, bar: index };
        self.bars.iter().find(|bar| bar.index == index).copied().ok_or(error)
    }

    /// Maps part of a BAR (`pci_iomap_range`). Process context.
    ///
    /// # Errors
    /// [`PciError::NoBar`] if it isn't there or the range leaves it, [`PciError::Ioremap`].
    #[track_caller]
    pub fn map_bar(&self, cpu: &Cpu<'_>, index: u8, offset: u64, len: u64) -> Result<IoMem, PciError> {
        let bar = self.bar(index)?;
        if offset.checked_add(len).is_none_or(|end| end > bar.len) {
            return Err(PciError::NoBar { at: self.at, bar: index });
        }
        Ok(ioremap(cpu, bar.at.wrapping_add(offset), len)?)
    }

    /// The interrupt of its INTx pin (`pci_irq_vector` without MSI).
    ///
    /// # Errors
    /// [`PciError::NoIntx`].
    pub fn intx(&self) -> Result<u32, PciError> {
        self.bus.intx(self.at).ok_or(PciError::NoIntx { at: self.at })
    }

    /// Takes `wanted` MSI-X vectors, spread over the CPUs, and turns MSI-X on (`pci_alloc_irq_vectors`).
    ///
    /// Process context. The vectors are given back when the result drops.
    ///
    /// # Errors
    /// [`PciError`]: no capability, too few vectors, or the table can't be mapped.
    #[track_caller]
    pub fn enable_msix(self: &Arc<Self>, cpu: &Cpu<'_>, wanted: u16) -> Result<Msix, PciError> {
        let cap = self.find_capability(CAP_MSIX)?;
        let control = self.config_read(cap + 2, Width::B2);
        let has = u16::try_from(control & 0x7ff).unwrap_or(0) + 1;
        let table = self.config_read(cap + 4, Width::B4);
        let bar = u8::try_from(table & 7).unwrap_or(0);
        let mut msix = Msix { device: self.clone(), kernel: cpu.kernel_ref(), cap, vectors: Vec::new() };
        let cpus = cpu.kernel().config().cpus;
        if wanted > has {
            return Err(PciError::NoVectors { at: self.at, wanted, has });
        }
        let window = self.map_bar(cpu, bar, u64::from(table & !7), u64::from(has) * 16)?;
        for index in 0..wanted {
            let refused = cpu.point(Class::IrqVector, u64::from(index)) == Verdict::Fail;
            let vector = if refused { None } else { self.bus.alloc_vector(u32::from(index) % cpus) };
            let vector = vector.ok_or(PciError::NoVectors { at: self.at, wanted, has: index })?;
            let number = PhysAddr::new(u64::from(vector.irq));
            let id = cpu.kernel().register(Resource::Vector, number, 0, cpu.owner());
            cpu.kernel().irqs().set_device(vector.irq, self.dma.index());
            msix.vectors.push((vector, id));
            let entry = u64::from(index) * 16;
            let (low, high) = halves(vector.addr);
            window.writel(cpu, entry, low);
            window.writel(cpu, entry + 4, high);
            window.writel(cpu, entry + 8, vector.data);
            window.writel(cpu, entry + 12, 0);
        }
        self.config_write(cap + 2, Width::B2, control | MSIX_ENABLE);
        Ok(msix)
    }
}

/// MSI-X turned on, with its vectors; off again when dropped.
#[must_use = "MSI-X is turned off when this is dropped"]
pub struct Msix {
    device: Arc<PciDevice>,
    kernel: KernelRef,
    cap: u16,
    vectors: Vec<(Vector, u64)>,
}

impl Msix {
    /// The interrupt number of an entry of the table.
    pub fn irq(&self, entry: u16) -> Option<u32> {
        self.vectors.get(usize::from(entry)).map(|(vector, _)| vector.irq)
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        let control = self.device.config_read(self.cap + 2, Width::B2);
        self.device.config_write(self.cap + 2, Width::B2, control & !MSIX_ENABLE);
        for (vector, id) in &self.vectors {
            self.device.bus.free_vector(vector.irq);
            if let Some(kernel) = self.kernel.get() {
                kernel.unregister(*id);
            }
        }
    }
}
