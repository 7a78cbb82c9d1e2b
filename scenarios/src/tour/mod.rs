//! `lowzone tour`: LDD3's walk through the allocators on a live kernel, and the table that it ends in.
//!
//! What a call can tell is looked at, not known: a size is the largest that was given, contiguity shows in memory, what
//! a device reaches is mapped, who sleeps is called under a lock. So another machine gives another table. Neighbours:
//! `walk`, the stops; `rows`, the table, each row an `entry`; `trial`, what is learnt by doing it wrong; `ldd3`, what the book says
//! and no longer holds. Left out: drivers, which scenarios have.

mod entry;
mod ldd3;
mod rows;
mod show;
mod trial;
mod walk;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::Args;
use serde::Serialize;

use crate::cli::CliError;
use crate::kit::Kit;
use crate::lab::{Control, Lab, Verify, lock};
use crate::spec::{Scenario, Set, Source};
use entry::Entry;
use trial::Trial;
use walk::Stop;

/// The machine that is walked through: one device, whose registers are mapped.
const SCENARIO: &str = "story = \"LDD3's walk through the allocators\"\n[driver]\nkind = \"edu\"\n[[device]]\nname = \"edu0\"\n\
    kind = \"edu\"\nwidth = 32\n[[step]]\nprobe = {}\n[[step]]\nremove = {}\n";

/// Options of `lowzone tour`.
#[derive(Args)]
pub(crate) struct Tour {
    /// Another machine: `machine.arch=x86-32` has high memory, `machine.ram=1G` no zone Normal, `machine.pcp=true` lists
    /// of pages for each CPU.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

/// What was seen.
#[derive(Default, Serialize)]
struct Seen {
    machine: String,
    stops: Vec<Stop>,
    table: Vec<Entry>,
    ldd3: Vec<ldd3::Change>,
    /// What was left over or found: nothing.
    wrong: Vec<String>,
}

/// Walks, and prints what was seen.
pub(crate) fn run(options: &Tour) -> Result<ExitCode, CliError> {
    let sets = options.set.iter().map(|set| Set::parse(set)).collect::<Result<Vec<_>, _>>()?;
    let source = Source { name: "tour".to_owned(), text: SCENARIO.to_owned() };
    let scenario = Kit::STOCK.load(&source, &sets)?;
    let trial = try_out(scenario.clone())?;
    let mut lab = Lab::new("tour", scenario, 1, Verify::Bytes, Arc::new(Control::default()))?;
    let seen = Arc::new(Mutex::new(Seen { machine: show::machine(lab.kernel()), ..Seen::default() }));
    let result = {
        let seen = seen.clone();
        lab.run_after_first(move |cpu, found| {
            let (stops, table) = walk::walk(cpu, found.first().map(|device| &**device));
            let mut seen = lock(&seen);
            (seen.stops, seen.table) = (stops, table);
        })
    };
    let mut seen = std::mem::take(&mut *lock(&seen));
    let findings = result.findings.into_iter().map(|row| row.text);
    seen.wrong = findings.chain(result.leaks).chain(result.errors).collect();
    seen.table.iter_mut().for_each(|entry| trial.fill(entry));
    seen.ldd3 = ldd3::CHANGES.to_vec();
    show::print(&seen, options.json)?;
    Ok(if seen.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The trial, on another machine of the same kind: what is found there is the answer and no mistake of ours.
fn try_out(scenario: Scenario) -> Result<Trial, CliError> {
    let mut lab = Lab::new("tour", scenario, 1, Verify::Bytes, Arc::new(Control::default()))?;
    let tried = Arc::new(Mutex::new(Trial::default()));
    let told = tried.clone();
    lab.run_after_first(move |cpu, _| *lock(&told) = Trial::of(cpu));
    let tried = std::mem::take(&mut *lock(&tried));
    Ok(tried)
}
