//! The page frame table: three words for each frame of guest memory, what the lab knows about it.
//!
//! Only the first frame of a block, free or allocated, carries marks; all others are zero. A block of order `n` is
//! aligned to its size, so the head of any frame is one of eleven. All zero is also what a frame looks like that was
//! never touched, so that the table of an 8 GiB machine costs nothing until it is used.
//!
//! Neighbours: [`crate::buddy`] links free blocks through it, [`crate::zone`] and [`crate::slab`] keep there who
//! owns a block and for what. Mirrors `struct page`, out of band: nothing a driver writes can reach it. Left out:
//! reference counts, mappings, page flags beyond these.

use std::ops::Range;

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
    /// A slab of a `kmalloc` cache.
    Slab {
        /// Number of the slab in its [`crate::slab::Kmalloc`], below 2^24.
        index: u32,
    },
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
}

/// No frame: the end of a list.
pub(crate) const NIL: u32 = u32::MAX;

/// One more than the largest number a [`Kind`] can carry.
pub(crate) const PAYLOAD_END: u32 = 1 << 24;

const STATE_MASK: u32 = 0x3;
const STATE_FREE: u32 = 1;
const STATE_USED: u32 = 2;
const ORDER_SHIFT: u32 = 2;
const ORDER_MASK: u32 = 0xf;
const KIND_SHIFT: u32 = 6;
const KIND_MASK: u32 = 0x3;
const KIND_LARGE: u32 = 1;
const KIND_SLAB: u32 = 2;
const PAYLOAD_SHIFT: u32 = 8;

/// The table, indexed by page frame number.
#[derive(PartialEq, Eq)]
pub(crate) struct Frames {
    /// Free: next, previous. Allocated: site, scope. Third word: state, order, kind, payload.
    words: Vec<[u32; 3]>,
}

impl Frames {
    /// A table of `count` frames that were never touched; its memory comes when it is.
    pub(crate) fn new(count: u32) -> Self {
        Self { words: vec![[0; 3]; count as usize] }
    }

    /// What is known about the frame; one beyond the table is unmarked.
    pub(crate) fn get(&self, pfn: u32) -> Frame {
        let Some(&[first, second, marks]) = self.words.get(pfn as usize) else {
            return Frame::Unmarked;
        };
        let order = order_of(marks);
        match marks & STATE_MASK {
            STATE_FREE => Frame::Free { order, next: first, prev: second },
            STATE_USED => {
                let owner = Owner { site: Site::from_index(first), scope: Scope::from_index(second) };
                let payload = marks >> PAYLOAD_SHIFT;
                let kind = match (marks >> KIND_SHIFT) & KIND_MASK {
                    KIND_LARGE => Kind::Large { requested: payload },
                    KIND_SLAB => Kind::Slab { index: payload },
                    _ => Kind::Pages,
                };
                Frame::Used { order, kind, owner }
            }
            _ => Frame::Unmarked,
        }
    }

    /// Whether a free block of exactly this order begins at the frame.
    pub(crate) fn is_free(&self, pfn: u32, order: u8) -> bool {
        self.words.get(pfn as usize).is_some_and(|&[_, _, marks]| marks == free_marks(order))
    }

    /// The first frame of the marked block that holds `pfn`, and what is known about it.
    pub(crate) fn head_of(&self, pfn: u32) -> Option<(u32, Frame)> {
        for order in 0..=crate::buddy::MAX_ORDER {
            let head = pfn & !((1 << order) - 1);
            match self.get(head) {
                Frame::Unmarked => {}
                marked @ (Frame::Free { order: size, .. } | Frame::Used { order: size, .. }) => {
                    return (size >= order).then_some((head, marked));
                }
            }
        }
        None
    }

    /// Marks the head of a free block with its links.
    pub(crate) fn set_free(&mut self, pfn: u32, order: u8, next: u32, prev: u32) {
        self.set(pfn, [next, prev, free_marks(order)]);
    }

    /// Changes the forward link of a free block.
    pub(crate) fn set_next(&mut self, pfn: u32, next: u32) {
        if let Some(words) = self.words.get_mut(pfn as usize) {
            words[0] = next;
        }
    }

    /// Changes the backward link of a free block.
    pub(crate) fn set_prev(&mut self, pfn: u32, prev: u32) {
        if let Some(words) = self.words.get_mut(pfn as usize) {
            words[1] = prev;
        }
    }

    /// Marks the head of an allocated block; the kind's number must be below [`PAYLOAD_END`].
    pub(crate) fn set_used(&mut self, pfn: u32, order: u8, kind: Kind, owner: Owner) {
        let (tag, payload) = match kind {
            Kind::Pages => (0, 0),
            Kind::Large { requested } => (KIND_LARGE, requested),
            Kind::Slab { index } => (KIND_SLAB, index),
        };
        debug_assert!(payload < PAYLOAD_END);
        let marks = STATE_USED | u32::from(order) << ORDER_SHIFT | tag << KIND_SHIFT | payload << PAYLOAD_SHIFT;
        self.set(pfn, [owner.site.index(), owner.scope.index(), marks]);
    }

    /// Forgets the frame.
    pub(crate) fn clear(&mut self, pfn: u32) {
        self.set(pfn, [0; 3]);
    }

    /// Forgets a range of frames.
    pub(crate) fn clear_range(&mut self, range: Range<u32>) {
        if let Some(words) = self.words.get_mut(range.start as usize..range.end as usize) {
            words.fill([0; 3]);
        }
    }

    fn set(&mut self, pfn: u32, to: [u32; 3]) {
        if let Some(words) = self.words.get_mut(pfn as usize) {
            *words = to;
        }
    }
}

const fn free_marks(order: u8) -> u32 {
    STATE_FREE | (order as u32) << ORDER_SHIFT
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
        let mut frames = Frames::new(16);
        assert_eq!(frames.get(3), Frame::Unmarked);
        frames.set_free(4, 2, NIL, 0);
        assert_eq!(frames.get(4), Frame::Free { order: 2, next: NIL, prev: 0 });
        assert!(frames.is_free(4, 2) && !frames.is_free(4, 1));
        for kind in [Kind::Pages, Kind::Large { requested: 4 << 20 }, Kind::Slab { index: PAYLOAD_END - 1 }] {
            frames.set_used(8, 10, kind, owner());
            assert_eq!(frames.get(8), Frame::Used { order: 10, kind, owner: owner() });
            assert!(!frames.is_free(8, 10));
        }
        frames.clear_range(0..16);
        assert!(frames == Frames::new(16));
    }

    #[test]
    fn any_frame_of_a_block_finds_its_head_and_no_other() {
        let mut frames = Frames::new(4096);
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
