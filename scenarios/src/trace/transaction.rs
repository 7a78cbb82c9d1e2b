//! The life of one DMA transaction: allocation, map, the chains that led to it, every device access, unmap, free.
//!
//! Neighbours: `resolve` puts them together, `request`, `touched`; `tx` shows them. Left out: each single access.

use lowzone_guest_mem::trace::Shape;

use super::event::Event;
use super::request::{Mark, Request};
use super::touched::Touched;

pub use super::resolve::Transactions;

/// Requests that a transaction keeps: the last ones; a ring or a pool may be in every chain of a run.
const REQUESTS: usize = 32;

/// One DMA mapping from its map call to its unmap call, and what the device did with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Its number in the run.
    pub id: u64,
    /// The device's number.
    pub dev: u16,
    /// Where the device sees the first byte.
    pub dma: u64,
    /// Where that byte lies for the device: in the bounce slot, if there is one.
    pub phys: u64,
    /// Where the byte lies in the driver's buffer.
    pub buffer: u64,
    /// Bytes mapped.
    pub len: u64,
    /// Direction, bounced or not, coherent or not, zones.
    pub shape: Option<Shape>,
    /// Who mapped it, as an owner of the trace's tables; 0 if not known.
    pub mapped_by: u64,
    /// Who allocated the buffer.
    pub allocated_by: u64,
    /// When the buffer was allocated, if that is in the trace.
    pub allocated: Option<Mark>,
    /// When it was mapped; `None` if that is not in the trace.
    pub mapped: Option<u64>,
    /// When the device first reached it.
    pub first: Option<u64>,
    /// When the device last reached it.
    pub last: Option<u64>,
    /// When it was unmapped, and by whom (0: by a destructor).
    pub unmapped: Option<(u64, u64)>,
    /// When the buffer was freed, and by whom (0: by a destructor), if that came soon enough.
    pub freed: Option<(Mark, u64)>,
    /// Reads granted to the device.
    pub reads: u64,
    /// Bytes of these reads.
    pub read_bytes: u64,
    /// Writes granted to the device.
    pub writes: u64,
    /// Bytes of these writes.
    pub write_bytes: u64,
    /// Times that it was passed to the CPU or back.
    pub syncs: u64,
    /// Chains that had it in a descriptor: all of them.
    pub chains: u64,
    /// The last of these.
    pub requests: Vec<Request>,
    /// Findings about it: when, and the name.
    pub wrong: Vec<(u64, String)>,
    pub(super) touched: Touched,
}

impl Transaction {
    /// Different bytes that the device was granted, reads and writes together.
    pub fn touched(&self) -> u64 {
        self.touched.bytes()
    }

    /// Whether it was mapped and never unmapped, as far as the trace goes.
    pub fn is_live(&self) -> bool {
        self.mapped.is_some() && self.unmapped.is_none()
    }

    /// As what it covers an address: `dma`, `phys`, `buffer`, in this order.
    pub fn covers(&self, addr: u64) -> Option<&'static str> {
        let within = |start: u64| addr.checked_sub(start).is_some_and(|offset| offset < self.len);
        let places = [("dma", self.dma), ("phys", self.phys), ("buffer", self.buffer)];
        places.into_iter().filter(|_| self.mapped.is_some()).find(|&(_, start)| within(start)).map(|(what, _)| what)
    }

    pub(super) fn request(&mut self, request: Request) {
        self.chains += 1;
        if self.requests.len() == REQUESTS {
            self.requests.remove(0);
        }
        self.requests.push(request);
    }

    pub(super) fn access(&mut self, event: &Event, write: bool) {
        let len = u64::from(event.raw.len);
        let (calls, bytes) =
            if write { (&mut self.writes, &mut self.write_bytes) } else { (&mut self.reads, &mut self.read_bytes) };
        *calls = calls.saturating_add(1);
        *bytes = bytes.saturating_add(len);
        self.first.get_or_insert(event.raw.ts);
        self.last = Some(event.raw.ts);
        let from = event.raw.addr.saturating_sub(self.dma);
        self.touched.add(from, from.saturating_add(len));
    }
}
