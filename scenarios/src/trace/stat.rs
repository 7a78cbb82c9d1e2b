//! `lowzone trace stat`: how much of everything.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use lowzone_guest_mem::trace::Kind;
use serde::Serialize;

use super::error::{TraceError, ViewError};
use super::event::Event;
use super::format::End;
use super::names::Names;
use super::reader::Reader;

/// Events and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Count {
    pub(super) events: u64,
    pub(super) bytes: u64,
}

impl Count {
    fn add(&mut self, len: u32) {
        self.events += 1;
        self.bytes = self.bytes.saturating_add(u64::from(len));
    }
}

/// The totals of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Stat {
    pub(super) scenario: String,
    pub(super) seed: u64,
    pub(super) program: String,
    pub(super) events: u64,
    pub(super) kinds: BTreeMap<String, Count>,
    pub(super) devices: BTreeMap<String, Count>,
    pub(super) producers: BTreeMap<String, Count>,
    pub(super) findings: BTreeMap<String, u64>,
    pub(super) transactions: u64,
    pub(super) bounced: u64,
    pub(super) failed_maps: u64,
    pub(super) live_at_end: u64,
    /// Events that were made and are not in the file, by producer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) lost: BTreeMap<String, u64>,
    /// What the writer counted, if the file has its end.
    pub(super) end: Option<End>,
    #[serde(skip)]
    live: BTreeSet<u64>,
}

impl Stat {
    /// Reads a trace to its end, or to where it is broken.
    pub(super) fn of<R: Read>(reader: &mut Reader<R>) -> (Self, Option<TraceError>) {
        let header = reader.header();
        let mut stat = Self {
            scenario: header.scenario.clone(),
            seed: header.seed,
            program: header.program.clone(),
            ..Self::default()
        };
        let broken = loop {
            match reader.next_event() {
                Ok(Some(event)) => stat.take(&event, reader.names()),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        stat.live_at_end = stat.live.len() as u64;
        let names = reader.names();
        stat.lost = reader.losses().iter().map(|(&who, &events)| (names.producer(who), events)).collect();
        stat.end = reader.end().copied();
        (stat, broken)
    }

    fn take(&mut self, event: &Event, names: &Names) {
        let (raw, id) = (&event.raw, event.transaction());
        self.events += 1;
        let kind = event.kind();
        let len = if kind.is_none_or(Kind::len_is_bytes) { raw.len } else { 0 };
        self.kinds.entry(names.kind(raw.kind)).or_default().add(len);
        self.producers.entry(names.producer(raw.who)).or_default().add(len);
        if let Some(device) = names.device(raw.dev) {
            self.devices.entry(device).or_default().add(len);
        }
        match kind {
            Some(Kind::DmaMapPage | Kind::DmaMapSg | Kind::DmaMapResource | Kind::DmaAlloc) if id == 0 => {
                self.failed_maps += 1
            }
            Some(Kind::DmaMapPage | Kind::DmaMapSg | Kind::DmaMapResource | Kind::DmaAlloc) => {
                self.transactions += 1;
                let bounced = event.mapping.and_then(|(_, shape, _)| shape).is_some_and(|shape| shape.bounced);
                self.bounced += u64::from(bounced);
                self.live.insert(id);
            }
            Some(Kind::DmaUnmapPage | Kind::DmaUnmapSg | Kind::DmaUnmapResource | Kind::DmaFree) => {
                self.live.remove(&id);
            }
            Some(Kind::Finding) => {
                let name = names.finding(raw.len).map_or_else(|| "?".to_owned(), |finding| finding.name.clone());
                *self.findings.entry(name).or_default() += 1;
            }
            _ => {}
        }
    }

    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "{}, seed {}, {}", self.scenario, self.seed, self.program)?;
        for (title, counts) in [("kind", &self.kinds), ("device", &self.devices), ("producer", &self.producers)] {
            writeln!(out, "\n{title:<32} {:>10} {:>14}", "events", "bytes")?;
            for (name, count) in counts {
                writeln!(out, "  {name:<30} {:>10} {:>14}", count.events, count.bytes)?;
            }
        }
        writeln!(
            out,
            "\ntransactions {} ({} bounced, {} maps refused), {} live at the end",
            self.transactions, self.bounced, self.failed_maps, self.live_at_end
        )?;
        for (name, count) in &self.findings {
            writeln!(out, "finding {name}: {count}")?;
        }
        for (producer, events) in &self.lost {
            writeln!(out, "lost {events} of {producer}")?;
        }
        match self.end {
            // Threads, servers and records that lack kinds have none.
            Some(end) if end.digest == 0 => writeln!(out, "{} events, {} lost", end.events, end.lost),
            Some(end) => writeln!(out, "{} events, {} lost, digest {:016x}", end.events, end.lost, end.digest),
            None => writeln!(out, "{} events, and no end", self.events),
        }
    }
}

/// Prints the totals; a broken file's are printed before its error is returned.
pub(super) fn stat<R: Read>(reader: &mut Reader<R>, json: bool, out: &mut dyn Write) -> Result<(), ViewError> {
    let (stat, broken) = Stat::of(reader);
    if json {
        let text = serde_json::to_string_pretty(&stat).map_err(std::io::Error::from)?;
        writeln!(out, "{text}")?;
    } else {
        stat.text(out)?;
    }
    broken.map_or(Ok(()), |error| Err(error.into()))
}
