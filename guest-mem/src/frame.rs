//! The page frame table: three words for each frame of guest memory, what the lab knows about it.
//!
//! Only the first frame of a block, free or allocated, carries marks; all others are zero. A block of order `n` is
//! aligned to its size, so the head of any frame is one of eleven. All zero is also what a frame looks like that was
//! never touched, so that the table of an 8 GiB machine costs nothing until it is used.
//!
//! The words are atomic, so that the marks of a block that no list of a zone holds may change without the allocator's
//! lock: a CPU hands out a page of its own lists, and takes it back, by its marks alone (`Frames::retire` decides who
//! of two frees is the first). Free blocks change under the allocator's lock only.
//!
//! Neighbours: [`crate::buddy`] links free blocks through it, [`crate::zone`] and [`crate::slab`] keep there who
//! owns a block and for what, [`crate::pcp`] which blocks lie on a CPU's lists. Mirrors `struct page`, out of band:
//! nothing a driver writes can reach it. Left out: page flags beyond these.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::site::{Owner, Scope, Site};

/// What an allocated block serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Pages asked for as pages.
    Pages,
    /// A `kmalloc` beyond the largest slab class.
    Large {
        /// Bytes that were asked for, up to 4 MiB.
        requested: u32,
    },
    /// A slab of a cache.
    Slab {
        /// Number of the slab in its [`crate::slab::SlabCaches`], below 2^24.
        index: u32,
    },
    /// A `kmalloc` that was freed and is held back in the quarantine.
    Held {
        /// Bytes that were asked for, at least one.
        requested: u32,
    },
    /// Never to be used again: it was in a bad state when it was freed.
    Bad,
}

/// What the frame table says about one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Never touched, not RAM, or inside a block.
    Unmarked,
    /// First frame of a free block that is on a list.
    Free { order: u8, next: u32, prev: u32 },
    /// First frame of an allocated block.
    Used { order: u8, kind: Kind, owner: Owner },
    /// First frame of a block on a CPU's list; who had it last.
    Cached { order: u8, owner: Owner },
}

/// No frame: the end of a list.
pub(crate) const NIL: u32 = u32::MAX;

/// One more than the largest number a [`Kind`] can carry.
pub(crate) const PAYLOAD_END: u32 = 1 << 24;

const STATE_MASK: u32 = 0x3;
const STATE_FREE: u32 = 1;
const STATE_USED: u32 = 2;
const STATE_CACHED: u32 = 3;
const ORDER_SHIFT: u32 = 2;
const ORDER_MASK: u32 = 0xf;
const KIND_SHIFT: u32 = 6;
const KIND_MASK: u32 = 0x3;
const KIND_LARGE: u32 = 1;
const KIND_SLAB: u32 = 2;
/// Nobody's: held back with the bytes as payload, or bad with none.
const KIND_NOBODY: u32 = 3;
const PAYLOAD_SHIFT: u32 = 8;
/// One reference more to a block of pages, whose payload counts them.
const REF: u32 = 1 << PAYLOAD_SHIFT;

/// The frames of a block of order 10: the part of the table that comes into being at once.
const CHUNK: usize = 1 << crate::buddy::MAX_ORDER;

type Words = [AtomicU32; 3];

/// The table, indexed by page frame number.
pub(crate) struct Frames {
    /// Free: next, previous. Else: site, scope. Third word: state, order, kind, payload.
    chunks: Box<[OnceLock<Box<[Words]>>]>,
    count: u32,
}

