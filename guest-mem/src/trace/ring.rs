//! The last records of one producer, or of all.
//!
//! A [`Ring`] holds records in columns, written by plain relaxed stores: only one thread writes at a time, for there is
//! only one, or it has its turn. Columns of fixed length, a power of two, spare bounds checks and shifts: a record is
//! seven stores and the head's. Neighbours: [`super::Recorder`]. Left out: counting what was overwritten.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::{Kind, Producer, Record};
use crate::lock::{Locked, LockedGuard};

/// Records that a ring holds.
pub(super) const RING: usize = 1024;

pub(super) struct Ring {
    head: AtomicU64,
    /// Records that are no events.
    details: AtomicU64,
    ts: [AtomicU64; RING],
    addr: [AtomicU64; RING],
    tag: [AtomicU64; RING],
    len: [AtomicU32; RING],
    /// Producer and kind.
    who_kind: [AtomicU32; RING],
    dev: [AtomicU16; RING],
    turn: Locked<()>,
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            head: AtomicU64::new(0),
            details: AtomicU64::new(0),
            ts: [const { AtomicU64::new(0) }; RING],
            addr: [const { AtomicU64::new(0) }; RING],
            tag: [const { AtomicU64::new(0) }; RING],
            len: [const { AtomicU32::new(0) }; RING],
            who_kind: [const { AtomicU32::new(0) }; RING],
            dev: [const { AtomicU16::new(0) }; RING],
            turn: Locked::default(),
        }
    }
}

#[inline]
fn index(number: u64) -> usize {
    usize::try_from(number % RING as u64).unwrap_or(0)
}

impl Ring {
    /// Keeps other threads out while it lives.
    pub(super) fn turn(&self) -> LockedGuard<'_, ()> {
        self.turn.lock()
    }

    /// Events that were made.
    pub(super) fn events(&self) -> u64 {
        self.head.load(Ordering::Relaxed) - self.details.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn push(&self, who_kind: u32, record: &Record) {
        let head = self.head.load(Ordering::Relaxed);
        let at = index(head);
        self.ts[at].store(record.ts, Ordering::Relaxed);
        self.addr[at].store(record.addr, Ordering::Relaxed);
        self.tag[at].store(record.tag, Ordering::Relaxed);
        self.len[at].store(record.len, Ordering::Relaxed);
        self.who_kind[at].store(who_kind, Ordering::Relaxed);
        self.dev[at].store(record.dev, Ordering::Relaxed);
        self.head.store(head.wrapping_add(1), Ordering::Relaxed);
    }

    pub(super) fn push_detail(&self, who_kind: u32, record: &Record) {
        self.push(who_kind, record);
        self.details.store(self.details.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The record made `back` records before the newest; `None` if it was overwritten or never made.
    pub(super) fn before(&self, back: u64) -> Option<(Producer, Record)> {
        if back >= RING as u64 {
            return None;
        }
        let at = index(self.head.load(Ordering::Relaxed).checked_sub(back + 1)?);
        let [k0, k1, w0, w1] = self.who_kind[at].load(Ordering::Relaxed).to_le_bytes();
        let record = Record {
            ts: self.ts[at].load(Ordering::Relaxed),
            addr: self.addr[at].load(Ordering::Relaxed),
            len: self.len[at].load(Ordering::Relaxed),
            kind: Kind::from_number(u16::from_le_bytes([k0, k1]))?,
            dev: self.dev[at].load(Ordering::Relaxed),
            tag: self.tag[at].load(Ordering::Relaxed),
        };
        Some((Producer(u16::from_le_bytes([w0, w1])), record))
    }

    pub(super) fn reset(&self) {
        self.head.store(0, Ordering::Relaxed);
        self.details.store(0, Ordering::Relaxed);
    }
}
