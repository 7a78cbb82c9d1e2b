//! The allocators: from where each call may come.

use super::*;

pub(super) const CALLS: &[Row] = &[
    ("kbuf.rs", "kmalloc", From::ByMask, |set, cpu| ignore(KBuf::kmalloc(cpu, 64, set.gfp))),
    ("kbuf.rs", "pages", From::ByMask, |set, cpu| ignore(KBuf::pages(cpu, 0, set.gfp))),
    ("kmalloc.rs", "kmalloc", From::ByMask, |set, cpu| ignore(kmalloc::kmalloc(cpu, 64, set.gfp))),
    ("kmalloc.rs", "kzalloc", From::ByMask, |set, cpu| ignore(kmalloc::kzalloc(cpu, 64, set.gfp))),
    ("kmalloc.rs", "kmalloc_array", From::ByMask, |set, cpu| ignore(kmalloc::kmalloc_array(cpu, 2, 64, set.gfp))),
    ("kmalloc.rs", "kcalloc", From::ByMask, |set, cpu| ignore(kmalloc::kcalloc(cpu, 2, 64, set.gfp))),
    ("kmalloc.rs", "kmemdup", From::ByMask, |set, cpu| ignore(kmalloc::kmemdup(cpu, &[1; 8], set.gfp))),
    ("kmalloc.rs", "krealloc", From::ByMask, |set, cpu| ignore(kmalloc::krealloc(cpu, Some(set.buf()), 4096, set.gfp))),
    ("kmap.rs", "page_address", From::Anywhere, |set, cpu| ignore(kmap::page_address(cpu, &set.pages, 0))),
    ("kmap.rs", "kmap", From::Process, |set, cpu| ignore(kmap::kmap(cpu, &set.pages, 0))),
    ("kmap.rs", "kunmap", From::Process, |set, cpu| kmap::kmap(&set.calm, &set.pages, 0).unwrap().kunmap(cpu)),
    ("kmap.rs", "kmap_local_page", From::Anywhere, |set, cpu| ignore(kmap::kmap_local_page(cpu, &set.pages, 0))),
    ("kmap.rs", "kmap_atomic", From::Anywhere, |set, cpu| ignore(kmap::kmap_atomic(cpu, &set.pages, 0))),
    ("kmap.rs", "memcpy_from_page", From::Anywhere, |set, cpu| {
        kmap::memcpy_from_page(cpu, &mut [0; 8], &set.pages, 0).unwrap()
    }),
    ("kmap.rs", "memcpy_to_page", From::Anywhere, |set, cpu| {
        kmap::memcpy_to_page(cpu, &set.pages, 0, &[0; 8]).unwrap()
    }),
    ("kmap.rs", "read_page", From::Anywhere, |set, cpu| kmap::read_page(cpu, &set.pages, 0, 0, &mut [0; 8]).unwrap()),
    ("kmap.rs", "write_page", From::Anywhere, |set, cpu| kmap::write_page(cpu, &set.pages, 0, 0, &[0; 8]).unwrap()),
    ("kmap/misuse.rs", "kunmap", From::Process, |set, cpu| ignore(kmap::misuse::kunmap(cpu, &set.pages, 0))),
    ("kmem_cache.rs", "kmem_cache_create", From::Process, |_, cpu| {
        ignore(kmem_cache::kmem_cache_create(cpu, "row", 64, 0, SlabFlags::empty(), None))
    }),
    ("kmem_cache.rs", "alloc", From::ByMask, |set, cpu| ignore(set.cache.alloc(cpu, set.gfp))),
    ("kmem_cache.rs", "zalloc", From::ByMask, |set, cpu| ignore(set.cache.zalloc(cpu, set.gfp))),
    ("kmem_cache.rs", "alloc_bulk", From::ByMaskIrqsOn, |set, cpu| ignore(set.cache.alloc_bulk(cpu, set.gfp, 2))),
    ("kmem_cache.rs", "free", From::Anywhere, |set, cpu| {
        set.cache.free(cpu, set.cache.alloc(&set.calm, GFP_KERNEL).unwrap())
    }),
    ("kmem_cache.rs", "free_bulk", From::IrqsOn, |set, cpu| {
        set.cache.free_bulk(cpu, set.cache.alloc_bulk(&set.calm, GFP_KERNEL, 2).unwrap())
    }),
    ("kmem_cache.rs", "shrink", From::Process, |set, cpu| ignore(set.cache.shrink(cpu))),
    ("kmem_cache.rs", "destroy", From::Process, |set, cpu| new_cache(&set.calm).destroy(cpu)),
    ("kvmalloc.rs", "kvmalloc", From::ByMask, |set, cpu| ignore(kvmalloc::kvmalloc(cpu, 64, set.gfp))),
    ("kvmalloc.rs", "kvzalloc", From::ByMask, |set, cpu| ignore(kvmalloc::kvzalloc(cpu, 64, set.gfp))),
    ("kvmalloc.rs", "kvmalloc_array", From::ByMask, |set, cpu| ignore(kvmalloc::kvmalloc_array(cpu, 2, 64, set.gfp))),
    ("kvmalloc.rs", "kvfree", From::Anywhere, |set, cpu| {
        kvmalloc::kvfree(cpu, kvmalloc::kvmalloc(&set.calm, 64, GFP_KERNEL).unwrap())
    }),
    ("kvmalloc.rs", "kvfree", From::Vfree, |set, cpu| {
        kvmalloc::kvfree(cpu, kvmalloc::kvmalloc(&set.calm, 8 << 20, GFP_KERNEL).unwrap())
    }),
    ("mempool.rs", "mempool_create", From::Process, |_, cpu| {
        ignore(mempool::mempool_create(cpu, 2, mempool::Kmalloc(64)))
    }),
    ("mempool.rs", "alloc", From::ByMask, |set, cpu| ignore(set.pool.alloc(cpu, set.gfp))),
    ("mempool.rs", "free", From::Anywhere, |set, cpu| {
        set.pool.free(cpu, set.pool.alloc(&set.calm, GFP_KERNEL).unwrap())
    }),
    ("mempool.rs", "resize", From::Process, |set, cpu| ignore(set.pool.resize(cpu, 3))),
    ("mempool.rs", "destroy", From::Anywhere, |set, cpu| new_pool(&set.calm).destroy(cpu)),
    ("mempool/backing.rs", "mempool_create_kmalloc_pool", From::Process, |_, cpu| ignore(new_pool(cpu))),
    ("mempool/backing.rs", "mempool_create_slab_pool", From::Process, |set, cpu| {
        ignore(mempool::mempool_create_slab_pool(cpu, 2, Arc::new(new_cache(&set.calm))))
    }),
    ("mempool/backing.rs", "mempool_create_page_pool", From::Process, |_, cpu| {
        ignore(mempool::mempool_create_page_pool(cpu, 2, 0))
    }),
    ("page.rs", "alloc_pages", From::ByMask, |set, cpu| ignore(page::alloc_pages(cpu, 0, set.gfp))),
    ("page/api.rs", "__get_free_pages", From::ByMask, |set, cpu| ignore(page::__get_free_pages(cpu, 0, set.gfp))),
    ("page/api.rs", "__get_free_page", From::ByMask, |set, cpu| ignore(page::__get_free_page(cpu, set.gfp))),
    ("page/api.rs", "get_zeroed_page", From::ByMask, |set, cpu| ignore(page::get_zeroed_page(cpu, set.gfp))),
    ("page/api.rs", "__get_dma_pages", From::ByMask, |set, cpu| ignore(page::__get_dma_pages(cpu, 0, set.gfp))),
    ("page/api.rs", "alloc_pages_exact", From::ByMask, |set, cpu| ignore(page::alloc_pages_exact(cpu, 5000, set.gfp))),
    ("page/api.rs", "split_page", From::Anywhere, |set, cpu| {
        ignore(page::split_page(cpu, page::alloc_pages(&set.calm, 1, GFP_KERNEL).unwrap()))
    }),
    ("page/api.rs", "alloc_pages_bulk", From::ByMask, |set, cpu| ignore(page::alloc_pages_bulk(cpu, 3, set.gfp))),
    ("page/api.rs", "page_count", From::Anywhere, |set, cpu| ignore(page::page_count(cpu, set.pages.phys()))),
    ("page/misuse.rs", "free_pages", From::Anywhere, |_, cpu| page::misuse::free_pages(cpu, PhysAddr::new(0), 0)),
    ("page/misuse.rs", "set_page_state", From::Anywhere, |set, cpu| {
        page::misuse::set_page_state(cpu, set.pages.phys(), page::PageState::default());
    }),
    ("percpu.rs", "alloc_percpu", From::Process, |_, cpu| ignore(percpu::alloc_percpu::<u64>(cpu))),
    ("percpu.rs", "alloc_percpu_gfp", From::ByMask, |set, cpu| ignore(percpu::alloc_percpu_gfp::<u64>(cpu, set.gfp))),
    ("percpu.rs", "define_per_cpu", From::Process, |_, cpu| ignore(percpu::define_per_cpu(cpu, 1_u64))),
    ("percpu.rs", "this_cpu_read", From::Anywhere, |set, cpu| ignore(set.each.this_cpu_read(cpu))),
    ("percpu.rs", "this_cpu_write", From::Anywhere, |set, cpu| set.each.this_cpu_write(cpu, 1)),
    ("percpu.rs", "this_cpu_xchg", From::Anywhere, |set, cpu| ignore(set.each.this_cpu_xchg(cpu, 1))),
    ("percpu.rs", "this_cpu_cmpxchg", From::Anywhere, |set, cpu| ignore(set.each.this_cpu_cmpxchg(cpu, 0, 1))),
    ("percpu.rs", "get", From::Anywhere, |set, cpu| ignore(set.each.get(cpu))),
    ("percpu.rs", "this_cpu_add", From::Anywhere, |set, cpu| set.each.this_cpu_add(cpu, 1)),
    ("percpu.rs", "this_cpu_inc", From::Anywhere, |set, cpu| set.each.this_cpu_inc(cpu)),
    ("percpu.rs", "__this_cpu_add", From::Pinned, |set, cpu| set.each.__this_cpu_add(cpu, 1)),
    ("percpu.rs", "smp_processor_id", From::Pinned, |_, cpu| ignore(percpu::smp_processor_id(cpu))),
    ("percpu/misuse.rs", "unchecked", From::Anywhere, |set, cpu| {
        ignore(percpu::misuse::unchecked(cpu, percpu::alloc_percpu::<u64>(&set.calm)))
    }),
    ("percpu/counter.rs", "new", From::Process, |_, cpu| ignore(percpu::PercpuCounter::new(cpu, 0))),
    ("percpu/counter.rs", "add", From::Anywhere, |set, cpu| {
        percpu::PercpuCounter::new(&set.calm, 0).unwrap().add(cpu, 1)
    }),
    ("reclaim.rs", "register_shrinker", From::Process, |_, cpu| {
        ignore(reclaim::register_shrinker(cpu, Arc::new(Nothing)))
    }),
    ("vmalloc.rs", "vmalloc", From::Process, |_, cpu| ignore(vmalloc::vmalloc(cpu, 64))),
    ("vmalloc.rs", "vzalloc", From::Process, |_, cpu| ignore(vmalloc::vzalloc(cpu, 64))),
    ("vmalloc.rs", "vmalloc_32", From::Process, |_, cpu| ignore(vmalloc::vmalloc_32(cpu, 64))),
    ("vmalloc.rs", "__vmalloc", From::Process, |_, cpu| ignore(vmalloc::__vmalloc(cpu, 64, GFP_ATOMIC))),
    ("vmalloc.rs", "vfree", From::Vfree, |set, cpu| vmalloc::vfree(cpu, vmalloc::vmalloc(&set.calm, 64).unwrap())),
    ("vmalloc/access.rs", "read", From::Anywhere, |set, cpu| ignore(vmalloc::read(cpu, set.area.virt(), &mut [0; 8]))),
    ("vmalloc/access.rs", "write", From::Anywhere, |set, cpu| ignore(vmalloc::write(cpu, set.area.virt(), &[0; 8]))),
    ("vmalloc/map.rs", "vmap", From::Process, |set, cpu| ignore(vmalloc::vmap(cpu, &[&set.pages]))),
    ("vmalloc/map.rs", "vunmap", From::Process, |set, cpu| {
        vmalloc::vunmap(cpu, vmalloc::vmap(&set.calm, &[&set.pages]).unwrap())
    }),
    ("vmalloc/misuse.rs", "vfree", From::Vfree, |set, cpu| {
        vmalloc::misuse::vfree(cpu, vmalloc::vmalloc(&set.calm, 64).unwrap().into_raw())
    }),
    ("vmalloc/misuse.rs", "vunmap", From::Process, |_, cpu| vmalloc::misuse::vunmap(cpu, VirtAddr::new(0))),
    ("vmalloc/misuse.rs", "map_single", From::Anywhere, |set, cpu| {
        ignore(vmalloc::misuse::map_single(cpu, &set.device, set.area.virt(), 8))
    }),
];
