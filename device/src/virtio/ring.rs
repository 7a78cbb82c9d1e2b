//! The device's side of a split ring: chains out, used elements in, and when to interrupt.
//!
//! Descriptors and the driver's doorbell are virtio-queue's. What it does differently from what a laboratory
//! needs is done here: it turns a refused access, a loop or a bad table into a shorter chain, so the descriptors are
//! walked here and every such thing is a [`RingError`]; it ignores NO_INTERRUPT; and it shows the driver each used
//! element by itself, where a batch here shows many at once.
//!
//! Neighbours: [`BusMaster`] below, with its fault latch; [`crate::blk`] above. Mirrors virtio 1.2 sections 2.7.4
//! to 2.7.13. Left out: packed rings, in-order use.

use std::mem::size_of;
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory};

use super::queue::QueueConfig;
use super::{EVENT_IDX, INDIRECT_DESC};
use crate::pci::{BusMaster, Fault};
use crate::tap::Tap;

/// One contiguous piece of a request's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its address on the device's bus.
    pub addr: u64,
    /// Bytes, never zero.
    pub len: u32,
    /// Whether the device may write it, and only that.
    pub write: bool,
}

/// A request as it lies in the ring: all readable segments, then all writable ones.
#[derive(Debug, Default)]
pub struct Chain {
    /// The descriptor that stands for the request.
    pub head: u16,
    /// The descriptor of the ring behind the head, if the chain has one: it can head no other chain.
    pub second: Option<u16>,
    /// Its segments; never empty, no longer than the queue, less than 4 GiB together.
    pub descs: Vec<Segment>,
}

