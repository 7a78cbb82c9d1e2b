//! One zone's free pages: the binary buddy system over power-of-two blocks.
//!
//! Blocks of order `n` are `1 << n` pages, aligned to their size, on eleven lists. Allocation takes the head of the
//! smallest list that will do and splits it, keeping the low half; freeing merges with the buddy as long as that is
//! free. What is handed out next is thereby exactly what Linux would hand out.
//!
//! A zone starts lazily: an order-10 block that was never touched is on no list, only counted, and is taken in
//! ascending order once the order-10 list is empty. Linux puts these blocks on that list in ascending order at boot
//! and freed ones at its head, so the effect is the same; but a zone of any size is made, and made fresh again, in
//! the time its touched part takes. Blocks below order 10 at the ragged ends of a range are on lists from the start.
//!
//! Mirrors `__rmqueue_smallest`, `expand` and `__free_one_page` of `mm/page_alloc.c`. Neighbours: [`crate::zone`]
//! decides whether a block may be taken, `frame` holds the links. Left out: migrate types and their fallback,
//! per-CPU lists, guard pages; a real boot also takes pages first.

use std::ops::Range;

use crate::frame::{Frame, Frames, Kind, NIL};
use crate::site::Owner;

/// The largest order of a block: 4 MiB (`MAX_ORDER` - 1 in 6.1).
pub const MAX_ORDER: u8 = 10;
/// How many orders there are.
pub const ORDERS: usize = 11;

const MAX_PAGES: u32 = 1 << MAX_ORDER;

