//! The export that people read: a line an event, as `trace-cmd report -t` prints the `dat` export of the same trace.
//!
//! Neighbours: `schema`, `value`. Left out: the order by time that a viewer of per-CPU buffers makes; lines come as the
//! events were made.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::schema::{Field, Form, schema};
use super::value::{DIRS, Live, Mapped, Value, ZONES, symbol, value, word};
use crate::trace::event::Event;
use crate::trace::names::Names;

/// Writes lines.
pub(super) struct Text<W> {
    out: W,
    live: Live,
    line: String,
}

impl<W: Write> Text<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, live: Live::default(), line: String::new() }
    }

    pub(super) fn event(&mut self, event: &Event, names: &Names) -> io::Result<()> {
        let mapped = self.live.take(event);
        let (raw, schema) = (&event.raw, schema(event.kind()));
        let who = word(&names.producer(raw.who));
        let (seconds, nanoseconds) = (raw.ts / 1_000_000_000, raw.ts % 1_000_000_000);
        self.line.clear();
        let line = &mut self.line;
        let pid = u32::from(raw.who) + 1;
        // Into a String: it can't fail.
        let _ = write!(line, "{who:>16}-{pid:<5} [{:03}] {seconds:>5}.{nanoseconds:09}: ", raw.who);
        let _ = write!(line, "{:<21} ", format!("{}:", schema.name));
        for (index, field) in schema.fields.iter().enumerate() {
            if index > 0 {
                line.push(' ');
            }
            push(line, field, event, mapped, names);
        }
        line.push('\n');
        self.out.write_all(line.as_bytes())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn push(line: &mut String, field: &Field, event: &Event, mapped: Option<Mapped>, names: &Names) {
    if field.labelled() {
        line.push_str(field.name);
        line.push('=');
    }
    let known = |names: &[&'static str], n: u64| usize::try_from(n).ok().and_then(|n| names.get(n).copied());
    // Into a String: it can't fail.
    let _ = match (value(field.of, event, mapped, names), field.form) {
        (Value::Text(text), _) => write!(line, "{text}"),
        (Value::Owner(owner), _) => write!(line, "{}", symbol(owner, names)),
        (Value::Number(n), Form::Dir) => write!(line, "{}", known(&DIRS, n).unwrap_or("?")),
        (Value::Number(n), Form::Zone) => write!(line, "{}", known(&ZONES, n).unwrap_or("?")),
        (Value::Number(n), Form::Hex) => write!(line, "{n:x}"),
        (Value::Number(n), Form::Ptr) => write!(line, "{n:#x}"),
        (Value::Number(n), Form::Dec32) => write!(line, "{}", n & u64::from(u32::MAX)),
        (Value::Number(n), _) => write!(line, "{n}"),
    };
}
