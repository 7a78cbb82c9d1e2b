//! `Entry`: one allocator's row of the table, each cell found by asking.

use std::time::Instant;

use lowzone_guest_mem::addr::PAGE_SIZE;
use lowzone_guest_mem::buddy::MAX_ORDER;
use lowzone_guest_mem::dma::{DmaDevice, ToDevice};
use lowzone_guest_mem::vmalloc::{virt_addr_valid, vmalloc_to_page};
use lowzone_guest_mem::{Cpu, KBuf, PhysAddr, VirtAddr};
use serde::Serialize;

use crate::world::Random;

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
    /// Whether the call may sleep; [`super::trial`] finds out.
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

/// Whether what the CPU writes in a row lies in a row in memory, from the first byte on.
pub(super) fn contiguous(cpu: &Cpu<'_>, first: PhysAddr, len: usize, write: impl FnOnce(&[u8])) -> &'static str {
    let mut wrote = vec![0; len];
    Random::new(1).fill(&mut wrote);
    write(&wrote);
    let mut lies = vec![0; len];
    let read = cpu.kernel().ram().read(first, &mut lies);
    if read.is_ok() && lies == wrote { "yes" } else { "no" }
}

/// [`contiguous`] of a buffer.
pub(super) fn in_a_row(cpu: &Cpu<'_>, buf: &mut KBuf) -> &'static str {
    let (first, len) = (buf.phys(), buf.len());
    // Within its own length, so nothing is refused.
    contiguous(cpu, first, len, |bytes| _ = buf.write_at(0, bytes))
}

/// Whether every page from an address on is mapped, as memory of RAM's map or of vmalloc's.
pub(super) fn mapped(cpu: &Cpu<'_>, at: VirtAddr, len: usize) -> &'static str {
    let page = |at: VirtAddr| virt_addr_valid(cpu.kernel(), at) || vmalloc_to_page(cpu.kernel(), at).is_some();
    let mut pages = (0..len as u64).step_by(4096).map(|offset| VirtAddr::new(at.get() + offset));
    if pages.all(page) { "yes" } else { "no" }
}

/// The alignment of blocks of each order: their own size, or the least that all of them had.
pub(super) fn alignment_by_order(block: impl Fn(u8) -> Option<u64>) -> String {
    let blocks: Vec<_> = (0..=MAX_ORDER).filter_map(|order| Some((order, block(order)?))).collect();
    if blocks.iter().all(|&(order, at)| at.is_multiple_of(PAGE_SIZE << order)) {
        return "its size".to_owned();
    }
    alignment(&blocks.into_iter().map(|(_, at)| at).collect::<Vec<_>>()).to_string()
}
