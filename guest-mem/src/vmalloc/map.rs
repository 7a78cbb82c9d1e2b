//! `vmap`: pages that somebody holds, made contiguous for the CPU.
//!
//! Neighbours: [`super`], which owns its pages. Left out: `VM_MAP_PUT_PAGES`, protections.

use std::marker::PhantomData;

use super::{Area, AreaMisuse, Backing, VmallocError, access, free_at, report, take_area};
use crate::addr::{PAGE_SIZE, Pfn, VirtAddr};
use crate::cpu::Cpu;
use crate::env::Class;
use crate::gfp::GFP_KERNEL;
use crate::kbuf::OutOfBounds;
use crate::kernel::KernelRef;
use crate::page::Pages;
use crate::site::Owner;

/// Pages mapped one after the other; unmapped when dropped, without a look at the context: [`vunmap`] looks.
#[must_use = "the pages are unmapped when this is dropped"]
pub struct VMap<'p> {
    kernel: KernelRef,
    at: VirtAddr,
    len: usize,
    pages: PhantomData<&'p Pages>,
}

/// Maps pages one after the other, in the order given (`vmap`). Process context only. They stay their holder's.
///
/// # Errors
/// [`VmallocError`]: no pages at all, more than all of RAM, no memory or addresses.
#[track_caller]
pub fn vmap<'p>(cpu: &Cpu<'_>, blocks: &[&'p Pages]) -> Result<VMap<'p>, VmallocError> {
    let owner = cpu.owner();
    let frames = |block: &&Pages| {
        let first = block.phys().pfn().get();
        (first..first + (1 << block.order())).map(Pfn::new)
    };
    let pages: Box<[Pfn]> = blocks.iter().flat_map(frames).collect();
    let bytes = pages.len() as u64 * PAGE_SIZE;
    if pages.is_empty() {
        return Err(VmallocError::Zero);
    }
    if pages.len() as u64 > cpu.kernel().total_pages() {
        return Err(VmallocError::TooLarge { size: bytes });
    }
    let area = Area { bytes, backing: Backing::Map(pages), owner };
    let at = take_area(cpu, "vmap", area, PAGE_SIZE, GFP_KERNEL)?;
    Ok(VMap { kernel: cpu.kernel_ref(), at, len: usize::try_from(bytes).unwrap_or(0), pages: PhantomData })
}

/// Unmaps pages (`vunmap`). Process context only.
#[track_caller]
pub fn vunmap(cpu: &Cpu<'_>, map: VMap<'_>) {
    let owner = cpu.owner();
    if !cpu.in_interrupt() {
        cpu.might_sleep("vunmap");
    } else {
        report(cpu.kernel(), AreaMisuse::InInterrupt { call: "vunmap" }, vec![("called at", owner)]);
    }
    let _ = cpu.point_for(Class::Release, map.len as u64, owner);
    if map.kernel.get().is_some() {
        free_at(cpu.kernel(), "vunmap", map.at, owner);
    }
    std::mem::forget(map);
}

impl VMap<'_> {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none; a mapping always has some.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the driver's pointer would hold.
    pub fn virt(&self) -> VirtAddr {
        self.at
    }

    /// Copies bytes out of the pages. Any context.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[track_caller]
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<(), OutOfBounds> {
        access::read_at((self.kernel, self.at, self.len), offset, to)
    }

    /// Copies bytes into the pages. Any context.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    #[track_caller]
    pub fn write_at(&mut self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        access::write_at((self.kernel, self.at, self.len), offset, from)
    }
}

impl Drop for VMap<'_> {
    fn drop(&mut self) {
        if let Some(kernel) = self.kernel.get() {
            free_at(kernel, "vunmap", self.at, Owner::default());
        }
    }
}
