//! The rows of the table: each allocator asked the same questions.

use lowzone_guest_mem::addr::{PAGE_SHIFT, PAGE_SIZE};
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::gfp::{__GFP_NOWARN, GFP_HIGHUSER, GFP_KERNEL};
use lowzone_guest_mem::kmalloc::ksize;
use lowzone_guest_mem::kmem_cache::{KmemCache, SlabFlags, kmem_cache_create};
use lowzone_guest_mem::mempool::mempool_create_kmalloc_pool;
use lowzone_guest_mem::page::alloc_pages;
use lowzone_guest_mem::percpu::alloc_percpu;
use lowzone_guest_mem::slab::KMALLOC_MAX_SIZE;
use lowzone_guest_mem::vmalloc::{vmalloc, vmalloc_to_page};
use lowzone_guest_mem::{Cpu, KBuf};

use super::entry::{Entry, SAMPLE, alignment, alignment_by_order, contiguous, cost, in_a_row, largest, mapped, reach};
use crate::render::bytes;

const PAGE: usize = 1 << PAGE_SHIFT;
/// The object whose slack is told.
const OBJECT: usize = 100;
/// The block whose contiguity is looked at.
const BLOCK: usize = 16 << 10;
/// Single free pages between others that are not.
const HOLES: usize = 64;
/// The largest size that is tried, as a power of two.
const LIMIT: u32 = 31;
/// The size of objects that is tried, as a power of two.
const CACHE_LIMIT: u32 = KMALLOC_MAX_SIZE.trailing_zeros();
/// Steps in which the largest area is looked for, since each page of it is really taken.
const STEP: usize = 64 << 20;
/// The most such steps, as a power of two.
const STEPS: u32 = 7;

/// All of them, in memory full of holes: fresh memory gives pages in a row to those who asked for none.
pub(super) fn table(cpu: &Cpu<'_>) -> Vec<Entry> {
    let full: Vec<_> = (0..2 * HOLES).filter_map(|_| alloc_pages(cpu, 0, GFP_HIGHUSER).ok()).collect();
    let _between: Vec<_> = full.into_iter().step_by(2).collect();
    let rows = [kmalloc(cpu), pages(cpu), cache(cpu), virt(cpu), pool(cpu), each(cpu), coherent(cpu)];
    rows.into_iter().flatten().collect()
}

fn kmalloc(cpu: &Cpu<'_>) -> Option<Entry> {
    let take = |len: usize| KBuf::kmalloc(cpu, len, GFP_KERNEL | __GFP_NOWARN);
    let held: Vec<_> = (0..SAMPLE).map(|_| take(OBJECT)).collect::<Result<_, _>>().ok()?;
    let mut block = take(BLOCK).ok()?;
    let device = DmaDevice::new(cpu.kernel_ref(), "tour");
    Some(Entry {
        allocator: "kmalloc",
        unit: bytes(ksize(&take(1).ok()?) as u64),
        largest: bytes(largest(LIMIT, |len| take(len).is_ok()) as u64),
        physical: in_a_row(cpu, &mut block),
        virt: mapped(cpu, block.virt(), BLOCK),
        zone: held.first()?.zone().to_string(),
        alignment: alignment(&held.iter().map(|buf| buf.phys().get()).collect::<Vec<_>>()).to_string(),
        slack: (ksize(held.first()?) - OBJECT).to_string(),
        dma: reach(cpu, &device, block).0,
        cost_ns: cost(|| drop(take(OBJECT))),
        ..Entry::default()
    })
}

