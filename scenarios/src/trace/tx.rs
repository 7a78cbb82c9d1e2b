//! `lowzone trace tx` and `who`: one line a transaction, in the order of their ends, those that never ended last.
//!
//! Neighbours: `resolve`, `transaction`; `life`, which tells one of them in full.

use std::io::{Read, Write};

use serde::Serialize;

use super::error::{TraceError, ViewError};
use super::life::{find, heading as heading_of, life};
use super::names::Names;
use super::reader::Reader;
use super::request::{Mark, Request};
use super::transaction::{Transaction, Transactions};

/// What is said of a mapping that the record's end finds live.
const NEVER_UNMAPPED: &str = "never unmapped";

/// Which transactions are wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// Only those with something wrong.
    pub(super) wrong: bool,
    /// Only those that cover this address.
    pub(super) addr: Option<u64>,
}

/// A transaction with its numbers resolved.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    covers_as: Option<&'static str>,
    pub(super) device: String,
    pub(super) direction: String,
    coherent: bool,
    pub(super) bounced: bool,
    bytes: u64,
    touched: u64,
    pub(super) dma: u64,
    pub(super) phys: u64,
    pub(super) zone: String,
    pub(super) buffer: u64,
    pub(super) buffer_zone: String,
    reads: u64,
    read_bytes: u64,
    writes: u64,
    write_bytes: u64,
    syncs: u64,
    allocated_ns: Option<u64>,
    mapped_ns: Option<u64>,
    first_ns: Option<u64>,
    last_ns: Option<u64>,
    unmapped_ns: Option<u64>,
    freed_ns: Option<u64>,
    chains: u64,
    requests: Vec<RequestLine>,
    pub(super) wrong: Vec<String>,
    mapped_by: Option<String>,
    allocated_by: Option<String>,
    unmapped_by: Option<String>,
    freed_by: Option<String>,
}

/// One chain that a transaction was in.
#[derive(Debug, Serialize)]
struct RequestLine {
    queue: u32,
    head: u64,
    segment: usize,
    segments: usize,
    device_writes: bool,
    added_ns: u64,
    kicked_ns: Option<u64>,
    taken_ns: Option<u64>,
    given_ns: Option<u64>,
    written: Option<u64>,
    interrupt_ns: Option<u64>,
    used_ns: Option<u64>,
}

impl From<&Request> for RequestLine {
    fn from(r: &Request) -> Self {
        let ns = |mark: Option<Mark>| mark.map(|mark| mark.ts);
        Self {
            queue: r.queue,
            head: r.head,
            segment: r.segment,
            segments: r.segments,
            device_writes: r.write,
            added_ns: r.added.ts,
            kicked_ns: ns(r.kicked),
            taken_ns: ns(r.taken),
            given_ns: ns(r.given),
            written: r.written,
            interrupt_ns: ns(r.interrupt),
            used_ns: ns(r.used),
        }
    }
}

impl Line {
    pub(super) fn of(t: &Transaction, names: &Names, complete: bool, addr: Option<u64>) -> Self {
        let shape =
            |pick: &dyn Fn(lowzone_guest_mem::trace::Shape) -> String| t.shape.map_or_else(|| "?".to_owned(), pick);
        let mut wrong: Vec<String> = Vec::new();
        for (_, name) in &t.wrong {
            if !wrong.contains(name) {
                wrong.push(name.clone());
            }
        }
        if complete && t.is_live() {
            wrong.push(NEVER_UNMAPPED.to_owned());
        }
        Self {
            id: t.id,
            covers_as: addr.and_then(|addr| t.covers(addr)),
            device: names.device(t.dev).unwrap_or_else(|| "?".to_owned()),
            direction: shape(&|shape| shape.dir.to_string()),
            coherent: t.shape.is_some_and(|shape| shape.coherent),
            bounced: t.shape.is_some_and(|shape| shape.bounced),
            bytes: t.len,
            touched: t.touched(),
            dma: t.dma,
            phys: t.phys,
            zone: shape(&|shape| shape.zone.to_string()),
            buffer: t.buffer,
            buffer_zone: shape(&|shape| shape.buffer_zone.to_string()),
            reads: t.reads,
            read_bytes: t.read_bytes,
            writes: t.writes,
            write_bytes: t.write_bytes,
            syncs: t.syncs,
            allocated_ns: t.allocated.map(|mark| mark.ts),
            mapped_ns: t.mapped,
            first_ns: t.first,
            last_ns: t.last,
            unmapped_ns: t.unmapped.map(|(ts, _)| ts),
            freed_ns: t.freed.map(|(mark, _)| mark.ts),
            chains: t.chains,
            requests: t.requests.iter().map(RequestLine::from).collect(),
            wrong,
            mapped_by: names.owner(t.mapped_by),
            allocated_by: names.owner(t.allocated_by),
            unmapped_by: t.unmapped.and_then(|(_, by)| names.owner(by)),
            freed_by: t.freed.and_then(|(_, by)| names.owner(by)),
        }
    }

    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let time = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), |ns| ns.to_string());
        let short = self.direction.trim_start_matches("DMA_");
        let direction = if self.coherent { "coherent" } else { short };
        let bounced =
            if self.bounced { format!("{} ({})", hex(self.buffer), self.buffer_zone) } else { "-".to_owned() };
        let wrong = if self.wrong.is_empty() { "-".to_owned() } else { self.wrong.join(", ") };
        write!(
            out,
            "{:>6}  {:<8} {:<13} {:>8} {:>8}  {:>12} {:>12} {:<6}  {:<21} {:<7} {:>5} {:>5}  {:>10} {:>10} {:>10} \
             {:>10} {:>10}  {:<15}",
            self.id,
            self.device,
            direction,
            self.bytes,
            self.touched,
            hex(self.dma),
            hex(self.phys),
            self.zone,
            bounced,
            self.chain(),
            self.reads,
            self.writes,
            time(self.allocated_ns),
            time(self.mapped_ns),
            time(self.first_ns),
            time(self.unmapped_ns),
            time(self.freed_ns),
            wrong
        )?;
        if let Some(what) = self.covers_as {
            write!(out, "  by its {what} address")?;
        }
        let site = |by: &Option<String>, without: &str| by.clone().unwrap_or_else(|| without.to_owned());
        write!(out, "  mapped {}", site(&self.mapped_by, "?"))?;
        if self.allocated_by != self.mapped_by {
            write!(out, "; allocated {}", site(&self.allocated_by, "?"))?;
        }
        for (what, when, by) in
            [("unmapped", self.unmapped_ns, &self.unmapped_by), ("freed", self.freed_ns, &self.freed_by)]
        {
            if when.is_some() {
                write!(out, "; {what} {}", site(by, "by a destructor"))?;
            }
        }
        writeln!(out)
    }

    /// The last chain as queue:head, and how many there were besides.
    fn chain(&self) -> String {
        let Some(last) = self.requests.last() else { return "-".to_owned() };
        let others = if self.chains > 1 { format!("+{}", self.chains - 1) } else { String::new() };
        format!("{}:{}{others}", last.queue, last.head)
    }
}

