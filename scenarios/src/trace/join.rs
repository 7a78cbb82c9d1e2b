//! `lowzone trace join DRIVER DEVICE -o OUT`: two records of one session, the driver's and that of a peer's device, as
//! one file.
//!
//! The driver's file says who mapped what, the device's what it touched. Times are brought to one clock by the `began`
//! of both headers, and each producer of the device gets a ring of its own behind the driver's. Queues of a device send
//! whole pages, so its file is in order only queue by queue: it is read once for each, and merged; memory holds a block
//! of each and the names. Which mapping an access meant is found by its address, as in every reading of a file.
//! Neighbours: `reader`, `writer`, `resolve`. Left out: clocks of two hosts.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::error::{TraceError, ViewError};
use super::event::{Event, Raw};
use super::feed::Losses;
use super::format::{Header, Table};
use super::names::Names;
use super::reader::Reader;
use super::writer::Writer;

/// Records that are written together.
const PAGE: usize = 512;

/// The events of one file, or of one producer of it, with the next one looked at.
struct Source<R> {
    reader: Reader<R>,
    only: Option<u16>,
    next: Vec<Raw>,
    ahead: Option<Raw>,
    broken: Option<TraceError>,
}

impl<R: Read> Source<R> {
    fn new(reader: Reader<R>, only: Option<u16>) -> Self {
        let mut source = Self { reader, only, next: Vec::new(), ahead: None, broken: None };
        source.advance();
        source
    }

    fn record(&mut self) -> Option<Raw> {
        loop {
            match self.ahead.take().map_or_else(|| self.reader.next_record(), |raw| Ok(Some(raw))) {
                Ok(Some(raw)) if self.only.is_none_or(|only| only == raw.who) => return Some(raw),
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(error) => {
                    self.broken = Some(error);
                    return None;
                }
            }
        }
    }

    /// Goes to the next event, with its details.
    fn advance(&mut self) {
        self.next.clear();
        let first = self.record();
        self.next.extend(first);
        while let Some(raw) = self.record() {
            if self.next.is_empty() || !raw.is_detail() {
                self.ahead = Some(raw);
                break;
            }
            self.next.push(raw);
        }
    }
}

/// What is known of a file before it is merged.
struct Known {
    header: Header,
    names: Names,
    producers: Vec<u16>,
    /// Whether it has mappings, as a driver's record.
    maps: bool,
    losses: Losses,
    digest: u64,
    end: u64,
    broken: Option<TraceError>,
}