/// A ring the device can't go on with.
#[derive(Debug, Error)]
pub enum RingError {
    /// An access to the ring or its tables was refused.
    #[error("the ring can't be reached: {0:?}")]
    Fault(Fault),
    /// The available index ran ahead of what the ring can hold.
    #[error("available index {index} with {next} next: more than {size} entries")]
    AvailIndex {
        /// The driver's index.
        index: u16,
        /// Where the device is.
        next: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A descriptor that its table does not have.
    #[error("descriptor {index} of a table of {entries}")]
    Index {
        /// The descriptor.
        index: u16,
        /// Entries of the table.
        entries: u16,
    },
    /// More descriptors than the queue has entries: a loop, or a chain too long.
    #[error("the chain at {head} loops or has more than {size} descriptors")]
    TooLong {
        /// The chain.
        head: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A descriptor of no bytes.
    #[error("descriptor {index} of the chain at {head} is empty")]
    Empty {
        /// The chain.
        head: u16,
        /// The descriptor.
        index: u16,
    },
    /// More than 4 GiB in one chain.
    #[error("the chain at {head} is longer than 4 GiB")]
    TooManyBytes {
        /// The chain.
        head: u16,
    },
    /// A readable descriptor behind a writable one.
    #[error("descriptor {index} of the chain at {head} is readable behind a writable one")]
    ReadableAfterWritable {
        /// The chain.
        head: u16,
        /// The descriptor.
        index: u16,
    },
    /// An indirect table that was not negotiated, is nested, or has a descriptor behind it.
    #[error("descriptor {index} of the chain at {head} must not be indirect (flags {flags:#x})")]
    Indirect {
        /// The chain.
        head: u16,
        /// The descriptor.
        index: u16,
        /// Its flags.
        flags: u16,
    },
    /// An indirect table that is empty, not a multiple of 16 bytes or longer than 65535 descriptors.
    #[error("the chain at {head} has an indirect table of {len} bytes")]
    TableLength {
        /// The chain.
        head: u16,
        /// Bytes of the table.
        len: u32,
    },
    /// A request without the byte that its status goes to.
    #[error("the chain at {head} has no room for a status")]
    NoStatus {
        /// The chain.
        head: u16,
    },
    /// virtio-queue could not do it, though no access was refused.
    #[error("the ring can't be used")]
    Queue(#[source] QueueError),
}

/// One split ring, seen from the device.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    config: QueueConfig,
    spare: Vec<Vec<Segment>>,
    /// Where the next used element goes.
    used: u16,
    /// Elements written and not yet shown to the driver.
    staged: u16,
    /// Elements shown to the driver since it was last asked whether it wants to know.
    added: u16,
    /// An element was published that the driver is told of whatever it wishes.
    forged: bool,
    /// The driver was asked not to ring.
    silent: bool,
}

impl Ring {
    /// A ring at the place the driver chose, with both indices at the configuration's start.
    ///
    /// # Errors
    /// [`RingError::Queue`] if size or alignment are impossible.
    pub fn new(config: QueueConfig) -> Result<Self, RingError> {
        let build = || {
            let mut queue = Queue::new(config.size)?;
            queue.try_set_desc_table_address(GuestAddress(config.desc))?;
            queue.try_set_avail_ring_address(GuestAddress(config.avail))?;
            queue.try_set_used_ring_address(GuestAddress(config.used))?;
            queue.set_event_idx(config.features & EVENT_IDX != 0);
            queue.set_next_avail(config.start);
            queue.set_ready(true);
            Ok(queue)
        };
        let (queue, spare, used) = (build().map_err(RingError::Queue)?, Vec::new(), config.start);
        Ok(Self { queue, config, spare, used, staged: 0, added: 0, forged: false, silent: false })
    }

    /// Takes the next request off the ring; `None` if the driver has made none available.
    ///
    /// # Errors
    /// [`RingError`]: the ring is no good from then on. The chain is gone from the ring either way.
    pub fn pop<M: GuestMemory, T: Tap>(&mut self, mem: &BusMaster<M, T>) -> Result<Option<Chain>, RingError> {
        if self.waiting(mem)? == 0 { Ok(None) } else { self.take(mem).map(Some) }
    }

    /// Where the next request will be taken: what a ring that is stopped here must be started at.
    pub fn next(&self) -> u16 {
        self.queue.next_avail()
    }

    /// How many requests the driver has made available and nobody has taken.
    ///
    /// # Errors
    /// [`RingError`] if the index can't be read or says more than the ring holds.
    pub fn waiting<M: GuestMemory, T: Tap>(&self, mem: &BusMaster<M, T>) -> Result<u16, RingError> {
        let at = self.config.avail.wrapping_add(2);
        let index = mem.load16(at, Ordering::Acquire).map_err(|error| refused(mem, error))?;
        mem.moved(at, 2, false);
        let (next, size) = (self.queue.next_avail(), self.config.size);
        match index.wrapping_sub(next) {
            waiting if waiting > size => Err(RingError::AvailIndex { index, next, size }),
            waiting => Ok(waiting),
        }
    }

    /// Whether the driver has made requests available: for looking again and again, so the observer isn't told.
    ///
    /// # Errors
    /// [`RingError`] if the index can't be read.
    pub(crate) fn glance<M: GuestMemory, T: Tap>(&self, mem: &BusMaster<M, T>) -> Result<bool, RingError> {
        let at = self.config.avail.wrapping_add(2);
        let index = mem.load16(at, Ordering::Relaxed).map_err(|error| refused(mem, error))?;
        Ok(index != self.queue.next_avail())
    }

    /// Takes the next request off the ring, which [`waiting`](Self::waiting) has said to be there.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    pub(crate) fn take<M: GuestMemory, T: Tap>(&mut self, mem: &BusMaster<M, T>) -> Result<Chain, RingError> {
        let (next, size) = (self.queue.next_avail(), self.config.size);
        let slot = self.config.avail.wrapping_add(4 + 2 * u64::from(next % size));
        let head = mem.load16(slot, Ordering::Acquire).map_err(|error| refused(mem, error))?;
        mem.moved(slot, 2, false);
        self.queue.set_next_avail(next.wrapping_add(1));
        let mut chain = Chain { head, second: None, descs: self.spare.pop().unwrap_or_default() };
        chain.descs.clear();
        mem.tap().took(self.config.index, chain.head);
        self.walk(mem, &mut chain)?;
        Ok(chain)
    }

    /// Gives a chain's storage back for the next one.
    pub fn recycle(&mut self, chain: Chain) {
        self.spare.push(chain.descs);
    }

    /// Hands the chain at `head` back to the driver with `len` bytes written.
    ///
    /// # Errors
    /// [`RingError`] if the used ring can't be written; whether the driver sees the element is then unknown.
    pub fn publish<M: GuestMemory, T: Tap>(
        &mut self,
        mem: &BusMaster<M, T>,
        head: u16,
        len: u32,
    ) -> Result<(), RingError> {
        self.stage(mem, head.into(), len)?;
        self.commit(mem)
    }

    /// Writes the used element of the chain `id` heads, `len` bytes written, behind the index that the driver sees.
    ///
    /// # Errors
    /// [`RingError`] if the used ring can't be written.
    pub(crate) fn stage<M: GuestMemory, T: Tap>(
        &mut self,
        mem: &BusMaster<M, T>,
        id: u32,
        len: u32,
    ) -> Result<(), RingError> {
        let slot = self.config.used.wrapping_add(4 + 8 * u64::from(self.used % self.config.size));
        let element = u64::from(len) << 32 | u64::from(id);
        mem.put(slot, &element.to_le_bytes()).map_err(|error| refused(mem, error))?;
        mem.moved(slot, 8, true);
        mem.tap().gave(self.config.index, id, len);
        self.used = self.used.wrapping_add(1);
        self.staged = self.staged.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver every element written since the last call.
    ///
    /// # Errors
    /// [`RingError`] if the used index can't be written; whether the driver sees them is then unknown.
    pub(crate) fn commit<M: GuestMemory, T: Tap>(&mut self, mem: &BusMaster<M, T>) -> Result<(), RingError> {
        self.added = self.added.wrapping_add(std::mem::take(&mut self.staged));
        let at = self.config.used.wrapping_add(2);
        mem.store16(at, self.used, Ordering::Release).map_err(|error| refused(mem, error))?;
        mem.moved(at, 2, true);
        Ok(())
    }

    /// [`commit`](Self::commit)s if there is anything to show.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub(crate) fn commit_staged<M: GuestMemory, T: Tap>(&mut self, mem: &BusMaster<M, T>) -> Result<(), RingError> {
        if self.staged > 0 { self.commit(mem) } else { Ok(()) }
    }

    /// An id that heads nothing in flight, whatever else the driver has made available: a later descriptor of `chain`,
    /// or one beyond the ring if it has no other.
    pub(crate) fn stranger(&self, chain: &Chain) -> u32 {
        chain.second.map_or(u32::from(self.config.size) + u32::from(chain.head), u32::from)
    }

    /// Publishes an element with any id at all, as [`publish`](Self::publish) does one of a chain's head. The driver
    /// is told of it whether it asked or not.
    ///
    /// # Errors
    /// [`RingError`] if the used ring can't be written.
    pub(crate) fn forge<M: GuestMemory, T: Tap>(
        &mut self,
        mem: &BusMaster<M, T>,
        id: u32,
        len: u32,
    ) -> Result<(), RingError> {
        self.stage(mem, id, len)?;
        self.commit(mem)?;
        self.forged = true;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was published since this was last asked.
    ///
    /// # Errors
    /// [`RingError`] if the driver's wish can't be read.
    pub fn needs_interrupt<M: GuestMemory, T: Tap>(&mut self, mem: &BusMaster<M, T>) -> Result<bool, RingError> {
        // The used index must be out before the driver's wish is read, or a driver that changes its wish and then
        // looks at the index could miss both.
        fence(Ordering::SeqCst);
        let event_idx = self.queue.event_idx_enabled();
        let within = if event_idx { 4 + 2 * u64::from(self.config.size) } else { 0 };
        let at = self.config.avail.wrapping_add(within);
        let wish = mem.load16(at, Ordering::Relaxed).map_err(|error| refused(mem, error))?;
        mem.moved(at, 2, false);
        let added = std::mem::take(&mut self.added);
        if event_idx {
            // Passed: the index the driver named is among those added since it was last asked.
            let passed = self.used.wrapping_sub(wish).wrapping_sub(1) < added;
            return Ok(std::mem::take(&mut self.forged) || passed);
        }
        Ok(u32::from(wish) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to ring: the device looks by itself until it is [`arm`](Self::arm)ed. With EVENT_IDX there
    /// is nothing to ask for, the driver rings once for what it was asked.
    ///
    /// # Errors
    /// [`RingError`] if the wish can't be written.
    pub(crate) fn disarm<M: GuestMemory, T: Tap>(&mut self, mem: &BusMaster<M, T>) -> Result<(), RingError> {
        if self.silent || self.queue.event_idx_enabled() {
            return Ok(());
        }
        self.silent = true;
        self.queue.disable_notification(mem).map_err(|error| broken(mem, error))
    }

    /// Asks the driver to ring for the next request. True if one came before it could know: then look again.
    ///
    /// Without EVENT_IDX there is nothing to ask for, unless doorbells were turned off before.
    ///
    /// # Errors
    /// [`RingError`] if the wish can't be written.
    pub fn arm<M: GuestMemory, T: Tap>(&mut self, mem: &BusMaster<M, T>) -> Result<bool, RingError> {
        let event_idx = self.queue.event_idx_enabled();
        if !std::mem::take(&mut self.silent) && !event_idx {
            return Ok(false);
        }
        let more = self.queue.enable_notification(mem).map_err(|error| broken(mem, error))?;
        let wish = if event_idx { 4 + 8 * u64::from(self.config.size) } else { 0 };
        mem.moved(self.config.used.wrapping_add(wish), 2, true);
        mem.moved(self.config.avail.wrapping_add(2), 2, false);
        Ok(more)
    }

    fn descriptor<M: GuestMemory, T: Tap>(
        mem: &BusMaster<M, T>,
        table: u64,
        index: u16,
    ) -> Result<Descriptor, RingError> {
        // A table at the end of the address space wraps, and then faults as any other bad address does.
        let at = table.wrapping_add(16 * u64::from(index));
        let mut bytes = [0; size_of::<Descriptor>()];
        mem.fetch(at, &mut bytes).map_err(|error| refused(mem, error))?;
        mem.moved(at, bytes.len(), false);
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        let (addr, len) = (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u32::from_le_bytes([i, j, k, l]));
        Ok(Descriptor::new(addr, len, u16::from_le_bytes([m, n]), u16::from_le_bytes([o, p])))
    }

    /// Collects the segments of `chain`. Every turn adds one or enters the one indirect table: it ends.
    fn walk<M: GuestMemory, T: Tap>(&self, mem: &BusMaster<M, T>, chain: &mut Chain) -> Result<(), RingError> {
        let (head, size) = (chain.head, self.config.size);
        let (mut table, mut entries, mut index) = (self.config.desc, size, head);
        let (mut may_be_indirect, mut inside) = (self.config.features & INDIRECT_DESC != 0, false);
        let mut total = 0u32;
        loop {
            if index >= entries {
                return Err(RingError::Index { index, entries });
            }
            let desc = Self::descriptor(mem, table, index)?;
            if desc.refers_to_indirect_table() {
                if !may_be_indirect || desc.has_next() {
                    return Err(RingError::Indirect { head, index, flags: desc.flags() });
                }
                (may_be_indirect, inside) = (false, true);
                (table, entries) = (desc.addr().0, table_entries(head, desc.len())?);
                index = 0;
                continue;
            }
            let segment = Segment { addr: desc.addr().0, len: desc.len(), write: desc.is_write_only() };
            total = check(chain, segment, index, total, size)?;
            chain.descs.push(segment);
            if !desc.has_next() {
                return Ok(());
            }
            index = desc.next();
            if !inside {
                chain.second.get_or_insert(index);
            }
        }
    }
}

/// Checks `segment`, descriptor `index`, against the chain so far; returns the chain's bytes with it.
fn check(chain: &Chain, segment: Segment, index: u16, total: u32, size: u16) -> Result<u32, RingError> {
    let head = chain.head;
    if chain.descs.len() >= usize::from(size) {
        return Err(RingError::TooLong { head, size });
    }
    if segment.len == 0 {
        return Err(RingError::Empty { head, index });
    }
    if !segment.write && chain.descs.last().is_some_and(|last| last.write) {
        return Err(RingError::ReadableAfterWritable { head, index });
    }
    total.checked_add(segment.len).ok_or(RingError::TooManyBytes { head })
}

fn table_entries(head: u16, len: u32) -> Result<u16, RingError> {
    if len == 0 || !len.is_multiple_of(16) {
        return Err(RingError::TableLength { head, len });
    }
    u16::try_from(len / 16).map_err(|_| RingError::TableLength { head, len })
}

/// The error of a failed access: the latched fault says more than virtio-queue does.
fn broken<M: GuestMemory, T: Tap>(mem: &BusMaster<M, T>, error: QueueError) -> RingError {
    mem.take_fault().map_or(RingError::Queue(error), RingError::Fault)
}

fn refused<M: GuestMemory, T: Tap>(mem: &BusMaster<M, T>, error: vm_memory::GuestMemoryError) -> RingError {
    broken(mem, QueueError::GuestMemory(error))
}

#[cfg(test)]
mod tests;
