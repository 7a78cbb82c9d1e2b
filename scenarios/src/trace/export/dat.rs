//! The export that kernel people's tools open: `trace.dat` version 6, for `trace-cmd report` and KernelShark.
//!
//! The file has each producer's pages in one piece, and before them where each piece begins and the names of call sites.
//! So the trace is read twice: a [`Survey`] counts pages and sites, then a [`Dat`] writes each page where it belongs.
//! Memory holds one page a producer, whatever the trace's size. A producer is one of trace-cmd's CPUs, and its name is that
//! of the only task there, whose number is one more. Neighbours: `pages`, `format`. Left out: the file's options, lost
//! events.

mod format;
mod pages;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use self::format::{COMMON, formats, id, layout};
use self::pages::{PAGE, Pages};
use super::schema::{EVENTS, Field, schema};
use super::value::{Live, Mapped, Value, symbol, value, word};
use crate::trace::event::Event;
use crate::trace::names::Names;

/// Where made-up addresses of call sites begin: Linux's own code does.
const CODE: u64 = 0xffff_ffff_8100_0000;
/// Bytes of code that each has.
const STEP: u64 = 16;
/// The most call sites that get an address: no program has more, and a file may claim any number.
const SITES: usize = 1 << 16;

/// The bytes of events, apart from where call sites lie.
struct Packer {
    layouts: BTreeMap<u16, Vec<(usize, Field)>>,
    other: Vec<(usize, Field)>,
    live: Live,
    payload: Vec<u8>,
}

impl Packer {
    fn new() -> Self {
        let known = EVENTS.iter().filter_map(|(kind, schema)| Some((kind.as_ref()?.number(), layout(schema.fields))));
        let other = layout(schema(None).fields);
        Self { layouts: known.collect(), other, live: Live::default(), payload: Vec::new() }
    }

    /// Packs an event into `payload`; `site` says where an owner's code lies.
    fn pack(&mut self, event: &Event, names: &Names, mut site: impl FnMut(u64) -> u64) {
        let mapped = self.live.take(event);
        let (fields, kind) = match self.layouts.get(&event.raw.kind) {
            Some(fields) => (fields, event.raw.kind),
            None => (&self.other, 0),
        };
        let payload = &mut self.payload;
        payload.clear();
        payload.extend(id(kind).to_le_bytes());
        payload.extend([0; 2]);
        payload.extend((u32::from(event.raw.who) + 1).to_le_bytes());
        debug_assert_eq!(payload.len(), COMMON);
        let fixed = fields.iter().map(|(at, field)| at + field.form.bytes()).max().unwrap_or(COMMON);
        payload.resize(fixed, 0);
        for (at, field) in fields {
            put(payload, *at, field, event, mapped, names, &mut site);
        }
    }
}

/// Puts one field at its offset; a text goes to the end, and its place to the offset.
fn put(
    payload: &mut Vec<u8>,
    at: usize,
    field: &Field,
    event: &Event,
    mapped: Option<Mapped>,
    names: &Names,
    site: &mut impl FnMut(u64) -> u64,
) {
    let number = match value(field.of, event, mapped, names) {
        Value::Number(number) => number,
        Value::Owner(owner) => site(owner),
        Value::Text(text) => {
            let (from, len) = (payload.len() as u64, text.len() as u64 + 1);
            payload.extend(text.as_bytes());
            payload.push(0);
            len << 16 | from
        }
    };
    let bytes = number.to_le_bytes();
    payload.iter_mut().skip(at).zip(bytes.iter().take(field.form.bytes())).for_each(|(to, from)| *to = *from);
}

/// The first reading: how many pages each producer fills, and which call sites there are.
pub(super) struct Survey {
    packer: Packer,
    pages: BTreeMap<u16, Pages>,
    owners: BTreeSet<u64>,
}

/// What a survey found.
pub(super) struct Plan {
    /// Pages of each producer.
    pages: BTreeMap<u16, u64>,
    owners: BTreeSet<u64>,
}

impl Survey {
    pub(super) fn new() -> Self {
        Self { packer: Packer::new(), pages: BTreeMap::new(), owners: BTreeSet::new() }
    }

    pub(super) fn event(&mut self, event: &Event, names: &Names) {
        let owners = &mut self.owners;
        self.packer.pack(event, names, |owner| {
            if owners.len() < SITES {
                owners.insert(owner);
            }
            0
        });
        let pages = self.pages.entry(event.raw.who).or_default();
        let Ok(()) = pages.push(event.raw.ts, &self.packer.payload, |_, _| Ok::<_, Infallible>(()));
    }

    pub(super) fn finish(self) -> Plan {
        let filled = self.pages.into_iter().map(|(who, mut pages)| {
            let Ok(()) = pages.turn(|_, _| Ok::<_, Infallible>(()));
            (who, pages.filled())
        });
        Plan { pages: filled.collect(), owners: self.owners }
    }
}

