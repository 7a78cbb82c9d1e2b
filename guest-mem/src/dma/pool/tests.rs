use super::*;
use crate::finding::Resource;
use crate::gfp::GFP_ATOMIC;
use crate::kernel::MachineConfig;
use crate::testing::Lab;

fn poisoned() -> Lab {
    Lab::of(MachineConfig { sanitize: Sanitize::POISON, ..MachineConfig::default() })
}

#[test]
fn sizes_alignments_and_boundaries_are_those_of_the_kernel() {
    let blocks = |size, align, boundary| Cut::of(size, align, boundary).unwrap().offsets().len() - 1;
    // How many blocks a page holds without a boundary of one's own: the last is not used if it would end on the page's.
    assert_eq!([64, 128, 1024, 2048].map(|size| blocks(size, 0, 0)), [63, 31, 3, 1]);
    assert_eq!(Cut::of(64, 64, 256).unwrap().offsets()[..5], [0, 64, 128, 256, 320]);
    assert_eq!(Cut::of(161, 0, 8192).unwrap().offsets().len(), Cut::of(161, 0, 0).unwrap().offsets().len());
    assert_eq!(Cut::of(5, 0, 0).unwrap().offsets()[..3], [0, 5, 10]);
    assert_eq!(Cut::of(0, 8, 0), Err(DmaPoolError::Size { size: 0 }));
    assert_eq!(Cut::of(64, 3, 0), Err(DmaPoolError::Align { align: 3 }));
    assert_eq!(Cut::of(64, 8, 32), Err(DmaPoolError::Boundary { size: 64, boundary: 32 }));
    assert_eq!(Cut::of(64, 8, 96), Err(DmaPoolError::Boundary { size: 64, boundary: 96 }));
    assert!(Cut::of(usize::MAX, 2, 0).is_err() && Cut::of(usize::MAX, 1, 0).is_err());
}

#[test]
fn the_last_block_freed_is_the_first_given_and_keeps_its_bytes() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let pool = dma_pool_create(&cpu, "test", &device, 64, 64, 0).unwrap();
    let (one, two) = (pool.alloc(&cpu, GFP_KERNEL).unwrap(), pool.alloc(&cpu, GFP_ATOMIC).unwrap());
    assert_eq!((one.zone(), one.len(), two.dma_addr().get() - one.dma_addr().get()), (ZoneKind::Dma32, 64, 64));
    one.write(&cpu, 0, &[0x5a; 64]);
    let at = one.dma_addr();
    one.free(&cpu);
    pool.validate().unwrap();
    let again = pool.alloc(&cpu, GFP_KERNEL).unwrap();
    assert_eq!((again.dma_addr(), again.read_u32(&cpu, 0), again.read_u32(&cpu, 8)), (at, 128, 0x5a5a_5a5a));
    drop(again);
    let zeroed = pool.zalloc(&cpu, GFP_KERNEL).unwrap();
    assert_eq!((zeroed.dma_addr(), zeroed.read_u32(&cpu, 60)), (at, 0));
    assert_eq!(zeroed.read_u32(&cpu, 61), u32::MAX);
    assert_eq!((pool.usage(), lab.findings()), ((2, 63), vec!["out-of-bounds"]));
    drop((zeroed, two));
    pool.destroy(&cpu);
    assert!(lab.leaks().is_empty());
}

