//! The inventory: every fault that a scenario can be given, counted until two runs agree.
//!
//! Neighbours: `case`, which runs the clean scenario; `campaign`, which does what is listed. The counts can be held
//! against the record of the clean run, which the kernel makes without the observer.

use std::collections::BTreeMap;

use lowzone_device::misbehave::Mishap;
use lowzone_guest_mem::env::Class;
use lowzone_guest_mem::slab::KMALLOC_MAX_CACHE_SIZE;
use lowzone_guest_mem::trace::{Kind, Record};
use thiserror::Error;

use super::case::{Keep, Observed, Outcome, Prepared, Verdict, judge};
use super::observer::Seen;
use super::place::{IrqMishap, Strike};
use crate::lab::LabError;

/// What the clean scenario passes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inventory {
    /// Every point, in order.
    pub points: Vec<Seen>,
    /// Interrupt messages.
    pub messages: u64,
    /// Completed requests.
    pub completions: u64,
    /// What devices can get wrong at one.
    pub mishaps: Vec<Mishap>,
    /// Whether any device can be pulled out.
    pub removable: bool,
    /// The digest of the clean run.
    pub digest: String,
}

/// Why there is no inventory.
#[derive(Debug, Error)]
pub enum InventoryError {
    /// The scenario can't be set up.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Two runs of one seed differ: nothing could be repeated.
    #[error("two clean runs of one seed pass {0} and {1} points: the scenario is not deterministic")]
    Unstable(usize, usize),
    /// The clean run is not clean: the driver is wrong even where nothing fails.
    #[error("the clean run is not clean: {}", .0.outcome.why.join("; "))]
    NotClean(Box<NotClean>),
    /// Observer and record count differently.
    #[error("{class}: {points} points, {events} events in the record")]
    Incomplete {
        /// The class.
        class: &'static str,
        /// Points that the observer saw.
        points: usize,
        /// Events that the kernel recorded.
        events: usize,
    },
}

/// A clean run that isn't.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotClean {
    /// What it passed.
    pub inventory: Inventory,
    /// The verdict on it.
    pub outcome: Outcome,
}

impl Inventory {
    /// Counts, twice, and holds the counts against the record.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn count(prepared: &Prepared) -> Result<Self, InventoryError> {
        let (first, _) = Self::once(prepared, false)?;
        let (second, observed) = Self::once(prepared, true)?;
        if first != second {
            return Err(InventoryError::Unstable(first.points.len(), second.points.len()));
        }
        let recorded = observed.recorded();
        let outcome = judge(&[], &observed);
        if outcome.verdict == Verdict::Wrong {
            return Err(InventoryError::NotClean(Box::new(NotClean { inventory: second, outcome })));
        }
        second.agree_with(&recorded)?;
        Ok(second)
    }

    fn once(prepared: &Prepared, events: bool) -> Result<(Self, Observed), LabError> {
        let mut observed = prepared.observe(&[], Keep { points: true, events, stop_at: None })?;
        let inventory = Self {
            points: std::mem::take(&mut observed.points),
            messages: observed.messages,
            completions: observed.completions,
            mishaps: std::mem::take(&mut observed.mishaps),
            removable: observed.removable,
            digest: observed.result.digest.clone(),
        };
        Ok((inventory, observed))
    }

    /// How many points each class has.
    pub fn by_class(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for point in &self.points {
            *counts.entry(point.place.class.name()).or_default() += 1;
        }
        counts
    }

    /// Holds the counts of the points against events of the record that were made apart from the observer.
    ///
    /// # Errors
    /// [`InventoryError::Incomplete`] names the class that differs.
    pub fn agree_with(&self, events: &[Record]) -> Result<(), InventoryError> {
        let points = |class: Class| self.points.iter().filter(|p| p.place.class == class).count();
        let count = |kind: Kind| events.iter().filter(|event| event.kind == kind).count();
        // Beyond the caches kmalloc is pages, with an event and a point of theirs.
        let cached = |event: &&Record| usize::try_from(event.len).is_ok_and(|len| len <= KMALLOC_MAX_CACHE_SIZE);
        let objects = events.iter().filter(|event| event.kind == Kind::Kmalloc).filter(cached).count();
        let objects = objects + count(Kind::KmemCacheAlloc);
        let maps = count(Kind::DmaMapPage) + count(Kind::DmaMapSg) + count(Kind::DmaMapResource);
        let pairs = [
            ("slab", points(Class::Slab), objects),
            ("page and coherent", points(Class::Page) + points(Class::Coherent), count(Kind::MmPageAlloc)),
            ("map", points(Class::Map), maps),
            ("swiotlb-slot", points(Class::SwiotlbSlot), count(Kind::SwiotlbBounced)),
            ("mmio", points(Class::Mmio), count(Kind::MmioRead)),
            ("mmio-write", points(Class::MmioWrite), count(Kind::MmioWrite)),
        ];
        for (class, points, events) in pairs {
            if points != events {
                return Err(InventoryError::Incomplete { class, points, events });
            }
        }
        Ok(())
    }

    /// Every single fault: each point once alone and once with all that follow, then the device's side.
    pub fn strikes(&self) -> Vec<Strike> {
        let mut strikes = Vec::new();
        for point in &self.points {
            let place = point.place.clone();
            if place.class != Class::MmioWrite {
                strikes.push(Strike::Fail { place: place.clone(), persistent: false });
                strikes.push(Strike::Fail { place: place.clone(), persistent: true });
            }
            if self.removable && matches!(place.class, Class::Mmio | Class::MmioWrite) {
                strikes.push(Strike::Remove { place });
            }
        }
        for nth in 0..self.messages {
            for what in IrqMishap::ALL {
                strikes.extend([false, true].map(|persistent| Strike::Irq { what, nth, persistent }));
            }
        }
        for nth in 0..self.completions {
            for &what in &self.mishaps {
                strikes.extend([false, true].map(|persistent| Strike::Completion { what, nth, persistent }));
            }
        }
        strikes
    }
}
