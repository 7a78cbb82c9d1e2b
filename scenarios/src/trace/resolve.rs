//! [`Transactions`]: a trace's events in, each transaction's life out.
//!
//! It is fed event by event and gives each [`Transaction`] once nothing can belong to it any more: some time after its
//! end, since a device may reach for memory after its unmap, and a buffer is freed later still. The ledger remembers 256
//! dead mappings a device, this many more of all devices together. So memory is bounded by what is allocated, mapped
//! and in flight at once, not by the file. An access that names no transaction, as those of a peer's device, belongs to
//! the mapping that was live at its address. Neighbours: `event`, `request`, `buffers`, `transaction`; `tx`.

use std::collections::{BTreeMap, VecDeque};

use lowzone_guest_mem::trace::Kind;

use super::buffers::Buffers;
use super::event::{Event, Link};
use super::names::Names;
use super::request::{Chains, Mark, QueueId, Request, Turn};
use super::transaction::Transaction;

/// Ended transactions that late events may still belong to.
pub const LATE: usize = 8192;
/// Mappings of one device that may lie over another at one address and are looked at.
const OVERLAPS: usize = 16;

/// Mappings by device, address and number: their length.
type Places = BTreeMap<(u16, u64, u64), u64>;

/// The mapping of a device that has an address: the one that begins last, and the last made of these.
fn at(places: &Places, dev: u16, addr: u64) -> Option<u64> {
    let before = places.range((dev, 0, 0)..=(dev, addr, u64::MAX)).rev().take(OVERLAPS);
    before.map(|(&(_, start, id), &len)| (addr - start < len, id)).find(|&(has, _)| has).map(|(_, id)| id)
}

/// Transactions, live and lately ended.
#[derive(Debug, Default)]
pub struct Transactions {
    known: BTreeMap<u64, Transaction>,
    ended: VecDeque<u64>,
    /// Live mappings by device, address and number.
    mapped: Places,
    /// Those that ended and are still remembered.
    dead: Places,
    buffers: Buffers,
    chains: Chains,
    made: u64,
}

impl Transactions {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many were made so far.
    pub fn made(&self) -> u64 {
        self.made
    }

    /// Takes the next event; the transaction that it is an event of, or 0.
    pub fn take(&mut self, event: &Event, names: &Names) -> u64 {
        let Some(kind) = event.kind() else { return 0 };
        event.links().for_each(|link| self.link(event, link));
        match event.transaction() {
            0 => self.take_other(kind, event),
            id => {
                self.take_own(kind, id, event, names);
                id
            }
        }
    }

    fn take_own(&mut self, kind: Kind, id: u64, event: &Event, names: &Names) {
        let raw = &event.raw;
        match kind {
            Kind::DmaMapPage | Kind::DmaMapSg | Kind::DmaMapResource | Kind::DmaAlloc => self.begin(id, event),
            Kind::DmaUnmapPage | Kind::DmaUnmapSg | Kind::DmaUnmapResource | Kind::DmaFree => self.end(id, event),
            Kind::PortRead | Kind::PortWrite => self.of(id).access(event, kind == Kind::PortWrite),
            Kind::DmaSyncForCpu | Kind::DmaSyncForDevice | Kind::DmaSyncSgForCpu | Kind::DmaSyncSgForDevice => {
                self.of(id).syncs += 1;
            }
            Kind::Finding => {
                let name = names.finding(raw.len).map_or_else(|| "finding".to_owned(), |finding| finding.name.clone());
                self.of(id).wrong.push((raw.ts, name));
            }
            _ => {}
        }
    }

    fn take_other(&mut self, kind: Kind, event: &Event) -> u64 {
        let (raw, now) = (&event.raw, Mark::of(event));
        let queue = (raw.dev, raw.len);
        match kind {
            Kind::PortRead | Kind::PortWrite => {
                let id = at(&self.mapped, raw.dev, raw.addr).unwrap_or(0);
                if let Some(transaction) = self.known.get_mut(&id) {
                    transaction.access(event, kind == Kind::PortWrite);
                }
                return id;
            }
            // Refused by the device's own bus: whose it would have been.
            Kind::PortViolation => return at(&self.mapped, raw.dev, raw.addr).unwrap_or(0),
            Kind::VirtqAdd => self.add(queue, event),
            Kind::VirtqKick => {
                for head in self.chains.told(queue) {
                    self.turn(queue, head, Turn::Kicked, now);
                }
            }
            Kind::VirtqTake => self.turn(queue, raw.addr, Turn::Taken, now),
            Kind::VirtqGive => self.turn(queue, raw.addr, Turn::Given(raw.tag), now),
            Kind::VirtqUsed => {
                if let Some(chain) = self.chains.end(queue, raw.addr) {
                    let interrupt = self.chains.told_by(raw.dev, raw.who, &chain);
                    self.note(&chain.transactions, chain.added, Turn::Used(interrupt), now);
                }
            }
            Kind::IrqEntry => self.chains.interrupt(event),
            Kind::IrqExit => self.chains.interrupt_over(event),
            _ => {
                for id in self.buffers.take(kind, event) {
                    if let Some(transaction) = self.known.get_mut(&id) {
                        transaction.freed.get_or_insert((now, raw.tag));
                    }
                }
            }
        }
        0
    }

