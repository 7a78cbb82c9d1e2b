//! Tests of the per-CPU lists: the measured sequence, their neighbours' view of them, and damage that `validate`
//! must see.

use super::*;
use crate::gfp::{__GFP_MEMALLOC, __GFP_NORETRY, GFP_ATOMIC, GFP_DMA, GFP_KERNEL, Gfp};
use crate::kernel::MachineConfig;
use crate::page::{Pages, alloc_pages};
use crate::testing::Lab;

fn lab() -> Lab {
    Lab::of(MachineConfig { pcp: true, ..MachineConfig::default() })
}

fn take(lab: &Lab, order: u8, gfp: Gfp) -> Pages {
    alloc_pages(&lab.cpu(), order, gfp).unwrap()
}

fn free(lab: &Lab, zone: ZoneKind) -> u64 {
    lab.kernel().memory.lock().zones.stats()[zone.index()].free
}

#[test]
fn settings_are_those_measured() {
    let of = |managed, low| {
        let PcpSettings { high, batch } = PcpSettings::new(managed, low, 2);
        (high, batch)
    };
    assert_eq!([of(3840, 9), of(760_594, 1990), of(758_473, 1987), of(0, 0)], [(4, 1), (995, 63), (993, 63), (4, 1)]);
    assert_eq!([of(3840, 18), of(248_094, 1231)], [(9, 1), (615, 63)]);
    assert_eq!(of(65536, 452), (226, 15), "256 MiB");
    let refill = |settings: PcpSettings| [0, 1, 2, 3].map(|order| settings.refill(order));
    assert_eq!(refill(PcpSettings::new(760_594, 1990, 2)), [63, 31, 15, 7]);
    assert_eq!(refill(PcpSettings { high: 12, batch: 3 }), [3, 2, 2, 2]);
    assert_eq!(refill(PcpSettings { high: 4, batch: 1 }), [1; 4]);
}

#[test]
fn a_refill_takes_a_batch_and_a_freed_page_is_the_next_one() {
    let lab = lab();
    for (order, falls) in [(0, 63), (1, 62), (2, 60), (3, 56), (4, 16)] {
        let before = free(&lab, ZoneKind::Normal);
        let block = take(&lab, order, GFP_KERNEL);
        assert_eq!(before - free(&lab, ZoneKind::Normal), falls, "order {order}");
        let at = block.phys();
        drop(block);
        assert_eq!(take(&lab, order, GFP_KERNEL).phys(), at, "order {order} is not the last freed");
    }
    lab.kernel().validate().unwrap();
    lab.kernel().drain_all_pages();
    assert_eq!(lab.kernel().pcp.counts(), [0; ZONES]);
    assert_eq!(lab.kernel().buddyinfo(), Lab::new().kernel().buddyinfo(), "all merged again");
    lab.kernel().validate().unwrap();
}

#[test]
fn the_batch_that_goes_back_grows_while_nothing_is_allocated() {
    let lab = lab();
    let pages: Vec<_> = (0..17).map(|_| take(&lab, 0, GFP_DMA)).collect();
    let mut counts = Vec::new();
    for page in pages {
        drop(page);
        counts.push(lab.kernel().pcp.counts()[0]);
    }
    assert_eq!(counts, [1, 2, 3, 3, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]);
    drop(take(&lab, 2, GFP_DMA));
    assert_eq!(lab.kernel().pcp.counts()[0], 0, "a larger block freed in a run of frees takes all with it");
    lab.kernel().validate().unwrap();
}

#[test]
fn each_cpu_has_its_own() {
    let lab = lab();
    let (one, two) = (lab.cpu(), lab.cpu_number(1));
    let at = |cpu| alloc_pages(cpu, 0, GFP_KERNEL).unwrap();
    let (a, b) = (at(&one), at(&two));
    assert_eq!(b.phys().get() - a.phys().get(), 63 * 4096, "the second CPU takes the next batch");
    let (of_a, of_b) = (a.phys(), b.phys());
    drop(a);
    crate::cpu::set_current(1);
    drop(b);
    crate::cpu::set_current(0);
    assert_eq!((at(&two).phys(), at(&one).phys()), (of_b, of_a));
    lab.kernel().validate().unwrap();
}

