//! The DMA API and registers: from where each call may come.

use super::*;

pub(super) const CALLS: &[Row] = &[
    ("dma/coherent.rs", "alloc_coherent", From::ByMask, |set, cpu| {
        ignore(set.device.alloc_coherent(cpu, 64, set.gfp));
    }),
    ("dma/coherent.rs", "free", From::IrqsOn, |set, cpu| set.coherent().free(cpu)),
    ("dma/coherent.rs", "$read", From::Anywhere, |set, cpu| assert_eq!(set.coherent().read_u32(cpu, 0), 0)),
    ("dma/coherent.rs", "$write", From::Anywhere, |set, cpu| set.coherent().write_u32(cpu, 0, 1)),
    ("dma/coherent.rs", "read", From::Anywhere, |set, cpu| set.coherent().read(cpu, 0, &mut [0; 4])),
    ("dma/coherent.rs", "write", From::Anywhere, |set, cpu| set.coherent().write(cpu, 0, &[0; 4])),
    ("dma/device.rs", "set_mask", From::NotHardirq, |set, cpu| set.device.set_mask(cpu, u64::MAX).unwrap()),
    ("dma/device.rs", "set_coherent_mask", From::NotHardirq, |set, cpu| {
        set.device.set_coherent_mask(cpu, u64::MAX).unwrap();
    }),
    ("dma/device.rs", "set_mask_and_coherent", From::NotHardirq, |set, cpu| {
        set.device.set_mask_and_coherent(cpu, u64::MAX).unwrap();
    }),
    ("dma/device.rs", "released", From::Anywhere, |set, cpu| set.device.released(cpu)),
    ("dma/misuse.rs", "map_single", From::Anywhere, |set, cpu| {
        ignore(misuse::map_single(cpu, &set.device, &set.buf(), Dir::ToDevice));
    }),
    ("dma/misuse.rs", "map_single_unchecked", From::Anywhere, |set, cpu| {
        assert!(misuse::map_single_unchecked(cpu, &set.device, &set.buf(), Dir::ToDevice).is_ok());
    }),
    ("dma/misuse.rs", "map_blindly", From::Anywhere, |set, cpu| {
        ignore(misuse::map_blindly::<ToDevice>(cpu, &set.device, set.buf()));
    }),
    ("dma/misuse.rs", "map_padded", From::Anywhere, |set, cpu| {
        ignore(misuse::map_padded::<ToDevice>(cpu, &set.device, set.buf(), 64));
    }),
    ("dma/misuse.rs", "never_unmap", From::Anywhere, |set, cpu| {
        ignore(misuse::never_unmap(cpu, set.device.map_single::<ToDevice>(&set.calm, set.buf()).unwrap()));
    }),
    ("dma/misuse.rs", "read_mapped", From::Anywhere, |set, cpu| {
        let mapped = set.device.map_single::<ToDevice>(&set.calm, set.buf()).unwrap();
        misuse::read_mapped(cpu, &mapped, 0, &mut [0; 4]).unwrap();
    }),
    ("dma/misuse.rs", "load", From::Anywhere, |set, cpu| misuse::load(cpu, set.pages.phys(), &mut [0])),
    ("dma/misuse.rs", "free_coherent", From::IrqsOn, |set, cpu| {
        misuse::free_coherent(cpu, &set.device, PhysAddr::new(0), crate::DmaAddr::new(0), 8);
    }),
    ("dma/misuse.rs", "free_coherent_as", From::IrqsOn, |set, cpu| misuse::free_coherent_as(cpu, set.coherent(), 8)),
    ("dma/misuse.rs", "unmap_single", From::Anywhere, |set, cpu| {
        misuse::unmap_single(cpu, &set.device, set.raw().dma, 64, Dir::ToDevice);
    }),
    ("dma/misuse.rs", "sync_single", From::Anywhere, |set, cpu| {
        misuse::sync_single(cpu, &set.device, set.raw().dma, 64, true, Dir::ToDevice);
    }),
    ("dma/misuse.rs", "kfree", From::Anywhere, |_, cpu| misuse::kfree(cpu, PhysAddr::new(0x1000))),
    ("dma/misuse.rs", "kfree_virt", From::Anywhere, |_, cpu| misuse::kfree_virt(cpu, crate::VirtAddr::new(0x1000))),
    ("dma/misuse.rs", "overrun", From::Anywhere, |set, cpu| ignore(misuse::overrun(cpu, set.buf(), &[0; 65]))),
    ("dma/misuse.rs", "free_buffer", From::Anywhere, |set, cpu| misuse::free_buffer(cpu, &set.buf())),
    ("dma/streaming.rs", "map_single", From::Anywhere, |set, cpu| {
        ignore(set.device.map_single::<ToDevice>(cpu, set.buf()));
    }),
    ("dma/streaming.rs", "unmap", From::Anywhere, |set, cpu| {
        ignore(set.device.map_single::<ToDevice>(&set.calm, set.buf()).unwrap().unmap(cpu));
    }),
    ("dma/streaming.rs", "sync_for_cpu", From::Anywhere, |set, cpu| {
        ignore(set.device.map_single::<ToDevice>(&set.calm, set.buf()).unwrap().sync_for_cpu(cpu));
    }),
    ("dma/streaming.rs", "map_single_attrs", From::Anywhere, |set, cpu| {
        ignore(set.device.map_single_attrs::<ToDevice>(cpu, set.buf(), Attrs::NO_WARN));
    }),
    ("dma/streaming.rs", "map_page", From::Anywhere, |set, cpu| {
        let page = page::alloc_pages(&set.calm, 0, GFP_KERNEL).unwrap();
        ignore(set.device.map_page::<ToDevice>(cpu, page, 0, 64));
    }),
    ("dma/streaming.rs", "map_resource", From::Anywhere, |set, cpu| {
        ignore(set.device.map_resource::<ToDevice>(cpu, Resource { phys: REGISTERS, len: 8 }));
    }),
    ("dma/streaming.rs", "sync_range_for_cpu", From::Anywhere, |set, cpu| {
        let mut mapped = set.device.map_single::<ToDevice>(&set.calm, set.buf()).unwrap();
        assert!(mapped.sync_range_for_cpu(cpu, 0, 8).is_ok());
    }),
    ("dma/sg.rs", "of", From::Anywhere, |set, cpu| ignore(SgTable::of(cpu, &set.buf()))),
    ("dma/sg.rs", "map_sg", From::Anywhere, |set, cpu| ignore(set.device.map_sg::<_, ToDevice>(cpu, set.buf()))),
    ("dma/sg.rs", "map_sg_attrs", From::Anywhere, |set, cpu| {
        ignore(set.device.map_sg_attrs::<_, ToDevice>(cpu, set.buf(), Attrs::NO_WARN));
    }),
    ("dma/sg.rs", "unmap", From::Anywhere, |set, cpu| {
        ignore(set.device.map_sg::<_, ToDevice>(&set.calm, set.buf()).unwrap().unmap(cpu));
    }),
    ("dma/sg.rs", "sync_for_cpu", From::Anywhere, |set, cpu| {
        ignore(set.device.map_sg::<_, ToDevice>(&set.calm, set.buf()).unwrap().sync_for_cpu(cpu));
    }),
    ("dma/noncoherent.rs", "alloc_pages", From::ByMask, |set, cpu| ignore(set.device.alloc_pages(cpu, 64, set.gfp))),
    ("dma/noncoherent.rs", "alloc_noncoherent", From::ByMask, |set, cpu| {
        ignore(set.device.alloc_noncoherent::<ToDevice>(cpu, 64, set.gfp));
    }),
    ("dma/pool.rs", "dma_pool_create", From::Process, |set, cpu| {
        ignore(dma_pool_create(cpu, "table", &set.device, 64, 0, 0));
    }),
    ("dma/pool.rs", "alloc", From::ByMask, |set, cpu| ignore(set.dma_pool().alloc(cpu, set.gfp))),
    ("dma/pool.rs", "zalloc", From::ByMask, |set, cpu| ignore(set.dma_pool().zalloc(cpu, set.gfp))),
    ("dma/pool.rs", "destroy", From::Process, |set, cpu| set.dma_pool().destroy(cpu)),
    ("dma/pool.rs", "read", From::Anywhere, |set, cpu| set.block().read(cpu, 0, &mut [0; 4])),
    ("dma/pool.rs", "write", From::Anywhere, |set, cpu| set.block().write(cpu, 0, &[0; 4])),
    ("dma/pool.rs", "read_u32", From::Anywhere, |set, cpu| assert_eq!(set.block().read_u32(cpu, 60), 0)),
    ("dma/pool.rs", "write_u32", From::Anywhere, |set, cpu| set.block().write_u32(cpu, 0, 1)),
    ("dma/pool.rs", "free", From::Anywhere, |set, cpu| set.block().free(cpu)),
    ("dma/posted.rs", "trace_add", From::Anywhere, |set, cpu| {
        Posting::new(&set.device, 0, &set.coherent(), 8).trace_add(cpu, 0, 1, []);
    }),
    ("dma/posted.rs", "trace", From::Anywhere, |set, cpu| {
        Posting::new(&set.device, 0, &set.coherent(), 8).trace(cpu, Kind::VirtqKick, 0, 1);
    }),
    ("dma/pool/misuse.rs", "dma_pool_free", From::Anywhere, |set, cpu| {
        dma_pool_free(cpu, &set.dma_pool(), PhysAddr::new(0), crate::DmaAddr::new(0));
    }),
    ("dma/misuse.rs", "map_sg", From::Anywhere, |set, cpu| {
        assert_eq!(misuse::map_sg(cpu, &set.device, &mut set.list(), Dir::ToDevice), 1);
    }),
    ("dma/misuse.rs", "map_sgtable", From::Anywhere, |set, cpu| {
        misuse::map_sgtable(cpu, &set.device, &mut set.list(), Dir::ToDevice).unwrap();
    }),
    ("dma/misuse.rs", "unmap_sg", From::Anywhere, |set, cpu| {
        misuse::unmap_sg(cpu, &set.device, &set.list(), 1, Dir::ToDevice);
    }),
    ("dma/misuse.rs", "sync_sg", From::Anywhere, |set, cpu| {
        misuse::sync_sg(cpu, &set.device, &set.list(), 1, true, Dir::ToDevice);
    }),
    ("dma/misuse.rs", "map_part", From::Anywhere, |set, cpu| {
        ignore(misuse::map_part(cpu, &set.device, &set.buf(), (0, 8), Dir::ToDevice, Attrs::empty()));
    }),
    ("dma/misuse.rs", "map_address", From::Anywhere, |set, cpu| {
        ignore(misuse::map_address(cpu, &set.device, crate::VirtAddr::new(0), 8, Dir::ToDevice));
    }),
    ("dma/misuse.rs", "unmap_attrs", From::Anywhere, |set, cpu| {
        misuse::unmap_attrs(cpu, &set.device, (set.raw().dma, 64), Dir::ToDevice, Attrs::empty());
    }),
    ("iomem.rs", "ioremap", From::Process, |_, cpu| ignore(iomem::ioremap(cpu, REGISTERS, 8))),
    ("dma/misuse.rs", "kmem_cache_free", From::Anywhere, |set, cpu| {
        misuse::kmem_cache_free(cpu, &set.cache, PhysAddr::new(0x1000));
    }),
    ("dma/misuse.rs", "scribble", From::Anywhere, |set, cpu| misuse::scribble(cpu, set.pages.phys(), &[1])),
    ("iomem.rs", "$name", From::Process, |_, cpu| ignore(iomem::ioremap_wc(cpu, REGISTERS, 8))),
    ("iomem.rs", "iounmap", From::Process, |set, cpu| iomem::iounmap(cpu, set.window())),
    ("iomem/access.rs", "$read", From::Anywhere, |set, cpu| ignore(set.window.readl(cpu, 0))),
    ("iomem/access.rs", "$relaxed_read", From::Anywhere, |set, cpu| ignore(set.window.readl_relaxed(cpu, 0))),
    ("iomem/access.rs", "$io_read", From::Anywhere, |set, cpu| ignore(set.window.ioread32(cpu, 0))),
    ("iomem/access.rs", "$rep_read", From::Anywhere, |set, cpu| set.window.ioread32_rep(cpu, 0, &mut [0; 2])),
    ("iomem/access.rs", "$write", From::Anywhere, |set, cpu| set.window.writel(cpu, 0, 1)),
    ("iomem/access.rs", "$relaxed_write", From::Anywhere, |set, cpu| set.window.writel_relaxed(cpu, 0, 1)),
    ("iomem/access.rs", "$io_write", From::Anywhere, |set, cpu| set.window.iowrite32(cpu, 0, 1)),
    ("iomem/access.rs", "$rep_write", From::Anywhere, |set, cpu| set.window.iowrite32_rep(cpu, 0, &[1; 2])),
    ("iomem/access.rs", "memcpy_fromio", From::Anywhere, |set, cpu| set.window.memcpy_fromio(cpu, 0, &mut [0; 4])),
    ("iomem/access.rs", "memcpy_toio", From::Anywhere, |set, cpu| set.window.memcpy_toio(cpu, 0, &[0; 4])),
    ("iomem/access.rs", "memset_io", From::Anywhere, |set, cpu| set.window.memset_io(cpu, 0, 0, 4)),
    ("iomem/misuse.rs", "iounmap", From::Process, |set, cpu| iomem::misuse::iounmap(cpu, &set.window)),
    ("iomem/misuse.rs", "release_mem_region", From::Task, |_, cpu| {
        iomem::misuse::release_mem_region(cpu, REGISTERS, 8);
    }),
    ("iomem/posted.rs", "flush_posted", From::Anywhere, |_, cpu| iomem::posted::flush_posted(cpu)),
    ("iomem/region.rs", "request_mem_region", From::Process, |_, cpu| {
        ignore(iomem::request_mem_region(cpu, REGISTERS, 8, "table"));
    }),
];
