//! The stops of the tour: what each call gave and what it did to the zones.

use std::fmt::Display;

use lowzone_driver::pci::PciDevice;
use lowzone_guest_mem::buddy::MAX_ORDER;
use lowzone_guest_mem::dma::{DmaDevice, ToDevice};
use lowzone_guest_mem::gfp::{__GFP_NOWARN, GFP_ATOMIC, GFP_DMA, GFP_DMA32, GFP_HIGHUSER, GFP_KERNEL};
use lowzone_guest_mem::kmalloc::ksize;
use lowzone_guest_mem::kmap::{kmap, page_address};
use lowzone_guest_mem::kmem_cache::{SlabFlags, kmem_cache_create};
use lowzone_guest_mem::mempool::mempool_create_page_pool;
use lowzone_guest_mem::page::alloc_pages;
use lowzone_guest_mem::percpu::alloc_percpu;
use lowzone_guest_mem::slab::{Geometry, KMALLOC_MAX_SIZE};
use lowzone_guest_mem::zone::ZoneKind;
use lowzone_guest_mem::{Cpu, KBuf, VirtAddr};
use serde::Serialize;

use super::entry::Entry;

/// One call.
#[derive(Clone, Serialize)]
pub(super) struct Did {
    pub(super) call: String,
    pub(super) got: String,
    pub(super) zones: String,
}

/// One stop.
#[derive(Clone, Serialize)]
pub(super) struct Stop {
    pub(super) title: &'static str,
    pub(super) did: Vec<Did>,
}

/// A stop as it is being made.
pub(super) struct Here<'a, 'w> {
    pub(super) cpu: &'a Cpu<'w>,
    free: [u64; ZoneKind::ALL.len()],
    stop: Stop,
}

impl<'a, 'w> Here<'a, 'w> {
    pub(super) fn new(cpu: &'a Cpu<'w>, title: &'static str) -> Self {
        Self { cpu, free: free(cpu), stop: Stop { title, did: Vec::new() } }
    }

    /// Puts down what a call gave, and how many pages each zone has more or less than at the call before.
    pub(super) fn did(&mut self, call: impl Display, got: impl Display) {
        let now = free(self.cpu);
        let changes = ZoneKind::ALL.iter().zip(now.iter().zip(&self.free)).filter(|(_, (now, before))| now != before);
        let changes =
            changes.map(|(zone, (now, before))| format!("{zone} {:+}", now.cast_signed() - before.cast_signed()));
        let zones = changes.collect::<Vec<_>>().join(", ");
        self.stop.did.push(Did { call: call.to_string(), got: got.to_string(), zones });
        self.free = now;
    }

    pub(super) fn done(self) -> Stop {
        self.stop
    }
}

fn free(cpu: &Cpu<'_>) -> [u64; ZoneKind::ALL.len()] {
    cpu.kernel().zone_stats().map(|zone| zone.free)
}

/// All stops, and the table.
pub(super) fn walk(cpu: &Cpu<'_>, device: Option<&PciDevice>) -> (Vec<Stop>, Vec<Entry>) {
    let stops = vec![kmalloc(cpu), pages(cpu), vmalloc(cpu), caches(cpu), percpu(cpu), pools(cpu), dma(cpu)];
    let more = [high(cpu), device.map(|device| registers(cpu, device))];
    let stops = stops.into_iter().chain(more.into_iter().flatten()).collect();
    (stops, super::rows::table(cpu))
}

/// What a call gave: its fruit in words, or why there was none.
fn told<T, E: Display>(got: &Result<T, E>, words: impl Fn(&T) -> String) -> String {
    got.as_ref().map_or_else(|error| format!("refused: {error}"), words)
}

fn kmalloc(cpu: &Cpu<'_>) -> Stop {
    let mut here = Here::new(cpu, "kmalloc and its flags");
    for (size, gfp) in [
        (100, GFP_KERNEL),
        (100, GFP_ATOMIC),
        (100, GFP_KERNEL | GFP_DMA),
        (8192, GFP_KERNEL),
        (8193, GFP_KERNEL),
        (KMALLOC_MAX_SIZE, GFP_KERNEL),
        (KMALLOC_MAX_SIZE + 1, GFP_KERNEL | __GFP_NOWARN),
    ] {
        let got = KBuf::kmalloc(cpu, size, gfp);
        here.did(
            format_args!("kmalloc({size}, {gfp})"),
            told(&got, |buf| format!("{} bytes in {}", ksize(buf), buf.zone())),
        );
        drop(got);
        here.did("kfree", "");
    }
    here.done()
}

fn pages(cpu: &Cpu<'_>) -> Stop {
    let mut here = Here::new(cpu, "pages");
    for (order, gfp) in [
        (0, GFP_KERNEL),
        (3, GFP_KERNEL),
        (MAX_ORDER, GFP_KERNEL),
        (MAX_ORDER + 1, GFP_KERNEL | __GFP_NOWARN),
        (0, GFP_KERNEL | GFP_DMA32),
        (0, GFP_KERNEL | GFP_DMA),
    ] {
        let got = alloc_pages(cpu, order, gfp);
        here.did(format_args!("alloc_pages({gfp}, {order})"), told(&got, |pages| pages.zone().to_string()));
        drop(got);
        here.did("__free_pages", "");
    }
    here.done()
}

fn vmalloc(cpu: &Cpu<'_>) -> Stop {
    let mut here = Here::new(cpu, "vmalloc");
    for size in [4096, 1 << 20] {
        let got = lowzone_guest_mem::vmalloc::vmalloc(cpu, size);
        here.did(
            format_args!("vmalloc({size})"),
            told(&got, |buf| format!("{} pages, anywhere", buf.len().div_ceil(4096))),
        );
        drop(got);
        here.did("vfree", "");
    }
    here.done()
}

