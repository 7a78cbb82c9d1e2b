//! Raw calls that commit a crime on purpose: the DMA API as C has it.
//!
//! The types keep honest drivers from unmapping twice or touching a mapped buffer; a C driver has no such types, so
//! scenarios need a way to do wrong. Nothing here bypasses the books: ledger and port see it all and report it.
//! Neighbours: `streaming`, `kbuf`. Only scenarios, tests and drivers with a bug seeded into them call this.

use crate::addr::{DmaAddr, PhysAddr, VirtAddr};
use crate::cpu::{Cpu, Halt};
use crate::dma::attrs::Attrs;
use crate::dma::coherent::Coherent;
use crate::dma::device::DmaDevice;
use crate::dma::direction::{Dir, Direction};
use crate::dma::ledger::Misuse;
use crate::dma::ownership::freed_under_mapping;
use crate::dma::sg::SgTable;
use crate::dma::streaming::{MapError, MapFailure, Mapped, Piece, RawMapping, Terms, report_unmap};
use crate::env::Class;
use crate::finding::FindingKind;
use crate::kbuf::{KBuf, OutOfBounds, kfree_raw};
use crate::kmalloc::object::is_free;
use crate::kmem_cache::KmemCache;
use crate::vmalloc::{self, is_vmalloc_addr, virt_addr_valid};

/// Where x86-64 maps its own image, and modules behind it (`__START_KERNEL_map`).
const KERNEL_IMAGE: u64 = 0xffff_ffff_8000_0000;

/// Maps a buffer without taking it (`dma_map_single`). Any context.
///
/// # Errors
/// [`MapFailure`].
#[track_caller]
pub fn map_single(cpu: &Cpu<'_>, device: &DmaDevice, buf: &KBuf, dir: Dir) -> Result<RawMapping, MapFailure> {
    device.map_raw(cpu, buf, Terms::lent(dir))
}

/// Maps a buffer and never asks `dma_mapping_error` about it, unless [`mapping_error`] is called. Any context.
///
/// # Errors
/// [`MapFailure`], of which C code that doesn't ask would not know.
#[track_caller]
pub fn map_single_unchecked(cpu: &Cpu<'_>, device: &DmaDevice, buf: &KBuf, dir: Dir) -> Result<RawMapping, MapFailure> {
    device.map_raw(cpu, buf, Terms { checked: false, ..Terms::lent(dir) })
}

/// Maps a buffer and goes on whatever came of it: a failed mapping's address is all-ones. Any context.
#[track_caller]
pub fn map_blindly<D: Direction>(cpu: &Cpu<'_>, device: &DmaDevice, buf: KBuf) -> Mapped<KBuf, D> {
    device.map_blindly(cpu, buf)
}

/// Maps `len` bytes from the beginning of a buffer and remembers only those that the buffer has, which is what the unmap
/// will say (`skb_padto`, then `dma_map_single` of the padded length). Any context.
///
/// # Errors
/// [`MapError`] with the buffer and the reason.
#[track_caller]
pub fn map_padded<D: Direction>(
    cpu: &Cpu<'_>,
    device: &DmaDevice,
    buf: KBuf,
    len: u64,
) -> Result<Mapped<KBuf, D>, MapError<KBuf>> {
    let terms = Terms::single(D::DIR);
    match device.map_at(cpu, Piece { orig: buf.phys(), len, owner: buf.owner() }, terms) {
        Ok(raw) => Ok(device.mapped(RawMapping { len: buf.len() as u64, ..raw }, terms, buf)),
        Err(why) => Err(MapError { buf, why }),
    }
}

/// Takes the memory back and leaves the mapping (no `dma_unmap_single` at all). Any context.
pub fn never_unmap<B, D: Direction>(cpu: &Cpu<'_>, mapped: Mapped<B, D>) -> B {
    mapped.desert(cpu)
}

/// Reads a buffer while it is mapped, as C code reads it through the pointer it kept (no `dma_sync_single_for_cpu`). Any
/// context.
///
/// # Errors
/// [`OutOfBounds`].
#[track_caller]
pub fn read_mapped<D: Direction>(
    cpu: &Cpu<'_>,
    mapped: &Mapped<KBuf, D>,
    offset: usize,
    to: &mut [u8],
) -> Result<(), OutOfBounds> {
    mapped.read_unsynced(cpu, offset, to)
}

/// Asks whether an address is a failed mapping's, which counts as the check (`dma_mapping_error`). Any context.
pub fn mapping_error(device: &DmaDevice, dma: DmaAddr) -> bool {
    device.state.ledger.lock().check(dma);
    dma.get() == u64::MAX
}

