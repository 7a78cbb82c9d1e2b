//! The life of each DMA transaction, put together from a trace's events: map, every device access, unmap.
//!
//! [`Transactions`] is fed event by event and gives each [`Transaction`] once nothing can belong to it any more: some
//! time after its end, since a device may reach for memory after its unmap. The ledger remembers 256 dead mappings a
//! device, this many more of all devices together. So memory is bounded by what is mapped at once, not by the file.
//!
//! Neighbours: `event`, `tx`. Left out: which descriptor led to an access.

use std::collections::{BTreeMap, VecDeque};

use lowzone_guest_mem::trace::{Kind, Shape};

use super::event::Event;
use super::names::Names;

/// Ended transactions that late events may still belong to.
pub const LATE: usize = 8192;
/// Stretches of touched bytes kept apart in one transaction; beyond it gaps count as touched.
const STRETCHES: usize = 1024;

/// Bytes that were touched, as stretches that don't meet: `(from, to)`, rising.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Touched(Vec<(u64, u64)>);

impl Touched {
    fn add(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let first = self.0.partition_point(|&(_, end)| end < from);
        let meets = self.0.iter().skip(first).take_while(|&&(begin, _)| begin <= to).count();
        let mut last = first + meets;
        if meets == 0 && self.0.len() >= STRETCHES {
            last = (first + 1).min(self.0.len());
        }
        let first = if last == first && self.0.len() >= STRETCHES { first.saturating_sub(1) } else { first };
        let joined =
            self.0[first..last].iter().fold((from, to), |(from, to), &(begin, end)| (from.min(begin), to.max(end)));
        self.0.splice(first..last, [joined]);
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|(from, to)| to - from).sum()
    }
}

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
    /// When it was mapped; `None` if that is not in the trace.
    pub mapped: Option<u64>,
    /// When the device first reached it.
    pub first: Option<u64>,
    /// When it was unmapped, and by whom (0: by a destructor).
    pub unmapped: Option<(u64, u64)>,
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
    /// Findings about it: when, and the name.
    pub wrong: Vec<(u64, String)>,
    touched: Touched,
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

    fn access(&mut self, event: &Event, write: bool) {
        let len = u64::from(event.raw.len);
        let (calls, bytes) =
            if write { (&mut self.writes, &mut self.write_bytes) } else { (&mut self.reads, &mut self.read_bytes) };
        *calls = calls.saturating_add(1);
        *bytes = bytes.saturating_add(len);
        self.first.get_or_insert(event.raw.ts);
        let from = event.raw.addr.saturating_sub(self.dma);
        self.touched.add(from, from.saturating_add(len));
    }
}

/// Transactions, live and lately ended.
#[derive(Debug, Default)]
pub struct Transactions {
    live: BTreeMap<u64, Transaction>,
    ended: VecDeque<Transaction>,
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

    /// Takes the next event; events of no transaction change nothing.
    pub fn take(&mut self, event: &Event, names: &Names) {
        let id = event.transaction();
        let Some(kind) = event.kind().filter(|_| id != 0) else { return };
        let raw = &event.raw;
        match kind {
            Kind::DmaMapPage | Kind::DmaMapSg | Kind::DmaMapResource | Kind::DmaAlloc => self.begin(id, event),
            Kind::DmaUnmapPage | Kind::DmaUnmapSg | Kind::DmaUnmapResource | Kind::DmaFree => {
                let mut transaction = self.live.remove(&id).unwrap_or(Transaction { id, ..Transaction::default() });
                transaction.dev = raw.dev;
                transaction.unmapped = Some((raw.ts, event.by.unwrap_or(0)));
                self.ended.push_back(transaction);
            }
            Kind::PortRead | Kind::PortWrite => self.of(id).access(event, kind == Kind::PortWrite),
            Kind::DmaSyncForCpu | Kind::DmaSyncForDevice | Kind::DmaSyncSgForCpu | Kind::DmaSyncSgForDevice => {
                self.of(id).syncs += 1
            }
            Kind::Finding => {
                let name = names.finding(raw.len).map_or_else(|| "finding".to_owned(), |finding| finding.name.clone());
                self.of(id).wrong.push((raw.ts, name));
            }
            _ => {}
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
            mapped: Some(raw.ts),
            ..Transaction::default()
        };
        self.live.insert(id, fresh);
    }

    /// The transaction of a number: live, lately ended, or one whose beginning nobody saw.
    fn of(&mut self, id: u64) -> &mut Transaction {
        let ended = if self.live.contains_key(&id) { None } else { self.ended.iter().rposition(|t| t.id == id) };
        match ended {
            Some(index) => &mut self.ended[index],
            None => self.live.entry(id).or_insert_with(|| Transaction { id, ..Transaction::default() }),
        }
    }

    /// The next ended transaction that nothing can belong to any more, in the order of their ends.
    pub fn settled(&mut self) -> Option<Transaction> {
        if self.ended.len() > LATE { self.ended.pop_front() } else { None }
    }

    /// All others, after the last event: the ended in the order of their ends, then the live by number.
    pub fn rest(self) -> impl Iterator<Item = Transaction> {
        self.ended.into_iter().chain(self.live.into_values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Touched bytes are a set, whatever the order and overlap of the accesses.
        #[test]
        fn touched_bytes_are_counted_once(accesses in prop::collection::vec((0_u64..200, 0_u64..30), 0..60)) {
            let (mut touched, mut shadow) = (Touched::default(), vec![false; 256]);
            for (from, len) in accesses {
                touched.add(from, from + len);
                (from..from + len).for_each(|at| shadow[usize::try_from(at).unwrap()] = true);
            }
            prop_assert_eq!(touched.bytes(), shadow.iter().filter(|&&on| on).count() as u64);
            prop_assert!(touched.0.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", touched);
        }
    }

    #[test]
    fn too_many_stretches_are_joined_and_never_forgotten() {
        let mut touched = Touched::default();
        (0..3000_u64).rev().for_each(|n| touched.add(n * 4, n * 4 + 1));
        (3000..5000_u64).for_each(|n| touched.add(n * 4, n * 4 + 1));
        assert!(touched.0.len() <= STRETCHES);
        assert!(touched.bytes() >= 5000);
        assert_eq!((touched.0[0].0, touched.0[touched.0.len() - 1].1), (0, 4999 * 4 + 1));
    }
}
