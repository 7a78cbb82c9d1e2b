//! The driver's half of a split virtqueue.
//!
//! The ring lies in coherent memory and is written, never read back: free list, chains and their writable lengths are
//! kept in shadows that the device can't reach. What the device writes (used index, id, length) is bounded against
//! the shadow before it is believed; a lie breaks the queue. With EVENT_IDX both sides say when they want to be told.
//! A chain goes through an indirect table when more than half the ring is taken and the device agreed to them.
//!
//! The caller serialises: all methods need `&mut self`, under its lock. Any context. Mirrors
//! drivers/virtio/virtio_ring.c; virtio 1.2, 2.7. Neighbours: `transport` (doorbell), `blk`. Left out: packed rings.

use lowzone_guest_mem::dma::posted::Posting;
use lowzone_guest_mem::dma::{Coherent, DmaDevice};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::trace::Kind;
use lowzone_guest_mem::{Cpu, DmaAddr};
use thiserror::Error;

use crate::virtio::transport::QueueLayout;
use crate::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, VirtioError};

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;
/// Bytes of a descriptor.
const DESC: usize = 16;
/// Segments that one indirect table holds.
pub const MAX_SEGMENTS: usize = 4;

/// One piece of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where the device finds it.
    pub addr: DmaAddr,
    /// How many bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub write: bool,
}

/// Why a chain could not be put on the ring or taken off it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RingError {
    /// Not enough descriptors (`-ENOSPC`).
    #[error("the ring has no {wanted} free descriptors")]
    Full {
        /// How many were needed.
        wanted: usize,
    },
    /// A chain of no segments or too many.
    #[error("a chain of {0} segments")]
    BadChain(usize),
    /// The device returned a number that is no descriptor.
    #[error("id {id} out of range")]
    BadId {
        /// The number.
        id: u32,
    },
    /// The device returned a descriptor that heads no chain in flight.
    #[error("id {id} is not a head!")]
    NotAHead {
        /// The number.
        id: u32,
    },
    /// The device claims to have written more than it was given.
    #[error("id {id} wrote {len} of {room} bytes")]
    BadLength {
        /// The chain.
        id: u32,
        /// What it claims.
        len: u32,
        /// What it had.
        room: u32,
    },
    /// The device claims to have used more chains than are in flight.
    #[error("{claimed} chains used, {in_flight} in flight")]
    Overrun {
        /// What it claims.
        claimed: u16,
        /// How many there are.
        in_flight: u16,
    },
    /// The queue was broken earlier.
    #[error("the queue is broken")]
    Broken,
}

/// A chain that the device gave back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    /// What the caller gave with the chain.
    pub token: u16,
    /// How many bytes the device wrote.
    pub len: u32,
}

/// What a queue did so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RingStats {
    /// Chains laid out in the ring.
    pub direct: u64,
    /// Chains behind an indirect table.
    pub indirect: u64,
    /// Doorbells asked for.
    pub kicks: u64,
    /// Doorbells that the device had no use for.
    pub kicks_saved: u64,
}

#[derive(Clone, Copy, Default)]
struct Head {
    token: u16,
    descriptors: u16,
    room: u32,
    in_flight: bool,
}

/// A split virtqueue.
pub struct Virtqueue {
    size: u16,
    /// What the lab is told of what the device has; it goes before the ring does.
    posting: Posting,
    ring: Coherent,
    tables: Option<Coherent>,
    event_idx: bool,
    /// The device was asked for no interrupts, by the flag.
    silent: bool,
    broken: bool,
    /// Next free descriptor after each; a free list that the device can't see.
    next: Vec<u16>,
    heads: Vec<Head>,
    free_head: u16,
    free: u16,
    in_flight: u16,
    avail_idx: u16,
    last_used: u16,
    added: u16,
    stats: RingStats,
}

const fn avail_offset(size: u16) -> usize {
    size as usize * DESC
}

const fn used_offset(size: u16) -> usize {
    (avail_offset(size) + 6 + 2 * size as usize).next_multiple_of(4)
}

const fn ring_len(size: u16) -> usize {
    used_offset(size) + 6 + 8 * size as usize
}

