//! Events as columns of small numbers, which deflate packs well.
//!
//! Each column is a row of varints (LEB128) that holds differences to what could be expected: times to the event
//! before, an access's address to its mapping's, a free's to the buffer that was unmapped last, a register's to the last
//! one of the same kind. `page/decode.js` adds them up again. Neighbours: `collect` fills them, `pack` writes them. Left out: names, which are in the page's tables.

use std::collections::BTreeMap;

use lowzone_guest_mem::trace::Kind;
use serde::Serialize;

use crate::trace::event::Link;
use crate::trace::{Event, Names};

/// The longest text that the page shows of a site, in bytes; a longer one is cut.
const TEXT: usize = 2048;
/// Set in `has` where the event says what was mapped.
const HAS_MAPPING: u64 = 1;
/// Set in `has` where it says which buffer lies behind.
const HAS_BUFFER: u64 = 2;
/// Set in `has` where links follow.
const HAS_LINKS: u64 = 4;
/// What a link is: a descriptor for the device to read, or with one more to write; a chain taken; one given back.
const SEGMENT: u64 = 0;
const TAKE: u64 = 2;
const GIVE: u64 = 3;
/// The shape of a mapping whose file doesn't say it.
const NO_SHAPE: u64 = 0xffff;

/// A row of varints.
#[derive(Debug, Default)]
struct Column(Vec<u8>);

impl Column {
    fn put(&mut self, mut value: u64) {
        loop {
            let low = u8::try_from(value & 0x7f).unwrap_or(0);
            value >>= 7;
            if value == 0 {
                self.0.push(low);
                return;
            }
            self.0.push(low | 0x80);
        }
    }

    fn step(&mut self, from: u64, to: u64) {
        self.put(zigzag(from, to));
    }
}

/// The difference modulo 2^64, small whichever way it goes.
fn zigzag(from: u64, to: u64) -> u64 {
    let difference = to.wrapping_sub(from);
    if difference >> 63 == 0 { difference << 1 } else { !(difference << 1) }
}

/// Texts that rows point into, from 1; 0 is none.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Texts {
    texts: Vec<String>,
    #[serde(skip)]
    known: BTreeMap<String, u64>,
}

impl Texts {
    pub(super) fn of(&mut self, text: Option<&str>) -> u64 {
        let Some(text) = text else { return 0 };
        let text = cut(text, TEXT);
        if let Some(&known) = self.known.get(text) {
            return known;
        }
        self.texts.push(text.to_owned());
        let number = self.texts.len() as u64;
        self.known.insert(text.to_owned(), number);
        number
    }
}

/// At most so many bytes of a text.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A column for each field, in the order in which the page has them.
#[derive(Debug, Default)]
struct Fields {
    number: Column,
    ts: Column,
    kind: Column,
    who: Column,
    dev: Column,
    tx: Column,
    addr: Column,
    len: Column,
    value: Column,
    by: Column,
    has: Column,
    phys: Column,
    shape: Column,
    buffer: Column,
    alloc: Column,
    links: Column,
}

/// The last event of a kind.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    addr: u64,
    len: u64,
    value: u64,
    who: u64,
    dev: u64,
}

/// A mapping that is live.
#[derive(Clone, Copy, Debug)]
struct Live {
    addr: u64,
    len: u64,
    buffer: u64,
    coherent: bool,
}

/// What the next event is expected to be like.
#[derive(Debug, Default)]
struct Before {
    number: u64,
    ts: u64,
    tx: u64,
    kinds: BTreeMap<u16, Last>,
    live: BTreeMap<u64, Live>,
    /// Address and bytes of the buffer that was allocated, bounced or unmapped last.
    near: (u64, u64),
    segment: u64,
}

impl Before {
    /// The address and bytes that an event is expected to have. `page/decode.js` expects the same.
    fn expected(&self, event: &Event, last: &Last) -> (u64, u64) {
        let live = self.live.get(&event.transaction());
        match (live, event.kind()) {
            (Some(live), _) if event.is_unmap() || !live.coherent => (live.addr, live.len),
            (Some(live), _) => (live.addr, last.len),
            (None, Some(kind)) if frees(kind) || kind == Kind::SwiotlbBounced => self.near,
            (None, _) if event.is_map() => (last.addr, self.near.1),
            _ => (last.addr, last.len),
        }
    }

    fn learn(&mut self, event: &Event) {
        let raw = &event.raw;
        let (tx, len) = (event.transaction(), u64::from(raw.len));
        if event.is_map() {
            let (phys, shape, _) = event.mapping.unwrap_or((raw.addr, None, 0));
            let buffer = event.buffer.map_or(phys, |(buffer, _)| buffer);
            let coherent = shape.is_some_and(|shape| shape.coherent);
            self.live.insert(tx, Live { addr: raw.addr, len, buffer, coherent });
        } else if event.is_unmap() {
            if let Some(live) = self.live.remove(&tx) {
                self.near = (live.buffer, live.len);
            }
        } else if event.kind().is_some_and(|kind| allocates(kind) || kind == Kind::SwiotlbBounced) {
            self.near = (raw.addr, len);
        }
    }
}

fn allocates(kind: Kind) -> bool {
    matches!(kind, Kind::Kmalloc | Kind::MmPageAlloc | Kind::KmemCacheAlloc)
}

fn frees(kind: Kind) -> bool {
    matches!(kind, Kind::Kfree | Kind::MmPageFree | Kind::KmemCacheFree)
}

