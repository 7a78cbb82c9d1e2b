//! One producer's last records, and the order in which all producers made theirs.
//!
//! A [`Ring`] holds records as four words each, written by plain relaxed stores, since only one producer writes. The
//! [`Order`] is what merges the rings: for each record made, two bytes that name its producer. Walking it backwards
//! and taking each time the newest record not yet taken of that producer's ring gives all records in their one order,
//! which costs two bytes a record instead of a sequence number in each. Where several threads write, whoever uses a
//! ring has its turn first, and there is no order. Neighbours: [`super::Recorder`]. Left out: counting what was
//! overwritten.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use super::{Kind, Producer, Record};
use crate::lock::{Locked, LockedGuard};

/// Records that a ring holds.
pub(super) const RING: usize = 1024;
/// Records whose order is known.
const ORDER: usize = 4096;

pub(super) struct Ring {
    words: Vec<[AtomicU64; 4]>,
    head: AtomicU64,
    /// Events of a ring that is shared; else the recorder counts.
    events: AtomicU64,
    turn: Locked<()>,
}

fn index(number: u64, size: usize) -> usize {
    usize::try_from(number % size as u64).unwrap_or(0)
}

impl Ring {
    pub(super) fn new() -> Self {
        let words = std::iter::repeat_with(|| std::array::from_fn(|_| AtomicU64::new(0))).take(RING).collect();
        Self { words, head: AtomicU64::new(0), events: AtomicU64::new(0), turn: Locked::default() }
    }

    /// Keeps other threads out while it lives.
    pub(super) fn turn(&self) -> LockedGuard<'_, ()> {
        self.turn.lock()
    }

    /// One event more; whoever counts has the turn.
    pub(super) fn count(&self) {
        self.events.store(self.events.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Events that were counted.
    pub(super) fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    pub(super) fn push(&self, record: &Record) {
        let head = self.head.load(Ordering::Relaxed);
        let [ts, addr, meta, tag] = &self.words[index(head, RING)];
        ts.store(record.ts, Ordering::Relaxed);
        addr.store(record.addr, Ordering::Relaxed);
        let packed = u64::from(record.len) | u64::from(record.kind.number()) << 32 | u64::from(record.dev) << 48;
        meta.store(packed, Ordering::Relaxed);
        tag.store(record.tag, Ordering::Relaxed);
        self.head.store(head + 1, Ordering::Release);
    }

    /// The record made `back` records before the newest; `None` if it was overwritten or never made.
    pub(super) fn before(&self, back: u64) -> Option<Record> {
        if back >= RING as u64 {
            return None;
        }
        let number = self.head.load(Ordering::Acquire).checked_sub(back + 1)?;
        let [ts, addr, meta, tag] = &self.words[index(number, RING)];
        let meta = meta.load(Ordering::Relaxed).to_le_bytes();
        let [l0, l1, l2, l3, k0, k1, d0, d1] = meta;
        Some(Record {
            ts: ts.load(Ordering::Relaxed),
            addr: addr.load(Ordering::Relaxed),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            kind: Kind::from_number(u16::from_le_bytes([k0, k1]))?,
            dev: u16::from_le_bytes([d0, d1]),
            tag: tag.load(Ordering::Relaxed),
        })
    }

    pub(super) fn made(&self) -> u64 {
        self.head.load(Ordering::Relaxed)
    }

    pub(super) fn reset(&self) {
        self.head.store(0, Ordering::Relaxed);
        self.events.store(0, Ordering::Relaxed);
    }
}

pub(super) struct Order {
    who: Vec<AtomicU16>,
    head: AtomicU64,
}

impl Order {
    pub(super) fn new() -> Self {
        Self { who: std::iter::repeat_with(AtomicU16::default).take(ORDER).collect(), head: AtomicU64::new(0) }
    }

    pub(super) fn push(&self, who: Producer) {
        let head = self.head.load(Ordering::Relaxed);
        self.who[index(head, ORDER)].store(who.0, Ordering::Relaxed);
        self.head.store(head + 1, Ordering::Relaxed);
    }

    /// The producers of the last records, the newest first.
    pub(super) fn backwards(&self) -> impl Iterator<Item = Producer> {
        let head = self.head.load(Ordering::Relaxed);
        let oldest = head.saturating_sub(ORDER as u64);
        (oldest..head).rev().map(|number| Producer(self.who[index(number, ORDER)].load(Ordering::Relaxed)))
    }

    pub(super) fn reset(&self) {
        self.head.store(0, Ordering::Relaxed);
    }
}
