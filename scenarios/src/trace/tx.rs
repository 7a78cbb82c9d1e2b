//! `lowzone trace tx` and `who`: one line a transaction, in the order of their ends, those that never ended last.

use std::io::{Read, Write};

use serde::Serialize;

use super::error::ViewError;
use super::names::Names;
use super::reader::Reader;
use super::transaction::{Transaction, Transactions};

/// What is said of a mapping that the record's end finds live.
const NEVER_UNMAPPED: &str = "never unmapped";

/// Which transactions are wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// These numbers; none = all.
    pub(super) ids: Vec<u64>,
    /// Only those with something wrong.
    pub(super) wrong: bool,
    /// Only those that cover this address.
    pub(super) addr: Option<u64>,
}

/// A transaction with its numbers resolved.
#[derive(Debug, Serialize)]
struct Line {
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    covers_as: Option<&'static str>,
    device: String,
    direction: String,
    coherent: bool,
    bounced: bool,
    bytes: u64,
    touched: u64,
    dma: u64,
    phys: u64,
    zone: String,
    buffer: u64,
    buffer_zone: String,
    reads: u64,
    read_bytes: u64,
    writes: u64,
    write_bytes: u64,
    syncs: u64,
    mapped_ns: Option<u64>,
    first_ns: Option<u64>,
    unmapped_ns: Option<u64>,
    wrong: Vec<String>,
    mapped_by: Option<String>,
    allocated_by: Option<String>,
    unmapped_by: Option<String>,
}

impl Line {
    fn of(t: &Transaction, names: &Names, complete: bool, addr: Option<u64>) -> Self {
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
            mapped_ns: t.mapped,
            first_ns: t.first,
            unmapped_ns: t.unmapped.map(|(ts, _)| ts),
            wrong,
            mapped_by: names.owner(t.mapped_by),
            allocated_by: names.owner(t.allocated_by),
            unmapped_by: t.unmapped.and_then(|(_, by)| names.owner(by)),
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
            "{:>6}  {:<8} {:<13} {:>8} {:>8}  {:>12} {:>12} {:<6}  {:<21} {:>5} {:>5}  {:>10} {:>10} {:>10}  {:<15}",
            self.id,
            self.device,
            direction,
            self.bytes,
            self.touched,
            hex(self.dma),
            hex(self.phys),
            self.zone,
            bounced,
            self.reads,
            self.writes,
            time(self.mapped_ns),
            time(self.first_ns),
            time(self.unmapped_ns),
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
        match self.unmapped_ns {
            Some(_) => writeln!(out, "; unmapped {}", site(&self.unmapped_by, "by a destructor")),
            None => writeln!(out),
        }
    }
}

fn hex(addr: u64) -> String {
    format!("{addr:#x}")
}

fn heading(out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(
        out,
        "{:>6}  {:<8} {:<13} {:>8} {:>8}  {:>12} {:>12} {:<6}  {:<21} {:>5} {:>5}  {:>10} {:>10} {:>10}  {:<15}  sites",
        "id",
        "device",
        "direction",
        "bytes",
        "touched",
        "dma",
        "phys",
        "zone",
        "bounced from",
        "reads",
        "writes",
        "map ns",
        "first ns",
        "unmap ns",
        "wrong"
    )
}

struct Printer<'a> {
    wanted: &'a Wanted,
    json: bool,
    headed: bool,
    shown: u64,
    missing: Vec<u64>,
}

impl Printer<'_> {
    fn take(&mut self, t: &Transaction, names: &Names, complete: bool, out: &mut dyn Write) -> Result<(), ViewError> {
        self.missing.retain(|&id| id != t.id);
        let line = Line::of(t, names, complete, self.wanted.addr);
        let by_id = self.wanted.ids.is_empty() || self.wanted.ids.contains(&t.id);
        let by_fault = !self.wanted.wrong || !line.wrong.is_empty();
        let by_addr = self.wanted.addr.is_none() || line.covers_as.is_some();
        if !(by_id && by_fault && by_addr) {
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

/// Prints what is wanted; how many that were. A broken file's transactions are printed before its error is returned.
pub(super) fn tx<R: Read>(
    reader: &mut Reader<R>,
    wanted: &Wanted,
    json: bool,
    out: &mut dyn Write,
) -> Result<u64, ViewError> {
    let mut printer = Printer { wanted, json, headed: false, shown: 0, missing: wanted.ids.clone() };
    let mut all = Transactions::new();
    let broken = loop {
        match reader.next_event() {
            Ok(Some(event)) => all.take(&event, reader.names()),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
        while let Some(t) = all.settled() {
            printer.take(&t, reader.names(), true, out)?;
        }
    };
    let made = all.made();
    for t in all.rest() {
        printer.take(&t, reader.names(), broken.is_none(), out)?;
    }
    if let Some(error) = broken {
        return Err(error.into());
    }
    match printer.missing.first() {
        Some(&id) => Err(ViewError::NoTransaction { name: reader.name().to_owned(), id, made }),
        None => Ok(printer.shown),
    }
}
