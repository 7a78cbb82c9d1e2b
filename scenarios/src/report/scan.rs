//! The first reading of a trace: totals, curves, histograms, and which transactions must stay on the page.
//!
//! Zones are told by address alone: a trace doesn't say where its machine's zones end, and Linux's lowest two end at
//! 16 MiB and 4 GiB. Neighbours: `totals`, `series`; `collect` reads the same file a second time. Left out: the events
//! themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use lowzone_guest_mem::dma::swiotlb::SLOT_SIZE;
use lowzone_guest_mem::trace::Kind;
use serde::Serialize;

use super::series::{Bars, Curve, Histogram, Largest};
use super::totals::Totals;
use crate::trace::{Event, Names, Reader, TraceError, Transaction, Transactions};

/// The longest transactions of each measure that stay whatever else goes.
const OUTLIERS: usize = 64;
/// Faulty transactions that stay; a trace with more of them says so.
pub(super) const FAULTY: usize = 50_000;
/// Curves of one sort; further devices or queues have none.
const CURVES: usize = 64;
/// Chains that stay with a transaction: the last ones.
const CHAINS: usize = 4;

/// Curves of one sort by device or queue.
type Curves<K> = BTreeMap<K, Curve>;

/// What the first reading knows.
pub(super) struct Scan {
    pub(super) totals: Totals,
    /// Findings: the number of the event, name, text.
    pub(super) findings: Vec<FindingRow>,
    /// Transactions that stay because something is wrong with them.
    pub(super) faulty: BTreeSet<u64>,
    /// Whether there were more of them than are kept.
    pub(super) too_many: bool,
    /// The longest from map to unmap, and from map to the first access.
    pub(super) longest: Largest,
    pub(super) latest: Largest,
    /// Live at the end of a complete trace.
    pub(super) live: u64,
    pub(super) span: (u64, u64),
    /// Events of the lives of those that stay which are not their own: allocation, chains, interrupt, free.
    around: BTreeMap<u64, Vec<u64>>,
    whole: Histogram,
    first: Histogram,
    zones: Curves<u8>,
    mapped: Curves<(u16, bool)>,
    queues: Curves<(u16, u64)>,
    slots: Curve,
    slots_of: BTreeMap<u64, u64>,
}

/// A finding, as far as the page can't take it from the events.
#[derive(Debug, Serialize)]
pub(super) struct FindingRow {
    event: u64,
    tx: u64,
    name: String,
    text: String,
}

/// The curves and histograms, for the page.
#[derive(Debug, Serialize)]
pub(super) struct Plots {
    zones: Vec<Curve>,
    mapped: Vec<Curve>,
    queues: Vec<Curve>,
    slots: Vec<Curve>,
    map_to_unmap: Bars,
    map_to_access: Bars,
    longest: Vec<u64>,
    latest: Vec<u64>,
}

