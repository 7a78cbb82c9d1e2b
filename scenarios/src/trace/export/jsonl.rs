//! The export that programs read line by line: a JSON object an event, with the fields of `lowzone trace show --json`.
//!
//! Neighbours: `row`, which has the fields; `value` says which characters don't print.

use std::fmt::Write as _;
use std::io::{self, Write};

use crate::trace::event::Event;
use crate::trace::names::Names;
use crate::trace::row::Row;
use crate::trace::shown::prints;

/// Writes objects.
pub(super) struct Jsonl<W>(W);

impl<W: Write> Jsonl<W> {
    pub(super) const fn new(out: W) -> Self {
        Self(out)
    }

    pub(super) fn event(&mut self, event: &Event, names: &Names) -> io::Result<()> {
        let text = serde_json::to_string(&Row::of(event, names)).map_err(io::Error::from)?;
        if text.chars().all(prints) {
            return writeln!(self.0, "{text}");
        }
        // Only strings have such characters, and in a string an escape is the same.
        let mut escaped = String::new();
        for c in text.chars() {
            if prints(c) {
                escaped.push(c);
            } else {
                // Into a String: it can't fail.
                let _ = write!(escaped, "\\u{:04x}", u32::from(c));
            }
        }
        writeln!(self.0, "{escaped}")
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.0.flush()
    }
}