fn hex(addr: u64) -> String {
    format!("{addr:#x}")
}

fn heading(out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(
        out,
        "{:>6}  {:<8} {:<13} {:>8} {:>8}  {:>12} {:>12} {:<6}  {:<21} {:<7} {:>5} {:>5}  {:>10} {:>10} {:>10} \
         {:>10} {:>10}  {:<15}  sites",
        "id",
        "device",
        "direction",
        "bytes",
        "touched",
        "dma",
        "phys",
        "zone",
        "bounced from",
        "chain",
        "reads",
        "writes",
        "alloc ns",
        "map ns",
        "first ns",
        "unmap ns",
        "free ns",
        "wrong"
    )
}

struct Printer<'a> {
    wanted: &'a Wanted,
    json: bool,
    headed: bool,
    shown: u64,
}

impl Printer<'_> {
    fn take(&mut self, t: &Transaction, names: &Names, complete: bool, out: &mut dyn Write) -> Result<(), ViewError> {
        let line = Line::of(t, names, complete, self.wanted.addr);
        let by_fault = !self.wanted.wrong || !line.wrong.is_empty();
        let by_addr = self.wanted.addr.is_none() || line.covers_as.is_some();
        if !(by_fault && by_addr) {
            return Ok(());
        }
        self.shown += 1;
        if self.json {
            let text = serde_json::to_string(&line).map_err(std::io::Error::from)?;
            writeln!(out, "{text}")?;
            return Ok(());
        }
        if !std::mem::replace(&mut self.headed, true) {
            heading(out)?;
        }
        line.text(out)?;
        Ok(())
    }
}

/// Reads to the end, or to where the file is broken; every transaction goes to `settled` once nothing can belong to it any
/// more, and those that are left come back.
pub(super) fn settle<R: Read>(
    reader: &mut Reader<R>,
    mut settled: impl FnMut(Transaction, &Names),
) -> (Transactions, Option<TraceError>) {
    let mut all = Transactions::new();
    let broken = loop {
        match reader.next_event() {
            Ok(Some(event)) => all.take(&event, reader.names()),
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        std::iter::from_fn(|| all.settled()).for_each(|t| settled(t, reader.names()));
    };
    (all, broken)
}

/// Prints what is wanted; how many that were. A broken file's transactions are printed before its error is returned.
pub(super) fn tx<R: Read>(
    reader: &mut Reader<R>,
    wanted: &Wanted,
    json: bool,
    out: &mut dyn Write,
) -> Result<u64, ViewError> {
    let mut printer = Printer { wanted, json, headed: false, shown: 0 };
    let mut failed = Ok(());
    let (all, broken) = settle(reader, |t, names| {
        if failed.is_ok() {
            failed = printer.take(&t, names, true, out);
        }
    });
    failed?;
    for t in all.rest() {
        printer.take(&t, reader.names(), broken.is_none(), out)?;
    }
    if let Some(error) = broken {
        return Err(error.into());
    }
    Ok(printer.shown)
}

/// Prints transactions by number, each with its life: `open` gives a fresh reader of the same file. With `json` an
/// object each, and with `all` every event of theirs after it.
pub(super) fn lives<R: Read>(
    mut open: impl FnMut() -> Result<Reader<R>, TraceError>,
    ids: &[u64],
    (all, json): (bool, bool),
    out: &mut dyn Write,
) -> Result<(), ViewError> {
    let mut reader = open()?;
    let (found, made, broken) = find(&mut reader, ids);
    for t in found.iter().flatten() {
        let line = Line::of(t, reader.names(), broken.is_none(), None);
        if json {
            writeln!(out, "{}", serde_json::to_string(&line).map_err(std::io::Error::from)?)?;
        } else {
            heading_of(t, &line, out)?;
        }
        if all || !json {
            life(&mut open()?, t, (all, json), out)?;
        }
    }
    if let Some(error) = broken {
        return Err(error.into());
    }
    match ids.iter().zip(&found).find(|(_, found)| found.is_none()) {
        Some((&id, _)) => Err(ViewError::NoTransaction { name: reader.name().to_owned(), id, made }),
        None => Ok(()),
    }
}
