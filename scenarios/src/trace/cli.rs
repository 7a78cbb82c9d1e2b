//! `lowzone trace …` on the command line.
//!
//! Exit codes: 0 done, 1 the files differ or nobody had the address, 2 a broken file or a wrong question.
//! Neighbours: `cli`, which has the other commands.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::error::ViewError;
use super::export::{Export, Output, export};
use super::join::join;
use super::reader::{Reader, twice};
use super::show::{Filter, show};
use super::shown::Shown;
use super::tx::{Wanted, lives, tx};
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
    /// DMA transactions, one a line, in the order of their ends; those that never ended come last. By number: the whole
    /// life of each, an event a line: who allocated and mapped it, which descriptor led the device there, when the
    /// device touched it, what came back.
    Tx {
        /// The trace.
        file: PathBuf,
        /// Only these, with their lives.
        ids: Vec<u64>,
        /// In a life, show every access of the device and every sync.
        #[arg(long, requires = "ids")]
        events: bool,
        /// Only those with something wrong.
        #[arg(long, conflicts_with = "ids")]
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
    /// The events in a format that other programs open: trace-cmd and KernelShark, Perfetto, anything that reads lines.
    ///
    /// For instance: lowzone trace export --format dat run.lzt -o run.dat, then
    /// trace-cmd report -F 'dma_map_page: size == 4096 && dir == 1' -i run.dat
    Export(Export),
    /// Two records of one session as one: the driver's, by `lowzone run --wire vhost-user=SOCKET --trace`, and the
    /// device's, by `lowzone serve --trace` on the same host.
    Join {
        /// The driver's trace.
        driver: PathBuf,
        /// The device's.
        peer: PathBuf,
        /// Where to write it: a file, which is there only once it is whole, or - for standard output.
        #[arg(short, long, value_name = "OUT")]
        output: PathBuf,
        /// The driver's device that the other file is of, by name, place on the bus or number; needed if it has several.
        #[arg(long, value_name = "DEV")]
        device: Option<String>,
    },
}

fn address(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

/// Says which kinds a record has, if it has not all.
fn partly(reader: &FileReader, json: bool, out: &mut dyn Write) -> Result<(), ViewError> {
    let only = &reader.header().only;
    if !json && !only.is_empty() {
        writeln!(out, "# only these kinds were recorded, so others are missing and not absent: {}", only.join(", "))?;
    }
    Ok(())
}

/// Answers one question about a trace.
pub(crate) fn run(trace: &Trace) -> Result<ExitCode, ViewError> {
    let mut out = BufWriter::new(std::io::stdout());
    // What could be read is shown before the error that follows it.
    if trace.json {
        let answer = answer(trace, &mut out);
        out.flush()?;
        return answer;
    }
    let mut out = Shown(out);
    let answer = answer(trace, &mut out);
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
        What::Tx { file, ids, events, .. } if !ids.is_empty() => {
            twice(file)?;
            partly(&Reader::open(file)?, json, out)?;
            lives(|| Reader::open(file), ids, (*events, json), out)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Tx { file, wrong, .. } => {
            let wanted = Wanted { wrong: *wrong, addr: None };
            let mut reader = Reader::open(file)?;
            partly(&reader, json, out)?;
            if tx(&mut reader, &wanted, json, out)? == 0 && !json {
                writeln!(out, "no transactions{}", if *wrong { " with something wrong" } else { "" })?;
            }
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
            let mut reader = Reader::open(file)?;
            partly(&reader, json, out)?;
            stat::stat(&mut reader, json, out)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Diff { a, b } => {
            let differ = diff::diff(&mut Reader::open(a)?, &mut Reader::open(b)?, json, out)?;
            Ok(yes(!differ))
        }
        What::Export(options) => export(options),
        What::Join { driver, peer, output, device } => {
            twice(driver)?;
            twice(peer)?;
            let target = Output::open(output, &[driver, peer], true)?;
            let joined = join((driver, peer), device.as_deref(), target.stream()?);
            // What could be read of a broken file is there, too; of a wrong question nothing is.
            if matches!(joined, Ok(()) | Err(ViewError::Trace(_))) {
                target.finish()?;
            }
            joined.map(|()| ExitCode::SUCCESS)
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
