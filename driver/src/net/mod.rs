//! The virtio network driver.
//!
//! [`NetDriver`] binds to every virtio network function and makes a [`NetDevice`] of each. Rings are coherent; receive
//! buffers, headers and what is sent are streaming. Mirrors drivers/net/virtio_net.c; virtio 1.2, 5.1. Neighbours:
//! `virtio`, `pci`. Left out: several queue pairs, the control queue, offloads, mergeable and big buffers, XDP; a
//! network stack above it: packets go to and come from whoever holds the device.

mod error;
mod frame;
mod netdev;
mod rx;
mod tx;

use std::sync::Arc;

use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::lock::Locked;

pub use error::{ReceiveError, TransmitError, TransmitFailure};
pub use frame::{FRAGS, Frame, Packet, Piece};
pub use netdev::{NetDevice, NetOptions, NetStats};
pub use rx::{BACKLOG, ReceiveStats};
pub use tx::TransmitStats;

use crate::bus::Bdf;
use crate::driver::{Driver, ProbeError};
use crate::pci::{PciDevice, PciId};

/// Bytes of `struct virtio_net_hdr_v1`, in front of every packet.
pub(crate) const HEADER: usize = 12;
/// Bytes of an Ethernet header; what is shorter is no packet.
pub const ETHERNET: usize = 14;
/// The longest packet: 1500 bytes behind an Ethernet header.
pub const MOST: usize = ETHERNET + 1500;

/// The driver, with the devices it serves.
pub struct NetDriver {
    options: NetOptions,
    devices: Locked<Vec<(Bdf, Arc<NetDevice>)>>,
}

impl NetDriver {
    /// A driver that probes with these options.
    pub fn new(options: NetOptions) -> Self {
        Self { options, devices: Locked::default() }
    }

    /// The network device made of the function at `at`.
    pub fn device(&self, at: Bdf) -> Option<Arc<NetDevice>> {
        self.devices.lock().iter().find(|(place, _)| *place == at).map(|(_, device)| device.clone())
    }

    fn take(&self, at: Bdf) -> Option<Arc<NetDevice>> {
        let mut devices = self.devices.lock();
        let index = devices.iter().position(|(place, _)| *place == at)?;
        Some(devices.remove(index).1)
    }
}

impl Driver for NetDriver {
    fn name(&self) -> &'static str {
        "virtio_net"
    }

    fn ids(&self) -> &'static [PciId] {
        &[PciId { vendor: 0x1af4, device: 0x1041 }]
    }

    fn probe(&self, cpu: &Cpu<'_>, device: &Arc<PciDevice>) -> Result<(), ProbeError> {
        let made = NetDevice::probe(cpu, device, &self.options)?;
        self.devices.lock().push((device.at(), Arc::new(made)));
        Ok(())
    }

    fn remove(&self, cpu: &Cpu<'_>, device: &PciDevice) {
        if let Some(device) = self.take(device.at()) {
            device.tear_down(cpu);
        }
    }

    fn shutdown(&self, cpu: &Cpu<'_>, device: &PciDevice) {
        if let Some(device) = self.device(device.at()) {
            device.quiesce(cpu);
        }
    }
}
