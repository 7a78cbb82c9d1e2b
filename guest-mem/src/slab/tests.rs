//! Tests of `kmalloc`: what is measured of it, wrong frees, recycling, and random use against a shadow.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::slab::Place;
use super::*;
use crate::gfp::{
    __GFP_HIGHMEM, __GFP_MEMALLOC, __GFP_RECLAIMABLE, GFP_ATOMIC, GFP_DMA, GFP_DMA32, GFP_KERNEL, GFP_NOWAIT,
};
use crate::site::{Scope, Site};
use crate::zone::{Layout, ZoneKind};

fn owner(n: u32) -> Owner {
    Owner { site: Site::from_index(n), scope: Scope::from_index(n / 2) }
}

struct Bench {
    zones: Zones,
    kmalloc: SlabCaches,
}

impl Bench {
    fn new(ram: u64) -> Self {
        Self {
            zones: Zones::new(Layout::pc(ram, 3 << 30).unwrap()),
            kmalloc: SlabCaches::new(2, SlabFlags::empty(), 0),
        }
    }

    fn try_alloc(&mut self, size: usize, gfp: Gfp) -> Result<Allocation, AllocError> {
        self.kmalloc.alloc(&mut self.zones, 0, size, gfp, owner(u32::try_from(size).unwrap()))
    }

    fn full(&mut self, size: usize, gfp: Gfp) -> (Object, bool) {
        match self.try_alloc(size, gfp) {
            Ok(Allocation::Object { object, fixed_up }) => (object, fixed_up),
            other => panic!("{other:?}"),
        }
    }

    fn alloc(&mut self, size: usize) -> u64 {
        self.full(size, GFP_KERNEL).0.phys.get()
    }

    fn free(&mut self, phys: u64) -> Result<Object, KfreeError> {
        let freed = self.kmalloc.free(&mut self.zones, PhysAddr::new(phys));
        self.check();
        freed
    }

    fn check(&self) {
        self.zones.validate().unwrap();
        self.kmalloc.validate(&self.zones).unwrap();
    }

    fn stats(&self, size: usize) -> CacheStats {
        let id = CacheId::serving(size, GFP_KERNEL).unwrap();
        self.kmalloc.stats().find(|stats| stats.cache == id.name()).unwrap()
    }
}

#[test]
fn objects_are_as_large_and_as_aligned_as_measured() {
    let mut bench = Bench::new(6 << 30);
    let sizes = [(1, 8, 8), (63, 64, 64), (65, 96, 32), (129, 192, 64), (2049, 4096, 4096), (8191, 8192, 8192)];
    for (size, ksize, align) in sizes {
        let objects: Vec<_> = (0..48).map(|_| bench.full(size, GFP_KERNEL).0).collect();
        let bits = objects.iter().fold(0, |bits, object| bits | object.phys.get());
        assert_eq!(1 << bits.trailing_zeros(), align, "{size}");
        assert!(objects.iter().all(|object| object.class_size == ksize && object.zone == ZoneKind::Normal));
        assert!(objects.iter().all(|object| usize::try_from(object.requested) == Ok(size)));
    }
    for (size, order) in [(8193, 2), (12289, 2), (16385, 3), (4 << 20, 10)] {
        let (object, _) = bench.full(size, GFP_KERNEL);
        assert_eq!((object.large_order, object.class_size), (Some(order), 4096 << order));
        assert!(object.phys.get().is_multiple_of(object.class_size.into()));
    }
    assert_eq!(bench.try_alloc(0, GFP_KERNEL), Ok(Allocation::ZeroSize));
    assert_eq!(bench.try_alloc((4 << 20) + 1, GFP_KERNEL), Err(AllocError::TooLarge { order: 11 }));
    let huge = bench.kmalloc.alloc(&mut bench.zones, 0, usize::MAX, GFP_KERNEL, owner(0));
    assert_eq!(huge, Err(AllocError::TooLarge { order: 52 }));
    bench.check();
}

