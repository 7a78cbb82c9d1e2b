//! `lowzone explore` and `lowzone replay`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;

use super::campaign::{Campaign, Case, Record};
use super::case::{Keep, Prepared, judge};
use super::inventory::{Inventory, InventoryError};
use super::journal::{self, Journal};
use super::place::{Place, Strike};
use super::report::Report;
use super::token::{Token, TokenError, faults};
use super::worker;
use crate::cli::{CliError, source};
use crate::compare;
use crate::kit::Kit;
use crate::progress;
use crate::spec::Set;
use crate::world::Random;

/// Options of `lowzone explore`.
#[derive(Args)]
pub(crate) struct Explore {
    /// The scenario: a path to a .toml file, or a name that `list` shows.
    scenario: String,
    /// The seed of the world.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replace a value of the file, as `lowzone run` does.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Child processes at once; 0 for as many as there are processors.
    #[arg(long, default_value_t = 0)]
    jobs: usize,
    /// After each single fault, a second one in the unwind or retry that follows it.
    #[arg(long)]
    pairs: bool,
    /// After the faults, so many runs with the order of events changed: who runs when, and when interrupts are taken.
    /// Every fourth has a fault as well.
    #[arg(long, value_name = "N", default_value_t = 0)]
    schedules: u64,
    /// Inject no fault: run the schedules alone.
    #[arg(long, requires = "schedules")]
    only_schedules: bool,
    /// End with the first case that is mishandled.
    #[arg(long)]
    first: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Write the result as JUnit XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<String>,
    /// Write a line for each case as it ends: who ran it and how it ended.
    #[arg(long, value_name = "FILE")]
    journal: Option<String>,
    /// Take the cases that a journal holds as done.
    #[arg(long, value_name = "FILE")]
    resume: Option<String>,
    /// Show every row and every mishandled case.
    #[arg(short, long)]
    verbose: bool,
    /// Leave out the Nth case: the run must notice.
    #[arg(long, hide = true)]
    omit: Option<usize>,
    /// Serve cases on standard input: the child of a campaign.
    #[arg(long, hide = true)]
    worker: bool,
}

/// Options of `lowzone replay`.
#[derive(Args)]
pub(crate) struct Replay {
    /// The token that a campaign printed.
    token: String,
    /// Replace a value of the file, as the campaign did.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Stop (SIGTRAP) at the first point after this event of the record.
    #[arg(long, value_name = "EVENT")]
    stop_at: Option<u64>,
    /// Run under gdb.
    #[arg(long)]
    gdb: bool,
}

