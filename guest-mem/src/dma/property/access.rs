//! Steps of the devices: reads and writes at addresses that are right, nearly right, out of date or anything.

use vm_memory::{Bytes, GuestAddress};

use super::run::{State, Turn};
use super::shadow::{Check, ensure};
use crate::addr::PhysAddr;

/// Bytes of most accesses at most, and of a few.
const SHORT: usize = 96;
const LONG: usize = 5000;

impl State {
    /// A device reads or writes somewhere.
    pub(super) fn device(&mut self, turn: &mut Turn<'_>) -> Check {
        let dev = turn.dice.index(self.devices.len());
        let book = &self.shadow.books[dev];
        let most = if turn.dice.once_in(12) { LONG } else { SHORT };
        let len = turn.some(most) as u64;
        let live = (!book.live.is_empty()).then(|| book.live[turn.dice.index(book.live.len().max(1))]);
        let dead = (!book.dead.is_empty()).then(|| book.dead[turn.dice.index(book.dead.len().clamp(1, 24))]);
        let (dma, len) = match (turn.dice.roll(32), live, dead) {
            (0..17, Some(piece), _) => {
                let (from, len) = turn.part(piece.len as usize, len as usize);
                (piece.dma + from as u64, len as u64)
            }
            (17..19, Some(piece), _) => (piece.dma, piece.len),
            // Across the end, across the beginning, one byte beyond, in the rest of the page, beyond the mask.
            (19..21, Some(piece), _) => ((piece.dma + piece.len).saturating_sub(1 + turn.dice.roll(len)), len),
            (21, Some(piece), _) => (piece.dma.saturating_sub(1 + turn.dice.roll(len)), len),
            (22, Some(piece), _) => (piece.dma + piece.len, len),
            (23, Some(piece), _) => (piece.dma - piece.dma % 4096 + turn.dice.roll(4096), len),
            (24, Some(piece), _) => (piece.dma.wrapping_add(1 << (24 + turn.dice.roll(40))), len),
            (25..29, _, Some(piece)) => {
                let (from, len) = turn.part(piece.len as usize, len as usize);
                (piece.dma + from as u64, len as u64)
            }
            (29, _, _) => (u64::MAX - turn.dice.roll(2 * len), len),
            (30, _, _) => self.anywhere(turn, dev, len),
            // Another device's.
            _ => match self.shadow.books[(dev + 1) % 3].live.first() {
                Some(piece) => (piece.dma, piece.len.min(len)),
                None => (0x1000, len),
            },
        };
        let allowed = live.filter(|piece| piece.dma <= dma).is_none_or(|piece| piece.dir.device_writes());
        let write = if turn.dice.once_in(3) { turn.dice.once_in(2) } else { allowed };
        self.access(turn, dev, dma, len, write)
    }

    /// Somewhere in memory that the driver holds, without asking.
    fn anywhere(&self, turn: &mut Turn<'_>, dev: usize, len: u64) -> (u64, u64) {
        let buffer = &self.buffers[turn.dice.index(self.buffers.len())];
        let phys = buffer.as_ref().map_or(1 << 20, |buffer| buffer.spans[0].0);
        (self.devices[dev].bus_address(PhysAddr::new(phys)).get() + turn.dice.roll(64), len)
    }

    /// One access of a device, and what it must do.
    pub(super) fn access(&mut self, turn: &mut Turn<'_>, dev: usize, dma: u64, len: u64, write: bool) -> Check {
        let before = self.shadow.expected.len();
        let moved = self.shadow.access(dev, dma, len, write);
        self.seen.granted += u64::from(self.shadow.expected.len() == before);
        self.seen.moved += u64::from(moved.whole);
        let mut bytes = vec![0; len as usize];
        let draw = turn.dice.roll(1 << 31);
        (0..).zip(&mut bytes).for_each(|(at, byte): (u64, _)| *byte = (draw.wrapping_mul(at * 2 + 1) >> 7) as u8);
        let (port, at) = (&self.ports[dev], GuestAddress(dma));
        let verb = if write { "write" } else { "read" };
        if write {
            let done = port.write_slice(&bytes, at).is_ok();
            ensure!(done == moved.whole, "a {verb} of {len} at {dma:#x} went through: {done}");
            return self.wrote(turn, &moved.pieces, &bytes);
        }
        let mut should = bytes.clone();
        let mut at_byte = 0;
        for &(phys, len) in &moved.pieces {
            let end = at_byte + len as usize;
            self.shadow.memory.device_reads(phys, &mut should[at_byte..end]);
            at_byte = end;
        }
        let done = port.read_slice(&mut bytes, at).is_ok();
        ensure!(done == moved.whole, "a {verb} of {len} at {dma:#x} went through: {done}");
        ensure!(bytes == should, "a {verb} of {len} at {dma:#x} gave wrong bytes");
        Ok(())
    }

    /// The bytes are in RAM, where they should be; of two pieces in one place, the later one's.
    fn wrote(&mut self, turn: &Turn<'_>, pieces: &[(u64, u64)], bytes: &[u8]) -> Check {
        let mut done = 0;
        for &(phys, len) in pieces {
            self.shadow.memory.device_writes(phys, &bytes[done..done + len as usize]);
            done += len as usize;
        }
        for &(phys, len) in pieces {
            let (mut is, mut should) = (vec![0; len as usize], vec![0; len as usize]);
            let _ = turn.kernel().ram().read_uncached(PhysAddr::new(phys), &mut is);
            self.shadow.memory.device_reads(phys, &mut should);
            ensure!(is == should, "a write did not reach {phys:#x}+{len}");
        }
        Ok(())
    }
}