#[test]
fn zones_and_dropped_bits_are_as_measured() {
    let mut bench = Bench::new(6 << 30);
    for size in [8, 1024, 65536] {
        assert_eq!(bench.full(size, GFP_ATOMIC | GFP_DMA).0.zone, ZoneKind::Dma);
        assert_eq!(bench.full(size, GFP_DMA | GFP_DMA32).0.zone, ZoneKind::Dma);
    }
    for (gfp, size) in [(GFP_DMA32, 64), (__GFP_HIGHMEM, 192)] {
        let (first, fixed_up) = bench.full(size, GFP_KERNEL | gfp);
        assert!(fixed_up && first.zone == ZoneKind::Normal, "a new slab was fetched");
        assert!(!bench.full(size, GFP_KERNEL | gfp).1, "the slab had room");
        let (large, fixed_up) = bench.full(65536, GFP_KERNEL | gfp);
        assert!(fixed_up && large.zone == ZoneKind::Normal, "a large block was fetched");
    }
    assert!(!bench.full(32, GFP_NOWAIT).1);
    assert_eq!(bench.full(32, __GFP_RECLAIMABLE).0.zone, ZoneKind::Normal);
    let names: Vec<_> = bench.kmalloc.stats().filter(|row| row.slabs > 0).map(|row| row.cache.to_string()).collect();
    assert_eq!(names, ["kmalloc-32", "kmalloc-64", "kmalloc-192", "kmalloc-rcl-32", "dma-kmalloc-8", "dma-kmalloc-1k"]);
}

#[test]
fn fresh_objects_ascend_and_freed_ones_come_back_last_first() {
    let mut bench = Bench::new(64 << 20);
    let objects: Vec<_> = (0..40).map(|_| bench.alloc(1000)).collect();
    let slabs = objects.chunks(16).all(|slab| slab.windows(2).all(|pair| pair[1] == pair[0] + 1024));
    assert!(slabs, "{objects:x?}");
    for at in [33, 37, 35] {
        bench.free(objects[at]).unwrap();
    }
    assert_eq!([35, 37, 33].map(|at| objects[at]), [bench.alloc(600), bench.alloc(1024), bench.alloc(513)]);
    assert_eq!(bench.alloc(1000), objects[39] + 1024);
}

#[test]
fn the_slab_that_became_partial_last_is_used_next() {
    let mut bench = Bench::new(64 << 20);
    let objects: Vec<_> = (0..64).map(|_| bench.alloc(1024)).collect();
    for at in [3, 20, 21] {
        bench.free(objects[at]).unwrap();
    }
    let again: Vec<_> = (0..3).map(|_| bench.alloc(1024)).collect();
    assert_eq!(again, [21, 20, 3].map(|at| objects[at]));
    assert_eq!(bench.stats(1024).slabs, 4);
    bench.alloc(1024);
    assert_eq!(bench.stats(1024).slabs, 5);
    bench.check();
}

#[test]
fn of_two_slabs_that_two_cpus_bring_at_once_none_is_lost() {
    let mut bench = Bench::new(64 << 20);
    let id = CacheId::serving(1024, GFP_KERNEL).unwrap();
    let id = id.number();
    assert!(bench.kmalloc.take(id, 0, 1024, owner(1)).is_none());
    let refills = [0; 2].map(|_| bench.kmalloc.refills(id, GFP_KERNEL)[0]);
    let slabs = refills.map(|refill| {
        let block = bench.zones.alloc(refill.order(), refill.gfp, owner(1)).unwrap();
        bench.kmalloc.adopt(&mut bench.zones, refill, block, owner(1)).unwrap()
    });
    bench.check();
    slabs.iter().for_each(|&slab| bench.kmalloc.open(0, slab));
    bench.check();
    let bases = slabs.map(|slab| bench.kmalloc.slab_block(slab).unwrap().pfn.phys().get());
    assert_ne!(bases[0], bases[1], "two slabs");
    let taken = [0; 2].map(|_| bench.alloc(1024));
    assert_eq!(taken, [bases[0], bases[0] + 1024], "the first one serves until it is full");
    let more: Vec<_> = (0..30).map(|_| bench.alloc(1024)).collect();
    assert_eq!((bench.stats(1024).slabs, bench.stats(1024).active), (2, 32));
    assert_eq!(more[14], bases[1], "then the other");
    bench.check();
}

