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

#[cfg(test)]
mod tests;
mod validate;

pub use validate::InvalidBuddy;

/// The largest order of a block: 4 MiB (`MAX_ORDER` - 1 in 6.1).
pub const MAX_ORDER: u8 = 10;
/// How many orders there are.
pub const ORDERS: usize = 11;

const MAX_PAGES: u32 = 1 << MAX_ORDER;

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
    /// A bit for each order of which a block is free.
    orders: u32,
}

impl Buddy {
    /// All of `ranges` free; they ascend, do not touch, and no order-9 block of one has its buddy in another zone.
    pub(crate) fn new(ranges: &[Range<u32>], frames: &Frames) -> Self {
        let segments = ranges.iter().cloned().map(Segment::new).collect();
        let mut buddy = Self { segments, lists: [EMPTY; ORDERS], untouched: 0, next_segment: 0, free: 0, orders: 0 };
        buddy.start(frames);
        buddy
    }

    /// Back to all free, touching only what was touched.
    pub(crate) fn reset(&mut self, frames: &Frames) {
        for segment in &self.segments {
            for touched in segment.touched() {
                frames.clear_range(touched);
            }
        }
        self.start(frames);
    }

    fn start(&mut self, frames: &Frames) {
        self.lists = [EMPTY; ORDERS];
        (self.untouched, self.next_segment, self.free) = (0, 0, 0);
        self.orders = 0;
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
        self.note_untouched();
    }

    /// Untouched blocks are free ones of the largest order.
    fn note_untouched(&mut self) {
        let listed = self.lists[usize::from(MAX_ORDER)].count > 0;
        if listed || self.untouched > 0 {
            self.orders |= 1 << MAX_ORDER;
        } else {
            self.orders &= !(1 << MAX_ORDER);
        }
    }

    /// Takes a block, or `None` if no block is large enough. The caller marks it.
    pub(crate) fn take(&mut self, order: u8, frames: &Frames) -> Option<u32> {
        let (pfn, mut size) = self.take_smallest(order, frames)?;
        while size > order {
            size -= 1;
            self.push_front(pfn + (1 << size), size, frames);
        }
        self.free -= 1 << order;
        Some(pfn)
    }

    fn take_smallest(&mut self, order: u8, frames: &Frames) -> Option<(u32, u8)> {
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
                self.note_untouched();
                return Some((pfn, MAX_ORDER));
            }
            self.next_segment += 1;
        }
        None
    }

    /// Gives back a block of this zone that was taken with this order.
    pub(crate) fn give(&mut self, pfn: u32, order: u8, frames: &Frames) {
        self.give_at(pfn, order, false, frames);
    }

    /// The same; with `last` set the block is the last one of its list to be handed out (`FPI_TO_TAIL`).
    pub(crate) fn give_at(&mut self, pfn: u32, order: u8, last: bool, frames: &Frames) {
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
        if last || merge_is_likely(pfn, order, frames) {
            self.push_back(pfn, order, frames);
        } else {
            self.push_front(pfn, order, frames);
        }
    }

    /// Free pages, untouched ones included.
    pub(crate) const fn free(&self) -> u64 {
        self.free
    }

    /// A bit for each order of which a block is free.
    pub(crate) const fn orders(&self) -> u32 {
        self.orders
    }

    /// Free blocks of each order, untouched ones included.
    pub(crate) fn free_by_order(&self) -> [u64; ORDERS] {
        let mut blocks = self.lists.map(|list| list.count);
        blocks[usize::from(MAX_ORDER)] += self.untouched;
        blocks
    }

    /// Every allocated block, ascending; skips the untouched part.
    pub(crate) fn used<'a>(&'a self, frames: &'a Frames) -> impl Iterator<Item = (u32, u8, Kind, Owner)> + 'a {
        self.marked(frames).filter_map(|(pfn, frame)| match frame {
            Frame::Used { order, kind, owner } => Some((pfn, order, kind, owner)),
            _ => None,
        })
    }

    /// The pages in blocks that a CPU's list holds.
    pub(crate) fn cached(&self, frames: &Frames) -> u64 {
        let cached = self.marked(frames).map(|(_, frame)| match frame {
            Frame::Cached { order, .. } => 1 << order,
            _ => 0,
        });
        cached.sum()
    }

    /// Every block with marks, ascending, whatever it serves.
    fn marked<'a>(&'a self, frames: &'a Frames) -> impl Iterator<Item = (u32, Frame)> + 'a {
        self.segments.iter().flat_map(Segment::touched).flat_map(move |range| {
            let mut at = range.start;
            std::iter::from_fn(move || {
                while at < range.end {
                    let (pfn, frame) = (at, frames.get(at));
                    match frame {
                        Frame::Used { order, .. } | Frame::Free { order, .. } | Frame::Cached { order, .. } => {
                            at += 1 << order;
                            return Some((pfn, frame));
                        }
                        Frame::Unmarked => at += 1,
                    }
                }
                None
            })
        })
    }

    fn push_front(&mut self, pfn: u32, order: u8, frames: &Frames) {
        let list = &mut self.lists[usize::from(order)];
        frames.set_free(pfn, order, list.head, NIL);
        if list.head == NIL {
            list.tail = pfn;
        } else {
            frames.set_prev(list.head, pfn);
        }
        list.head = pfn;
        list.count += 1;
        self.orders |= 1 << order;
    }

    fn push_back(&mut self, pfn: u32, order: u8, frames: &Frames) {
        let list = &mut self.lists[usize::from(order)];
        frames.set_free(pfn, order, NIL, list.tail);
        if list.tail == NIL {
            list.head = pfn;
        } else {
            frames.set_next(list.tail, pfn);
        }
        list.tail = pfn;
        list.count += 1;
        self.orders |= 1 << order;
    }

    fn unlink(&mut self, pfn: u32, order: u8, frames: &Frames) {
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
        let empty = list.count == 0 && (order < MAX_ORDER || self.untouched == 0);
        frames.clear(pfn);
        if empty {
            self.orders &= !(1 << order);
        }
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
