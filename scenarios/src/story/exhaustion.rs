//! Exhaustion on demand: memory is short in one of six ways, and what each kind of caller then gets.
//!
//! Others on the machine take what there is; then `GFP_KERNEL`, `GFP_ATOMIC` and a mempool that was filled in time ask.
//! `GFP_KERNEL` asks with `__GFP_NORETRY` where the honest answer is the OOM killer's; the mistake `insist` asks without.

use lowzone_guest_mem::dma::{DmaDevice, ToDevice};
use lowzone_guest_mem::gfp::{
    __GFP_MEMALLOC, __GFP_NORETRY, __GFP_NOWARN, GFP_ATOMIC, GFP_DMA32, GFP_KERNEL, GFP_NOWAIT, Gfp,
};
use lowzone_guest_mem::kmem_cache::{SlabFlags, kmem_cache_create};
use lowzone_guest_mem::mempool::{Mempool, PageBlocks, mempool_create_page_pool};
use lowzone_guest_mem::page::{Pages, alloc_pages};
use lowzone_guest_mem::zone::AllocError;
use lowzone_guest_mem::{Cpu, KBuf};

use super::{StoryError, Telling};

const LARGEST: u8 = 10;
/// What others ask with: they take what they are given and never insist.
const OTHERS: Gfp = GFP_KERNEL.union(__GFP_NORETRY).union(__GFP_NOWARN);

/// Takes all that a mask gives, from the largest blocks down.
fn take_all(cpu: &Cpu<'_>, gfp: Gfp) -> Vec<Pages> {
    (0..=LARGEST).rev().flat_map(|order| std::iter::from_fn(move || alloc_pages(cpu, order, gfp).ok())).collect()
}

fn answer(got: &Result<Pages, AllocError>) -> String {
    got.as_ref().map_or_else(|_| "refused".to_owned(), |pages| pages.zone().to_string())
}

/// Asks for one block and puts down what came.
fn ask(telling: &Telling<'_, '_>, order: u8, gfp: Gfp, expected: &str) -> Result<(), StoryError> {
    let got = alloc_pages(telling.cpu(), order, gfp | __GFP_NOWARN);
    telling.expect(format_args!("order {order}, {gfp}"), expected, answer(&got))
}

/// Asks a pool that was filled while there was memory, puts down what came and gives it back.
fn ask_pool(telling: &Telling<'_, '_>, pool: &Mempool<PageBlocks>, gfp: Gfp, expected: &str) -> Result<(), StoryError> {
    let got = pool.alloc(telling.cpu(), gfp);
    let zone = got.as_ref().map_or_else(|_| "refused".to_owned(), |pages| pages.zone().to_string());
    if let Ok(pages) = got {
        pool.free(telling.cpu(), pages);
    }
    telling.expect(format_args!("mempool, {gfp}"), expected, zone)
}

/// Zone DMA32 is empty while Normal is free: a mask that can't use Normal fails on a machine with gigabytes free.
pub(super) fn dma32_dry(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let pool = mempool_create_page_pool(telling.cpu(), 1, 0)?;
    let others = take_all(telling.cpu(), OTHERS | GFP_DMA32);
    ask(telling, 0, GFP_KERNEL, "Normal")?;
    ask(telling, 0, GFP_KERNEL | GFP_DMA32, "refused")?;
    ask(telling, 0, GFP_NOWAIT | GFP_DMA32, "refused")?;
    ask(telling, 0, GFP_ATOMIC | GFP_DMA32, "DMA32")?;
    // The trap: a reserve was filled without the zone bits, and gives what it has.
    ask_pool(telling, &pool, GFP_NOWAIT | GFP_DMA32, "Normal")?;
    drop(others);
    pool.destroy(telling.cpu());
    ask(telling, 0, GFP_KERNEL | GFP_DMA32, "DMA32")
}

/// Half of memory is free, in single pages: order 0 works and order 4 fails.
pub(super) fn fragmented(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let pool = mempool_create_page_pool(cpu, 1, 4)?;
    let mut others: Vec<_> = std::iter::from_fn(|| alloc_pages(cpu, 0, OTHERS | __GFP_MEMALLOC).ok()).collect();
    let mut kept = Vec::new();
    while let (Some(keeps), Some(_frees)) = (others.pop(), others.pop()) {
        kept.push(keeps);
    }
    telling.fact("pages free between those that are taken", kept.len());
    ask(telling, 0, GFP_KERNEL, "DMA32")?;
    ask(telling, 0, GFP_ATOMIC, "DMA32")?;
    ask(telling, 4, GFP_KERNEL, "refused")?;
    ask(telling, 4, GFP_ATOMIC, "refused")?;
    ask_pool(telling, &pool, GFP_ATOMIC, "DMA32")?;
    pool.destroy(cpu);
    drop(kept);
    ask(telling, 4, GFP_KERNEL, "DMA32")
}

