//! The command line: `lowzone run`, `list`, `explore`, `replay`, `shrink`, `mutants`, `matrix`, `serve`, `schema`, `bench`, `new`.
//!
//! Exit codes: 0 all as expected, 1 an expectation failed, 2 bad input, 130 stopped by Ctrl-C.
//! Neighbours: `spec` reads, `lab` runs, `render` prints. Left out: anything that computes.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use thiserror::Error;

use crate::kit::Kit;
use crate::lab::{Control, Lab, LabError, Setting, Verify};
use crate::report::cli::{Scratch, Verdict};
use crate::report::error::ReportError;
use crate::result::RunResult;
use crate::spec::{NamedMachine, Need, Scenario, Set, Source, SpecError, faults, schema_with};
use crate::trace::Kinds;
use crate::trace::error::ViewError;
use crate::trace::export::error::ExportError;
use crate::trace::export::output::same;
use crate::trace::shown::lines;
use crate::watch::Screen;
use crate::wire::{Skip, TwoWires, WireKind};
use crate::world::WorldKind;
use crate::{
    bench, bill, compare, expect, explore, fresh, inspect, matrix, mutants, progress, render, report, serve, tour,
    trace, watch,
};

/// A laboratory for the memory half of device drivers.
///
/// It pairs an emulated PCI device that does DMA with a driver written against a model of Linux's allocators and DMA
/// API, over one shared guest memory. Without a command it runs its first scenario.
#[derive(Parser)]
#[command(name = "lowzone", version, about, after_help = "Exit codes: 0 as expected, 1 not, 2 bad input, 130 Ctrl-C.")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a scenario: a file, or one of those that `list` shows.
    Run(Run),
    /// Fail every allocation, mapping and register access of a scenario, one case each, and judge what the driver does.
    Explore(explore::cli::Explore),
    /// Repeat one case of a campaign by its token, with its record.
    Replay(explore::cli::Replay),
    /// Make one case of a campaign as short as it can be: a scenario file that still fails in the same way.
    Shrink(explore::cli::Shrink),
    /// Try the stock campaign on bugs that were seeded into the driver, in a build of this program that has them.
    Mutants(mutants::Mutants),
    /// Name the seeded bugs of this program, as JSON.
    #[cfg(lowzone_mutants)]
    #[command(hide = true)]
    Seeded,
    /// Take each barrier and lock out of the virtio drivers, one at a time, and see who tells.
    #[cfg(lowzone_mutants)]
    Removals(crate::removals::Removals),
    /// Run every scenario on every wire or every named machine, and tell what came out.
    ///
    /// A row for each scenario, a column for each wire: the lab's own devices in both worlds, and peers of other
    /// projects. With --machines a column for each machine: `passed` is in both worlds, `lockstep` in that alone. Where
    /// a story can't be told its cell is `exempt`, and the reason stands below; the exit code is 1 if a cell is FAILED.
    Matrix(matrix::Matrix),
    /// List the scenarios that come with the program.
    List,
    /// Print the JSON Schema of scenario files, for editors.
    Schema,
    /// Run a scenario up to a step, and print what /proc would say of its memory there, and what its devices reach.
    Inspect(inspect::Inspect),
    /// Walk through the allocators as LDD3 does, on a live kernel, and compare them in a table.
    Tour(tour::Tour),
    /// Look into the record of a run.
    Trace(trace::cli::Trace),
    /// Write one HTML page of a trace or of a campaign's JSON: it needs no network and no other file.
    Report(report::cli::Report),
    /// Be a device for a driver in another process: a virtual machine, a library.
    Serve(serve::cli::Serve),
    /// Measure the lab itself, and beside its peers.
    Bench(Bench),
    /// Write a crate for a driver and a device of your own.
    New(fresh::New),
}