impl Virtqueue {
    /// Allocates a queue of `size` entries (a power of two) for the agreed `features`. Process context.
    ///
    /// # Errors
    /// [`VirtioError::NoRingMemory`].
    #[track_caller]
    pub fn new(cpu: &Cpu<'_>, dma: &DmaDevice, index: u16, size: u16, features: u64) -> Result<Self, VirtioError> {
        let alloc =
            |len: usize| dma.alloc_coherent(cpu, len, GFP_KERNEL).map_err(|_| VirtioError::NoRingMemory { len });
        let ring = alloc(ring_len(size))?;
        let indirect = features & F_INDIRECT_DESC != 0;
        let tables = if indirect { Some(alloc(usize::from(size) * MAX_SEGMENTS * DESC)?) } else { None };
        Ok(Self {
            size,
            posting: Posting::new(dma, index, &ring, size),
            ring,
            tables,
            event_idx: features & F_EVENT_IDX != 0,
            silent: false,
            broken: false,
            next: (1..=size).collect(),
            heads: vec![Head::default(); usize::from(size)],
            free_head: 0,
            free: size,
            in_flight: 0,
            avail_idx: 0,
            last_used: 0,
            added: 0,
            stats: RingStats::default(),
        })
    }

    /// The bug [`ThirdUnwindLeak`](crate::mutant::Mutant::ThirdUnwindLeak): everything is freed but the tables.
    #[cfg(lowzone_mutants)]
    pub(crate) fn forget_tables(self) {
        std::mem::forget(self.tables);
    }

    /// The bug [`UnwindFreesTwice`](crate::mutant::Mutant::UnwindFreesTwice): the tables go before their ring does.
    #[cfg(lowzone_mutants)]
    pub(crate) fn free_tables_early(&self, cpu: &Cpu<'_>) {
        if let (Some(tables), dma) = (&self.tables, self.posting.device()) {
            let len = tables.len() as u64;
            lowzone_guest_mem::dma::misuse::free_coherent(cpu, dma, tables.phys(), tables.dma_addr(), len);
        }
    }

    /// The bug [`CoherentWrongSize`](crate::mutant::Mutant::CoherentWrongSize): the legacy `vring_size` has no events.
    #[cfg(lowzone_mutants)]
    pub(crate) fn free_as_legacy(self, cpu: &Cpu<'_>) {
        lowzone_guest_mem::dma::misuse::free_coherent_as(cpu, self.ring, ring_len(self.size) - 2);
    }

    /// What the device must be told.
    pub fn layout(&self) -> QueueLayout {
        let at = |offset: usize| self.ring.dma_addr().wrapping_add(offset as u64);
        QueueLayout {
            size: self.size,
            desc: at(0),
            avail: at(avail_offset(self.size)),
            used: at(used_offset(self.size)),
        }
    }

    /// The coherent memory it lies in: the ring and, if agreed, the indirect tables.
    pub fn memory(&self) -> impl Iterator<Item = &Coherent> {
        std::iter::once(&self.ring).chain(&self.tables)
    }

    /// What it did so far.
    pub fn stats(&self) -> RingStats {
        self.stats
    }

    /// Chains in flight.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Puts a chain on the ring; the device sees it at once, and is told by the next kick.
    ///
    /// # Errors
    /// [`RingError::Full`], [`RingError::BadChain`], [`RingError::Broken`].
    #[track_caller]
    pub fn add(&mut self, cpu: &Cpu<'_>, chain: &[Segment], token: u16) -> Result<(), RingError> {
        if self.broken {
            return Err(RingError::Broken);
        }
        if chain.is_empty() || chain.len() > MAX_SEGMENTS {
            return Err(RingError::BadChain(chain.len()));
        }
        let indirect = self.tables.is_some() && chain.len() > 1 && self.free <= self.size / 2;
        let wanted = if indirect { 1 } else { chain.len() };
        if usize::from(self.free) < wanted {
            return Err(RingError::Full { wanted });
        }
        let head = self.free_head;
        if indirect {
            self.lay_table(cpu, head, chain)
        } else {
            self.lay_direct(cpu, chain)
        }
        let descriptors = u16::try_from(wanted).unwrap_or(u16::MAX);
        let room = chain.iter().filter(|s| s.write).fold(0_u32, |sum, s| sum.saturating_add(s.len));
        self.heads[usize::from(head)] = Head { token, descriptors, room, in_flight: true };
        self.free -= descriptors;
        self.in_flight += 1;
        self.posting.post(head, cpu.owner());
        self.publish(cpu, head, chain);
        Ok(())
    }

