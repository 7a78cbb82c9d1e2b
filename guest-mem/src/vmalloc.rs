//! `vmalloc`: memory that is contiguous for the CPU and for nobody else.
//!
//! A [`VBuf`] is made of single pages, wherever the page allocator has them, mapped one after the other at addresses
//! of their own, with an unmapped guard page behind. It may be large while memory is fragmented, but it costs page
//! tables, sleeps, and has no one physical address: a device can't be given it (`map-vmalloc`). [`vmap`] does the same
//! with pages that somebody holds already.
//!
//! Mirrors mm/vmalloc.c of 6.1. Neighbours: `page` (where the pages come from), [`areas`](self) (addresses),
//! `kvmalloc`, `iomem` (registers in the same address space). Left out: huge pages, user mappings, the memory of page
//! tables and of the descriptors themselves (their points are passed, no object is taken).

use std::ops::Range;

use crate::addr::{PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
use crate::cpu::Cpu;
use crate::env::{Class, Verdict};
use crate::fault::Request;
use crate::finding::{Finding, FindingKind};
use crate::gfp::{GFP_DMA32, GFP_KERNEL, GFP_ZONEMASK, Gfp};
use crate::kbuf::OutOfBounds;
use crate::kernel::{Kernel, KernelRef};
use crate::page::{give_block, take_block_quietly};
use crate::site::Owner;
use crate::slab::CacheId;
use crate::trace::{Kind as TraceKind, owner_word};

mod access;
mod areas;
mod error;
mod map;
pub mod misuse;
#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;
mod validate;

pub use access::{read, write};
pub(crate) use areas::{Area, Areas, Backing};
pub use error::{AreaMisuse, NotMapped, VmallocError};
pub use map::{VMap, vmap, vunmap};
pub use validate::InvalidAreas;

/// Where x86-64 loads modules (`MODULES_VADDR`): not vmalloc's addresses, though vmalloc's code hands them out.
pub const MODULES: Range<u64> = 0xffff_ffff_a000_0000..0xffff_ffff_ff00_0000;
/// Bytes of a `vm_struct`, an object of kmalloc-64.
const DESCRIPTOR: u64 = 64;

/// What is known about an area (`struct vm_struct`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmArea {
    /// Its first address.
    pub start: VirtAddr,
    /// Bytes of address space, the guard page included.
    pub size: u64,
    /// Pages of RAM behind it.
    pub pages: usize,
    /// `VM_IOREMAP` 1, `VM_ALLOC` 2, `VM_MAP` 4.
    pub flags: u32,
    /// Who made it.
    pub owner: Owner,
}

/// Memory from `vmalloc`; freed when dropped, without a look at the context: [`vfree`] looks.
#[must_use = "the memory is freed when this is dropped"]
pub struct VBuf {
    kernel: KernelRef,
    at: VirtAddr,
    len: usize,
    owner: Owner,
}

impl std::fmt::Debug for VBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VBuf({} + {:#x})", self.at, self.len)
    }
}

/// Allocates `len` bytes of virtually contiguous memory (`vmalloc`), not zeroed. Process context only.
///
/// # Errors
/// [`VmallocError`].
#[track_caller]
pub fn vmalloc(cpu: &Cpu<'_>, len: usize) -> Result<VBuf, VmallocError> {
    __vmalloc(cpu, len, GFP_KERNEL)
}

/// [`vmalloc`], zeroed (`vzalloc`). Process context only.
///
/// # Errors
/// [`VmallocError`].
#[track_caller]
pub fn vzalloc(cpu: &Cpu<'_>, len: usize) -> Result<VBuf, VmallocError> {
    __vmalloc(cpu, len, GFP_KERNEL | Gfp::ZERO)
}

/// [`vmalloc`] of pages below 4 GiB (`vmalloc_32`). Process context only.
///
/// # Errors
/// [`VmallocError`].
#[track_caller]
pub fn vmalloc_32(cpu: &Cpu<'_>, len: usize) -> Result<VBuf, VmallocError> {
    __vmalloc(cpu, len, GFP_KERNEL | GFP_DMA32)
}