#[test]
fn each_cpu_takes_from_a_slab_of_its_own_and_frees_to_anyones() {
    let mut bench = Bench::new(64 << 20);
    let take = |bench: &mut Bench, cpu| match bench.kmalloc.alloc(&mut bench.zones, cpu, 1024, GFP_KERNEL, owner(1)) {
        Ok(Allocation::Object { object, .. }) => object.phys.get(),
        other => panic!("{other:?}"),
    };
    let (a, b) = (take(&mut bench, 0), take(&mut bench, 1));
    assert_eq!([take(&mut bench, 0), take(&mut bench, 1)], [a + 1024, b + 1024]);
    bench.free(b).unwrap();
    assert_eq!(take(&mut bench, 0), a + 2048);
    assert_eq!(take(&mut bench, 1), b, "freed last, on whatever CPU");
    assert_eq!(bench.stats(1024).slabs, 2);
    bench.check();
}

#[test]
fn empty_slabs_are_kept_up_to_a_number_then_returned() {
    let mut bench = Bench::new(64 << 20);
    let fresh = bench.zones.stats();
    let objects: Vec<_> = (0..10 * 16).map(|_| bench.alloc(512)).collect();
    assert_eq!((bench.stats(512).slabs, bench.stats(512).active), (10, 160));
    for phys in objects {
        bench.free(phys).unwrap();
    }
    assert_eq!((bench.stats(512).slabs, bench.stats(512).active), (6, 0), "the current slab and five");
    let held = |bench: &Bench| fresh.iter().zip(bench.zones.stats()).map(|(was, is)| was.free - is.free).sum::<u64>();
    assert_eq!(held(&bench), 6 * 2);
    (0..6 * 16).map(|_| bench.alloc(512)).for_each(|phys| assert!(phys > 0));
    assert_eq!(bench.stats(512).slabs, 6);
}

#[test]
fn when_no_large_block_is_left_a_slab_is_made_of_fewer_pages() {
    let mut bench = Bench::new(64 << 20);
    let mut pages = Vec::new();
    while let Ok(block) = bench.zones.alloc(1, GFP_DMA | __GFP_MEMALLOC, owner(0)) {
        pages.push(block);
    }
    for block in pages.iter().step_by(2) {
        bench.zones.free(block.pfn, 1).unwrap();
    }
    let (object, _) = bench.full(8000, GFP_DMA);
    assert_eq!((object.zone, object.class_size), (ZoneKind::Dma, 8192));
    let dma = bench.kmalloc.stats().last().unwrap();
    assert_eq!((dma.slabs, dma.total, dma.geometry.shape.objects), (1, 1, 4));
    let failed = bench.try_alloc(8193, GFP_DMA);
    let gfp = GFP_DMA | Gfp::COMP;
    assert_eq!(failed, Err(AllocError::NoMemory { order: 2, gfp, zone: ZoneKind::Dma }));
    bench.free(object.phys.get()).unwrap();
}

#[test]
fn only_a_slab_of_the_fewest_pages_may_use_up_the_reserves() {
    let mut bench = Bench::new(64 << 20);
    while bench.zones.alloc(0, GFP_DMA, owner(0)).is_ok() {}
    let dma = &bench.zones.stats()[0];
    assert!(dma.free_by_order[3..].iter().any(|&blocks| blocks > 0), "{dma:?}");
    assert!(bench.try_alloc(8000, GFP_KERNEL | GFP_DMA).is_err());
    bench.full(8000, GFP_KERNEL | GFP_DMA | __GFP_MEMALLOC);
    assert_eq!(bench.kmalloc.stats().last().map(|row| (row.slabs, row.total)), Some((1, 1)));
    bench.full(8000, GFP_DMA | __GFP_MEMALLOC);
    assert_eq!(bench.kmalloc.stats().last().map(|row| (row.slabs, row.total)), Some((2, 5)), "it can't sleep");
}

