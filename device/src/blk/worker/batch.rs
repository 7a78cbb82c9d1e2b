//! Many requests in one call, for worlds where nothing comes between two phases.
//!
//! Each request is done from its header to its used element before the next is taken, so the order of completion is
//! that of the ring and a flush covers all that came before it. The driver sees the elements of a batch together and
//! is told of them once. The doorbell is the caller's: it looks at the ring by itself
//! ([`BlkWorker::waiting`]) and asks the driver to ring before it sleeps ([`BlkWorker::arm`]).
//!
//! Neighbours: [`super`], which does one phase a call. Left out: requests that take turns.

use vm_memory::GuestMemory;

use super::super::request::{Request, Work};
use super::BlkWorker;
use crate::tap::Tap;
use crate::virtio::{Ring, RingError};

impl<M: GuestMemory, T: Tap> BlkWorker<M, T> {
    /// Does up to `limit` requests and tells the driver if it wants to know; `now` is the world's clock in
    /// nanoseconds. Returns how many were taken off the ring: fewer than `limit` if no more were there.
    ///
    /// A ring that can't be gone on with is stopped, counted and reported as [`service`](crate::Worker::service)
    /// does it.
    pub fn batch(&mut self, limit: u16, now: u64) -> u16 {
        self.let_go(now);
        self.on_ring(0, |worker, ring| worker.do_batch(ring, limit, now))
    }

    /// Whether the driver has made requests available: a look at the ring of which the observer isn't told.
    pub fn waiting(&mut self) -> bool {
        self.on_ring(false, |worker, ring| ring.glance(&worker.mem))
    }

    /// Asks the driver not to ring while the caller looks by itself.
    pub fn disarm(&mut self) {
        self.on_ring((), |worker, ring| ring.disarm(&worker.mem));
    }

    /// Asks the driver to ring for the next request. True if one came before it could know: then look again.
    pub fn arm(&mut self) -> bool {
        self.on_ring(false, |worker, ring| ring.arm(&worker.mem))
    }

    /// Where the ring must be started to go on here; `None` if it is not active or broke.
    pub fn next(&self) -> Option<u16> {
        self.ring.as_ref().map(Ring::next).or_else(|| self.shared.config().map(|config| config.start))
    }

    /// Whether the ring broke: nothing is done until a reset.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    fn on_ring<R>(&mut self, none: R, work: impl FnOnce(&mut Self, &mut Ring) -> Result<R, RingError>) -> R {
        if self.stopped {
            return none;
        }
        let Some(ring) = self.take_ring() else { return none };
        let mut ring = match ring {
            Ok(ring) => ring,
            Err(error) => {
                self.fail(error);
                return none;
            }
        };
        match work(self, &mut ring) {
            Ok(result) => {
                // A mishap may have stopped the queue without an error.
                self.ring = Some(ring).filter(|_| !self.stopped);
                result
            }
            Err(error) => {
                self.fail(error);
                none
            }
        }
    }

    fn do_batch(&mut self, ring: &mut Ring, limit: u16, now: u64) -> Result<u16, RingError> {
        while let Some(request) = self.landed.pop_front() {
            self.finish(ring, request, now)?;
        }
        let due = ring.waiting(&self.mem)?.min(limit);
        let worked = (0..due).try_for_each(|_| self.whole(ring, now));
        self.common.counters.saw_in_flight(due.into());
        self.common.counters.settle(&mut self.tally);
        // What was done before a broken chain was met is the driver's all the same.
        ring.commit_staged(&self.mem)?;
        if std::mem::take(&mut self.owing) && ring.needs_interrupt(&self.mem)? {
            self.common.host.used_buffers(self.queue);
        }
        worked.map(|()| due)
    }

    /// One request from beginning to end.
    fn whole(&mut self, ring: &mut Ring, now: u64) -> Result<(), RingError> {
        if self.stopped {
            return Ok(());
        }
        let chain = ring.take(&self.mem)?;
        let mut request = Request::parse(&self.mem, chain, self.common.disk, self.popped)?;
        self.note_fault();
        self.popped += 1;
        while request.work != Work::Done {
            self.step(&mut request);
        }
        self.draw(&mut request, None);
        if request.mishap.is_some() {
            ring.commit_staged(&self.mem)?;
            return self.finish(ring, request, now);
        }
        let len = self.conclude(&request);
        ring.stage(&self.mem, request.chain.head.into(), len)?;
        self.release(ring, request);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
