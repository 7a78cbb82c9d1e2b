//! `lowzone trace diff`: the first event in which two traces part.
//!
//! Two events are the same if kind, length and producer are: what the digest sees. If all are, the first difference
//! in time, address or site is named instead. Neighbours: `row`. Left out: finding the common rest after it.

use std::collections::VecDeque;
use std::io::{Read, Write};

use serde::Serialize;

use super::error::ViewError;
use super::event::Event;
use super::reader::Reader;
use super::row::Row;

/// Events shown before the difference.
const CONTEXT: usize = 5;

/// Where two traces part.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Difference {
    /// `none`, `values` (the digests agree) or `events`.
    pub(super) differ: &'static str,
    /// Events compared without a difference.
    pub(super) same: u64,
    /// The last events before it.
    pub(super) before: Vec<Row>,
    /// The first file's event; none if it ends here.
    pub(super) a: Option<Row>,
    /// The second file's event.
    pub(super) b: Option<Row>,
}

fn same_event(a: &Event, b: &Event) -> bool {
    (a.raw.kind, a.raw.len, a.raw.who) == (b.raw.kind, b.raw.len, b.raw.who)
}

/// Compares two traces event by event.
pub(super) fn parting<R: Read, S: Read>(a: &mut Reader<R>, b: &mut Reader<S>) -> Result<Difference, ViewError> {
    let mut before: VecDeque<Row> = VecDeque::with_capacity(CONTEXT + 1);
    let mut values: Option<Difference> = None;
    let mut same = 0;
    loop {
        let (x, y) = (a.next_event()?, b.next_event()?);
        if x.is_none() && y.is_none() {
            return Ok(values.unwrap_or(Difference { differ: "none", same, ..Difference::default() }));
        }
        let rows = (x.map(|event| Row::of(&event, a.names())), y.map(|event| Row::of(&event, b.names())));
        let found = |differ, before: &VecDeque<Row>, (a, b): (Option<Row>, Option<Row>)| {
            let before = before.iter().cloned().collect();
            Difference { differ, same, before, a, b }
        };
        if !x.zip(y).is_some_and(|(x, y)| same_event(&x, &y)) {
            return Ok(found("events", &before, rows));
        }
        if values.is_none() && rows.0 != rows.1 {
            values = Some(found("values", &before, rows.clone()));
        }
        same += 1;
        before.extend(rows.0);
        if before.len() > CONTEXT {
            before.pop_front();
        }
    }
}

/// Prints where two traces part; whether they do.
pub(super) fn diff<R: Read, S: Read>(
    a: &mut Reader<R>,
    b: &mut Reader<S>,
    json: bool,
    out: &mut dyn Write,
) -> Result<bool, ViewError> {
    let found = parting(a, b)?;
    if json {
        let text = serde_json::to_string_pretty(&found).map_err(std::io::Error::from)?;
        writeln!(out, "{text}")?;
        return Ok(found.differ != "none");
    }
    let (a, b) = (a.name(), b.name());
    match found.differ {
        "none" => writeln!(out, "{} events, none differs", found.same)?,
        "values" => writeln!(out, "the same events; times, addresses or sites part at event {}:", found.same)?,
        _ => writeln!(out, "the files part at event {}:", found.same)?,
    }
    if found.differ == "none" {
        return Ok(false);
    }
    for row in &found.before {
        writeln!(out, "  both  {row}")?;
    }
    let shown = |row: &Option<Row>| row.as_ref().map_or_else(|| "the record ends".to_owned(), Row::to_string);
    writeln!(out, "  a     {}\n  b     {}\n(a = {a}, b = {b})", shown(&found.a), shown(&found.b))?;
    Ok(true)
}