#[test]
fn wrong_frees_change_nothing_and_say_what_is_wrong() {
    let mut bench = Bench::new(64 << 20);
    let (small, large) = (bench.alloc(90), bench.alloc(20_000));
    let page = bench.zones.alloc(0, GFP_KERNEL, owner(3)).unwrap().pfn.phys();
    let at = PhysAddr::new;
    let inside = |phys, object, cache| Err(KfreeError::Inside { phys: at(phys), object: at(object), cache });
    assert_eq!(bench.free(small + 8), inside(small + 8, small, Some("kmalloc-96")));
    assert_eq!(bench.free(large + 4096), inside(large + 4096, large, None));
    assert_eq!(bench.free(large + 8), inside(large + 8, large, None));
    for never in [small + 96, small + 42 * 96, small + 5 * 96 + 7, 0x20_0000] {
        assert_eq!(bench.free(never), Err(KfreeError::NotAllocated { phys: at(never) }));
    }
    assert_eq!(bench.free(page.get()), Err(KfreeError::NotKmalloc { phys: page, owner: owner(3) }));
    for nowhere in [0, 0x1000, 64 << 20, u64::MAX] {
        assert_eq!(bench.free(nowhere), Err(KfreeError::NotRam { phys: at(nowhere) }));
    }
    assert_eq!(bench.free(small).map(|freed| (freed.requested, freed.owner)), Ok((90, owner(90))));
    let (cache, phys, owner) = ("kmalloc-96", at(small), owner(90));
    assert_eq!(bench.free(small), Err(KfreeError::Double { phys, cache, requested: 90, owner, freed: None }));
    assert_eq!(bench.free(large).map(|freed| freed.requested), Ok(20_000));
    assert_eq!(bench.free(large), Err(KfreeError::NotAllocated { phys: at(large) }));
    assert_eq!(bench.alloc(70), small, "after all that the list still hands each object out once");
    assert_ne!(bench.alloc(70), small);
}

#[test]
fn a_byte_finds_its_object() {
    let mut bench = Bench::new(64 << 20);
    let (small, large) = (bench.full(90, GFP_KERNEL).0, bench.full(9000, GFP_KERNEL).0);
    let Bench { zones, kmalloc } = &mut bench;
    let find =
        |kmalloc: &SlabCaches, zones: &Zones, from: &Object, at| kmalloc.lookup(zones, from.phys.wrapping_add(at));
    assert_eq!(find(kmalloc, zones, &small, 95), Some(small));
    assert_eq!(find(kmalloc, zones, &small, 96), None);
    assert_eq!(find(kmalloc, zones, &large, 16383), Some(large));
    kmalloc.free(zones, small.phys).unwrap();
    assert_eq!(find(kmalloc, zones, &small, 0), None);
}

#[test]
fn a_cache_prints_as_in_slabinfo() {
    let mut bench = Bench::new(64 << 20);
    (0..17).map(|_| bench.alloc(1024)).for_each(|phys| assert!(phys > 0));
    let line =
        "kmalloc-1k            17     32   1024   16    4 : tunables    0    0    0 : slabdata      2      2      0";
    assert_eq!(bench.stats(1024).to_string(), line);
}

#[test]
fn validate_sees_damage() {
    let damaged = |damage: fn(&mut SlabCaches)| {
        let mut bench = Bench::new(64 << 20);
        let objects: Vec<_> = (0..33).map(|_| bench.alloc(512)).collect();
        bench.free(objects[1]).unwrap();
        damage(&mut bench.kmalloc);
        bench.kmalloc.validate(&bench.zones).unwrap_err()
    };
    assert_eq!(damaged(|kmalloc| kmalloc.slabs.slab(0).unwrap().free.push(1)), InvalidSlab::Objects { index: 0 });
    assert_eq!(damaged(|kmalloc| kmalloc.slabs.slab(0).unwrap().free[0] = 2), InvalidSlab::Objects { index: 0 });
    assert_eq!(damaged(|kmalloc| kmalloc.slabs.slab(1).unwrap().used -= 1), InvalidSlab::Objects { index: 1 });
    assert_eq!(
        damaged(|kmalloc| kmalloc.slabs.slab(1).unwrap().place = Place::Partial),
        InvalidSlab::Place { index: 1 }
    );
    assert!(matches!(damaged(|kmalloc| kmalloc.spare.push(2)), InvalidSlab::Block { index: 2, .. }));
    let empty_list = damaged(|kmalloc| kmalloc.caches[8].partial = NIL);
    assert_eq!(empty_list, InvalidSlab::List { cache: "kmalloc-512", index: NIL });
    let count = damaged(|kmalloc| kmalloc.caches[8].total = 5);
    assert_eq!(count, InvalidSlab::Count { cache: "kmalloc-512", counted: 5, found: 48 });
}

