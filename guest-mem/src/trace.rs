//! Event records: 32 bytes each, the last ones always kept, and one digest of the run.
//!
//! Whoever makes records is a producer: a CPU, a device's port. The last records are kept, whether or not anybody asks:
//! a flight recorder that is always on. Records name what Linux's tracepoints name (`kmem:*`, `dma:*` of 6.12,
//! `swiotlb:*`) and what only the lab sees (`port:*`, `mmio:*`, `virtq:*`, `irq:*`). The digest folds kind, producer and
//! length of every record in the order they were made: equal digests mean equal runs. Addresses and times stay out of it.
//!
//! What 32 bytes don't hold follows in details: records that continue the event before them, and that neither count
//! nor enter the digest. While somebody watches ([`Recorder::stream`], [`Recorder::capture`]) every record goes there
//! too; while nobody does, that costs one relaxed load. *Links* are details that only watchers are given, and that are
//! not made without them: what ties a request to its mappings.
//!
//! In lockstep one producer writes at a time, so plain loads and stores into one ring do. A recorder that is
//! [shared](Recorder::share) has a ring for each producer, takes its lock for each record and counts events with one
//! addition: nothing is lost, an event and its details stay together, the digest stays empty, and rings are merged by
//! time. Kinds that are [masked out](Recorder::mask) are neither kept nor shown nor counted, so that nothing is left of
//! their cost but a test; a run that is not recorded whole has no digest.
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
use ring::Ring;
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

/// The records of one kernel and the digest over them.
pub struct Recorder {
    /// The kinds that are recorded, by [`Kind::bit`], and [`SLOW`]: looked at once for each record.
    gate: AtomicU64,
    /// [`WATCHED`] and [`SHARED`].
    mode: AtomicU8,
    digest: AtomicU64,
    /// All records in the order they were made, unless several threads write: then each producer has a ring.
    log: Ring,
    rings: Vec<OnceLock<Box<Ring>>>,
    watchers: Locked<Watchers>,
    around: Locked<Vec<Vec<(Producer, Record)>>>,
}

/// Somebody wants every record.
const WATCHED: u8 = 1;
/// Several threads write.
const SHARED: u8 = 2;

const SEED: u64 = 0x6c6f_777a_6f6e_6521;
/// Every kind; no kind has number 0.
const ALL: u64 = !SLOW;
/// The mode is not 0.
const SLOW: u64 = 1;

impl Default for Recorder {
    fn default() -> Self {
        Self {
            gate: AtomicU64::new(ALL),
            mode: AtomicU8::new(0),
            digest: AtomicU64::new(SEED),
            log: Ring::default(),
            rings: std::iter::repeat_with(OnceLock::new).take(PRODUCERS).collect(),
            watchers: Locked::default(),
            around: Locked::default(),
        }
    }
}

