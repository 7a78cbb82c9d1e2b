//! `lowzone trace export`: the record of a run in formats that other people's programs open.
//!
//! Every format is fed event by event and holds the mappings that are live, so memory does not grow with the trace. Of a
//! broken trace what can be read is exported, then the error is returned. Neighbours: `cli` has the options, `reader`
//! the events; a format a file, with `schema` (names and fields) and `value` (what they say) between them.
//! Left out: reading any of them back.

mod dat;
pub(crate) mod error;
mod jsonl;
pub(crate) mod output;
mod perfetto;
mod schema;
mod text;
mod value;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};

pub(crate) use self::error::ExportError;
pub(super) use self::output::Output;
use super::error::{TraceError, ViewError};
use super::event::Event;
use super::names::Names;
use super::reader::{Reader, twice};
use crate::lab::Control;
use crate::progress;

/// What a trace can be exported to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// trace.dat, for trace-cmd report and KernelShark.
    Dat,
    /// TrackEvent protos, for ui.perfetto.dev and trace_processor.
    Perfetto,
    /// A JSON object an event, with the fields of show --json.
    Jsonl,
    /// A line an event, as trace-cmd report prints them.
    Text,
}

/// Options of `lowzone trace export`.
#[derive(Args)]
pub(crate) struct Export {
    /// The trace.
    file: PathBuf,
    /// The format.
    #[arg(long, value_enum)]
    format: Format,
    /// Where to write it: a file, which is there only once it is whole, or - for standard output (not dat).
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

/// Events between two looks at the progress.
const STRIDE: u64 = 1024;

/// A trace being read to its end, or to where it is broken or Ctrl-C was pressed.
struct Source<'a> {
    path: &'a Path,
    control: &'a Control,
}

impl Source<'_> {
    /// Hands every event over; where the trace is broken, with what is known by then.
    fn each(
        &self,
        mut take: impl FnMut(&Event, &Names) -> Result<(), ExportError>,
    ) -> Result<(Names, Option<TraceError>), ViewError> {
        let mut reader = Reader::open(self.path)?;
        let (mut events, mut told) = (0_u64, 0);
        let broken = loop {
            match reader.next_event() {
                Ok(Some(event)) => take(&event, reader.names())?,
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
            events += 1;
            if events.is_multiple_of(STRIDE) {
                self.control.advance(reader.offset() - told);
                told = reader.offset();
                if self.control.stopped() {
                    break None;
                }
            }
        };
        Ok((reader.names().clone(), broken))
    }
}

/// Exports a trace.
pub(super) fn export(options: &Export) -> Result<ExitCode, ViewError> {
    let Export { file, format, output } = options;
    twice(file)?;
    // What is no trace at all leaves no file behind.
    drop(Reader::open(file)?);
    let binary = matches!(format, Format::Dat | Format::Perfetto);
    let control = Arc::new(Control::default());
    let readings = if *format == Format::Dat { 2 } else { 1 };
    control.begin(std::fs::metadata(file).map_or(0, |data| data.len()) * readings);
    let watch = progress::watch(&control);
    // From here on Ctrl-C is heard, and leaves no file.
    let output = Output::open(output, &[file], binary)?;
    let broken = write(*format, &Source { path: file, control: &control }, &output)?;
    drop(watch);
    if control.stopped() {
        return Ok(ExitCode::from(130));
    }
    output.finish()?;
    broken.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
}

fn write(format: Format, source: &Source<'_>, output: &Output) -> Result<Option<TraceError>, ViewError> {
    let fail = output.fail();
    match format {
        Format::Dat => {
            let file = output.file()?;
            let mut survey = dat::Survey::new();
            let (names, _) = source.each(|event, names| {
                survey.event(event, names);
                Ok(())
            })?;
            if source.control.stopped() {
                return Ok(None);
            }
            let mut dat = dat::Dat::new(file, &survey.finish(), &names).map_err(&fail)?;
            let (_, broken) = source.each(|event, names| dat.event(event, names).map_err(&fail))?;
            if !source.control.stopped() {
                dat.finish().map_err(&fail)?;
            }
            Ok(broken)
        }
        Format::Perfetto => {
            let mut perfetto = perfetto::Perfetto::new(output.stream()?).map_err(&fail)?;
            let (_, broken) = source.each(|event, names| perfetto.event(event, names).map_err(&fail))?;
            perfetto.finish().map_err(&fail)?;
            Ok(broken)
        }
        Format::Jsonl => {
            let mut lines = jsonl::Jsonl::new(output.stream()?);
            let (_, broken) = source.each(|event, names| lines.event(event, names).map_err(&fail))?;
            lines.finish().map_err(&fail)?;
            Ok(broken)
        }
        Format::Text => {
            let mut text = text::Text::new(output.stream()?);
            let (_, broken) = source.each(|event, names| text.event(event, names).map_err(&fail))?;
            text.finish().map_err(&fail)?;
            Ok(broken)
        }
    }
}