#[test]
fn wrong_frees_are_told_in_the_words_of_the_kernel() {
    let lab = poisoned();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let pool = dma_pool_create(&cpu, "test", &device, 64, 64, 0).unwrap();
    let block = pool.alloc(&cpu, GFP_KERNEL).unwrap();
    assert_eq!(block.read_u32(&cpu, 0), 0xa9a9_a9a9);
    let (phys, dma) = (block.phys(), block.dma_addr());
    dma_pool_free(&cpu, &pool, phys, DmaAddr::new(0x1234_5000));
    dma_pool_free(&cpu, &pool, phys.wrapping_add(64), dma);
    block.free(&cpu);
    dma_pool_free(&cpu, &pool, phys, dma);
    pool.validate().unwrap();
    let virt = 0xffff_8880_0000_0000 + phys.get();
    let texts = [
        format!("0000:00:04.0: dma_pool_free test, {virt:016x}/0x0000000012345000 (bad dma)"),
        format!("0000:00:04.0: dma_pool_free test, {:016x} (bad vaddr)/{:#018x}", virt + 64, dma.get()),
        format!("0000:00:04.0: dma_pool_free test, dma {:#018x} already free", dma.get()),
    ];
    assert_eq!(lab.log(), texts);
    assert_eq!(lab.findings(), ["pool-bad-dma", "pool-bad-address", "pool-double-free"]);
    lab.kernel().ram().write(phys.wrapping_add(9), &[1]).unwrap();
    let _block = pool.alloc(&cpu, GFP_KERNEL).unwrap();
    assert_eq!(lab.log()[3], format!("0000:00:04.0: dma_pool_alloc test, {virt:016x} (corrupted)"));
}

#[test]
fn a_broken_link_is_a_finding_and_no_wild_pointer() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let pool = dma_pool_create(&cpu, "test", &device, 64, 64, 0).unwrap();
    let block = pool.alloc(&cpu, GFP_KERNEL).unwrap();
    let phys = block.phys();
    block.free(&cpu);
    lab.kernel().ram().write(phys, &[0xff; 4]).unwrap();
    assert_eq!(pool.validate(), Err(0));
    let blocks: Vec<_> = (0..3).map(|_| pool.alloc(&cpu, GFP_KERNEL).unwrap()).collect();
    assert_eq!(blocks[1].phys().get() - phys.get(), 64);
    assert_eq!((lab.findings(), lab.log()), (vec!["pool-corrupted"], vec![]), "Linux would not look");
}

#[test]
fn destroyed_while_busy_it_leaks_that_page_and_says_so() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    let pool = dma_pool_create(&cpu, "test", &device, 2048, 0, 0).unwrap();
    let (kept, freed) = (pool.alloc(&cpu, GFP_KERNEL).unwrap(), pool.alloc(&cpu, GFP_KERNEL).unwrap());
    assert_ne!(kept.phys().get() >> 12, freed.phys().get() >> 12, "one block a page");
    freed.free(&cpu);
    pool.destroy(&cpu);
    let text = format!("0000:00:04.0: dma_pool_destroy test, {:016x} busy", 0xffff_8880_0000_0000 + kept.phys().get());
    assert_eq!((lab.findings(), lab.log()), (vec!["pool-busy"], vec![text]));
    assert_eq!(lab.leaks(), [Resource::Coherent]);
    drop(kept);
    assert_eq!(lab.findings()[1..], ["pool-bad-dma"], "its page is nobody's");
}

#[test]
fn each_allocation_of_it_may_fail_and_leaves_nothing() {
    let lab = Lab::new();
    let (cpu, device) = (lab.cpu(), lab.device(32));
    lab.solo.fail_nth(0);
    assert!(matches!(dma_pool_create(&cpu, "test", &device, 64, 0, 0), Err(DmaPoolError::Header(_))));
    let pool = dma_pool_create(&cpu, "test", &device, 64, 0, 0).unwrap();
    let _warm = KBuf::kmalloc(&cpu, PAGE_HEADER, GFP_KERNEL).unwrap();
    lab.solo.fail_nth(0);
    assert!(matches!(pool.alloc(&cpu, GFP_KERNEL), Err(DmaPoolError::Header(_))));
    lab.solo.fail_nth(1);
    assert!(matches!(pool.alloc(&cpu, GFP_KERNEL), Err(DmaPoolError::Page(_))));
    assert_eq!(pool.usage(), (0, 0));
    drop(pool);
    assert_eq!(lab.leaks(), [Resource::Slab], "the warm one");
}