impl Frames {
    /// A table of `count` frames that were never touched; its memory comes when it is.
    pub(crate) fn new(count: u32) -> Self {
        let chunks = (0..(count as usize).div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Self { chunks, count }
    }

    fn words(&self, pfn: u32) -> Option<&Words> {
        self.chunks.get(pfn as usize / CHUNK)?.get()?.get(pfn as usize % CHUNK)
    }

    /// Three zeros for a frame that was never touched or lies beyond the table.
    fn load(&self, pfn: u32) -> [u32; 3] {
        self.words(pfn).map_or([0; 3], |words| words.each_ref().map(|word| word.load(Ordering::Relaxed)))
    }

    fn marks(&self, pfn: u32) -> u32 {
        self.words(pfn).map_or(0, |words| words[2].load(Ordering::Relaxed))
    }

    /// What is known about the frame; one beyond the table is unmarked.
    pub(crate) fn get(&self, pfn: u32) -> Frame {
        let [first, second, marks] = self.load(pfn);
        let order = order_of(marks);
        let owner = || Owner { site: Site::from_index(first), scope: Scope::from_index(second) };
        match marks & STATE_MASK {
            STATE_FREE => Frame::Free { order, next: first, prev: second },
            STATE_USED => {
                let payload = marks >> PAYLOAD_SHIFT;
                let kind = match (marks >> KIND_SHIFT) & KIND_MASK {
                    KIND_LARGE => Kind::Large { requested: payload },
                    KIND_SLAB => Kind::Slab { index: payload },
                    KIND_NOBODY if payload > 0 => Kind::Held { requested: payload },
                    KIND_NOBODY => Kind::Bad,
                    _ => Kind::Pages,
                };
                Frame::Used { order, kind, owner: owner() }
            }
            STATE_CACHED => Frame::Cached { order, owner: owner() },
            _ => Frame::Unmarked,
        }
    }

    /// Whether a free block of exactly this order begins at the frame.
    pub(crate) fn is_free(&self, pfn: u32, order: u8) -> bool {
        self.marks(pfn) == free_marks(order)
    }

    /// The first frame of the marked block that holds `pfn`, and what is known about it.
    pub(crate) fn head_of(&self, pfn: u32) -> Option<(u32, Frame)> {
        for order in 0..=crate::buddy::MAX_ORDER {
            let head = pfn & !((1 << order) - 1);
            match self.get(head) {
                Frame::Unmarked => {}
                marked @ (Frame::Free { order: size, .. }
                | Frame::Used { order: size, .. }
                | Frame::Cached { order: size, .. }) => return (size >= order).then_some((head, marked)),
            }
        }
        None
    }

    /// Marks the head of a free block with its links.
    pub(crate) fn set_free(&self, pfn: u32, order: u8, next: u32, prev: u32) {
        self.set(pfn, [next, prev, free_marks(order)]);
    }

    /// Changes the forward link of a free block.
    pub(crate) fn set_next(&self, pfn: u32, next: u32) {
        if let Some(words) = self.words(pfn) {
            words[0].store(next, Ordering::Relaxed);
        }
    }

    /// Changes the backward link of a free block.
    pub(crate) fn set_prev(&self, pfn: u32, prev: u32) {
        if let Some(words) = self.words(pfn) {
            words[1].store(prev, Ordering::Relaxed);
        }
    }

    /// Marks the head of an allocated block; the kind's number must be below [`PAYLOAD_END`].
    pub(crate) fn set_used(&self, pfn: u32, order: u8, kind: Kind, owner: Owner) {
        let (tag, payload) = match kind {
            Kind::Pages => (0, 0),
            Kind::Large { requested } => (KIND_LARGE, requested),
            Kind::Slab { index } => (KIND_SLAB, index),
            Kind::Held { requested } => (KIND_NOBODY, requested),
            Kind::Bad => (KIND_NOBODY, 0),
        };
        debug_assert!(payload < PAYLOAD_END);
        let marks = used_marks(order) | tag << KIND_SHIFT | payload << PAYLOAD_SHIFT;
        self.set(pfn, [owner.site.index(), owner.scope.index(), marks]);
    }

    /// Marks the head of a block that goes to a CPU's list straight from the zone: nobody had it.
    pub(crate) fn set_cached(&self, pfn: u32, order: u8) {
        self.set(pfn, [0, 0, cached_marks(order)]);
    }

    /// Turns an allocated block of pages with no other reference into one on a CPU's list; of two who try, one does.
    pub(crate) fn retire(&self, pfn: u32, order: u8) -> Option<Owner> {
        let words = self.words(pfn)?;
        let owner = Owner {
            site: Site::from_index(words[0].load(Ordering::Relaxed)),
            scope: Scope::from_index(words[1].load(Ordering::Relaxed)),
        };
        let (used, cached) = (used_marks(order), cached_marks(order));
        words[2].compare_exchange(used, cached, Ordering::AcqRel, Ordering::Relaxed).ok().map(|_| owner)
    }

    /// How many references the frame has: none if it is free, on a list or inside a block.
    pub(crate) fn refs(&self, pfn: u32) -> u32 {
        let marks = self.marks(pfn);
        match (marks & STATE_MASK, (marks >> KIND_SHIFT) & KIND_MASK) {
            (STATE_USED, 0) => 1 + (marks >> PAYLOAD_SHIFT),
            (STATE_USED, _) => 1,
            _ => 0,
        }
    }

    /// Takes a further reference to the first frame of a block of pages.
    pub(crate) fn get_ref(&self, pfn: u32) {
        let _ = self
            .update(pfn, |marks| (is_pages(marks) && marks >> PAYLOAD_SHIFT < PAYLOAD_END - 1).then_some(marks + REF));
    }

    /// Gives a reference back if there is more than one; the order of the block then, which stays.
    pub(crate) fn put_ref(&self, pfn: u32) -> Option<u8> {
        let before = self.update(pfn, |marks| (is_pages(marks) && marks >= REF).then(|| marks - REF));
        before.map(order_of)
    }

    fn update(&self, pfn: u32, to: impl FnMut(u32) -> Option<u32>) -> Option<u32> {
        self.words(pfn)?[2].fetch_update(Ordering::AcqRel, Ordering::Relaxed, to).ok()
    }

    /// Forgets the frame.
    pub(crate) fn clear(&self, pfn: u32) {
        if self.words(pfn).is_some() {
            self.set(pfn, [0; 3]);
        }
    }

    /// Forgets a range of frames.
    pub(crate) fn clear_range(&self, range: Range<u32>) {
        range.for_each(|pfn| self.clear(pfn));
    }

    fn set(&self, pfn: u32, to: [u32; 3]) {
        if pfn >= self.count {
            return;
        }
        let Some(chunk) = self.chunks.get(pfn as usize / CHUNK) else { return };
        let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| Words::default()).collect());
        if let Some(words) = chunk.get(pfn as usize % CHUNK) {
            for (word, value) in words.iter().zip(to) {
                word.store(value, Ordering::Relaxed);
            }
        }
    }
}

