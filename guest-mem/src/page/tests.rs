use super::*;
use crate::finding::Resource;
use crate::gfp::{__GFP_COMP, __GFP_HIGHMEM, __GFP_ZERO, GFP_ATOMIC, GFP_DMA, GFP_DMA32, GFP_KERNEL};
use crate::kernel::MachineConfig;
use crate::testing::Lab;

#[test]
fn a_block_is_aligned_zeroed_if_asked_and_freed_when_dropped() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let dirty = alloc_pages(&cpu, 3, GFP_KERNEL).unwrap();
    let at = dirty.phys();
    lab.kernel().ram().write(at, &[7; 8 * 4096]).unwrap();
    assert_eq!((dirty.order(), dirty.zone(), at.get() % (8 * 4096)), (3, ZoneKind::Normal, 0));
    drop(dirty);
    let clean = alloc_pages(&cpu, 3, GFP_KERNEL | __GFP_ZERO).unwrap();
    let mut bytes = vec![1; 8 * 4096];
    lab.kernel().ram().read(at, &mut bytes).unwrap();
    assert_eq!((clean.phys(), bytes.iter().max()), (at, Some(&0)));
    let leak = crate::stats::leaks(lab.kernel()).remove(0);
    assert_eq!((leak.resource, leak.bytes, leak.owner), (Resource::Pages, 8 * 4096, clean.owner()));
    drop(clean);
    assert!(lab.leaks().is_empty());
}

#[test]
fn orders_end_at_ten_and_a_freed_vector_is_restored() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let before = lab.kernel().buddyinfo();
    assert!(matches!(alloc_pages(&cpu, 11, GFP_KERNEL), Err(AllocError::TooLarge { order: 11 })));
    let blocks = [10, 0, 5].map(|order| alloc_pages(&cpu, order, GFP_KERNEL | GFP_DMA).unwrap());
    assert!(blocks.iter().all(|block| block.zone() == ZoneKind::Dma));
    assert_ne!(lab.kernel().buddyinfo(), before);
    drop(blocks);
    assert_eq!(lab.kernel().buddyinfo(), before);
}

#[test]
fn a_second_free_is_told_and_changes_nothing() {
    let lab = Lab::new();
    let pages = alloc_pages(&lab.cpu(), 1, GFP_KERNEL).unwrap();
    give_block(lab.kernel(), pages.phys(), 0);
    give_block(lab.kernel(), pages.phys(), 1);
    drop(pages);
    assert_eq!(lab.findings(), ["bad-free"; 2]);
    lab.kernel().validate().unwrap();
}

#[test]
fn each_event_has_its_size_in_bytes() {
    let lab = Lab::new();
    lab.kernel().trace().capture();
    drop(alloc_pages(&lab.cpu(), 2, GFP_KERNEL).unwrap());
    let kinds: Vec<_> = lab.kernel().trace().take_captured().iter().map(|(_, r)| (r.kind, r.len)).collect();
    assert_eq!(kinds, [(Kind::MmPageAlloc, 16384), (Kind::MmPageFree, 16384)]);
}

fn counts(cpu: &Cpu<'_>, at: PhysAddr, pages: u64) -> Vec<u32> {
    (0..pages).map(|page| page_count(cpu, at.wrapping_add(page * PAGE_SIZE))).collect()
}

#[test]
fn a_block_counts_its_references_at_its_first_page() {
    for pcp in [false, true] {
        let lab = Lab::of(MachineConfig { pcp, ..MachineConfig::default() });
        let cpu = lab.cpu();
        let block = alloc_pages(&cpu, 2, GFP_KERNEL).unwrap();
        let at = block.phys();
        assert_eq!(counts(&cpu, at, 4), [1, 0, 0, 0]);
        drop(get_page(&block));
        assert_eq!(counts(&cpu, at, 4), [1, 0, 0, 0], "taken and given back");
        let further = get_page(&block).unwrap();
        assert_eq!((counts(&cpu, at, 4), further.phys()), (vec![2, 0, 0, 0], at));
        drop(block);
        assert_eq!(counts(&cpu, at, 4), [1, 0, 0, 0], "three of the four are free");
        assert_eq!(crate::stats::leaks(lab.kernel()).iter().map(|leak| leak.bytes).collect::<Vec<_>>(), [4096]);
        lab.kernel().validate().unwrap();
        drop(further);
        assert_eq!(counts(&cpu, at, 4), [0; 4]);
        assert!(lab.leaks().is_empty() && lab.findings().is_empty());
        lab.kernel().validate().unwrap();
    }
}

#[test]
fn a_split_block_is_freed_page_by_page() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let before = lab.kernel().buddyinfo();
    let block = alloc_pages(&cpu, 2, GFP_KERNEL).unwrap();
    let (at, owner) = (block.phys(), block.owner());
    let mut singles = split_page(&cpu, block);
    assert_eq!(counts(&cpu, at, 4), [1; 4]);
    assert!(singles.iter().all(|page| (page.order(), page.owner()) == (0, owner)));
    drop(singles.remove(1));
    assert_eq!(counts(&cpu, at, 4), [1, 0, 1, 1]);
    lab.kernel().validate().unwrap();
    drop(singles);
    assert_eq!((lab.kernel().buddyinfo(), lab.leaks().len()), (before, 0));
}

