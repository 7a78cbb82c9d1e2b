//! What devices wrote of late, so that a CPU may see memory as it was before.
//!
//! Each write is kept with a serial number and the bytes that it replaced; memory as of a number is memory now with the
//! later writes undone. Neighbours: [`super`]; the port, which tells of writes before they are done. Left out: writes to
//! streaming memory, which a CPU may only read after it took it back, and long ones: those are seen at once.

use std::collections::VecDeque;

use super::buffer::{LONG, overlap};
use crate::addr::PhysAddr;

/// Writes that are remembered.
const DEPTH: usize = 64;

#[derive(Debug)]
struct Write {
    serial: u64,
    at: PhysAddr,
    /// What it replaced, or what a CPU has stored there since.
    old: Vec<u8>,
    /// By CPU, a bit: it has seen this write.
    seen: u64,
}

impl Write {
    fn overlaps(&self, at: PhysAddr, len: usize) -> bool {
        overlap(self.at, self.old.len(), at, len).is_some()
    }
}

/// The writes of all devices, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    writes: VecDeque<Write>,
    serial: u64,
}

impl History {
    /// The number of the last write.
    pub(super) fn now(&self) -> u64 {
        self.serial
    }

    /// A device is about to write here, over these bytes.
    pub(super) fn write(&mut self, at: PhysAddr, old: Vec<u8>) {
        self.serial += 1;
        self.writes.push_back(Write { serial: self.serial, at, old, seen: 0 });
        if self.writes.len() > DEPTH {
            self.writes.pop_front();
        }
    }

    /// Whether a write of so many bytes is seen at once.
    pub(super) fn is_long(len: usize) -> bool {
        len > LONG
    }

    /// Nobody sees here what was before.
    pub(super) fn forget(&mut self, at: PhysAddr, len: usize) {
        self.writes.retain(|write| !write.overlaps(at, len));
    }

    /// A CPU's store has come to memory: what was written before is under it.
    pub(super) fn stored(&mut self, at: PhysAddr, bytes: &[u8]) {
        for write in &mut self.writes {
            if let Some((into, from, len)) = overlap(write.at, write.old.len(), at, bytes.len()) {
                write.old[into..into + len].copy_from_slice(&bytes[from..from + len]);
            }
        }
    }

    /// How many writes here a CPU need not have seen: those after `floor` and after the last one here that it saw.
    pub(super) fn unseen(&self, cpu: u32, floor: u64, at: PhysAddr, len: usize) -> usize {
        let here = self.writes.iter().rev().filter(|write| write.overlaps(at, len));
        here.take_while(|write| write.serial > floor && write.seen & bit(cpu) == 0).count()
    }

    /// Undoes the last `count` writes here in what memory has; the CPU has seen those before them.
    pub(super) fn undo(&mut self, cpu: u32, count: usize, at: PhysAddr, to: &mut [u8]) {
        let len = to.len();
        let here = self.writes.iter_mut().rev().filter(|write| write.overlaps(at, len));
        for (index, write) in here.enumerate() {
            if index >= count {
                write.seen |= bit(cpu);
            } else if let Some((from, into, part)) = overlap(write.at, write.old.len(), at, len) {
                to[into..into + part].copy_from_slice(&write.old[from..from + part]);
            }
        }
    }
}

fn bit(cpu: u32) -> u64 {
    1_u64.checked_shl(cpu).unwrap_or(0)
}