    fn publish(&mut self, cpu: &Cpu<'_>, head: u16, chain: &[Segment]) {
        let avail = avail_offset(self.size);
        let slot = usize::from(self.avail_idx & (self.size - 1));
        self.ring.write_u16(cpu, avail + 4 + 2 * slot, head);
        // The descriptors and the ring entry must be visible before the index that gives them away.
        cpu.dma_wmb();
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.ring.write_u16(cpu, avail + 2, self.avail_idx);
        self.added = self.added.wrapping_add(1);
        self.posting.trace_add(cpu, head, self.avail_idx, chain.iter().map(|s| (s.addr, s.len, s.write)));
    }

    fn lay_direct(&mut self, cpu: &Cpu<'_>, chain: &[Segment]) {
        let mut at = self.free_head;
        for (i, segment) in chain.iter().enumerate() {
            let next = self.next[usize::from(at)];
            let last = i + 1 == chain.len();
            let flags = write_flag(segment) | if last { 0 } else { DESC_NEXT };
            self.ring.write(cpu, usize::from(at) * DESC, &descriptor(segment, flags, next));
            at = next;
        }
        self.free_head = at;
        self.stats.direct += 1;
    }

    fn lay_table(&mut self, cpu: &Cpu<'_>, head: u16, chain: &[Segment]) {
        let Some(tables) = &self.tables else { return };
        let offset = usize::from(head) * MAX_SEGMENTS * DESC;
        let mut table = [0; MAX_SEGMENTS * DESC];
        for ((next, segment), desc) in (1_u16..).zip(chain).zip(table.chunks_exact_mut(DESC)) {
            let last = usize::from(next) == chain.len();
            let flags = write_flag(segment) | if last { 0 } else { DESC_NEXT };
            desc.copy_from_slice(&descriptor(segment, flags, if last { 0 } else { next }));
        }
        tables.write(cpu, offset, &table[..chain.len() * DESC]);
        let len = u32::try_from(chain.len() * DESC).unwrap_or(u32::MAX);
        let table = Segment { addr: tables.dma_addr().wrapping_add(offset as u64), len, write: false };
        self.ring.write(cpu, usize::from(head) * DESC, &descriptor(&table, DESC_INDIRECT, 0));
        self.free_head = self.next[usize::from(head)];
        self.stats.indirect += 1;
    }

    /// Whether the device wants to be told about what was added since the last call.
    pub fn kick_prepare(&mut self, cpu: &Cpu<'_>) -> bool {
        // The index must be out before we look whether the device still watches it.
        cpu.mb();
        let new = self.avail_idx;
        let old = new.wrapping_sub(self.added);
        self.added = 0;
        let used = used_offset(self.size);
        let wanted = if self.event_idx {
            let event = self.ring.read_u16(cpu, used + 4 + 8 * usize::from(self.size));
            need_event(event, new, old)
        } else {
            self.ring.read_u16(cpu, used) & USED_NO_NOTIFY == 0
        };
        let counter = if wanted { &mut self.stats.kicks } else { &mut self.stats.kicks_saved };
        *counter += 1;
        if wanted {
            self.posting.trace(cpu, Kind::VirtqKick, 0, new);
        }
        wanted
    }

    /// Takes the next chain that the device is done with.
    ///
    /// # Errors
    /// Whatever of the device's claims can't be true; the queue is broken from then on.
    pub fn pop(&mut self, cpu: &Cpu<'_>) -> Result<Option<Used>, RingError> {
        if self.broken {
            return Err(RingError::Broken);
        }
        let popped = self.try_pop(cpu);
        self.broken = popped.is_err();
        popped
    }

