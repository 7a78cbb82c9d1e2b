//! `lowzone inspect`: what `/proc` would say of a run's memory, at its end or after one of its steps.
//!
//! Neighbours: `lab`, which runs the steps; `guest_mem`, whose texts these are. Left out: judging; a run is `run`'s.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use crate::cli::{CliError, source};
use crate::kit::Kit;
use crate::lab::{Control, Lab, Verify};
use crate::spec::Set;

/// Options of `lowzone inspect`.
#[derive(Args)]
pub(crate) struct Inspect {
    /// The scenario: a path to a .toml file, or a name that `list` shows. Default: the program's first.
    scenario: Option<String>,
    /// Look after this step, counted from 1. Default: after the last one, when all should be given back.
    #[arg(long, value_name = "STEP")]
    after: Option<usize>,
    /// Only these files.
    #[arg(long, value_enum, value_name = "FILE")]
    file: Vec<ProcFile>,
    /// Replace a value of the scenario, such as machine.ram=2G.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// The seed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// A file of `/proc`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum ProcFile {
    /// Free blocks of each order, by zone.
    Buddyinfo,
    /// Watermarks, reserves and lists of each zone.
    Zoneinfo,
    /// Objects and slabs of each cache.
    Slabinfo,
    /// Areas of virtually contiguous memory.
    Vmallocinfo,
}

/// Runs the steps and prints the files.
pub(crate) fn run(kit: &Kit, options: &Inspect) -> Result<ExitCode, CliError> {
    let name = options.scenario.as_deref().unwrap_or(kit.default_scenario());
    let sets = options.set.iter().map(|set| Set::parse(set)).collect::<Result<Vec<_>, _>>()?;
    let scenario = kit.load(&source(kit, name)?, &sets)?;
    let steps = scenario.step.len();
    let last = options.after.unwrap_or(steps);
    if last > steps {
        return Err(CliError::NoStep { scenario: name.to_owned(), step: last, steps });
    }
    let control = Arc::new(Control::default());
    let mut lab = Lab::with_kit(kit, name, scenario, options.seed, Verify::Bytes, control)?;
    lab.run_to(last);
    let kernel = lab.kernel();
    let files = if options.file.is_empty() { ProcFile::value_variants() } else { &options.file };
    let mut out = anstream::stdout();
    for file in files {
        let (path, text) = match file {
            ProcFile::Buddyinfo => ("buddyinfo", kernel.buddyinfo()),
            ProcFile::Zoneinfo => ("zoneinfo", kernel.zoneinfo()),
            ProcFile::Slabinfo => ("slabinfo", kernel.slabinfo()),
            ProcFile::Vmallocinfo => ("vmallocinfo", lowzone_guest_mem::vmalloc::vmallocinfo(kernel)),
        };
        if files.len() > 1 {
            writeln!(out, "==> /proc/{path} <==")?;
        }
        writeln!(out, "{}", text.trim_end())?;
    }
    // What the steps hold goes back before the machine does.
    lab.finish();
    Ok(ExitCode::SUCCESS)
}
