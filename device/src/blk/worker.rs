//! The worker of one block queue: a state machine that does one phase a call.
//!
//! The phases: pop one chain and read its header; move one piece of one request; write status and used element of
//! one; interrupt. Requests in flight take turns, so a short one overtakes a long one. Between phases it holds
//! descriptors and never slices: memory may be unmapped, the device reset, and nothing is touched that was not
//! asked for again. Where nothing may come between phases, `batch` below this does many requests a call; what goes wrong
//! on purpose is in `amiss`. Neighbours: [`super::request`], [`crate::virtio::ring`], [`crate::store`].

use std::collections::VecDeque;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::ranges::Range;
use super::request::{Disk, Piece, Request, Work};
use crate::counters::{Counters, Tally};
use crate::misbehave::Script;
use crate::pci::BusMaster;
use crate::store::Store;
use crate::tap::Tap;
use crate::virtio::{QueueHost, QueueShared, Ring, RingError};
use crate::worker::{Next, Worker};

mod amiss;
mod batch;

/// What all workers of one device have in common.
#[derive(Clone)]
pub(super) struct Common {
    pub host: Arc<dyn QueueHost>,
    pub store: Arc<Store>,
    pub counters: Arc<Counters>,
    pub script: Arc<Script>,
    pub disk: Disk,
    pub id: [u8; 20],
    /// Requests a queue works on at once.
    pub depth: usize,
    /// The most a queue can have been given.
    pub entries: usize,
}

/// The worker of one queue of a block device.
pub struct BlkWorker<M: GuestMemory, T: Tap = ()> {
    common: Common,
    queue: u16,
    shared: Arc<QueueShared>,
    mem: BusMaster<M, T>,
    ring: Option<Ring>,
    /// Being worked on, the next turn first.
    flying: VecDeque<Request>,
    /// Waiting for status and used element.
    landed: VecDeque<Request>,
    /// To be finished late on purpose, each with its time; the earliest first.
    held: VecDeque<(u64, Request)>,
    popped: u64,
    /// The ring was not found empty since the doorbell last rang.
    draining: bool,
    /// Something was published and the driver not yet asked whether it wants to know.
    owing: bool,
    /// The ring is broken: nothing until a reset.
    stopped: bool,
    /// Done in this call.
    tally: Tally,
}

impl<M: GuestMemory, T: Tap> std::fmt::Debug for BlkWorker<M, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlkWorker")
            .field("queue", &self.queue)
            .field("flying", &self.flying.len())
            .field("landed", &self.landed.len())
            .field("held", &self.held.len())
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

impl<M: GuestMemory, T: Tap> BlkWorker<M, T> {
    pub(super) fn new(common: Common, queue: u16, shared: Arc<QueueShared>, mem: BusMaster<M, T>) -> Self {
        let (flying, landed) = (VecDeque::with_capacity(common.depth), VecDeque::with_capacity(common.depth));
        let (ring, held) = (None, VecDeque::new());
        let (popped, draining, owing, stopped, tally) = (0, false, false, false, Tally::default());
        Self { common, queue, shared, mem, ring, flying, landed, held, popped, draining, owing, stopped, tally }
    }

    /// Whether there may be more on the ring, and the driver could rightly have put it there.
    fn may_pop(&self) -> bool {
        self.draining && self.held.len() < self.common.entries
    }

    fn unfinished(&self) -> bool {
        !self.stopped && (self.may_pop() || self.owing || !self.flying.is_empty() || !self.landed.is_empty())
    }

    /// The ring, to be put back after use; `None` while the queue is not active.
    fn take_ring(&mut self) -> Option<Result<Ring, RingError>> {
        self.ring.take().map(Ok).or_else(|| self.shared.config().map(Ring::new))
    }

    fn drop_all(&mut self) {
        self.ring = None;
        self.flying.clear();
        self.landed.clear();
        self.held.clear();
        (self.draining, self.owing, self.stopped) = (false, false, false);
        self.mem.take_fault();
    }

