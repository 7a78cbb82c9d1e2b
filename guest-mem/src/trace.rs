//! Event records: 32 bytes each, a ring for each producer, and one digest of the run.
//!
//! Every producer (a CPU, a device's port) owns a ring and overwrites its oldest record: a flight recorder that is
//! always on. Records name what Linux's tracepoints name (`kmem:*`, `dma:*` of 6.12, `swiotlb:*`) and what only the
//! lab sees (`port:*`, `mmio:*`, `virtq:*`, `irq:*`). The digest folds kind, producer and length of every record in
//! the order they were made: equal digests mean equal runs. Addresses and times stay out of it.
//!
//! What 32 bytes don't hold follows in details: records that continue the event before them, and that neither count
//! nor enter the digest. While somebody watches ([`Recorder::stream`], [`Recorder::capture`]) every record goes there
//! too; while nobody does, that costs one relaxed load.
//!
//! In lockstep one producer writes at a time, so plain loads and stores do. A recorder that is [shared](Recorder::share) takes a ring's lock for each record and counts events with one addition: nothing is lost, an
//! event and its details stay together, the digest stays empty, and rings are merged by time.
//!
//! Neighbours: `Cpu::trace`, the port. Left out: files and viewers.

mod kind;
mod ring;
mod shape;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::lock::Locked;
use crate::site::{Owner, Scope, Site};

pub use kind::{DETAIL, Kind};
use ring::{Order, Ring};
pub use shape::Shape;

/// One event, or the rest of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The world's nanoseconds.
    pub ts: u64,
    /// The address or number it is about.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// What happened.
    pub kind: Kind,
    /// Which device, or 0.
    pub dev: u16,
    /// The transaction or request it belongs to, who did it, or 0: its kind says which.
    pub tag: u64,
}

const _: () = assert!(size_of::<Record>() == 32);

/// Which producer's ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Producer(pub u16);

/// An owner as a record's tag: site in the low half, scope in the high one. Numbers of this process, not of files.
pub fn owner_word(owner: Owner) -> u64 {
    u64::from(owner.site.index()) | u64::from(owner.scope.index()) << 32
}

/// The owner of a tag that [`owner_word`] made.
pub fn owner_of(word: u64) -> Owner {
    let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
    Owner { site: Site::from_index(half(word)), scope: Scope::from_index(half(word >> 32)) }
}

/// Who wants every record of a run: a file, for instance.
pub trait Sink: Send {
    /// Takes the next records, in the order they were made; the page is used again afterwards.
    fn page(&mut self, page: &[(Producer, Record)]);
}

/// Records that a sink is given at a time.
pub const PAGE: usize = 512;
/// Events kept before a finding.
pub const AROUND: usize = 16;
/// Details that an event has at most.
const MOST_DETAILS: usize = 2;
/// Findings for which they are kept: the first ones.
const AROUND_FINDINGS: usize = 64;

const PRODUCERS: usize = 256;

/// Those who see every record, while there are any.
#[derive(Default)]
struct Watchers {
    captured: Option<Vec<(Producer, Record)>>,
    stream: Option<Stream>,
}

struct Stream {
    page: Vec<(Producer, Record)>,
    sink: Box<dyn Sink>,
}

/// All rings of one kernel and the digest over them.
pub struct Recorder {
    rings: Vec<OnceLock<Ring>>,
    order: Order,
    digest: AtomicU64,
    events: AtomicU64,
    /// [`WATCHED`] and [`SHARED`], looked at once for each record.
    mode: AtomicU8,
    watchers: Locked<Watchers>,
    around: Locked<Vec<Vec<(Producer, Record)>>>,
}

/// Somebody wants every record.
const WATCHED: u8 = 1;
/// Several threads write.
const SHARED: u8 = 2;

const SEED: u64 = 0x6c6f_777a_6f6e_6521;

impl Default for Recorder {
    fn default() -> Self {
        Self {
            rings: std::iter::repeat_with(OnceLock::new).take(PRODUCERS).collect(),
            order: Order::new(),
            digest: AtomicU64::new(SEED),
            events: AtomicU64::new(0),
            mode: AtomicU8::new(0),
            watchers: Locked::default(),
            around: Locked::default(),
        }
    }
}