/// [`vmalloc`] with a mask (`__vmalloc`). Process context only, whatever the mask: the address space is behind a lock
/// that sleeps, so `GFP_ATOMIC` under a spinlock is reported too.
///
/// # Errors
/// [`VmallocError`].
#[track_caller]
pub fn __vmalloc(cpu: &Cpu<'_>, len: usize, gfp: Gfp) -> Result<VBuf, VmallocError> {
    let owner = cpu.owner();
    if len == 0 {
        return Err(VmallocError::Zero);
    }
    let asked = len as u64;
    if asked / PAGE_SIZE > cpu.kernel().total_pages() {
        return Err(error::warn_alloc(cpu, gfp, VmallocError::TooLarge { size: asked }));
    }
    let size = asked.next_multiple_of(PAGE_SIZE);
    let area = Area { bytes: size, backing: Backing::Alloc(Box::default()), owner };
    let at = take_area(cpu, "vmalloc", area, PAGE_SIZE, gfp).map_err(|why| error::warn_alloc(cpu, gfp, why))?;
    match take_pages(cpu, size, gfp, owner) {
        Ok(pages) => {
            cpu.kernel().vmalloc.lock().fill(at, pages);
            Ok(VBuf { kernel: cpu.kernel_ref(), at, len, owner })
        }
        Err(why) => {
            let _ = cpu.kernel().vmalloc.lock().remove(at, owner);
            Err(error::warn_alloc(cpu, gfp, why))
        }
    }
}

/// Zeroed memory of `len` bytes at a multiple of them, for a thread's stack (`alloc_thread_stack_node`): who asks for
/// the thread has complained about the context.
#[track_caller]
pub(crate) fn vmalloc_stack(cpu: &Cpu<'_>, len: u64, gfp: Gfp) -> Result<VBuf, VmallocError> {
    let owner = cpu.owner();
    if slab_point(cpu, DESCRIPTOR, gfp, owner) {
        return Err(VmallocError::NoDescriptor { size: len });
    }
    let at = place_area(cpu, Area { bytes: len, backing: Backing::Alloc(Box::default()), owner }, len)?;
    let buf = VBuf { kernel: cpu.kernel_ref(), at, len: usize::try_from(len).unwrap_or(0), owner };
    // Without its pages it goes again: it drops.
    let pages = take_pages(cpu, len, gfp, owner)?;
    cpu.kernel().vmalloc.lock().fill(at, pages);
    Ok(buf)
}

/// A place in the address space for an area of whole pages (`__get_vm_area_node`).
#[track_caller]
pub(crate) fn take_area(
    cpu: &Cpu<'_>,
    call: &'static str,
    area: Area,
    align: u64,
    gfp: Gfp,
) -> Result<VirtAddr, VmallocError> {
    let owner = area.owner;
    if cpu.in_interrupt() {
        report(cpu.kernel(), AreaMisuse::InInterrupt { call }, vec![("called at", owner)]);
        return Err(VmallocError::InInterrupt);
    }
    cpu.might_sleep(call);
    if slab_point(cpu, DESCRIPTOR, gfp, owner) {
        return Err(VmallocError::NoDescriptor { size: area.bytes });
    }
    place_area(cpu, area, align)
}

/// The same for who has passed a point of its own and complained about the context.
pub(crate) fn place_area(cpu: &Cpu<'_>, area: Area, align: u64) -> Result<VirtAddr, VmallocError> {
    let size = area.size();
    drain_deferred(cpu.kernel());
    cpu.kernel().vmalloc.lock().take(area, align).ok_or(VmallocError::NoSpace { size })
}

/// The point of an object that describes an area; whether it fails.
fn slab_point(cpu: &Cpu<'_>, size: u64, gfp: Gfp, owner: Owner) -> bool {
    let gfp = gfp - GFP_ZONEMASK - Gfp::ZERO;
    let id = usize::try_from(size).ok().and_then(|size| CacheId::serving(size, gfp));
    let request = id.map_or(Request::slab(size, gfp, None), |id| Request::object_of(id, gfp));
    let failed = cpu.pass(request, owner, gfp.can_fail(0, cpu.kernel().config().arch)) == Verdict::Fail;
    let failed = failed && !gfp.contains(Gfp::NOFAIL);
    if !failed {
        // The object itself is not modelled: its event has no address.
        cpu.trace(TraceKind::KmemCacheAlloc, 0, usize::try_from(size).unwrap_or(usize::MAX), 0, owner_word(owner));
    }
    failed
}

