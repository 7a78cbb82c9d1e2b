//! What a pool cost and gave: the books from which waste is told.
//!
//! A reserve is memory that nobody else can use. It is worth that only to a caller that may sleep and must go on: who
//! can't sleep may get NULL from a pool as from any allocator, and needs its errno path anyway. Neighbours:
//! [`super::Mempool`] writes, results show. Left out: when what happened.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::gfp::Gfp;
use crate::lock::Locked;
use crate::site::Owner;

const RELAXED: Ordering = Ordering::Relaxed;

/// One pool's books; they outlive it, to the end of the machine.
#[derive(Debug)]
pub struct PoolBook {
    kind: &'static str,
    element: u64,
    created: Owner,
    destroyed: Locked<Option<Owner>>,
    min_nr: AtomicU64,
    allocs: AtomicU64,
    sleepers: AtomicU64,
    dips: AtomicU64,
    refused: AtomicU64,
    waits: AtomicU64,
    returned: AtomicU64,
    lowest: AtomicU64,
}

/// How a pool was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// What it takes its elements from.
    pub kind: &'static str,
    /// Bytes of one element.
    pub element: u64,
    /// Elements to keep in reserve.
    pub min_nr: u64,
    /// Elements handed out.
    pub allocs: u64,
    /// Of these, with a mask that may sleep.
    pub sleepers: u64,
    /// Of these, taken from the reserve.
    pub dips: u64,
    /// Requests that got NULL.
    pub refused: u64,
    /// Sleeps until an element was freed, or for 5 s.
    pub waits: u64,
    /// Elements handed out and not freed.
    pub out: u64,
    /// The fewest elements that ever were in reserve.
    pub lowest: u64,
    /// Who made it.
    pub created: Owner,
}

impl PoolUse {
    /// Bytes of the reserve that were never needed.
    pub fn idle_bytes(&self) -> u64 {
        self.lowest * self.element
    }

    /// What a reviewer would say of it.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self { sleepers: 0, allocs, refused, .. } if allocs + refused > 0 => Verdict::Errno,
            Self { dips: 0, refused: 0, .. } => Verdict::NeverDipped,
            _ => Verdict::Needed,
        }
    }
}

/// Whether a pool was worth its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The backing allocator always had memory.
    NeverDipped,
    /// No caller may sleep, so each must handle NULL: the pool spares none of them that.
    Errno,
    /// It bridged a shortage for callers that could not have gone on.
    Needed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NeverDipped => "never dipped into",
            Self::Errno => "an errno would have done",
            Self::Needed => "needed",
        })
    }
}

impl PoolBook {
    pub(super) fn new(kind: &'static str, element: u64, min_nr: usize, created: Owner) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            kind,
            element,
            created,
            destroyed: Locked::default(),
            min_nr: AtomicU64::new(min_nr as u64),
            allocs: zero(),
            sleepers: zero(),
            dips: zero(),
            refused: zero(),
            waits: zero(),
            returned: zero(),
            lowest: AtomicU64::new(min_nr as u64),
        }
    }

    pub(super) fn given(&self, gfp: Gfp, from_reserve: bool) {
        self.allocs.fetch_add(1, RELAXED);
        self.sleepers.fetch_add(u64::from(gfp.may_sleep()), RELAXED);
        self.dips.fetch_add(u64::from(from_reserve), RELAXED);
    }

    pub(super) fn left(&self, elements: usize) {
        self.lowest.fetch_min(elements as u64, RELAXED);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, RELAXED);
    }

    pub(super) fn waited(&self) {
        self.waits.fetch_add(1, RELAXED);
    }

    pub(super) fn returned(&self) {
        self.returned.fetch_add(1, RELAXED);
    }

    pub(super) fn resized(&self, min_nr: usize) {
        self.min_nr.store(min_nr as u64, RELAXED);
        self.lowest.fetch_min(min_nr as u64, RELAXED);
    }

    pub(super) fn destroyed_at(&self, owner: Owner) {
        *self.destroyed.lock() = Some(owner);
    }

    /// The pool goes: elements that are out, and the sites of a finding about them.
    pub(super) fn close(&self) -> (u64, Vec<(&'static str, Owner)>) {
        let destroyed = *self.destroyed.lock();
        let created = ("created at", self.created);
        let sites = std::iter::once(created).chain(destroyed.map(|by| ("destroyed at", by))).collect();
        (self.usage().out, sites)
    }

    /// The numbers so far.
    pub fn usage(&self) -> PoolUse {
        let (allocs, returned) = (self.allocs.load(RELAXED), self.returned.load(RELAXED));
        PoolUse {
            kind: self.kind,
            element: self.element,
            min_nr: self.min_nr.load(RELAXED),
            allocs,
            sleepers: self.sleepers.load(RELAXED),
            dips: self.dips.load(RELAXED),
            refused: self.refused.load(RELAXED),
            waits: self.waits.load(RELAXED),
            out: allocs.saturating_sub(returned),
            lowest: self.lowest.load(RELAXED),
            created: self.created,
        }
    }
}
