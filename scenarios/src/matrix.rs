//! `lowzone matrix`: every scenario on every wire, and what came out.
//!
//! Each cell is a `run` of this same program in a process of its own. A scenario whose story can't be told on a wire is
//! exempt there, and the reason is named; one that has no peer is skipped, and what is missing is named.
//! Neighbours: `wire::kind`, which says what can be told where; `peer`, which starts and names the other side; `table`,
//! which prints. Left out: a Linux guest and other people's drivers, whose other half is not a scenario.

mod peer;
mod table;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::cli::CliError;
use crate::host::{memory_file, path_of};
use crate::kit::Kit;
use crate::progress;
use crate::spec::{Scenario, Set};
use crate::wire::WireKind;
use crate::world::Random;
use peer::StorageDaemon;
use table::Table;

/// A run that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(120);
/// Bytes of the image that a scenario about one gets.
const IMAGE: usize = 1 << 20;
const POLL: Duration = Duration::from_millis(2);

/// Options of `lowzone matrix`.
#[derive(Args)]
pub(crate) struct Matrix {
    /// Only these columns.
    #[arg(long, value_name = "COLUMN")]
    wire: Vec<Column>,
    /// Fail if a peer is missing, instead of skipping what needs it.
    #[arg(long)]
    require_peers: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Where scenarios are run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Column {
    /// Both halves in one process, in lockstep.
    Lockstep,
    /// Both halves in one process, on threads.
    Threads,
    /// The driver on QEMU's devices, over qtest.
    Qemu,
    /// The driver on qemu-storage-daemon's disk, over vhost-user.
    VhostUser,
}

/// What came out of one scenario on one wire.
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

impl Column {
    const fn name(self) -> &'static str {
        match self {
            Self::Lockstep => "lockstep",
            Self::Threads => "threads",
            Self::Qemu => "qemu",
            Self::VhostUser => "vhost-user",
        }
    }

    /// The wire, without its sockets: whether a story can be told does not depend on them.
    fn wire(self) -> WireKind {
        match self {
            Self::Lockstep | Self::Threads => WireKind::InProc,
            Self::Qemu => WireKind::Qemu,
            Self::VhostUser => WireKind::VhostUser(Vec::new()),
        }
    }

    /// The peer's program and the package that has it.
    const fn peer(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Lockstep | Self::Threads => None,
            Self::Qemu => Some(("qemu-system-x86_64", "qemu-system-x86")),
            Self::VhostUser => Some(("qemu-storage-daemon", "qemu-system-common")),
        }
    }

    /// Runs a scenario here.
    fn run(self, name: &str, scenario: &Scenario, sets: &[String]) -> Result<Cell, CliError> {
        if let Err(skip) = self.wire().expects(scenario) {
            return Ok(Cell::Exempt { why: skip.to_string() });
        }
        if self == Self::Threads && !scenario.needs.is_empty() {
            return Ok(Cell::Exempt { why: format!("needs {}", scenario.needs[0]) });
        }
        if let Some((program, package)) = self.peer()
            && !peer::is_here(program)
        {
            return Ok(Cell::Skipped { want: format!("{program} (package {package})") });
        }
        let mut arguments = vec!["run".to_owned(), name.to_owned(), "--json".to_owned()];
        sets.iter().for_each(|set| arguments.extend(["--set".to_owned(), set.clone()]));
        // They end when this drops, after the run.
        let mut daemons = Vec::new();
        match self {
            Self::Lockstep => {}
            Self::Threads => arguments.extend(["--world", "threads"].map(str::to_owned)),
            Self::Qemu => arguments.extend(["--wire", "qemu"].map(str::to_owned)),
            Self::VhostUser => {
                for device in &scenario.device {
                    let daemon = StorageDaemon::start(device, &daemons)?;
                    arguments.extend(["--wire".to_owned(), format!("vhost-user={}", daemon.socket().display())]);
                    daemons.push(daemon);
                }
            }
        }
        Ok(child(&arguments)?)
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
    let columns = if options.wire.is_empty() { Column::value_variants() } else { &options.wire };
    let bar = progress::bar(kit.entries().len() * columns.len());
    let mut rows = Vec::new();
    for entry in kit.entries() {
        let Some(source) = kit.source(entry.name) else { continue };
        // A scenario about an image names none: it gets one.
        let image = source.text.contains("image = \"\"").then(image).transpose()?;
        let sets: Vec<_> = image.iter().map(|image| format!("image={}", path_of(image))).collect();
        let parsed = sets.iter().map(|set| Set::parse(set)).collect::<Result<Vec<_>, _>>()?;
        let scenario = kit.load(&source, &parsed)?;
        let mut cells = Vec::new();
        for column in columns {
            bar.set_message(format!("{} on {}", entry.name, column.name()));
            cells.push(column.run(entry.name, &scenario, &sets)?);
            bar.inc(1);
        }
        rows.push(Row { scenario: entry.name.to_owned(), cells });
    }
    bar.finish_and_clear();
    let table = Table::new(columns, rows);
    table.print(&mut anstream::stdout(), options.json)?;
    Ok(if table.is_good(options.require_peers) { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
