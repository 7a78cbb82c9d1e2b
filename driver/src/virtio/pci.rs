//! Virtio over PCI, modern interface: capabilities, the common configuration, doorbells.
//!
//! Mirrors drivers/virtio/virtio_pci_modern_dev.c; virtio 1.2, 4.1. Neighbours: `transport`, `crate::pci`. Left out:
//! the legacy interface, shared memory, notification data.

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::iomem::IoMem;
use lowzone_guest_mem::iospace::Width;
use lowzone_guest_mem::lock::Locked;
use lowzone_guest_mem::wait::sleep;

use crate::pci::PciDevice;
use crate::virtio::transport::{MakeQueue, NO_VECTOR, Transport};
use crate::virtio::{F_VERSION_1, VirtioError};

const CAP_VENDOR: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;

const STATUS_ACKNOWLEDGE: u8 = 1;
const STATUS_DRIVER: u8 = 2;
const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 0x40;
const STATUS_FAILED: u8 = 0x80;

/// Offsets in the common configuration (virtio 1.2, 4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    pub const DEVICE_FEATURE: u64 = 4;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const CONFIG_VECTOR: u64 = 16;
    pub const STATUS: u64 = 20;
    pub const GENERATION: u64 = 21;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_VECTOR: u64 = 26;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    pub const QUEUE_DESC: u64 = 32;
    pub const QUEUE_AVAIL: u64 = 40;
    pub const QUEUE_USED: u64 = 48;
    pub const LEN: u64 = 56;
}

/// Linux polls the reset once a millisecond.
const RESET_POLL: u64 = 1_000_000;
/// A device that has not reset after this long never will.
const RESET_TIMEOUT: u64 = 1_000_000_000;
/// Config space that changes this often while it is read is not config space.
const GENERATION_TRIES: u32 = 16;

/// A modern virtio device on a PCI bus.
pub struct VirtioPci {
    common: IoMem,
    notify: IoMem,
    isr: IoMem,
    device: Option<IoMem>,
    multiplier: u32,
    /// Doorbell offset by queue.
    doorbells: Locked<Vec<u64>>,
}

impl VirtioPci {
    /// Finds and maps the capabilities. Process context.
    ///
    /// # Errors
    /// [`VirtioError::NoCapability`] or the mapping's own.
    pub fn new(cpu: &Cpu<'_>, pci: &PciDevice) -> Result<Self, VirtioError> {
        let _span = cpu.span("virtio_pci");
        let map = |kind: u8, least: u64| -> Result<(IoMem, u16), VirtioError> {
            let (cap, bar, offset, len) = find(pci, kind).ok_or(VirtioError::NoCapability { kind })?;
            if len < least {
                return Err(VirtioError::NoCapability { kind });
            }
            Ok((pci.map_bar(cpu, bar, offset, len)?, cap))
        };
        let (common, _) = map(CFG_COMMON, common::LEN)?;
        let (isr, _) = map(CFG_ISR, 1)?;
        let (notify, notify_cap) = map(CFG_NOTIFY, 2)?;
        let device = if find(pci, CFG_DEVICE).is_some() { Some(map(CFG_DEVICE, 1)?.0) } else { None };
        let multiplier = pci.config_read(notify_cap + 16, Width::B4);
        Ok(Self { common, notify, isr, device, multiplier, doorbells: Locked::default() })
    }

    fn status(&self, cpu: &Cpu<'_>) -> u8 {
        self.common.readb(cpu, common::STATUS)
    }

    fn add_status(&self, cpu: &Cpu<'_>, bit: u8) -> Result<u8, VirtioError> {
        let status = self.status(cpu);
        if status == 0xff {
            return Err(VirtioError::Gone);
        }
        self.common.writeb(cpu, common::STATUS, status | bit);
        Ok(self.status(cpu))
    }