fn prepare(kit: &Kit, name: &str, sets: &[String], seed: u64) -> Result<Prepared, CliError> {
    let source = source(kit, name)?;
    let sets = sets.iter().map(|text| Set::parse(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(Prepared::with_kit(kit, &source.name, &kit.load(&source, &sets)?, seed))
}

/// Runs a campaign.
pub(crate) fn explore(kit: &Kit, options: &Explore) -> Result<ExitCode, CliError> {
    let prepared = prepare(kit, &options.scenario, &options.set, options.seed)?;
    if options.worker {
        worker::serve(&prepared)?;
        return Ok(ExitCode::SUCCESS);
    }
    let inventory = match Inventory::count(&prepared) {
        Ok(inventory) => inventory,
        Err(InventoryError::NotClean(found)) => {
            print(kit, options, &Report::not_clean(&prepared, &found))?;
            return Ok(ExitCode::from(1));
        }
        Err(error) => return Err(error.into()),
    };
    let faults = if options.only_schedules { Vec::new() } else { inventory.strikes() };
    let mut cases: Vec<Case> = faults.iter().map(|strike| vec![strike.clone()]).collect();
    if let Some(omit) = options.omit.filter(|&omit| omit < cases.len()) {
        cases.remove(omit);
    }
    let clean = Token::new(&prepared, &[]);
    let resumed = options.resume.as_deref().map(|path| journal::read(path, &clean)).transpose()?.unwrap_or_default();
    let journal = options.journal.as_deref().map(|path| Journal::create(path, &clean)).transpose()?;
    if let Some(journal) = &journal {
        resumed.iter().for_each(|record| journal.write(record, std::process::id()));
    }
    let over = |records: &[Record]| options.first && records.iter().any(Record::is_wrong);
    let mut records = run(options, &cases, &resumed, journal.as_ref())?;
    if options.pairs && !over(&records) {
        let pairs = pairs(&records);
        records.extend(run(options, &pairs, &resumed, journal.as_ref())?);
    }
    if !over(&records) {
        let schedules = schedules(options, &faults);
        records.extend(run(options, &schedules, &resumed, journal.as_ref())?);
    }
    let wanted = if over(&records) { &[][..] } else { &faults };
    let report = Report::new(&prepared, &inventory, wanted, &records);
    print(kit, options, &report)?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Each single allocation failure with each point of its window.
fn pairs(records: &[Record]) -> Vec<Case> {
    let mut pairs = Vec::new();
    for record in records {
        let second = record.outcome.window.iter().filter_map(|name| name.parse::<Place>().ok());
        for place in second {
            let mut case = record.faults.clone();
            case.push(Strike::Fail { place, persistent: false });
            pairs.push(case);
        }
    }
    pairs
}

/// Every schedule asked for; each fourth with one of the faults.
fn schedules(options: &Explore, faults: &[Strike]) -> Vec<Case> {
    let mut random = Random::new(options.seed);
    let case = |nth| {
        let fault = (nth % 4 == 3)
            .then(|| random.below(faults.len() as u64))
            .and_then(|at| faults.get(usize::try_from(at).ok()?));
        [Strike::Schedule { nth }].into_iter().chain(fault.cloned()).collect()
    };
    (0..options.schedules).map(case).collect()
}

fn run(
    options: &Explore,
    cases: &[Case],
    resumed: &[Record],
    journal: Option<&Journal>,
) -> Result<Vec<Record>, CliError> {
    let known = |case: &Case| resumed.iter().find(|record| record.faults == *case);
    let open: Vec<Case> = cases.iter().filter(|case| known(case).is_none()).cloned().collect();
    let jobs = match options.jobs {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    };
    let exe = std::env::current_exe()?;
    let command = || {
        let mut command = Command::new(&exe);
        command.args(["explore", "--worker", &options.scenario, "--seed", &options.seed.to_string()]);
        options.set.iter().for_each(|set| {
            command.args(["--set", set]);
        });
        command
    };
    let progress = Progress::new(open.len());
    let done = |record: &Record, child: u32| {
        progress.advance(record);
        if let Some(journal) = journal {
            journal.write(record, child);
        }
    };
    let stop = AtomicBool::new(false);
    let fresh =
        Campaign { cases: &open, jobs, command: &command, done: &done, stop: &stop, first: options.first }.run()?;
    drop(progress);
    if let Some(journal) = journal {
        journal.check()?;
    }
    let mut fresh = fresh.into_iter();
    let all = cases.iter().enumerate().filter_map(|(number, case)| {
        let record = known(case).cloned().or_else(|| fresh.next())?;
        Some(Record { number, ..record })
    });
    let mut all: Vec<_> = all.collect();
    if let Some(wrong) = all.iter().position(Record::is_wrong).filter(|_| options.first) {
        all.truncate(wrong + 1);
    }
    Ok(all)
}

fn print(kit: &Kit, options: &Explore, report: &Report) -> Result<(), CliError> {
    if let Some(path) = &options.junit {
        let write = || -> std::io::Result<()> {
            let mut out = BufWriter::new(File::create(path)?);
            report.junit(&mut out)?;
            out.flush()
        };
        write().map_err(|source| CliError::Read { name: path.clone(), source })?;
    }
    let mut out = anstream::stdout();
    if options.json {
        let text = serde_json::to_string_pretty(report).map_err(std::io::Error::from)?;
        writeln!(out, "{text}")?;
    } else {
        report.print(&mut out, kit.name(), options.verbose)?;
    }
    Ok(())
}

/// The bar of a campaign: cases a second, found, left.
struct Progress {
    bar: ProgressBar,
    wrong: AtomicUsize,
    done: AtomicUsize,
    begun: Instant,
}

impl Progress {
    fn new(cases: usize) -> Self {
        Self { bar: progress::bar(cases), wrong: AtomicUsize::new(0), done: AtomicUsize::new(0), begun: Instant::now() }
    }

    fn advance(&self, record: &Record) {
        let wrong = usize::from(record.is_wrong());
        let found = self.wrong.fetch_add(wrong, Ordering::Relaxed) + wrong;
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let rate = done as u128 * 1000 / self.begun.elapsed().as_millis().max(1);
        self.bar.set_message(format!("{rate} cases/s, {found} wrong"));
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Repeats one case, with its record.
pub(crate) fn replay(kit: &Kit, options: &Replay) -> Result<ExitCode, CliError> {
    let token: Token = options.token.parse()?;
    let prepared = prepare(kit, &token.scenario, &options.set, token.seed)?;
    token.check(&prepared)?;
    if options.gdb {
        return debug(options);
    }
    let keep = Keep { points: true, events: true, stop_at: options.stop_at };
    let observed = prepared.observe(&token.strikes, keep)?;
    if !observed.struck {
        return Err(TokenError::NotReached(faults(&token.strikes)).into());
    }
    let outcome = judge(&token.strikes, &observed);
    let mut out = anstream::stdout();
    let what = match token.strikes.as_slice() {
        [] => "the clean run",
        strikes if strikes.iter().any(Strike::is_fault) => "a fault injected",
        _ => "another order of events",
    };
    let at = if outcome.site.is_empty() { String::new() } else { format!(" at {}", outcome.site) };
    writeln!(out, "{token}\n{what}{at}: {:?}", outcome.verdict)?;
    for why in &outcome.why {
        writeln!(out, "  {}", why.replace('\n', "\n  "))?;
    }
    for line in &observed.result.log {
        writeln!(out, "kernel   {line}")?;
    }
    for error in &observed.result.errors {
        writeln!(out, "driver   {error}")?;
    }
    let clean = prepared.observe(&[], Keep { events: true, ..Keep::default() })?;
    let records = [(0, clean.lab.take_events()), (token.seed, observed.lab.take_events())];
    compare::case(&mut out, &records[0].1, &records[1].1)?;
    writeln!(out, "digest   {}", outcome.digest)?;
    Ok(if outcome.why.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn debug(options: &Replay) -> Result<ExitCode, CliError> {
    let mut command = Command::new("gdb");
    command.args(["-ex", "run", "--args"]).arg(std::env::current_exe()?).args(["replay", &options.token]);
    options.set.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    if let Some(event) = options.stop_at {
        command.args(["--stop-at", &event.to_string()]);
    }
    let status = command.status().map_err(|source| CliError::Read { name: "gdb".to_owned(), source })?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