/// The second reading: the file.
pub(super) struct Dat {
    file: File,
    packer: Packer,
    sites: BTreeMap<u64, u64>,
    rings: BTreeMap<u16, Ring>,
}

/// One producer's place in the file.
struct Ring {
    pages: Pages,
    offset: u64,
    room: u64,
}

impl Ring {
    /// Writes a page where it belongs; the first reading must have seen it too.
    fn place(file: &File, offset: u64, room: u64) -> impl FnOnce(u64, &[u8]) -> io::Result<()> {
        move |number, page| {
            if number >= room {
                return Err(io::Error::other(Changed));
            }
            file.write_all_at(page, offset + number * PAGE as u64)
        }
    }
}

/// The trace's second reading gave more than the first.
#[derive(Debug, thiserror::Error)]
#[error("the trace changed while it was exported")]
struct Changed;

impl Dat {
    /// Begins the file; `names` are those at the end of the trace.
    pub(super) fn new(file: File, plan: &Plan, names: &Names) -> io::Result<Self> {
        let addresses = (0..).map(|index| CODE + index * STEP);
        let sites: BTreeMap<u64, u64> = plan.owners.iter().copied().zip(addresses).collect();
        let mut head = head(plan, &sites, names);
        let cpus = plan.pages.keys().next_back().map_or(1, |&last| u32::from(last) + 1);
        head.extend(cpus.to_le_bytes());
        // No options, and what follows is the buffers.
        head.extend(b"options  \0\0\0flyrecord\0");
        let begin = (head.len() as u64 + 16 * u64::from(cpus)).next_multiple_of(PAGE as u64);
        let (mut rings, mut at) = (BTreeMap::new(), begin);
        for who in 0..cpus {
            let who = u16::try_from(who).unwrap_or(u16::MAX);
            let room = plan.pages.get(&who).copied().unwrap_or(0);
            let bytes = room * PAGE as u64;
            head.extend(at.to_le_bytes());
            head.extend(bytes.to_le_bytes());
            if room > 0 {
                rings.insert(who, Ring { pages: Pages::default(), offset: at, room });
            }
            at += bytes;
        }
        head.resize(usize::try_from(begin).unwrap_or(head.len()), 0);
        (&file).write_all(&head)?;
        Ok(Self { file, packer: Packer::new(), sites, rings })
    }

    pub(super) fn event(&mut self, event: &Event, names: &Names) -> io::Result<()> {
        let sites = &self.sites;
        self.packer.pack(event, names, |owner| sites.get(&owner).copied().unwrap_or(0));
        let ring = self.rings.get_mut(&event.raw.who).ok_or_else(|| io::Error::other(Changed))?;
        let place = Ring::place(&self.file, ring.offset, ring.room);
        ring.pages.push(event.raw.ts, &self.packer.payload, place)
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        for ring in self.rings.values_mut() {
            ring.pages.turn(Ring::place(&self.file, ring.offset, ring.room))?;
            if ring.pages.filled() != ring.room {
                return Err(io::Error::other(Changed));
            }
        }
        Ok(())
    }
}

/// Everything before the number of CPUs.
fn head(plan: &Plan, sites: &BTreeMap<u64, u64>, names: &Names) -> Vec<u8> {
    let mut head = b"\x17\x08\x44tracing6\0".to_vec();
    // Little-endian, 8 bytes in a long.
    head.extend([0, 8]);
    head.extend(number(PAGE).to_le_bytes());
    for (name, text) in [("header_page", format::HEADER_PAGE), ("header_event", format::HEADER_EVENT)] {
        head.extend(name.as_bytes());
        head.push(0);
        long(&mut head, text);
    }
    // Of ftrace's own events none.
    head.extend(0_u32.to_le_bytes());
    let systems = formats();
    head.extend(number(systems.len()).to_le_bytes());
    for (system, texts) in systems {
        head.extend(system.as_bytes());
        head.push(0);
        head.extend(number(texts.len()).to_le_bytes());
        texts.iter().for_each(|text| long(&mut head, text));
    }
    let symbols: String =
        sites.iter().map(|(&owner, address)| format!("{address:016x} T {}\n", symbol(owner, names))).collect();
    head.extend(number(symbols.len()).to_le_bytes());
    head.extend(symbols.as_bytes());
    // No texts of printk's.
    head.extend(0_u32.to_le_bytes());
    let tasks = plan.pages.keys().map(|&who| format!("{} {}\n", u32::from(who) + 1, word(&names.producer(who))));
    long(&mut head, &tasks.collect::<String>());
    head
}

fn long(head: &mut Vec<u8>, text: &str) {
    head.extend((text.len() as u64).to_le_bytes());
    head.extend(text.as_bytes());
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