/// The pages of an area, one by one (`__vmalloc_area_node`).
fn take_pages(cpu: &Cpu<'_>, size: u64, gfp: Gfp, owner: Owner) -> Result<Box<[Pfn]>, VmallocError> {
    let (count, array) = (size / PAGE_SIZE, size / PAGE_SIZE * 8);
    // Beyond a page Linux has the list from vmalloc itself: its descriptor may fail.
    if slab_point(cpu, if array > PAGE_SIZE { DESCRIPTOR } else { array }, gfp, owner) {
        return Err(VmallocError::NoArray { size, array });
    }
    let mut mask = gfp | Gfp::NOWARN;
    if !mask.intersects(Gfp::DMA | Gfp::DMA32) {
        mask |= Gfp::HIGHMEM;
    }
    let mut pages = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
    for _ in 0..count {
        match take_block_quietly(cpu, 0, mask, Class::Page, owner) {
            Ok(block) => pages.push(block.pfn),
            Err(_) => {
                give_pages(cpu.kernel(), &pages);
                return Err(VmallocError::NoPages { size });
            }
        }
    }
    Ok(pages.into())
}

fn give_pages(kernel: &Kernel, pages: &[Pfn]) {
    pages.iter().for_each(|pfn| give_block(kernel, pfn.phys(), 0));
}

/// Frees vmalloc memory (`vfree`). Process context; in an interrupt handler or softirq, and with softirqs off, a worker
/// does it later.
#[track_caller]
pub fn vfree(cpu: &Cpu<'_>, buf: VBuf) {
    misuse::vfree(cpu, buf.into_raw());
}

/// Frees what handlers left to the worker; the kernel's log keeps who asked.
pub(crate) fn drain_deferred(kernel: &Kernel) {
    let deferred = kernel.vmalloc.lock().take_deferred();
    for (at, by) in deferred {
        free_at(kernel, "vfree", at, by);
    }
}

/// `vfree` or `vunmap` of an address, for `Drop` and for misuse.
fn free_at(kernel: &Kernel, call: &'static str, at: VirtAddr, by: Owner) {
    let sites = |made: Option<Owner>| {
        made.map(|made| ("allocated at", made)).into_iter().chain([("freed at", by)]).collect::<Vec<_>>()
    };
    if at.page_offset() != 0 {
        return warn(kernel, AreaMisuse::BadAddress { call, at }, sites(None));
    }
    let (start, area) = {
        let mut areas = kernel.vmalloc.lock();
        let start = areas.find(at).map(|(start, _)| start);
        match start.and_then(|start| Some((start, areas.remove(start, by)?))) {
            Some(found) => found,
            None => {
                drop(areas);
                return warn(kernel, AreaMisuse::Nonexistent { call, at }, sites(None));
            }
        }
    };
    if start != at {
        report(kernel, AreaMisuse::Inside { call, at, start }, sites(Some(area.owner)));
    }
    let (is, right) = match area.backing {
        Backing::Alloc(_) => ("vmalloc", "vfree"),
        Backing::Map(_) => ("vmap", "vunmap"),
        Backing::Io(_) => ("ioremap", "iounmap"),
    };
    if call != right {
        report(kernel, AreaMisuse::WrongKind { call, is, at: start }, sites(Some(area.owner)));
    }
    // What vunmap takes away keeps its pages: they leak, as in Linux.
    if let (Backing::Alloc(pages), "vfree") = (&area.backing, call) {
        give_pages(kernel, pages);
    }
}

