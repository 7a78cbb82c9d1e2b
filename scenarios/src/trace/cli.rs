//! `lowzone trace …` on the command line.
//!
//! Exit codes: 0 done, 1 the files differ or nobody had the address, 2 a broken file or a wrong question.
//! Neighbours: `cli`, which has the other commands.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::error::ViewError;
use super::reader::Reader;
use super::show::{Filter, show};
use super::tx::{Wanted, tx};
use super::{diff, stat};

/// Look into the record of a run, as `lowzone run --trace FILE` wrote it.
#[derive(Args)]
pub(crate) struct Trace {
    #[command(subcommand)]
    what: What,
    /// Print JSON: an object a line, or one object for stat and diff.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// The events, one a line.
    Show {
        /// The trace.
        file: PathBuf,
        /// Begin with this event.
        #[arg(long, default_value_t = 0, value_name = "N")]
        from: u64,
        /// Show at most this many.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        /// Only kinds whose name has this in it (dma:, port:write, finding).
        #[arg(long, value_name = "KIND")]
        kind: Option<String>,
        /// Only this device, by name, place on the bus or number.
        #[arg(long, value_name = "DEV")]
        dev: Option<String>,
    },
    /// DMA transactions, one a line, in the order of their ends; those that never ended come last.
    Tx {
        /// The trace.
        file: PathBuf,
        /// Only these.
        ids: Vec<u64>,
        /// Only those with something wrong.
        #[arg(long)]
        wrong: bool,
    },
    /// Every transaction, live or dead, that had an address mapped: as DMA, physical or buffer address.
    Who {
        /// The trace.
        file: PathBuf,
        /// The address, decimal or 0x….
        #[arg(value_parser = address)]
        addr: u64,
    },
    /// Counts per kind, device and producer; bytes; transactions.
    Stat {
        /// The trace.
        file: PathBuf,
    },
    /// The first event in which two traces part.
    Diff {
        /// A trace.
        a: PathBuf,
        /// Another.
        b: PathBuf,
    },
}

fn address(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

/// Answers one question about a trace.
pub(crate) fn run(trace: &Trace) -> Result<ExitCode, ViewError> {
    let mut out = BufWriter::new(anstream::stdout());
    let answer = answer(trace, &mut out);
    // What could be read is shown before the error that follows it.
    out.flush()?;
    answer
}

fn answer(trace: &Trace, out: &mut dyn Write) -> Result<ExitCode, ViewError> {
    let json = trace.json;
    let yes = |yes: bool| if yes { ExitCode::SUCCESS } else { ExitCode::from(1) };
    match &trace.what {
        What::Show { file, from, count, kind, dev } => {
            let mut reader = Reader::open(file)?;
            let kind = kind.clone().map(|kind| known_kind(&reader, file, kind)).transpose()?;
            let dev = dev.as_deref().map(|dev| known_device(&mut reader, file, dev)).transpose()?;
            show(&mut reader, &Filter { from: *from, count: *count, kind, dev }, json, out)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Tx { file, ids, wrong } => {
            let wanted = Wanted { ids: ids.clone(), wrong: *wrong, addr: None };
            tx(&mut Reader::open(file)?, &wanted, json, out)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Who { file, addr } => {
            let wanted = Wanted { addr: Some(*addr), ..Wanted::default() };
            let shown = tx(&mut Reader::open(file)?, &wanted, json, out)?;
            if shown == 0 && !json {
                writeln!(out, "nobody had {addr:#x} mapped")?;
            }
            Ok(yes(shown > 0))
        }
        What::Stat { file } => {
            stat::stat(&mut Reader::open(file)?, json, out)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Diff { a, b } => {
            let differ = diff::diff(&mut Reader::open(a)?, &mut Reader::open(b)?, json, out)?;
            Ok(yes(!differ))
        }
    }
}

type FileReader = Reader<std::io::BufReader<std::fs::File>>;

fn known_kind(reader: &FileReader, file: &Path, kind: String) -> Result<String, ViewError> {
    let mut kinds = reader.names().kinds();
    if kinds.any(|name| name.contains(&kind)) {
        return Ok(kind);
    }
    let example = reader.names().kinds().next().unwrap_or("none").to_owned();
    Err(ViewError::NoKind { name: file.display().to_string(), kind, example })
}

/// The number of a device. Its table comes before the first event, so a reader of its own looks that far.
fn known_device(reader: &mut FileReader, file: &Path, device: &str) -> Result<u16, ViewError> {
    let mut ahead = Reader::open(file)?;
    // A file broken before its first event has no devices; the main reader will say why.
    let _ = ahead.next_event();
    let found = ahead.names().device_number(device);
    found.ok_or_else(|| {
        let names: Vec<_> = ahead.names().devices().map(|(place, name)| format!("{name} ({place})")).collect();
        let known = if names.is_empty() { String::new() } else { format!("; there is {}", names.join(", ")) };
        ViewError::NoDevice { name: reader.name().to_owned(), device: device.to_owned(), known }
    })
}
