//! A kernel thread's stack, and variables on it.
//!
//! On x86-64 a stack is an area of vmalloc (CONFIG_VMAP_STACK): its bytes have no one physical address, so a device
//! can't be given them. On the 32-bit machine it is a block of pages, and a device can, which is a mistake all the
//! same: the next function that is called reuses the bytes. Mirrors kernel/fork.c. Neighbours: the parent, [`misuse`].
//! Left out: the stacks that each CPU keeps for reuse, the frames of functions, the guard page's double fault.

use std::cell::Cell;

use super::KthreadError;
use crate::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use crate::arch::Arch;
use crate::cpu::Cpu;
use crate::gfp::{GFP_KERNEL, Gfp};
use crate::page::{Pages, alloc_pages};
use crate::site::Owner;
use crate::vmalloc::{self, VBuf, vmalloc_stack, vmalloc_to_page};

/// Bytes of a thread's stack on x86-64 (`THREAD_SIZE`).
pub const STACK: u64 = 4 * PAGE_SIZE;
/// The same on the 32-bit machine.
pub const STACK_32: u64 = 2 * PAGE_SIZE;

/// Where the bytes are.
pub(super) enum Region {
    /// Pages from anywhere, mapped.
    Mapped(VBuf),
    /// One block of the direct map.
    Block(Pages),
}

/// A thread's stack.
pub(super) struct Stack {
    pub(super) region: Region,
    /// The thread's number.
    pub(super) task: u32,
    /// Bytes that are not in use, below those that are.
    free: Cell<u64>,
}

impl Stack {
    /// Memory for a stack (`alloc_thread_stack_node`): who asks has complained about the context.
    #[track_caller]
    pub(super) fn new(cpu: &Cpu<'_>, task: u32) -> Result<Self, KthreadError> {
        let gfp = GFP_KERNEL | Gfp::ZERO;
        let region = match cpu.kernel().config().arch {
            Arch::X86_64 => Region::Mapped(vmalloc_stack(cpu, STACK, gfp)?),
            Arch::X86_32 => Region::Block(alloc_pages(cpu, 1, gfp)?),
        };
        Ok(Self { region, task, free: Cell::new(Self::size(cpu)) })
    }

    /// Bytes of a stack on this machine.
    pub(super) fn size(cpu: &Cpu<'_>) -> u64 {
        if cpu.kernel().config().arch == Arch::X86_64 { STACK } else { STACK_32 }
    }

    /// Its lowest address.
    fn base(&self, cpu: &Cpu<'_>) -> VirtAddr {
        match &self.region {
            Region::Mapped(area) => area.virt(),
            // A block below the end of the direct map: it was asked for without __GFP_HIGHMEM.
            Region::Block(pages) => cpu.kernel().config().arch.direct_map(pages.phys()).unwrap_or(VirtAddr::new(0)),
        }
    }

    /// Who started the thread.
    pub(super) fn owner(&self) -> Owner {
        match &self.region {
            Region::Mapped(area) => area.owner(),
            Region::Block(pages) => pages.owner(),
        }
    }
}

/// A variable on a thread's stack, as long as the function that has it runs: while this lives.
#[must_use = "the variable is gone when this is dropped"]
pub struct OnStack<'s> {
    pub(super) stack: &'s Stack,
    at: u64,
    len: usize,
    /// What was free before it.
    before: u64,
}

impl<'s> OnStack<'s> {
    /// Room for `len` bytes, at a multiple of 16; `None` where the stack has no more.
    pub(super) fn new(stack: &'s Stack, len: usize) -> Option<Self> {
        let before = stack.free.get();
        let at = before.checked_sub(u64::try_from(len).ok()?)? & !15;
        stack.free.set(at);
        Some(Self { stack, at, len, before })
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its address. Any context.
    pub fn virt(&self, cpu: &Cpu<'_>) -> VirtAddr {
        self.stack.base(cpu).wrapping_add(self.at)
    }

    /// The physical address of its first byte; those behind may be elsewhere. Any context.
    pub fn phys(&self, cpu: &Cpu<'_>) -> Option<PhysAddr> {
        match &self.stack.region {
            Region::Mapped(_) => {
                let at = self.virt(cpu);
                Some(vmalloc_to_page(cpu.kernel(), at)?.wrapping_add(at.page_offset()))
            }
            Region::Block(pages) => Some(pages.phys().wrapping_add(self.at)),
        }
    }

    /// Copies its bytes; returns how many. Any context.
    #[track_caller]
    pub fn read(&self, cpu: &Cpu<'_>, to: &mut [u8]) -> usize {
        let len = to.len().min(self.len);
        let to = &mut to[..len];
        match &self.stack.region {
            Region::Mapped(_) => vmalloc::read(cpu, self.virt(cpu), to),
            Region::Block(pages) => {
                // The block is RAM, and the variable lies in it.
                cpu.kernel().ram().read(pages.phys().wrapping_add(self.at), to).map_or(0, |()| len)
            }
        }
    }

    /// Copies bytes into it; returns how many. Any context.
    #[track_caller]
    pub fn write(&self, cpu: &Cpu<'_>, from: &[u8]) -> usize {
        let from = &from[..from.len().min(self.len)];
        match &self.stack.region {
            Region::Mapped(_) => vmalloc::write(cpu, self.virt(cpu), from),
            Region::Block(pages) => {
                cpu.kernel().ram().write(pages.phys().wrapping_add(self.at), from).map_or(0, |()| from.len())
            }
        }
    }
}

impl Drop for OnStack<'_> {
    fn drop(&mut self) {
        self.stack.free.set(self.before);
    }
}

#[cfg(test)]
mod tests;