#[derive(Args, Default)]
struct Run {
    /// The scenario: a path to a .toml file, or a name that `list` shows. Default: the program's first.
    scenario: Option<String>,
    /// The seed: who runs when (in lockstep), and the data of random steps. Given several times, the scenario runs once for each, and with -v the
    /// first event in which two runs part is named (in lockstep).
    #[arg(long, value_name = "N", default_values_t = [1])]
    seed: Vec<u64>,
    /// The world: who runs when, and whose time it is. Default: lockstep, or threads where the wire leads to a peer.
    #[arg(long, value_enum)]
    world: Option<WorldKind>,
    /// Whose devices: the lab's own in this process (inproc), those of an emulator that it starts (qemu), or virtio
    /// block devices that peers serve at sockets, whose disks begin as zeros (vhost-user=SOCKET, given once for each
    /// device). Default: inproc.
    #[arg(long)]
    wire: Vec<WireKind>,
    /// Fail where a scenario can't be told on the wire, instead of skipping it.
    #[arg(long)]
    require_peers: bool,
    /// On a machine with this name, laid over the file's [machine]; its [on.MACHINE] says what must be seen there.
    #[arg(long, value_enum, value_name = "NAME")]
    machine: Option<NamedMachine>,
    /// Replace a value of the file: a full path (machine.ram=2G) or a key that occurs once (image=disk.img).
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// On a machine with weak memory, as --set machine.weak=true: what a missing barrier does is seen.
    #[arg(long)]
    weak: bool,
    /// Make requests of a class fail, as Linux's fault injection does; in the place of the file's [fault.CLASS].
    /// May be given several times. For instance --fault 'slab:probability=50,times=-1,ignore-gfp-wait=N'.
    #[arg(long, value_name = "SPEC")]
    fault: Vec<String>,
    /// Write the record of the run to this file, for `lowzone trace`.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write one HTML page of the run to this file: its DMA transactions on a timeline, findings, curves.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Record only these kinds, by their names or systems (dma,port,virtq:add), findings and steps besides: a smaller
    /// file, and a quicker run. The run has no digest then.
    #[arg(long, value_name = "KINDS")]
    trace_kinds: Option<Kinds>,
    /// Add the DMA bill: for each device and each place that maps, bytes bounced, slots, coherent pages and what
    /// rounding wasted, and how many bits of mask would have saved the bounces. In --json as `bill`.
    #[arg(long)]
    bill: bool,
    /// Show zones, rings, mappings and findings on the terminal while it runs; q or Ctrl-C ends the run.
    #[arg(long)]
    watch: bool,
    /// Print the result as JSON, one object a seed.
    #[arg(long)]
    json: bool,
    /// Tell more: queues, devices, the kernel's log; with several seeds, where their records part.
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Args)]
struct Bench {
    /// What to measure.
    #[command(subcommand)]
    what: BenchWhat,
}