impl Scan {
    /// Reads a trace to its end, or to where it is broken.
    pub(super) fn of<R: Read>(reader: &mut Reader<R>) -> (Self, Option<TraceError>) {
        let mut scan = Self {
            totals: Totals::default(),
            findings: Vec::new(),
            faulty: BTreeSet::new(),
            too_many: false,
            longest: Largest::new(OUTLIERS),
            latest: Largest::new(OUTLIERS),
            live: 0,
            span: (u64::MAX, 0),
            around: BTreeMap::new(),
            whole: Histogram::default(),
            first: Histogram::default(),
            zones: BTreeMap::new(),
            mapped: BTreeMap::new(),
            queues: BTreeMap::new(),
            slots: Curve::new("bounce slots in use".to_owned(), "slots"),
            slots_of: BTreeMap::new(),
        };
        let mut all = Transactions::new();
        let broken = loop {
            match reader.next_event() {
                Ok(Some(event)) => {
                    scan.take(&event, reader.names());
                    all.take(&event, reader.names());
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
            while let Some(transaction) = all.settled() {
                scan.settle(&transaction, true);
            }
        };
        all.rest().for_each(|transaction| scan.settle(&transaction, broken.is_none()));
        (scan, broken)
    }

    fn take(&mut self, event: &Event, names: &Names) {
        let raw = &event.raw;
        self.totals.take(event, names);
        self.span = (self.span.0.min(raw.ts), self.span.1.max(raw.ts));
        if event.kind() == Some(Kind::PortViolation) && raw.tag != 0 {
            self.keep(raw.tag);
        }
        if event.kind() == Some(Kind::Finding) {
            let finding = names.finding(raw.len).cloned().unwrap_or_default();
            let (name, text) = (finding.name, finding.text);
            if self.findings.len() < FAULTY {
                self.findings.push(FindingRow { event: event.number, tx: raw.tag, name, text });
            }
        }
        self.curves(event, names);
    }

    fn keep(&mut self, id: u64) {
        if self.faulty.len() < FAULTY {
            self.faulty.insert(id);
        } else {
            self.too_many |= !self.faulty.contains(&id);
        }
    }

    fn curves(&mut self, event: &Event, names: &Names) {
        let raw = &event.raw;
        let (at, len) = ((event.number, raw.ts), u64::from(raw.len));
        let device = || names.device(raw.dev).unwrap_or_else(|| "all devices".to_owned());
        match event.kind() {
            Some(Kind::MmPageAlloc) => {
                let zone = zone(raw.addr);
                let curve = || Curve::new(ZONES[usize::from(zone)].to_owned(), "bytes");
                self.zones.entry(zone).or_insert_with(curve).add(at, len);
            }
            Some(Kind::MmPageFree) => {
                if let Some(curve) = self.zones.get_mut(&zone(raw.addr)) {
                    curve.take(at, len);
                }
            }
            // The tag counts chains of one call.
            Some(kind @ (Kind::VirtqAdd | Kind::VirtqUsed)) => {
                let key = (raw.dev, len);
                let curve = || Curve::new(format!("{} queue {len}", device()), "chains");
                if let Some(curve) = curve_of(&mut self.queues, key, curve) {
                    if kind == Kind::VirtqAdd { curve.add(at, 1) } else { curve.take(at, 1) }
                }
            }
            kind if event.is_map() || event.is_unmap() => {
                let coherent = matches!(kind, Some(Kind::DmaAlloc | Kind::DmaFree));
                let name = || format!("{} {}", device(), if coherent { "coherent" } else { "streaming" });
                if let Some(curve) = curve_of(&mut self.mapped, (raw.dev, coherent), || Curve::new(name(), "bytes")) {
                    if event.is_map() { curve.add(at, len) } else { curve.take(at, len) }
                }
                self.pool(event);
            }
            _ => {}
        }
    }

    fn pool(&mut self, event: &Event) {
        let raw = &event.raw;
        let at = (event.number, raw.ts);
        if event.is_unmap() {
            if let Some(slots) = self.slots_of.remove(&raw.tag) {
                self.slots.take(at, slots);
            }
        } else if let Some((phys, Some(shape), _)) = event.mapping
            && shape.bounced
        {
            let slots = (phys % SLOT_SIZE + u64::from(raw.len)).div_ceil(SLOT_SIZE);
            self.slots_of.insert(raw.tag, slots);
            self.slots.add(at, slots);
        }
    }

    fn settle(&mut self, transaction: &Transaction, complete: bool) {
        let live = complete && transaction.is_live();
        self.live += u64::from(live);
        if live || !transaction.wrong.is_empty() {
            self.keep(transaction.id);
        }
        self.measure(transaction);
        if self.must_stay(transaction.id) {
            self.around.insert(transaction.id, around(transaction));
        }
    }

    fn measure(&mut self, transaction: &Transaction) {
        if transaction.shape.is_some_and(|shape| shape.coherent) {
            return;
        }
        let Some(mapped) = transaction.mapped else { return };
        if let Some((unmapped, _)) = transaction.unmapped {
            let time = unmapped.saturating_sub(mapped);
            self.whole.add(time);
            let gone = self.longest.add(time, transaction.id);
            self.forget(gone);
        }
        if let Some(first) = transaction.first {
            let time = first.saturating_sub(mapped);
            self.first.add(time);
            let gone = self.latest.add(time, transaction.id);
            self.forget(gone);
        }
    }

    fn forget(&mut self, gone: Option<u64>) {
        if let Some(id) = gone.filter(|&id| !self.must_stay(id)) {
            self.around.remove(&id);
        }
    }

    /// The numbers of events that stay with transactions that do.
    pub(super) fn kept_around(&self) -> BTreeSet<u64> {
        self.around.values().flatten().copied().collect()
    }

    /// Whether a transaction stays whatever else goes.
    pub(super) fn must_stay(&self, id: u64) -> bool {
        self.faulty.contains(&id) || self.longest.has(id) || self.latest.has(id)
    }

    /// The curves and histograms; the rest was used by now.
    pub(super) fn plots(self) -> Plots {
        Plots {
            zones: self.zones.into_values().map(Curve::finish).collect(),
            mapped: self.mapped.into_values().map(Curve::finish).collect(),
            queues: self.queues.into_values().map(Curve::finish).collect(),
            slots: vec![self.slots.finish()],
            map_to_unmap: self.whole.finish(),
            map_to_access: self.first.finish(),
            longest: self.longest.ids().collect(),
            latest: self.latest.ids().collect(),
        }
    }
}

/// Events around a transaction, by number.
fn around(transaction: &Transaction) -> Vec<u64> {
    let Transaction { allocated, freed, requests, .. } = transaction;
    let ends = [*allocated, freed.map(|(mark, _)| mark)];
    let chains = requests
        .iter()
        .rev()
        .take(CHAINS)
        .flat_map(|chain| [Some(chain.added), chain.kicked, chain.taken, chain.given, chain.interrupt, chain.used]);
    ends.into_iter().chain(chains).flatten().map(|mark| mark.event).collect()
}

const ZONES: [&str; 3] = ["DMA: below 16 MiB", "DMA32: below 4 GiB", "Normal: 4 GiB and above"];

fn zone(addr: u64) -> u8 {
    u8::from(addr >= 16 << 20) + u8::from(addr >= 4 << 30)
}

fn curve_of<K: Ord>(curves: &mut Curves<K>, key: K, new: impl FnOnce() -> Curve) -> Option<&mut Curve> {
    if curves.len() >= CURVES && !curves.contains_key(&key) {
        return None;
    }
    Some(curves.entry(key).or_insert_with(new))
}