fn fold(digest: u64, word: u64) -> u64 {
    let mixed = (digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.rotate_left(29) ^ (mixed >> 32)
}

impl Recorder {
    /// Records one event.
    ///
    /// Load and store apart, not one atomic addition: in lockstep only one producer runs at a time.
    pub fn emit(&self, who: Producer, record: Record) {
        let mode = self.mode.load(Ordering::Relaxed);
        if mode & SHARED != 0 {
            return self.emit_shared(who, record, []);
        }
        self.count(who, &record);
        self.keep(mode, who, record);
    }

    #[inline]
    fn count(&self, who: Producer, record: &Record) {
        let word = u64::from(record.len) | u64::from(record.kind.number()) << 32 | u64::from(who.0) << 48;
        self.digest.store(fold(self.digest.load(Ordering::Relaxed), word), Ordering::Relaxed);
        self.events.store(self.events.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Records one event with its details: the rest of it, no events of their own, so the digest ignores them.
    pub fn emit_with(&self, who: Producer, record: Record, details: impl IntoIterator<Item = Record>) {
        let mode = self.mode.load(Ordering::Relaxed);
        if mode & SHARED != 0 {
            return self.emit_shared(who, record, details);
        }
        self.count(who, &record);
        self.keep(mode, who, record);
        details.into_iter().for_each(|detail| self.keep(mode, who, detail));
    }

    /// Several threads write from now on, until the machine is reset.
    pub fn share(&self) {
        self.mode.fetch_or(SHARED, Ordering::Relaxed);
    }

    /// Whether several threads write.
    fn shared(&self) -> bool {
        self.mode.load(Ordering::Relaxed) & SHARED != 0
    }

    #[inline(never)]
    fn emit_shared(&self, who: Producer, event: Record, details: impl IntoIterator<Item = Record>) {
        let watched = self.mode.load(Ordering::Relaxed) & WATCHED != 0;
        let mut watchers = watched.then(|| self.watchers.lock());
        let ring = self.rings.get(usize::from(who.0)).map(|slot| slot.get_or_init(Ring::new));
        let turn = ring.map(Ring::turn);
        match ring {
            Some(ring) => ring.count(),
            None => drop(self.events.fetch_add(1, Ordering::Relaxed)),
        }
        for record in std::iter::once(event).chain(details) {
            if let Some(ring) = ring {
                ring.push(&record);
            }
            if let Some(watchers) = &mut watchers {
                watchers.show(who, record);
            }
        }
        drop(turn);
    }

    /// Records a finding, and keeps the events before it for [`Recorder::around`].
    pub(crate) fn finding(&self, who: Producer, record: Record) {
        let before = (self.around.lock().len() < AROUND_FINDINGS).then(|| self.recent_of_all(AROUND));
        if let Some(before) = before {
            self.around.lock().push(before);
        }
        self.emit(who, record);
    }

    fn keep(&self, mode: u8, who: Producer, record: Record) {
        if let Some(slot) = self.rings.get(usize::from(who.0)) {
            slot.get_or_init(Ring::new).push(&record);
            self.order.push(who);
        }
        if mode & WATCHED != 0 {
            self.show(who, record);
        }
    }

    #[cold]
    fn show(&self, who: Producer, record: Record) {
        self.watchers.lock().show(who, record);
    }

    /// The digest of all events so far; of no meaning where the recorder is shared, and the same for all of them.
    pub fn digest(&self) -> u64 {
        self.digest.load(Ordering::Relaxed)
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        let of_rings = self.rings.iter().filter_map(OnceLock::get).map(Ring::events);
        of_rings.fold(self.events.load(Ordering::Relaxed), u64::wrapping_add)
    }

    /// Starts keeping every event in memory; details are left out.
    pub fn capture(&self) {
        self.watchers.lock().captured = Some(Vec::new());
        self.mode.fetch_or(WATCHED, Ordering::Relaxed);
    }

    /// Takes the kept events, in the order they were made.
    pub fn take_captured(&self) -> Vec<(Producer, Record)> {
        self.watchers.lock().captured.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Starts giving every record to `sink`, page by page; one given before gets what it is due and is dropped.
    pub fn stream(&self, sink: Box<dyn Sink>) {
        self.end_stream();
        self.watchers.lock().stream = Some(Stream { page: Vec::with_capacity(PAGE), sink });
        self.mode.fetch_or(WATCHED, Ordering::Relaxed);
    }

    /// Gives the sink what it is still due, and drops it.
    pub fn end_stream(&self) {
        let mut watchers = self.watchers.lock();
        if let Some(mut stream) = watchers.stream.take() {
            stream.flush();
        }
        if watchers.captured.is_none() {
            self.mode.fetch_and(!WATCHED, Ordering::Relaxed);
        }
    }

    /// How many records a producer made since the machine began, details included.
    pub fn produced(&self, who: Producer) -> u64 {
        self.ring(who).map_or(0, Ring::made)
    }

    fn ring(&self, who: Producer) -> Option<&Ring> {
        self.rings.get(usize::from(who.0)).and_then(OnceLock::get)
    }

    /// A producer's last `n` records, the oldest first: fewer if it made fewer or they were overwritten.
    pub fn recent(&self, who: Producer, n: usize) -> Vec<Record> {
        let Some(ring) = self.ring(who) else { return Vec::new() };
        let _turn = self.shared().then(|| ring.turn());
        let mut records: Vec<_> = (0..).map_while(|back| ring.before(back)).take(n).collect();
        records.reverse();
        records
    }

    /// The last `n` events of all producers with their details, merged in the order they were made, the oldest first;
    /// of a shared recorder in the order of their times.
    pub fn recent_of_all(&self, n: usize) -> Vec<(Producer, Record)> {
        if self.shared() {
            return self.recent_by_time(n);
        }
        let (mut taken, mut events, mut records) = (vec![0_u64; PRODUCERS], 0, Vec::new());
        for who in self.order.backwards().take_while(|_| n > 0) {
            let back = taken.get_mut(usize::from(who.0));
            let Some((back, ring)) = back.zip(self.ring(who)) else { break };
            let Some(record) = ring.before(*back) else { break };
            *back += 1;
            records.push((who, record));
            events += usize::from(!record.kind.is_detail());
            if events == n {
                break;
            }
        }
        records.reverse();
        records
    }

    /// The last `n` events of each ring, each with its details, merged by time.
    fn recent_by_time(&self, n: usize) -> Vec<(Producer, Record)> {
        let mut events: Vec<Vec<(Producer, Record)>> = Vec::new();
        for who in (0..PRODUCERS).filter_map(|who| u16::try_from(who).ok().map(Producer)) {
            let records = self.recent(who, n.saturating_mul(1 + MOST_DETAILS));
            let first = records.iter().position(|record| !record.kind.is_detail()).unwrap_or(records.len());
            for &record in &records[first..] {
                match events.last_mut() {
                    Some(event) if record.kind.is_detail() => event.push((who, record)),
                    _ => events.push(vec![(who, record)]),
                }
            }
        }
        events.sort_by_key(|event| event.first().map_or(0, |(_, record)| record.ts));
        let from = events.len().saturating_sub(n);
        events.drain(from..).flatten().collect()
    }

    /// The events just before the finding of this number, counted from 1, and their details; none for a number that
    /// was not reported or came after too many others.
    pub fn around(&self, finding: usize) -> Vec<(Producer, Record)> {
        let index = finding.checked_sub(1);
        index.and_then(|index| self.around.lock().get(index).cloned()).unwrap_or_default()
    }

    /// Forgets everything, keeping the memory of the rings.
    pub fn reset(&self) {
        self.digest.store(SEED, Ordering::Relaxed);
        self.events.store(0, Ordering::Relaxed);
        self.mode.store(0, Ordering::Relaxed);
        *self.watchers.lock() = Watchers::default();
        self.around.lock().clear();
        self.order.reset();
        for ring in self.rings.iter().filter_map(OnceLock::get) {
            ring.reset();
        }
    }
}

impl Watchers {
    fn show(&mut self, who: Producer, record: Record) {
        if let Some(captured) = self.captured.as_mut().filter(|_| !record.kind.is_detail()) {
            captured.push((who, record));
        }
        if let Some(stream) = &mut self.stream {
            stream.page.push((who, record));
            if stream.page.len() == PAGE {
                stream.flush();
            }
        }
    }
}

impl Stream {
    fn flush(&mut self) {
        if !self.page.is_empty() {
            self.sink.page(&self.page);
            self.page.clear();
        }
    }
}
