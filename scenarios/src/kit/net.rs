//! The stock kind `virtio-net`: the virtio network device and its driver.
//!
//! Neighbours: `device::net`, `driver::net`; `step::packets`, which sends many. An `exercise` sends one packet and wants
//! it back, to the byte.

use std::sync::Arc;

use lowzone_device::blk::Hardware;
use lowzone_device::net::{NetOptions as DeviceOptions, Source, frame, net};
use lowzone_driver::bus::Bdf;
use lowzone_driver::net::{NetDevice, NetDriver, NetOptions};
use lowzone_driver::pci::PciDevice;
use lowzone_guest_mem::Cpu;
use lowzone_guest_mem::gfp::GFP_KERNEL;

use super::{DeviceEnv, DeviceKind, DriverKind, ExerciseError, LabDriver, MakeError, Plugged};
use crate::spec::{Driver, Kind, NET_OPTIONS, VIRTIO_NET};
use crate::step::packets;

pub(super) const DRIVER: DriverKind = DriverKind { kind: Kind::new(VIRTIO_NET).packets(), make: driver };
pub(super) const DEVICE: DeviceKind = DeviceKind { kind: Kind::new(VIRTIO_NET).options(NET_OPTIONS), make: device };

/// How long a packet may take to come back.
const PATIENCE: u64 = 5_000_000_000;

fn driver(spec: &Driver) -> Result<Arc<dyn LabDriver>, MakeError> {
    Ok(Arc::new(NetDriver::new(NetOptions {
        dma_mask: spec.dma_mask,
        coherent_mask: spec.coherent_bits(),
        bus_master: spec.bus_master,
        queue_size: spec.queue_size,
        msix: spec.msix,
        indirect: spec.indirect,
        event_idx: spec.event_idx,
    })))
}

fn device(env: &DeviceEnv<'_>) -> Result<Plugged, MakeError> {
    let spec = env.spec;
    let packets = spec.options.number("source", 0)?;
    let source = Source {
        seed: spec.options.number("seed", packets::SOURCE_SEED)?,
        packets,
        interval: spec.options.number("interval_ns", 10_000)?,
    };
    let options = DeviceOptions {
        queue_size: spec.queue_size,
        event_idx: spec.event_idx,
        indirect: spec.indirect,
        access_platform: spec.access_platform,
        source: (packets > 0).then_some(source),
        ..DeviceOptions::default()
    };
    let hardware = Hardware { width: spec.width, beyond: env.beyond(), wide_bar: true };
    let made = net(&options, hardware, env.irq.clone(), (env.port(), env.tap()))?;
    Ok(Plugged {
        function: made.function,
        workers: made.workers,
        slot: Some(made.slot),
        script: None,
        counters: Some(made.counters),
    })
}

impl LabDriver for NetDriver {
    fn exercise(&self, cpu: &Cpu<'_>, device: &PciDevice, nth: u64) -> Result<u64, ExerciseError> {
        let net = self.device(device.at()).ok_or(ExerciseError::NotBound(device.at()))?;
        let mut room = [0; frame::MOST];
        let packet =
            packets::build(cpu, frame::make(0, nth, &mut room), 1, GFP_KERNEL).map_err(ExerciseError::failed)?;
        net.transmit(cpu, packet).map_err(|error| ExerciseError::failed(error.why))?;
        let came = net.receive(cpu, PATIENCE).map_err(ExerciseError::failed)?;
        match packets::check(&came, 0) {
            Some(number) if number == nth => Ok(2 * came.len() as u64),
            other => Err(ExerciseError::WrongData { expected: nth, seen: other.unwrap_or(u64::MAX) }),
        }
    }

    fn net(&self, at: Bdf) -> Option<Arc<NetDevice>> {
        self.device(at)
    }
}