fn pages(cpu: &Cpu<'_>) -> Option<Entry> {
    let take = |order: u8| KBuf::pages(cpu, order, GFP_KERNEL | __GFP_NOWARN);
    let held: Vec<_> = (0..SAMPLE).map(|_| take(0)).collect::<Result<_, _>>().ok()?;
    let mut block = take(2).ok()?;
    let device = DmaDevice::new(cpu.kernel_ref(), "tour");
    let most = (0..20).take_while(|&order| alloc_pages(cpu, order, GFP_KERNEL | __GFP_NOWARN).is_ok()).last()?;
    Some(Entry {
        allocator: "alloc_pages",
        unit: bytes(PAGE_SIZE),
        largest: bytes(PAGE_SIZE << most),
        physical: in_a_row(cpu, &mut block),
        virt: mapped(cpu, block.virt(), BLOCK),
        zone: held.first()?.zone().to_string(),
        alignment: alignment_by_order(|order| Some(take(order).ok()?.phys().get())),
        slack: (PAGE - OBJECT).to_string(),
        dma: reach(cpu, &device, block).0,
        cost_ns: cost(|| drop(take(0))),
        ..Entry::default()
    })
}

fn new_cache(cpu: &Cpu<'_>, len: usize) -> Option<KmemCache> {
    kmem_cache_create(cpu, "tour", len, 0, SlabFlags::empty(), None).ok()
}

fn cache(cpu: &Cpu<'_>) -> Option<Entry> {
    let cache = new_cache(cpu, OBJECT)?;
    let held: Vec<_> = (0..SAMPLE).map(|_| cache.alloc(cpu, GFP_KERNEL)).collect::<Result<_, _>>().ok()?;
    let aligned = alignment(&held.iter().map(|buf| buf.phys().get()).collect::<Vec<_>>());
    let zone = held.first()?.zone().to_string();
    let mut held = held.into_iter();
    let device = DmaDevice::new(cpu.kernel_ref(), "tour");
    let (dma, mut object) = reach(cpu, &device, held.next()?);
    let (physical, virt) = (in_a_row(cpu, &mut object), mapped(cpu, object.virt(), OBJECT));
    cache.free(cpu, object);
    held.for_each(|object| cache.free(cpu, object));
    let geometry = *cache.geometry();
    let cost_ns = cost(|| drop(cache.alloc(cpu, GFP_KERNEL)));
    cache.destroy(cpu);
    // One byte more is refused with a warning, which the limit of kmalloc spares us.
    let size = largest(CACHE_LIMIT, |len| new_cache(cpu, len).map(|cache| cache.destroy(cpu)).is_some());
    Some(Entry {
        allocator: "kmem_cache",
        unit: "its object".to_owned(),
        largest: bytes(size as u64),
        physical,
        virt,
        zone,
        alignment: aligned.to_string(),
        slack: (geometry.size as usize - OBJECT).to_string(),
        dma,
        cost_ns,
        ..Entry::default()
    })
}

fn virt(cpu: &Cpu<'_>) -> Option<Entry> {
    let held: Vec<_> = (0..SAMPLE).map(|_| vmalloc(cpu, OBJECT)).collect::<Result<_, _>>().ok()?;
    let mut block = vmalloc(cpu, BLOCK).ok()?;
    let (at, first) = (block.virt(), vmalloc_to_page(cpu.kernel(), block.virt())?);
    let zones = cpu.kernel().zone_of(first)?;
    let steps = largest(STEPS, |steps| vmalloc(cpu, steps * STEP).is_ok());
    Some(Entry {
        allocator: "vmalloc",
        unit: format!("{} and a guard page", bytes(PAGE_SIZE)),
        largest: format!("about {}", bytes((steps * STEP) as u64)),
        // Within its own length, so nothing is refused.
        physical: contiguous(cpu, first, BLOCK, |bytes| _ = block.write_at(0, bytes)),
        virt: mapped(cpu, at, BLOCK),
        zone: zones.to_string(),
        alignment: alignment(&held.iter().map(|buf| buf.virt().get()).collect::<Vec<_>>()).to_string(),
        slack: (PAGE - OBJECT).to_string(),
        dma: "page by page only".to_owned(),
        cost_ns: cost(|| drop(vmalloc(cpu, OBJECT))),
        ..Entry::default()
    })
}