/// The events of a page.
#[derive(Debug, Default)]
pub(super) struct Columns {
    fields: Fields,
    before: Before,
    events: u64,
    kinds: Vec<(String, &'static str)>,
    kind_numbers: BTreeMap<u16, u64>,
    producers: Texts,
    devices: Texts,
    owners: Texts,
}

/// The tables and the length of each column, for the page.
#[derive(Debug, Serialize)]
pub(super) struct Tables {
    events: u64,
    /// The trace's name of a kind, and this program's, which may be none.
    kinds: Vec<(String, &'static str)>,
    producers: Texts,
    devices: Texts,
    owners: Texts,
    columns: Vec<(&'static str, usize)>,
}

impl Columns {
    /// How many events there are.
    pub(super) fn len(&self) -> u64 {
        self.events
    }

    fn kind(&mut self, event: &Event, names: &Names) -> u64 {
        let number = event.raw.kind;
        if let Some(&known) = self.kind_numbers.get(&number) {
            return known;
        }
        let index = self.kinds.len() as u64;
        let name = names.kind(number);
        self.kinds.push((cut(&name, TEXT).to_owned(), event.kind().map_or("", Kind::name)));
        self.kind_numbers.insert(number, index);
        index
    }

    /// Adds an event.
    pub(super) fn push(&mut self, event: &Event, names: &Names) {
        let kind = self.kind(event, names);
        let (raw, tx, f, before) = (&event.raw, event.transaction(), &mut self.fields, &mut self.before);
        let last = before.kinds.get(&raw.kind).copied().unwrap_or_default();
        let (addr, len) = before.expected(event, &last);
        let this = Last {
            addr: raw.addr,
            len: u64::from(raw.len),
            value: value(event),
            who: self.producers.of(Some(&names.producer(raw.who))),
            dev: self.devices.of(names.device(raw.dev).as_deref()),
        };
        f.number.put(event.number.wrapping_sub(before.number));
        f.ts.step(before.ts, raw.ts);
        f.kind.put(kind);
        f.who.step(last.who, this.who);
        f.dev.step(last.dev, this.dev);
        // From 1, since 0 is no transaction: the same one again is 1.
        if tx == 0 {
            f.tx.put(0);
        } else {
            f.tx.put(zigzag(before.tx, tx).saturating_add(1));
            before.tx = tx;
        }
        f.addr.step(addr, this.addr);
        f.len.step(len, this.len);
        f.value.step(last.value, this.value);
        let by = event.by.or(event.mapping.map(|(_, _, by)| by)).and_then(|word| names.owner(word));
        f.by.put(self.owners.of(by.as_deref()));
        before.number = event.number.wrapping_add(1);
        before.ts = raw.ts;
        before.kinds.insert(raw.kind, this);
        self.details(event, names);
        self.before.learn(event);
        self.events += 1;
    }

    fn details(&mut self, event: &Event, names: &Names) {
        let (f, before) = (&mut self.fields, &mut self.before);
        let mut has = 0;
        if let Some((phys, shape, _)) = event.mapping {
            has |= HAS_MAPPING;
            f.phys.step(event.raw.addr, phys);
            f.shape.put(shape.map_or(NO_SHAPE, |shape| u64::from(shape.pack())));
        }
        if let Some((buffer, by)) = event.buffer {
            has |= HAS_BUFFER;
            f.buffer.step(before.near.0, buffer);
            f.alloc.put(self.owners.of(names.owner(by).as_deref()));
        }
        let links = event.links().filter(|link| !matches!(link, Link::Refused(_))).count();
        if links > 0 {
            has |= HAS_LINKS;
            f.links.put(links as u64);
        }
        for link in event.links() {
            match *link {
                Link::Refused(_) => {}
                Link::Segment { addr, len, write } => {
                    f.links.put(SEGMENT + u64::from(write));
                    f.links.step(std::mem::replace(&mut before.segment, addr), addr);
                    f.links.put(u64::from(len));
                }
                Link::Take { queue, head, ts } => {
                    f.links.put(TAKE);
                    [u64::from(queue), head].into_iter().for_each(|number| f.links.put(number));
                    f.links.step(event.raw.ts, ts);
                }
                Link::Give { queue, head, ts, .. } => {
                    f.links.put(GIVE);
                    [u64::from(queue), head].into_iter().for_each(|number| f.links.put(number));
                    f.links.step(event.raw.ts, ts);
                }
            }
        }
        f.has.put(has);
    }

    /// The tables, and the bytes of all columns one after the other.
    pub(super) fn finish(self) -> (Tables, Vec<u8>) {
        let Self { fields: f, events, kinds, producers, devices, owners, .. } = self;
        let all = [
            ("number", f.number),
            ("ts", f.ts),
            ("kind", f.kind),
            ("who", f.who),
            ("dev", f.dev),
            ("tx", f.tx),
            ("addr", f.addr),
            ("len", f.len),
            ("value", f.value),
            ("by", f.by),
            ("has", f.has),
            ("phys", f.phys),
            ("shape", f.shape),
            ("buffer", f.buffer),
            ("alloc", f.alloc),
            ("links", f.links),
        ];
        let columns = all.iter().map(|(name, column)| (*name, column.0.len())).collect();
        let bytes = all.into_iter().flat_map(|(_, column)| column.0).collect();
        (Tables { events, kinds, producers, devices, owners, columns }, bytes)
    }
}

/// What the bounce pool copied in an event of a transaction; the register's value or the like in others.
fn value(event: &Event) -> u64 {
    match event.kind() {
        Some(kind) if kind.tag_is_owner() => 0,
        Some(kind) if kind.tag_is_transaction() => u64::from(event.copied),
        _ => event.raw.tag,
    }
}