    fn link(&mut self, event: &Event, link: &Link) {
        let dev = event.raw.dev;
        let when = |ts| Mark { ts, event: event.number };
        match *link {
            Link::Segment { .. } | Link::Refused(_) => {}
            Link::Take { queue, head, ts } => self.turn((dev, queue), head, Turn::Taken, when(ts)),
            Link::Give { queue, head, ts, written } => self.turn((dev, queue), head, Turn::Given(written), when(ts)),
        }
    }

    fn begin(&mut self, id: u64, event: &Event) {
        let raw = &event.raw;
        let (phys, shape, mapped_by) = event.mapping.unwrap_or_default();
        let (buffer, allocated_by) = event.buffer.unwrap_or_default();
        self.made += 1;
        let fresh = Transaction {
            id,
            dev: raw.dev,
            dma: raw.addr,
            phys,
            buffer,
            len: u64::from(raw.len),
            shape,
            mapped_by,
            allocated_by,
            allocated: self.buffers.used(buffer, allocated_by, id),
            mapped: Some(raw.ts),
            ..Transaction::default()
        };
        self.mapped.insert((raw.dev, raw.addr, id), fresh.len);
        self.known.insert(id, fresh);
    }

    fn end(&mut self, id: u64, event: &Event) {
        let raw = &event.raw;
        let transaction = self.of(id);
        transaction.dev = raw.dev;
        if transaction.unmapped.replace((raw.ts, event.by.unwrap_or(0))).is_none() {
            let key = (raw.dev, transaction.dma, id);
            if let Some(len) = self.mapped.remove(&key) {
                self.dead.insert(key, len);
            }
            self.ended.push_back(id);
        }
    }

    /// The transaction of a number: live, lately ended, or one whose beginning nobody saw.
    fn of(&mut self, id: u64) -> &mut Transaction {
        self.known.entry(id).or_insert_with(|| Transaction { id, ..Transaction::default() })
    }

    fn add(&mut self, queue: QueueId, event: &Event) {
        let segments = event.links().filter_map(|link| match *link {
            Link::Segment { addr, write, .. } => Some((addr, write)),
            _ => None,
        });
        let segments: Vec<_> = segments.collect();
        let (head, added) = (event.raw.addr, Mark::of(event));
        let mut ids = Vec::new();
        for (segment, &(addr, write)) in segments.iter().enumerate() {
            // A driver may post what it has unmapped already.
            let id = at(&self.mapped, queue.0, addr).or_else(|| at(&self.dead, queue.0, addr));
            let Some(id) = id.filter(|id| !ids.contains(id)) else { continue };
            ids.push(id);
            let request =
                Request { queue: queue.1, head, segment, segments: segments.len(), write, added, ..Request::default() };
            self.of(id).request(request);
        }
        self.chains.add(queue, head, added, ids);
    }

    fn turn(&mut self, queue: QueueId, head: u64, turn: Turn, when: Mark) {
        let Some(chain) = self.chains.flying(queue, head) else { return };
        if matches!(turn, Turn::Given(_)) {
            chain.given.get_or_insert(when);
        }
        let (added, transactions) = (chain.added, chain.transactions.clone());
        self.note(&transactions, added, turn, when);
    }

    fn note(&mut self, transactions: &[u64], added: Mark, turn: Turn, when: Mark) {
        for id in transactions {
            let requests = self.known.get_mut(id).map(|transaction| &mut transaction.requests);
            if let Some(request) = requests.and_then(|all| all.iter_mut().rfind(|request| request.added == added)) {
                request.note(turn, when);
            }
        }
    }

    /// The next ended transaction that nothing can belong to any more, in the order of their ends.
    pub fn settled(&mut self) -> Option<Transaction> {
        if self.ended.len() <= LATE {
            return None;
        }
        let settled = self.known.remove(&self.ended.pop_front()?)?;
        self.dead.remove(&(settled.dev, settled.dma, settled.id));
        Some(settled)
    }

    /// All others, after the last event: the ended in the order of their ends, then the live by number.
    pub fn rest(mut self) -> impl Iterator<Item = Transaction> {
        let ended: Vec<_> = self.ended.iter().filter_map(|id| self.known.remove(id)).collect();
        ended.into_iter().chain(self.known.into_values())
    }
}

#[cfg(test)]
mod tests;