fn caches(cpu: &Cpu<'_>) -> Stop {
    let mut here = Here::new(cpu, "slab caches");
    let cache = kmem_cache_create(cpu, "tour", 100, 0, SlabFlags::HWCACHE_ALIGN, None);
    here.did("kmem_cache_create(100, SLAB_HWCACHE_ALIGN)", told(&cache, |cache| geometry(cache.geometry())));
    let Ok(cache) = cache else { return here.done() };
    let got = cache.alloc(cpu, GFP_KERNEL);
    here.did("kmem_cache_alloc", told(&got, |object| format!("an object in {}", object.zone())));
    if let Ok(object) = got {
        cache.free(cpu, object);
    }
    here.did("kmem_cache_free", "its slab stays with the cache");
    cache.shrink(cpu);
    here.did("kmem_cache_shrink", "and goes back");
    cache.destroy(cpu);
    here.done()
}

fn percpu(cpu: &Cpu<'_>) -> Stop {
    let mut here = Here::new(cpu, "per-CPU variables");
    let got = alloc_percpu::<u64>(cpu);
    here.did("alloc_percpu(u64)", told(&got, |_| "a copy for each CPU".to_owned()));
    if let Ok(counter) = got {
        counter.this_cpu_inc(cpu);
        here.did("this_cpu_inc", format_args!("{} here, {} over all CPUs", counter.this_cpu_read(cpu), counter.sum()));
    }
    here.did("free_percpu", "");
    here.done()
}

fn pools(cpu: &Cpu<'_>) -> Stop {
    let mut here = Here::new(cpu, "mempools");
    let pool = mempool_create_page_pool(cpu, 4, 0);
    here.did("mempool_create_page_pool(4, 0)", told(&pool, |pool| format!("{} pages in reserve", pool.curr_nr())));
    let Ok(pool) = pool else { return here.done() };
    let got = pool.alloc(cpu, GFP_ATOMIC);
    here.did("mempool_alloc(GFP_ATOMIC)", told(&got, |_| format!("a page, {} still in reserve", pool.curr_nr())));
    if let Ok(page) = got {
        pool.free(cpu, page);
    }
    pool.destroy(cpu);
    here.did("mempool_free, mempool_destroy", "");
    here.done()
}

fn dma(cpu: &Cpu<'_>) -> Stop {
    let mut here = Here::new(cpu, "coherent and streaming DMA");
    let device = DmaDevice::new(cpu.kernel_ref(), "tour");
    for bits in [64_u32, 32, 24] {
        let mask = device.set_mask_and_coherent(cpu, u64::MAX >> (64 - bits));
        here.did(format_args!("dma_set_mask_and_coherent({bits} bits)"), told(&mask, |()| "0".to_owned()));
        let got = device.alloc_coherent(cpu, 8192, GFP_KERNEL);
        here.did("dma_alloc_coherent(8192)", told(&got, |memory| memory.zone().to_string()));
        if let Ok(memory) = got {
            memory.free(cpu);
        }
        here.did("dma_free_coherent", "");
        let Ok(buf) = KBuf::pages(cpu, 0, GFP_KERNEL) else { continue };
        let (zone, got) = (buf.zone(), device.map_single::<ToDevice>(cpu, buf));
        here.did(
            format_args!("dma_map_single(a page in {zone})"),
            told(&got, |mapping| if mapping.bounced() { "bounced" } else { "as it is" }.to_owned()),
        );
        if let Ok(mapping) = got {
            drop(mapping.unmap(cpu));
        }
        here.did("dma_unmap_single, __free_pages", "");
    }
    here.done()
}

fn registers(cpu: &Cpu<'_>, device: &PciDevice) -> Stop {
    let mut here = Here::new(cpu, "ioremap");
    let got = device.map_bar(cpu, 0, 0, 4096);
    here.did("ioremap(BAR 0, 4096)", told(&got, |registers| format!("{} bytes of registers", registers.len())));
    if let Ok(registers) = &got {
        here.did("readl(0)", format_args!("{:#x}", registers.readl(cpu, 0)));
    }
    drop(got);
    here.did("iounmap", "");
    here.done()
}

/// Where the machine has high memory: a page that the kernel can't see until it maps it.
fn high(cpu: &Cpu<'_>) -> Option<Stop> {
    let there = cpu.kernel().zone_stats().iter().any(|zone| zone.zone == ZoneKind::HighMem && zone.managed > 0);
    let mut here = there.then(|| Here::new(cpu, "high memory"))?;
    let got = alloc_pages(cpu, 0, GFP_HIGHUSER);
    here.did("alloc_pages(GFP_HIGHUSER, 0)", told(&got, |page| page.zone().to_string()));
    let seen = |address: Option<VirtAddr>| if address.is_some() { "an address" } else { "NULL" };
    if let Ok(page) = &got {
        here.did("page_address", told(&page_address(cpu, page, 0), |&address| seen(address).to_owned()));
        let mapped = kmap(cpu, page, 0);
        here.did("kmap", told(&page_address(cpu, page, 0), |&address| seen(address).to_owned()));
        if let Ok(mapped) = mapped {
            mapped.kunmap(cpu);
        }
    }
    drop(got);
    here.did("kunmap, __free_pages", "");
    Some(here.done())
}

/// How a cache is laid out.
fn geometry(geometry: &Geometry) -> String {
    let shape = &geometry.shape;
    format!("{} bytes apart, {} in a slab of {} pages", geometry.size, shape.objects, 1 << shape.order)
}