fn pool(cpu: &Cpu<'_>) -> Option<Entry> {
    let pool = mempool_create_kmalloc_pool(cpu, 4, OBJECT).ok()?;
    let held: Vec<_> = (0..SAMPLE).map(|_| pool.alloc(cpu, GFP_KERNEL)).collect::<Result<_, _>>().ok()?;
    let reserve = pool.min_nr() * ksize(held.first()?);
    let aligned = alignment(&held.iter().map(|buf| buf.phys().get()).collect::<Vec<_>>());
    let (zone, slack) = (held.first()?.zone().to_string(), ksize(held.first()?) - OBJECT);
    let mut held = held.into_iter();
    let device = DmaDevice::new(cpu.kernel_ref(), "tour");
    let (dma, mut element) = reach(cpu, &device, held.next()?);
    let (physical, virt) = (in_a_row(cpu, &mut element), mapped(cpu, element.virt(), OBJECT));
    pool.free(cpu, element);
    held.for_each(|element| pool.free(cpu, element));
    let cost_ns = cost(|| {
        if let Ok(element) = pool.alloc(cpu, GFP_KERNEL) {
            pool.free(cpu, element);
        }
    });
    pool.destroy(cpu);
    Some(Entry {
        allocator: "mempool",
        unit: "its element".to_owned(),
        largest: "its backing's".to_owned(),
        physical,
        virt,
        zone,
        alignment: aligned.to_string(),
        slack: format!("{slack}, and {} held back", bytes(reserve as u64)),
        dma,
        cost_ns,
        ..Entry::default()
    })
}

fn each(cpu: &Cpu<'_>) -> Option<Entry> {
    let held: Vec<_> = (0..SAMPLE).map(|_| alloc_percpu::<u64>(cpu)).collect::<Result<_, _>>().ok()?;
    let at: Vec<_> = held.iter().map(|variable| variable.offset(0)).collect();
    let (first, next, len) = (*at.first()?, held.first()?.offset(1), size_of::<u64>() as u64);
    let together = if next == first + len { "yes" } else { "each copy" };
    Some(Entry {
        allocator: "alloc_percpu",
        unit: format!("{}, for each of {} CPUs", bytes(size_of::<u64>() as u64), cpu.kernel().config().cpus),
        physical: together,
        virt: together,
        zone: "as vmalloc".to_owned(),
        alignment: alignment(&at).to_string(),
        slack: (OBJECT.next_multiple_of(size_of::<u64>()) - OBJECT).to_string(),
        dma: "no".to_owned(),
        cost_ns: cost(|| drop(alloc_percpu::<u64>(cpu))),
        ..Entry::default()
    })
}

fn coherent(cpu: &Cpu<'_>) -> Option<Entry> {
    let device = DmaDevice::new(cpu.kernel_ref(), "tour");
    let take = |len: usize| device.alloc_coherent(cpu, len, GFP_KERNEL | __GFP_NOWARN);
    let gives = |len: usize| take(len).map(|memory| memory.free(cpu)).is_ok();
    let block = take(BLOCK).ok()?;
    let end = block.phys().get() + BLOCK as u64 - 1;
    let entry = Entry {
        allocator: "dma_alloc_coherent",
        unit: bytes(PAGE_SIZE),
        largest: bytes(largest(LIMIT, gives) as u64),
        physical: contiguous(cpu, block.phys(), BLOCK, |bytes| block.write(cpu, 0, bytes)),
        virt: mapped(cpu, cpu.kernel().config().arch.direct_map(block.phys())?, BLOCK),
        zone: block.zone().to_string(),
        alignment: alignment_by_order(|order| {
            let block = take(PAGE << order).ok()?;
            let at = block.phys().get();
            block.free(cpu);
            Some(at)
        }),
        slack: (PAGE - OBJECT).to_string(),
        dma: format!("{} bits, the mask's zone", u64::BITS - end.leading_zeros()),
        cost_ns: cost(|| {
            gives(OBJECT);
        }),
        ..Entry::default()
    };
    block.free(cpu);
    Some(entry)
}