/// A finding about an area.
pub(crate) fn report(kernel: &Kernel, misuse: AreaMisuse, sites: Vec<(&'static str, Owner)>) {
    kernel.report(Finding { kind: FindingKind::Area(misuse), device: None, at: kernel.clock(), sites });
}

/// The same, printed in the kernel's log too.
pub(crate) fn warn(kernel: &Kernel, misuse: AreaMisuse, sites: Vec<(&'static str, Owner)>) {
    kernel.log().print(kernel.clock(), &misuse.to_string());
    report(kernel, misuse, sites);
}

impl VBuf {
    /// How many bytes were asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none; an area always has some.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the driver's pointer would hold.
    pub fn virt(&self) -> VirtAddr {
        self.at
    }

    /// Who allocated it.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Whether its machine was recycled.
    pub(crate) fn is_stale(&self) -> bool {
        self.kernel.get().is_none()
    }

    /// Gives the pointer away, as C has it: whoever has it must [`misuse::vfree`] it.
    pub fn into_raw(self) -> VirtAddr {
        let at = self.at;
        std::mem::forget(self);
        at
    }

    /// Copies bytes out of it; a freed area is reported, and a recycled machine. Any context.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[track_caller]
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        access::read_at((self.kernel, self.at, self.len), offset, to)
    }

    /// Copies bytes into it; a freed area is reported, and a recycled machine. Any context.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[track_caller]
    pub fn write_at(&mut self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        access::write_at((self.kernel, self.at, self.len), offset, from)
    }
}

impl Drop for VBuf {
    fn drop(&mut self) {
        if let Some(kernel) = self.kernel.get() {
            free_at(kernel, "vfree", self.at, Owner::default());
        }
    }
}

/// Whether an address lies where vmalloc, vmap and ioremap put theirs (`is_vmalloc_addr`). Any context.
pub fn is_vmalloc_addr(kernel: &Kernel, at: VirtAddr) -> bool {
    kernel.config().arch.vmalloc().contains(&at.get())
}

/// Whether an address belongs to vmalloc or to a module's code or data (`is_vmalloc_or_module_addr`). Any context.
pub fn is_vmalloc_or_module_addr(kernel: &Kernel, at: VirtAddr) -> bool {
    is_vmalloc_addr(kernel, at) || MODULES.contains(&at.get())
}

/// Whether an address belongs to the direct map of RAM (`virt_addr_valid`): never one of vmalloc's. Any context.
pub fn virt_addr_valid(kernel: &Kernel, at: VirtAddr) -> bool {
    let base = kernel.config().arch.direct_map(PhysAddr::new(0));
    let phys = base.and_then(|base| at.offset_from(base)).map(PhysAddr::new);
    phys.is_some_and(|phys| phys.get() < kernel.config().arch.lowmem_end() && kernel.ram().contains(phys, 1))
}

/// The page behind a vmalloc or vmap address (`vmalloc_to_pfn`); `None` where none is mapped. Any context.
pub fn vmalloc_to_pfn(kernel: &Kernel, at: VirtAddr) -> Option<Pfn> {
    match kernel.vmalloc.lock().place(at) {
        areas::Place::Ram(phys, _) => Some(phys.pfn()),
        _ => None,
    }
}

/// The first byte of the page behind a vmalloc or vmap address (`vmalloc_to_page`). Any context.
pub fn vmalloc_to_page(kernel: &Kernel, at: VirtAddr) -> Option<PhysAddr> {
    vmalloc_to_pfn(kernel, at).map(Pfn::phys)
}

/// The area that holds an address, its guard page included (`find_vm_area`). Any context.
pub fn find_vm_area(kernel: &Kernel, at: VirtAddr) -> Option<VmArea> {
    kernel.vmalloc.lock().describe(at)
}

/// The text of `/proc/vmallocinfo`, a line for each area.
pub fn vmallocinfo(kernel: &Kernel) -> String {
    let areas = kernel.vmalloc.lock();
    let line = |(start, area): (VirtAddr, &Area)| {
        let (start, size) = (start.get(), area.size());
        let mut line = format!("0x{start:016x}-0x{:016x} {size:7} {}", start + size, area.owner);
        let pages = area.backing.pages().len();
        if let (Backing::Alloc(_), 1..) = (&area.backing, pages) {
            line += &format!(" pages={pages}");
        }
        line += &match &area.backing {
            Backing::Io(phys) => format!(" phys={phys:#018x} ioremap"),
            Backing::Alloc(_) => " vmalloc".to_owned(),
            Backing::Map(_) => " vmap".to_owned(),
        };
        if let (Backing::Alloc(_), 1..) = (&area.backing, pages) {
            line += &format!(" N0={pages}");
        }
        line + "\n"
    };
    areas.live().map(line).collect()
}