/// An invariant of the free lists that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBuddy {
    /// A touched frame belongs to no block.
    #[error("frame {pfn:#x} belongs to no block")]
    Homeless {
        /// The frame.
        pfn: u32,
    },
    /// A block is not aligned to its size, or leaves its range.
    #[error("block {pfn:#x} of order {order} is misplaced")]
    Misplaced {
        /// The block's first frame.
        pfn: u32,
        /// The block's order.
        order: u8,
    },
    /// A frame inside a block carries marks.
    #[error("frame {pfn:#x} is marked inside a block")]
    MarkedInside {
        /// The frame.
        pfn: u32,
    },
    /// Two buddies are free side by side.
    #[error("block {pfn:#x} of order {order} was not merged with its buddy")]
    Unmerged {
        /// The lower block's first frame.
        pfn: u32,
        /// The order of both.
        order: u8,
    },
    /// A list's links do not fit each other, or a block on it is not free or of another order.
    #[error("list of order {order} is broken at {pfn:#x}")]
    BrokenList {
        /// The list.
        order: u8,
        /// Where.
        pfn: u32,
    },
    /// A list does not hold what is counted.
    #[error("list of order {order} counts {counted} blocks, {found} are free")]
    WrongCount {
        /// The list.
        order: u8,
        /// Its counter.
        counted: u64,
        /// Free blocks in the frame table.
        found: u64,
    },
    /// The zone's free pages are not what its lists hold.
    #[error("{counted} free pages are counted, the lists hold {found}")]
    WrongFree {
        /// The counter.
        counted: u64,
        /// The sum over the lists and what was never touched.
        found: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct List {
    head: u32,
    tail: u32,
    count: u64,
}

const EMPTY: List = List { head: NIL, tail: NIL, count: 0 };

/// A run of frames: ragged head, order-10 blocks that start untouched, ragged tail.
#[derive(Clone, PartialEq, Eq)]
struct Segment {
    all: Range<u32>,
    /// Whole order-10 blocks; `lazy.start` moves up as they are taken.
    lazy: Range<u32>,
    /// Where `lazy` began.
    lazy_from: u32,
}

impl Segment {
    fn new(all: Range<u32>) -> Self {
        let from = all.start.next_multiple_of(MAX_PAGES).min(all.end);
        let to = (all.end & !(MAX_PAGES - 1)).max(from);
        Self { lazy: from..to, lazy_from: from, all }
    }

    /// What is in blocks with marks: everything but the untouched part.
    fn touched(&self) -> [Range<u32>; 2] {
        [self.all.start..self.lazy.start, self.lazy.end..self.all.end]
    }
}

/// The free lists of one zone.
#[derive(PartialEq, Eq)]
pub(crate) struct Buddy {
    /// Ascending; between two of them lies at least one frame that is not ours.
    segments: Vec<Segment>,
    lists: [List; ORDERS],
    /// Order-10 blocks that were never touched.
    untouched: u64,
    /// The first segment that may still have one.
    next_segment: usize,
    free: u64,
}

impl Buddy {
    /// All of `ranges` free; they ascend, do not touch, and no order-9 block of one has its buddy in another zone.
    pub(crate) fn new(ranges: &[Range<u32>], frames: &mut Frames) -> Self {
        let segments = ranges.iter().cloned().map(Segment::new).collect();
        let mut buddy = Self { segments, lists: [EMPTY; ORDERS], untouched: 0, next_segment: 0, free: 0 };
        buddy.start(frames);
        buddy
    }

    /// Back to all free, touching only what was touched.
    pub(crate) fn reset(&mut self, frames: &mut Frames) {
        for segment in &self.segments {
            for touched in segment.touched() {
                frames.clear_range(touched);
            }
        }
        self.start(frames);
    }

    fn start(&mut self, frames: &mut Frames) {
        self.lists = [EMPTY; ORDERS];
        (self.untouched, self.next_segment, self.free) = (0, 0, 0);
        let mut segments = std::mem::take(&mut self.segments);
        for segment in &mut segments {
            segment.lazy.start = segment.lazy_from;
            self.untouched += u64::from(segment.lazy.end - segment.lazy.start) >> MAX_ORDER;
            self.free += u64::from(segment.all.end - segment.all.start);
            for mut ragged in segment.touched() {
                while !ragged.is_empty() {
                    let order = largest_at(&ragged);
                    self.push_back(ragged.start, order, frames);
                    ragged.start += 1 << order;
                }
            }
        }
        self.segments = segments;
    }

    /// Takes a block, or `None` if no block is large enough. The caller marks it.
    pub(crate) fn take(&mut self, order: u8, frames: &mut Frames) -> Option<u32> {
        let (pfn, mut size) = self.take_smallest(order, frames)?;
        while size > order {
            size -= 1;
            self.push_front(pfn + (1 << size), size, frames);
        }
        self.free -= 1 << order;
        Some(pfn)
    }

    fn take_smallest(&mut self, order: u8, frames: &mut Frames) -> Option<(u32, u8)> {
        for size in order..=MAX_ORDER {
            let head = self.lists[usize::from(size)].head;
            if head != NIL {
                self.unlink(head, size, frames);
                return Some((head, size));
            }
        }
        while let Some(segment) = self.segments.get_mut(self.next_segment) {
            if !segment.lazy.is_empty() {
                let pfn = segment.lazy.start;
                segment.lazy.start += MAX_PAGES;
                self.untouched -= 1;
                return Some((pfn, MAX_ORDER));
            }
            self.next_segment += 1;
        }
        None
    }

    /// Gives back a block of this zone that was taken with this order.
    pub(crate) fn give(&mut self, pfn: u32, order: u8, frames: &mut Frames) {
        self.free += 1 << order;
        frames.clear(pfn);
        let (mut pfn, mut order) = (pfn, order);
        while order < MAX_ORDER {
            let buddy = pfn ^ (1 << order);
            if !frames.is_free(buddy, order) {
                break;
            }
            self.unlink(buddy, order, frames);
            pfn &= buddy;
            order += 1;
        }
        if merge_is_likely(pfn, order, frames) {
            self.push_back(pfn, order, frames);
        } else {
            self.push_front(pfn, order, frames);
        }
    }

    /// Free pages, untouched ones included.
    pub(crate) const fn free(&self) -> u64 {
        self.free
    }

    /// Free blocks of each order, untouched ones included.
    pub(crate) fn free_by_order(&self) -> [u64; ORDERS] {
        let mut blocks = self.lists.map(|list| list.count);
        blocks[usize::from(MAX_ORDER)] += self.untouched;
        blocks
    }

    /// Every allocated block, ascending; skips the untouched part.
    pub(crate) fn used<'a>(&'a self, frames: &'a Frames) -> impl Iterator<Item = (u32, u8, Kind, Owner)> + 'a {
        self.segments.iter().flat_map(Segment::touched).flat_map(move |range| {
            let mut at = range.start;
            std::iter::from_fn(move || {
                while at < range.end {
                    let pfn = at;
                    match frames.get(pfn) {
                        Frame::Used { order, kind, owner } => {
                            at += 1 << order;
                            return Some((pfn, order, kind, owner));
                        }
                        Frame::Free { order, .. } => at += 1 << order,
                        Frame::Unmarked => at += 1,
                    }
                }
                None
            })
        })
    }

    fn push_front(&mut self, pfn: u32, order: u8, frames: &mut Frames) {
        let list = &mut self.lists[usize::from(order)];
        frames.set_free(pfn, order, list.head, NIL);
        if list.head == NIL {
            list.tail = pfn;
        } else {
            frames.set_prev(list.head, pfn);
        }
        list.head = pfn;
        list.count += 1;
    }

    fn push_back(&mut self, pfn: u32, order: u8, frames: &mut Frames) {
        let list = &mut self.lists[usize::from(order)];
        frames.set_free(pfn, order, NIL, list.tail);
        if list.tail == NIL {
            list.head = pfn;
        } else {
            frames.set_next(list.tail, pfn);
        }
        list.tail = pfn;
        list.count += 1;
    }

    fn unlink(&mut self, pfn: u32, order: u8, frames: &mut Frames) {
        let Frame::Free { next, prev, .. } = frames.get(pfn) else { return };
        let list = &mut self.lists[usize::from(order)];
        if prev == NIL {
            list.head = next;
        } else {
            frames.set_next(prev, next);
        }
        if next == NIL {
            list.tail = prev;
        } else {
            frames.set_prev(next, prev);
        }
        list.count -= 1;
        frames.clear(pfn);
    }

    /// Checks lists, counters and marks of everything that was touched.
    ///
    /// # Errors
    ///
    /// The first invariant that does not hold.
    pub(crate) fn validate(&self, frames: &Frames) -> Result<(), InvalidBuddy> {
        let mut found = [0u64; ORDERS];
        for segment in &self.segments {
            for range in segment.touched() {
                validate_range(range, frames, &mut found)?;
            }
        }
        let mut free = self.untouched << MAX_ORDER;
        for (order, (list, found)) in (0..=MAX_ORDER).zip(self.lists.iter().zip(found)) {
            validate_list(list, order, frames)?;
            if list.count != found {
                return Err(InvalidBuddy::WrongCount { order, counted: list.count, found });
            }
            free += found << order;
        }
        if free != self.free {
            return Err(InvalidBuddy::WrongFree { counted: self.free, found: free });
        }
        Ok(())
    }
}

/// The largest order a block at the start of the range can have.
fn largest_at(range: &Range<u32>) -> u8 {
    let mut order = MAX_ORDER;
    while !range.start.is_multiple_of(1 << order) || range.end - range.start < 1 << order {
        order -= 1;
    }
    order
}

/// Whether the block would merge at once if its buddy were freed: then it is handed out last (`buddy_merge_likely`).
fn merge_is_likely(pfn: u32, order: u8, frames: &Frames) -> bool {
    if order >= MAX_ORDER - 1 {
        return false;
    }
    let pair = pfn & !(1 << order);
    frames.is_free(pair ^ (1 << (order + 1)), order + 1)
}

fn validate_range(range: Range<u32>, frames: &Frames, found: &mut [u64; ORDERS]) -> Result<(), InvalidBuddy> {
    let mut pfn = range.start;
    while pfn < range.end {
        let (order, free) = match frames.get(pfn) {
            Frame::Unmarked => return Err(InvalidBuddy::Homeless { pfn }),
            Frame::Free { order, .. } => (order, true),
            Frame::Used { order, .. } => (order, false),
        };
        if order > MAX_ORDER || !pfn.is_multiple_of(1 << order) || range.end - pfn < 1 << order {
            return Err(InvalidBuddy::Misplaced { pfn, order });
        }
        let next = pfn + (1 << order);
        if let Some(inside) = (pfn + 1..next).find(|&inside| frames.get(inside) != Frame::Unmarked) {
            return Err(InvalidBuddy::MarkedInside { pfn: inside });
        }
        if free {
            found[usize::from(order)] += 1;
            let lower = pfn & (1 << order) == 0;
            if lower && order < MAX_ORDER && frames.is_free(pfn ^ (1 << order), order) {
                return Err(InvalidBuddy::Unmerged { pfn, order });
            }
        }
        pfn = next;
    }
    Ok(())
}

fn validate_list(list: &List, order: u8, frames: &Frames) -> Result<(), InvalidBuddy> {
    let (mut at, mut before) = (list.head, NIL);
    for _ in 0..list.count {
        match frames.get(at) {
            Frame::Free { order: size, next, prev } if size == order && prev == before => {
                (before, at) = (at, next);
            }
            _ => return Err(InvalidBuddy::BrokenList { order, pfn: at }),
        }
    }
    if at == NIL && before == list.tail { Ok(()) } else { Err(InvalidBuddy::BrokenList { order, pfn: at }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        frames: Frames,
        buddy: Buddy,
    }

    impl Bench {
        fn new(ranges: &[Range<u32>]) -> Self {
            let mut frames = Frames::new(ranges.iter().map(|range| range.end).max().unwrap());
            let buddy = Buddy::new(ranges, &mut frames);
            Self { frames, buddy }
        }

        fn take(&mut self, order: u8) -> u32 {
            let pfn = self.buddy.take(order, &mut self.frames).unwrap();
            self.frames.set_used(pfn, order, Kind::Pages, Owner::default());
            self.check();
            pfn
        }

        fn give(&mut self, pfn: u32, order: u8) {
            self.buddy.give(pfn, order, &mut self.frames);
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
        assert_eq!(bench.buddy.take(0, &mut bench.frames), None);
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
        let unlisted = damaged(|bench| {
            bench.frames.set_used(0, 0, Kind::Pages, Owner::default());
            bench.frames.set_free(1, 0, NIL, NIL);
        });
        assert_eq!(unlisted, InvalidBuddy::WrongCount { order: 0, counted: 0, found: 1 });
    }
}
