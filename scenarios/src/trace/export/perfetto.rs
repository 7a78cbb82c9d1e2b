//! The export for pictures: Perfetto's TrackEvent protos, for ui.perfetto.dev and its trace_processor.
//!
//! A track for each CPU and each device with an instant for each event, slices for interrupt handlers and the scenario's
//! steps; under each device its transactions from map to unmap, and what it has mapped. One flow, whose number is the
//! transaction's, joins the map, the chains that lead to it, every access and the unmap, also accesses that come after. Field numbers are those of
//! perfetto's protos (trace_packet.proto, track_event.proto, track_descriptor.proto, debug_annotation.proto).
//!
//! Neighbours: `proto`, `intern`, `track`, `chains`; `schema` and `value` give the annotations. Left out: processes and threads.

mod chains;
mod intern;
mod proto;
mod track;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use lowzone_guest_mem::trace::Kind;

use self::chains::Chains;
use self::intern::{Interned, Table};
use self::proto::Message;
use self::track::{Counters, Lanes, Track};
use super::schema::{Field, Form, Schema, schema};
use super::value::{DIRS, Live, Mapped, Value, ZONES, shown, symbol, value};
use crate::trace::event::Event;
use crate::trace::names::Names;

/// `TrackEvent.Type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Type {
    Begin = 1,
    End = 2,
    Instant = 3,
    Counter = 4,
}

/// The only sequence of packets, of which every other depends on the first.
const SEQUENCE: u64 = 1;
const STATE_CLEARED: u64 = 1;
const NEEDS_STATE: u64 = 2;

/// Writes packets.
pub(super) struct Perfetto<W> {
    out: W,
    packet: Message,
    event: Message,
    interned: Interned,
    described: BTreeSet<Track>,
    live: Live,
    chains: Chains,
    lanes: BTreeMap<u16, Lanes>,
    counters: Counters,
    /// Interrupt handlers that run on a producer.
    handlers: BTreeMap<u16, u32>,
    stepping: bool,
    last: u64,
}

impl<W: Write> Perfetto<W> {
    pub(super) fn new(out: W) -> io::Result<Self> {
        let mut perfetto = Self {
            out,
            packet: Message::default(),
            event: Message::default(),
            interned: Interned::default(),
            described: BTreeSet::new(),
            live: Live::default(),
            chains: Chains::default(),
            lanes: BTreeMap::new(),
            counters: Counters::default(),
            handlers: BTreeMap::new(),
            stepping: false,
            last: 0,
        };
        perfetto.packet.number(10, SEQUENCE).number(13, STATE_CLEARED);
        perfetto.send()?;
        Ok(perfetto)
    }

    /// Writes the packet: a field of the message `Trace`.
    fn send(&mut self) -> io::Result<()> {
        let mut framed = Message::default();
        framed.append(1, self.packet.bytes());
        self.packet.clear();
        self.out.write_all(framed.bytes())
    }

    /// Writes the event in `self.event`, and before it what its texts are.
    fn track_event(&mut self, ts: u64, kind: Type, track: Track) -> io::Result<()> {
        self.event.number(9, kind as u64).number(11, track.uuid());
        self.packet.number(8, ts).number(10, SEQUENCE).number(13, NEEDS_STATE);
        if !self.interned.fresh.is_empty() {
            self.packet.append(12, self.interned.fresh.bytes());
            self.interned.fresh.clear();
        }
        self.packet.append(11, self.event.bytes());
        self.event.clear();
        self.send()
    }

    /// Makes sure that a track is known, and those that it lies in.
    fn describe(&mut self, track: Track, names: &Names) -> io::Result<()> {
        if !self.described.insert(track) {
            return Ok(());
        }
        let device = |dev| names.device(dev).unwrap_or_else(|| "no device".to_owned());
        let (name, parent) = match track {
            Track::Steps => ("steps".to_owned(), None),
            Track::Producer(who) => match names.device_of(who) {
                Some(dev) => ("accesses".to_owned(), Some(Track::Device(dev))),
                None => (names.producer(who), None),
            },
            Track::Device(dev) => (device(dev), None),
            Track::Lane(dev, _) => ("transactions".to_owned(), Some(Track::Device(dev))),
            Track::MappedBytes(dev) => (format!("{} mapped bytes", device(dev)), Some(Track::Device(dev))),
            Track::LiveMappings(dev) => (format!("{} live mappings", device(dev)), Some(Track::Device(dev))),
            Track::InFlight(dev, queue) => {
                (format!("{} queue {queue} chains in flight", device(dev)), Some(Track::Device(dev)))
            }
            Track::BouncePool => ("bounced bytes".to_owned(), None),
        };
        if let Some(parent) = parent {
            self.describe(parent, names)?;
        }
        let name = shown(name.into());
        self.packet.number(10, SEQUENCE);
        self.packet.nested(60, |descriptor| track.describe(&name, parent, descriptor));
        self.send()
    }

    fn name(&mut self, system: &str, name: &str) {
        if let Some(number) = self.interned.of(Table::Category, system) {
            self.event.number(3, number);
        }
        if let Some(number) = self.interned.of(Table::EventName, name) {
            self.event.number(10, number);
        }
    }

    /// Says all that an event's fields say.
    fn annotate(&mut self, schema: &Schema, event: &Event, mapped: Option<Mapped>, names: &Names) {
        for field in schema.fields {
            let said = value(field.of, event, mapped, names);
            self.annotation(field, said, names);
        }
    }