/// Takes coherent memory off the books by numbers (`dma_free_coherent`); its pages go when it drops. Interrupts on.
#[track_caller]
pub fn free_coherent(cpu: &Cpu<'_>, device: &DmaDevice, phys: PhysAddr, dma: DmaAddr, len: u64) {
    let owner = cpu.owner();
    cpu.wrong_context(cpu.irqs_disabled(), "dma_free_coherent", Some("any"));
    let _ = cpu.point_for(Class::Release, len, owner);
    let unmapped = device.state.ledger.lock().free_coherent(dma, len, phys, owner, cpu.now());
    report_unmap(device, &unmapped, owner);
}

/// Frees coherent memory with a length of the caller's own (`dma_free_coherent`). Interrupts on.
#[track_caller]
pub fn free_coherent_as(cpu: &Cpu<'_>, memory: Coherent, len: usize) {
    memory.free_as(cpu, len);
}

/// Unmaps by numbers (`dma_unmap_single`): right or wrong, as often as called. Any context.
#[track_caller]
pub fn unmap_single(cpu: &Cpu<'_>, device: &DmaDevice, dma: DmaAddr, len: u64, dir: Dir) {
    let owner = cpu.owner();
    let _ = cpu.point_for(Class::Release, len, owner);
    device.unmap_raw(dma, len, Terms::single(dir), owner);
}

/// Syncs by numbers (`dma_sync_single_for_cpu` or `_for_device`). Any context.
#[track_caller]
pub fn sync_single(cpu: &Cpu<'_>, device: &DmaDevice, dma: DmaAddr, len: u64, for_cpu: bool, dir: Dir) {
    device.sync_raw(cpu, dma, len, for_cpu, Terms::single(dir));
}

/// Maps a scatterlist without taking its memory (`dma_map_sg`): the number of entries, 0 if it failed. Any context.
#[track_caller]
pub fn map_sg(cpu: &Cpu<'_>, device: &DmaDevice, table: &mut SgTable, dir: Dir) -> usize {
    map_sgtable(cpu, device, table, dir).map_or(0, |()| table.entries().len())
}

/// Maps a scatterlist without taking its memory (`dma_map_sgtable`, of which each failure here is `-EIO`). Any context.
///
/// # Errors
/// [`MapFailure`].
#[track_caller]
pub fn map_sgtable(cpu: &Cpu<'_>, device: &DmaDevice, table: &mut SgTable, dir: Dir) -> Result<(), MapFailure> {
    device.map_sg_raw(cpu, table, (dir, Attrs::empty()), true)
}

/// Unmaps a scatterlist that is said to have `count` entries (`dma_unmap_sg`). Any context.
#[track_caller]
pub fn unmap_sg(cpu: &Cpu<'_>, device: &DmaDevice, table: &SgTable, count: usize, dir: Dir) {
    let owner = cpu.owner();
    let _ = cpu.point_for(Class::Release, count as u64, owner);
    device.unmap_sg_raw(table, count, dir, Attrs::empty(), owner);
}

/// Syncs a scatterlist that is said to have `count` entries (`dma_sync_sg_for_cpu` or `_for_device`). Any context.
#[track_caller]
pub fn sync_sg(cpu: &Cpu<'_>, device: &DmaDevice, table: &SgTable, count: usize, for_cpu: bool, dir: Dir) {
    device.sync_sg_raw(cpu, table, count, for_cpu, dir);
}

/// Maps `len` bytes of a buffer from `offset` on with attributes, without taking it (`dma_map_single_attrs`); a part
/// that leaves the buffer is mapped all the same. Any context.
///
/// # Errors
/// [`MapFailure`].
#[track_caller]
pub fn map_part(
    cpu: &Cpu<'_>,
    device: &DmaDevice,
    buf: &KBuf,
    (offset, len): (u64, u64),
    dir: Dir,
    attrs: Attrs,
) -> Result<RawMapping, MapFailure> {
    let piece = Piece { orig: buf.phys().wrapping_add(offset), len, owner: buf.owner() };
    device.live_for(cpu, Some(buf)).ok_or(MapFailure::Stale)?;
    device.map_at(cpu, piece, Terms { attrs, ..Terms::lent(dir) })
}

/// Maps memory by a virtual address that nobody has looked at (`dma_map_single`). Any context.
///
/// One of vmalloc's is refused. One of neither vmalloc nor the direct map, such as a module's data, is reported and mapped
/// all the same: the device is given what the address would be if the kernel's image were that long.
///
/// # Errors
/// [`MapFailure`].
#[track_caller]
pub fn map_address(
    cpu: &Cpu<'_>,
    device: &DmaDevice,
    at: VirtAddr,
    len: u64,
    dir: Dir,
) -> Result<RawMapping, MapFailure> {
    let kernel = device.live_for(cpu, None).ok_or(MapFailure::Stale)?;
    if is_vmalloc_addr(kernel, at) {
        vmalloc::misuse::map_single(cpu, device, at, len)?;
    }
    let base = if virt_addr_valid(kernel, at) {
        kernel.config().arch.direct_map(PhysAddr::new(0)).unwrap_or(at)
    } else {
        device.report(Misuse::MapsInvalid { addr: at, len }, None, cpu.owner());
        VirtAddr::new(KERNEL_IMAGE)
    };
    let orig = PhysAddr::new(at.get().wrapping_sub(base.get()));
    device.map_at(cpu, Piece { orig, len, owner: cpu.owner() }, Terms::single(dir))
}