#[test]
fn an_exact_size_keeps_no_more_pages_than_it_needs() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let free = || lab.kernel().zone_stats().iter().map(|zone| zone.free).sum::<u64>();
    let before = free();
    let exact = alloc_pages_exact(&cpu, 5 * 4096 - 100, GFP_KERNEL).unwrap();
    assert_eq!((exact.len(), exact.pages().len(), before - free()), (5 * 4096, 5, 5));
    assert_eq!(exact.phys().get() % (8 * 4096), 0, "cut from a block of eight");
    assert_eq!(counts(&cpu, exact.phys(), 6), [1, 1, 1, 1, 1, 0]);
    lab.kernel().validate().unwrap();
    assert!(alloc_pages_exact(&cpu, (4 << 20) + 1, GFP_KERNEL).is_err());
    assert_eq!(lab.findings(), ["order-too-large"]);
    drop(alloc_pages_exact(&cpu, 1, GFP_KERNEL | __GFP_COMP | __GFP_HIGHMEM).unwrap());
    assert_eq!(lab.findings()[1..], ["exact-mask"]);
    drop(exact);
    assert_eq!((free(), lab.leaks().len()), (before, 0));
    lab.kernel().validate().unwrap();
}

#[test]
fn bulk_gives_single_pages_and_may_give_fewer() {
    for pcp in [false, true] {
        let lab = Lab::of(MachineConfig { ram: 32 << 20, swiotlb: 0, pcp, ..MachineConfig::default() });
        let cpu = lab.cpu();
        let pages = alloc_pages_bulk(&cpu, 100, GFP_KERNEL | __GFP_ZERO);
        assert_eq!((pages.len(), pages.iter().all(|page| page.order() == 0)), (100, true));
        let many = alloc_pages_bulk(&cpu, 100_000, GFP_KERNEL);
        assert_eq!(many.len(), 1, "not so many above the low mark: one page, the long way");
        assert_eq!((alloc_pages_bulk(&cpu, 1, GFP_ATOMIC).len(), alloc_pages_bulk(&cpu, 0, GFP_ATOMIC).len()), (1, 0));
        lab.solo.fail_nth(0);
        assert!(alloc_pages_bulk(&cpu, 10, GFP_ATOMIC).is_empty(), "one fault fails all");
        drop((pages, many));
        assert!(lab.leaks().is_empty());
        lab.kernel().validate().unwrap();
    }
}

#[test]
fn pages_with_an_address_come_from_the_zone_that_is_asked_for() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let zones = [
        __get_free_page(&cpu, GFP_KERNEL | __GFP_HIGHMEM).unwrap().zone(),
        get_zeroed_page(&cpu, GFP_KERNEL | GFP_DMA32).unwrap().zone(),
        __get_dma_pages(&cpu, 1, GFP_ATOMIC).unwrap().zone(),
        __get_free_pages(&cpu, 10, GFP_KERNEL).unwrap().zone(),
    ];
    assert_eq!(zones, [ZoneKind::Normal, ZoneKind::Dma32, ZoneKind::Dma, ZoneKind::Normal]);
    let mut page = __get_free_page(&cpu, GFP_KERNEL).unwrap();
    page.write_at(0, &[7; 4096]).unwrap();
    drop(page);
    let mut bytes = [1; 4096];
    get_zeroed_page(&cpu, GFP_KERNEL).unwrap().read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4096]);
    assert!(lab.leaks().is_empty());
}

#[test]
fn raw_frees_that_are_wrong_are_told_in_linux_words_and_change_nothing() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    misuse::free_pages(&cpu, PhysAddr::new(0), 3);
    let block = alloc_pages(&cpu, 3, GFP_KERNEL).unwrap();
    let small = crate::KBuf::kmalloc(&cpu, 100, GFP_KERNEL).unwrap();
    misuse::free_pages(&cpu, block.phys(), 0);
    misuse::free_pages(&cpu, block.phys().wrapping_add(4096), 0);
    misuse::free_pages(&cpu, small.phys(), 0);
    misuse::free_pages(&cpu, PhysAddr::new(0xe000_0000), 0);
    misuse::free_pages(&cpu, block.phys(), 3);
    misuse::free_pages(&cpu, block.phys(), 3);
    let told: Vec<_> = lab.kernel().findings().iter().map(|finding| finding.kind.config()).collect();
    let (debug, bad) = (Some("CONFIG_DEBUG_VM"), Some("any (BUG: Bad page state)"));
    assert_eq!(told, [None, debug, bad, Some("any (an oops)"), debug]);
    assert!(lab.kernel().findings()[2].to_string().contains("BUG: Bad page state in process insmod  pfn:"));
    let _ = block.into_block();
    assert_eq!(lab.findings().len(), 5);
    lab.kernel().validate().unwrap();
}