    fn device_features(&self, cpu: &Cpu<'_>) -> u64 {
        let half = |select: u32| {
            self.common.writel(cpu, common::DEVICE_FEATURE_SELECT, select);
            u64::from(self.common.readl(cpu, common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    fn write_split(&self, cpu: &Cpu<'_>, offset: u64, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.common.writel(cpu, offset, u32::from_le_bytes([a, b, c, d]));
        self.common.writel(cpu, offset + 4, u32::from_le_bytes([e, f, g, h]));
    }

    fn agree(&self, cpu: &Cpu<'_>, wanted: u64) -> Result<u64, VirtioError> {
        self.add_status(cpu, STATUS_ACKNOWLEDGE)?;
        self.add_status(cpu, STATUS_DRIVER)?;
        let offered = self.device_features(cpu);
        let features = offered & (wanted | F_VERSION_1);
        if features & F_VERSION_1 == 0 {
            return Err(VirtioError::NotModern { features: offered });
        }
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.common.writel(cpu, common::DRIVER_FEATURE_SELECT, select);
            self.common.writel(cpu, common::DRIVER_FEATURE, u32::try_from(half).unwrap_or(0));
        }
        if self.add_status(cpu, STATUS_FEATURES_OK)? & STATUS_FEATURES_OK == 0 {
            return Err(VirtioError::FeaturesRefused { features });
        }
        Ok(features)
    }
}

/// The first vendor capability of a type: `(its offset, bar, offset, len)`.
fn find(pci: &PciDevice, kind: u8) -> Option<(u16, u8, u64, u64)> {
    pci.capabilities().into_iter().filter(|&(id, _)| id == CAP_VENDOR).find_map(|(_, cap)| {
        let bar = pci.config_read(cap + 4, Width::B1);
        let is_kind = pci.config_read(cap + 3, Width::B1) == u32::from(kind);
        // Reserved BAR values are skipped, as the specification asks.
        (is_kind && bar < 6).then(|| {
            let field = |offset: u16| u64::from(pci.config_read(cap + offset, Width::B4));
            (cap, u8::try_from(bar).unwrap_or(0), field(8), field(12))
        })
    })
}

impl Transport for VirtioPci {
    fn negotiate(&self, cpu: &Cpu<'_>, wanted: u64) -> Result<u64, VirtioError> {
        self.reset(cpu)?;
        self.agree(cpu, wanted).inspect_err(|_| {
            // The device should know that its driver gave up; that it can't be told is no second error.
            let _ = self.add_status(cpu, STATUS_FAILED);
        })
    }

    fn config_read(&self, cpu: &Cpu<'_>, offset: u64, to: &mut [u8]) -> Result<(), VirtioError> {
        let Some(device) = &self.device else { return Err(VirtioError::NoCapability { kind: CFG_DEVICE }) };
        for _ in 0..GENERATION_TRIES {
            let before = self.common.readb(cpu, common::GENERATION);
            for (at, byte) in (offset..).zip(to.iter_mut()) {
                *byte = device.readb(cpu, at);
            }
            if self.common.readb(cpu, common::GENERATION) == before {
                return Ok(());
            }
        }
        Err(VirtioError::BadConfig { field: "generation", value: u64::from(GENERATION_TRIES) })
    }

    fn setup_queue(&self, cpu: &Cpu<'_>, index: u16, vector: u16, make: &mut MakeQueue<'_>) -> Result<(), VirtioError> {
        self.common.writew(cpu, common::QUEUE_SELECT, index);
        let size = self.common.readw(cpu, common::QUEUE_SIZE);
        let enabled = self.common.readw(cpu, common::QUEUE_ENABLE);
        if size == 0 || !size.is_power_of_two() || enabled != 0 {
            return Err(VirtioError::NoQueue { index, size });
        }
        let layout = make(size)?;
        self.common.writew(cpu, common::QUEUE_SIZE, layout.size);
        self.write_split(cpu, common::QUEUE_DESC, layout.desc.get());
        self.write_split(cpu, common::QUEUE_AVAIL, layout.avail.get());
        self.write_split(cpu, common::QUEUE_USED, layout.used.get());
        if vector != NO_VECTOR {
            self.common.writew(cpu, common::QUEUE_VECTOR, vector);
            if self.common.readw(cpu, common::QUEUE_VECTOR) != vector {
                return Err(VirtioError::NoVector { index, vector });
            }
        }
        let offset = u64::from(self.common.readw(cpu, common::QUEUE_NOTIFY_OFF)) * u64::from(self.multiplier);
        if offset + 2 > self.notify.len() {
            return Err(VirtioError::BadConfig { field: "queue_notify_off", value: offset });
        }
        {
            let mut doorbells = self.doorbells.lock();
            let at = usize::from(index);
            if doorbells.len() <= at {
                doorbells.resize(at + 1, 0);
            }
            doorbells[at] = offset;
        }
        self.common.writew(cpu, common::QUEUE_ENABLE, 1);
        Ok(())
    }

    fn driver_ok(&self, cpu: &Cpu<'_>, config_vector: u16) -> Result<(), VirtioError> {
        if config_vector != NO_VECTOR {
            self.common.writew(cpu, common::CONFIG_VECTOR, config_vector);
            if self.common.readw(cpu, common::CONFIG_VECTOR) != config_vector {
                return Err(VirtioError::NoVector { index: NO_VECTOR, vector: config_vector });
            }
        }
        self.add_status(cpu, STATUS_DRIVER_OK).map(|_| ())
    }

    fn notify(&self, cpu: &Cpu<'_>, index: u16) {
        let offset = self.doorbells.lock().get(usize::from(index)).copied();
        if let Some(offset) = offset {
            self.notify.writew(cpu, offset, index);
        }
    }

    fn isr(&self, cpu: &Cpu<'_>) -> u8 {
        self.isr.readb(cpu, 0)
    }

    fn needs_reset(&self, cpu: &Cpu<'_>) -> bool {
        self.status(cpu) & STATUS_NEEDS_RESET != 0
    }

    fn reset(&self, cpu: &Cpu<'_>) -> Result<(), VirtioError> {
        let begun = cpu.now();
        self.common.writeb(cpu, common::STATUS, 0);
        loop {
            let status = self.status(cpu);
            let waited = cpu.now() - begun;
            match status {
                0 => return Ok(()),
                0xff => return Err(VirtioError::Gone),
                _ if waited >= RESET_TIMEOUT => return Err(VirtioError::NoReset { status, waited }),
                _ => sleep(cpu, RESET_POLL)?,
            }
        }
    }
}
