//! `lowzone trace show`: one line an event.

use std::io::{Read, Write};

use super::error::ViewError;
use super::event::Event;
use super::names::Names;
use super::reader::Reader;
use super::row::Row;

/// Which events are wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) from: u64,
    pub(super) count: Option<u64>,
    /// Part of a kind's name.
    pub(super) kind: Option<String>,
    /// A device by number.
    pub(super) dev: Option<u16>,
}

impl Filter {
    fn wants(&self, event: &Event, names: &Names) -> bool {
        event.number >= self.from
            && self.dev.is_none_or(|dev| event.raw.dev == dev)
            && self.kind.as_ref().is_none_or(|kind| names.kind(event.raw.kind).contains(kind.as_str()))
    }
}

/// Prints every event that the filter wants, to the end of the file or to where it is broken.
pub(super) fn show<R: Read>(
    reader: &mut Reader<R>,
    filter: &Filter,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), ViewError> {
    let mut left = filter.count.unwrap_or(u64::MAX);
    if !json {
        let header = reader.header();
        writeln!(out, "# {}, seed {}, {}, clock {}", header.scenario, header.seed, header.program, header.clock)?;
    }
    while left > 0 {
        let Some(event) = reader.next_event()? else { return Ok(()) };
        if !filter.wants(&event, reader.names()) {
            continue;
        }
        left -= 1;
        print(out, &Row::of(&event, reader.names()), json)?;
    }
    Ok(())
}

/// One event, as a line of text or of JSON.
pub(super) fn print(out: &mut dyn Write, row: &Row, json: bool) -> Result<(), ViewError> {
    if json {
        let text = serde_json::to_string(row).map_err(std::io::Error::from)?;
        writeln!(out, "{text}")?;
    } else {
        writeln!(out, "{row}")?;
    }
    Ok(())
}