/// Only the reserve is left that atomic callers may use.
pub(super) fn atomic_reserve(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let pool = mempool_create_page_pool(cpu, 1, 0)?;
    let others = take_all(cpu, OTHERS);
    ask(telling, 0, GFP_KERNEL | __GFP_NORETRY, "refused")?;
    ask(telling, 0, GFP_NOWAIT, "refused")?;
    ask(telling, 0, GFP_ATOMIC, "DMA32")?;
    if telling.makes("insist") {
        ask(telling, 0, GFP_KERNEL, "refused")?;
    }
    let reserve = take_all(cpu, GFP_ATOMIC | __GFP_NOWARN);
    telling.fact("blocks that atomic callers still got", reserve.len());
    ask(telling, 0, GFP_ATOMIC, "refused")?;
    ask_pool(telling, &pool, GFP_KERNEL, "DMA32")?;
    pool.destroy(cpu);
    drop((others, reserve));
    ask(telling, 0, GFP_KERNEL, "DMA32")
}

/// So many pages are left, and no mark counts for who may ignore it.
pub(super) fn pages_left(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    const LEFT: usize = 3;
    let cpu = telling.cpu();
    let pool = mempool_create_page_pool(cpu, 1, 0)?;
    let mut others = take_all(cpu, OTHERS | __GFP_MEMALLOC);
    let single = others.iter().rposition(|pages| pages.order() == 0);
    let left = single.map(|last| others.drain(last.saturating_sub(LEFT - 1)..=last).count()).unwrap_or_default();
    telling.expect("pages left", LEFT, left)?;
    ask(telling, 0, GFP_KERNEL | __GFP_NORETRY, "refused")?;
    ask(telling, 0, GFP_ATOMIC, "refused")?;
    ask_pool(telling, &pool, GFP_KERNEL, "DMA32")?;
    let rest = take_all(cpu, OTHERS | __GFP_MEMALLOC);
    telling.expect("pages for who ignores every mark", LEFT, rest.len())?;
    pool.destroy(cpu);
    drop((others, rest));
    ask(telling, 0, GFP_KERNEL, "DMA32")
}

/// A cache is full and no page is left to grow it: one object freed is one object that can be had.
pub(super) fn cache_full(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let cache = kmem_cache_create(cpu, "full", 256, 0, SlabFlags::empty(), None)?;
    let pool = mempool_create_page_pool(cpu, 1, 0)?;
    let first = cache.alloc(cpu, GFP_KERNEL)?;
    let others = take_all(cpu, OTHERS | __GFP_MEMALLOC);
    let asked = || cache.alloc(cpu, GFP_ATOMIC | __GFP_NOWARN);
    let filled: Vec<_> = std::iter::from_fn(|| asked().ok()).collect();
    telling.fact("objects that its one slab still had", filled.len());
    telling.expect("another, GFP_ATOMIC", "refused", asked().map_or("refused", |_| "given"))?;
    ask_pool(telling, &pool, GFP_ATOMIC, "DMA32")?;
    cache.free(cpu, first);
    telling.expect("another, when one is freed", "given", asked().map_or("refused", |_| "given"))?;
    filled.into_iter().for_each(|object| cache.free(cpu, object));
    drop(others);
    pool.destroy(cpu);
    cache.destroy(cpu);
    Ok(())
}

/// A neighbour with a 32-bit mask takes zone DMA32 and every bounce slot: our own mapping fails though memory is free.
pub(super) fn neighbour(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    const BYTES: usize = 256 << 10;
    let cpu = telling.cpu();
    let (greedy, ours) = (DmaDevice::new(cpu.kernel_ref(), "neighbour"), DmaDevice::new(cpu.kernel_ref(), "ours"));
    let pool = mempool_create_page_pool(cpu, 1, 0)?;
    let mut mapped = Vec::new();
    loop {
        let buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL)?;
        match greedy.map_single::<ToDevice>(cpu, buf) {
            Ok(mapping) => mapped.push(mapping),
            Err(_) => break,
        }
    }
    telling.fact("mappings of 256 KiB that the neighbour holds", mapped.len());
    let low = take_all(cpu, OTHERS | GFP_DMA32);
    ask(telling, 0, GFP_KERNEL | GFP_DMA32, "refused")?;
    ask(telling, 0, GFP_KERNEL, "Normal")?;
    ask(telling, 0, GFP_ATOMIC, "Normal")?;
    ask_pool(telling, &pool, GFP_KERNEL, "Normal")?;
    pool.destroy(cpu);
    let map = || -> Result<&str, StoryError> {
        let buf = KBuf::kmalloc(cpu, BYTES, GFP_KERNEL)?;
        Ok(match ours.map_single::<ToDevice>(cpu, buf) {
            Ok(mapping) => {
                drop(mapping.unmap(cpu));
                "mapped"
            }
            Err(_) => "refused",
        })
    };
    telling.expect("our buffer above 4 GiB, mapped for 32 bits", "refused", map()?)?;
    mapped.into_iter().for_each(|mapping| drop(mapping.unmap(cpu)));
    drop(low);
    telling.expect("the same when the neighbour is done", "mapped", map()?)
}
