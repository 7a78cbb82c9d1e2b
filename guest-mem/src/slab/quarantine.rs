//! Freed objects held back for a while, so that a late write to one is seen and not blamed on its next holder.
//!
//! First in, first out, up to a number of bytes; what is larger than that is not held. Neighbours: [`super::SlabCaches`]
//! puts objects in, the wrapper in [`crate::kmalloc`] fills them and looks at them when they leave. Left out: pages that
//! were asked for as pages.

use std::collections::VecDeque;

use super::Spot;
use crate::zone::Block;

/// What is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// An object of a slab.
    Small(Spot),
    /// A block of pages that was one object.
    Large(Block),
}

/// The objects that are held back.
pub(super) struct Quarantine {
    held: VecDeque<(Held, u32)>,
    bytes: u64,
    budget: u64,
}

impl Quarantine {
    /// One that holds up to `budget` bytes; 0 = none, ever.
    pub(super) const fn new(budget: u64) -> Self {
        Self { held: VecDeque::new(), bytes: 0, budget }
    }

    pub(super) const fn is_on(&self) -> bool {
        self.budget > 0
    }

    /// Whether it holds an object of so many bytes.
    pub(super) const fn takes(&self, bytes: u32) -> bool {
        bytes as u64 <= self.budget
    }

    /// Holds an object of so many bytes.
    pub(super) fn push(&mut self, held: Held, bytes: u32) {
        self.held.push_back((held, bytes));
        self.bytes += u64::from(bytes);
    }

    /// The object that must leave, because there are too many bytes, or because all must.
    pub(super) fn pop(&mut self, all: bool) -> Option<Held> {
        if !all && self.bytes <= self.budget {
            return None;
        }
        let (held, bytes) = self.held.pop_front()?;
        self.bytes -= u64::from(bytes);
        Some(held)
    }

    pub(super) fn clear(&mut self) {
        self.held.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_in_leaves_first_once_the_budget_is_spent() {
        let mut quarantine = Quarantine::new(100);
        let spot = |slot| Held::Small(Spot { index: 1, slot });
        (0..3).for_each(|slot| quarantine.push(spot(slot), 40));
        assert_eq!((quarantine.pop(false), quarantine.pop(false)), (Some(spot(0)), None));
        assert_eq!(
            (quarantine.pop(true), quarantine.pop(true), quarantine.pop(true)),
            (Some(spot(1)), Some(spot(2)), None)
        );
        quarantine.push(spot(3), 500);
        quarantine.clear();
        assert_eq!(quarantine.pop(true), None);
        assert!(!Quarantine::new(0).is_on());
        assert!(quarantine.takes(100) && !quarantine.takes(101));
    }
}
