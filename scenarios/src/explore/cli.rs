//! `lowzone explore` and `lowzone replay`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;

use super::campaign::{Campaign, Case, Record};
use super::case::{Keep, Observed, Outcome, Prepared, judge};
use super::inventory::{Inventory, InventoryError};
use super::journal::{self, Journal};
use super::place::{Place, Strike};
use super::report::Report;
use super::token::{Token, TokenError, faults};
use super::{orders, shrink, worker};
use crate::cli::{CliError, WEAK, source};
use crate::compare;
use crate::kit::Kit;
use crate::progress;
use crate::report::campaign::Sort;
use crate::report::cli as page;
use crate::spec::{Scenario, Set, Source};
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
    /// On a machine with weak memory, as --set machine.weak=true: what a missing barrier does is seen.
    #[arg(long)]
    weak: bool,
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
    /// After the faults, every order of events in which whoever runs goes on until it waits, but for so many exceptions:
    /// for small scenarios.
    #[arg(long, value_name = "EXCEPTIONS")]
    exhaustive: Option<usize>,
    /// Leave out the sweep over the faults: run the schedules and orders alone.
    #[arg(long)]
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
    /// Write one HTML page of the result to this file: the tree of points by verdict, with tokens.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
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
    /// Show the first mishandled case as a scenario file, as short as it can be.
    #[arg(long, conflicts_with = "json")]
    shrink: bool,
    /// Serve cases on standard input: the child of a campaign.
    #[arg(long, hide = true)]
    worker: bool,
    /// The child of a shrink: this text is the scenario, as it is written.
    #[arg(long, hide = true)]
    text: Option<String>,
}

