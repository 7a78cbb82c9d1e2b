//! `lowzone trace tx FILE ID`: one transaction's life, an event a line, in the order of time.
//!
//! The file is read once to learn which events belong to it, and once more to show them, so that memory holds neither.
//! Neighbours: `resolve`, which says what belongs to what; `tx`, which has the table. Left out: other transactions.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use lowzone_guest_mem::trace::Kind;

use super::error::{TraceError, ViewError};
use super::event::Event;
use super::names::Names;
use super::reader::Reader;
use super::request::{Mark, Request};
use super::row::Row;
use super::transaction::{Transaction, Transactions};
use super::tx::{Line, settle};

/// Accesses and syncs that are shown without being asked for.
const SHOWN: u64 = 16;

/// The transactions of these numbers, in this order, how many there were, and why the file could not be read to its end.
pub(super) fn find<R: Read>(
    reader: &mut Reader<R>,
    ids: &[u64],
) -> (Vec<Option<Transaction>>, u64, Option<TraceError>) {
    let mut found = BTreeMap::new();
    let (all, broken) = settle(reader, |t, _| {
        if ids.contains(&t.id) {
            found.insert(t.id, t);
        }
    });
    let made = all.made();
    found.extend(all.rest().filter(|t| ids.contains(&t.id)).map(|t| (t.id, t)));
    (ids.iter().map(|id| found.get(id).cloned()).collect(), made, broken)
}

/// What an event that doesn't name the transaction is to it.
enum Role {
    Allocated,
    Freed,
    Added(Request),
    Kicked,
    Taken,
    Given(Option<u64>),
    Interrupt,
    Used,
}

impl Role {
    fn text(&self, event: &Event, names: &Names) -> String {
        let by = || names.owner(event.raw.tag).unwrap_or_else(|| "by a destructor".to_owned());
        match self {
            Self::Allocated | Self::Freed => {
                let what = if matches!(self, Self::Allocated) { "allocated" } else { "freed" };
                let (kind, raw) = (names.kind(event.raw.kind), event.raw);
                format!("{what}: {kind} addr={:#x} len={}, {}", raw.addr, raw.len, by())
            }
            Self::Added(r) => format!(
                "posted: descriptor {} of {} in chain {} of queue {}, which the device may {}",
                r.segment + 1,
                r.segments,
                r.head,
                r.queue,
                if r.write { "write" } else { "read" }
            ),
            Self::Kicked => "the device is told".to_owned(),
            Self::Taken => "the device takes the chain".to_owned(),
            Self::Given(Some(bytes)) => format!("the device gives the chain back, {bytes} bytes written, as it says"),
            Self::Given(None) => "the device gives the chain back".to_owned(),
            Self::Interrupt => format!("interrupt {}", event.raw.addr),
            Self::Used => "the driver takes the chain off the ring".to_owned(),
        }
    }
}

/// The roles of events, by number, with their times.
fn roles(t: &Transaction) -> BTreeMap<u64, Vec<(u64, Role)>> {
    let mut roles: BTreeMap<u64, Vec<(u64, Role)>> = BTreeMap::new();
    let mut put = |mark: Option<Mark>, role: Role| {
        if let Some(mark) = mark {
            roles.entry(mark.event).or_default().push((mark.ts, role));
        }
    };
    put(t.allocated, Role::Allocated);
    for r in &t.requests {
        put(Some(r.added), Role::Added(*r));
        put(r.kicked, Role::Kicked);
        put(r.taken, Role::Taken);
        put(r.given, Role::Given(r.written));
        put(r.interrupt, Role::Interrupt);
        put(r.used, Role::Used);
    }
    put(t.freed.map(|(mark, _)| mark), Role::Freed);
    roles
}

