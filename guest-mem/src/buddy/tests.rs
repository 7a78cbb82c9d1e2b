//! Tests of the free lists: what is measured of them, their order, and damage that `validate` must see.

use super::*;

struct Bench {
    frames: Frames,
    buddy: Buddy,
}

impl Bench {
    fn new(ranges: &[Range<u32>]) -> Self {
        let frames = Frames::new(ranges.iter().map(|range| range.end).max().unwrap());
        let buddy = Buddy::new(ranges, &frames);
        Self { frames, buddy }
    }

    fn take(&mut self, order: u8) -> u32 {
        let pfn = self.buddy.take(order, &self.frames).unwrap();
        self.frames.set_used(pfn, order, Kind::Pages, Owner::default());
        self.check();
        pfn
    }

    fn give(&mut self, pfn: u32, order: u8) {
        self.buddy.give(pfn, order, &self.frames);
        self.check();
    }

    fn check(&self) {
        self.buddy.validate(&self.frames).unwrap();
    }
}

/// Zone DMA of the measured machine, with the blocks free that were free there.
fn measured() -> Bench {
    Bench::new(&[0x106..0x108, 0x13c..0x140, 0x148..0x1000])
}

const MEASURED: [u64; ORDERS] = [0, 1, 1, 1, 1, 1, 0, 1, 0, 1, 3];

#[test]
fn one_page_splits_a_whole_block_and_merges_back() {
    let mut bench = Bench::new(std::slice::from_ref(&(0..1024)));
    assert_eq!(bench.take(0), 0);
    assert_eq!(bench.buddy.free_by_order(), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    bench.give(0, 0);
    assert_eq!(bench.buddy.free_by_order(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
}

#[test]
fn a_block_of_each_order_is_taken_as_measured() {
    let mut bench = measured();
    assert_eq!(bench.buddy.free_by_order(), MEASURED);
    let after = [
        (10, [0, 1, 1, 1, 1, 1, 0, 1, 0, 1, 2]),
        (9, [0, 1, 1, 1, 1, 1, 0, 1, 0, 0, 3]),
        (8, [0, 1, 1, 1, 1, 1, 0, 1, 1, 0, 3]),
        (6, [0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 3]),
        (4, [0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 3]),
        (0, [1, 0, 1, 1, 1, 1, 0, 1, 0, 1, 3]),
    ];
    for (order, held) in after {
        let pfn = bench.take(order);
        assert_eq!(bench.buddy.free_by_order(), held, "order {order}");
        bench.give(pfn, order);
        assert_eq!(bench.buddy.free_by_order(), MEASURED, "order {order} given back");
    }
}

#[test]
fn two_buddies_of_order_2_are_one_block_from_the_lower_one_on() {
    let mut bench = Bench::new(std::slice::from_ref(&(0..16)));
    let blocks = [0; 4].map(|_| bench.take(2));
    assert_eq!(blocks, [0, 4, 8, 12]);
    bench.give(12, 2);
    bench.give(8, 2);
    assert_eq!(bench.buddy.free_by_order()[..5], [0, 0, 0, 1, 0]);
    assert_eq!(bench.take(3), 8);
}

#[test]
fn sixteen_blocks_come_and_go_as_measured() {
    let mut bench = measured();
    let taken: Vec<u32> = (0..16).map(|_| bench.take(4)).collect();
    let expected: Vec<u32> = (0x15..0x25).map(|n| n << 4).collect();
    assert_eq!(taken, expected);
    assert_eq!(bench.buddy.free_by_order(), [0, 1, 1, 1, 1, 1, 0, 1, 1, 0, 3]);
    taken.iter().step_by(2).for_each(|&pfn| bench.give(pfn, 4));
    assert_eq!(bench.buddy.free_by_order(), [0, 1, 1, 1, 9, 1, 0, 1, 1, 0, 3]);
    taken.iter().skip(1).step_by(2).for_each(|&pfn| bench.give(pfn, 4));
    assert_eq!(bench.buddy.free_by_order(), MEASURED);
}

#[test]
fn single_pages_come_in_the_measured_order() {
    let mut bench = measured();
    let taken: Vec<u32> = (0..17).map(|_| bench.take(0)).collect();
    let mut expected = vec![0x106, 0x107];
    expected.extend(0x13c..0x140);
    expected.extend(0x148..0x153);
    assert_eq!(taken, expected);
    assert_eq!(bench.buddy.free_by_order(), [1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 3]);
}

#[test]
fn a_block_likely_to_merge_goes_to_the_tail() {
    let mut bench = Bench::new(&[0..8, 16..17]);
    for expected in [16, 0, 1, 2] {
        assert_eq!(bench.take(0), expected);
    }
    bench.give(16, 0);
    bench.give(2, 0);
    bench.give(0, 0);
    assert_eq!(bench.take(0), 16);
    assert_eq!(bench.take(0), 0, "0 was freed last, but merges as soon as 1 is freed too");
}

#[test]
fn untouched_blocks_ascend_and_freed_ones_come_first() {
    let mut bench = Bench::new(&[0..2048, 4096..6144]);
    assert_eq!((bench.take(10), bench.take(10), bench.take(10)), (0, 1024, 4096));
    bench.give(0, 10);
    bench.give(4096, 10);
    assert_eq!((bench.take(10), bench.take(10), bench.take(10)), (4096, 0, 5120));
    assert_eq!(bench.buddy.take(0, &bench.frames), None);
    assert_eq!(bench.buddy.used(&bench.frames).map(|block| block.0).collect::<Vec<_>>(), [0, 1024, 4096, 5120]);
}

#[test]
fn validate_sees_each_kind_of_damage() {
    let damaged = |damage: fn(&mut Bench)| {
        let mut bench = Bench::new(std::slice::from_ref(&(0..16)));
        bench.take(1);
        damage(&mut bench);
        bench.buddy.validate(&bench.frames).unwrap_err()
    };
    assert_eq!(damaged(|bench| bench.frames.clear(0)), InvalidBuddy::Homeless { pfn: 0 });
    assert_eq!(
        damaged(|bench| bench.frames.set_used(0, 5, Kind::Pages, Owner::default())),
        InvalidBuddy::Misplaced { pfn: 0, order: 5 }
    );
    assert_eq!(damaged(|bench| bench.frames.set_free(9, 0, 0, 0)), InvalidBuddy::MarkedInside { pfn: 9 });
    assert_eq!(damaged(|bench| bench.frames.set_free(0, 1, 0, 0)), InvalidBuddy::Unmerged { pfn: 0, order: 1 });
    assert_eq!(damaged(|bench| bench.frames.set_prev(4, 8)), InvalidBuddy::BrokenList { order: 2, pfn: 4 });
    assert_eq!(damaged(|bench| bench.buddy.free = 3), InvalidBuddy::WrongFree { counted: 3, found: 14 });
    assert_eq!(damaged(|bench| bench.buddy.orders |= 1), InvalidBuddy::WrongOrders { noted: 0b1111, found: 0b1110 });
    let unlisted = damaged(|bench| {
        bench.frames.set_used(0, 0, Kind::Pages, Owner::default());
        bench.frames.set_free(1, 0, NIL, NIL);
    });
    assert_eq!(unlisted, InvalidBuddy::WrongCount { order: 0, counted: 0, found: 1 });
}
