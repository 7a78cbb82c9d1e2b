//! `Entry`: one allocator's row of the table, each cell found by asking.

use std::time::Instant;

use lowzone_guest_mem::dma::{DmaDevice, ToDevice};
use lowzone_guest_mem::{Cpu, KBuf, PhysAddr};
use serde::Serialize;

/// Allocations that a cell is read off.
pub(super) const SAMPLE: usize = 16;
/// Pairs that a cost is measured over.
const PAIRS: u32 = 2000;

/// One row.
#[derive(Clone, Default, Serialize)]
pub(super) struct Entry {
    /// The allocator.
    pub(super) allocator: &'static str,
    /// The least that is taken.
    pub(super) unit: String,
    /// The largest size that was given.
    pub(super) largest: String,
    /// Whether physical addresses follow each other.
    pub(super) physical: &'static str,
    /// Whether virtual addresses do.
    pub(super) virt: &'static str,
    /// Whether the call may sleep.
    pub(super) sleeps: &'static str,
    /// Which masks of a device reach it.
    pub(super) dma: String,
    /// Where it lay.
    pub(super) zone: String,
    /// The alignment that all samples had.
    pub(super) alignment: String,
    /// Bytes that an object of 100 takes beyond that.
    pub(super) slack: String,
    /// Nanoseconds of the host for an allocation and a free.
    pub(super) cost_ns: u64,
}

/// The largest power of two that all addresses are multiples of.
pub(super) fn alignment(at: &[u64]) -> u64 {
    let bits = at.iter().fold(0, |bits, at| bits | at);
    1 << bits.trailing_zeros().min(63)
}

/// Nanoseconds of one pair.
pub(super) fn cost(mut pair: impl FnMut()) -> u64 {
    let begun = Instant::now();
    (0..PAIRS).for_each(|_| pair());
    u64::try_from(begun.elapsed().as_nanos() / u128::from(PAIRS)).unwrap_or(u64::MAX)
}

/// The largest size in steps of a power of two, and one byte less than twice that, that an allocator gives.
pub(super) fn largest(limit: u32, mut gives: impl FnMut(usize) -> bool) -> usize {
    let (mut good, mut bad) = (0, 1_usize << limit);
    if gives(bad) {
        return bad;
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if gives(middle) { good = middle } else { bad = middle }
    }
    good
}

/// The narrowest mask that reaches a buffer as it is, and what a 32-bit device does; the buffer comes back.
pub(super) fn reach(cpu: &Cpu<'_>, device: &DmaDevice, buf: KBuf) -> (String, KBuf) {
    let end = buf.phys().get() + buf.len().max(1) as u64 - 1;
    let bits = u64::BITS - end.leading_zeros();
    let (narrow, buf) = match device.map_single::<ToDevice>(cpu, buf) {
        Ok(mapping) => (if mapping.bounced() { "32 bounces" } else { "32 too" }, mapping.unmap(cpu)),
        Err(refused) => ("32 fails", refused.buf),
    };
    (format!("{bits} bits, {narrow}"), buf)
}

/// Whether each page follows the one before.
pub(super) fn contiguous(pages: &[PhysAddr]) -> &'static str {
    if pages.windows(2).all(|pair| pair[1].get() == pair[0].get() + 4096) { "yes" } else { "no" }
}