#[derive(Subcommand)]
enum BenchWhat {
    /// Runs of block/low-zone a second on one core: ledger, port and leak check on, data compared as bytes.
    Lockstep {
        /// How long to measure, in seconds.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Our allocators beside mimalloc, jemalloc, glibc's, buddy_system_allocator and bitmap-allocator: nanoseconds of an
    /// allocation and a free, ratios of interleaved rounds, sanitizers off and on.
    Alloc {
        /// How long to measure, in seconds.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// What a DMA mapping costs: direct and bounced beside a memcpy, and, in instructions counted by valgrind, among a
    /// hundred to a million live mappings, with the exponent of their number that fits.
    Dma {
        /// How long to measure, in seconds; counting takes a minute or two more.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Only measure times; valgrind is not needed then.
        #[arg(long)]
        no_count: bool,
        /// Write one HTML page of the costs to this file.
        #[arg(long, value_name = "FILE.html")]
        report: Option<PathBuf>,
        /// One count, for callgrind.
        #[command(flatten)]
        counted: bench::dma::Counted,
    },
    /// Requests a second beside programs that others wrote: our device and qemu-storage-daemon's under the crate
    /// virtio-driver, our driver and that crate on qemu-storage-daemon's disk; ratios of interleaved rounds.
    Peers {
        /// How long to measure, in seconds.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// What an event of a trace costs where it is recorded, in nanoseconds, beside a copy of as many bytes: masked out,
    /// kept in memory, streamed into a trace, with several threads.
    Trace {
        /// How long to measure, in seconds.
        #[arg(long, default_value_t = 3)]
        seconds: u64,
    },
    /// Cases of block/low-zone's campaign a second on one core, with oracle and recovery.
    Explore {
        /// How long to measure, in seconds.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
}

/// What --weak stands for.
pub(crate) const WEAK: &str = "machine.weak=true";

/// What ends the program with exit code 2.
#[derive(Debug, Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Set(#[from] crate::spec::Problem),
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Wires(#[from] TwoWires),
    #[error("--wire {0} has a time of its own, which lockstep has not: --world threads, or none")]
    Time(WireKind),
    #[error(transparent)]
    Inventory(#[from] explore::inventory::InventoryError),
    #[error(transparent)]
    Campaign(#[from] explore::campaign::CampaignError),
    #[error(transparent)]
    Journal(#[from] explore::journal::JournalError),
    #[error(transparent)]
    Token(#[from] explore::token::TokenError),
    #[error(transparent)]
    Shrink(#[from] explore::shrink::ShrinkError),
    #[error("{0} has strikes of its own, so it is one case and no campaign: run it")]
    Strikes(String),
    #[error(transparent)]
    Mutants(#[from] mutants::MutantsError),
    #[cfg(lowzone_mutants)]
    #[error(transparent)]
    Mutant(#[from] crate::driver::mutant::UnknownMutant),
    #[error(transparent)]
    New(#[from] fresh::NewError),
    #[error(transparent)]
    Peers(#[from] bench::peers::PeersError),
    #[error(transparent)]
    Dma(#[from] bench::dma::DmaBenchError),
    #[error(transparent)]
    Serve(#[from] serve::ServeError),
    #[error("{} is not there: cargo build --release -p lowzone-tests --features rivals", .0.display())]
    NoProgram(PathBuf),
    #[error("{scenario} has {steps} steps: there is no step {step}")]
    NoStep { scenario: String, step: usize, steps: usize },
    #[error("{name}: {source}")]
    Read { name: String, source: std::io::Error },
    #[error("no scenario '{name}'{}", nearest.as_deref().map(|n| format!(": did you mean '{n}'?")).unwrap_or_default())]
    Unknown { name: String, nearest: Option<String> },
    #[error(transparent)]
    Trace(#[from] trace::TraceError),
    #[error(transparent)]
    View(ViewError),
    #[error(transparent)]
    Report(#[from] report::error::ReportError),
    #[error("{option}: {name} has strikes of its own, which are a case of a campaign and not a run: leave it out")]
    Struck { option: &'static str, name: String },
    #[error("{option} {name} would write over what the run reads or writes itself; name another file")]
    Over { option: &'static str, name: String },
    #[error("--trace-kinds chooses what is recorded, and nothing is: add --trace FILE or --report FILE")]
    KindsOfNothing,
    #[error("--trace, --report: a trace holds one run, and there are {0} seeds")]
    TraceSeeds(usize),
    #[error(transparent)]
    Screen(#[from] watch::NoScreen),
    #[error("cannot write the result: {0}")]
    Output(#[from] std::io::Error),
}

/// Runs the program of a kit with this process's arguments.
pub fn main(kit: Kit) -> ExitCode {
    let matches = Cli::command().name(kit.name()).bin_name(kit.name()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let kit = &kit;
    #[cfg(lowzone_mutants)]
    if let Err(error) = crate::driver::mutant::chosen() {
        complain(kit, &error.into());
        return ExitCode::from(2);
    }
    let outcome = match cli.command {
        None => run(kit, &Run { seed: vec![1], ..Run::default() }),
        Some(Command::Run(options)) => run(kit, &options),
        Some(Command::Explore(options)) => explore::cli::explore(kit, &options),
        Some(Command::Replay(options)) => explore::cli::replay(kit, &options),
        Some(Command::Shrink(options)) => explore::cli::shrink_token(kit, &options),
        Some(Command::Mutants(options)) => mutants::run(&options),
        #[cfg(lowzone_mutants)]
        Some(Command::Seeded) => mutants::seeded(),
        #[cfg(lowzone_mutants)]
        Some(Command::Removals(options)) => crate::removals::run(&options),
        Some(Command::Matrix(options)) => matrix::run(kit, &options),
        Some(Command::Inspect(options)) => inspect::run(kit, &options),
        Some(Command::Tour(options)) => tour::run(&options),
        Some(Command::List) => list(kit),
        Some(Command::Schema) => print_schema(kit),
        Some(Command::Trace(options)) => trace::cli::run(&options).map_err(CliError::from),
        Some(Command::Report(options)) => report::cli::run(&options).map_err(CliError::from),
        Some(Command::New(options)) => fresh::write(&options),
        Some(Command::Serve(options)) => serve::cli::run(&options).map_err(CliError::from),
        Some(Command::Bench(Bench { what: BenchWhat::Lockstep { seconds } })) => bench::lockstep(seconds),
        Some(Command::Bench(Bench { what: BenchWhat::Explore { seconds } })) => bench::explore(seconds),
        Some(Command::Bench(Bench { what: BenchWhat::Alloc { seconds } })) => bench::alloc(seconds),
        Some(Command::Bench(Bench { what: BenchWhat::Dma { counted, seconds, no_count, report } })) => {
            bench::dma::start(&counted, seconds, no_count, report.as_deref())
        }
        Some(Command::Bench(Bench { what: BenchWhat::Peers { seconds } })) => bench::peers::run(seconds),
        Some(Command::Bench(Bench { what: BenchWhat::Trace { seconds } })) => bench::trace::run(seconds),
    };
    match outcome {
        Ok(code) => code,
        // A reader that went away (`| head`) is no error of ours.
        Err(
            CliError::Output(source)
            | CliError::View(ViewError::Export(ExportError::Write { source, .. }))
            | CliError::Report(ReportError::Write(ExportError::Write { source, .. })),
        ) if source.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(kit, &error);
            ExitCode::from(2)
        }
    }
}

impl From<ViewError> for CliError {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::Output(error) => Self::Output(error),
            other => Self::View(other),
        }
    }
}

/// Says something that is no error.
fn warn(kit: &Kit, text: &str) {
    // With stderr gone there is nobody to tell.
    let _ = writeln!(anstream::stderr(), "{}: {text}", kit.name());
}

fn complain(kit: &Kit, error: &CliError) {
    let mut text = String::new();
    if let CliError::Spec(spec) = error {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let diagnostic: &dyn Diagnostic = spec;
        if GraphicalReportHandler::new_themed(theme).render_report(&mut text, diagnostic).is_err() {
            text.clear();
        }
    }
    let mut stderr = anstream::stderr();
    let plain = || format!("{}: {}\n", kit.name(), lines(&with_causes(error)));
    let shown = stderr.write_all(if text.is_empty() { plain() } else { text }.as_bytes());
    // With stderr gone there is nobody to tell.
    drop(shown);
}

/// An error and the causes that it doesn't tell itself, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}

/// Reads a scenario by path or name.
pub(crate) fn source(kit: &Kit, name: &str) -> Result<Source, CliError> {
    if let Some(source) = kit.source(name) {
        return Ok(source);
    }
    match std::fs::read_to_string(name) {
        Ok(text) => Ok(Source { name: name.to_owned(), text }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !name.ends_with(".toml") => {
            let nearest = kit.nearest(name).map(str::to_owned);
            Err(CliError::Unknown { name: name.to_owned(), nearest })
        }
        Err(error) => Err(CliError::Read { name: name.to_owned(), source: error }),
    }
}

fn run(kit: &Kit, options: &Run) -> Result<ExitCode, CliError> {
    let source = source(kit, options.scenario.as_deref().unwrap_or(kit.default_scenario()))?;
    let machine = options.machine.unwrap_or(NamedMachine::Identity);
    let weak = options.weak.then_some(WEAK);
    let given = weak.into_iter().chain(options.set.iter().map(String::as_str)).map(Set::parse);
    let given = given.collect::<Result<Vec<_>, _>>()?;
    let sets: Vec<_> = machine.sets().into_iter().chain(given).collect();
    let scenario = match kit.load(&source, &sets)?.on(machine) {
        Ok(scenario) => scenario,
        Err(why) => return exempt(options, machine, &source.name, &why),
    };
    let faults = faults(&options.fault)?;
    if (options.trace.is_some() || options.report.is_some()) && options.seed.len() > 1 {
        return Err(CliError::TraceSeeds(options.seed.len()));
    }
    spares_inputs(options, &source.name, &scenario)?;
    report::cli::writable(options.report.as_deref())?;
    let setting = setting(options)?;
    if !scenario.strikes.is_empty() {
        let options_of_a_run = [("--watch", options.watch), ("--report", options.report.is_some())];
        if let Some((option, _)) = options_of_a_run.into_iter().find(|(_, given)| *given) {
            return Err(CliError::Struck { option, name: source.name });
        }
        return struck(kit, options, &setting, &source.name, &scenario);
    }
    let expected = match setting.wire().expects(&scenario) {
        Ok(expected) => expected,
        Err(skip) => return skipped(options, setting.wire(), &source.name, &skip),
    };
    let control = Arc::new(Control::default());
    let watch = progress::watch(&control);
    let compared = options.verbose && options.seed.len() > 1 && setting.world() == WorldKind::Lockstep;
    let mut records = Vec::new();
    let mut code = 0;
    for &seed in &options.seed {
        let (story, verify) = (scenario.clone(), Verify::Sha256);
        let mut lab = Lab::in_world(setting.clone(), kit, &source.name, story, seed, verify, control.clone())?;
        lab.inject(&faults);
        if compared {
            lab.capture();
        }
        if let Some(kinds) = &options.trace_kinds {
            lab.record_only(kinds);
        }
        let scratch = options.report.as_deref().map(Scratch::beside);
        let trace = options.trace.as_deref().or(scratch.as_ref().map(Scratch::path));
        if let Some(path) = trace {
            let name = || path.display().to_string();
            let file = File::create(path).map_err(|source| trace::TraceError::Open { name: name(), source })?;
            lab.stream_to(Box::new(file))?;
        }
        if options.bill {
            lab.keep_bill();
        }
        if options.watch {
            watch.show(Screen::take(lab.board())?);
        }
        let mut result = lab.run();
        let traced = lab.end_stream();
        result.bill = lab.take_bill();
        if compared {
            records.push((seed, lab.take_events()));
        }
        watch.pause();
        code = code.max(tell(options, &expected, &result)?);
        let lost: Vec<_> = traced?.iter().map(|(producer, events)| format!("{events} of {producer}")).collect();
        if !lost.is_empty() {
            let text = format!("the trace lacks events that came faster than the file took them: {}", lost.join(", "));
            warn(kit, &text);
        }
        if let (Some(page), Some(trace)) = (&options.report, trace) {
            let shown = options.trace.as_deref().map(report::cli::base_name).unwrap_or_default();
            report::cli::traced(trace, &shown, Some(&verdict(&expected, &result)), page)?;
        }
        if result.interrupted {
            break;
        }
    }
    drop(watch);
    if compared {
        compare::print(&mut anstream::stdout(), &records)?;
    }
    Ok(ExitCode::from(code))
}

/// Refuses to write a record over what the run reads, or over its own page; kinds are chosen of a record only.
fn spares_inputs(options: &Run, name: &str, scenario: &Scenario) -> Result<(), CliError> {
    let images = scenario.device.iter().filter_map(|device| device.image.as_deref());
    let inputs: Vec<_> = images.chain([name]).map(Path::new).collect();
    for (option, path) in [("--trace", &options.trace), ("--report", &options.report)] {
        let Some(path) = path else { continue };
        if inputs.iter().any(|input| same(path, input)) {
            return Err(CliError::Over { option, name: path.display().to_string() });
        }
    }
    if let (Some(trace), Some(page)) = (&options.trace, &options.report)
        && (trace == page || same(trace, page))
    {
        return Err(CliError::Over { option: "--report", name: page.display().to_string() });
    }
    let recorded = options.trace.is_some() || options.report.is_some();
    if options.trace_kinds.is_some() && !recorded { Err(CliError::KindsOfNothing) } else { Ok(()) }
}

/// What the page of a run says beyond its trace.
fn verdict(expected: &crate::spec::Expect, result: &RunResult) -> Verdict {
    let wrong = expect::check(expected, result).into_iter();
    let wrong = wrong.map(|one| format!("{}: expected {}, seen {}", one.what, one.expected, one.seen)).collect();
    Verdict { story: result.story.clone(), wrong, leaks: result.leaks.clone() }
}

/// Runs a scenario that has strikes of its own, once for each seed.
fn struck(kit: &Kit, options: &Run, setting: &Setting, name: &str, scenario: &Scenario) -> Result<ExitCode, CliError> {
    if setting.world() != WorldKind::Lockstep {
        let why = "its strikes are places in an order of events that threads leave to chance";
        return Err(LabError::Needs { scenario: name.to_owned(), need: Need::Lockstep, why }.into());
    }
    let mut code = ExitCode::SUCCESS;
    for &seed in &options.seed {
        let ended = explore::cli::run_struck(kit, name, scenario, seed, options.json)?;
        if ended != ExitCode::SUCCESS {
            code = ended;
        }
    }
    Ok(code)
}

/// The world and the wire; a peer has one world only.
fn setting(options: &Run) -> Result<Setting, CliError> {
    match (options.world, WireKind::join(&options.wire)?) {
        (Some(world), WireKind::InProc) => Ok(Setting::from(world)),
        (Some(WorldKind::Lockstep), wire) => Err(CliError::Time(wire)),
        (_, wire) => Ok(Setting::from(wire)),
    }
}

/// Says why a scenario is not run on a machine.
fn exempt(options: &Run, machine: NamedMachine, name: &str, why: &str) -> Result<ExitCode, CliError> {
    let mut out = anstream::stdout();
    if options.json {
        writeln!(out, "{}", serde_json::json!({ "scenario": name, "machine": machine, "exempt": why }))?;
    } else {
        writeln!(out, "exempt on {machine}: {name}: {why}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says why a scenario is not run; that is no failure unless it was asked to be one.
fn skipped(options: &Run, wire: &WireKind, name: &str, skip: &Skip) -> Result<ExitCode, CliError> {
    let mut out = anstream::stdout();
    if options.json {
        let text = serde_json::json!({ "scenario": name, "wire": wire.name(), "skipped": skip.to_string() });
        writeln!(out, "{text}")?;
    } else {
        writeln!(out, "skipped on {wire}: {name} {skip}")?;
    }
    Ok(if options.require_peers { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn tell(options: &Run, expected: &crate::spec::Expect, result: &RunResult) -> Result<u8, CliError> {
    let wrong = expect::check(expected, result);
    let mut out = anstream::stdout();
    if options.json {
        let text = serde_json::to_string_pretty(result).map_err(std::io::Error::from)?;
        writeln!(out, "{text}")?;
    } else if options.seed.len() > 1 {
        render::line(&mut out, result)?;
    } else {
        render::result(&mut out, result, options.verbose)?;
    }
    if let Some(bill) = result.bill.as_ref().filter(|_| !options.json) {
        bill::print(&mut out, bill)?;
    }
    if !wrong.is_empty() {
        render::mismatches(&mut anstream::stderr(), &wrong)?;
    }
    if result.input_changed {
        return Ok(2);
    }
    Ok(match (result.interrupted, wrong.is_empty()) {
        (true, true) => 130,
        (_, false) => 1,
        (false, true) => 0,
    })
}

fn list(kit: &Kit) -> Result<ExitCode, CliError> {
    let mut out = anstream::stdout();
    for entry in kit.entries() {
        let text = Source { name: entry.name.to_owned(), text: entry.text.to_owned() };
        // A file that wants a value first (an image) still has its story.
        let story = kit.load(&text, &[]).map(|s| s.story).unwrap_or_else(|_| render::story(entry.text));
        writeln!(out, "{:<26} {story}", entry.name)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_schema(kit: &Kit) -> Result<ExitCode, CliError> {
    let text = serde_json::to_string_pretty(&schema_with(&kit.kinds())).map_err(std::io::Error::from)?;
    writeln!(anstream::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}