#[derive(Clone, Debug)]
enum Op {
    Alloc { size: usize, gfp: Gfp },
    Free { which: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![6 => 1usize..600, 4 => 600usize..9000, 1 => 9000usize..200_000];
    let masks = vec![GFP_KERNEL, GFP_ATOMIC, GFP_KERNEL | GFP_DMA, GFP_KERNEL | GFP_DMA32];
    prop_oneof![
        1 => (size, prop::sample::select(masks)).prop_map(|(size, gfp)| Op::Alloc { size, gfp }),
        1 => any::<usize>().prop_map(|which| Op::Free { which }),
    ]
}

/// Live objects by address.
type Shadow = BTreeMap<u64, Object>;

/// Does one operation (allocations ten at a time) on both and checks what it gave.
fn apply(bench: &mut Bench, shadow: &mut Shadow, op: &Op) -> Result<(), TestCaseError> {
    match *op {
        Op::Alloc { size, gfp } => {
            for _ in 0..10 {
                let Ok(allocation) = bench.try_alloc(size, gfp) else { return Ok(()) };
                let Allocation::Object { object, .. } = allocation else { panic!("{allocation:?}") };
                let (start, end) = (object.phys.get(), object.phys.get() + u64::from(object.class_size));
                prop_assert!(usize::try_from(object.class_size).unwrap() >= size);
                prop_assert!(!gfp.contains(GFP_DMA) || end <= 16 << 20);
                let below = shadow.range(..end).next_back();
                prop_assert!(below.is_none_or(|(at, object)| at + u64::from(object.class_size) <= start), "overlap");
                shadow.insert(start, object);
            }
        }
        Op::Free { which } => {
            for _ in 0..10.min(shadow.len()) {
                let at = *shadow.keys().nth(which % shadow.len()).unwrap();
                let object = shadow.remove(&at).unwrap();
                prop_assert_eq!(bench.kmalloc.free(&mut bench.zones, object.phys), Ok(object));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_use_agrees_with_a_shadow(ops in prop::collection::vec(op(), 1..80)) {
        let mut bench = Bench::new(24 << 20);
        let mut shadow = Shadow::new();
        for op in &ops {
            apply(&mut bench, &mut shadow, op)?;
        }
        bench.check();
        prop_assert!(bench.kmalloc.live(&bench.zones).eq(shadow.values().copied()), "live objects differ");
        for object in shadow.values() {
            prop_assert_eq!(bench.kmalloc.free(&mut bench.zones, object.phys), Ok(*object));
        }
        bench.check();
        prop_assert_eq!(bench.kmalloc.live(&bench.zones).count(), 0);
        prop_assert!(bench.kmalloc.stats().all(|row| row.active == 0 && row.slabs <= 7));
    }

    #[test]
    fn a_reset_kmalloc_equals_a_fresh_one(
        dirt in prop::collection::vec(op(), 1..60),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        let (mut fresh, mut reset) = (Bench::new(24 << 20), Bench::new(24 << 20));
        let mut shadow = Shadow::new();
        for op in &dirt {
            apply(&mut reset, &mut shadow, op)?;
        }
        reset.zones.reset();
        reset.kmalloc.reset();
        reset.check();
        prop_assert!(reset.kmalloc.stats().eq(fresh.kmalloc.stats()));
        let (mut one, mut other) = (Shadow::new(), Shadow::new());
        for op in &ops {
            apply(&mut fresh, &mut one, op)?;
            apply(&mut reset, &mut other, op)?;
        }
        prop_assert_eq!(one, other);
        prop_assert!(reset.kmalloc.stats().eq(fresh.kmalloc.stats()));
        prop_assert!(fresh.zones == reset.zones, "frames, lists or counters differ");
    }
}