    fn acknowledge_reset(&mut self) {
        self.drop_all();
        self.shared.finish_reset();
        self.common.host.reset_done(self.queue);
    }

    /// One phase of work on an active ring. Finished requests go first, so that the driver gets its memory back.
    fn phase(&mut self, mut ring: Ring, now: u64) -> Result<Ring, RingError> {
        if let Some(request) = self.landed.pop_front() {
            self.finish(&mut ring, request, now)?;
        } else if self.owing {
            self.owing = false;
            if ring.needs_interrupt(&self.mem)? {
                self.common.host.used_buffers(self.queue);
            }
        } else if self.may_pop() && self.flying.len() < self.common.depth {
            self.pop(&mut ring)?;
        } else {
            self.move_some();
        }
        Ok(ring)
    }

    fn pop(&mut self, ring: &mut Ring) -> Result<(), RingError> {
        let Some(chain) = ring.pop(&self.mem)? else {
            self.draining = ring.arm(&self.mem)?;
            return Ok(());
        };
        let request = Request::parse(&self.mem, chain, self.common.disk, self.popped)?;
        self.note_fault();
        self.popped += 1;
        self.sort_in(request);
        self.common.counters.saw_in_flight(self.flying.len() + self.landed.len());
        Ok(())
    }

    fn sort_in(&mut self, mut request: Request) {
        if request.work == Work::Done {
            self.draw(&mut request, None);
            self.landed.push_back(request);
        } else {
            self.flying.push_back(request);
        }
    }

    /// Gives one request its turn.
    fn move_some(&mut self) {
        for _ in 0..self.flying.len() {
            let Some(mut request) = self.flying.pop_front() else { return };
            // A flush covers the writes popped before it, so it gives its turn away until they are done.
            let number = request.number;
            let early = |other: &Request| other.changes_the_store() && other.number < number;
            if request.work == Work::Flush && self.flying.iter().any(early) {
                self.flying.push_back(request);
                continue;
            }
            self.step(&mut request);
            self.sort_in(request);
            return;
        }
    }

    fn step(&mut self, request: &mut Request) {
        match request.work {
            Work::List(kind) => {
                request.list(&self.mem, kind, self.common.disk.capacity);
                self.note_fault();
                return;
            }
            Work::Clear => return self.clear(request),
            _ => {}
        }
        let Some(piece) = request.piece() else {
            let flushed = request.work == Work::Flush && self.common.store.flush().is_ok();
            if flushed {
                Counters::add(&self.common.counters.flushes, 1);
                request.work = Work::Done;
            } else {
                request.fail();
            }
            return;
        };
        if request.ends_with(piece) && self.draw(request, Some(piece)) {
            return;
        }
        let moved = match request.work {
            Work::Id => self.name(piece),
            work => self.transfer(piece, work == Work::Read),
        };
        let whole = moved == piece.len;
        if request.work != Work::Write {
            request.written += moved;
        }
        if self.note_fault() || !whole {
            request.fail();
        } else {
            request.advance(piece.len);
        }
    }

    /// Clears the next range of `request`.
    fn clear(&mut self, request: &mut Request) {
        if request.ranges.len() == 1 && self.draw(request, None) {
            return;
        }
        let Some(Range { at, len, unmap }) = request.ranges.pop() else { return request.fail() };
        if self.common.store.clear(at, len, unmap).is_err() {
            request.fail();
        } else if request.ranges.is_empty() {
            request.work = Work::Done;
        }
    }

