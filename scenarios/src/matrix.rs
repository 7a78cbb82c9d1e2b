//! `lowzone matrix`: every scenario on every wire, or on every named machine, and what came out.
//!
//! Each cell is a `run` of this same program in a process of its own. A scenario whose story can't be told in a place is
//! exempt there, and the reason is named; one that has no peer is skipped, and what is missing is named.
//! Neighbours: `wire::kind` and `spec::on`, which say what can be told where; `place`, the columns; `peer`, which starts
//! and names the other side; `table`, which prints. Left out: a Linux guest and other people's drivers, whose other half
//! is not a scenario.

mod peer;
mod place;
mod table;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::cli::{CliError, source};
use crate::host::{memory_file, path_of};
use crate::kit::Kit;
use crate::progress;
use crate::spec::{Scenario, Set, Source};
use crate::world::Random;
use place::{Column, Wire};
use table::Table;

/// A run that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(120);
/// Bytes of the image that a scenario about one gets.
const IMAGE: usize = 1 << 20;
const POLL: Duration = Duration::from_millis(2);

/// Options of `lowzone matrix`.
#[derive(Args)]
pub(crate) struct Matrix {
    /// The scenarios: names that `list` shows, or paths to .toml files. Default: all that `list` shows.
    scenario: Vec<String>,
    /// On each of the nine named machines, in lockstep and in threads, instead of on each wire. A scenario must show
    /// there what its file says: its [on.MACHINE] table, or else the same as everywhere.
    #[arg(long, conflicts_with_all = ["wire", "require_peers"])]
    machines: bool,
    /// Only these columns.
    #[arg(long, value_name = "COLUMN")]
    wire: Vec<Wire>,
    /// Fail if a peer is missing, instead of skipping what needs it.
    #[arg(long)]
    require_peers: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// What came out of one scenario in one place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(crate) enum Cell {
    /// As expected, with so many bytes moved for its steps.
    Passed { bytes: u64 },
    /// Not as expected.
    Failed { why: String },
    /// Its story can't be told there.
    Exempt { why: String },
    /// What it needs is not there.
    Skipped { want: String },
}

/// One scenario.
#[derive(Debug, Serialize)]
struct Row {
    scenario: String,
    cells: Vec<Cell>,
}

/// A scenario to be run.
struct Story {
    source: Source,
    scenario: Scenario,
    sets: Vec<Set>,
    /// What a scenario about an image gets, in memory as long as this is.
    _image: Option<File>,
}

impl Story {
    fn read(kit: &Kit, name: &str) -> Result<Self, CliError> {
        let source = source(kit, name)?;
        // A scenario about an image names none: it gets one.
        let image = source.text.contains("image = \"\"").then(image).transpose()?;
        let sets = image.iter().map(|image| Set { path: "image".to_owned(), value: path_of(image) });
        let sets = sets.collect::<Vec<_>>();
        let scenario = kit.load(&source, &sets)?;
        Ok(Self { source, scenario, sets, _image: image })
    }

    /// Those of a `run` of it.
    fn arguments(&self) -> Vec<String> {
        let sets = self.sets.iter().flat_map(|set| ["--set".to_owned(), format!("{}={}", set.path, set.value)]);
        ["run".to_owned(), self.source.name.clone(), "--json".to_owned()].into_iter().chain(sets).collect()
    }
}

/// A small image of no file system.
fn image() -> io::Result<File> {
    let mut bytes = vec![0; IMAGE];
    Random::new(1).fill(&mut bytes);
    let mut file = memory_file("lowzone-image", 0)?;
    file.write_all(&bytes)?;
    Ok(file)
}

fn text_of(mut file: File) -> io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// This program with these arguments, to its end.
fn child(arguments: &[String]) -> io::Result<Cell> {
    let (out, complaint) = (memory_file("lowzone-out", 0)?, memory_file("lowzone-err", 0)?);
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
    let mut child = command.stdout(out.try_clone()?).stderr(complaint.try_clone()?).spawn()?;
    let begun = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if begun.elapsed() > LIMIT => {
                child.kill()?;
                child.wait()?;
                return Ok(Cell::Failed { why: format!("not done after {} s", LIMIT.as_secs()) });
            }
            None => std::thread::sleep(POLL),
        }
    };
    if status.success() {
        return Ok(Cell::Passed { bytes: bytes_of(&text_of(out)?) });
    }
    let said = text_of(complaint)?;
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(Cell::Failed { why: if said.is_empty() { status.to_string() } else { said } })
}

/// The bytes that a result's steps moved, both ways.
fn bytes_of(result: &str) -> u64 {
    let Ok(result) = serde_json::from_str::<serde_json::Value>(result) else { return 0 };
    let of = |rows: &str, times: u64| {
        let rows = result[rows].as_array().into_iter().flatten();
        rows.filter_map(|row| row["bytes"].as_u64()).sum::<u64>() * times
    };
    // A copy is read, written and read back.
    of("io", 1) + of("clears", 1) + of("exercises", 1) + of("dma", 1) + of("packets", 1) + of("copies", 3)
}

/// Runs the matrix.
pub(crate) fn run(kit: &Kit, options: &Matrix) -> Result<ExitCode, CliError> {
    let columns = if options.machines { Column::machines() } else { Column::wires(&options.wire) };
    let given = options.scenario.iter().map(String::as_str);
    let names: Vec<_> = match given.len() {
        0 => kit.entries().iter().map(|entry| entry.name).collect(),
        _ => given.collect(),
    };
    let bar = progress::bar(names.len() * columns.len());
    let mut rows = Vec::new();
    for name in names {
        let story = Story::read(kit, name)?;
        let mut cells = Vec::new();
        for column in &columns {
            bar.set_message(format!("{name} on {}", column.label()));
            cells.push(column.run(kit, &story)?);
            bar.inc(1);
        }
        rows.push(Row { scenario: name.to_owned(), cells });
    }
    bar.finish_and_clear();
    let table = Table::new(&columns, rows);
    table.print(&mut anstream::stdout(), options.json)?;
    Ok(if table.is_good(options.require_peers) { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
