//! Tests of the page allocator as a whole: fallback, reserves, wrong frees, recycling, and random use against a
//! shadow.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::addr::PhysAddr;
use crate::gfp::{
    __GFP_HIGH, __GFP_MEMALLOC, __GFP_NORETRY, GFP_ATOMIC, GFP_DMA, GFP_DMA32, GFP_HIGHUSER, GFP_KERNEL, GFP_NOWAIT,
    GFP_USER,
};
use crate::site::{Scope, Site};

/// 15 MiB in DMA, 32 in DMA32 and 24 in Normal, each with ragged ends and one hole.
fn small() -> Zones {
    let range = |start: u64, end: u64| PhysAddr::new(start)..PhysAddr::new(end);
    let ram = [range(0, 0x300_1000), range(0xffff_d000, 0x1_0180_3000)];
    Zones::new(Layout::new(&ram, &[range(0x123_4000, 0x123_7000), range(0x1_00a0_0000, 0x1_00a0_1000)]).unwrap())
}

fn pc(bytes: u64) -> Zones {
    Zones::new(Layout::pc(bytes, 3 << 30).unwrap())
}

fn owner(n: u32) -> Owner {
    Owner { site: Site::from_index(n), scope: Scope::from_index(n / 2) }
}

/// Takes single pages until none is left; the runs of zones they came from.
fn drain(zones: &mut Zones, gfp: Gfp) -> Vec<(ZoneKind, u64)> {
    let mut runs: Vec<(ZoneKind, u64)> = Vec::new();
    while let Ok(block) = zones.alloc(0, gfp, Owner::default()) {
        match runs.last_mut() {
            Some((zone, count)) if *zone == block.zone => *count += 1,
            _ => runs.push((block.zone, 1)),
        }
    }
    runs
}

#[test]
fn a_request_falls_back_downwards_only() {
    let mut zones = pc(6 << 30);
    for (gfp, zone) in [(GFP_KERNEL, ZoneKind::Normal), (GFP_DMA32, ZoneKind::Dma32), (GFP_DMA, ZoneKind::Dma)] {
        for order in 0..=MAX_ORDER {
            let block = zones.alloc(order, gfp, Owner::default()).unwrap();
            assert_eq!((block.zone, block.order), (zone, order));
            assert_eq!(block.pfn.get() % (1 << order), 0);
            assert_eq!(zones.zone_of(block.pfn), Some(zone));
        }
    }
    let mut one = pc(1 << 30);
    assert_eq!(one.alloc(0, GFP_KERNEL, Owner::default()).unwrap().zone, ZoneKind::Dma32, "no Normal there");
    while one.alloc(10, GFP_DMA, Owner::default()).is_ok() {}
    let failed = one.alloc(10, GFP_DMA, Owner::default());
    assert_eq!(failed, Err(AllocError::NoMemory { order: 10, gfp: GFP_DMA, zone: ZoneKind::Dma }));
    assert_eq!(one.alloc(11, GFP_KERNEL, Owner::default()), Err(AllocError::TooLarge { order: 11 }));
    one.validate().unwrap();
}

#[test]
fn zones_are_emptied_in_the_measured_order() {
    let mut zones = small();
    let [dma, dma32, normal, _] = zones.stats();
    let runs = drain(&mut zones, GFP_KERNEL | __GFP_NORETRY);
    let expected = [
        (ZoneKind::Normal, normal.managed - normal.marks.low),
        (ZoneKind::Dma32, dma32.managed - dma32.marks.low - dma32.protection[2]),
        (ZoneKind::Dma, dma.managed - dma.marks.low - dma.protection[2]),
        (ZoneKind::Normal, normal.marks.low - normal.marks.min),
        (ZoneKind::Dma32, dma32.marks.low - dma32.marks.min),
        (ZoneKind::Dma, dma.marks.low - dma.marks.min),
    ];
    assert_eq!(runs, expected);
    assert_eq!(drain(&mut zones, GFP_NOWAIT), [], "no reserve for those who merely can't sleep");
    let min = normal.marks.min;
    let atomic = min - min / 2 - (min - min / 2) / 4;
    assert!(zones.alloc(0, GFP_ATOMIC, Owner::default()).is_ok());
    drain(&mut zones, GFP_KERNEL | __GFP_HIGH);
    assert_eq!(zones.stats()[2].free, min - min / 2);
    drain(&mut zones, GFP_ATOMIC);
    assert_eq!(zones.stats()[2].free, atomic);
    drain(&mut zones, GFP_KERNEL | __GFP_MEMALLOC);
    assert_eq!(zones.stats().map(|zone| zone.free), [0; ZONES]);
    zones.validate().unwrap();
}

