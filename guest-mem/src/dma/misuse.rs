//! Raw calls that commit a crime on purpose: the DMA API as C has it.
//!
//! The types keep honest drivers from unmapping twice or touching a mapped buffer; a C driver has no such types, so
//! scenarios need a way to do wrong. Nothing here bypasses the books: ledger and port see it all and report it.
//! Neighbours: `streaming`, `kbuf`. Only scenarios and tests call this.

use crate::addr::{DmaAddr, PhysAddr};
use crate::cpu::Cpu;
use crate::dma::device::DmaDevice;
use crate::dma::direction::Dir;
use crate::dma::streaming::{MapFailure, RawMapping, report_unmap};
use crate::env::Class;
use crate::kbuf::{KBuf, kfree_raw};

/// Maps a buffer without taking it (`dma_map_single`). Any context.
///
/// # Errors
/// [`MapFailure`].
#[track_caller]
pub fn map_single(cpu: &Cpu<'_>, device: &DmaDevice, buf: &KBuf, dir: Dir) -> Result<RawMapping, MapFailure> {
    device.map_raw(cpu, buf, dir, true)
}

/// Maps a buffer and never asks `dma_mapping_error` about it, unless [`mapping_error`] is called. Any context.
///
/// # Errors
/// [`MapFailure`], of which C code that doesn't ask would not know.
#[track_caller]
pub fn map_single_unchecked(cpu: &Cpu<'_>, device: &DmaDevice, buf: &KBuf, dir: Dir) -> Result<RawMapping, MapFailure> {
    device.map_raw(cpu, buf, dir, false)
}

/// Asks whether an address is a failed mapping's, which counts as the check (`dma_mapping_error`). Any context.
pub fn mapping_error(device: &DmaDevice, dma: DmaAddr) -> bool {
    device.state.ledger.lock().check(dma);
    dma.get() == u64::MAX
}

/// Takes coherent memory off the books by numbers (`dma_free_coherent`); its pages go when it drops. Any context.
#[track_caller]
pub fn free_coherent(cpu: &Cpu<'_>, device: &DmaDevice, phys: PhysAddr, dma: DmaAddr, len: u64) {
    let owner = cpu.owner();
    let _ = cpu.point_for(Class::Release, len, owner);
    let unmapped = device.state.ledger.lock().free_coherent(dma, len, phys, owner, cpu.now());
    report_unmap(device, &unmapped, owner);
}

/// Unmaps by numbers (`dma_unmap_single`): right or wrong, as often as called. Any context.
#[track_caller]
pub fn unmap_single(cpu: &Cpu<'_>, device: &DmaDevice, dma: DmaAddr, len: u64, dir: Dir) {
    let owner = cpu.owner();
    let _ = cpu.point_for(Class::Release, len, owner);
    device.unmap_raw(dma, len, dir, owner);
}

/// Syncs by numbers (`dma_sync_single_for_cpu` or `_for_device`). Any context.
#[track_caller]
pub fn sync_single(cpu: &Cpu<'_>, device: &DmaDevice, dma: DmaAddr, len: u64, for_cpu: bool, dir: Dir) {
    device.sync_raw(cpu, dma, len, for_cpu, dir);
}

/// Frees an address (`kfree`): one never allocated, or freed before, is reported. Any context.
#[track_caller]
pub fn kfree(cpu: &Cpu<'_>, phys: PhysAddr) {
    kfree_raw(cpu.kernel(), phys, cpu.owner());
}

#[cfg(test)]
mod tests;
