//! Which descriptors a driver has posted: whoever gave the device an address that it should not have used.
//!
//! A driver of a split virtqueue says where its table lies, and at each post and completion which head is the device's:
//! one store each. Only when something is wrong are the tables read, chain by chain, to find the descriptor that covers
//! an address. Neighbours: `port` asks; the driver's virtqueue tells. Left out: rings of other devices.
//! Mirrors the split virtqueue of virtio 1.2, section 2.7.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{DmaAddr, PhysAddr};
use crate::cpu::Cpu;
use crate::dma::coherent::Coherent;
use crate::dma::device::DmaDevice;
use crate::dma::mapping::covers;
use crate::site::Owner;
use crate::trace::{Kind, Record, owner_of, owner_word};

#[cfg(test)]
mod tests;

/// Bytes of a descriptor.
const DESC: u64 = 16;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

/// The heads of one queue that the device has.
#[derive(Debug)]
pub(crate) struct Heads {
    queue: u16,
    table: PhysAddr,
    /// By head: who posted it, or 0.
    posted: Box<[AtomicU64]>,
}

/// A driver's word on what it has posted in one queue; withdrawn when it drops.
#[derive(Debug)]
pub struct Posting {
    device: DmaDevice,
    heads: Arc<Heads>,
}

/// A descriptor that covers an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Its queue.
    pub queue: u16,
    /// The head of its chain.
    pub head: u16,
    /// Who posted it.
    pub owner: Owner,
}

/// What is known of who gave the device an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Posted {
    /// No queue is known.
    #[default]
    Unknown,
    /// No posted descriptor covers it.
    Nowhere,
    /// This one does.
    In(Descriptor),
}

impl fmt::Display for Posted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => Ok(()),
            Self::Nowhere => f.write_str(" [posted in no descriptor]"),
            Self::In(Descriptor { queue, head, .. }) => write!(f, " [posted in chain {head} of queue {queue}]"),
        }
    }
}

impl Posting {
    /// The device whose queue it is.
    pub fn device(&self) -> &DmaDevice {
        &self.device
    }

    /// Says where the descriptor table of a queue of `size` entries lies. Any context.
    pub fn new(device: &DmaDevice, queue: u16, table: &Coherent, size: u16) -> Self {
        let posted = (0..size).map(|_| AtomicU64::new(0)).collect();
        let heads = Arc::new(Heads { queue, table: table.phys(), posted });
        device.state.rings.lock().push(heads.clone());
        Self { device: device.clone(), heads }
    }

    /// The device has a head now. Any context.
    #[inline]
    pub fn post(&self, head: u16, by: Owner) {
        if let Some(posted) = self.heads.posted.get(usize::from(head)) {
            posted.store(owner_word(by), Ordering::Relaxed);
        }
    }

    /// Records that the chain at `head` was added, `index` being the available index behind it. Its segments are an
    /// address, bytes, and whether the device may write them. Any context.
    #[inline]
    pub fn trace_add(
        &self,
        cpu: &Cpu<'_>,
        head: u16,
        index: u16,
        segments: impl IntoIterator<Item = (DmaAddr, u32, bool)>,
    ) {
        let event = (Kind::VirtqAdd, u64::from(head), u32::from(self.heads.queue));
        cpu.trace_linked(event, self.device.index(), u64::from(index), |event| {
            segments.into_iter().map(move |(addr, len, write)| Record {
                addr: addr.get(),
                len,
                kind: Kind::Segment,
                tag: u64::from(write),
                ..event
            })
        });
    }

    /// Records a `virtq:kick` or `virtq:used`, `index` being the ring's index behind it. Any context.
    #[inline]
    pub fn trace(&self, cpu: &Cpu<'_>, kind: Kind, head: u64, index: u16) {
        cpu.trace(kind, head, usize::from(self.heads.queue), self.device.index(), u64::from(index));
    }

    /// The device is done with a head. Any context.
    #[inline]
    pub fn done(&self, head: usize) {
        if let Some(posted) = self.heads.posted.get(head) {
            posted.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for Posting {
    fn drop(&mut self) {
        self.device.state.rings.lock().retain(|heads| !Arc::ptr_eq(heads, &self.heads));
    }
}

/// The parts of a descriptor that matter: address, length, flags, next.
type Parts = (u64, u64, u16, u16);

impl DmaDevice {
    /// The posted descriptor that covers an address.
    pub(crate) fn posted(&self, dma: DmaAddr) -> Posted {
        let rings = self.state.rings.lock().clone();
        if rings.is_empty() {
            return Posted::Unknown;
        }
        let find = |heads: &Arc<Heads>| {
            let live = (0_u16..).zip(&heads.posted).map(|(head, word)| (head, word.load(Ordering::Relaxed)));
            let found = live.filter(|&(_, word)| word != 0).find(|&(head, _)| self.chain_covers(heads, head, dma));
            found.map(|(head, word)| Descriptor { queue: heads.queue, head, owner: owner_of(word) })
        };
        rings.iter().find_map(find).map_or(Posted::Nowhere, Posted::In)
    }

    fn parts(&self, at: PhysAddr) -> Option<Parts> {
        let mut bytes = [0; 16];
        self.live_kernel()?.ram().read_uncached(at, &mut bytes).ok()?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        let addr = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        Some((addr, len.into(), u16::from_le_bytes([f0, f1]), u16::from_le_bytes([n0, n1])))
    }

    fn chain_covers(&self, heads: &Heads, head: u16, dma: DmaAddr) -> bool {
        let mut at = head;
        // A chain has no more descriptors than its queue, whatever was written over it.
        for _ in 0..heads.posted.len() {
            let parts = self.parts(heads.table.wrapping_add(u64::from(at) * DESC));
            let Some((addr, len, flags, next)) = parts else { return false };
            let hit = match flags & INDIRECT {
                0 => covers(addr, len, dma.get(), 1),
                _ => self.table_covers(DmaAddr::new(addr), len / DESC, dma),
            };
            if hit || flags & NEXT == 0 || usize::from(next) >= heads.posted.len() {
                return hit;
            }
            at = next;
        }
        false
    }

    fn table_covers(&self, table: DmaAddr, count: u64, dma: DmaAddr) -> bool {
        let parts = |n: u64| self.parts(self.behind(table.wrapping_add(n * DESC))?);
        (0..count).filter_map(parts).any(|(addr, len, ..)| covers(addr, len, dma.get(), 1))
    }
}