    fn annotation(&mut self, field: &Field, said: Value<'_>, names: &Names) {
        let known = |names: &[&'static str], n: u64| usize::try_from(n).ok().and_then(|n| names.get(n).copied());
        let text = match (&said, field.form) {
            (Value::Owner(owner), _) => Some(symbol(*owner, names).into()),
            (Value::Text(text), _) => Some(text.clone()),
            (Value::Number(n), Form::Dir) => Some(known(&DIRS, *n).unwrap_or("?").into()),
            (Value::Number(n), Form::Zone) => Some(known(&ZONES, *n).unwrap_or("?").into()),
            (Value::Number(_), _) => None,
        };
        let name = self.interned.of(Table::AnnotationName, field.name);
        let interned = text.as_deref().and_then(|text| self.interned.of(Table::AnnotationText, text));
        self.event.nested(4, |annotation| {
            annotation.number(1, name.unwrap_or(0));
            match (said, text, interned) {
                (_, Some(_), Some(number)) => annotation.number(17, number),
                (_, Some(text), None) => annotation.text(6, &text),
                (Value::Number(n), ..) => match field.form {
                    Form::Hex | Form::Ptr => annotation.number(7, n),
                    Form::Flag => annotation.number(2, n),
                    _ => annotation.number(3, n),
                },
                _ => annotation,
            };
        });
    }

    pub(super) fn event(&mut self, event: &Event, names: &Names) -> io::Result<()> {
        let raw = event.raw;
        self.last = self.last.max(raw.ts);
        let mapped = self.live.take(event);
        match event.kind() {
            Some(Kind::Step) => return self.step(event, names),
            Some(Kind::IrqExit) => {
                let running = self.handlers.entry(raw.who).or_default();
                // The handler of a trace that begins in it has no slice.
                if *running > 0 {
                    *running -= 1;
                    return self.track_event(raw.ts, Type::End, Track::Producer(raw.who));
                }
            }
            _ => {}
        }
        let entry = event.kind() == Some(Kind::IrqEntry);
        *self.handlers.entry(raw.who).or_default() += u32::from(entry);
        self.happening(event, if entry { Type::Begin } else { Type::Instant }, mapped, names)?;
        self.transaction(event, mapped, names)?;
        self.chain(event, names)
    }

    /// An event on its producer's track, in the flow of its transaction.
    fn happening(&mut self, event: &Event, kind: Type, mapped: Option<Mapped>, names: &Names) -> io::Result<()> {
        let (schema, id) = (schema(event.kind()), event.transaction());
        let track = Track::Producer(event.raw.who);
        self.describe(track, names)?;
        self.name(schema.system, schema.name);
        self.annotate(schema, event, mapped, names);
        let led = self.chains.take(event);
        for flow in Some(id).filter(|&id| id != 0).into_iter().chain(led.into_iter().filter(|&other| other != id)) {
            self.event.fixed(47, flow);
        }
        self.track_event(event.raw.ts, kind, track)
    }

    fn step(&mut self, event: &Event, names: &Names) -> io::Result<()> {
        let (ts, schema) = (event.raw.ts, schema(event.kind()));
        self.describe(Track::Steps, names)?;
        if std::mem::replace(&mut self.stepping, true) {
            self.track_event(ts, Type::End, Track::Steps)?;
        }
        self.name(schema.system, schema.name);
        self.annotate(schema, event, None, names);
        self.track_event(ts, Type::Begin, Track::Steps)
    }

    /// The slice of a transaction, and what its device has mapped.
    fn transaction(&mut self, event: &Event, mapped: Option<Mapped>, names: &Names) -> io::Result<()> {
        let (raw, id) = (event.raw, event.transaction());
        let Some(mapped) = mapped else { return Ok(()) };
        let dev = mapped.dev;
        let sign = if event.is_map() {
            let lane = self.lanes.entry(dev).or_default().take(raw.ts);
            if let Some(mapped) = self.live.get_mut(id) {
                mapped.lane = lane;
            }
            let track = Track::Lane(dev, lane);
            self.describe(track, names)?;
            let schema = schema(event.kind());
            let coherent = mapped.shape.is_some_and(|shape| shape.coherent);
            let bounced = mapped.shape.is_some_and(|shape| shape.bounced);
            let name = if coherent {
                "coherent"
            } else if bounced {
                "bounced"
            } else {
                "mapped"
            };
            self.name("transaction", name);
            self.annotate(schema, event, Some(mapped), names);
            self.event.fixed(47, id);
            self.track_event(raw.ts, Type::Begin, track)?;
            1
        } else if event.is_unmap() {
            if let Some(lanes) = self.lanes.get_mut(&dev) {
                lanes.give(mapped.lane, raw.ts);
            }
            self.track_event(raw.ts, Type::End, Track::Lane(dev, mapped.lane))?;
            -1
        } else {
            return Ok(());
        };
        let bytes = sign * i64::from(mapped.len);
        self.count(raw.ts, Track::LiveMappings(dev), sign, names)?;
        self.count(raw.ts, Track::MappedBytes(dev), bytes, names)?;
        if mapped.shape.is_some_and(|shape| shape.bounced) {
            self.count(raw.ts, Track::BouncePool, bytes, names)?;
        }
        Ok(())
    }

    fn chain(&mut self, event: &Event, names: &Names) -> io::Result<()> {
        let by = match event.kind() {
            Some(Kind::VirtqAdd) => 1,
            Some(Kind::VirtqUsed) => -1,
            _ => return Ok(()),
        };
        self.count(event.raw.ts, Track::InFlight(event.raw.dev, event.raw.len), by, names)
    }

    fn count(&mut self, ts: u64, track: Track, by: i64, names: &Names) -> io::Result<()> {
        self.describe(track, names)?;
        let value = self.counters.add(track, by);
        self.event.signed(30, value);
        self.track_event(ts, Type::Counter, track)
    }

    /// Ends the step that runs; transactions that were never unmapped stay open.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.stepping {
            self.track_event(self.last, Type::End, Track::Steps)?;
        }
        self.out.flush()
    }
}