impl PartialEq for Frames {
    /// A frame that was never touched is as one that was forgotten.
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && (0..self.count).all(|pfn| self.load(pfn) == other.load(pfn))
    }
}

const fn free_marks(order: u8) -> u32 {
    STATE_FREE | (order as u32) << ORDER_SHIFT
}

const fn used_marks(order: u8) -> u32 {
    STATE_USED | (order as u32) << ORDER_SHIFT
}

/// Whether a frame begins an allocated block that was asked for as pages.
const fn is_pages(marks: u32) -> bool {
    marks & STATE_MASK == STATE_USED && (marks >> KIND_SHIFT) & KIND_MASK == 0
}

const fn cached_marks(order: u8) -> u32 {
    STATE_CACHED | (order as u32) << ORDER_SHIFT
}

/// Four bits, so the byte holds them.
const fn order_of(marks: u32) -> u8 {
    ((marks >> ORDER_SHIFT) & ORDER_MASK).to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner { site: Site::from_index(7), scope: Scope::from_index(9) }
    }

    #[test]
    fn marks_come_back_as_they_were_set() {
        let frames = Frames::new(16);
        assert_eq!(frames.get(3), Frame::Unmarked);
        frames.set_free(4, 2, NIL, 0);
        assert_eq!(frames.get(4), Frame::Free { order: 2, next: NIL, prev: 0 });
        assert!(frames.is_free(4, 2) && !frames.is_free(4, 1));
        let (large, held) = (Kind::Large { requested: 4 << 20 }, Kind::Held { requested: 1 });
        for kind in [Kind::Pages, large, Kind::Slab { index: PAYLOAD_END - 1 }, held, Kind::Bad] {
            frames.set_used(8, 10, kind, owner());
            assert_eq!(frames.get(8), Frame::Used { order: 10, kind, owner: owner() });
            assert!(!frames.is_free(8, 10));
        }
        frames.clear_range(0..16);
        assert!(frames == Frames::new(16));
        frames.set_used(16, 0, Kind::Pages, owner());
        assert_eq!(frames.get(16), Frame::Unmarked, "beyond the table");
    }

    #[test]
    fn references_are_counted_and_the_last_is_not_given_back() {
        let frames = Frames::new(16);
        frames.set_used(4, 2, Kind::Pages, owner());
        frames.get_ref(4);
        frames.get_ref(5);
        assert_eq!((frames.refs(4), frames.refs(5), frames.retire(4, 2)), (2, 0, None));
        assert_eq!((frames.put_ref(4), frames.put_ref(4), frames.refs(4)), (Some(2), None, 1));
        frames.set_used(8, 0, Kind::Slab { index: 9 }, owner());
        frames.get_ref(8);
        assert_eq!((frames.refs(8), frames.put_ref(8)), (1, None));
    }

    #[test]
    fn a_block_retires_once() {
        let frames = Frames::new(16);
        frames.set_used(4, 2, Kind::Pages, owner());
        assert_eq!(frames.retire(4, 1), None, "of another order");
        assert_eq!(frames.retire(4, 2), Some(owner()));
        assert_eq!(frames.get(4), Frame::Cached { order: 2, owner: owner() });
        assert_eq!(frames.retire(4, 2), None, "a second time");
        frames.set_used(8, 2, Kind::Slab { index: 0 }, owner());
        assert_eq!((frames.retire(8, 2), frames.retire(9, 0)), (None, None), "a slab's, nobody's");
    }

    #[test]
    fn any_frame_of_a_block_finds_its_head_and_no_other() {
        let frames = Frames::new(4096);
        frames.set_used(1024, 10, Kind::Pages, owner());
        frames.set_used(2048, 0, Kind::Pages, owner());
        frames.set_used(2050, 1, Kind::Pages, owner());
        for pfn in 1024..2048 {
            assert_eq!(frames.head_of(pfn).map(|(head, _)| head), Some(1024), "{pfn}");
        }
        assert_eq!(frames.head_of(2048).map(|(head, _)| head), Some(2048));
        assert_eq!(frames.head_of(2049), None, "beside a block of one page");
        assert_eq!(frames.head_of(2051).map(|(head, _)| head), Some(2050));
        assert_eq!(frames.head_of(2052), None, "2048 begins a block, but not this frame's");
        assert_eq!(frames.head_of(5000), None, "beyond the table");
    }
}
