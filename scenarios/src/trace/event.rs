//! One event of a trace, with its details put together again.
//!
//! Neighbours: `reader` and `around` make them, `row` shows them, `transaction` follows them.

use lowzone_guest_mem::trace::{DETAIL, Kind, Producer, Record, Shape};

/// A record as the file has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Raw {
    /// The clock.
    pub ts: u64,
    /// The address or number it is about.
    pub addr: u64,
    /// Transaction, owner or other number, by kind.
    pub tag: u64,
    /// Bytes.
    pub len: u32,
    /// The kind's number.
    pub kind: u16,
    /// The device's number, or 0.
    pub dev: u16,
    /// Who made it.
    pub who: u16,
}

impl Raw {
    /// A record of the running kernel.
    pub fn of(who: Producer, record: &Record) -> Self {
        Self {
            ts: record.ts,
            addr: record.addr,
            tag: record.tag,
            len: record.len,
            kind: record.kind.number(),
            dev: record.dev,
            who: who.0,
        }
    }

    /// Whether it continues the record before it.
    pub fn is_detail(&self) -> bool {
        self.kind >= DETAIL
    }
}

/// Links that an event keeps; a chain of the stock driver has four segments at most.
const LINKS: usize = 8;

/// What ties an event to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// One descriptor of the chain that was added.
    Segment {
        /// Where the device finds it.
        addr: u64,
        /// Bytes.
        len: u32,
        /// Whether the device may write it.
        write: bool,
    },
    /// The device took a chain.
    Take {
        /// The queue.
        queue: u32,
        /// Its first descriptor.
        head: u64,
        /// When.
        ts: u64,
    },
    /// The device gave a chain back.
    Give {
        /// The queue.
        queue: u32,
        /// Its first descriptor.
        head: u64,
        /// When.
        ts: u64,
        /// Bytes that the device says it wrote.
        written: u64,
    },
    /// The event is a refused request, and this the number of the reason.
    Refused(u32),
}

impl Link {
    /// The link that a detail is, if it is one.
    pub fn of(detail: &Raw) -> Option<Self> {
        let &Raw { ts, addr, tag, len, .. } = detail;
        Some(match Kind::from_number(detail.kind)? {
            Kind::Segment => Self::Segment { addr, len, write: tag & 1 != 0 },
            Kind::Take => Self::Take { queue: len, head: addr, ts },
            Kind::Give => Self::Give { queue: len, head: addr, ts, written: tag },
            Kind::Refused => Self::Refused(len),
            _ => return None,
        })
    }
}

/// An event and what its details said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Event {
    /// Its number in the run, from 0.
    pub number: u64,
    /// The event's own record.
    pub raw: Raw,
    /// Who made the call, as an owner of this trace's tables.
    pub by: Option<u64>,
    /// Bytes that the bounce pool copied in an unmap or sync.
    pub copied: u32,
    /// Where the device's bytes lie, what they are like, who mapped them.
    pub mapping: Option<(u64, Option<Shape>, u64)>,
    /// Where the driver's buffer lies, and who allocated it.
    pub buffer: Option<(u64, u64)>,
    links: [Option<Link>; LINKS],
}

impl Event {
    /// The event of a record; its details are still to come.
    pub fn new(number: u64, raw: Raw) -> Self {
        let by = Kind::from_number(raw.kind).filter(|kind| kind.tag_is_owner()).map(|_| raw.tag);
        Self { number, raw, by, ..Self::default() }
    }

    /// Adds a detail; one of an unknown kind is ignored.
    pub fn add(&mut self, detail: &Raw) {
        match Kind::from_number(detail.kind) {
            Some(Kind::By) => (self.by, self.copied) = (Some(detail.tag), detail.len),
            Some(Kind::Mapping) => self.mapping = Some((detail.addr, Shape::unpack(detail.len), detail.tag)),
            Some(Kind::Buffer) => self.buffer = Some((detail.addr, detail.tag)),
            _ => {
                let free = self.links.iter_mut().find(|link| link.is_none());
                if let (Some(free), Some(link)) = (free, Link::of(detail)) {
                    *free = Some(link);
                }
            }
        }
    }

    /// What ties it to others: at most eight, the first ones.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().map_while(Option::as_ref)
    }

    /// Of a refused request the number of the reason.
    pub fn refused(&self) -> Option<u32> {
        self.links().find_map(|link| if let Link::Refused(number) = link { Some(*number) } else { None })
    }

    /// Its kind, if this version knows it.
    pub fn kind(&self) -> Option<Kind> {
        Kind::from_number(self.raw.kind)
    }

    /// The DMA transaction it belongs to, or 0.
    pub fn transaction(&self) -> u64 {
        if self.kind().is_some_and(Kind::tag_is_transaction) { self.raw.tag } else { 0 }
    }

    /// Whether it makes a mapping: a map call or coherent allocation that was not refused.
    pub fn is_map(&self) -> bool {
        let kinds = [Kind::DmaMapPage, Kind::DmaMapSg, Kind::DmaMapResource, Kind::DmaAlloc];
        self.raw.tag != 0 && self.kind().is_some_and(|kind| kinds.contains(&kind))
    }

    /// Whether it is a map call or coherent allocation that was refused.
    pub fn is_refused_map(&self) -> bool {
        let kinds = [Kind::DmaMapPage, Kind::DmaMapSg, Kind::DmaMapResource, Kind::DmaAlloc];
        self.raw.tag == 0 && self.kind().is_some_and(|kind| kinds.contains(&kind))
    }

    /// Whether it ends a mapping.
    pub fn is_unmap(&self) -> bool {
        let kinds = [Kind::DmaUnmapPage, Kind::DmaUnmapSg, Kind::DmaUnmapResource, Kind::DmaFree];
        self.kind().is_some_and(|kind| kinds.contains(&kind))
    }
}