/// What an event of the transaction's own says, and whether it is one of many.
fn own(t: &Transaction, event: &Event, names: &Names) -> (String, bool) {
    let raw = &event.raw;
    let by = event.by.or(event.mapping.map(|(.., by)| by));
    let by = by.and_then(|by| names.owner(by)).unwrap_or_else(|| "by a destructor".to_owned());
    let place = || format!("{} bytes at {:#x} (+{:#x})", raw.len, raw.addr, raw.addr.wrapping_sub(t.dma));
    match event.kind() {
        Some(Kind::PortRead) => (format!("the device reads {}", place()), true),
        Some(Kind::PortWrite) => (format!("the device writes {}", place()), true),
        Some(Kind::PortViolation) => (format!("the device reaches for {}: no mapping allows it", place()), false),
        Some(Kind::DmaSyncForCpu | Kind::DmaSyncSgForCpu) => (format!("passed to the CPU, {by}"), true),
        Some(Kind::DmaSyncForDevice | Kind::DmaSyncSgForDevice) => (format!("passed to the device, {by}"), true),
        Some(Kind::DmaMapPage | Kind::DmaMapSg | Kind::DmaMapResource | Kind::DmaAlloc) => {
            (format!("mapped: {} {}, {by}", names.kind(raw.kind), place()), false)
        }
        Some(Kind::DmaUnmapPage | Kind::DmaUnmapSg | Kind::DmaUnmapResource | Kind::DmaFree) => {
            let copied = if event.copied > 0 { format!(", {} bytes copied back", event.copied) } else { String::new() };
            (format!("unmapped: {}{copied}, {by}", names.kind(raw.kind)), false)
        }
        Some(Kind::Finding) => {
            let text = names.finding(raw.len).map(|finding| finding.text.replace('\n', "\n                         "));
            (format!("FINDING {}", text.unwrap_or_else(|| raw.len.to_string())), false)
        }
        _ => (names.kind(raw.kind), false),
    }
}

/// Prints the life of `t` from a fresh reader of its file: as lines, or, if `json`, as events; `all` with every access.
pub(super) fn life<R: Read>(
    reader: &mut Reader<R>,
    t: &Transaction,
    (all, json): (bool, bool),
    out: &mut dyn Write,
) -> Result<(), ViewError> {
    let (roles, mut lives, mut many) = (roles(t), Transactions::new(), 0_u64);
    let line = |out: &mut dyn Write, ns: u64, who: &str, text: &str| writeln!(out, "  {ns:>10} ns  {who:<6}  {text}");
    // What breaks the file was told when it was read before.
    while let Ok(Some(event)) = reader.next_event() {
        let mine = lives.take(&event, reader.names()) == t.id;
        while lives.settled().is_some() {}
        let names = reader.names();
        let parts = roles.get(&event.number);
        if !mine && parts.is_none() {
            continue;
        }
        if json {
            let text = serde_json::to_string(&Row::of(&event, names)).map_err(std::io::Error::from)?;
            writeln!(out, "{text}")?;
            continue;
        }
        let who = names.producer(event.raw.who);
        if mine {
            let (text, repeated) = own(t, &event, names);
            many += u64::from(repeated);
            if all || !repeated || many <= SHOWN {
                line(out, event.raw.ts, &who, &text)?;
            } else if many == SHOWN + 1 {
                writeln!(out, "  {:>13}  {:<6}  more accesses and syncs, which --events shows", "...", "")?;
            }
        }
        for (ns, role) in parts.into_iter().flatten() {
            line(out, *ns, &who, &role.text(&event, names))?;
        }
    }
    Ok(())
}

/// The lines above a life.
pub(super) fn heading(t: &Transaction, line: &Line, out: &mut dyn Write) -> std::io::Result<()> {
    let Line { device, direction, dma, phys, zone, .. } = line;
    write!(out, "transaction {} of {device}: {} bytes {direction} at dma {dma:#x}, ", t.id, t.len)?;
    write!(out, "phys {phys:#x} ({zone})")?;
    if line.bounced {
        write!(out, ", bounced from {:#x} ({})", line.buffer, line.buffer_zone)?;
    }
    writeln!(out)?;
    let (reads, writes, touched) = (t.reads, t.writes, t.touched());
    write!(out, "  {reads} reads and {writes} writes touched {touched} bytes; in {} chains", t.chains)?;
    if usize::try_from(t.chains).is_ok_and(|chains| chains > t.requests.len()) {
        write!(out, ", of which the last {} are shown", t.requests.len())?;
    }
    if !line.wrong.is_empty() {
        write!(out, "; wrong: {}", line.wrong.join(", "))?;
    }
    writeln!(out)
}