#[test]
fn a_call_that_may_sleep_is_told_from_atomic_context_though_memory_is_plenty() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let _off = cpu.local_irq_save();
    drop(alloc_pages(&cpu, 0, GFP_ATOMIC).unwrap());
    assert!(lab.findings().is_empty());
    drop(alloc_pages(&cpu, 0, GFP_KERNEL).unwrap());
    drop(alloc_pages_exact(&cpu, 1, GFP_KERNEL).unwrap());
    drop(alloc_pages_bulk(&cpu, 2, GFP_KERNEL));
    drop(__get_free_page(&cpu, GFP_KERNEL).unwrap());
    assert_eq!(lab.findings(), ["sleep-in-atomic"; 4]);
}

/// Frees a block whose page `at` was given a state; the reasons found at once, and after the lists were drained.
fn bad_free_of(lab: &Lab, order: u8, at: u64, state: PageState) -> [Vec<String>; 2] {
    let cpu = lab.cpu();
    let pages = alloc_pages(&cpu, order, GFP_KERNEL).unwrap();
    misuse::set_page_state(&cpu, pages.phys().wrapping_add(at * PAGE_SIZE), state);
    let reasons = || {
        let all = lab.kernel().findings().into_iter();
        all.map(|finding| finding.to_string().split("dumped because: ").nth(1).unwrap().trim().to_owned()).collect()
    };
    drop(pages);
    let at_once = reasons();
    lab.kernel().drain_all_pages();
    [at_once, reasons()]
}

#[test]
fn a_page_freed_in_a_bad_state_is_told_in_linux_s_words_and_never_used_again() {
    let states = [
        (PageState { mapped: true, ..PageState::default() }, "nonzero mapcount"),
        (PageState { mapping: true, mapped: true, ..PageState::default() }, "non-NULL mapping"),
        (PageState { refs: 1, mapping: true, ..PageState::default() }, "nonzero _refcount"),
        (PageState { flags: PageFlags::RESERVED, ..PageState::default() }, "PAGE_FLAGS_CHECK_AT_FREE flag(s) set"),
    ];
    for (state, reason) in states {
        for (order, at) in [(0, 0), (2, 3), (5, 17), (5, 0)] {
            let lab = Lab::new();
            let free = || lab.kernel().zone_stats().map(|zone| zone.free).iter().sum::<u64>();
            let before = free();
            let [at_once, _] = bad_free_of(&lab, order, at, state);
            assert!(at_once.len() == 1 && at_once[0].starts_with(reason), "{reason}: {at_once:?}");
            assert_eq!(before - free(), 1 << order, "the block is lost");
            assert!(lab.leaks().is_empty(), "but not by its owner");
            let finding = lab.kernel().findings().remove(0);
            assert_eq!((finding.kind.name(), finding.kind.config()), ("bad-free", Some("any (BUG: Bad page state)")));
            let log = lab.kernel().log().lines().iter().map(|line| format!("{}\n", line.text)).collect::<String>();
            assert!(log.contains("BUG: Bad page state in process insmod  pfn:"), "{log}");
            assert!(log.contains(&format!("page dumped because: {reason}")), "{log}");
            lab.kernel().validate().unwrap();
        }
    }
}

#[test]
fn a_bad_page_on_a_cpu_s_list_is_seen_when_that_is_drained_and_its_followers_at_once() {
    let mapping = PageState { mapping: true, ..PageState::default() };
    for (order, at, when) in [(0, 0, [0, 1]), (3, 0, [0, 1]), (3, 5, [1, 1]), (4, 0, [1, 1])] {
        let lab = Lab::of(MachineConfig { pcp: true, ..MachineConfig::default() });
        let seen = bad_free_of(&lab, order, at, mapping).map(|reasons| reasons.len());
        assert_eq!(seen, when, "order {order}, page {at}");
        lab.kernel().validate().unwrap();
    }
}

#[test]
fn a_state_that_is_cleared_before_the_free_is_none() {
    let lab = Lab::new();
    let cpu = lab.cpu();
    let pages = alloc_pages(&cpu, 1, GFP_KERNEL).unwrap();
    let at = pages.phys();
    misuse::set_page_state(&cpu, at, PageState { flags: PageFlags::LOCKED, ..PageState::default() });
    misuse::set_page_state(&cpu, at, PageState::default());
    drop(pages);
    assert!(lab.findings().is_empty());
    assert_eq!(alloc_pages(&cpu, 1, GFP_KERNEL).unwrap().phys(), at);
    let reference = get_page(&alloc_pages(&cpu, 1, GFP_KERNEL).unwrap());
    misuse::set_page_state(&cpu, at, PageState { mapping: true, ..PageState::default() });
    assert!(lab.findings().is_empty(), "a reference is left, so the page is not freed yet");
    drop(reference);
    assert_eq!(lab.findings(), ["bad-free"]);
}