/// Maps memory in no direction (`DMA_NONE`): reported, and the CPU stops as in an oops. Any context.
#[track_caller]
pub fn map_none(cpu: &Cpu<'_>, device: &DmaDevice) -> ! {
    cpu.emit(FindingKind::DirectionNone, Some(device.name().to_owned()), vec![("at", cpu.owner())]);
    cpu.halt(Halt::Oops)
}

/// Unmaps by numbers with attributes (`dma_unmap_single_attrs`). Any context.
#[track_caller]
pub fn unmap_attrs(cpu: &Cpu<'_>, device: &DmaDevice, (dma, len): (DmaAddr, u64), dir: Dir, attrs: Attrs) {
    let owner = cpu.owner();
    let _ = cpu.point_for(Class::Release, len, owner);
    device.unmap_raw(dma, len, Terms { attrs, ..Terms::single(dir) }, owner);
}

/// Frees an address (`kfree`): one never allocated, or freed before, is reported. Any context.
#[track_caller]
pub fn kfree(cpu: &Cpu<'_>, phys: PhysAddr) {
    freed_under_mapping(cpu.kernel(), phys, cpu.owner());
    kfree_raw(cpu.kernel(), phys, cpu.owner());
}

/// Frees what a pointer points to (`kfree`): memory of vmalloc's is no memory of `kfree`'s, and stays. Any context.
#[track_caller]
pub fn kfree_virt(cpu: &Cpu<'_>, at: VirtAddr) {
    let base = cpu.kernel().config().arch.direct_map(PhysAddr::new(0)).unwrap_or(VirtAddr::new(0));
    kfree(cpu, PhysAddr::new(at.get().wrapping_sub(base.get())));
}

/// Gives an address to a cache (`kmem_cache_free`): of another cache, freed before or never given, it is reported. Any
/// context.
#[track_caller]
pub fn kmem_cache_free(cpu: &Cpu<'_>, cache: &KmemCache, phys: PhysAddr) {
    cache.free_raw(cpu.kernel(), phys, cpu.owner());
}

/// Writes through a pointer that is wrong, into memory of whoever has it; only RAM is hit. Any context.
pub fn scribble(cpu: &Cpu<'_>, phys: PhysAddr, bytes: &[u8]) {
    // What is not RAM swallows it.
    let _ = cpu.kernel().ram().write(phys, bytes);
}

/// Reads through a pointer, whoever has the memory now, as C code that kept it: memory that is free is reported. Only RAM
/// is read. Any context.
#[track_caller]
pub fn load(cpu: &Cpu<'_>, at: PhysAddr, to: &mut [u8]) {
    let kernel = cpu.kernel();
    if is_free(kernel, at) {
        cpu.emit(FindingKind::ReadAfterFree { at, len: to.len() as u64 }, None, vec![("at", cpu.owner())]);
    }
    // What is no RAM leaves zeros.
    let _ = kernel.ram().read(at, to);
}

/// Writes from the beginning of a buffer on, past its end too: reported, and whoever has the memory behind it is hit. The
/// buffer counts as that long from then on, as it does to who wrote. Any context.
#[track_caller]
pub fn overrun(cpu: &Cpu<'_>, buf: KBuf, bytes: &[u8]) -> KBuf {
    if bytes.len() > buf.len() {
        let (len, size) = (bytes.len() as u64, buf.len() as u64);
        let kind = FindingKind::OutOfBounds { what: "buffer", offset: 0, len, size };
        cpu.emit(kind, None, vec![("written at", cpu.owner()), ("allocated at", buf.owner())]);
    }
    scribble(cpu, buf.phys(), bytes);
    buf.resized(bytes.len())
}

/// Frees a buffer's memory under its holder's feet (`kfree`, `free_pages`); its drop frees it again. Any context.
#[track_caller]
pub fn free_buffer(cpu: &Cpu<'_>, buf: &KBuf) {
    freed_under_mapping(cpu.kernel(), buf.phys(), cpu.owner());
    buf.free_under(cpu.kernel(), cpu.owner());
}

/// Uses the NULL of a failed allocation: reported, and the CPU stops as in an oops. Any context.
#[track_caller]
pub fn null_dereference(cpu: &Cpu<'_>, what: &'static str) -> ! {
    cpu.emit(FindingKind::NullDereference { at: VirtAddr::new(0), what }, None, vec![("at", cpu.owner())]);
    cpu.halt(Halt::Oops)
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
