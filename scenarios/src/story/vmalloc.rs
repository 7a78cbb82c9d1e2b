//! `vmalloc`: large memory for the CPU alone, what it costs and where it ends.
//!
//! The mistakes: its address handed to the DMA API, a write past its end, a second `vfree`, a look at it afterwards, an
//! allocation under a spinlock.

use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::dma::{DmaDevice, ToDevice, dma_bit_mask};
use lowzone_guest_mem::gfp::{__GFP_NOWARN, GFP_KERNEL};
use lowzone_guest_mem::kvmalloc::{KvBuf, kvfree, kvmalloc};
use lowzone_guest_mem::lock::SpinLock;
use lowzone_guest_mem::page::alloc_pages;
use lowzone_guest_mem::vmalloc::{
    VBuf, find_vm_area, is_vmalloc_addr, misuse, read, vfree, virt_addr_valid, vmalloc, vmap, vunmap, vzalloc, write,
};

use super::{StoryError, Telling};

const LARGE: usize = 8 << 20;

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let physical = KBuf::kmalloc(cpu, LARGE, GFP_KERNEL | __GFP_NOWARN);
    telling.expect("kmalloc(8 MiB)", "NULL", if physical.is_ok() { "memory" } else { "NULL" })?;
    let mut table = vzalloc(cpu, LARGE)?;
    let area = find_vm_area(cpu.kernel(), table.virt());
    let (pages, size) = area.map_or((0, 0), |area| (area.pages, area.size));
    telling.expect("vzalloc(8 MiB): pages, each from wherever there was one", 2048, pages)?;
    telling.expect("its address space, with the guard page", LARGE + 4096, size)?;
    telling.expect("is_vmalloc_addr", true, is_vmalloc_addr(cpu.kernel(), table.virt()))?;
    telling.expect("virt_addr_valid: no one physical address", false, virt_addr_valid(cpu.kernel(), table.virt()))?;
    table.write_at(LARGE - 1, &[7])?;
    send(telling, &table)?;
    kinds(telling)?;
    together(telling)?;
    let at = table.virt();
    if telling.makes("overrun") {
        telling.fact("bytes written of 4 from the last one on", write(cpu, at.wrapping_add(LARGE as u64 - 1), &[1; 4]));
    }
    vfree(cpu, table);
    if telling.makes("double-vfree") {
        misuse::vfree(cpu, at);
    }
    if telling.makes("use-after-vfree") {
        telling.fact("bytes read after vfree", read(cpu, at, &mut [0; 4]));
    }
    if telling.makes("under-lock") {
        let lock = SpinLock::new(());
        let guard = lock.lock(cpu);
        let small = vmalloc(cpu, 4096)?;
        drop(guard);
        vfree(cpu, small);
    }
    Ok(())
}

/// What a device is given is a copy in memory that has a physical address.
fn send(telling: &Telling<'_, '_>, table: &VBuf) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let device = DmaDevice::new(cpu.kernel_ref(), "card");
    device.set_mask_and_coherent(cpu, dma_bit_mask(64))?;
    if telling.makes("dma-map") {
        let refused = misuse::map_single(cpu, &device, table.virt(), 4096).is_err();
        telling.expect("dma_map_single of its address is refused", true, refused)?;
    }
    let mut page = [0; 4096];
    table.read_at(LARGE - page.len(), &mut page)?;
    let mut copy = KBuf::kmalloc(cpu, page.len(), GFP_KERNEL)?;
    copy.write_at(0, &page)?;
    let mapped = device.map_single::<ToDevice>(cpu, copy)?;
    telling.expect("its last byte in a page that a device can be given", 7, page[4095])?;
    drop(mapped.unmap(cpu));
    Ok(())
}

/// `kvmalloc` takes the one or the other.
fn kinds(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    for (what, len, expected) in [("kvmalloc(4 MiB)", 4 << 20, "kmalloc"), ("kvmalloc(8 MiB)", LARGE, "vmalloc")] {
        let buf = kvmalloc(telling.cpu(), len, GFP_KERNEL)?;
        let kind = if matches!(buf, KvBuf::Kmalloc(_)) { "kmalloc" } else { "vmalloc" };
        telling.expect(what, expected, kind)?;
        kvfree(telling.cpu(), buf);
    }
    Ok(())
}

/// `vmap` of pages that lie apart.
fn together(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let pages = [alloc_pages(cpu, 0, GFP_KERNEL)?, alloc_pages(cpu, 0, GFP_KERNEL)?];
    let mut map = vmap(cpu, &[&pages[1], &pages[0]])?;
    map.write_at(4094, &[1, 2, 3, 4])?;
    let mut seen = [0; 2];
    cpu.kernel().ram().read(pages[0].phys(), &mut seen)?;
    telling.expect(
        "four bytes across the seam of a vmap: the last two in the other page",
        "[3, 4]",
        format!("{seen:?}"),
    )?;
    vunmap(cpu, map);
    Ok(())
}
