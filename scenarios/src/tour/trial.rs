//! What is only learnt by doing it wrong, on a machine of its own: who may sleep, called under a spin lock, and the
//! largest per-CPU variable, for one that is larger is warned of.
//!
//! What the kernel has to say of a call is what the cell says, so a row can't promise what the model doesn't do.
//! Neighbours: `rows`, whose allocators these are. Left out: how long one sleeps.

use lowzone_guest_mem::addr::PAGE_SHIFT;
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::gfp::{GFP_ATOMIC, GFP_KERNEL, Gfp};
use lowzone_guest_mem::kmem_cache::{SlabFlags, kmem_cache_create};
use lowzone_guest_mem::lock::SpinLock;
use lowzone_guest_mem::mempool::mempool_create_kmalloc_pool;
use lowzone_guest_mem::percpu::{alloc_percpu, alloc_percpu_gfp};
use lowzone_guest_mem::vmalloc::__vmalloc;
use lowzone_guest_mem::{Cpu, KBuf};

use super::entry::Entry;
use crate::render::bytes;

const OBJECT: usize = 100;
const PAGE: usize = 1 << PAGE_SHIFT;

/// What came out.
#[derive(Default)]
pub(super) struct Trial {
    /// Each allocator and whether it may sleep.
    sleeps: Vec<(&'static str, &'static str)>,
    largest_percpu: usize,
}

impl Trial {
    /// Tries everything; what was made for it may stay behind, for the machine goes with it.
    pub(super) fn of(cpu: &Cpu<'_>) -> Self {
        Self { sleeps: sleeps(cpu), largest_percpu: largest_percpu(cpu) }
    }

    /// Fills the cells that it knows.
    pub(super) fn fill(&self, entry: &mut Entry) {
        let tried = self.sleeps.iter().find(|(allocator, _)| *allocator == entry.allocator);
        entry.sleeps = tried.map_or("?", |(_, verdict)| verdict);
        if entry.allocator == "alloc_percpu" {
            entry.largest = bytes(self.largest_percpu as u64);
        }
    }
}

/// The largest variable that was given, of sizes that are powers of two and one number more.
fn largest_percpu(cpu: &Cpu<'_>) -> usize {
    let sizes = [
        (PAGE, alloc_percpu::<[u32; PAGE / 4]>(cpu).is_ok()),
        (2 * PAGE, alloc_percpu::<[u32; PAGE / 2]>(cpu).is_ok()),
        (4 * PAGE, alloc_percpu::<[u32; PAGE]>(cpu).is_ok()),
        (8 * PAGE, alloc_percpu::<[u32; 2 * PAGE]>(cpu).is_ok()),
        (8 * PAGE + 4, alloc_percpu::<[u32; 2 * PAGE + 1]>(cpu).is_ok()),
    ];
    sizes.into_iter().filter(|(_, given)| *given).map(|(size, _)| size).max().unwrap_or(0)
}

fn sleeps(cpu: &Cpu<'_>) -> Vec<(&'static str, &'static str)> {
    let device = DmaDevice::new(cpu.kernel_ref(), "tour");
    let cache = kmem_cache_create(cpu, "tour", OBJECT, 0, SlabFlags::empty(), None).ok();
    let pool = mempool_create_kmalloc_pool(cpu, 4, OBJECT).ok();
    let cache = |gfp| cache.as_ref().map(|cache| cache.alloc(cpu, gfp).map(drop).is_ok());
    let pool = |gfp| pool.as_ref().map(|pool| pool.alloc(cpu, gfp).map(drop).is_ok());
    let calls: [(&'static str, &dyn Fn(Gfp)); 7] = [
        ("kmalloc", &|gfp| drop(KBuf::kmalloc(cpu, OBJECT, gfp))),
        ("alloc_pages", &|gfp| drop(KBuf::pages(cpu, 0, gfp))),
        ("kmem_cache", &|gfp| _ = cache(gfp)),
        ("vmalloc", &|gfp| drop(__vmalloc(cpu, OBJECT, gfp))),
        ("mempool", &|gfp| _ = pool(gfp)),
        ("alloc_percpu", &|gfp| drop(alloc_percpu_gfp::<u64>(cpu, gfp))),
        ("dma_alloc_coherent", &|gfp| drop(device.alloc_coherent(cpu, OBJECT, gfp))),
    ];
    calls.map(|(name, call)| (name, verdict(cpu, call))).to_vec()
}

fn verdict(cpu: &Cpu<'_>, call: &dyn Fn(Gfp)) -> &'static str {
    match [GFP_KERNEL, GFP_ATOMIC].map(|gfp| wrong_under_a_lock(cpu, gfp, call)) {
        [true, false] => "by mask",
        [true, true] => "always",
        [false, _] => "never",
    }
}

fn wrong_under_a_lock(cpu: &Cpu<'_>, gfp: Gfp, call: &dyn Fn(Gfp)) -> bool {
    let known = cpu.kernel().findings().len();
    let lock = SpinLock::new(());
    let held = lock.lock(cpu);
    call(gfp);
    drop(held);
    cpu.kernel().findings().iter().skip(known).any(|finding| finding.kind.name() == "sleep-in-atomic")
}
