//! Where the structures of the virtio transport lie in its BAR, and the capability list that says so.
//!
//! BAR 0 holds everything: common configuration at 0, ISR at 0x1000, device configuration at 0x2000, doorbells at
//! 0x3000 (four bytes a queue), the MSI-X table at 0x4000, its pending bits at 0x6000. Neighbour: [`super::pci`].
//! Mirrors virtio 1.2, 4.1.4.

use super::common::LEN;
use super::device::VirtioDevice;
use crate::pci::caps::{self, CapabilityList, CapsError};

/// The most queues the BAR's layout has room for.
pub const MAX_QUEUES: u16 = 511;

pub(super) const BAR: u8 = 0;
pub(super) const BAR_SIZE: u64 = 0x8000;
pub(super) const ISR: u32 = 0x1000;
pub(super) const DEVICE: u32 = 0x2000;
pub(super) const NOTIFY: u32 = 0x3000;
pub(super) const TABLE: u32 = 0x4000;
pub(super) const PENDING: u32 = 0x6000;
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

pub(super) const MSIX_ENABLE: u16 = 1 << 15;
pub(super) const MSIX_MASK: u16 = 1 << 14;

/// One of the structures in the BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Region {
    Common,
    Isr,
    Device,
    Notify,
    Table,
    Pending,
}

impl Region {
    /// The structure at `offset` of the BAR and the offset in it.
    pub(super) fn find(offset: u64) -> Option<(Self, u32)> {
        let offset = u32::try_from(offset).ok().filter(|offset| u64::from(*offset) < BAR_SIZE)?;
        let (region, start) = match offset {
            PENDING.. => (Self::Pending, PENDING),
            TABLE.. => (Self::Table, TABLE),
            NOTIFY.. => (Self::Notify, NOTIFY),
            DEVICE.. => (Self::Device, DEVICE),
            ISR.. => (Self::Isr, ISR),
            _ => (Self::Common, 0),
        };
        Some((region, offset - start))
    }
}

/// The capability list of a function with `vectors` vectors, and where its MSI-X entry lies.
pub(super) fn capabilities(device: &dyn VirtioDevice, vectors: u16) -> Result<(CapabilityList, u8), CapsError> {
    let mut list = CapabilityList::default();
    let mut vendor =
        |cfg_type, offset, length| list.push(caps::VENDOR, &caps::virtio_body(cfg_type, BAR, offset, length), &[0; 14]);
    vendor(1, 0, LEN)?;
    vendor(3, ISR, 1)?;
    vendor(4, DEVICE, device.config_len())?;
    let mut notify = [0; 18];
    let length = u32::from(device.queues()) * NOTIFY_MULTIPLIER;
    notify[..14].copy_from_slice(&caps::virtio_body(2, BAR, NOTIFY, length));
    notify[0] = 20;
    notify[14..].copy_from_slice(&NOTIFY_MULTIPLIER.to_le_bytes());
    list.push(caps::VENDOR, &notify, &[0; 18])?;
    let mut msix = [0; 10];
    msix[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
    msix[2..6].copy_from_slice(&(TABLE | u32::from(BAR)).to_le_bytes());
    msix[6..10].copy_from_slice(&(PENDING | u32::from(BAR)).to_le_bytes());
    let mut writable = [0; 10];
    writable[..2].copy_from_slice(&(MSIX_ENABLE | MSIX_MASK).to_le_bytes());
    let at = list.push(caps::MSIX, &msix, &writable)?;
    Ok((list, at))
}