/// Folds length, kind and producer into a digest. A step can be undone, so two histories that part stay apart until
/// later steps happen to join them.
#[inline]
fn fold(digest: u64, len: u32, who_kind: u32) -> u64 {
    let mixed = (digest ^ u64::from(len)).rotate_left(32) ^ u64::from(who_kind);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Producer and kind in one word, as the ring has them.
#[inline]
fn who_kind(who: Producer, kind: Kind) -> u32 {
    u32::from(who.0) << 16 | u32::from(kind.number())
}

impl Recorder {
    /// Whether records of a kind are kept: one load.
    #[inline]
    pub fn wants(&self, kind: Kind) -> bool {
        self.gate.load(Ordering::Relaxed) & kind.bit() != 0
    }

    /// The kinds that are recorded, by [`Kind::bit`].
    pub(crate) fn kinds(&self) -> u64 {
        self.gate.load(Ordering::Relaxed) & ALL
    }

    /// Records only these kinds from now on, until the machine is reset; findings and steps always. CPUs that a world
    /// has made already go on as they were.
    pub fn mask(&self, kinds: impl IntoIterator<Item = Kind>) {
        let always = Kind::Finding.bit() | Kind::Step.bit();
        let wanted = kinds.into_iter().fold(always, |bits, kind| bits | kind.bit());
        self.gate.store(wanted, Ordering::Relaxed);
        self.enter(0);
    }

    /// Some of the mode holds from now on.
    fn enter(&self, mode: u8) {
        if self.mode.fetch_or(mode, Ordering::Relaxed) | mode != 0 {
            self.gate.fetch_or(SLOW, Ordering::Relaxed);
        }
    }

    /// Whether every kind is recorded: only then do digest and count tell of the whole run.
    pub fn whole(&self) -> bool {
        self.kinds() == ALL
    }

    /// Records one event, unless its kind is masked out.
    #[inline]
    pub fn emit(&self, who: Producer, record: Record) {
        let gate = self.gate.load(Ordering::Relaxed);
        if gate & record.kind.bit() != 0 {
            self.put_at(gate, who, record);
        }
    }

    /// Records one event of a kind that is wanted.
    #[inline]
    pub(crate) fn put(&self, who: Producer, record: Record) {
        self.put_at(self.gate.load(Ordering::Relaxed), who, record);
    }

    /// Loads and stores apart, not atomic additions: in lockstep only one producer runs at a time.
    #[inline]
    fn put_at(&self, gate: u64, who: Producer, record: Record) {
        if gate & SLOW != 0 {
            return self.put_slowly(who, record, [], []);
        }
        let word = who_kind(who, record.kind);
        self.log.push(word, &record);
        self.digest.store(fold(self.digest.load(Ordering::Relaxed), record.len, word), Ordering::Relaxed);
    }

    /// Records one event with its details: the rest of it, no events of their own, so the digest ignores them.
    pub fn emit_with(&self, who: Producer, record: Record, details: impl IntoIterator<Item = Record>) {
        if !self.wants(record.kind) {
            return;
        }
        if self.mode.load(Ordering::Relaxed) != 0 {
            return self.put_slowly(who, record, details, []);
        }
        self.put(who, record);
        details.into_iter().for_each(|detail| self.log.push_detail(who_kind(who, detail.kind), &detail));
    }

    /// Whether somebody wants every record: only then are links made.
    #[inline]
    pub fn watched(&self) -> bool {
        self.mode.load(Ordering::Relaxed) & WATCHED != 0
    }

    /// Records one event with its links.
    #[inline]
    pub fn emit_linked<L: IntoIterator<Item = Record>>(
        &self,
        who: Producer,
        record: Record,
        links: impl FnOnce() -> L,
    ) {
        if !self.wants(record.kind) {
            return;
        }
        if self.watched() { self.put_slowly(who, record, [], links()) } else { self.put(who, record) }
    }

    /// Gives those who watch, if any, one more link of the event that `who` made just before.
    #[inline]
    pub fn link(&self, who: Producer, link: Record) {
        if self.watched() {
            self.watchers.lock().show(who, link);
        }
    }

    /// Several threads write from now on, until the machine is reset.
    pub fn share(&self) {
        self.enter(SHARED);
    }

    /// Whether several threads write.
    fn shared(&self) -> bool {
        self.mode.load(Ordering::Relaxed) & SHARED != 0
    }

    /// Records where somebody watches or several threads write.
    #[cold]
    #[inline(never)]
    fn put_slowly(
        &self,
        who: Producer,
        event: Record,
        details: impl IntoIterator<Item = Record>,
        links: impl IntoIterator<Item = Record>,
    ) {
        let mut watchers = self.watched().then(|| self.watchers.lock());
        let shared = self.shared();
        let own = self.rings.get(usize::from(who.0)).filter(|_| shared).map(|slot| slot.get_or_init(Box::default));
        let ring = own.map_or(&self.log, |ring| ring);
        let turn = shared.then(|| ring.turn());
        let word = who_kind(who, event.kind);
        ring.push(word, &event);
        if !shared {
            self.digest.store(fold(self.digest.load(Ordering::Relaxed), event.len, word), Ordering::Relaxed);
        }
        if let Some(watchers) = &mut watchers {
            watchers.show(who, event);
        }
        for detail in details {
            ring.push_detail(who_kind(who, detail.kind), &detail);
            if let Some(watchers) = &mut watchers {
                watchers.show(who, detail);
            }
        }
        if let Some(watchers) = &mut watchers {
            links.into_iter().for_each(|link| watchers.show(who, link));
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

    /// The digest of all events so far; the same for all runs where the recorder is shared or masks kinds out.
    pub fn digest(&self) -> u64 {
        if self.whole() { self.digest.load(Ordering::Relaxed) } else { SEED }
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        if !self.shared() {
            return self.log.events();
        }
        self.made().fold(self.log.events(), |sum, (_, events)| sum + events)
    }

    /// How many events each producer made since several threads write.
    pub fn made(&self) -> impl Iterator<Item = (Producer, u64)> {
        let rings = (0..).zip(&self.rings).filter_map(|(who, slot)| Some((Producer(who), slot.get()?.events())));
        rings.filter(|&(_, events)| events > 0)
    }

    /// Starts keeping every event in memory; details are left out.
    pub fn capture(&self) {
        self.watchers.lock().captured = Some(Vec::new());
        self.enter(WATCHED);
    }

    /// Takes the kept events, in the order they were made.
    pub fn take_captured(&self) -> Vec<(Producer, Record)> {
        self.watchers.lock().captured.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Starts giving every record to `sink`, page by page; one given before gets what it is due and is dropped.
    pub fn stream(&self, sink: Box<dyn Sink>) {
        self.end_stream();
        self.watchers.lock().stream = Some(Stream { page: Vec::with_capacity(PAGE), sink });
        self.enter(WATCHED);
    }

    /// Gives the sink what it is still due, and drops it.
    pub fn end_stream(&self) {
        let mut watchers = self.watchers.lock();
        if let Some(mut stream) = watchers.stream.take() {
            stream.flush();
        }
        if watchers.captured.is_none() && self.mode.fetch_and(!WATCHED, Ordering::Relaxed) & !WATCHED == 0 {
            self.gate.fetch_and(!SLOW, Ordering::Relaxed);
        }
    }

    /// The last `n` events of all producers with their details, in the order they were made, the oldest first; of a
    /// shared recorder in the order of their times.
    pub fn recent_of_all(&self, n: usize) -> Vec<(Producer, Record)> {
        if !self.shared() {
            return last(n, |back| self.log.before(back));
        }
        let mut events: Vec<Vec<(Producer, Record)>> = Vec::new();
        for ring in self.rings.iter().filter_map(OnceLock::get) {
            let _turn = ring.turn();
            for (who, record) in last(n, |back| ring.before(back)) {
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
        self.mode.store(0, Ordering::Relaxed);
        self.gate.store(ALL, Ordering::Relaxed);
        *self.watchers.lock() = Watchers::default();
        self.around.lock().clear();
        self.log.reset();
        for ring in self.rings.iter().filter_map(OnceLock::get) {
            ring.reset();
        }
    }
}

/// The last `n` events with their details, the oldest first; `before` gives a record by how many came after it.
fn last(n: usize, before: impl Fn(u64) -> Option<(Producer, Record)>) -> Vec<(Producer, Record)> {
    let (mut events, mut records) = (0, Vec::new());
    for (who, record) in (0..).map_while(before).take_while(|_| n > 0) {
        records.push((who, record));
        events += usize::from(!record.kind.is_detail());
        if events == n {
            break;
        }
    }
    // Details whose event was overwritten tell nothing.
    while records.pop_if(|(_, record)| record.kind.is_detail()).is_some() {}
    records.reverse();
    records
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