#[test]
fn above_its_mark_a_zone_still_needs_a_block_of_the_order() {
    let mut zones = pc(64 << 20);
    let blocks: Vec<_> =
        std::iter::from_fn(|| zones.alloc(2, GFP_KERNEL | __GFP_MEMALLOC | __GFP_NORETRY, Owner::default()).ok())
            .collect();
    let marks = zones.stats()[1].marks;
    let highest: Vec<_> = blocks.iter().filter(|block| block.zone == ZoneKind::Dma32).step_by(2).collect();
    for block in &highest {
        zones.free(block.pfn, 2).unwrap();
    }
    let free = zones.stats()[1].free;
    assert!(free - 7 > marks.low && zones.stats()[1].free_by_order[3..].iter().all(|&blocks| blocks == 0));
    assert!(zones.alloc(3, GFP_DMA32, Owner::default()).is_err());
    let between =
        blocks.iter().find(|block| block.zone == ZoneKind::Dma32 && block.pfn.get() ^ 4 == highest[0].pfn.get());
    zones.free(between.unwrap().pfn, 2).unwrap();
    assert_eq!(zones.alloc(3, GFP_DMA32, Owner::default()).unwrap().order, 3);
}

#[test]
fn a_plain_request_never_reaches_dma_on_a_large_machine() {
    let mut zones = pc(6 << 30);
    while zones.alloc(10, GFP_KERNEL, Owner::default()).is_ok() {}
    assert!(drain(&mut zones, GFP_ATOMIC).iter().all(|(zone, _)| *zone != ZoneKind::Dma));
    assert_eq!(zones.stats()[0].free, 3840);
    assert_eq!(drain(&mut zones, GFP_DMA).len(), 1);
    assert_eq!(zones.stats()[0].free, zones.stats()[0].marks.min);
}

#[test]
fn wrong_frees_change_nothing_and_say_what_is_wrong() {
    let mut zones = small();
    let block = zones.alloc(2, GFP_DMA, owner(5)).unwrap();
    let large = zones.alloc_as(3, GFP_DMA, owner(6), Kind::Large { requested: 20_000 }).unwrap();
    let before = zones.buddyinfo();
    let raw = block.pfn.get();
    let at = |n| Pfn::new(raw + n);
    assert_eq!(zones.free(block.pfn, 0), Err(FreeError::WrongOrder { pfn: raw, order: 0, was: 2 }));
    assert_eq!(zones.free(at(1), 0), Err(FreeError::Inside { pfn: raw + 1, head: raw }));
    assert_eq!(zones.free(large.pfn, 3), Err(FreeError::Kmalloc { pfn: large.pfn.get() }));
    for pfn in [0, 0x1234, u64::from(u32::MAX), u64::MAX] {
        assert_eq!(zones.free(Pfn::new(pfn), 0), Err(FreeError::NotRam { pfn }));
    }
    assert_eq!(zones.buddyinfo(), before);
    assert_eq!(zones.free(block.pfn, 2), Ok(owner(5)));
    assert_eq!(zones.free(block.pfn, 2), Err(FreeError::NotAllocated { pfn: raw }));
    zones.validate().unwrap();
}

#[test]
fn every_page_of_a_block_tells_its_owner() {
    let mut zones = small();
    let blocks: Vec<_> =
        (0..=MAX_ORDER).map(|order| zones.alloc(order, GFP_USER, owner(order.into())).unwrap()).collect();
    for block in &blocks {
        for page in 0..1u64 << block.order {
            let found = zones.lookup(Pfn::new(block.pfn.get() + page)).unwrap();
            assert_eq!(found, Allocated { block: *block, owner: owner(block.order.into()), kind: Kind::Pages });
        }
    }
    let live: Vec<_> = zones.live().map(|found| found.block.pfn).collect();
    assert!(live.is_sorted());
    assert_eq!(live.len(), blocks.len());
    assert_eq!(zones.lookup(Pfn::new(0x100)), None, "free");
}

#[test]
fn buddyinfo_reads_as_in_proc() {
    let mut zones = pc(1 << 30);
    zones.alloc(0, GFP_DMA, Owner::default()).unwrap();
    let text = zones.buddyinfo();
    let mut lines = text.lines();
    let dma = "Node 0, zone      DMA      1      1      1      1      1      1      1      1      0      1      3 ";
    assert_eq!(lines.next(), Some(dma));
    let dma32 = "Node 0, zone    DMA32      0      0      0      0      0      0      0      0      0      0    252 ";
    assert_eq!((lines.next(), lines.next()), (Some(dma32), None));
}

