//! `probe` and `remove`: binding the driver to every device, and letting go.
//!
//! Devices are found on the bus; those that no bus finds the wire has described (`Slot::virtio`).

use std::sync::Arc;

use lowzone_driver::blk::{Disk, RingPlace};
use lowzone_driver::bus::Bdf;
use lowzone_driver::pci::{PciDevice, enumerate};
use lowzone_guest_mem::Cpu;

use crate::lab::{Bench, Slot, lock};
use crate::result::{QueueRow, RingRow};
use crate::world::Body;

/// Finds the devices (once) and binds the driver to each.
pub(super) fn probe(bench: &Arc<Bench>) -> Body {
    let bench = bench.clone();
    Box::new(move |cpu| {
        bench.slots.iter().for_each(|slot| probe_virtio(cpu, &bench, slot));
        for pci in devices(&bench) {
            match lowzone_driver::bind(cpu, &*bench.driver, &pci) {
                Ok(true) => {
                    lock(&bench.bound).push(pci.at());
                    note_rings(cpu, &bench, pci.at());
                }
                Ok(false) => bench.failed(format!("{}: no driver for {:?}", pci.at(), pci.id())),
                Err(error) => {
                    lock(&bench.result).probe_errors.push(error.errno());
                    bench.failed(format!("{}: probe failed with error {}: {error}", pci.at(), error.errno()));
                }
            }
        }
    })
}

/// Binds the driver to a device that no bus finds.
fn probe_virtio(cpu: &Cpu<'_>, bench: &Bench, slot: &Slot) {
    let (Some(device), Some(driver)) = (&slot.virtio, bench.driver.virtio()) else { return };
    match driver.probe_virtio(cpu, slot.at, device) {
        Ok(()) => {
            lock(&bench.bound).push(slot.at);
            note_rings(cpu, bench, slot.at);
        }
        Err(error) => {
            lock(&bench.result).probe_errors.push(error.errno());
            bench.failed(format!("{}: probe failed with error {}: {error}", device.dma.name(), error.errno()));
        }
    }
}

/// The devices on the bus, found at the first call.
fn devices(bench: &Bench) -> Vec<Arc<PciDevice>> {
    let mut found = lock(&bench.found);
    if found.is_empty() {
        let dma = |at| bench.slots.iter().find(|slot| slot.at == at).map(|slot| slot.dma.clone());
        match enumerate(&bench.bus, dma) {
            Ok(devices) => *found = devices,
            Err(error) => bench.failed(error.to_string()),
        }
    }
    found.clone()
}

/// The device at `at`, if it was found.
pub(super) fn device_at(bench: &Bench, at: Bdf) -> Option<Arc<PciDevice>> {
    devices(bench).into_iter().find(|pci| pci.at() == at)
}

fn note_rings(cpu: &Cpu<'_>, bench: &Bench, at: Bdf) {
    let Some(slot) = bench.slots.iter().find(|slot| slot.at == at) else { return };
    let Some(disk) = bench.driver.disk(slot.at) else { return };
    let row = |place: RingPlace| RingRow {
        device: slot.name.clone(),
        queue: place.queue,
        what: place.what.to_owned(),
        phys: place.phys.get(),
        bytes: place.len as u64,
        zone: place.zone.to_string(),
    };
    let rows: Vec<_> = disk.ring_places(cpu).into_iter().map(row).collect();
    lock(&bench.result).rings.extend(rows);
}

/// Unbinds every bound device, the last found first, and notes what its queues carried.
pub(super) fn remove(bench: &Arc<Bench>) -> Body {
    let bench = bench.clone();
    Box::new(move |cpu| {
        for pci in devices(&bench).iter().rev() {
            if !bench.is_bound(pci.at()) {
                continue;
            }
            let slot = bench.slots.iter().find(|slot| slot.at == pci.at());
            if let (Some(slot), Some(disk)) = (slot, bench.driver.disk(pci.at())) {
                note_queues(cpu, &bench, slot, &disk);
            }
            lock(&bench.bound).retain(|&at| at != pci.at());
            lowzone_driver::unbind(cpu, &*bench.driver, pci);
        }
        bench.slots.iter().rev().for_each(|slot| remove_virtio(cpu, &bench, slot));
    })
}

/// Unbinds the driver from a device that no bus finds.
fn remove_virtio(cpu: &Cpu<'_>, bench: &Bench, slot: &Slot) {
    let (Some(device), Some(driver)) = (&slot.virtio, bench.driver.virtio()) else { return };
    if let Some(disk) = driver.disk(slot.at) {
        note_queues(cpu, bench, slot, &disk);
        lock(&bench.bound).retain(|&at| at != slot.at);
        drop(disk);
        driver.remove_virtio(cpu, slot.at, device);
    }
}

/// Stops every bound device's DMA.
pub(super) fn shutdown(bench: &Arc<Bench>) -> Body {
    let bench = bench.clone();
    Box::new(move |cpu| {
        let _span = cpu.span("shutdown");
        for pci in devices(&bench).iter().rev().filter(|pci| bench.is_bound(pci.at())) {
            bench.driver.shutdown(cpu, pci);
            pci.dma().shut_down();
        }
    })
}

fn note_queues(cpu: &Cpu<'_>, bench: &Bench, slot: &Slot, disk: &Disk) {
    let stats = disk.stats(cpu);
    let mut result = lock(&bench.result);
    result.peak_in_flight = result.peak_in_flight.max(disk.peak_in_flight());
    result.queues.extend((0_u16..).zip(stats).map(|(queue, stats)| QueueRow {
        device: slot.name.clone(),
        queue,
        requests: stats.completed,
        out_of_order: stats.out_of_order,
        peak: stats.peak,
        interrupts: stats.interrupts,
        kicks: stats.ring.kicks,
        direct: stats.ring.direct,
        indirect: stats.ring.indirect,
    }));
}