impl Known {
    fn of(path: &Path) -> Result<Self, TraceError> {
        let mut reader = Reader::open(path)?;
        let mut producers = std::collections::BTreeSet::new();
        let (mut last, mut maps) = (0, false);
        let broken = loop {
            match reader.next_record() {
                Ok(Some(raw)) => {
                    last = last.max(raw.ts);
                    producers.insert(raw.who);
                    maps |= Event::new(0, raw).is_map();
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let end = reader.end().copied().unwrap_or_default();
        Ok(Self {
            header: reader.header().clone(),
            names: reader.names().clone(),
            producers: producers.into_iter().collect(),
            maps,
            losses: reader.losses().clone(),
            digest: end.digest,
            end: end.ts.max(last),
            broken,
        })
    }

    /// When it began, by the clock that both files have in common.
    fn began(&self, path: &Path) -> Result<u64, ViewError> {
        self.header.began.ok_or_else(|| ViewError::NoClock { name: path.display().to_string() })
    }
}

/// The number of the driver's device that the other file is of.
fn device(driver: &Known, path: &Path, wanted: Option<&str>) -> Result<u16, ViewError> {
    let name = || path.display().to_string();
    let numbers: Vec<_> = driver.names.device_numbers().collect();
    let known =
        || driver.names.devices().map(|(place, name)| format!("{name} ({place})")).collect::<Vec<_>>().join(", ");
    match (wanted, &numbers[..]) {
        (Some(wanted), _) => driver.names.device_number(wanted).ok_or_else(|| ViewError::NoDevice {
            name: name(),
            device: wanted.to_owned(),
            known: format!("; there is {}", known()),
        }),
        (None, [one]) => Ok(*one),
        (None, _) => Err(ViewError::WhichDevice { name: name(), known: known() }),
    }
}

/// What becomes of the device's numbers.
struct Renumbered {
    /// The driver's device.
    dev: u16,
    /// The first producer, and before it the names of the driver's devices.
    first: u16,
    producers: Vec<u16>,
    shift: u64,
}

impl Renumbered {
    fn producer(&self, who: u16) -> u16 {
        let index = self.producers.iter().position(|&known| known == who).unwrap_or(0);
        self.first.saturating_add(u16::try_from(index).unwrap_or(u16::MAX))
    }

    fn apply(&self, raw: &mut Raw) {
        raw.who = self.producer(raw.who);
        raw.dev = if raw.dev == 0 { 0 } else { self.dev };
        raw.ts = raw.ts.saturating_add(self.shift);
    }
}

/// Joins the two files into `out`; the first thing that was wrong with one of them comes back once all that can be read
/// is written.
pub(super) fn join<W: Write>(
    (driver_at, device_at): (&PathBuf, &PathBuf),
    wanted: Option<&str>,
    out: W,
) -> Result<(), ViewError> {
    let (driver, peer) = (Known::of(driver_at)?, Known::of(device_at)?);
    for (known, path, is_driver) in [(&driver, driver_at, true), (&peer, device_at, false)] {
        if known.maps != is_driver {
            let name = path.display().to_string();
            return Err(if is_driver { ViewError::NoDriver { name } } else { ViewError::NoPeer { name } });
        }
    }
    let dev = device(&driver, driver_at, wanted)?;
    let (driver_began, peer_began) = (driver.began(driver_at)?, peer.began(device_at)?);
    let began = driver_began.min(peer_began);
    let highest = driver.names.device_numbers().max().unwrap_or(0);
    let cpus = u16::try_from(driver.header.cpus).unwrap_or(u16::MAX);
    let numbers = Renumbered {
        dev,
        first: cpus.saturating_add(highest).saturating_add(1),
        producers: peer.producers.clone(),
        shift: peer_began - began,
    };
    let shift = driver_began - began;
    let header = Header { began: Some(began), ..driver.header.clone() };
    let mut writer = Writer::new(out, &header, &[], None)?;
    for (table, number, text) in driver.names.entries() {
        writer.name(table, number, &text);
    }
    let of = driver.names.device(dev).unwrap_or_default();
    for (index, &who) in (1..).zip(&peer.producers) {
        let queue = peer.names.producer(who);
        writer.name(Table::Device, u32::from(highest) + index, &format!("{of}, {queue}\n{of}:{queue}"));
    }
    let mut sources = vec![Source::new(Reader::open(driver_at)?, None)];
    for &who in &peer.producers {
        sources.push(Source::new(Reader::open(device_at)?, Some(who)));
    }
    let mut page = Vec::with_capacity(PAGE);
    // The first of equals: what the driver did comes before what the device made of it.
    let time = |(index, source): &(usize, &Source<_>)| {
        source.next.first().map(|raw| raw.ts + if *index == 0 { shift } else { numbers.shift })
    };
    while let Some((at, _)) =
        sources.iter().enumerate().filter_map(|one| Some((one.0, time(&one)?))).min_by_key(|one| one.1)
    {
        let source = &mut sources[at];
        for mut raw in source.next.drain(..) {
            if at == 0 {
                raw.ts = raw.ts.saturating_add(shift)
            } else {
                numbers.apply(&mut raw)
            }
            page.push(raw);
        }
        source.advance();
        if page.len() >= PAGE {
            writer.raw_page(&page);
            page.clear();
        }
    }
    writer.raw_page(&page);
    writer.lost(driver.losses);
    writer.lost(peer.losses.into_iter().map(|(who, events)| (numbers.producer(who), events)).collect());
    let end = driver.end.saturating_add(shift).max(peer.end.saturating_add(numbers.shift));
    writer.finish(driver.digest, end)?;
    driver.broken.or(peer.broken).map_or(Ok(()), |error| Err(error.into()))
}
