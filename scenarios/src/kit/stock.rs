//! The stock kinds, among them the virtio block device and its driver.
//!
//! Neighbours: `device::blk`, `driver::blk`; `edu` beside this. An `exercise` of a disk writes a block and reads it back.

use std::sync::Arc;

use lowzone_device::blk::{BlkOptions as DeviceOptions, Hardware, blk};
use lowzone_device::store::{MemoryStore, Store};
use lowzone_driver::blk::{BlkDriver, BlkOptions, Completed, Data, Disk, Request, SECTOR};
use lowzone_driver::bus::Bdf;
use lowzone_driver::pci::PciDevice;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::{Cpu, KBuf};
use thiserror::Error;

use super::{DeviceEnv, DeviceKind, DriverKind, ExerciseError, LabDriver, MakeError, Plugged, edu, net};
use crate::spec::{Driver, Kind, VIRTIO_BLK};

/// Bytes of one exercise.
const BYTES: usize = 4096;

pub(super) const DRIVERS: &[DriverKind] =
    &[DriverKind { kind: Kind::new(VIRTIO_BLK).disks(), make: driver }, edu::DRIVER, net::DRIVER];
pub(super) const DEVICES: &[DeviceKind] =
    &[DeviceKind { kind: Kind::new(VIRTIO_BLK).disks(), make: device }, edu::DEVICE, net::DEVICE];

/// A request that came back without the buffer it took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("a request of {len} bytes did not give its buffer back")]
struct NoBuffer {
    len: usize,
}

fn driver(spec: &Driver) -> Result<Arc<dyn LabDriver>, MakeError> {
    Ok(Arc::new(BlkDriver::new(BlkOptions {
        dma_mask: spec.dma_mask,
        coherent_mask: spec.coherent_bits(),
        bus_master: spec.bus_master,
        queues: spec.queues,
        queue_size: spec.queue_size,
        msix: spec.msix,
        polled: spec.polled,
        indirect: spec.indirect,
        event_idx: spec.event_idx,
        timeout: u64::from(spec.deadline_ms) * 1_000_000,
    })))
}

fn device(env: &DeviceEnv<'_>) -> Result<Plugged, MakeError> {
    let spec = env.spec;
    let store = match &env.store {
        Some(store) => store.clone(),
        None => Arc::new(Store::Memory(MemoryStore::zeroed(0)?)),
    };
    let mut id = [0; 20];
    id.iter_mut().zip(spec.name.bytes()).for_each(|(to, from)| *to = from);
    let options = DeviceOptions {
        id,
        queues: spec.queues,
        queue_size: spec.queue_size,
        seg_max: spec.seg_max,
        blk_size: spec.blk_size,
        read_only: spec.read_only,
        event_idx: spec.event_idx,
        indirect: spec.indirect,
        access_platform: spec.access_platform,
        discard: spec.discard,
        ..DeviceOptions::default()
    };
    let hardware = Hardware { width: spec.width, beyond: env.beyond(), wide_bar: true };
    let made = blk(&options, hardware, store, env.irq.clone(), |_queue| (env.port(), env.tap()))?;
    Ok(Plugged {
        function: made.function,
        workers: made.workers,
        slot: Some(made.slot),
        script: Some(made.script),
        counters: Some(made.counters),
    })
}

impl LabDriver for BlkDriver {
    fn exercise(&self, cpu: &Cpu<'_>, device: &PciDevice, nth: u64) -> Result<u64, ExerciseError> {
        let disk = BlkDriver::disk(self, device.at()).ok_or(ExerciseError::NotBound(device.at()))?;
        let blocks = (disk.capacity() * SECTOR / BYTES as u64).max(1);
        let sector = nth % blocks * (BYTES as u64 / SECTOR);
        let mut wanted = [0; BYTES];
        let mut content = crate::world::Random::new(nth);
        content.fill(&mut wanted);
        let mut buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL).map_err(ExerciseError::failed)?;
        buf.write_at(0, &wanted).map_err(ExerciseError::failed)?;
        let mut buf = ask(cpu, &disk, Request::write(sector, Data::Streaming(buf)))?;
        buf.write_at(0, &[0; BYTES]).map_err(ExerciseError::failed)?;
        let buf = ask(cpu, &disk, Request::read(sector, Data::Streaming(buf)))?;
        let mut seen = [0; BYTES];
        buf.read_at(0, &mut seen).map_err(ExerciseError::failed)?;
        match wanted.iter().zip(&seen).find(|(wanted, seen)| wanted != seen) {
            None => Ok(2 * BYTES as u64),
            Some((&expected, &seen)) => Err(ExerciseError::WrongData { expected: expected.into(), seen: seen.into() }),
        }
    }

    fn disk(&self, at: Bdf) -> Option<Arc<Disk>> {
        BlkDriver::disk(self, at)
    }

    fn virtio(&self) -> Option<&BlkDriver> {
        Some(self)
    }
}

/// One request from submission to its end; the buffer comes back.
fn ask(cpu: &Cpu<'_>, disk: &Disk, request: Request) -> Result<KBuf, ExerciseError> {
    let pending = disk.submit(cpu, 0, request).map_err(|error| ExerciseError::failed(error.why))?;
    let Completed { result, data, .. } = disk.wait(cpu, pending);
    result.map_err(ExerciseError::failed)?;
    match data {
        Some(Data::Streaming(buf)) => Ok(buf),
        _ => Err(ExerciseError::failed(NoBuffer { len: BYTES })),
    }
}