    fn try_pop(&mut self, cpu: &Cpu<'_>) -> Result<Option<Used>, RingError> {
        let used = used_offset(self.size);
        let claimed = self.ring.read_u16(cpu, used + 2).wrapping_sub(self.last_used);
        if claimed == 0 {
            return Ok(None);
        }
        if claimed > self.in_flight {
            return Err(RingError::Overrun { claimed, in_flight: self.in_flight });
        }
        // The element was written before the index: read it after.
        #[cfg(not(lowzone_mutants))]
        let unordered = false;
        #[cfg(lowzone_mutants)]
        let unordered = crate::mutant::is(crate::mutant::Mutant::UsedReadUnordered);
        if !unordered {
            cpu.dma_rmb();
        }
        let element = used + 4 + 8 * usize::from(self.last_used & (self.size - 1));
        let id = self.ring.read_u32(cpu, element);
        let len = self.ring.read_u32(cpu, element + 4);
        let at = usize::try_from(id).ok().filter(|&at| at < self.heads.len()).ok_or(RingError::BadId { id })?;
        let head = self.heads[at];
        if !head.in_flight {
            return Err(RingError::NotAHead { id });
        }
        if len > head.room {
            return Err(RingError::BadLength { id, len, room: head.room });
        }
        self.release(at, head.descriptors);
        self.last_used = self.last_used.wrapping_add(1);
        self.posting.trace(cpu, Kind::VirtqUsed, u64::from(id), self.last_used);
        Ok(Some(Used { token: head.token, len }))
    }

    /// Puts a chain's descriptors back on the free list, its head first.
    fn release(&mut self, head: usize, descriptors: u16) {
        let mut last = head;
        for _ in 1..descriptors {
            last = usize::from(self.next[last]);
        }
        self.next[last] = self.free_head;
        self.free_head = u16::try_from(head).unwrap_or(0);
        self.free += descriptors;
        self.in_flight -= 1;
        self.heads[head].in_flight = false;
        self.posting.done(head);
    }

    /// Asks the device for no more interrupts; a hint only (`virtqueue_disable_cb`).
    pub fn disable_interrupts(&mut self, cpu: &Cpu<'_>) {
        if !self.event_idx && !self.silent {
            self.silent = true;
            self.ring.write_u16(cpu, avail_offset(self.size), AVAIL_NO_INTERRUPT);
        }
    }

    /// Asks for an interrupt at the next used chain; `false` if there is one already (`virtqueue_enable_cb`).
    pub fn enable_interrupts(&mut self, cpu: &Cpu<'_>) -> bool {
        let avail = avail_offset(self.size);
        if self.event_idx {
            self.ring.write_u16(cpu, avail + 4 + 2 * usize::from(self.size), self.last_used);
        } else if self.silent {
            self.silent = false;
            self.ring.write_u16(cpu, avail, 0);
        }
        // The wish must be out before we look once more, or a used chain slips between.
        cpu.mb();
        self.ring.read_u16(cpu, used_offset(self.size) + 2) == self.last_used
    }
}

/// Whether `event` lies among the entries published since `old` (virtio 1.2, 2.7.7.2), modulo 2^16.
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn write_flag(segment: &Segment) -> u16 {
    if segment.write { DESC_WRITE } else { 0 }
}

fn descriptor(segment: &Segment, flags: u16, next: u16) -> [u8; DESC] {
    let mut bytes = [0; DESC];
    bytes[..8].copy_from_slice(&segment.addr.get().to_le_bytes());
    bytes[8..12].copy_from_slice(&segment.len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_due_when_it_lies_in_what_was_published() {
        let cases = [
            (5, 6, 5, true),
            (5, 5, 4, false),
            (0xffff, 0, 0xffff, true),
            (10, 20, 5, true),
            (4, 20, 5, false),
            (19, 20, 5, true),
            (20, 20, 5, false),
            (7, 7, 7, false),
        ];
        for (event, new, old, due) in cases {
            assert_eq!(need_event(event, new, old), due, "({event:#x}, {new}, {old})");
        }
    }

    #[test]
    fn the_parts_of_a_ring_are_aligned_and_do_not_overlap() {
        for shift in 0..=15 {
            let size = 1_u16 << shift;
            assert_eq!(avail_offset(size) % 2, 0);
            assert_eq!(used_offset(size) % 4, 0);
            assert!(used_offset(size) >= avail_offset(size) + 6 + 2 * usize::from(size));
        }
    }
}