    /// Moves `piece` between store and memory; returns how much of it.
    fn transfer(&mut self, piece: Piece, into_memory: bool) -> u32 {
        let access = if into_memory { Permissions::Write } else { Permissions::Read };
        let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
        let mut done = 0;
        if let Ok(slices) = self.mem.get_slices(GuestAddress(piece.addr), len, access) {
            for slice in slices {
                let Ok(slice) = slice else { break };
                let at = piece.at + u64::from(done);
                let moved = if into_memory {
                    self.common.store.read_at(at, &slice)
                } else {
                    self.common.store.write_at(at, &slice)
                };
                if moved.is_err() {
                    break;
                }
                done += u32::try_from(slice.len()).unwrap_or(0);
            }
        }
        if done > 0 {
            self.mem.moved(piece.addr, usize::try_from(done).unwrap_or(0), into_memory);
            let counter = if into_memory { &mut self.tally.bytes_read } else { &mut self.tally.bytes_written };
            *counter += u64::from(done);
        }
        done
    }

    /// Writes the part of the device's name that `piece` holds; returns how much of it.
    fn name(&self, piece: Piece) -> u32 {
        let part = usize::try_from(piece.at)
            .ok()
            .zip(usize::try_from(piece.len).ok())
            .and_then(|(start, len)| self.common.id.get(start..start + len));
        let Some(part) = part else { return 0 };
        if self.mem.put(piece.addr, part).is_err() {
            return 0;
        }
        self.mem.moved(piece.addr, part.len(), true);
        piece.len
    }

    fn publish(&mut self, ring: &mut Ring, request: Request) -> Result<(), RingError> {
        let len = self.conclude(&request);
        ring.publish(&self.mem, request.chain.head, len)?;
        self.release(ring, request);
        Ok(())
    }

    fn release(&mut self, ring: &mut Ring, request: Request) {
        ring.recycle(request.chain);
        self.owing = true;
    }

    /// Writes the status of `request` and counts it; returns what to tell the driver was written.
    fn conclude(&mut self, request: &Request) -> u32 {
        let len = request.write_status(&self.mem);
        // Without a status the driver still gets its request back, and sees that nobody wrote one.
        let lost = self.note_fault();
        self.tally.requests += 1;
        self.tally.failed += u64::from(lost || request.status != super::request::OK);
        len
    }

    /// Takes a fault out of the latch and counts it.
    fn note_fault(&self) -> bool {
        let fault = self.mem.take_fault();
        if let Some(fault) = fault {
            self.common.counters.count_fault(fault);
        }
        fault.is_some()
    }

    fn fail(&mut self, error: RingError) {
        if self.mem.is_gone() {
            // Pulled out in the middle of a phase: nobody to tell, and no fault of the ring's.
            self.drop_all();
            return;
        }
        self.common.counters.keep_ring_error(error);
        self.stop();
    }

    /// Drops everything and asks for a reset.
    fn stop(&mut self) {
        self.drop_all();
        self.stopped = true;
        self.common.host.needs_reset();
    }

    /// What to wait for when nothing can be done now.
    fn rest(&self) -> Next {
        self.held.front().map_or(Next::Idle, |&(due, _)| Next::At(due))
    }
}

impl<M: GuestMemory + Send, T: Tap> Worker for BlkWorker<M, T> {
    fn ready(&self) -> bool {
        self.shared.resetting() || (!self.stopped && self.shared.attention()) || self.unfinished()
    }

    fn service(&mut self, now: u64) -> Next {
        if self.shared.resetting() {
            self.acknowledge_reset();
            return Next::Idle;
        }
        if self.stopped {
            return Next::Idle;
        }
        // Taken before the ring is looked at: a doorbell that rings later is seen later.
        self.draining |= self.shared.take_kick();
        self.let_go(now);
        if !self.unfinished() {
            return self.rest();
        }
        let Some(ring) = self.take_ring() else {
            self.draining = false;
            return Next::Idle;
        };
        match ring.and_then(|ring| self.phase(ring, now)) {
            Ok(ring) => self.ring = Some(ring),
            Err(error) => self.fail(error),
        }
        self.common.counters.settle(&mut self.tally);
        if self.unfinished() { Next::Again } else { self.rest() }
    }
}