/// Options of `lowzone shrink`.
#[derive(Args)]
pub(crate) struct Shrink {
    /// The token that a campaign printed.
    token: String,
    /// Replace a value of the file, as the campaign did.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Write the scenario to this file.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Options of `lowzone replay`.
#[derive(Args)]
pub(crate) struct Replay {
    /// The token that a campaign printed.
    token: String,
    /// Replace a value of the file, as the campaign did.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// On a machine with weak memory, as --set machine.weak=true: what a missing barrier does is seen, as the campaign did.
    #[arg(long)]
    weak: bool,
    /// Stop (SIGTRAP) at the first point after this event of the record.
    #[arg(long, value_name = "EVENT")]
    stop_at: Option<u64>,
    /// Run under gdb.
    #[arg(long)]
    gdb: bool,
}

pub(super) fn prepare(kit: &Kit, name: &str, (sets, weak): (&[String], bool), seed: u64) -> Result<Prepared, CliError> {
    let source = source(kit, name)?;
    let sets = weak.then_some(WEAK).into_iter().chain(sets.iter().map(String::as_str)).map(Set::parse);
    let sets = sets.collect::<Result<Vec<_>, _>>()?;
    Ok(Prepared::with_kit(kit, &source.name, &kit.load(&source, &sets)?, seed))
}

/// Runs a campaign.
pub(crate) fn explore(kit: &Kit, options: &Explore) -> Result<ExitCode, CliError> {
    let prepared = match &options.text {
        None => prepare(kit, &options.scenario, (&options.set, options.weak), options.seed)?,
        Some(text) => {
            let source = Source { name: options.scenario.clone(), text: text.clone() };
            Prepared::as_written(kit, &source.name, &kit.load(&source, &[])?, options.seed)
        }
    };
    if options.worker {
        worker::serve(&prepared)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !prepared.scenario.strikes.is_empty() {
        return Err(CliError::Strikes(prepared.name));
    }
    page::writable(options.report.as_deref())?;
    let inventory = match Inventory::count(&prepared) {
        Ok(inventory) => inventory,
        Err(InventoryError::NotClean(found)) => {
            return tell_all(kit, options, &Report::not_clean(&prepared, &found));
        }
        Err(error) => return Err(error.into()),
    };
    let faults = inventory.strikes();
    let swept = if options.only_schedules { &[][..] } else { &faults };
    let mut cases: Vec<Case> = swept.iter().map(|strike| vec![strike.clone()]).collect();
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
    let mut orders = None;
    if let Some(most) = options.exhaustive.filter(|_| !over(&records)) {
        let run = |wave: &[Case]| run(options, wave, &resumed, journal.as_ref());
        let (all, summary) = orders::exhaust(most, options.first, run)?;
        records.extend(all);
        orders = Some(summary);
    }
    let wanted = if over(&records) { &[][..] } else { swept };
    let report = Report { orders, ..Report::new(&prepared, &inventory, wanted, &records) };
    tell_all(kit, options, &report)
}

/// The report, and its first mishandled case made short if that was asked for.
fn tell_all(kit: &Kit, options: &Explore, report: &Report) -> Result<ExitCode, CliError> {
    print(kit, options, report)?;
    if let (true, Some(first)) = (options.shrink, report.wrong.first()) {
        let sets = options.weak.then(|| WEAK.to_owned()).into_iter().chain(options.set.iter().cloned());
        let written = shrink::shrink(kit, &first.token.parse()?, &sets.collect::<Vec<_>>())?;
        write!(anstream::stdout(), "\n{written}")?;
    }
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

/// Every schedule asked for; each fourth with one of the faults, none a second time before all had their turn.
fn schedules(options: &Explore, faults: &[Strike]) -> Vec<Case> {
    let mut random = Random::new(options.seed);
    let mut left = Vec::new();
    let mut fault = || {
        if left.is_empty() {
            left = faults.to_vec();
        }
        let at = usize::try_from(random.below(left.len() as u64)).unwrap_or(0);
        (at < left.len()).then(|| left.swap_remove(at))
    };
    let case = |nth| {
        let fault = if nth % 4 == 3 { fault() } else { None };
        [Strike::Schedule { nth }].into_iter().chain(fault).collect()
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
        command.args(options.weak.then_some("--weak"));
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
    let last = options.first.then_some(&Record::is_wrong as &(dyn Fn(&Record) -> bool + Sync));
    let fresh = Campaign { cases: &open, jobs, command: &command, done: &done, stop: &stop, last }.run()?;
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
    if let Some(path) = &options.report {
        page::campaign(Sort::Explore, report, path)?;
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
    let prepared = prepare(kit, &token.scenario, (&options.set, options.weak), token.seed)?;
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
    tell(&mut out, &token.to_string(), &token.strikes, &observed, &outcome)?;
    let clean = prepared.observe(&[], Keep { events: true, ..Keep::default() })?;
    let records = [(0, clean.lab.take_events()), (token.seed, observed.lab.take_events())];
    compare::case(&mut out, &records[0].1, &records[1].1)?;
    writeln!(out, "digest   {}", outcome.digest)?;
    Ok(if outcome.why.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What became of one case.
fn tell(
    out: &mut dyn Write,
    name: &str,
    strikes: &[Strike],
    observed: &Observed,
    outcome: &Outcome,
) -> std::io::Result<()> {
    let what = match strikes {
        [] => "the clean run",
        strikes if strikes.iter().any(Strike::is_fault) => "a fault injected",
        _ => "another order of events",
    };
    let at = if outcome.site.is_empty() { String::new() } else { format!(" at {}", outcome.site) };
    writeln!(out, "{name}\n{what}{at}: {:?}", outcome.verdict)?;
    for why in &outcome.why {
        writeln!(out, "  {}", why.replace('\n', "\n  "))?;
    }
    for line in &observed.result.log {
        writeln!(out, "kernel   {line}")?;
    }
    for error in &observed.result.errors {
        writeln!(out, "driver   {error}")?;
    }
    Ok(())
}

/// Runs a scenario that has strikes of its own, and judges it as a campaign does.
pub(crate) fn run_struck(
    kit: &Kit,
    name: &str,
    scenario: &Scenario,
    seed: u64,
    json: bool,
) -> Result<ExitCode, CliError> {
    let prepared = Prepared::as_written(kit, name, scenario, seed);
    let strikes = &scenario.strikes;
    let observed = prepared.observe(strikes, Keep { points: true, ..Keep::default() })?;
    if !observed.struck {
        return Err(TokenError::NotReached(faults(strikes)).into());
    }
    let outcome = judge(strikes, &observed);
    let mut out = anstream::stdout();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&outcome).map_err(std::io::Error::from)?)?;
    } else {
        tell(&mut out, &format!("{name} with {}", faults(strikes)), strikes, &observed, &outcome)?;
        writeln!(out, "digest   {}", outcome.digest)?;
    }
    Ok(if outcome.why.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Makes one case as short as it can be.
pub(crate) fn shrink_token(kit: &Kit, options: &Shrink) -> Result<ExitCode, CliError> {
    let written = shrink::shrink(kit, &options.token.parse()?, &options.set)?;
    match &options.output {
        Some(path) => std::fs::write(path, written)
            .map_err(|source| CliError::Read { name: path.display().to_string(), source })?,
        None => write!(anstream::stdout(), "{written}")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn debug(options: &Replay) -> Result<ExitCode, CliError> {
    let mut command = Command::new("gdb");
    command.args(["-ex", "run", "--args"]).arg(std::env::current_exe()?).args(["replay", &options.token]);
    command.args(options.weak.then_some("--weak"));
    options.set.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    if let Some(event) = options.stop_at {
        command.args(["--stop-at", &event.to_string()]);
    }
    let status = command.status().map_err(|source| CliError::Read { name: "gdb".to_owned(), source })?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