#[test]
fn high_memory_is_for_those_who_ask_and_falls_back_to_normal() {
    let mut zones = Zones::new(Layout::pc(1 << 30, 3 << 30).unwrap().on(Arch::X86_32));
    let zone = |zones: &mut Zones, gfp| zones.alloc(0, gfp, Owner::default()).unwrap().zone;
    assert_eq!(zone(&mut zones, GFP_HIGHUSER), ZoneKind::HighMem);
    assert_eq!(zone(&mut zones, GFP_KERNEL), ZoneKind::Normal);
    assert_eq!(zone(&mut zones, GFP_KERNEL | GFP_DMA32), ZoneKind::Normal, "there is no DMA32");
    let [dma, _, normal, high] = zones.stats();
    let runs = drain(&mut zones, GFP_HIGHUSER);
    let expected = [
        (ZoneKind::HighMem, high.free - high.marks.low),
        (ZoneKind::Normal, normal.free - normal.marks.low - normal.protection[3]),
        (ZoneKind::Dma, dma.free - dma.marks.low - dma.protection[3]),
        (ZoneKind::HighMem, high.marks.low - high.marks.min),
        (ZoneKind::Normal, normal.marks.low - normal.marks.min),
        (ZoneKind::Dma, dma.marks.low - dma.marks.min),
    ];
    assert_eq!(runs, expected);
    assert_eq!(zone(&mut zones, GFP_KERNEL), ZoneKind::Normal, "what users may not have is left");
    let names: Vec<_> = zones.buddyinfo().lines().map(|line| line[..21].to_owned()).collect();
    assert_eq!(names, ["Node 0, zone      DMA", "Node 0, zone   Normal", "Node 0, zone  HighMem"]);
    zones.validate().unwrap();
}

#[derive(Clone, Debug)]
enum Op {
    Alloc { order: u8, gfp: Gfp },
    Free { which: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let masks = vec![GFP_KERNEL, GFP_ATOMIC, GFP_DMA, GFP_KERNEL | GFP_DMA32, GFP_NOWAIT | __GFP_MEMALLOC];
    prop_oneof![
        3 => (0..=MAX_ORDER, prop::sample::select(masks)).prop_map(|(order, gfp)| Op::Alloc { order, gfp }),
        2 => any::<usize>().prop_map(|which| Op::Free { which }),
    ]
}

/// What is allocated: first page to block and owner.
type Shadow = BTreeMap<u64, (Block, u32)>;

/// Does one operation on both and checks what it gave.
fn apply(zones: &mut Zones, shadow: &mut Shadow, step: u32, op: &Op) -> Result<(), TestCaseError> {
    match *op {
        Op::Alloc { order, gfp } => {
            let Ok(block) = zones.alloc(order, gfp, owner(step)) else { return Ok(()) };
            let (start, end) = (block.pfn.get(), block.pfn.get() + (1 << order));
            prop_assert_eq!(start % (1 << order), 0);
            prop_assert!(block.zone <= gfp.highest_zone(zones.arch()));
            prop_assert!((start..end).all(|pfn| zones.zone_of(Pfn::new(pfn)) == Some(block.zone)));
            let below = shadow.range(..end).next_back();
            prop_assert!(below.is_none_or(|(pfn, (block, _))| pfn + (1 << block.order) <= start), "overlap");
            shadow.insert(start, (block, step));
        }
        Op::Free { which } if !shadow.is_empty() => {
            let pfn = *shadow.keys().nth(which % shadow.len()).unwrap();
            let (block, step) = shadow.remove(&pfn).unwrap();
            prop_assert_eq!(zones.free(block.pfn, block.order), Ok(owner(step)));
        }
        Op::Free { .. } => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_use_agrees_with_a_shadow(ops in prop::collection::vec(op(), 1..120)) {
        let mut zones = small();
        let fresh = zones.buddyinfo();
        let managed: u64 = zones.stats().iter().map(|zone| zone.free).sum();
        let mut shadow = Shadow::new();
        for (step, op) in (0..).zip(&ops) {
            apply(&mut zones, &mut shadow, step, op)?;
        }
        zones.validate().unwrap();
        let live: Vec<_> = zones.live().map(|found| (found.block, found.owner)).collect();
        let expected: Vec<_> = shadow.values().map(|&(block, step)| (block, owner(step))).collect();
        prop_assert_eq!(live, expected);
        let held: u64 = shadow.values().map(|(block, _)| 1 << block.order).sum();
        prop_assert_eq!(zones.stats().iter().map(|zone| zone.free).sum::<u64>() + held, managed);
        for (block, _) in shadow.values() {
            zones.free(block.pfn, block.order).unwrap();
        }
        zones.validate().unwrap();
        prop_assert_eq!(zones.buddyinfo(), fresh);
    }

    #[test]
    fn a_reset_allocator_equals_a_fresh_one(
        dirt in prop::collection::vec(op(), 1..80),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        let (mut fresh, mut reset) = (small(), small());
        let mut shadow = Shadow::new();
        for op in &dirt {
            apply(&mut reset, &mut shadow, 7, op)?;
        }
        reset.reset();
        prop_assert!(fresh == reset, "frames, lists or counters differ after the reset");
        let (mut one, mut other) = (Shadow::new(), Shadow::new());
        for (step, op) in (0..).zip(&ops) {
            apply(&mut fresh, &mut one, step, op)?;
            apply(&mut reset, &mut other, step, op)?;
        }
        prop_assert_eq!(one, other);
        prop_assert!(fresh == reset, "frames, lists or counters differ after the same use");
    }
}