#[test]
fn the_mark_is_tested_before_the_list() {
    let lab = lab();
    let cpu = lab.cpu();
    let mut held = Vec::new();
    while let Ok(page) = alloc_pages(&cpu, 0, GFP_KERNEL | GFP_DMA | __GFP_NORETRY) {
        held.push(page);
    }
    let marks = lab.kernel().memory.lock().zones.stats()[0].marks;
    assert_eq!((held.len() as u64, free(&lab, ZoneKind::Dma)), (3840 - marks.min, marks.min));
    held.pop();
    assert_eq!((lab.kernel().pcp.counts()[0], free(&lab, ZoneKind::Dma)), (1, marks.min));
    assert!(alloc_pages(&cpu, 0, GFP_KERNEL | GFP_DMA | __GFP_NORETRY).is_err(), "with a page on the list");
    let last = alloc_pages(&cpu, 0, GFP_ATOMIC | GFP_DMA).unwrap();
    assert_eq!((lab.kernel().pcp.counts()[0], free(&lab, ZoneKind::Dma)), (0, marks.min));
    drop(last);
    while let Ok(page) = alloc_pages(&cpu, 0, GFP_KERNEL | GFP_DMA | __GFP_MEMALLOC | __GFP_NORETRY) {
        held.push(page);
    }
    assert_eq!((lab.kernel().pcp.counts()[0], free(&lab, ZoneKind::Dma)), (0, 0));
    assert!(alloc_pages(&cpu, 0, GFP_DMA | __GFP_MEMALLOC).is_err());
    drop(held);
    lab.kernel().validate().unwrap();
}

#[test]
fn wrong_frees_of_listed_pages_are_told() {
    let lab = lab();
    let page = take(&lab, 0, GFP_KERNEL);
    crate::page::give_block(lab.kernel(), page.phys(), 1);
    crate::page::give_block(lab.kernel(), page.phys(), 0);
    crate::page::give_block(lab.kernel(), page.phys(), 0);
    drop(page);
    assert_eq!(lab.findings(), ["bad-free"; 3]);
    assert!(lab.leaks().is_empty());
    lab.kernel().validate().unwrap();
}

#[test]
fn a_recycled_machine_has_empty_lists() {
    let config = MachineConfig { pcp: true, ram: 80 << 20, ..MachineConfig::default() };
    let first = {
        let lab = Lab::of(config);
        drop(take(&lab, 3, GFP_KERNEL));
        take(&lab, 0, GFP_KERNEL).phys()
    };
    let lab = Lab::of(config);
    assert_eq!(lab.kernel().pcp.counts(), [0; ZONES]);
    drop(take(&lab, 3, GFP_KERNEL));
    assert_eq!(take(&lab, 0, GFP_KERNEL).phys(), first);
}

#[test]
fn validate_sees_each_kind_of_damage() {
    let damaged = |damage: fn(&Lab, &mut Lists)| {
        let lab = lab();
        drop(take(&lab, 0, GFP_KERNEL));
        let kernel = lab.kernel();
        damage(&lab, &mut kernel.pcp.cpus[0].0.lock().zones[ZoneKind::Normal.index()]);
        let found = kernel.pcp.validate(&kernel.memory).unwrap_err();
        // The machine is not to be lent again in this state.
        kernel.condemn();
        found
    };
    let normal = ZoneKind::Normal;
    let count = damaged(|_, lists| lists.count += 1);
    assert_eq!(count, InvalidPcp::WrongCount { cpu: 0, zone: normal, counted: 64, found: 63 });
    let twice = damaged(|_, lists| {
        let pfn = lists.blocks[0][7];
        lists.blocks[0].push_back(pfn);
        lists.count += 1;
    });
    assert_eq!(twice, InvalidPcp::Lost { zone: normal, marked: 63, found: 64 });
    let lost = damaged(|_, lists| {
        lists.blocks[0].pop_back();
        lists.count -= 1;
    });
    assert_eq!(lost, InvalidPcp::Lost { zone: normal, marked: 63, found: 62 });
    let used = damaged(|lab, lists| {
        let pfn = lists.blocks[0][0];
        lab.kernel().pcp.shared.frames.set_used(pfn, 0, Kind::Pages, Owner::default());
    });
    assert!(matches!(used, InvalidPcp::Stray { cpu: 0, order: 0, .. }));
    let elsewhere = damaged(|_, lists| lists.blocks[1].push_back(0x1000));
    assert_eq!(elsewhere, InvalidPcp::Stray { cpu: 0, zone: normal, order: 1, pfn: 0x1000 });
}
