//! The state of one slot of the bounce pool: 16 bytes, of which a default pool has 32768.
//!
//! Neighbours: [`super::Pool`] keeps them in a row; a slot's `list` counts the free ones after it.

use super::geometry::{slot_shift, slot_size};
use super::{Origin, SEGMENT_SLOTS};
use crate::addr::PhysAddr;

/// Slots in a segment, as an index.
pub(super) const SEGMENT: usize = SEGMENT_SLOTS as usize;

/// The state of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    /// What the slot's first byte stands for; below the buffer in the first slot of a mapping with a kept offset.
    pub(super) orig: u64,
    /// Bytes from the slot's first to the mapping's last; 0 if free.
    pub(super) span: u32,
    /// Offset kept from the buffer's address.
    pub(super) offset: u16,
    /// Free slots from here to the end of the run; 0 if taken.
    pub(super) list: u8,
    /// Slots of the same mapping before this one.
    pub(super) back: u8,
}

impl Cell {
    /// A free slot of a segment that is all free.
    pub(super) fn fresh(index: usize) -> Self {
        Self::free(small(SEGMENT - index % SEGMENT))
    }

    pub(super) const fn free(list: u8) -> Self {
        Self { orig: u64::MAX, span: 0, offset: 0, list, back: 0 }
    }

    pub(super) fn slots(&self) -> usize {
        wide(self.span.div_ceil(1 << slot_shift()))
    }

    /// Offset of the slot's first mapped byte.
    pub(super) fn start(&self) -> u64 {
        if self.back == 0 { u64::from(self.offset) } else { 0 }
    }

    /// Whether a taken slot goes on in `next` if and only if its span says so; a free one has nothing to say.
    pub(super) fn agrees(&self, next: Option<&Self>) -> bool {
        if self.list != 0 {
            return *self == Self::free(self.list);
        }
        let rest = self.span.saturating_sub(1 << slot_shift());
        let follows = next.is_some_and(|next| next.list == 0 && next.back > 0);
        match next {
            Some(next) if rest > 0 => {
                next.back == self.back + 1 && next.span == rest && next.orig == self.orig.wrapping_add(slot_size())
            }
            _ => self.span > 0 && rest == 0 && !follows,
        }
    }

    pub(super) fn origin(&self, within: u64) -> Origin {
        let orig = PhysAddr::new(self.orig.wrapping_add(within));
        Origin { orig, remaining: u64::from(self.span).saturating_sub(within) }
    }
}

pub(super) fn wide(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// A count of slots within a segment.
pub(super) fn small(n: usize) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}
