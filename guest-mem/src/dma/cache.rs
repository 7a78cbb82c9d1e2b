//! The CPUs' caches of a non-coherent machine, as unkind as they may be.
//!
//! On such a machine a device reads and writes RAM while CPUs see their caches, and only the DMA API's calls move lines
//! between the two. The caches here never run full: a line that a CPU touched stays until it is invalidated, a dirty one
//! reaches RAM only when it is cleaned. So a forgotten sync shows stale bytes each time, and what two owners have in one
//! line is overwritten. All CPUs share them, being coherent among themselves. Mirrors arch/arm64/mm/dma-mapping.c and
//! cache.S; the lines are arm64's usual ones, its `ARCH_DMA_MINALIGN` twice that.
//!
//! Neighbours: [`crate::ram::Ram`], whose plain copies are the CPU's and come here; the port, which goes past.
//! Left out: eviction and speculation, which may also hide the bug; instruction caches.

use std::collections::HashMap;

use crate::addr::PhysAddr;
use crate::ram::{Ram, RamError};

/// Bytes of a cache line.
pub const CACHE_LINE: u64 = 64;
/// What `kmalloc` aligns to on a non-coherent machine, so that no two of its objects share a line.
pub const ARCH_DMA_MINALIGN: usize = 128;

const LINE: usize = 64;
const _: () = assert!(LINE as u64 == CACHE_LINE);

#[derive(Clone, Copy, Debug)]
struct Line {
    bytes: [u8; LINE],
    dirty: bool,
}

/// The lines that are cached, by address.
#[derive(Debug, Default)]
pub(crate) struct CpuCache {
    lines: HashMap<u64, Line>,
}

/// The parts of a range that lie in one line each: the line, the first byte in it, how many.
fn parts(at: PhysAddr, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let (mut at, mut left) = (at.get(), len);
    std::iter::from_fn(move || {
        let within = usize::try_from(at % CACHE_LINE).unwrap_or(0);
        let step = left.min(LINE - within);
        let part = (at - at % CACHE_LINE, within, step);
        at += step as u64;
        left -= step;
        (step > 0).then_some(part)
    })
}

impl CpuCache {
    /// What a CPU reads; the range is RAM.
    pub(crate) fn read(&mut self, ram: &Ram, at: PhysAddr, to: &mut [u8]) -> Result<(), RamError> {
        let mut done = 0;
        for (line, from, step) in parts(at, to.len()) {
            let cached = self.fetch(ram, line)?;
            to[done..done + step].copy_from_slice(&cached.bytes[from..from + step]);
            done += step;
        }
        Ok(())
    }

    /// What a CPU writes; the range is RAM.
    pub(crate) fn write(&mut self, ram: &Ram, at: PhysAddr, bytes: &[u8]) -> Result<(), RamError> {
        let mut done = 0;
        for (line, from, step) in parts(at, bytes.len()) {
            let cached = self.fetch(ram, line)?;
            cached.bytes[from..from + step].copy_from_slice(&bytes[done..done + step]);
            cached.dirty = true;
            done += step;
        }
        Ok(())
    }

    fn fetch(&mut self, ram: &Ram, line: u64) -> Result<&mut Line, RamError> {
        use std::collections::hash_map::Entry;
        match self.lines.entry(line) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let mut bytes = [0; LINE];
                ram.read_uncached(PhysAddr::new(line), &mut bytes)?;
                Ok(entry.insert(Line { bytes, dirty: false }))
            }
        }
    }

    /// Writes dirty lines back; they stay (`dcache_clean_poc`).
    pub(crate) fn clean(&mut self, ram: &Ram, at: PhysAddr, len: usize) {
        let len = if planted!(CleanShort) { len.saturating_sub(LINE) } else { len };
        for (line, ..) in parts(at, len) {
            self.write_back(ram, line);
        }
    }

    fn write_back(&mut self, ram: &Ram, line: u64) {
        if let Some(cached) = self.lines.get_mut(&line).filter(|cached| cached.dirty) {
            cached.dirty = false;
            // It was filled from RAM, so it is RAM.
            let _ = ram.write_uncached(PhysAddr::new(line), &cached.bytes);
        }
    }

    /// Drops lines; one that has other bytes too is cleaned first, as nobody gave those up (`dcache_inval_poc`).
    pub(crate) fn invalidate(&mut self, ram: &Ram, at: PhysAddr, len: usize) {
        let len = if planted!(InvalidateShort) { len.saturating_sub(LINE) } else { len };
        for (line, _, step) in parts(at, len) {
            if step < LINE {
                self.write_back(ram, line);
            }
            self.lines.remove(&line);
        }
    }

    /// Forgets everything, RAM too being about to be cleared.
    pub(crate) fn reset(&mut self) {
        self.lines.clear();
    }
}

#[cfg(test)]
mod tests;
